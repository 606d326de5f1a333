"""The reductions of the losses: per formula one small class around its kernel, for every kind of rows.

Each is a `RowReduction` (`matrices.logit_rows`): what it keeps per row, how a piece of logits is added, and how groups
of classes merge. Options are checked by the callers. A transform is (logit_scale, softcap or 0).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from bigvocab.arguments import FLOATS
from bigvocab.labels.ragged import RaggedIds
from bigvocab.matrices.excluded import Excluded, nothing_in
from bigvocab.matrices.logit_rows import Array, Bools, Floats, Ids, State
from bigvocab.matrices.tiles import Span, streamed

Transform = tuple[float, float]
PLAIN: Transform = (1.0, 0.0)


def labels_beside(labels: Array, span: Span, rows: slice | Ids, skip: Bools) -> Iterator[Array]:
    """The labels (n, V) of some rows and classes, once, as kernels take them; `skip` (m,) of these rows."""
    first, classes = span
    part = labels[rows, first : first + classes]
    if part.dtype.name not in FLOATS:
        part = part.astype(np.float64, order="C")
    for _, piece in streamed([(first, part)], 0, len(part), skip):
        yield piece


def add_softmax(
    piece: Array, labels: Ids, found: Floats, transform: Transform, want: int, span: Span, stats: Floats
) -> None:
    """See `rows_softmax`."""
    if transform[1]:
        from bigvocab.kernels import softmax_capped

        softmax_capped.rows_softmax_capped(piece, labels, found, transform, want, span, stats)
    else:
        from bigvocab.kernels import softmax

        entropy = softmax.entropy_wanted(want, transform[0], piece)
        softmax.rows_softmax(piece, labels, found, transform[0], want, entropy, span, stats)


class SeesCopies:
    """What reductions share whose kernels know of no class that does not exist: rows are copied for them."""

    hides = False

    def add_without(self, piece: Array, span: Span, rows: slice | Ids, state: State, excluded: Excluded) -> None:
        """Never called."""
        raise NotImplementedError


class SoftmaxSums:
    """Statistics of the softmax, one line of `kernels.row_statistics` per row, with a column for squares if wanted.

    Args:
        labels: (n,) the class of each row; -1 leaves the row out, -2 reads a row that has no label.
        transform: of the logits.
        want: the kernels' by-products.
        known: (n,) raw logits of the labels, which may then be any class at all; None: they are looked up.
    """

    beside = None

    def __init__(self, labels: Ids, transform: Transform, want: int, known: Floats | None = None) -> None:
        from bigvocab.kernels import row_statistics

        self.labels, self.transform, self.want = np.ascontiguousarray(labels), transform, want
        self.skip: Bools = self.labels == row_statistics.SKIP
        self.lookup = self.labels if known is None else None
        self.found: Floats = np.full(len(labels), np.nan) if known is None else np.ascontiguousarray(known)
        self.squares = True if want & row_statistics.SQUARES else None
        self.columns = row_statistics.COLUMNS + (self.squares is not None)

    def state(self, *shape: int) -> State:
        """(..., columns) statistics."""
        return (np.empty((*shape, self.columns)),)

    def clear(self, state: State) -> None:
        """The statistics of no class at all."""
        from bigvocab.kernels import row_statistics

        row_statistics.clear_statistics(state[0].reshape(-1, self.columns))

    def add(self, piece: Array, span: Span, rows: slice | Ids, state: State) -> None:
        """See `rows_softmax`."""
        if self.squares is not None:
            self.add_with(piece, span, rows, state[0], None)
            return
        add_softmax(piece, self.labels[rows], self.found[rows], self.transform, self.want, span, state[0])

    def add_with(self, piece: Array, span: Span, rows: slice | Ids, stats: Floats, highest: Any) -> None:
        """See `rows_softmax_with`."""
        from bigvocab.kernels import softmax, softmax_extras

        labels, found, capped = self.labels[rows], self.found[rows], True if self.transform[1] else None
        entropy = softmax.entropy_wanted(self.want, self.transform[0], piece)
        softmax_extras.rows_softmax_with(
            piece, labels, found, self.transform, capped, self.want, entropy, span, stats, self.squares, highest
        )

    @property
    def hides(self) -> bool:
        """Where there is neither a cap nor more to find, the kernel copies no more than strips."""
        return not self.transform[1] and self.squares is None

    def add_without(self, piece: Array, span: Span, rows: slice | Ids, state: State, excluded: Excluded) -> None:
        """See `kernels.hidden`."""
        from bigvocab.kernels import softmax

        room = np.empty(softmax.BLOCK, piece.dtype)
        shown = room.view()
        shown.flags.writeable = False
        hidden = (excluded.common, excluded.offsets, excluded.ids, room, shown, nothing_in(piece))
        labels, found = self.labels[rows], self.found[rows]
        scale, want = self.transform[0], self.want
        entropy = softmax.entropy_wanted(want, scale, piece)
        softmax.rows_softmax_without(piece, labels, found, scale, want, entropy, span, state[0], hidden)

    def merge(self, groups: State, into: State) -> None:
        """Sums of one maximum become those of another."""
        from bigvocab.kernels import merge

        merge.merge_statistics(groups[0], self.transform, into[0])


class SoftLabelSums(SeesCopies):
    """Statistics of the softmax, and sums of the logits with soft labels (n, V).

    Args:
        labels: (n, V) of any type.
        skip: (n,) rows that are left out.
        transform: of the logits.
        want: the kernels' by-products.
    """

    lookup = None

    def __init__(self, labels: Array, skip: Bools, transform: Transform, want: int) -> None:
        from bigvocab.kernels import row_statistics, soft_labels

        self.beside: Array | None = labels
        self._labels, self.skip, self.transform, self.want = labels, skip, transform, want
        self._marks = np.where(skip, row_statistics.SKIP, row_statistics.NO_LABEL)
        self.found: Floats = np.zeros(0)
        self.columns = row_statistics.COLUMNS + soft_labels.SUMS

    def state(self, *shape: int) -> State:
        """(..., COLUMNS) statistics and (..., SUMS) sums with labels."""
        from bigvocab.kernels import row_statistics, soft_labels

        return np.empty((*shape, row_statistics.COLUMNS)), np.empty((*shape, soft_labels.SUMS))

    def clear(self, state: State) -> None:
        """The statistics of no class at all, and no reference yet."""
        from bigvocab.kernels import row_statistics, soft_labels

        row_statistics.clear_statistics(state[0].reshape(-1, row_statistics.COLUMNS))
        state[1][...] = 0.0
        state[1][..., soft_labels.REFERENCE] = np.nan

    def add(self, piece: Array, span: Span, rows: slice | Ids, state: State) -> None:
        """See `rows_soft_labels`."""
        from bigvocab.kernels import soft_labels, softmax

        marks, want = self._marks[rows], self.want
        entropy = softmax.entropy_wanted(want, self.transform[0], piece)
        for z in labels_beside(self._labels, span, rows, self.skip[rows]):
            soft_labels.rows_soft_labels(piece, z, marks, self.transform, want, entropy, span, *state)

    def merge(self, groups: State, into: State) -> None:
        """Sums of one maximum, and of one reference, become those of another."""
        from bigvocab.kernels import merge, soft_labels

        merge.merge_statistics(groups[0], self.transform, into[0])
        soft_labels.merge_label_sums(groups[1], self.transform, into[1])


class _Sums(SeesCopies):
    """One sum per row: what the reductions below share."""

    lookup = None
    columns = 1

    def __init__(self, skip: Bools, beside: Array | None = None) -> None:
        self.skip, self.beside = skip, beside
        self.found: Floats = np.zeros(0)

    def state(self, *shape: int) -> State:
        """(...) sums."""
        return (np.empty(shape),)

    def clear(self, state: State) -> None:
        """Zeros."""
        for array in state:
            array[...] = 0

    def merge(self, groups: State, into: State) -> None:
        """Add the groups one after the other."""
        for group in groups[0]:  # NumPy's sum has another order
            np.add(into[0], group, out=into[0])


class WeightedSums(_Sums):
    """sum_c w_c g(x_c) of each row, with class weights w (V,); labels (n,) below 0 leave their row out."""

    def __init__(self, labels: Ids, class_weights: Floats, transform: Transform) -> None:
        super().__init__(labels < 0)
        self.labels, self.class_weights, self.transform = labels, class_weights, transform

    def add(self, piece: Array, span: Span, rows: slice | Ids, state: State) -> None:
        """See `rows_weighted_sum`."""
        from bigvocab.kernels import softmax

        part = self.class_weights[span[0] : span[0] + span[1]]
        softmax.rows_weighted_sum(piece, self.labels[rows], part, self.transform, state[0])


class SoftplusSums(_Sums):
    """The sum of softplus(g(x)) over the classes not listed and of q softplus(-g(x)) over those listed.

    Args:
        sets: the listed ids of each row, rising.
        skip: (n,) rows that are left out.
        pos_weight: q, (1,) or (V,).
        transform: of the logits.
    """

    def __init__(self, sets: RaggedIds, skip: Bools, pos_weight: Floats, transform: Transform) -> None:
        super().__init__(skip)
        self.sets, self.pos_weight, self.transform = sets, pos_weight, transform

    def add(self, piece: Array, span: Span, rows: slice | Ids, state: State) -> None:
        """See `rows_softplus`."""
        from bigvocab.kernels import sigmoid

        sets, skip = self.sets.of_rows(rows), self.skip[rows]
        sigmoid.rows_softplus(piece, skip, sets.offsets, sets.ids, self.pos_weight, self.transform, span, state[0])


class _FaultySums(_Sums):
    """One sum per row with dense labels (n, V), and what is wrong with the row."""

    def __init__(self, labels: Array, skip: Bools) -> None:
        super().__init__(skip, labels)
        self.labels = labels

    def state(self, *shape: int) -> State:
        """(...) sums and (...) faults of `kernels.sigmoid`."""
        return np.empty(shape), np.empty(shape, np.uint8)

    def merge(self, groups: State, into: State) -> None:
        """Add the groups one after the other; the greatest fault stays."""
        super().merge(groups, into)
        np.maximum(into[1], groups[1].max(axis=0), out=into[1])


class SigmoidSums(_FaultySums):
    """The sum over classes of sigmoid losses; pos_weight (1,) or (V,)."""

    def __init__(
        self, labels: Array, skip: Bools, pos_weight: Floats, label_smoothing: float, transform: Transform
    ) -> None:
        super().__init__(labels, skip)
        self.pos_weight, self.label_smoothing, self.transform = pos_weight, label_smoothing, transform

    def add(self, piece: Array, span: Span, rows: slice | Ids, state: State) -> None:
        """See `rows_sigmoid_sums`."""
        from bigvocab.kernels import sigmoid

        skip, weights = self.skip[rows], weights_of(self.pos_weight, span)
        for z in labels_beside(self.labels, span, rows, skip):
            sigmoid.rows_sigmoid_sums(piece, z, skip, weights, self.label_smoothing, self.transform, span[1], *state)


class LogLossSums(_FaultySums):
    """The sum over classes of log losses of probabilities, which stand where others have logits."""

    def __init__(self, labels: Array, skip: Bools, epsilon: float) -> None:
        super().__init__(labels, skip)
        self.epsilon = epsilon

    def add(self, piece: Array, span: Span, rows: slice | Ids, state: State) -> None:
        """See `rows_log_loss_sums`."""
        from bigvocab.kernels import sigmoid

        skip = self.skip[rows]
        for z in labels_beside(self.labels, span, rows, skip):
            sigmoid.rows_log_loss_sums(piece, z, skip, self.epsilon, span[1], *state)


def weights_of(pos_weight: Floats, span: Span) -> Floats:
    """The weights of some classes, of (1,) or (V,)."""
    return pos_weight if len(pos_weight) == 1 else pos_weight[span[0] : span[0] + span[1]]
