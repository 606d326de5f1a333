"""Files that appear whole or not at all: the per-row losses as Parquet, reports as JSON."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bigvocab.errors import BigvocabError
from bigvocab.tally import RowResult

_temporaries: set[Path] = set()  # of files that are being written
_GROUP_ROWS = 65_536  # rows of a row group: fixed, so that the file does not depend on the size of the batches


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place at the end, or vanishes after an error."""
    target = Path(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise BigvocabError(f"{target}: cannot be written: {error.strerror}") from None
    temporary = Path(name)
    _temporaries.add(temporary)
    try:
        if target.is_dir():
            raise BigvocabError(f"{target}: is a folder, expected a file to write")
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(target)
    except OSError as error:
        raise BigvocabError(f"{target}: cannot be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        _temporaries.discard(temporary)


def remove_temporaries() -> None:
    """Remove files that are half-written, when the process is about to die."""
    for path in tuple(_temporaries):
        with contextlib.suppress(OSError):
            path.unlink()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


class LossWriter:
    """Writes losses.parquet: one line for every row of the data; figures of ignored and skipped rows are null."""

    _KINDS = {"rank": pa.int64(), "predicted": pa.int64(), "logsumexp": pa.float64(), "entropy": pa.float64()}

    def __init__(self, path: Path, columns: tuple[str, ...], *, weight: bool, group: bool) -> None:
        fields = [pa.field("row", pa.int64(), nullable=False), pa.field("loss", pa.float64())]
        fields += [pa.field("weight", pa.float64())] * weight + [pa.field("group", pa.string())] * group
        self._columns = [name for name in self._KINDS if name in columns]
        self._schema = pa.schema(fields + [pa.field(name, self._KINDS[name]) for name in self._columns])
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._held: list[pa.Table] = []
        self._rows = 0

    def write(self, first_row: int, rows: RowResult, weights: Any = None, groups: Any = None) -> None:
        """Write the lines of a block of rows, in the order of the data."""
        null = ~rows.counted
        columns: dict[str, Any] = {"row": np.arange(first_row, first_row + len(rows)), "loss": pa.array(rows.loss, mask=null)}
        if "weight" in self._schema.names:
            columns["weight"] = weights if weights is not None else np.ones(len(rows))
        if "group" in self._schema.names:
            codes, names = groups
            columns["group"] = pa.DictionaryArray.from_arrays(codes, pa.array(names, pa.string())).cast(pa.string())
        for name in self._columns:
            columns[name] = pa.array(rows.figures[name], mask=null)
        self._held.append(pa.table(columns, schema=self._schema))
        self._rows += len(rows)
        if self._rows >= _GROUP_ROWS:
            self._flush(self._rows // _GROUP_ROWS * _GROUP_ROWS)

    def _flush(self, count: int) -> None:
        table = pa.concat_tables(self._held)
        for start in range(0, count, _GROUP_ROWS):
            self._writer.write_table(table.slice(start, min(_GROUP_ROWS, count - start)).combine_chunks())
        self._held, self._rows = [table.slice(count)], self._rows - count

    def close(self) -> None:
        """Write what is left and the footer."""
        if self._rows:
            self._flush(self._rows)
        self._writer.close()
