"""How rows of a mapped file are read: from the map, or copied into a buffer in the cache, whichever is faster here.

A map of a file that the system holds in large pieces (2 MiB) costs next to nothing, and what is read here from the disk
is asked for in such. In small pieces (a file written through a map or in little writes, or brought in by another
program) each page of 4 KiB has to be entered and taken out again: on a virtual machine that was seen to take two thirds
of the time, and a copy a third. So pages are counted, and where they are small both ways are tried and the faster one
is kept. What is computed does not depend on it.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from statistics import median
from typing import Any

import numpy as np

from bigvocab import memory
from bigvocab.read_ahead import ReadAhead

Array = np.ndarray[Any, np.dtype[Any]]

_AT_ONCE = 2 << 20  # bytes copied at a time: they stay in the cache until they are read
_LARGEST = 16 << 20  # of one row
_LARGE_PAGES = 1 << 18  # bytes of a file for each page fault, at least, where its pages are large
_TRIES = 5  # turns of either way before they are compared, by the medians of as many
# Bytes of a turn at most: where the cost of turns would show, because these many bytes a second were seen and there is
# nothing left to compare, and elsewhere. From the disk the system reads ahead best where threads stay near each other.
_LARGE_TURN, _FAST = 32 << 20, 4e9
_TURN = 8 << 20
_RETRY = 32  # turns after which the slower way is tried once more, then after twice as many, ...

_rooms = threading.local()


def identity(status: os.stat_result) -> tuple[int, int, int, int]:
    """What changes when a file is written to or replaced."""
    return status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev


class Reader:
    """Rows of one mapped file; threads share it.

    Args:
        path: the file.
        address: where its map begins.
        mapped: the identity of the file that was mapped.
        ahead: what is being read ahead of it.
    """

    def __init__(self, path: str, address: int, mapped: tuple[int, int, int, int], ahead: ReadAhead) -> None:
        self._path, self._address, self._identity, self._ahead = path, address, mapped, ahead
        self._can_copy = hasattr(os, "preadv") and hasattr(os, "sched_getaffinity")  # Linux
        self.copies = self._large_pages = False
        self._turns, self._retry = 0, _RETRY
        self._mapped: deque[float] = deque(maxlen=_TRIES)  # seconds a byte of late
        self._copied: deque[float] = deque(maxlen=_TRIES)
        self._learning = threading.Lock()
        self._fast = False

    @property
    def largest_turn(self) -> int:
        """Bytes that should be read at a time at most."""
        settled = self._large_pages or len(self._copied) == _TRIES
        return _LARGE_TURN if settled and self._fast else _TURN

    def read(self, rows: Array) -> Iterator[tuple[int, Array]]:
        """(first row, rows) of a view of the map that cover it, each valid until the next is asked for."""
        row_bytes, asked = rows.nbytes // max(1, len(rows)), time.perf_counter()
        if rows.flags.c_contiguous:
            start = rows.ctypes.data - self._address
            self._ahead.wait_for(start, start + rows.nbytes)
        if not self._can_copy or not 0 < row_bytes <= _LARGEST or not rows.flags.c_contiguous:
            yield 0, rows
            return
        self._turns += 1
        copied = self.copies
        if self._turns >= self._retry and len(self._copied) == _TRIES:
            self._turns, self._retry, copied = 0, 2 * self._retry, not copied
        began, (faults, _) = time.perf_counter(), memory.page_faults()
        if copied:
            yield from self._copies_of(rows, max(1, _AT_ONCE // row_bytes))
        else:
            yield 0, rows
        seconds = time.perf_counter() - began
        self._learn(copied, rows.nbytes, seconds, memory.page_faults()[0] - faults, began - asked)

    def _copies_of(self, rows: Array, step: int) -> Iterator[tuple[int, Array]]:
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            yield 0, rows  # gone or replaced: what watches the file says so
            return
        try:
            if identity(os.fstat(descriptor)) != self._identity:
                yield 0, rows
                return
            for start in range(0, len(rows), step):
                part = rows[start : start + step]
                yield start, _filled(descriptor, part, part.ctypes.data - self._address)
        finally:
            os.close(descriptor)

    def _learn(self, copied: bool, size: int, seconds: float, faults: int, waited: float = 0.0) -> None:
        """Note what a turn cost, and choose."""
        with self._learning:
            self._fast = size > _FAST * (seconds + waited)
            if not copied:
                self._large_pages = faults * _LARGE_PAGES < size
            if self._large_pages:
                self._mapped.clear()
                self._copied.clear()
                self.copies = False
                return
            (self._copied if copied else self._mapped).append(seconds / size)
            if len(self._mapped) < _TRIES:
                self.copies = False
            elif len(self._copied) < _TRIES:
                self.copies = True
            else:
                self.copies = median(self._copied) < median(self._mapped)


def _filled(descriptor: int, part: Array, offset: int) -> Array:
    """A copy of `part`, read from the file, in a buffer of this thread; the part itself where the file is shorter."""
    room: Array | None = getattr(_rooms, "buffer", None)
    if room is None or room.nbytes < part.nbytes:
        room = _rooms.buffer = memory.empty(max(part.nbytes, _AT_ONCE), np.uint8)
    bytes_ = room[: part.nbytes]
    done = 0
    while done < part.nbytes:
        got = os.preadv(descriptor, [bytes_[done:].data], offset + done)
        if got <= 0:
            return part
        done += got
    copy = bytes_.view(part.dtype).reshape(part.shape)
    copy.flags.writeable = False
    return copy


def reader_of(rows: Array) -> Reader | None:
    """The reader of the mapped file that an array is a view of; None for arrays in memory."""
    base: Any = rows
    while isinstance(base, np.ndarray):
        base = base.base
    return getattr(base, "reader", None)
