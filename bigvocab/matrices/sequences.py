"""Logits and hidden states that come as sequences: files (B, T, V), and states of several layers (T, L, D).

Which layer is meant, and whether an axis is one of layers, is known when the labels are: `open_rows` is told how many.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from bigvocab.arrays import as_host_array, foreign_array
from bigvocab.errors import BigvocabError, FormatError, Keyword
from bigvocab.formats import has_arrays, read_array
from bigvocab.formats.layout import Stored, check_shape, parse_dtype, resolve_dtype
from bigvocab.formats.stored_array import StoredArray
from bigvocab.matrices.matrix import Matrix
from bigvocab.matrices.opening import as_matrix
from bigvocab.matrices.sequence_files import RowFile, SequenceFiles, SequenceMatrix, refuse_unlike
from bigvocab.matrices.stored_sequences import StoredSequences
from bigvocab.storage import uris
from bigvocab.storage.file_identity import FileIdentity, RemoteIdentity
from bigvocab.storage.mapped import MappedFile
from bigvocab.storage.paths import Source, expand
from bigvocab.storage.remote import RemoteFile, at_once
from bigvocab.storage.uris import is_remote

# More files than these, where they are small, are read when their rows are asked for: each map holds a descriptor.
MOST_MAPPED, SMALL_FILE = 256, 64 << 20


class _Found(NamedTuple):
    """An array in a file, and what tells that the file is the same later."""

    source: Source
    array: StoredArray
    identity: FileIdentity | RemoteIdentity


def open_rows(
    values: Any,
    name: str,
    *,
    layer: int | None = None,
    label_rows: Callable[[], int] | None = None,
    **options: Any,
) -> Matrix:
    """Logits or hidden states as rows (N, D), whatever dimensions come before the columns.

    Args:
        values: an array of any library, paths, or a Matrix.
        name: how messages call it.
        layer: which of the next to last axis, where that is one of layers; counted from the end where it is negative.
        label_rows: says how many labels there are, which tells an axis of layers from one of positions: without
            `layer`, the last layer is meant where the labels are as many as the rows of one layer alone.
        options: as `open_matrix` takes them.

    Raises:
        BigvocabError: no such layer, files that do not fit together; as `open_matrix`.
    """
    if isinstance(values, Matrix):
        return values
    if not _are_paths(values):
        return _of_array(values, name, layer, label_rows)
    if not values or options.get("shape") is not None or options.get("vocab_shards"):
        _refuse_layer(layer, name)
        return as_matrix(values, name, any_leading=True, **options)
    sources = expand(values)
    remote = is_remote(sources[0].path)
    first = _peek(sources[0])
    dimensions = 0 if first is None else len(first.array.shape)
    apart = first is not None and len(sources) > MOST_MAPPED and first.identity.size <= SMALL_FILE
    many = apart or remote and len(sources) > 1
    mixed = any(is_remote(source.path) != remote for source in sources)
    if first is None or dimensions < 2 or dimensions < 3 and not many or mixed:
        _refuse_layer(layer, sources[0].shown if dimensions else name)
        return as_matrix(values, name, any_leading=True, **options)
    rest = at_once(_peek, sources[1:]) if remote else map(_peek, sources[1:])
    found = [first, *map(_checked, rest, sources[1:])]
    if dimensions < 3 and not apart and any(one.array.fortran for one in found):
        _refuse_layer(layer, sources[0].shown)
        return as_matrix(values, name, any_leading=True, **options)
    wanted = parse_dtype(options.get("dtype"))
    picked = _picked_layer([(one.array.shown, one.array.shape) for one in found], layer, label_rows)
    alike = len({one.array.shape[-2] for one in found}) == 1
    if picked is None and not apart and dimensions > 2 and alike:
        return as_matrix(values, name, any_leading=True, **options)
    files = _files(found, wanted, picked, StoredSequences if remote else SequenceFiles)
    return SequenceMatrix(files, _shown(values, sources), apart=apart or dimensions > 2)


def _are_paths(values: Any) -> bool:
    if isinstance(values, str | os.PathLike):
        return True
    return isinstance(values, list | tuple) and bool(values) and all(isinstance(v, str | os.PathLike) for v in values)


def _shown(values: Any, sources: list[Source]) -> str:
    """One name for all files."""
    if isinstance(values, str | os.PathLike):
        return uris.shown(os.fsdecode(values))
    return sources[0].shown + (f" and {len(sources) - 1} more" if len(sources) > 1 else "")


def _peek(source: Source) -> _Found | None:
    """The array in a file, by its header alone; None where the format has no arrays of many dimensions."""
    file = RemoteFile(source) if is_remote(source.path) else MappedFile(source)
    if not has_arrays(file):
        return None
    array = read_array(file)
    return _Found(source, array, file.identity)


def _checked(found: _Found | None, source: Source) -> _Found:
    if found is None:
        raise FormatError(f"{source.shown}: expected an array as in the files before it")
    return found


def _refuse_layer(layer: int | None, name: str) -> None:
    if layer is not None:
        raise BigvocabError(
            Keyword("layer"), f": got {layer}, but {name} has no axis of layers, expected states (T, L, D)"
        )


def _picked_layer(
    shapes: list[tuple[str, tuple[int, ...]]], layer: int | None, label_rows: Callable[[], int] | None
) -> int | None:
    """The layer that is meant of arrays (..., L, D); None where there is no axis of layers. An axis of one is one."""
    if layer is None:
        if any(len(shape) < 3 for _, shape in shapes):
            return None
        positions = sum(math.prod(shape[:-2]) for _, shape in shapes)
        rows = sum(math.prod(shape[:-1]) for _, shape in shapes)
        if label_rows is None or positions != rows and label_rows() != positions:
            return None
        layer = -1
    for name, shape in shapes:
        if len(shape) < 3:
            _refuse_layer(layer, name)
        if not -shape[-2] <= layer < shape[-2]:
            raise BigvocabError(Keyword("layer"), f": got {layer}, but {name} has {shape[-2]} layers (shape {shape})")
    return layer


def _files(found: list[_Found], wanted: Stored | None, layer: int | None, kind: type[SequenceFiles]) -> SequenceFiles:
    """The rows of all files; of one layer, or all."""
    files, first = [], None
    for source, array, identity in found:
        stored = resolve_dtype(array.shown, array.dtype, wanted, swapped_void=array.swapped_void)
        shape = array.shape
        if len(shape) < 2 or array.fortran and len(shape) > 1 and min(shape) > 0:
            what = "in Fortran order" if array.fortran else f"of shape {shape}"
            raise FormatError(f"{array.shown}: is {what}, expected rows in C order, ({'..., ' * 2}columns)")
        check_shape(array.shown, (math.prod(shape[:-1]), shape[-1]))
        mine = (array.shown, shape[-1], stored)
        first = first or mine
        refuse_unlike((first[0], first[1], first[2].dtype), (mine[0], mine[1], stored.dtype))
        if stored != first[2]:
            raise BigvocabError(f"{first[0]} and {array.shown} cannot be one matrix: they differ in byte order")
        leading = shape[:-1] if layer is None else shape[:-2]
        layers = 1 if layer is None else shape[-2]
        at = 0 if layer is None else layer % layers
        rows = math.prod(leading)
        files.append(RowFile(source.path, array.shown, identity, array.offset, rows, layers, at, leading))
    assert first is not None
    return kind(files, first[1], first[2].dtype, first[2].raw)


def _of_array(values: Any, name: str, layer: int | None, label_rows: Callable[[], int] | None) -> Matrix:
    """An array in memory, or of another library."""
    shape = _shape_of(values, name)
    if len(shape) < 3:
        _refuse_layer(layer, name)
        return as_matrix(values, name, any_leading=True)
    picked = _picked_layer([(name, shape)], layer, label_rows)
    return as_matrix(values if picked is None else values[..., picked, :], name, any_leading=True)


def _shape_of(values: Any, name: str) -> tuple[int, ...]:
    found = foreign_array(values, name)
    if found is not None:
        return tuple(found.shape)
    array = as_host_array(values, name)
    return array.shape if isinstance(array, np.ndarray) else ()


def sequence_edges(matrix: Matrix) -> Any:
    """The first row of each sequence, and the number of rows; None where nothing says where one ends."""
    if isinstance(matrix, SequenceMatrix):
        return matrix.sequence_edges()
    if len(matrix.leading) > 1:
        length = matrix.leading[-1]
        return np.arange(0, len(matrix) + 1, length) if length else np.array([0, len(matrix)])
    return None
