"""How columns of row values become numbers of a report: one small class for each kind that the catalogue names.

A kind adds a column to the sums, counts or extremes of a tally, all of which merge exactly, and reads its number off
them at the end, with one division.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bigvocab.catalogue import METRICS, Statistic
from bigvocab.evaluation.sums import Sums

Array = npt.NDArray[Any]
# What reports of the sampled losses have beside their exact ones.
SAMPLED_STATISTICS = (Statistic("mean", "exact", "exact_mean"), Statistic("paired", "bias", "bias"))
STATISTICS = tuple(dict.fromkeys(one for metric in METRICS.values() for one in metric.statistics))


class Kind(Protocol):
    """A kind of statistic: no state of its own."""

    def add(self, sums: Sums, column: Array, name: str, weights: Array | None, live: Array | None) -> None:
        """Add the values of counted rows; a row that is not `live` has weight 0, and may hold anything."""

    def read(self, sums: Sums, name: str) -> Any:
        """The number, or dict of numbers, for the report; None where nothing was added."""


def _weighted(column: Array, weights: Array | None, live: Array | None) -> Array:
    column = column.astype(np.float64, copy=False)
    if live is not None:
        column = np.where(live, column, 0.0)
    with np.errstate(over="ignore"):
        return column if weights is None else weights * column


class _Mean:
    """The weighted mean of the values."""

    def add(self, sums: Sums, column: Array, name: str, weights: Array | None, live: Array | None) -> None:
        sums.sum_of(name).add(_weighted(column, weights, live))

    def read(self, sums: Sums, name: str) -> Any:
        return sums.mean(name) if name in sums.sums else None


class _Reciprocal:
    """The weighted mean of 1 / value."""

    def add(self, sums: Sums, column: Array, name: str, weights: Array | None, live: Array | None) -> None:
        sums.sum_of(f"reciprocal_{name}").add(_weighted(1.0 / column, weights, live))

    def read(self, sums: Sums, name: str) -> Any:
        return sums.mean(f"reciprocal_{name}") if f"reciprocal_{name}" in sums.sums else None


class _Within:
    """The weighted share of values up to k, for each k asked for."""

    def add(self, sums: Sums, column: Array, name: str, weights: Array | None, live: Array | None) -> None:
        for k in sums.top_k:
            sums.sum_of(f"top_{k}").add(_weighted(column <= k, weights, live))

    def read(self, sums: Sums, name: str) -> Any:
        return {str(k): sums.mean(f"top_{k}") for k in sums.top_k if f"top_{k}" in sums.sums} or None


class _Count:
    """How many rows, of those with a weight, the column is true of."""

    def add(self, sums: Sums, column: Array, name: str, weights: Array | None, live: Array | None) -> None:
        found = int(np.count_nonzero(column & (True if live is None else live)))
        sums.counts[f"{name}_rows"] = sums.counts.get(f"{name}_rows", 0) + found

    def read(self, sums: Sums, name: str) -> Any:
        return sums.counts.get(f"{name}_rows")


class _Extremes:
    """The least and the greatest value of the rows with a weight; NaN is none."""

    def add(self, sums: Sums, column: Array, name: str, weights: Array | None, live: Array | None) -> None:
        column = column if live is None else column[live]
        if column.size:
            low, high = sums.extremes.get(name, (math.inf, -math.inf))
            column = column[~np.isnan(column)] if np.isnan(column).any() else column
            least, greatest = float(column.min(initial=math.inf)), float(column.max(initial=-math.inf))
            sums.extremes[name] = min(low, least), max(high, greatest)

    def read(self, sums: Sums, name: str) -> Any:
        if name not in sums.sums:
            return None
        low, high = sums.extremes.get(name, (math.nan, math.nan))
        return {"min": low, "max": high}


class _Paired:
    """The weighted mean of a difference between two values of the same row, with its standard error."""

    def add(self, sums: Sums, column: Array, name: str, weights: Array | None, live: Array | None) -> None:
        weighted = _weighted(column, weights, live)
        sums.sum_of(name).add(weighted)
        sums.sum_of(f"{name}_squared").add(weighted * weighted)
        sums.sum_of(f"weight_{name}").add(weighted if weights is None else weights * weighted)

    def read(self, sums: Sums, name: str) -> Any:
        return sums.mean(name) if name in sums.sums else None


KINDS: dict[str, Kind] = {
    "mean": _Mean(),
    "reciprocal": _Reciprocal(),
    "within": _Within(),
    "count": _Count(),
    "extremes": _Extremes(),
    "paired": _Paired(),
}


def add_values(sums: Sums, values: dict[str, Array], weights: Array | None) -> None:
    """Add the columns of counted rows to the sums of every statistic that is of one of them."""
    live = None if weights is None or weights.all() else weights != 0
    for statistic in (*STATISTICS, *SAMPLED_STATISTICS):
        if statistic.column in values:
            KINDS[statistic.kind].add(sums, values[statistic.column], statistic.column, weights, live)


def read_values(sums: Sums) -> dict[str, Any]:
    """The numbers of all statistics that something was added to, by their names in the report."""
    found: dict[str, Any] = {}
    for statistic in STATISTICS:
        value = KINDS[statistic.kind].read(sums, statistic.column)
        if value is None:
            continue
        head, _, rest = statistic.figure.partition(".")
        if rest:
            found.setdefault(head, {})[rest] = value
        elif isinstance(value, dict):
            found.setdefault(head, {}).update(value)
        else:
            found[head] = value
    return found
