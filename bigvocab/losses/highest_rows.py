"""The highest classes of rows of logits, kept in the same pass as the statistics of their softmax."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bigvocab.losses.row_statistics import RowStatistics
from bigvocab.losses.row_sums import SoftmaxSums, Transform
from bigvocab.matrices.logit_rows import Array, Floats, Ids, LogitRows, State
from bigvocab.matrices.tiles import Span
from bigvocab.threads import resolve_threads


class HighestSums(SoftmaxSums):
    """Statistics of the softmax, and the buffers of the `keep` highest classes; see `kernels.highest`."""

    def __init__(self, labels: Ids, transform: Transform, want: int, keep: int, known: Floats | None = None) -> None:
        super().__init__(labels, transform, want, known)
        self.keep, self.statistics = keep, self.columns
        self.columns += 4 * keep + 2
        self._bounds: Floats = np.full(len(labels), -np.inf)

    @property
    def hides(self) -> bool:
        """Never: rows are copied."""
        return False

    def state(self, *shape: int) -> State:
        """(..., columns) statistics, keys and ids (..., 2 keep), and marks (..., 2)."""
        buffers = np.empty((*shape, 2 * self.keep), np.int64), np.empty((*shape, 2 * self.keep), np.int64)
        return np.empty((*shape, self.statistics)), *buffers, np.empty((*shape, 2))

    def clear(self, state: State) -> None:
        """The statistics of no class, and no class kept."""
        from bigvocab.kernels import highest, row_statistics

        stats, keys, ids, marks = (array.reshape(-1, array.shape[-1]) for array in state)
        row_statistics.clear_statistics(stats)
        highest.clear_highest(keys, ids, marks)

    def add(self, piece: Array, span: Span, rows: slice | Ids, state: State) -> None:
        """See `rows_softmax_with`."""
        from bigvocab.kernels import highest_cells

        bounds = self._bounds[rows]
        scratch = highest_cells.scratch_for(piece, span[1], self.keep)
        self.add_with(piece, span, rows, state[0], (*state[1:], bounds, scratch))
        if not isinstance(rows, slice):  # else they were a view
            self._bounds[rows] = np.maximum(self._bounds[rows], bounds)

    def merge(self, groups: State, into: State) -> None:
        """Sums of one maximum become those of another; of all buffers the highest stay."""
        from bigvocab.kernels import highest, merge

        merge.merge_statistics(groups[0], self.transform, into[0])
        highest.merge_highest(*groups[1:], *into[1:])


@dataclass(frozen=True)
class HighestRows:
    """Statistics of rows, and their highest classes in order: ids (n, K), -1 after the last, and raw logits (n, K)."""

    rows: RowStatistics
    ids: Ids
    logits: Floats

    @property
    def log_probabilities(self) -> Floats:
        """g(logit) - logsumexp of each class kept; -inf after the last."""
        with np.errstate(invalid="ignore"):
            return self.rows.transformed(self.logits) - self.rows.logsumexp[:, None]


def highest_rows(
    rows: LogitRows,
    labels: Ids,
    keep: int,
    *,
    known: Floats | None = None,
    want: int = 0,
    scale: float = 1.0,
    softcap: float = 0.0,
    num_threads: int | None = None,
) -> HighestRows:
    """The `keep` highest classes that are not masked of each row, ties by id, and the rows' statistics.

    Args as of `softmax_rows`.

    >>> from bigvocab.matrices.tiles import StoredRows
    >>> highest_rows(StoredRows.of(np.array([[1.0, 2.0, 5.0, 2.0]])), np.array([1]), 3).ids.tolist()
    [[2, 1, 3]]
    """
    reduction = HighestSums(labels, (scale, softcap), want, min(keep, rows.num_classes), known)
    return found_by(reduction, rows.reduce(reduction, resolve_threads(num_threads)))


def found_by(reduction: HighestSums, state: State) -> HighestRows:
    """What a reduction of rows has found."""
    from bigvocab.kernels import highest

    stats, keys, ids, marks = state
    logits = np.empty((len(reduction.labels), reduction.keep))
    highest.sort_highest(reduction.labels, keys, ids, marks, logits)
    statistics = RowStatistics(stats, reduction.found, *reduction.transform)
    return HighestRows(statistics, ids[:, : reduction.keep], logits)
