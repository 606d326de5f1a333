"""The highest classes of rows of logits, kept in the same pass as the statistics of their softmax."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

from bigvocab.losses.row_statistics import RowStatistics
from bigvocab.losses.row_sums import SoftmaxSums, Transform
from bigvocab.matrices.logit_rows import Array, Floats, Ids, LogitRows, State
from bigvocab.matrices.tiles import Span
from bigvocab.storage import memory
from bigvocab.threads import resolve_threads, run_threads

_SHORT = 2048  # classes: a tile of a head, whose statistics and highest classes two kernels find, one after the other
# Logits of a call of the two, which stay in the cache, and of the one that reads long rows once.
_CACHED, _MANY = 1 << 18, 1 << 22
_SORTED = 256  # rows of a turn


class HighestSums(SoftmaxSums):
    """Statistics of the softmax, and the buffers of the `keep` highest classes, one per row; see `kernels.highest`.

    Threads that work other classes of the same rows put what they find into the same buffers, one after the other.
    """

    def __init__(self, labels: Ids, transform: Transform, want: int, keep: int, known: Floats | None = None) -> None:
        super().__init__(labels, transform, want, known)
        self.keep, shape = keep, (len(labels), 2 * keep)
        ids = memory.empty(shape, np.int64)
        self.kept: State = memory.empty(shape, np.int64), ids, np.zeros((len(labels), 2))
        self.kept[2][:, 1] = -np.inf
        self._turn = threading.Lock()

    @property
    def hides(self) -> bool:
        """Never: rows are copied."""
        return False

    def add(self, piece: Array, span: Span, rows: slice | Ids, state: State) -> None:
        """See `rows_softmax_with`, and `merge_hits`."""
        from bigvocab.kernels import highest_cells

        numbers = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
        scratch = highest_cells.scratch_for(piece, span[1], self.keep)
        step = max(1, (_MANY if span[1] > _SHORT else _CACHED) // span[1])
        for start in range(0, len(numbers), step):
            part = slice(start, min(start + step, len(numbers)))
            mine = slice(rows.start + start, rows.start + part.stop) if isinstance(rows, slice) else rows[part]
            self._add_part(piece[part], span, mine, numbers[part], state[0][part], scratch)

    def _add_part(
        self, piece: Array, span: Span, rows: slice | Ids, numbers: Ids, stats: Floats, scratch: object
    ) -> None:
        from bigvocab.kernels import highest, highest_cells

        most = len(numbers) * min(self.keep, span[1])
        hits = np.empty(most, np.int64), np.empty(most, np.int64), np.zeros(len(numbers) + 1, np.int64)
        bounds = self.kept[2][numbers, 1]
        found = (*hits, bounds, scratch, self.keep)
        if span[1] > _SHORT:
            self.add_with(piece, span, rows, stats, found)
        else:
            super().add(piece, span, rows, (stats,))
            highest_cells.rows_highest(piece, self.labels[rows], span, found)
        if hits[2][-1]:
            with self._turn:
                highest.merge_hits(numbers, *hits, *self.kept)


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
    threads = resolve_threads(num_threads)
    return found_by(reduction, rows.reduce(reduction, threads), threads)


def found_by(reduction: HighestSums, state: State, num_threads: int) -> HighestRows:
    """What a reduction of rows has found."""
    from bigvocab.kernels import highest

    (stats,), (keys, ids, marks) = state, reduction.kept
    labels, logits = reduction.labels, memory.empty((len(reduction.labels), reduction.keep), np.float64)

    def sort(start: int, stop: int) -> None:
        mine = slice(start, stop)
        highest.sort_highest(labels[mine], keys[mine], ids[mine], marks[mine], logits[mine])

    run_threads(sort, len(labels), _SORTED, num_threads)
    statistics = RowStatistics(stats, reduction.found, *reduction.transform)
    return HighestRows(statistics, ids[:, : reduction.keep], logits)
