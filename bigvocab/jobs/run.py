"""One run of a task: its pieces into sums, records, checkpoints, outputs and the report."""

from __future__ import annotations

import contextlib
import importlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigvocab import arguments
from bigvocab.errors import BigvocabError, Keyword
from bigvocab.jobs.checkpoints import Checkpoints, files_beside, keeping
from bigvocab.jobs.pages import check_page, write_page
from bigvocab.jobs.records import RecordSink, RecordWriter
from bigvocab.jobs.task import Piece, RowTask
from bigvocab.jobs.work import pieces
from bigvocab.jobs.workers import local, ray
from bigvocab.kernels.jit import keeps_none_yet
from bigvocab.reports.report import Report
from bigvocab.storage import uris
from bigvocab.storage.fingerprints import of_file
from bigvocab.storage.output import check_writable, refuse_overwriting, replacing, write_text
from bigvocab.storage.stores import is_there
from bigvocab.threads import usable_cores

Progress = Callable[[int, int, int], None]


@dataclass(frozen=True)
class RunOptions:
    """What a run writes, keeps and shares, whatever its task."""

    output: str | os.PathLike[str] | None = None
    report: str | os.PathLike[str] | None = None
    report_every: float | None = None
    html: str | os.PathLike[str] | None = None
    state: str | os.PathLike[str] | None = None
    resume: bool = False
    engine: str | None = None
    workers: int | None = None
    address: str | None = None
    shown: Mapping[str, Any] = field(default_factory=dict)  # options for the files of the report

    def given(self) -> dict[str, Any]:
        """As keywords."""
        return {name: value for name, value in vars(self).items() if name != "shown"}

    @classmethod
    def checked(
        cls,
        output: str | os.PathLike[str] | None,
        report: str | os.PathLike[str] | None,
        report_every: float | None,
        state: str | os.PathLike[str] | None,
        resume: bool,
        engine: str | None,
        workers: int | None,
        address: str | None,
        html: str | os.PathLike[str] | None = None,
    ) -> RunOptions:
        """The options, after all that is wrong with one of them."""
        resume = arguments.boolean("resume", resume)
        if engine not in (None, "local", "ray"):
            raise BigvocabError(Keyword("engine"), f": got {engine!r}, expected local or ray")
        if workers is not None:
            workers = arguments.integer("workers", workers, 1, 2**20)
        if report_every is not None and not arguments.real("report_every", report_every) >= 0:
            raise BigvocabError(Keyword("report_every"), f": got {report_every}, expected seconds, 0 or more")
        run = cls(output, report, report_every, html, state, resume, engine, workers, address)
        if run.processes:
            local.check_process()
        return run

    @property
    def processes(self) -> bool:
        """Whether rows go to processes of this machine."""
        return self.engine != "ray" and (self.workers or 1) > 1


def run_task(
    task: RowTask,
    options: RunOptions,
    *,
    progress: Progress | None = None,
    writer: Callable[[Path, Any], RecordSink] = RecordWriter,
    output_name: str = "output",
) -> Report:
    """Do what is not done yet of a task, and report.

    Args:
        task: opened and checked.
        options: what is written, kept and shared.
        progress: called with (rows done, rows in all, bytes read).
        writer: of the records.
        output_name: what messages call the output.
    """
    outputs = {output_name: options.output, "report": options.report, "html": options.html, "state": options.state}
    refuse_overwriting({**outputs, **files_beside(options.state)}, [*task.data.paths(), *task.files()])
    return _Run(task, options, progress, writer).all()


class _Run:
    def __init__(self, task: RowTask, options: RunOptions, progress: Progress | None, writer: Any) -> None:
        self.task, self.options, self.progress, self.writer = task, options, progress, writer
        self._reported = time.monotonic()

    def all(self) -> Report:
        """Do what is not done yet, and report."""
        options = self.options
        check_page(options.html, [*self.task.data.paths(), *self.task.files()])
        for path in (options.report, options.output):
            if path is not None:
                check_writable(path, kept=path is options.output and options.state is not None)
        with keeping(options.state, self.task, resume=options.resume) as keeper:
            if keeper.complete:
                self._check_output(keeper)
            else:
                compiling = options.processes and keeps_none_yet()
                if options.engine != "ray" and (not options.processes or compiling):
                    make_ready(self.task, compiling=compiling)
                self._to_the_end(keeper, self._source(keeper.next_row))
        result = self._result(keeper)
        result = Report(result.to_dict(), options.shown)
        if options.report is not None:
            write_text(options.report, result.to_json() + "\n")
        write_page(options.html, result)
        return result

    def _check_output(self, keeper: Checkpoints) -> None:
        """Raise unless what a run that has ended wrote is still there."""
        output, state = self.options.output, self.options.state
        if output is None:
            return
        name, run = (uris.shown(os.fsdecode(path)) for path in (output, state or ""))
        gone = not is_there(os.fsdecode(output)) if uris.is_remote(output) else not os.path.exists(uris.plain(name))
        if gone:
            raise BigvocabError(f"{name}: is gone, and the run of {run} has ended; start anew to write it again")
        if of_file(output) != keeper.coverage.output_is:
            raise BigvocabError(f"{name}: is not what the run of {run} wrote, which has ended; expected that file")

    def _source(self, start: int) -> Iterator[Piece]:
        """What is not done, in order, from this process or from others."""
        task, options = self.task, self.options
        if options.engine == "ray":
            refuse_serial(task, "engine")
            return ray.ray_pieces(task, start, options.workers, options.address)
        if options.processes:
            refuse_serial(task, "workers")
            assert options.workers is not None
            return local.pool_pieces(task, start, options.workers)
        task.follow(start)
        return pieces(task, start, task.part[1])

    def _to_the_end(self, keeper: Checkpoints, source: Iterator[Piece]) -> None:
        """The one loop: pieces into sums and records; then the files that the records are for."""
        with contextlib.closing(source), self._writer(fixed=keeper.kept) as writer:  # type: ignore[type-var]
            sink: Any = keeper if keeper.kept else writer
            self._show(keeper)
            keeper.begin()
            for piece in source:
                keeper.busy = True
                for records in piece.records if sink is not None else ():
                    sink.append(records)
                keeper.sums.merge(piece.sums)
                keeper.done(piece.start, piece.stop, piece.bytes_read)
                keeper.busy = False
                keeper.tick()
                self._show(keeper)
            self.task.refuse_nothing(keeper.sums)
            if writer is not None:
                if keeper.kept:
                    keeper.save()
                    for records in keeper.all_lines():
                        writer.append(records)
                writer.close()
        if keeper.kept and self.options.output is not None:
            keeper.coverage.output_is = of_file(self.options.output)
        keeper.finish()

    @contextlib.contextmanager
    def _writer(self, *, fixed: bool) -> Iterator[RecordSink | None]:
        """The writer of the output, which takes its place at the end."""
        if self.options.output is None:
            yield None
            return
        with replacing(self.options.output, fixed=fixed) as temporary:
            yield self.writer(temporary, self.task.schema)

    def _show(self, keeper: Checkpoints) -> None:
        """Progress, and the report so far where that is asked for."""
        options, (start, stop) = self.options, self.task.part
        done, total = keeper.next_row - start, stop - start
        if self.progress is not None:
            self.progress(done, total, keeper.coverage.bytes_read)
        every = options.report_every
        if options.report is not None and every is not None and time.monotonic() - self._reported >= every:
            partial = self._result(keeper).to_dict()
            partial["progress"] = {"rows_done": done, "rows_total": total}
            write_text(options.report, Report(partial).to_json() + "\n")
            self._reported = time.monotonic()

    def _result(self, keeper: Checkpoints) -> Report:
        return self.task.report(keeper.sums, keeper.coverage)


def refuse_serial(task: RowTask, option: str) -> None:
    """Raise where the rows of a task must be worked in order by one process."""
    if task.serial is not None:
        raise BigvocabError(Keyword(option), f": {task.serial}")


def make_ready(task: RowTask, *, compiling: bool) -> None:
    """Import kernels and, by a first look at a few rows, load them and start threads, so that this is not counted as
    work. Where they are `compiling`, for all workers, that takes longer than any reading; else what is looked at is a
    hundredth of the rows at most, and nothing of a layer, or of a file in Fortran order, where a few rows are all its
    pages. What is wrong with them is for the work itself to say, in its order.
    """
    kernels = [*task.kernels, *(name for source in task.data.sources for name in source.kernels)]
    for name in kernels:
        importlib.import_module(f"bigvocab.kernels.{name}")
    start, stop = task.part
    few = 2 * min(task.threads, usable_cores())
    few = min(few, stop - start if compiling else (stop - start) // 100)
    if few == 0 or not all(source.row_by_row for source in task.data.sources):
        return
    sums = task.new_sums()
    with contextlib.suppress(BigvocabError):
        for piece in pieces(task, start, start + few):
            sums.merge(piece.sums)
        task.stored(sums)  # checkpoints do
