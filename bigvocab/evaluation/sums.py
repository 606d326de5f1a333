"""Exact sums, counts and extremes by name, which merge in any order to the same bits."""

from __future__ import annotations

import math
from typing import Any

from bigvocab.evaluation.grouped_sums import BinnedSums
from bigvocab.losses.exact_sums import ExactSums, divide, spread_error


class Sums:
    """What statistics add to and are read from. `top_k` are the k of the shares that are kept."""

    def __init__(self, top_k: tuple[int, ...] = ()) -> None:
        self.top_k = top_k
        self.counts: dict[str, int] = {}
        self.sums: dict[str, ExactSums] = {}
        self.extremes: dict[str, tuple[float, float]] = {}
        self.bins: dict[str, BinnedSums] = {}

    def sum_of(self, name: str) -> ExactSums:
        """The sum of this name, 0 where nothing was added yet."""
        return self.sums.setdefault(name, ExactSums())

    def bins_of(self, name: str, size: int) -> BinnedSums:
        """The bins of this name, empty where nothing was added yet."""
        return self.bins.setdefault(name, BinnedSums(size))

    def mean(self, name: str = "loss") -> float:
        """sum(w v) / sum(w) of the values of this name."""
        return divide(self.sum_of(name).exact(), self.sum_of("weight").exact())

    def stderr(self, name: str = "loss") -> float:
        """Standard error of the mean: sd / sqrt(n); with weights, sqrt(sum((w (v - mean))^2) n / (n - 1)) / sum(w)."""
        names = (name, "weight", f"{name}_squared", f"weight_{name}", "weight_squared")
        return spread_error(*(self.sum_of(name).exact() for name in names), n=self.counts["nonzero_weights"])

    def widen(self, name: str, low: float, high: float) -> None:
        """Have the extremes of this name hold these."""
        least, greatest = self.extremes.get(name, (math.inf, -math.inf))
        self.extremes[name] = float(min(low, least)), float(max(high, greatest))

    def state(self) -> dict[str, Any]:
        """All of it as plain numbers and arrays, in one canonical form."""
        return {
            "counts": dict(self.counts),
            "extremes": dict(self.extremes),
            "sums": {name: self.sums[name].state() for name in sorted(self.sums)},
            "bins": {name: self.bins[name].state() for name in sorted(self.bins)},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Hold what `state` said, and no more."""
        self.counts = dict(state["counts"])
        self.extremes = dict(state["extremes"])
        self.sums = {name: ExactSums.from_state(sums) for name, sums in state["sums"].items()}
        self.bins = {name: BinnedSums.from_state(bins) for name, bins in state["bins"].items()}

    def merge(self, other: Sums) -> None:
        """Add all of `other`, which must not be this one."""
        for name, count in other.counts.items():
            self.counts[name] = self.counts.get(name, 0) + count
        for name, sums in other.sums.items():
            self.sum_of(name).merge(sums)
        for name, bins in other.bins.items():
            self.bins_of(name, len(bins)).merge(bins)
        for name, extremes in other.extremes.items():
            self.widen(name, *extremes)
