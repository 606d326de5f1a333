"""Labels of a block of rows as the losses take them, and what can be known to be wrong with labels before any work."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab import arguments
from bigvocab.errors import BigvocabError, Keyword
from bigvocab.evaluation.context import RowContext
from bigvocab.evaluation.ranking import check_ranking, true_sets
from bigvocab.labels.exclusions import excluded_of, labelled, refuse_excluded
from bigvocab.labels.label_sources import LabelSource, errors_of_files
from bigvocab.labels.labels import LabelBatch
from bigvocab.labels.ragged import RaggedIds
from bigvocab.matrices.excluded import Excluded


def id_sets(asked: RowContext, batch: LabelBatch, num_classes: int) -> RaggedIds:
    """The sets of ids of a batch, in range; of positive classes, rising and each once."""
    sets = RaggedIds(batch.labels[0], batch.labels[1], asked.names.labels)
    sets.check_range(num_classes, batch.first_row)
    return sets.in_rising_order(batch.first_row) if batch.probabilities is None else sets


def equally_true(asked: RowContext, batch: LabelBatch, num_classes: int) -> LabelBatch:
    """A batch with lists of true classes as one with probabilities: 1 / T for each of T."""
    sets = id_sets(asked, batch, num_classes)
    sizes = np.diff(sets.offsets)
    empty = sizes == 0 if batch.ignored is None else (sizes == 0) & ~batch.ignored
    if empty.any():
        row = batch.first_row + int(np.argmax(empty))
        rest = " has no true class, expected at least one; a null list is an ignored row"
        raise BigvocabError.of_row(asked.names.labels, row, rest)
    probabilities = np.repeat(1.0 / np.maximum(sizes, 1), sizes)
    return replace(batch, labels=(sets.offsets, sets.ids), probabilities=probabilities)


def dense_labels(asked: RowContext, batch: LabelBatch, num_classes: int) -> npt.NDArray[Any]:
    """The labels of a batch as (n, V) numbers."""
    name, first, labels = asked.names.labels, batch.first_row, batch.labels
    if isinstance(labels, tuple):
        labels = _filled(RaggedIds(labels[0], labels[1], name), batch, num_classes)
    elif labels.ndim == 1:
        labels = labels[:, None]
    if labels.shape[1] != num_classes:
        hint = "; ids of positive classes are for sparse-sigmoid" if labels.dtype.kind in "iu" else ""
        raise BigvocabError.of_row(
            name, first, f" has {labels.shape[1]} labels, expected {num_classes}, one for each class{hint}"
        )
    return labels


def _filled(sets: RaggedIds, batch: LabelBatch, num_classes: int) -> npt.NDArray[Any]:
    """Lists of V integers 0 and 1 as (n, V); zeros where the row is ignored."""
    whole = np.diff(sets.offsets) == num_classes
    wrong = ~whole if batch.ignored is None else ~whole & ~batch.ignored
    if wrong.any():
        row = int(np.argmax(wrong))
        raise BigvocabError.of_row(
            sets.name,
            batch.first_row + row,
            f" has {sets.offsets[row + 1] - sets.offsets[row]} labels, expected "
            f"{num_classes}, one for each class; ids of positive classes are for sparse-sigmoid",
        )
    if (at := arguments.first_outside(sets.ids, 2)) is not None:
        row = batch.first_row + sets.row_of(at)
        raise BigvocabError.of_row(sets.name, row, f" has the label {sets.ids[at]}, expected 0 or 1 for each class")
    out = np.zeros((len(whole), num_classes), np.float32)
    out[whole] = sets.ids.reshape(-1, num_classes)
    return out


def true_classes(
    asked: RowContext, batch: LabelBatch, num_classes: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Offsets and ids of the true classes of each row, checked, none where it is ignored; and which rows are."""
    name, first = asked.names.labels, batch.first_row
    ignored = np.zeros(len(batch), bool) if batch.ignored is None else batch.ignored.astype(bool)
    if isinstance(batch.labels, tuple):
        if asked.loss.ignore_index:
            raise BigvocabError(
                Keyword("ignore_index"), f": goes with one label per row, but {name} has lists; a null list is ignored"
            )
        offsets, ids = batch.labels
    else:
        ids = np.asarray(batch.labels, np.int64)
        offsets = np.arange(len(ids) + 1, dtype=np.int64)
    counts = np.diff(offsets)
    ids, counts = ids[np.repeat(~ignored, counts)], np.where(ignored, 0, counts)
    expected = asked.loss.num_true
    wrong = (counts != expected) if expected is not None else (counts == 0) & (asked.loss.name == "sampled-softmax")
    if (wrong := wrong & ~ignored).any():
        row = int(np.argmax(wrong))
        what = "at least one" if expected is None else f"{expected}, as num_true says"
        raise BigvocabError.of_row(name, first + row, f" has {counts[row]} true classes, expected {what}")
    sets = RaggedIds(np.concatenate([[0], np.cumsum(counts)]), ids, name)
    at = arguments.first_outside(ids, num_classes)
    if at is not None and ids[at] == -100 and not asked.loss.ignore_index:
        text = f" has the id -100, expected classes in [0, {num_classes})"
        raise BigvocabError.of_row(name, first + sets.row_of(at), text, *arguments.IGNORED_HINT)
    sets.check_range(num_classes, first)
    return sets.offsets, ids, ignored


def excluded_rows(asked: RowContext, batch: LabelBatch, num_classes: int) -> Excluded | None:
    """The classes that do not exist for the rows of a batch; None where all do. An error where a label is excluded."""
    common, name = asked.loss.excluded, asked.names.labels
    if not len(common) and batch.excluded is None:
        return None
    names = ("exclude_classes", name)
    excluded = excluded_of(common, batch.excluded, len(batch), num_classes, names, batch.first_row)
    rows, ids = _labelled(asked, batch, num_classes, excluded)
    refuse_excluded(name, excluded, rows, ids, num_classes, batch.ignored, batch.first_row)
    return excluded


def _labelled(asked: RowContext, batch: LabelBatch, num_classes: int, excluded: Excluded) -> tuple[Any, Any]:
    """(rows, ids) of the labels that may not be excluded."""
    labels, kinds = batch.labels, asked.loss.spec.labels
    if "dense" in kinds and batch.probabilities is None and not (isinstance(labels, tuple) and "sparse" in kinds):
        return labelled(dense_labels(asked, batch, num_classes), excluded)
    if isinstance(labels, tuple):
        sets = RaggedIds(*labels)
        kept = slice(None) if batch.probabilities is None else batch.probabilities != 0
        return sets.rows()[kept], sets.ids[kept]
    return np.arange(len(batch)), labels


def check_labels(asked: RowContext, labels: LabelSource, num_classes: int) -> int:
    """All that can be known to be wrong with labels before any work; dense labels are looked at when their row is.

    Returns:
        The greatest id among them; -1 of dense labels.
    """
    with errors_of_files(labels, asked.names.labels):
        try:
            return _check_labels(asked, labels, num_classes)
        except BigvocabError as error:
            if error.row is None or labels.kind == "dense":
                raise
            raise error.hinted(*_hint(asked, labels, num_classes)) from None


def _hint(asked: RowContext, labels: LabelSource, num_classes: int) -> tuple[Any, ...]:
    """What the labels of all rows tell about those that are out of range."""
    least, greatest, offset = np.iinfo(np.int64).max, -1, asked.loss.label_offset
    for batch in labels:
        ids = batch.labels[1] if isinstance(batch.labels, tuple) else batch.labels
        if batch.ignored is not None and not isinstance(batch.labels, tuple):
            ids = ids[~batch.ignored]
        if len(ids):
            least, greatest = min(least, int(ids.min())), max(greatest, int(ids.max()))
    return arguments.offset_hint(least, greatest, num_classes) if not offset else ()


def _check_labels(asked: RowContext, labels: LabelSource, num_classes: int) -> int:
    name, spec = asked.names.labels, asked.loss.spec
    if labels.kind not in spec.labels:
        raise BigvocabError(f"{name}: got {_SHOWN[labels.kind]}, expected {spec.wanted} for {spec.name}")
    if labels.kind == "dense":
        if "ranking" in asked.measures:
            raise BigvocabError(Keyword("metrics"), f": ranking needs ids of true classes, but {name} has floats")
        if labels.num_classes != num_classes:
            raise BigvocabError(
                f"{name}: {labels.num_classes} labels per row, expected {num_classes}, one for each class"
            )
        return -1
    kept, greatest = 0, -1
    check_ranking(asked, num_classes)
    if asked.draws is not None:
        asked.draws.check_rows(labels.num_rows)
    for batch in labels:
        if labels.kind == "id" and spec.labels == ("id",):
            ids = arguments.labels_in_range(
                batch.labels,
                num_classes,
                ignored=batch.ignored,
                name=name,
                first_row=batch.first_row,
            )
            excluded_rows(asked, batch, num_classes)
            greatest = max(greatest, int(ids.max(initial=-1)))
            kept += int(np.count_nonzero(ids >= 0))
            continue
        if spec.labels == ("id", "list"):
            offsets, ids, ignored = true_classes(asked, batch, num_classes)
            if asked.draws is not None:
                there = np.flatnonzero(~ignored)
                own = np.concatenate([[0], np.cumsum(np.diff(offsets)[there])])  # ignored rows have no classes
                asked.draws.check(RaggedIds(own, ids, name), batch.first_row, there)
            if "ranking" in asked.measures:
                true_sets(asked, batch)
            greatest = max(greatest, int(ids.max(initial=-1)))
            kept += int(np.count_nonzero(~ignored))
            continue
        kept += len(batch) if batch.ignored is None else int(np.count_nonzero(~batch.ignored))
        if "dense" in spec.labels and "sparse" not in spec.labels:
            dense_labels(asked, batch, num_classes)
            continue
        if "dense" in spec.labels and batch.probabilities is None:
            ids = equally_true(asked, batch, num_classes).labels[1]
        else:
            ids = id_sets(asked, batch, num_classes).ids
        greatest = max(greatest, int(ids.max(initial=-1)))
        excluded_rows(asked, batch, num_classes)
        if "ranking" in asked.measures:
            true_sets(asked, batch)
    if not kept:
        raise BigvocabError(f"{name}: all {labels.num_rows} rows are ignored, so there is nothing to evaluate")
    return greatest


_SHOWN = {
    "id": "one integer per row",
    "list": "lists of integers",
    "dense": "floats",
    "sparse": "lists of ids and probabilities",
}
