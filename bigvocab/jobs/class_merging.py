"""States of ranges of classes become one report: statistics merged row by row, in order of class."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from bigvocab.errors import BigvocabError
from bigvocab.evaluation.evaluator import Evaluator
from bigvocab.evaluation.row_results import of_statistics
from bigvocab.evaluation.state import Data, State
from bigvocab.jobs.class_ranges import STATISTICS
from bigvocab.jobs.merging import from_given, refuse_difference, refuse_incomplete, refuse_other_files, state_report
from bigvocab.labels.labels import LabelBatch
from bigvocab.losses.row_statistics import RowStatistics, merged_statistics
from bigvocab.reports.report import Report
from bigvocab.storage.output import LossWriter, loss_lines, loss_schema, replacing

_LAYER = ("weights", "biases", "final_norm", "norm_weight", "norm_bias", "num_classes")
_ROWS = 65_536
_EXPECTED = "expected the states of all ranges"


def merge_classes(states: Sequence[State], output: str | os.PathLike[str] | None) -> Report:
    """The report of states of all ranges of classes, merged row by row in order of class; and losses.parquet."""
    first = states[0]
    for state in states[1:]:
        refuse_difference(first.options, state.options, (first.path, state.path))
        if state.data is None or state.data.classes is None:
            raise BigvocabError(
                f"{state.path}: is of all classes, but {first.path} of a range of them; expected one kind"
            )
        refuse_other_files(_data(first), state.data, (first.path, state.path))
    ordered, data = _all_classes(states), _data(first)
    given = {name: value for name, value in first.given.items() if name not in _LAYER and not name.startswith("norm_")}
    evaluator = Evaluator(**{name: from_given(name, value, first.path) for name, value in given.items()})
    columns = _table(first).column_names
    schema = loss_schema(evaluator.metrics, weight="weight" in columns, group="group" in columns)
    with contextlib.ExitStack() as stack:
        writer = None if output is None else LossWriter(stack.enter_context(replacing(output)), schema)
        for batch, result in _merged(evaluator, ordered, data.rows):
            evaluator._tally.add(result, batch.groups, batch.num_bytes)
            if writer is not None:
                writer.append(loss_lines(schema, batch.first_row, result, batch.weights, batch.groups))
        if writer is not None:
            writer.close()
    every = [_data(state) for state in ordered]
    data.seconds, data.bytes_read = sum(one.seconds for one in every), sum(one.bytes_read for one in every)
    data.inputs = list({entry["path"]: entry for one in every for entry in one.inputs}.values())
    return state_report(State(first.options, first.given, evaluator._tally, data, path=first.path))


def _data(state: State) -> Data:
    assert state.data is not None
    return state.data


def _table(state: State) -> pa.Table:
    assert state.table is not None
    return state.table


def _classes(state: State) -> tuple[int, int, int]:
    """(first, stop, number of classes) of a state."""
    first, stop, total = _data(state).classes or (0, 0, 0)
    return first, stop, total


def _all_classes(states: Sequence[State]) -> list[State]:
    """The states in order of class, complete: every row of every class, once."""
    ordered = sorted(states, key=_classes)
    for state in ordered:
        refuse_incomplete(_data(state), state.path)
    at, last = 0, _classes(ordered[0])[2]
    for state in ordered:
        first, stop, total = _classes(state)
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


def _merged(evaluator: Evaluator, states: list[State], rows: int) -> Iterator[tuple[LabelBatch, Any]]:
    scale, softcap = evaluator.logit_scale, evaluator.softcap or 0.0
    total = _classes(states[0])[2]
    for start in range(0, rows, _ROWS):
        parts = [_table(state).slice(start, _ROWS).combine_chunks() for state in states]
        groups = np.stack([np.stack([_numbers(part, name) for name in STATISTICS], 1) for part in parts])
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
        yield batch, of_statistics(evaluator, batch, batch.labels, RowStatistics(stats, logits, scale, softcap), total)


def _numbers(part: pa.Table, name: str) -> Any:
    return part.column(name).to_numpy()


def _labels_of(part: pa.Table, row: int) -> LabelBatch:
    names = part.column_names
    batch = LabelBatch(row, _numbers(part, "label"))
    if "weight" in names:
        batch.weights = _numbers(part, "weight")
    if "bytes" in names:
        batch.num_bytes = _numbers(part, "bytes")
    if "group" in names:
        coded = part.column("group").combine_chunks().dictionary_encode()
        coded = coded.combine_chunks() if isinstance(coded, pa.ChunkedArray) else coded
        batch.groups = (coded.indices.to_numpy(zero_copy_only=False).astype(np.int32), coded.dictionary.to_pylist())
    return batch
