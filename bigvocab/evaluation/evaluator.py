"""Losses of batches, one after the other, and the report of all of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt

from bigvocab import arguments
from bigvocab.errors import BigvocabError, Keyword
from bigvocab.evaluation.batches import arrays_of, as_batch, label_batch, with_losses
from bigvocab.evaluation.compatibility import refuse_difference, refuse_same_draws, with_told
from bigvocab.evaluation.coverage import Coverage, merged_coverage
from bigvocab.evaluation.json_values import as_options
from bigvocab.evaluation.keywords import EvaluatorOptions, signature
from bigvocab.evaluation.model_report import model_notes, with_model
from bigvocab.evaluation.reporting import make_report
from bigvocab.evaluation.row_result import RowResult
from bigvocab.evaluation.scoring import Scorer
from bigvocab.evaluation.specification import Specification, specify
from bigvocab.evaluation.state import State, content_of, read_state, state_bytes, write_state
from bigvocab.evaluation.stored_tally import restored, stored
from bigvocab.evaluation.tally import Tally
from bigvocab.heads.padding import padding_notes
from bigvocab.labels.labels import LabelBatch
from bigvocab.labels.leading import flat_batch
from bigvocab.losses.leading import flat_ids
from bigvocab.matrices.names import DataNames
from bigvocab.reports.report import Report


class Evaluator:
    """Losses of batches, and the report of all of them: sums are exact, so no split, order, merge or number of threads
    changes it.

    Args:
        loss: the name of the loss.
        weights, biases: an output layer (V, D) and (V,); `update` then takes hidden states (N, D) for logits.
        final_norm, norm_weight, norm_bias, norm_epsilon: the norm of the hidden states before that layer; see
            `OutputLayer`.
        model: the folder of a model of transformers, a GGUF file, or what `open_model` returns: it gives layer, norm,
            logit_scale, softcap and num_classes, except those that are given here.
        hidden_states: "before-norm" or "after-norm", where `update` takes states of a model; None is told from a few
            rows of the first batch.
        layer: of states (..., L, D), which of the L; counted from the end where it is negative.
        shift_labels, score_from: belong to `evaluate`, which sees sequences whole.
        ignore_index, label_smoothing, class_weights, logit_scale, softcap: as in `sparse_softmax_cross_entropy`.
        pos_weight: weight of positives, one number, one for each class, or a path (weighted-sigmoid, sparse-sigmoid).
        epsilon: added inside the logarithms of log-loss.
        metrics: by-products to keep, of accuracy, rank, logsumexp, entropy, predicted, calibration, topk; None is the
            first three, as they fit the loss.
        top_k: the k of the accuracies.
        keep_top: of topk, how many of the highest classes of each row go to losses.parquet; None is 10.
        ties: how rank, mrr and accuracy count classes with the label's own logit: "optimistic" behind it, "pessimistic"
            before it, "mean" as expected under a random order.
        class_counts: how often each class occurs in the training data, an array or a path: the report then has
            the loss of rare labels apart. `vocab_file` does the same.
        nonfinite: "error" names the first row with a NaN, +inf or no finite logit; "skip" leaves such rows out; "keep"
            lets them through.
        threads: None is all usable cores.
        label_column, probability_column, weight_column, group_column, bytes_column, position_column, text_column,
            cluster_column: columns of the batches of `update_batch`; see `read_labels`.
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
        chunk_rows: of no effect here, where batches come as they are; no value depends on it in a job either.

    The options of a job over files (output, report, state, resume, shard, ...) are those of `evaluate` alone. Losses
    are in nats.

    Raises:
        BigvocabError: an option outside its range, or one that means nothing to the loss; TypeError: one of the wrong
            kind.

    Source: the definitions of TensorFlow's and PyTorch's losses; see the function of each loss.

    The unit of every metric is the row. For the losses of independent classes (sigmoid, weighted-sigmoid, sparse-
    sigmoid, log-loss) the loss of a row is the sum over its classes, and there is no perplexity, rank or accuracy.

    >>> import numpy as np
    >>> ev = Evaluator(top_k=(1,))
    >>> ev.update(np.array([[0.0, 0.0], [2.0, 0.0]]), np.array([1, 0])).round(6)
    array([0.693147, 0.126928])
    >>> round(ev.report()["perplexity"], 6)
    1.506874
    """

    __signature__ = signature()

    def __init__(self, **options: Unpack[EvaluatorOptions]) -> None:
        self.scorer = Scorer(specify(**options))
        self.tally = Tally(self.specification.measures.accuracies)
        self.seen = 0  # rows that came by `update`
        self.coverage: Coverage | None = None  # which rows of which files it holds, where they came from a job's state

    @property
    def specification(self) -> Specification:
        """What was asked."""
        return self.scorer.specification

    # ---- batches

    def update(
        self,
        logits: Any,
        labels: Any,
        weights: npt.ArrayLike | None = None,
        groups: Sequence[Any] | None = None,
        exclude: Any = None,
    ) -> npt.NDArray[np.float64]:
        """Add a batch and return the loss of each row, unweighted; NaN where the row is ignored or skipped.

        Args:
            logits: (..., V) of any type, layout, library or source of `open_matrix`; hidden states (..., D) where there
                is an output layer.
            labels: what the loss takes: (...) integers; (..., V) soft labels; (..., T) ids or a pair (offsets, ids) for
                sparse-sigmoid; a triple (offsets, ids, probabilities) for softmax as well.
            weights: (...) weight of each row, finite.
            groups: (...) names; the report has metrics for each.
            exclude: ids of classes that do not exist for each row, (..., T) or a pair (offsets, ids).

        Returns:
            float64 in the shape of the labels (...), in nats.

        Raises:
            BigvocabError: shapes that differ, a label out of range, a row that is not finite, with its number in the
                batch; nothing of the batch is counted then. TypeError: arrays of the wrong kind.

        >>> Evaluator().update([[0.0, 0.0]], [1]).round(6)
        array([0.693147])
        """
        self._refuse_rows_of_files()
        opening = self.specification.opening.keywords(logits=self.scorer.head is None)
        source = self.scorer.source(logits, **opening)
        loss = self.specification.loss
        kinds, leading = loss.spec.labels, source.stored.leading
        labels, weights, groups, shape = flat_batch(labels, weights, groups, leading, one_each=kinds == ("id",))
        exclude = flat_ids("exclude", exclude, leading) if exclude is not None else None
        batch = label_batch(kinds, labels, weights, groups, exclude, rows=len(source), stored=loss.stored_ids)
        with self._whole_or_not():
            results = list(self.scorer.evaluate_rows(source, batch, self.scorer.names_of(source), self.seen))
        losses = np.empty(len(source))
        for part, rows in results:
            losses[part.first_row : part.first_row + len(rows)] = np.where(rows.counted, rows.loss, np.nan)
        self._add(results, len(source))
        return losses.reshape(shape)

    def update_batch(self, batch: Any) -> Any:
        """Add a pyarrow RecordBatch or Table and return the same kind with a column `loss` appended: for map_batches
        and mapInArrow. Anything else with `__arrow_c_stream__` (Polars, pandas, DuckDB) comes back as a Table.

        Logits are the column `logits`, labels the column `label_column`; where there is an output layer, hidden states
        are the column `inputs`. Vectors are FixedSizeList, fixed_shape_tensor or lists of one width, or extensions over
        these (Ray's, Hugging Face's), of floats; uint16 are the bits of bfloat16. Losses are in nats, null where a row
        is ignored or skipped.

        Raises:
            BigvocabError: columns that are missing or of the wrong type, a row that is null or of another width, or
                what `update` refuses; TypeError: no batch.

        >>> import pyarrow as pa
        >>> logits = pa.FixedSizeListArray.from_arrays(pa.array([0.0, 0.0]), 2)
        >>> Evaluator().update_batch(pa.table({"logits": logits, "label": [1]}))["loss"].to_pylist()
        [0.6931471805599453]
        """
        self._refuse_rows_of_files()
        columns, batch = self.specification.columns.keywords(), as_batch(batch)
        logits, labels = arrays_of(batch, columns, self.scorer.rows_name, self.specification.loss.stored_ids)
        source = self.scorer.source(logits)
        names = DataNames(self.scorer.rows_name)
        with self._whole_or_not():
            parts = (self.scorer.evaluate_rows(source, part, names, self.seen) for part in labels)
            results = [pair for part in parts for pair in part]
        losses, counted = np.full(len(source), np.nan), np.zeros(len(source), bool)
        for part, rows in results:
            mine = slice(part.first_row, part.first_row + len(rows))
            losses[mine], counted[mine] = rows.loss, rows.counted
        self._add(results, len(source))
        return with_losses(batch, losses, ~counted)

    def _add(self, results: Iterable[tuple[LabelBatch, RowResult]], rows: int) -> None:
        """Count the results of a batch, all of which are there: it counts whole or not at all."""
        for part, result in results:
            self.tally.add(result, part, numbered=False)
        self.seen += rows

    @contextlib.contextmanager
    def _whole_or_not(self) -> Iterator[None]:
        """Draws that learn forget a batch that fails."""
        draws = self.scorer.draws
        mark = None if draws is None else draws.mark()
        try:
            yield
        except BaseException:
            if draws is not None:
                draws.reset(mark)
            raise

    def _refuse_rows_of_files(self) -> None:
        if self.coverage is not None:
            raise BigvocabError(
                "update: this evaluator holds rows of a job over files, expected a new one for other rows"
            )
        asked = self.specification.sequences
        for name, given in (("shift_labels", asked.shift_labels), ("score_from", asked.score_from)):
            if given:
                raise BigvocabError(
                    Keyword(name),
                    ": belongs to evaluate, which sees sequences whole; expected rows and labels that match, such as "
                    "logits[:, :-1] and labels[:, 1:]",
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
        mine, theirs = self.scorer.options(), other.scorer.options()
        if self.coverage is None and not self.seen and theirs == with_told(mine, theirs):
            self.scorer.tell(other.scorer)
            mine = theirs
        if other.coverage is None and not other.seen:
            theirs = with_told(theirs, mine)
        if differing := [name for name in mine | theirs if mine.get(name) != theirs.get(name)]:
            name = differing[0]
            raise BigvocabError(
                f"merge: {name} is {mine.get(name)!r} here and {theirs.get(name)!r} there; expected the same options"
            )
        if self.scorer.draws is not None and self.scorer.draws.ordered:
            raise BigvocabError("merge: learned-unigram draws by the rows before, expected one evaluator for all rows")
        if self.coverage is None and other.coverage is None:
            refuse_same_draws(mine, self.tally.counts, other.tally.counts)
        self.coverage = merged_coverage(self.coverage, other.coverage)
        self.tally.merge(other.tally)

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
        arguments.path("path", path)
        write_state(path, self._state())

    def to_bytes(self) -> bytes:
        """What `save` writes, as bytes: for engines whose own output carries the sums.

        >>> ev = Evaluator()
        >>> _ = ev.update([[0.0, 0.0]], [1])
        >>> Evaluator.from_bytes(ev.to_bytes()).report()["rows"]
        1
        """
        return state_bytes(self._state())

    def _state(self) -> State:
        draws = self.scorer.draws
        sums, table = stored(self.tally)
        state = State("evaluate", self.scorer.identity(), self.scorer.given(), sums, table, self.coverage, self.seen)
        state.model, state.notes = self.scorer.model, self._notes()
        if draws is not None:
            state.sampled = as_options(draws.shown())
            state.learned = draws.learned() if self.coverage is None else None
        return state

    @classmethod
    def load(cls, path: str | os.PathLike[str], **options: Unpack[EvaluatorOptions]) -> Evaluator:
        """The evaluator that `save`, or a run with `state`, has written.

        Args:
            path: the state file.
            options: keywords of `Evaluator` in place of what the state holds: arrays over 1 MiB, which it does not, and
                `threads`.

        Raises:
            BigvocabError: no such file, a newer version, or options that are not those of the state; FormatError: a
                damaged file.
        """
        return cls._of_state(read_state(path), options)

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview, **options: Unpack[EvaluatorOptions]) -> Evaluator:
        """The evaluator that `to_bytes` made bytes of; `options` and errors as of `load`."""
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"data: expected bytes, got {type(data).__name__}")
        return cls._of_state(read_state(data), options)

    @classmethod
    def _of_state(cls, state: State, options: Any) -> Evaluator:
        if state.task == "classes":
            raise BigvocabError(
                f"{state.path}: is of a range of classes, expected a state of rows; `bigvocab merge` takes it"
            )
        if state.task != "evaluate":
            raise BigvocabError(f"{state.path}: is of the task {state.task}, expected a state of an evaluation")
        evaluator = cls.__new__(cls)
        evaluator.scorer = Scorer(Specification.from_json(state.given, state.path, **options))
        names = (state.path, "the options and files given now")
        refuse_difference(state.options, evaluator.scorer.identity(), names)
        with content_of(state.path):
            evaluator.tally = restored(state.sums, state.table, evaluator.specification.measures.accuracies)
        evaluator.coverage, evaluator.seen = state.coverage, state.seen
        if state.learned is not None and evaluator.scorer.draws is not None:
            evaluator.scorer.draws.restore(state.learned)
        return evaluator

    def report(self) -> Report:
        """The report of all rows so far."""
        asked, draws = self.specification, self.scorer.draws
        shown = None if draws is None else draws.shown()
        found = make_report(asked.loss.name, self.tally, shown, exact=asked.measures.exact)
        return with_model(found, self.scorer.model, self._notes())

    def _notes(self) -> list[dict[str, str]]:
        """Those about the model."""
        head, (_, greatest) = self.scorer.head, self.tally.extremes.get("label", (0.0, -1.0))
        return model_notes(head) + padding_notes(head, greatest)
