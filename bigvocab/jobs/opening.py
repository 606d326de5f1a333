"""How rows and labels of a job find each other: as many of both, or as sequences."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from bigvocab.arrays import as_host_array
from bigvocab.errors import BigvocabError
from bigvocab.evaluation.options import Sequences
from bigvocab.labels.label_sources import LabelSource, open_labels
from bigvocab.labels.leading import flat_array
from bigvocab.labels.sequences import as_sequences, width_of
from bigvocab.labels.stored_ids import PLAIN, StoredIds
from bigvocab.matrices.sequences import sequence_edges
from bigvocab.matrices.sources import LogitSource
from bigvocab.storage.paths import split_selector


class LabelsOnce:
    """Labels that may have to be counted before it is known which rows they are beside; files are opened once."""

    def __init__(
        self,
        labels: Any,
        kinds: tuple[str, ...],
        columns: dict[str, str | None],
        stored: StoredIds = PLAIN,
        raw: str | None = None,
    ) -> None:
        self._labels, self._kinds, self._asked = labels, kinds, (columns, stored, raw)
        self._opened: LabelSource | None = None

    def count(self) -> int:
        """How many labels there are; -1 where they cannot be opened, which `beside` says."""
        array = as_host_array(self._labels, "labels")
        if isinstance(array, np.ndarray):
            return array.size
        try:
            self._opened = open_labels(self._labels, self._kinds, *self._asked)
        except BigvocabError:
            return -1
        return self._opened.num_rows * (width_of(self._opened) or 1)

    def beside(self, leading: tuple[int, ...]) -> LabelSource:
        """The labels of rows that came as an array with these dimensions before its columns."""
        if self._opened is not None:
            return self._opened
        labels = flat_array(self._labels, leading, one_each=self._kinds == ("id",))
        return open_labels(labels, self._kinds, *self._asked)


def are_swapped(logits: Any, labels: Any) -> bool:
    """Whether what was given for logits holds one label a row, and what was given for labels is a matrix of floats."""
    try:
        return open_labels(logits, ("id",), {}).kind == "id" and open_labels(labels, ("dense",), {}).kind == "dense"
    except (BigvocabError, TypeError):
        return False


def column_of(labels: Any, column: str | None) -> str | None:
    """The name of the column or tensor of labels, as far as it was said."""
    if column is not None or not isinstance(labels, str | os.PathLike):
        return column
    return split_selector(os.fsdecode(labels))[1]


def _refuse_other_shape(labels: LabelSource, source: LogitSource) -> None:
    """Raise where labels (B, T) are as many as rows of (B, T, V), but of other sequences."""
    leading = tuple(size for size in source.stored.leading if size != 1)
    width = width_of(labels) if len(leading) > 1 else None
    if width is None or width == 1 or width == leading[-1] or labels.num_rows * width != len(source):
        return
    path = source.files[0]["path"]
    rows_name = "the rows" if path == "<array>" else path
    raise BigvocabError(
        f"{labels.path}: got shape {(labels.num_rows, width)}, expected {leading}, as {rows_name} before their "
        f"columns, or ({len(source)},)"
    )


def in_sequences(labels: LabelSource, source: LogitSource, kinds: tuple[str, ...], asked: Sequences) -> LabelSource:
    """Labels as those of the rows of a source, in sequences where that is asked for."""
    _refuse_other_shape(labels, source)
    return as_sequences(
        labels,
        len(source),
        sequence_edges(source.stored),
        kinds=kinds,
        shift=asked.shift_labels,
        score_from=asked.score_from,
        rows_name=source.files[0]["path"],
    )
