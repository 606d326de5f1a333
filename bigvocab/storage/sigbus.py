"""A file that shrinks under a memory map kills its reader; the command says so, and leaves nothing behind.

Sizes are checked before every block, so this is for the moment between a check and the read. The handler runs in the
thread that faulted, which is in a kernel and does not hold the interpreter, so it may call Python; it ends the process,
since nothing can be mended.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from bigvocab.errors import FormatError, printable

_UNKNOWN = "a file was cut short, or its disk failed, while it was read"
_watched: weakref.WeakSet[Any] = weakref.WeakSet()
_handler: Any = None  # kept alive: the system holds only its address


def watch(owner: Any) -> None:
    """Look, as long as the owner is there, for the one to blame at `owner.watched()`: files with a path, an identity
    (None in memory) and `check`, which raises FormatError.
    """
    _watched.add(owner)


def first_cut_short() -> str | None:
    """What to say of a file that is open and has fewer bytes than it had."""
    for file in [file for owner in list(_watched) for file in owner.watched()]:
        if file.identity is not None and file.identity.is_cut_short(file.path):
            try:
                file.check()
            except FormatError as error:
                return str(error)
    return None


def die_with_a_message(clean_up: Callable[[], None]) -> None:
    """From now on a bus error calls `clean_up`, prints one line, with the file that shrank, and exits with 1."""
    global _handler
    if not hasattr(signal, "SIGBUS"):
        return
    first = threading.Lock()

    def on_bus_error(number: int) -> None:
        if not first.acquire(blocking=False):
            time.sleep(60)  # another thread faulted before, and ends the process
        message = _UNKNOWN
        with contextlib.suppress(BaseException):
            message = first_cut_short() or _UNKNOWN
        with contextlib.suppress(BaseException):
            clean_up()
        message = printable(message)
        os.write(2, f"bigvocab: error: {message} (bus error); no output was written\n".encode(errors="replace"))
        os._exit(1)

    _handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(on_bus_error)
    install = ctypes.CDLL(None).signal
    install.argtypes, install.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    install(signal.SIGBUS, ctypes.cast(_handler, ctypes.c_void_p))
