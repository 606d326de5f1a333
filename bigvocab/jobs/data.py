"""The rows of a job: sources of logits and labels beside them, opened; read ahead, watched and let go of together."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np

from bigvocab.errors import BigvocabError
from bigvocab.labels.label_sources import LabelSource
from bigvocab.labels.labels import LabelBatch
from bigvocab.matrices.matrix import Matrix
from bigvocab.matrices.names import DataNames
from bigvocab.matrices.sources import LogitSource, RowSource

# Ranges of so many bytes are read ahead, with what lies in gaps of so many bytes between rows that are not left out.
_AHEAD_BYTES, _GAP_BYTES = 32 << 20, 4 << 20


class JobData:
    """Sources with the same rows, and their labels.

    Args:
        sources: logits; several kinds of rows where models are compared.
        labels: one for each row.
        names: how messages call them.
    """

    def __init__(self, sources: Sequence[RowSource], labels: LabelSource, names: DataNames) -> None:
        self.sources, self.labels, self.names = tuple(sources), labels, names
        self.num_rows = len(self.sources[0])
        self.row_bytes = sum(source.nbytes for source in self.sources) // max(1, self.num_rows)
        self._refuse_other_counts()

    @property
    def source(self) -> LogitSource:
        """The only source of a job that evaluates."""
        return cast(LogitSource, self.sources[0])

    @property
    def files(self) -> list[dict[str, Any]]:
        """One entry {path, shape, dtype, bytes} for each file, as reports show them."""
        return [*(file for source in self.sources for file in source.files), *self.labels.files]

    @property
    def bytes_read_beside(self) -> int:
        """Bytes read so far that belong to no row."""
        return sum(source.bytes_read_beside for source in self.sources)

    def _refuse_other_counts(self) -> None:
        if self.num_rows != self.labels.num_rows:
            raise BigvocabError(
                f"{self.names.labels}: {self.labels.num_rows} rows of labels, "
                f"but {self.names.logits} has {self.num_rows} rows; expected as many"
            )
        if self.num_rows == 0:
            raise BigvocabError(f"{self.names.logits}: no rows, so there is nothing to evaluate")

    def paths(self) -> Iterator[str]:
        """Paths of all files."""
        for source in self.sources:
            yield from (file["path"] for file in source.files if file["path"] != "<array>")
            yield from (path for _, path in source.row_files())
        yield from self.labels.paths

    def matrices(self) -> Iterator[Matrix]:
        """All that a job that evaluates opens as matrices: logits or hidden states, and dense labels."""
        yield self.source.stored
        yield from self.labels.matrices()

    def check(self) -> None:
        """Raise FormatError if a file has changed since it was opened."""
        for source in self.sources:
            source.check()
        self.labels.check()

    def release(self, start: int, stop: int) -> None:
        """Tell the system that the pages of these rows are not needed any more."""
        for source in self.sources:
            source.release(start, stop)

    @contextlib.contextmanager
    def reading_once(self) -> Iterator[None]:
        """While it lasts, what was read may be let go of at once."""
        with contextlib.ExitStack() as stack:
            for source in self.sources:
                stack.enter_context(source.reading_once())
            yield

    def prefetch(self, batch: LabelBatch, left_out: Any, ended: threading.Event) -> None:
        """Have the rows of a batch read from the disk, except in long gaps of those left out (n,)."""
        if len(batch) * self.row_bytes < _AHEAD_BYTES:
            return
        for first, stop in _long_ranges(left_out, self.row_bytes):
            for source in self.sources:
                source.prefetch(batch.first_row + first, batch.first_row + stop, ended)


def _long_ranges(left_out: Any, row_bytes: int) -> list[tuple[int, int]]:
    """Ranges of rows that are worth reading ahead: long ones, without long gaps of rows that are left out."""
    if not left_out.any():
        return [(0, len(left_out))]
    kept = np.flatnonzero(~left_out)
    ranges = np.split(kept, np.flatnonzero((np.diff(kept) - 1) * row_bytes > _GAP_BYTES) + 1)
    spans = [(int(part[0]), int(part[-1]) + 1) for part in ranges if len(part)]
    return [(first, stop) for first, stop in spans if (stop - first) * row_bytes >= _AHEAD_BYTES]
