"""What a job does with a block of rows. Blocks, checkpoints, workers, resume and progress know no task but this."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from bigvocab.evaluation.coverage import Coverage
from bigvocab.evaluation.state import State
from bigvocab.jobs.data import JobData
from bigvocab.labels.labels import LabelBatch
from bigvocab.matrices.matrix import Matrix
from bigvocab.reports.report import Report


class Sums(Protocol):
    """What the rows that are done add up to; picklable, merged in any order."""

    def merge(self, other: Any) -> None:
        """Add all of `other`."""


class Piece(NamedTuple):
    """Rows `start` to `stop`, done: what they add up to, their records, and the bytes of them that were read."""

    start: int
    stop: int
    sums: Any
    records: list[pa.RecordBatch]
    bytes_read: int


class Order(Protocol):
    """A task as it travels to a worker: keywords and paths, no rows but those in memory."""

    def open(self) -> RowTask:
        """The task, in the process of the worker."""


class RowTask(Protocol):
    """A task over the rows of a job."""

    @property
    def name(self) -> str:
        """In states: "evaluate", "classes" or "compare"."""

    @property
    def data(self) -> JobData:
        """The rows, opened and checked."""

    @property
    def part(self) -> tuple[int, int]:
        """[first, stop) of the rows this run is for."""

    @property
    def schema(self) -> pa.Schema | None:
        """Of its records; None where none are kept."""

    @property
    def block(self) -> int:
        """Rows worked at a time, or at first."""

    @property
    def growing(self) -> bool:
        """Whether blocks that are done in no time may be followed by larger ones, in this process."""

    @property
    def threads(self) -> int:
        """Of this process."""

    @property
    def threads_asked(self) -> int | None:
        """By the user, for all workers together; None where nobody did."""

    @property
    def classes(self) -> list[int] | None:
        """[first, stop, number of classes], where it is about a range of classes."""

    @property
    def serial(self) -> str | None:
        """Why rows must be worked in order by one process; None where they need not."""

    @property
    def kernels(self) -> tuple[str, ...]:
        """Modules of `bigvocab.kernels` that it needs."""

    @property
    def records_in_state(self) -> bool:
        """Whether the records are the state's table when the run has ended."""

    def run(self, batch: LabelBatch) -> Iterator[Piece]:
        """The rows of a batch, piece by piece, in order."""

    def left_out(self, batch: LabelBatch) -> np.ndarray:
        """Which rows of a batch are not read (n,)."""

    def follow(self, stop: int) -> None:
        """Bring what depends on the rows before to row `stop`, by the labels alone."""

    def new_sums(self) -> Any:
        """The sums of no row."""

    def stored(self, sums: Any) -> tuple[dict[str, Any], pa.Table]:
        """Sums as JSON and a table, for a state."""

    def restored(self, state: State) -> Any:
        """The sums of a state."""

    def state(self) -> State:
        """The state before any row, with what tells inputs and options apart."""

    def order(self, threads: int) -> Order:
        """What a worker needs to open the task, with so many threads."""

    def files(self) -> Iterator[str]:
        """Paths of the files that are read beside rows and labels."""

    def matrices(self) -> Iterator[Matrix]:
        """All that a worker opens as matrices."""

    def worker_files(self) -> Iterator[str]:
        """Paths of what a worker opens beside matrices and labels."""

    def refuse_nothing(self, sums: Any) -> None:
        """Raise where all rows were left out."""

    def report(self, sums: Any, coverage: Coverage) -> Report:
        """The report of the rows that are done."""
