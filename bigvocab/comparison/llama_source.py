"""Llama.cpp logits files in a job: the pages of their rows, and the labels and windows that they bring."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.formats.llama_logits import LlamaLogits, is_llama_logits, open_llama_logits
from bigvocab.labels.labels import LabelBatch
from bigvocab.matrices.matrix import Matrix
from bigvocab.matrices.sources import RowSource
from bigvocab.storage.fingerprints import of_file
from bigvocab.storage.paths import split_selector

Integers = npt.NDArray[np.int64]

TYPE = "llama.cpp"  # in place of the type of a logit, where files are listed
_BATCH_ROWS = 65_536


def llama_path(values: Any) -> str | None:
    """The path where a side is one llama.cpp logits file, else None."""
    import os

    if not isinstance(values, str | os.PathLike):
        return None
    path = os.fsdecode(values)
    if not os.path.isfile(path) or split_selector(path)[1] is not None:
        return None
    try:
        with open(path, "rb") as file:
            return path if is_llama_logits(file.read(16)) else None
    except OSError:
        return None  # opening says why


class LlamaSource:
    """A llama.cpp logits file as a `RowSource`."""

    kernels = ("stored_logits", "convert")
    bytes_read_beside = 0
    row_by_row = True

    def __init__(self, path: str) -> None:
        self.path, self.file = path, open_llama_logits(path)
        mapped = self.file.file
        self.nbytes = 2 * self.file.header.num_rows * self.file.header.row_words
        self.files: list[dict[str, Any]] = [
            {"path": path, "shape": list(self.file.shape), "dtype": TYPE, "bytes": mapped.size}
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
        """Pages are let go of behind each block."""
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


class LlamaLabels:
    """The labels of a llama.cpp file, its tokens, as a `LabelSource`; each window is a cluster."""

    kind = "id"
    num_classes: int | None = None

    def __init__(self, file: LlamaLogits) -> None:
        self._file = file
        self.path, self.num_rows = file.shown, len(file)
        self.files: list[dict[str, Any]] = []  # which are among those of the logits
        self.paths: list[str] = []

    def __reduce__(self) -> Any:
        return _labels_of, (self._file.file.path,)

    def matrices(self) -> list[Matrix]:
        """None."""
        return []

    def fingerprints(self) -> list[dict[str, Any]]:
        """None: the file is one of a side."""
        return []

    def check(self) -> None:
        """Done by the side."""

    def place_of(self, row: int) -> tuple[str, int] | None:
        """None: there is one file."""

    def __iter__(self) -> Iterator[LabelBatch]:
        return self.batches()

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[LabelBatch]:
        """Label batches of the rows from `start` to before `stop`."""
        stop = self.num_rows if stop is None else stop
        for first in range(start, stop, _BATCH_ROWS):
            end = min(first + _BATCH_ROWS, stop)
            yield LabelBatch(first, self._file.labels[first:end], clusters=windows_of(self._file, first, end))


def _labels_of(path: str) -> LlamaLabels:
    return LlamaLabels(open_llama_logits(path))


def windows_of(file: LlamaLogits, start: int, stop: int) -> tuple[npt.NDArray[Any], list[str]]:
    """The window of rows as (codes, names)."""
    windows = file.windows[start:stop]
    first = int(windows[0]) if len(windows) else 0
    last = int(windows[-1]) if len(windows) else -1
    return (windows - first).astype(np.int32), [f"window {w}" for w in range(first, last + 1)]


class NoLabels:
    """The place of labels where there are none, as a `LabelSource`."""

    kind = "id"
    path = "labels"
    num_classes: int | None = None

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self.files: list[dict[str, Any]] = []
        self.paths: list[str] = []

    def matrices(self) -> list[Matrix]:
        """None."""
        return []

    def fingerprints(self) -> list[dict[str, Any]]:
        """None."""
        return []

    def check(self) -> None:
        """Nothing can change."""

    def place_of(self, row: int) -> tuple[str, int] | None:
        """None: there is no file."""

    def __iter__(self) -> Iterator[LabelBatch]:
        return self.batches()

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[LabelBatch]:
        """Batches of rows without a label."""
        from bigvocab.kernels.row_statistics import NO_LABEL

        stop = self.num_rows if stop is None else stop
        for first in range(start, stop, _BATCH_ROWS):
            yield LabelBatch(first, np.full(min(_BATCH_ROWS, stop - first), NO_LABEL))
