"""Rows of objects in a store as one matrix: those of many small ones, and of one layer of states (T, L, D).

A request takes as long for a small object as for a large one, so many are under way at once, across objects. Of states
of several layers all are fetched, because a request for each row would take longer, and one is kept.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

import numpy as np

from bigvocab.matrices.parts import Array, native
from bigvocab.matrices.sequence_files import RowFile, SequenceFiles
from bigvocab.storage.paths import Source
from bigvocab.storage.remote import RANGE, InOrder, Pieces, RemoteFile, pool


class StoredSequences(SequenceFiles):
    """The rows of objects, one after the other, as `Part.device` hands them out."""

    def __init__(self, files: list[RowFile], width: int, dtype: np.dtype[Any], raw: np.dtype[Any]) -> None:
        super().__init__(files, width, dtype, raw)
        self._in_order = InOrder(self._begin, len(self))

    def __reduce__(self) -> Any:
        return StoredSequences, (self.files, self.shape[1], self.dtype, self.raw)

    def rows(self, start: int, stop: int) -> Array:
        """A copy of rows `start` to `stop`; the next ones are fetched while these are used."""
        out: Array = np.empty((stop - start, self.shape[1]), self.raw)
        if start < stop:
            self._in_order.read(start, stop, out, ahead=out.nbytes > RANGE)
        return native(out, self.dtype)

    def _begin(self, start: int, stop: int) -> Pieces:
        return [(at, pool().submit(self._fetched, file, row, rows)) for at, file, row, rows in self._spans(start, stop)]

    def _spans(self, start: int, stop: int) -> Iterator[tuple[int, RowFile, int, int]]:
        """(first row, object, first row in it, rows) of pieces that are one range each."""
        at = bisect_right(self.firsts, start) - 1
        while start < stop:
            file, first, end = self.files[at], int(self.firsts[at]), min(stop, int(self.firsts[at + 1]))
            some = max(1, RANGE // max(1, self._step(file)))
            while start < end:
                rows = min(some, end - start)
                yield start, file, start - first, rows
                start += rows
            at += 1

    def _step(self, file: RowFile) -> int:
        """Bytes from one row to the next."""
        return self.shape[1] * self.raw.itemsize * file.layers

    def _fetched(self, file: RowFile, row: int, rows: int) -> Array:
        """Rows of an object: one range, by one connection."""
        begin = file.offset + row * self._step(file)
        found = _opened(file.path, file.shown, file.identity).part(begin, begin + rows * self._step(file))
        layers = found.view(self.raw).reshape(rows, file.layers, self.shape[1])
        return layers[:, file.layer].copy() if file.layers > 1 else layers[:, 0]

    def digest(self) -> str:
        """The fingerprint of all objects: their sizes, and ETags or times of change."""
        found = hashlib.blake2b(digest_size=16)
        for file in self.files:
            told = getattr(file.identity, "etag", "") or file.identity.changed_ns
            found.update(f"{file.identity.size} {told} {file.rows} {file.layers} {file.layer}:".encode())
        return found.hexdigest()


_lock = threading.Lock()


@functools.lru_cache(64)
def _kept(path: str, shown: str, identity: Any) -> RemoteFile:
    return RemoteFile(Source(path, shown, None), identity)


def _opened(path: str, shown: str, identity: Any) -> RemoteFile:
    """The object of this very version; some are kept, which makes no request."""
    with _lock:
        return _kept(path, shown, identity)
