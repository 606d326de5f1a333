"""Sets of class ids, one a row, as flat arrays: the labels of multi-label losses and of sparse soft labels."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bigvocab.arguments import as_integers
from bigvocab.errors import BigvocabError

Ids = npt.NDArray[np.int64]


class IdSets(NamedTuple):
    """Row i has the ids[offsets[i] : offsets[i + 1]]; offsets begin with 0."""

    offsets: Ids
    ids: Ids

    @property
    def num_rows(self) -> int:
        """How many sets there are."""
        return len(self.offsets) - 1

    def row_of(self, at: int) -> int:
        """The row that id number `at` belongs to."""
        return int(np.searchsorted(self.offsets, at, side="right")) - 1

    def rows(self) -> Ids:
        """The row of each id."""
        return np.repeat(np.arange(self.num_rows), np.diff(self.offsets))

    def of_rows(self, rows: slice | Ids) -> IdSets:
        """The sets of some rows; of a slice, views whose offsets need not begin with 0.

        >>> sets = IdSets(np.array([0, 2, 2, 3]), np.array([7, 8, 9]))
        >>> picked = sets.of_rows(np.array([0, 2]))
        >>> picked.offsets.tolist(), picked.ids.tolist()
        ([0, 2, 3], [7, 8, 9])
        """
        if isinstance(rows, slice):
            return IdSets(self.offsets[rows.start : rows.stop + 1], self.ids)
        starts, sizes = self.offsets[rows], np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        places = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], sizes)
        return IdSets(offsets, self.ids[places])


def as_id_sets(name: str, labels: Any, rows: int) -> IdSets:
    """Labels (N, T) of integers, or a pair (offsets (N + 1,), ids), as checked flat arrays for `rows` rows."""
    if not isinstance(labels, tuple):
        ids = as_integers(name, labels)
        if ids.ndim != 2 or len(ids) != rows:
            hint = "; one id per row is (N, 1)" if ids.ndim == 1 else ""
            raise BigvocabError(f"{name}: got shape {ids.shape}, expected ({rows}, T) or a pair (offsets, ids){hint}")
        return IdSets(np.arange(rows + 1, dtype=np.int64) * ids.shape[1], np.ascontiguousarray(ids).reshape(-1))
    if len(labels) != 2:
        raise BigvocabError(f"{name}: got a tuple of {len(labels)}, expected a pair (offsets, ids)")
    offsets, ids = (
        as_integers(f"{name}: {part}", array) for part, array in zip(("offsets", "ids"), labels, strict=True)
    )
    if offsets.ndim != 1 or ids.ndim != 1:
        shapes = f"{offsets.shape} and {ids.shape}"
        raise BigvocabError(f"{name}: got offsets and ids of shapes {shapes}, expected two arrays of one dimension")
    _check_offsets(name, offsets, len(ids), rows)
    return IdSets(np.ascontiguousarray(offsets), np.ascontiguousarray(ids))


def _check_offsets(name: str, offsets: Ids, count: int, rows: int) -> None:
    if len(offsets) != rows + 1:
        raise BigvocabError(f"{name}: got {len(offsets)} offsets, expected {rows + 1}, one more than rows of logits")
    if offsets[0] != 0:
        raise BigvocabError(f"{name}: the first offset is {offsets[0]}, expected 0")
    wrong = (np.diff(offsets) < 0) | (offsets[1:] > count)
    if wrong.any():
        row = int(np.argmax(wrong))
        span = f"from {offsets[row]} to {offsets[row + 1]} of {count} ids"
        raise BigvocabError.of_row(name, row, f": its ids run {span}; expected offsets that rise within the ids")
    if offsets[-1] != count:
        raise BigvocabError(f"{name}: the last offset is {offsets[-1]}, expected {count}, the number of ids")


def check_ids(name: str, sets: IdSets, num_classes: int, first_row: int = 0) -> None:
    """Raise for the first id outside [0, num_classes)."""
    bad = (sets.ids < 0) | (sets.ids >= num_classes)
    if bad.any():
        at = int(np.argmax(bad))
        row = first_row + sets.row_of(at)
        raise BigvocabError.of_row(name, row, f" has the id {sets.ids[at]}, expected classes in [0, {num_classes})")


def in_rising_order(name: str, sets: IdSets, first_row: int = 0) -> IdSets:
    """The same sets with the ids of each row rising; an error for the first row that has an id twice."""
    same_row = np.ones(max(0, len(sets.ids) - 1), bool)
    inner = sets.offsets[1:-1]
    same_row[inner[(inner > 0) & (inner < len(sets.ids))] - 1] = False
    ids = sets.ids
    if (same_row & (ids[1:] <= ids[:-1])).any():
        ids = ids[np.lexsort((ids, sets.rows()))]
    twice = same_row & (ids[1:] == ids[:-1])
    if twice.any():
        at = int(np.argmax(twice))
        row = first_row + sets.row_of(at)
        raise BigvocabError.of_row(name, row, f" has the id {ids[at]} twice, expected each positive class once")
    return IdSets(sets.offsets, ids)
