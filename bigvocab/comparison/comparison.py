"""Batches of rows of two or more models, one after the other, and the report of all of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt

from bigvocab import arguments
from bigvocab.comparison.batches import labels_of_batch, vectors_of_batch, with_columns
from bigvocab.comparison.blocks import Block
from bigvocab.comparison.comparer import Comparer
from bigvocab.comparison.implied_labels import NoLabels
from bigvocab.comparison.reporting import comparison_report
from bigvocab.comparison.rules import ONLY
from bigvocab.comparison.sides import Sides
from bigvocab.comparison.specification import (
    ComparisonOptions,
    ComparisonSpecification,
    comparison_signature,
    specify_comparison,
)
from bigvocab.comparison.sums import BlockRows, ComparisonSums, refuse_other_kind, restored_sums, stored_sums
from bigvocab.errors import BigvocabError
from bigvocab.evaluation.batches import as_batch, label_batch
from bigvocab.evaluation.compatibility import refuse_difference
from bigvocab.evaluation.coverage import Coverage, merged_coverage
from bigvocab.evaluation.state import State, content_of, read_state, state_bytes, write_state
from bigvocab.labels.columns import groups_of
from bigvocab.labels.labels import LabelBatch
from bigvocab.labels.leading import flat_batch
from bigvocab.labels.stored_ids import StoredIds
from bigvocab.reports.report import Report

Floats = npt.NDArray[np.float64]


class Comparison:
    """A reference against one candidate or several, batch by batch: sums are exact, so no split, order, merge or number
    of threads changes the report.

    Args:
        metrics: beside kl: kl_reverse, js, tv, delta_p, tops, entropy, overlap, logit_difference; None is all but the
            last three. For js, tv, tops and logit_difference a layer makes rows of more than 1,048,576 classes twice.
        top_k: the k of the overlap, at most 64.
        llama_cpp: add llama.cpp's own table, where the reference is one of its logits files.
        ignore_index: rows with this label, or one of these, count in no metric.
        num_classes: classes from this one on do not exist on any side; then sides may have more.
        nonfinite: "error" names the first row with a NaN, +inf or no finite logit; "skip" leaves such rows out; "keep"
            lets them through.
        threads: None is all usable cores.
        max_memory: of logits that layers make.
        chunk_rows: of no effect here, where batches come as they are.
        label_column, group_column, cluster_column: columns of the batches of `update_batch`.
        weights, biases, final_norm, norm_weight, norm_bias, norm_epsilon: an output layer; rows of both sides are then
            hidden states. With `reference_` or `candidate_` in front: of that side alone; `candidate_...` may be a dict
            by the name of the candidate.
        model, hidden_states, layer: see `Evaluator`; the same holds.
        logit_scale, softcap: of the logits; the same holds.
        shift_labels, score_from: for sequences in files alone; see `compare`.
        shape, dtype, offset, vocab_shards: how to open sides that are given as files; see `open_matrix`.

    A candidate has its name where several come as a dict; names are those of the first batch. Metrics are in nats.

    Raises:
        BigvocabError: an option outside its range; TypeError: one of the wrong kind.

    Source: comparison/README.md has the formula of each metric.

    >>> import numpy as np
    >>> comparison = Comparison()
    >>> p, q = np.log([[0.5, 0.25, 0.25]]), np.log([[0.25, 0.5, 0.25]])
    >>> comparison.update(p, q, [0]).round(6)
    array([0.173287])
    >>> comparison.report()["difference"]["perplexity_ratio"].__round__(6)
    2.0
    """

    __signature__ = comparison_signature()

    def __init__(self, **options: Unpack[ComparisonOptions]) -> None:
        specify_comparison((ONLY,), **options)  # what is wrong is said now
        self._options: dict[str, Any] = dict(options)
        self._comparer: Comparer | None = None
        self.sums: ComparisonSums | None = None
        self.seen = 0  # rows that came by `update`
        self.coverage: Coverage | None = None  # which rows of which files it holds, where they came from a job's state

    # ---- batches

    def update(
        self,
        reference: Any,
        candidate: Any,
        labels: npt.ArrayLike | None = None,
        groups: Sequence[Any] | None = None,
        clusters: Sequence[Any] | None = None,
    ) -> Floats | dict[str, Floats]:
        """Add a batch and return the kl of each row; NaN where the row is ignored or skipped.

        Args:
            reference: (..., V) logits of any type, layout, library or source of `open_matrix`, or a llama.cpp logits
                file; hidden states (..., D) where there is an output layer.
            candidate: as `reference`, of the same rows; several as a dict by name.
            labels: (...) integers; without them, there are no metrics of losses.
            groups: (...) names; the report has metrics for each.
            clusters: (...) names; rows of one are not independent, and errors take account of it.

        Returns:
            float64 (...), in nats; a dict of these where candidates came as a dict.

        Raises:
            BigvocabError: rows or classes that differ, a label out of range, a row that is not finite, with its number
                in the batch, labels or clusters of some batches alone; nothing of the batch is counted then.
                TypeError: arrays of the wrong kind.

        >>> Comparison().update([[0.0, 0.0]], {"q8": [[0.0, 0.0]], "q4": [[0.0, 1.0]]})["q8"]
        array([0.])
        """
        self._refuse_rows_of_files()
        named = _named(candidate)
        comparer = self._comparer_for(tuple(named))
        sides = comparer.open(reference, named)
        labelled, batch, shape = _batch(sides, labels, groups, clusters, comparer.specification.stored_ids)
        blocks = list(comparer.blocks(sides, batch, "labels", labelled=labelled))
        found = {name: column.reshape(shape) for name, (column, _) in self._add(comparer, sides, blocks).items()}
        return found if isinstance(candidate, Mapping) else found[ONLY]

    def update_batch(self, batch: Any) -> Any:
        """Add a pyarrow RecordBatch or Table and return the same kind with a column `kl` appended: for map_batches and
        mapInArrow. Anything else with `__arrow_c_stream__` (Polars, pandas, DuckDB) comes back as a Table.

        Logits, or hidden states, are the columns `reference` and `candidate`; where there is none of the latter, each
        other column of vectors is a candidate by its name, and gets a column `NAME.kl`. Labels are `label_column`, or
        a column called label or labels.

        Raises:
            BigvocabError: columns that are missing or of the wrong type, or what `update` refuses; TypeError: no batch.

        >>> import pyarrow as pa
        >>> rows = pa.FixedSizeListArray.from_arrays(pa.array([0.0, 0.0]), 2)
        >>> Comparison().update_batch(pa.table({"reference": rows, "candidate": rows}))["kl"].to_pylist()
        [0.0]
        """
        self._refuse_rows_of_files()
        asked = specify_comparison((), **self._options) if self._comparer is None else self._comparer.specification
        batch = as_batch(batch)
        reference, named, rest = vectors_of_batch(batch)
        comparer = self._comparer_for(tuple(named))
        sides = comparer.open(reference, named)
        parts = labels_of_batch(rest, asked)
        labelled = parts is not None
        blocks = [
            block
            for part in (NoLabels(sides.num_rows) if parts is None else parts)
            for block in comparer.blocks(sides, part, "labels", labelled=labelled)
        ]
        found = self._add(comparer, sides, blocks)
        return with_columns(batch, {"kl" if name == ONLY else f"{name}.kl": column for name, column in found.items()})

    def _comparer_for(self, names: tuple[str, ...]) -> Comparer:
        """The layers for candidates of these names, opened at the first batch."""
        known = () if self._comparer is None else tuple(self._comparer.candidates)
        if self._comparer is None or self.sums is None and known != names:  # nothing was counted with other names
            self._comparer, known = Comparer(specify_comparison(names, **self._options)), names
        if sorted(known) != sorted(names):
            raise BigvocabError(f"candidate: got {', '.join(names)}, expected {', '.join(known)}, as before")
        return self._comparer

    def _add(self, comparer: Comparer, sides: Sides, blocks: list[Block]) -> dict[str, tuple[Floats, Any]]:
        """Count the blocks of a batch, all of which are there; the kl of each row, and which count."""
        for block in blocks[:1]:
            refuse_other_kind({} if self.sums is None else self.sums.beside(), BlockRows(block).beside(), "update")
        if self.sums is None:
            self.sums = comparer.new_sums(sides)
        found = {name: (np.full(sides.num_rows, np.nan), np.zeros(sides.num_rows, bool)) for name in sides.candidates}
        for block in blocks:
            for name, rows in block.rows.items():
                here = slice(block.start, block.stop)
                found[name][0][here] = np.where(rows.counted, rows.columns["kl"], np.nan)
                found[name][1][here] = rows.counted
                rows.rows = rows.rows + self.seen
            BlockRows(block).add_to(self.sums)
        self.seen += sides.num_rows
        return found

    def _refuse_rows_of_files(self) -> None:
        if self.coverage is not None:
            raise BigvocabError(
                "update: this comparison holds rows of a job over files, expected a new one for other rows"
            )

    # ---- the whole

    def merge(self, other: Comparison) -> None:
        """Add all that `other` has seen; both must have the same options and candidates.

        Raises:
            BigvocabError: other options, rows that are in both; TypeError: no Comparison.

        >>> a, b = Comparison(), Comparison()
        >>> _ = a.update([[0.0, 0.0]], [[0.0, 0.0]]), b.update([[0.0, 1.0]], [[0.0, 0.0]])
        >>> a.merge(b)
        >>> a.report()["rows"]
        2
        """
        if not isinstance(other, Comparison):
            raise TypeError(f"merge: expected a Comparison, got {type(other).__name__}")
        if other is self:
            raise BigvocabError("merge: got the comparison itself, expected another; its rows would count twice")
        if other.sums is None or other._comparer is None:
            return
        comparer = self._comparer_for(tuple(other._comparer.candidates))
        names = ("this comparison", "merge")
        refuse_difference(comparer.options(), other._comparer.options(), names)
        refuse_other_kind({} if self.sums is None else self.sums.beside(), other.sums.beside(), "merge")
        if self.sums is None:
            self.sums, self.coverage = ComparisonSums.of(comparer.candidates), other.coverage
        else:
            self.coverage = merged_coverage(self.coverage, other.coverage, names)
        self.sums.merge(other.sums)
        self.seen += other.seen

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all that this comparison holds to a state file, whole or not at all: for `load`, and for `bigvocab
        merge`.
        """
        arguments.path("path", path)
        write_state(path, self._state())

    def to_bytes(self) -> bytes:
        """What `save` writes, as bytes: for engines whose own output carries the sums.

        >>> comparison = Comparison()
        >>> _ = comparison.update([[0.0, 0.0]], [[0.0, 1.0]])
        >>> Comparison.from_bytes(comparison.to_bytes()).report()["rows"]
        1
        """
        return state_bytes(self._state())

    def _state(self) -> State:
        if self.sums is None or self._comparer is None:
            raise BigvocabError("save: this comparison has seen no batch, expected at least one before its state")
        sums, table = stored_sums(self.sums)
        comparer = self._comparer
        return State("compare", comparer.identity(), comparer.given(), sums, table, self.coverage, self.seen)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, threads: int | None = None) -> Comparison:
        """The comparison that `save`, or a run with `state`, has written.

        Raises:
            BigvocabError: no such file, a newer version, or a layer that is not that of the state; FormatError: a
                damaged file.
        """
        return cls._of_state(read_state(path), threads)

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview, *, threads: int | None = None) -> Comparison:
        """The comparison that `to_bytes` made bytes of; errors as of `load`."""
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"data: expected bytes, got {type(data).__name__}")
        return cls._of_state(read_state(data), threads)

    @classmethod
    def _of_state(cls, state: State, threads: int | None) -> Comparison:
        if state.task != "compare":
            raise BigvocabError(f"{state.path}: is of the task {state.task}, expected a state of a comparison")
        comparison = cls.__new__(cls)
        comparison._options = {}
        comparison._comparer = Comparer(ComparisonSpecification.from_json(state.given, state.path, threads=threads))
        refuse_difference(state.options, comparison._comparer.identity(), (state.path, "the files there are now"))
        with content_of(state.path):
            comparison.sums = restored_sums(state.sums, state.table, state.path)
        comparison.coverage, comparison.seen = state.coverage, state.seen
        return comparison

    def report(self) -> Report:
        """The report of all rows so far."""
        return comparison_report(ComparisonSums.of(()) if self.sums is None else self.sums)


def _named(candidate: Any) -> dict[str, Any]:
    """The candidates by name."""
    if not isinstance(candidate, Mapping):
        return {ONLY: candidate}
    return check_names(candidate)


def check_names(candidates: Mapping[Any, Any]) -> dict[str, Any]:
    """Candidates by name.

    Raises:
        TypeError: a name that is no text; BigvocabError: no candidate, or an empty name.
    """
    for name in candidates:
        if not isinstance(name, str):
            raise TypeError(f"candidate: expected names for keys, got {type(name).__name__}")
        if not name.strip() or name == "reference":
            raise BigvocabError(f"candidate: got the name {name!r}, expected one that tells it apart")
    if not candidates:
        raise BigvocabError("candidate: got an empty dict, expected at least one candidate")
    return dict(candidates)


def _batch(
    sides: Sides, labels: Any, groups: Any, clusters: Any, stored_ids: StoredIds
) -> tuple[bool, LabelBatch, tuple[int, ...]]:
    """Whether there are labels, the batch of all rows, and the shape in which they came."""
    from bigvocab.kernels.row_statistics import NO_LABEL

    rows, stored = sides.num_rows, sides.reference.stored
    shape = (rows,) if stored is None or sides.leader is not None else stored.leading
    if labels is None and sides.leader is not None:
        labels = sides.leader.labels
    leading = shape
    if labels is not None:
        labels, _, groups, shape = flat_batch(labels, None, groups, leading, one_each=True)
        batch = label_batch(("id",), labels, None, groups, rows=rows, stored=stored_ids)
    else:
        batch = LabelBatch(0, np.full(rows, NO_LABEL))
        if groups is not None:
            batch.groups = groups_of(groups)
            arguments.one_per_row("groups", batch.groups[0], rows)
    if clusters is not None:
        batch.clusters = groups_of(clusters)
        arguments.one_per_row("clusters", batch.clusters[0], rows)
    return labels is not None, batch, shape
