"""Arrow IPC files and streams: where the rows of a FixedSizeList or fixed_shape_tensor column lie, batch by batch."""

from __future__ import annotations

from typing import Any

import numpy as np

from bigvocab.errors import BigvocabError, FormatError
from bigvocab.formats.layout import SUPPORTED, Layout, Stored, check_shape, refuse_second, resolve_dtype
from bigvocab.storage.mapped import MappedFile

STREAM_START = b"\xff\xff\xff\xff"
_SCAN = 2**22  # elements looked at in one go for the first null


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
    return file.buffer[:6] == b"ARROW1"


def _layout(file: MappedFile, wanted: Stored | None, buffer: Any) -> Layout:
    import pyarrow as pa

    # no included_fields: with it pyarrow copies each batch of a file, without it nothing is read but metadata
    source = pa.BufferReader(buffer)
    reader = pa.ipc.open_file(source) if _is_file(file) else pa.ipc.open_stream(source)
    index, shown, width, found = _column(file, reader.schema, wanted)
    stored = resolve_dtype(shown, found, wanted)
    check_shape(shown, (0, width))
    batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if _is_file(file) else iter(reader)
    parts, rows = [], 0
    for batch in batches:
        column = batch.column(index)
        column.validate()
        column = column.storage if isinstance(column, pa.ExtensionArray) else column
        if len(column):
            parts.append((offset_of(shown, rows, column, buffer, width, stored), len(column)))
        rows += len(column)
    if not _is_file(file):
        end = source.tell()
        refuse_second(file.shown, file.buffer[end : end + len(STREAM_START)], end, STREAM_START, "stream")
    return Layout(check_shape(shown, (rows, width)), stored, tuple(parts))


def _column(file: MappedFile, schema: Any, wanted: Stored | None) -> tuple[int, str, int, np.dtype[Any]]:
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
        named = list(fits)
        if len(named) > 1:
            names = ", ".join(repr(schema.field(i).name) for i in named[:20])
            raise BigvocabError(
                f"{file.shown}: {len(named)} columns could be meant, name one with file::column: {names}"
            )
        shown = f"{file.shown}::{schema.field(named[0]).name}" if named else file.shown
    if not named or named[0] not in fits:
        raise FormatError(f"{shown}: expected a FixedSizeList or fixed_shape_tensor of {SUPPORTED}; columns: {listed}")
    width, found = fits[named[0]]
    return named[0], shown, width, found


def _fit(kind: Any, wanted: Stored | None) -> tuple[int, np.dtype[Any]] | None:
    """Width and element type of a column that can be logits: a list of one fixed size, or a tensor of one dimension."""
    import pyarrow as pa

    if isinstance(kind, pa.FixedShapeTensorType):
        if len(kind.shape) != 1:
            return None
        kind = kind.storage_type
    if not isinstance(kind, pa.FixedSizeListType):
        return None
    names = {pa.float16(): "f2", pa.float32(): "f4", pa.float64(): "f8"}
    if wanted is not None and wanted.dtype.name == "bfloat16":
        names = {pa.uint16(): "u2"}
    name = names.get(kind.value_type)
    return None if name is None else (kind.list_size, np.dtype(name))


def offset_of(shown: str, first_row: int, column: Any, buffer: Any, width: int, stored: Stored) -> int:
    """Where in the file the elements of one batch begin, after the checks that make them plain numbers."""
    if column.null_count:
        row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise FormatError.of_row(shown, first_row + row, " is null; logits may have no nulls")
    flat = column.flatten()  # unlike .values, this honours the slice
    if flat.null_count:
        element = _first_null(flat)
        raise FormatError.of_row(shown, first_row + element // width, f" has a null at class {element % width}")
    data = flat.buffers()[1]
    begin = data.address + flat.offset * stored.raw.itemsize
    if not buffer.address <= data.address < buffer.address + buffer.size:
        raise FormatError(
            f"{shown}: compressed (or byte-swapped), so it cannot be memory-mapped; write it uncompressed"
        )
    needed = len(column) * width * stored.raw.itemsize
    end = min(data.address + data.size, buffer.address + buffer.size)
    if len(flat) != len(column) * width or begin + needed > end:
        raise FormatError(f"{shown}: the batch at row {first_row} needs {needed} bytes, but its buffer has {data.size}")
    return int(begin - buffer.address)


def _first_null(flat: Any) -> int:
    for start in range(0, len(flat), _SCAN):
        block = flat.slice(start, _SCAN)
        if block.null_count:
            return start + int(np.argmax(block.is_null().to_numpy(zero_copy_only=False)))
    return 0
