"""What one block of rows has to say: losses, weights, which rows count, and a column for each by-product."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass
class RowResult:
    """Losses of a block of rows and what goes with them; arrays are (n,).

    Attributes:
        loss: unweighted, in nats.
        weighted: numerator of the mean: weight times loss, or what class weights make of it.
        weight: denominator of the mean; None is 1 for each row.
        counted: False for rows in no metric: ignored, or skipped as not finite.
        ignored: by their label.
        nonfinite: holding a NaN, +inf or no finite logit.
        row_weight: of the row alone, where `weight` has the class weight in it.
        values: columns by name, as statistics and records take them.
        bins: (n,) bins of rows by the name of a breakdown.
        counts: of what notes are about.
        extremes: least and greatest of what notes are about.
    """

    loss: Floats
    weighted: Floats
    weight: Floats | None
    counted: Bools
    ignored: Bools
    nonfinite: Bools
    row_weight: Floats | None = None
    values: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    bins: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    extremes: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.loss)
