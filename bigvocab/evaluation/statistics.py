"""How columns of row values become numbers of a report: one small class for each kind that the catalogue names.

A kind adds a column to the sums, counts or extremes of a tally, all of which merge exactly, and reads its number off
them at the end, with one division.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bigvocab.catalogue import LOSSES, METRICS, RANKING, LossSpec, MetricSpec, Statistic
from bigvocab.evaluation.sums import Sums
from bigvocab.losses.exact_sums import divide

Array = npt.NDArray[Any]
# What reports of the sampled losses have beside their exact ones.
SAMPLED_STATISTICS = (
    Statistic("mean", "exact", "exact_mean"),
    Statistic("paired", "bias", "bias"),
    Statistic("ranking", "exact_ranking", "exact_ranking"),
    Statistic("ranking", "ranking_bias", "ranking_bias"),
)
_SPECS: list[MetricSpec | LossSpec] = [*METRICS.values(), *LOSSES.values()]
STATISTICS = tuple(dict.fromkeys(one for spec in _SPECS for one in spec.statistics))
# Fixed, whatever the data, so that histograms add up.
LOSS_EDGES = np.arange(129) / 4.0  # nats; the last bin has no upper end
RANK_EDGES = 2.0 ** np.arange(63)  # a bin holds its edge, and what is above the edge before
CONFIDENCE_EDGES = np.arange(16) / 15.0


class Kind(Protocol):
    """A kind of statistic: no state of its own."""

    def add(self, sums: Sums, column: Array, name: str, weights: Array | None, live: Array | None) -> None:
        """Add the values of counted rows; a row that is not `live` has weight 0, and may hold anything."""

    def read(self, sums: Sums, name: str) -> Any:
        """The number, or dict of numbers, for the report; None where nothing was added."""


def weighted(column: Array, weights: Array | None) -> Array:
    """Values times weights; a row of weight 0 may hold anything."""
    return _weighted(column, weights, None if weights is None else weights != 0)


def _weighted(column: Array, weights: Array | None, live: Array | None) -> Array:
    column = column.astype(np.float64, copy=False)
    if live is not None:
        column = np.where(live, column, 0.0)
    with np.errstate(over="ignore"):
        return column if weights is None else weights * column


def share_within(places: Array, k: int) -> Array:
    """The probability that a place is up to k, where each from the first to the last of (n, 2) is as likely."""
    first, last = places.T
    if (first == last).all():
        return first <= k
    return np.clip((k + 1 - first) / (last + 1 - first), 0.0, 1.0)


class _Mean:
    """The weighted mean of the values."""

    def add(self, sums: Sums, column: Array, name: str, weights: Array | None, live: Array | None) -> None:
        sums.sum_of(name).add(_weighted(column, weights, live))

    def read(self, sums: Sums, name: str) -> Any:
        return sums.mean(name) if name in sums.sums else None


class _Within:
    """The weighted share of places up to k, for each k asked for: a place is (n, 2), the first and the last of a range
    of which each is as likely.
    """

    def add(self, sums: Sums, column: Array, name: str, weights: Array | None, live: Array | None) -> None:
        for k in sums.top_k:
            sums.sum_of(f"top_{k}").add(_weighted(share_within(column, k), weights, live))

    def read(self, sums: Sums, name: str) -> Any:
        return {str(k): sums.mean(f"top_{k}") for k in sums.top_k if f"top_{k}" in sums.sums} or None


class _Between:
    """The weighted shares of rows whose last place, and whose first place, is up to k; where the two ever differ."""

    def add(self, sums: Sums, column: Array, name: str, weights: Array | None, live: Array | None) -> None:
        first, last = column.T
        differ = first != last if live is None else (first != last) & live
        sums.counts["ranges"] = sums.counts.get("ranges", 0) + int(np.count_nonzero(differ))
        for k in sums.top_k:
            sums.sum_of(f"best_{k}").add(_weighted(first <= k, weights, live))
            sums.sum_of(f"worst_{k}").add(_weighted(last <= k, weights, live))

    def read(self, sums: Sums, name: str) -> Any:
        if not sums.counts.get("ranges"):
            return None
        return {str(k): [sums.mean(f"worst_{k}"), sums.mean(f"best_{k}")] for k in sums.top_k} or None


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
            column = column[~np.isnan(column)] if np.isnan(column).any() else column
            sums.widen(name, float(column.min(initial=math.inf)), float(column.max(initial=-math.inf)))

    def read(self, sums: Sums, name: str) -> Any:
        if name not in sums.sums:
            return None
        low, high = sums.extremes.get(name, (math.nan, math.nan))
        return {"min": low, "max": high}


class _Least(_Extremes):
    """The least value alone."""

    def read(self, sums: Sums, name: str) -> Any:
        found = super().read(sums, name)
        return None if found is None else {"min": found["min"]}


class _Paired:
    """The weighted mean of a value that has a standard error of its own, such as a difference within rows."""

    def add(self, sums: Sums, column: Array, name: str, weights: Array | None, live: Array | None) -> None:
        weighted = _weighted(column, weights, live)
        sums.sum_of(name).add(weighted)
        sums.sum_of(f"{name}_squared").add(weighted * weighted)
        sums.sum_of(f"weight_{name}").add(weighted if weights is None else weights * weighted)

    def read(self, sums: Sums, name: str) -> Any:
        return sums.mean(name) if name in sums.sums else None


class _MeanError(_Paired):
    """The same, both numbers of the report."""

    def read(self, sums: Sums, name: str) -> Any:
        return {"mean": sums.mean(name), "stderr": sums.stderr(name)} if name in sums.sums else None


class _LossHistogram:
    """How many rows have which loss, in quarters of a nat; not weighted, and NaN is in no bin."""

    def add(self, sums: Sums, column: Array, name: str, weights: Array | None, live: Array | None) -> None:
        column = column if live is None else column[live]
        bins = np.searchsorted(LOSS_EDGES, column[~np.isnan(column)], "right") - 1
        sums.bins_of(name, len(LOSS_EDGES)).count(np.maximum(bins, 0))

    def read(self, sums: Sums, name: str) -> Any:
        if name not in sums.bins:
            return None
        return {"edges": [*LOSS_EDGES.tolist(), None], "counts": sums.bins[name].rows.tolist()}


class _RankHistogram:
    """How many rows have which rank, in powers of two; not weighted."""

    def add(self, sums: Sums, column: Array, name: str, weights: Array | None, live: Array | None) -> None:
        column = column if live is None else column[live]
        sums.bins_of(name, len(RANK_EDGES)).count(np.searchsorted(RANK_EDGES, column, "left"))

    def read(self, sums: Sums, name: str) -> Any:
        if name not in sums.bins:
            return None
        rows = sums.bins[name].rows
        used = int(np.flatnonzero(rows)[-1]) + 1 if rows.any() else 1
        return {"edges": [1 << i for i in range(used)], "counts": rows[:used].tolist()}


class _Calibration:
    """Confidence against accuracy in 15 bins of the confidence, and the mean distance of the two: (n, 2) confidence and
    whether the row was right. Weighted; a row without a confidence is in no bin.
    """

    def add(self, sums: Sums, column: Array, name: str, weights: Array | None, live: Array | None) -> None:
        there = ~np.isnan(column[:, 0]) if live is None else live & ~np.isnan(column[:, 0])
        confidence, right = column[there].T
        weights = None if weights is None else weights[there]
        columns = {name: _weighted(one, weights, None) for name, one in (("confidence", confidence), ("right", right))}
        bins = np.searchsorted(CONFIDENCE_EDGES[1:-1], confidence, "right")
        sums.bins_of(name, len(CONFIDENCE_EDGES) - 1).add(bins, columns, weights)

    def read(self, sums: Sums, name: str) -> Any:
        if name not in sums.bins:
            return None
        found, bins = sums.bins[name], []
        apart: list[Any] = []
        for i, edges in enumerate(itertools.pairwise(CONFIDENCE_EDGES.tolist())):
            bins.append({"from": edges[0], "to": edges[1], "rows": int(found.rows[i])})
            if found.rows[i]:
                bins[-1] |= {"confidence": found.mean(i, "confidence"), "accuracy": found.mean(i, "right")}
                apart.append(abs(found.sums["confidence"].exact(i) - found.sums["right"].exact(i)))
        weight = sum(found.sums["weight"].exact(i) for i in range(len(found))) if apart else 0
        return {"bins": bins, "ece": divide(sum(apart), weight)}


def ranking_columns(column: Array, top_k: tuple[int, ...], name: str = "ranking") -> dict[str, Array]:
    """The columns of values (n, metrics, k) by the names of their sums: ranking.recall@10 and the like."""
    metrics = zip(RANKING, np.moveaxis(column, 1, 0), strict=False)
    return {f"{name}.{metric}@{k}": values[:, j] for metric, values in metrics for j, k in enumerate(top_k)}


class _Ranking:
    """The weighted means of a column (n, metrics, k), each with its standard error."""

    def add(self, sums: Sums, column: Array, name: str, weights: Array | None, live: Array | None) -> None:
        for one, values in ranking_columns(column, sums.top_k, name).items():
            _Paired().add(sums, values, one, weights, live)

    def read(self, sums: Sums, name: str) -> Any:
        there = [metric for metric in RANKING if any(f"{name}.{metric}@{k}" in sums.sums for k in sums.top_k)]
        if not there:
            return None
        found: dict[str, Any] = {
            metric: {str(k): sums.mean(f"{name}.{metric}@{k}") for k in sums.top_k} for metric in there
        }
        found["stderr"] = {
            metric: {str(k): sums.stderr(f"{name}.{metric}@{k}") for k in sums.top_k} for metric in there
        }
        return found


KINDS: dict[str, Kind] = {
    "mean": _Mean(),
    "within": _Within(),
    "between": _Between(),
    "count": _Count(),
    "extremes": _Extremes(),
    "least": _Least(),
    "paired": _Paired(),
    "mean_error": _MeanError(),
    "loss_histogram": _LossHistogram(),
    "rank_histogram": _RankHistogram(),
    "calibration": _Calibration(),
    "ranking": _Ranking(),
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
        head, _, rest = statistic.name.partition(".")
        if rest:
            found.setdefault(head, {})[rest] = value
        elif isinstance(value, dict):
            found.setdefault(head, {}).update(value)
        else:
            found[head] = value
    return found
