"""What is read from the values of rows themselves: percentiles, extremes, and the rows that differ most."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

PERCENTS = (99.9, 99.0, 95.0, 90.0, 75.0, 50.0, 25.0, 10.0, 5.0, 1.0, 0.1)
WORST = 20
_COLUMNS = ("row", "kl", "label", "loss_reference", "loss_candidate", "predicted_reference", "predicted_candidate")


def percentiles(values: Floats, percents: tuple[float, ...]) -> list[float]:
    """Linear between neighbours, at the position percent / 100 (n - 1); NaN of no values.

    >>> import numpy as np
    >>> percentiles(np.array([1.0, 2.0, 4.0]), (50.0, 75.0))
    [2.0, 3.0]
    """
    if not len(values):
        return [math.nan] * len(percents)
    places = [percent / 100 * (len(values) - 1) for percent in percents]
    lows = [math.floor(place) for place in places]
    highs = [min(low + 1, len(values) - 1) for low in lows]
    ordered = np.partition(values, sorted({*lows, *highs}))
    found = []
    for place, low, high in zip(places, lows, highs, strict=True):
        a, b = float(ordered[low]), float(ordered[high])
        found.append(a if place == low or a == b else a + (place - low) * (b - a))
    return found


def spread_of(values: Floats) -> dict[str, Any]:
    """Extremes and percentiles, by their names in reports."""
    found = {f"{percent:g}": value for percent, value in zip(PERCENTS, percentiles(values, PERCENTS), strict=True)}
    low, high = (float(values.min()), float(values.max())) if len(values) else (math.nan, math.nan)
    return {"max": high, "min": low, "percentiles": found}


class Worst:
    """The rows of the largest kl, 20 of them; of equal ones those that come first in the data."""

    def __init__(self) -> None:
        self._columns: dict[str, npt.NDArray[Any]] = {}

    def add(self, columns: dict[str, npt.NDArray[Any]], rows: npt.NDArray[np.int64], labels: Any) -> None:
        """Add rows by their number in the data; those whose kl is NaN are none."""
        given = columns | {"row": rows} | ({} if labels is None else {"label": labels})
        kl = np.where(np.isnan(given["kl"]), -np.inf, given["kl"])
        least = np.partition(kl, len(kl) - WORST)[len(kl) - WORST] if len(kl) > WORST else -np.inf
        chosen = (kl >= least) & (kl > -np.inf)
        self._take({name: given[name][chosen] for name in _COLUMNS if name in given})

    def _take(self, others: dict[str, npt.NDArray[Any]]) -> None:
        mine = self._columns or {name: column[:0] for name, column in others.items()}
        both = {name: np.concatenate([column, others[name]]) for name, column in mine.items() if name in others}
        if both:
            order = np.lexsort((both["row"], -both["kl"]))[:WORST]
            self._columns = {name: column[order] for name, column in both.items()}

    def merge(self, other: Worst) -> None:
        """Add the rows of another."""
        if other._columns:
            self._take(other._columns)

    def state(self) -> dict[str, Any]:
        """The rows as columns."""
        return dict(self._columns)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Worst:
        """The inverse of `state`."""
        worst = cls()
        worst._columns = {name: np.asarray(column) for name, column in state.items()}
        return worst

    def to_list(self) -> list[dict[str, Any]]:
        """A line for each row, the largest kl first."""
        columns = {name: column.tolist() for name, column in self._columns.items()}
        return [dict(zip(columns, line, strict=True)) for line in zip(*columns.values(), strict=True)]
