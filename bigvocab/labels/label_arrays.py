"""Labels that are arrays, in memory or in a file that is mapped, and tables in memory: as batches of their rows."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow as pa

from bigvocab.errors import BigvocabError, FormatError
from bigvocab.formats import read_array
from bigvocab.labels import columns as _columns
from bigvocab.storage import paths
from bigvocab.storage.mapped import MappedFile
from bigvocab.storage.remote import RemoteFile
from bigvocab.storage.spool import filled

_MOST_KEPT = 16 << 20
MOST_FETCHED = 64 << 20  # bytes of an array in a store that is held in memory

# (names of columns, start, stop) -> (first row, record batch): all with rows in the range, and perhaps more
Batches = Callable[[list[str], int, int], Iterator[tuple[int, pa.RecordBatch]]]
Opened = tuple[pa.Schema, int, Batches]  # what an opener finds: schema, number of rows, batches


def open_mapped(path: str, column: str | None) -> Opened:
    """An array of any integer or float type in a file that is mapped."""
    source = paths.Source(path, path, column)
    file = MappedFile(source)
    array = read_array(file)
    opened = open_array(array.view(file), path, column or "labels")
    if file.size > _MOST_KEPT:
        return opened
    # The map of a small file is not kept: there may be ten thousand.
    schema, rows, _ = opened

    def batches(names: list[str], start: int, stop: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        again = MappedFile(source)
        copy = read_array(again).view(again)[start:stop].copy()
        for first, batch in open_array(copy, path, column or "labels")[2](names, 0, len(copy)):
            yield start + first, batch

    return schema, rows, batches


def open_stored(file: RemoteFile) -> Opened:
    """An array of any integer or float type in an object of a store, fetched to memory."""
    name = file.selector or "labels"
    if file.suffix == ".npy" and file.selector is not None:
        file.selector = None  # the name of its one column
    with _npy(file.shown) if file.suffix == ".npy" else contextlib.nullcontext():
        array = read_array(file)
        count = math.prod(array.shape) * array.dtype.itemsize
        order: Any = "F" if array.fortran else "C"
        raw = _bytes_of(file, array.offset, count)
        return open_array(np.ndarray(array.shape, array.dtype, raw, order=order), file.shown, name)


def _bytes_of(file: RemoteFile, start: int, count: int) -> Any:
    """Bytes of an object: in memory, or of a large array, such as soft labels, in a local file that is mapped."""
    if count <= MOST_FETCHED:
        return file.content(start, start + count)
    local = MappedFile(paths.Source(filled(file.path, start, start + count, newest=True), file.shown, None))
    return np.frombuffer(local.buffer, np.uint8, count, start)


def open_npy(path: str) -> Opened:
    """An array in a .npy file; whatever is wrong with it says what the file is."""
    with _npy(path):
        return open_mapped(path, None)


@contextlib.contextmanager
def _npy(path: str) -> Iterator[None]:
    try:
        yield
    except FormatError as error:
        reason = (
            str(error).removeprefix(f"{path}: ").removeprefix("not a valid .npy header: ").removeprefix("truncated: ")
        )
        if reason.startswith(("a second", "holds pickled")):
            raise
        reason = reason.removeprefix("not a valid .npy header: ").removeprefix("truncated: ")
        raise FormatError(f"{path}: truncated or corrupt .npy: {reason}") from error


def open_array(array: np.ndarray, path: str, name: str = "labels") -> Opened:
    """An array of one or two dimensions, as a column of this name: of numbers, or of lists of one width."""
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
    schema = pa.schema([(name, kind)])

    def batches(names: list[str], start: int, stop: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        step = _columns.batch_rows(len(array), array.nbytes)
        for row in range(start, stop, step):
            rows = np.ascontiguousarray(array[row : min(row + step, stop)], dtype)
            column = pa.Array.from_buffers(value_type, rows.size, [None, pa.py_buffer(rows)])
            if array.ndim == 2:
                column = pa.Array.from_buffers(kind, len(rows), [None], children=[column])
            yield row, pa.record_batch([column], schema=schema)

    return schema, len(array), batches


def open_table(table: pa.Table) -> Opened:
    """Its schema, the number of its rows, and its batches."""

    def batches(names: list[str], start: int, stop: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        row = start
        for batch in table.slice(start, stop - start).select(names).to_batches():
            yield row, batch
            row += len(batch)

    return table.schema, table.num_rows, batches
