"""Rows of many small files, or of one layer of states (T, L, D): read when they are asked for, and mapped never.

A map costs a descriptor and some pages for each file, and ten thousand requests are ten thousand files. What is kept of
each file here is its name, where its rows lie, and what tells that it has not changed.
"""

from __future__ import annotations

import functools
import hashlib
import os
from bisect import bisect_right
from typing import Any, NamedTuple

import numpy as np

from bigvocab.errors import BigvocabError, FormatError
from bigvocab.formats.layout import dtype_label
from bigvocab.matrices.matrix import Matrix
from bigvocab.matrices.parts import Array, Part, make_shard, native
from bigvocab.storage.file_identity import FileIdentity, RemoteIdentity

_READ_BYTES = 8 << 20  # at a time, where the rows of other layers are read along
_MOST_ALONG = 4  # layers that are read along: with more of them, each row is read for itself
_HASHED = 4 << 10  # bytes of the beginning, the middle and the end of a file


class RowFile(NamedTuple):
    """Rows of a file: `layers` of them for each position, of which the one at `layer` is meant."""

    path: str
    shown: str
    identity: FileIdentity | RemoteIdentity
    offset: int
    rows: int
    layers: int
    layer: int
    leading: tuple[int, ...]


class SequenceFiles:
    """The rows of files, one after the other, as `Part.device` hands them out."""

    def __init__(self, files: list[RowFile], width: int, dtype: np.dtype[Any], raw: np.dtype[Any]) -> None:
        self.files, self.dtype, self.raw = files, dtype, raw
        self.firsts = np.concatenate([[0], np.cumsum([file.rows for file in files], dtype=np.int64)])
        self.shape = (int(self.firsts[-1]), width)

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, start: int, stop: int) -> Array:
        """A copy of rows `start` to `stop`."""
        out: Array = np.empty((stop - start, self.shape[1]), self.raw)
        at = bisect_right(self.firsts, start) - 1
        done = start
        while done < stop:
            first, end = int(self.firsts[at]), min(stop, int(self.firsts[at + 1]))
            if done < end:
                self._read(self.files[at], done - first, out[done - start : end - start])
                done = end
            at += 1
        return native(out, self.dtype)

    def _read(self, file: RowFile, row: int, out: Array) -> None:
        """Rows of a file from `row` on, as many as `out` takes."""
        try:
            handle = os.open(file.path, os.O_RDONLY)
        except OSError as error:
            raise FormatError(f"{file.shown}: is gone while it is read: {error.strerror}") from error
        try:
            if FileIdentity.of(os.fstat(handle)) != file.identity:
                raise FormatError(f"{file.shown}: was written to or replaced while it is read")
            width = out.shape[1] * out.itemsize
            step = width * file.layers
            at = file.offset + row * step
            if file.layers == 1:
                _fill(handle, file, at, out)
            elif file.layers <= _MOST_ALONG:
                some = max(1, _READ_BYTES // step)
                for first in range(0, len(out), some):
                    part = out[first : first + some]
                    whole: Array = np.empty((len(part), file.layers, out.shape[1]), out.dtype)
                    _fill(handle, file, at + first * step, whole)
                    part[...] = whole[:, file.layer]
            else:
                for i in range(len(out)):
                    _fill(handle, file, at + i * step + file.layer * width, out[i])
        finally:
            os.close(handle)

    def digest(self) -> str:
        """The fingerprint of all files: their sizes, and a few bytes of each."""
        found = hashlib.blake2b(digest_size=16)
        for file in self.files:
            found.update(f"{file.identity.size} {file.rows} {file.layers} {file.layer}:".encode())
            size = file.identity.size
            try:
                with open(file.path, "rb") as stream:
                    for at in sorted({0, max(0, size // 2 - _HASHED), max(0, size - _HASHED)}):
                        stream.seek(at)
                        found.update(stream.read(_HASHED))
            except OSError as error:
                raise BigvocabError(f"{file.shown}: cannot be read: {error.strerror}") from error
        return found.hexdigest()


def _fill(handle: int, file: RowFile, at: int, out: Array) -> None:
    """Read bytes from `at` on into a C-contiguous array."""
    view = memoryview(out.view(np.uint8).data).cast("B")
    while len(view):
        read = os.preadv(handle, [view], at)
        if not read:
            raise FormatError(f"{file.shown}: truncated: ends at byte {at} while it is read")
        view, at = view[read:], at + read


class SequenceMatrix(Matrix):
    """Rows of many files as a matrix (N, D), of which none is mapped; `apart` says that each is a sequence, or some."""

    def __init__(self, source: SequenceFiles, shown: str, *, apart: bool = True) -> None:
        part = Part(0, len(source), np.empty((0, source.shape[1]), source.dtype), None, 0, source)
        size = sum(file.identity.size for file in source.files)
        entry: dict[str, Any] = {
            "path": shown,
            "shape": list(source.shape),
            "dtype": source.dtype.name,
            "bytes": size,
        }
        if len(source.files) > 1:
            entry["files"] = len(source.files)
        super().__init__([make_shard(0, [part])], source.shape, source.dtype, [entry])
        self.source, self.shown, self.apart = source, shown, apart
        if len(source.files) == 1:
            self.leading = source.files[0].leading

    def row_files(self) -> list[tuple[int, str]]:
        """(first row, path) of each file."""
        return [(int(first), file.shown) for first, file in zip(self.source.firsts, self.source.files, strict=False)]

    def sequence_edges(self) -> Array | None:
        """The first row of each sequence, and the number of rows: a file is one, or has some of the same length. None
        where files are no sequences.
        """
        if not self.apart:
            return None
        return _edges([(file.rows, file.leading) for file in self.source.files])

    def digest(self) -> str | None:
        """The fingerprint of all files together."""
        return self.source.digest()

    @property
    def fingerprints(self) -> list[tuple[str, int, int]]:
        """(absolute path, size, time of change in ns) of each file at opening."""
        return [(file.path, file.identity.size, file.identity.changed_ns) for file in self.source.files]

    def __reduce__(self) -> Any:
        return functools.partial(SequenceMatrix, apart=self.apart), (self.source, self.shown)


def _edges(files: list[tuple[int, tuple[int, ...]]]) -> Array:
    """Edges of sequences of files of so many rows, which came as arrays with these leading dimensions."""
    lengths = [np.full(max(1, rows // max(1, leading[-1])), leading[-1]) for rows, leading in files]
    return np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)


def refuse_unlike(first: tuple[str, int, Any], other: tuple[str, int, Any]) -> None:
    """Raise where files (name, columns, dtype) cannot be rows of one matrix."""
    if first[1:] != other[1:]:
        both = f"{first[0]} and {other[0]} cannot be one matrix:"
        if first[1] != other[1]:
            raise BigvocabError(f"{both} {first[1]} and {other[1]} columns, expected the same number")
        raise BigvocabError(f"{both} {dtype_label(first[2])} and {dtype_label(other[2])}")
