"""An object in a store as a file that is read by ranges: many in flight, in threads of their own.

Measured: 8 MiB over 4 to 16 threads is best. Who reads rows in order finds the next ones under way.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.errors import BigvocabError, FormatError
from bigvocab.storage import uris
from bigvocab.storage.attempts import ATTEMPTS, attempt, short
from bigvocab.storage.file_identity import RemoteIdentity
from bigvocab.storage.mapped import MappedFile
from bigvocab.storage.paths import Source
from bigvocab.storage.stores import Store, store_of

RANGE, THREADS = 8 << 20, 20
_HEAD = 1 << 20  # bytes read at once where a header is looked at
Pieces = list[tuple[int, Future[npt.NDArray[Any]]]]  # (first byte, or row, and what it will be)
_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()
_whole: dict[str, str] = {}  # URI as shown -> URI
_names_lock = threading.Lock()


def pool() -> ThreadPoolExecutor:
    """The threads that fetch."""
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(THREADS, "ranges")
        return _pool


def at_once(open_it: Callable[[Any], Any], given: Iterable[Any]) -> list[Any]:
    """What is made of each, in their order, many at a time; `open_it` reads no more than a few ranges by itself."""
    promises = [pool().submit(open_it, one) for one in given]
    try:
        return [promise.result() for promise in promises]
    except BaseException:
        for promise in promises:
            promise.cancel()
        raise


def remember(uri: str) -> str:
    """The URI as it is shown; `whole_uri` finds the other one again in this process. A path as it is."""
    name = shown = uris.shown(uri)
    with _names_lock:
        if uri in _whole:  # it is shown already
            return uri
        if uris.on_web(uri):  # where two files may differ in what is not shown
            number = 1
            while _whole.get(name, uri) != uri:
                number += 1
                name = f"{shown}#{number}"
        if name != uri or name in _whole:
            _whole[name] = uri
    return name


def remembered() -> dict[str, str]:
    """URIs with what is not shown of them, by how they are shown: for the processes of workers, and for nobody else."""
    with _names_lock:
        return {name: uri for name, uri in _whole.items() if name != uri}


def recall(found: Mapping[str, str]) -> None:
    """Know what another process `remembered`."""
    with _names_lock:
        _whole.update(found)


def whole_uri(shown: str) -> str:
    """The URI, with its keys, that is shown so."""
    return _whole.get(shown, shown)


def fingerprint(uri: str) -> str:
    """What tells an object apart from others: its size, and its ETag or time of change."""
    found: RemoteIdentity = attempt(uri, lambda: store_of(whole_uri(uri)).identity())
    told = f"{found.size}:{found.etag or found.changed_ns}"
    return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()


class RemoteFile(MappedFile):
    """An object in place of a mapped file: `buffer` fetches what is sliced out of it, for parsers of headers."""

    streamed = True

    def __init__(self, source: Source, identity: RemoteIdentity | None = None) -> None:
        """Open an object; with an `identity`, that very version of it, which is not looked at before it is read."""
        self.path, _, self.selector = source
        self.path = whole_uri(self.path)
        self.shown = remember(self.path)
        name = uris.name_of(self.path)
        self.suffix = ("." + name.rpartition(".")[2].lower()) if "." in name else ""
        self._store: Store = attempt(self.path, lambda: store_of(self.path))
        found: RemoteIdentity = identity or attempt(self.path, self._store.identity)
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

    def begin(self, start: int, stop: int) -> Pieces:
        """Fetch bytes in ranges, each by a thread: (first byte, what it will be)."""
        starts = range(start, stop, RANGE)
        return [(at, pool().submit(self.part, at, min(at + RANGE, stop))) for at in starts]

    def part(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Bytes `start` to `stop`, by one connection."""
        return np.frombuffer(self._range(start, stop), np.uint8)

    def read(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Bytes `start` to `stop`, all ranges at once."""
        out = np.empty(stop - start, np.uint8)
        if stop - start <= RANGE:
            out[:] = self.part(start, stop)
        else:
            collect(self.begin(start, stop), start, out)
        return out

    def content(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """As `read`, from what parsers of headers had fetched, where that is all of it."""
        if self.buffer.has(start, stop):  # type: ignore[attr-defined]
            return np.frombuffer(self.buffer[start:stop], np.uint8)
        return self.read(start, stop)


def collect(pieces: Pieces, start: int, out: npt.NDArray[Any]) -> None:
    """Put what the pieces bring in its place; `out` begins with number `start`."""
    try:
        for at, promise in pieces:
            piece = promise.result()
            out[at - start : at - start + len(piece)] = piece
    except BaseException:
        cancel(pieces)
        raise


def cancel(pieces: Pieces) -> None:
    """Give up those that have not begun."""
    for _, promise in pieces:
        promise.cancel()


class InOrder:
    """Bytes, or rows, that are read in order: the next ones are under way while these are used.

    What is under way ahead is never more than what was asked for last, so a job's block bounds all of it.

    Args:
        begin: starts to fetch those from one number to another.
        end: how many there are.
    """

    def __init__(self, begin: Callable[[int, int], Pieces], end: int) -> None:
        self._begin, self._end = begin, end
        self._lock = threading.Lock()
        self._next: tuple[int, int, Pieces] | None = None
        self._last = -1

    def read(self, start: int, stop: int, out: npt.NDArray[Any], *, ahead: bool) -> None:
        """Fill `out` with those from `start` to `stop`; have more fetched where these follow the last ones, or where
        that is known to be wanted (`ahead`).
        """
        with self._lock:
            under_way, self._next = self._next, None
            ahead |= start == self._last
            self._last = stop
        at, pieces = start, []
        if under_way is not None:
            if under_way[0] == start and under_way[1] <= stop:
                at, pieces = under_way[1], under_way[2]
            else:
                cancel(under_way[2])
        pieces = [*pieces, *(self._begin(at, stop) if at < stop else ())]
        if ahead and stop < self._end:
            end = min(self._end, 2 * stop - start)
            following = self._begin(stop, end)
            with self._lock:
                self._next = stop, end, following
        collect(pieces, start, out)


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
                self._blocks[block] = self._file.part(block * _HEAD, end).tobytes()
            first = max(start - block * _HEAD, 0)
            pieces.append(self._blocks[block][first : stop - block * _HEAD])
        return b"".join(pieces)

    def has(self, start: int, stop: int) -> bool:
        """Whether these bytes were fetched."""
        return all(block in self._blocks for block in range(start // _HEAD, -(-stop // _HEAD)))

    def forget(self) -> None:
        """Let go of what was fetched."""
        self._blocks.clear()


class RemoteRows:
    """Rows in an object, as `Part.device` hands them out: fetched when asked for, the next ones before that."""

    def __init__(self, file: RemoteFile, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._offset, self._shape, self._dtype = offset, shape, dtype
        self._row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        self._bytes = InOrder(file.begin, offset + shape[0] * self._row_bytes)

    def rows(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows `start` to `stop`, copied to memory."""
        begin, end = (self._offset + row * self._row_bytes for row in (start, stop))
        out = np.empty(end - begin, np.uint8)
        self._bytes.read(begin, end, out, ahead=end - begin > RANGE)
        found = out.view(self._dtype).reshape(stop - start, *self._shape[1:])
        found.flags.writeable = False
        return found
