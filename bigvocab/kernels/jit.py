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
_on_compile: list[Callable[[str, bool], None]] = []
_spent = threading.local()  # seconds of this thread on making kernels ready


def clock() -> float:
    """Seconds of a clock of this thread, which stands still while kernels are made ready that it asks for, by itself or
    by another thread that it waits for: a start, not the work.
    """
    return time.monotonic() - getattr(_spent, "seconds", 0.0)


def _untimed(make_ready: Callable[..., Any]) -> Callable[..., Any]:
    """`make_ready`, its time taken from the clock of the thread that calls it."""

    def call(*arguments: Any) -> Any:
        start, before = time.monotonic(), getattr(_spent, "seconds", 0.0)
        try:
            return make_ready(*arguments)
        finally:  # what it called was part of it
            _spent.seconds = before + time.monotonic() - start

    return call


def on_compile(callback: Callable[[str, bool], None]) -> None:
    """Call `callback(name, whether it will be kept)` before a kernel is compiled: no machine code of it is kept yet.
    The name is "all" where other processes are about to do it.
    """
    _on_compile.append(callback)


def keeps_none_yet() -> bool:
    """Whether machine code will be kept, but none is."""
    return _folder is not None and not any(_folder.glob("*.nbi"))


def announce_compilation() -> None:
    """Tell those who want to know where other processes are about to compile, because nothing is kept."""
    if _folder is None or keeps_none_yet():
        _compiling("all")


def stamp() -> str:
    """Hash of everything that machine code depends on, but for the processor, which Numba's own key holds."""
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


def _is_ours(folder: Path) -> bool:
    """Whether `folder` can be made and written, and by nobody else: what lies in it is unpickled and run."""
    if not folder.is_absolute():
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat()
        if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & stat.S_IWOTH):
            return False
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _find_folder() -> Path | None:
    name = stamp()
    folders = (folder / "kernels" for folder in _candidate_folders())
    return next((folder / name for folder in folders if _is_ours(folder)), None)


_folder = _find_folder()


class _Locator(_CacheLocator):
    """Tells Numba where the machine code of one kernel is kept."""

    def __init__(self, py_func: Any) -> None:
        self._py_func = py_func

    def get_cache_path(self) -> str:
        return str(_folder)

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
            _compiling(self._py_func.__name__)
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
        _compiling(self._function.__name__)


def _compiling(name: str) -> None:
    for callback in _on_compile:
        callback(name, _folder is not None)


def jit(function: Callable[..., Any]) -> Any:
    """Compile `function` at its first call and keep the machine code.

    `nogil`: threads of one process share the rows. No fastmath flag at all: the order of every sum is written out in
    the kernels, so that the same bits come from every processor, and a NaN stays a NaN. `error_model="numpy"`: x / 0 is
    inf, not an exception that stops vectorisation.
    """
    return _kept(numba.njit(nogil=True, error_model="numpy")(function))


def jit_with_gil(function: Callable[..., Any]) -> Any:
    """As `jit`, for what calls Python's own functions."""
    return _kept(numba.njit(error_model="numpy")(function))


def _kept(dispatcher: Any) -> Any:
    function = dispatcher.py_func
    dispatcher._cache = _NoCache(function) if _folder is None else _KernelCache(function)
    dispatcher._compile_for_args = _untimed(dispatcher._compile_for_args)
    return dispatcher


def inline(function: Callable[..., Any]) -> Any:
    """Compile `function` into its callers; it has no machine code of its own to keep."""
    return numba.njit(nogil=True, error_model="numpy", forceinline=True)(function)
