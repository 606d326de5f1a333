"""Exact sums of rows in bins: bins that are fixed, and bins that are met by the name of their group."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.losses.exact_sums import ExactSums, divide, quotient, spread_of_units

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


class BinnedSums:
    """Rows, sum of weights and sums of weighted values of each of some bins.

    Attributes:
        rows: (bins,) how many rows.
        live: (bins,) how many of them have a weight.
        sums: by name, one group for each bin. `weight_loss` and `weight_squared`, for standard errors, are there only
            where rows had weights: else they are `loss` and `weight`.
    """

    def __init__(self, size: int = 0) -> None:
        self.rows, self.live = np.zeros(size, np.int64), np.zeros(size, np.int64)
        self.sums: dict[str, ExactSums] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def sum_of(self, name: str) -> ExactSums:
        """The sums of this name, 0 where nothing was added yet."""
        if name not in self.sums:
            self.sums[name] = ExactSums(len(self))
        return self.sums[name]

    def grow(self, size: int) -> None:
        """Have at least `size` bins; new ones are empty."""
        if (more := size - len(self)) > 0:
            self.rows, self.live = np.pad(self.rows, (0, more)), np.pad(self.live, (0, more))
            for sums in self.sums.values():
                sums.grow(size)

    def count(self, bins: Array) -> None:
        """Count rows and nothing else."""
        counts = np.bincount(bins, minlength=len(self))
        self.rows += counts
        self.live += counts

    def add(self, bins: Array, columns: Mapping[str, Floats], weights: Floats | None) -> None:
        """Add rows: their bins, weighted values by name, and weights (None: 1 each)."""
        counts = np.bincount(bins, minlength=len(self))
        self.rows += counts
        bins = np.ascontiguousarray(bins, np.int32)
        if weights is not None:
            self._tell_weights_apart()
        for name, values in columns.items():
            self.sum_of(name).add(values, bins)
        if weights is None:
            self.live += counts
            ones, each = counts.astype(np.float64), np.arange(len(self), dtype=np.int32)
            self.sum_of("weight").add(ones, each)
            if "weight_loss" in self.sums:
                self.sums["weight_squared"].add(ones, each)
                self.sums["weight_loss"].add(columns["loss"], bins)
            return
        self.live += np.bincount(bins[weights != 0], minlength=len(self))
        self.sum_of("weight").add(weights, bins)
        if "loss_squared" in columns:
            with np.errstate(over="ignore"):  # only the standard error is lost
                self.sum_of("weight_squared").add(weights * weights, bins)
                self.sum_of("weight_loss").add(weights * columns["loss"], bins)

    def _tell_weights_apart(self) -> None:
        """Have the sums that only weights need, of rows before that had none."""
        if "weight_loss" not in self.sums and "loss_squared" in self.sums:
            for name, other in (("weight_loss", "loss"), ("weight_squared", "weight")):
                self.sum_of(name).merge(self.sum_of(other))

    def merge(self, other: BinnedSums, bins: npt.NDArray[np.intp] | None = None) -> None:
        """Add all of `other`, whose bin i is bin `bins[i]` here, or the same one."""
        here = slice(None) if bins is None else bins
        if "weight_loss" in other.sums:
            self._tell_weights_apart()
        theirs = dict(other.sums)
        if "weight_loss" in self.sums and "weight_loss" not in theirs and "loss" in theirs:
            theirs |= {"weight_loss": theirs["loss"], "weight_squared": theirs["weight"]}
        self.rows[here] += other.rows
        self.live[here] += other.live
        for name, sums in theirs.items():
            self.sum_of(name).merge(sums, bins)

    # ---- numbers

    def mean(self, i: int, name: str = "loss") -> float:
        """sum(w v) / sum(w) of a bin."""
        total, weight = self.sums[name].units(i), self.sums["weight"].units(i)
        if total is None or weight is None:
            return divide(self.sums[name].exact(i), self.sums["weight"].exact(i))
        return quotient(total, weight)

    def stderr(self, i: int) -> float:
        """Standard error of the mean loss of a bin, as `Sums.stderr`."""
        own = ("weight_loss", "weight_squared") if "weight_loss" in self.sums else ("loss", "weight")
        total, weight, *rest = (self.sums[n].units(i) for n in ("loss", "weight", "loss_squared", *own))
        n = int(self.live[i])
        if n < 2 or not weight or total is None or None in rest:
            return math.nan
        return spread_of_units(total, weight, *rest, n=n)  # type: ignore[arg-type]  # none of them is None

    # ---- states

    def state(self, order: npt.NDArray[np.intp] | None = None) -> dict[str, Any]:
        """All of it as arrays, of the bins in this order."""
        here = slice(None) if order is None else order
        sums = {name: self.sums[name].state(order) for name in sorted(self.sums)}
        return {"rows": self.rows[here].copy(), "live": self.live[here].copy(), "sums": sums}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> BinnedSums:
        """The inverse of `state`."""
        found = cls()
        found.rows, found.live = np.array(state["rows"], np.int64), np.array(state["live"], np.int64)
        found.sums = {name: ExactSums.from_state(sums) for name, sums in state["sums"].items()}
        return found


class GroupedSums:
    """Bins by name; merged by name."""

    def __init__(self) -> None:
        self.bins = BinnedSums()
        self._ids: dict[str, int] | None = {}
        self._names: list[str] = []  # where `_ids` is not made yet
        self._met: tuple[list[str], npt.NDArray[np.intp]] | None = None  # names merged last, and their groups here

    def __bool__(self) -> bool:
        return len(self.bins) > 0

    @property
    def ids(self) -> dict[str, int]:
        """The number of each group, by name."""
        if self._ids is None:
            self._ids = {name: i for i, name in enumerate(self._names)}
        return self._ids

    def _grow(self, names: list[str]) -> npt.NDArray[np.int32]:
        """Numbers of the groups with these names here."""
        ids = [self.ids.setdefault(name, len(self.ids)) for name in names]
        self.bins.grow(len(self.ids))
        return np.array(ids, np.int32)

    def add(self, codes: Array, names: list[str], columns: Mapping[str, Floats], weights: Floats | None) -> Array:
        """Add rows: their groups as codes into `names`, weighted values by name, and weights (None: 1 each).

        Returns:
            The number of each row's group here.
        """
        seen = np.unique(codes)
        place = np.zeros(len(names), np.int32)
        place[seen] = self._grow([names[code] for code in seen])
        numbers: Array = place[codes]
        self.bins.add(numbers, columns, weights)
        return numbers

    def merge(self, other: GroupedSums) -> npt.NDArray[np.intp]:
        """Add all of `other`; returns the number here of each of its groups."""
        names = other._names if other._ids is None else list(other._ids)
        if not names:
            return np.zeros(0, np.intp)
        if self._met is None or self._met[0] is not names:  # states of one job mostly have the same groups
            self._met = names, self._grow(names).astype(np.intp)
        self.bins.merge(other.bins, self._met[1])
        return self._met[1]

    def order(self) -> npt.NDArray[np.intp]:
        """The numbers of the groups, sorted by name."""
        return np.array([self.ids[name] for name in sorted(self.ids)], np.intp)

    def state(self) -> dict[str, Any]:
        """All of it as lists and arrays, sorted by name."""
        return {"names": sorted(self.ids), **self.bins.state(self.order())}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> GroupedSums:
        """The inverse of `state`."""
        found = cls()
        found._ids, found._names = None, state["names"]
        found.bins = BinnedSums.from_state(state)
        return found
