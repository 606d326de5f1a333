"""What rows give away in passing: counts and extremes that notes are made of, from what was read anyway."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bigvocab.evaluation.row_result import RowResult
from bigvocab.labels.labels import LabelBatch
from bigvocab.losses.row_statistics import RowStatistics
from bigvocab.matrices.logit_rows import LogitRows

_PLAIN = (1.0, 0.0)
_FEWEST_CLASSES = 5  # fewer logits from 0 to 1 that sum to 1 may be chance
_MOST_CLASSES = 10**6  # beyond, sums of exponentials are not known to 1
_LOOKED_AT = 4  # rows of a block that are read again, where all of them look odd


def look_at_labels(batch: LabelBatch, labels: npt.NDArray[np.int64], classes: int, result: RowResult) -> None:
    """The range of the labels, of the classes, and of what the stored type can name."""
    result.extremes["classes"] = (classes, classes)
    seen = labels[labels >= 0]
    if seen.size:
        result.extremes["label"] = (int(seen.min()), int(seen.max()))
    if batch.nameable is not None:
        result.extremes["nameable"] = (batch.nameable, batch.nameable)


def look_at_logits(logits: LogitRows, rows: RowStatistics, transform: tuple[float, float], result: RowResult) -> None:
    """How many rows could be probabilities, and how many could hold every class twice.

    Of rows p that sum to 1, sum(exp(p)) lies between V + 1 and V + e - 1: a sieve that costs nothing. Where all rows of
    a block pass it, a few are read again.
    """
    live = ~result.ignored & rows.finite
    looked = int(np.count_nonzero(live))
    result.counts["looked_rows"] = looked
    classes = logits.num_classes
    if looked == 0:
        return
    if may_be_probabilities(rows, live, classes, transform) and _are_probabilities(_some_rows(logits, live)):
        result.counts["probability_rows"] = looked
    if may_be_there_twice(result, looked, classes) and _is_there_twice(_some_rows(logits, live)):
        result.counts["twice_rows"] = looked


def may_be_probabilities(
    rows: RowStatistics, live: npt.NDArray[np.bool_], classes: int, transform: tuple[float, float]
) -> bool:
    """Whether all live rows pass the sieve of `look_at_logits`."""
    if transform != _PLAIN or not _FEWEST_CLASSES <= classes <= _MOST_CLASSES:
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        highest = rows.maximum[live]
        total = rows.exp_sum[live] * np.exp(highest)
    return bool(((highest > 0) & (highest <= 1) & (total > classes + 0.9) & (total < classes + 1.8)).all())


def may_be_there_twice(result: RowResult, looked: int, classes: int) -> bool:
    """Whether each row's label has an equal, and the classes two halves."""
    return result.counts.get("ties") == looked and classes % 2 == 0 and classes > 2


def _some_rows(logits: LogitRows, live: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """A few rows, whole."""
    chosen, classes = np.flatnonzero(live)[:_LOOKED_AT], logits.num_classes
    found = logits.gather(np.repeat(chosen, classes), np.tile(np.arange(classes), len(chosen)), 1)
    return found.astype(np.float64).reshape(len(chosen), classes)


def _are_probabilities(rows: npt.NDArray[np.float64]) -> bool:
    """Whether rows are from 0 to 1 and sum to 1; equal ones say the same as logits, so they need no word."""
    uniform = (rows == rows[:, :1]).all()
    return bool(not uniform and (rows >= 0).all() and (abs(rows.sum(1) - 1) < 0.02).all())


def _is_there_twice(rows: npt.NDArray[np.float64]) -> bool:
    """Whether the second half of the classes is the first again, in rows that say something."""
    half = rows.shape[1] // 2
    varied = (rows[:, :half] != rows[:, :1]).any(axis=1)
    return bool((rows[:, :half] == rows[:, half:]).all() and varied.all())
