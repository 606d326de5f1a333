"""One file in memory: opened, mapped read-only, and watched for changes while it is read."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import sys
from typing import Any

import numpy as np

from bigvocab.errors import BigvocabError, FormatError
from bigvocab.storage import os_advice
from bigvocab.storage.file_identity import FileIdentity
from bigvocab.storage.paths import Source
from bigvocab.storage.read_ahead import ReadAhead
from bigvocab.storage.reading import Reader
from bigvocab.storage.sigbus import watch


class Map(mmap.mmap):
    """A map that knows how to be read fast: arrays over it lead here (`reader_of`)."""

    reader: Reader


class MappedFile:
    """A file mapped whole and read-only; its size, inode and time of change are those at opening."""

    def __init__(self, source: Source):
        self.path, self.shown, self.selector = source
        self.suffix = os.path.splitext(self.path)[1].lower()
        try:
            status = os.stat(self.path)  # before opening: a FIFO would wait for its writer
            if not stat.S_ISREG(status.st_mode):
                raise BigvocabError(f"{self.shown}: not a regular file, so it cannot be memory-mapped")
            with open(self.path, "rb") as stream:
                status = os.fstat(stream.fileno())
                if status.st_size == 0:
                    raise FormatError(f"{self.shown}: empty file (0 bytes)")
                # a kept descriptor for each file would meet the limit of 1,024 at a thousand shards
                untracked = {"trackfd": False} if sys.version_info >= (3, 13) else {}
                self.buffer = Map(stream.fileno(), 0, access=mmap.ACCESS_READ, **untracked)
        except OSError as error:
            hint = "; raise the limit (ulimit -n)" if error.errno == errno.EMFILE else ""
            raise BigvocabError(f"{self.shown}: cannot open: {error.strerror or error}{hint}") from error
        self.size = len(self.buffer)
        self.address = np.frombuffer(self.buffer, np.uint8).ctypes.data
        self.identity = FileIdentity.of(status)
        self.ahead = ReadAhead(self.address, self.size)
        self.buffer.reader = Reader(self.address, self.ahead)
        watch(self)

    @property
    def shown_whole(self) -> str:
        """The path as it was given, with the tensor or column that was chosen."""
        return self.shown if self.selector is None else f"{self.shown}::{self.selector}"

    def check(self) -> None:
        """Raise FormatError if the file has shrunk, was written to or was replaced since it was opened."""
        self.identity.check(self.path, self.shown)

    streamed = False  # whether rows are fetched when they are asked for, and nothing is mapped

    def fill(self, start: int, stop: int) -> None:
        """Have bytes `start` to `stop` there: they are, but in copies of what lies in stores."""

    def rows_elsewhere(self, offset: int, shape: tuple[int, ...], dtype: Any) -> Any:
        """What hands out the rows at an offset, where they are not mapped; else None."""
        return None

    def watched(self) -> list[MappedFile]:
        """What a bus error may be of."""
        return [self]

    def release(self, start: int, stop: int) -> None:
        """Tell the system that the pages from the one of byte `start` up to the one of byte `stop` are not needed now.

        The first goes although earlier rows may share it: whoever still reads those only faults it in once more.
        """
        start -= start % mmap.PAGESIZE
        if stop < self.size:
            stop -= stop % mmap.PAGESIZE
        if start < stop:
            os_advice.advice.release(self.address + start, stop - start)
