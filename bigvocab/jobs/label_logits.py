"""Logits of labels in files: with them, machines that hold a slice of the classes each can count the logits above."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bigvocab import arguments
from bigvocab.errors import BigvocabError, FormatError, Keyword
from bigvocab.storage.output import replacing

if TYPE_CHECKING:
    from bigvocab.jobs.work import Job

Floats = npt.NDArray[np.float64]


class LabelLogits:
    """Logits of labels of all rows, from the files of the machines that hold them; memory-mapped."""

    def __init__(self, paths: Any, rows: int) -> None:
        self._columns = []
        for path in paths if isinstance(paths, list | tuple) else [paths]:
            try:
                with pa.memory_map(os.fsencode(path)) as file:
                    table = pa.ipc.open_file(file).read_all()
                column = table.column("label_logit")
            except (pa.ArrowException, OSError, KeyError) as error:
                raise FormatError(
                    f"{path}: expected an Arrow file with a column label_logit, as ",
                    Keyword("save_label_logits"),
                    f" writes it: {error}",
                ) from None
            if len(column) != rows:
                raise BigvocabError(f"{path}: has {len(column)} rows, expected {rows}, as the labels have")
            self._columns.append(column)

    def rows(self, start: int, stop: int) -> tuple[Floats, Any]:
        """Logits of rows `start` to `stop`, and which are there."""
        logits, there = np.full(stop - start, np.nan), np.zeros(stop - start, bool)
        for column in self._columns:
            part = column.slice(start, stop - start).combine_chunks()
            here = part.is_valid().to_numpy(zero_copy_only=False)
            logits = np.where(here, part.to_numpy(zero_copy_only=False), logits)
            there |= here
        return logits, there


def write_label_logits(job: Job, path: str | os.PathLike[str]) -> int:
    """The first pass: one logit a row, where the range holds it. Returns how many there are."""
    assert job.classes is not None
    schema = pa.schema([("label_logit", pa.float64())])
    found = 0
    with (
        replacing(path) as temporary,
        pa.OSFile(os.fsencode(temporary), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
    ):
        for batch in job.labels:
            ids = arguments.labels_in_range(
                batch.labels,
                job.classes.total,
                ignore_index=job.evaluator.ignore_index,
                ignored=batch.ignored,
                name=job.evaluator.label_name,
                first_row=batch.first_row,
            )
            job.matrix.check()
            logits, known = job.classes.label_logits(job.evaluator, job.matrix, batch.first_row, ids)
            writer.write_batch(pa.record_batch([pa.array(np.where(known, logits, 0.0), mask=~known)], schema))
            found += int(np.count_nonzero(known))
            job.matrix.release(batch.first_row, batch.first_row + len(batch))
        job.matrix.check()
        job.labels.check()
    return found
