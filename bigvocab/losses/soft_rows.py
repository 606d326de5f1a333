"""Softmax cross-entropy of rows with soft labels: over all classes, or over those that are listed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bigvocab.arguments import FLOATS, as_array
from bigvocab.errors import BigvocabError
from bigvocab.labels.ragged import RaggedIds
from bigvocab.losses.highest_rows import highest_rows
from bigvocab.losses.row_statistics import RowStatistics, softmax_rows, wanted
from bigvocab.losses.row_sums import SoftLabelSums
from bigvocab.matrices.logit_rows import Array, Bools, Floats, Ids, LogitRows
from bigvocab.matrices.tiles import kernel_view
from bigvocab.threads import resolve_threads

_TILE = 1 << 20  # logits of listed classes, put in a tile at a time


def as_soft_labels(name: str, labels: Any, shape: tuple[int, ...], hint: str = "") -> Array:
    """Labels of the shape of the logits, of any float, integer or boolean type, not copied."""
    array = as_array(name, labels)
    if array.dtype.name not in FLOATS and array.dtype.kind not in "iub":
        raise TypeError(f"{name}: expected floats, integers or booleans, got {array.dtype}")
    if array.shape != shape:
        note = f"; {hint}" if hint and array.ndim == 1 and array.dtype.kind in "iu" else ""
        raise BigvocabError(f"{name}: got shape {array.shape}, expected {shape}, one for each logit{note}")
    return array


def weighted_labels(labels: Array, class_weights: Floats, label_smoothing: float) -> Array:
    """w_j ((1 - e) z_j + e / V): class weights and smoothing as labels, whose cross-entropy is the weighted one."""
    smoothed = (1 - label_smoothing) * labels.astype(np.float64) + label_smoothing / len(class_weights)
    return np.multiply(smoothed, class_weights, out=smoothed)


def refuse_bad_label(name: str, labels: Array, row: int, first_row: int = 0) -> None:
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
    highest: Ids | None = None  # (n, K), where they were kept

    @property
    def mass(self) -> Floats:
        """The sum of the labels of each row."""
        from bigvocab.kernels import soft_labels

        return self.sums[:, soft_labels.LABEL_SUM]

    def losses(self, label_smoothing: float) -> Floats:
        """sum_j z_j (lse - g_j) of each row; smoothed (1 - e) sum_j z_j (lse - g_j) + e (lse - mean of g)."""
        from bigvocab.kernels import soft_labels as k

        mass, shift = self.sums[:, k.LABEL_SUM], self.sums[:, k.SHIFT]
        reference = self.sums[:, k.REFERENCE]
        highest, total = self.rows.maximum, self.rows.exp_sum
        with np.errstate(divide="ignore", invalid="ignore"):
            base = np.where(np.isnan(reference), 0.0, self.rows.transformed(reference))
            above = self.rows.transformed(highest) - base + np.log(total)  # lse - g(reference)
            losses = np.where(mass == 0, 0.0, above * mass) + shift
            nothing = (mass == 0) & (shift == 0)  # of the labels: then it does not matter that every class is masked
            losses[np.isnan(total) | (highest == -np.inf) & ~nothing] = np.nan
            e = label_smoothing
            if e:
                uniform = self.rows.uniform_loss(self.num_classes)
                losses = np.where(np.isnan(losses), losses, uniform) if e == 1.0 else (1 - e) * losses + e * uniform
        return losses


def dense_label_rows(
    rows: LogitRows,
    labels: Array,
    skip: Bools,
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
    from bigvocab.kernels import soft_labels

    reduction = SoftLabelSums(labels, skip, (scale, softcap), want | wanted(logit_sum=label_smoothing > 0))
    columns, sums = rows.reduce(reduction, resolve_threads(num_threads))
    bad = ~np.isfinite(sums[:, soft_labels.LABEL_SUM])
    if bad.any():
        refuse_bad_label(name, labels, int(np.argmax(bad)), first_row)
    return SoftLabelRows(RowStatistics(columns, np.full(len(skip), np.nan), scale, softcap), sums, rows.num_classes)


def soft_losses(
    rows: LogitRows,
    labels: Array,
    *,
    label_smoothing: float,
    class_weights: Floats | None = None,
    first_row: int = 0,
    **options: Any,
) -> Floats:
    """The loss of each row with soft labels (n, V) and, where there are, class weights (V,); options as
    `dense_label_rows`.
    """
    if class_weights is not None:
        labels, label_smoothing = weighted_labels(labels, class_weights, label_smoothing), 0.0
    skip = np.zeros(len(labels), bool)
    found = dense_label_rows(rows, labels, skip, label_smoothing=label_smoothing, first_row=first_row, **options)
    return found.losses(label_smoothing)


def sparse_label_rows(
    rows: LogitRows,
    sets: RaggedIds,
    probabilities: Floats,
    skip: Bools,
    *,
    label_smoothing: float = 0.0,
    want: int = 0,
    scale: float = 1.0,
    softcap: float = 0.0,
    num_threads: int | None = None,
    keep: int = 0,
) -> SoftLabelRows:
    """As `dense_label_rows` for labels of few classes: checked ids, and a probability for each; with the `keep` highest
    classes.
    """
    from bigvocab.kernels import row_statistics, soft_labels

    marks = np.where(skip, row_statistics.SKIP, row_statistics.NO_LABEL)
    want, threads = want | wanted(logit_sum=label_smoothing > 0), resolve_threads(num_threads)
    options: dict[str, Any] = {"want": want, "scale": scale, "softcap": softcap, "num_threads": threads}
    highest = highest_rows(rows, marks, keep, **options) if keep else None
    found = softmax_rows(rows, marks, **options) if highest is None else highest.rows
    sums = np.zeros((len(marks), soft_labels.SUMS))
    sums[:, soft_labels.REFERENCE] = np.where(np.isfinite(found.maximum), found.maximum, np.nan)
    _add_listed(rows, sets, np.ascontiguousarray(probabilities, np.float64), marks, (scale, softcap), sums, threads)
    return SoftLabelRows(found, sums, rows.num_classes, None if highest is None else highest.ids)


def _add_listed(
    rows: LogitRows,
    sets: RaggedIds,
    probabilities: Floats,
    marks: Ids,
    transform: tuple[float, float],
    sums: Floats,
    num_threads: int,
) -> None:
    """Add what the listed ids make to the sums with labels, from their logits alone."""
    from bigvocab.kernels import row_statistics, soft_labels

    owner, sizes = sets.rows(), np.diff(sets.offsets)
    kept = np.flatnonzero(marks[owner] != row_statistics.SKIP)
    found = rows.gather(owner[kept], sets.ids[kept], num_threads)
    logits = np.zeros(len(owner), found.dtype)
    logits[kept] = found
    step = max(1, _TILE // max(1, int(sizes.max(initial=1))))
    for start in range(0, len(marks), step):  # a tile of the listed logits alone: class k is the k-th of its row
        stop = min(start + step, len(marks))
        first, last = sets.offsets[start], sets.offsets[stop]
        offsets = sets.offsets[start : stop + 1] - first
        places = np.arange(last - first) - np.repeat(offsets[:-1], sizes[start:stop])
        tile = np.zeros((stop - start, max(1, int(sizes[start:stop].max(initial=1)))), logits.dtype)
        tile[owner[first:last] - start, places] = logits[first:last]
        span, listed = (0, tile.shape[1]), probabilities[first:last]
        soft_labels.rows_sparse_labels(
            kernel_view(tile), marks[start:stop], offsets, places, listed, transform, span, sums[start:stop]
        )
