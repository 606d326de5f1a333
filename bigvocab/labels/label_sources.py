"""What each loss takes as labels: opened from files or arrays, checked before any work, cut into row blocks.

Dense labels may be a second matrix (.npy, .safetensors, an array): it is memory-mapped like the logits and never held
whole.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bigvocab import arguments
from bigvocab.errors import BigvocabError, FormatError, Keyword
from bigvocab.labels.labels import LabelBatch, Labels, place_among, read_columns
from bigvocab.labels.ragged import RaggedIds, as_ragged
from bigvocab.labels.stored_ids import PLAIN, StoredIds
from bigvocab.labels.tables import as_table_source
from bigvocab.matrices.fingerprints import of_matrix
from bigvocab.matrices.matrix import Matrix
from bigvocab.matrices.opening import as_matrix
from bigvocab.storage.paths import expand

_TRUE = ("id", "list")  # true classes, one per row or several
_BATCH_BYTES = 64 << 20


class LabelSource(Protocol):
    """Labels of all rows of a job, in batches."""

    path: str  # as messages call them
    num_rows: int

    @property
    def kind(self) -> str:
        """One of "id", "list", "dense" or "sparse"."""

    @property
    def num_classes(self) -> int | None:
        """Labels of each row, of kind "dense"."""

    @property
    def files(self) -> list[dict[str, Any]]:
        """One entry {path, shape, dtype, bytes} for each file."""

    @property
    def paths(self) -> list[str]:
        """The files that are read; none for labels in memory."""

    def matrices(self) -> list[Matrix]:
        """The matrices that hold the labels; none where they are columns."""

    def fingerprints(self) -> list[dict[str, Any]]:
        """What tells the labels apart by their content, one entry for each file."""

    def check(self) -> None:
        """Raise FormatError if a file has changed since it was opened."""

    def place_of(self, row: int) -> tuple[str, int] | None:
        """The file that holds a row, and its number there; None where there is one file."""

    def __iter__(self) -> Iterator[LabelBatch]: ...

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[LabelBatch]:
        """Label batches of the rows from `start` to before `stop`."""


class MatrixLabels:
    """Dense labels in a matrix, in batches, with the attributes of `Labels`; pages that were read are given back."""

    kind = "dense"

    def __init__(self, matrix: Matrix) -> None:
        self.matrix = matrix
        if matrix.ndim != 2:
            raise BigvocabError(
                Keyword("labels"), f": got shape {matrix.shape}, expected (N, V), one label for each logit"
            )
        self.num_rows, self.num_classes = matrix.shape
        self.dtype = matrix.dtype
        self.columns: list[tuple[str, str]] = []
        in_memory = [file["path"] for file in matrix.files] == ["<array>"]
        self.files = [] if in_memory else matrix.files
        self.path = "labels" if in_memory else matrix.files[0]["path"]
        if len(self.files) > 1:
            self.path += f" and {len(self.files) - 1} more"

    @property
    def paths(self) -> list[str]:
        """The files that are read; none for labels in memory."""
        return [file["path"] for file in self.files]

    def matrices(self) -> list[Matrix]:
        """The labels, one row for each row of logits."""
        return [self.matrix]

    def fingerprints(self) -> list[dict[str, Any]]:
        """One entry {role, path, shape, dtype, bytes, fingerprint} for each file, or for the array."""
        return list(of_matrix("labels", self.matrix))

    def check(self) -> None:
        """Raise FormatError if a file has changed since it was opened."""
        self.matrix.check()

    def place_of(self, row: int) -> tuple[str, int] | None:
        """The file that holds a row, and its number there; None where there is one file."""
        return place_among(self.files, row)

    def __iter__(self) -> Iterator[LabelBatch]:
        return self.batches()

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[LabelBatch]:
        """Label batches of the rows from `start` to before `stop`."""
        stop = self.num_rows if stop is None else stop
        step = max(1, min(65_536, _BATCH_BYTES // (self.num_classes * self.dtype.itemsize)))
        for first in range(start, stop, step):
            end = min(first + step, stop)
            self.matrix.check()
            for row, tiles in self.matrix.row_parts(first, end):
                yield LabelBatch(row, tiles[0][1])
            self.matrix.release(first, end)


def open_labels(
    source: Any,
    kinds: tuple[str, ...],
    columns: dict[str, str | None],
    stored: StoredIds = PLAIN,
    raw: str | None = None,
) -> LabelSource:
    """Labels of files or arrays, of one of the kinds that a loss takes; `columns` as keywords of `read_labels`.

    Ids are `stored` so; files are `raw` of this type.
    """
    if isinstance(source, Labels):
        return source.read_as(stored)
    if isinstance(source, MatrixLabels):
        return source
    named = dict(columns)
    if raw is not None:
        return read_columns(source, named, stored, raw)
    source = as_table_source(source, "labels")
    if isinstance(source, tuple) and not _are_paths(source) and (kinds == ("list",) or "sparse" in kinds):
        source, named = _table(source, "sparse" in kinds, named)
    elif isinstance(source, list | tuple) and not _are_paths(source):
        source = arguments.as_array("labels", source)
        if source.size == 0:
            source = source.astype(np.int64)  # an empty list has no type of its own
    if isinstance(source, np.ndarray) and source.dtype == bool and "dense" in kinds:
        source = source.view(np.uint8)
    if "dense" in kinds and (matrix := _as_label_matrix(source)) is not None:
        if given := [name for name, value in named.items() if value is not None]:
            raise BigvocabError(f"{given[0]}: {matrix.path} is a matrix and has no columns; expected Arrow or Parquet")
        return matrix
    return read_columns(source, named, stored)


def _are_paths(source: Any) -> bool:
    return bool(source) and all(isinstance(item, str | os.PathLike) for item in source)


def _table(source: tuple[Any, ...], sparse: bool, named: dict[str, Any]) -> tuple[pa.Table, dict[str, Any]]:
    """A tuple (offsets, ids), or (offsets, ids, probabilities), as a table of list columns."""
    sets, probabilities = _sets_of(source, len(np.asarray(source[0])) - 1, sparse)
    table = pa.table({"labels": pa.LargeListArray.from_arrays(sets.offsets, sets.ids)})
    if probabilities is None:
        return table, named
    column = pa.LargeListArray.from_arrays(sets.offsets, probabilities)
    return table.append_column("probabilities", column), {**named, "probability_column": "probabilities"}


def _as_label_matrix(source: Any) -> MatrixLabels | None:
    """Labels that are a matrix of floats; None where `read_labels` is to read them."""
    if isinstance(source, Matrix):
        return MatrixLabels(source)
    if isinstance(source, np.ndarray):
        return (
            MatrixLabels(as_matrix(source, "labels"))
            if source.ndim == 2 and source.dtype.name in arguments.FLOATS
            else None
        )
    paths = source if isinstance(source, list | tuple) else [source]
    if not _are_paths(paths):
        return None
    try:
        suffixes = {os.path.splitext(file.path)[1].lower() for file in expand(source)}
    except BigvocabError:
        return None  # `read_labels` says what is wrong, or finds Parquet there
    if len(suffixes) == 1 and suffixes <= {".npy", ".safetensors", ".npz", ".pt", ".pth"}:
        try:
            return MatrixLabels(as_matrix(source, "labels"))
        except FormatError:
            return None  # integers, perhaps
    return None


# ---- labels of a batch in memory


def _sets_of(labels: Any, rows: int, sparse: bool) -> tuple[RaggedIds, npt.NDArray[np.float64] | None]:
    """Checked (offsets, ids), and the probabilities where there are some."""
    if not sparse:
        return as_ragged("labels", labels, rows), None
    if not isinstance(labels, tuple) or len(labels) not in (2, 3):
        raise BigvocabError(Keyword("labels"), f": got {type(labels).__name__}, expected (offsets, ids, probabilities)")
    if len(labels) == 2:
        return as_ragged("labels", labels, rows), None
    sets = as_ragged("labels", labels[:2], rows)
    values = arguments.as_array("labels", labels[2])
    if values.dtype.kind not in "fiub" and values.dtype.name not in arguments.FLOATS:
        raise TypeError(f"labels: probabilities: expected real numbers, got {values.dtype}")
    if values.shape != sets.ids.shape:
        raise BigvocabError(
            Keyword("labels"), f": got {values.shape} probabilities for {sets.ids.shape} ids, expected as many"
        )
    values = values.astype(np.float64)
    bad = ~((values >= 0) & (values < np.inf))
    if bad.any():
        at = int(np.argmax(bad))
        raise BigvocabError.of_row(
            "labels", sets.row_of(at), f" has the probability {values[at]}, expected finite numbers >= 0"
        )
    return sets, values


def labels_of(kinds: tuple[str, ...], labels: Any, rows: int, stored: StoredIds = PLAIN) -> tuple[Any, Any, Any]:
    """(labels, probabilities, ignored) of a `LabelBatch` from what `Evaluator.update` was given."""
    if kinds == ("id",) or kinds == _TRUE and not isinstance(labels, tuple) and np.ndim(labels) == 1:
        ids, ignored = stored.of_array("labels", labels)
        arguments.one_per_row("labels", ids, rows)
        return ids, None, ignored
    if kinds in (("list",), _TRUE) or isinstance(labels, tuple) and "sparse" in kinds:
        sets, probabilities = _sets_of(labels, rows, "sparse" in kinds)
        ids = stored.shifted(sets.ids, "labels", rows=sets.rows()) if stored.offset else sets.ids
        return (sets.offsets, ids), probabilities, None
    if isinstance(labels, Matrix):
        array = np.asarray(labels)
    elif isinstance(labels, str | os.PathLike):
        array = np.asarray(as_matrix(labels, "labels"))
    else:
        array = arguments.as_array("labels", labels)
    if array.dtype.name not in arguments.FLOATS and array.dtype.kind not in "iub":
        raise TypeError(f"labels: expected floats, integers or booleans, got {array.dtype}")
    if array.ndim not in (1, 2) or len(array) != rows:
        raise BigvocabError(Keyword("labels"), f": got shape {array.shape}, expected ({rows}, V), one for each logit")
    return array, None, None


@contextlib.contextmanager
def errors_of_files(labels: LabelSource, name: str) -> Iterator[None]:
    """Errors on labels of several files become ones of the file that the row is in, and of its row there."""
    try:
        yield
    except BigvocabError as error:
        paths = [file["path"] for file in labels.files]
        if error.place is None or error.row is None or error.place.path not in (name, *paths):
            raise
        place = labels.place_of(error.row)
        if place is None:
            raise
        raise error.moved(*place) from None
