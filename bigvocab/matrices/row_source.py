"""Rows of an array (..., V) of any library, handed out as NumPy arrays (n, V) without a copy of the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bigvocab.arguments import as_array
from bigvocab.arrays import BLOCK_BYTES, Array, ForeignArray, as_host_array, foreign_array, to_host
from bigvocab.errors import BigvocabError

SMALL_PIECE = 256 << 10  # pieces below this are gathered into blocks


class RowSource:
    """Rows (N, V) of an array (..., V) of any library, in C order of its leading dimensions, as NumPy arrays.

    Rows in host memory are views. A copy is made of a few rows at a time, and only where they lie on an accelerator or
    not evenly spaced, as those of `x[:, :-1]` do.

    Attributes: `shape` (N, V), `leading` (the shape without V), `dtype`.
    """

    def __init__(
        self, pieces: list[Any], leading: tuple[int, ...], width: int, dtype: Any, to_numpy: Callable[[Any], Array]
    ) -> None:
        self._pieces, self._to_numpy = pieces, to_numpy
        self._firsts = np.concatenate([[0], np.cumsum([piece.shape[0] for piece in pieces], dtype=np.int64)])
        self.leading, self.dtype = leading, np.dtype(dtype)
        self.shape = (int(self._firsts[-1]), width)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def is_one_piece(self) -> bool:
        """Whether `rows` of any range is a view of the same host array."""
        return len(self._pieces) == 1 and isinstance(self._pieces[0], np.ndarray)

    @property
    def on_device(self) -> bool:
        """Whether the rows lie elsewhere than in host memory."""
        return not all(isinstance(piece, np.ndarray) for piece in self._pieces)

    def rows(self, start: int, stop: int) -> Array:
        """Rows `start` to `stop` as (stop - start, V): a view where they lie evenly in host memory."""
        if not 0 <= start <= stop <= len(self):
            raise BigvocabError(f"rows: got {start} to {stop}, expected a range within {len(self)} rows")
        found = [self._to_numpy(piece[a:b]) for piece, a, b in self._spans(start, stop)]
        if len(found) == 1:
            return found[0]
        return np.concatenate(found) if found else np.empty((0, self.shape[1]), self.dtype)

    def _spans(self, start: int, stop: int) -> Iterator[tuple[Any, int, int]]:
        at = int(np.searchsorted(self._firsts, start, side="right")) - 1
        while start < stop:
            first, end = int(self._firsts[at]), min(stop, int(self._firsts[at + 1]))
            if end > start:
                yield self._pieces[at], start - first, end - first
                start = end
            at += 1

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, Array]]:
        """(first row, rows) for all rows, or those from `start` to before `stop`, in order: views as large as they are,
        copies of at most 64 MiB (or one row).
        """
        stop = len(self) if stop is None else stop
        if self.is_one_piece:
            yield start, self.rows(start, stop)
            return
        step, held = max(1, BLOCK_BYTES // max(1, self.shape[1] * self.dtype.itemsize)), start
        at = start
        for piece, a, b in self._spans(start, stop):
            if isinstance(piece, np.ndarray) and piece.nbytes >= SMALL_PIECE:
                yield from self._cut(held, at, step)
                yield at, piece[a:b]
                held = at + b - a
            at += b - a
        yield from self._cut(held, stop, step)

    def _cut(self, start: int, stop: int, step: int) -> Iterator[tuple[int, Array]]:
        return ((row, self.rows(row, min(stop, row + step))) for row in range(start, stop, step))


def as_row_source(value: Any, name: str) -> RowSource:
    """The rows of an array (..., V), V >= 1, of any library.

    Raises:
        TypeError: no array, or one without plain elements, as `as_host_array` says.
        BigvocabError: fewer than 2 dimensions, or no columns.
    """
    found = foreign_array(value, name)
    array: Any = None
    if found is None:
        array = as_host_array(value, name)
        array = as_array(name, array)
    elif found.on_host:
        array = to_host(found, found.value, name)
    shape = array.shape if array is not None else found.shape  # type: ignore[union-attr]
    if len(shape) < 2:
        raise BigvocabError(f"{name}: expected 2 dimensions, or more before the last, got shape {shape}")
    if shape[-1] == 0:
        raise BigvocabError(f"{name}: expected at least one column, got shape {shape}")
    if array is not None:
        return RowSource(_even_pieces(array), shape[:-1], shape[-1], array.dtype, lambda piece: piece)
    assert found is not None
    here: ForeignArray = found
    pieces = [here.value[index] for index in np.ndindex(shape[:-2])]
    return RowSource(pieces, shape[:-1], shape[-1], here.dtype, lambda piece: to_host(here, piece, name))


def _even_pieces(array: Array) -> list[Array]:
    """Views (n, V) that hold the rows in order, as few as its strides allow."""
    keep = array.ndim - 2  # the outermost dimension that one view can reach
    while keep > 0 and _evenly_spaced(array, keep - 1):
        keep -= 1
    if 0 in array.shape:
        return [array.reshape(-1, array.shape[-1]) if 0 not in array.shape[:-1] else array.reshape(0, array.shape[-1])]
    return [array[index].reshape(-1, array.shape[-1]) for index in np.ndindex(array.shape[:keep])]


def _evenly_spaced(array: Array, axis: int) -> bool:
    """Whether a step along `axis` is as long as all those of the next leading dimension together."""
    shape, strides = array.shape, array.strides
    inner = next((i for i in range(axis + 1, array.ndim - 1) if shape[i] != 1), None)
    return shape[axis] == 1 or inner is None or strides[axis] == shape[inner] * strides[inner]


def flat_labels(labels: Array, leading: tuple[int, ...], name: str = "labels", of: str = "logits") -> Array:
    """Labels, or weights, of the shape of the leading dimensions of the logits, as one for each row.

    Dimensions of size 1 may be missing or more, so that (N, 1) goes with N rows.

    Raises:
        BigvocabError: any other shape; both are named.
    """
    if labels.shape == leading:
        return labels.reshape(-1)
    if [size for size in labels.shape if size != 1] != [size for size in leading if size != 1]:
        if len(leading) == 1:
            raise BigvocabError(f"{name}: got shape {labels.shape}, expected ({leading[0]},), one for each row of {of}")
        raise BigvocabError(f"{name}: got shape {labels.shape}, expected {leading}, as the {of} before their columns")
    return labels.reshape(-1)
