"""Where the shards of a job run: in processes of this machine (`local`), or as tasks of a cluster (`ray`).

An engine is a generator: ranges of rows go out, sums and lines come back, in the order of the rows. No logits travel: a
worker opens the files itself.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from bigvocab.errors import BigvocabError
from bigvocab.evaluation.evaluator import Evaluator
from bigvocab.evaluation.tally import Tally
from bigvocab.jobs.work import Job, Piece, whole_range
from bigvocab.jobs.workers import seals

_TASKS = 8  # for each worker at least, so that the last one does not keep all others waiting
_TASK_BYTES = (
    4 << 30
)  # of logits in a task at most: what is lost with a worker, and the grain of progress and checkpoints


@dataclass
class Order:
    """What a worker needs to open a job: keywords and files; no logits, but for arrays that were given as such."""

    given: dict[str, Any]
    values: Any  # a Matrix, which travels as the paths of its files
    labels: Any
    block: int
    schema: Any
    names: tuple[str, str]
    block_bytes: int | None

    @classmethod
    def of(cls, job: Job, threads: int) -> Order:
        """The order to do parts of a job with so many threads."""
        evaluator = job.evaluator
        given = {
            **evaluator._given,
            "threads": threads,
            "class_weights": evaluator.class_weights,
            "pos_weight": evaluator.pos_weight,
        }
        for name in ("vocab_file", "candidates"):
            if isinstance(given[name], str | os.PathLike):
                given[name] = os.path.abspath(given[name])
        if evaluator.layer is not None:
            given |= {"weights": evaluator.layer.weights, **evaluator.layer.vectors}
        names = (evaluator.logits_name, evaluator.label_name)
        return cls(
            given,
            job.matrix.stored,
            job.labels,
            job.block,
            job.schema,
            names,
            evaluator.layer.block_bytes if evaluator.layer else None,
        )

    def open(self) -> Job:
        """The job, in the process of a worker."""
        evaluator = Evaluator(**self.given)
        evaluator.logits_name, evaluator.label_name = self.names
        if evaluator.layer is not None and self.block_bytes is not None:
            evaluator.layer.block_bytes = self.block_bytes
        matrix = evaluator.source(self.values)
        return Job(evaluator, matrix, self.labels, self.block, 0, len(matrix), self.schema)


def order_of(job: Job, threads: int) -> bytes:
    """What `do_task` takes: the order to do parts of a job with so many threads, sealed."""
    return seals.seal(job, pickle.dumps(Order.of(job, threads)))


_opened: tuple[bytes, Job] | None = None  # the job this process worked for last


def do_task(order: bytes, start: int, stop: int) -> tuple[dict[str, Any], list[bytes], int]:
    """Rows `start` to `stop` in the process of a worker: the state of their sums, their lines and the bytes read.

    Raises:
        BigvocabError, FormatError: at the first task of a job, where versions or files are not those of the process
            that sends the order; see `seals.unseal`.
    """
    global _opened
    if _opened is None or _opened[0] != order:
        _opened = order, _open(order)
    tally, lines, read = whole_range(_opened[1], start, stop)
    return tally.state(), [batch.serialize().to_pybytes() for batch in lines], read


def _open(order: bytes) -> Job:
    """The job of an order, with everything in it as it was where the order comes from."""
    inner = seals.unseal(order)
    try:
        job = pickle.loads(inner).open()
    except BigvocabError as error:
        raise seals.at_worker(error, order) from error
    seals.check_rows(job, order)
    return job


def as_piece(job: Job, start: int, stop: int, done: tuple[dict[str, Any], list[bytes], int]) -> Piece:
    """What `do_task` returned, as a piece of the job; the files are those that were opened, now that they were read."""
    job.matrix.check()
    job.labels.check()
    state, lines, read = done
    batches = [pa.ipc.read_record_batch(pa.py_buffer(line), job.schema) for line in lines]
    return Piece(start, stop, lambda tally: tally.merge(Tally.from_state(state)), batches, read)


def task_ranges(job: Job, start: int, workers: int) -> Iterator[tuple[int, int]]:
    """The rows of each task: even shares, in whole blocks of 512 rows where there are enough.

    The last ones become smaller, down to an eighth, so that no worker waits long for another.
    """
    rows = job.stop - start
    share = max(1, min(-(-rows // (workers * _TASKS)), max(job.block, _TASK_BYTES // max(1, job.row_bytes))))
    grain = 512 if share >= 4096 else 1
    while start < job.stop:
        step = min(share, max(1, share // 8, (job.stop - start) // (2 * workers)))
        stop = min(start + -(-step // grain) * grain, job.stop)
        yield start, stop
        start = stop


def threads_each(job: Job, workers: int) -> int:
    """Threads of one worker, so that all together have those of the job."""
    return max(1, job.evaluator.num_threads // workers)


def threads_asked(job: Job) -> int | None:
    """Threads that were asked for, for all workers together; None where nobody did."""
    return None if job.evaluator._given["threads"] is None else job.evaluator.num_threads
