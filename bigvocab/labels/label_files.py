"""Files of labels, and arrays in memory, as parts: Arrow IPC, Parquet, text, archives, tables.

A part has a schema and an exact number of rows, known without reading data, and a function that yields record batches
of a range of its rows.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bigvocab.errors import BigvocabError, FormatError, Keyword
from bigvocab.formats import magic, refuse_header
from bigvocab.labels import columns as _columns
from bigvocab.labels.ipc_files import open_ipc
from bigvocab.labels.label_arrays import Batches, Opened, open_array, open_mapped, open_npy, open_stored, open_table
from bigvocab.labels.tables import as_table_source
from bigvocab.labels.text_files import TEXT_SUFFIXES, open_text, text_kind
from bigvocab.storage import paths, uris
from bigvocab.storage.file_identity import FileIdentity
from bigvocab.storage.folders import partitions
from bigvocab.storage.mapped import MappedFile
from bigvocab.storage.remote import RemoteFile, at_once, remember, whole_uri
from bigvocab.storage.spool import as_local

_KINDS = paths.Kinds(
    (
        tuple(suffix for suffix, form in paths.SUFFIXES.items() if form in ("npy", "arrow", "parquet")),
        (*TEXT_SUFFIXES, ".npz", ".pt", ".pth", ".safetensors"),
    ),
    partitions=True,
)
_SUPPORTED = "an Arrow IPC file or stream, Parquet, or .npy; by name also .csv, .tsv, .jsonl, .npz, .pt, .safetensors"


class LabelPart(NamedTuple):
    """One file, or the one array in memory."""

    path: str
    format: str
    schema: pa.Schema
    num_rows: int
    batches: Batches
    num_bytes: int
    identity: FileIdentity | None = None  # None in memory
    selector: str | None = None  # the array of an archive

    @property
    def source(self) -> str:
        """What opens it again, in any folder."""
        path = whole_uri(uris.absolute(self.path))
        return path if self.selector is None else f"{path}::{self.selector}"

    @property
    def holds_columns(self) -> bool:
        """Whether it is a table, whose columns of floats may hold labels; of an array that would be a mistake."""
        return self.format in _TABLES

    def columns(self) -> list[tuple[str, str]]:
        """Name and type of every column."""
        return [(field.name, str(field.type)) for field in self.schema]

    def check(self) -> None:
        """Raise FormatError if the file has changed since it was opened."""
        if self.identity is not None and not uris.is_remote(self.path):  # whose copy nobody changes
            self.identity.check(self.path)


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


def _open_parquet(path: str, form: str) -> Opened:
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


_OPENERS = {
    magic.ARROW_FILE: ("Arrow IPC file", open_ipc),
    magic.ARROW_STREAM: ("Arrow IPC stream", open_ipc),
    magic.PARQUET: ("Parquet", _open_parquet),
}
_TABLES = {form for form, _ in _OPENERS.values()} | {"csv", "tsv", "jsonl", "table"}
_ARRAYS = {".npz", ".pt", ".pth", ".safetensors"}


def _open_file(path: str, column: str | None) -> LabelPart:
    if uris.is_remote(path):
        return _of_copy(path, lambda local: _open_file(local, column))
    path = uris.plain(path)
    try:
        if not os.path.isfile(path) and os.path.exists(path) and not os.path.isdir(path):
            raise BigvocabError(f"{path}: not a regular file, so it cannot be read in parts; expected {_SUPPORTED}")
        with open(path, "rb") as file:
            head, stat = file.read(32), os.fstat(file.fileno())
    except OSError as error:
        raise BigvocabError(f"{path}: cannot be read: {error.strerror}") from error
    if not head:
        raise FormatError(f"{path}: the file is empty; expected {_SUPPORTED}")
    if head.startswith(magic.GIT_LFS):
        raise FormatError(f"{path}: {paths.LFS_ADVICE}")
    form, selector = _form(path, head), None
    with reading(path, form):
        if form == ".npy":
            opened = open_npy(path)
        elif form in _ARRAYS:
            opened, selector = open_mapped(path, column), column
        elif form in ("csv", "tsv", "jsonl"):
            opened = open_text(path, form)
        else:
            opened = next(opener for start, (_, opener) in _OPENERS.items() if head.startswith(start))(path, form)
        opened = _with_partitions(path, opened)
        part = LabelPart(path, form, *opened, stat.st_size, FileIdentity.of(stat), selector)
        part.columns()  # names that are no text fail here
        return part


def _of_copy(uri: str, open_it: Callable[[str], LabelPart]) -> LabelPart:
    """Labels in a store: small, so they are read whole, and kept in a local file, which is opened."""
    name = remember(uri)
    with as_local(uri) as local:
        part = open_it(local)
    opened = _with_partitions(uris.path_of(uri), (part.schema, part.num_rows, part.batches))
    part = part._replace(schema=opened[0], batches=opened[2])
    return part._replace(path=name, batches=_renamed(part.batches, local, name))


def _renamed(batches: Batches, local: str, name: str) -> Batches:
    """Batches whose errors call the local copy by the name of what it is a copy of."""

    def named(names: list[str], start: int, stop: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        try:
            yield from batches(names, start, stop)
        except BigvocabError as error:
            raise error.renamed(local, name) from error

    return named


def _form(path: str, head: bytes) -> str:
    """The format of a file by its first bytes, else by its name: text and archives are not known by theirs."""
    for start, (form, _) in _OPENERS.items():
        if head.startswith(start):
            return form
    if head.startswith(magic.NPY):
        return ".npy"
    suffix = os.path.splitext(path)[1].lower()
    form = suffix if suffix in _ARRAYS else text_kind(path) or ""
    if not form:
        raise FormatError(f"{path}: begins with {head[:8]!r}; expected {_SUPPORTED}")
    return form


def _with_partitions(path: str, opened: Opened) -> Opened:
    """What the folders of a file say of all its rows (book=Ruth) as columns of text after its own."""
    schema, rows, batches = opened
    values = {name: value for name, value in partitions(path).items() if name not in schema.names}
    if not values:
        return opened

    def with_values(names: list[str], start: int, stop: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        for first, batch in batches([name for name in names if name not in values], start, stop):
            columns = [
                pa.repeat(pa.scalar(values[name], pa.string()), len(batch)) if name in values else batch.column(name)
                for name in names
            ]
            yield first, pa.record_batch(columns, names=names)

    for name in values:
        schema = schema.append(pa.field(name, pa.string()))
    return schema, rows, with_values


def _find_files(path: Any) -> tuple[list[str], str | None]:
    """The files that a path, glob or folder means, in natural order, and the column named after `::`."""
    text, column = paths.split_selector(os.fsdecode(path))
    if not text or "\0" in text:
        raise BigvocabError(Keyword("labels"), f": expected the name of a file, got {text!r}")
    if uris.is_remote(text):
        return paths.uri_files(text, _KINDS), column
    return paths.files_of(text, _KINDS), column


def _open_raw(path: str, dtype: np.dtype) -> LabelPart:
    """A file of integers and nothing else."""
    if uris.is_remote(path):
        return _of_copy(path, lambda local: _open_raw(local, dtype))
    file = MappedFile(paths.Source(path, path, None))
    refuse_header(file, "label_dtype", "")
    if file.size % dtype.itemsize or not file.size:
        raise FormatError(f"{path}: {file.size} bytes, expected a whole number of labels of {dtype.itemsize} bytes")
    array: np.ndarray = np.ndarray((file.size // dtype.itemsize,), dtype, file.buffer)
    stat = os.stat(path)
    return LabelPart(path, "raw", *open_array(array, path), stat.st_size, FileIdentity.of(stat))


def _label_dtype(name: Any) -> np.dtype:
    """The type of labels in raw files."""
    if not isinstance(name, str):
        raise TypeError(f"label_dtype: expected the name of a type, got {name!r}")
    try:
        dtype = np.dtype(name)
    except TypeError:
        dtype = None
    if dtype is None or dtype.kind not in "iu":
        raise BigvocabError(Keyword("label_dtype"), f": got {name!r}, expected an integer type such as uint16 or <i8")
    return dtype


def open_source(source: Any, raw: str | None = None) -> tuple[list[LabelPart], str | None]:
    """The parts of whatever was given for labels, and the column named after `::`; files are `raw` of this type."""
    if raw is not None:
        given = source if isinstance(source, list | tuple) else [source]
        dtype = _label_dtype(raw)
        if not given or not all(isinstance(path, str | os.PathLike) for path in given):
            raise BigvocabError(Keyword("label_dtype"), ": is for raw files of labels, expected their paths")
        named = [file.path for path in given for file in paths.expand(path, raw=True)]
        return [_open_raw(name, dtype) for name in named], None
    with reading("labels", "table"):
        source = as_table_source(source, "labels")
    if isinstance(source, np.ndarray):
        return [LabelPart("labels", "array", *open_array(source, "labels"), source.nbytes)], None
    with reading("labels", "table"):
        if isinstance(source, pa.Array | pa.ChunkedArray):
            source = pa.table({"labels": source})
        if isinstance(source, pa.RecordBatch):
            source = pa.Table.from_batches([source])
        if isinstance(source, pa.Table):
            return [LabelPart("labels", "table", *open_table(source), source.get_total_buffer_size())], None
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
    column = columns.pop()
    return _open_all([name for names, _ in found for name in names], column), column


def _open_all(names: list[str], column: str | None) -> list[LabelPart]:
    """The files of labels; arrays in stores many at a time, because each takes its requests."""
    stored = [name for name in names if _is_stored_array(name)]
    arrays = iter(at_once(lambda name: _open_stored_array(name, column), stored))
    return [next(arrays) if _is_stored_array(name) else _open_file(name, column) for name in names]


def _is_stored_array(name: str) -> bool:
    return uris.is_remote(name) and uris.name_of(name).lower().endswith((".npy", *_ARRAYS))


def _open_stored_array(uri: str, column: str | None) -> LabelPart:
    """An array of labels in a store: its own bytes, in memory, whatever else the object holds."""
    name = remember(uri)
    file = RemoteFile(paths.Source(uri, name, column))
    suffix = file.suffix
    opened, size = open_stored(file), file.size
    file.buffer.forget()  # type: ignore[attr-defined]
    return LabelPart(name, suffix, *opened, size, file.identity, None if suffix == ".npy" else column)
