"""States of ranges of classes become one report: statistics merged row by row, in order of class."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from bigvocab.errors import BigvocabError
from bigvocab.evaluation.compatibility import refuse_difference
from bigvocab.evaluation.context import RowContext
from bigvocab.evaluation.coverage import refuse_incomplete, refuse_other_files
from bigvocab.evaluation.model_report import with_model
from bigvocab.evaluation.observations import may_be_probabilities, may_be_there_twice
from bigvocab.evaluation.reporting import make_report, refuse_nothing, with_rates
from bigvocab.evaluation.row_losses import add_highest, most_kept, of_statistics
from bigvocab.evaluation.row_result import RowResult
from bigvocab.evaluation.specification import Specification
from bigvocab.evaluation.state import State
from bigvocab.evaluation.tally import Tally
from bigvocab.jobs.class_ranges import ClassSpan, statistics_of
from bigvocab.jobs.class_records import Looks, merged_highest
from bigvocab.jobs.records import RecordWriter, ranking_columns_of, record_schema, records_of
from bigvocab.labels.labels import LabelBatch
from bigvocab.losses.highest_rows import HighestRows
from bigvocab.losses.row_statistics import RowStatistics, merged_statistics
from bigvocab.matrices.names import DataNames
from bigvocab.reports.report import Report
from bigvocab.storage.output import replacing

# fmt: off
_LAYER = ("weights", "biases", "final_norm", "norm_weight", "norm_bias", "norm_epsilon", "num_classes",
          "model", "hidden_states", "layer")
# fmt: on
_OF_MODEL = ("logit_scale", "softcap")  # which a state of a model holds as options alone
_ROWS = 65_536
_EXPECTED = "expected the states of all ranges"


def merge_classes(states: Sequence[State], output: str | os.PathLike[str] | None) -> Report:
    """The report of states of all ranges of classes, merged row by row in order of class; and losses.parquet."""
    first = states[0]
    for state in states[1:]:
        refuse_difference(first.options, state.options, (first.path, state.path))
        if state.task != first.task:
            raise BigvocabError(
                f"{state.path}: is of all classes, but {first.path} of a range of them; expected one kind"
            )
        refuse_other_files(first.covered(), state.covered(), (first.path, state.path))
    ordered, coverage = _all_classes(states), first.covered()
    given = {name: value for name, value in first.given.items() if name not in _LAYER}
    given |= {name: first.options[name] for name in _OF_MODEL}
    asked = Specification.from_json(given, first.path)
    context, tally = RowContext(asked, DataNames()), Tally(asked.measures.accuracies)
    columns = first.table.column_names
    schema = record_schema(
        asked.measures.metrics,
        weight="weight" in columns,
        group="group" in columns,
        half_ranks=asked.measures.ties == "mean",
        ranking=ranking_columns_of(asked.measures),
    )
    with contextlib.ExitStack() as stack:
        writer = None if output is None else RecordWriter(stack.enter_context(replacing(output)), schema)
        for batch, result in _merged(context, ordered, coverage.rows):
            tally.add(result, batch)
            if writer is not None:
                writer.append(records_of(schema, batch, result))
        if writer is not None:
            writer.close()
    every = [state.covered() for state in ordered]
    coverage.seconds, coverage.bytes_read = sum(one.seconds for one in every), sum(one.bytes_read for one in every)
    coverage.inputs = list({entry["path"]: entry for one in every for entry in one.inputs}.values())
    refuse_nothing(first.path, tally.counts, coverage.rows)
    return with_model(with_rates(make_report(asked.loss.name, tally, None), coverage), first.model, first.notes)


def _span(state: State) -> ClassSpan:
    """The classes of a state."""
    return ClassSpan(*(state.covered().classes or (0, 0, 0)))


def _all_classes(states: Sequence[State]) -> list[State]:
    """The states in order of class, complete: every row of every class, once."""
    ordered = sorted(states, key=_span)
    for state in ordered:
        refuse_incomplete(state.covered(), state.path)
    at, last = 0, _span(ordered[0]).total
    for state in ordered:
        first, stop, total = _span(state)
        if total != last:
            raise BigvocabError(
                f"{state.path}: is of {total} classes, but {ordered[0].path} of {last}; expected the same"
            )
        if first > at:
            raise BigvocabError(f"{state.path}: classes {at}-{first - 1} of 0-{last - 1} are missing; {_EXPECTED}")
        if first < at:
            raise BigvocabError(
                f"{state.path}: classes {first}-{min(at, stop) - 1} are in another state too; "
                "merging would count them twice"
            )
        at = stop
    if at < last:
        raise BigvocabError(f"merge: classes {at}-{last - 1} of 0-{last - 1} are missing; {_EXPECTED}")
    return ordered


def _merged(context: RowContext, states: list[State], rows: int) -> Iterator[tuple[LabelBatch, Any]]:
    scale, softcap = context.loss.transform
    total, names = _span(states[0]).total, statistics_of(context.specification)
    nameable = _nameable(states[0])
    for start in range(0, rows, _ROWS):
        parts = [state.table.slice(start, _ROWS).combine_chunks() for state in states]
        groups = np.stack([np.stack([_numbers(part, name) for name in names], 1) for part in parts])
        stats = merged_statistics(groups, scale, softcap)
        logits = np.full(len(stats), np.nan)
        for part, state in zip(parts, states, strict=True):
            known = part.column("label_logit").is_valid().to_numpy()
            found = part.column("label_logit").to_numpy(zero_copy_only=False)
            differ = known & ~np.isnan(logits) & ~np.isnan(found) & (found != logits)
            if differ.any():
                at = int(np.argmax(differ))
                raise BigvocabError.of_row(
                    state.path,
                    start + at,
                    f" has {found[at]} as the logit of its label, but {logits[at]} in "
                    "another state; expected all of the same logits",
                )
            logits = np.where(known, found, logits)
        batch = _labels_of(parts[0], start)
        batch.nameable = nameable
        found = RowStatistics(stats, logits, scale, softcap)
        result = of_statistics(context, batch, batch.labels, found, total)
        if keep := most_kept(context):
            add_highest(context, batch, HighestRows(found, *merged_highest(parts, keep)), total, result)
        _look(parts, found, context.loss.transform, total, result)
        yield batch, result


def _look(
    parts: Sequence[pa.Table], rows: RowStatistics, transform: tuple[float, float], total: int, result: RowResult
) -> None:
    """As `look_at_logits`, from what the ranges say of a few rows."""
    live = ~result.ignored & rows.finite
    looked, looks = int(np.count_nonzero(live)), Looks(parts, live, rows.maximum)
    if looked and may_be_probabilities(rows, live, total, transform) and looks.are_probabilities():
        result.counts["probability_rows"] = looked
    if looked and may_be_there_twice(result, looked, total) and looks.are_there_twice():
        result.counts["twice_rows"] = looked


def _numbers(part: pa.Table, name: str) -> Any:
    return part.column(name).to_numpy()


def _labels_of(part: pa.Table, row: int) -> LabelBatch:
    names = part.column_names
    batch = LabelBatch(row, _numbers(part, "label"))
    if "weight" in names:
        batch.weights = _numbers(part, "weight")
    if "bytes" in names:
        batch.num_bytes = _numbers(part, "bytes")
    if "position" in names:
        batch.positions = _numbers(part, "position")
    if "text" in names:
        batch.texts = part.column("text").combine_chunks()
    if "group" in names:
        batch.groups = _coded(part.column("group"))
    if "cluster" in names:
        batch.clusters = _coded(part.column("cluster"))
    return batch


def _coded(column: pa.ChunkedArray) -> tuple[Any, list[str]]:
    """Names as codes and names."""
    coded = column.combine_chunks().dictionary_encode()
    coded = coded.combine_chunks() if isinstance(coded, pa.ChunkedArray) else coded
    return coded.indices.to_numpy(zero_copy_only=False).astype(np.int32), coded.dictionary.to_pylist()


def _nameable(state: State) -> int | None:
    """How many classes the labels' stored type can name, where it has 8 or 16 bits."""
    types = {file["dtype"] for file in state.covered().files if file["role"] == "labels"}
    bits = {"int8": 7, "uint8": 8, "int16": 15, "uint16": 16}
    return min((1 << bits[name] for name in types if name in bits), default=None)
