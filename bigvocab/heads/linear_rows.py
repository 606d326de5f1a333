"""The linear head: statistics of logits g(x . w + b) of hidden states and an output layer, never all of them at once.

How the work lies. Rows are packed in blocks, as many as fit the memory; for each block the layer is read once. A unit
of work is a group of 16,384 classes with up to 480 rows; threads share units. A unit makes logits tile by tile, 1,024
classes at a time, into a buffer that stays in the cache of its core, and the same kernels that read stored logits
reduce the tile there. Groups are merged in order of class.

What holds. A logit's bits depend on its row and its class alone (kernels/products.py), tiles and groups are counted
from class 0 of the layer, and nothing else splits a row's sums: so no result depends on threads, chunks, shards of a
job, the files of the layer or the number of cores. The label's logit is needed before its tile is met, to count
ranks: it is made from the gathered row of the layer by the very steps of the tile's product, so it is the same
number, losses are >= 0 and ties are exact.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.arguments import FLOATS
from bigvocab.errors import BigvocabError
from bigvocab.heads.output_layer import OutputLayer, shown_as
from bigvocab.heads.products import Packed, accumulator, paired
from bigvocab.labels.id_sets import IdSets
from bigvocab.matrices.matrix import Matrix
from bigvocab.matrices.rows import RowStatistics, kernel_view
from bigvocab.threads import run_threads

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

TILE = 1024  # classes; with the group it decides how sums are split, so changing it changes last bits
GROUP = 16 * TILE
_UNIT_ROWS = 480  # 480 x 1,024 float32 logits are 1.9 MiB
_SPARSE_TILE = 1 << 20  # logits of listed classes, put in a tile at a time


class LinearRows:
    """Rows of logits that are made while they are read: a block of hidden states (N, D) and an output layer."""

    def __init__(self, layer: OutputLayer, inputs: Array, name: str = "inputs") -> None:
        layer.check_depth(inputs.shape[1], name)
        self.layer, self.inputs = layer, inputs
        self.dtype = accumulator(inputs.dtype, layer.weights.dtype)
        self.num_classes = layer.num_classes
        self.groups = -(-layer.num_classes // GROUP)

    def __len__(self) -> int:
        return len(self.inputs)

    def softmax_rows(self, labels: Ids, *, want: int, scale: float, softcap: float, num_threads: int) -> RowStatistics:
        """As `rows.softmax_rows` of the logits written out: label -1 leaves its row out, -2 reads a row without one."""
        from bigvocab.kernels import merge, row_statistics, softmax

        columns, label_logits = np.empty((len(labels), row_statistics.COLUMNS)), np.full(len(labels), np.nan)
        row_statistics.clear_statistics(columns)
        for chosen, packed in self._blocks(
            np.flatnonzero(labels != row_statistics.SKIP), num_threads, row_statistics.COLUMNS
        ):
            ids = labels[chosen]
            found = self._label_logits(packed, ids, num_threads)
            groups = np.empty((self.groups, len(chosen), row_statistics.COLUMNS))
            row_statistics.clear_statistics(groups.reshape(-1, row_statistics.COLUMNS))

            def reduce(
                group: int, start: int, stop: int, span: tuple[int, int], tile: Array,
                ids: Ids = ids, found: Floats = found, groups: Floats = groups,
            ) -> None:  # fmt: skip
                mine, stats = slice(start, stop), groups[group, start:stop]
                softmax.rows_softmax(tile, ids[mine], found[mine], (scale, softcap), want, span, stats)

            self._sweep(packed, reduce, num_threads)
            merged = columns[chosen]
            merge.merge_statistics(groups, (scale, softcap), merged)
            columns[chosen], label_logits[chosen] = merged, found
        return RowStatistics(columns, label_logits, scale, softcap)

    def weighted_sums(self, labels: Ids, weights: Floats, scale: float, softcap: float, num_threads: int) -> Floats:
        """S_c w_c g(x_c) of each row whose label is not -1: a pass of its own."""
        from bigvocab.kernels import row_statistics, softmax

        sums = np.zeros(len(labels))
        for chosen, packed in self._blocks(np.flatnonzero(labels != row_statistics.SKIP), num_threads, 1):
            ids, groups = labels[chosen], np.zeros((self.groups, len(chosen)))

            def reduce(
                group: int,
                start: int,
                stop: int,
                span: tuple[int, int],
                tile: Array,
                ids: Ids = ids,
                groups: Floats = groups,
            ) -> None:
                part = weights[span[0] : span[0] + span[1]]
                softmax.rows_weighted_sum(tile, ids[start:stop], part, (scale, softcap), groups[group, start:stop])

            self._sweep(packed, reduce, num_threads)
            for group in groups:  # in order of class
                sums[chosen] += group
        return sums

    def sparse_sigmoid_rows(
        self,
        sets: IdSets,
        skip: npt.NDArray[np.bool_],
        *,
        pos_weight: Floats,
        transform: tuple[float, float],
        num_threads: int,
    ) -> Floats:
        """As `sigmoid_rows.sparse_sigmoid_rows` of the logits written out."""
        from bigvocab.kernels import sigmoid

        out = np.zeros(len(skip))
        for chosen, packed in self._blocks(np.flatnonzero(~skip), num_threads, 1):
            mine, groups = _chosen_sets(sets, chosen), np.zeros((self.groups, len(chosen)))
            nothing = np.zeros(len(chosen), bool)

            def reduce(
                group: int, start: int, stop: int, span: tuple[int, int], tile: Array,
                mine: IdSets = mine, groups: Floats = groups, nothing: Array = nothing,
            ) -> None:  # fmt: skip
                offsets, sums = mine.offsets[start : stop + 1], groups[group, start:stop]
                sigmoid.rows_softplus(tile, nothing[start:stop], offsets, mine.ids, pos_weight, transform, span, sums)

            self._sweep(packed, reduce, num_threads)
            for group in groups:
                out[chosen] += group
        return out

    def dense_label_rows(
        self, labels: Array, marks: Ids, *, want: int, transform: tuple[float, float], num_threads: int
    ) -> tuple[Floats, Floats]:
        """Statistics and label sums of the rows whose mark is not -1, as `soft_labels.rows_soft_labels` makes them of
        logits written out and soft labels (n, V).
        """
        from bigvocab.kernels import merge, row_statistics, soft_labels

        columns, sums = np.empty((len(marks), row_statistics.COLUMNS)), np.zeros((len(marks), soft_labels.SUMS))
        row_statistics.clear_statistics(columns)
        sums[:, soft_labels.REFERENCE] = np.nan
        kept = np.flatnonzero(marks != row_statistics.SKIP)
        for chosen, packed in self._blocks(kept, num_threads, row_statistics.COLUMNS + soft_labels.SUMS):
            groups = np.empty((self.groups, len(chosen), row_statistics.COLUMNS))
            row_statistics.clear_statistics(groups.reshape(-1, row_statistics.COLUMNS))
            label_sums = np.zeros((self.groups, len(chosen), soft_labels.SUMS))
            label_sums[:, :, soft_labels.REFERENCE] = np.nan

            def reduce(
                group: int, start: int, stop: int, span: tuple[int, int], tile: Array,
                chosen: Ids = chosen, groups: Floats = groups, label_sums: Floats = label_sums,
            ) -> None:  # fmt: skip
                rows, mine = chosen[start:stop], slice(start, stop)
                soft = kernel_labels(labels, rows, span)
                stats, sums = groups[group, mine], label_sums[group, mine]
                soft_labels.rows_soft_labels(tile, soft, marks[rows], transform, want, span, stats, sums)

            self._sweep(packed, reduce, num_threads)
            merged, merged_sums = columns[chosen], sums[chosen]
            merge.merge_statistics(groups, transform, merged)
            soft_labels.merge_label_sums(label_sums, transform, merged_sums)
            columns[chosen], sums[chosen] = merged, merged_sums
        return columns, sums

    def sigmoid_row_sums(
        self, labels: Array, skip: npt.NDArray[np.bool_], *, pos_weight: Floats, label_smoothing: float,
        transform: tuple[float, float], num_threads: int,
    ) -> tuple[Floats, npt.NDArray[np.uint8]]:  # fmt: skip
        """As `sigmoid.rows_sigmoid_sums` of the logits written out and labels (n, V): the sums, and which rows have a
        fault.
        """
        from bigvocab.kernels import sigmoid

        out, faults = np.zeros(len(skip)), np.zeros(len(skip), np.uint8)
        for chosen, packed in self._blocks(np.flatnonzero(~skip), num_threads, 1):
            groups, found = np.zeros((self.groups, len(chosen))), np.zeros((self.groups, len(chosen)), np.uint8)

            def reduce(
                group: int, start: int, stop: int, span: tuple[int, int], tile: Array,
                chosen: Ids = chosen, groups: Floats = groups, found: npt.NDArray[np.uint8] = found,
            ) -> None:  # fmt: skip
                rows, mine, (first, classes) = chosen[start:stop], slice(start, stop), span
                weights = pos_weight if len(pos_weight) == 1 else pos_weight[first : first + classes]
                soft, sums, bad = kernel_labels(labels, rows, span), groups[group, mine], found[group, mine]
                sigmoid.rows_sigmoid_sums(
                    tile, soft, skip[rows], weights, label_smoothing, transform, classes, sums, bad
                )

            self._sweep(packed, reduce, num_threads)
            faults[chosen] = found.max(axis=0)
            for group in groups:
                out[chosen] += group
        return out, faults

    def add_sparse_labels(
        self,
        marks: Ids,
        sets: IdSets,
        probabilities: Floats,
        transform: tuple[float, float],
        sums: Floats,
        num_threads: int,
    ) -> None:
        """What `soft_labels.rows_sparse_labels` adds to sums, from the logits of the listed ids alone."""
        from bigvocab.kernels import soft_labels

        rows = sets.rows()
        logits = np.empty(len(rows), self.dtype)

        def gather(start: int, stop: int) -> None:
            ids, pairs = sets.ids[start:stop], rows[start:stop]
            packed = Packed.of(self.inputs, self.layer.weights.dtype, 1, chosen=pairs, prepare=self.layer.norm)
            logits[start:stop] = self._paired(packed, ids)

        run_threads(gather, len(rows), _UNIT_ROWS, num_threads)
        sizes = np.diff(sets.offsets)
        step = max(1, _SPARSE_TILE // max(1, int(sizes.max(initial=1))))
        for start in range(0, len(marks), step):  # a tile of the listed logits alone: class k is the k-th of its row
            stop = min(start + step, len(marks))
            first, last = sets.offsets[start], sets.offsets[stop]
            offsets = sets.offsets[start : stop + 1] - first
            places = np.arange(last - first) - np.repeat(offsets[:-1], sizes[start:stop])
            tile = np.zeros((stop - start, max(1, int(sizes[start:stop].max(initial=1)))), self.dtype)
            tile[rows[first:last] - start, places] = logits[first:last]
            span, listed = (0, tile.shape[1]), probabilities[first:last]
            soft_labels.rows_sparse_labels(
                kernel_view(tile), marks[start:stop], offsets, places, listed, transform, span, sums[start:stop]
            )

    def _blocks(self, rows: Ids, num_threads: int, columns: int) -> Iterator[tuple[Ids, Packed]]:
        """The rows in blocks that fit the memory, packed; the layer is read once for each."""
        row_bytes = self.inputs.shape[1] * self.dtype.itemsize + 8 * columns * (self.groups + 2)
        step = max(12, self.layer.block_bytes // row_bytes // 12 * 12)
        for start in range(0, len(rows), step):
            chosen, layer = rows[start : start + step], self.layer
            yield chosen, Packed.of(self.inputs, layer.weights.dtype, num_threads, chosen=chosen, prepare=layer.norm)

    def _label_logits(self, packed: Packed, labels: Ids, num_threads: int) -> Floats:
        """The logit of each row's label, by the steps of the tiles' product; NaN for a row without a label."""
        out = np.full(packed.rows, np.nan)

        def work(start: int, stop: int) -> None:
            ids = labels[start:stop]
            if (ids >= 0).any():
                logits = self._paired(packed.part(start, stop), np.maximum(ids, 0))
                out[start:stop] = np.where(ids >= 0, logits, np.nan)

        run_threads(work, packed.rows, _UNIT_ROWS, num_threads)
        return out

    def _paired(self, packed: Packed, ids: Ids) -> Array:
        """The logit of each packed row for the class beside it."""
        biases = self.layer._biases
        return paired(packed, self.layer.weights[ids], None if biases is None else biases[ids])

    def _sweep(self, packed: Packed, reduce: Callable[..., None], num_threads: int) -> None:
        """Call reduce(group, start, stop, (first class, classes), logits) for all tiles, in order within a group."""
        layer, biases = self.layer, self.layer.padded_biases(self.dtype)
        step = _unit_rows(packed.rows, self.groups, num_threads)
        ranges = -(-packed.rows // step)
        faults, lock = [], threading.Lock()

        def work(unit: int, _: int) -> None:
            group, start = unit // ranges, unit % ranges * step
            rows = packed.part(start, min(start + step, packed.rows))
            tile, panel = rows.tile(TILE), rows.panel()
            logits = kernel_view(tile)
            for first in range(group * GROUP, min((group + 1) * GROUP, layer.num_classes), TILE):
                stop = min(first + TILE, layer.num_classes)
                for at, weights in layer.parts(first, stop):
                    fault = rows.multiply(weights, biases[at:], panel, tile, at - first)
                    if fault >= 0:
                        with lock:
                            faults.append(at + fault)
                reduce(group, start, start + rows.rows, (first, stop - first), logits)

        run_threads(work, self.groups * ranges, 1, num_threads)
        layer.bytes_read += layer.weights.nbytes // layer.shape[0] * layer.num_classes
        if faults and layer.strict:
            layer.refuse_nonfinite(min(faults), min(min(faults) + TILE, layer.num_classes))


class LinearMatrix:
    """Logits (N, V) that no one stores: hidden states and a layer, with what an evaluator uses of `Matrix`."""

    def __init__(self, inputs: Matrix, layer: OutputLayer) -> None:
        self.inputs, self.layer = inputs, layer
        self.name = shown_as("inputs", inputs)
        if inputs.ndim != 2:
            raise BigvocabError(f"{self.name}: expected 2 dimensions, (rows, hidden size), got shape {inputs.shape}")
        layer.check_depth(inputs.shape[1], self.name)
        self.shape = (len(inputs), layer.num_classes)
        self.nbytes = inputs.nbytes
        self.files = [*inputs.files, *layer.files]
        self._read_before = layer.bytes_read

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def layer_bytes_read(self) -> int:
        """Bytes of the layer read for these rows so far: the layer once for each block."""
        return self.layer.bytes_read - self._read_before

    def row_parts(self, start: int, stop: int) -> Iterator[tuple[int, Any]]:
        """Rows `start` to `stop`, all at once: the layer is not read again where a file of hidden states ends."""
        if start < stop:
            yield start, LinearRows(self.layer, self.inputs[start:stop], self.name)

    def release(self, start: int, stop: int) -> None:
        """Let go of the pages of these rows and of the layer's."""
        self.inputs.release(start, stop)
        self.layer.weights.release(0, len(self.layer.weights))

    def check(self) -> None:
        """Raise FormatError if a file has shrunk, was written to or was replaced since it was opened."""
        self.inputs.check()
        for matrix in self.layer.matrices():
            matrix.check()


def kernel_labels(labels: Array, rows: Ids, span: tuple[int, int]) -> Array:
    """Dense labels of some rows and a span (first class, classes), as kernels take them."""
    first, classes = span
    together = rows[-1] - rows[0] == len(rows) - 1  # rows rise
    picked = slice(rows[0], rows[-1] + 1) if together else rows
    part = labels[picked, first : first + classes]
    return kernel_view(part if part.dtype.name in FLOATS else part.astype(np.float64))


def _chosen_sets(sets: IdSets, rows: Ids) -> IdSets:
    """The sets of these rows, which rise."""
    if len(rows) == sets.num_rows:
        return sets
    sizes = np.diff(sets.offsets)
    kept = np.zeros(sets.num_rows, bool)
    kept[rows] = True
    return IdSets(np.concatenate([[0], np.cumsum(sizes[rows])]), sets.ids[np.repeat(kept, sizes)])


def _unit_rows(rows: int, groups: int, num_threads: int) -> int:
    """Rows of a unit: up to 480, fewer where the groups alone do not feed the threads. No result depends on it."""
    step = _UNIT_ROWS
    while step > 48 and groups * -(-rows // step) < 4 * num_threads:
        step //= 2
    return max(12, step // 12 * 12)
