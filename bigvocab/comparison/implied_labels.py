"""Labels that come from no file of labels: the tokens of a llama.cpp file, or none at all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.formats.llama_logits import LlamaLogits, open_llama_logits
from bigvocab.labels.labels import LabelBatch
from bigvocab.labels.stored_ids import PLAIN, StoredIds
from bigvocab.matrices.matrix import Matrix

_BATCH_ROWS = 65_536


class _ImpliedLabels:
    """A `LabelSource` without files: what the two kinds below share."""

    kind = "id"
    num_classes: int | None = None

    def __init__(self, path: str, num_rows: int) -> None:
        self.path, self.num_rows = path, num_rows
        self.files: list[dict[str, Any]] = []
        self.paths: list[str] = []

    def matrices(self) -> list[Matrix]:
        """None."""
        return []

    def fingerprints(self) -> list[dict[str, Any]]:
        """None: what the labels come from has those of the logits."""
        return []

    def check(self) -> None:
        """Nothing can change that the logits do not check."""

    def place_of(self, row: int) -> tuple[str, int] | None:
        """None: there is no file of labels."""

    def __iter__(self) -> Iterator[LabelBatch]:
        return self.batches()

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[LabelBatch]:
        """Label batches of the rows from `start` to before `stop`."""
        stop = self.num_rows if stop is None else stop
        for first in range(start, stop, _BATCH_ROWS):
            yield self._batch(first, min(first + _BATCH_ROWS, stop))

    def _batch(self, start: int, stop: int) -> LabelBatch:
        raise NotImplementedError


class LlamaLabels(_ImpliedLabels):
    """The labels of a llama.cpp file, its tokens; each window is a cluster."""

    def __init__(self, file: LlamaLogits, stored: StoredIds = PLAIN) -> None:
        super().__init__(file.shown, len(file))
        self._file, self._stored = file, stored

    def __reduce__(self) -> Any:
        return _labels_of, (self._file.file.path, self._stored)

    def _batch(self, start: int, stop: int) -> LabelBatch:
        labels = self._file.labels[start:stop]
        clusters = windows_of(self._file, start, stop)
        return LabelBatch(start, labels, ignored=self._stored.marks(labels), clusters=clusters)


def _labels_of(path: str, stored: StoredIds) -> LlamaLabels:
    return LlamaLabels(open_llama_logits(path), stored)


class NoLabels(_ImpliedLabels):
    """The place of labels where there are none."""

    def __init__(self, num_rows: int) -> None:
        super().__init__("labels", num_rows)

    def _batch(self, start: int, stop: int) -> LabelBatch:
        from bigvocab.kernels.row_statistics import NO_LABEL

        return LabelBatch(start, np.full(stop - start, NO_LABEL))


def windows_of(file: LlamaLogits, start: int, stop: int) -> tuple[npt.NDArray[Any], list[str]]:
    """The window of rows as (codes, names)."""
    windows = file.windows[start:stop]
    first = int(windows[0]) if len(windows) else 0
    last = int(windows[-1]) if len(windows) else -1
    return (windows - first).astype(np.int32), [f"window {w}" for w in range(first, last + 1)]
