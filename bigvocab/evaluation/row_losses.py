"""What each loss makes of a block of rows: one short function for each name, found in the dict ROW_LOSSES.

A function takes what was asked (a `RowContext`), the logits of the rows and the batch of labels, and returns a
RowResult: losses, weights and the by-products that make sense for it. Tallies, files and reports need to know nothing
else of a loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab import arguments
from bigvocab.errors import BigvocabError, Keyword
from bigvocab.evaluation.breakdowns import frequency_bins
from bigvocab.evaluation.context import RowContext
from bigvocab.evaluation.label_checks import dense_labels, equally_true, id_sets
from bigvocab.evaluation.observations import look_at_labels, look_at_logits
from bigvocab.evaluation.ranking import most_ranked, ranking_of
from bigvocab.evaluation.ranks import rank_columns
from bigvocab.evaluation.row_result import RowResult
from bigvocab.labels.labels import LabelBatch
from bigvocab.losses.highest_rows import HighestRows, highest_rows
from bigvocab.losses.row_statistics import RowStatistics, softmax_rows, wanted
from bigvocab.losses.sigmoid_rows import (
    log_loss_row_sums,
    sigmoid_row_sums,
    sparse_sigmoid_highest,
    sparse_sigmoid_rows,
)
from bigvocab.losses.soft_rows import dense_label_rows, sparse_label_rows
from bigvocab.losses.softmax import sparse_softmax_formula
from bigvocab.matrices.logit_rows import LogitRows

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_HUGE_SCALE = 1e269  # times a logit of float32 it may leave the range of float64


def sparse_softmax(asked: RowContext, logits: LogitRows, batch: LabelBatch) -> RowResult:
    """Softmax cross-entropy of one class per row, with every by-product."""
    classes = logits.num_classes
    labels = arguments.labels_in_range(
        batch.labels,
        classes,
        ignored=batch.ignored,
        name=asked.names.labels,
        first_row=batch.first_row,
    )
    formula = sparse_softmax_formula(classes, asked.loss.label_smoothing, asked.class_weights)
    (scale, softcap), threads = asked.loss.transform, asked.threads
    options: dict[str, Any] = {
        "want": wanted_of(asked, rank=asked.measures.ranks, logit_sum=formula.needs_logit_sum),
        "scale": scale,
        "softcap": softcap,
        "num_threads": threads,
    }
    keep = most_kept(asked)
    highest = highest_rows(logits, labels, keep, **options) if keep else None
    rows = highest.rows if highest is not None else softmax_rows(logits, labels, **options)
    sums = formula.weighted_sums(logits, labels, (scale, softcap), threads)
    result = of_statistics(asked, batch, labels, rows, classes, sums)
    if highest is not None:
        add_highest(asked, batch, highest, classes, result)
    look_at_logits(logits, rows, asked.loss.transform, result)
    return result


def most_kept(asked: RowContext) -> int:
    """How many of the highest classes are needed."""
    return max(asked.measures.keep_top if "topk" in asked.measures else 0, most_ranked(asked))


def add_highest(asked: RowContext, batch: LabelBatch, highest: HighestRows, classes: int, result: RowResult) -> None:
    """What the highest classes of sparse softmax say: those that are kept, and the metrics of their ranking."""
    finite = highest.rows.finite
    if "topk" in asked.measures:
        ids = np.where(finite[:, None], highest.ids, -1)
        found = {"top_ids": ids, "top_logprobs": highest.log_probabilities.astype(np.float32)}
        result.values |= {name: values[:, : asked.measures.keep_top] for name, values in found.items()}
    if "ranking" in asked.measures:
        result.values["ranking"] = ranking_of(asked, batch, highest.ids, finite, classes)


def wanted_of(asked: RowContext, *, rank: bool, logit_sum: bool) -> int:
    """The kernels' by-products of sparse softmax; the predicted class is that of the worst rows too."""
    calibration = "calibration" in asked.measures
    return wanted(
        rank=rank, entropy="entropy" in asked.measures, predicted=True, logit_sum=logit_sum, squares=calibration
    )


def of_statistics(
    asked: RowContext,
    batch: LabelBatch,
    labels: npt.NDArray[np.int64],
    rows: RowStatistics,
    classes: int,
    sums: Any = None,
) -> RowResult:
    """What sparse softmax makes of statistics of rows over all `classes`; `sums` of logits times class weights, where
    they are needed.
    """
    formula = sparse_softmax_formula(classes, asked.loss.label_smoothing, asked.class_weights)
    ignored = labels < 0
    weights, weighted = batch.weights, None
    if formula.class_weights is not None:
        weighted = formula.weighted_losses(rows, labels, sums)
    result = weighted_result(
        asked, batch, formula.losses(rows), weighted, rows.finite, ignored, lambda i: row_fault(rows, i)
    )
    if formula.class_weights is not None:
        seen = np.where(ignored, 0.0, formula.class_weights[labels])
        result.row_weight = np.ones(len(seen)) if weights is None else weights
        result.weight = seen * result.row_weight
    result.values |= {"loss": result.loss, "predicted": rows.predicted}
    if asked.loss.label_smoothing:
        result.values["nll"] = rows.label_loss
    if asked.measures.ranks:
        columns = rank_columns(rows, classes, asked.measures.ties)
        result.counts["ties"] = int(np.count_nonzero(columns["tied"] & ~ignored))
        names = ["ranked", "place", *["tie"] * ("accuracy" in asked.measures)]
        names += ["rank", "reciprocal_rank", "tied"] if "rank" in asked.measures else []
        result.values |= {name: columns[name] for name in names}
    if "calibration" in asked.measures:
        right = np.where(result.values["predicted"] == labels, 1.0, 0.0)
        result.values |= {"confidence": np.stack([rows.confidence, right], 1), "brier": rows.brier}
    for name in ("logsumexp", "entropy"):
        if name in asked.measures:
            result.values[name] = getattr(rows, name)
    if asked.frequencies is not None:
        result.bins["by_frequency"] = frequency_bins(asked.frequencies, labels, classes)
    result.counts["looked_rows"] = int(np.count_nonzero(~ignored & rows.finite))
    look_at_labels(batch, labels, classes, result)
    return result


def row_fault(rows: RowStatistics, row: int) -> str:
    """What is wrong with a row that is not finite."""
    if np.isnan(rows.exp_sum[row]):
        huge = rows.scale > _HUGE_SCALE
        return f"holds a NaN, or one comes of logit_scale={rows.scale:g}" if huge else "holds a NaN"
    return "holds +inf" if rows.maximum[row] > 0 else "has no finite logit: every class is masked"


def weighted_result(
    asked: RowContext,
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
    if asked.specification.nonfinite == "error" and bad.any():
        row = int(np.argmax(bad))
        raise BigvocabError(
            f"{asked.names.row(batch.first_row + row)} {fault(row)}; expected finite logits (",
            Keyword("nonfinite", "skip"),
            ' leaves such rows out and counts them, "keep" lets them through)',
        )
    counted = ~ignored & ~bad if asked.specification.nonfinite == "skip" else ~ignored
    value: Any = loss if weighted is None else weighted
    if (past := counted & np.isinf(value) & np.isfinite(loss)).any():
        at = asked.names.row(batch.first_row + int(np.argmax(past)))
        raise BigvocabError(Keyword("class_weights"), f": times the loss of {at}, they are past the largest float64")
    if weights is not None:
        with np.errstate(over="ignore"):
            value = np.where(weights == 0, 0.0, weights * np.where(weights == 0, 0.0, value))
        if (past := counted & np.isinf(value) & np.isfinite(loss)).any():
            row = int(np.argmax(past))
            raise BigvocabError(
                f"{asked.names.labels}: the weight of row {batch.first_row + row}, {weights[row]}, times its loss is "
                "past the largest float64"
            )
    return RowResult(loss, value, weights, counted, ignored, bad)


def softmax(asked: RowContext, logits: LogitRows, batch: LabelBatch) -> RowResult:
    """Softmax cross-entropy of a distribution per row: over all classes, or over those that are listed."""
    classes, ignored = logits.num_classes, _ignored(batch)
    want = wanted(entropy="entropy" in asked.measures, predicted="predicted" in asked.measures)
    options: dict[str, Any] = {
        "label_smoothing": asked.loss.label_smoothing,
        "want": want,
        "scale": asked.loss.transform[0],
        "softcap": asked.loss.transform[1],
        "num_threads": asked.threads,
    }
    keep = most_ranked(asked)
    if isinstance(batch.labels, tuple) and batch.probabilities is None:
        batch = equally_true(asked, batch, classes)
    if batch.probabilities is None:
        labels = _dense(asked, logits, batch)
        names: dict[str, Any] = {"name": asked.names.labels, "first_row": batch.first_row}
        found = dense_label_rows(logits, labels, ignored, **options, **names)
    else:
        found = sparse_label_rows(
            logits, id_sets(asked, batch, classes), batch.probabilities, ignored, keep=keep, **options
        )
    loss, rows = found.losses(asked.loss.label_smoothing), found.rows
    result = weighted_result(asked, batch, loss, None, rows.finite, ignored, lambda i: row_fault(rows, i))
    result.values["mass"] = found.mass
    if asked.loss.label_smoothing:
        result.values["nll"] = found.losses(0.0)
    result.extremes["classes"] = (classes, classes)
    if batch.probabilities is not None:
        result.counts["listed_rows"] = len(batch)
    look_at_logits(logits, rows, asked.loss.transform, result)
    if found.highest is not None:
        result.values["ranking"] = ranking_of(asked, batch, found.highest, rows.finite, classes)
    for name in ("predicted", "logsumexp", "entropy"):
        if name in asked.measures:
            result.values[name] = getattr(rows, name)
    return result


# ---- independent classes: the loss of a row is the sum over its classes


def sigmoid(asked: RowContext, logits: LogitRows, batch: LabelBatch) -> RowResult:
    """Sigmoid cross-entropy with dense labels, plain or with the weight of positives."""
    labels, ignored = _dense(asked, logits, batch), _ignored(batch)
    loss = sigmoid_row_sums(
        logits,
        labels,
        ignored,
        pos_weight=asked.loss.positive_weights(logits.num_classes),
        label_smoothing=asked.loss.label_smoothing,
        transform=asked.loss.transform,
        num_threads=asked.threads,
        name=asked.names.labels,
        first_row=batch.first_row,
    )
    return _of_sums(asked, batch, loss, ignored)


def sparse_sigmoid(asked: RowContext, logits: LogitRows, batch: LabelBatch) -> RowResult:
    """Sigmoid cross-entropy with lists of positive classes."""
    classes, ignored = logits.num_classes, _ignored(batch)
    sets, keep = id_sets(asked, batch, classes), most_ranked(asked)
    options: dict[str, Any] = {
        "pos_weight": asked.loss.positive_weights(classes),
        "transform": asked.loss.transform,
        "num_threads": asked.threads,
    }
    if not keep:
        return _of_sums(asked, batch, sparse_sigmoid_rows(logits, sets, ignored, **options), ignored)
    loss, highest = sparse_sigmoid_highest(logits, sets, ignored, keep, **options)
    result = _of_sums(asked, batch, loss, ignored)
    result.values["ranking"] = ranking_of(asked, batch, highest.ids, highest.rows.finite, classes)
    return result


def log_loss(asked: RowContext, logits: LogitRows, batch: LabelBatch) -> RowResult:
    """Cross-entropy of probabilities, which stand where others have logits."""
    labels, ignored = _dense(asked, logits, batch), _ignored(batch)
    loss = log_loss_row_sums(
        logits,
        labels,
        ignored,
        epsilon=asked.loss.epsilon,
        num_threads=asked.threads,
        names=(asked.names.labels, asked.names.logits),
        first_row=batch.first_row,
    )
    return _of_sums(asked, batch, loss, ignored)


def _ignored(batch: LabelBatch) -> Bools:
    return np.zeros(len(batch), bool) if batch.ignored is None else batch.ignored


def _dense(asked: RowContext, logits: LogitRows, batch: LabelBatch) -> npt.NDArray[Any]:
    return dense_labels(asked, batch, logits.num_classes)


def _of_sums(asked: RowContext, batch: LabelBatch, loss: Floats, ignored: Bools) -> RowResult:
    """Sums over classes as losses of rows; a row is finite if its loss is."""

    def fault(row: int) -> str:
        return "holds a NaN" if np.isnan(loss[row]) else "has an infinite loss: an infinite logit, or a certain miss"

    return weighted_result(asked, batch, loss, None, np.isfinite(loss), ignored, fault)


ROW_LOSSES: dict[str, Callable[[RowContext, Any, LabelBatch], RowResult]] = {
    "sparse-softmax": sparse_softmax,
    "softmax": softmax,
    "sigmoid": sigmoid,
    "weighted-sigmoid": sigmoid,
    "sparse-sigmoid": sparse_sigmoid,
    "log-loss": log_loss,
}
