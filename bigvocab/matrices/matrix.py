"""Logits, inputs, weights and biases as one read-only matrix: one file or many, split by rows or classes, or in memory.

A `Matrix` is a grid of parts. Each part is a NumPy view of a memory map (or of an array), so that slicing costs nothing
and only the pages that are looked at are read. A shard is the parts that cover one range of classes; all but vocab
shards have a single one.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import operator
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from bigvocab.errors import BigvocabError
from bigvocab.formats.layout import SUPPORTED, dtype_label, is_supported
from bigvocab.matrices.parts import Array, Part, Shard, fetch_rows, make_shard, native, release_rows
from bigvocab.matrices.row_source import RowSource
from bigvocab.matrices.tiles import StoredRows, kernel_view, rows_in_one_piece
from bigvocab.matrices.weight_rows import WeightRows
from bigvocab.storage.mapped import MappedFile
from bigvocab.storage.reading import Behind

COPIED_BYTES = 128 << 20  # of rows at a time that are made native


class Matrix:
    """A read-only array (N, V), or (V,) for biases, in one or many parts; made by `open_matrix` or `Matrix.from_array`.

    Slices and single rows are NumPy views, zero-copy where they lie in one part; a list of rows copies those rows
    alone. The byte order may be foreign. `np.asarray` of a matrix of one part is a view as well.

    Two dimensions are a `LogitSource`. `shards` are the grid; `maps` the mapped files of it, none for an array;
    `reopened_by` the call that opens the same files in another process.

    >>> import numpy as np
    >>> m = Matrix.from_array(np.arange(6, dtype=np.float32).reshape(3, 2))
    >>> m.shape, m[1:3].tolist(), m[[2, 0]].tolist()
    ((3, 2), [[2.0, 3.0], [4.0, 5.0]], [[4.0, 5.0], [0.0, 1.0]])
    """

    role = "logits"
    kernels: tuple[str, ...] = ()
    bytes_read_beside = 0
    classes_apart = True

    def __init__(self, shards: list[Shard], shape: tuple[int, ...], dtype: np.dtype[Any], files: list[dict[str, Any]]):
        self.shards = shards
        self.shape = shape
        self.dtype = dtype
        self.files = files
        self.leading = shape[:-1]  # of the array that the rows came as
        self.maps: list[MappedFile] = []
        self._lock, self._readers = threading.Lock(), 0
        self.reopened_by: tuple[Callable[..., Matrix], tuple[Any, ...]] | None = None

    @classmethod
    def from_array(cls, array: Array, *, name: str = "array", allow_empty: bool = False) -> Matrix:
        """Wrap an array (N, V) or (V,) of float16, bfloat16, float32 or float64, of any strides, without a copy;
        messages call it by its `name`. A vector may be empty where that is said to be allowed.
        """
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{name}: expected a NumPy array, got {type(array).__name__}")
        if isinstance(array, np.ma.MaskedArray):
            raise TypeError(f"{name}: expected a plain array, got a masked one; fill it, or take the rows that count")
        if not is_supported(array.dtype):
            hint = "; are logits and labels swapped?" if array.dtype.kind in "iu" and name == "logits" else ""
            raise TypeError(f"{name}: expected one of {SUPPORTED}, got {array.dtype}{hint}")
        if array.ndim not in (1, 2) or array.shape[-1] == 0 and not allow_empty:
            raise BigvocabError(f"{name}: expected shape (N, V) or (V,) with V >= 1, got {array.shape}")
        view = array.view()
        view.flags.writeable = False
        part = Part(0, len(view), view, None, 0)
        entry = {"path": "<array>", "shape": list(view.shape), "dtype": view.dtype.name, "bytes": view.nbytes}
        return cls([make_shard(0, [part])], view.shape, view.dtype, [entry])

    @classmethod
    def from_rows(cls, source: RowSource, *, name: str = "array") -> Matrix:
        """Wrap the rows of an array (..., V) of any library: without a copy where they lie evenly on the host, else
        made of blocks, on an accelerator when they are asked for.
        """
        if source.is_one_piece:
            matrix = cls.from_array(source.rows(0, len(source)), name=name)
        else:
            matrix = cls.from_array(np.empty((0, source.shape[1]), source.dtype), name=name)
            parts = _parts_in_memory(source)
            matrix.shards, matrix.shape = [make_shard(0, parts)], source.shape
            matrix.files[0].update(shape=list(source.shape), bytes=matrix.nbytes)
        matrix.leading = source.leading
        return matrix

    @property
    def ndim(self) -> int:
        """2, or 1 for biases."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def stored(self) -> Matrix:
        """The matrix itself."""
        return self

    @property
    def fingerprints(self) -> list[tuple[str, int, int]]:
        """(absolute path, size, time of change in ns) of each file at opening."""
        return [(file.path, file.size, file.identity.changed_ns) for file in self.maps]

    def digest(self) -> str | None:
        """The fingerprint of all files together, where they are too many for one each."""
        return None

    def __len__(self) -> int:
        return self.shape[0]

    def row_files(self) -> list[tuple[int, str]]:
        """(first row, path) of each file, in order, where files are split by rows."""
        found: list[tuple[int, str]] = []
        before = None
        for part in self.shards[0].parts if len(self.shards) == 1 else ():
            if part.file is not None and part.file is not before:
                found.append((part.first, part.file.shown_whole))
            before = part.file
        return found

    def class_edges(self) -> list[int]:
        """The first class of each file, in order, where files are split by classes; else [0]."""
        return [shard.first_class for shard in self.shards]

    def part_edges(self) -> list[int]:
        """The first row of each file, in order, where files are split by rows; else [0]."""
        parts = self.shards[0].parts
        return [part.first for at, part in enumerate(parts) if at == 0 or part.file is not parts[at - 1].file]

    def __repr__(self) -> str:
        source = self.files[0]["path"] + (f" and {len(self.files) - 1} more" if len(self.files) > 1 else "")
        return f"<Matrix {self.shape} {dtype_label(self.dtype)} of {source}>"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        found = self._rows(0, len(self))
        fresh = not any(np.may_share_memory(found, part.array) for part in self.shards[0].parts[:1])
        if copy is False and (fresh or dtype not in (None, self.dtype)):
            raise ValueError("this matrix cannot become one array of that dtype without a copy")
        if fresh:
            found.flags.writeable = True
        return found.astype(self.dtype if dtype is None else dtype, copy=bool(copy) and not fresh)

    def __iter__(self) -> Iterator[Any]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, tuple):
            return self._rows_and_classes(key)
        if key is Ellipsis:
            return self._rows(0, len(self))
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step == 1:
                return self._rows(start, max(start, stop))
            return self._gather(np.arange(start, stop, step))
        if isinstance(key, list | np.ndarray) and np.ndim(key) == 1:
            return self._gather(np.asarray(key))
        try:
            row = operator.index(key)
        except TypeError:
            raise TypeError(f"rows: expected an int, a slice or a list of ints, got {type(key).__name__}") from None
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} is out of range for {len(self)} rows")
        row %= len(self)
        return self._rows(row, row + 1)[0]

    def _rows_and_classes(self, key: tuple[Any, ...]) -> Any:
        if len(key) != 2 or self.ndim != 2 or any(k is None or k is Ellipsis for k in key):
            raise IndexError(
                f"expected at most a row index and a class index, got {len(key)} for {self.ndim} dimensions"
            )
        if isinstance(key[0], list | np.ndarray) and not isinstance(key[1], slice):
            raise IndexError(
                "pairs of rows and classes cannot be looked up at once; take the rows first: m[rows][..., classes]"
            )
        rows = self[key[0]]
        return rows[key[1]] if rows.ndim == 1 else rows[:, key[1]]

    def _rows(self, start: int, stop: int) -> Array:
        """Rows start to stop: a view where one part holds them, else a copy."""
        out = None
        for first, tiles in self.row_parts(start, stop):
            if len(tiles) == 1 and len(tiles[0][1]) == stop - start:
                return tiles[0][1]
            if out is None:
                out = np.empty((stop - start, *self.shape[1:]), self.dtype)
            for first_class, tile in tiles:
                where = out[first - start : first - start + len(tile)]
                (where if self.ndim == 1 else where[:, first_class : first_class + tile.shape[1]])[...] = tile
        if out is None:  # no rows
            out = np.empty((0, *self.shape[1:]), self.dtype)
        out.flags.writeable = False
        return out

    def _gather(self, rows: Array) -> Array:
        """A copy of the rows at these indices, in this order."""
        if rows.dtype == bool and len(rows) == len(self):
            rows = np.flatnonzero(rows)
        if rows.size == 0:
            rows = rows.astype(np.int64)
        if rows.dtype.kind not in "iu":
            raise IndexError(
                f"rows: expected integers (or {len(self)} booleans), got {rows.dtype} of shape {rows.shape}"
            )
        wrong = (rows < -len(self)) | (rows >= len(self))
        if wrong.any():
            raise IndexError(f"row {rows[np.argmax(wrong)]} is out of range for {len(self)} rows")
        rows = rows.astype(np.int64)
        rows = np.where(rows < 0, rows + len(self), rows)
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for shard in self.shards:
            owner = np.searchsorted(shard.starts, rows, side="right") - 1
            order = np.argsort(owner, kind="stable")
            edges = np.flatnonzero(np.diff(owner[order], prepend=-1, append=-1))
            for begin, end in pairwise(edges):
                places = order[begin:end]
                part = shard.parts[owner[places[0]]]
                taken = native(part.take(rows[places]), self.dtype)
                if self.ndim == 1:
                    out[places] = taken
                else:
                    out[places, shard.first_class : shard.first_class + taken.shape[1]] = taken
        return out

    def row_parts(self, start: int, stop: int) -> Iterator[tuple[int, list[tuple[int, Array]]]]:
        """Rows start to stop as (first_row, [(first_class, tile), ...]), with all tiles of an item of the same rows.

        Tiles are views of the files or the array: one an item where rows are split, one for each of the vocab shards.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"rows {start} to {stop} are out of range for {len(self)} rows")
        while start < stop:
            parts = [shard.part_of(start) for shard in self.shards]
            end = min(stop, *(part.stop for part in parts))
            if any(part.array.dtype != self.dtype or part.device for part in parts):  # which makes a copy
                end = min(end, start + max(1, COPIED_BYTES * len(self) // max(1, self.nbytes)))
            tiles = [part.rows(start, end) for part in parts]
            yield start, [(s.first_class, native(t, self.dtype)) for s, t in zip(self.shards, tiles, strict=True)]
            start = end

    def rows(self, start: int, stop: int) -> Iterator[tuple[int, StoredRows]]:
        """Rows start to stop of (N, V) as (first row, rows of logits), in order, without a copy."""
        for first, tiles in self.row_parts(start, stop):
            yield first, StoredRows(tiles)

    def weight_rows(self, start: int, stop: int) -> Iterator[tuple[int, WeightRows]]:
        """Rows start to stop as (first row, rows as they lie), for products; not of vocab shards."""
        for first, tiles in self.row_parts(start, stop):
            yield first, WeightRows(len(tiles[0][1]), kernel_view(tiles[0][1]))

    def picked_rows(self, ids: Array) -> WeightRows:
        """Copies of some rows as they lie, for products; not of vocab shards."""
        return WeightRows(len(ids), kernel_view(self[ids]))

    @property
    def factor_dtype(self) -> np.dtype[Any]:
        """The type of the numbers that a product multiplies with others of their kind."""
        return self.dtype

    def rows_between(self, start: int, stop: int) -> Matrix:
        """Rows start to stop as a matrix of views, without the files they are of; not of vocab shards."""
        parts = [
            Part(at - start, at - start + len(tiles[0][1]), tiles[0][1], None, 0)
            for at, tiles in self.row_parts(start, stop)
        ]
        return Matrix([make_shard(0, parts)], (stop - start, *self.shape[1:]), self.dtype, self.files)

    def one_array(self) -> Array | None:
        """All rows as kernels read them where they lie; None where they do not lie together, or must be converted."""
        if len(self.shards) > 1 or len(self.shards[0].parts) != 1:
            return None
        array = self.shards[0].parts[0].array
        together = self.ndim == 2 and array.dtype == self.dtype and array.size and rows_in_one_piece(array)
        return kernel_view(array) if together else None

    def buffers(self) -> list[mmap.mmap]:
        """The memory maps behind the rows, those of arrays that were given among them."""
        found: list[mmap.mmap] = [file.buffer for file in self.maps]
        base: Any = None if found else self.shards[0].parts[0].array
        while isinstance(base, np.ndarray):
            base = base.base
        return [base] if isinstance(base, mmap.mmap) else found

    def block_rows(self, rows: int) -> int:
        """How many of so many rows should be worked at a time: all, because reading is quick."""
        return rows

    @property
    def in_one_piece(self) -> bool:
        """Whether kernels can read all rows where they lie, without a copy."""
        parts = [part for shard in self.shards for part in shard.parts]
        return all(p.array.dtype == self.dtype and rows_in_one_piece(p.array) and p.device is None for p in parts)

    @property
    def row_by_row(self) -> bool:
        """Whether the bytes of a row lie together: of a file in Fortran order, a few rows touch every page."""
        arrays = [part.array for shard in self.shards for part in shard.parts]
        return all(array.strides[1] == array.itemsize or array.shape[1] == 1 for array in arrays)

    def prefetch(self, start: int, stop: int, ended: threading.Event) -> None:
        """Have rows start to stop read from the disk, in order, unless it has `ended`: for a thread ahead of others."""
        for part, first, last in self._parts_of(start, stop):
            if part.file is not None and part.device is None:
                fetch_rows(part.file, part, first, last, ended)

    @contextlib.contextmanager
    def reading_once(self) -> Iterator[None]:
        """While it lasts, kernels let go of what they have read, 256 MiB of all files at a time."""
        self._read_behind(1)
        try:
            yield
        finally:
            self._read_behind(-1)

    def _read_behind(self, more: int) -> None:
        """Count who reads all rows once: several may, one within another or in threads of their own."""
        with self._lock:
            before, self._readers = self._readers, self._readers + more
            if 0 in (before, self._readers):
                behind = Behind([file.buffer for file in self.maps]) if self._readers else None
                for file in self.maps:
                    file.buffer.reader.behind = behind

    def release(self, start: int, stop: int) -> None:
        """Tell the system that the pages of rows start to stop are not needed any more; arrays in memory stay."""
        for part, first, last in self._parts_of(start, stop):
            if part.file is not None and part.device is None:
                release_rows(part.file, part, first, last)

    def _parts_of(self, start: int, stop: int) -> Iterator[tuple[Part, int, int]]:
        """The parts that hold rows start to stop, each with its rows of them."""
        for shard in self.shards:
            row = start
            while row < min(stop, len(self)):
                part = shard.part_of(row)
                yield part, row, min(stop, part.stop)
                row = part.stop

    def check(self) -> None:
        """Raise FormatError if a file has shrunk, was written to or was replaced since it was opened."""
        for file in self.maps:
            file.check()

    def __reduce__(self) -> Any:
        return self.reopened_by or (Matrix.from_array, (np.asarray(self),))


def _parts_in_memory(source: RowSource) -> list[Part]:
    """The blocks of rows on the host, or the one part that stands for rows elsewhere."""
    if source.on_device:
        return [Part(0, len(source), np.empty((0, source.shape[1]), source.dtype), None, 0, source)]
    return [Part(first, first + len(rows), rows, None, 0) for first, rows in source.blocks() if len(rows)]
