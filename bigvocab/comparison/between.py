"""Several candidates against one reference, and what lies between each two of them, from the rows that both have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.comparison.moments import Lines, Moments
from bigvocab.comparison.statistics import ComparedRows, PairTally
from bigvocab.losses.exact_sums import divide
from bigvocab.reports.numerals import is_within_error as is_within_error

Floats = npt.NDArray[np.float64]
# Differences by their names in reports: a less b of this column.
_DIFFERENCES = {"kl_difference": "kl", "loss_difference": "loss_candidate"}


class BetweenTally:
    """Paired differences of two candidates, a less b; rows where both are infinite have none and are left out."""

    def __init__(self) -> None:
        self.rows = self.lower = 0
        self.moments = {name: Moments() for name in _DIFFERENCES}
        self.clusters = Lines(("lower",), _DIFFERENCES)
        self.labelled = False

    def add(self, a: ComparedRows, b: ComparedRows) -> None:
        """Add the same rows of both candidates."""
        counted = a.counted & b.counted
        values = {}
        for name, column in _DIFFERENCES.items():
            if column in a.columns:
                with np.errstate(invalid="ignore"):
                    values[name] = a.columns[column] - b.columns[column]
        for difference in values.values():
            counted = counted & ~np.isnan(difference)
        values = {name: difference[counted] for name, difference in values.items()}
        self.labelled = self.labelled or "loss_difference" in values
        lower = values["kl_difference"] < 0
        self.rows += len(lower)
        self.lower += int(np.count_nonzero(lower))
        for name, difference in values.items():
            self.moments[name].add(difference)
        if a.clusters is not None:
            self.clusters.add(a.clusters[0][counted], a.clusters[1], {"lower": lower}, values)

    def merge(self, other: BetweenTally) -> None:
        """Add all that `other` has seen."""
        self.rows, self.lower = self.rows + other.rows, self.lower + other.lower
        self.labelled = self.labelled or other.labelled
        for name, moments in other.moments.items():
            self.moments[name].merge(moments)
        self.clusters.merge(other.clusters)

    def state(self) -> dict[str, Any]:
        """All of it as plain numbers and arrays."""
        return {
            "rows": self.rows,
            "lower": self.lower,
            "labelled": self.labelled,
            "moments": {name: moments.state() for name, moments in self.moments.items()},
            "clusters": self.clusters.state(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> BetweenTally:
        """The inverse of `state`."""
        tally = cls()
        tally.rows, tally.lower, tally.labelled = state["rows"], state["lower"], bool(state["labelled"])
        tally.moments = {name: Moments.from_state(moments) for name, moments in state["moments"].items()}
        tally.clusters = Lines.from_state(state["clusters"])
        return tally

    def to_dict(self) -> dict[str, Any]:
        """Both differences with their errors, and how often a's kl is the lower one."""
        found: dict[str, Any] = {"rows": self.rows}
        for name in _DIFFERENCES if self.labelled else ("kl_difference",):
            moments = self.moments[name]
            found[name] = {"mean": moments.mean(self.rows), "stderr": moments.stderr(self.rows)}
            if len(self.clusters):
                found[name]["cluster_stderr"] = self.clusters.cluster_stderr(name)
        return found | {"lower_share": self._lower_share()}

    def _lower_share(self) -> float:
        """Of clusters, by their means; of rows where there are none."""
        if not len(self.clusters):
            return divide(Fraction(self.lower), self.rows)
        total = self.clusters.sums["kl_difference"].total
        lower = sum(total.exact(line) < 0 for line in range(len(self.clusters)))
        return divide(Fraction(lower), len(self.clusters))


class ComparisonTally:
    """All candidates' tallies, by name, and those between each two.

    >>> tally = ComparisonTally(["q8", "q4"])
    >>> [pair for pair in tally.between]
    [('q8', 'q4')]
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.candidates = {name: PairTally() for name in names}
        self.between = {pair: BetweenTally() for pair in combinations(self.candidates, 2)}

    def add(self, rows: Mapping[str, ComparedRows]) -> None:
        """Add a block of rows of every candidate."""
        for name, tally in self.candidates.items():
            tally.add(rows[name])
        for (a, b), between in self.between.items():
            between.add(rows[a], rows[b])

    def merge(self, other: ComparisonTally) -> None:
        """Add all that `other`, of the same candidates in the same order, has seen."""
        for name, tally in self.candidates.items():
            tally.merge(other.candidates[name])
        for (a, b), between in self.between.items():
            if (a, b) not in other.between:
                raise ValueError(f"candidates: got {list(other.candidates)}, expected {list(self.candidates)}")
            between.merge(other.between[a, b])

    def state(self) -> dict[str, Any]:
        """All of it as plain numbers and arrays."""
        return {
            "names": list(self.candidates),
            "candidates": [tally.state() for tally in self.candidates.values()],
            "between": [between.state() for between in self.between.values()],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> ComparisonTally:
        """The inverse of `state`."""
        tally = cls(state["names"])
        for name, one in zip(tally.candidates, state["candidates"], strict=True):
            tally.candidates[name] = PairTally.from_state(one)
        for pair, one in zip(tally.between, state["between"], strict=True):
            tally.between[pair] = BetweenTally.from_state(one)
        return tally

    def to_dict(self) -> dict[str, Any]:
        """One candidate's metrics at the top; of several, `candidates` by name and `between`."""
        if len(self.candidates) == 1:
            (only,) = self.candidates.values()
            return only.to_dict()
        sides = {name: tally.to_dict() for name, tally in self.candidates.items()}
        pairs = [{"a": a, "b": b, **between.to_dict()} for (a, b), between in self.between.items()]
        return {"candidates": sides, "between": pairs}
