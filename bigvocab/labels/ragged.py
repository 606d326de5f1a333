"""Ids of classes, any number in each row, as flat arrays: labels of multi-label and sparse soft losses, true classes of
sampled ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.arguments import as_integers, first_outside
from bigvocab.errors import BigvocabError

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class RaggedIds:
    """Row i has the ids[offsets[i] : offsets[i + 1]]; offsets begin with 0.

    `name` is what messages call it; `width` is T where it was given as (N, T).
    """

    offsets: Ids
    ids: Ids
    name: str = "labels"
    width: int | None = None

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        return len(self.offsets) - 1

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, T), or (ids,): the shape in which a value for each id is given back."""
        return (len(self.ids),) if self.width is None else (self.num_rows, self.width)

    def row_of(self, at: int) -> int:
        """The row that id number `at` belongs to."""
        return int(np.searchsorted(self.offsets, at, side="right")) - 1

    def rows(self) -> Ids:
        """The row of each id."""
        return np.repeat(np.arange(self.num_rows), np.diff(self.offsets))

    def of_rows(self, rows: slice | Ids) -> RaggedIds:
        """The ids of some rows; of a slice, views whose offsets need not begin with 0.

        >>> ragged = RaggedIds(np.array([0, 2, 2, 3]), np.array([7, 8, 9]))
        >>> picked = ragged.of_rows(np.array([0, 2]))
        >>> picked.offsets.tolist(), picked.ids.tolist()
        ([0, 2, 3], [7, 8, 9])
        """
        if isinstance(rows, slice):
            return replace(self, offsets=self.offsets[rows.start : rows.stop + 1])
        starts, sizes = self.offsets[rows], np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        places = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], sizes)
        return replace(self, offsets=offsets, ids=self.ids[places])

    def check_range(self, num_classes: int, first_row: int = 0) -> None:
        """Raise for the first id outside [0, num_classes)."""
        if (at := first_outside(self.ids, num_classes)) is not None:
            row = first_row + self.row_of(at)
            raise BigvocabError.of_row(
                self.name, row, f" has the id {self.ids[at]}, expected classes in [0, {num_classes})"
            )

    def in_rising_order(self, first_row: int = 0) -> RaggedIds:
        """The same rows, each with its ids rising; an error for the first row that has an id twice."""
        same_row = np.ones(max(0, len(self.ids) - 1), bool)
        inner = self.offsets[1:-1]
        same_row[inner[(inner > 0) & (inner < len(self.ids))] - 1] = False
        ids = self.ids
        if (same_row & (ids[1:] <= ids[:-1])).any():
            ids = ids[np.lexsort((ids, self.rows()))]
        twice = same_row & (ids[1:] == ids[:-1])
        if twice.any():
            at = int(np.argmax(twice))
            row = first_row + self.row_of(at)
            raise BigvocabError.of_row(
                self.name, row, f" has the id {ids[at]} twice, expected each positive class once"
            )
        return replace(self, ids=ids)


def as_ragged(name: str, value: Any, rows: int | None = None) -> RaggedIds:
    """Integers (N, T), or a pair (offsets (N + 1,), ids), as checked flat arrays, for `rows` rows where that is known;
    what is ragged already stays as it is.
    """
    if isinstance(value, RaggedIds):
        return value
    if not isinstance(value, tuple) or len(value) != 2 and rows is None:
        ids = as_integers(name, value)
        if ids.ndim != 2 or rows is not None and len(ids) != rows:
            hint = "; one id per row is (N, 1)" if ids.ndim == 1 else ""
            n = "N" if rows is None else rows
            raise BigvocabError(f"{name}: got shape {ids.shape}, expected ({n}, T) or a pair (offsets, ids){hint}")
        offsets = np.arange(len(ids) + 1, dtype=np.int64) * ids.shape[1]
        return RaggedIds(offsets, np.ascontiguousarray(ids).reshape(-1), name, ids.shape[1])
    if len(value) != 2:
        raise BigvocabError(f"{name}: got a tuple of {len(value)}, expected a pair (offsets, ids)")
    offsets, ids = (
        as_integers(f"{name}: {part}", array) for part, array in zip(("offsets", "ids"), value, strict=True)
    )
    if offsets.ndim != 1 or ids.ndim != 1:
        shapes = f"{offsets.shape} and {ids.shape}"
        raise BigvocabError(f"{name}: got offsets and ids of shapes {shapes}, expected two arrays of one dimension")
    _check_offsets(name, offsets, len(ids), rows)
    return RaggedIds(np.ascontiguousarray(offsets), np.ascontiguousarray(ids), name)


def _check_offsets(name: str, offsets: Ids, count: int, rows: int | None) -> None:
    if len(offsets) != (max(1, len(offsets)) if rows is None else rows + 1):
        expected = "at least 1" if rows is None else f"{rows + 1}, one more than rows of logits"
        raise BigvocabError(f"{name}: got {len(offsets)} offsets, expected {expected}")
    if offsets[0] != 0:
        raise BigvocabError(f"{name}: the first offset is {offsets[0]}, expected 0")
    wrong = (np.diff(offsets) < 0) | (offsets[1:] > count)
    if wrong.any():
        row = int(np.argmax(wrong))
        span = f"from {offsets[row]} to {offsets[row + 1]} of {count} ids"
        raise BigvocabError.of_row(name, row, f": its ids run {span}; expected offsets that rise within the ids")
    if offsets[-1] != count:
        raise BigvocabError(f"{name}: the last offset is {offsets[-1]}, expected {count}, the number of ids")
