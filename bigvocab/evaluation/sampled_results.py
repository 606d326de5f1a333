"""What the two sampled losses make of a block of rows, and of the same rows with all classes, where that is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bigvocab.errors import BigvocabError
from bigvocab.evaluation.row_results import _result
from bigvocab.evaluation.tally import RowResult
from bigvocab.heads.linear_rows import LinearRows
from bigvocab.labels.id_sets import IdSets
from bigvocab.labels.label_sources import true_classes
from bigvocab.labels.true_classes import TrueClasses
from bigvocab.losses.row_statistics import softmax_rows
from bigvocab.losses.sigmoid_rows import sparse_sigmoid_rows
from bigvocab.sampling.draw_blocks import DRAW_ROWS, DrawBlocks
from bigvocab.sampling.sampled_rows import (
    Head,
    SampledRows,
    exact_softmax_losses,
    nce_losses,
    softmax_losses,
    true_sigmoid_sums,
)

if TYPE_CHECKING:
    from bigvocab.evaluation.evaluator import Evaluator
    from bigvocab.heads.output_layer import OutputLayer
    from bigvocab.labels.labels import LabelBatch
    from bigvocab.sampling.candidates import FileCandidates

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


def sampled_softmax(evaluator: Evaluator, rows: LinearRows, batch: LabelBatch) -> RowResult:
    """Sampled softmax of the rows, accidental hits left out; with `exact`, beside their full softmax cross-entropy."""
    return _sampled(evaluator, rows, batch, softmax_losses, True, _exact_softmax)


def nce(evaluator: Evaluator, rows: LinearRows, batch: LabelBatch) -> RowResult:
    """NCE of the rows, accidental hits and all; with `exact`, beside the sum of sigmoid losses over all classes."""
    return _sampled(evaluator, rows, batch, lambda sampled: nce_losses(sampled, "uniform"), False, _exact_nce)


SAMPLED_RESULTS: dict[str, Callable[[Evaluator, Any, LabelBatch], RowResult]] = {
    "sampled-softmax": sampled_softmax,
    "nce": nce,
}


def _sampled(
    evaluator: Evaluator,
    rows: LinearRows,
    batch: LabelBatch,
    losses_of: Callable[[SampledRows], Floats],
    remove_hits: bool,
    exact_of: Callable[[LinearRows, TrueClasses, Ids, Floats, int], Floats],
) -> RowResult:
    assert evaluator.draws is not None
    offsets, ids, ignored = true_classes(evaluator, batch, rows.num_classes)
    first, layer = evaluator._seen + batch.first_row, rows.layer
    head = Head(layer.weights, layer.biases, layer.norm)
    losses, true_logits = np.full(len(batch), np.nan), np.empty(len(ids))
    start = 0
    while start < len(batch):
        stop = min(len(batch), (first + start) // DRAW_ROWS * DRAW_ROWS + DRAW_ROWS - first)
        kept = np.flatnonzero(~ignored[start:stop])
        part = slice(offsets[start], offsets[stop])
        own = np.concatenate([[0], np.cumsum(np.diff(offsets)[start:stop][kept])])
        true = TrueClasses((own, ids[part]), evaluator.label_name)
        draw = evaluator.draws.draw(first + start, stop - start, true, kept)
        inputs = rows.inputs[start:stop] if len(kept) == stop - start else rows.inputs[start + kept]
        sampled = SampledRows(head, inputs, true, draw, remove_hits=remove_hits, num_threads=evaluator.num_threads)
        losses[start + kept] = losses_of(sampled)
        true_logits[part] = sampled.logits_of_true
        start = stop
    result_exact = None
    finite = np.isfinite(losses)
    if evaluator.exact:
        result_exact = exact_of(
            rows, TrueClasses((offsets, ids)), np.flatnonzero(~ignored), true_logits, evaluator.num_threads
        )
        finite &= np.isfinite(result_exact)
    result = _result(
        evaluator,
        batch,
        losses,
        None,
        finite,
        ignored,
        lambda row: _fault(rows, row, losses[row]),
    )
    if result_exact is not None:
        with np.errstate(invalid="ignore"):
            result.figures |= {"exact": result_exact, "bias": result_exact - losses}
    return result


def _fault(rows: LinearRows, row: int, loss: float) -> str:
    """What is wrong with a row whose losses are not finite."""
    values = np.asarray(rows.inputs[row]).astype(np.float64)
    if not np.isfinite(values).all():
        at = int(np.argmin(np.isfinite(values)))
        return f"is {values[at]} in column {at}"
    return f"has the loss {loss}: the output layer is not finite in a class that was looked at"


def open_draws(loss: str, layer: OutputLayer | None, sampling: dict[str, Any]) -> DrawBlocks | FileCandidates | None:
    """Where the candidates of a sampled loss come from, by the options of an evaluator; None for the other losses."""
    if loss not in SAMPLED_RESULTS:
        return None
    if layer is None:
        raise BigvocabError(f"{loss}: looks at some classes only, expected inputs and weights, not logits")
    options = {name: sampling[name] for name in ("num_sampled", "vocab_file", "distortion")}
    if sampling["candidates"] is None:
        seed = 0 if sampling["seed"] is None else sampling["seed"]
        return DrawBlocks(sampling["sampler"] or "log-uniform", num_classes=layer.num_classes, seed=seed, **options)
    for name in ("sampler", "seed", "distortion"):
        if sampling[name] is not None:
            raise BigvocabError(f"{name}: does not go with candidates, which are a draw already")
    from bigvocab.sampling.candidates import FileCandidates

    return FileCandidates(
        sampling["candidates"],
        layer.num_classes,
        num_sampled=sampling["num_sampled"],
        vocab_file=sampling["vocab_file"],
    )


def _exact_softmax(rows: LinearRows, true: TrueClasses, kept: Ids, true_logits: Floats, num_threads: int) -> Floats:
    from bigvocab.kernels import row_statistics

    labels = np.full(len(rows), row_statistics.SKIP)
    labels[kept] = row_statistics.NO_LABEL
    stats = softmax_rows(rows, labels, num_threads=num_threads)
    losses = exact_softmax_losses(stats.maximum, stats.exp_sum, true_logits, true.offsets)
    return _only(losses, kept)


def _exact_nce(rows: LinearRows, true: TrueClasses, kept: Ids, true_logits: Floats, num_threads: int) -> Floats:
    """Sum of sigmoid losses over all classes, with target 1 / T for the true ones; a repeated one counts each time."""
    owner = np.repeat(np.arange(len(rows)), np.diff(true.offsets))
    order = np.lexsort((true.ids, owner))
    first = np.ones(len(order), bool)
    first[1:] = (owner[order][1:] != owner[order][:-1]) | (true.ids[order][1:] != true.ids[order][:-1])
    chosen = order[first]
    sizes = np.bincount(owner[chosen], minlength=len(rows))
    sets = IdSets(np.concatenate([[0], np.cumsum(sizes)]), np.ascontiguousarray(true.ids[chosen]))
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
