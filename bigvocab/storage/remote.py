"""An object in a store as a file that is read by ranges: many in flight, in threads of their own.

Measured: 8 MiB over 4 to 16 threads is best. Who reads rows in order finds the next ones under way.
"""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.errors import BigvocabError, FormatError
from bigvocab.storage import uris
from bigvocab.storage.mapped import MappedFile
from bigvocab.storage.paths import Source
from bigvocab.storage.stores import ATTEMPTS, RemoteIdentity, Store, attempt, short, store_of

RANGE, THREADS = 8 << 20, 20
_HEAD = 1 << 20  # bytes read at once where a header is looked at
_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()
_whole: dict[str, str] = {}  # URI as shown -> URI


def pool() -> ThreadPoolExecutor:
    """The threads that fetch."""
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(THREADS, "ranges")
        return _pool


def remember(uri: str) -> str:
    """The URI as it is shown; `whole_uri` finds the other one again in this process. A path as it is."""
    name = uris.shown(uri)
    if name != uri or name in _whole:
        _whole[name] = uri
    return name


def whole_uri(shown: str) -> str:
    """The URI, with its keys, that is shown so."""
    return _whole.get(shown, shown)


def first_bytes(uri: str, count: int) -> bytes:
    """So many bytes from the beginning of an object, or all that it has."""
    file = RemoteFile(Source(uri, uri, None))
    return file.read(0, min(count, file.size)).tobytes()


def fingerprint(uri: str) -> str:
    """What tells an object apart from others: its size, and its ETag or time of change."""
    found: RemoteIdentity = attempt(uri, store_of(whole_uri(uri)).identity)
    told = f"{found.size}:{found.etag or found.changed_ns}"
    return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()


class RemoteFile(MappedFile):
    """An object in place of a mapped file: `buffer` fetches what is sliced out of it, for parsers of headers."""

    streamed = True

    def __init__(self, source: Source) -> None:
        self.path, _, self.selector = source
        self.path = whole_uri(self.path)
        self.shown = remember(self.path)
        name = uris.name_of(self.path)
        self.suffix = ("." + name.rpartition(".")[2].lower()) if "." in name else ""
        self._store: Store = attempt(self.path, lambda: store_of(self.path))
        found: RemoteIdentity = attempt(self.path, self._store.identity)
        self.identity = found  # type: ignore[assignment]
        self.size = found.size
        if not self.size:
            raise FormatError(f"{self.shown}: empty file (0 bytes)")
        self.buffer = _Buffer(self)  # type: ignore[assignment]

    def check(self) -> None:
        """Raise FormatError if the object was written anew since it was opened."""
        if not self.is_same():
            raise FormatError(f"{self.shown}: was written to or replaced while it is read")

    def is_same(self) -> bool:
        """Whether the object is still the one that was opened."""
        now: RemoteIdentity = attempt(self.path, self._store.identity)
        return now == self.identity

    def watched(self) -> list[MappedFile]:
        """Nothing is mapped."""
        return []

    def release(self, start: int, stop: int) -> None:
        """Nothing is mapped."""

    def rows_elsewhere(self, offset: int, shape: tuple[int, ...], dtype: Any) -> RemoteRows:
        """What fetches the rows at an offset."""
        return RemoteRows(self, offset, shape, dtype)

    def _range(self, start: int, stop: int) -> bytes:
        """One range, by one connection; short answers are asked for again."""
        found = b""
        for _ in range(ATTEMPTS):
            at = start + len(found)
            found += attempt(self.path, lambda at=at: self._store.read(at, stop, self.identity))  # type: ignore[misc, arg-type]
            if len(found) >= stop - start:
                return found
        raise short(self.path, stop - start, len(found))

    def begin(self, start: int, stop: int) -> list[tuple[int, Future[bytes]]]:
        """Fetch bytes in ranges, each by a thread: (first byte, what it will be)."""
        starts = range(start, stop, RANGE)
        return [(at, pool().submit(self._range, at, min(at + RANGE, stop))) for at in starts]

    def read(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Bytes `start` to `stop`, all ranges at once."""
        out = np.empty(stop - start, np.uint8)
        if stop - start <= RANGE:
            out[:] = np.frombuffer(self._range(start, stop), np.uint8)
        else:
            collect(self.begin(start, stop), start, out)
        return out


def collect(ranges: list[tuple[int, Future[bytes]]], start: int, out: npt.NDArray[np.uint8]) -> None:
    """Put what the ranges bring in its place; `out` begins with byte `start`."""
    try:
        for at, promise in ranges:
            piece = np.frombuffer(promise.result(), np.uint8)
            out[at - start : at - start + len(piece)] = piece
    except BaseException:
        for _, promise in ranges:
            promise.cancel()
        raise


class _Buffer:
    """The bytes of an object for parsers that look at few of them."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._blocks: dict[int, bytes] = {}
        self.reader = SimpleNamespace(behind=None)

    def __len__(self) -> int:
        return self._file.size

    def __getitem__(self, key: slice) -> bytes:
        start, stop, step = key.indices(len(self))
        if step != 1:
            raise BigvocabError("expected a range of bytes")
        pieces = []
        for block in range(start // _HEAD, -(-stop // _HEAD)):
            if block not in self._blocks:
                end = min((block + 1) * _HEAD, len(self))
                self._blocks[block] = self._file.read(block * _HEAD, end).tobytes()
            first = max(start - block * _HEAD, 0)
            pieces.append(self._blocks[block][first : stop - block * _HEAD])
        return b"".join(pieces)

    def forget(self) -> None:
        """Let go of what was fetched."""
        self._blocks.clear()


class RemoteRows:
    """Rows in an object, as `Part.device` hands them out: fetched when they are asked for, the next ones ahead of that.

    What is under way ahead is never more than what was asked for last, so a job's block bounds all of it.
    """

    def __init__(self, file: RemoteFile, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._file, self._offset, self._shape, self._dtype = file, offset, shape, dtype
        self._row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        self._lock = threading.Lock()
        self._next: tuple[int, int, list[tuple[int, Future[bytes]]]] | None = None
        self._last = -1

    def rows(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows `start` to `stop`, copied to memory."""
        begin, end = (self._offset + row * self._row_bytes for row in (start, stop))
        out = np.empty(end - begin, np.uint8)
        with self._lock:
            ahead, self._next = self._next, None
            in_order, self._last = start == self._last, stop
        at = begin
        if ahead is not None and ahead[0] == begin and ahead[1] <= end:
            at = ahead[1]
            rest = self._file.begin(at, end)
            self._go_on(stop, stop - start)
            collect(ahead[2], begin, out)
            collect(rest, begin, out)
        else:
            for _, promise in ahead[2] if ahead is not None else []:
                promise.cancel()
            if end - begin > RANGE or in_order:
                ranges = self._file.begin(begin, end)
                self._go_on(stop, stop - start)
                collect(ranges, begin, out)
            else:
                out[:] = self._file.read(begin, end)
        found = out.view(self._dtype).reshape(stop - start, *self._shape[1:])
        found.flags.writeable = False
        return found

    def _go_on(self, row: int, count: int) -> None:
        """Have the rows from here on fetched, no more than were asked for."""
        stop = min(self._shape[0], row + count)
        if row < stop:
            begin, end = (self._offset + at * self._row_bytes for at in (row, stop))
            with self._lock:
                self._next = begin, end, self._file.begin(begin, end)
