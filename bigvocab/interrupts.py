"""Ctrl-C: before the work begins it ends the process at once, after that it is a KeyboardInterrupt.

While modules are loaded an exception may come out of an import as another one, or be printed by a library; and there is
nothing to clean up yet.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

SAID = "bigvocab: interrupted"
_working = False


def heed() -> None:
    """Take over Ctrl-C, where nobody else has."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def work_begins() -> None:
    """From now on there may be something to clean up."""
    global _working
    _working = True


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _working:
        raise KeyboardInterrupt
    os.write(2, f"{SAID}\n".encode())
    os._exit(1)
