"""Rows of logits and what is made of them: two protocols, so that every loss works on every kind of rows.

A loss is a reduction: a kernel over pieces of rows, and how groups of classes merge. Rows are stored (`tiles`), or made
while they are read (`heads.linear_rows`). The loop over rows is written once per kind of rows, the formula once per
loss; no product of the two is ever written.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bigvocab.matrices.excluded import Excluded

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
State = tuple[Array, ...]


class RowReduction(Protocol):
    """What a loss needs of n rows: numbers per row that a kernel adds to, piece by piece, in order of class.

    Rows that make their logits may reduce groups of classes apart and merge them; each row is worked by one thread at a
    time.
    """

    @property
    def skip(self) -> Bools:
        """(n,) True for a row that is left out: its logits are not read, its numbers stay as `clear` leaves them."""

    @property
    def lookup(self) -> Ids | None:
        """(n,) the class of each row whose logit must be in `found` before its first piece comes, below 0 for none;
        None where no logit is looked up.
        """

    @property
    def found(self) -> Floats:
        """(n,) raw logits, which the rows fill where there is a `lookup`."""

    @property
    def beside(self) -> Array | None:
        """What is read beside the logits, such as dense labels (n, V), so that work is shared evenly; else None."""

    @property
    def columns(self) -> int:
        """Numbers of 8 bytes per row and group, for bounds on memory."""

    @property
    def hides(self) -> bool:
        """Whether there is `add_without`: where a copy of whole rows would cost too much."""

    def state(self, *shape: int) -> State:
        """Room for the numbers of (n,) rows, or of (groups, n): arrays of this leading shape, not filled."""

    def clear(self, state: State) -> None:
        """Make it the state of no class at all; best called by the thread that works these rows."""

    def add(self, piece: Array, span: tuple[int, int], rows: slice | Ids, state: State) -> None:
        """Add the logits of some rows to their state.

        piece is a kernel view (m, at least classes) of `rows`, which rise; span = (first class, classes); state holds
        these m rows alone.
        """

    def add_without(
        self, piece: Array, span: tuple[int, int], rows: slice | Ids, state: State, excluded: Excluded
    ) -> None:
        """As `add`, of logits with -inf at the classes that are excluded for each of these m rows."""

    def merge(self, groups: State, into: State) -> None:
        """Add the states of groups of classes, arrays (groups, m, ...), in order, to that of m rows."""


class LogitRows(Protocol):
    """A block of rows of logits (n, num_classes), stored or made while they are read."""

    @property
    def num_classes(self) -> int:
        """How many classes there are."""

    def __len__(self) -> int: ...

    def reduce(self, reduction: RowReduction, num_threads: int) -> State:
        """The state of all rows. No bit of it depends on num_threads."""

    def gather(self, rows: Ids, classes: Ids, num_threads: int) -> Array:
        """The logit of each pair (rows[i], classes[i]), the very number that `reduce` meets, in the rows' type."""

    def classes(self, first: int, stop: int) -> LogitRows:
        """The same rows with classes `first` to `stop` alone, counted from 0, without a copy."""

    def without(self, excluded: Excluded) -> LogitRows:
        """The same rows as if the logits of some classes were -inf, to the bit."""
