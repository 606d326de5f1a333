"""The work of a job: a range of its rows, block by block, as pieces that are added to sums.

A process, a pool and a cluster do the same pieces.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from bigvocab.jobs.task import Piece, RowTask
from bigvocab.kernels.jit import clock
from bigvocab.labels.label_sources import errors_of_files
from bigvocab.labels.labels import LabelBatch

# Between blocks threads wait for each other, so one that took fewer seconds may be followed by one of twice the rows.
QUICK, GROWTH = 0.05, 4


def pieces(task: RowTask, start: int, stop: int) -> Iterator[Piece]:
    """Rows `start` to `stop` of a task, piece by piece, in order; pages are given back after each block."""
    data = task.data
    read = data.bytes_read_beside
    # Pages are read ahead within a block, and released after it.
    with data.reading_once(), ThreadPoolExecutor(2, "pages") as pages:
        released: Future[None] | None = None
        block = task.block
        for batch in data.labels.batches(start, stop):
            at = 0
            while at < len(batch):
                rows, began = batch.part(at, min(at + block, len(batch))), clock()
                at += len(rows)
                first, last = rows.first_row, rows.first_row + len(rows)
                data.check()
                done = threading.Event()
                _begin(pages, _prefetch, task, rows, done)
                try:
                    with errors_of_files(data.labels, data.names.labels):
                        for piece in task.run(rows):
                            now = data.bytes_read_beside
                            yield piece._replace(bytes_read=piece.bytes_read + now - read)
                            read = now
                finally:
                    done.set()
                if released is not None:
                    released.result()  # else blocks that were let go of could pile up
                released = _begin(pages, data.release, first, last)
                if clock() - began >= QUICK:
                    block = task.block
                elif task.growing and len(rows) == block:  # and no rest
                    block = min(2 * block, GROWTH * task.block)
    data.check()


def _begin(pool: ThreadPoolExecutor, task: Callable[..., None], *given: Any) -> Future[None] | None:
    """Have a thread do it; no one does where Python is ending and lets no thread begin."""
    try:
        return pool.submit(task, *given)
    except RuntimeError:
        return None


def _prefetch(task: RowTask, rows: LabelBatch, ended: threading.Event) -> None:
    """Read a block of rows ahead."""
    task.data.prefetch(rows, task.left_out(rows), ended)


def whole_range(task: RowTask, start: int, stop: int) -> tuple[Any, list[pa.RecordBatch], int]:
    """Rows `start` to `stop` as one: their sums, their records and the bytes read, for another process."""
    sums, records, read = task.new_sums(), [], 0
    for piece in pieces(task, start, stop):
        sums.merge(piece.sums)
        records += piece.records
        read += piece.bytes_read
    return sums, records, read
