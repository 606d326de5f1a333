"""What each loss takes as labels: opened from files or arrays, checked before any work, cut into row blocks.

Dense labels may be a second matrix (.npy, .safetensors, an array): it is memory-mapped like the logits and never held
whole.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from bisect import bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bigvocab import arguments
from bigvocab.errors import BigvocabError, FormatError, Keyword
from bigvocab.labels.id_sets import IdSets, as_id_sets, check_ids, in_rising_order
from bigvocab.labels.labels import LabelBatch, Labels, read_labels
from bigvocab.labels.true_classes import TrueClasses
from bigvocab.matrices.matrix import Matrix, as_matrix
from bigvocab.storage.paths import expand

if TYPE_CHECKING:
    from bigvocab.evaluation.evaluator import Evaluator

_DENSE = ("dense", "list", "id")  # integers 0 and 1 too: V of them a row, or one a row where V is 1
_TRUE = ("id", "list")  # true classes, one a row or several
KINDS = {
    "sparse-softmax": ("id",),
    "softmax": ("dense", "sparse"),
    "sigmoid": _DENSE,
    "weighted-sigmoid": _DENSE,
    "sparse-sigmoid": ("list",),
    "log-loss": _DENSE,
    "sampled-softmax": _TRUE,
    "nce": _TRUE,
}
_WANTED = {
    "sparse-softmax": "one integer label a row",
    "softmax": "a matrix or fixed-size lists of floats, or lists of ids beside a probability column",
    "sparse-sigmoid": "lists of the ids of positive classes",
    "sampled-softmax": "one integer label or a list of them a row",
    "nce": "one integer label or a list of them a row",
}
_FLOATS_WANTED = "a matrix or fixed-size lists of floats, as many as classes"
_BATCH_BYTES = 64 << 20


class MatrixLabels:
    """Dense labels in a matrix, in batches, with the attributes of `Labels`; pages that were read are given back."""

    kind = "dense"

    def __init__(self, matrix: Matrix) -> None:
        self._matrix = matrix
        if matrix.ndim != 2:
            raise BigvocabError(
                Keyword("labels"), f": got shape {matrix.shape}, expected (N, V), one label for each logit"
            )
        self.num_rows, self.num_classes = matrix.shape
        self.dtype = matrix.dtype
        self.columns: list[tuple[str, str]] = []
        in_memory = [file["path"] for file in matrix.files] == ["<array>"]
        self.files = [] if in_memory else matrix.files
        self.path = "labels" if in_memory else matrix.files[0]["path"]
        if len(self.files) > 1:
            self.path += f" and {len(self.files) - 1} more"

    @property
    def matrix(self) -> Matrix:
        """The labels, one row for each row of logits."""
        return self._matrix

    @property
    def paths(self) -> list[str]:
        """The files that are read; none for labels in memory."""
        return [file["path"] for file in self.files]

    def check(self) -> None:
        """Raise FormatError if a file has changed since it was opened."""
        self._matrix.check()

    def __iter__(self) -> Iterator[LabelBatch]:
        return self.batches()

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[LabelBatch]:
        """Label batches of the rows from `start` to before `stop`."""
        stop = self.num_rows if stop is None else stop
        step = max(1, min(65_536, _BATCH_BYTES // (self.num_classes * self.dtype.itemsize)))
        for first in range(start, stop, step):
            end = min(first + step, stop)
            self._matrix.check()
            for row, tiles in self._matrix.row_parts(first, end):
                yield LabelBatch(row, tiles[0][1])
            self._matrix.release(first, end)


def open_labels(source: Any, loss: str, columns: dict[str, str | None]) -> Labels | MatrixLabels:
    """Labels of files or arrays, as `loss` takes them; `columns` by role."""
    if isinstance(source, Labels | MatrixLabels):
        return source
    kinds, named = KINDS[loss], {f"{role}_column": name for role, name in columns.items()}
    if isinstance(source, tuple) and not _are_paths(source) and (kinds == ("list",) or "sparse" in kinds):
        source, named = _table(source, "sparse" in kinds, named)
    elif isinstance(source, list | tuple) and not _are_paths(source):
        source = arguments.as_array("labels", source)
        if source.size == 0:
            source = source.astype(np.int64)  # an empty list has no type of its own
    if isinstance(source, np.ndarray) and source.dtype == bool and "dense" in kinds:
        source = source.view(np.uint8)
    if "dense" in kinds and (matrix := _as_label_matrix(source)) is not None:
        if given := [name for name, value in named.items() if value is not None]:
            raise BigvocabError(f"{given[0]}: {matrix.path} is a matrix and has no columns; expected Arrow or Parquet")
        return matrix
    return read_labels(source, **named)


def _are_paths(source: Any) -> bool:
    return bool(source) and all(isinstance(item, str | os.PathLike) for item in source)


def _table(source: tuple[Any, ...], sparse: bool, named: dict[str, Any]) -> tuple[pa.Table, dict[str, Any]]:
    """A tuple (offsets, ids), or (offsets, ids, probabilities), as a table of list columns."""
    sets, probabilities = _sets_of(source, len(np.asarray(source[0])) - 1, sparse)
    table = pa.table({"labels": pa.LargeListArray.from_arrays(sets.offsets, sets.ids)})
    if probabilities is None:
        return table, named
    column = pa.LargeListArray.from_arrays(sets.offsets, probabilities)
    return table.append_column("probabilities", column), {**named, "probability_column": "probabilities"}


def _as_label_matrix(source: Any) -> MatrixLabels | None:
    """Labels that are a matrix of floats; None where `read_labels` is to read them."""
    if isinstance(source, Matrix):
        return MatrixLabels(source)
    if isinstance(source, np.ndarray):
        return (
            MatrixLabels(as_matrix(source, "labels"))
            if source.ndim == 2 and source.dtype.name in arguments.FLOATS
            else None
        )
    paths = source if isinstance(source, list | tuple) else [source]
    if not _are_paths(paths):
        return None
    try:
        suffixes = {os.path.splitext(file.path)[1].lower() for file in expand(source)}
    except BigvocabError:
        return None  # `read_labels` says what is wrong, or finds Parquet there
    if suffixes == {".safetensors"}:
        return MatrixLabels(as_matrix(source, "labels"))
    if suffixes == {".npy"}:
        try:
            return MatrixLabels(as_matrix(source, "labels"))
        except FormatError:
            return None  # integers, perhaps
    return None


# ---- labels of a batch in memory


def _sets_of(labels: Any, rows: int, sparse: bool) -> tuple[IdSets, npt.NDArray[np.float64] | None]:
    """Checked (offsets, ids), and the probabilities where there are some."""
    if not sparse:
        return as_id_sets("labels", labels, rows), None
    if not isinstance(labels, tuple) or len(labels) != 3:
        raise BigvocabError(Keyword("labels"), f": got {type(labels).__name__}, expected (offsets, ids, probabilities)")
    sets = as_id_sets("labels", labels[:2], rows)
    values = arguments.as_array("labels", labels[2])
    if values.dtype.kind not in "fiub" and values.dtype.name not in arguments.FLOATS:
        raise TypeError(f"labels: probabilities: expected real numbers, got {values.dtype}")
    if values.shape != sets.ids.shape:
        raise BigvocabError(
            Keyword("labels"), f": got {values.shape} probabilities for {sets.ids.shape} ids, expected as many"
        )
    values = values.astype(np.float64)
    bad = ~((values >= 0) & (values < np.inf))
    if bad.any():
        at = int(np.argmax(bad))
        raise BigvocabError.of_row(
            "labels", sets.row_of(at), f" has the probability {values[at]}, expected finite numbers >= 0"
        )
    return sets, values


def labels_of(loss: str, labels: Any, rows: int) -> tuple[Any, npt.NDArray[np.float64] | None]:
    """(labels, probabilities) of a `LabelBatch` from what `Evaluator.update` was given."""
    kinds = KINDS[loss]
    if kinds == ("id",):
        ids = arguments.as_integers("labels", labels)
        arguments.one_per_row("labels", ids, rows)
        return ids, None
    if kinds == _TRUE and not isinstance(labels, tuple) and np.ndim(labels) == 1:
        ids = arguments.as_integers("labels", labels)
        arguments.one_per_row("labels", ids, rows)
        return ids, None
    if kinds in (("list",), _TRUE) or isinstance(labels, tuple) and "sparse" in kinds:
        sets, probabilities = _sets_of(labels, rows, "sparse" in kinds)
        return tuple(sets), probabilities
    if isinstance(labels, Matrix):
        array = np.asarray(labels)
    elif isinstance(labels, str | os.PathLike):
        array = np.asarray(as_matrix(labels, "labels"))
    else:
        array = arguments.as_array("labels", labels)
    if array.dtype.name not in arguments.FLOATS and array.dtype.kind not in "iub":
        raise TypeError(f"labels: expected floats, integers or booleans, got {array.dtype}")
    if array.ndim not in (1, 2) or len(array) != rows:
        raise BigvocabError(Keyword("labels"), f": got shape {array.shape}, expected ({rows}, V), one for each logit")
    return array, None


# ---- labels of a row block


def id_sets(evaluator: Evaluator, batch: LabelBatch, num_classes: int) -> IdSets:
    """The sets of ids of a batch, in range; of positive classes, rising and each once."""
    sets = IdSets(*batch.labels)
    check_ids(evaluator.label_name, sets, num_classes, batch.first_row)
    if batch.probabilities is None:
        return in_rising_order(evaluator.label_name, sets, batch.first_row)
    return sets


def dense_labels(evaluator: Evaluator, batch: LabelBatch, num_classes: int) -> npt.NDArray[Any]:
    """The labels of a batch as (n, V) numbers."""
    name, first, labels = evaluator.label_name, batch.first_row, batch.labels
    if isinstance(labels, tuple):
        labels = _filled(name, IdSets(*labels), batch, num_classes)
    elif labels.ndim == 1:
        labels = labels[:, None]
    if labels.shape[1] != num_classes:
        hint = "; ids of positive classes are for sparse-sigmoid" if labels.dtype.kind in "iu" else ""
        raise BigvocabError.of_row(
            name, first, f" has {labels.shape[1]} labels, expected {num_classes}, one for each class{hint}"
        )
    return labels


def _filled(name: str, sets: IdSets, batch: LabelBatch, num_classes: int) -> npt.NDArray[Any]:
    """Lists of V integers 0 and 1 as (n, V); zeros where the row is ignored."""
    whole = np.diff(sets.offsets) == num_classes
    wrong = ~whole if batch.ignored is None else ~whole & ~batch.ignored
    if wrong.any():
        row = int(np.argmax(wrong))
        raise BigvocabError.of_row(
            name,
            batch.first_row + row,
            f" has {sets.offsets[row + 1] - sets.offsets[row]} labels, expected "
            f"{num_classes}, one for each class; ids of positive classes are for sparse-sigmoid",
        )
    bad = (sets.ids < 0) | (sets.ids > 1)
    if bad.any():
        at = int(np.argmax(bad))
        row = batch.first_row + sets.row_of(at)
        raise BigvocabError.of_row(name, row, f" has the label {sets.ids[at]}, expected 0 or 1 for each class")
    out = np.zeros((len(whole), num_classes), np.float32)
    out[whole] = sets.ids.reshape(-1, num_classes)
    return out


def true_classes(
    evaluator: Evaluator, batch: LabelBatch, num_classes: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Offsets and ids of the true classes of each row, checked, none where it is ignored; and which rows are."""
    name, first = evaluator.label_name, batch.first_row
    ignored = np.zeros(len(batch), bool) if batch.ignored is None else batch.ignored.astype(bool)
    if isinstance(batch.labels, tuple):
        if evaluator.ignore_index is not None:
            raise BigvocabError(
                Keyword("ignore_index"), f": goes with one label a row, but {name} has lists; a null list is ignored"
            )
        offsets, ids = batch.labels
    else:
        ids = np.asarray(batch.labels, np.int64)
        offsets = np.arange(len(ids) + 1, dtype=np.int64)
        if evaluator.ignore_index is not None:
            ignored |= ids == evaluator.ignore_index
    counts = np.diff(offsets)
    ids, counts = ids[np.repeat(~ignored, counts)], np.where(ignored, 0, counts)
    expected = evaluator.num_true
    wrong = (counts != expected) if expected is not None else (counts == 0) & (evaluator.loss == "sampled-softmax")
    if (wrong := wrong & ~ignored).any():
        row = int(np.argmax(wrong))
        what = "at least one" if expected is None else f"{expected}, as num_true says"
        raise BigvocabError.of_row(name, first + row, f" has {counts[row]} true classes, expected {what}")
    sets = IdSets(np.concatenate([[0], np.cumsum(counts)]), ids)
    if ids.size and (ids.min() < 0 or ids.max() >= num_classes):
        at = int(np.argmax((ids < 0) | (ids >= num_classes)))
        raise BigvocabError.of_row(
            name, first + sets.row_of(at), f" is {ids[at]}, expected a class in [0, {num_classes})"
        )
    return sets.offsets, ids, ignored


# ---- checks of a whole job


def check_labels(evaluator: Evaluator, labels: Labels | MatrixLabels, num_classes: int) -> None:
    """All that can be known to be wrong with labels before any work; dense labels are looked at when their row is."""
    with errors_of_files(labels, evaluator.label_name):
        _check_labels(evaluator, labels, num_classes)


@contextlib.contextmanager
def errors_of_files(labels: Labels | MatrixLabels, name: str) -> Iterator[None]:
    """Errors on labels of several files become ones of the file that the row is in, and of its row there."""
    try:
        yield
    except BigvocabError as error:
        paths = [file["path"] for file in labels.files]
        if len(paths) < 2 or error.place is None or error.row is None or error.place.path not in (name, *paths):
            raise
        firsts = list(itertools.accumulate((file["shape"][0] for file in labels.files), initial=0))
        file = bisect_right(firsts, error.row) - 1
        raise error.moved(paths[file], error.row - firsts[file]) from None


def _check_labels(evaluator: Evaluator, labels: Labels | MatrixLabels, num_classes: int) -> None:
    name, loss = evaluator.label_name, evaluator.loss
    if labels.kind not in KINDS[loss]:
        raise BigvocabError(
            f"{name}: got {_SHOWN[labels.kind]}, expected {_WANTED.get(loss, _FLOATS_WANTED)} for {loss}"
        )
    if labels.kind == "dense":
        if labels.num_classes != num_classes:
            raise BigvocabError(
                f"{name}: {labels.num_classes} labels a row, expected {num_classes}, one for each class"
            )
        return
    kept = 0
    if evaluator.draws is not None:
        evaluator.draws.check_rows(labels.num_rows)
    for batch in labels:
        if labels.kind == "id" and KINDS[loss] == ("id",):
            ids = arguments.labels_in_range(
                batch.labels,
                num_classes,
                ignore_index=evaluator.ignore_index,
                ignored=batch.ignored,
                name=name,
                first_row=batch.first_row,
            )
            kept += int(np.count_nonzero(ids >= 0))
            continue
        if KINDS[loss] == _TRUE:
            offsets, ids, ignored = true_classes(evaluator, batch, num_classes)
            if evaluator.draws is not None:
                there = np.flatnonzero(~ignored)
                own = np.concatenate([[0], np.cumsum(np.diff(offsets)[there])])  # ignored rows have no classes
                evaluator.draws.check(TrueClasses((own, ids), name), batch.first_row, there)
            kept += int(np.count_nonzero(~ignored))
            continue
        kept += len(batch) if batch.ignored is None else int(np.count_nonzero(~batch.ignored))
        if "dense" in KINDS[loss] and labels.kind != "sparse":
            dense_labels(evaluator, batch, num_classes)
        else:
            id_sets(evaluator, batch, num_classes)
    if not kept:
        raise BigvocabError(f"{name}: all {labels.num_rows} rows are ignored, so there is nothing to evaluate")


_SHOWN = {
    "id": "one integer a row",
    "list": "lists of integers",
    "dense": "floats",
    "sparse": "lists of ids and probabilities",
}


def cut(batch: LabelBatch, start: int, stop: int) -> LabelBatch:
    """Rows `start` to `stop` of a batch."""
    if start == 0 and stop == len(batch):
        return batch

    def rows(values: Any) -> Any:
        return None if values is None else values[start:stop]

    labels, probabilities = batch.labels, batch.probabilities
    if isinstance(labels, tuple):
        offsets, ids = labels
        first, last = int(offsets[start]), int(offsets[stop])
        labels = (offsets[start : stop + 1] - first, ids[first:last])
        probabilities = None if probabilities is None else probabilities[first:last]
    else:
        labels = labels[start:stop]
    return LabelBatch(
        batch.first_row + start,
        labels,
        probabilities=probabilities,
        ignored=rows(batch.ignored),
        weights=rows(batch.weights),
        groups=None if batch.groups is None else (batch.groups[0][start:stop], batch.groups[1]),
        num_bytes=rows(batch.num_bytes),
    )
