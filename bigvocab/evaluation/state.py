"""State files: what a task has summed up so far, to merge with others or to go on from. Never pickle.

A state is one Arrow IPC file. The schema's metadata holds, under the key `bigvocab`, a JSON object:

    format, version   "bigvocab-state", 4; a reader refuses any other version
    checksum          BLAKE2b (32 bytes, hex) of the whole file with the digits of the checksum itself as zeros
    task              what made it: "evaluate", "classes" (a range of classes) or "compare"
    options           what decides the numbers; states merge only where all of it is equal
    given             the keywords that were given; arrays up to 1 MiB as base64 of .npy
    coverage          null where rows came by `update`, else which rows of which files are in; see `coverage`
    seen              rows that came by `update`
    sampled           what a report says of the draws, or null
    model             what a report says of the model that the layer is of, or null
    notes             notes {code, text} of the report that were made before any row
    learned           what draws that learn have learned, or null
    sums              the sums of the task, those that are few; see `stored_tally`

The table has the sums that are many: one line per group, or (of a range of classes) per row of the data.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from bigvocab import arguments
from bigvocab.errors import BigvocabError, FormatError
from bigvocab.evaluation.coverage import Coverage
from bigvocab.evaluation.json_values import from_given, packed
from bigvocab.formats.magic import ARROW_FILE
from bigvocab.storage import uris
from bigvocab.storage.arrow_file import ArrowFile
from bigvocab.storage.output import replacing
from bigvocab.storage.spool import local_copy

FORMAT, VERSION = "bigvocab-state", 4
KEY = b"bigvocab"
_NO_STATE = "is no state of an evaluation, expected an Arrow IPC file that bigvocab wrote"
_DIGITS = b'"checksum": "'


@dataclass
class State:
    """The content of a state file."""

    task: str
    options: dict[str, Any]
    given: dict[str, Any]
    sums: dict[str, Any] = field(default_factory=dict)
    table: pa.Table = field(default_factory=lambda: pa.table({}))
    coverage: Coverage | None = None
    seen: int = 0
    sampled: dict[str, Any] | None = None
    learned: dict[str, Any] | None = None  # by draws that learn
    path: str = "state"
    model: dict[str, Any] | None = None
    notes: list[dict[str, str]] = field(default_factory=list)

    def covered(self) -> Coverage:
        """The coverage of a state of a job, which has one."""
        assert self.coverage is not None
        return self.coverage


# ---- writing


def write_state(path: str | os.PathLike[str], state: State, *, fixed: bool = False) -> None:
    """Write a state, whole or not at all; `fixed`: nobody else writes it (see `replacing`)."""
    write_lines(path, state, state.table.schema, state.table.to_batches(), fixed=fixed)


def write_lines(
    path: str | os.PathLike[str],
    state: State,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    *,
    fixed: bool = False,
) -> None:
    """Write a state whose table comes in batches."""
    with replacing(path, fixed=fixed) as temporary:
        _write(temporary, state, schema, batches)
        _seal(temporary)


def state_bytes(state: State) -> bytes:
    """What `write_state` would write."""
    sink = pa.BufferOutputStream()
    _write(sink, state, state.table.schema, state.table.to_batches())
    content = bytearray(sink.getvalue())
    digest, places = _digest(content)
    for place in places:
        content[place : place + 64] = digest.encode()
    return bytes(content)


def _write(target: Any, state: State, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    held = {
        "format": FORMAT,
        "version": VERSION,
        "checksum": "0" * 64,
        "task": state.task,
        "options": state.options,
        "given": state.given,
        "coverage": None if state.coverage is None else asdict(state.coverage),
        "seen": state.seen,
        "sampled": state.sampled,
        "model": state.model,
        "notes": state.notes,
        "learned": state.learned and {name: packed(value) for name, value in state.learned.items()},
        "sums": state.sums,
    }
    with ArrowFile(target, schema.with_metadata({KEY: json.dumps(held)})) as file:
        for batch in batches:
            file.append(batch)


def _seal(path: Path) -> None:
    """Put the checksum where its zeros are: in the schema, and in the copy of it that the footer holds."""
    with path.open("r+b") as file:
        found, places = _digest_of_file(file)
        for place in places:
            file.seek(place)
            file.write(found.encode())


def _digest_of_file(file: Any) -> tuple[str, list[int]]:
    import mmap

    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        return _digest(whole)


def _digest(whole: Any) -> tuple[str, list[int]]:
    """The checksum of the bytes of a state with zeros for its own digits, and where they are."""
    size, places, start = len(whole), [], 0
    ends = (whole.find(_DIGITS), whole.rfind(_DIGITS))
    digest = hashlib.blake2b(digest_size=32)
    for at in sorted({at for at in ends if at >= 0}):
        places.append(at + 13)
        _update(digest, whole, start, at + 13)
        digest.update(b"0" * 64)
        start = at + 13 + 64
    _update(digest, whole, start, size)
    return digest.hexdigest(), places


def _update(digest: Any, whole: Any, start: int, stop: int) -> None:
    for at in range(start, stop, 16 << 20):
        digest.update(whole[at : min(at + (16 << 20), stop)])


# ---- reading


def read_state(source: str | os.PathLike[str] | bytes | bytearray | memoryview) -> State:
    """Read a state from a file or its bytes, all of it checked before any of it is used.

    Raises:
        BigvocabError: no such file, or one of another version; FormatError: no state, cut short or damaged.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        source = bytes(source)
        if not source.startswith(ARROW_FILE) or len(source) < 32:
            raise FormatError(f"bytes: {_NO_STATE.replace('an Arrow IPC file', 'bytes')}")
        _check_digest("bytes", source)
        return parse_state(pa.BufferReader(source), "bytes")
    if uris.is_remote(arguments.path("state", source)):
        local, name = local_copy(source), uris.shown(os.fspath(source))
        try:
            state = read_state(local)
        except BigvocabError as error:
            raise error.renamed(local, name) from error
        state.path = name
        return state
    source = uris.plain(os.fsdecode(source))
    shown = arguments.path("state", source)
    if "\0" in shown or os.path.exists(shown) and not os.path.isfile(shown):
        raise BigvocabError(f"{shown!r}: is no regular file, expected a state")
    try:
        with open(source, "rb") as file:
            head = file.read(8)
            if not head.startswith(ARROW_FILE) or os.fstat(file.fileno()).st_size < 32:
                raise FormatError(f"{shown}: {_NO_STATE}")
            import mmap

            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
                _check_digest(shown, whole)
    except OSError as error:
        raise BigvocabError(f"{shown}: cannot be read: {error.strerror}") from None
    return parse_state(pa.memory_map(os.fsencode(shown)), shown)


def _check_digest(shown: str, whole: Any) -> None:
    found, places = _digest(whole)
    intact = len(places) == 2 and all(whole[place : place + 64] == found.encode() for place in places)
    if not intact and not places and whole[: 1 << 16].find(FORMAT.encode()) < 0:
        raise FormatError(f"{shown}: {_NO_STATE}")
    if not intact:
        raise FormatError(f"{shown}: truncated or damaged: its checksum does not fit, so nothing of it can be used")


@contextlib.contextmanager
def content_of(path: str) -> Iterator[None]:
    """An error of one line for a content that bigvocab never wrote, whatever its checksum says."""
    try:
        yield
    except BigvocabError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise FormatError(f"{path}: damaged, or no state that bigvocab wrote: {reason}") from error


def parse_state(source: Any, path: str = "state") -> State:
    """A state from bytes that are known to be whole."""
    with content_of(path):
        return _parsed(source, path)


_KINDS = {"version": int, "task": str, "options": dict, "given": dict, "seen": int, "notes": list, "sums": dict}


def _parsed(source: Any, path: str) -> State:
    reader = pa.ipc.open_file(source)
    held = json.loads((reader.schema.metadata or {}).get(KEY, b"{}"))
    if not isinstance(held, dict) or held.get("format") != FORMAT:
        raise FormatError(f"{path}: {_NO_STATE}")
    held = {"notes": [], "seen": 0, **held}
    for name in ["version"] if held.get("version") != VERSION else _KINDS:
        if not isinstance(held[name], _KINDS[name]):
            raise TypeError(f"{name} is of type {type(held[name]).__name__}, expected {_KINDS[name].__name__}")
    if held["version"] > VERSION:
        raise BigvocabError(
            f"{path}: is of version {held['version']}, of a newer bigvocab; this one reads version {VERSION}"
        )
    if held["version"] < VERSION:
        raise BigvocabError(
            f"{path}: is of version {held['version']}, of an older bigvocab; this one reads version {VERSION}: "
            "delete it and run the job again"
        )
    coverage = None if held["coverage"] is None else Coverage(**held["coverage"])
    table = reader.read_all()
    table.validate(full=True)
    state = State(held["task"], held["options"], held["given"], held["sums"], table, coverage)
    state.seen, state.sampled, state.path = held["seen"], held["sampled"], path
    state.model, state.notes = held.get("model"), held["notes"]
    if learned := held["learned"]:
        state.learned = {name: from_given(name, value, path) for name, value in learned.items()}
    return state
