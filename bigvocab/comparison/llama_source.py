"""Llama.cpp logits files in a job: their rows, and the rows of other files that they have scored."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.errors import BigvocabError
from bigvocab.formats.llama_logits import is_llama_logits, open_llama_logits
from bigvocab.matrices.sources import RowSource
from bigvocab.storage.fingerprints import of_file
from bigvocab.storage.paths import split_selector
from bigvocab.storage.places import first_bytes, is_file

Integers = npt.NDArray[np.int64]

_HEAD = 16  # bytes that tell such a file
TYPE = "llama.cpp"  # in place of the type of a logit, where files are listed


def llama_path(values: Any) -> str | None:
    """The path, or the URI, where a side is one llama.cpp logits file, else None."""
    if not isinstance(values, str | os.PathLike):
        return None
    path, selector = split_selector(os.fsdecode(values))
    if selector is not None:
        return None
    try:
        return path if is_file(path) and is_llama_logits(first_bytes(path, _HEAD)) else None
    except BigvocabError:
        return None  # opening says why


class LlamaSource:
    """A llama.cpp logits file as a `RowSource`."""

    kernels = ("stored_logits", "convert")
    bytes_read_beside = 0
    row_by_row = True

    def __init__(self, path: str) -> None:
        self.file = open_llama_logits(path)
        self.path = self.file.shown
        mapped = self.file.file
        self.nbytes = 2 * self.file.header.num_rows * self.file.header.row_words
        self.files: list[dict[str, Any]] = [
            {"path": self.path, "shape": list(self.file.shape), "dtype": TYPE, "bytes": mapped.size}
        ]

    def __len__(self) -> int:
        return len(self.file)

    def fingerprint(self, role: str) -> dict[str, Any]:
        """What tells the file apart by its content."""
        return {"role": role, **self.files[0], "fingerprint": of_file(self.file.file.path)}

    def row_files(self) -> list[tuple[int, str]]:
        """The only file."""
        return [(0, self.path)]

    def block_rows(self, rows: int) -> int:
        """All of them."""
        return rows

    def _bytes_of(self, start: int, stop: int) -> tuple[int, int]:
        header = self.file.header
        return tuple(header.rows_at + 2 * header.row_words * row for row in (start, stop))  # type: ignore[return-value]

    def prefetch(self, start: int, stop: int, ended: threading.Event) -> None:
        """Have rows read from the disk."""
        self.file.file.ahead.fetch(*self._bytes_of(start, stop), ended)

    @contextlib.contextmanager
    def reading_once(self) -> Iterator[None]:
        """Pages are released after each block."""
        yield

    def release(self, start: int, stop: int) -> None:
        """Let go of the pages of these rows."""
        self.file.file.release(*self._bytes_of(start, stop))

    def check(self) -> None:
        """Raise FormatError if the file has changed since it was opened."""
        self.file.file.check()


class PickedRows:
    """Some rows of a source, which rise, as a `RowSource`: those that a llama.cpp file has scored."""

    def __init__(self, source: RowSource, which: Integers) -> None:
        self._source, self._which = source, which
        self.kernels, self.row_by_row = source.kernels, source.row_by_row
        self.nbytes = source.nbytes // max(1, len(source)) * len(which)

    @property
    def files(self) -> list[dict[str, Any]]:
        """Those of the whole source."""
        return self._source.files

    @property
    def bytes_read_beside(self) -> int:
        """Bytes read so far that belong to no row."""
        return self._source.bytes_read_beside

    def __len__(self) -> int:
        return len(self._which)

    def row_files(self) -> list[tuple[int, str]]:
        """Those of the whole source, by its own rows."""
        return self._source.row_files()

    def block_rows(self, rows: int) -> int:
        """As the whole source."""
        return self._source.block_rows(rows)

    def prefetch(self, start: int, stop: int, ended: threading.Event) -> None:
        """Nothing: rows of windows lie apart."""

    @contextlib.contextmanager
    def reading_once(self) -> Iterator[None]:
        """As the whole source."""
        with self._source.reading_once():
            yield

    def release(self, start: int, stop: int) -> None:
        """Let go of the pages from the first of these rows to the last."""
        if start < stop:
            self._source.release(int(self._which[start]), int(self._which[stop - 1]) + 1)

    def check(self) -> None:
        """Raise FormatError if a file has changed since it was opened."""
        self._source.check()
