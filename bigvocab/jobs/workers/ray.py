"""Ray Core: each range of rows is a task that opens the files, wherever it runs, and sends back sums.

Ray starts failed tasks again. Workers need bigvocab and the files, under the same paths. `address`, or RAY_ADDRESS,
names a cluster; without either, Ray starts on this machine and ends with the job.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
from collections import deque
from collections.abc import Iterator
from typing import Any

from bigvocab.errors import BigvocabError, Keyword
from bigvocab.jobs.work import Job, Piece
from bigvocab.jobs.workers import Order, as_piece, do_task, task_ranges, threads_each

_PATIENCE = 10.0  # seconds for a connection to a cluster's first port


def ray_pieces(job: Job, start: int, workers: int | None, address: str | None) -> Iterator[Piece]:
    """The rows of a job from `start` on, in order, worked by tasks of Ray."""
    ray = _import_ray()
    with _connected(ray, workers, address):
        count = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        threads = threads_each(job, count) if _is_local(ray) else 1
        task = ray.remote(num_cpus=threads, max_retries=5)(do_task)
        order = ray.put(pickle.dumps(Order.of(job, threads)))
        waiting = iter(task_ranges(job, start, count))
        running: deque[tuple[int, int, Any]] = deque()
        try:
            while True:
                while len(running) < 3 * count and (span := next(waiting, None)) is not None:
                    running.append((*span, task.remote(order, *span)))
                if not running:
                    return
                first, stop, promise = running.popleft()
                yield as_piece(job, first, stop, _result(ray, promise, first, stop))
        finally:
            for _, _, promise in running:
                with contextlib.suppress(Exception):
                    ray.cancel(promise, force=True)


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise BigvocabError(Keyword("engine"), ": ray is not installed here; pip install 'bigvocab[ray]'") from None
    return ray


@contextlib.contextmanager
def _connected(ray: Any, workers: int | None, address: str | None) -> Iterator[None]:
    """A connection to a cluster, or a Ray of our own."""
    if ray.is_initialized():
        yield
        return
    place = address or os.environ.get("RAY_ADDRESS")
    if place:
        _refuse_deaf(place)
    try:
        if place:
            ray.init(address=place, log_to_driver=False, logging_level="ERROR")
        else:
            quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
            ray.init(address="local", num_cpus=workers, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise BigvocabError(
            Keyword("address"), f": no Ray at {place or 'this machine'}: {str(error).splitlines()[0]}"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _refuse_deaf(place: str) -> None:
    """Raise where nothing listens at host:port: Ray itself would try for minutes."""
    host, _, port = place.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise BigvocabError(Keyword("address"), f": no Ray at {place}: {error}") from None


def _is_local(ray: Any) -> bool:
    return len(ray.nodes()) == 1


def _result(ray: Any, promise: Any, start: int, stop: int) -> Any:
    """The result of a task; the error that it raised, as it raised it."""
    try:
        return ray.get(promise)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, BigvocabError | TypeError):
            raise cause from None
        raise
    except ray.exceptions.RayError as error:
        raise BigvocabError(
            Keyword("engine"),
            f": the task of rows {start}-{stop - 1} failed again and again: {str(error).splitlines()[0]}; "
            "with state, resume goes on from there",
        ) from None
