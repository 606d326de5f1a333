"""Ranges of classes evaluated apart: statistics of every row in each range; `class_merging` makes losses of them.

The softmax of a row is known from (max, sum of exp) of each range, its label's logit, and counts of logits above and
equal to that. All of it merges exactly except for the last rounding of the sums. The counts need the label's logit
before the range is read. A machine that sees the files of all ranges picks it from there. A machine that holds its own
slice alone (`first_class`) does not: it needs `label_logits`, files that each machine writes in a first pass, which
reads one logit per row (`save_label_logits`); without them accuracy and rank are refused.

A state of a range has one line per row: `row`, `label` (-1: ignored), `label_logit` (raw; null where it is not known
here), `max` (raw), `sum` of exp(g - g(max)), `argmax`, `shifted` (for the entropy), `total` (of g), `greater`, `equal`,
`squared` (of exp 2(g - g(max))) where calibration is asked for, those of `class_records`, and `weight`, `group`,
`bytes`, `position`, `text`, `cluster` where the labels have them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bigvocab import arguments
from bigvocab.errors import BigvocabError, Keyword
from bigvocab.evaluation.coverage import Coverage
from bigvocab.evaluation.label_checks import check_labels, excluded_rows
from bigvocab.evaluation.reporting import with_rates
from bigvocab.evaluation.row_losses import most_kept, wanted_of
from bigvocab.evaluation.scoring import Scorer
from bigvocab.evaluation.specification import Specification
from bigvocab.evaluation.state import State
from bigvocab.jobs.class_records import LOOKED, lists_of, looked_at
from bigvocab.jobs.data import JobData
from bigvocab.jobs.evaluation_task import EvaluationTask
from bigvocab.jobs.label_logits import LabelLogits
from bigvocab.jobs.records import group_names
from bigvocab.jobs.task import Piece
from bigvocab.labels.labels import LabelBatch
from bigvocab.losses.highest_rows import highest_rows
from bigvocab.losses.row_statistics import RowStatistics, softmax_rows
from bigvocab.matrices.sources import LogitSource
from bigvocab.reports.report import Report
from bigvocab.reports.versions import versions

Floats = npt.NDArray[np.float64]
STATISTICS = ("max", "sum", "argmax", "shifted", "total", "greater", "equal")  # in the order of the kernels' columns


def statistics_of(asked: Specification) -> tuple[str, ...]:
    """The names of the statistics of a row that are kept."""
    return (*STATISTICS, "squared") if "calibration" in asked.measures else STATISTICS


_COLUMNS = {
    "weight": pa.float64(),
    "group": pa.string(),
    "bytes": pa.int64(),
    "position": pa.int64(),
    "text": pa.large_string(),
    "cluster": pa.string(),
}


class NoSums:
    """What a task adds up whose records are all it makes."""

    def merge(self, other: Any) -> None:
        """Nothing."""


class ClassSpan(NamedTuple):
    """Classes `first` to `stop` of `total`."""

    first: int
    stop: int
    total: int


class ClassTask(EvaluationTask):
    """What an evaluation of a range of classes alone says of each row: statistics, merged by `class_merging`.

    Args:
        scorer: the specification, and the layer.
        data: logits of all classes or of the range alone, and labels.
        span: the classes.
        whole: whether the logits are of all classes.
        label_logits: logits of labels that are not in the matrix; None: not known.
    """

    name = "classes"
    records_in_state = True

    def __init__(
        self,
        scorer: Scorer,
        data: JobData,
        span: ClassSpan,
        *,
        whole: bool,
        label_logits: LabelLogits | None = None,
    ) -> None:
        super().__init__(scorer, data)
        self.span, self.whole = span, whole
        self.first, self.stop, self.total = span
        self.classes = list(span)
        self._offset = 0 if whole else span.first  # class of the first column of the matrix
        self._label_logits = label_logits
        self.growing = False
        self.statistics = statistics_of(self.specification)
        self.keep = most_kept(self.context)
        self.schema = self._schema()

    @property
    def counts(self) -> bool:
        """Whether logits above the label's can be counted."""
        return self.whole or self._label_logits is not None

    def check(self) -> None:
        """As of `EvaluationTask`; and raise for ranks that cannot be known."""
        loss, measures = self.specification.loss, self.specification.measures
        asked = [name for name in ("rank", "accuracy") if name in measures]
        if asked and not self.counts:
            raise BigvocabError(
                Keyword("metrics"),
                f": {asked[0]} counts the logits above the label's, which another slice may hold; expected ",
                Keyword("label_logits"),
                ", files of a first pass over each slice with ",
                Keyword("save_label_logits"),
                ", or metrics without accuracy and rank",
            )
        loss.check(self.total)
        self._note_padding(check_labels(self.context, self.data.labels, self.total))

    def left_out(self, batch: LabelBatch) -> np.ndarray:
        """All: a range of the classes of a row is too short to be read ahead."""
        return np.ones(len(batch), bool)

    def run(self, batch: LabelBatch) -> Iterator[Piece]:
        """One record for each row."""
        rows, stop = len(batch), batch.first_row + len(batch)
        yield Piece(batch.first_row, stop, NoSums(), [self._records(batch)], self._bytes_of(rows))

    def _bytes_of(self, rows: int) -> int:
        """Bytes read of so many rows."""
        every = self.data.row_bytes * rows
        apart = self.whole and self.data.source.classes_apart
        return every * (self.stop - self.first) // self.total if apart else every

    def _schema(self) -> pa.Schema:
        """The columns of the records."""
        columns = self.specification.columns
        fields = [("row", pa.int64()), ("label", pa.int64()), ("label_logit", pa.float64())]
        fields += [(name, pa.float64()) for name in self.statistics]
        fields.append(("looked", LOOKED))
        if self.keep:
            width = min(self.keep, self.stop - self.first)
            fields += [("highest", pa.list_(pa.int64(), width)), ("highest_logits", pa.list_(pa.float64(), width))]
        for name, kind in _COLUMNS.items():
            if getattr(columns, name) is not None:
                fields.append((name, kind))
        return pa.schema(fields)

    def labels_of(self, batch: LabelBatch) -> npt.NDArray[np.int64]:
        """The label of each row, -1 where it is ignored."""
        return arguments.labels_in_range(
            batch.labels,
            self.total,
            ignored=batch.ignored,
            name=self.data.names.labels,
            first_row=batch.first_row,
        )

    def _records(self, batch: LabelBatch) -> pa.RecordBatch:
        labels = self.labels_of(batch)
        logits, known = self.label_logits(batch.first_row, labels)
        rows, extra = self._statistics(batch, labels, logits)
        columns: dict[str, Any] = {
            **extra,
            "row": np.arange(batch.first_row, batch.first_row + len(labels)),
            "label": np.where(labels < 0, -1, labels),
            "label_logit": pa.array(np.where(known, logits, 0.0), mask=~known),
            "weight": batch.weights,
            "bytes": batch.num_bytes,
            "position": batch.positions,
            "text": None if batch.texts is None else batch.texts.cast(pa.large_string()),
        }
        columns |= {name: np.ascontiguousarray(rows.columns[:, i]) for i, name in enumerate(self.statistics)}
        for name, coded in (("group", batch.groups), ("cluster", batch.clusters)):
            if coded is not None:
                columns[name] = group_names(coded)
        assert self.schema is not None
        values = (columns[name] for name in self.schema.names)
        return pa.record_batch([v if isinstance(v, pa.Array) else pa.array(v) for v in values], self.schema)

    def label_logits(self, row: int, labels: npt.NDArray[np.int64]) -> tuple[Floats, Any]:
        """The raw logit of each row's label, and where it is known here."""
        inside = (labels >= 0) if self.whole else (labels >= self.first) & (labels < self.stop)
        logits = np.full(len(labels), np.nan)
        local = np.where(inside, labels - self._offset, -1)
        for first, rows in self.data.source.rows(row, row + len(labels)):
            start = first - row
            here = np.flatnonzero(local[start : start + len(rows)] >= 0)
            logits[start + here] = rows.gather(here, local[start + here], self.threads)
        if self._label_logits is not None:
            others, there = self._label_logits.rows(row, row + len(labels))
            both, mine = inside & there & (labels >= 0), logits
            logits, inside = np.where(inside, logits, others), inside | there & (labels >= 0)
            if (lost := (labels >= 0) & ~inside).any():
                at = int(np.argmax(lost))
                raise BigvocabError.of_row(
                    Keyword("label_logits"),
                    row + at,
                    f" has the label {labels[at]}, whose logit is in none of the files",
                )
            _check_stored(np.where(there, others, logits), self.data.source.dtype, row)
            if (differ := both & (mine != others) & ~(np.isnan(mine) & np.isnan(others))).any():
                at = int(np.argmax(differ))
                raise BigvocabError.of_row(
                    Keyword("label_logits"),
                    row + at,
                    f" has {others[at]} for the label {labels[at]}, whose logit is "
                    f"{mine[at]} here; expected files of these labels and logits",
                )
        return logits, inside

    def _statistics(self, batch: LabelBatch, labels: Any, logits: Floats) -> tuple[RowStatistics, dict[str, pa.Array]]:
        """Statistics of the rows, and the columns of `class_records`."""
        row, excluded = batch.first_row, excluded_rows(self.context, batch, self.total)
        loss, ranks = self.specification.loss, self.counts and self.specification.measures.ranks
        want = wanted_of(self.context, rank=ranks, logit_sum=loss.label_smoothing > 0)
        options: dict[str, Any] = {
            "want": want,
            "scale": loss.transform[0],
            "softcap": loss.transform[1],
            "num_threads": self.threads,
        }
        found, looks = np.empty((len(labels), len(self.statistics))), []
        width = min(self.keep, self.stop - self.first)
        ids, highest = np.empty((len(labels), width), np.int64), np.empty((len(labels), width))
        for first, rows in self.data.source.rows(row, row + len(labels)):
            part = slice(first - row, first - row + len(rows))
            mine = rows.classes(self.first - self._offset, self.stop - self._offset)
            if excluded is not None:
                mine = mine.without(excluded.of_rows(part).classes(self.first, self.stop))
            looks += looked_at(mine, first, labels[part], self.first, self.total)
            if not width:
                found[part] = softmax_rows(mine, labels[part], known=logits[part], **options).columns
                continue
            top = highest_rows(mine, labels[part], width, known=logits[part], **options)
            found[part], highest[part] = top.rows.columns, top.logits
            ids[part] = top.ids + np.where(top.ids >= 0, self.first, 0)
        found[:, 2] += np.where(found[:, 2] >= 0, self.first, 0)  # ids in the range begin with 0
        extra = {"looked": pa.array(looks, LOOKED)}
        extra |= {"highest": lists_of(ids), "highest_logits": lists_of(highest)} if width else {}
        return RowStatistics(found, logits, *loss.transform), extra

    def files(self) -> Iterator[str]:
        """As of `EvaluationTask`, and the logits of labels."""
        yield from super().files()
        yield from [] if self._label_logits is None else self._label_logits.paths

    def new_sums(self) -> Any:
        """None: the records are all there is."""
        return NoSums()

    def stored(self, sums: Any) -> tuple[dict[str, Any], pa.Table]:
        """Nothing; the table comes of the records, at the end."""
        return {}, pa.table({})

    def restored(self, state: State) -> Any:
        """Nothing."""
        return NoSums()

    def state(self) -> State:
        """The state before any row: each range has logits of its own, so that labels alone must be the same."""
        options = self.scorer.identity() | {"layer": None, "num_classes": self.total}
        coverage = self.coverage(self.data.labels.fingerprints())
        return State(
            self.name, options, self.scorer.given(), coverage=coverage, model=self.scorer.model, notes=self.notes
        )

    def refuse_nothing(self, sums: Any) -> None:
        """The merged states say it."""

    def report(self, sums: Any, coverage: Coverage) -> Report:
        """What was done."""
        found = {"loss": self.specification.loss.name, "rows": coverage.rows, "classes": self.classes}
        return with_rates(Report({**found, "versions": versions()}), coverage)


def _check_stored(logits: Floats, dtype: np.dtype[Any], row: int) -> None:
    """Raise unless each logit is a number of the matrix's type: kernels compare it with the others bit by bit."""
    with np.errstate(over="ignore"):
        stored = logits.astype(dtype).astype(np.float64)
    if (other := ~np.isnan(logits) & (stored != logits)).any():
        at = int(np.argmax(other))
        raise BigvocabError.of_row(
            Keyword("label_logits"),
            row + at,
            f" has {float(logits[at])}, which is no {dtype.name}, as the logits here are; "
            "expected the files of one set of logits",
        )


# ---- which range


def class_range(
    matrix: LogitSource, vocab_shard: tuple[int, int] | None, first_class: int | None, num_classes: int | None
) -> ClassSpan:
    """The classes: the slice that is there, the I-th file of a set, or of N equal parts."""
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
        return ClassSpan(first_class, first_class + held, num_classes)
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
        return ClassSpan(edges[i - 1], edges[i], held)
    if n > held:
        raise BigvocabError(Keyword("vocab_shard"), f": got {i}/{n}, but there are {held} classes")
    return ClassSpan(held * (i - 1) // n, held * i // n, held)
