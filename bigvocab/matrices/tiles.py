"""Rows of logits that are stored, as tiles: a list of (first class, 2-D array), one for a plain matrix, several where
classes are split over files; and how kernels read them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from bigvocab.arguments import BFLOAT16, FLOATS
from bigvocab.matrices.excluded import Excluded, nothing_in
from bigvocab.matrices.logit_rows import Array, Bools, Ids, RowReduction, State
from bigvocab.storage import memory
from bigvocab.storage.reading import MAPPED_TURN, reader_of
from bigvocab.threads import resolve_threads, run_threads

Tiles = Sequence[tuple[int, Array]]
Span = tuple[int, int]  # first class, classes

# Bytes of logits per turn of a thread: the last turns small, to share evenly; those before large, to hide their cost.
_LEAST_TURN, _LARGEST_TURN = 4 << 20, 256 << 20
# Where rows are copied because they do not lie in one piece: bytes of all threads together, but at least one row; and
# bytes copied at a time.
COPIED_BYTES, CACHED_BYTES = 128 << 20, 8 << 20
_PAIRS = 16_384  # logits that a thread looks up at a time
_CANONICAL = {"float16": np.int16, "bfloat16": np.uint16}


def kernel_view(array: Array) -> Array:
    """`array` as kernels take it: read-only, C-contiguous, native, aligned; float16 as int16, bfloat16 as uint16.

    Columns left out of a wider array come back as padding after each row: a kernel is told how many classes to read.
    """
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if not array.flags.c_contiguous and rows_in_one_piece(array) and array.shape[0] > 1:
        row, element = array.strides[0], array.itemsize  # the stride of a single column may be any
        array = np.lib.stride_tricks.as_strided(array, (len(array), row // element), (row, element), writeable=False)
    view = array if array.flags.c_contiguous and array.flags.aligned else np.require(array, requirements=["C", "A"])
    view = view.view(_CANONICAL.get(view.dtype.name, view.dtype))
    view.flags.writeable = False
    return view


def native_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The same type in the byte order of this machine; NumPy knows no other one of bfloat16."""
    return dtype if dtype == BFLOAT16 else dtype.newbyteorder("=")


def rows_in_one_piece(array: Array) -> bool:
    """Whether kernels can read the rows where they lie."""
    row, element = array.strides
    width = array.shape[1] * array.itemsize
    right = element == array.itemsize or array.shape[1] == 1
    return right and row >= width and row % array.itemsize == 0 and array.flags.aligned and array.dtype.isnative


def in_one_piece(array: Array) -> Array:
    """Rows as they are, or a copy in which each lies in one piece, in native byte order: the bits of its values are
    then those of the same values anywhere.
    """
    if rows_in_one_piece(array):
        return array
    copy = memory.empty(array.shape, native_dtype(array.dtype))
    width = max(1, CACHED_BYTES // (copy.itemsize * max(1, len(array))))
    for c in range(0, array.shape[1], width):  # in Fortran order a range of columns at a time stays in the cache
        copy[:, c : c + width] = array[:, c : c + width]
    return copy


def pieces(tiles: Tiles, start: int, stop: int) -> Iterator[tuple[Span, Array]]:
    """Tiles of rows `start` to `stop` as ((first class, classes), kernel view): copies where rows do not lie in one
    piece.
    """
    for first_class, tile in tiles:
        rows = tile[start:stop]
        yield (first_class, tile.shape[1]), kernel_view(in_one_piece(rows))


def streamed(tiles: Tiles, start: int, stop: int, left_out: Bools | None = None) -> Iterator[tuple[Span, Array]]:
    """As `pieces`, for what reads every byte of the rows once, except those left out (stop - start,)."""
    if left_out is None:
        left_out = np.zeros(stop - start, bool)
    for first_class, tile in tiles:
        reader = reader_of(tile) if rows_in_one_piece(tile) else None
        for span, piece in pieces([(first_class, tile)], start, stop):
            if reader is not None:
                reader.bring(piece, span[1], left_out)
            yield span, piece
            if reader is not None:
                reader.done(piece, span[1])


def share_rows(
    work: Callable[[int, int], None],
    tiles: Tiles,
    rows: int,
    num_threads: int | None,
    beside: Array | None = None,
) -> None:
    """Call `work(start, stop)` for ranges that cover all rows of `tiles`, and of what is read `beside` them, on the
    threads; no row's result may depend on it.
    """
    arrays = [tile for _, tile in tiles] + ([] if beside is None else [beside])
    threads = resolve_threads(num_threads)
    row_bytes = sum(array.shape[1] * (array.itemsize if array.dtype.name in FLOATS else 8) for array in arrays)
    row_bytes = max(1, row_bytes)
    step, most = _LEAST_TURN // row_bytes, 0
    if not all(map(rows_in_one_piece, arrays)):
        threads = max(1, min(threads, COPIED_BYTES // row_bytes))
        step = COPIED_BYTES // (threads * row_bytes)
    elif beside is None or beside.dtype.name in FLOATS:  # else every turn makes a copy of them
        most = (MAPPED_TURN if any(map(reader_of, arrays)) else _LARGEST_TURN) // row_bytes
    run_threads(work, rows, min(step, -(-rows // threads)), threads, most)


class StoredRows:
    """Rows of logits in tiles, which are views of files or of arrays.

    >>> rows = StoredRows.of(np.array([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]]))
    >>> len(rows), rows.num_classes, rows.gather(np.array([1, 0]), np.array([2, 0]), 1).tolist()
    (2, 3, [32.0, 1.0])
    """

    def __init__(self, tiles: Tiles, excluded: Excluded | None = None) -> None:
        self.tiles, self.excluded = tiles, excluded
        first, tile = tiles[-1]
        self.num_classes = first + tile.shape[1]

    @classmethod
    def of(cls, array: Array) -> StoredRows:
        """The rows of an array (n, V)."""
        return cls([(0, array)])

    def __len__(self) -> int:
        return len(self.tiles[0][1])

    def sweep(
        self,
        work: Callable[[Array, Span, slice], None],
        num_threads: int | None,
        *,
        skip: Bools | None = None,
        beside: Array | None = None,
        before: Callable[[slice], None] | None = None,
    ) -> None:
        """Call `work(piece, (first class, classes), rows)` for all pieces, in order of class, on the threads.

        Args:
            work: piece is a kernel view of `rows`, which are worked by no other thread.
            num_threads: None is all usable cores.
            skip: (n,) rows whose pages need not be there.
            beside: what is read beside the logits.
            before: called with `rows` before their first piece.
        """
        nothing = np.zeros(len(self), bool) if skip is None else skip

        def turn(start: int, stop: int) -> None:
            rows = slice(start, stop)
            if before is not None:
                before(rows)
            for span, piece in streamed(self.tiles, start, stop, nothing[rows]):
                work(piece, span, rows)

        share_rows(turn, self.tiles, len(self), num_threads, beside)

    def reduce(self, reduction: RowReduction, num_threads: int) -> State:
        """The state of all rows; each is read once."""
        from bigvocab.kernels import softmax

        state, lookup, found = reduction.state(len(self)), reduction.lookup, reduction.found
        alone = len(self.tiles) == 1 and rows_in_one_piece(self.tiles[0][1])

        def begin(rows: slice) -> None:
            reduction.clear(tuple(array[rows] for array in state))
            if lookup is not None and not alone:
                here = rows.start + np.flatnonzero(lookup[rows] >= 0)
                found[here] = self.gather(here, lookup[here], 1)

        def add(piece: Array, span: Span, rows: slice) -> None:
            if lookup is not None and alone:  # the label's page need not be touched before all others
                softmax.rows_gather(piece, lookup[rows], span, found[rows])
            mine = tuple(array[rows] for array in state)
            if self.excluded is None:
                reduction.add(piece, span, rows, mine)
            elif reduction.hides:
                reduction.add_without(piece, span, rows, mine, self.excluded.of_rows(rows))
            else:
                _add_copies(reduction, piece, span, rows, mine, self.excluded)

        self.sweep(add, num_threads, skip=reduction.skip, beside=reduction.beside, before=begin)
        return state

    def gather(self, rows: Ids, classes: Ids, num_threads: int) -> Array:
        """The logit of each pair (rows[i], classes[i]), in native byte order."""
        out = np.empty(len(rows), native_dtype(self.tiles[0][1].dtype))

        def work(start: int, stop: int) -> None:
            for first, tile in self.tiles:
                local = classes[start:stop] - first
                here = np.flatnonzero((local >= 0) & (local < tile.shape[1]))
                out[start + here] = tile[rows[start + here], local[here]]

        run_threads(work, len(rows), _PAIRS, num_threads)
        if self.excluded is not None:
            out[self.excluded.holds(rows, classes)] = -np.inf
        return out

    def classes(self, first: int, stop: int) -> StoredRows:
        """The columns of the tiles that lie in a range of classes, counted from its start."""
        cuts = []
        for start, tile in self.tiles:
            begin, end = max(first, start), min(stop, start + tile.shape[1])
            if begin < end:
                cuts.append((begin - first, tile[:, begin - start : end - start]))
        return StoredRows(cuts, None if self.excluded is None else self.excluded.classes(first, stop))

    def without(self, excluded: Excluded) -> StoredRows:
        """The same rows as if the logits of some classes were -inf: nothing is copied before it is read."""
        return StoredRows(self.tiles, excluded)


def _add_copies(
    reduction: RowReduction, piece: Array, span: Span, rows: slice, state: State, excluded: Excluded
) -> None:
    """Add copies of the rows, a few at a time, with -inf at the classes that are excluded."""
    from bigvocab.kernels import hidden

    count, nothing, skip = rows.stop - rows.start, nothing_in(piece), reduction.skip
    step = min(count, max(1, CACHED_BYTES // max(1, span[1] * piece.itemsize)))
    room = memory.empty((step, span[1]), piece.dtype)
    shown = room.view()
    shown.flags.writeable = False
    for start in range(0, count, step):
        stop = min(start + step, count)
        mine = slice(rows.start + start, rows.start + stop)
        hidden.copy_rows(piece[start:stop], span[1], skip[mine], room)
        hidden.hide_in_tile(room, span, *excluded.of_rows(mine), nothing)
        reduction.add(shown[: stop - start], span, mine, tuple(array[start:stop] for array in state))
