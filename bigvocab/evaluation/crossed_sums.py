"""Exact sums of the rows of each pair of a cluster and a group, or a bin: what errors of groups over clusters need.

Only pairs that occur take room. They are held in runs, each sorted by pair and each at least twice as long as the one
behind it, so that a pair is moved a few times only, however many blocks of rows come.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.evaluation.grouped_sums import BinnedSums

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

KINDS = ("groups", "by_frequency", "by_position", "by_confidence")
_BITS = 32  # of a key: cluster, then the number of the group or bin, then which kind it is of
_LOW = (1 << _BITS) - 1
_KIND_BITS = 2


class CrossedSums:
    """Sums by pairs. Clusters and groups are numbered by their owner."""

    def __init__(self) -> None:
        self._runs: list[tuple[Ids, BinnedSums]] = []

    def __bool__(self) -> bool:
        return bool(self._runs)

    def add(self, kind: str, clusters: Ids, others: Ids, columns: Mapping[str, Floats], weights: Floats | None) -> None:
        """Add rows: their clusters, their groups or bins of a kind, weighted values by name, and weights."""
        rows = _keys(KINDS.index(kind), clusters, others)
        first = np.flatnonzero(np.append(True, rows[1:] != rows[:-1])) if len(rows) else rows  # neighbours are alike
        keys, place = np.unique(rows[first], return_inverse=True)
        bins = BinnedSums(len(keys))
        bins.add(np.repeat(place, np.diff(first, append=len(rows))), columns, weights)
        self._push(keys, bins)

    def merge(self, other: CrossedSums, clusters: Ids, groups: Ids) -> None:
        """Add all of `other`, whose cluster i is `clusters[i]` here, and whose group i is `groups[i]`."""
        for keys, bins in other._runs:
            cluster, number, kind = _parts(keys)
            if (is_group := kind == 0).any():
                number[is_group] = groups[number[is_group]]
            moved = _keys(kind, clusters[cluster], number)
            order = np.argsort(moved)
            into = BinnedSums(len(moved))
            into.merge(bins, np.argsort(order))
            self._push(moved[order], into)

    def _push(self, keys: Ids, bins: BinnedSums) -> None:
        while self._runs and len(self._runs[-1][0]) <= 2 * len(keys):
            keys, bins = _joined(self._runs.pop(), (keys, bins))
        if len(keys):
            self._runs.append((keys, bins))

    def _whole(self) -> tuple[Ids, BinnedSums]:
        """All of it as one run."""
        while len(self._runs) > 1:
            last = self._runs.pop()
            self._runs[-1] = _joined(self._runs[-1], last)
        return self._runs[0] if self._runs else (np.zeros(0, np.int64), BinnedSums())

    # ---- numbers

    def errors(self, kind: str, size: int, name: str = "loss") -> list[float]:
        """The standard error over clusters of the mean of the values of this name in each of `size` groups or bins; NaN
        where there is none.

        See `cluster_error`: a cluster's rows in other groups count for nothing.
        """
        keys, bins = self._whole()
        _, number, kinds = _parts(keys)
        chosen = np.flatnonzero((kinds == KINDS.index(kind)) & (bins.live > 0))
        order = chosen[np.argsort(number[chosen], kind="stable")]
        ends = np.searchsorted(number[order], np.arange(size + 1)).tolist()
        if not len(order):
            return [math.nan] * size
        totals, weights = bins.sums[name].values(order), bins.sums["weight"].values(order)
        return [
            cluster_error(totals[start:stop], weights[start:stop])
            for start, stop in zip(ends[:-1], ends[1:], strict=True)
        ]

    # ---- states

    def state(self, clusters: Ids, groups: Ids) -> dict[str, Any]:
        """All of it as arrays, sorted; `clusters` and `groups` say by what number each goes in the state."""
        keys, bins = self._whole()
        cluster, number, kind = _parts(keys)
        if (is_group := kind == 0).any():
            number[is_group] = groups[number[is_group]]
        cluster = clusters[cluster] if len(cluster) else cluster
        order = np.argsort(_keys(kind, cluster, number))
        parts = {"cluster": cluster[order], "kind": kind[order], "number": number[order]}
        return {**parts, **bins.state(order)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> CrossedSums:
        """The inverse of `state`, with the numbers of the state."""
        found = cls()
        cluster, kind, number = (np.asarray(state[name], np.int64) for name in ("cluster", "kind", "number"))
        found._push(_keys(kind, cluster, number), BinnedSums.from_state(state))
        return found


def cluster_error(totals: Floats, weights: Floats) -> float:
    """Standard error of a mean whose rows depend on each other within clusters: with r = sum(w v) - mean sum(w) of
    each of C clusters, sqrt(C / (C - 1) sum(r^2)) / sum(w).

    Args:
        totals: sum(w v) of each cluster that has a row with a weight.
        weights: sum(w) of each.

    Returns:
        The error; NaN with fewer than two clusters, or where a total is not finite. No order of clusters changes it.

    >>> cluster_error(np.array([1.0, 3.0]), np.array([1.0, 1.0]))
    1.0
    """
    count = len(totals)
    try:
        weight = math.fsum(weights)
        if count < 2 or weight == 0 or not np.isfinite(totals).all():
            return math.nan
        with np.errstate(all="ignore"):
            rest = totals - math.fsum(totals) / weight * weights
            squares = rest * rest
        return math.sqrt(count / (count - 1) * math.fsum(squares)) / abs(weight)
    except OverflowError:  # past the largest float64
        return math.inf


def _keys(kind: Any, clusters: Ids, numbers: Ids) -> Ids:
    found: Ids = clusters.astype(np.int64) << _BITS | numbers.astype(np.int64) << _KIND_BITS | kind
    return found


def _parts(keys: Ids) -> Iterator[Ids]:
    """Clusters, numbers and kinds."""
    return iter((keys >> _BITS, (keys & _LOW) >> _KIND_BITS, keys & (1 << _KIND_BITS) - 1))


def _joined(a: tuple[Ids, BinnedSums], b: tuple[Ids, BinnedSums]) -> tuple[Ids, BinnedSums]:
    keys = np.union1d(a[0], b[0])
    bins = BinnedSums(len(keys))
    for own, sums in (a, b):
        bins.merge(sums, np.searchsorted(keys, own))
    return keys, bins
