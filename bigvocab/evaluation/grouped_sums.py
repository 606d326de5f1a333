"""Exact sums of rows by the name of their group."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.losses.exact_sums import ExactSums

Floats = npt.NDArray[np.float64]
_SUMS = ("weight", "loss")


class GroupedSums:
    """Rows, sum of weights and sum of weighted losses of each group; merged by name."""

    def __init__(self) -> None:
        self.rows = np.zeros(0, np.int64)
        self.sums = {name: ExactSums(0) for name in _SUMS}
        self._ids: dict[str, int] | None = {}
        self._names: list[str] = []  # where `_ids` is not made yet
        self._met: tuple[list[str], npt.NDArray[np.intp]] | None = None  # names merged last, and their groups here

    def __bool__(self) -> bool:
        return len(self.rows) > 0

    @property
    def ids(self) -> dict[str, int]:
        """The number of each group, by name."""
        if self._ids is None:
            self._ids = {name: i for i, name in enumerate(self._names)}
        return self._ids

    def _grow(self, names: list[str]) -> npt.NDArray[np.int32]:
        """Numbers of the groups with these names here."""
        ids = [self.ids.setdefault(name, len(self.ids)) for name in names]
        if (more := len(self.ids) - len(self.rows)) > 0:
            self.rows = np.pad(self.rows, (0, more))
            for sums in self.sums.values():
                sums.grow(len(self.ids))
        return np.array(ids, np.int32)

    def add(self, codes: npt.NDArray[Any], names: list[str], losses: Floats, weights: Floats | None) -> None:
        """Add rows: their groups as codes into `names`, weighted losses, and weights (None: 1 each)."""
        seen = np.unique(codes)
        place = np.zeros(len(names), np.int32)
        place[seen] = self._grow([names[code] for code in seen])
        ids = place[codes]
        counts = np.bincount(ids, minlength=len(self.rows))
        self.rows += counts
        self.sums["loss"].add(losses, ids)
        if weights is None:
            self.sums["weight"].add(counts.astype(np.float64), np.arange(len(counts), dtype=np.int32))
        else:
            self.sums["weight"].add(weights, ids)

    def merge(self, other: GroupedSums) -> None:
        """Add all of `other`."""
        names = other._names if other._ids is None else list(other._ids)
        if not names:
            return
        if self._met is None or self._met[0] is not names:  # states of one job mostly have the same groups
            self._met = names, self._grow(names).astype(np.intp)
        ids = self._met[1]
        self.rows[ids] += other.rows
        for name, sums in other.sums.items():
            self.sums[name].merge(sums, ids)

    def state(self) -> dict[str, Any]:
        """All of it as lists and arrays, sorted by name."""
        names = sorted(self.ids)
        order = np.array([self.ids[name] for name in names], np.intp)
        return {
            "names": names,
            "rows": self.rows[order],
            "sums": {name: sums.state(order) for name, sums in self.sums.items()},
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> GroupedSums:
        """The inverse of `state`."""
        found = cls()
        found._ids, found._names = None, state["names"]
        found.rows = np.array(state["rows"], np.int64)
        found.sums = {name: ExactSums.from_state(sums) for name, sums in state["sums"].items()}
        return found
