"""Ranges of rows as they go out to workers, and sums and records as they come back, in the order of the rows.

No logits travel: a worker opens the files itself.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pyarrow as pa

from bigvocab.errors import BigvocabError
from bigvocab.jobs.task import Piece, RowTask
from bigvocab.jobs.work import whole_range
from bigvocab.jobs.workers import seals

_TASKS = 8  # for each worker at least, so that the last one does not keep all others waiting
# Bytes of logits in a task at most: what is lost with a worker, and the grain of progress and checkpoints.
_TASK_BYTES = 4 << 30

# Sums (pickled here: arrays that Ray unpickles are read-only), records, bytes read.
Done = tuple[bytes, list[bytes], int]


def order_of(task: RowTask, threads: int) -> bytes:
    """What `do_task` takes: the order to do parts of a task with so many threads, sealed."""
    return seals.seal(task, pickle.dumps(task.order(threads)))


_opened: tuple[bytes, RowTask] | None = None  # the task this process worked for last


def do_task(order: bytes, start: int, stop: int) -> Done:
    """Rows `start` to `stop` in the process of a worker: their sums, their records and the bytes read.

    Raises:
        BigvocabError, FormatError: at the first range of a task, where versions or files are not those of the process
            that sends the order; see `seals.unseal`.
    """
    global _opened
    if _opened is None or _opened[0] != order:
        _opened = order, _open(order)
    sums, records, read = whole_range(_opened[1], start, stop)
    return pickle.dumps(sums), [batch.serialize().to_pybytes() for batch in records], read


def _open(order: bytes) -> RowTask:
    """The task of an order, with everything in it as it was where the order comes from."""
    inner = seals.unseal(order)
    try:
        task: RowTask = pickle.loads(inner).open()
    except BigvocabError as error:
        raise seals.at_worker(error, order) from error
    seals.check_rows(task, order)
    return task


def as_piece(task: RowTask, start: int, stop: int, done: Done) -> Piece:
    """What `do_task` returned, as a piece; the files are those that were opened, now that they were read."""
    task.data.check()
    sums, records, read = done
    batches = [pa.ipc.read_record_batch(pa.py_buffer(record), task.schema) for record in records]
    return Piece(start, stop, pickle.loads(sums), batches, read)


def task_ranges(task: RowTask, start: int, workers: int) -> Iterator[tuple[int, int]]:
    """The rows of each range: even shares, in whole blocks of 512 rows where there are enough.

    The last ones become smaller, down to an eighth, so that no worker waits long for another.
    """
    end = task.part[1]
    rows = end - start
    share = max(1, min(-(-rows // (workers * _TASKS)), max(task.block, _TASK_BYTES // max(1, task.data.row_bytes))))
    grain = 512 if share >= 4096 else 1
    while start < end:
        step = min(share, max(1, share // 8, (end - start) // (2 * workers)))
        stop = min(start + -(-step // grain) * grain, end)
        yield start, stop
        start = stop


def threads_each(task: RowTask, workers: int) -> int:
    """Threads of one worker, so that all together have those of the task."""
    return max(1, task.threads // workers)
