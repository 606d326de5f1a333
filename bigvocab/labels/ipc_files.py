"""Labels in Arrow IPC files and streams: how many rows each record batch has, and batches of some columns."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import accumulate

import pyarrow as pa

from bigvocab.errors import FormatError
from bigvocab.formats.layout import refuse_second
from bigvocab.formats.magic import ARROW_STREAM

_Opened = tuple[pa.Schema, int, Callable[[list[str], int, int], Iterator[tuple[int, pa.RecordBatch]]]]


def open_ipc(path: str, form: str) -> _Opened:
    """Schema, number of rows and batches.

    A file is read as the stream that lies in it, which copies nothing; one that is none, as those of Polars and of
    Arrow's JavaScript library, whose schema is in the footer alone, is read by its footer.
    """
    if form == "Arrow IPC stream":
        return _open_stream(path, form)
    try:
        return _open_stream(path, form)
    except (pa.ArrowException, OSError):  # Arrow says so of a message that is none
        return _open_by_footer(path)


def _open_stream(path: str, form: str) -> _Opened:
    stream = _stream(path, form)
    # without fields nothing is decompressed: only the metadata of each message is read
    messages = (m for m in pa.ipc.MessageReader.open_stream(stream) if m.type == "record batch")
    counts = [pa.ipc.read_record_batch(message, pa.schema([])).num_rows for message in messages]
    if form == "Arrow IPC stream":
        end = stream.tell()
        refuse_second(path, stream.read(len(ARROW_STREAM)), end, ARROW_STREAM, "stream")
    stream.seek(0)
    schema = pa.ipc.open_stream(stream).schema
    promised = len(counts)
    if form == "Arrow IPC file":
        promised = pa.ipc.open_file(pa.memory_map(os.fsencode(path))).num_record_batches
    if min(counts, default=0) < 0 or promised != len(counts):
        raise FormatError(f"{path}: corrupt {form}: footer of {promised} record batches, got {len(counts)}")

    def batches(names: list[str], start: int, stop: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        options = pa.ipc.IpcReadOptions(included_fields=[schema.get_field_index(name) for name in names])
        row = 0
        for batch in pa.ipc.open_stream(_stream(path, form), options=options):
            if row >= stop:
                break
            yield row, batch.select(names)
            row += len(batch)

    return schema, sum(counts), batches


def _open_by_footer(path: str) -> _Opened:
    with pa.ipc.open_file(pa.memory_map(os.fsencode(path))) as reader:
        schema, number = reader.schema, reader.num_record_batches
    with _file(path, schema, schema.names[:1]) as reader:
        counts = [reader.get_batch(i).num_rows for i in range(number)]
    if min(counts, default=0) < 0:
        raise FormatError(f"{path}: corrupt Arrow IPC file: a record batch of {min(counts)} rows")
    firsts = list(accumulate(counts, initial=0))

    def batches(names: list[str], start: int, stop: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        with _file(path, schema, names) as reader:
            for i, first in enumerate(firsts[:-1]):
                if first < stop and firsts[i + 1] > start:
                    yield first, reader.get_batch(i).select(names)

    return schema, sum(counts), batches


def _file(path: str, schema: pa.Schema, names: list[str]) -> pa.ipc.RecordBatchFileReader:
    """A reader of some columns, which copies a record batch of them at a time."""
    options = pa.ipc.IpcReadOptions(included_fields=[schema.get_field_index(name) for name in names])
    return pa.ipc.open_file(pa.memory_map(os.fsencode(path)), options=options)


def _stream(path: str, form: str) -> pa.BufferReader:
    """The mapped stream; in a file it lies between magic and footer (the file reader would copy whole batches)."""
    with pa.memory_map(os.fsencode(path)) as source:
        whole = source.read_buffer()
    if form == "Arrow IPC file":
        footer = int.from_bytes(whole[-10:-6].to_pybytes(), "little")
        whole = whole[8 : max(8, whole.size - 10 - footer)]
    return pa.BufferReader(whole)
