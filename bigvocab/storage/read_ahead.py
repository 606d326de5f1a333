"""Bytes of a mapped file, read from the disk before they are needed.

Threads that compute wait at different places of a file, and the system reads little for each. So others go before them:
several, because a disk that has several requests at hand is faster (here 3.2 GB/s for two threads, 1.5 to 3.3 for one),
close together, because it reads best in order, and in large pages, because those cost next to nothing to map, then and
later. Who computes waits for them, for a page fault of its own would be one more place to read at.
"""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

from bigvocab.storage import os_advice

_STREAMS = 4  # threads that read
_LARGE_PAGE = 2 << 20  # bytes
_LOOKS, _PROBED = 8, 64 << 20  # after so many pages that were there, bytes to the next look
SMALL = 256 << 20  # bytes of a file: what is looked at of many of them adds up


class _Range:
    """A range of bytes that is being read: what is next, and which pages are under way."""

    def __init__(self, start: int, stop: int) -> None:
        self.next, self.stop = start, stop
        self.under_way: dict[int, int] = {}  # of each thread
        self._there, self._known = 0, start  # pages one after the other that were in memory, and where they end

    def lacks(self, start: int, stop: int) -> bool:
        """Whether any of these bytes is still to come."""
        return max(start, min(self.under_way.values(), default=self.next)) < min(stop, self.stop)

    def take(self) -> int | None:
        """Where this thread reads next; None at the end."""
        if self.next >= self.stop:
            return None
        at = self.under_way[threading.get_ident()] = self.next
        self.next += _LARGE_PAGE if self._there < _LOOKS else _PROBED
        return at

    def done(self, read: bool) -> None:
        """The page of this thread is there, and had to be read or not; if so, what was leapt over may have to be."""
        at = self.under_way.pop(threading.get_ident())
        if not read:
            self._there, self._known = self._there + 1, max(self._known, at + _LARGE_PAGE)
        elif self._there >= _LOOKS:
            self._there, self.next = 0, min(self.next, self._known)
        else:
            self._there = 0


class ReadAhead:
    """What is read ahead of one mapped file, of `size` bytes from `address` on."""

    def __init__(self, address: int, size: int) -> None:
        self._address, self._size = address, size
        self.forget()
        _all.add(self)

    def forget(self) -> None:
        """Begin anew: a forked child has none of the threads that read."""
        self._ranges: list[_Range] = []
        # for moments; `with` takes it in one step: no signal comes between
        self._lock = threading.Lock()
        self._moved = threading.Condition(self._lock)

    def fetch(self, start: int, stop: int, ended: threading.Event) -> None:
        """Have bytes `start` to `stop` read, in order, unless it has `ended`; where many were there, not all are looked
        at.
        """
        os_advice.advice.expect_streaming(self._address, self._size)
        mine = _Range(start - start % mmap.PAGESIZE, min(stop, self._size))
        start = mine.next
        if self._read(mine, ended, only_while_there=True):  # and no one had to wait
            if self._size < SMALL:  # what is mapped now is let go of only when the block ends
                os_advice.advice.release(self._address + start, min(mine.stop - start, _LOOKS * _LARGE_PAGE))
            return
        with self._lock:
            self._ranges.append(mine)
        try:
            with ThreadPoolExecutor(_STREAMS, "pages") as streams:
                for _ in range(_STREAMS):
                    streams.submit(self._read, mine, ended)
        finally:
            with self._lock:
                self._ranges.remove(mine)
                self._moved.notify_all()

    def _read(self, mine: _Range, ended: threading.Event, only_while_there: bool = False) -> bool:
        """Read pages of a range until it has ended; or until one had to come from the disk, which returns False."""
        while not ended.is_set():
            with self._lock:
                at = mine.take()
            if at is None:
                return True
            read = os_advice.advice.bring(self._address + at)
            with self._lock:
                mine.done(read)
                self._moved.notify_all()
            if read and only_while_there:
                return False
        return True

    @property
    def busy(self) -> bool:
        """Whether anything is being fetched."""
        return bool(self._ranges)

    def wait_for(self, start: int, stop: int) -> None:
        """Wait until those of the bytes `start` to `stop` that are being fetched are there."""
        if not self._ranges:
            return
        with self._lock:
            while any(found.lacks(start, stop) for found in self._ranges):
                self._moved.wait()


_all: weakref.WeakSet[ReadAhead] = weakref.WeakSet()


def _forget_all() -> None:
    for ahead in _all:
        ahead.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
