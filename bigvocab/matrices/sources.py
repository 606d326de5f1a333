"""Where the logits of a job come from: files, arrays, or hidden states and a layer; one protocol for all of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from bigvocab.matrices.logit_rows import LogitRows
from bigvocab.matrices.matrix import Matrix


class RowSource(Protocol):
    """Rows of any kind, read from the disk a block at a time: what a job looks after."""

    @property
    def nbytes(self) -> int:
        """Bytes of what is read for all rows: of logits, or of hidden states."""

    @property
    def files(self) -> list[dict[str, Any]]:
        """One entry {path, shape, dtype, bytes} for each file, as reports show them."""

    @property
    def kernels(self) -> tuple[str, ...]:
        """The modules of bigvocab.kernels that reading needs, beside those of the losses."""

    @property
    def bytes_read_beside(self) -> int:
        """Bytes read so far that belong to no row, such as those of a layer; 0 where rows are stored."""

    @property
    def row_by_row(self) -> bool:
        """Whether a first look at few rows is cheap: False where it takes all pages of a file, or a layer."""

    def __len__(self) -> int: ...

    def row_files(self) -> list[tuple[int, str]]:
        """(first row, path) of each file, in order, where files are split by rows."""

    def block_rows(self, rows: int) -> int:
        """How many of so many rows, which fit the memory, should be worked at a time when all classes are read."""

    def prefetch(self, start: int, stop: int, ended: threading.Event) -> None:
        """Have rows read from the disk, in order, unless it has `ended`: for a thread ahead of others."""

    def reading_once(self) -> AbstractContextManager[None]:
        """While it lasts, what was read may be let go of at once."""

    def release(self, start: int, stop: int) -> None:
        """Tell the system that the pages of these rows are not needed any more."""

    def check(self) -> None:
        """Raise FormatError if a file has shrunk, was written to or was replaced since it was opened."""


class LogitSource(RowSource, Protocol):
    """Logits (N, V), read a block of rows at a time."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, V)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of a logit."""

    @property
    def role(self) -> str:
        """What `stored` holds: "logits", or "inputs"."""

    @property
    def stored(self) -> Matrix:
        """The matrix with a row for each row of logits: the logits themselves, or the hidden states."""

    @property
    def in_one_piece(self) -> bool:
        """Whether kernels read all rows where they lie; False where rows are copied or computed."""

    @property
    def classes_apart(self) -> bool:
        """Whether a range of classes is read without the others: False where each row costs all of its bytes."""

    def rows(self, start: int, stop: int) -> Iterator[tuple[int, LogitRows]]:
        """Rows `start` to `stop` as (first row, rows), in order, split where files end."""

    def class_edges(self) -> list[int]:
        """The first class of each file, in order, where files are split by classes; else [0]."""
