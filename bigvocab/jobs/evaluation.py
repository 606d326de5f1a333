"""evaluate: one job over files, block by block, in bounded memory, to one report."""

from __future__ import annotations

import inspect
import os
from dataclasses import replace
from typing import Any, Unpack

from bigvocab.arguments import parse_shard
from bigvocab.errors import BigvocabError
from bigvocab.evaluation.keywords import DEFAULTS, EvaluatorOptions, given_among, signature
from bigvocab.evaluation.rules import refuse_faults
from bigvocab.evaluation.scoring import Scorer
from bigvocab.evaluation.specification import specify
from bigvocab.jobs.class_ranges import ClassTask, class_range
from bigvocab.jobs.data import JobData
from bigvocab.jobs.evaluation_task import EvaluationTask
from bigvocab.jobs.label_logits import LabelLogits
from bigvocab.jobs.label_logits_task import LabelLogitsTask, write_task
from bigvocab.jobs.opening import LabelsOnce, are_swapped, column_of, in_sequences
from bigvocab.jobs.run import Progress, RunOptions, refuse_serial, run_task
from bigvocab.jobs.shift_notes import shift_notes
from bigvocab.reports.report import Report


def evaluate(
    *,
    labels: Any,
    logits: Any = None,
    inputs: Any = None,
    output: str | os.PathLike[str] | None = None,
    report: str | os.PathLike[str] | None = None,
    report_every: float | None = None,
    html: str | os.PathLike[str] | None = None,
    shard: str | tuple[int, int] | None = None,
    vocab_shard: str | tuple[int, int] | None = None,
    first_class: int | None = None,
    label_logits: Any = None,
    save_label_logits: str | os.PathLike[str] | None = None,
    state: str | os.PathLike[str] | None = None,
    resume: bool = False,
    engine: str | None = None,
    workers: int | None = None,
    address: str | None = None,
    progress: Progress | None = None,
    **options: Unpack[EvaluatorOptions],
) -> Report:
    """Evaluate logits in files, or arrays, against labels in files, or arrays, in bounded memory.

    Args:
        labels: a path, a list of paths, or an array. `FOLDER::name` is a tensor of each file of a folder: one file per
            sequence, as serving systems write them.
        logits: (N, V): a path, a glob, a folder, a list of paths, or an array.
        inputs: hidden states (N, D) in place of logits; `weights` (V, D) and what else makes logits of them are among
            the options.
        shift_labels: row t of a sequence is scored on label t + 1 of it, and its last row is ignored: for labels that
            are the tokens of the inputs. Sequences are the files of labels, or the rows of (B, T) labels, or those of
            the inputs; else all rows are one.
        score_from: rows before this position of their sequence are ignored.
        layer: which of the L layers of states (T, L, D); None is the last, where the labels are as many as T.
        output: path of losses.parquet, one record per row.
        report: path of report.json.
        report_every: seconds; `report` is also written this often, then with `progress` {rows_done, rows_total}.
        html: path of a page to look at, one file that loads nothing; needs bigvocab[html].
        shard: "I/N" or (I, N), I from 1 to N: only the I-th of N equal ranges of rows. Its `state` merges with those
            of the others, by `merge`.
        vocab_shard: the same for ranges of classes, over all rows: the I-th of N equal ones, or of the files of a set
            that is split by classes.
        first_class: the files hold a slice of the classes only, from this one on; `num_classes` is that of all slices.
        label_logits: files of logits of labels, for ranks where each machine holds a slice; see `write_label_logits`.
        save_label_logits: the path to write those of this slice to, and nothing else.
        state: path of the state file, written at checkpoints and at the end.
        resume: continue from `state` if it exists; a run that had ended only reports again.
        engine: "local" or "ray": ranges of rows go to `workers` processes, here or on a cluster.
        workers: how many; None is one process, or all of a cluster.
        address: of a Ray cluster; None is RAY_ADDRESS, or a Ray of our own.
        progress: called with (rows done, rows in all, bytes of logits read).
        options: those of `Evaluator`. Here `chunk_rows` is the rows of a block (None chooses by `max_memory`; no number
            depends on it), and `max_memory` bytes, or "512M", of logits mapped at a time, whatever chunk_rows says, but
            never less than two rows. In Fortran order a block of rows touches every page of its file.

    Raises:
        BigvocabError: bad values, named by file and row; FormatError: files that are not what they say. No output is
            left then. TypeError: arguments of the wrong kind.

    Source: the losses are those of the array functions, which name theirs; losses are in nats.

    >>> import numpy as np
    >>> evaluate(logits=np.zeros((2, 4), np.float32), labels=[1, 3])["perplexity"]
    4.0
    """
    run = RunOptions.checked(output, report, report_every, state, resume, engine, workers, address, html)
    if unknown := [name for name in options if name not in DEFAULTS]:
        of_command = "; it belongs to the command" if unknown[0] in ("fail_if", "format", "quiet") else ""
        raise TypeError(f"evaluate() got an unexpected keyword argument {unknown[0]!r}{of_command}")
    asked = {
        **DEFAULTS, **options, **run.given(), "logits": logits, "inputs": inputs, "shard": shard,
        "vocab_shard": vocab_shard, "first_class": first_class, "label_logits": label_logits,
        "save_label_logits": save_label_logits,
    }  # fmt: skip
    total = options.pop("num_classes", None) if first_class is not None else options.get("num_classes")
    specification = specify(**options)
    refuse_faults({**asked, "metrics": specification.measures.metrics}, given_among(asked))
    scorer = Scorer(specification)
    run = replace(run, shown=scorer.shown())
    data = open_data(scorer, inputs if logits is None else logits, labels)
    if vocab_shard is None and first_class is None:
        task = EvaluationTask(scorer, data, row_range(shard, data.num_rows), records=output is not None)
        task.check()
        shifted, column = specification.sequences.shift_labels, column_of(labels, specification.columns.label)
        task.notes += shift_notes(data.source, data.labels, specification.loss, shifted=shifted, column=column)
        if shard is not None:
            refuse_serial(task, "shard")
        return run_task(task, run, progress=progress)
    assert not isinstance(total, str)  # by the rules
    span = class_range(data.source, parse_shard("vocab_shard", vocab_shard), first_class, total)
    whole = first_class is None
    if save_label_logits is not None:
        return write_task(LabelLogitsTask(scorer, data, span, whole=whole), save_label_logits, progress=progress)
    known = None if label_logits is None else LabelLogits(label_logits, data.num_rows)
    classes = ClassTask(scorer, data, span, whole=whole, label_logits=known)
    classes.check()
    return run_task(classes, run, progress=progress)


def write_label_logits(
    output: str | os.PathLike[str],
    *,
    labels: Any,
    logits: Any = None,
    inputs: Any = None,
    vocab_shard: str | tuple[int, int] | None = None,
    first_class: int | None = None,
    progress: Progress | None = None,
    **options: Unpack[EvaluatorOptions],
) -> Report:
    """Write the logit of each row's label, where a slice of the classes holds it: the first pass of slices.

    A machine that holds a slice cannot count the logits above a label's whose logit another slice holds. So each writes
    those it holds, and `evaluate(label_logits=[...])` takes the files of all.

    Args:
        output: path of the Arrow IPC file, which appears whole or not at all: a column `label_logit` (N,), raw, null
            where the slice does not hold the label, or the row is ignored.
        labels: as of `evaluate`, as all that follow.
        logits: of the slice.
        inputs: hidden states, with `weights` of the slice among the options.
        vocab_shard: (I, N): the files are of all classes, and these are the I-th of N ranges.
        first_class: the files hold the classes from this one on, of `num_classes`.
        progress: called with (rows done, rows in all, bytes read).
        options: those of `Evaluator`.

    Returns:
        A report with `label_logits`, how many there are.

    Raises:
        BigvocabError, FormatError: as `evaluate`.

    >>> import tempfile
    >>> import numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = write_label_logits(f"{folder}/0.arrow", logits=np.zeros((3, 2)), labels=[0, 3, 1], first_class=0,
    ...         num_classes=4)
    >>> found["label_logits"]
    2
    """
    return evaluate(
        labels=labels,
        logits=logits,
        inputs=inputs,
        vocab_shard=vocab_shard,
        first_class=first_class,
        save_label_logits=output,
        progress=progress,
        **options,
    )


def open_data(scorer: Scorer, values: Any, labels: Any) -> JobData:
    """Logits or hidden states and labels, opened as a specification says."""
    asked = scorer.specification
    opening = asked.opening.keywords(logits=scorer.head is None)
    kinds, columns = asked.loss.spec.labels, asked.columns.keywords()
    opened = LabelsOnce(labels, kinds, columns, asked.loss.stored_ids, asked.label_dtype)
    try:
        source = scorer.source(values, label_rows=opened.count, **opening)
    except BigvocabError as error:
        if scorer.head is None and are_swapped(values, labels):
            raise error.hinted("; are logits and labels swapped?") from None
        raise
    found = in_sequences(opened.beside(source.stored.leading), source, kinds, asked.sequences)
    return JobData([source], found, scorer.names_of(source, found.path if found.files else "labels"))


def row_range(shard: Any, rows: int) -> tuple[int, int]:
    """The rows of a shard: the I-th of N ranges, as equal as can be."""
    i, n = parse_shard("shard", shard) or (1, 1)
    return rows * (i - 1) // n, rows * i // n


_OWN = [one for one in inspect.signature(evaluate).parameters.values() if one.kind is one.KEYWORD_ONLY]
evaluate.__signature__ = signature(*_OWN)  # type: ignore[attr-defined]  # with the keywords that **options takes
