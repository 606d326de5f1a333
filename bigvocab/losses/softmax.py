"""Exact losses of arrays: one short function each, float64 per row, whatever the input type."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab import arguments
from bigvocab.labels.exclusions import as_excluded, labelled, refuse_excluded, refuse_smoothing
from bigvocab.labels.stored_ids import StoredIds, as_indices
from bigvocab.losses.leading import by_block, flat_weights, float_rows, shaped
from bigvocab.losses.reductions import (
    check_reduction,
    compute_weighted_loss,
    reduce_losses,
    reduce_weighted,
)
from bigvocab.losses.row_statistics import RowStatistics, softmax_rows, wanted
from bigvocab.losses.row_sums import PLAIN, Transform, WeightedSums
from bigvocab.losses.sigmoid import (
    log_loss,
    sigmoid_cross_entropy,
    sparse_sigmoid_cross_entropy,
    weighted_sigmoid_cross_entropy,
)
from bigvocab.losses.soft_rows import as_soft_labels, soft_losses
from bigvocab.matrices.excluded import Excluded
from bigvocab.matrices.logit_rows import Floats, Ids, LogitRows
from bigvocab.matrices.row_source import as_row_source, flat_labels
from bigvocab.matrices.tiles import StoredRows
from bigvocab.threads import resolve_threads

__all__ = [
    "LOSSES",
    "compute_weighted_loss",
    "log_loss",
    "sigmoid_cross_entropy",
    "softmax_cross_entropy",
    "sparse_sigmoid_cross_entropy",
    "sparse_softmax_cross_entropy",
    "weighted_sigmoid_cross_entropy",
]


@dataclass(frozen=True)
class SparseSoftmax:
    """The formula of sparse softmax cross-entropy, for arrays and files: options in, losses of row statistics out."""

    num_classes: int
    label_smoothing: float = 0.0
    class_weights: Floats | None = None

    def weighted_sums(self, rows: LogitRows, labels: Ids, transform: Transform, num_threads: int) -> Floats | None:
        """sum_c w_c g(x_c) of each row, which only smoothing with class weights needs; else None."""
        if self.class_weights is None or not self.label_smoothing:
            return None
        (sums,) = rows.reduce(WeightedSums(labels, self.class_weights, transform), num_threads)
        return sums

    @property
    def needs_logit_sum(self) -> bool:
        """Whether the formula uses the sum of all logits of the row."""
        return self.label_smoothing > 0

    def label_weights(self, labels: Ids) -> Floats | None:
        """The class weight of each row's label; None where there are none."""
        return None if self.class_weights is None else self.class_weights[labels]

    def losses(self, rows: RowStatistics) -> Floats:
        """The loss of each row without class weights: (1-e) (lse - g_y) + e (lse - mean of g)."""
        e = self.label_smoothing
        nll = rows.label_loss
        if not e:
            return nll
        with np.errstate(invalid="ignore"):
            uniform = rows.uniform_loss(self.num_classes)
            return np.where(np.isnan(nll), nll, uniform) if e == 1.0 else (1 - e) * nll + e * uniform

    def weighted_losses(self, rows: RowStatistics, labels: Ids, sums: Floats | None) -> Floats:
        """The loss of each row with class weights, as PyTorch: (1-e) w_y nll_y + (e/V) sum_c w_c nll_c."""
        if self.class_weights is None:
            return self.losses(rows)
        e, weights = self.label_smoothing, self.class_weights
        weight, nll = weights[labels], rows.label_loss
        with np.errstate(invalid="ignore", over="ignore"):
            hard = np.where((weight == 0) & ~np.isnan(nll), 0.0, weight * nll)
            if sums is None:
                return hard
            whole = weights.sum()
            spread = np.where(rows.logsumexp == np.inf, np.inf, whole * rows.logsumexp - sums)
            if not weights.any():
                spread = np.zeros(len(nll))
            if whole > 0 and (weights >= 0).all():  # no distribution has a lower loss than its entropy
                share = weights[weights > 0] / whole
                spread = np.maximum(spread, -whole * (share @ np.log(share)))
            spread /= self.num_classes
            return np.where(np.isnan(nll), nll, spread) if e == 1.0 else (1 - e) * hard + e * spread


def sparse_softmax_cross_entropy(
    logits: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    weights: npt.ArrayLike | None = None,
    class_weights: npt.ArrayLike | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int | Iterable[int] | None = None,
    exclude: Any = None,
    reduction: str = "none",
    num_threads: int | None = None,
) -> Any:
    """Softmax cross-entropy of one class per row.

    L = log sum_j exp(x_j) - x_y; with smoothing e, (1 - e) (lse - x_y) + e (lse - mean_j x_j); with class weights c as
    PyTorch, (1 - e) c_y (lse - x_y) + (e / V) sum_j c_j (lse - x_j).

    Args:
        logits: (..., V) float16, bfloat16, float32 or float64, in any layout and of any library; -inf is a masked
            class.
        labels: (...) integers in [0, V), or `ignore_index`.
        weights: a scalar or (...), weight of each row.
        class_weights: (V,), weight of each class; under "mean" the denominator is the sum of the weights of the labels
            seen.
        label_smoothing: e in [0, 1].
        ignore_index: rows with this label, or one of these, count in no metric, and their logits may be anything; their
            loss is 0.
        exclude: ids of classes that do not exist, for all rows or, as a pair (offsets (N + 1,), ids), for each: as if
            their logits were -inf.
        reduction: see `compute_weighted_loss`.
        num_threads: None is all usable cores; no result depends on it.

    Returns:
        float64 losses (...) in nats, or one float. A NaN in a row, or +inf at its label, gives NaN there; +inf
        elsewhere gives inf.

    Raises:
        BigvocabError: shapes that differ, a label out of range (with its row), an option outside its range.
        TypeError: logits that are no floats, labels that are no integers.

    Source: tf.nn.sparse_softmax_cross_entropy_with_logits and torch.nn.functional.cross_entropy, which return the loss
    of half-precision logits in half precision; this one is the loss of the stored values, to 1e-6 nats.

    >>> import numpy as np
    >>> logits = np.array([[1, 1, 1, 1], [1, 2, 3, 4]], np.float32)
    >>> sparse_softmax_cross_entropy(logits, [3, 0]).round(6)
    array([1.386294, 3.44019 ])
    """
    check_reduction(reduction)
    x = float_rows("logits", logits)
    y, ignored = StoredIds(ignored=as_indices("ignore_index", ignore_index)).of_array("labels", labels)
    shape = y.shape
    y, ignored = flat_labels(y, x.leading), None if ignored is None else flat_labels(ignored, x.leading)
    y = arguments.labels_in_range(y, x.shape[1], ignored=ignored, whole=True)
    formula = sparse_softmax_formula(x.shape[1], label_smoothing, class_weights)
    excluded = excluded_labels(exclude, y, x.shape[1], label_smoothing)
    row_weights = flat_weights(weights, shape)
    threads = resolve_threads(num_threads)

    def of_block(start: int, block: npt.NDArray[Any]) -> Floats:
        rows, labels_here = without(StoredRows.of(block), excluded, start), y[start : start + len(block)]
        found = softmax_rows(rows, labels_here, want=wanted(logit_sum=formula.needs_logit_sum), num_threads=threads)
        return formula.weighted_losses(found, labels_here, formula.weighted_sums(rows, labels_here, PLAIN, threads))

    losses = by_block(x, of_block)
    return shaped(reduce_rows(losses, row_weights, formula.label_weights(y), y >= 0, reduction), shape, reduction)


def excluded_labels(exclude: Any, labels: Ids, num_classes: int, label_smoothing: float) -> Excluded | None:
    """What a caller excludes, with labels below 0 for ignored rows; an error where a label is."""
    excluded = as_excluded("exclude", exclude, len(labels), num_classes)
    if excluded is not None:
        refuse_smoothing(label_smoothing)
        refuse_excluded("labels", excluded, np.arange(len(labels)), labels, num_classes, labels < 0)
    return excluded


def refuse_excluded_soft(labels: npt.NDArray[Any], excluded: Excluded | None, num_classes: int, first_row: int) -> None:
    """Raise where a soft label has weight on a class that is excluded."""
    if excluded is not None:
        refuse_excluded("labels", excluded, *labelled(labels, excluded), num_classes, first_row=first_row)


def without(rows: StoredRows, excluded: Excluded | None, start: int) -> StoredRows:
    """A block of rows, from row `start` on, without what is excluded."""
    return rows if excluded is None else rows.without(excluded.part(start, start + len(rows)))


def sparse_softmax_formula(num_classes: int, label_smoothing: Any, class_weights: Any) -> SparseSoftmax:
    """The formula with checked options."""
    e = arguments.in_unit_interval("label_smoothing", label_smoothing)
    weights = arguments.optional_class_vector("class_weights", class_weights, num_classes)
    return SparseSoftmax(num_classes, e, weights)


def reduce_rows(
    losses: Floats, weights: Floats, label_weights: Floats | None, counted: npt.NDArray[np.bool_], reduction: str
) -> Any:
    """Reduce losses of rows: those not counted, and those of weight 0, are left out even where they are NaN."""
    spread = np.where(counted, np.broadcast_to(weights, losses.shape), 0.0)
    weighted = np.where(spread == 0, 0.0, spread * np.where(spread == 0, 0.0, losses))
    if reduction == "none":
        return weighted
    if reduction == "mean" and label_weights is not None:
        spread = spread * label_weights
    return reduce_weighted(weighted, spread, int(np.count_nonzero(counted)), reduction)


def softmax_cross_entropy(
    logits: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    weights: npt.ArrayLike | None = None,
    class_weights: npt.ArrayLike | None = None,
    label_smoothing: float = 0.0,
    exclude: Any = None,
    reduction: str = "none",
    num_threads: int | None = None,
) -> Any:
    """Softmax cross-entropy of a distribution over the classes as label.

    L = sum_j z_j (lse - x_j), lse = log sum_j exp(x_j), where a class of z = 0 adds 0 whatever its logit; with
    smoothing e, (1 - e) z_j + e / V in place of z_j, and with class weights w, as PyTorch, w_j times that. Rows of
    labels need not sum to 1: a row of zeros gives 0, even where every class is masked.

    Args:
        logits: x, (..., V) float16, bfloat16, float32 or float64, in any layout and of any library; -inf is a masked
            class.
        labels: z, (..., V) floats, integers or booleans.
        weights: a scalar or (...), weight of each row.
        class_weights: w, (V,), weight of each class; it does not change what "mean" divides by.
        label_smoothing: e in [0, 1].
        exclude: ids of classes that do not exist, for all rows or, as a pair (offsets (N + 1,), ids), for each: as if
            their logits were -inf.
        reduction: see `compute_weighted_loss`.
        num_threads: None is all usable cores; no result depends on it.

    Returns:
        float64 losses (...) in nats, or one float. A NaN in a row, or +inf where z is not 0, gives NaN there; +inf
        elsewhere gives inf.

    Raises:
        BigvocabError: shapes that differ, a label that is not finite (with its row), an option outside its range.
        TypeError: logits that are no floats, labels that are no numbers.

    Source: tf.nn.softmax_cross_entropy_with_logits and torch.nn.functional.cross_entropy with probabilities, which give
    NaN for a masked class of probability 0; optax.safe_softmax_cross_entropy does not.

    >>> softmax_cross_entropy([[1, 1, 1, 1], [1.0, 2, 3, 4]], [[0, 0, 0, 1], [0, 0.5, 0.5, 0]]).round(6)
    array([1.386294, 1.94019 ])
    """
    check_reduction(reduction)
    x = float_rows("logits", logits)
    hint = "one id per row is for sparse_softmax_cross_entropy"
    z = as_row_source(as_soft_labels("labels", labels, (*x.leading, x.shape[1]), hint), "labels")
    e = arguments.in_unit_interval("label_smoothing", label_smoothing)
    by_class = arguments.optional_class_vector("class_weights", class_weights, x.shape[1])
    spread = flat_weights(weights, x.leading)
    threads = resolve_threads(num_threads)
    excluded = as_excluded("exclude", exclude, len(x), x.shape[1])
    if excluded is not None:
        refuse_smoothing(e)

    def of_block(start: int, block: npt.NDArray[Any]) -> Floats:
        rows, beside = without(StoredRows.of(block), excluded, start), z.rows(start, start + len(block))
        refuse_excluded_soft(beside, rows.excluded, x.shape[1], start)
        return soft_losses(
            rows, beside, label_smoothing=e, class_weights=by_class, num_threads=threads, first_row=start
        )

    return shaped(reduce_losses(by_block(x, of_block), spread, reduction), x.leading, reduction)


# Every loss of arrays by the name it has in reports and on the command line.
LOSSES: dict[str, Callable[..., Any]] = {
    "sparse-softmax": sparse_softmax_cross_entropy,
    "softmax": softmax_cross_entropy,
    "sigmoid": sigmoid_cross_entropy,
    "weighted-sigmoid": weighted_sigmoid_cross_entropy,
    "sparse-sigmoid": sparse_sigmoid_cross_entropy,
    "log-loss": log_loss,
}
