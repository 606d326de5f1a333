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
from concurrent.futures import ThreadPoolExecutor

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


def pool_of(workers: int) -> ThreadPoolExecutor:
    """The one pool of this process with so many threads."""
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


def run_threads(
    task: Callable[[int, int], None], count: int, step: int, num_threads: int | None = None, most: int = 0
) -> None:
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
    turn = threading.Lock()  # and for what is told by the others
    left = threading.Condition(turn)
    faults: list[BaseException] = []
    inside, closed = 0, False

    def work() -> None:
        _inside.task = True
        try:
            while not faults and not closed:
                with turn:
                    start, stop = next(ranges, (count, count))
                if start == count:
                    return
                task(start, stop)
        finally:
            _inside.task = False

    def help_out() -> None:
        nonlocal inside
        with turn:
            if closed:  # it waited behind the work of another caller
                return
            inside += 1
        try:
            work()
        except BaseException as error:
            faults.append(error)
        with turn:
            inside -= 1
            left.notify_all()

    def wait() -> None:
        """Until none is under way, however often an end is asked for: none may write into arrays that were given up."""
        nonlocal closed
        interrupted = None
        while inside or not closed:
            try:
                with turn:
                    closed = True
                    while inside:
                        left.wait()
            except (KeyboardInterrupt, SystemExit) as error:
                interrupted = error
        if interrupted is not None:
            raise interrupted

    try:
        # no thread begins where Python is ending or the system refuses, although it may be done by one that is there
        with contextlib.suppress(RuntimeError):
            pool = pool_of(resolve_threads(num_threads) - 1)
            for _ in range(threads - 1):
                pool.submit(help_out)
        work()  # this thread is at it before the others have woken up
    except BaseException as error:
        faults.insert(0, error)
        raise
    finally:
        wait()
    if faults:
        raise faults[0]
