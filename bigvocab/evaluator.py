"""The main path: batches of labels set the row ranges, logits follow by slice, kernels make losses, exact sums make the report."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab import checks, parallel
from bigvocab.errors import BigvocabError
from bigvocab.label_sources import MatrixLabels, check_labels, cut, labels_of, open_labels
from bigvocab.labels import LabelBatch, Labels
from bigvocab.linear_rows import LinearMatrix, LinearRows
from bigvocab.matrix import Matrix, as_matrix
from bigvocab.options import METRICS, ONLY_WITH, default_metrics, metrics_fault
from bigvocab.output import LossWriter, replacing, write_text
from bigvocab.output_layer import OutputLayer
from bigvocab.report import Report
from bigvocab.row_results import ROW_RESULTS, num_classes_of, num_rows_of
from bigvocab.rows import Tiles
from bigvocab.sigmoid_rows import pos_weight_vector
from bigvocab.tally import RowResult, Tally

NONFINITE = ("error", "skip", "keep")
SCHEMA_VERSION = 1
_BLOCK_BYTES = 256 << 20  # of logits between two looks at progress, memory and the files' sizes
_PERPLEXITY_LOSSES = ("sparse-softmax", "softmax", "sampled-softmax")


class Evaluator:
    """Losses of batches, and the report of all of them: exact sums, so that splits, orders, merges and threads do not show.

    Args:
        loss: the name of the loss.
        weights, biases: an output layer (V, D) and (V,); `update` then takes hidden states (N, D) for logits.
        final_norm, norm_weight, norm_bias, norm_epsilon: the norm of the hidden states before that layer; see `OutputLayer`.
        ignore_index, label_smoothing, class_weights, logit_scale, softcap: as in `sparse_softmax_cross_entropy`.
        pos_weight: weight of positives, one number, one for each class, or a path (weighted-sigmoid, sparse-sigmoid).
        epsilon: added inside the logarithms of log-loss.
        metrics: by-products to keep, of accuracy, rank, logsumexp, entropy, predicted; None is the first three, as they fit the loss.
        top_k: the k of the accuracies.
        nonfinite: "error" names the first row with a NaN, +inf or no finite logit; "skip" leaves such rows out; "keep" lets them through.
        threads: None is all usable cores.
        label_column, probability_column, weight_column, group_column, bytes_column: columns of the batches of `update_batch`.

    The unit of every figure is the row. For the losses of independent classes (sigmoid, weighted-sigmoid, sparse-sigmoid, log-loss)
    the loss of a row is the sum over its classes, and there is no perplexity, rank or accuracy.

    >>> import numpy as np
    >>> ev = Evaluator(top_k=(1,))
    >>> ev.update(np.array([[0.0, 0.0], [2.0, 0.0]]), np.array([1, 0])).round(6)
    array([0.693147, 0.126928])
    >>> round(ev.report()["perplexity"], 6)
    1.506874
    """

    def __init__(
        self,
        *,
        loss: str = "sparse-softmax",
        weights: Any = None,
        biases: Any = None,
        final_norm: str | None = None,
        norm_weight: Any = None,
        norm_bias: Any = None,
        norm_epsilon: float = 1e-6,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        class_weights: Any = None,
        pos_weight: Any = None,
        epsilon: float = 1e-7,
        logit_scale: float = 1.0,
        softcap: float | None = None,
        num_classes: int | None = None,
        metrics: str | Iterable[str] | None = None,
        top_k: int | str | Iterable[int] = (1, 5),
        nonfinite: str = "error",
        threads: int | None = None,
        label_column: str | None = None,
        probability_column: str | None = None,
        weight_column: str | None = None,
        group_column: str | None = None,
        bytes_column: str | None = None,
    ) -> None:
        self.loss = _one_of("loss", loss, tuple(ROW_RESULTS))
        self.ignore_index = checks.index_or_none("ignore_index", ignore_index)
        self.label_smoothing = checks.in_unit_interval("label_smoothing", label_smoothing)
        self.class_weights = _vector(class_weights)
        self.pos_weight = pos_weight if isinstance(pos_weight, int | float) else _vector(pos_weight)
        self.epsilon = checks.in_unit_interval("epsilon", epsilon)
        self.logit_scale = checks.positive("logit_scale", logit_scale)
        self.softcap = None if softcap is None else checks.positive("softcap", softcap)
        self.num_classes = checks.index_or_none("num_classes", num_classes)
        self.metrics = default_metrics(self.loss) if metrics is None else _metrics(metrics, self.loss)
        self.top_k = _top_k(top_k) if "accuracy" in self.metrics else ()
        self.nonfinite = _one_of("nonfinite", nonfinite, NONFINITE)
        self.num_threads = parallel.resolve_threads(threads)
        self.columns = {
            "label": label_column,
            "probability": probability_column,
            "weight": weight_column,
            "group": group_column,
            "bytes": bytes_column,
        }
        self._check_options(probability_column)
        norm = {"norm_weight": norm_weight, "norm_bias": norm_bias, "norm_epsilon": norm_epsilon}
        self.layer = self._layer(weights, biases, final_norm, norm)
        self.logits_name, self.label_name = "logits" if self.layer is None else "inputs", "labels"
        self._tally = Tally(self.top_k)
        self._seen = 0

    def _check_options(self, probability_column: str | None) -> None:
        """Refuse options that mean nothing to the loss: they would change nothing, and nobody would know."""
        given = {
            "ignore_index": self.ignore_index is not None,
            "label_smoothing": self.label_smoothing != 0,
            "class_weights": self.class_weights is not None,
            "pos_weight": self.pos_weight is not None,
            "epsilon": self.epsilon != 1e-7,
            "logit_scale": self.logit_scale != 1.0,
            "softcap": self.softcap is not None,
            "probability_column": probability_column is not None,
        }
        for name in given:
            if given[name] and name in ONLY_WITH and self.loss not in ONLY_WITH[name]:
                raise BigvocabError(f"{name}: goes with {', '.join(ONLY_WITH[name])}, not with {self.loss}")
        if self.loss == "weighted-sigmoid" and self.pos_weight is None:
            raise BigvocabError("pos_weight: weighted-sigmoid needs it, expected a number or one for each class")
        if self.pos_weight is not None and np.ndim(self.pos_weight) == 0:
            pos_weight_vector(self.pos_weight, 1)

    def _layer(self, weights: Any, biases: Any, final_norm: str | None, norm: dict[str, Any]) -> OutputLayer | None:
        """The output layer, where there is one."""
        if weights is None:
            given = {"biases": biases, "final_norm": final_norm, **{k: v for k, v in norm.items() if k != "norm_epsilon"}}
            for name, value in given.items():
                if value is not None:
                    raise BigvocabError(f"{name}: belongs to an output layer, expected weights beside it")
            return None
        strict = self.nonfinite != "keep"
        return OutputLayer(weights, biases, num_classes=self.num_classes, final_norm=final_norm, strict=strict, **norm)

    def source(self, values: Any, **options: Any) -> Matrix | LinearMatrix:
        """Logits, or hidden states before the output layer, as a matrix of logits; `options` as `open_matrix` takes them."""
        matrix = as_matrix(values, **options)
        return matrix if self.layer is None else LinearMatrix(matrix, self.layer)

    def wants(self, metric: str) -> bool:
        """Whether this by-product was asked for."""
        return metric in self.metrics

    # ---- batches

    def update(
        self, logits: Any, labels: Any, weights: npt.ArrayLike | None = None, groups: Sequence[Any] | None = None
    ) -> npt.NDArray[np.float64]:
        """Add a batch and return the loss of each row, unweighted; NaN where the row is ignored or skipped.

        Args:
            logits: (N, V) of any type, layout or source of `open_matrix`; hidden states (N, D) where there is an output layer.
            labels: what the loss takes: (N,) integers; (N, V) soft labels; (N, T) ids or a pair (offsets, ids) for sparse-sigmoid;
                a triple (offsets, ids, probabilities) for softmax as well.
            weights: (N,) weight of each row.
            groups: (N,) names; the report has figures for each.
        """
        matrix = self.source(logits)
        batch = self._batch(labels, weights, groups, len(matrix))
        losses = np.empty(len(matrix))
        results = list(self._results(matrix, batch))  # all, before anything is added: a batch counts whole or not at all
        for part, rows in results:
            self._tally.add(rows, part.groups, part.num_bytes)
            start = part.first_row - batch.first_row
            losses[start : start + len(rows)] = np.where(rows.counted, rows.loss, np.nan)
        self._seen += len(matrix)
        return losses

    def _batch(self, labels: Any, weights: Any, groups: Any, rows: int) -> LabelBatch:
        """A label batch from arrays; row numbers in messages count from the start of this batch."""
        found, probabilities = labels_of(self.loss, labels, rows)
        values = None
        if weights is not None:
            values = np.asarray(weights)
            if values.dtype.kind not in "fiub":
                raise TypeError(f"weights: expected real numbers, got {values.dtype}")
            values = np.broadcast_to(values.astype(np.float64), (rows,)) if values.ndim == 0 else values.astype(np.float64)
            checks.one_per_row("weights", values, rows)
        coded = None
        if groups is not None:
            names, codes = np.unique(np.asarray([str(name) for name in groups], dtype=object).astype(str), return_inverse=True)
            checks.one_per_row("groups", codes, rows)
            coded = (codes.astype(np.int32), [str(name) for name in names])
        return LabelBatch(0, found, probabilities=probabilities, weights=values, groups=coded)

    def _results(self, matrix: Matrix | LinearMatrix, batch: LabelBatch) -> Iterable[tuple[LabelBatch, RowResult]]:
        """The results of the rows of one label batch, part by part as the files lie."""
        start, stop = batch.first_row, batch.first_row + len(batch)
        for first, tiles in matrix.row_parts(start, stop):
            part = cut(batch, first - start, first - start + num_rows_of(tiles))
            yield part, self._evaluate(tiles, part)

    def _evaluate(self, tiles: Tiles | LinearRows, batch: LabelBatch) -> RowResult:
        if self.num_classes is not None and not isinstance(tiles, LinearRows):
            tiles = _first_classes(tiles, self.num_classes, self.logits_name)
        return ROW_RESULTS[self.loss](self, tiles, batch)

    def update_batch(self, batch: Any) -> Any:
        """Add a pyarrow RecordBatch or Table and return the same kind with a column `loss` appended: for map_batches and mapInArrow.

        Logits are the column `logits` (FixedSizeList or fixed_shape_tensor of floats), labels the column `label_column`;
        where there is an output layer, hidden states are the column `inputs`.
        """
        from bigvocab.batches import arrays_of, with_losses

        logits, labels = arrays_of(batch, self.columns, "logits" if self.layer is None else "inputs")
        matrix = self.source(logits)
        results = [self._results(matrix, part) for part in labels]
        losses = np.full(len(matrix), np.nan)
        done = [pair for result in results for pair in result]
        for part, rows in done:
            self._tally.add(rows, part.groups, part.num_bytes)
            losses[part.first_row : part.first_row + len(rows)] = np.where(rows.counted, rows.loss, np.nan)
        return with_losses(batch, losses)

    # ---- the whole

    def merge(self, other: Evaluator) -> None:
        """Add all that `other` has seen; both must have the same options."""
        if not isinstance(other, Evaluator):
            raise TypeError(f"merge: expected an Evaluator, got {type(other).__name__}")
        mine, theirs = self.options(), other.options()
        if differing := [name for name in mine if mine[name] != theirs[name]]:
            name = differing[0]
            raise BigvocabError(f"merge: {name} is {mine[name]!r} here and {theirs[name]!r} there; expected the same options")
        self._tally.merge(other._tally)

    def options(self) -> dict[str, Any]:
        """What decides the figures: evaluators merge only where all of it is equal."""
        names = ("loss", "ignore_index", "label_smoothing", "logit_scale", "softcap", "epsilon", "num_classes", "metrics", "top_k", "nonfinite")
        options = {name: getattr(self, name) for name in names}
        options["layer"] = None if self.layer is None else self.layer.options()
        for name in ("class_weights", "pos_weight"):
            value = getattr(self, name)
            options[name] = None if value is None else np.asarray(value).tolist()
        return options

    def report(self) -> Report:
        """The report of all rows so far."""
        figures = self._tally.figures(perplexity=self.loss in _PERPLEXITY_LOSSES)
        return Report({"schema_version": SCHEMA_VERSION, "loss": self.loss, **figures, "versions": versions()})


def evaluate(
    *,
    labels: Any,
    logits: Any = None,
    inputs: Any = None,
    output: str | os.PathLike[str] | None = None,
    report: str | os.PathLike[str] | None = None,
    vocab_shards: bool = False,
    shape: Any = None,
    dtype: str | None = None,
    offset: int = 0,
    chunk_rows: int | None = None,
    max_memory: int | str | None = None,
    progress: Callable[[int, int, int], None] | None = None,
    **options: Any,
) -> Report:
    """Evaluate logits in files, or arrays, against labels in files, or arrays, in bounded memory.

    Args:
        labels: a path, a list of paths, or an array.
        logits: (N, V): a path, a glob, a folder, a list of paths, or an array; see `open_matrix` for shape, dtype, offset, vocab_shards.
        inputs: hidden states (N, D) in place of logits; `weights` (V, D) and what else makes logits of them are among the options.
        output: path of losses.parquet, one line per row.
        report: path of report.json.
        chunk_rows: rows of a block; None chooses by `max_memory`. No figure depends on it.
        max_memory: bytes, or "512M", of logits mapped at a time.
        progress: called with (rows done, rows in all, bytes of logits read).
        options: those of `Evaluator`.

    Raises:
        BigvocabError: bad values, named by file and row; FormatError: files that are not what they say. No output is left then.

    >>> import numpy as np
    >>> evaluate(logits=np.zeros((2, 4), np.float32), labels=[1, 3])["perplexity"]
    4.0
    """
    started = time.perf_counter()
    evaluator = Evaluator(**options)
    values = _logits_or_inputs(evaluator, logits, inputs)
    shards = vocab_shards and evaluator.layer is None  # files of a layer are ranges of classes in any case
    matrix = evaluator.source(values, vocab_shards=shards, **_given(shape=shape, dtype=dtype, offset=offset))
    ids = open_labels(labels, evaluator.loss, evaluator.columns)
    if matrix.files and matrix.files[0]["path"] != "<array>":
        evaluator.logits_name = matrix.files[0]["path"]
    evaluator.label_name = ids.path if ids.files else "labels"
    _check_job(evaluator, matrix, ids)
    block = block_rows(matrix, chunk_rows, max_memory)
    if evaluator.layer is not None and max_memory is not None:
        evaluator.layer.allow(parse_bytes("max_memory", max_memory))
    with contextlib.ExitStack() as stack:
        writer = _open_writer(stack, output, evaluator, matrix, ids)
        if report is not None:
            stack.enter_context(_writable(report))
        read = _stream(evaluator, matrix, ids, block, writer, progress)
        if evaluator._tally.counts["ignored_rows"] == len(matrix):  # of dense labels it is known only now
            raise BigvocabError(f"{evaluator.label_name}: all {len(matrix):,} rows are ignored, so there is nothing to evaluate")
        if writer is not None:
            writer.close()
    figures = evaluator.report().to_dict()
    made = figures.pop("versions")
    seconds = time.perf_counter() - started
    rates = {"seconds": seconds, "rows_per_second": len(matrix) / seconds, "bytes_per_second": read / seconds}
    result = Report({**figures, "inputs": [*matrix.files, *ids.files], **rates, "versions": made})
    if report is not None:
        write_text(report, result.to_json() + "\n")
    return result


def _logits_or_inputs(evaluator: Evaluator, logits: Any, inputs: Any) -> Any:
    """What there is to evaluate: logits, or hidden states where there is an output layer."""
    if (logits is None) == (inputs is None):
        raise TypeError("logits: expected them or inputs, one of the two")
    if inputs is not None and evaluator.layer is None:
        raise BigvocabError("inputs: hidden states need an output layer, expected weights beside them")
    if logits is not None and evaluator.layer is not None:
        raise BigvocabError("weights: an output layer needs hidden states, expected inputs in place of logits")
    return logits if inputs is None else inputs


def block_rows(matrix: Matrix | LinearMatrix, chunk_rows: int | None, max_memory: int | str | None) -> int:
    """Rows of a block: as asked for, or as many as the memory for mapped logits allows."""
    if chunk_rows is not None:
        if isinstance(chunk_rows, bool) or not isinstance(chunk_rows, int):
            raise TypeError(f"chunk_rows: expected a positive int or None, got {type(chunk_rows).__name__}")
        if chunk_rows < 1:
            raise BigvocabError(f"chunk_rows: got {chunk_rows}, expected at least 1")
        return chunk_rows
    row_bytes = matrix.nbytes // max(1, len(matrix))
    budget = _BLOCK_BYTES if max_memory is None else min(parse_bytes("max_memory", max_memory), 4 * _BLOCK_BYTES)
    return max(1, budget // max(1, row_bytes))


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_bytes(name: str, value: int | str) -> int:
    """A number of bytes from an int, or from text such as "512M" (binary units)."""
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?\s*", value.upper())
        if not match:
            raise BigvocabError(f"{name}: got {value!r}, expected bytes such as 512M or 2G")
        number = int(float(match[1]) * _UNITS[match[2]])
    else:
        raise TypeError(f"{name}: expected bytes as an int or text such as '512M', got {type(value).__name__}")
    if number < 1 << 20:
        raise BigvocabError(f"{name}: got {value!r}, expected at least 1M")
    return number


def versions() -> dict[str, str]:
    """Versions of what the figures depend on."""
    import numba
    import pyarrow

    import bigvocab

    return {
        "bigvocab": bigvocab.__version__,
        "numba": numba.__version__,
        "numpy": np.__version__,
        "pyarrow": pyarrow.__version__,
    }


def _check_job(evaluator: Evaluator, matrix: Matrix | LinearMatrix, labels: Labels | MatrixLabels) -> None:
    """All that can be known to be wrong before any work: counts of rows, kinds of labels, labels out of range."""
    if len(matrix) != labels.num_rows:
        raise BigvocabError(
            f"{evaluator.label_name}: {labels.num_rows:,} rows of labels, "
            f"but {evaluator.logits_name} has {len(matrix):,} rows; expected as many"
        )
    if len(matrix) == 0:
        raise BigvocabError(f"{evaluator.logits_name}: no rows, so there is nothing to evaluate")
    classes = evaluator.num_classes or matrix.shape[1]
    if evaluator.class_weights is not None:
        checks.class_vector("class_weights", evaluator.class_weights, classes)
    if evaluator.pos_weight is not None:
        pos_weight_vector(evaluator.pos_weight, classes)
    check_labels(evaluator, labels, classes)


@contextlib.contextmanager
def _writable(path: str | os.PathLike[str]) -> Any:
    """Fail now, not after hours, if `path` cannot be written."""
    target = os.path.abspath(path)
    if os.path.isdir(target) or not os.access(os.path.dirname(target), os.W_OK):
        raise BigvocabError(f"{path}: cannot be written: expected a file in a folder that exists and can be written")
    yield


def _open_writer(
    stack: contextlib.ExitStack, output: Any, evaluator: Evaluator, matrix: Matrix | LinearMatrix, labels: Labels | MatrixLabels
) -> LossWriter | None:
    if output is None:
        return None
    read = [file["path"] for file in [*matrix.files, *labels.files]]
    if any(os.path.exists(path) and os.path.exists(output) and os.path.samefile(path, output) for path in read):
        raise BigvocabError(f"{output}: is one of the files that are read; choose another output")
    temporary = stack.enter_context(replacing(output))
    weight, group = (evaluator.columns[role] is not None for role in ("weight", "group"))
    writer = LossWriter(temporary, evaluator.metrics, weight=weight, group=group)
    return writer


def _stream(
    evaluator: Evaluator,
    matrix: Matrix | LinearMatrix,
    labels: Labels | MatrixLabels,
    block: int,
    writer: LossWriter | None,
    progress: Callable[[int, int, int], None] | None,
) -> int:
    """The one loop: label batches, row blocks, results, tallies. Returns the bytes of logits read."""
    row_bytes = matrix.nbytes // max(1, len(matrix))
    if progress is not None:
        progress(0, len(matrix), 0)
    with ThreadPoolExecutor(1, "release") as behind:  # pages go back while the next block is worked
        for batch in labels:
            for start in range(0, len(batch), block):
                rows = cut(batch, start, min(start + block, len(batch)))
                stop = rows.first_row + len(rows)
                matrix.check()
                for part, result in evaluator._results(matrix, rows):
                    evaluator._tally.add(result, part.groups, part.num_bytes)
                    if writer is not None:
                        writer.write(part.first_row, result, part.weights, part.groups)
                behind.submit(matrix.release, rows.first_row, stop)
                if progress is not None:
                    progress(stop, len(matrix), stop * row_bytes + getattr(matrix, "layer_bytes_read", 0))
    matrix.check()
    return len(matrix) * row_bytes + getattr(matrix, "layer_bytes_read", 0)


def _first_classes(tiles: Tiles, num_classes: int, name: str) -> Tiles:
    """The tiles of the first `num_classes` classes: the others are padding."""
    if not 1 <= num_classes <= num_classes_of(tiles):
        raise BigvocabError(f"num_classes: got {num_classes:,}, but {name} has {num_classes_of(tiles):,} classes")
    return [(first, tile[:, : num_classes - first]) for first, tile in tiles if first < num_classes]


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None and value != 0}


def _one_of(name: str, value: str, expected: Sequence[str]) -> str:
    if value not in expected:
        raise BigvocabError(f"{name}: got {value!r}, expected one of {', '.join(expected)}")
    return value


def _metrics(metrics: str | Iterable[str], loss: str) -> tuple[str, ...]:
    names = [part.strip() for part in metrics.split(",") if part.strip()] if isinstance(metrics, str) else list(metrics)
    chosen = tuple(metric for metric in METRICS if metric in [_one_of("metrics", name, METRICS) for name in names])
    if fault := metrics_fault(loss, chosen):
        raise BigvocabError(f"metrics: {fault}")
    return chosen


def _top_k(values: int | str | Iterable[int]) -> tuple[int, ...]:
    """The k of the accuracies, rising."""
    if isinstance(values, str):
        values = [int(part) if re.fullmatch(r"\s*\d+\s*", part) else -1 for part in values.split(",") if part.strip()]
    found = [values] if isinstance(values, int) else list(values)
    if any(isinstance(k, bool) or not isinstance(k, int | np.integer) for k in found):
        raise TypeError(f"top_k: expected integers, got {found!r}")
    if any(k < 1 for k in found):
        raise BigvocabError(f"top_k: expected integers of at least 1, such as 1,5, got {min(found)}")
    return tuple(sorted({int(k) for k in found}))


def _vector(values: Any) -> Any:
    """Numbers from a path (.npy, text with one number a line, or what `open_matrix` reads) or an array; None stays None."""
    if not isinstance(values, str | os.PathLike):
        return None if values is None else np.asarray(values)
    if str(values).lower().endswith((".txt", ".csv")):
        try:
            return np.loadtxt(values, dtype=np.float64, ndmin=1)
        except (OSError, ValueError) as error:
            raise BigvocabError(f"{values}: expected one number a line: {error}") from None
    if str(values).lower().endswith(".npy"):
        try:
            numbers = np.load(values, allow_pickle=False).reshape(-1)
        except (OSError, ValueError, EOFError) as error:
            raise BigvocabError(f"{values}: expected a .npy of numbers: {error}") from None
        if numbers.dtype.kind in "iu":
            return numbers
    return np.asarray(as_matrix(values)).reshape(-1)
