"""Rows of logits beside rows of dense labels: pieces of both for kernels, and what softmax cross-entropy reads off
them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.arguments import FLOATS, as_array
from bigvocab.errors import BigvocabError
from bigvocab.labels.id_sets import IdSets
from bigvocab.matrices.rows import RowStatistics, Tiles, pieces, share_rows, softmax_rows, streamed, wanted
from bigvocab.threads import resolve_threads

Floats = npt.NDArray[np.float64]


def as_soft_labels(name: str, labels: Any, shape: tuple[int, ...], hint: str = "") -> npt.NDArray[Any]:
    """Labels of the shape of the logits, of any float, integer or boolean type, not copied."""
    array = as_array(name, labels)
    if array.dtype.name not in FLOATS and array.dtype.kind not in "iub":
        raise TypeError(f"{name}: expected floats, integers or booleans, got {array.dtype}")
    if array.shape != shape:
        note = f"; {hint}" if hint and array.ndim == 1 and array.dtype.kind in "iu" else ""
        raise BigvocabError(f"{name}: got shape {array.shape}, expected {shape}, one for each logit{note}")
    return array


def paired_pieces(
    tiles: Tiles, labels: npt.NDArray[Any], start: int, stop: int, left_out: npt.NDArray[np.bool_] | None = None
) -> Iterator[tuple[tuple[int, int], npt.NDArray[Any], npt.NDArray[Any]]]:
    """As `rows.streamed`, each with the labels of the same rows and classes."""
    for (first, classes), piece in streamed(tiles, start, stop, left_out):
        part = labels[start:stop, first : first + classes]
        if part.dtype.name not in FLOATS:
            part = part.astype(np.float64, order="C")
        for _, beside in streamed([(first, part)], 0, stop - start, left_out):
            yield (first, classes), piece, beside


def refuse_bad_label(name: str, labels: npt.NDArray[Any], row: int, first_row: int = 0) -> None:
    """Raise for the first label of the row that is not finite."""
    values = np.asarray(labels[row]).astype(np.float64)
    if np.isfinite(values).all():
        raise BigvocabError.of_row(name, first_row + row, f" sums to {values.sum()}, expected a finite sum")
    at = int(np.argmin(np.isfinite(values)))
    raise BigvocabError.of_row(name, first_row + row, f", class {at}, is {values[at]}, expected a finite number")


@dataclass(frozen=True)
class SoftLabelRows:
    """Softmax statistics of rows and their sums with soft labels."""

    rows: RowStatistics
    sums: Floats
    num_classes: int

    def losses(self, label_smoothing: float) -> Floats:
        """S z (lse - g) of each row, smoothed: (1 - e) S z (lse - g) + e (lse - mean of g)."""
        from bigvocab.kernels import row_statistics
        from bigvocab.kernels import soft_labels as k

        mass, shift = self.sums[:, k.LABEL_SUM], self.sums[:, k.SHIFT]
        reference = self.sums[:, k.REFERENCE]
        highest, total = self.rows.columns[:, row_statistics.MAX], self.rows.columns[:, row_statistics.SUM]
        with np.errstate(divide="ignore", invalid="ignore"):
            base = np.where(np.isnan(reference), 0.0, self.rows.transformed(reference))
            above = self.rows.transformed(highest) - base + np.log(total)  # lse - g(reference)
            losses = np.where(mass == 0, 0.0, above * mass) + shift
            losses[np.isnan(total) | (highest == -np.inf)] = np.nan
            e = label_smoothing
            if e:
                uniform = self.rows.uniform_loss(self.num_classes)
                losses = np.where(np.isnan(losses), losses, uniform) if e == 1.0 else (1 - e) * losses + e * uniform
        return losses


def _options(want: int, label_smoothing: float) -> int:
    return want | wanted(logit_sum=label_smoothing > 0)


def dense_label_rows(
    tiles: Tiles,
    labels: npt.NDArray[Any],
    skip: npt.NDArray[np.bool_],
    *,
    label_smoothing: float = 0.0,
    want: int = 0,
    scale: float = 1.0,
    softcap: float = 0.0,
    num_threads: int | None = None,
    name: str = "labels",
    first_row: int = 0,
) -> SoftLabelRows:
    """Statistics of rows of logits with soft labels (n, V); rows of `skip` are left out."""
    from bigvocab.kernels import row_statistics, soft_labels

    rows = len(skip)
    marks = np.where(skip, row_statistics.SKIP, row_statistics.NO_LABEL)
    want = _options(want, label_smoothing)
    if (made := getattr(tiles, "dense_label_rows", None)) is not None:  # logits that are made while they are read
        threads = resolve_threads(num_threads)
        columns, sums = made(labels, marks, want=want, transform=(scale, softcap), num_threads=threads)
    else:
        columns, sums = np.empty((rows, row_statistics.COLUMNS)), np.zeros((rows, soft_labels.SUMS))
        sums[:, soft_labels.REFERENCE] = np.nan

        def work(start: int, stop: int) -> None:
            mine, stats = slice(start, stop), columns[start:stop]
            row_statistics.clear_statistics(stats)
            for span, x, z in paired_pieces(tiles, labels, start, stop, skip[mine]):
                soft_labels.rows_soft_labels(x, z, marks[mine], (scale, softcap), want, span, stats, sums[mine])

        share_rows(work, tiles, rows, num_threads, labels)
    bad = ~np.isfinite(sums[:, soft_labels.LABEL_SUM])
    if bad.any():
        refuse_bad_label(name, labels, int(np.argmax(bad)), first_row)
    stats = RowStatistics(columns, np.full(rows, np.nan), scale, softcap)
    return SoftLabelRows(stats, sums, labels.shape[1])


def sparse_label_rows(
    tiles: Tiles,
    sets: IdSets,
    probabilities: Floats,
    skip: npt.NDArray[np.bool_],
    *,
    label_smoothing: float = 0.0,
    want: int = 0,
    scale: float = 1.0,
    softcap: float = 0.0,
    num_threads: int | None = None,
) -> SoftLabelRows:
    """As `dense_label_rows` for labels of few classes: checked ids, and a probability for each."""
    from bigvocab.kernels import row_statistics, soft_labels

    marks = np.where(skip, row_statistics.SKIP, row_statistics.NO_LABEL)
    want, threads = _options(want, label_smoothing), resolve_threads(num_threads)
    rows = softmax_rows(tiles, marks, want=want, scale=scale, softcap=softcap, num_threads=threads)
    sums = np.zeros((len(marks), soft_labels.SUMS))
    top = rows.columns[:, row_statistics.MAX]
    sums[:, soft_labels.REFERENCE] = np.where(np.isfinite(top), top, np.nan)
    probabilities = np.ascontiguousarray(probabilities, np.float64)
    if (add := getattr(tiles, "add_sparse_labels", None)) is not None:  # logits that are made while they are read
        add(marks, sets, probabilities, (scale, softcap), sums, threads)
        return SoftLabelRows(rows, sums, int(tiles.num_classes))  # type: ignore[attr-defined]

    def work(start: int, stop: int) -> None:
        mine, offsets = slice(start, stop), sets.offsets[start : stop + 1]
        for span, piece in pieces(tiles, start, stop):
            soft_labels.rows_sparse_labels(
                piece, marks[mine], offsets, sets.ids, probabilities, (scale, softcap), span, sums[mine]
            )

    share_rows(work, tiles, len(marks), threads)
    first, tile = tiles[-1]
    return SoftLabelRows(rows, sums, first + tile.shape[1])
