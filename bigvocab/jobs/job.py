"""evaluate: one job over files, block by block, in bounded memory, to one report; outputs are whole or not there."""

from __future__ import annotations

import contextlib
import importlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from bigvocab import arguments
from bigvocab.arguments import integer
from bigvocab.errors import BigvocabError, Keyword
from bigvocab.evaluation.evaluator import OPTIONS, Evaluator
from bigvocab.evaluation.figures import make_report, versions
from bigvocab.evaluation.settings import parse_bytes, parse_shard
from bigvocab.evaluation.state import Data, State
from bigvocab.evaluation.tally import Tally
from bigvocab.jobs.blocks import block_rows, may_grow
from bigvocab.jobs.checkpoints import Checkpoints, files_beside, keeping
from bigvocab.jobs.class_ranges import ClassRange, check_class_job, class_range
from bigvocab.jobs.label_logits import LabelLogits, write_label_logits
from bigvocab.jobs.merging import FILE_OPTIONS, refuse_nothing, state_of, with_times
from bigvocab.jobs.work import Job, Piece, follow_draws, pieces, refuse_ordered_draws
from bigvocab.kernels.jit import keeps_none_yet
from bigvocab.labels.label_sources import check_labels, open_labels
from bigvocab.losses.sigmoid_rows import pos_weight_vector
from bigvocab.matrices import fingerprints
from bigvocab.reports.report import Report
from bigvocab.storage.output import LossWriter, check_writable, loss_schema, refuse_overwriting, replacing, write_text
from bigvocab.threads import usable_cores

Progress = Callable[[int, int, int], None]


def evaluate(
    *,
    labels: Any,
    logits: Any = None,
    inputs: Any = None,
    output: str | os.PathLike[str] | None = None,
    report: str | os.PathLike[str] | None = None,
    report_every: float | None = None,
    vocab_shards: bool = False,
    shape: Any = None,
    dtype: str | None = None,
    offset: int = 0,
    chunk_rows: int | None = None,
    max_memory: int | str | None = None,
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
    **options: Any,
) -> Report:
    """Evaluate logits in files, or arrays, against labels in files, or arrays, in bounded memory.

    Args:
        labels: a path, a list of paths, or an array.
        logits: (N, V): a path, a glob, a folder, a list of paths, or an array.
        inputs: hidden states (N, D) in place of logits; `weights` (V, D) and what else makes logits of them are among
            the options.
        shape: see `open_matrix`.
        dtype: see `open_matrix`.
        offset: see `open_matrix`.
        vocab_shards: see `open_matrix`.
        output: path of losses.parquet, one line per row.
        report: path of report.json.
        report_every: seconds; `report` is also written so often, then with `progress` {rows_done, rows_total}.
        chunk_rows: rows of a block; None chooses by `max_memory`. No figure depends on it.
        max_memory: bytes, or "512M", of logits mapped at a time, whatever chunk_rows says, but never less than two
            rows. In Fortran order a block of rows touches every page of its file.
        shard: "I/N" or (I, N), I from 1 to N: only the I-th of N equal ranges of rows. Its `state` merges with those
            of the others, by `bigvocab merge`.
        vocab_shard: the same for ranges of classes, over all rows: the I-th of N equal ones, or of the files of a set
            that is split by classes.
        first_class: the files hold a slice of the classes only, from this one on; `num_classes` is that of all slices.
        label_logits: files of logits of labels, for ranks where each machine holds a slice; see `vocab_shards`.
        save_label_logits: the path to write those of this slice to, and nothing else.
        state: path of the state file, written at checkpoints and at the end.
        resume: go on from `state`, where it is there; a run that had ended just reports again.
        engine: "local" or "ray": ranges of rows go to `workers` processes, here or on a cluster.
        workers: how many; None is one process, or all of a cluster.
        address: of a Ray cluster; None is RAY_ADDRESS, or a Ray of our own.
        progress: called with (rows done, rows in all, bytes of logits read).
        options: those of `Evaluator`.

    Raises:
        BigvocabError: bad values, named by file and row; FormatError: files that are not what they say. No output is
            left then. TypeError: arguments of the wrong kind.

    Source: the losses are those of the array functions, which name theirs; losses are in nats.

    >>> import numpy as np
    >>> evaluate(logits=np.zeros((2, 4), np.float32), labels=[1, 3])["perplexity"]
    4.0
    """
    vocab_shards, resume = arguments.boolean("vocab_shards", vocab_shards), arguments.boolean("resume", resume)
    if engine not in (None, "local", "ray"):
        raise BigvocabError(Keyword("engine"), f": got {engine!r}, expected local or ray")
    if workers is not None:
        workers = integer("workers", workers, 1, 2**20)
    if engine != "ray" and (workers or 1) > 1:
        from bigvocab.jobs.workers.local import check_process

        check_process()
    if unknown := [name for name in options if name not in OPTIONS]:
        of_command = "; it belongs to the command" if unknown[0] in ("fail_if", "format", "quiet") else ""
        raise TypeError(f"evaluate() got an unexpected keyword argument {unknown[0]!r}{of_command}")
    if report_every is not None and not arguments.real("report_every", report_every) >= 0:
        raise BigvocabError(Keyword("report_every"), f": got {report_every}, expected seconds, 0 or more")
    if resume and state is None:
        raise BigvocabError(Keyword("resume"), ": needs state, expected the path of the state to go on from")
    total = options.pop("num_classes", None) if first_class is not None else options.get("num_classes")
    evaluator = Evaluator(**options)
    values = _logits_or_inputs(evaluator, logits, inputs)
    by_class = vocab_shards and evaluator.layer is None  # files of a layer are ranges of classes in any case
    matrix = evaluator.source(values, vocab_shards=by_class, **_given(shape=shape, dtype=dtype, offset=offset))
    ids = open_labels(labels, evaluator.loss, evaluator.columns)
    if matrix.files and matrix.files[0]["path"] != "<array>":
        evaluator.logits_name = matrix.files[0]["path"]
    evaluator.label_name = ids.path if ids.files else "labels"
    rows = _row_range(shard, len(matrix))
    job = Job(evaluator, matrix, ids, block_rows(evaluator, matrix, chunk_rows, max_memory), *rows)
    if vocab_shard is not None or first_class is not None:
        if shard is not None:
            raise BigvocabError(
                Keyword("shard"), ": does not go with vocab_shard; expected a split by rows or by classes"
            )
        span = class_range(matrix, parse_shard("vocab_shard", vocab_shard), first_class, total)
        known = None if label_logits is None else LabelLogits(label_logits, len(matrix))
        job.classes = ClassRange(matrix, span, whole=first_class is None, label_logits=known)
        if save_label_logits is None:
            check_class_job(evaluator, job.classes)
        if engine == "ray" or (workers or 1) > 1:
            raise BigvocabError(Keyword("engine"), ": shares rows among workers, it does not go with vocab_shard")
    elif label_logits is not None or save_label_logits is not None:
        raise BigvocabError(
            Keyword("label_logits"), ": belong to a range of classes, expected vocab_shard or first_class"
        )
    job.growing = chunk_rows is None and max_memory is None and may_grow(job)
    _check_job(job)
    outputs = {"output": output, "report": report, "state": state, "save_label_logits": save_label_logits}
    refuse_overwriting({**outputs, **files_beside(state)}, _files_read(job, {**options, "label_logits": label_logits}))
    if save_label_logits is not None:
        if given := [name for name in ("output", "report", "state") if outputs[name] is not None]:
            raise BigvocabError(
                Keyword("save_label_logits"), f": writes logits of labels alone, expected no {given[0]} beside it"
            )
        found = write_label_logits(job, save_label_logits)
        return Report(
            {"loss": evaluator.loss, "rows": len(matrix), "label_logits": found, "inputs": [*matrix.files, *ids.files]}
        )
    if job.classes is not None and (output is not None or state is None):
        raise BigvocabError(
            Keyword("vocab_shard"),
            ": writes statistics of rows to a state, expected state and no output; merging makes the losses",
        )
    if evaluator.layer is not None and max_memory is not None:
        evaluator.layer.allow(parse_bytes("max_memory", max_memory))
    if shard is not None:
        refuse_ordered_draws(job, "shard")
    run = _Run(job, output, report, report_every, progress)
    return run.all(state, resume, engine, workers, address)


class _Run:
    """One run of a job: its pieces into the sums, the lines, the checkpoints and the report."""

    def __init__(
        self, job: Job, output: Any, report: Any, report_every: float | None, progress: Progress | None
    ) -> None:
        self.job, self.output, self.report, self.progress = job, output, report, progress
        self.report_every, self._reported = report_every, time.monotonic()
        columns = job.evaluator.columns
        has = {role: columns[role] is not None for role in ("weight", "group", "bytes")}
        if job.classes is not None:
            job.schema = job.classes.schema(weight=has["weight"], group=has["group"], num_bytes=has["bytes"])
        elif output is not None:
            job.schema = loss_schema(job.evaluator.metrics, weight=has["weight"], group=has["group"])

    def all(self, state: Any, resume: bool, engine: str | None, workers: int | None, address: str | None) -> Report:
        """Do what is not done yet, and report."""
        job = self.job
        for path in (self.report, self.output):
            if path is not None:
                check_writable(path, kept=path is self.output and state is not None)
        with keeping(state, self._fresh(state is not None), job.schema, resume=resume) as keeper:
            job.evaluator._tally = keeper.state.tally
            if not keeper.complete:
                compiling = (workers or 1) > 1 and keeps_none_yet()
                if engine != "ray" and ((workers or 1) == 1 or compiling):
                    _make_ready(job, compiling=compiling)
                self._to_the_end(keeper, self._source(keeper.next_row, engine, workers, address))
            elif self.output is not None and not os.path.exists(self.output):
                raise BigvocabError(
                    f"{self.output}: is gone, and the run of {state} has ended; start anew to write it again"
                )
            elif self.output is not None and fingerprints.of_file(self.output) != keeper.data.output_is:
                raise BigvocabError(
                    f"{self.output}: is not what the run of {state} wrote, which has ended; expected that file"
                )
        result = self._result(keeper.data)
        if self.report is not None:
            write_text(self.report, result.to_json() + "\n")
        return result

    def _fresh(self, kept: bool) -> State:
        """The state before any row; what tells inputs apart is looked up where it is to be `kept`."""
        job, classes = self.job, self.job.classes
        inputs = [*job.matrix.files, *job.labels.files]
        data = Data(
            [],
            len(job.matrix),
            dict(job.evaluator.columns),
            part=[job.start, job.stop],
            inputs=inputs,
            output=self.output is not None,
        )
        if not kept:
            return State({}, {}, job.evaluator._tally, data)
        state = state_of(job.evaluator)
        state.data = data
        data.files = list(fingerprints.of_labels(job.labels))
        if classes is not None:  # each range has files of its own
            data.classes = [classes.first, classes.stop, classes.total]
            state.options |= {"layer": None, "num_classes": classes.total}
            return state
        data.files = [*fingerprints.of_matrix(job.matrix.role, job.matrix.stored), *data.files]
        return state

    def _source(self, start: int, engine: str | None, workers: int | None, address: str | None) -> Iterator[Piece]:
        """What is not done, in order, from this process or from others."""
        if engine == "ray":
            from bigvocab.jobs.workers.ray import ray_pieces

            refuse_ordered_draws(self.job, "engine")
            return ray_pieces(self.job, start, workers, address)
        if workers is not None and workers > 1:
            from bigvocab.jobs.workers.local import pool_pieces

            refuse_ordered_draws(self.job, "workers")
            return pool_pieces(self.job, start, workers)
        follow_draws(self.job, start)
        return pieces(self.job, start, self.job.stop)

    def _to_the_end(self, keeper: Checkpoints, source: Iterator[Piece]) -> None:
        """The one loop: pieces into sums and lines; then the files that the lines are for."""
        job = self.job
        with contextlib.closing(source), self._writer(fixed=keeper.kept) as writer:  # type: ignore[type-var]
            sink = keeper if keeper.kept else writer
            self._show(keeper)
            keeper.begin()
            for piece in source:
                keeper.busy = True
                for lines in piece.lines if sink is not None else ():
                    sink.append(lines)  # type: ignore[union-attr]
                piece.add_to(job.evaluator._tally)
                keeper.done(piece.start, piece.stop, piece.bytes_read)
                keeper.busy = False
                keeper.tick()
                self._show(keeper)
            tally, names = job.evaluator._tally, (job.evaluator.label_name, job.evaluator.logits_name)
            refuse_nothing(names[tally.counts["nonfinite_rows"] > 0], tally, len(job.matrix))
            if writer is not None:
                if keeper.kept:
                    keeper.save()
                    for lines in keeper.all_lines():
                        writer.append(lines)
                writer.close()
        if keeper.kept and self.output is not None:
            keeper.data.output_is = fingerprints.of_file(self.output)
        keeper.finish(job.schema if job.classes is not None else None)

    @contextlib.contextmanager
    def _writer(self, *, fixed: bool) -> Iterator[LossWriter | None]:
        """The writer of losses.parquet, which takes its place at the end."""
        if self.output is None:
            yield None
            return
        with replacing(self.output, fixed=fixed) as temporary:
            yield LossWriter(temporary, self.job.schema)

    def _show(self, keeper: Checkpoints) -> None:
        """Progress, and the report so far where that is asked for."""
        done, total = keeper.next_row - self.job.start, self.job.stop - self.job.start
        if self.progress is not None:
            self.progress(done, total, keeper.data.bytes_read)
        if (
            self.report is not None
            and self.report_every is not None
            and time.monotonic() - self._reported >= self.report_every
        ):
            partial = self._result(keeper.data).to_dict()
            partial["progress"] = {"rows_done": done, "rows_total": total}
            write_text(self.report, Report(partial).to_json() + "\n")
            self._reported = time.monotonic()

    def _result(self, data: Data) -> Report:
        evaluator, classes = self.job.evaluator, self.job.classes
        if classes is not None:
            figures = {
                "loss": evaluator.loss,
                "rows": data.rows,
                "classes": [classes.first, classes.stop, classes.total],
            }
            return with_times(Report({**figures, "versions": versions()}), data)
        shown = None if evaluator.draws is None else evaluator.draws.shown()
        return with_times(make_report(evaluator.loss, evaluator._tally, shown, exact=evaluator.exact), data)


def _make_ready(job: Job, *, compiling: bool) -> None:
    """Import kernels and, by a first look at a few rows, load them and start threads, so that this is not counted as
    work. Where they are `compiling`, for all workers, that takes longer than any reading; else what is looked at is a
    hundredth of the rows at most, and nothing of a layer, or of a file in Fortran order, where a few rows are all its
    pages. What is wrong with them is for the work itself to say, in its order.
    """
    own = {"sparse-softmax": "softmax", "softmax": "soft_labels", "sampled-softmax": "softmax"}
    for name in ("pages", "softmax", "sums", own.get(job.evaluator.loss, "sigmoid"), *job.matrix.kernels):
        importlib.import_module(f"bigvocab.kernels.{name}")
    few = 2 * min(job.evaluator.num_threads, usable_cores())
    few = min(few, job.stop - job.start if compiling else (job.stop - job.start) // 100)
    if few == 0 or not job.matrix.row_by_row:
        return
    tally = Tally(job.evaluator.top_k)
    with contextlib.suppress(BigvocabError):
        for piece in pieces(job, job.start, job.start + few):
            piece.add_to(tally)
        tally.state()  # workers send it


def _row_range(shard: Any, rows: int) -> tuple[int, int]:
    """The rows of a shard: the I-th of N ranges, as equal as can be."""
    i, n = parse_shard("shard", shard) or (1, 1)
    return rows * (i - 1) // n, rows * i // n


def _logits_or_inputs(evaluator: Evaluator, logits: Any, inputs: Any) -> Any:
    """What there is to evaluate: logits, or hidden states where there is an output layer."""
    if (logits is None) == (inputs is None):
        raise TypeError("logits: expected them or inputs, one of the two")
    if inputs is not None and evaluator.layer is None:
        raise BigvocabError(Keyword("inputs"), ": hidden states need an output layer, expected weights beside them")
    if logits is not None and evaluator.layer is not None:
        raise BigvocabError(
            Keyword("weights"), ": an output layer needs hidden states, expected inputs in place of logits"
        )
    return logits if inputs is None else inputs


def _check_job(job: Job) -> None:
    """All that can be known to be wrong before any work: counts of rows, kinds of labels, labels out of range."""
    evaluator, matrix, labels = job.evaluator, job.matrix, job.labels
    if len(matrix) != labels.num_rows:
        raise BigvocabError(
            f"{evaluator.label_name}: {labels.num_rows} rows of labels, "
            f"but {evaluator.logits_name} has {len(matrix)} rows; expected as many"
        )
    if len(matrix) == 0:
        raise BigvocabError(f"{evaluator.logits_name}: no rows, so there is nothing to evaluate")
    classes = job.classes.total if job.classes is not None else evaluator.num_classes or matrix.shape[1]
    if evaluator.class_weights is not None:
        arguments.class_vector("class_weights", evaluator.class_weights, classes)
    if evaluator.pos_weight is not None:
        pos_weight_vector(evaluator.pos_weight, classes)
    check_labels(evaluator, labels, classes)


def _files_read(job: Job, options: dict[str, Any]) -> Iterator[Any]:
    """Paths of all files of a job: those of its matrices and labels, and those that options name."""
    layer = job.evaluator.layer
    for part in (job.matrix, *([] if layer is None else layer.matrices())):
        yield from (file["path"] for file in part.files if file["path"] != "<array>")
    yield from job.labels.paths
    yield getattr(job.evaluator.draws, "vocab_file", None)
    for name in (*FILE_OPTIONS, "label_logits"):
        value = options.get(name)
        yield from value if isinstance(value, list | tuple) else [value]


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None and value != 0}
