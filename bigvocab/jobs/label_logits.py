"""Logits of labels in files: with them, machines that hold a slice of the classes each can count the logits above."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bigvocab.errors import BigvocabError, FormatError, Keyword
from bigvocab.storage import uris
from bigvocab.storage.remote import remember
from bigvocab.storage.spool import as_local

Floats = npt.NDArray[np.float64]


def _column(path: str, rows: int) -> pa.ChunkedArray:
    try:
        with pa.memory_map(os.fsencode(path)) as file:
            column = pa.ipc.open_file(file).read_all().column("label_logit")
    except (pa.ArrowException, OSError, KeyError) as error:
        raise FormatError(
            f"{path}: expected an Arrow file with a column label_logit, as ",
            Keyword("save_label_logits"),
            f" writes it: {error}",
        ) from None
    if len(column) != rows:
        raise BigvocabError(f"{path}: has {len(column)} rows, expected {rows}, as the labels have")
    return column


class LabelLogits:
    """Logits of labels of all rows, from the files of the machines that hold them; memory-mapped."""

    def __init__(self, paths: Any, rows: int) -> None:
        self._columns = []
        given = [os.fspath(path) for path in (paths if isinstance(paths, list | tuple) else [paths])]
        self.paths = [remember(uris.plain(path)) for path in given]
        for path in given:
            with as_local(path) as local:
                self._columns.append(_column(local, rows))

    def rows(self, start: int, stop: int) -> tuple[Floats, Any]:
        """Logits of rows `start` to `stop`, and which are there."""
        logits, there = np.full(stop - start, np.nan), np.zeros(stop - start, bool)
        for column in self._columns:
            part = column.slice(start, stop - start).combine_chunks()
            here = part.is_valid().to_numpy(zero_copy_only=False)
            logits = np.where(here, part.to_numpy(zero_copy_only=False), logits)
            there |= here
        return logits, there
