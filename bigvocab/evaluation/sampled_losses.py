"""What the two sampled losses make of a block of rows, and of the same rows with all classes, where that is asked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.evaluation.context import RowContext
from bigvocab.evaluation.label_checks import true_classes
from bigvocab.evaluation.row_losses import weighted_result
from bigvocab.evaluation.row_result import RowResult
from bigvocab.heads.linear_rows import LinearRows
from bigvocab.labels.labels import LabelBatch
from bigvocab.labels.ragged import RaggedIds
from bigvocab.losses.row_statistics import softmax_rows
from bigvocab.losses.sigmoid_rows import sparse_sigmoid_rows
from bigvocab.sampling.draw_blocks import DRAW_ROWS
from bigvocab.sampling.sampled_rows import (
    Head,
    SampledRows,
    exact_softmax_losses,
    nce_losses,
    softmax_losses,
    true_sigmoid_sums,
)

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


def sampled_softmax(asked: RowContext, rows: LinearRows, batch: LabelBatch) -> RowResult:
    """Sampled softmax of the rows, accidental hits left out; with `exact`, beside their full softmax cross-entropy."""
    return _sampled(asked, rows, batch, softmax_losses, True, _exact_softmax)


def nce(asked: RowContext, rows: LinearRows, batch: LabelBatch) -> RowResult:
    """NCE of the rows, accidental hits and all; with `exact`, beside the sum of sigmoid losses over all classes."""
    return _sampled(asked, rows, batch, lambda sampled: nce_losses(sampled, "uniform"), False, _exact_nce)


SAMPLED_LOSSES: dict[str, Callable[[RowContext, Any, LabelBatch], RowResult]] = {
    "sampled-softmax": sampled_softmax,
    "nce": nce,
}


def _sampled(
    asked: RowContext,
    rows: LinearRows,
    batch: LabelBatch,
    losses_of: Callable[[SampledRows], Floats],
    remove_hits: bool,
    exact_of: Callable[[LinearRows, RaggedIds, Ids, Floats, int], Floats],
) -> RowResult:
    assert asked.draws is not None
    offsets, ids, ignored = true_classes(asked, batch, rows.num_classes)
    first, layer = asked.seen + batch.first_row, rows.layer
    head = Head(layer.weights, layer.biases, layer.norm)
    losses, true_logits = np.full(len(batch), np.nan), np.empty(len(ids))
    start = 0
    while start < len(batch):
        stop = min(len(batch), (first + start) // DRAW_ROWS * DRAW_ROWS + DRAW_ROWS - first)
        kept = np.flatnonzero(~ignored[start:stop])
        part = slice(offsets[start], offsets[stop])
        own = np.concatenate([[0], np.cumsum(np.diff(offsets)[start:stop][kept])])
        true = RaggedIds(own, ids[part], asked.names.labels)
        draw = asked.draws.draw(first + start, stop - start, true, kept)
        inputs = rows.inputs[start:stop] if len(kept) == stop - start else rows.inputs[start + kept]
        sampled = SampledRows(head, inputs, true, draw, remove_hits=remove_hits, num_threads=asked.threads)
        losses[start + kept] = losses_of(sampled)
        true_logits[part] = sampled.logits_of_true
        start = stop
    result_exact = None
    finite = np.isfinite(losses)
    if asked.measures.exact:
        result_exact = exact_of(rows, RaggedIds(offsets, ids), np.flatnonzero(~ignored), true_logits, asked.threads)
        finite &= np.isfinite(result_exact)
    result = weighted_result(
        asked,
        batch,
        losses,
        None,
        finite,
        ignored,
        lambda row: _fault(rows, row, losses[row]),
    )
    low = math.isqrt(rows.num_classes + 1) - 1  # log-uniform draws fall below with probability 1/2
    result.counts |= {"true_ids": len(ids), "low_ids": int(np.count_nonzero(ids < low))}
    if result_exact is not None:
        with np.errstate(invalid="ignore"):
            result.values |= {"exact": result_exact, "bias": result_exact - losses}
    return result


def _fault(rows: LinearRows, row: int, loss: float) -> str:
    """What is wrong with a row whose losses are not finite."""
    values = np.asarray(rows.inputs[row]).astype(np.float64)
    if not np.isfinite(values).all():
        at = int(np.argmin(np.isfinite(values)))
        return f"is {values[at]} in column {at}"
    return f"has the loss {loss}: the output layer is not finite in a class that was looked at"


def _exact_softmax(rows: LinearRows, true: RaggedIds, kept: Ids, true_logits: Floats, num_threads: int) -> Floats:
    from bigvocab.kernels import row_statistics

    labels = np.full(len(rows), row_statistics.SKIP)
    labels[kept] = row_statistics.NO_LABEL
    stats = softmax_rows(rows, labels, num_threads=num_threads)
    losses = exact_softmax_losses(stats.maximum, stats.exp_sum, true_logits, true.offsets)
    return _only(losses, kept)


def _exact_nce(rows: LinearRows, true: RaggedIds, kept: Ids, true_logits: Floats, num_threads: int) -> Floats:
    """Sum of sigmoid losses over all classes, with target 1 / T for the true ones; a repeated one counts each time."""
    owner = np.repeat(np.arange(len(rows)), np.diff(true.offsets))
    order = np.lexsort((true.ids, owner))
    first = np.ones(len(order), bool)
    first[1:] = (owner[order][1:] != owner[order][:-1]) | (true.ids[order][1:] != true.ids[order][:-1])
    chosen = order[first]
    sizes = np.bincount(owner[chosen], minlength=len(rows))
    sets = RaggedIds(np.concatenate([[0], np.cumsum(sizes)]), np.ascontiguousarray(true.ids[chosen]))
    skip = np.ones(len(rows), bool)
    skip[kept] = False
    sums = sparse_sigmoid_rows(rows, sets, skip, pos_weight=np.ones(1), num_threads=num_threads)
    if (np.diff(true.offsets) > 1).any():  # the kernel's target is 1 for each of the set
        sums = sums - np.bincount(owner[chosen], np.logaddexp(0.0, -true_logits[chosen]), len(rows))
        sums = sums + true_sigmoid_sums(true_logits, true.offsets, "uniform")
    return _only(sums, kept)


def _only(values: Floats, kept: Ids) -> Floats:
    out = np.full(len(values), np.nan)
    out[kept] = values[kept]
    return out
