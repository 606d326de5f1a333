"""What the two sampled losses make of a block of rows, and of the same rows with all classes, where that is asked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.evaluation.context import RowContext
from bigvocab.evaluation.label_checks import true_classes
from bigvocab.evaluation.ranking import (
    among_candidates,
    most_ranked,
    ranking_of,
    sampled_places,
    true_sets,
    values_of,
)
from bigvocab.evaluation.row_losses import weighted_result
from bigvocab.evaluation.row_result import RowResult
from bigvocab.heads.linear_rows import LinearRows
from bigvocab.labels.labels import LabelBatch
from bigvocab.labels.ragged import RaggedIds
from bigvocab.losses.highest_rows import highest_rows
from bigvocab.losses.ranking import NOWHERE
from bigvocab.losses.row_statistics import softmax_rows
from bigvocab.losses.sigmoid_rows import sparse_sigmoid_highest, sparse_sigmoid_rows
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
    exact_of: Callable[[RowContext, LinearRows, RaggedIds, Ids, Floats], tuple[Floats, Ids | None]],
) -> RowResult:
    assert asked.draws is not None
    offsets, ids, ignored = true_classes(asked, batch, rows.num_classes)
    first, layer = asked.seen + batch.first_row, rows.layer
    head = Head(layer.weights, layer.biases, layer.norm)
    losses, true_logits = np.full(len(batch), np.nan), np.empty(len(ids))
    keep = most_ranked(asked)
    ranking = SampledRanking(asked, batch, rows) if keep else None
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
        if ranking is not None:
            rising = np.lexsort((true.ids, true.rows()))  # as the sets of rankings are
            ranking.add(start + kept, inputs, draw.candidates, sampled.logits_of_true[rising])
        start = stop
    result_exact, highest = None, None
    finite = np.isfinite(losses)
    if asked.measures.exact:
        true = RaggedIds(offsets, ids)
        result_exact, highest = exact_of(asked, rows, true, np.flatnonzero(~ignored), true_logits)
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
    if ranking is not None:
        values = result.values["ranking"] = ranking.values(finite)
        if highest is not None:
            exact = ranking_of(asked, batch, highest, finite, rows.num_classes)
            result.values |= {"exact_ranking": exact, "ranking_bias": exact - values}
    return result


class SampledRanking:
    """Where true classes stand among the candidates of their rows: what a sampled metric says."""

    def __init__(self, asked: RowContext, batch: LabelBatch, rows: LinearRows) -> None:
        self.asked, self.rows, self.sets = asked, rows, true_sets(asked, batch)
        self.places = np.full(len(self.sets.ids), NOWHERE)

    def add(self, chosen: Ids, inputs: Any, candidates: Ids, true_logits: Floats) -> None:
        """Rows that share their candidates: which they are, and the logits of their true classes, row after row by
        rising id.
        """
        from bigvocab.kernels import row_statistics

        if not len(chosen):
            return
        offsets = self.sets.offsets
        mine, flat = self.sets.of_rows(chosen), slice(offsets[chosen[0]], offsets[chosen[-1] + 1])
        candidates = np.unique(candidates)
        labels = np.full(len(chosen), row_statistics.NO_LABEL)
        picked = LinearRows(self.rows.layer.picked(candidates), inputs).without(among_candidates(candidates, mine))
        found = highest_rows(picked, labels, most_ranked(self.asked), num_threads=self.asked.threads)
        ids = np.where(found.ids < 0, -1, candidates[found.ids])
        self.places[flat] = sampled_places(ids, found.logits, mine, true_logits)

    def values(self, finite: npt.NDArray[np.bool_]) -> Floats:
        """The metrics of each row; 0 where it is not finite."""
        found = values_of(self.asked, self.places, self.sets, self.rows.num_classes)
        found[~finite] = 0.0
        return found


def _fault(rows: LinearRows, row: int, loss: float) -> str:
    """What is wrong with a row whose losses are not finite."""
    values = np.asarray(rows.inputs[row]).astype(np.float64)
    if not np.isfinite(values).all():
        at = int(np.argmin(np.isfinite(values)))
        return f"is {values[at]} in column {at}"
    return f"has the loss {loss}: the output layer is not finite in a class that was looked at"


def _exact_softmax(
    asked: RowContext, rows: LinearRows, true: RaggedIds, kept: Ids, true_logits: Floats
) -> tuple[Floats, Ids | None]:
    """The loss over all classes, and the highest of them where they are asked for."""
    from bigvocab.kernels import row_statistics

    labels = np.full(len(rows), row_statistics.SKIP)
    labels[kept] = row_statistics.NO_LABEL
    keep, highest = most_ranked(asked), None
    if keep:
        found = highest_rows(rows, labels, keep, num_threads=asked.threads)
        stats, highest = found.rows, found.ids
    else:
        stats = softmax_rows(rows, labels, num_threads=asked.threads)
    losses = exact_softmax_losses(stats.maximum, stats.exp_sum, true_logits, true.offsets)
    return _only(losses, kept), highest


def _exact_nce(
    asked: RowContext, rows: LinearRows, true: RaggedIds, kept: Ids, true_logits: Floats
) -> tuple[Floats, Ids | None]:
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
    keep, highest = most_ranked(asked), None
    options: dict[str, Any] = {"pos_weight": np.ones(1), "num_threads": asked.threads}
    if keep:
        sums, found = sparse_sigmoid_highest(rows, sets, skip, keep, **options)
        highest = found.ids
    else:
        sums = sparse_sigmoid_rows(rows, sets, skip, **options)
    if (np.diff(true.offsets) > 1).any():  # the kernel's target is 1 for each of the set
        sums = sums - np.bincount(owner[chosen], np.logaddexp(0.0, -true_logits[chosen]), len(rows))
        sums = sums + true_sigmoid_sums(true_logits, true.offsets, "uniform")
    return _only(sums, kept), highest


def _only(values: Floats, kept: Ids) -> Floats:
    out = np.full(len(values), np.nan)
    out[kept] = values[kept]
    return out
