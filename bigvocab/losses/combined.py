"""Two reductions of the same rows in one pass over them."""

from __future__ import annotations

from bigvocab.losses.row_sums import SeesCopies
from bigvocab.matrices.logit_rows import Array, Bools, Floats, Ids, RowReduction, State
from bigvocab.matrices.tiles import Span


class Both(SeesCopies):
    """What two reductions make of rows, their states one after the other; only the second may look logits up.

    The first says which rows are left out; the second must leave out the same.
    """

    def __init__(self, first: RowReduction, second: RowReduction) -> None:
        self.first, self.second = first, second
        self.skip: Bools = first.skip
        self.lookup: Ids | None = second.lookup
        self.found: Floats = second.found
        self.beside: Array | None = first.beside
        self.columns = first.columns + second.columns
        self._arrays = len(first.state(0))

    def state(self, *shape: int) -> State:
        """The arrays of both."""
        return *self.first.state(*shape), *self.second.state(*shape)

    def clear(self, state: State) -> None:
        """Clear both."""
        self.first.clear(state[: self._arrays])
        self.second.clear(state[self._arrays :])

    def add(self, piece: Array, span: Span, rows: slice | Ids, state: State) -> None:
        """Add to both while the piece is in the cache."""
        self.first.add(piece, span, rows, state[: self._arrays])
        self.second.add(piece, span, rows, state[self._arrays :])

    def merge(self, groups: State, into: State) -> None:
        """Merge both."""
        self.first.merge(groups[: self._arrays], into[: self._arrays])
        self.second.merge(groups[self._arrays :], into[self._arrays :])
