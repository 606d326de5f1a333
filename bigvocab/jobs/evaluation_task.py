"""The task that evaluates: losses of rows, their sums, and a record for each row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from bigvocab.evaluation.breakdowns import check_counts
from bigvocab.evaluation.context import RowContext
from bigvocab.evaluation.coverage import Coverage
from bigvocab.evaluation.label_checks import check_labels, true_classes
from bigvocab.evaluation.model_report import model_notes, with_model
from bigvocab.evaluation.reporting import make_report, refuse_nothing, with_rates
from bigvocab.evaluation.row_result import RowResult
from bigvocab.evaluation.scoring import Scorer
from bigvocab.evaluation.specification import Specification
from bigvocab.evaluation.state import State
from bigvocab.evaluation.stored_tally import restored, stored
from bigvocab.evaluation.tally import Tally
from bigvocab.heads.padding import padding_notes
from bigvocab.jobs.blocks import block_rows, may_grow
from bigvocab.jobs.data import JobData
from bigvocab.jobs.records import ranking_columns_of, record_schema, records_of
from bigvocab.jobs.task import Piece
from bigvocab.labels.labels import LabelBatch
from bigvocab.labels.ragged import RaggedIds
from bigvocab.matrices import fingerprints
from bigvocab.matrices.matrix import Matrix
from bigvocab.matrices.names import DataNames
from bigvocab.reports.report import Report
from bigvocab.sampling.draw_blocks import DRAW_ROWS

_LEARNS = "learned-unigram learns from all rows before, so its rows must be worked in order by one process"


@dataclass
class RowSums:
    """A tally that takes results of rows as well as other tallies: what `EvaluationTask` adds up."""

    tally: Tally

    def merge(self, other: Any) -> None:
        """Add the rows of another, or those of a `BlockSums`."""
        other.add_to(self.tally)

    def add_to(self, tally: Tally) -> None:
        """Add all of it to a tally."""
        tally.merge(self.tally)


@dataclass
class BlockSums:
    """The results of one block of rows, not added up yet."""

    rows: RowResult
    batch: LabelBatch

    def add_to(self, tally: Tally) -> None:
        """Add the rows to a tally."""
        tally.add(self.rows, self.batch)


class EvaluationTask:
    """Evaluate rows of logits against labels.

    Args:
        scorer: what makes losses of rows.
        data: the rows.
        part: [first, stop) of the rows this run is for; None is all.
        records: whether a record is kept for each row.
    """

    name = "evaluate"
    classes: list[int] | None = None
    records_in_state = False
    schema: pa.Schema | None

    def __init__(
        self, scorer: Scorer, data: JobData, part: tuple[int, int] | None = None, *, records: bool = False
    ) -> None:
        self.scorer, self.data = scorer, data
        self.part = (0, data.num_rows) if part is None else part
        asked = self.specification
        self.block = block_rows(asked, data.source, data.row_bytes)
        self.growing = may_grow(asked, data.source)
        self.threads, self.threads_asked = asked.threads, asked.threads_asked
        self.kernels = ("pages", "softmax", "sums", *asked.loss.spec.kernels)
        columns = asked.columns
        self.notes = model_notes(scorer.head)  # those of the report that are known before any row
        has = {"weight": columns.weight is not None, "group": columns.group is not None}
        has["half_ranks"] = asked.measures.ties == "mean"
        schema = record_schema(asked.measures.metrics, **has, ranking=ranking_columns_of(asked.measures))
        self.schema = schema if records else None

    @property
    def specification(self) -> Specification:
        """What was asked."""
        return self.scorer.specification

    @property
    def context(self) -> RowContext:
        """What row functions look at."""
        return RowContext(self.specification, self.data.names, self.scorer.draws)

    @property
    def serial(self) -> str | None:
        """Draws that learn need all rows before."""
        draws = self.scorer.draws
        return _LEARNS if draws is not None and draws.ordered else None

    def check(self) -> None:
        """All that can be known to be wrong before any work: vectors of classes, kinds and ranges of labels."""
        loss = self.specification.loss
        classes = loss.num_classes or self.data.source.shape[1]
        loss.check(classes)
        asked = self.specification.measures
        if asked.frequencies is not None:
            check_counts(asked.frequencies.values, classes)
        self._note_padding(check_labels(self.context, self.data.labels, classes))

    def _note_padding(self, greatest: int) -> None:
        """Note where the greatest label is padding of the model's head."""
        self.notes += padding_notes(self.scorer.head, greatest)

    def run(self, batch: LabelBatch) -> Iterator[Piece]:
        """Losses of the rows, part by part as the files lie."""
        for part, rows in self.scorer.evaluate_rows(self.data.source, batch, self.data.names):
            records = [] if self.schema is None else [records_of(self.schema, part, rows)]
            stop = part.first_row + len(part)
            yield Piece(part.first_row, stop, BlockSums(rows, part), records, self.data.row_bytes * len(part))

    def left_out(self, batch: LabelBatch) -> np.ndarray:
        """Ignored rows."""
        return np.zeros(len(batch), bool) if batch.ignored is None else batch.ignored

    def follow(self, stop: int) -> None:
        """Draws that depend on the rows before, brought to row `stop` by the labels alone."""
        draws, classes = self.scorer.draws, self.data.source.shape[1]
        if stop == 0 or draws is None or not draws.ordered:
            return
        for batch in self.data.labels.batches(0, stop):
            offsets, ids, ignored = true_classes(self.context, batch, classes)
            first, start = batch.first_row, 0
            while start < len(batch):
                end = min(len(batch), (first + start) // DRAW_ROWS * DRAW_ROWS + DRAW_ROWS - first)
                kept = np.flatnonzero(~ignored[start:end])
                own = np.concatenate([[0], np.cumsum(np.diff(offsets)[start:end][kept])])
                true = RaggedIds(own, ids[offsets[start] : offsets[end]], self.data.names.labels)
                draws.draw(first + start, end - start, true, kept)
                start = end

    def new_sums(self) -> Any:
        """An empty tally."""
        return RowSums(Tally(self.specification.measures.accuracies))

    def stored(self, sums: Any) -> tuple[dict[str, Any], pa.Table]:
        """See `stored_tally`."""
        return stored(sums.tally)

    def restored(self, state: State) -> Any:
        """See `stored_tally`."""
        return RowSums(restored(state.sums, state.table, self.specification.measures.accuracies))

    def state(self) -> State:
        """The state before any row."""
        source = self.data.source
        files = [*fingerprints.of_matrix(source.role, source.stored), *self.data.labels.fingerprints()]
        sums, table = self.stored(self.new_sums())
        state = State(self.name, self.scorer.identity(), self.scorer.given(), sums, table, self.coverage(files))
        state.sampled, state.model, state.notes = self.shown_draws(), self.scorer.model, self.notes
        return state

    def coverage(self, files: list[dict[str, Any]]) -> Coverage:
        """The coverage of a run that has done no row yet."""
        return Coverage(
            files,
            self.data.num_rows,
            vars(self.specification.columns),
            part=list(self.part),
            inputs=self.data.files,
            output=self.schema is not None,
            classes=self.classes,
        )

    def shown_draws(self) -> dict[str, Any] | None:
        """What a report says of the draws."""
        return None if self.scorer.draws is None else self.scorer.draws.shown()

    def order(self, threads: int) -> EvaluationOrder:
        """The task for a worker with so many threads."""
        head = self.scorer.head
        return EvaluationOrder(
            self.scorer.opened().with_threads(threads),
            self.data.source.stored,
            self.data.labels,
            self.data.names,
            self.block,
            self.schema is not None,
            None if head is None else head.block_bytes,
        )

    def files(self) -> Iterator[str]:
        """The layer, vectors, vocabularies and candidates."""
        yield from self.scorer.files()

    def matrices(self) -> Iterator[Matrix]:
        """Rows, dense labels and the layer."""
        yield from self.data.matrices()
        yield from [] if self.scorer.head is None else self.scorer.head.matrices()

    def worker_files(self) -> Iterator[str]:
        """Vocabularies and candidates; vectors of classes travel whole."""
        yield from [] if self.scorer.draws is None else self.scorer.draws.files()

    def refuse_nothing(self, sums: Any) -> None:
        """Raise where all rows were left out."""
        names, counts = self.data.names, sums.tally.counts
        refuse_nothing(names.logits if counts["nonfinite_rows"] else names.labels, counts, self.data.num_rows)

    def report(self, sums: Any, coverage: Coverage) -> Report:
        """The report of the rows that are done."""
        asked = self.specification
        found = make_report(asked.loss.name, sums.tally, self.shown_draws(), exact=asked.measures.exact)
        return with_model(with_rates(found, coverage), self.scorer.model, self.notes)


@dataclass
class EvaluationOrder:
    """An `EvaluationTask` as it travels: its specification, and matrices and labels that open their files again."""

    specification: Specification
    stored: Any
    labels: Any
    names: DataNames
    block: int
    records: bool
    block_bytes: int | None

    def open(self) -> EvaluationTask:
        """The task, in the process of a worker."""
        scorer = Scorer(self.specification)
        if scorer.head is not None and self.block_bytes is not None:
            scorer.head.block_bytes = self.block_bytes
        data = JobData([scorer.source(self.stored)], self.labels, self.names)
        task = EvaluationTask(scorer, data, records=self.records)
        task.block, task.growing = self.block, False
        return task
