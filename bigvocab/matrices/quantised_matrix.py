"""A layer of quantised rows as a matrix: numbers are decoded where they are looked at, and products decode for
themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from bigvocab.formats.layout import BFLOAT16, Blocks
from bigvocab.matrices.matrix import Matrix
from bigvocab.matrices.parts import Array, Shard
from bigvocab.matrices.tiles import kernel_view
from bigvocab.matrices.weight_rows import WeightRows

_DECODED_BYTES = 64 << 20  # of rows at a time


class QuantisedMatrix(Matrix):
    """A read-only matrix (V, D) of float32 whose rows lie in blocks: slices and lists of rows are decoded copies.

    Source of the blocks: `bigvocab.kernels.quantised`.
    """

    def __init__(self, shards: list[Shard], shape: tuple[int, ...], blocks: Blocks, files: list[dict[str, Any]]):
        super().__init__(shards, shape, np.dtype(np.float32), files)
        self.blocks = blocks
        self._raw = Matrix(shards, (shape[0], blocks.row_bytes(shape[1])), np.dtype(np.uint8), files)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows as they are stored."""
        return self._raw.nbytes

    def __repr__(self) -> str:
        return f"<QuantisedMatrix {self.shape} {self.blocks.name} of {self.files[0]['path']}>"

    def _rows(self, start: int, stop: int) -> Array:
        return self._decoded(self._raw[start:stop])

    def _gather(self, rows: Array) -> Array:
        return self._decoded(self._raw[rows])

    def _decoded(self, stored: Array) -> Array:
        from bigvocab.kernels.quantised import decode_rows

        out = np.empty((len(stored), self.shape[1]), np.float32)
        decode_rows(kernel_view(stored), self.blocks.code, out)
        return out

    def row_parts(self, start: int, stop: int) -> Iterator[tuple[int, list[tuple[int, Array]]]]:
        """As `Matrix.row_parts`, each item decoded."""
        step = max(1, _DECODED_BYTES // (4 * self.shape[1]))
        for at, tiles in self._raw.row_parts(start, stop):
            for first in range(0, len(tiles[0][1]), step):
                yield at + first, [(0, self._decoded(tiles[0][1][first : first + step]))]

    def one_array(self) -> Array | None:
        """None: rows are decoded when they are read."""
        return None

    def weight_rows(self, start: int, stop: int) -> Iterator[tuple[int, WeightRows]]:
        """Rows start to stop as (first row, rows as they lie), for products."""
        for at, tiles in self._raw.row_parts(start, stop):
            yield at, WeightRows(len(tiles[0][1]), (kernel_view(tiles[0][1]), self.blocks.code))

    def picked_rows(self, ids: Array) -> WeightRows:
        """Copies of some rows as they lie, for products."""
        return WeightRows(len(ids), (kernel_view(self._raw[ids]), self.blocks.code))

    @property
    def factor_dtype(self) -> np.dtype[Any]:
        """bfloat16 where blocks are whole numbers with a scale, which products with bfloat16 take as they are."""
        from bigvocab.kernels.whole_numbers import BLOCK_OF_SCALE

        return BFLOAT16 if self.blocks.code in BLOCK_OF_SCALE else self.dtype

    def rows_between(self, start: int, stop: int) -> Matrix:
        """Rows start to stop as a matrix of views, without the files they are of."""
        shards = self._raw.rows_between(start, stop).shards
        return QuantisedMatrix(shards, (stop - start, *self.shape[1:]), self.blocks, self.files)
