"""How rows of a mapped file are read: what is read ahead is waited for, pages are entered in the map beforehand, and
let go of afterwards.

A file that the system holds in large pages (2 MiB, as this package has it read from the disk) costs next to nothing to
map. In small ones, as other programs may leave it, there is a page fault for every 64 KiB. Taken in the midst of a
kernel they halved its speed (on a virtual machine: 23 GB/s where an array in memory gave 48); taken one after the other
before it they cost a quarter (36 GB/s), less than a `pread` into the cache (27).
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from bigvocab.storage import os_advice
from bigvocab.storage.read_ahead import ReadAhead

Array = np.ndarray[Any, np.dtype[Any]]

MAPPED_TURN = 32 << 20  # bytes of a mapped file that a thread should read at a time at most
LET_GO = 256 << 20  # bytes to let go of at a time: each time the system interrupts every thread


class Behind:
    """What threads have read of files that are read once: it is let go of, 256 MiB of all of them at a time.

    Args:
        maps: of those files, kept while there may be a thread in here: addresses alone could be someone else's by then.
    """

    def __init__(self, maps: list[Any]) -> None:
        self._maps = maps
        self._lock = threading.Lock()
        self.ranges: list[tuple[int, int]] = []  # addresses that are not yet let go of
        self._bytes = 0

    def add(self, start: int, stop: int, size: int) -> None:
        """Let go of `size` bytes between two addresses, now or later."""
        with self._lock:
            self._bytes += size
            if self.ranges and self.ranges[-1][1] == start:
                start, _ = self.ranges.pop()
            self.ranges.append((start, stop))
            if self._bytes < LET_GO:
                return
            ranges, self.ranges, self._bytes = sorted(self.ranges), [], 0
        first, last = ranges[0]
        for start, stop in ranges[1:]:
            if start > last:
                os_advice.advice.release_whole(first, last)
                first = start
            last = max(last, stop)
        os_advice.advice.release_whole(first, last)


class Reader:
    """Rows of one mapped file; threads share it.

    Args:
        address: where its map begins.
        ahead: what is being read ahead of it.
    """

    def __init__(self, address: int, ahead: ReadAhead) -> None:
        self._address, self._ahead = address, ahead
        self.behind: Behind | None = None  # where rows are read once

    def bring(self, rows: Array, classes: int, left_out: Array) -> None:
        """Have rows (n, at least classes), as kernels take them, in the map, except those left out (n,)."""
        from bigvocab.kernels import pages

        start = rows.ctypes.data
        self._ahead.wait_for(start - self._address, start - self._address + rows.nbytes)
        pages.touch_rows(rows.reshape(-1).view(np.uint8), start, rows.strides[0], classes * rows.itemsize, left_out)

    def done(self, rows: Array, classes: int) -> None:
        """Let go of rows that were brought, where they are read once."""
        if (behind := self.behind) is None or not len(rows):
            return
        start, width = rows.ctypes.data, classes * rows.itemsize  # the map may end after it
        behind.add(start, start + (len(rows) - 1) * rows.strides[0] + width, len(rows) * width)


def reader_of(rows: Array) -> Reader | None:
    """The reader of the mapped file that an array is a view of; None for arrays in memory."""
    base: Any = rows
    while isinstance(base, np.ndarray):
        base = base.base
    return getattr(base, "reader", None)
