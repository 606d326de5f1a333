"""Rows of the sigmoid family: element-wise losses into an array, or their sums over the classes of a row, and what is
wrong with a row.

One function per loss and form, for arrays and for the streaming path alike; options are checked by the callers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bigvocab import arguments
from bigvocab.errors import BigvocabError, Keyword
from bigvocab.labels.ragged import RaggedIds
from bigvocab.losses.combined import Both
from bigvocab.losses.highest_rows import HighestRows, HighestSums, found_by
from bigvocab.losses.row_sums import (
    PLAIN,
    LogLossSums,
    SigmoidSums,
    SoftplusSums,
    Transform,
    labels_beside,
    weights_of,
)
from bigvocab.losses.soft_rows import refuse_bad_label
from bigvocab.matrices.logit_rows import Array, Bools, Floats, LogitRows
from bigvocab.matrices.tiles import Span, StoredRows
from bigvocab.threads import resolve_threads

# Puts the losses of a piece and its labels into an array, for a span of the classes, and notes faults of its rows.
_Kernel = Callable[[Array, Array, Span, Floats, Array], None]


def pos_weight_vector(value: Any, num_classes: int) -> Floats:
    """pos_weight as (1,) or (V,) finite numbers; None is 1."""
    if value is None:
        return np.ones(1)
    if not isinstance(value, list | tuple) and np.ndim(value) == 0:
        number = arguments.real("pos_weight", value)
        if not np.isfinite(number):
            raise BigvocabError(Keyword("pos_weight"), f": got {number}, expected a finite number")
        return np.array([number])
    return arguments.class_vector("pos_weight", value, num_classes)


def sigmoid_elements(
    logits: Array,
    labels: Array,
    out: Floats,
    *,
    pos_weight: Floats,
    label_smoothing: float = 0.0,
    num_threads: int | None = None,
    first_row: int = 0,
) -> None:
    """Put the loss of every element of `logits` (n, V) into `out` (n, V)."""

    def kernel(x: Array, z: Array, span: Span, losses: Floats, faults: Array) -> None:
        from bigvocab.kernels import sigmoid

        sigmoid.rows_sigmoid(x, z, weights_of(pos_weight, span), label_smoothing, PLAIN, span[1], losses, faults)

    _elements(kernel, logits, labels, out, ("labels", "logits"), num_threads, first_row)


def log_loss_elements(predictions: Array, labels: Array, out: Floats, *, epsilon: float, first_row: int = 0) -> None:
    """Put the loss of every element of `predictions` (n, V) into `out` (n, V)."""

    def kernel(p: Array, z: Array, span: Span, losses: Floats, faults: Array) -> None:
        from bigvocab.kernels import sigmoid

        sigmoid.rows_log_loss(p, z, epsilon, span[1], losses, faults)

    _elements(kernel, predictions, labels, out, ("labels", "predictions"), None, first_row)


def _elements(
    kernel: _Kernel,
    logits: Array,
    labels: Array,
    out: Floats,
    names: tuple[str, str],
    num_threads: int | None,
    first_row: int,
) -> None:
    """Put what a kernel makes of every element of two arrays (n, V) into `out` (n, V)."""
    rows, faults, nothing = StoredRows.of(logits), np.zeros(len(out), np.uint8), np.zeros(len(out), bool)

    def work(piece: Array, span: Span, mine: slice) -> None:
        first, classes = span
        losses = out[mine, first : first + classes]
        target = losses if losses.flags.c_contiguous else np.empty(losses.shape)
        for z in labels_beside(labels, span, mine, nothing[mine]):
            kernel(piece, z, span, target, faults[mine])
        if target is not losses:
            losses[...] = target

    rows.sweep(work, num_threads, beside=labels)
    _refuse(faults, labels, rows, names, first_row)


def sigmoid_row_sums(
    rows: LogitRows,
    labels: Array,
    skip: Bools,
    *,
    pos_weight: Floats,
    label_smoothing: float = 0.0,
    transform: Transform = PLAIN,
    num_threads: int | None = None,
    name: str = "labels",
    first_row: int = 0,
) -> Floats:
    """The sum over classes of the losses of each row; 0 for rows of `skip`."""
    reduction = SigmoidSums(labels, skip, pos_weight, label_smoothing, transform)
    sums, faults = rows.reduce(reduction, resolve_threads(num_threads))
    _refuse(faults, labels, rows, (name, "logits"), first_row)
    return sums


def sparse_sigmoid_rows(
    rows: LogitRows,
    sets: RaggedIds,
    skip: Bools,
    *,
    pos_weight: Floats,
    transform: Transform = PLAIN,
    num_threads: int | None = None,
) -> Floats:
    """Sums of softplus(g(x)) over the classes not listed and q softplus(-g(x)) over those listed (rising), per row."""
    (sums,) = rows.reduce(SoftplusSums(sets, skip, pos_weight, transform), resolve_threads(num_threads))
    return sums


def sparse_sigmoid_highest(
    rows: LogitRows,
    sets: RaggedIds,
    skip: Bools,
    keep: int,
    *,
    pos_weight: Floats,
    transform: Transform = PLAIN,
    num_threads: int | None = None,
) -> tuple[Floats, HighestRows]:
    """As `sparse_sigmoid_rows`, with the `keep` highest classes of each row, in one pass."""
    from bigvocab.kernels import row_statistics

    marks = np.where(skip, row_statistics.SKIP, row_statistics.NO_LABEL)
    highest = HighestSums(marks, transform, 0, min(keep, rows.num_classes))
    both = Both(SoftplusSums(sets, skip, pos_weight, transform), highest)
    threads = resolve_threads(num_threads)
    sums, *state = rows.reduce(both, threads)
    return sums, found_by(highest, tuple(state), threads)


def log_loss_row_sums(
    rows: LogitRows,
    labels: Array,
    skip: Bools,
    *,
    epsilon: float,
    num_threads: int | None = None,
    names: tuple[str, str] = ("labels", "predictions"),
    first_row: int = 0,
) -> Floats:
    """The sum over classes of the log losses of each row; 0 for rows of `skip`; `names` of labels and predictions."""
    sums, faults = rows.reduce(LogLossSums(labels, skip, epsilon), resolve_threads(num_threads))
    _refuse(faults, labels, rows, names, first_row)
    return sums


def _refuse(faults: Array, labels: Array, rows: LogitRows, names: tuple[str, str], first_row: int) -> None:
    """Raise for the first row with a fault; `names` of the labels and of the logits or predictions."""
    from bigvocab.kernels import sigmoid

    if not faults.any():
        return
    row = int(np.argmax(faults > 0))
    if faults[row] == sigmoid.BAD_LABEL:
        refuse_bad_label(names[0], labels, row, first_row)
    classes = np.arange(rows.num_classes)
    values = rows.gather(np.full(len(classes), row), classes, 1).astype(np.float64)
    at = int(np.argmax((values < 0) | (values > 1)))
    raise BigvocabError.of_row(
        names[1],
        first_row + row,
        f", class {at}, is {values[at]}, expected a probability in [0, 1]; logits are for the sigmoid losses",
    )
