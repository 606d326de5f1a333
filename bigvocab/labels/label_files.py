"""Files of labels, and arrays in memory, as parts: Arrow IPC files and streams, Parquet, .npy, tables.

A part has a schema and an exact number of rows, known without reading data, and a function that yields record batches
of a range of its rows.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib.format import MAGIC_PREFIX

from bigvocab.errors import BigvocabError, FormatError, Keyword
from bigvocab.formats.arrow import STREAM_START
from bigvocab.formats.layout import refuse_second
from bigvocab.formats.npy import reason_of
from bigvocab.labels import columns as _columns
from bigvocab.storage import paths
from bigvocab.storage.file_identity import FileIdentity

_SUFFIXES = tuple(suffix for suffix, form in paths.SUFFIXES.items() if form in ("npy", "arrow", "parquet"))
_SUPPORTED = "an Arrow IPC file or stream, Parquet, or .npy"

# (names of columns, start, stop) -> (first row, record batch): all with rows in the range, and perhaps more
_Batches = Callable[[list[str], int, int], Iterator[tuple[int, pa.RecordBatch]]]
_Opened = tuple[pa.Schema, int, _Batches]  # what an opener finds: schema, number of rows, batches


class LabelPart(NamedTuple):
    """One file, or the one array in memory."""

    path: str
    format: str
    schema: pa.Schema
    num_rows: int
    batches: _Batches
    num_bytes: int
    identity: FileIdentity | None = None  # None in memory

    def columns(self) -> list[tuple[str, str]]:
        """Name and type of every column."""
        return [(field.name, str(field.type)) for field in self.schema]

    def check(self) -> None:
        """Refuse a file that has changed: its mapped pages may be gone, and touching those kills the process."""
        if self.identity is None:
            return
        try:
            now = FileIdentity.of(os.stat(self.path))
        except OSError as error:
            raise FormatError(f"{self.path}: vanished while it was read: {error.strerror}") from error
        if now != self.identity:
            sizes = f"{self.identity.size} bytes before, {now.size} now"
            raise FormatError(f"{self.path}: changed while it was read ({sizes})")


@contextlib.contextmanager
def reading(path: str, form: str) -> Iterator[None]:
    """Whatever a reader throws at a bad file becomes one FormatError."""
    try:
        yield
    except (pa.ArrowException, OSError, MemoryError, OverflowError, UnicodeDecodeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FormatError(f"{path}: truncated or corrupt {form}: {reason}") from error


def overlapping(counts: list[int], start: int, stop: int) -> Iterator[tuple[int, int]]:
    """(index, first row) of the chunks of `counts` rows each that have rows in the range."""
    rows = itertools.accumulate(counts, initial=0)
    return ((i, row) for i, (row, n) in enumerate(zip(rows, counts, strict=False)) if row < stop and row + n > start)


def _open_parquet(path: str, form: str) -> _Opened:
    with pa.OSFile(os.fsencode(path)) as file, pq.ParquetFile(file) as parquet:
        schema, metadata = parquet.schema_arrow, parquet.metadata
    counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    if min(counts, default=0) < 0 or sum(counts) != metadata.num_rows:
        raise FormatError(f"{path}: corrupt Parquet: {metadata.num_rows} rows, but its row groups have {sum(counts)}")

    def batches(names: list[str], start: int, stop: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        groups = list(overlapping(counts, start, stop))
        row = groups[0][1] if groups else 0
        # not mapped, so that a file cut short is an error; buffered, so that a column chunk is never held whole
        with (
            pa.OSFile(os.fsencode(path)) as file,
            pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False) as parquet,
        ):
            rows = _columns.decoded_rows(schema.field(names[0]).type)
            for batch in parquet.iter_batches(rows, [i for i, _ in groups], names, use_threads=False):
                if row >= stop:
                    break
                yield row, batch.select(names)
                row += len(batch)

    return schema, metadata.num_rows, batches


def _open_ipc(path: str, form: str) -> _Opened:
    stream = _ipc_stream(path, form)
    # without fields nothing is decompressed: only the metadata of each message is read
    messages = (m for m in pa.ipc.MessageReader.open_stream(stream) if m.type == "record batch")
    counts = [pa.ipc.read_record_batch(message, pa.schema([])).num_rows for message in messages]
    if form == "Arrow IPC stream":
        end = stream.tell()
        refuse_second(path, stream.read(len(STREAM_START)), end, STREAM_START, "stream")
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
        for batch in pa.ipc.open_stream(_ipc_stream(path, form), options=options):
            if row >= stop:
                break
            yield row, batch.select(names)
            row += len(batch)

    return schema, sum(counts), batches


def _ipc_stream(path: str, form: str) -> pa.BufferReader:
    """The mapped stream; in a file it lies between magic and footer (the file reader would copy whole batches)."""
    with pa.memory_map(os.fsencode(path)) as source:
        whole = source.read_buffer()
    if form == "Arrow IPC file":
        footer = int.from_bytes(whole[-10:-6].to_pybytes(), "little")
        whole = whole[8 : max(8, whole.size - 10 - footer)]
    return pa.BufferReader(whole)


def _open_npy(path: str, form: str) -> _Opened:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about headers written by Python 2, and sizes that overflow in lying ones
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy evaluates the header as Python: a bad one raises almost anything
        if "Python objects" in str(error):
            raise FormatError(f"{path}: holds pickled Python objects, which are refused; expected integers") from None
        raise FormatError(f"{path}: truncated or corrupt .npy: {reason_of(error)}") from error
    if isinstance(array, np.memmap):
        end = array.offset + array.nbytes
        with open(path, "rb") as file:
            file.seek(end)
            refuse_second(path, file.read(len(MAGIC_PREFIX)), end, MAGIC_PREFIX, "array")
    return _open_array(array, path)


def _open_array(array: np.ndarray, path: str) -> _Opened:
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{path}: expected a plain array, got a masked one; fill it with a value for ignore_index")
    if array.ndim not in (1, 2):
        raise BigvocabError(f"{path}: expected labels of shape (N,), (N, T) or (N, V), got shape {array.shape}")
    if array.dtype == np.dtype("V2"):
        array = array.view(ml_dtypes.bfloat16)
    dtype = np.dtype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array.dtype.newbyteorder("=")
    try:
        value_type = pa.from_numpy_dtype(dtype)
    except pa.ArrowException as error:
        raise BigvocabError(f"{path}: expected integers, got {array.dtype}") from error
    kind = value_type if array.ndim == 1 else pa.list_(value_type, array.shape[1])
    schema = pa.schema([("labels", kind)])

    def batches(names: list[str], start: int, stop: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        step = _columns.batch_rows(len(array), array.nbytes)
        for row in range(start, stop, step):
            rows = np.ascontiguousarray(array[row : min(row + step, stop)], dtype)
            column = pa.Array.from_buffers(value_type, rows.size, [None, pa.py_buffer(rows)])
            if array.ndim == 2:
                column = pa.Array.from_buffers(kind, len(rows), [None], children=[column])
            yield row, pa.record_batch([column], schema=schema)

    return schema, len(array), batches


def _open_table(table: pa.Table) -> _Opened:
    def batches(names: list[str], start: int, stop: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        row = start
        for batch in table.slice(start, stop - start).select(names).to_batches():
            yield row, batch
            row += len(batch)

    return table.schema, table.num_rows, batches


_OPENERS = {
    b"ARROW1": ("Arrow IPC file", _open_ipc),
    STREAM_START: ("Arrow IPC stream", _open_ipc),
    b"PAR1": ("Parquet", _open_parquet),
    MAGIC_PREFIX: (".npy", _open_npy),
}


def _open_file(path: str) -> LabelPart:
    try:
        if not os.path.isfile(path) and os.path.exists(path) and not os.path.isdir(path):
            raise BigvocabError(f"{path}: not a regular file, so it cannot be read in parts; expected {_SUPPORTED}")
        with open(path, "rb") as file:
            head, stat = file.read(8), os.fstat(file.fileno())
    except OSError as error:
        raise BigvocabError(f"{path}: cannot be read: {error.strerror}") from error
    if not head:
        raise FormatError(f"{path}: the file is empty; expected {_SUPPORTED}")
    for magic, (form, opener) in _OPENERS.items():
        if head.startswith(magic):
            with reading(path, form):
                part = LabelPart(path, form, *opener(path, form), stat.st_size, FileIdentity.of(stat))
                part.columns()  # names that are no text fail here
                return part
    raise FormatError(f"{path}: begins with {head!r}; expected {_SUPPORTED}")


def _find_files(path: Any) -> tuple[list[str], str | None]:
    """The files that a path, glob or folder means, in natural order, and the column named behind `::`."""
    text, column = paths.split_selector(os.fsdecode(path))
    if not text or "\0" in text:
        raise BigvocabError(Keyword("labels"), f": expected the name of a file, got {text!r}")
    if os.path.isdir(text):
        found = [f for f in glob.glob(os.path.join(glob.escape(text), "[!._]*")) if f.lower().endswith(_SUFFIXES)]
    elif os.path.exists(text) or not glob.has_magic(text):
        return [text], column
    else:
        found = glob.glob(text, recursive=True)
    found = [name for name in found if os.path.isfile(name) or os.path.islink(name) and not os.path.isdir(name)]
    if not found:
        paths.check_listing(text)
        raise BigvocabError(f"{text}: no file of labels there (in a folder: {', '.join(_SUFFIXES)})")
    return sorted(found, key=paths.natural_key), column


def open_source(source: Any) -> tuple[list[LabelPart], str | None]:
    """The parts of whatever was given for labels, and the column named behind `::`."""
    if isinstance(source, np.ndarray):
        return [LabelPart("labels", "array", *_open_array(source, "labels"), source.nbytes)], None
    with reading("labels", "table"):
        if isinstance(source, pa.Array | pa.ChunkedArray):
            source = pa.table({"labels": source})
        if isinstance(source, pa.RecordBatch):
            source = pa.Table.from_batches([source])
        if isinstance(source, pa.Table):
            return [LabelPart("labels", "table", *_open_table(source), source.get_total_buffer_size())], None
    given = source if isinstance(source, list | tuple) else [source]
    if not all(isinstance(path, str | os.PathLike) for path in given):
        kind = type(source).__name__
        raise TypeError(f"labels: expected a path, a list of paths, an ndarray or pyarrow data, got {kind}")
    if not given:
        raise BigvocabError(Keyword("labels"), ": expected at least one path, got an empty list")
    found = [_find_files(path) for path in given]
    columns = {column for _, column in found}
    if len(columns) > 1:
        raise BigvocabError(Keyword("labels"), f": expected one column for all files, got {sorted(map(str, columns))}")
    return [_open_file(name) for names, _ in found for name in names], columns.pop()
