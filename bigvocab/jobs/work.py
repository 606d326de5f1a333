"""The work of a job: a range of its rows, block by block, as pieces that are added to sums.

A process, a pool and a cluster do the same pieces.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from bigvocab.errors import BigvocabError
from bigvocab.evaluation.evaluator import Evaluator
from bigvocab.evaluation.tally import Tally
from bigvocab.jobs.class_ranges import ClassRange
from bigvocab.kernels.jit import clock
from bigvocab.labels.label_sources import MatrixLabels, cut, errors_of_files, true_classes
from bigvocab.labels.labels import LabelBatch, Labels
from bigvocab.labels.true_classes import TrueClasses
from bigvocab.matrices.sources import LogitSource
from bigvocab.sampling.draw_blocks import DRAW_ROWS
from bigvocab.storage.output import loss_lines

# Ranges of so many bytes are read ahead, with what lies in gaps of so many bytes between rows that are not left out.
_AHEAD_BYTES, _GAP_BYTES = 32 << 20, 4 << 20
# Between blocks threads wait for each other, so one that took fewer seconds may be followed by one of twice the rows.
_QUICK, _GROWTH = 0.05, 4


@dataclass
class Job:
    """What is to be evaluated, opened and checked."""

    evaluator: Evaluator
    matrix: LogitSource
    labels: Labels | MatrixLabels
    block: int  # rows at a time, or at first
    start: int
    stop: int
    schema: pa.Schema | None = None  # of a line for each row, where lines are kept
    classes: ClassRange | None = None  # where only a range of the classes is looked at
    growing: bool = False  # whether blocks that are done in no time may be followed by larger ones, in this process

    @property
    def row_bytes(self) -> int:
        """Bytes of logits, or hidden states, of one row."""
        return self.matrix.nbytes // max(1, len(self.matrix))


class Piece(NamedTuple):
    """Rows `start` to `stop`, done."""

    start: int
    stop: int
    add_to: Callable[[Tally], None]
    lines: list[pa.RecordBatch]
    bytes_read: int


def pieces(job: Job, start: int, stop: int) -> Iterator[Piece]:
    """Rows `start` to `stop` of a job, piece by piece, in order; pages are given back behind each block."""
    matrix = job.matrix
    read = matrix.bytes_read_beside
    # Pages are read ahead within a block, and let go of behind it.
    with matrix.reading_once(), ThreadPoolExecutor(2, "pages") as pages:
        released: Future[None] | None = None
        block = job.block
        for batch in job.labels.batches(start, stop):
            at = 0
            while at < len(batch):
                rows, began = cut(batch, at, min(at + block, len(batch))), clock()
                at += len(rows)
                first, last = rows.first_row, rows.first_row + len(rows)
                matrix.check()
                job.labels.check()
                done = threading.Event()
                _begin(pages, _fetch, job, rows, done)
                try:
                    with errors_of_files(job.labels, job.evaluator.label_name):
                        for piece in _block(job, rows):
                            now = matrix.bytes_read_beside
                            yield piece._replace(bytes_read=piece.bytes_read + now - read)
                            read = now
                finally:
                    done.set()
                if released is not None:
                    released.result()  # else blocks that were let go of could pile up
                released = _begin(pages, matrix.release, first, last)
                if clock() - began >= _QUICK:
                    block = job.block
                elif job.growing and len(rows) == block:  # and no rest
                    block = min(2 * block, _GROWTH * job.block)
    matrix.check()
    job.labels.check()


def _begin(pool: ThreadPoolExecutor, task: Callable[..., None], *given: Any) -> Future[None] | None:
    """Have a thread do it; no one does where Python is ending and lets no thread begin."""
    try:
        return pool.submit(task, *given)
    except RuntimeError:
        return None


def _fetch(job: Job, rows: LabelBatch, ended: threading.Event) -> None:
    """Read a block of rows ahead."""
    if job.classes is None and len(rows) * job.row_bytes >= _AHEAD_BYTES:
        for first, stop in _long_ranges(job, rows):
            job.matrix.prefetch(rows.first_row + first, rows.first_row + stop, ended)


def _long_ranges(job: Job, rows: LabelBatch) -> list[tuple[int, int]]:
    """Ranges of a block's rows that are worth reading ahead: long ones, without long gaps of rows that are left out."""
    left_out = np.zeros(len(rows), bool) if rows.ignored is None else rows.ignored
    if job.evaluator.ignore_index is not None and isinstance(rows.labels, np.ndarray) and rows.labels.ndim == 1:
        left_out = left_out | (rows.labels == job.evaluator.ignore_index)
    if not left_out.any():
        return [(0, len(rows))]
    kept = np.flatnonzero(~left_out)
    ranges = np.split(kept, np.flatnonzero((np.diff(kept) - 1) * job.row_bytes > _GAP_BYTES) + 1)
    spans = [(int(part[0]), int(part[-1]) + 1) for part in ranges if len(part)]
    return [(first, stop) for first, stop in spans if (stop - first) * job.row_bytes >= _AHEAD_BYTES]


def _block(job: Job, rows: LabelBatch) -> Iterator[Piece]:
    if job.classes is not None:
        lines = job.classes.lines(job.evaluator, job.matrix, rows)
        yield Piece(
            rows.first_row,
            rows.first_row + len(rows),
            lambda tally: None,
            [lines],
            job.classes.nbytes(job.row_bytes, len(rows)),
        )
        return
    for part, result in job.evaluator._results(job.matrix, rows):
        lines = (
            [] if job.schema is None else [loss_lines(job.schema, part.first_row, result, part.weights, part.groups)]
        )

        def add_to(tally: Tally, part: LabelBatch = part, result: Any = result) -> None:
            tally.add(result, part.groups, part.num_bytes)

        yield Piece(part.first_row, part.first_row + len(part), add_to, lines, job.row_bytes * len(part))


def whole_range(job: Job, start: int, stop: int) -> tuple[Tally, list[pa.RecordBatch], int]:
    """Rows `start` to `stop` as one: their sums, their lines and the bytes read, for another process."""
    tally, lines, read = Tally(job.evaluator.top_k), [], 0
    for piece in pieces(job, start, stop):
        piece.add_to(tally)
        lines += piece.lines
        read += piece.bytes_read
    return tally, lines, read


def follow_draws(job: Job, stop: int) -> None:
    """Draws that depend on the rows before, brought to row `stop` by the labels alone."""
    evaluator, classes = job.evaluator, job.matrix.shape[1]
    if stop == 0 or evaluator.draws is None or not evaluator.draws.ordered:
        return
    for batch in job.labels.batches(0, stop):
        offsets, ids, ignored = true_classes(evaluator, batch, classes)
        first, start = batch.first_row, 0
        while start < len(batch):
            end = min(len(batch), (first + start) // DRAW_ROWS * DRAW_ROWS + DRAW_ROWS - first)
            kept = np.flatnonzero(~ignored[start:end])
            own = np.concatenate([[0], np.cumsum(np.diff(offsets)[start:end][kept])])
            true = TrueClasses((own, ids[offsets[start] : offsets[end]]), evaluator.label_name)
            evaluator.draws.draw(first + start, end - start, true, kept)
            start = end


def refuse_ordered_draws(job: Job, what: str) -> None:
    """Raise where the draws of a row depend on the rows before it, which someone else has."""
    if job.evaluator.draws is not None and job.evaluator.draws.ordered:
        raise BigvocabError(
            f"{what}: learned-unigram learns from all rows before, so its rows must be worked in order by one process"
        )
