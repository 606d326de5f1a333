"""Labels of sequences: (B, T) labels as those of B * T rows, shifted by one token, scored from a position on.

Row t of a sequence is what a model makes of tokens 0 to t, so it is scored on token t + 1: with `shift`, a row takes
the label, weight, group and bytes of the next one of its sequence, and the last row of each is ignored. Batches of many
small files are joined, because a layer is read once for each block of rows, and no block is larger than a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from bigvocab.errors import BigvocabError, Keyword
from bigvocab.labels.label_sources import LabelSource
from bigvocab.labels.labels import LabelBatch, fingerprint_of
from bigvocab.matrices.matrix import Matrix

Array = np.ndarray[Any, np.dtype[Any]]

BATCH_ROWS = 65_536  # that small batches are joined to
MOST_HELD = 1 << 24  # labels of many files that are kept
MOST_LISTED = 64  # files that are listed one by one


class SequenceLabels:
    """Labels of an inner source, one per row, as those of sequences.

    Args:
        inner: labels of kind "id"; or of kind "list" with lists of one width, one list for each sequence.
        width: of those lists; None where the inner labels are one per row.
        edges: the first row of each sequence, and the number of rows; None is one sequence.
        shift: whether a row is scored on the label of the next one.
        score_from: rows before this position of their sequence are ignored.
    """

    kind = "id"
    num_classes = None

    def __init__(
        self,
        inner: LabelSource,
        *,
        width: int | None = None,
        edges: Array | None = None,
        shift: bool = False,
        score_from: int = 0,
    ) -> None:
        self.inner, self.width, self.shift, self.score_from = inner, width, shift, score_from
        self.num_rows = inner.num_rows * (1 if width is None else width)
        self.edges = np.array([0, self.num_rows]) if edges is None else edges
        self.path = inner.path
        self._held: LabelBatch | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_held": None}

    @property
    def files(self) -> list[dict[str, Any]]:
        """One entry {path, shape, dtype, bytes} for each file, or for all of them where they are many."""
        files = self.inner.files
        if len(files) <= MOST_LISTED:
            return files
        size = sum(file["bytes"] for file in files)
        return [{"path": self.path, "shape": [self.num_rows], "dtype": files[0]["dtype"], "bytes": size}]

    @property
    def paths(self) -> list[str]:
        """The files that are read; none for labels in memory."""
        return self.inner.paths

    def matrices(self) -> list[Matrix]:
        """None: labels are columns."""
        return self.inner.matrices()

    def fingerprints(self) -> list[dict[str, Any]]:
        """One entry {role, path, shape, dtype, bytes, fingerprint} for all labels, by what they are."""
        if self.width is None and len(self.inner.files) == 1:
            return self.inner.fingerprints()
        shown = {"path": self.path, "shape": [self.num_rows], "dtype": "int64", "bytes": 8 * self.num_rows}
        return [{"role": "labels", **shown, "fingerprint": fingerprint_of(self._rows(0, self.num_rows))}]

    def check(self) -> None:
        """Raise FormatError if a file has changed since it was opened."""
        if len(self.inner.files) <= MOST_LISTED:  # others are looked at when they are read
            self.inner.check()

    def place_of(self, row: int) -> tuple[str, int] | None:
        """The file that holds the label of a row, and its number there; None where there is one file."""
        return self.inner.place_of(row // self.width if self.width else min(row + self.shift, self.num_rows - 1))

    def __iter__(self) -> Iterator[LabelBatch]:
        return self.batches()

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[LabelBatch]:
        """Label batches of the rows from `start` to before `stop`."""
        stop = self.num_rows if stop is None else stop
        if start >= stop:
            return
        shift = int(self.shift)
        for batch in _joined(self._rows(start + shift, min(stop + shift, self.num_rows))):
            yield self._scored(replace(batch, first_row=batch.first_row - shift))
        if shift and stop == self.num_rows:  # the last row has no next one; its own label is ignored
            yield self._scored(replace(next(self._rows(stop - 1, stop))))

    def _rows(self, start: int, stop: int) -> Iterator[LabelBatch]:
        """Labels as they are, one per row, of rows `start` to `stop`; those of many files are opened once for all."""
        if self._held is None and self.width is None and len(self.inner.files) > MOST_LISTED:
            if start <= self.shift and stop == self.num_rows <= MOST_HELD:
                self._held = _join(list(self.inner.batches()))
        if self._held is not None:
            yield self._held.part(start, stop)
            return
        if self.width is None:
            yield from self.inner.batches(start, stop) if start < stop else ()
            return
        width = self.width
        for batch in self.inner.batches(start // width, -(-stop // width)) if start < stop else ():
            flat = _flattened(batch, width, self.path)
            first = max(start - flat.first_row, 0)
            yield flat.part(first, min(stop - flat.first_row, len(flat)))

    def _scored(self, batch: LabelBatch) -> LabelBatch:
        """The batch with the rows ignored that have no next label, or stand before the position to score from."""
        rows = np.arange(batch.first_row, batch.first_row + len(batch))
        sequence = np.searchsorted(self.edges, rows, side="right") - 1
        out = rows - self.edges[sequence] < self.score_from
        if self.shift:
            out |= rows == self.edges[sequence + 1] - 1
        if batch.positions is None and (self.shift or self.score_from) and len(self.edges) > 2:
            batch.positions = rows - self.edges[sequence]
        if out.any():
            batch.ignored = out if batch.ignored is None else batch.ignored | out
        return batch

    def positions(self, start: int, stop: int) -> Array:
        """The position of rows `start` to `stop` in their sequences, from 0."""
        rows = np.arange(start, stop)
        return rows - self.edges[np.searchsorted(self.edges, rows, side="right") - 1]


def _flattened(batch: LabelBatch, width: int, path: str) -> LabelBatch:
    """A batch of lists of one width as a batch of their ids; what belongs to a list belongs to each of its ids."""
    _refuse_lists_beside(batch)
    offsets, ids = batch.labels
    lengths = np.diff(offsets)
    full = lengths == width
    if batch.ignored is not None:
        full |= batch.ignored
    if not full.all():
        row = int(np.argmin(full))
        raise BigvocabError.of_row(
            path, batch.first_row + row, f" has {lengths[row]} labels, expected {width}, as many as the rows before"
        )
    if batch.ignored is not None and (lengths != width).any():
        spread = np.zeros((len(batch), width), np.int64)
        spread[lengths == width] = ids.reshape(-1, width)
        ids = spread.reshape(-1)

    def each(values: Any) -> Any:
        return None if values is None else np.repeat(values, width)

    return LabelBatch(
        batch.first_row * width,
        ids,
        ignored=each(batch.ignored),
        weights=each(batch.weights),
        groups=None if batch.groups is None else (each(batch.groups[0]), batch.groups[1]),
        num_bytes=each(batch.num_bytes),
        clusters=None if batch.clusters is None else (each(batch.clusters[0]), batch.clusters[1]),
        positions=each(batch.positions),
        texts=None if batch.texts is None else batch.texts.take(pa.array(each(np.arange(len(batch))))),
        nameable=batch.nameable,
    )


def _joined(batches: Iterable[LabelBatch]) -> Iterator[LabelBatch]:
    """Consecutive batches joined to a good size."""
    held: list[LabelBatch] = []
    rows = 0
    for batch in batches:
        if held and rows + len(batch) > BATCH_ROWS:
            yield _join(held)
            held, rows = [], 0
        held.append(batch)
        rows += len(batch)
    if held:
        yield _join(held)


def _refuse_lists_beside(batch: LabelBatch) -> None:
    if batch.excluded is not None:
        raise BigvocabError(
            Keyword("exclude_column"), ": goes with labels that are beside their rows, not in sequences"
        )


def _join(batches: list[LabelBatch]) -> LabelBatch:
    for batch in batches:
        _refuse_lists_beside(batch)
    if len(batches) == 1:
        return batches[0]

    def all_of(name: str) -> Any:
        values = [getattr(batch, name) for batch in batches]
        return None if values[0] is None else np.concatenate(values)

    ignored = None
    if any(batch.ignored is not None for batch in batches):
        none = [np.zeros(len(b), bool) if b.ignored is None else b.ignored for b in batches]
        ignored = np.concatenate(none)
    return LabelBatch(
        batches[0].first_row,
        all_of("labels"),
        ignored=ignored,
        weights=all_of("weights"),
        groups=_joined_groups([batch.groups for batch in batches]),
        num_bytes=all_of("num_bytes"),
        clusters=_joined_groups([batch.clusters for batch in batches]),
        positions=all_of("positions"),
        texts=None if batches[0].texts is None else pa.concat_arrays([batch.texts for batch in batches]),
        nameable=batches[0].nameable,
    )


def _joined_groups(groups: list[Any]) -> tuple[Array, list[str]] | None:
    """Codes and names of several batches as those of one."""
    if groups[0] is None:
        return None
    code_of: dict[str, int] = {}
    codes = []
    for own, names in groups:
        there = np.array([code_of.setdefault(name, len(code_of)) for name in names] or [0], np.int32)
        codes.append(there[own])
    return np.concatenate(codes), list(code_of)


def width_of(labels: LabelSource) -> int | None:
    """The width of labels that are lists, by the first of them; None for others."""
    if labels.kind != "list" or not labels.num_rows:
        return None
    batch = next(iter(labels.batches(0, 1)))
    return int(batch.labels[0][-1])


def own_edges(labels: LabelSource) -> Array | None:
    """The first row of each sequence as the files of labels have it: each file is one; None where there is one file."""
    files = labels.files
    if labels.kind != "id" or len(files) < 2 or any(len(file["shape"]) != 1 for file in files):
        return None
    return np.concatenate([[0], np.cumsum([file["shape"][0] for file in files], dtype=np.int64)])


def refuse_other_edges(labels: LabelSource, mine: Array, theirs: Array, rows_name: str) -> None:
    """Raise where files of labels and of rows pair up, but one pair differs in length."""
    if len(mine) != len(theirs) or (mine == theirs).all():
        return
    at = int(np.argmax(np.diff(mine) != np.diff(theirs)))
    raise BigvocabError(
        f"{labels.files[at]['path']}: {mine[at + 1] - mine[at]} labels, but the sequence of {rows_name} beside it has "
        f"{theirs[at + 1] - theirs[at]} rows; expected as many"
    )


def as_sequences(
    labels: LabelSource,
    rows: int,
    edges: Array | None,
    *,
    kinds: tuple[str, ...],
    shift: bool,
    score_from: int,
    rows_name: str,
) -> LabelSource:
    """Labels as those of `rows` rows, in sequences that end at `edges` (None: as the labels say, or one sequence).

    Raises:
        BigvocabError: labels that are not one per row where they are to be shifted; files that do not pair up.
    """
    width = width_of(labels)
    is_flat = labels.num_rows == rows and (width != 1 or kinds != ("id",))  # (N, 1) is one each where one is meant
    if width is not None and (is_flat or labels.num_rows * width != rows):
        width = None
    own = own_edges(labels) if width is None else np.arange(0, rows + 1, width)
    if own is not None and edges is not None and int(own[-1]) == rows == int(edges[-1]):
        refuse_other_edges(labels, own, edges, rows_name)
    asked = shift or score_from > 0
    if asked and labels.kind != "id" and width is None:
        name = "shift_labels" if shift else "score_from"
        raise BigvocabError(Keyword(name), f": needs one integer per row as labels; {labels.path} has others")
    small = len(labels.files) > 1 and labels.kind == "id" and labels.num_rows < len(labels.files) * BATCH_ROWS // 8
    if width is None and not asked and not small:
        return labels
    found = own if own is not None and int(own[-1]) == rows else edges
    if found is not None and int(found[-1]) != rows:
        found = None
    return SequenceLabels(labels, width=width, edges=found, shift=shift, score_from=score_from)
