"""The grid a matrix is made of: parts (rows that lie together) and shards (the parts of one range of classes)."""

from __future__ import annotations

import math
import threading
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from bigvocab.formats.layout import Layout
from bigvocab.storage.mapped import MappedFile

Array = np.ndarray[Any, np.dtype[Any]]


class RowsElsewhere(Protocol):
    """Rows that are copied to memory when they are asked for."""

    def rows(self, start: int, stop: int) -> Array:
        """Rows `start` to `stop`."""


class Part(NamedTuple):
    """Consecutive rows that lie together; `file` is None for an array in memory.

    Rows on an accelerator, or in files that are not mapped, are in `device`, and copied when they are asked for;
    `array` has none of them then.
    """

    first: int
    stop: int
    array: Array
    file: MappedFile | None
    offset: int
    device: RowsElsewhere | None = None

    def rows(self, start: int, stop: int) -> Array:
        """Rows start to stop of the matrix."""
        if self.device is not None:
            return self.device.rows(start - self.first, stop - self.first)
        return self.array[start - self.first : stop - self.first]

    def take(self, rows: Array) -> Array:
        """A copy of some rows of the matrix."""
        if self.device is not None:
            return np.concatenate([self.rows(int(row), int(row) + 1) for row in rows])
        return self.array[rows - self.first]


@dataclass
class Shard:
    """The parts, in order, of one range of classes; `starts` are their first rows."""

    first_class: int
    parts: list[Part]
    starts: list[int]

    def part_of(self, row: int) -> Part:
        """The part that holds a row."""
        return self.parts[bisect_right(self.starts, row) - 1]


def native(view: Array, dtype: np.dtype[Any]) -> Array:
    """The view itself, except byte-swapped bfloat16, which NumPy cannot name: that is copied."""
    if view.dtype == dtype:
        return view
    copy = view.astype(np.uint16).view(dtype)
    copy.flags.writeable = False
    return copy


def make_shard(first_class: int, parts: list[Part]) -> Shard:
    """The shard of these parts."""
    return Shard(first_class, parts, [part.first for part in parts])


def fetch_rows(file: MappedFile, part: Part, start: int, stop: int, ended: threading.Event) -> None:
    """Have rows start to stop of the matrix, which lie in this part, read in order unless it has `ended`."""
    if _row_bytes(part.array):
        file.ahead.fetch(*_bytes_of(part, start, stop), ended)


def release_rows(file: MappedFile, part: Part, start: int, stop: int) -> None:
    """Let go of the pages of rows start to stop of the matrix, which lie in this part."""
    file.release(*_bytes_of(part, start, stop))


def _bytes_of(part: Part, start: int, stop: int) -> tuple[int, int]:
    """Where rows lie in their file; in Fortran order every row touches the pages of all columns."""
    if not (row_bytes := _row_bytes(part.array)):
        return part.offset, part.offset + part.array.nbytes
    return part.offset + (start - part.first) * row_bytes, part.offset + (stop - part.first) * row_bytes


def _row_bytes(array: Array) -> int:
    """From one row to the next where each lies in one piece, perhaps with padding after it; else 0."""
    if array.flags.c_contiguous:
        return array.nbytes // len(array)
    whole = array.ndim == 2 and array.strides[1] == array.itemsize
    return array.strides[0] if whole and array.strides[0] >= array.shape[1] * array.itemsize else 0


def cut_columns(part: Part, columns: int) -> Part:
    """The first columns of a part."""
    return part._replace(array=part.array[:, :columns])


def cut_rows(parts: list[Part], stop: int) -> list[Part]:
    """The parts up to before row `stop` of the matrix."""
    kept = [part for part in parts if part.first < stop]
    return [part._replace(stop=min(part.stop, stop), array=part.array[: stop - part.first]) for part in kept]


def make_parts(file: MappedFile, layout: Layout, first: int) -> list[Part]:
    """Views of the map for each part of a layout, from row `first` of the matrix on; empty parts are left out."""
    parts = []
    for offset, rows in layout.parts:
        shape = (rows, *layout.stored_columns)
        if rows:
            raw = layout.stored.raw
            elsewhere = file.rows_elsewhere(offset, shape, raw)
            if elsewhere is not None:
                parts.append(Part(first, first + rows, np.empty((0, *shape[1:]), raw), file, offset, elsewhere))
                first += rows
                continue
            file.fill(offset, offset + math.prod(shape) * raw.itemsize)
            array: Array = np.ndarray(shape, raw, file.buffer, offset, order="F" if layout.fortran else "C")
            parts.append(Part(first, first + rows, array, file, offset))
        first += rows
    return parts
