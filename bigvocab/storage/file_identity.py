"""What tells that a file is still the one that was opened."""

from __future__ import annotations

import os
from typing import NamedTuple


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

    def is_cut_short(self, path: str) -> bool:
        """Whether this file, and no other that has taken its place, has fewer bytes at `path` now."""
        try:
            now = FileIdentity.of(os.stat(path))
        except OSError:
            return False
        return now.size < self.size and now[2:] == self[2:]
