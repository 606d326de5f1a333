"""Files, or arrays of any library, opened as one matrix."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np

from bigvocab.arguments import as_array, parse_sizes
from bigvocab.arrays import as_host_array, foreign_array
from bigvocab.errors import BigvocabError, FormatError, Keyword
from bigvocab.formats import read_layout, refuse_header, refuse_selector
from bigvocab.formats.gguf import locate
from bigvocab.formats.layout import SUPPORTED, Layout, dtype_label, parse_dtype, parse_shape
from bigvocab.formats.raw import raw_layouts
from bigvocab.matrices.matrix import Matrix
from bigvocab.matrices.parts import cut_columns, cut_rows, make_parts, make_shard
from bigvocab.matrices.quantised_matrix import QuantisedMatrix
from bigvocab.matrices.row_source import as_row_source
from bigvocab.storage import uris
from bigvocab.storage.mapped import MappedFile
from bigvocab.storage.paths import Source, expand
from bigvocab.storage.remote import RemoteFile
from bigvocab.storage.spool import SpooledFile


class Options(NamedTuple):
    """The arguments of `open_matrix` but the path, kept to open the same matrix in another process."""

    dtype: Any
    shape: tuple[int, ...] | None
    offset: int
    vocab_shards: bool
    any_leading: bool = False
    spooled: bool = False
    shard_classes: tuple[int, ...] | None = None


_STREAMED = (".npy", ".safetensors", ".npz", ".pt", ".pth")  # of which few bytes say where rows lie


def _open_file(source: Source, options: Options) -> MappedFile:
    """A file, mapped; an object of a store as one whose rows are fetched when they are asked for, or as a local copy:
    of what is read again and again (`spooled`), and of formats that lie anywhere in their file.
    """
    if not options.shape:
        source = locate(source)
    if not uris.is_remote(source.path):
        return MappedFile(source)
    whole = not options.shape and not uris.name_of(source.path).lower().endswith(_STREAMED)
    if options.spooled or whole:
        return SpooledFile(source, whole=whole)
    return RemoteFile(source)


def _row_by_row(file: MappedFile, layout: Layout, source: Source) -> MappedFile:
    """A copy of an object in Fortran order, of which every row is all over the file."""
    return SpooledFile(source, whole=True) if file.streamed and layout.fortran else file


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


def _opened(sources: list[Source], options: Options) -> Matrix:
    stored = parse_dtype(options.dtype)
    maps = [_open_file(source, options) for source in sources]
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
    maps = [_row_by_row(*triple) for triple in zip(maps, layouts, sources, strict=True)]
    _check_alike(maps, layouts, options.vocab_shards)
    by_class = options.vocab_shards and len(layouts[0].shape) == 2
    shards, parts, at = [], [], 0
    sizes = _real_sizes(maps, layouts, 1 if by_class else 0, options.shard_classes)
    for file, layout, size in zip(maps, layouts, sizes, strict=True):
        if by_class:
            shards.append(make_shard(at, [cut_columns(part, size) for part in make_parts(file, layout, 0)]))
        else:
            parts += cut_rows(make_parts(file, layout, at), at + size)
        at += size
    rest = layouts[0].shape[1:]
    shape = (layouts[0].shape[0], at) if by_class else (at, *rest)
    files = [_entry(file, layout) for file, layout in zip(maps, layouts, strict=True)]
    if layouts[0].blocks is None:
        matrix = Matrix(shards or [make_shard(0, parts)], shape, layouts[0].stored.dtype, files)
    else:
        if by_class:
            raise BigvocabError(f"{maps[0].shown}: quantised rows cannot be vocab shards, expected one layer")
        matrix = QuantisedMatrix([make_shard(0, parts)], shape, layouts[0].blocks, files)
    matrix.maps, matrix.reopened_by = maps, (reopen, (sources, options, files))
    lengths = {layout.leading[-1:] for layout in layouts}
    if not by_class and len(lengths) == 1 and () not in lengths:
        matrix.leading = (
            layouts[0].leading if len(layouts) == 1 else (at // max(1, *lengths.pop()), *layouts[0].leading[-1:])
        )
    return matrix


def _real_sizes(maps: list[MappedFile], layouts: list[Layout], axis: int, asked: tuple[int, ...] | None) -> list[int]:
    """How many classes of each file are real: as asked, or all."""
    sizes = [layout.shape[axis] for layout in layouts]
    if asked is None:
        return sizes
    if len(asked) != len(sizes):
        raise BigvocabError(
            Keyword("shard_classes"), f": got {len(asked)} numbers for {len(sizes)} files, expected one for each"
        )
    for file, size, number in zip(maps, sizes, asked, strict=True):
        if number > size:
            raise BigvocabError(Keyword("shard_classes"), f": got {number}, but {file.shown} has {size} classes")
    return list(asked)


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


def reopen(sources: list[Source], options: Options, files: list[dict[str, Any]]) -> Matrix:
    """What a pickled matrix becomes in another process: the same files, opened there."""
    matrix = _opened(sources, options)
    for before, now in zip(files, matrix.files, strict=True):
        if before != now:
            was, found = _described(before), _described(now)
            raise FormatError(f"{now['path']}: is not the file that was opened before: {found}, expected {was}")
    return matrix


def open_matrix(
    path: Any,
    *,
    dtype: Any = None,
    shape: Any = None,
    offset: int = 0,
    vocab_shards: bool = False,
    shard_classes: Any = None,
) -> Matrix:
    """Open files as one read-only matrix (N, V), memory-mapped: only the pages that are accessed are read.

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
        shard_classes: how many classes of each of these files are real, in order; those after them are padding.

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
    sizes = parse_sizes("shard_classes", shard_classes)
    if sizes is not None and not vocab_shards:
        raise BigvocabError(Keyword("shard_classes"), ": needs ", Keyword("vocab_shards"))
    return _open_files(path, dtype=dtype, shape=shape, offset=offset, vocab_shards=vocab_shards, shard_classes=sizes)


def _open_files(
    path: Any,
    *,
    dtype: Any = None,
    shape: Any = None,
    offset: int = 0,
    vocab_shards: bool = False,
    any_leading: bool = False,
    spooled: bool = False,
    shard_classes: tuple[int, ...] | None = None,
) -> Matrix:
    """`open_matrix` of paths; with `any_leading`, an array (..., V) in a file counts as its rows."""
    if isinstance(offset, bool) or not isinstance(offset, int | np.integer):
        raise TypeError(f"offset: expected a number of bytes, got {type(offset).__name__}")
    if offset < 0 or (offset and shape is None):
        expected = "0 or more" if offset < 0 else "0, because only raw binary (shape=, dtype=) has an offset"
        raise BigvocabError(Keyword("offset"), f": got {offset}, expected {expected}")
    sizes = None if shape is None else parse_shape(shape)
    given = Options(dtype, sizes, int(offset), bool(vocab_shards), any_leading, spooled, shard_classes)
    return _opened(expand(path, raw=sizes is not None), given)


def as_matrix(
    value: Any, name: str = "array", *, any_leading: bool = False, spooled: bool = False, **options: Any
) -> Matrix:
    """A Matrix from a Matrix, from an array of any library, or from a path, with `options` as `open_matrix` takes them;
    messages call it by its `name`. With `any_leading`, an array (..., V) counts as its rows; with `spooled`, objects of
    stores are copied to a local file, because they are read again and again.
    """
    if isinstance(value, Matrix):
        return value
    if isinstance(value, str | os.PathLike) or (
        isinstance(value, list | tuple) and value and all(isinstance(item, str | os.PathLike) for item in value)
    ):
        if value in ("", []):
            raise BigvocabError(f"{name}: expected the name of a file, got {value!r}")
        return _open_files(value, any_leading=any_leading, spooled=spooled, **options)
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
