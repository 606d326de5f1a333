"""Exact sums, counts and extremes by name, which merge in any order to the same bits."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from bigvocab.losses.exact_sums import ExactSums, divide, to_float


class Sums:
    """What statistics add to and are read from. `top_k` are the k of the shares that are kept."""

    def __init__(self, top_k: tuple[int, ...] = ()) -> None:
        self.top_k = top_k
        self.counts: dict[str, int] = {}
        self.sums: dict[str, ExactSums] = {}
        self.extremes: dict[str, tuple[float, float]] = {}

    def sum_of(self, name: str) -> ExactSums:
        """The sum of this name, 0 where nothing was added yet."""
        return self.sums.setdefault(name, ExactSums())

    def mean(self, name: str = "loss") -> float:
        """sum(w v) / sum(w) of the values of this name."""
        return divide(self.sum_of(name).exact(), self.sum_of("weight").exact())

    def stderr(self, name: str = "loss") -> float:
        """Standard error of the mean: sd / sqrt(n); with weights, sqrt(sum((w (v - mean))^2) n / (n - 1)) / sum(w)."""
        names = (name, "weight", f"{name}_squared", f"weight_{name}", "weight_squared")
        total, weight, squares, products, weights = (self.sum_of(name).exact() for name in names)
        n = self.counts["nonzero_weights"]
        exact = all(isinstance(s, Fraction) for s in (total, weight, squares, products, weights))
        if n < 2 or not exact or weight == 0:
            return math.nan
        mean = Fraction(total) / Fraction(weight)
        spread = max(Fraction(squares) - 2 * mean * Fraction(products) + mean * mean * Fraction(weights), Fraction(0))
        return math.sqrt(to_float(spread / Fraction(weight) ** 2 * Fraction(n, n - 1)))

    def state(self) -> dict[str, Any]:
        """All of it as plain numbers and arrays, in one canonical form."""
        return {
            "counts": dict(self.counts),
            "extremes": dict(self.extremes),
            "sums": {name: self.sums[name].state() for name in sorted(self.sums)},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Hold what `state` said, and no more."""
        self.counts = dict(state["counts"])
        self.extremes = dict(state["extremes"])
        self.sums = {name: ExactSums.from_state(sums) for name, sums in state["sums"].items()}

    def merge(self, other: Sums) -> None:
        """Add all of `other`, which must not be this one."""
        for name, count in other.counts.items():
            self.counts[name] = self.counts.get(name, 0) + count
        for name, sums in other.sums.items():
            self.sum_of(name).merge(sums)
        for name, (low, high) in other.extremes.items():
            mine = self.extremes.get(name, (math.inf, -math.inf))
            self.extremes[name] = (min(low, mine[0]), max(high, mine[1]))
