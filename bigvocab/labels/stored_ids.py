"""How class ids are stored: which of them mark an ignored row, and what is added to the others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab import arguments
from bigvocab.errors import BigvocabError, Keyword, Place

Ids = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
_LEAST, _MOST = -(2**63), 2**63 - 1


@dataclass(frozen=True)
class StoredIds:
    """`ignored` are compared with the ids as they are stored, before `offset` is added.

    >>> ids, ignored = StoredIds(offset=-1, ignored=(-100,)).of_array("labels", [1, -100, 3])
    >>> ids.tolist(), ignored.tolist()
    ([0, 0, 2], [False, True, False])
    """

    offset: int = 0
    ignored: tuple[int, ...] = ()

    def marks(self, values: npt.NDArray[Any]) -> Bools | None:
        """Where integers of any type mark an ignored row; None where nothing does."""
        found: Bools | None = None
        limits = np.iinfo(values.dtype)
        for index in self.ignored:
            if limits.min <= index <= limits.max:
                here = values == values.dtype.type(index)
                found = here if found is None else found | here
        return found

    def shifted(
        self, ids: Ids, where: str | Keyword | Place, first_row: int = 0, rows: Ids | None = None, skip: Any = None
    ) -> Ids:
        """The ids with the offset added, 0 where they are skipped; `rows` gives the row of each (None: its place)."""
        if skip is not None:
            ids = np.where(skip, -self.offset, ids)
        if not self.offset:
            return ids
        least, most = _LEAST - min(self.offset, 0), _MOST - max(self.offset, 0)
        if ids.size and (ids.min() < least or ids.max() > most):
            at = int(np.argmax((ids < least) | (ids > most)))
            row = first_row + (at if rows is None else int(rows[at]))
            raise BigvocabError.of_row(
                where, row, f" is {ids[at]}, past 64 bits with ", Keyword("label_offset"), f" {self.offset}"
            )
        return ids + self.offset

    def of_array(self, name: str, labels: Any) -> tuple[Ids, Bools | None]:
        """Labels that a caller gave, (n,) or of any shape, as ids, and which of them are ignored."""
        if self == PLAIN:
            return arguments.as_integers(name, labels), None
        values = arguments.as_array(name, labels)
        skip = self.marks(values) if values.dtype.kind in "iu" else None
        if skip is None or not skip.any():
            return self.shifted(arguments.as_integers(name, labels), name), None
        ids = arguments.as_integers(name, np.where(skip, values.dtype.type(0), values))
        return self.shifted(ids, name, skip=skip), skip


PLAIN = StoredIds()


def as_indices(name: str, value: Any) -> tuple[int, ...]:
    """None, an integer or several as a tuple without repetitions; a TypeError for anything else.

    >>> as_indices("ignore_index", None), as_indices("ignore_index", -100), as_indices("ignore_index", [0, -1, 0])
    ((), (-100,), (0, -1))
    """
    if isinstance(value, str) or not isinstance(value, Iterable):
        found = arguments.index_or_none(name, value)
        return () if found is None else (found,)
    indices = [arguments.index_or_none(name, item) for item in value]
    return tuple(dict.fromkeys(index for index in indices if index is not None))


def as_offset(value: Any) -> int:
    """`label_offset`, checked."""
    return arguments.integer("label_offset", value, _LEAST, _MOST)


def whole_numbers(values: npt.NDArray[np.float64], where: Place, first_row: int) -> tuple[Ids, Bools]:
    """float64 numbers without a fraction as int64, 0 for NaN, and which are NaN; an error for the first other one."""
    missing = np.isnan(values)
    values = np.where(missing, 0.0, values)
    wrong = ~(np.abs(values) < 2.0**63) | (np.floor(values) != values)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise BigvocabError.of_row(where, first_row + row, f" is {values[row]}, expected a whole number, or NaN")
    return values.astype(np.int64), missing
