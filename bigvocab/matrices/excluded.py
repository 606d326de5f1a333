"""Classes that do not exist, for all rows or for some: what rows of logits leave out, and how they hide it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Ids = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Excluded(NamedTuple):
    """Ids `common` to all rows, and for row i the ids[offsets[i] : offsets[i + 1]]; both rise, and both may have an id.

    >>> found = Excluded(np.array([1]), np.array([0, 0, 2]), np.array([3, 4]))
    >>> found.counts().tolist(), found.holds(np.array([0, 0, 1, 1]), np.array([1, 3, 3, 0])).tolist()
    ([1, 3], [True, False, True, False])
    """

    common: Ids
    offsets: Ids
    ids: Ids

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.offsets) - 1

    def rows_of_ids(self) -> Ids:
        """The row of each of `ids`, where offsets begin with 0."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def part(self, start: int, stop: int) -> Excluded:
        """Rows `start` to `stop`: views, whose offsets need not begin with 0."""
        return Excluded(self.common, self.offsets[start : stop + 1], self.ids)

    def of_rows(self, rows: slice | Ids) -> Excluded:
        """Some of the rows."""
        if isinstance(rows, slice):
            return self.part(rows.start, rows.stop)
        starts, sizes = self.offsets[rows], np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        return Excluded(
            self.common, offsets, self.ids[np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], sizes)]
        )

    def classes(self, first: int, stop: int) -> Excluded:
        """Those that lie in a range of classes, counted from its start."""
        common = self.common[slice(*np.searchsorted(self.common, [first, stop]))] - first
        whole = self.of_rows(np.arange(len(self)))
        inside = (whole.ids >= first) & (whole.ids < stop)
        sizes = np.bincount(whole.rows_of_ids()[inside], minlength=len(self))
        return Excluded(common, np.concatenate([[0], np.cumsum(sizes)]), whole.ids[inside] - first)

    def counts(self) -> Ids:
        """How many classes each row is without."""
        twice = np.zeros(len(self), np.int64)
        if len(self.common) and len(self.ids):
            whole = self.of_rows(np.arange(len(self)))
            twice = np.bincount(whole.rows_of_ids()[_among(whole.ids, self.common)], minlength=len(self))
        return len(self.common) + np.diff(self.offsets) - twice

    def holds(self, rows: Ids, classes: Ids) -> Bools:
        """Whether the row rows[i] is without the class classes[i]."""
        found = _among(classes, self.common)
        if len(self.ids):
            whole = self.of_rows(np.arange(len(self)))
            width = int(max(whole.ids.max(), classes.max(initial=0))) + 1
            found |= _among(rows * width + classes, whole.rows_of_ids() * width + whole.ids)
        return found


def _among(values: Ids, rising: Ids) -> Bools:
    """Whether each of the values is one of those that rise."""
    if not len(rising):
        return np.zeros(len(values), bool)
    at = np.minimum(np.searchsorted(rising, values), len(rising) - 1)
    return rising[at] == values


def nothing_in(tile: Array) -> Any:
    """-inf as a tile that kernels take stores it: float16 as int16, bfloat16 as uint16."""
    if tile.dtype.kind == "f":
        return tile.dtype.type(-np.inf)
    return np.int16(0xFC00 - 0x10000) if tile.dtype == np.int16 else np.uint16(0xFF80)
