"""Threads that share rows: a plain pool, because kernels release the GIL.

Numba's own threads die after fork or under concurrent callers, depending on the layer; a pool of Python threads does
neither, and one row is always worked by one thread in one order, so results do not depend on how many there are.
"""

from __future__ import annotations

import contextlib
import operator
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

_lock = threading.Lock()
_pools: dict[int, ThreadPoolExecutor] = {}
_inside = threading.local()


def usable_cores() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resolve_threads(num_threads: int | None, name: str = "num_threads") -> int:
    """The number of threads meant by `num_threads`: None is all usable cores."""
    from bigvocab.errors import BigvocabError

    if num_threads is None:
        return usable_cores()
    if isinstance(num_threads, bool) or not hasattr(num_threads, "__index__"):
        raise TypeError(f"{name}: expected a positive int or None, got {type(num_threads).__name__}")
    if num_threads < 1:
        raise BigvocabError(f"{name}: expected a positive int or None, got {num_threads}")
    return operator.index(num_threads)


def _pool(workers: int) -> ThreadPoolExecutor:
    with _lock:
        if workers not in _pools:
            _pools[workers] = ThreadPoolExecutor(workers, thread_name_prefix="bigvocab")
        return _pools[workers]


def _forget_pools() -> None:
    """A forked child has the pools' objects but not their threads."""
    global _lock
    _lock = threading.Lock()
    _pools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pools)


def _ranges(count: int, step: int, most: int, threads: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges that cover `range(count)`: half of an even share of what is left, within the bounds."""
    start = 0
    while start < count:
        stop = min(start + max(step, min(most, (count - start) // (2 * threads))), count)
        yield start, stop
        start = stop


def _wait_for(futures: list[Future[None]]) -> None:
    """Wait until none is under way, however often Ctrl-C is pressed: none may write into arrays that were given up."""
    interrupted = None
    for future in futures:
        while not (future.cancel() or future.done()):
            try:
                future.exception()
            except KeyboardInterrupt as error:
                interrupted = error
    if interrupted is not None:
        raise interrupted


def run(task: Callable[[int, int], None], count: int, step: int, num_threads: int | None = None, most: int = 0) -> None:
    """Call `task(start, stop)` for consecutive ranges that cover `range(count)`, on `num_threads` threads, of which
    the caller's is one.

    Ranges hold `step`, or up to `most` while much is left: turns cost some 20 us each, and the last ones should be
    short, so that no thread waits long for another. The first exception of a task is raised here, after those under way
    have ended; ranges not yet begun are left out.
    """
    step = max(1, step)
    threads = min(resolve_threads(num_threads), -(-count // step))
    ranges = _ranges(count, step, most, max(1, threads))
    if threads <= 1 or getattr(_inside, "task", False):
        for start, stop in ranges:
            task(start, stop)
        return
    turn = threading.Lock()
    stopped = threading.Event()

    def work() -> None:
        _inside.task = True
        try:
            while not stopped.is_set():
                with turn:
                    start, stop = next(ranges, (count, count))
                if start == count:
                    return
                task(start, stop)
        except BaseException:
            stopped.set()
            raise
        finally:
            _inside.task = False

    futures: list[Future[None]] = []
    try:
        with contextlib.suppress(RuntimeError):  # Python is ending, and lets no thread begin: this one does it all
            pool = _pool(resolve_threads(num_threads) - 1)
            futures += (pool.submit(work) for _ in range(threads - 1))
        work()  # this thread is at it before the others have woken up
        for future in futures:
            if not future.cancel():  # it may wait behind the work of another caller: none is left for it
                future.result()
    finally:
        stopped.set()
        _wait_for(futures)
