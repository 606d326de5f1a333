"""read_labels: Arrow, Parquet, .npy and arrays in memory become a stream of label batches of bounded size.

A `_Part` is one file (or the one array in memory): its schema and exact number of rows, known without reading data, and
a function that yields record batches of a range of its rows. `Labels` puts parts one behind the other, cuts and gathers
their record batches to a good size, and has `columns` turn them into NumPy arrays.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import operator
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bigvocab import columns as _columns
from bigvocab.errors import BigvocabError, FormatError
from bigvocab.formats import paths

_SUFFIXES = tuple(suffix for suffix, form in paths.SUFFIXES.items() if form in ("npy", "arrow", "parquet"))
_SUPPORTED = "an Arrow IPC file or stream, Parquet, or .npy"


@dataclass(eq=False)
class LabelBatch:
    """Labels of consecutive rows, with what goes with them; `first_row` counts from the start of all files."""

    first_row: int
    labels: Any  # int64 (n,) | (offsets int64 (n + 1,), ids int64), offsets from 0 | float32 or float64 (n, V)
    probabilities: np.ndarray | None = None  # float64, one for each id, for kind "sparse"
    ignored: np.ndarray | None = None  # bool (n,): the label is null; None where no label is
    weights: np.ndarray | None = None  # float64 (n,)
    groups: tuple[np.ndarray, list[str]] | None = None  # int32 codes (n,) and their names
    num_bytes: np.ndarray | None = None  # int64 (n,)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.labels[0]) - 1 if isinstance(self.labels, tuple) else len(self.labels)


# (names of columns, start, stop) -> (first row, record batch): all with rows in the range, and perhaps more
_Batches = Callable[[list[str], int, int], Iterator[tuple[int, pa.RecordBatch]]]
_Opened = tuple[pa.Schema, int, _Batches]  # what an opener finds: schema, number of rows, batches


class _Part(NamedTuple):
    path: str
    format: str
    schema: pa.Schema
    num_rows: int
    batches: _Batches
    num_bytes: int
    stamp: tuple[int, int] | None = None  # size and time of change; None in memory

    def columns(self) -> list[tuple[str, str]]:
        return [(field.name, str(field.type)) for field in self.schema]

    def check(self) -> None:
        """Refuse a file that has changed: its mapped pages may be gone, and touching those kills the process."""
        if self.stamp is None:
            return
        try:
            stamp = _stamp(os.stat(self.path))
        except OSError as error:
            raise FormatError(f"{self.path}: vanished while it was read: {error.strerror}") from error
        if stamp != self.stamp:
            raise FormatError(f"{self.path}: changed while it was read ({self.stamp[0]} bytes before, {stamp[0]} now)")


def _stamp(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_size, stat.st_mtime_ns


@contextlib.contextmanager
def _reading(path: str, form: str) -> Iterator[None]:
    """Whatever a reader throws at a bad file becomes one FormatError."""
    try:
        yield
    except (pa.ArrowException, OSError, MemoryError, OverflowError, UnicodeDecodeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FormatError(f"{path}: truncated or corrupt {form}: {reason}") from error


def _overlapping(counts: list[int], start: int, stop: int) -> Iterator[tuple[int, int]]:
    """(index, first row) of the chunks of `counts` rows each that have rows in the range."""
    rows = itertools.accumulate(counts, initial=0)
    return ((i, row) for i, (row, n) in enumerate(zip(rows, counts, strict=False)) if row < stop and row + n > start)


def _open_parquet(path: str, form: str) -> _Opened:
    with pa.OSFile(path) as file, pq.ParquetFile(file) as parquet:
        schema, metadata = parquet.schema_arrow, parquet.metadata
    counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    if min(counts, default=0) < 0 or sum(counts) != metadata.num_rows:
        raise FormatError(f"{path}: corrupt Parquet: {metadata.num_rows} rows, but its row groups have {sum(counts)}")

    def batches(names: list[str], start: int, stop: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        groups = list(_overlapping(counts, start, stop))
        row = groups[0][1] if groups else 0
        # not mapped, so that a file cut short is an error; buffered, so that a column chunk is never held whole
        with pa.OSFile(path) as file, pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False) as parquet:
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
    stream.seek(0)
    schema = pa.ipc.open_stream(stream).schema
    promised = pa.ipc.open_file(pa.memory_map(path)).num_record_batches if form == "Arrow IPC file" else len(counts)
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
    with pa.memory_map(path) as source:
        whole = source.read_buffer()
    if form == "Arrow IPC file":
        footer = int.from_bytes(whole[-10:-6].to_pybytes(), "little")
        whole = whole[8 : max(8, whole.size - 10 - footer)]
    return pa.BufferReader(whole)


def _open_npy(path: str, form: str) -> _Opened:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy evaluates the header as Python: a bad one raises almost anything
        if "Python objects" in str(error):
            raise FormatError(f"{path}: holds pickled Python objects, which are refused; expected integers") from None
        raise FormatError(f"{path}: truncated or corrupt .npy: {str(error).splitlines()[0]}") from error
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
    b"\xff\xff\xff\xff": ("Arrow IPC stream", _open_ipc),
    b"PAR1": ("Parquet", _open_parquet),
    b"\x93NUMPY": (".npy", _open_npy),
}


def _open_file(path: str) -> _Part:
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
            with _reading(path, form):
                part = _Part(path, form, *opener(path, form), stat.st_size, _stamp(stat))
                part.columns()  # names that are no text fail here
                return part
    raise FormatError(f"{path}: begins with {head!r}; expected {_SUPPORTED}")


def _find_files(path: Any) -> tuple[list[str], str | None]:
    """The files that a path, glob or folder means, in natural order, and the column named behind `::`."""
    text, column = paths.split_selector(os.fsdecode(path))
    if not text or "\0" in text:
        raise BigvocabError(f"labels: expected the name of a file, got {text!r}")
    if os.path.isdir(text):
        found = [f for f in glob.glob(os.path.join(glob.escape(text), "[!._]*")) if f.lower().endswith(_SUFFIXES)]
    elif os.path.exists(text) or not glob.has_magic(text):
        return [text], column
    else:
        found = glob.glob(text, recursive=True)
    found = [name for name in found if os.path.isfile(name) or os.path.islink(name) and not os.path.isdir(name)]
    if not found:
        raise BigvocabError(f"{text}: no file of labels there (in a folder: {', '.join(_SUFFIXES)})")
    return sorted(found, key=paths.natural_key), column


def open_source(source: Any) -> tuple[list[_Part], str | None]:
    """The parts of whatever was given for labels, and the column named behind `::`."""
    if isinstance(source, np.ndarray):
        return [_Part("labels", "array", *_open_array(source, "labels"), source.nbytes)], None
    with _reading("labels", "table"):
        if isinstance(source, pa.Array | pa.ChunkedArray):
            source = pa.table({"labels": source})
        if isinstance(source, pa.RecordBatch):
            source = pa.Table.from_batches([source])
        if isinstance(source, pa.Table):
            return [_Part("labels", "table", *_open_table(source), source.get_total_buffer_size())], None
    given = source if isinstance(source, list | tuple) else [source]
    if not all(isinstance(path, str | os.PathLike) for path in given):
        kind = type(source).__name__
        raise TypeError(f"labels: expected a path, a list of paths, an ndarray or pyarrow data, got {kind}")
    if not given:
        raise BigvocabError("labels: expected at least one path, got an empty list")
    found = [_find_files(path) for path in given]
    columns = {column for _, column in found}
    if len(columns) > 1:
        raise BigvocabError(f"labels: expected one column for all files, got {sorted(map(str, columns))}")
    return [_open_file(name) for names, _ in found for name in names], columns.pop()


class Labels:
    """Label batches of files or arrays; iterate over it, as often as you like, or over `batches(start, stop)`.

    Attributes: `path`, `num_rows`, `kind` ("id", "list", "dense" or "sparse"), `dtype`, `num_classes` (of kind "dense",
    else None), `columns` (name and type of every column of the file), `files` (dicts of path, shape, dtype and bytes).
    """

    def __init__(self, source: Any, options: dict[str, str | None]):
        self._source, self._options = source, options
        self._parts, named = open_source(source)
        if named is not None and options["label"] not in (None, named):
            raise BigvocabError(f"label_column: got {options['label']!r}, but the path names {named!r}")
        options = {**options, "label": named or options["label"]}
        first = self._parts[0]
        self.chosen = _columns.choose_columns(first.schema, first.path, **options)
        self.kind, self.dtype, self.num_classes = self.chosen[:3]
        for part in self._parts[1:]:
            chosen = _columns.choose_columns(part.schema, part.path, **{**options, "label": self.chosen.label})
            if chosen != self.chosen:
                types = [p.schema.field(chosen.label).type for p in (part, first)]
                raise BigvocabError(f"{part.path}: expected labels of {types[1]}, as in {first.path}, got {types[0]}")
        self.path = first.path + (f" and {len(self._parts) - 1} more" if len(self._parts) > 1 else "")
        self.num_rows = sum(part.num_rows for part in self._parts)
        self.columns = first.columns()
        self.files = [
            {"path": part.path, **self._shape_and_type(part), "bytes": part.num_bytes} for part in self._parts
        ]

    @property
    def paths(self) -> list[str]:
        """The files that are read; none for labels in memory."""
        return [part.path for part in self._parts if part.stamp is not None]

    def _shape_and_type(self, part: _Part) -> dict[str, Any]:
        """{shape, dtype} of the labels of a part: lists of one size are (N, T), others (N,)."""
        shape, dtype = _columns.shape_and_type(part.schema.field(self.chosen.label).type)
        return {"shape": [part.num_rows, *shape], "dtype": dtype}

    def __reduce__(self) -> tuple[Any, ...]:
        """Files travel by absolute path and are opened anew; arrays travel whole."""
        source = [os.path.abspath(part.path) for part in self._parts] if self._parts[0].stamp else self._source
        return Labels, (source, {**self._options, "label": self.chosen.label})

    def __iter__(self) -> Iterator[LabelBatch]:
        return self.batches()

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[LabelBatch]:
        """Label batches of the rows from `start` to before `stop` only; chunks of the files outside are skipped."""
        start, stop = operator.index(start), self.num_rows if stop is None else operator.index(stop)
        if not 0 <= start <= stop <= self.num_rows:
            raise BigvocabError(f"labels: expected a range within {self.num_rows} rows, got {start} to {stop}")
        return self._batches(start, stop)

    def _batches(self, start: int, stop: int) -> Iterator[LabelBatch]:
        for i, origin in _overlapping([part.num_rows for part in self._parts], start, stop):
            part = self._parts[i]
            row, end = max(start, origin), min(stop, origin + part.num_rows)
            for arrays in _columns.gathered(self._pieces(part, origin, row, end)):
                yield self._convert(part, arrays, row)
                row += len(arrays[0])
            if row != end:
                raise FormatError(f"{part.path}: expected {part.num_rows} rows, as promised, got {row - origin}")

    def _pieces(self, part: _Part, origin: int, start: int, stop: int) -> Iterator[list[pa.Array]]:
        """The columns of rows `start` to `stop` of all, checked and cut to a good size."""
        part.check()
        with _reading(part.path, part.format):
            for first, batch in part.batches(self.chosen.names, start - origin, stop - origin):
                row, end = max(start, origin + first), min(stop, origin + first + len(batch))
                if row >= end:
                    continue
                arrays = [
                    _columns.cut(column, row - origin - first, end - row, f"{part.path}: column {name!r}", row)
                    for name, column in zip(self.chosen.names, batch.columns, strict=True)
                ]
                step = _columns.batch_rows(end - row, arrays[0].nbytes)
                for at in range(0, end - row, step):
                    yield [_columns.plain(array.slice(at, step)) for array in arrays]
                    part.check()  # before a page is touched again

    def _convert(self, part: _Part, arrays: list[pa.Array], row: int) -> LabelBatch:
        """Arrow to NumPy: the one place where the roles of the columns come together."""
        chosen, by_name = self.chosen, dict(zip(self.chosen.names, arrays, strict=True))

        def asked(name: str) -> tuple[pa.Array, str]:
            return by_name[name], f"{part.path}: column {name!r}"

        with _reading(part.path, part.format):
            to_numpy = {"id": _columns.ids, "dense": _columns.dense}.get(self.kind, _columns.id_lists)
            labels, ignored = to_numpy(*asked(chosen.label), row)
            batch = LabelBatch(row, labels, ignored=ignored)
            if chosen.probability is not None:
                array, where = asked(chosen.probability)
                batch.probabilities = _columns.probabilities(array, labels[0], ignored, where, row)
            if chosen.weight is not None:
                batch.weights = _columns.weights(*asked(chosen.weight), ignored, row)
            if chosen.group is not None:
                batch.groups = _columns.groups(by_name[chosen.group])
            if chosen.num_bytes is not None:
                batch.num_bytes = _columns.num_bytes(*asked(chosen.num_bytes), ignored, row)
            return batch


def read_labels(
    path: Any,
    *,
    label_column: str | None = None,
    weight_column: str | None = None,
    group_column: str | None = None,
    bytes_column: str | None = None,
    probability_column: str | None = None,
) -> Labels:
    """Read labels, in batches, from Arrow, Parquet or .npy files or from an array or table in memory.

    A column of integers is one label a row; of integer lists, several; of fixed-size lists of floats, soft labels; of
    integer lists with `probability_column` beside it, sparse soft labels. A null label is an ignored row. Only metadata
    is read before the result is iterated over, and the whole file is never in memory.

    Args:
        path: a file, glob, folder (files in natural order, rows one behind the other) or list of these; `file::column`
            names the label column; or an ndarray (N,) or (N, T) of ints or (N, V) of floats, or pyarrow data.
        label_column: by default the column called label or labels, or else the only one whose type fits.
        weight_column: numbers, finite.
        group_column: strings, integers or booleans; null is the group "(null)".
        bytes_column: bytes of text behind each label, >= 0, for bits per byte.
        probability_column: lists of numbers >= 0, as long as the lists of ids.

    Raises:
        FormatError: a file is of no supported format, truncated, corrupt, or changes while it is read.
        BigvocabError: no such file or column, a column of the wrong type, several that could be meant, or a bad value.
        TypeError: `path` is none of the above.

    Example:
        >>> import numpy as np
        >>> import bigvocab as bv
        >>> labels = bv.read_labels(np.array([3, 1, 4]))
        >>> labels.kind, labels.num_rows, [batch.labels.tolist() for batch in labels]
        ('id', 3, [[3, 1, 4]])
    """
    options = {
        "label": label_column,
        "weight": weight_column,
        "group": group_column,
        "num_bytes": bytes_column,
        "probability": probability_column,
    }
    for role, name in options.items():
        if not isinstance(name, str | None):
            option = {"num_bytes": "bytes"}.get(role, role)
            raise TypeError(f"{option}_column: expected the name of a column, got {name!r}")
    return Labels(path, options)
