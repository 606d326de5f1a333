"""The task that compares: metrics of pairs of rows, their sums, and a record for each row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from bigvocab.comparison.comparer import Comparer
from bigvocab.comparison.reporting import comparison_report
from bigvocab.comparison.sides import Sides
from bigvocab.comparison.specification import ComparisonSpecification
from bigvocab.comparison.sums import BlockRows, ComparisonSums, restored_sums, stored_sums
from bigvocab.evaluation.context import RowContext
from bigvocab.evaluation.coverage import Coverage
from bigvocab.evaluation.label_checks import check_labels
from bigvocab.evaluation.reporting import refuse_nothing, with_rates
from bigvocab.evaluation.state import State
from bigvocab.jobs.blocks import block_rows
from bigvocab.jobs.comparison_records import comparison_records, comparison_schema
from bigvocab.jobs.data import JobData
from bigvocab.jobs.task import Piece
from bigvocab.labels.label_sources import LabelSource
from bigvocab.labels.labels import LabelBatch
from bigvocab.matrices.matrix import Matrix
from bigvocab.matrices.names import DataNames
from bigvocab.reports.report import Report
from bigvocab.storage import uris

_KERNELS = (
    "pages", "softmax", "sums", "divergence", "divergence_merge", "divergence_wide", "pairs", "row_statistics",
)  # fmt: skip


class ComparisonTask:
    """Hold rows of a reference against those of candidates.

    Args:
        comparer: what was asked, and the layers.
        sides: the rows.
        labels: of all rows; `NoLabels` where there are none.
        labelled: whether there are labels.
        part: [first, stop) of the rows this run is for; None is all.
        records: whether a record is kept for each row.
    """

    name = "compare"
    classes: list[int] | None = None
    records_in_state = False
    serial: str | None = None
    schema: pa.Schema | None

    def __init__(
        self,
        comparer: Comparer,
        sides: Sides,
        labels: LabelSource,
        *,
        labelled: bool,
        part: tuple[int, int] | None = None,
        records: bool = False,
    ) -> None:
        self.comparer, self.sides, self.labelled = comparer, sides, labelled
        asked, first = comparer.specification, sides.reference
        shown = labels.path if labels.paths else "labels"
        self.data = JobData([side.source for side in sides.all], labels, DataNames(first.shown, shown))
        self.part = (0, self.data.num_rows) if part is None else part
        sizes = [block_rows(asked.reference, source, self.data.row_bytes) for source in self.data.sources]
        self.block = min(sizes)
        limited = asked.reference.chunk_rows is not None or asked.max_memory is not None
        self.growing = not limited and all(
            side.stored is not None and not side.made and side.stored.in_one_piece for side in sides.all
        )
        self.threads, self.threads_asked = asked.threads, asked.threads_asked
        self.kernels = (*_KERNELS, *["top_classes"] * bool(asked.asked.overlap))
        group = asked.columns.group is not None
        self.schema = comparison_schema(asked, labelled=labelled, group=group) if records else None

    @property
    def specification(self) -> ComparisonSpecification:
        """What was asked."""
        return self.comparer.specification

    def check(self) -> None:
        """All that can be known to be wrong before any work: kinds and ranges of labels."""
        if self.labelled:
            context = RowContext(self.specification.reference, self.data.names)
            check_labels(context, self.data.labels, self.sides.num_classes)

    def run(self, batch: LabelBatch) -> Iterator[Piece]:
        """Metrics of the rows, block by block as files and memory have it."""
        asked = self.specification
        for block in self.comparer.blocks(self.sides, batch, self.data.names.labels, labelled=self.labelled):
            records = [] if self.schema is None else [comparison_records(self.schema, asked, block)]
            read = self.data.row_bytes * (block.stop - block.start)
            yield Piece(block.start, block.stop, BlockRows(block), records, read)

    def left_out(self, batch: LabelBatch) -> np.ndarray:
        """Ignored rows."""
        return np.zeros(len(batch), bool) if batch.ignored is None else batch.ignored

    def follow(self, stop: int) -> None:
        """No row depends on those before."""

    def new_sums(self) -> Any:
        """The sums of no row."""
        return self.comparer.new_sums(self.sides)

    def stored(self, sums: ComparisonSums) -> tuple[dict[str, Any], pa.Table]:
        """See `comparison.sums`."""
        return stored_sums(sums)

    def restored(self, state: State) -> Any:
        """See `comparison.sums`."""
        return restored_sums(state.sums, state.table, state.path)

    def state(self) -> State:
        """The state before any row."""
        files = [entry for side in self.sides.all for entry in side.fingerprints()]
        files += self.data.labels.fingerprints()
        sums, table = self.stored(self.new_sums())
        coverage = Coverage(
            files,
            self.data.num_rows,
            vars(self.specification.columns),
            part=list(self.part),
            inputs=self.data.files,
            output=self.schema is not None,
        )
        return State(self.name, self.comparer.identity(), self.comparer.given(), sums, table, coverage)

    def order(self, threads: int) -> ComparisonOrder:
        """The task for a worker with so many threads."""
        values = [side.stored if side.file is None else _place(side.file) for side in self.sides.all]
        heads = [scorer.head for scorer in self.comparer.scorers()]
        return ComparisonOrder(
            self.comparer.opened().with_threads(threads),
            values,
            self.data.labels,
            self.labelled,
            self.block,
            self.schema is not None,
            [None if head is None else head.block_bytes for head in heads],
        )

    def files(self) -> Iterator[str]:
        """Layers and the like."""
        yield from self.comparer.files()

    def matrices(self) -> Iterator[Matrix]:
        """Rows and layers."""
        yield from (side.stored for side in self.sides.all if side.stored is not None)
        for scorer in self.comparer.scorers():
            yield from [] if scorer.head is None else scorer.head.matrices()
        yield from self.data.labels.matrices()

    def worker_files(self) -> Iterator[str]:
        """Llama.cpp logits files."""
        yield from (_place(side.file) for side in self.sides.all if side.file is not None)

    def refuse_nothing(self, sums: ComparisonSums) -> None:
        """Raise where all rows were left out."""
        names, counts = self.data.names, sums.counts()
        refuse_nothing(names.logits if counts["nonfinite_rows"] else names.labels, counts, self.data.num_rows)

    def report(self, sums: ComparisonSums, coverage: Coverage) -> Report:
        """The report of the rows that are done."""
        return with_rates(comparison_report(sums), coverage)


def _place(file: Any) -> str:
    """The absolute path, or the URI, of a llama.cpp file."""
    return uris.absolute(file.file.path)


@dataclass
class ComparisonOrder:
    """A `ComparisonTask` as it travels: its specification, and rows and labels that open their files again."""

    specification: ComparisonSpecification
    values: list[Any]
    labels: LabelSource
    labelled: bool
    block: int
    records: bool
    block_bytes: list[int | None]

    def open(self) -> ComparisonTask:
        """The task, in the process of a worker."""
        comparer = Comparer(self.specification)
        for scorer, block_bytes in zip(comparer.scorers(), self.block_bytes, strict=True):
            if scorer.head is not None and block_bytes is not None:
                scorer.head.block_bytes = block_bytes
        reference, *others = self.values
        sides = comparer.open(reference, dict(zip(comparer.candidates, others, strict=True)))
        task = ComparisonTask(comparer, sides, self.labels, labelled=self.labelled, records=self.records)
        task.block, task.growing = self.block, False
        return task
