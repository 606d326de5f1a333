"""The linear head: statistics of the logits g(x . w + b) of hidden states and an output layer, and no (N, V) array ever.

How the work lies. Rows are packed in blocks, as many as fit the memory; for each block the layer is read once. A unit of work is a group of 16,384 classes with up to
480 rows; threads share units. A unit makes logits tile by tile, 1,024 classes at a time, into a buffer that stays in the cache of its core, and the same kernels that read
stored logits reduce the tile there. Groups are merged in order of class.

What holds. A logit's bits depend on its row and its class alone (kernels/products.py), tiles and groups are counted from class 0 of the layer, and a row is never
split by rows: so no result depends on threads, chunks, shards of a job, the files of the layer or the machine's number of cores. The label's
logit is needed before its tile is met, to count ranks: it is made from the gathered row of the layer by the very steps of the tile's product, so it is the same number,
losses are >= 0 and ties are exact.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab import checks, parallel
from bigvocab.errors import BigvocabError
from bigvocab.losses import Floats, SparseSoftmax, _reduced, sparse_softmax_formula
from bigvocab.matrix import Matrix, as_matrix
from bigvocab.products import Packed, accumulator, converted, lanes, paired
from bigvocab.reductions import broadcast_weights, check_reduction
from bigvocab.rows import RowStatistics, kernel_view, wanted

Array = npt.NDArray[Any]
Ids = npt.NDArray[np.int64]

TILE = 1024  # classes; with the group it decides how sums are split, so changing it changes last bits
GROUP = 16 * TILE
_UNIT_ROWS = 480  # 480 x 1,024 float32 logits are 1.9 MiB
_BLOCK_BYTES = 64 << 20  # of packed rows and their statistics

NORMS = ("rms", "layer")


class FinalNorm:
    """The norm between the last block of a model and its output layer, for states that were stored before it.

    rms: x / sqrt(mean x^2 + epsilon) * weight; layer: (x - mean x) / sqrt(var x + epsilon) * weight + bias. Computed in float64 and rounded once to the type that
    products are summed in. Models whose RMS norm multiplies by 1 + weight (Gemma) need 1 + weight here.
    """

    def __init__(self, kind: str, depth: int, weight: Any = None, bias: Any = None, epsilon: float = 1e-6) -> None:
        if kind not in NORMS:
            raise BigvocabError(f"final_norm: got {kind!r}, expected one of {', '.join(NORMS)}")
        if kind == "rms" and bias is not None:
            raise BigvocabError('norm_bias: final_norm="rms" has none; expected it with "layer" alone')
        self.kind = kind
        self.weight = np.ones(depth) if weight is None else _vector_of("norm_weight", weight, depth)
        self.bias = np.zeros(depth) if bias is None else _vector_of("norm_bias", bias, depth)
        self.epsilon = checks.real("norm_epsilon", epsilon)
        if not 0 <= self.epsilon < np.inf:
            raise BigvocabError(f"norm_epsilon: got {epsilon}, expected a finite number of at least 0")

    def __call__(self, rows: Array) -> Array:
        """The rows (n, D), normed, in their own type."""
        from bigvocab.kernels.norms import rows_norm

        out = np.empty_like(rows)
        rows_norm(kernel_view(rows), self.kind == "layer", self.weight, self.bias, self.epsilon, out)
        return out


def _vector_of(name: str, values: Any, size: int) -> Floats:
    """A vector from an array or a file, as float64."""
    matrix = as_matrix(values)
    shown = _shown(name, matrix)
    if matrix.shape != (size,):
        raise BigvocabError(f"{shown}: got shape {matrix.shape}, expected ({size},), one for each column of the inputs")
    vector = converted(np.asarray(matrix), np.float64)
    if not np.isfinite(vector).all():
        bad = int(np.argmin(np.isfinite(vector)))
        raise BigvocabError(f"{shown}: column {bad} is {vector[bad]}, expected a finite number")
    return vector


def _shown(name: str, matrix: Matrix) -> str:
    """How messages call a matrix: by its file and tensor, where it is one, and its part in the task."""
    path = matrix.files[0]["path"]
    return name if path == "<array>" else f"{path} ({name})"


class OutputLayer:
    """Weights (V, D) and biases (V,) of an output layer, as arrays or mapped files of any float type, and the final norm before it.

    Args:
        weights: array, path or Matrix; several files are split by classes.
        biases: the same, (V,).
        num_classes: classes that count; the rows of `weights` behind are padding.
        final_norm: None, "rms" or "layer", with norm_weight (D,), norm_bias (D,), norm_epsilon.
        strict: raise where a class holds a NaN or an infinity; else it goes into the logits.

    >>> import numpy as np
    >>> layer = OutputLayer(np.eye(3, dtype=np.float32), np.zeros(3, np.float32), num_classes=2)
    >>> layer.shape, layer.num_classes
    ((3, 3), 2)
    """

    def __init__(
        self,
        weights: Any,
        biases: Any = None,
        *,
        num_classes: int | None = None,
        final_norm: str | None = None,
        norm_weight: Any = None,
        norm_bias: Any = None,
        norm_epsilon: float = 1e-6,
        strict: bool = False,
    ) -> None:
        self.weights = as_matrix(weights)
        self.name = _shown("weights", self.weights)
        if self.weights.ndim != 2:
            raise BigvocabError(f"{self.name}: expected 2 dimensions, (classes, hidden size), got shape {self.weights.shape}")
        self.shape = self.weights.shape
        self.num_classes = self.shape[0] if num_classes is None else num_classes
        if not 1 <= self.num_classes <= self.shape[0]:
            raise BigvocabError(f"num_classes: got {num_classes:,}, but {self.name} has {self.shape[0]:,} classes")
        self.strict = strict
        self._vectors = {"biases": biases, "norm_weight": norm_weight, "norm_bias": norm_bias}
        self.files = list(self.weights.files)
        for name, value in self._vectors.items():
            if value is not None:
                self._vectors[name] = as_matrix(value)
                self.files += self._vectors[name].files
        self._biases = self._checked_biases()
        if final_norm is None and (norm_weight is not None or norm_bias is not None):
            raise BigvocabError('norm_weight: needs final_norm, expected "rms" or "layer" beside it')
        weight, bias = self._vectors["norm_weight"], self._vectors["norm_bias"]
        self.norm = None if final_norm is None else FinalNorm(final_norm, self.shape[1], weight, bias, norm_epsilon)
        self.block_bytes = _BLOCK_BYTES
        self.bytes_read = 0

    def _checked_biases(self) -> Array | None:
        matrix = self._vectors["biases"]
        if matrix is None:
            return None
        shown = _shown("biases", matrix)
        if matrix.shape != (self.shape[0],):
            expected = f"({self.shape[0]},), one for each row of {self.name}"
            raise BigvocabError(f"{shown}: got shape {matrix.shape}, expected {expected}")
        biases = converted(np.asarray(matrix))[: self.num_classes]
        bad = np.isnan(biases) | (biases == np.inf)
        if self.strict and bad.any():
            c = int(np.argmax(bad))
            raise BigvocabError(f"{shown}: class {c} is {biases[c]}, expected a finite number, or -inf for a masked class")
        return biases

    def check_depth(self, columns: int, name: str) -> None:
        """Raise unless the hidden states have as many columns as the layer."""
        if columns != self.shape[1]:
            raise BigvocabError(
                f"{name}: has {columns:,} columns, but {self.name} has {self.shape[1]:,}, "
                "expected the same hidden size in both"
            )

    def padded_biases(self, dtype: Any) -> Array:
        """Biases of the classes that count, in the accumulator's type, and zeros behind them for the kernel."""
        padded = np.zeros(self.num_classes + TILE + lanes(dtype), dtype)
        if self._biases is not None:
            padded[: self.num_classes] = self._biases
        return padded

    def parts(self, first: int, stop: int) -> Iterator[tuple[int, Array]]:
        """Classes `first` to `stop` as (first class, rows of the layer), as they lie in its files."""
        for start, tiles in self.weights.row_parts(first, stop):
            yield start, tiles[0][1]

    def refuse_nonfinite(self, first: int, stop: int) -> None:
        """Raise for the first class of a range that holds a NaN or an infinity."""
        for start, rows in self.parts(first, stop):
            finite = np.isfinite(converted(rows))
            if not finite.all():
                row, column = (int(i) for i in np.argwhere(~finite)[0])
                value = converted(rows[row : row + 1])[0, column]
                raise BigvocabError(
                    f"{self.name}: class {start + row} has {value} in column {column}, expected finite weights"
                )


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
        """As `rows.softmax_rows` of the logits written out: label -1 leaves its row out, -2 reads a row that has no label."""
        from bigvocab.kernels import merge, softmax

        columns, label_logits = np.empty((len(labels), softmax.COLUMNS)), np.full(len(labels), np.nan)
        softmax.clear_statistics(columns)
        for chosen, packed in self._blocks(np.flatnonzero(labels != softmax.SKIP), num_threads, softmax.COLUMNS):
            ids = labels[chosen]
            found = self._label_logits(packed, ids, num_threads)
            groups = np.empty((self.groups, len(chosen), softmax.COLUMNS))
            softmax.clear_statistics(groups.reshape(-1, softmax.COLUMNS))

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
        from bigvocab.kernels import softmax

        sums = np.zeros(len(labels))
        for chosen, packed in self._blocks(np.flatnonzero(labels != softmax.SKIP), num_threads, 1):
            ids, groups = labels[chosen], np.zeros((self.groups, len(chosen)))

            def reduce(
                group: int, start: int, stop: int, span: tuple[int, int], tile: Array, ids: Ids = ids, groups: Floats = groups
            ) -> None:
                part = weights[span[0] : span[0] + span[1]]
                softmax.rows_weighted_sum(tile, ids[start:stop], part, (scale, softcap), groups[group, start:stop])

            self._sweep(packed, reduce, num_threads)
            for group in groups:  # in order of class
                sums[chosen] += group
        return sums

    def _blocks(self, rows: Ids, num_threads: int, columns: int) -> Iterator[tuple[Ids, Packed]]:
        """The rows in blocks that fit the memory, packed; the layer is read once for each."""
        row_bytes = self.inputs.shape[1] * self.dtype.itemsize + 8 * columns * (self.groups + 2)
        step = max(12, self.layer.block_bytes // row_bytes // 12 * 12)
        for start in range(0, len(rows), step):
            chosen = rows[start : start + step]
            yield chosen, Packed.of(self.inputs, self.dtype, num_threads, chosen=chosen, prepare=self.layer.norm)

    def _label_logits(self, packed: Packed, labels: Ids, num_threads: int) -> Floats:
        """The logit of each row's label, by the steps of the tiles' product; NaN for a row without a label."""
        out, biases = np.full(packed.rows, np.nan), self.layer._biases

        def work(start: int, stop: int) -> None:
            ids = np.maximum(labels[start:stop], 0)
            addend = None if biases is None else biases[ids]
            logits = paired(packed.part(start, stop), self.layer.weights[ids], addend)
            out[start:stop] = np.where(labels[start:stop] >= 0, logits, np.nan)

        parallel.run(work, packed.rows, _UNIT_ROWS, num_threads)
        return out

    def _sweep(self, packed: Packed, reduce: Callable[..., None], num_threads: int) -> None:
        """Call reduce(group, start, stop, (first class, classes), logits) for tiles of all classes, in order within a group and rows."""
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

        parallel.run(work, self.groups * ranges, 1, num_threads)
        layer.bytes_read += layer.weights.nbytes // layer.shape[0] * layer.num_classes
        if faults and layer.strict:
            layer.refuse_nonfinite(min(faults), min(min(faults) + TILE, layer.num_classes))


def _unit_rows(rows: int, groups: int, num_threads: int) -> int:
    """Rows of a unit: up to 480, fewer where the groups alone do not feed the threads. No result depends on it."""
    step = _UNIT_ROWS
    while step > 48 and groups * -(-rows // step) < 4 * num_threads:
        step //= 2
    return max(12, step // 12 * 12)


def linear_cross_entropy(
    inputs: npt.ArrayLike,
    weights: Any,
    labels: npt.ArrayLike,
    *,
    biases: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    num_classes: int | None = None,
    reduction: str = "none",
    num_threads: int | None = None,
) -> Any:
    """Softmax cross-entropy of one class per row from hidden states and an output layer; no (N, V) array ever exists.

    g_j = softcap(logit_scale (x . w_j + b_j)), softcap(y) = c tanh(y / c); L = log S_j exp(g_j) - g_y; with smoothing e,
    (1 - e) (lse - g_y) + e (lse - mean_j g_j). Products are summed in float32, in float64 where inputs or weights are float64.

    Args:
        inputs: (N, D) hidden states, float16, bfloat16, float32 or float64.
        weights: (V, D) output layer, of any of these types: an array, or what `open_matrix` returns.
        labels: (N,) integers in [0, num_classes), or `ignore_index`.
        biases: (V,), of any of these types; -inf masks a class.
        ignore_index: rows with this label count in no figure and are not computed; their loss is 0.
        label_smoothing: e in [0, 1].
        softcap: c > 0, or None.
        logit_scale: > 0; a temperature t is logit_scale = 1/t.
        num_classes: classes that count; rows of `weights` behind are padding. None is V.
        reduction: see `compute_weighted_loss`.
        num_threads: None is all usable cores; no result depends on it.

    Returns:
        float64 losses (N,) in nats, or one float. What is not finite propagates: a NaN in a class makes all losses NaN.

    Raises:
        BigvocabError: shapes that differ, a label out of range (with its row), an option outside its range.
        TypeError: inputs or weights that are no floats, labels that are no integers.

    Source: torch.nn.functional.linear_cross_entropy (2.13), and the fused losses of E. Wijmans et al., "Cut Your Losses in
    Large-Vocabulary Language Models" (2024), https://arxiv.org/abs/2411.09009.

    >>> import numpy as np
    >>> inputs = np.array([[1.0, 0.0], [0.0, 2.0]], np.float32)
    >>> linear_cross_entropy(inputs, np.eye(2, dtype=np.float32), [0, 0]).round(6)
    array([0.313262, 2.126928])
    """
    check_reduction(reduction)
    x = checks.as_matrix_of_floats("inputs", inputs)
    layer = OutputLayer(_floats("weights", weights), _floats("biases", biases), num_classes=checks.index_or_none("num_classes", num_classes))
    rows = LinearRows(layer, x)
    y = checks.as_integers("labels", labels)
    checks.one_per_row("labels", y, len(x))
    y = checks.labels_in_range(y, layer.num_classes, ignore_index=checks.index_or_none("ignore_index", ignore_index))
    formula: SparseSoftmax = sparse_softmax_formula(layer.num_classes, label_smoothing, None)
    scale = checks.positive("logit_scale", logit_scale)
    cap = 0.0 if softcap is None else checks.positive("softcap", softcap)
    threads = parallel.resolve_threads(num_threads)
    want = wanted(logit_sum=formula.needs_logit_sum)
    stats = rows.softmax_rows(y, want=want, scale=scale, softcap=cap, num_threads=threads)
    return _reduced(formula.losses(stats), broadcast_weights(1.0, y.shape), None, y >= 0, reduction)


def _floats(name: str, values: Any) -> Any:
    """`values` as they are where they are a Matrix or None, else as a checked array."""
    if values is None or isinstance(values, Matrix):
        return values
    return checks.as_matrix_of_floats(name, values, ndim=1 if name == "biases" else 2)
