"""Whether labels look shifted: a few rows are asked which label fits them better, their own or a neighbour's.

A row of a language model is scored on the next token. Where labels are the tokens of the inputs as they came, each row
meets a token that the model has already read, and the label of the next row fits far better; where they were shifted
twice, that of the row before does. Differences of logits of one row need no softmax, so this costs a few products.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from bigvocab.errors import BigvocabError
from bigvocab.evaluation.options import LossOptions
from bigvocab.labels.label_sources import LabelSource
from bigvocab.matrices.sources import LogitSource

_ROWS, _FEWEST = 48, 16
_NATS, _SIGMAS = 2.0, 5.0  # by which a neighbour's label must fit better, in the mean and in standard errors
_TOKENS = ("token_ids", "input_ids", "prompt_token_ids", "tokens")  # what tensors of the inputs' own tokens are called


def shift_notes(
    source: LogitSource, labels: LabelSource, loss: LossOptions, *, shifted: bool, column: str | None
) -> list[dict[str, str]]:
    """Notes {code, text} for a report; none where all looks well, or where there are too few rows to tell.

    Args:
        source: logits.
        labels: one for each row, as they are scored.
        loss: its scale makes nats of logits, and its `num_classes` and `ignore_index` say which labels count.
        shifted: whether the labels were shifted already.
        column: the name of the column or tensor of labels, where it has one.
    """
    if loss.name != "sparse-softmax" or labels.kind != "id":
        return []
    better: dict[int, float] = {}
    with contextlib.suppress(BigvocabError):  # whatever is wrong, the work itself says
        better = _better_labels(source, labels, loss)
    if 1 in better:
        text = (
            f"labels look not shifted: the label of the next row fits a row better, by {better[1]:.1f} nats on average"
        )
        return [_note("labels_not_shifted", f"{text}; shift_labels (--shift-labels) scores row t on label t + 1")]
    if -1 in better:
        text = f"labels look shifted too far: the label of the row before fits better, by {better[-1]:.1f} nats"
        return [_note("labels_shifted_twice", f"{text} on average{'; they were shifted already' if shifted else ''}")]
    if column in _TOKENS and not shifted:
        text = f"labels are {column}, the tokens of the inputs, and were not shifted"
        return [_note("labels_not_shifted", f"{text}: shift_labels (--shift-labels) scores row t on token t + 1")]
    return []


def _note(code: str, text: str) -> dict[str, str]:
    return {"code": code, "text": text}


def _better_labels(source: LogitSource, labels: LabelSource, loss: LossOptions) -> dict[int, float]:
    """By how many nats the label of the next row (1), or of the row before (-1), fits better, where it does."""
    start = max(0, (len(source) - _ROWS) // 2)
    stop = min(len(source), start + _ROWS)
    batch = next(iter(labels.batches(start, stop)))
    ids: Any = np.asarray(batch.labels)
    valid = (ids >= 0) & (ids < (loss.num_classes or source.shape[1]))
    if batch.ignored is not None:
        valid &= ~batch.ignored
    inner = valid[1:-1] & valid[:-2] & valid[2:] & (ids[1:-1] != ids[2:]) & (ids[1:-1] != ids[:-2])
    kept = np.flatnonzero(inner) + 1
    if len(kept) < _FEWEST:
        return {}
    first, rows = next(iter(source.rows(start, start + len(ids))))
    kept = kept[kept < len(rows)]
    if first != start or len(kept) < _FEWEST:
        return {}
    own, after, before = (
        loss.logit_scale * rows.gather(kept, ids[kept + step], 1).astype(np.float64) for step in (0, 1, -1)
    )
    source.release(start, stop)  # a fault maps far more than a logit
    found = {}
    for step, other in ((1, after), (-1, before)):
        gains = (other - own)[np.isfinite(other - own)]
        if len(gains) >= _FEWEST and gains.mean() > max(_NATS, _SIGMAS * gains.std() / len(gains) ** 0.5):
            found[step] = float(gains.mean())
    return found
