"""What tells that a file, or an object, is still the one that was opened."""

from __future__ import annotations

import os
from typing import NamedTuple

from bigvocab.errors import FormatError


class FileIdentity(NamedTuple):
    """What changes when a file is written to or replaced."""

    size: int
    changed_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileIdentity:
        """The identity of a file by its status."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev)

    def check(self, path: str, shown: str | None = None) -> None:
        """Raise FormatError if the file at `path` has shrunk, was written to or replaced: pages of a map may be gone,
        and touching those kills the process. Messages call it as it is `shown`.
        """
        shown = path if shown is None else shown
        try:
            now = FileIdentity.of(os.stat(path))
        except OSError as error:
            raise FormatError(f"{shown}: is gone while it is read: {error.strerror}") from error
        if now.size != self.size:
            verb = "shrank" if now.size < self.size else "grew"
            raise FormatError(f"{shown}: {verb} while it is read, from {self.size} to {now.size} bytes")
        if now != self:
            raise FormatError(f"{shown}: was written to or replaced while it is read")

    def is_cut_short(self, path: str) -> bool:
        """Whether this file, and no other that has taken its place, has fewer bytes at `path` now."""
        try:
            now = FileIdentity.of(os.stat(path))
        except OSError:
            return False
        return now.size < self.size and now[2:] == self[2:]


class RemoteIdentity(NamedTuple):
    """What changes when an object is written anew."""

    size: int
    changed_ns: int
    etag: str
