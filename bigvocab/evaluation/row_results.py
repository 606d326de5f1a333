"""What each loss makes of a block of rows: one short function for each name, found in the dict ROW_RESULTS.

A function takes the evaluator (its options), the rows' logits and the batch of labels, and returns a
RowResult: losses, weights and the by-products that make sense for it. Tallies, files and reports need to know nothing
else of a loss.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bigvocab import arguments
from bigvocab.errors import BigvocabError, Keyword
from bigvocab.evaluation.tally import RowResult
from bigvocab.labels.label_sources import dense_labels, id_sets
from bigvocab.losses.row_statistics import RowStatistics, softmax_rows, wanted
from bigvocab.losses.sigmoid_rows import log_loss_row_sums, pos_weight_vector, sigmoid_row_sums, sparse_sigmoid_rows
from bigvocab.losses.soft_rows import dense_label_rows, sparse_label_rows
from bigvocab.losses.softmax import sparse_softmax_formula
from bigvocab.matrices.logit_rows import LogitRows

if TYPE_CHECKING:
    from bigvocab.evaluation.evaluator import Evaluator
    from bigvocab.labels.labels import LabelBatch

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_HUGE_SCALE = 1e269  # times a logit of float32 it may leave the range of float64


def sparse_softmax(evaluator: Evaluator, logits: LogitRows, batch: LabelBatch) -> RowResult:
    """Softmax cross-entropy of one class per row, with every by-product."""
    classes = logits.num_classes
    labels = arguments.labels_in_range(
        batch.labels,
        classes,
        ignore_index=evaluator.ignore_index,
        ignored=batch.ignored,
        name=evaluator.label_name,
        first_row=batch.first_row,
    )
    formula = sparse_softmax_formula(classes, evaluator.label_smoothing, evaluator.class_weights)
    scale, softcap, threads = evaluator.logit_scale, evaluator.softcap or 0.0, evaluator.num_threads
    want = wanted(
        rank=evaluator.wants("rank") or evaluator.wants("accuracy"),
        entropy=evaluator.wants("entropy"),
        predicted=evaluator.wants("predicted"),
        logit_sum=formula.needs_logit_sum,
    )
    rows = softmax_rows(logits, labels, want=want, scale=scale, softcap=softcap, num_threads=threads)
    sums = formula.weighted_sums(logits, labels, (scale, softcap), threads)
    return of_statistics(evaluator, batch, labels, rows, classes, sums)


def of_statistics(
    evaluator: Evaluator,
    batch: LabelBatch,
    labels: npt.NDArray[np.int64],
    rows: RowStatistics,
    classes: int,
    sums: Any = None,
) -> RowResult:
    """What sparse softmax makes of statistics of rows over all `classes`; `sums` of logits times class weights, where
    they are needed.
    """
    formula = sparse_softmax_formula(classes, evaluator.label_smoothing, evaluator.class_weights)
    ignored = labels < 0
    weights, weighted = batch.weights, None
    if formula.class_weights is not None:
        weighted = formula.weighted_losses(rows, labels, sums)
    result = _result(evaluator, batch, formula.losses(rows), weighted, rows.finite, ignored, lambda i: _fault(rows, i))
    if formula.class_weights is not None:
        seen = np.where(ignored, 0.0, formula.class_weights[labels])
        result.row_weight = np.ones(len(seen)) if weights is None else weights
        result.weight = seen * result.row_weight
    if evaluator.wants("rank") or evaluator.wants("accuracy"):
        without = np.isnan(rows.exp_sum)  # a row with a NaN has no order: as if it were last, and right for no k
        rank = np.where(without, classes, rows.rank)
        if evaluator.wants("rank"):
            result.figures |= {"rank": rank, "tied": rows.tied & ~without}
        if evaluator.wants("accuracy"):
            result.figures["place"] = np.where(without, np.iinfo(np.int64).max, rank)
    for name in ("predicted", "logsumexp", "entropy"):
        if evaluator.wants(name):
            result.figures[name] = getattr(rows, name)
    return result


def _fault(rows: RowStatistics, row: int) -> str:
    """What is wrong with a row that is not finite."""
    if np.isnan(rows.exp_sum[row]):
        huge = rows.scale > _HUGE_SCALE
        return f"holds a NaN, or one comes of logit_scale={rows.scale:g}" if huge else "holds a NaN"
    return "holds +inf" if rows.maximum[row] > 0 else "has no finite logit: every class is masked"


def _result(
    evaluator: Evaluator,
    batch: LabelBatch,
    loss: Floats,
    weighted: Floats | None,
    finite: Bools,
    ignored: Bools,
    fault: Callable[[int], str],
) -> RowResult:
    """Weights applied, ignored rows set apart, rows that are not finite dealt with as `nonfinite` says.

    `weighted` is the loss as class weights make it, where there are any. A row of weight 0 is never read: it may hold
    anything.
    """
    weights = batch.weights
    bad = ~finite & ~ignored
    if weights is not None:
        bad &= weights != 0
    if evaluator.nonfinite == "error" and bad.any():
        row = int(np.argmax(bad))
        raise BigvocabError(
            f"{_place(evaluator, batch.first_row + row)} {fault(row)}; expected finite logits (",
            Keyword("nonfinite", "skip"),
            ' leaves such rows out and counts them, "keep" lets them through)',
        )
    counted = ~ignored & ~bad if evaluator.nonfinite == "skip" else ~ignored
    value: Any = loss if weighted is None else weighted
    if (past := counted & np.isinf(value) & np.isfinite(loss)).any():
        at = _place(evaluator, batch.first_row + int(np.argmax(past)))
        raise BigvocabError(Keyword("class_weights"), f": times the loss of {at}, they are past the largest float64")
    if weights is not None:
        with np.errstate(over="ignore"):
            value = np.where(weights == 0, 0.0, weights * np.where(weights == 0, 0.0, value))
        if (past := counted & np.isinf(value) & np.isfinite(loss)).any():
            row = int(np.argmax(past))
            raise BigvocabError(
                f"{evaluator.label_name}: the weight of row {batch.first_row + row}, {weights[row]}, times its loss is "
                "past the largest float64"
            )
    return RowResult(loss, value, weights, counted, ignored, bad)


def _place(evaluator: Evaluator, row: int) -> str:
    """A row as messages name it: by its file, and its number there where there are several."""
    files = evaluator.row_files
    if len(files) < 2:
        return f"{evaluator.logits_name}: row {row}"
    first, path = files[bisect_right(files, row, key=lambda file: file[0]) - 1]
    return f"{path}: row {row - first} (row {row} of all files)"


def softmax(evaluator: Evaluator, logits: LogitRows, batch: LabelBatch) -> RowResult:
    """Softmax cross-entropy of a distribution per row: over all classes, or over those that are listed."""
    classes, ignored = logits.num_classes, _ignored(batch)
    want = wanted(entropy=evaluator.wants("entropy"), predicted=evaluator.wants("predicted"))
    options: dict[str, Any] = {
        "label_smoothing": evaluator.label_smoothing,
        "want": want,
        "scale": evaluator.logit_scale,
        "softcap": evaluator.softcap or 0.0,
        "num_threads": evaluator.num_threads,
    }
    if batch.probabilities is None:
        labels = _dense(evaluator, logits, batch)
        names: dict[str, Any] = {"name": evaluator.label_name, "first_row": batch.first_row}
        found = dense_label_rows(logits, labels, ignored, **options, **names)
    else:
        found = sparse_label_rows(logits, id_sets(evaluator, batch, classes), batch.probabilities, ignored, **options)
    loss, rows = found.losses(evaluator.label_smoothing), found.rows
    result = _result(evaluator, batch, loss, None, rows.finite, ignored, lambda i: _fault(rows, i))
    for name in ("predicted", "logsumexp", "entropy"):
        if evaluator.wants(name):
            result.figures[name] = getattr(rows, name)
    return result


# ---- independent classes: the loss of a row is the sum over its classes


def sigmoid(evaluator: Evaluator, logits: LogitRows, batch: LabelBatch) -> RowResult:
    """Sigmoid cross-entropy with dense labels, plain or with the weight of positives."""
    labels, ignored = _dense(evaluator, logits, batch), _ignored(batch)
    loss = sigmoid_row_sums(
        logits,
        labels,
        ignored,
        pos_weight=pos_weight_vector(evaluator.pos_weight, logits.num_classes),
        label_smoothing=evaluator.label_smoothing,
        transform=(evaluator.logit_scale, evaluator.softcap or 0.0),
        num_threads=evaluator.num_threads,
        name=evaluator.label_name,
        first_row=batch.first_row,
    )
    return _of_sums(evaluator, batch, loss, ignored)


def sparse_sigmoid(evaluator: Evaluator, logits: LogitRows, batch: LabelBatch) -> RowResult:
    """Sigmoid cross-entropy with lists of positive classes."""
    classes, ignored = logits.num_classes, _ignored(batch)
    loss = sparse_sigmoid_rows(
        logits,
        id_sets(evaluator, batch, classes),
        ignored,
        pos_weight=pos_weight_vector(evaluator.pos_weight, classes),
        transform=(evaluator.logit_scale, evaluator.softcap or 0.0),
        num_threads=evaluator.num_threads,
    )
    return _of_sums(evaluator, batch, loss, ignored)


def log_loss(evaluator: Evaluator, logits: LogitRows, batch: LabelBatch) -> RowResult:
    """Cross-entropy of probabilities, which stand where others have logits."""
    labels, ignored = _dense(evaluator, logits, batch), _ignored(batch)
    loss = log_loss_row_sums(
        logits,
        labels,
        ignored,
        epsilon=evaluator.epsilon,
        num_threads=evaluator.num_threads,
        names=(evaluator.label_name, evaluator.logits_name),
        first_row=batch.first_row,
    )
    return _of_sums(evaluator, batch, loss, ignored)


def _ignored(batch: LabelBatch) -> Bools:
    return np.zeros(len(batch), bool) if batch.ignored is None else batch.ignored


def _dense(evaluator: Evaluator, logits: LogitRows, batch: LabelBatch) -> npt.NDArray[Any]:
    return dense_labels(evaluator, batch, logits.num_classes)


def _of_sums(evaluator: Evaluator, batch: LabelBatch, loss: Floats, ignored: Bools) -> RowResult:
    """Sums over classes as losses of rows; a row is finite if its loss is."""

    def fault(row: int) -> str:
        return "holds a NaN" if np.isnan(loss[row]) else "has an infinite loss: an infinite logit, or a certain miss"

    return _result(evaluator, batch, loss, None, np.isfinite(loss), ignored, fault)


ROW_RESULTS: dict[str, Callable[[Evaluator, Any, LabelBatch], RowResult]] = {
    "sparse-softmax": sparse_softmax,
    "softmax": softmax,
    "sigmoid": sigmoid,
    "weighted-sigmoid": sigmoid,
    "sparse-sigmoid": sparse_sigmoid,
    "log-loss": log_loss,
}
