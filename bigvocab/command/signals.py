"""Ctrl-C, SIGTERM and SIGHUP: an exception where one can be cleaned up after, else the end of the process at once.

While modules are loaded or kernels compiled, an exception may come out as another one, be printed and swallowed by a
callback of LLVM, or leave a lock of the compiler taken, for which its other threads would wait for ever. A second
signal would come into the cleaning up after the first: it ends the process at once, too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType

SAID = "bigvocab: interrupted"
_UNSAFE = ("numba", "llvmlite", "importlib")
_working = _asked = False
_code: int | None = None


def heed() -> None:
    """Take over the signals that ask for an end, where nobody else has."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)


def work_begins() -> None:
    """From now on there may be something to keep, such as the state of a job."""
    global _working
    _working = True


def code_of(code: int | str | None) -> int | str | None:
    """The exit code of a process that ends with `code`: an end that a signal asked for is one, whatever error a library
    made of it on its way.
    """
    return code if code in (0, None) or _code is None else _code


def _end(number: int, frame: FrameType | None) -> None:
    global _asked, _code
    asked, again, _asked = number == signal.SIGINT, _asked, True
    _code = 1 if asked else 128 + number
    if _working and not again and not _in_unsafe_code():
        raise KeyboardInterrupt if asked else SystemExit(_code)
    with contextlib.suppress(BaseException):  # of a module that is half loaded
        sys.modules["bigvocab.storage.output"].remove_temporaries()
    if _working and os.isatty(2):
        os.write(2, b"\x1b[?25h")  # a bar hides the cursor
    if asked:
        os.write(2, f"{SAID}\n".encode())
    os._exit(_code)


def _in_unsafe_code() -> bool:
    """Whether any thread is in the compiler, or loads a module."""
    for frame in sys._current_frames().values():
        at: FrameType | None = frame
        while at is not None:
            if at.f_globals.get("__name__", "").partition(".")[0] in _UNSAFE:
                return True
            at = at.f_back
    return False
