"""A spawn pool on this machine: K processes, each with its share of the threads.

A process that dies is replaced, and its rows are done again.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from bigvocab.errors import BigvocabError, Keyword
from bigvocab.jobs.task import Piece, RowTask
from bigvocab.jobs.workers.orders import as_piece, do_task, order_of, task_ranges, threads_each
from bigvocab.kernels.jit import announce_compilation

_DEATHS = 3  # of processes in a row, without any work done between them
_GUARD = 'if __name__ == "__main__":'


def pool_pieces(task: RowTask, start: int, workers: int) -> Iterator[Piece]:
    """The rows of a task from `start` on, in order, worked by a pool of processes."""
    announce_compilation()
    order = order_of(task, threads_each(task, workers))
    todo = deque(task_ranges(task, start, workers))
    deaths = 0
    while todo:
        try:
            for first, stop, done in results_of_pool(order, todo, workers, cautious=deaths > 0):
                deaths = 0
                yield as_piece(task, first, stop, done)
        except BrokenProcessPool:
            deaths += 1
            if deaths >= _DEATHS:
                first, stop = todo[0]
                raise BigvocabError(
                    Keyword("workers"),
                    f": {deaths} processes died one after the other (killed, out of memory, or started by "
                    f"a script without {_GUARD}) "
                    f"near rows {first}-{stop - 1}; "
                    "all rows before are done: with state, resume continues from there",
                ) from None


def check_process() -> None:
    """Raise where this process may start no others."""
    process = multiprocessing.current_process()
    if getattr(process, "_inheriting", False):
        raise BigvocabError(
            Keyword("workers"), f": each imports the script that starts it; expected {_GUARD} around the call"
        )
    if process.daemon:
        raise BigvocabError(
            Keyword("workers"), ": this process is a daemonic one, which may start no others; expected workers=None"
        )


def end_with_parent() -> None:
    """In a worker: end when the parent is gone, however it went; else workers of a killed job would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent").start()


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Signals that ask for an end wait until this is over: a process that was started and has not yet got its orders
    would say so at length. Ctrl-C never reaches processes that are started in here: this one ends them, and says so
    once.

    To block a signal is not enough: another thread may get it, and Python runs its handler in the main one.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    waiting: list[int] = []
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP] if in_main_thread() else []
    handlers = {number: signal.getsignal(number) for number in numbers}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        for number, handler in handlers.items():
            if handler not in (None, signal.SIG_IGN):
                signal.signal(number, lambda number, frame: waiting.append(number))
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in handlers.items():
            if handler not in (None, signal.SIG_IGN):
                signal.signal(number, handler)
        if waiting:
            signal.raise_signal(waiting[0])


def in_main_thread() -> bool:
    """Whether this is the thread that may set handlers of signals."""
    return threading.current_thread() is threading.main_thread()


def results_of_pool(
    order: bytes, todo: deque[tuple[int, int]], workers: int, *, cautious: bool
) -> Iterator[tuple[int, int, Any]]:
    """Results of `todo` in order; a range leaves it when its result is handed on.

    `cautious` begins with one range alone: if that is the one whose processes die, no other dies with it.
    """
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), end_with_parent)
    running: deque[Future[Any]] = deque()
    waiting = iter(list(todo))
    most = 1 if cautious else 3 * workers
    try:
        while todo:
            with _undisturbed():
                while len(running) < most and (span := next(waiting, None)) is not None:
                    running.append(pool.submit(do_task, order, *span))
            done, most = running.popleft().result(), 3 * workers
            first, stop = todo.popleft()
            yield first, stop, done
    finally:
        with contextlib.suppress(Exception):
            for process in list((pool._processes or {}).values()) if todo else ():
                process.terminate()  # after an error or Ctrl-C nobody waits for what is still running
        pool.shutdown(wait=True, cancel_futures=True)
