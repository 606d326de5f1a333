"""What ranges of classes keep of rows beside statistics: their highest classes, and a look at a few rows for notes.

A state has `highest` and `highest_logits`, lists of one width per row: the ids of its highest classes, -1 behind the
last, and their raw logits. Of a few rows in 4,096 it has `looked`: the least logit, the sum of all, and of each half of
the vocabulary a sum of hashes of (place in the half, logit), modulo 2**52: halves are alike if those are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bigvocab.matrices.logit_rows import LogitRows

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_STRIDE, _LOOKED_AT = 4096, 4  # so many rows of so many are looked at
_ROWS = 8192  # of which candidates are sorted at once
_MASK = np.uint64((1 << 52) - 1)  # a float64 holds such numbers
LOOKED = pa.list_(pa.float64())


def lists_of(values: npt.NDArray[Any]) -> pa.Array:
    """Lists of one width, of values (n, K)."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    kind = pa.list_(flat.type, values.shape[1])
    return pa.Array.from_buffers(kind, len(values), [None], children=[flat])


def _matrix(part: pa.Table, name: str) -> npt.NDArray[Any]:
    column = part.column(name).combine_chunks()
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    found: npt.NDArray[Any] = column.flatten().to_numpy().reshape(len(part), column.type.list_size)
    return found


def merged_highest(parts: Sequence[pa.Table], keep: int) -> tuple[Ids, Floats]:
    """Ids and raw logits (n, keep) of the highest classes of all ranges, highest first, ties by id."""
    ids, logits = _matrix(parts[0], "highest"), _matrix(parts[0], "highest_logits")
    for part in parts[1:]:
        ids = np.hstack([ids, _matrix(part, "highest")])
        logits = np.hstack([logits, _matrix(part, "highest_logits")])
        sorted_rows = [
            _highest(ids[at : at + _ROWS], logits[at : at + _ROWS], keep) for at in range(0, len(ids), _ROWS)
        ]
        ids, logits = (np.concatenate(column) for column in zip(*sorted_rows, strict=True))
    return ids, logits


def _highest(ids: Ids, logits: Floats, keep: int) -> tuple[Ids, Floats]:
    order = np.lexsort((ids, -logits), axis=1)[:, :keep]
    return np.take_along_axis(ids, order, 1), np.take_along_axis(logits, order, 1)


# ---- notes


def looked_at(rows: LogitRows, first_row: int, labels: Ids, first: int, total: int) -> list[list[float] | None]:
    """What is kept of each row that is looked at, of classes from `first` on; None for all others."""
    found: list[list[float] | None] = [None] * len(rows)
    numbers, classes = np.arange(first_row, first_row + len(rows)), np.arange(rows.num_classes)
    for row in np.flatnonzero((numbers % _STRIDE < _LOOKED_AT) & (labels >= 0)).tolist():
        x = rows.gather(np.full(len(classes), row), classes, 1).astype(np.float64) + 0.0  # no -0.0
        with np.errstate(invalid="ignore"):
            found[row] = [float(x.min()), float(x.sum()), *_hashes(x, classes + first, total // 2)]
    return found


def _hashes(x: Floats, classes: Ids, half: int) -> tuple[float, float]:
    """Sums of the hashes of the logits in the first half of the vocabulary, and in the second."""
    z = x.view(np.uint64) + (classes % max(half, 1)).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    z ^= z >> np.uint64(31)
    parts = (z[classes < half], z[classes >= half])
    return tuple(float(part.sum(dtype=np.uint64) & _MASK) for part in parts)  # type: ignore[return-value]


class Looks:
    """What is known of a few rows (m,) from all ranges."""

    def __init__(self, parts: Sequence[pa.Table], finite: Bools, highest: Floats) -> None:
        there = parts[0].column("looked").is_valid().to_numpy() & finite
        each = [_of_rows(part, there) for part in parts]
        self.highest = highest[there]
        self.least = np.min([one[:, 0] for one in each], axis=0)
        self.total = np.sum([one[:, 1] for one in each], axis=0)
        first, second = (sum(one[:, side].astype(np.uint64) for one in each) & _MASK for side in (2, 3))
        self.alike: Bools = first == second

    def are_probabilities(self) -> bool:
        """Whether all are from 0 to 1 and sum to 1, and not all of them are uniform."""
        varied = self.least != self.highest
        return bool(varied.any() and (self.least >= 0).all() and (abs(self.total - 1) < 0.02).all())

    def are_there_twice(self) -> bool:
        """Whether in all of them the second half of the vocabulary is the first again, and says something."""
        return bool(len(self.alike) and self.alike.all() and (self.least != self.highest).all())


def _of_rows(part: pa.Table, there: Bools) -> Floats:
    column = part.column("looked").filter(pa.array(there)).combine_chunks()
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    found: Floats = column.flatten().to_numpy().reshape(-1, 4)
    return found
