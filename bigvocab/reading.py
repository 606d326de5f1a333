"""How rows of a mapped file are read: what is read ahead is waited for, pages are entered in the map beforehand, and
let go of afterwards.

A file that the system holds in large pages (2 MiB, as this package has it read from the disk) costs next to nothing to
map. In small ones, as other programs may leave it, there is a page fault for every 64 KiB. Taken in the midst of a
kernel they halved its speed (on a virtual machine: 23 GB/s where an array in memory gave 48); taken one after the other
before it they cost a quarter (36 GB/s), less than a `pread` into the cache (27).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bigvocab import memory
from bigvocab.read_ahead import ReadAhead

Array = np.ndarray[Any, np.dtype[Any]]

MAPPED_TURN = 32 << 20  # bytes of a mapped file that a thread should read at a time at most
_LET_GO = 256 << 20  # bytes to let go of at a time: each time the system interrupts every thread


class Reader:
    """Rows of one mapped file; threads share it.

    Args:
        address: where its map begins.
        ahead: what is being read ahead of it.
    """

    def __init__(self, address: int, ahead: ReadAhead) -> None:
        self._address, self._ahead = address, ahead
        self._once = False
        self._done: list[tuple[int, int]] = []  # addresses of what is still mapped
        self._bytes = 0

    def reads_once(self, once: bool) -> None:
        """Whether rows are read `once` from now on, and let go of then; else they may be read again soon."""
        with self._ahead.lock:
            self._once, self._done, self._bytes = once, [], 0

    def bring(self, rows: Array, classes: int, left_out: Array) -> None:
        """Have rows (n, at least classes), as kernels take them, in the map, but for those left out (n,)."""
        from bigvocab.kernels import pages

        start = rows.ctypes.data
        self._ahead.wait_for(start - self._address, start - self._address + rows.nbytes)
        pages.touch_rows(rows.reshape(-1).view(np.uint8), start, rows.strides[0], classes * rows.itemsize, left_out)

    def done(self, rows: Array, classes: int) -> None:
        """Let go of rows that were brought, 256 MiB at a time, where they are read once."""
        width = classes * rows.itemsize  # behind it there may be the end of the map
        start, stop = rows.ctypes.data, rows.ctypes.data + (len(rows) - 1) * rows.strides[0] + width
        with self._ahead.lock:
            if not self._once or start >= stop:
                return
            self._bytes += len(rows) * width
            if self._done and self._done[-1][1] == start:
                start, _ = self._done.pop()
            self._done.append((start, stop))
            if self._bytes < _LET_GO:
                return
            ranges, self._done, self._bytes = sorted(self._done), [], 0
        first, last = ranges[0]
        for start, stop in ranges[1:]:
            if start > last:
                memory.release_whole(first, last)
                first = start
            last = max(last, stop)
        memory.release_whole(first, last)


def reader_of(rows: Array) -> Reader | None:
    """The reader of the mapped file that an array is a view of; None for arrays in memory."""
    base: Any = rows
    while isinstance(base, np.ndarray):
        base = base.base
    return getattr(base, "reader", None)
