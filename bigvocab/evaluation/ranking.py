"""Metrics of rankings as row values: of the highest classes of a row, and of sampled candidates in their place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.arguments import class_vector
from bigvocab.errors import BigvocabError, Keyword
from bigvocab.evaluation.context import RowContext
from bigvocab.labels.labels import LabelBatch
from bigvocab.labels.ragged import RaggedIds
from bigvocab.losses.ranking import inverse_propensities, places_among, ranking_values
from bigvocab.matrices.excluded import Excluded

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def most_ranked(asked: RowContext) -> int:
    """How many of the highest classes the rankings need; 0 where none are asked for."""
    return max(asked.measures.top_k, default=0) if "ranking" in asked.measures else 0


def check_ranking(asked: RowContext, num_classes: int) -> None:
    """Raise where there are fewer classes than the largest k."""
    left = num_classes - len(asked.loss.excluded)
    if (most := most_ranked(asked)) > left:
        raise BigvocabError(Keyword("top_k"), f": got {most}, but only {left} classes exist, expected at most as many")


def true_sets(asked: RowContext, batch: LabelBatch) -> RaggedIds:
    """The true classes of each row, rising and each once; none where the row is ignored.

    Raises:
        BigvocabError: a row without any, or with one twice.
    """
    name, first, ignored = asked.names.labels, batch.first_row, _ignored(batch)
    if not isinstance(batch.labels, tuple):
        kept = np.where(ignored, 0, 1)
        return RaggedIds(np.concatenate([[0], np.cumsum(kept)]), np.asarray(batch.labels)[~ignored])
    sets = RaggedIds(*batch.labels)
    sizes = np.diff(sets.offsets)
    if ((sizes == 0) & ~ignored).any():
        row = int(np.argmax((sizes == 0) & ~ignored))
        rest = " has no true class, which a ranking needs; a null list is an ignored row"
        raise BigvocabError.of_row(name, first + row, rest)
    if batch.probabilities is not None and (batch.probabilities == 0).any():
        kept = batch.probabilities != 0
        counts = np.bincount(sets.rows()[kept], minlength=len(batch))
        sets = RaggedIds(np.concatenate([[0], np.cumsum(counts)]), sets.ids[kept])
    if ignored.any():
        kept = ~ignored[sets.rows()]
        sets = RaggedIds(np.concatenate([[0], np.cumsum(np.where(ignored, 0, np.diff(sets.offsets)))]), sets.ids[kept])
    return replace(sets, name=name).in_rising_order(first)


def _ignored(batch: LabelBatch) -> Bools:
    return np.zeros(len(batch), bool) if batch.ignored is None else batch.ignored


def ranking_of(
    asked: RowContext, batch: LabelBatch, highest: Ids, finite: Bools, num_classes: int
) -> npt.NDArray[np.float64]:
    """The metrics of each row, (n, metrics, k), of its highest classes (n, K); 0 where it is not finite."""
    sets = true_sets(asked, batch)
    values = values_of(asked, places_among(highest, sets), sets, num_classes)
    values[~finite] = 0.0
    return values


def values_of(asked: RowContext, places: Ids, sets: RaggedIds, num_classes: int) -> Floats:
    """The metrics of each row of the places of its true classes."""
    counts, inverse = asked.measures.frequencies, None
    if counts is not None:
        inverse = inverse_propensities(class_vector("class_counts", counts.values, num_classes))[sets.ids]
    return ranking_values(places, sets, asked.measures.top_k, inverse)


def sampled_places(highest: Ids, logits: Floats, sets: RaggedIds, true_logits: Floats) -> Ids:
    """The place of each true class among its row's other true classes and candidates.

    Args:
        highest: (n, K) the highest candidates, none of them a true class, -1 after the last.
        logits: (n, K) theirs.
        sets: the true classes.
        true_logits: theirs.
    """
    rows = sets.rows()
    their, ids = logits[rows], highest[rows]
    mine = true_logits[:, None]
    above = (ids >= 0) & ((their > mine) | ((their == mine) & (ids < sets.ids[:, None])))
    order = np.lexsort((sets.ids, -true_logits, rows))
    before: Any = np.empty(len(order), np.int64)
    before[order] = np.arange(len(order)) - np.repeat(sets.offsets[:-1], np.diff(sets.offsets))
    return above.sum(axis=1) + before + 1


def among_candidates(candidates: Ids, sets: RaggedIds) -> Excluded:
    """The candidates (rising) that are true classes of a row, by their positions."""
    at = np.minimum(np.searchsorted(candidates, sets.ids), max(len(candidates) - 1, 0))
    hit = candidates[at] == sets.ids
    counts = np.bincount(sets.rows()[hit], minlength=sets.num_rows)
    return Excluded(np.zeros(0, np.int64), np.concatenate([[0], np.cumsum(counts)]), at[hit])
