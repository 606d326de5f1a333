"""Sampled logits of rows, tile by tile: true and sampled classes of an output layer, reduced to losses.

Only S + N T rows of the layer are looked at. Candidates are counted in tiles of 1,024 from the first; a tile's rows of
the layer are gathered, multiplied with the packed hidden states into a buffer that stays in the cache, accidental hits
become -inf there (which adds 0 to either sum), and the kernels that read stored logits reduce it. Tiles are merged in
order, so no result depends on the number of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.heads.layer_shards import picked_at_random
from bigvocab.heads.products import Packed, accumulator, converted, lanes, paired
from bigvocab.kernels import random as random_kernels
from bigvocab.labels.ragged import RaggedIds
from bigvocab.matrices.tiles import kernel_view
from bigvocab.threads import run_threads

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

TILE = 1024  # candidates; changing it changes last bits
_UNIT_ROWS = 528  # so that 512 are multiplied with a panel of weights at once
_PAIRS = 264  # true ids of a turn of a thread: a multiple of the 12 rows of a panel
_KEPT_BYTES = 8 << 20
BLOCK_BYTES = 64 << 20  # of packed rows and their statistics, while the candidates' rows are gathered once


@dataclass(frozen=True)
class Head:
    """An output layer of which rows are picked: `weights[ids]` is (n, D), `biases[ids]` (n,); `norm` comes first."""

    weights: Any
    biases: Any = None
    norm: Callable[[Array], Array] | None = None

    def biases_of(self, ids: Ids) -> Floats:
        """The biases of these classes; zeros where there are none."""
        return np.zeros(len(ids)) if self.biases is None else converted(np.asarray(self.biases[ids]), np.float64)


@dataclass(frozen=True)
class Draw:
    """Candidates (S,) of a batch of rows, and log Q of its true ids, flat, and of the candidates; zeros leave Q out."""

    candidates: Ids
    true_log_q: Floats
    sampled_log_q: Floats


_rooms = threading.local()


def _room(name: str, shape: tuple[int, int], dtype: np.dtype[Any]) -> Array:
    """Room of this thread for one purpose, kept for the next time: fresh pages would cost a tenth of the product."""
    size = shape[0] * shape[1] * dtype.itemsize
    held: Array | None = getattr(_rooms, name, None)
    if held is None or held.nbytes < size:
        held = np.empty(size, np.uint8)
        if size <= _KEPT_BYTES:
            setattr(_rooms, name, held)
    return held[:size].view(dtype).reshape(shape)


class SampledRows:
    """Rows of sampled logits that are made while they are read.

    Args:
        head: the output layer.
        inputs: (N, D) hidden states.
        true: the true classes of the rows.
        draw: the candidates.
        remove_hits: leave a candidate out of the rows that have it as a true class.
        num_threads: no result depends on it.

    `statistics` and `softplus_sums` leave the logits x . w + b of the true ids in `logits_of_true`, flat, without any
    correction.
    """

    def __init__(
        self, head: Head, inputs: Array, true: RaggedIds, draw: Draw, *, remove_hits: bool, num_threads: int
    ) -> None:
        self.head, self.inputs, self.true, self.draw = head, inputs, true, draw
        self.num_threads = num_threads
        self.dtype = accumulator(inputs.dtype, head.weights.dtype)
        self._one_array = head.weights.one_array()
        self.tiles = -(-len(draw.candidates) // TILE)
        self._hits = self._found_hits() if remove_hits else None
        self.logits_of_true = np.empty(len(true.ids))
        self._one_each = len(true.ids) == len(inputs) and bool((np.diff(true.offsets) == 1).all())

    def __len__(self) -> int:
        return len(self.inputs)

    def _found_hits(self) -> tuple[Ids, Ids, Ids]:
        """Accidental hits as (rows, positions) sorted by tile, then row; and where each tile's begin."""
        hits = random_kernels.accidental_hits(self.true.offsets, self.true.ids, self.draw.candidates)
        hits.sort()
        rows, positions = np.divmod(hits, len(self.draw.candidates))
        order = np.argsort(positions // TILE, kind="stable")
        rows, positions = rows[order], positions[order]
        return rows, positions, np.searchsorted(positions // TILE, np.arange(self.tiles + 1))

    @cached_property
    def true_rows(self) -> Ids:
        """The row of each true id."""
        return np.repeat(np.arange(len(self)), np.diff(self.true.offsets))

    def statistics(self) -> tuple[Floats, Floats]:
        """Maximum of the candidates' logits of each row, and the sum of exp(logit - maximum)."""
        from bigvocab.kernels import row_statistics, softmax

        top, total = np.empty(len(self)), np.empty(len(self))
        for first, packed in self._blocks(row_statistics.COLUMNS):
            parts = np.empty((self.tiles, packed.rows, row_statistics.COLUMNS))
            row_statistics.clear_statistics(parts.reshape(-1, row_statistics.COLUMNS))
            labels, nothing = np.full(packed.rows, row_statistics.NO_LABEL), np.zeros(packed.rows)

            def reduce(
                tile: int, start: int, stop: int, classes: int, logits: Array,
                parts: Array = parts, labels: Ids = labels, nothing: Floats = nothing,
            ) -> None:  # fmt: skip
                mine = slice(start, stop)
                softmax.rows_softmax(logits, labels[mine], nothing[mine], 1.0, 0, None, (0, classes), parts[tile, mine])

            self._sweep(first, packed, reduce)
            mine = slice(first, first + packed.rows)
            top[mine], total[mine] = _merged(parts[:, :, row_statistics.MAX], parts[:, :, row_statistics.SUM])
        return top, total

    def softplus_sums(self) -> Floats:
        """The sum of softplus(logit) over the candidates of each row."""
        from bigvocab.kernels import sigmoid

        sums, no_ids, one = np.zeros(len(self)), np.zeros(0, np.int64), np.ones(1)
        for first, packed in self._blocks(1):
            parts = np.zeros((self.tiles, packed.rows))
            kept, no_sets = np.zeros(packed.rows, bool), np.zeros(packed.rows + 1, np.int64)

            def reduce(
                tile: int, start: int, stop: int, classes: int, logits: Array,
                parts: Array = parts, kept: Array = kept, no_sets: Ids = no_sets,
            ) -> None:  # fmt: skip
                mine, out = slice(start, stop), parts[tile, start:stop]
                sets = no_sets[start : stop + 1]
                sigmoid.rows_softplus(logits, kept[mine], sets, no_ids, one, (1.0, 0.0), (0, classes), out)

            self._sweep(first, packed, reduce)
            for part in parts:  # in order of tile
                sums[first : first + packed.rows] += part
        return sums

    def _blocks(self, columns: int) -> Any:
        """The rows in blocks that fit the memory, packed: (first row, Packed)."""
        row_bytes = self.inputs.shape[1] * self.dtype.itemsize + 8 * columns * (self.tiles + 2)
        step = max(12, BLOCK_BYTES // row_bytes // 12 * 12)
        for start in range(0, len(self), step):
            rows = self.inputs[start : start + step]
            threads = (
                self.num_threads if len(rows) > 4 * _UNIT_ROWS else 1
            )  # waking a thread takes as long as packing few
            yield start, Packed.of(rows, self.head.weights.dtype, threads, prepare=self.head.norm)

    def _sweep(self, first_row: int, packed: Packed, reduce: Callable[..., None]) -> None:
        """Call reduce(tile, start, stop, classes, logits) for all tiles of these rows; start counts in the block."""
        step = packed.rows
        while step > 48 and self.tiles * -(-packed.rows // step) < 2 * self.num_threads:
            step //= 2
        step = max(12, -(-step // 12) * 12)
        ranges = -(-packed.rows // step)
        width = min(TILE, len(self.draw.candidates))

        addends = np.zeros(len(self.draw.candidates) + lanes(packed.dtype), packed.dtype)  # padded for the kernel
        addends[: len(self.draw.candidates)] = self.head.biases_of(self.draw.candidates) - self.draw.sampled_log_q
        begin, end = (int(self.true.offsets[row]) for row in (first_row, first_row + packed.rows))
        pairs = -(-(end - begin) // _PAIRS)  # units that make logits of true ids: short, so they come last

        def work(unit: int, _: int) -> None:
            if unit >= self.tiles * ranges:
                start = begin + (unit - self.tiles * ranges) * _PAIRS
                self._pair(first_row, packed, start, min(start + _PAIRS, end))
                return
            tile, first = unit // ranges, unit % ranges * step
            candidates = self.draw.candidates[tile * TILE : (tile + 1) * TILE]
            weights, ids = self._picked(candidates)
            addend = addends[tile * TILE :]
            height = -(-min(step, _UNIT_ROWS, packed.rows) // 12) * 12
            logits = _room("logits", (height, width + lanes(packed.dtype)), packed.dtype)
            panel = packed.panel()
            for start in range(first, min(first + step, packed.rows), _UNIT_ROWS):
                rows = packed.part(start, min(start + _UNIT_ROWS, first + step, packed.rows))
                rows.multiply(weights, addend, panel, logits, ids=ids)
                self._leave_out_hits(tile, first_row + start, rows.rows, logits)
                reduce(tile, start, start + rows.rows, len(candidates), kernel_view(logits))

        run_threads(work, pairs + self.tiles * ranges, 1, self.num_threads)

    def _pair(self, first_row: int, packed: Packed, start: int, stop: int) -> None:
        """Make `logits_of_true` from `start` to `stop`; their rows begin with the first of `packed`."""
        if self._one_each:
            rows = packed.part(start - first_row, stop - first_row)
        else:
            chosen = self.true_rows[start:stop]
            rows = Packed.of(self.inputs, self.head.weights.dtype, 1, chosen=chosen, prepare=self.head.norm)
        classes = self.true.ids[start:stop]
        weights, ids = self._picked(classes)
        self.logits_of_true[start:stop] = paired(rows, weights, self.head.biases_of(classes), ids)

    def _picked(self, classes: Ids) -> tuple[Array, Ids | None]:
        """Rows of the layer for these classes, as (array, which of its rows): only shards have to be copied."""
        if self._one_array is not None:
            return self._one_array, classes
        return np.asarray(self.head.weights[classes]), None

    def _leave_out_hits(self, tile: int, first: int, count: int, logits: Array) -> None:
        if self._hits is None:
            return
        hit_rows, positions, bounds = self._hits
        a, b = bounds[tile], bounds[tile + 1]
        rows = hit_rows[a:b]
        begin, end = rows.searchsorted(first), rows.searchsorted(first + count)
        if begin == end:
            return
        logits[rows[begin:end] - first, positions[a + begin : a + end] - tile * TILE] = -np.inf


def _merged(tops: Floats, sums: Floats) -> tuple[Floats, Floats]:
    """Maximum and sum of exp(logit - maximum) of each row, of those (tiles, rows) of its tiles, in their order."""
    top = tops.max(axis=0)
    with np.errstate(invalid="ignore"):
        gaps = np.where(tops == top, 0.0, tops - top)
    total = np.zeros(top.shape)
    for part in sums * np.exp(gaps):  # NumPy's sum has another order where there is one row
        total += part
    return top, total


def softmax_losses(rows: SampledRows) -> Floats:
    """Log sum exp of the row's true and sampled logits, less the mean of the true ones, of which each row has one."""
    if not len(rows):
        return np.zeros(0)
    with picked_at_random(rows.head.weights):
        top, total = rows.statistics()
        true = rows.logits_of_true - rows.draw.true_log_q
    return _softmax_of(top, total, true, rows.true.offsets)


def _softmax_of(top: Floats, total: Floats, true: Floats, offsets: Ids) -> Floats:
    owner, counts = np.repeat(np.arange(len(top)), np.diff(offsets)), np.diff(offsets)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        highest = np.maximum(top, np.maximum.reduceat(true, offsets[:-1]))
        total = total * np.exp(np.where(top == highest, 0.0, top - highest))
        above = highest[owner]
        total += np.bincount(owner, np.exp(np.where(true == above, 0.0, true - above)), len(top))
        return (highest - np.bincount(owner, true, len(top)) / counts) + np.log(total)


def exact_softmax_losses(top: Floats, total: Floats, true: Floats, offsets: Ids) -> Floats:
    """Log sum exp over all classes, given as maximum and sum, less the mean of the row's true logits."""
    owner, counts = np.repeat(np.arange(len(top)), np.diff(offsets)), np.diff(offsets)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (top - np.bincount(owner, true, len(top)) / counts) + np.log(total)


def nce_losses(rows: SampledRows, true_label: str) -> Floats:
    """Sum of sigmoid losses of the row's true logits, with target 1 / T or 1, and of its sampled ones, with 0."""
    with picked_at_random(rows.head.weights):
        sums = rows.softplus_sums()
        true = rows.logits_of_true - rows.draw.true_log_q
    return sums + true_sigmoid_sums(true, rows.true.offsets, true_label)


def true_sigmoid_sums(true: Floats, offsets: Ids, true_label: str) -> Floats:
    """Sum of z softplus(-t) + (1 - z) softplus(t) over the true logits t of each row."""
    counts = np.diff(offsets)
    owner = np.repeat(np.arange(len(counts)), counts)
    z = 1.0 / counts[owner] if true_label == "uniform" else np.ones(len(owner))
    with np.errstate(invalid="ignore"):
        losses = z * np.logaddexp(0.0, -true) + np.where(z == 1.0, 0.0, (1.0 - z) * np.logaddexp(0.0, true))
    return np.bincount(owner, losses, len(counts)).astype(np.float64, copy=False)  # int64 where there is no id at all
