"""What a worker must share with the process that sends the work: bigvocab, its kernels, the content of each file.

A sealed order, which is in memory alone, is one line of JSON and the order itself. The line is read first, so that a
worker with another bigvocab or with other files says so before it unpickles anything. Files are compared as
`storage.fingerprints` has it, and whole rows of matrices beside that: a column that differs is in every row, but
perhaps in no block.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import stat
from collections.abc import Iterator
from typing import Any

import numpy as np

import bigvocab
from bigvocab.errors import BigvocabError, FormatError, Keyword
from bigvocab.jobs.task import RowTask
from bigvocab.kernels import jit
from bigvocab.storage import uris
from bigvocab.storage.fingerprints import of_file
from bigvocab.storage.remote import recall, remembered

WHOLE = 64 << 20  # of the files of a matrix together: hashed in some 0.1 s, by every worker
_WHOLE_LABELS = 256 << 20
_MOST_FILES = 256
_ROWS = 16  # of a matrix, and the first one of each file
_FEW_COLUMNS = 16 << 10  # of a file in Fortran order, where each element of a row is in a page of its own


def seal(task: RowTask, order: bytes) -> bytes:
    """The order, after a line of what its worker must find.

    Raises:
        BigvocabError: a file is a pipe or a device, which no other process can open.
    """
    files = {path: {"whole": whole, **_look(path, whole)} for path, whole in _files(task)}
    found = {"machine": socket.gethostname(), **_versions(), "files": files, "rows": list(_rows(task))}
    # keys of no store but those that the work is in
    found["uris"] = {name: uri for name, uri in remembered().items() if name in files or _bytes(name) in order}
    return json.dumps(found).encode() + b"\n" + order


def _bytes(name: str) -> bytes:
    """A name as a pickle has it."""
    return name.encode("utf-8", "surrogatepass")


def unseal(sealed: bytes) -> bytes:
    """The order, in a worker that has the bigvocab and the files for it.

    Raises:
        BigvocabError: another bigvocab, or other kernels; FormatError: a file is not there, or has other content. The
            message names the file, both machines and what differs.
    """
    line, _, order = sealed.partition(b"\n")
    theirs, mine, here = json.loads(line), _versions(), _here(sealed)
    for name, what in (("bigvocab", "bigvocab"), ("kernels", "other kernels, or another Numba, of stamp")):
        if mine[name] != theirs[name]:
            raise BigvocabError(Keyword("engine"), f": {what} {mine[name]} {here}, expected {theirs[name]}, as there")
    recall(theirs["uris"])
    for path, expected in theirs["files"].items():
        try:
            found = _look(path, expected["whole"])
        except BigvocabError as error:
            raise FormatError(f"{error} ({here})") from None
        if found["bytes"] != expected["bytes"]:
            raise FormatError(
                f"{uris.shown(path)}: {found['bytes']} bytes {here}, expected {expected['bytes']}, as there"
            )
        if found["fingerprint"] != expected["fingerprint"]:
            raise _other_content(path, here)
    return order


def check_rows(task: RowTask, sealed: bytes) -> None:
    """Raise FormatError unless the rows of the opened matrices that were looked at have the content they had."""
    theirs = json.loads(sealed.partition(b"\n")[0])["rows"]
    for (name, row, found), (_, _, expected) in zip(_rows(task), theirs, strict=True):
        if found != expected:
            raise _other_content(name, f"in row {row} {_here(sealed)}")


def at_worker(error: BigvocabError, sealed: bytes) -> BigvocabError:
    """The error, of its kind, with the machine where it came up."""
    return type(error)(*error.parts, f" ({_here(sealed)})")


def _here(sealed: bytes) -> str:
    there = json.loads(sealed.partition(b"\n")[0])["machine"]
    return f"on worker {socket.gethostname()}, working for {there}"


def _other_content(name: str, where: str) -> FormatError:
    return FormatError(f"{uris.shown(name)}: other content {where}, expected the same file on both")


def _versions() -> dict[str, str]:
    return {"bigvocab": bigvocab.__version__, "kernels": jit.stamp()}


def _look(path: str, whole: int) -> dict[str, Any]:
    """Size and fingerprint of a file."""
    if uris.is_remote(path):
        return {"bytes": 0, "fingerprint": of_file(path)}
    try:
        status = os.stat(path)  # before opening: a FIFO would wait for its writer
    except OSError as error:
        raise BigvocabError(f"{path}: cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise BigvocabError(f"{path}: not a regular file, expected one that other processes can open")
    return {"bytes": status.st_size, "fingerprint": of_file(path, whole)}


def _files(task: RowTask) -> Iterator[tuple[str, int]]:
    """(absolute path, bytes up to which it is hashed whole) of each file that a worker opens."""
    for matrix in task.matrices():
        paths = _spread([path for path, _, _ in matrix.fingerprints])
        yield from ((path, max(1 << 20, WHOLE // len(paths))) for path in paths)
    held = {path for matrix in task.matrices() for path, _, _ in matrix.fingerprints}
    others = map(uris.absolute, [*task.data.labels.paths, *task.worker_files()])
    yield from ((path, _WHOLE_LABELS) for path in _spread([path for path in others if path not in held]))


def _spread(found: list[Any]) -> list[Any]:
    """All of a list, or some of a long one, spread evenly: ten thousand files are not looked at by every worker."""
    step = len(found) / _MOST_FILES
    return found if step <= 1 else [found[int(i * step)] for i in range(_MOST_FILES)]


def _rows(task: RowTask) -> Iterator[tuple[str, int, str]]:
    """(file, row, hash) of whole rows, spread over each matrix of files."""
    for matrix in task.matrices():
        if not matrix.fingerprints or matrix.ndim == 1 or not len(matrix):
            continue
        starts = dict(matrix.row_files())
        rows = {int(row) for row in np.linspace(0, len(matrix) - 1, _ROWS)} | set(_spread(list(starts)))
        if not matrix.row_by_row:
            rows = {0} if matrix.shape[1] <= _FEW_COLUMNS else set()
        name = matrix.files[0]["path"]
        for row in sorted(rows):
            name = starts.get(row, name)
            yield name, row, hashlib.blake2b(matrix[row].tobytes(), digest_size=16).hexdigest()
