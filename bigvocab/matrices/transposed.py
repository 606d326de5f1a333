"""A layer that is stored the other way round, (D, V), as TensorFlow's kernels are: read in place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from bigvocab.matrices.matrix import Matrix
from bigvocab.matrices.parts import Array, Part, make_shard, native
from bigvocab.matrices.tiles import kernel_view
from bigvocab.matrices.weight_rows import WeightRows


class TransposedMatrix(Matrix):
    """The matrix (V, D) of one that is stored (D, V): rows are columns there. Slices of it are views, lists of rows
    copies; products read columns where they lie.
    """

    def __init__(self, stored: Matrix) -> None:
        super().__init__(stored.shards, stored.shape[::-1], stored.dtype, stored.files)
        self.of, self.maps = stored, stored.maps
        self.leading = self.shape[:-1]

    def __repr__(self) -> str:
        return f"<TransposedMatrix {self.shape} of {self.of!r}>"

    def __reduce__(self) -> Any:
        return TransposedMatrix, (self.of,)

    def _columns(self, start: int, stop: int) -> Iterator[tuple[int, list[Array]]]:
        """Columns of the stored matrix as (first, arrays of all of its rows, one for each file of rows)."""
        for at, shard in enumerate(self.of.shards):
            ends = [other.first_class for other in self.of.shards[at + 1 :]] + [len(self)]
            first, last = max(start, shard.first_class), min(stop, ends[0])
            if first < last:
                here = slice(first - shard.first_class, last - shard.first_class)
                yield first, [native(part.array[:, here], self.dtype) for part in shard.parts]

    def row_parts(self, start: int, stop: int) -> Iterator[tuple[int, list[tuple[int, Array]]]]:
        """As `Matrix.row_parts`: views, or copies where the stored rows are split over files."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"rows {start} to {stop} are out of range for {len(self)} rows")
        for first, arrays in self._columns(start, stop):
            whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
            yield first, [(0, whole.T)]

    def _gather(self, rows: Array) -> Array:
        rows = np.asarray(rows, np.int64)
        if rows.size and not (-len(self) <= rows.min() and rows.max() < len(self)):
            raise IndexError(f"row {rows.max()} is out of range for {len(self)} rows")
        out = np.empty((len(rows), self.shape[1]), self.dtype)
        rows = rows % max(1, len(self))
        for at, shard in enumerate(self.of.shards):
            ends = [other.first_class for other in self.of.shards[at + 1 :]] + [len(self)]
            here = np.flatnonzero((rows >= shard.first_class) & (rows < ends[0]))
            for part in shard.parts:
                taken = native(part.array[:, rows[here] - shard.first_class], self.dtype)
                out[here, part.first : part.stop] = taken.T
        return out

    def weight_rows(self, start: int, stop: int) -> Iterator[tuple[int, WeightRows]]:
        """Rows start to stop as (first row, rows as they lie), for products."""
        for first, arrays in self._columns(start, stop):
            whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
            yield first, WeightRows(whole.shape[1], (kernel_view(whole),))

    def rows_between(self, start: int, stop: int) -> Matrix:
        """Rows start to stop as a matrix of views, without the files they are of."""
        shards = []
        for first, arrays in self._columns(start, stop):
            parts, at = [], 0
            for array in arrays:
                parts.append(Part(at, at + len(array), array, None, 0))
                at += len(array)
            shards.append(make_shard(first - start, parts))
        return TransposedMatrix(Matrix(shards, (self.shape[1], stop - start), self.dtype, self.files))

    def one_array(self) -> Array | None:
        """None: a row does not lie in one piece."""
        return None

    def part_edges(self) -> list[int]:
        """The first row of each file, where files are split by them; else [0]."""
        return self.of.class_edges()

    def class_edges(self) -> list[int]:
        """One range of columns."""
        return [0]

    def release(self, start: int, stop: int) -> None:
        """Let go of all pages: each row touches those of all columns."""
        self.of.release(0, len(self.of))
