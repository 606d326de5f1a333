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
import os
import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from bigvocab.arguments import as_array
from bigvocab.arrays import as_host_array, foreign_array
from bigvocab.errors import BigvocabError, FormatError, Keyword
from bigvocab.formats import read_layout, refuse_header, refuse_selector
from bigvocab.formats.gguf import locate
from bigvocab.formats.layout import SUPPORTED, Layout, dtype_label, is_supported, parse_dtype, parse_shape
from bigvocab.formats.raw import raw_layouts
from bigvocab.matrices.parts import Array, Part, Shard, fetch_rows, make_parts, make_shard, native, release_rows
from bigvocab.matrices.row_source import RowSource, as_row_source
from bigvocab.matrices.tiles import StoredRows, kernel_view, rows_in_one_piece
from bigvocab.matrices.weight_rows import WeightRows
from bigvocab.storage.mapped import MappedFile
from bigvocab.storage.paths import Source, expand
from bigvocab.storage.reading import Behind

_COPIED_BYTES = 128 << 20  # of rows at a time that are made native


class _Options(NamedTuple):
    """The arguments of `open_matrix` but the path, kept to open the same matrix in another process."""

    dtype: Any
    shape: tuple[int, ...] | None
    offset: int
    vocab_shards: bool
    any_leading: bool = False


class Matrix:
    """A read-only array (N, V), or (V,) for biases, in one or many parts; made by `open_matrix` or `Matrix.from_array`.

    Slices and single rows are NumPy views, zero-copy where they lie in one part; a list of rows copies those rows
    alone. The byte order may be foreign. `np.asarray` of a matrix of one part is a view as well.

    Two dimensions are a `LogitSource`. `shards` are the grid; `maps` the mapped files of it, none for an array.

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
        self._spec: tuple[list[Source], _Options] | None = None

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
                end = min(end, start + max(1, _COPIED_BYTES * len(self) // max(1, self.nbytes)))
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
            if part.file is not None:
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
            if part.file is not None:
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
        if self._spec is None:
            return Matrix.from_array, (np.asarray(self),)
        return _reopen, (*self._spec, self.files)


def _parts_in_memory(source: RowSource) -> list[Part]:
    """The blocks of rows on the host, or the one part that stands for rows elsewhere."""
    if source.on_device:
        return [Part(0, len(source), np.empty((0, source.shape[1]), source.dtype), None, 0, source)]
    return [Part(first, first + len(rows), rows, None, 0) for first, rows in source.blocks() if len(rows)]


def _check_alike(maps: list[MappedFile], layouts: list[Layout], vocab_shards: bool) -> None:
    """Raise unless all files have the dtype of the first, and its number of columns (of rows, for vocab shards)."""
    axis, word = (0, "rows") if vocab_shards else (1, "columns")
    first = layouts[0]
    for file, layout in zip(maps[1:], layouts[1:], strict=True):
        both = f"{maps[0].shown} and {file.shown} cannot be one matrix:"
        if len(layout.shape) != len(first.shape):
            raise BigvocabError(f"{both} shapes {first.shape} and {layout.shape}")
        if len(first.shape) == 2 and layout.shape[axis] != first.shape[axis]:
            raise BigvocabError(f"{both} {first.shape[axis]} and {layout.shape[axis]} {word}, expected the same number")
        if layout.stored.dtype != first.stored.dtype:
            raise BigvocabError(f"{both} {dtype_label(first.stored.dtype)} and {dtype_label(layout.stored.dtype)}")
        if layout.blocks != first.blocks:
            raise BigvocabError(f"{both} {first.type_name} and {layout.type_name}, expected the same type")


def _open(sources: list[Source], options: _Options) -> Matrix:
    stored = parse_dtype(options.dtype)
    maps = [MappedFile(source if options.shape else locate(source)) for source in sources]
    if options.shape is None:
        layouts = [read_layout(file, stored, any_leading=options.any_leading) for file in maps]
    else:
        if stored is None:
            raise BigvocabError(
                Keyword("dtype"), f": raw binary needs it as well as shape=, expected one of {SUPPORTED}"
            )
        for file in maps:
            refuse_selector(file)
            if options.offset == 0:
                refuse_header(file)
        layouts = raw_layouts(maps, options.shape, stored, options.offset, options.vocab_shards)
    _check_alike(maps, layouts, options.vocab_shards)
    by_class = options.vocab_shards and len(layouts[0].shape) == 2
    shards, parts, at = [], [], 0
    for file, layout in zip(maps, layouts, strict=True):
        if by_class:
            shards.append(make_shard(at, make_parts(file, layout, 0)))
        else:
            parts += make_parts(file, layout, at)
        at += layout.shape[1 if by_class else 0]
    rest = layouts[0].shape[1:]
    shape = (layouts[0].shape[0], at) if by_class else (at, *rest)
    files = [_entry(file, layout) for file, layout in zip(maps, layouts, strict=True)]
    if layouts[0].blocks is None:
        matrix = Matrix(shards or [make_shard(0, parts)], shape, layouts[0].stored.dtype, files)
    else:
        from bigvocab.matrices.quantised_matrix import QuantisedMatrix

        if by_class:
            raise BigvocabError(f"{maps[0].shown}: quantised rows cannot be vocab shards, expected one layer")
        matrix = QuantisedMatrix([make_shard(0, parts)], shape, layouts[0].blocks, files)
    matrix.maps, matrix._spec = maps, (sources, options)
    lengths = {layout.leading[-1:] for layout in layouts}
    if not by_class and len(lengths) == 1 and () not in lengths:
        matrix.leading = (
            layouts[0].leading if len(layouts) == 1 else (at // max(1, *lengths.pop()), *layouts[0].leading[-1:])
        )
    return matrix


def _entry(file: MappedFile, layout: Layout) -> dict[str, Any]:
    return {
        "path": file.shown_whole,
        "shape": list(layout.shape),
        "dtype": layout.type_name,
        "bytes": file.size,
    }


def _described(entry: dict[str, Any]) -> str:
    shape = " x ".join(map(str, entry["shape"]))
    return f"{entry['path']} with {shape} of {entry['dtype']} in {entry['bytes']} bytes"


def _reopen(sources: list[Source], options: _Options, files: list[dict[str, Any]]) -> Matrix:
    """What a pickled matrix becomes in another process: the same files, opened there."""
    matrix = _open(sources, options)
    for before, now in zip(files, matrix.files, strict=True):
        if before != now:
            was, found = _described(before), _described(now)
            raise FormatError(f"{now['path']}: is not the file that was opened before: {found}, expected {was}")
    return matrix


def open_matrix(
    path: Any, *, dtype: Any = None, shape: Any = None, offset: int = 0, vocab_shards: bool = False
) -> Matrix:
    """Open files as one read-only matrix (N, V), memory-mapped: nothing is read but the pages that are looked at.

    m[i, j] = element j of row i, counting the rows (with `vocab_shards` the classes) of all files one after the other.

    Args:
        path: a file, a quoted glob, a folder (natural order) or a list of these. `.npy`; `.safetensors`, with
            `::tensor` after it where it holds several; Arrow IPC file or stream (`.arrow`, `.ipc`, `.feather`), with
            `::column` where several fit; `.npz` and `.pt` with `::key`; anything else is raw binary. Or an array of any
            library.
        dtype: float16, bfloat16, float32 or float64, with `<` or `>` in front: for raw binary. "bfloat16" also says
            what files of uint16 are.
        shape: (N, V) of the whole matrix, (V,), or "N,V": for raw binary. N = -1 is as many rows as there are.
        offset: bytes before the data in each raw file.
        vocab_shards: several files are ranges of classes of the same rows, in order, not ranges of rows.

    Raises:
        FormatError: a file is not what it says (truncated, a lying header, nulls, pickled objects, compressed).
        BigvocabError: no such file, several tensors or columns could be meant, or files that do not fit together.
        TypeError: an argument of the wrong kind.

    >>> import tempfile, numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/part-0.npy", np.zeros((2, 4), np.float16))
    ...     np.save(f"{folder}/part-1.npy", np.ones((3, 4), np.float16))
    ...     m = open_matrix(folder)
    ...     m.shape, float(m[4, 0])
    ((5, 4), 1.0)
    """
    is_path = isinstance(path, str | os.PathLike | list | tuple)
    if not is_path and (isinstance(path, np.ndarray) or foreign_array(path, "path") is not None):
        return as_matrix(path, any_leading=True)
    return _open_files(path, dtype=dtype, shape=shape, offset=offset, vocab_shards=vocab_shards)


def _open_files(
    path: Any,
    *,
    dtype: Any = None,
    shape: Any = None,
    offset: int = 0,
    vocab_shards: bool = False,
    any_leading: bool = False,
) -> Matrix:
    """`open_matrix` of paths; with `any_leading`, an array (..., V) in a file counts as its rows."""
    if isinstance(offset, bool) or not isinstance(offset, int | np.integer):
        raise TypeError(f"offset: expected a number of bytes, got {type(offset).__name__}")
    if offset < 0 or (offset and shape is None):
        expected = "0 or more" if offset < 0 else "0, because only raw binary (shape=, dtype=) has an offset"
        raise BigvocabError(Keyword("offset"), f": got {offset}, expected {expected}")
    sizes = None if shape is None else parse_shape(shape)
    given = _Options(dtype, sizes, int(offset), bool(vocab_shards), any_leading)
    return _open(expand(path, raw=sizes is not None), given)


def as_matrix(value: Any, name: str = "array", *, any_leading: bool = False, **options: Any) -> Matrix:
    """A Matrix from a Matrix, from an array of any library, or from a path, with `options` as `open_matrix` takes them;
    messages call it by its `name`. With `any_leading`, an array (..., V) counts as its rows.
    """
    if isinstance(value, Matrix):
        return value
    if isinstance(value, str | os.PathLike) or (
        isinstance(value, list | tuple) and value and all(isinstance(item, str | os.PathLike) for item in value)
    ):
        if value in ("", []):
            raise BigvocabError(f"{name}: expected the name of a file, got {value!r}")
        return _open_files(value, any_leading=any_leading, **options)
    if isinstance(value, list | tuple) and value:
        value = as_array(name, value)
    found = foreign_array(value, name)
    if found is not None and not found.on_host and len(found.shape) > 1 and any_leading:
        return Matrix.from_rows(as_row_source(value, name), name=name)
    array = value if isinstance(value, np.ma.MaskedArray) else as_host_array(value, name)
    if isinstance(array, np.ndarray) and array.ndim > 2 and any_leading:
        return Matrix.from_rows(as_row_source(array, name), name=name)
    if isinstance(array, np.ndarray):
        return Matrix.from_array(array, name=name)
    raise TypeError(f"{name}: expected an array, a path or a Matrix, got {type(value).__name__}")
