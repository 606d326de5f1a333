"""Ray Core: each range of rows is a task that opens the files, wherever it runs, and sends back sums.

Ray starts failed tasks again. Workers need bigvocab and the files, under the same paths. `address`, or RAY_ADDRESS,
names a cluster; without either, Ray starts on this machine and ends with the job.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import bigvocab
from bigvocab.errors import BigvocabError, Keyword
from bigvocab.jobs.task import Piece, RowTask
from bigvocab.jobs.workers.orders import as_piece, do_task, order_of, task_ranges, threads_each
from bigvocab.kernels.jit import announce_compilation
from bigvocab.threads import usable_cores

_PATIENCE = 10.0  # seconds for a connection to a cluster's first port
_ANSWER = 60.0  # and for an answer of Ray there
_TRIES = "RAY_NUM_REDIS_GET_RETRIES"  # Ray's own, a second each, of which it takes 20: who refuses goes on refusing
_PROBE = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR'); ray.shutdown()"
# The first bytes of HTTP/2, with an empty frame of settings; a server begins with such a frame (RFC 9113, 3.4).
_SETTINGS = b"\x04"  # the fourth byte of a frame
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + _SETTINGS + b"\0" * 5
_WHICH = "is it the port of a head, with the same RAY_AUTH_MODE and token as here?"
_LOOK = 10.0  # seconds between looks whether a node is left that could hold a task
_PARTS = 10_000  # of a CPU, as Ray counts them
BESIDE = 64 << 10  # bytes of an order that go with each task; a larger one is an object, which each node fetches
_LOST = 3  # times that a task is sent again whose worker could not get at its arguments


class Share(NamedTuple):
    """How many tasks run at once, the threads of each, and the CPUs that each asks Ray for."""

    workers: int
    threads: int
    cpus: float


def share_of(nodes: list[float], workers: int | None, threads: int | None) -> Share:
    """What each of `workers` tasks gets of nodes with so many CPUs, so that all of them run at once.

    `threads`, all CPUs by default, are shared among them, as far as nodes can hold that; where there are fewer CPUs
    than workers, each has a part of one. `workers` None is one for each CPU.

    Raises:
        BigvocabError: no node has a CPU, or workers are more than Ray can make parts.

    >>> share_of([4, 2], 3, None), share_of([1], 2, 8)
    (Share(workers=3, threads=2, cpus=2), Share(workers=2, threads=1, cpus=0.5))
    """
    units = [round(cpus * _PARTS) for cpus in nodes]
    whole = sum(unit // _PARTS for unit in units)
    if not sum(units):
        raise BigvocabError(Keyword("engine"), ": no node of this Ray has a CPU for tasks, expected one that does")
    workers = workers or max(1, whole)
    most = max(unit // _PARTS for unit in units)
    for cpus in range(min(max(1, (threads or whole) // workers), most), 0, -1):
        if sum(unit // (cpus * _PARTS) for unit in units) >= workers:
            return Share(workers, cpus, cpus)
    for part in range(min(sum(units) // workers, _PARTS - 1), 0, -1):
        if sum(unit // part for unit in units) >= workers:
            return Share(workers, 1, part / _PARTS)
    raise BigvocabError(
        Keyword("workers"), f": got {workers}, but Ray has {sum(nodes):g} CPUs, expected {sum(units)} at most"
    )


def ray_pieces(job: RowTask, start: int, workers: int | None, address: str | None) -> Iterator[Piece]:
    """The rows of a job from `start` on, in order, worked by tasks of Ray."""
    ray = _import_ray()
    announce_compilation()
    with _connected(ray, workers, address) as (ours, stays):
        if ours:  # its CPUs are nothing but places for workers
            count = workers or usable_cores()
            share = Share(count, threads_each(job, count), 1)
        else:
            share = share_of(_node_cpus(ray), workers, job.threads_asked)
        task = ray.remote(num_cpus=share.cpus, max_retries=5)(do_task)
        order: Any = order_of(job, share.threads)
        if len(order) > BESIDE:
            order = ray.put(order)
        waiting = iter(task_ranges(job, start, share.workers))
        running: deque[tuple[int, int, Any]] = deque()
        lost = 0  # times in a row
        try:
            while True:
                while len(running) < 3 * share.workers and (span := next(waiting, None)) is not None:
                    running.append((*span, task.remote(order, *span)))
                if not running:
                    return
                first, stop, promise = running[0]
                _wait(ray, promise, share.cpus)
                try:
                    done = _result(ray, promise, first, stop)
                except _LostTask:
                    lost += 1
                    if lost > _LOST:
                        raise
                    running[0] = first, stop, task.remote(order, first, stop)
                    continue
                lost = 0
                running.popleft()
                yield as_piece(job, first, stop, done)
        finally:
            # Who disconnects takes the workers along. Where Ray stays, they end at their next block: by force, a task
            # that is just done would end this process too ("tried to complete task that was not pending").
            for _, _, promise in running if stays else ():
                with contextlib.suppress(Exception):
                    ray.cancel(promise)


class _LostTask(BigvocabError):
    """Ray's own error in place of a task's: nothing was done that could be wrong."""


def _node_cpus(ray: Any) -> list[float]:
    """CPUs of each node that is alive."""
    return [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]


def _wait(ray: Any, promise: Any, cpus: float) -> None:
    """Wait for a task, as long as there is a node that could hold it: nodes may leave, and Ray would wait for ever."""
    while not ray.wait([promise], timeout=_LOOK)[0]:
        if max(_node_cpus(ray), default=0.0) < cpus:
            raise BigvocabError(
                Keyword("engine"),
                f": no node of Ray is left with {cpus:g} CPUs, which a task needs; "
                "with state, resume continues from there",
            )


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise BigvocabError(Keyword("engine"), ": ray is not installed here; pip install 'bigvocab[ray]'") from None
    return ray


@contextlib.contextmanager
def _connected(ray: Any, workers: int | None, address: str | None) -> Iterator[tuple[bool, bool]]:
    """A connection to a cluster, or a Ray of our own: (whether it is our own, whether it was here before and stays)."""
    if address is not None and not address.strip():
        raise BigvocabError(Keyword("address"), ": got an empty one, expected host:port of a Ray cluster, or none")
    if ray.is_initialized():
        yield False, True
        return
    place = address or os.environ.get("RAY_ADDRESS")
    ours = place in (None, "", "local")
    if place and not ours:
        refuse_deaf(place)
        refuse_mute(place)
    try:
        if not ours:
            with _own_signals():
                ray.init(address=place, log_to_driver=False, logging_level="ERROR")
        else:
            quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
            with _own_signals():
                ray.init(address="local", num_cpus=workers or usable_cores(), **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        hint = "" if ours else f"; {_WHICH}"
        where = "this machine" if ours else place
        raise BigvocabError(Keyword("address"), f": no Ray at {where}: {str(error).splitlines()[0]}{hint}") from None
    try:
        yield ours, False
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Whatever SIGTERM does here, it does during and after a start of Ray, which has it end with code 15, and later
    print a stack of C++.
    """
    before = signal.getsignal(signal.SIGTERM)
    restored = before if threading.current_thread() is threading.main_thread() else None
    try:
        yield
    except SystemExit as ended:
        if restored is not None and ended.code == signal.SIGTERM:
            signal.signal(signal.SIGTERM, restored)
            signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        if restored is not None:
            signal.signal(signal.SIGTERM, restored)


def refuse_mute(place: str, patience: float = _ANSWER) -> None:
    """Raise where no Ray answers in time: `ray.init` would try for many minutes, deaf to signals, and print the while.

    A process of its own tries, because that can be ended.
    """
    command = [sys.executable, "-c", _PROBE, place]
    environment = {_TRIES: "8", **os.environ}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=patience, env=environment
        )
    except subprocess.TimeoutExpired:
        raise BigvocabError(
            Keyword("address"), f": no Ray at {place}: no answer in {patience:g} seconds; {_WHICH}"
        ) from None
    if done.returncode == 0:
        return
    raised = re.findall(r"^(?:[\w.]+\.)?\w*(?:Error|Exception): (.*)$", done.stderr, re.MULTILINE)
    reason = raised[-1] if raised else "it did not answer"
    if "AuthToken" in done.stderr:
        reason = "its token is another one than here, or there is none here"
    raise BigvocabError(Keyword("address"), f": no Ray at {place}: {reason}; {_WHICH}")


def refuse_deaf(place: str, patience: float = _PATIENCE) -> None:
    """Raise where nothing listens at host:port, or something else than a server of Ray, which begins to speak at once:
    Ray itself would try for minutes.
    """
    host, _, port = place.removeprefix("ray://").rpartition(":")
    if not host and port.isdecimal():
        raise BigvocabError(Keyword("address"), f": got {place!r}, which names no host, expected host:port")
    if not host or not port.isdecimal():
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=patience) as found:
            if os.environ.get("RAY_USE_TLS", "0") not in ("1", "true"):
                found.sendall(_HELLO)
                begun = found.recv(4)
                if begun[3:] != _SETTINGS:
                    raise ConnectionError("what listens there is no Ray")
    except TimeoutError:
        raise BigvocabError(
            Keyword("address"), f": no Ray at {place}: no answer in {patience:g} seconds; {_WHICH}"
        ) from None
    except (OSError, OverflowError, UnicodeError) as error:
        raise BigvocabError(Keyword("address"), f": no Ray at {place}: {error}") from None


def _result(ray: Any, promise: Any, start: int, stop: int) -> Any:
    """The result of a task; the error that it raised, as it raised it."""
    try:
        return ray.get(promise)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, BigvocabError | TypeError):
            raise cause from None
        found = re.search(r"\bip=([^\s,)]+)", str(error))  # Ray keeps it nowhere else
        where = f"worker {found[1]}" if found else "a worker"
        what = f"{type(cause).__name__}: {_last_line(cause)}"
        kind = _LostTask if isinstance(cause, ray.exceptions.RayError) else BigvocabError
        raise kind(
            Keyword("engine"),
            f": the task of rows {start}-{stop - 1} failed on {where}: {what}; "
            f"expected bigvocab {bigvocab.__version__} there, as here",
        ) from error
    except ray.exceptions.RayError as error:
        raise BigvocabError(
            Keyword("engine"),
            f": the task of rows {start}-{stop - 1} failed again and again: {str(error).splitlines()[0]}; "
            "with state, resume continues from there",
        ) from None


def _last_line(error: BaseException) -> str:
    """Of a traceback in a message, what was raised."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else "no message"
