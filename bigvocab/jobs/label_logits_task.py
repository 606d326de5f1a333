"""The first pass of slices of classes: the logit of each row's label, where the slice holds it, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from bigvocab.evaluation.coverage import Coverage
from bigvocab.evaluation.scoring import Scorer
from bigvocab.jobs.class_ranges import ClassSpan, ClassTask
from bigvocab.jobs.data import JobData
from bigvocab.jobs.run import Progress, RunOptions, run_task
from bigvocab.jobs.task import Piece
from bigvocab.labels.labels import LabelBatch
from bigvocab.reports.report import Report
from bigvocab.storage.arrow_file import ArrowFile


@dataclass
class Found:
    """How many logits of labels were found."""

    count: int = 0

    def merge(self, other: Any) -> None:
        """Add those of another."""
        self.count += other.count


class LabelLogitsTask(ClassTask):
    """One logit per row: of its label, null where the range of classes does not hold it."""

    name = "label logits"
    records_in_state = False

    def __init__(self, scorer: Scorer, data: JobData, span: ClassSpan, *, whole: bool) -> None:
        super().__init__(scorer, data, span, whole=whole)
        self.schema = pa.schema([("label_logit", pa.float64())])

    def run(self, batch: LabelBatch) -> Iterator[Piece]:
        """The logits of the labels of a batch."""
        logits, known = self.label_logits(batch.first_row, self.labels_of(batch))
        records = pa.record_batch([pa.array(np.where(known, logits, 0.0), mask=~known)], self.schema)
        found = Found(int(np.count_nonzero(known)))
        yield Piece(batch.first_row, batch.first_row + len(batch), found, [records], 8 * len(batch))

    def new_sums(self) -> Found:
        """None found yet."""
        return Found()

    def report(self, sums: Found, coverage: Coverage) -> Report:
        """What was written."""
        loss = self.specification.loss.name
        return Report({"loss": loss, "rows": coverage.rows, "label_logits": sums.count, "inputs": coverage.inputs})


def write_task(task: LabelLogitsTask, path: str | os.PathLike[str], *, progress: Progress | None = None) -> Report:
    """Run the first pass, and write its records to `path`, whole or not at all."""
    return run_task(task, RunOptions(output=path), progress=progress, writer=ArrowFile, output_name="save_label_logits")
