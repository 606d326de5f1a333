"""The main path: labels set the row ranges, logits follow by slice, kernels make losses, exact sums the report."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bigvocab import arguments
from bigvocab.arguments import integer
from bigvocab.catalogue import ONLY_WITH, default_metrics
from bigvocab.errors import BigvocabError, Keyword
from bigvocab.evaluation.figures import make_report
from bigvocab.evaluation.row_results import ROW_RESULTS
from bigvocab.evaluation.sampled_results import SAMPLED_RESULTS, open_draws
from bigvocab.evaluation.settings import one_of, parse_bytes, parse_metrics, parse_seed, parse_top_k, read_vector
from bigvocab.evaluation.tally import RowResult, Tally
from bigvocab.heads.linear_rows import LinearMatrix
from bigvocab.heads.output_layer import OutputLayer
from bigvocab.labels.label_sources import cut
from bigvocab.labels.labels import LabelBatch
from bigvocab.losses.sigmoid_rows import pos_weight_vector
from bigvocab.matrices.logit_rows import LogitRows
from bigvocab.matrices.matrix import as_matrix
from bigvocab.matrices.sources import LogitSource
from bigvocab.reports.report import Report
from bigvocab.threads import resolve_threads

if TYPE_CHECKING:
    from bigvocab.evaluation.state import Data

NONFINITE = ("error", "skip", "keep")


class Evaluator:
    """Losses of batches, and the report of all of them: exact sums, so that splits, orders, merges and threads do not
    show.

    Args:
        loss: the name of the loss.
        weights, biases: an output layer (V, D) and (V,); `update` then takes hidden states (N, D) for logits.
        final_norm, norm_weight, norm_bias, norm_epsilon: the norm of the hidden states before that layer; see
            `OutputLayer`.
        ignore_index, label_smoothing, class_weights, logit_scale, softcap: as in `sparse_softmax_cross_entropy`.
        pos_weight: weight of positives, one number, one for each class, or a path (weighted-sigmoid, sparse-sigmoid).
        epsilon: added inside the logarithms of log-loss.
        metrics: by-products to keep, of accuracy, rank, logsumexp, entropy, predicted; None is the first three, as they
            fit the loss.
        top_k: the k of the accuracies.
        nonfinite: "error" names the first row with a NaN, +inf or no finite logit; "skip" leaves such rows out; "keep"
            lets them through.
        threads: None is all usable cores.
        label_column, probability_column, weight_column, group_column, bytes_column: columns of the batches of
            `update_batch`.
        sampler, num_sampled, vocab_file, distortion, seed: for sampled-softmax and nce, how candidates are drawn: by
            default log-uniform, which takes ids to be sorted by falling frequency, with the seed 0. Rows share a draw
            in blocks of 512, counted from row 0 of the data (with `update`, from the first row this evaluator has
            seen); the number of the block is the step.
        candidates: a file of candidates for all rows, in place of draws; see `bigvocab sample`.
        num_true: how many true classes each row must have; None is any number.
        exact: compute the loss over all classes of the same rows too, and report the bias.
        shape, dtype, offset, vocab_shards: how to open logits, or hidden states, that `update` is given as files; see
            `open_matrix`.
        max_memory: of packed rows, where there is an output layer.
        chunk_rows: of no effect here, where batches come as they are; no figure depends on it in a job either.

    The options of a job over files (output, report, state, resume, shard, ...) are those of `evaluate` alone. Losses
    are in nats.

    Raises:
        BigvocabError: an option outside its range, or one that means nothing to the loss; TypeError: one of the wrong
            kind.

    Source: the definitions of TensorFlow's and PyTorch's losses; see the function of each loss.

    The unit of every figure is the row. For the losses of independent classes (sigmoid, weighted-sigmoid, sparse-
    sigmoid, log-loss) the loss of a row is the sum over its classes, and there is no perplexity, rank or accuracy.

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
        sampler: str | None = None,
        num_sampled: int | None = None,
        num_true: int | None = None,
        vocab_file: Any = None,
        distortion: float | None = None,
        seed: Any = None,
        candidates: Any = None,
        exact: bool = False,
        shape: Any = None,
        dtype: str | None = None,
        offset: int = 0,
        vocab_shards: bool = False,
        chunk_rows: int | None = None,
        max_memory: int | str | None = None,
    ) -> None:
        self._given = {name: value for name, value in locals().items() if name != "self"}
        self.loss = one_of("loss", loss, (*ROW_RESULTS, *SAMPLED_RESULTS))
        self.exact = arguments.boolean("exact", exact)
        self.sampling = {
            "sampler": sampler,
            "num_sampled": num_sampled,
            "num_true": num_true,
            "vocab_file": vocab_file,
            "distortion": distortion,
            "seed": parse_seed(seed),
            "candidates": candidates,
            "exact": self.exact or None,
        }
        self.ignore_index = arguments.index_or_none("ignore_index", ignore_index)
        self.label_smoothing = arguments.in_unit_interval("label_smoothing", label_smoothing)
        self.class_weights = read_vector("class_weights", class_weights)
        self.pos_weight = pos_weight if isinstance(pos_weight, int | float) else read_vector("pos_weight", pos_weight)
        self.epsilon = arguments.in_unit_interval("epsilon", epsilon)
        self.logit_scale = arguments.positive("logit_scale", logit_scale)
        self.softcap = None if softcap is None else arguments.positive("softcap", softcap)
        self.num_classes = arguments.index_or_none("num_classes", num_classes)
        self.metrics = default_metrics(self.loss) if metrics is None else parse_metrics(metrics, self.loss)
        ks = parse_top_k(top_k)
        self.top_k = ks if "accuracy" in self.metrics else ()
        self._given |= {"metrics": None if metrics is None else list(self.metrics), "top_k": list(ks)}
        self.nonfinite = one_of("nonfinite", nonfinite, NONFINITE)
        self.num_threads = resolve_threads(threads, "threads")
        self.columns = {
            "label": label_column,
            "probability": probability_column,
            "weight": weight_column,
            "group": group_column,
            "bytes": bytes_column,
        }
        files = {"shape": shape, "dtype": dtype, "offset": offset}
        self._files = {name: value for name, value in files.items() if value}
        self._by_class = arguments.boolean("vocab_shards", vocab_shards)
        if chunk_rows is not None:
            integer("chunk_rows", chunk_rows, 1, 2**62)
        self._check_options(probability_column)
        norm = {"norm_weight": norm_weight, "norm_bias": norm_bias, "norm_epsilon": norm_epsilon}
        self.layer = self._layer(weights, biases, final_norm, norm)
        memory = None if max_memory is None else parse_bytes("max_memory", max_memory)
        if self.layer is not None and memory is not None:
            self.layer.allow(memory)
        self.draws = open_draws(self.loss, self.layer, self.sampling)
        self.num_true = None if num_true is None else integer("num_true", num_true, 1, 2**31 - 1)
        self.logits_name, self.label_name = "logits" if self.layer is None else "inputs", "labels"
        self.row_files: list[tuple[int, str]] = []  # (first row, path) of files split by rows
        self._tally = Tally(self.top_k)
        self._seen = 0
        self._data: Data | None = None  # which rows of which files it holds, where they came from a job's state

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
            **{name: value is not None for name, value in self.sampling.items()},
        }
        for name in given:
            if given[name] and name in ONLY_WITH and self.loss not in ONLY_WITH[name]:
                raise BigvocabError(f"{name}: goes with {', '.join(ONLY_WITH[name])}, not with {self.loss}")
        if self.loss == "weighted-sigmoid" and self.pos_weight is None:
            raise BigvocabError(
                Keyword("pos_weight"), ": weighted-sigmoid needs it, expected a number or one for each class"
            )
        if self.pos_weight is not None and np.ndim(self.pos_weight) == 0:
            pos_weight_vector(self.pos_weight, 1)

    def _layer(self, weights: Any, biases: Any, final_norm: str | None, norm: dict[str, Any]) -> OutputLayer | None:
        """The output layer, where there is one."""
        if weights is None:
            given = {
                "biases": biases,
                "final_norm": final_norm,
                **{k: v for k, v in norm.items() if k != "norm_epsilon"},
            }
            for name, value in given.items():
                if value is not None:
                    raise BigvocabError(f"{name}: belongs to an output layer, expected weights beside it")
            return None
        if self.loss == "log-loss":
            raise BigvocabError(
                Keyword("weights"), ": log-loss takes probabilities, which no output layer makes, expected logits"
            )
        strict = self.nonfinite != "keep"
        return OutputLayer(weights, biases, num_classes=self.num_classes, final_norm=final_norm, strict=strict, **norm)

    def source(self, values: Any, **options: Any) -> LogitSource:
        """Logits, or hidden states before the output layer, as a matrix of logits; `options` as `open_matrix` takes
        them.
        """
        matrix = as_matrix(values, self.logits_name, **options)
        self.row_files = matrix.row_files()
        if self.layer is None and matrix.ndim != 2:
            name = self.row_files[0][1] if self.row_files else self.logits_name
            raise BigvocabError(f"{name}: expected 2 dimensions, (rows, classes), got shape {matrix.shape}")
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
            logits: (N, V) of any type, layout or source of `open_matrix`; hidden states (N, D) where there is an output
                layer.
            labels: what the loss takes: (N,) integers; (N, V) soft labels; (N, T) ids or a pair (offsets, ids) for
                sparse-sigmoid; a triple (offsets, ids, probabilities) for softmax as well.
            weights: (N,) weight of each row, finite.
            groups: (N,) names; the report has figures for each.

        Returns:
            (N,) float64, in nats.

        Raises:
            BigvocabError: shapes that differ, a label out of range, a row that is not finite, with its number in the
                batch; nothing of the batch is counted then. TypeError: arrays of the wrong kind.

        >>> Evaluator().update([[0.0, 0.0]], [1]).round(6)
        array([0.693147])
        """
        self._refuse_rows_of_files()
        from bigvocab.evaluation.batches import label_batch

        matrix = self.source(logits, vocab_shards=self._by_class and self.layer is None, **self._files)
        batch = label_batch(self.loss, labels, weights, groups, rows=len(matrix), ignore_index=self.ignore_index)
        losses = np.empty(len(matrix))
        # all, before anything is added: a batch counts whole or not at all
        with self._whole_or_not():
            results = list(self._results(matrix, batch))
        for part, rows in results:
            self._tally.add(rows, part.groups, part.num_bytes)
            start = part.first_row - batch.first_row
            losses[start : start + len(rows)] = np.where(rows.counted, rows.loss, np.nan)
        self._seen += len(matrix)
        return losses

    def _results(self, matrix: LogitSource, batch: LabelBatch) -> Iterable[tuple[LabelBatch, RowResult]]:
        """The results of the rows of one label batch, part by part as the files lie."""
        start, stop = batch.first_row, batch.first_row + len(batch)
        for first, rows in matrix.rows(start, stop):
            part = cut(batch, first - start, first - start + len(rows))
            yield part, self._evaluate(rows, part)

    def _evaluate(self, rows: LogitRows, batch: LabelBatch) -> RowResult:
        if self.num_classes is not None:
            rows = _first_classes(rows, self.num_classes, self.logits_name)
        return (ROW_RESULTS | SAMPLED_RESULTS)[self.loss](self, rows, batch)

    def update_batch(self, batch: Any) -> Any:
        """Add a pyarrow RecordBatch or Table and return the same kind with a column `loss` appended: for map_batches
        and mapInArrow.

        Logits are the column `logits` (FixedSizeList or fixed_shape_tensor of floats), labels the column
        `label_column`; where there is an output layer, hidden states are the column `inputs`. Losses are in nats, null
        where a row is ignored or skipped.

        Raises:
            BigvocabError: columns that are missing or of the wrong type, or what `update` refuses; TypeError: no batch.

        >>> import pyarrow as pa
        >>> logits = pa.FixedSizeListArray.from_arrays(pa.array([0.0, 0.0]), 2)
        >>> Evaluator().update_batch(pa.table({"logits": logits, "label": [1]}))["loss"].to_pylist()
        [0.6931471805599453]
        """
        self._refuse_rows_of_files()
        from bigvocab.evaluation.batches import arrays_of, with_losses

        logits, labels = arrays_of(batch, self.columns, "logits" if self.layer is None else "inputs")
        matrix = self.source(logits)
        results = [self._results(matrix, part) for part in labels]
        losses = np.full(len(matrix), np.nan)
        counted = np.zeros(len(matrix), bool)
        with self._whole_or_not():
            done = [pair for result in results for pair in result]
        for part, rows in done:
            self._tally.add(rows, part.groups, part.num_bytes)
            mine = slice(part.first_row, part.first_row + len(rows))
            losses[mine], counted[mine] = rows.loss, rows.counted
        self._seen += len(matrix)
        return with_losses(batch, losses, ~counted)

    @contextlib.contextmanager
    def _whole_or_not(self) -> Iterator[None]:
        """Draws that learn forget a batch that fails."""
        mark = None if self.draws is None else self.draws.mark()
        try:
            yield
        except BaseException:
            if self.draws is not None:
                self.draws.reset(mark)
            raise

    def _refuse_rows_of_files(self) -> None:
        if self._data is not None:
            raise BigvocabError(
                "update: this evaluator holds rows of a job over files, expected a new one for other rows"
            )

    # ---- the whole

    def merge(self, other: Evaluator) -> None:
        """Add all that `other` has seen; both must have the same options.

        Raises:
            BigvocabError: other options, rows that are in both, draws that cannot be merged; TypeError: no Evaluator.

        >>> a, b = Evaluator(), Evaluator()
        >>> _ = a.update([[0.0, 0.0]], [1]), b.update([[0.0, 1.0]], [1])
        >>> a.merge(b)
        >>> a.report()["rows"]
        2
        """
        if not isinstance(other, Evaluator):
            raise TypeError(f"merge: expected an Evaluator, got {type(other).__name__}")
        if other is self:
            raise BigvocabError("merge: got the evaluator itself, expected another; its rows would count twice")
        mine, theirs = self.options(), other.options()
        if differing := [name for name in mine if mine[name] != theirs[name]]:
            name = differing[0]
            raise BigvocabError(
                f"merge: {name} is {mine[name]!r} here and {theirs[name]!r} there; expected the same options",
            )
        if self.draws is not None and self.draws.ordered:
            raise BigvocabError("merge: learned-unigram draws by the rows before, expected one evaluator for all rows")
        from bigvocab.jobs.merging import merge_data, refuse_same_draws

        if self._data is None and other._data is None:
            refuse_same_draws(mine, self._tally, other._tally)
        self._data = merge_data(self._data, other._data)
        self._tally.merge(other._tally)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all that this evaluator holds to a state file, whole or not at all: for `load`, and for `bigvocab
        merge`.

        >>> import tempfile
        >>> import numpy as np
        >>> ev = Evaluator()
        >>> _ = ev.update(np.array([[0.0, 1.0]]), [1])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ev.save(f"{folder}/part.state")
        ...     Evaluator.load(f"{folder}/part.state").report()["rows"]
        1
        """
        from bigvocab.evaluation.state import write_state
        from bigvocab.jobs.merging import state_of

        arguments.path("path", path)
        write_state(path, state_of(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str], **options: Any) -> Evaluator:
        """The evaluator that `save`, or a run with `state`, has written.

        Args:
            path: the state file.
            options: keywords of `Evaluator` in place of what the state holds: arrays over 1 MiB, which it does not, and
                `threads`.

        Raises:
            BigvocabError: no such file, a newer version, or options that are not those of the state; FormatError: a
                damaged file.
        """
        from bigvocab.jobs.merging import load

        return load(path, **options)

    def options(self) -> dict[str, Any]:
        """What decides the figures: evaluators merge only where all of it is equal."""
        formula = ("ignore_index", "label_smoothing", "logit_scale", "softcap", "epsilon")
        names = ("loss", *formula, "num_classes", "metrics", "top_k", "nonfinite")
        options = {name: getattr(self, name) for name in names}
        options["layer"] = None if self.layer is None else self.layer.options()
        for name in ("class_weights", "pos_weight"):
            value = getattr(self, name)
            options[name] = None if value is None else np.asarray(value).tolist()
        options["draws"] = (
            None if self.draws is None else self.draws.options() | {"num_true": self.num_true, "exact": self.exact}
        )
        return options

    def report(self) -> Report:
        """The report of all rows so far."""
        return make_report(self.loss, self._tally, None if self.draws is None else self.draws.shown(), exact=self.exact)


def _first_classes(rows: LogitRows, num_classes: int, name: str) -> LogitRows:
    """The rows with their first `num_classes` classes: the others are padding."""
    if not 1 <= num_classes <= rows.num_classes:
        raise BigvocabError(
            Keyword("num_classes"), f": got {num_classes}, expected 1 to {rows.num_classes}, the classes of {name}"
        )
    return rows.classes(0, num_classes)


OPTIONS = tuple(inspect.signature(Evaluator).parameters)  # keywords of `Evaluator`
