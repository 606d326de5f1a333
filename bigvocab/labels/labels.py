"""read_labels: Arrow, Parquet, .npy and arrays in memory become a stream of label batches of bounded size.

`Labels` puts the parts that `label_files` opens one after the other, cuts and gathers their record batches to a good
size, and has `columns` turn them into NumPy arrays.
"""

from __future__ import annotations

import hashlib
import itertools
import operator
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from bigvocab.errors import BigvocabError, FormatError, Keyword, Place
from bigvocab.labels import columns as _columns
from bigvocab.labels.column_choice import choose_columns, shape_and_type
from bigvocab.labels.label_files import LabelPart, open_source, overlapping, reading
from bigvocab.labels.stored_ids import PLAIN, StoredIds, as_indices, as_offset
from bigvocab.matrices.matrix import Matrix
from bigvocab.storage.fingerprints import of_file
from bigvocab.storage.sigbus import watch

WHOLE = 256 << 20  # bytes of a file of labels that is hashed whole


@dataclass(eq=False)
class LabelBatch:
    """Labels of consecutive rows, with what goes with them; `first_row` counts from the start of all files."""

    first_row: int
    labels: Any  # int64 (n,) | (offsets int64 (n + 1,), ids int64), offsets from 0 | float32 or float64 (n, V)
    probabilities: np.ndarray | None = None  # float64, one for each id, for kind "sparse"
    ignored: np.ndarray | None = None  # bool (n,): the label is null; None where no label is
    weights: np.ndarray | None = None  # float64 (n,)
    groups: tuple[np.ndarray, list[str]] | None = None  # int32 codes (n,) and their names
    num_bytes: np.ndarray | None = None  # int64 (n,)
    clusters: tuple[np.ndarray, list[str]] | None = None  # as groups: rows of one are not independent
    positions: np.ndarray | None = None  # int64 (n,), from 0
    texts: pa.Array | None = None  # strings (n,), for people
    nameable: int | None = None  # classes that the stored type can name, where it has 8 or 16 bits
    excluded: tuple[np.ndarray, np.ndarray] | None = None  # offsets from 0 and ids of classes that do not exist

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.labels[0]) - 1 if isinstance(self.labels, tuple) else len(self.labels)

    def part(self, start: int, stop: int) -> LabelBatch:
        """Rows `start` to `stop` of this batch."""
        if start == 0 and stop == len(self):
            return self

        def rows(values: Any) -> Any:
            return None if values is None else values[start:stop]

        def lists(pair: Any) -> Any:
            offsets, ids = pair
            first, last = int(offsets[start]), int(offsets[stop])
            return offsets[start : stop + 1] - first, ids[first:last]

        labels, probabilities = self.labels, self.probabilities
        if isinstance(labels, tuple):
            first, last = int(labels[0][start]), int(labels[0][stop])
            labels = lists(labels)
            probabilities = None if probabilities is None else probabilities[first:last]
        else:
            labels = labels[start:stop]

        def named(codes: tuple[np.ndarray, list[str]] | None) -> Any:
            return None if codes is None else (codes[0][start:stop], codes[1])

        return LabelBatch(
            self.first_row + start,
            labels,
            probabilities=probabilities,
            ignored=rows(self.ignored),
            weights=rows(self.weights),
            groups=named(self.groups),
            num_bytes=rows(self.num_bytes),
            clusters=named(self.clusters),
            positions=rows(self.positions),
            texts=rows(self.texts),
            nameable=self.nameable,
            excluded=None if self.excluded is None else lists(self.excluded),
        )


class Labels:
    """Label batches of files or arrays; iterate over it, as often as you like, or over `batches(start, stop)`.

    Attributes: `path`, `num_rows`, `kind` ("id", "list", "dense" or "sparse"), `dtype`, `num_classes` (of kind "dense",
    else None), `columns` (name and type of every column of the file), `files` (dicts of path, shape, dtype and bytes).
    """

    def __init__(
        self, source: Any, options: dict[str, str | None], stored: StoredIds = PLAIN, raw: str | None = None
    ) -> None:
        self._source, self._options, self.stored, self._raw = source, options, stored, raw
        self._parts, named = open_source(source, raw)
        if named is not None and options["label"] not in (None, named):
            raise BigvocabError(Keyword("label_column"), f": got {options['label']!r}, but the path names {named!r}")
        options = {**options, "label": named or options["label"]}
        first = self._parts[0]
        self.chosen = choose_columns(first.schema, first.path, whole=first.holds_columns, **options)
        self.kind, self.dtype, self.num_classes = self.chosen[:3]
        for part in self._parts[1:]:
            named_alike = {**options, "label": self.chosen.label}
            chosen = choose_columns(part.schema, part.path, whole=part.holds_columns, **named_alike)
            if chosen != self.chosen:
                types = [p.schema.field(chosen.label).type for p in (part, first)]
                raise BigvocabError(f"{part.path}: expected labels of {types[1]}, as in {first.path}, got {types[0]}")
        watch(self)
        self.path = first.path + (f" and {len(self._parts) - 1} more" if len(self._parts) > 1 else "")
        self.num_rows = sum(part.num_rows for part in self._parts)
        if self.kind == "dense" and self.num_classes is None:
            self.num_classes = self._width()
        self.columns = first.columns()
        self.files = [
            {"path": part.path, **self._shape_and_type(part), "bytes": part.num_bytes} for part in self._parts
        ]

    def _width(self) -> int:
        """The length of the first list of soft labels; 0 where all are null."""
        for part in self._parts:
            with reading(part.path, part.format):
                for _, batch in part.batches([self.chosen.label], 0, part.num_rows):
                    column = batch.column(0)
                    column.validate()
                    if (width := _columns.list_width(_columns.plain(column))) is not None:
                        return width
        return 0

    @property
    def paths(self) -> list[str]:
        """The files that are read; none for labels in memory."""
        return [part.path for part in self._parts if part.identity is not None]

    def matrices(self) -> list[Matrix]:
        """None: labels are columns."""
        return []

    def fingerprints(self) -> list[dict[str, Any]]:
        """One entry {role, path, shape, dtype, bytes, fingerprint} for each file; of labels in memory, one for all."""
        if self.paths:
            return [{"role": "labels", **file, "fingerprint": of_file(file["path"], WHOLE)} for file in self.files]
        return [{"role": "labels", **self.files[0], "path": "<array>", "fingerprint": fingerprint_of(self)}]

    def place_of(self, row: int) -> tuple[str, int] | None:
        """The file that holds a row, and its number there; None where there is one file."""
        return place_among(self.files, row)

    def check(self) -> None:
        """Raise FormatError if a file has changed since it was opened."""
        for part in self._parts:
            part.check()

    def watched(self) -> list[LabelPart]:
        """What a bus error may be of."""
        return self._parts

    def _shape_and_type(self, part: LabelPart) -> dict[str, Any]:
        """{shape, dtype} of the labels of a part: lists of one size are (N, T), others (N,)."""
        shape, dtype = shape_and_type(part.schema.field(self.chosen.label).type)
        return {"shape": [part.num_rows, *shape], "dtype": dtype}

    def __reduce__(self) -> tuple[Any, ...]:
        """Files travel by absolute path and are opened anew; arrays travel whole."""
        source = [part.source for part in self._parts] if self._parts[0].identity else self._source
        return Labels, (source, {**self._options, "label": self.chosen.label}, self.stored, self._raw)

    def read_as(self, stored: StoredIds) -> Labels:
        """The same labels, their ids understood in another way."""
        if stored == self.stored:
            return self
        _, (source, options, *_) = self.__reduce__()
        return Labels(source, options, stored, self._raw)

    def __iter__(self) -> Iterator[LabelBatch]:
        return self.batches()

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[LabelBatch]:
        """Label batches of the rows from `start` to before `stop` only; chunks of the files outside are skipped."""
        start, stop = operator.index(start), self.num_rows if stop is None else operator.index(stop)
        if not 0 <= start <= stop <= self.num_rows:
            raise BigvocabError(
                Keyword("labels"), f": expected a range within {self.num_rows} rows, got {start} to {stop}"
            )
        return self._batches(start, stop)

    def _batches(self, start: int, stop: int) -> Iterator[LabelBatch]:
        for i, origin in overlapping([part.num_rows for part in self._parts], start, stop):
            part = self._parts[i]
            row, end = max(start, origin), min(stop, origin + part.num_rows)
            for arrays in _columns.gathered(self._pieces(part, origin, row, end)):
                yield self._convert(part, arrays, row)
                row += len(arrays[0])
            if row != end:
                raise FormatError(f"{part.path}: expected {part.num_rows} rows, as promised, got {row - origin}")

    def _pieces(self, part: LabelPart, origin: int, start: int, stop: int) -> Iterator[list[pa.Array]]:
        """The columns of rows `start` to `stop` of all, checked and cut to a good size."""
        part.check()
        with reading(part.path, part.format):
            for first, batch in part.batches(self.chosen.names, start - origin, stop - origin):
                row, end = max(start, origin + first), min(stop, origin + first + len(batch))
                if row >= end:
                    continue
                arrays = [
                    _columns.cut(column, row - origin - first, end - row, Place(part.path, f": column {name!r}"), row)
                    for name, column in zip(self.chosen.names, batch.columns, strict=True)
                ]
                step = _columns.batch_rows(end - row, sum(array.nbytes for array in arrays))
                for at in range(0, end - row, step):
                    yield [_columns.plain(array.slice(at, step)) for array in arrays]
                    part.check()  # before a page is touched again

    def _convert(self, part: LabelPart, arrays: list[pa.Array], row: int) -> LabelBatch:
        """Arrow to NumPy: the one place where the roles of the columns come together."""
        chosen, by_name = self.chosen, dict(zip(self.chosen.names, arrays, strict=True))

        def asked(name: str) -> tuple[pa.Array, Place]:
            return by_name[name], Place(part.path, f": column {name!r}")

        with reading(part.path, part.format):
            labels: Any
            if self.kind == "dense":
                labels, ignored = _columns.dense(*asked(chosen.label), row, self.num_classes)
            elif self.kind == "id":
                labels, ignored = _columns.ids(*asked(chosen.label), row, self.stored)
            else:
                labels, ignored = _columns.id_lists(*asked(chosen.label), row, self.stored)
            batch = LabelBatch(row, labels, ignored=ignored)
            if chosen.probability is not None:
                array, where = asked(chosen.probability)
                batch.probabilities = _columns.probabilities(array, labels[0], ignored, where, row)
            if chosen.weight is not None:
                batch.weights = _columns.weights(*asked(chosen.weight), ignored, row)
            if chosen.group is not None:
                batch.groups = _columns.groups(by_name[chosen.group])
            if chosen.num_bytes is not None:
                batch.num_bytes = _columns.num_bytes(*asked(chosen.num_bytes), ignored, row)
            if chosen.position is not None:
                batch.positions = _columns.positions(*asked(chosen.position), ignored, row)
            if chosen.text is not None:
                batch.texts = _columns.texts(by_name[chosen.text])
            if chosen.cluster is not None:
                batch.clusters = _columns.groups(by_name[chosen.cluster])
            batch.nameable = _columns.nameable(by_name[chosen.label].type)
            if chosen.exclude is not None:
                batch.excluded, _ = _columns.id_lists(*asked(chosen.exclude), row, self.stored)
            return batch


def place_among(files: list[dict[str, Any]], row: int) -> tuple[str, int] | None:
    """The file that holds a row of all, and its number there; None where there is one file."""
    if len(files) < 2:
        return None
    firsts = list(itertools.accumulate((file["shape"][0] for file in files), initial=0))
    at = bisect_right(firsts, row) - 1
    return files[at]["path"], row - firsts[at]


def fingerprint_of(labels: Iterable[LabelBatch]) -> str:
    """The fingerprint of labels by their values."""
    found = hashlib.blake2b(digest_size=16)
    for batch in labels:
        groups, clusters = (
            None if named is None else np.asarray(named[1])[named[0]] for named in (batch.groups, batch.clusters)
        )
        texts = None if batch.texts is None else np.asarray(batch.texts.to_pylist(), np.str_)
        others = (batch.positions, texts, clusters)
        columns = batch.labels if isinstance(batch.labels, tuple) else (batch.labels,)
        for values in (
            *columns,
            batch.probabilities,
            batch.ignored,
            batch.weights,
            groups,
            batch.num_bytes,
            *others,
            *(batch.excluded or ()),
        ):
            found.update(b"-" if values is None else np.ascontiguousarray(values).tobytes())
    return found.hexdigest()


def read_labels(
    path: Any,
    *,
    label_column: str | None = None,
    weight_column: str | None = None,
    group_column: str | None = None,
    bytes_column: str | None = None,
    probability_column: str | None = None,
    position_column: str | None = None,
    text_column: str | None = None,
    cluster_column: str | None = None,
    exclude_column: str | None = None,
    label_dtype: str | None = None,
    label_offset: int = 0,
    ignore_index: int | Iterable[int] | None = None,
) -> Labels:
    """Read labels, in batches, from Arrow, Parquet or .npy files or from an array or table in memory.

    A column of integers is one label per row; of integer lists, several; of lists of floats, soft labels; of
    integer lists with `probability_column` beside it, sparse soft labels. A null label is an ignored row. A column of
    float64 or decimals that is named, or the only one, holds labels if its numbers are whole; NaN is an ignored row.
    Only metadata is read before the result is iterated over, and the whole file is never in memory.

    Args:
        path: a file, glob, folder (files in natural order, rows one after the other) or list of these; `file::column`
            names the label column; or an ndarray (N,) or (N, T) of ints or (N, V) of floats, or pyarrow data.
        label_column: by default the column called label or labels, or else the only one whose type fits.
        weight_column: numbers, finite.
        group_column: strings, integers or booleans; null is the group "(null)".
        bytes_column: bytes of text that each label stands for, >= 0, for bits per byte.
        probability_column: lists of numbers >= 0, as long as the lists of ids.
        cluster_column: as group_column; rows of one cluster are not independent.
        position_column: places in a sequence, from 0.
        text_column: strings to show beside the worst rows.
        exclude_column: lists of ids of classes that do not exist for the row; null is none.
        label_dtype: an integer type: the files are raw binary, one label per row, without a header.
        label_offset: added to every label, and to the ids of `exclude_column`.
        ignore_index: rows whose label is stored as this, or one of these, are ignored; compared before the offset.

    Raises:
        FormatError: a file is of no supported format, truncated, corrupt, or changes while it is read.
        BigvocabError: no such file or column, a column of the wrong type, several that could be meant, or a bad value.
        TypeError: `path` is none of the above.

    Example:
        >>> import numpy as np
        >>> import bigvocab as bv
        >>> labels = bv.read_labels(np.array([3, 1, 4]))
        >>> labels.kind, labels.num_rows, [batch.labels.tolist() for batch in labels]
        ('id', 3, [[3, 1, 4]])
    """
    options = {
        "label": label_column,
        "weight": weight_column,
        "group": group_column,
        "num_bytes": bytes_column,
        "probability": probability_column,
        "position": position_column,
        "text": text_column,
        "cluster": cluster_column,
        "exclude": exclude_column,
    }
    stored = StoredIds(as_offset(label_offset), as_indices("ignore_index", ignore_index))
    return labels_with(path, options, stored, label_dtype)


def labels_with(path: Any, options: dict[str, str | None], stored: StoredIds = PLAIN, raw: str | None = None) -> Labels:
    """As `read_labels`: columns by role, how ids are stored, and the type of raw files."""
    for role, name in options.items():
        if not isinstance(name, str | None):
            option = {"num_bytes": "bytes"}.get(role, role)
            raise TypeError(f"{option}_column: expected the name of a column, got {name!r}")
    return Labels(path, options, stored, raw)


def read_columns(
    path: Any, columns: Mapping[str, str | None], stored: StoredIds = PLAIN, raw: str | None = None
) -> Labels:
    """As `labels_with`, with columns as keywords of `read_labels`."""
    options = {name.removesuffix("_column"): column for name, column in columns.items()}
    named = dict.fromkeys(("label", "weight", "group", "probability")) | options
    return labels_with(
        path, {"num_bytes" if role == "bytes" else role: name for role, name in named.items()}, stored, raw
    )
