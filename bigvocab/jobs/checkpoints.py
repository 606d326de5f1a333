"""Checkpoints: a run writes down what it has done, so that it may be killed at any moment and go on from there.

Two files. `part.state` is replaced whole, by rename. `part.state.lines` holds the lines of the rows (their losses),
appended to and never rewritten; the state says how much of it counts, and what a killed run has written beyond that is
cut off. So a row is in the state and in the lines, or in neither. The order is: lines to the disk, state to the disk
under another name, rename, folder to the disk. A lock that dies with its process keeps a second run away. Nothing here
looks at the time of day: intervals come from the clock that only goes forward.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from bigvocab import arguments
from bigvocab.errors import BigvocabError
from bigvocab.evaluation.state import Data, State, read_state, write_file, write_state
from bigvocab.jobs.merging import joined, refuse_difference, refuse_other_files, shown_rows
from bigvocab.kernels.jit import clock
from bigvocab.storage.output import LineGroups, check_writable, sync_folder

MIN_SECONDS = 5.0  # between two checkpoints
_STREAM = b"\xff\xff\xff\xff"  # an Arrow stream begins so, the file of lines
SHARE = 200  # and at least so many times what the last one took: under 1% of the run


class Checkpoints:
    """The state of one run on disk, made by `keeping`: `append` and `done` after each part, then `tick`."""

    def __init__(self, path: Path | None, state: State, schema: pa.Schema | None) -> None:
        self.kept = path is not None  # else nothing is written, and this is only a record of what is done
        self.path, self.state, self._schema = path or Path("state"), state, schema
        self.lines_path = Path(f"{self.path}.lines")
        self.busy = False  # between two moments at which tally, lines and ranges agree
        self.resumed = False
        self._file = -1
        self._length = 0
        self._saved_rows = -1
        self._wait = MIN_SECONDS
        self._before = state.data.seconds if state.data else 0.0
        self._started, self._last = 0.0, time.monotonic()

    @property
    def data(self) -> Any:  # a Data, always
        """What was evaluated."""
        return self.state.data

    @property
    def next_row(self) -> int:
        """The first row that is not done."""
        return self.data.ranges[-1][1] if self.data.ranges else self.data.part[0]

    @property
    def complete(self) -> bool:
        """Whether the run had ended, and nothing is left to do."""
        return self.resumed and self.next_row == self.data.part[1] and not self.data.lines

    # ---- beginning

    def restore(self, options: dict[str, Any]) -> None:
        """Go on from the state on disk, which must be of this very run."""
        found = read_state(self.path)
        names = (str(self.path), "this run")
        refuse_difference(found.options, options, names)
        if found.data is None:
            raise BigvocabError(f"{self.path}: holds rows fed by update, expected the state of a run over files")
        refuse_other_files(found.data, self.data, names)
        for what, was, now in (
            ("rows", _shown(found.data), _shown(self.data)),
            ("classes", found.data.classes, self.data.classes),
            ("output", found.data.output, self.data.output),
        ):
            if was != now:
                raise BigvocabError(
                    f"this run: {what} is {now}, but {was} in {self.path}; expected the same, to go on with it"
                )
        found.path, found.given = self.state.path, self.state.given
        found.data.inputs = self.data.inputs
        self.state, self.resumed, self._saved_rows = found, True, self.next_row
        self._before = found.data.seconds

    def open_lines(self) -> None:
        """Open the file of lines at the place that the state says."""
        if self._schema is None or self.complete:
            return
        if self.resumed and self.data.lines:
            size = self.lines_path.stat().st_size if self.lines_path.exists() else 0
            if size < self.data.lines:
                raise BigvocabError(
                    f"{self.lines_path}: {size} bytes, expected at least {self.data.lines}, "
                    f"as {self.path} says; start anew"
                )
        fresh = not (self.resumed and self.data.lines)
        if fresh:
            _refuse_foreign(self.lines_path, _STREAM)
        self._file = os.open(self.lines_path, os.O_RDWR | os.O_CREAT, 0o666)
        self._length = 0 if fresh else self.data.lines
        os.ftruncate(self._file, self._length)
        if fresh:
            self._write(self._schema.serialize())

    # ---- going on

    def begin(self) -> None:
        """Count the time from now on."""
        self._started = clock()

    def append(self, lines: pa.RecordBatch) -> None:
        """Put the lines of some rows behind those that are there."""
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
        done = max(0, self._saved_rows - self.data.part[0])
        return (
            f"{done} rows are done and kept in {self.path}: --resume goes on from there" if done else "no row was done"
        )

    def done(self, start: int, stop: int, bytes_read: int) -> None:
        """Rows `start` to `stop` are in the tally and in the lines."""
        self.data.ranges = joined(self.data.ranges, [[start, stop]])
        self.data.bytes_read += bytes_read
        self.data.seconds = self._before + max(0.0, clock() - self._started)

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
            self.data.lines = self._length
        try:
            write_state(self.path, self.state, fixed=True)
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

    def finish(self, schema: pa.Schema | None = None) -> None:
        """Write the state of a run that has ended: the lines are where they belong, and their file goes.

        With `schema`, that of the lines, they belong into the state itself.
        """
        if not self.kept:
            return
        if schema is not None:
            self.save()
        self.close_lines()
        self.data.lines = 0
        if schema is None:
            self.save()
        else:
            write_file(self.path, self.state, self.state.tally.state(), schema, regrouped(self.all_lines()), fixed=True)
            self._saved_rows = self.next_row
        self.remove_lines()

    def remove_lines(self) -> None:
        """Remove what a run that has ended may have left, but no file of someone else."""
        with contextlib.suppress(OSError, BigvocabError):
            _refuse_foreign(self.lines_path, _STREAM)
            self.lines_path.unlink()

    def close_lines(self) -> None:
        """Close the file of lines."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def files_beside(path: str | os.PathLike[str] | None) -> dict[str, str]:
    """The files that a run with this state writes beside it, by what they are."""
    if path is None:
        return {}
    place = os.path.realpath(arguments.path("state", path))
    return {f"state (its {what})": place + suffix for what, suffix in (("lines", ".lines"), ("lock", ".lock"))}


@contextlib.contextmanager
def keeping(
    path: str | os.PathLike[str] | None, fresh: State, schema: pa.Schema | None, *, resume: bool
) -> Iterator[Checkpoints]:
    """Checkpoints at `path`, or none, for the time of a run.

    Args:
        path: the state file; None keeps nothing.
        fresh: the state before any row.
        schema: of the lines, if there are any.
        resume: go on from a state that is there.

    Raises:
        BigvocabError: another run has the file, it is there and `resume` is False, or it is of other inputs or options.
    """
    if path is None:
        yield Checkpoints(None, fresh, schema)
        return
    target = Path(os.path.realpath(path))
    if target.is_dir() or not target.parent.is_dir():
        raise BigvocabError(f"{target}: cannot be written: expected a file in a folder that exists")
    check_writable(path, kept=True)
    with _locked(target):
        keeper = Checkpoints(target, fresh, schema)
        if target.exists():
            if not resume:
                raise BigvocabError(
                    f"{target}: is there already; --resume goes on with it (or remove it, to start anew)"
                )
            keeper.restore(fresh.options)
        try:
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


def _shown(data: Data) -> str:
    return shown_rows([data.part or [0, data.rows]])


def regrouped(lines: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Lines in batches of 65,536 rows."""
    groups = LineGroups()
    for batch in lines:
        yield from groups.add(batch)
    yield from groups.rest()


def _refuse_foreign(path: Path, start: bytes) -> None:
    """Raise if there is a file of someone else, one that does not begin as ours do: it would be lost."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        head = file.read(len(_STREAM))
        if head and (not start or head != start):
            raise BigvocabError(f"{path}: is there already and is none of this program's; choose another state")


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
