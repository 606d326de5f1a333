"""Where the label stands among the classes of its row, and how ties count."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.losses.row_statistics import RowStatistics

_LAST = np.iinfo(np.int64).max
# Sums of 1 / i up to so many by a table, beyond by their series, whose next term is below 1e-20 there.
_TABLE = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, 4097))])
_EULER = 0.5772156649015329


def rank_columns(rows: RowStatistics, classes: int, ties: str) -> dict[str, npt.NDArray[Any]]:
    """The columns of the label's rank: rank, reciprocal_rank, ranked, place, tie (see `statistics`), and tied.

    A rank is 1 + the classes with a greater logit; under "pessimistic" ties the classes with the label's own logit
    stand before it, under "mean" it is the expectation under a random order of them, and so is its reciprocal.
    A row with a NaN has no order: as if the label were last, and right for no k.
    """
    without = np.isnan(rows.exp_sum)
    best = np.where(without, classes, rows.rank)
    worst = np.where(without, classes, best + np.maximum(rows.equal, 1.0).astype(np.int64) - 1)
    first, last = (worst if ties == "pessimistic" else best), (best if ties == "optimistic" else worst)
    found: dict[str, npt.NDArray[Any]] = {"rank": first, "reciprocal_rank": 1.0 / first}
    if ties == "mean":
        found = {"rank": (first + last) / 2, "reciprocal_rank": mean_reciprocals(first, last)}
    found["ranked"] = found["rank"]
    found["tied"] = rows.tied & ~without
    for name, (low, high) in (("place", (first, last)), ("tie", (best, worst))):
        found[name] = np.stack([np.where(without, _LAST, low), np.where(without, _LAST, high)], 1)
    return found


def mean_reciprocals(first: npt.NDArray[Any], last: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The mean of 1 / i over i from `first` to `last`, both included.

    >>> mean_reciprocals(np.array([1, 2]), np.array([2, 2])).tolist()
    [0.75, 0.5]
    """
    found = (_harmonic(last) - _harmonic(first - 1)) / (last - first + 1)
    return np.where(first == last, 1.0 / first, found)


def _harmonic(n: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    small, x = n < len(_TABLE), np.maximum(n, 1).astype(np.float64)
    series = np.log(x) + _EULER + 1 / (2 * x) - 1 / (12 * x**2) + 1 / (120 * x**4)
    return np.where(small, _TABLE[np.where(small, n, 0)], series)
