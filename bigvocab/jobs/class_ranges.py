"""Ranges of classes evaluated apart: statistics of every row in each range; `vocab_merging` makes losses of them.

The softmax of a row is known from (max, sum of exp) of each range, its label's logit, and counts of logits above and
equal to that. All of it merges exactly but for the last rounding of the sums. The counts need the label's logit before
the range is read. A machine that sees the files of all ranges picks it from there. A machine that holds its own slice
alone (`first_class`) does not: it needs `label_logits`, files that each machine writes in a first pass, which reads one
logit a row (`save_label_logits`); without them accuracy and rank are refused.

A state of a range has one line per row: `row`, `label` (-1: ignored), `label_logit` (raw; null where it is not known
here), `max` (raw), `sum` of exp(g - g(max)), `argmax`, `shifted` (for the entropy), `total` (of g), `greater`, `equal`,
and `weight`, `group`, `bytes` where the labels have them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bigvocab import arguments
from bigvocab.errors import BigvocabError, Keyword
from bigvocab.evaluation.evaluator import Evaluator
from bigvocab.jobs.label_logits import LabelLogits
from bigvocab.labels.labels import LabelBatch
from bigvocab.losses.row_statistics import RowStatistics, softmax_rows, wanted
from bigvocab.matrices.sources import LogitSource
from bigvocab.storage.output import group_names

Floats = npt.NDArray[np.float64]
STATISTICS = ("max", "sum", "argmax", "shifted", "total", "greater", "equal")  # in the order of the kernels' columns


class ClassRange:
    """Classes `first` to `stop` of `total`: what an evaluation of these alone says of each row.

    Args:
        matrix: logits, of all classes or of the range alone.
        span: (first, stop, total).
        whole: whether the matrix is of all classes.
        label_logits: logits of labels that are not in the matrix; None: not known.
    """

    def __init__(
        self,
        matrix: LogitSource,
        span: tuple[int, int, int],
        *,
        whole: bool,
        label_logits: LabelLogits | None = None,
    ) -> None:
        self.first, self.stop, self.total = first, stop, _ = span
        self.whole = whole
        self._offset = 0 if self.whole else first  # class of the first column of the matrix
        self._label_logits = label_logits
        self._apart = matrix.classes_apart

    @property
    def counts(self) -> bool:
        """Whether logits above the label's can be counted."""
        return self.whole or self._label_logits is not None

    def nbytes(self, row_bytes: int, rows: int) -> int:
        """Bytes read of so many rows."""
        return (
            row_bytes * rows * (self.stop - self.first) // self.total
            if self.whole and self._apart
            else row_bytes * rows
        )

    def schema(self, *, weight: bool, group: bool, num_bytes: bool) -> pa.Schema:
        """The columns of the lines."""
        fields = [("row", pa.int64()), ("label", pa.int64()), ("label_logit", pa.float64())]
        fields += [(name, pa.float64()) for name in STATISTICS]
        fields += (
            [("weight", pa.float64())] * weight + [("group", pa.string())] * group + [("bytes", pa.int64())] * num_bytes
        )
        return pa.schema(fields)

    def lines(self, evaluator: Evaluator, matrix: LogitSource, batch: LabelBatch) -> pa.RecordBatch:
        """One line for each row of a batch of labels."""
        labels = arguments.labels_in_range(
            batch.labels,
            self.total,
            ignore_index=evaluator.ignore_index,
            ignored=batch.ignored,
            name=evaluator.label_name,
            first_row=batch.first_row,
        )
        logits, known = self.label_logits(evaluator, matrix, batch.first_row, labels)
        rows = self._statistics(evaluator, matrix, batch.first_row, labels, logits)
        columns: dict[str, Any] = {
            "row": np.arange(batch.first_row, batch.first_row + len(labels)),
            "label": np.where(labels < 0, -1, labels),
        }
        columns["label_logit"] = pa.array(np.where(known, logits, 0.0), mask=~known)
        columns |= {name: np.ascontiguousarray(rows.columns[:, i]) for i, name in enumerate(STATISTICS)}
        if batch.weights is not None:
            columns["weight"] = batch.weights
        if batch.groups is not None:
            columns["group"] = group_names(batch.groups)
        if batch.num_bytes is not None:
            columns["bytes"] = batch.num_bytes
        schema = self.schema(weight="weight" in columns, group="group" in columns, num_bytes="bytes" in columns)
        return pa.record_batch(
            [
                columns[name] if isinstance(columns[name], pa.Array) else pa.array(columns[name])
                for name in schema.names
            ],
            schema,
        )

    def label_logits(
        self, evaluator: Evaluator, matrix: LogitSource, row: int, labels: npt.NDArray[np.int64]
    ) -> tuple[Floats, Any]:
        """The raw logit of each row's label, and where it is known here."""
        inside = (labels >= 0) if self.whole else (labels >= self.first) & (labels < self.stop)
        logits = np.full(len(labels), np.nan)
        local = np.where(inside, labels - self._offset, -1)
        for first, rows in matrix.rows(row, row + len(labels)):
            start = first - row
            here = np.flatnonzero(local[start : start + len(rows)] >= 0)
            logits[start + here] = rows.gather(here, local[start + here], evaluator.num_threads)
        if self._label_logits is not None:
            others, there = self._label_logits.rows(row, row + len(labels))
            both, mine = inside & there & (labels >= 0), logits
            logits, inside = np.where(inside, logits, others), inside | there & (labels >= 0)
            if (lost := (labels >= 0) & ~inside).any():
                at = int(np.argmax(lost))
                raise BigvocabError.of_row(
                    "label_logits", row + at, f" has the label {labels[at]}, whose logit is in none of the files"
                )
            _check_stored(np.where(there, others, logits), matrix.dtype, row)
            if (differ := both & (mine != others) & ~(np.isnan(mine) & np.isnan(others))).any():
                at = int(np.argmax(differ))
                raise BigvocabError.of_row(
                    "label_logits",
                    row + at,
                    f" has {others[at]} for the label {labels[at]}, whose logit is "
                    f"{mine[at]} here; expected files of these labels and logits",
                )
        return logits, inside

    def _statistics(
        self, evaluator: Evaluator, matrix: LogitSource, row: int, labels: Any, logits: Floats
    ) -> RowStatistics:
        want = wanted(
            rank=self.counts and (evaluator.wants("rank") or evaluator.wants("accuracy")),
            entropy=evaluator.wants("entropy"),
            predicted=evaluator.wants("predicted"),
            logit_sum=evaluator.label_smoothing > 0,
        )
        options: dict[str, Any] = {
            "want": want,
            "scale": evaluator.logit_scale,
            "softcap": evaluator.softcap or 0.0,
            "num_threads": evaluator.num_threads,
        }
        found = np.empty((len(labels), len(STATISTICS)))
        for first, rows in matrix.rows(row, row + len(labels)):
            part = slice(first - row, first - row + len(rows))
            mine = rows.classes(self.first - self._offset, self.stop - self._offset)
            found[part] = softmax_rows(mine, labels[part], known=logits[part], **options).columns
        found[:, 2] += np.where(found[:, 2] >= 0, self.first, 0)  # ids in the range begin with 0
        return RowStatistics(found, logits, evaluator.logit_scale, evaluator.softcap or 0.0)


def _check_stored(logits: Floats, dtype: np.dtype[Any], row: int) -> None:
    """Raise unless each logit is a number of the matrix's type: kernels compare it with the others bit by bit."""
    with np.errstate(over="ignore"):
        stored = logits.astype(dtype).astype(np.float64)
    if (other := ~np.isnan(logits) & (stored != logits)).any():
        at = int(np.argmax(other))
        raise BigvocabError.of_row(
            "label_logits",
            row + at,
            f" has {float(logits[at])}, which is no {dtype.name}, as the logits here are; "
            "expected the files of one set of logits",
        )


# ---- which range


def class_range(
    matrix: LogitSource, vocab_shard: tuple[int, int] | None, first_class: int | None, num_classes: int | None
) -> tuple[int, int, int]:
    """(first, stop, total) of the classes: the slice that is there, the I-th file of a set, or of N equal parts."""
    held = matrix.shape[1] if num_classes is None or first_class is not None else min(matrix.shape[1], num_classes)
    if first_class is not None:
        if num_classes is None:
            raise BigvocabError(
                Keyword("first_class"),
                ": needs ",
                Keyword("num_classes"),
                ", expected the number of classes of all slices together",
            )
        if not 0 <= first_class < first_class + held <= num_classes:
            raise BigvocabError(
                Keyword("first_class"),
                f": got {first_class} for a slice of {held} classes, but ",
                Keyword("num_classes"),
                f" is {num_classes}",
            )
        return first_class, first_class + held, num_classes
    assert vocab_shard is not None
    i, n = vocab_shard
    edges = matrix.class_edges()
    if len(edges) > 1:
        if len(edges) != n:
            raise BigvocabError(
                Keyword("vocab_shard"),
                f": got {i}/{n}, but there are {len(edges)} files of classes; expected {i}/{len(edges)}",
            )
        edges = [min(edge, held) for edge in edges] + [held]
        return edges[i - 1], edges[i], held
    if n > held:
        raise BigvocabError(Keyword("vocab_shard"), f": got {i}/{n}, but there are {held} classes")
    return held * (i - 1) // n, held * i // n, held


def check_class_job(evaluator: Evaluator, classes: ClassRange) -> None:
    """Raise for what cannot be merged exactly from ranges of classes."""
    if evaluator.loss != "sparse-softmax":
        raise BigvocabError(
            Keyword("vocab_shard"),
            f": goes with sparse-softmax, not with {evaluator.loss}; --shard splits any loss by rows",
        )
    if evaluator.class_weights is not None and evaluator.label_smoothing:
        raise BigvocabError(
            Keyword("vocab_shard"),
            ": class_weights with label_smoothing need all classes at once; --shard splits by rows",
        )
    asked = [name for name in ("rank", "accuracy") if evaluator.wants(name)]
    if asked and not classes.counts:
        raise BigvocabError(
            Keyword("metrics"),
            f": {asked[0]} counts the logits above the label's, which another slice may hold; "
            "expected label_logits, files of a first "
            "pass with save_label_logits over each slice, or metrics without accuracy and rank",
        )
