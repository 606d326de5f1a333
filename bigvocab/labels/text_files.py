"""Labels in .csv, .tsv and .jsonl, also .gz: cut into blocks of whole records, each parsed by pyarrow's reader.

Types come from the first block and hold for the whole file. An index of where each block begins makes any range of rows
readable without those before it; in .gz they are decompressed again.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from bigvocab.errors import FormatError
from bigvocab.labels.column_choice import ODD_ROW

BLOCK = 4 << 20
MOST_RECORD = 64 << 20
_SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
TEXT_SUFFIXES = tuple(suffix + end for suffix in _SUFFIXES for end in ("", ".gz"))
_OWN_PLACES = re.compile(r"^In CSV column #\d+: |Row #\d+: | in row \d+$")  # of pyarrow, in the piece it was given
_BOM = b"\xef\xbb\xbf"


class _Block(NamedTuple):
    """A run of whole records: where it lies in the text, its first row, and how many rows it has."""

    offset: int
    size: int
    first: int
    rows: int


def text_kind(path: str) -> str | None:
    """csv, tsv or jsonl, by the name of the file."""
    return _SUFFIXES.get("." + path.lower().removesuffix(".gz").rpartition(".")[2])


def open_text(path: str, kind: str) -> tuple[pa.Schema, int, Callable[..., Iterator[tuple[int, pa.RecordBatch]]]]:
    """Schema, number of rows and batches of a file of text; it is read once to count, and once more for each pass.

    Raises:
        FormatError: not UTF-8 text of this kind, or a row with another number of fields or a value that does not fit
            the type of its column; it is named.
    """
    table = _Jsonl(path) if kind == "jsonl" else _Csv(path, "\t" if kind == "tsv" else ",")
    return table.schema, table.num_rows, table.batches


class _Text:
    """What both kinds share: blocks, their index, and the search for the row that does not fit."""

    kind: str

    def __init__(self, path: str) -> None:
        self._path = path
        self._begin = 0  # of the records
        self._index: list[_Block] = []
        self.schema = pa.schema([])
        self.num_rows = 0

    def _scan(self) -> None:
        for offset, block in self._blocks():
            if offset == 0:
                block, offset = self._start(block), self._begin
            if rows := self._count(block):
                self._index.append(_Block(offset, len(block), self.num_rows, rows))
                self.num_rows += rows

    def batches(self, names: list[str], start: int, stop: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Batches of these columns that have all rows from `start` to before `stop`, and perhaps more."""
        schema = pa.schema([self.schema.field(name) for name in names])
        with self._opened() as file:
            for block in self._index:
                if block.first >= stop or block.first + block.rows <= start:
                    continue
                file.seek(block.offset)
                table = self._parsed(file.read(block.size), schema, block.first)
                if table.num_rows != block.rows:
                    raise FormatError(f"{self._path}: was written to or replaced while it is read")
                for batch in table.select(names).combine_chunks().to_batches():
                    yield block.first, batch

    # ---- blocks

    def _blocks(self) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) of runs of whole records."""
        with self._opened() as file:
            held, offset = b"", 0
            while chunk := file.read(BLOCK):
                known = len(held)  # no record ends in there
                held += chunk
                if end := self._record_end(held, known):
                    yield offset, held[:end]
                    offset, held = offset + end, held[end:]
                elif len(held) > MOST_RECORD:
                    raise FormatError(f"{self._path}: a record of more than {MOST_RECORD} bytes at byte {offset}")
            if held.strip() or offset == 0:
                yield offset, held

    @contextlib.contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        opened: Any = gzip.open if self._path.lower().endswith(".gz") else open
        try:
            with opened(self._path, "rb") as file:
                yield file
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise FormatError(f"{self._path}: truncated or corrupt gzip: {error}") from error

    def _parsed(self, block: bytes, schema: pa.Schema, first_row: int) -> pa.Table:
        try:
            return self._parse(block, schema)
        except pa.ArrowException as error:
            raise self._fault(block, schema, first_row, error) from error

    def _fault(self, block: bytes, schema: pa.Schema, first_row: int, error: Exception) -> FormatError:
        """The error with the row that it is about: the last of the shortest run of records that cannot be parsed."""
        records = self._records(block) or [block]
        low, high = 1, len(records)
        while low < high:
            middle = (low + high) // 2
            try:
                self._parse(b"".join(records[:middle]), schema)
                low = middle + 1
            except pa.ArrowException:
                high = middle
        try:
            self._parse(records[low - 1], schema)
        except pa.ArrowException as own:
            error = own
        reason = _OWN_PLACES.sub("", str(error).splitlines()[0])[:300]
        return FormatError(f"{self._path}: row {first_row + low - 1}: {reason}")

    # ---- of each kind

    def _start(self, block: bytes) -> bytes:
        """The first block without what comes before the first record; sets the schema."""
        raise NotImplementedError

    def _count(self, block: bytes) -> int:
        raise NotImplementedError

    def _record_end(self, text: bytes, known: int) -> int:
        """Where the last whole record ends; 0 where none does. There is no end before `known`."""
        raise NotImplementedError

    def _records(self, block: bytes) -> list[bytes]:
        raise NotImplementedError

    def _parse(self, block: bytes, schema: pa.Schema) -> pa.Table:
        raise NotImplementedError

    def _without_bom(self, block: bytes) -> bytes:
        if block[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise FormatError(f"{self._path}: UTF-16 text, expected UTF-8")
        self._begin = len(_BOM) if block.startswith(_BOM) else 0
        return block[self._begin :]


class _Csv(_Text):
    """Records of fields between commas or tabs, after one line of names; quoted fields may hold line breaks."""

    def __init__(self, path: str, delimiter: str) -> None:
        super().__init__(path)
        self._delimiter = delimiter
        self._names: list[str] = []
        self._scan()
        if not self._names:
            raise FormatError(f"{path}: no line of names, expected one, such as: label")

    def _start(self, block: bytes) -> bytes:
        block = self._without_bom(block)
        header = next(iter(self._records(block)), b"")
        self._begin += len(header)
        try:
            self._names = self._parse(header, None).schema.names
        except pa.ArrowException as error:
            raise FormatError(f"{self._path}: the line of names: {str(error).splitlines()[0][:300]}") from error
        if all(_is_number(name) for name in self._names):
            raise FormatError(
                f"{self._path}: the first line is {', '.join(self._names[:20])!r:.200}, expected names of columns; put "
                "one above it, such as: label"
            )
        block = block[len(header) :]
        found = self._parsed(block, pa.schema([]), 0) if block.strip() else None
        kinds = [pa.int64()] * len(self._names) if found is None else [field.type for field in found.schema]
        self.schema = _settled(pa.schema(list(zip(self._names, kinds, strict=True))))
        if found is not None:
            self.schema = pa.schema([_with_odd_row(field, found.column(i)) for i, field in enumerate(self.schema)])
        return block

    def _count(self, block: bytes) -> int:
        if not block:
            return 0
        return self._parsed(block, pa.schema([(self._names[0], pa.string())]), self.num_rows).num_rows

    def _record_end(self, text: bytes, known: int) -> int:
        """Behind the last line break that is not within quotes."""
        end = text.rfind(b"\n", known) + 1
        quotes = text.count(b'"', 0, end)
        while end > known:
            if quotes % 2 == 0:
                return end
            before = text.rfind(b"\n", known, end - 1) + 1
            quotes -= text.count(b'"', before, end)
            end = before
        return 0

    def _records(self, block: bytes) -> list[bytes]:
        records, held, quotes = [], [], 0
        for line in block.splitlines(keepends=True):
            held.append(line)
            quotes += line.count(b'"')
            if quotes % 2 == 0:
                records.append(b"".join(held))
                held = []
        return records + ([b"".join(held)] if held else [])

    def _parse(self, block: bytes, schema: pa.Schema | None) -> pa.Table:
        """With a schema, its columns; with an empty one, all of them with the types they seem to have; with None, the
        names that the block begins with.
        """
        from pyarrow import csv

        named = {} if schema is None else {"column_names": self._names}
        names = None if schema is None else schema.names
        return csv.read_csv(
            io.BytesIO(block),
            csv.ReadOptions(use_threads=False, block_size=max(1 << 20, len(block) + 1), **named),
            csv.ParseOptions(
                delimiter=self._delimiter,
                newlines_in_values=True,
                ignore_empty_lines=schema is None or len(self._names) > 1,
            ),
            csv.ConvertOptions(column_types=schema, include_columns=names or None),
        )


class _Jsonl(_Text):
    """One JSON object a line; blank lines are no rows."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._scan()

    def _start(self, block: bytes) -> bytes:
        block = self._without_bom(block)
        if block.lstrip()[:1] == b"[":
            raise FormatError(f"{self._path}: a JSON array, expected one object a line, as in .jsonl")
        if block.strip():
            self.schema = _settled(self._parsed(block, pa.schema([]), 0).schema)
        return block

    def _count(self, block: bytes) -> int:
        return len(self._records(block))

    def _record_end(self, text: bytes, known: int) -> int:
        return text.rfind(b"\n", known) + 1

    def _records(self, block: bytes) -> list[bytes]:
        return [line + b"\n" for line in block.split(b"\n") if line.strip()]

    def _parse(self, block: bytes, schema: pa.Schema) -> pa.Table:
        from pyarrow import json

        return json.read_json(
            io.BytesIO(block),
            json.ReadOptions(use_threads=False, block_size=max(1 << 20, len(block) + 1)),
            json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore" if len(schema) else "infer"),
        )


def _settled(schema: pa.Schema) -> pa.Schema:
    """Types that labels, weights, groups and counts can have: dates stay text, what is empty so far is integers."""
    return pa.schema([(field.name, _settled_type(field.type)) for field in schema])


def _settled_type(kind: pa.DataType) -> pa.DataType:
    if types.is_null(kind):
        return pa.int64()
    if types.is_list(kind):
        return pa.list_(_settled_type(kind.value_type))
    plain = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_struct(kind)
    return kind if plain else pa.string()


def _with_odd_row(field: pa.Field, column: pa.ChunkedArray) -> pa.Field:
    """A field of text that begins with numbers, with a note of the first row that is none."""
    if not types.is_string(field.type) or not types.is_string(column.type):
        return field
    number = pc.match_substring_regex(column, r"^\s*[-+]?[0-9.]+([eE][-+]?[0-9]+)?\s*$|^$")
    if not len(number) or not number[0].as_py() or (at := pc.index(number, False).as_py()) < 1:
        return field
    return field.with_metadata({ODD_ROW: f"row {at} is {column[at].as_py()[:40]!r}"})


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return not text.strip()
    return True
