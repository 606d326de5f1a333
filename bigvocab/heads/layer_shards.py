"""An output layer as TensorFlow splits it: a list of P shards in "div" or "mod" order; rows are picked by class id."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bigvocab.arguments import as_matrix_of_floats
from bigvocab.errors import BigvocabError
from bigvocab.matrices.matrix import Matrix
from bigvocab.matrices.opening import open_matrix

STRATEGIES = ("div", "mod")


class LayerRows(Protocol):
    """A layer of which rows are picked by class id: a `Matrix`, or shards of one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(V, D), or (V,) of biases."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of an element."""

    def __len__(self) -> int: ...

    def __getitem__(self, ids: Any) -> Any: ...

    def one_array(self) -> npt.NDArray[Any] | None:
        """All rows as kernels read them where they lie; None where they do not lie together."""

    def buffers(self) -> list[mmap.mmap]:
        """The memory maps behind the rows."""


class LayerShards:
    """Rows of P shards by class id: `shards[ids]`.

    "div": consecutive ids, the first V mod P shards one more than the others. "mod": id c is row c // P of shard c % P.
    Both strategies give every shard the same number of rows, so right sizes do not prove that the strategy is right.
    """

    def __init__(self, name: str, shards: Sequence[Any], ndim: int, strategy: str) -> None:
        self._shards = [_opened(f"{name} shard {i}", shard, ndim) for i, shard in enumerate(shards)]
        first = self._shards[0]
        for i, shard in enumerate(self._shards):
            if shard.dtype.name != first.dtype.name or shard.shape[1:] != first.shape[1:]:
                raise BigvocabError(
                    f"{name}: shard {i} is {shard.dtype.name} {shard.shape}, "
                    f"expected {first.dtype.name} and columns as in shard 0, {first.shape}"
                )
        self._sizes = np.array([len(shard) for shard in self._shards])
        total, count = int(self._sizes.sum()), len(self._shards)
        expected = np.full(count, total // count) + (np.arange(count) < total % count)
        if (self._sizes != expected).any():
            i = int(np.argmax(self._sizes != expected))
            raise BigvocabError(
                f"{name}: shard {i} has {self._sizes[i]} rows, expected {expected[i]}: {strategy!r} spreads "
                f"{total} classes over {count} shards as {_listed(expected)}"
            )
        self._strategy = strategy
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)[:-1]])
        self.shape = (total, *first.shape[1:])
        self.dtype = first.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """A copy of the rows of these classes."""
        if self._strategy == "mod":
            rows, owner = np.divmod(ids, len(self._shards))
        else:
            owner = np.searchsorted(self._starts, ids, side="right") - 1
            if (self._sizes == 0).any():  # more shards than classes: an empty one has the start of the next
                owner = np.minimum(owner, len(self) - 1)
            rows = ids - self._starts[owner]
        out = np.empty((len(ids), *self.shape[1:]), self.dtype)
        for i in np.unique(owner):
            here = np.flatnonzero(owner == i)
            out[here] = self._shards[i][rows[here]]
        return out

    def one_array(self) -> npt.NDArray[Any] | None:
        """None: shards lie apart."""
        return None

    def buffers(self) -> list[mmap.mmap]:
        """Those of all shards."""
        return [buffer for shard in self._shards for buffer in shard.buffers()]


@contextlib.contextmanager
def picked_at_random(layer: LayerRows) -> Iterator[None]:
    """While rows are picked, tell the system not to read ahead in mapped files: it would read 128 KiB for each row."""
    buffers = layer.buffers() if hasattr(mmap, "MADV_RANDOM") else []
    for buffer in buffers:
        buffer.madvise(mmap.MADV_RANDOM)
    try:
        yield
    finally:
        for buffer in buffers:
            buffer.madvise(mmap.MADV_NORMAL)


def _listed(sizes: npt.NDArray[Any]) -> str:
    shown = ", ".join(f"{size}" for size in sizes[:6])
    return shown + (", ..." if len(sizes) > 6 else "")


def _opened(name: str, value: Any, ndim: int) -> Matrix:
    """An array, a Matrix or a path as a matrix."""
    if isinstance(value, str | os.PathLike):
        value = open_matrix(value)
    if not isinstance(value, Matrix):
        return Matrix.from_array(as_matrix_of_floats(name, value, ndim), name=name, allow_empty=True)
    if value.ndim != ndim:
        raise BigvocabError(f"{name}: expected {ndim} dimensions, got shape {value.shape}")
    return value


def open_layer(name: str, value: Any, ndim: int, strategy: str) -> LayerRows:
    """A layer, or biases, given whole or as a list of shards; `value[ids]` picks rows."""
    if isinstance(value, list | tuple) and value and all(_is_shard(part, ndim) for part in value):
        return LayerShards(name, value, ndim, strategy) if len(value) > 1 else _opened(name, value[0], ndim)
    return _opened(name, value, ndim)


def _is_shard(part: Any, ndim: int) -> bool:
    if isinstance(part, str | os.PathLike | Matrix):
        return True
    with contextlib.suppress(ValueError):
        return np.ndim(part) == ndim
    return False
