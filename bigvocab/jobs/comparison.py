"""compare: one job over the files of two models or more, block by block, in bounded memory, to one report."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import Any, Unpack

from bigvocab.comparison.comparer import Comparer
from bigvocab.comparison.comparison import check_names
from bigvocab.comparison.implied_labels import LlamaLabels, NoLabels
from bigvocab.comparison.rules import candidate_names, comparison_faults, rows_for, value_for
from bigvocab.comparison.sides import Sides
from bigvocab.comparison.specification import (
    COMPARISON_DEFAULTS,
    ComparisonOptions,
    ComparisonSpecification,
    comparison_signature,
    specify_comparison,
)
from bigvocab.evaluation.keywords import given_among
from bigvocab.jobs.comparison_task import ComparisonTask
from bigvocab.jobs.evaluation import row_range
from bigvocab.jobs.opening import LabelsOnce
from bigvocab.jobs.pages import check_page, write_page
from bigvocab.jobs.run import Progress, RunOptions, run_task
from bigvocab.labels.label_sources import LabelSource
from bigvocab.labels.sequences import as_sequences
from bigvocab.matrices.sequences import sequence_edges
from bigvocab.reports.report import Report


def compare(
    *,
    reference: Any = None,
    candidate: Any = None,
    labels: Any = None,
    inputs: Any = None,
    reference_inputs: Any = None,
    candidate_inputs: Any = None,
    output: str | os.PathLike[str] | None = None,
    report: str | os.PathLike[str] | None = None,
    report_every: float | None = None,
    html: str | os.PathLike[str] | None = None,
    shard: str | tuple[int, int] | None = None,
    vocab_shard: None = None,
    weight_column: None = None,
    state: str | os.PathLike[str] | None = None,
    resume: bool = False,
    engine: str | None = None,
    workers: int | None = None,
    address: str | None = None,
    progress: Progress | None = None,
    **options: Unpack[ComparisonOptions],
) -> Report:
    """Compare candidates with a reference, row by row, in files or arrays, in bounded memory.

    Args:
        reference: logits (N, V): a path, a glob, a folder, a list of paths, an array, or a llama.cpp logits file.
        candidate: the same, or a dict of candidates by name; the reference is read once for all.
        labels: a path, a list of paths, or an array: one class per row. None: those of a llama.cpp file; without any,
            there are no metrics of losses. `shift_labels` and `score_from` are as of `evaluate`.
        inputs: hidden states (N, D) of both sides, whose `weights` (V, D) are among the options.
        reference_inputs: of the reference alone, as is every option that begins so.
        candidate_inputs: of the candidates; one for all or a dict by name, as is every option that begins so.
        output: path of a Parquet file, one record per row.
        report: path of report.json.
        report_every: seconds; `report` is also written this often, then with `progress` {rows_done, rows_total}.
        html: path of a page of the report, which needs bigvocab[html].
        shard: "I/N" or (I, N): only the I-th of N equal ranges of rows; see `evaluate`.
        vocab_shard: refused: metrics of ranges of classes do not merge.
        weight_column: refused: percentiles and flips have no weights.
        state: path of the state file, written at checkpoints and at the end.
        resume: continue from `state` if it exists; a run that had ended only reports again.
        engine: "local" or "ray": ranges of rows go to `workers` processes, here or on a cluster.
        workers: how many; None is one process, or all of a cluster.
        address: of a Ray cluster; None is RAY_ADDRESS, or a Ray of our own.
        progress: called with (rows done, rows in all, bytes read).
        options: those of `Comparison`. `chunk_rows` and `max_memory` are as of `evaluate`.

    Rows are matched by position. Beside a llama.cpp file other sides may have the rows that it scored, or those of
    every position of its windows.

    Raises:
        BigvocabError: rows or classes that differ, bad values, named by file and row; FormatError: files that are not
            what they say. No output is left then. TypeError: arguments of the wrong kind.

    Source: comparison/README.md has the formula of each metric.

    >>> import numpy as np
    >>> p, q = np.log([[0.5, 0.25, 0.25]] * 2), np.log([[0.25, 0.5, 0.25]] * 2)
    >>> round(compare(reference=p, candidate=q, labels=[0, 2])["kl"]["mean"], 6)
    0.173287
    """
    run = RunOptions.checked(output, report, report_every, state, resume, engine, workers, address)
    if unknown := [name for name in options if name not in COMPARISON_DEFAULTS]:
        of_command = "; it belongs to the command" if unknown[0] in ("fail_if", "format", "quiet") else ""
        raise TypeError(f"compare() got an unexpected keyword argument {unknown[0]!r}{of_command}")
    rows = {
        "reference": reference, "candidate": candidate, "inputs": inputs, "reference_inputs": reference_inputs,
        "candidate_inputs": candidate_inputs,
    }  # fmt: skip
    asked = {
        **COMPARISON_DEFAULTS, **options, **run.given(), **rows, "labels": labels, "html": html, "shard": shard,
        "vocab_shard": vocab_shard, "weight_column": weight_column,
    }  # fmt: skip
    for name, value in asked.items():
        if name.startswith("candidate") and isinstance(value, Mapping):
            check_names(value)
    for fault in comparison_faults(asked, given_among(asked)):
        raise fault
    names = candidate_names(asked)
    with_logits: set[str | None] = {name for name in names if rows_for(asked, "candidate", name) is not None}
    with_logits |= {None} if reference is not None else set()
    comparer = Comparer(specify_comparison(names, with_logits=with_logits, **options))
    specification = comparer.specification
    opened = LabelsOnce(labels, ("id", "list"), specification.columns.keywords(), specification.stored_ids)
    sides = comparer.open(*_rows(asked, comparer), None if labels is None else opened.count)
    found, labelled = _labels(comparer.specification, sides, None if labels is None else opened)
    part = row_range(shard, sides.num_rows)
    task = ComparisonTask(comparer, sides, found, labelled=labelled, part=part, records=output is not None)
    check_page(html, [*task.data.paths(), *task.files()])
    task.check()
    found_report = run_task(task, run, progress=progress)
    write_page(html, found_report)
    return found_report


def _rows(asked: Mapping[str, Any], comparer: Comparer) -> tuple[Any, dict[str, Any]]:
    """What the reference and each candidate were given: logits, else hidden states."""

    def given(prefix: str, name: str | None = None) -> Any:
        logits = rows_for(asked, prefix, name)
        return value_for(asked, prefix, "inputs", name) if logits is None else logits

    return given("reference"), {name: given("candidate", name) for name in comparer.candidates}


def _labels(asked: ComparisonSpecification, sides: Sides, opened: LabelsOnce | None) -> tuple[LabelSource, bool]:
    """The labels, or what stands for them; and whether there are any."""
    if opened is not None:
        stored, first = sides.reference.stored, sides.reference
        whole = stored is not None and first.which is None
        found = opened.beside(stored.leading if stored is not None and whole else (sides.num_rows,))
        sequences = as_sequences(
            found,
            sides.num_rows,
            sequence_edges(stored) if stored is not None and whole else None,
            kinds=("id",),
            shift=asked.sequences.shift_labels,
            score_from=asked.sequences.score_from,
            rows_name=first.shown,
        )
        return sequences, True
    if sides.leader is not None:
        return LlamaLabels(sides.leader, asked.stored_ids), True
    return NoLabels(sides.num_rows), False


_OWN = [one for one in inspect.signature(compare).parameters.values() if one.kind is one.KEYWORD_ONLY]
compare.__signature__ = comparison_signature(*_OWN)  # type: ignore[attr-defined]  # with the keywords of **options
