"""The one decorator of every kernel, and the folder that keeps their machine code between runs.

Numba's own cache stamps only the file a kernel stands in, so a change in a helper of another file would go unseen. Here
the folder's name is a hash over the sources of all kernels and the versions of Numba and llvmlite; a folder that cannot
be written, or that another user could write, means no cache, never an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core.caching import CompileResultCacheImpl, FunctionCache, NullCache, _CacheLocator

_SOURCES = Path(__file__).parent
listeners: list[Callable[[str, bool], None]] = []  # called before a kernel is compiled


class WorkClock:
    """Seconds of each thread that stand still while kernels are made ready that it asks for, by itself or by another
    thread that it waits for: a start, not the work.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self._of_thread = threading.local()

    @property
    def spent(self) -> float:
        """Seconds of this thread on making kernels ready."""
        return getattr(self._of_thread, "spent", 0.0)

    @spent.setter
    def spent(self, seconds: float) -> None:
        self._of_thread.spent = seconds

    def __call__(self) -> float:
        """Seconds of this thread."""
        return self.now() - self.spent

    def stopped_in(self, make_ready: Callable[..., Any]) -> Callable[..., Any]:
        """`make_ready`, its time taken from the clock of the thread that calls it."""

        def call(*arguments: Any) -> Any:
            start, before = self.now(), self.spent
            try:
                return make_ready(*arguments)
            finally:  # what it called was part of it
                self.spent = before + self.now() - start

        return call


clock = WorkClock()


def on_compile(callback: Callable[[str, bool], None]) -> None:
    """Call `callback(name, whether it will be kept)` before a kernel is compiled: no machine code of it is kept yet.
    The name is "all" where other processes are about to do it.
    """
    listeners.append(callback)


def announce(name: str) -> None:
    """Tell those who want to know that the kernel `name` is about to be compiled."""
    for callback in listeners:
        callback(name, folder is not None)


def keeps_none_yet() -> bool:
    """Whether machine code will be kept, but none is."""
    return folder is not None and not any(folder.glob("*.nbi"))


def announce_compilation() -> None:
    """Tell those who want to know where other processes are about to compile, because nothing is kept."""
    if folder is None or keeps_none_yet():
        announce("all")


def stamp() -> str:
    """Hash of everything that machine code depends on, except the processor, which Numba's own key holds."""
    digest = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__}".encode())
    for source in sorted(_SOURCES.rglob("*.py")):
        digest.update(source.relative_to(_SOURCES).as_posix().encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:16]


def _candidate_folders() -> list[Path]:
    """Where machine code may be kept, best first. HOME may be unset, and a user may have no home at all."""
    if chosen := os.environ.get("BIGVOCAB_CACHE_DIR"):
        return [Path(chosen)]
    from platformdirs import user_cache_path

    user = os.getuid() if hasattr(os, "getuid") else "user"
    return [user_cache_path("bigvocab"), Path(tempfile.gettempdir()) / f"bigvocab-{user}"]


def _is_ours(candidate: Path) -> bool:
    """Whether a folder can be made and written, and by nobody else: what lies in it is unpickled and run."""
    if not candidate.is_absolute():
        return False
    try:
        candidate.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = candidate.stat()
        if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & stat.S_IWOTH):
            return False
        with tempfile.TemporaryFile(dir=candidate):
            return True
    except OSError:
        return False


def _find_folder() -> Path | None:
    name = stamp()
    candidates = (candidate / "kernels" for candidate in _candidate_folders())
    return next((candidate / name for candidate in candidates if _is_ours(candidate)), None)


folder = _find_folder()  # where machine code is kept; None: nowhere


class _Locator(_CacheLocator):
    """Tells Numba where the machine code of one kernel is kept."""

    def __init__(self, py_func: Any) -> None:
        self._py_func = py_func

    def get_cache_path(self) -> str:
        return str(folder)

    def get_source_stamp(self) -> str:
        return "in the folder's name"

    def get_disambiguator(self) -> str:
        return str(self._py_func.__code__.co_firstlineno)

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> _Locator:
        return cls(py_func)


class _KernelCacheImpl(CompileResultCacheImpl):
    _locator_classes: Any = [_Locator]


class _KernelCache(FunctionCache):
    """Numba's cache of one kernel, which falls back to compiling when a kept file is damaged or the disk is full."""

    _impl_class = _KernelCacheImpl

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            found = super().load_overload(sig, target_context)
        except Exception:  # a truncated or foreign file can raise anything when unpickled
            found = None
        if found is None:
            announce(self._py_func.__name__)
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError:
            self.disable()  # the disk is full, or no longer ours
        except Exception:  # the index, which is read before it is written, is damaged
            with contextlib.suppress(OSError):
                self.flush()
                super().save_overload(sig, data)


class _NoCache(NullCache):
    """No folder to keep machine code in: every start compiles, and says so."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def load_overload(self, sig: Any, target_context: Any) -> None:
        announce(self._function.__name__)


def _njit(**options: Any) -> Any:
    """Numba's decorator with any option that it takes: its types name a few."""
    return numba.njit(error_model="numpy", **options)


def jit(function: Callable[..., Any]) -> Any:
    """Compile `function` at its first call and keep the machine code.

    `nogil`: threads of one process share the rows. No fastmath flag at all: the order of every sum is written out in
    the kernels, so that the same bits come from every processor, and a NaN stays a NaN. `error_model="numpy"`: x / 0 is
    inf, not an exception that stops vectorisation.
    """
    return _kept(fresh(function))


def fresh(function: Callable[..., Any]) -> Any:
    """As `jit`, but compiled anew and not kept: machine code that was loaded cannot be shown."""
    return _njit(nogil=True, no_cfunc_wrapper=True)(function)


def jit_with_gil(function: Callable[..., Any]) -> Any:
    """As `jit`, for what calls Python's own functions."""
    return _kept(_njit(no_cfunc_wrapper=True)(function))


def _kept(dispatcher: Any) -> Any:
    function = dispatcher.py_func
    dispatcher._cache = _NoCache(function) if folder is None else _KernelCache(function)
    dispatcher._compile_for_args = clock.stopped_in(dispatcher._compile_for_args)
    return dispatcher


def inline(function: Callable[..., Any]) -> Any:
    """Compile `function` into its callers; it has no machine code of its own to keep.

    It is never called from Python: the wrappers for that would be a quarter of the work of compiling a kernel.
    """
    return _njit(nogil=True, forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)
