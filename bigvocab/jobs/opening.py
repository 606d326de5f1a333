"""How rows and labels of a job find each other: as many of both, or as sequences."""

from __future__ import annotations

from typing import Any

import numpy as np

from bigvocab.arrays import as_host_array
from bigvocab.errors import BigvocabError
from bigvocab.evaluation.specification import Sequences
from bigvocab.labels.label_sources import LabelSource, open_labels
from bigvocab.labels.sequences import as_sequences, width_of
from bigvocab.matrices.sequences import sequence_edges
from bigvocab.matrices.sources import LogitSource


def count_labels(labels: Any, kinds: tuple[str, ...], columns: dict[str, str | None]) -> int:
    """How many labels there are, in files or in an array."""
    array = as_host_array(labels, "labels")
    if isinstance(array, np.ndarray):
        return array.size
    try:
        found = open_labels(labels, kinds, columns)
    except BigvocabError:
        return -1  # whoever opens them says why
    return found.num_rows * (width_of(found) or 1)


def in_sequences(labels: LabelSource, source: LogitSource, asked: Sequences) -> LabelSource:
    """Labels as those of the rows of a source, in sequences where that is asked for."""
    return as_sequences(
        labels,
        len(source),
        sequence_edges(source.stored),
        shift=asked.shift_labels,
        score_from=asked.score_from,
        rows_name=source.files[0]["path"],
    )
