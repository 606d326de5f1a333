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

import contextlib
import threading
from collections.abc import Iterator

import numpy as np

from bigvocab.errors import BigvocabError
from bigvocab.heads.output_layer import OutputLayer, shown_as
from bigvocab.heads.products import Packed, accumulator, paired_stored
from bigvocab.matrices.excluded import Excluded, nothing_in
from bigvocab.matrices.logit_rows import Array, Floats, Ids, RowReduction, State
from bigvocab.matrices.matrix import Matrix
from bigvocab.matrices.tiles import kernel_view
from bigvocab.threads import run_threads

TILE = 1024  # classes; with the group it decides how sums are split, so changing it changes last bits
GROUP = 16 * TILE
UNIT_ROWS = 480  # of a thread's turn: 480 x 1,024 float32 logits are 1.9 MiB; no result depends on it
# Multiplications of a block of a job, some seconds of two cores, but never so few rows that reading the layer once for
# each block would count; a layer that may not stay in memory is read for as many rows as fit.
_BLOCK_PRODUCTS, _LEAST_ROWS, _KEPT_LAYER = 10**12, 1920, 8 << 30


class LinearRows:
    """Rows of logits that are made while they are read: a block of hidden states (N, D) and an output layer."""

    def __init__(
        self, layer: OutputLayer, inputs: Array, name: str = "inputs", excluded: Excluded | None = None
    ) -> None:
        layer.check_depth(inputs.shape[1], name)
        self.layer, self.inputs, self.excluded = layer, inputs, excluded
        self.dtype = accumulator(inputs.dtype, layer.weights.dtype)
        self.num_classes = layer.num_classes
        self.groups = -(-layer.num_classes // GROUP)

    def __len__(self) -> int:
        return len(self.inputs)

    def reduce(self, reduction: RowReduction, num_threads: int) -> State:
        """The state of all rows; the layer is read once for each block of those that are not skipped."""
        state = reduction.state(len(self))
        reduction.clear(state)
        for chosen, packed in self._blocks(np.flatnonzero(~reduction.skip), num_threads, reduction.columns):
            if reduction.lookup is not None:
                reduction.found[chosen] = self._looked_up(packed, reduction.lookup[chosen], num_threads)
            groups = reduction.state(self.groups, len(chosen))
            reduction.clear(groups)
            self._sweep(packed, chosen, reduction, groups, num_threads)
            merged = tuple(array[chosen] for array in state)
            reduction.merge(groups, merged)
            for array, part in zip(state, merged, strict=True):
                array[chosen] = part
        return state

    def gather(self, rows: Ids, classes: Ids, num_threads: int) -> Array:
        """The logit of each pair (rows[i], classes[i]), by the steps of the tiles' product."""
        out = np.empty(len(rows), self.dtype)

        def work(start: int, stop: int) -> None:
            chosen, layer = rows[start:stop], self.layer
            packed = Packed.of(self.inputs, layer.weights.factor_dtype, 1, chosen=chosen, prepare=layer.norm)
            out[start:stop] = self._paired(packed, classes[start:stop])

        run_threads(work, len(rows), UNIT_ROWS, num_threads)
        if self.excluded is not None:
            out[self.excluded.holds(rows, classes)] = -np.inf
        return out

    def classes(self, first: int, stop: int) -> LinearRows:
        """The same rows with classes `first` to `stop` of the layer alone."""
        if (first, stop) == (0, self.num_classes):
            return self
        excluded = None if self.excluded is None else self.excluded.classes(first, stop)
        return LinearRows(self.layer.classes(first, stop), self.inputs, excluded=excluded)

    def without(self, excluded: Excluded) -> LinearRows:
        """The same rows as if the logits of some classes were -inf: put there before a tile is reduced."""
        return LinearRows(self.layer, self.inputs, excluded=excluded)

    def _blocks(self, rows: Ids, num_threads: int, columns: int) -> Iterator[tuple[Ids, Packed]]:
        """The rows in blocks that fit the memory, packed; the layer is read once for each."""
        row_bytes = self.inputs.shape[1] * self.dtype.itemsize + 8 * columns * (self.groups + 2)
        step = max(12, self.layer.block_bytes // row_bytes // 12 * 12)
        for start in range(0, len(rows), step):
            chosen, layer = rows[start : start + step], self.layer
            kind = layer.weights.factor_dtype
            yield chosen, Packed.of(self.inputs, kind, num_threads, chosen=chosen, prepare=layer.norm)

    def _looked_up(self, packed: Packed, labels: Ids, num_threads: int) -> Floats:
        """The logit of each row's label, by the steps of the tiles' product; NaN for a row without a label."""
        out = np.full(packed.rows, np.nan)

        def work(start: int, stop: int) -> None:
            ids = labels[start:stop]
            if (ids >= 0).any():
                logits = self._paired(packed.part(start, stop), np.maximum(ids, 0))
                out[start:stop] = np.where(ids >= 0, logits, np.nan)

        run_threads(work, packed.rows, UNIT_ROWS, num_threads)
        return out

    def _paired(self, packed: Packed, ids: Ids) -> Array:
        """The logit of each packed row for the class beside it."""
        biases = self.layer.biases
        return paired_stored(packed, self.layer.weights.picked_rows(ids), None if biases is None else biases[ids])

    def _sweep(self, packed: Packed, chosen: Ids, reduction: RowReduction, groups: State, num_threads: int) -> None:
        """Add the logits of all tiles to the state of their group, in order of class within a group."""
        from bigvocab.kernels.hidden import hide_in_tile

        layer, biases = self.layer, self.layer.padded_biases(self.dtype)
        step = _unit_rows(packed.rows, self.groups, num_threads)
        ranges = -(-packed.rows // step)
        faults, lock = [], threading.Lock()

        def work(unit: int, _: int) -> None:
            group, start = unit // ranges, unit % ranges * step
            rows = packed.part(start, min(start + step, packed.rows))
            mine = slice(start, start + rows.rows)
            ids, state = _as_slice(chosen[mine]), tuple(array[group, mine] for array in groups)
            tile, panel = rows.tile(TILE), rows.panel()
            logits, nothing = kernel_view(tile), nothing_in(tile)
            hidden = None if self.excluded is None else self.excluded.of_rows(ids)
            for first in range(group * GROUP, min((group + 1) * GROUP, layer.num_classes), TILE):
                stop = min(first + TILE, layer.num_classes)
                for at, weights in layer.parts(first, stop):
                    fault = rows.multiply_stored(weights, biases[at:], panel, tile, at - first)
                    if fault >= 0:
                        with lock:
                            faults.append(at + fault)
                if hidden is not None:
                    hide_in_tile(tile, (first, stop - first), *hidden, nothing)
                reduction.add(logits, (first, stop - first), ids, state)

        run_threads(work, self.groups * ranges, 1, num_threads)
        layer.bytes_read += layer.weights.nbytes // layer.shape[0] * layer.num_classes
        if faults and layer.strict:
            layer.refuse_nonfinite(min(faults), min(min(faults) + TILE, layer.num_classes))


class LinearMatrix:
    """Logits (N, V) that no one stores: hidden states and a layer, as a `LogitSource`."""

    role = "inputs"
    kernels = ("convert", "merge", "panels", "products")
    in_one_piece = False
    row_by_row = False
    classes_apart = False

    def __init__(self, inputs: Matrix, layer: OutputLayer) -> None:
        self.inputs, self.layer = inputs, layer
        self.name = shown_as("inputs", inputs)
        if inputs.ndim != 2:
            raise BigvocabError(f"{self.name}: expected 2 dimensions, (rows, hidden size), got shape {inputs.shape}")
        layer.check_depth(inputs.shape[1], self.name)
        self.shape: tuple[int, ...] = (len(inputs), layer.num_classes)
        self.dtype = accumulator(inputs.dtype, layer.weights.dtype)
        self.nbytes = inputs.nbytes
        self.files = [*inputs.files, *layer.files]
        self._read_before = layer.bytes_read

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def stored(self) -> Matrix:
        """The hidden states."""
        return self.inputs

    @property
    def bytes_read_beside(self) -> int:
        """Bytes of the layer read for these rows so far: the layer once for each block."""
        return self.layer.bytes_read - self._read_before

    def rows(self, start: int, stop: int) -> Iterator[tuple[int, LinearRows]]:
        """Rows `start` to `stop`, all at once: the layer is not read again where a file of hidden states ends."""
        if start < stop:
            yield start, LinearRows(self.layer, self.inputs[start:stop], self.name)

    def row_files(self) -> list[tuple[int, str]]:
        """(first row, path) of each file of hidden states."""
        return self.inputs.row_files()

    def class_edges(self) -> list[int]:
        """The first class of each file of the layer."""
        return self.layer.weights.part_edges()

    def block_rows(self, rows: int) -> int:
        """As many rows as take some seconds, where the layer stays in memory between blocks."""
        if self.layer.weights.nbytes > _KEPT_LAYER:
            return rows
        products = self.inputs.shape[1] * self.shape[1]
        return min(rows, max(_LEAST_ROWS, _BLOCK_PRODUCTS // products // _LEAST_ROWS * _LEAST_ROWS))

    def prefetch(self, start: int, stop: int, ended: threading.Event) -> None:
        """Nothing: the products take longer than reading hidden states."""

    @contextlib.contextmanager
    def reading_once(self) -> Iterator[None]:
        """Nothing is let go of meanwhile: the layer is read again for the next block."""
        yield

    def release(self, start: int, stop: int) -> None:
        """Let go of the pages of these rows and of the layer's."""
        self.inputs.release(start, stop)
        self.layer.weights.release(0, len(self.layer.weights))

    def check(self) -> None:
        """Raise FormatError if a file has shrunk, was written to or was replaced since it was opened."""
        self.inputs.check()
        for matrix in self.layer.matrices():
            matrix.check()


def _as_slice(rows: Ids) -> slice | Ids:
    """Rows, which rise, as a slice where they lie together: views of them are no copies."""
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first == len(rows) - 1 else rows


def _unit_rows(rows: int, groups: int, num_threads: int) -> int:
    """Rows of a unit: up to 480, fewer where the groups alone do not feed the threads. No result depends on it."""
    step = UNIT_ROWS
    while step > 48 and groups * -(-rows // step) < 4 * num_threads:
        step //= 2
    return max(12, step // 12 * 12)
