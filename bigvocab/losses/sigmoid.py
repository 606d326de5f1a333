"""Losses of independent classes: sigmoid cross-entropy, element by element or summed over huge vocabularies, and log
loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab import arguments
from bigvocab.labels.exclusions import as_excluded, refuse_excluded
from bigvocab.labels.ragged import as_ragged
from bigvocab.losses.exact_sums import ExactSums
from bigvocab.losses.leading import by_block, flat_elements, flat_ids, flat_weights, float_rows, shaped
from bigvocab.losses.reductions import broadcast_weights, check_reduction, reduce_losses, reduced
from bigvocab.losses.sigmoid_rows import (
    log_loss_elements,
    pos_weight_vector,
    sigmoid_elements,
    sparse_sigmoid_rows,
)
from bigvocab.losses.soft_rows import as_soft_labels
from bigvocab.matrices.row_source import RowSource, as_row_source
from bigvocab.matrices.tiles import StoredRows
from bigvocab.threads import resolve_threads, run_threads

Floats = npt.NDArray[np.float64]

_BLOCK_BYTES = 64 << 20  # of losses held at a time when they are reduced to one number


def sigmoid_cross_entropy(
    logits: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    weights: npt.ArrayLike | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "none",
    num_threads: int | None = None,
) -> Any:
    """Sigmoid cross-entropy of every class by itself.

    L = max(x, 0) - x z + log1p(exp(-|x|)), with z (1 - e) + e / 2 in place of z under smoothing e.

    Args:
        logits: x, (..., V) float16, bfloat16, float32 or float64, in any layout and of any library; infinite ones take
            their limits.
        labels: z, (..., V) floats, integers or booleans: 0 and 1, or probabilities.
        weights: a scalar, or (..., V) with any dimension 1; a weight per example is (N, 1).
        label_smoothing: e in [0, 1].
        reduction: see `compute_weighted_loss`; the unit is the element.
        num_threads: None is all usable cores; no result depends on it.

    Returns:
        float64 losses (..., V) in nats, or one float. A NaN logit gives NaN there.

    Raises:
        BigvocabError: shapes that differ, a label that is not finite (with its row), an option outside its range.
        TypeError: logits that are no floats, labels that are no numbers.

    Source: tf.nn.sigmoid_cross_entropy_with_logits, tf.compat.v1.losses.sigmoid_cross_entropy and
    torch.nn.functional.binary_cross_entropy_with_logits, which give NaN where an infinite logit meets its own label.

    >>> sigmoid_cross_entropy([[1.0, -1.0, 0.0]], [[0, 0, 1]]).round(6)
    array([[1.313262, 0.313262, 0.693147]])
    """
    e = arguments.in_unit_interval("label_smoothing", label_smoothing)
    return _sigmoid(float_rows("logits", logits), labels, np.ones(1), e, weights, reduction, num_threads)


def weighted_sigmoid_cross_entropy(
    logits: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    pos_weight: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    reduction: str = "none",
    num_threads: int | None = None,
) -> Any:
    """Sigmoid cross-entropy whose positive term counts `pos_weight` times.

    L = (1 - z) x + (1 + (q - 1) z) (log1p(exp(-|x|)) + max(-x, 0)), which is q z softplus(-x) + (1 - z) softplus(x).

    Args:
        logits: x, (..., V) float16, bfloat16, float32 or float64, in any layout and of any library; infinite ones take
            their limits.
        labels: z, (..., V) floats, integers or booleans: 0 and 1, or probabilities.
        pos_weight: q, a scalar or (V,); above 1 it favours recall, below 1 precision.
        weights: a scalar, or (..., V) with any dimension 1; a weight per example is (N, 1).
        reduction: see `compute_weighted_loss`; the unit is the element.
        num_threads: None is all usable cores; no result depends on it.

    Returns:
        float64 losses (..., V) in nats, or one float. A NaN logit gives NaN there.

    Raises:
        BigvocabError: shapes that differ, a label or a weight that is not finite.
        TypeError: logits that are no floats, labels or weights that are no numbers.

    Source: tf.nn.weighted_cross_entropy_with_logits; the pos_weight of torch.nn.BCEWithLogitsLoss.

    >>> weighted_sigmoid_cross_entropy([[1.5, -0.1, -10.0]], [[1, 0.5, 0]], pos_weight=1.5).round(6)
    array([[3.02120e-01, 8.80496e-01, 4.50000e-05]])
    """
    x = float_rows("logits", logits)
    if pos_weight is None:
        raise TypeError("pos_weight: expected a number or one for each class, got None")
    return _sigmoid(x, labels, pos_weight_vector(pos_weight, x.shape[1]), 0.0, weights, reduction, num_threads)


def _sigmoid(
    x: RowSource,
    labels: Any,
    pos_weight: Floats,
    smoothing: float,
    weights: Any,
    reduction: str,
    num_threads: int | None,
) -> Any:
    check_reduction(reduction)
    shape = (*x.leading, x.shape[1])
    hint = "ids of positive classes are for sparse_sigmoid_cross_entropy"
    z = as_row_source(as_soft_labels("labels", labels, shape, hint), "labels")
    spread = flat_elements(weights, shape)
    threads = resolve_threads(num_threads)

    def fill(start: int, stop: int, out: Floats) -> None:
        for first, rows in x.blocks(start, stop):
            here = slice(first - start, first - start + len(rows))
            options: dict[str, Any] = {"label_smoothing": smoothing, "num_threads": threads, "first_row": first}
            beside = z.rows(first, first + len(rows))
            sigmoid_elements(rows, beside, out[here], pos_weight=pos_weight, **options)

    return shaped(_elements(fill, x.shape, spread, reduction), shape, reduction)


def _elements(fill: Callable[[int, int, Floats], None], shape: tuple[int, ...], weights: Floats, reduction: str) -> Any:
    """Losses (N, V) that `fill(start, stop, out)` makes, weighted; reduced block by block and never held whole."""
    rows, classes = shape
    if reduction == "none":
        out = np.empty(shape)
        fill(0, rows, out)
        return reduce_losses(out, weights, "none")
    total, weight, nonzero = ExactSums(), ExactSums(), 0
    step = max(1, _BLOCK_BYTES // (8 * classes))
    block = np.empty((min(rows, step), classes))
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        losses = block[: stop - start]
        fill(start, stop, losses)
        if weights.ndim:
            part = np.broadcast_to(weights, shape)[start:stop]
            losses, nonzero = reduce_losses(losses, part, "none"), nonzero + int(np.count_nonzero(part))
            if reduction == "mean":
                weight.add(part)
        add_all(total, losses)
    count = rows * classes
    if weights.ndim:
        return reduced(reduction, total.exact(), weight.exact(), count, nonzero)
    return _reduced_by_scalar(reduction, total, float(weights), count)


def add_all(sums: ExactSums, values: Floats) -> None:
    """Add many numbers, most of them condensed by all threads first: an exact sum takes one of them at a time."""
    from bigvocab.kernels import condense as k

    flat = np.ascontiguousarray(values).reshape(-1)
    chunks = -(-flat.size // k.CHUNK)
    out, failed = np.empty((chunks, k.WIDTH)), np.zeros(chunks, bool)

    def work(start: int, stop: int) -> None:
        failed[start:stop] = k.condense(flat[start * k.CHUNK : stop * k.CHUNK], out[start:stop])

    run_threads(work, chunks, 256)
    sums.add(out[~failed])
    for chunk in np.flatnonzero(failed):
        sums.add(flat[chunk * k.CHUNK : (chunk + 1) * k.CHUNK])


def _reduced_by_scalar(reduction: str, total: ExactSums, weight: float, count: int) -> float:
    """The value of `count` losses of one weight and of sum `total`; what counts for nothing may be NaN."""
    if weight == 0:
        return reduced(reduction, 0.0, 0.0, count, 0)
    exact = total.exact()
    product = Fraction(weight) * exact if isinstance(exact, Fraction) and np.isfinite(weight) else weight * float(exact)
    mass = Fraction(weight) * count if np.isfinite(weight) else weight * count
    return reduced(reduction, product, mass, count, count)


def sparse_sigmoid_cross_entropy(
    logits: npt.ArrayLike,
    labels: Any,
    *,
    pos_weight: npt.ArrayLike | None = None,
    weights: npt.ArrayLike | None = None,
    exclude: Any = None,
    reduction: str = "none",
    num_threads: int | None = None,
) -> Any:
    """Sigmoid cross-entropy of rows whose positive classes are listed, summed over all classes.

    L = sum_j softplus(x_j) over the classes not listed + q sum_y softplus(-x_y) over those listed. No (N, V) array of
    labels ever exists, and the error is at most 1e-6 of the loss, also where a million terms of 1e-7 add up.

    Args:
        logits: x, (..., V) float16, bfloat16, float32 or float64, in any layout and of any library; infinite ones take
            their limits.
        labels: ids of the positive classes, (..., T) integers, or a pair (offsets (N + 1,), ids) where row i has
            ids[offsets[i] : offsets[i + 1]]; a row may have none, and no id twice.
        pos_weight: q, a scalar or (V,); None is 1.
        weights: a scalar or (...), weight of each row.
        exclude: ids of classes that do not exist, for all rows or, as a pair (offsets (N + 1,), ids), for each: they
            add nothing.
        reduction: see `compute_weighted_loss`; the unit is the row.
        num_threads: None is all usable cores; no result depends on it.

    Returns:
        float64 losses (...) in nats, or one float. A NaN in a row gives NaN there.

    Raises:
        BigvocabError: shapes that differ, offsets that fall or pass the end, an id out of range or repeated in its row.
        TypeError: logits that are no floats, ids that are no integers.

    Source: the sum over classes of tf.nn.sigmoid_cross_entropy_with_logits for labels that are 1 at the listed ids and
    0 elsewhere.

    >>> logits = [[0.0, 0.0, 0.0], [2.0, -1.0, 0.5]]
    >>> sparse_sigmoid_cross_entropy(logits, ([0, 0, 2], [0, 2])).round(6)
    array([2.079442, 0.914267])
    """
    check_reduction(reduction)
    x = float_rows("logits", logits)
    sets = as_ragged("labels", flat_ids("labels", labels, x.leading), len(x))
    sets.check_range(x.shape[1])
    sets = sets.in_rising_order()
    excluded = as_excluded("exclude", exclude, len(x), x.shape[1])
    spread = flat_weights(weights, x.leading)
    if excluded is not None:
        refuse_excluded("labels", excluded, sets.rows(), sets.ids, x.shape[1])
    q = pos_weight_vector(pos_weight, x.shape[1])
    threads = resolve_threads(num_threads)

    def of_block(start: int, block: npt.NDArray[Any]) -> Floats:
        rows = StoredRows.of(block)
        if excluded is not None:
            rows = rows.without(excluded.part(start, start + len(block)))
        here, skip = sets.of_rows(slice(start, start + len(block))), np.zeros(len(block), bool)
        return sparse_sigmoid_rows(rows, here, skip, pos_weight=q, num_threads=threads)

    return shaped(reduce_losses(by_block(x, of_block), spread, reduction), x.leading, reduction)


def log_loss(
    predictions: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    weights: npt.ArrayLike | None = None,
    epsilon: float = 1e-7,
    reduction: str = "none",
) -> Any:
    """Cross-entropy of probabilities: the one loss here that takes no logits.

    L = -z log(p + eps) - (1 - z) log(1 - p + eps). As in TensorFlow, eps is added and is no clamp: a certain prediction
    costs -eps.

    Args:
        predictions: p in [0, 1], any shape, float16, bfloat16, float32 or float64.
        labels: z of the same shape; floats, integers or booleans: 0 and 1, or probabilities.
        weights: a scalar, or of the rank of `predictions` with every dimension 1 or equal.
        epsilon: eps in [0, 1].
        reduction: see `compute_weighted_loss`; the unit is the element.

    Returns:
        float64 losses in the shape of `predictions`, in nats, or one float. A NaN prediction gives NaN there.

    Raises:
        BigvocabError: shapes that differ, a prediction outside [0, 1] or a label that is not finite (with its row).
        TypeError: predictions that are no floats, labels that are no numbers.

    Source: tf.compat.v1.losses.log_loss; torch.nn.functional.binary_cross_entropy clamps the logarithm at -100 instead.

    >>> log_loss([0.9, 0.2, 0.0], [1, 0, 1]).round(6)
    array([ 0.10536 ,  0.223143, 16.118096])
    """
    check_reduction(reduction)
    eps = arguments.in_unit_interval("epsilon", epsilon)
    p = arguments.as_matrix_of_floats("predictions", predictions, ndim=np.ndim(predictions))
    z = as_soft_labels("labels", labels, p.shape)
    spread = broadcast_weights(1.0 if weights is None else weights, p.shape)
    if p.size == 0:
        return reduce_losses(np.zeros(p.shape), spread, reduction)
    flat = (len(p), math.prod(p.shape[1:])) if p.ndim else (1, 1)
    p_rows, z_rows = p.reshape(flat), z.reshape(flat)

    def fill(start: int, stop: int, out: Floats) -> None:
        log_loss_elements(p_rows[start:stop], z_rows[start:stop], out, epsilon=eps, first_row=start)

    if p.ndim == 2:
        return _elements(fill, flat, spread, reduction)
    losses = np.empty(flat)
    fill(0, flat[0], losses)
    return reduce_losses(losses.reshape(p.shape), spread, reduction)
