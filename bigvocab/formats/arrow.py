"""Arrow IPC files and streams: where the rows of a column of vectors lie, batch by batch."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from bigvocab.errors import BigvocabError, FormatError, Place
from bigvocab.formats.layout import SUPPORTED, Layout, Stored, check_shape, refuse_second, resolve_dtype
from bigvocab.formats.magic import ARROW_FILE, ARROW_STREAM
from bigvocab.formats.vectors import LISTS, vector_type, vectors_of
from bigvocab.storage.mapped import MappedFile

_MOST_PARTS = 1 << 16  # of rows of list views that do not follow one another


def arrow_layout(file: MappedFile, wanted: Stored | None) -> Layout:
    """Layout of one column of an Arrow IPC file or stream, one part for each record batch.

    Source: https://arrow.apache.org/docs/format/Columnar.html#serialization-and-interprocess-communication-ipc
    """
    import pyarrow as pa

    try:
        return _layout(file, wanted, pa.py_buffer(file.buffer))
    except BigvocabError:
        raise
    except Exception as error:  # whatever a lying schema makes pyarrow raise, it is about this file
        kind = "file" if _is_file(file) else "stream"
        raise FormatError(
            f"{file.shown}: not a valid (perhaps a truncated) Arrow IPC {kind}: {str(error)[:300]}"
        ) from error


def _is_file(file: MappedFile) -> bool:
    return file.buffer[: len(ARROW_FILE)] == ARROW_FILE


def _layout(file: MappedFile, wanted: Stored | None, buffer: Any) -> Layout:
    import pyarrow as pa

    # no included_fields: with it pyarrow copies each batch of a file, without it nothing is read but metadata
    source = pa.BufferReader(buffer)
    reader = pa.ipc.open_file(source) if _is_file(file) else pa.ipc.open_stream(source)
    index, shown, width, found = _column(file, reader.schema, wanted)
    stored = resolve_dtype(shown, found, wanted)
    if width is not None:
        check_shape(shown, (0, width))
    batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if _is_file(file) else iter(reader)
    parts: list[tuple[int, int]] = []
    rows = 0
    for batch in batches:
        column = batch.column(index)
        column.validate()
        if len(column):
            width, found_parts = parts_of(shown, rows, column, buffer, width, stored)
            parts += found_parts
        rows += len(column)
    if width is None:
        raise FormatError(f"{shown}: no rows, and lists say how wide they are by their rows alone")
    if not _is_file(file):
        end = source.tell()
        refuse_second(file.shown, file.buffer[end : end + len(ARROW_STREAM)], end, ARROW_STREAM, "stream")
    return Layout(check_shape(shown, (rows, width)), stored, tuple(parts))


def _column(file: MappedFile, schema: Any, wanted: Stored | None) -> tuple[int, str, int | None, np.dtype[Any]]:
    """Index, name for messages, width and element type of the column asked for, or of the only one that fits."""
    fits = {i: fit for i, field in enumerate(schema) if (fit := _fit(field.type, wanted)) is not None}
    listed = ", ".join(f"{field.name!r} ({field.type})"[:200] for field in list(schema)[:20]) or "none"
    if file.selector is not None:
        named = schema.get_all_field_indices(file.selector)
        if len(named) != 1:
            there = f"{len(named)} columns" if named else "no column"
            raise BigvocabError(f"{file.shown}: {there} {file.selector!r}; there are: {listed}")
        shown = f"{file.shown}::{file.selector}"
    else:
        told = [i for i, (width, _) in fits.items() if width is not None]
        named = told or list(fits)  # lists may be anything: they are meant where nothing else fits
        if len(named) > 1:
            names = ", ".join(repr(schema.field(i).name) for i in named[:20])
            raise BigvocabError(
                f"{file.shown}: {len(named)} columns could be meant, name one with file::column: {names}"
            )
        shown = f"{file.shown}::{schema.field(named[0]).name}" if named else file.shown
    if not named or named[0] not in fits:
        raise FormatError(f"{shown}: expected a {LISTS} of {SUPPORTED}; columns: {listed}")
    width, found = fits[named[0]]
    return named[0], shown, width, found


def _fit(kind: Any, wanted: Stored | None) -> tuple[int | None, np.dtype[Any]] | None:
    """Width, where the type says it, and element type of a column that can be logits."""
    bfloat16 = wanted is not None and wanted.dtype.name == "bfloat16"
    found = vector_type(kind, bfloat16=bfloat16)
    if found is None or bfloat16 != (found.dtype.name == "bfloat16"):
        return None
    return found.width, np.dtype(np.uint16) if bfloat16 else found.dtype


def parts_of(
    shown: str, first_row: int, column: Any, buffer: Any, width: int | None, stored: Stored
) -> tuple[int, list[tuple[int, int]]]:
    """Width of the rows of one batch, and where in the file its elements lie: (byte offset, rows) of rows that follow
    one another; after the checks that make them plain numbers.
    """
    found = vectors_of(column, Place(shown), first_row, width)
    check_shape(shown, (len(column), found.width))
    row_bytes = found.width * stored.raw.itemsize
    data = found.values.buffers()[1]
    begin = data.address + found.values.offset * stored.raw.itemsize
    if not buffer.address <= data.address < buffer.address + buffer.size:
        raise FormatError(
            f"{shown}: compressed (or byte-swapped), so it cannot be memory-mapped; write it uncompressed"
        )
    starts = np.arange(len(column)) * found.width if found.starts is None else found.starts
    edges = np.flatnonzero(np.diff(starts) != found.width) + 1
    if len(edges) >= _MOST_PARTS:
        raise FormatError(f"{shown}: rows lie in {len(edges) + 1} places; write a plain list or FixedSizeList")
    needed = int(starts.max()) * stored.raw.itemsize + row_bytes
    end = min(data.address + data.size, buffer.address + buffer.size)
    if begin + needed > end:
        raise FormatError(f"{shown}: the batch at row {first_row} needs {needed} bytes, but its buffer has {data.size}")
    firsts = [0, *edges.tolist(), len(column)]
    place = int(begin - buffer.address)
    return found.width, [
        (place + int(starts[first]) * stored.raw.itemsize, stop - first) for first, stop in pairwise(firsts)
    ]
