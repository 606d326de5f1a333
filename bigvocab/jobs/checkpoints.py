"""Checkpoints: a run writes down what it has done, so that it may be killed at any moment and go on from there.

Two files. `part.state` is replaced whole, by rename. `part.state.lines` holds the records of the rows (their losses),
appended to and never rewritten; the state says how much of it counts, and what a killed run has written beyond that is
cut off. So a row is in the state and in the lines, or in neither. The order is: lines to the disk, state to the disk
under another name, rename, folder to the disk. A lock that dies with its process keeps a second run away. Nothing here
looks at the time of day: intervals come from the clock that only goes forward.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from bigvocab import arguments
from bigvocab.errors import BigvocabError
from bigvocab.evaluation.compatibility import refuse_difference
from bigvocab.evaluation.coverage import Coverage, joined, refuse_other_files, shown_rows
from bigvocab.evaluation.state import State, content_of, read_state, write_lines, write_state
from bigvocab.formats.magic import ARROW_STREAM
from bigvocab.jobs.records import regrouped
from bigvocab.jobs.stored_states import StoredState
from bigvocab.jobs.task import RowTask
from bigvocab.kernels.jit import clock
from bigvocab.storage import uris
from bigvocab.storage.output import check_writable, sync_folder

MIN_SECONDS = 5.0  # between two checkpoints
SHARE = 200  # and at least so many times what the last one took: under 1% of the run


class Checkpoints:
    """The state of one run on disk, made by `keeping`: `append` and `done` after each part, then `tick`."""

    def __init__(self, path: Path | None, task: RowTask) -> None:
        self.kept = path is not None  # else nothing is written, and this only says what is done
        self.path, self.task = path or Path("state"), task
        self.state = task.state() if self.kept else State(task.name, {}, {}, coverage=_uncovered(task))
        self.sums = task.new_sums()
        self.lines_path = Path(f"{self.path}.lines")
        self.busy = False  # between two moments at which tally, lines and ranges agree
        self.resumed = False
        self.stored: StoredState | None = None
        self._file = -1
        self._length = 0
        self._saved_rows = -1
        self._wait = MIN_SECONDS
        self._before = 0.0
        self._started, self._last = 0.0, time.monotonic()

    @property
    def coverage(self) -> Coverage:
        """Which rows are done."""
        return self.state.covered()

    @property
    def next_row(self) -> int:
        """The first row that is not done."""
        return self.coverage.ranges[-1][1] if self.coverage.ranges else self.task.part[0]

    @property
    def complete(self) -> bool:
        """Whether the run had ended, and nothing is left to do."""
        return self.resumed and self.next_row == self.task.part[1] and not self.coverage.lines

    # ---- beginning

    def restore(self) -> None:
        """Go on from the state on disk, which must be of this very run."""
        found = read_state(self.path)
        names = (str(self.path), "this run")
        refuse_difference({"task": found.task, **found.options}, {"task": self.task.name, **self.state.options}, names)
        if found.coverage is None:
            raise BigvocabError(f"{self.path}: holds rows fed by update, expected the state of a run over files")
        refuse_other_files(found.coverage, self.coverage, names)
        for what, was, now in (
            ("rows", _shown(found.coverage), _shown(self.coverage)),
            ("classes", found.coverage.classes, self.coverage.classes),
            ("output", found.coverage.output, self.coverage.output),
        ):
            if was != now:
                raise BigvocabError(
                    f"this run: {what} is {now}, but {was} in {self.path}; expected the same, to go on with it"
                )
        found.path, found.given = self.state.path, self.state.given
        found.coverage.inputs = self.coverage.inputs
        with content_of(found.path):
            sums = self.task.restored(found)
        self.state, self.sums, self.resumed = found, sums, True
        self._saved_rows = self.next_row
        self._before = found.coverage.seconds

    def open_lines(self) -> None:
        """Open the file of lines at the place that the state says."""
        if self.task.schema is None or self.complete:
            return
        if self.resumed and self.coverage.lines:
            size = self.lines_path.stat().st_size if self.lines_path.exists() else 0
            if size < self.coverage.lines:
                raise BigvocabError(
                    f"{self.lines_path}: {size} bytes, expected at least {self.coverage.lines}, "
                    f"as {self.path} says; start anew"
                )
        fresh = not (self.resumed and self.coverage.lines)
        if fresh:
            _refuse_foreign(self.lines_path, ARROW_STREAM)
        self._file = os.open(self.lines_path, os.O_RDWR | os.O_CREAT, 0o666)
        self._length = 0 if fresh else self.coverage.lines
        os.ftruncate(self._file, self._length)
        if fresh:
            self._write(self.task.schema.serialize())

    # ---- going on

    def begin(self) -> None:
        """Count the time from now on."""
        self._started = clock()

    def append(self, lines: pa.RecordBatch) -> None:
        """Put the lines of some rows after those that are there."""
        self._write(lines.serialize())

    def _write(self, content: Any) -> None:
        view = memoryview(content).cast("B")
        size = len(view)
        try:
            os.lseek(self._file, self._length, os.SEEK_SET)
            while len(view):
                view = view[os.write(self._file, view) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._length)
            raise BigvocabError(f"{self.lines_path}: cannot be written: {error.strerror}; {self._kept()}") from None
        self._length += size

    def _kept(self) -> str:
        done = max(0, self._saved_rows - self.task.part[0])
        return (
            f"{done} rows are done and kept in {self.path}: --resume continues from there"
            if done
            else "no row was done"
        )

    def done(self, start: int, stop: int, bytes_read: int) -> None:
        """Rows `start` to `stop` are in the tally and in the lines."""
        self.coverage.ranges = joined(self.coverage.ranges, [[start, stop]])
        self.coverage.bytes_read += bytes_read
        self.coverage.seconds = self._before + max(0.0, clock() - self._started)

    def tick(self) -> bool:
        """Write a checkpoint if it is time for one; whether it was."""
        if not self.kept or time.monotonic() - self._last < self._wait:
            return False
        self.save()
        return True

    def save(self) -> None:
        """Write a checkpoint."""
        started = time.monotonic()
        if self._file >= 0:
            os.fsync(self._file)
            self.coverage.lines = self._length
        self.state.sums, self.state.table = self.task.stored(self.sums)
        try:
            write_state(self.path, self.state, fixed=True)
            if self.stored is not None:
                self.stored.send(self.coverage.lines)
        except BigvocabError as error:
            raise BigvocabError(f"{error}; {self._kept()}") from None
        self._last = time.monotonic()
        self._wait = max(MIN_SECONDS, SHARE * (self._last - started))
        self._saved_rows = self.next_row

    def save_after_failure(self) -> None:
        """Write down the last rows before the process ends; it may fail, and then the checkpoint before counts."""
        if self.kept and not self.busy and self.next_row > self._saved_rows >= 0:
            with contextlib.suppress(BigvocabError, OSError):
                self.save()

    # ---- ending

    def all_lines(self) -> Iterator[pa.RecordBatch]:
        """The lines of all rows, from the file, which is then read once."""
        with pa.OSFile(os.fsencode(self.lines_path)) as file, pa.ipc.open_stream(file) as reader:
            yield from reader

    def finish(self) -> None:
        """Write the state of a run that has ended: the records are where they belong, and their file goes."""
        if not self.kept:
            return
        if self.task.records_in_state:
            self.save()
        self.close_lines()
        self.coverage.lines = 0
        if self.task.records_in_state:
            assert self.task.schema is not None
            write_lines(self.path, self.state, self.task.schema, regrouped(self.all_lines()), fixed=True)
            self._saved_rows = self.next_row
            if self.stored is not None:
                self.stored.send(0)
        else:
            self.save()
        self.remove_lines()
        if self.stored is not None:
            self.stored.forget_lines()

    def remove_lines(self) -> None:
        """Remove what a run that has ended may have left, but no file of someone else."""
        with contextlib.suppress(OSError, BigvocabError):
            _refuse_foreign(self.lines_path, ARROW_STREAM)
            self.lines_path.unlink()

    def close_lines(self) -> None:
        """Close the file of lines."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def files_beside(path: str | os.PathLike[str] | None) -> dict[str, str]:
    """The files that a run with this state writes beside it, by what they are."""
    if path is None or uris.is_remote(path):
        return {}
    place = os.path.realpath(arguments.path("state", path))
    return {f"state (its {what})": place + suffix for what, suffix in (("lines", ".lines"), ("lock", ".lock"))}


@contextlib.contextmanager
def keeping(
    path: str | os.PathLike[str] | None, task: RowTask, *, resume: bool, stored: StoredState | None = None
) -> Iterator[Checkpoints]:
    """Checkpoints at `path`, or none, for the time of a run.

    Args:
        path: the state file; None keeps nothing.
        task: what the run does.
        resume: go on from a state that is there.
        stored: where checkpoints are sent to.

    Raises:
        BigvocabError: another run has the file, it is there and `resume` is False, or it is of other inputs or options.
    """
    if path is None:
        yield Checkpoints(None, task)
        return
    if uris.is_remote(path):
        with _in_store(os.fspath(path), task, resume) as keeper:
            yield keeper
        return
    path = uris.plain(os.fsdecode(path))
    target = Path(os.path.realpath(path))
    if target.is_dir() or not target.parent.is_dir():
        raise BigvocabError(f"{target}: cannot be written: expected a file in a folder that exists")
    check_writable(path, kept=True)
    with _locked(target):
        keeper = Checkpoints(target, task)
        keeper.stored = stored
        if target.exists():
            if not resume:
                raise BigvocabError(f"{target}: already exists; pass --resume to continue, or delete it to start over")
            keeper.restore()
        try:
            if stored is not None and not keeper.complete:
                stored.claim()
            keeper.open_lines()
            if keeper.complete:
                keeper.remove_lines()
            elif not keeper.resumed:
                keeper.save()  # that it cannot be written is known now, not after hours
            yield keeper
        except BaseException:
            keeper.save_after_failure()
            raise
        finally:
            keeper.close_lines()


@contextlib.contextmanager
def _in_store(uri: str, task: RowTask, resume: bool) -> Iterator[Checkpoints]:
    """Checkpoints in an object store."""
    check_writable(uri)
    stored = StoredState(uri)
    try:
        stored.fetch()
        with keeping(stored.path, task, resume=resume, stored=stored) as keeper:
            yield keeper
    except BigvocabError as error:
        raise stored.renamed(error) from error
    finally:
        stored.close()


def _shown(coverage: Coverage) -> str:
    return shown_rows([coverage.part or [0, coverage.rows]])


def _uncovered(task: RowTask) -> Coverage:
    """The coverage of a run whose state is not kept: what a report needs."""
    return Coverage([], task.data.num_rows, {}, part=list(task.part), inputs=task.data.files, classes=task.classes)


def _refuse_foreign(path: Path, start: bytes) -> None:
    """Raise if there is a file of someone else, one that does not begin as ours do: it would be lost."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        head = file.read(len(ARROW_STREAM))
        if head and (not start or head != start):
            raise BigvocabError(f"{path}: already exists and is no state of this program; choose another path")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """A lock on `path` that ends with the process, however it ends."""
    try:
        import fcntl
    except ImportError:  # a system without it
        yield
        return
    lock = Path(f"{path}.lock")
    _refuse_foreign(lock, b"")
    while True:
        try:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise BigvocabError(f"{path}: cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise BigvocabError(f"{path}: another run is writing it; expected one run for each state") from None
        if lock.exists() and os.path.samestat(os.fstat(handle), os.stat(lock)):
            break  # else its owner has just removed it: the name belongs to a new file by now, or to none
        os.close(handle)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()
            sync_folder(lock)
        os.close(handle)
