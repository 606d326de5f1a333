"""What a row function may look at: what was asked, how the data are called, and where candidates come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bigvocab.evaluation.options import LossOptions, Measures
from bigvocab.evaluation.specification import Specification
from bigvocab.matrices.names import DataNames
from bigvocab.sampling.draw_blocks import Draws


@dataclass(frozen=True, eq=False)
class RowContext:
    """A specification beside the data it is about.

    Attributes:
        specification: what was asked.
        names: how messages call the data.
        draws: the candidates of a sampled loss.
        seen: rows that came before row 0 of the data, by which draws count.
    """

    specification: Specification
    names: DataNames
    draws: Draws | None = None
    seen: int = 0

    @property
    def loss(self) -> LossOptions:
        """The formula."""
        return self.specification.loss

    @property
    def measures(self) -> Measures:
        """What to report beside the loss."""
        return self.specification.measures

    @property
    def threads(self) -> int:
        """How many threads share the rows."""
        return self.specification.threads

    @property
    def class_weights(self) -> Any:
        """The weight of each class, unchecked; None where there are none."""
        return None if self.loss.class_weights is None else self.loss.class_weights.values

    @property
    def frequencies(self) -> Any:
        """The count of each class; None where there are none."""
        found = self.measures.frequencies
        return None if found is None else found.values
