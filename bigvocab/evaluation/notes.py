"""Notes: one line where a number is probably not what was meant. They change no number and no exit code.

All of them come from the sums of a tally, so that the notes of merged shards are those of one run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from bigvocab.catalogue import DEFAULT_SAMPLER, LOSSES
from bigvocab.evaluation.tally import Tally

Note = tuple[str, str]  # code and text

_FEWEST_ROWS = 4  # fewer may look like anything by chance
_BYTES = 512  # models of bytes have some classes more than a byte has values, which no label is
_FEWEST_FROM_ONE, _SPAN = 32, 0.99  # rows and classes, and the share of the classes that labels from 1 on reach
_FEWEST_TRUE, _LOW_SHARE = 100, 0.1


def notes_of(loss: str, tally: Tally, sampled: dict[str, Any] | None) -> list[dict[str, str]]:
    """The notes of a report, as reports have them.

    Args:
        loss: its name.
        tally: of all rows.
        sampled: what the report says of the draws.
    """
    found = [
        *_of_logits(tally),
        *_of_labels(tally, likelihood=LOSSES[loss].is_likelihood),
        *_of_bytes(tally, likelihood=LOSSES[loss].is_likelihood),
        *_of_draws(tally, sampled),
    ]
    return [{"code": code, "text": text} for code, text in found]


def _of_logits(tally: Tally) -> Iterator[Note]:
    counts, looked = tally.counts, tally.counts.get("looked_rows", 0)
    if looked >= _FEWEST_ROWS and counts.get("probability_rows") == looked:
        yield (
            "probabilities",
            "every row looked at is from 0 to 1 and sums to 1, as probabilities do, but logits are expected: "
            "give their logarithms",
        )
    twice = looked >= _FEWEST_ROWS and counts.get("twice_rows") == looked
    if twice:
        yield (
            "vocabulary_twice",
            "the second half of the classes has the logits of the first: the vocabulary is there twice, which adds "
            "log 2 to every loss",
        )
    if not twice and 2 * counts.get("ties", 0) > looked >= _FEWEST_ROWS:
        share = f"{counts['ties']:,} of {looked:,} rows"
        yield (
            "ties",
            f"in {share} another class has the label's logit: a rank says little there; accuracy_ties has the accuracy "
            "with ties against and for",
        )


def _of_labels(tally: Tally, *, likelihood: bool) -> Iterator[Note]:
    extremes = tally.extremes
    classes, nameable = _highest(tally, "classes"), extremes.get("nameable", (math.inf, 0))[0]
    if classes > nameable and not (nameable <= 256 and classes <= _BYTES):
        bits = 8 if nameable <= 256 else 16
        yield (
            "label_type",
            f"labels are stored in {bits} bits, which name {nameable:,.0f} classes, but there are {classes:,.0f}: "
            "ids beyond would have been cut",
        )
    least, most = extremes.get("label", (0.0, 0.0))
    enough = min(tally.counts["rows"], classes) >= _FEWEST_FROM_ONE
    if (
        least == 1
        and most >= _SPAN * (classes - 1)
        and enough
        and likelihood
        and tally.mean() > math.log(classes) + 1e-3
    ):
        yield (
            "labels_from_1",
            f"labels run from 1 to {most:,.0f} and none is 0, and the loss is above that of a uniform guess: "
            "are classes counted from 1? The first one is 0",
        )
    if tally.counts.get("listed_rows") and tally.mean("mass") < 1 - 1e-3:
        mass = tally.mean("mass")
        yield (
            "label_mass",
            f"the listed probabilities of a row sum to {mass:.4g} in the mean, not to 1: the loss is that of the "
            "listed part alone, and no perplexity is made of it",
        )
    elif tally.mass_is_off:
        yield (
            "label_mass",
            f"soft labels of a row sum to {tally.mean('mass'):.4g} in the mean, not to 1: no perplexity is made of the "
            "loss",
        )


def _highest(tally: Tally, name: str) -> float:
    return tally.extremes.get(name, (0.0, 0.0))[1]


def _of_bytes(tally: Tally, *, likelihood: bool) -> Iterator[Note]:
    without = tally.counts.get("rows_without_bytes", 0)
    if without and likelihood:
        rest = tally.bits_per_byte_of_rows_with_bytes()
        shown = "" if math.isnan(rest) else f"; over the rows that have bytes it is {rest:.4f}"
        yield (
            "rows_without_bytes",
            f"{without:,} rows have no bytes, and their loss counts in bits per byte{shown}",
        )


def _of_draws(tally: Tally, sampled: dict[str, Any] | None) -> Iterator[Note]:
    true, low = tally.counts.get("true_ids", 0), tally.counts.get("low_ids", 0)
    log_uniform = sampled is not None and sampled.get("sampler") == DEFAULT_SAMPLER
    if log_uniform and true >= _FEWEST_TRUE and low < _LOW_SHARE * true:
        yield (
            "log_uniform",
            f"candidates are drawn log-uniformly, which takes low ids to be the frequent ones, but {low / true:.1%} of "
            "the labels lie among the ids that half of the draws come from: choose another sampler, or sort the ids",
        )
