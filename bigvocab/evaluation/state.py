"""State files: what an evaluation has summed up so far, to merge with others or to go on from. Never pickle.

A state is one Arrow IPC file. The schema's metadata holds, under the key `bigvocab`, a JSON object:

    format, version   "bigvocab-state", 1; a reader refuses a higher version
    checksum          BLAKE2b (32 bytes, hex) of the whole file with the digits of the checksum itself as zeros
    options           what decides the figures; states merge only where all of it is equal
    given             the keywords of `Evaluator`; arrays up to 1 MiB as base64 of .npy
    data              null where rows came by `update`, else what was evaluated:
        files         role, path, shape, dtype, bytes and fingerprint of the content of each
        columns       names of the columns of labels
        rows          of the whole job
        part, ranges  [first, stop) of the rows this state is for, and of those that are in
        classes       [first, stop, number of classes] where it is of a range of classes
        output        whether per-row losses are kept
        lines         bytes that count of the file of per-row lines beside an unfinished state
        inputs, seconds, bytes_read
                      for reports
    seen              rows that came by `update`
    sampled           what a report says of the draws, or null
    counts            integers
    extremes          {name: [least, greatest]}, as C99 hexadecimal floats
    sums              exact sums by name, each {low, digits, specials}: S_k digits[k] 2**(32 (k + low) - 1074), and how
                      many NaN, +inf and -inf. Figures are quotients of these.
    groups            null, or {name: low} of the sums that the table has of each group

The table has one line per group, by name: `group`, `rows`, and for each sum its digits and (where there are any) its
specials. The state of a range of classes has one line per row of the data instead: see `vocab_shards`.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bigvocab import arguments
from bigvocab.arguments import BFLOAT16
from bigvocab.errors import BigvocabError, FormatError
from bigvocab.evaluation.tally import Tally
from bigvocab.matrices.matrix import Matrix
from bigvocab.storage.output import replacing

FORMAT, VERSION = "bigvocab-state", 1
KEY = b"bigvocab"
_HELD_BYTES = 1 << 20  # of an array among the options


@dataclass
class Data:
    """What was evaluated of which files; see the module."""

    files: list[dict[str, Any]]
    rows: int
    columns: dict[str, Any]
    ranges: list[list[int]] = field(default_factory=list)
    output: bool = False
    output_is: str | None = None  # the fingerprint of what a run that has ended wrote
    lines: int = 0
    classes: list[int] | None = None
    part: list[int] | None = None
    inputs: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    bytes_read: int = 0

    def identity(self) -> dict[str, Any]:
        """What is the same in all states of a job: not where the files lie."""
        files = [{name: value for name, value in file.items() if name != "path"} for file in self.files]
        return {"files": files, "rows": self.rows, "columns": self.columns}


@dataclass
class State:
    """The content of a state file."""

    options: dict[str, Any]
    given: dict[str, Any]
    tally: Tally
    data: Data | None = None
    seen: int = 0
    sampled: dict[str, Any] | None = None
    path: str = "state"
    learned: dict[str, Any] | None = None  # by draws that learn
    table: pa.Table | None = None  # of a range of classes: the lines of its rows, mapped


# ---- options as JSON


def as_options(value: Any) -> Any:
    """Options as JSON has them: tuples become lists, arrays their size and fingerprint."""
    if isinstance(value, dict):
        return {str(name): as_options(item) for name, item in value.items()}
    if isinstance(value, np.ndarray) or (isinstance(value, list) and len(value) > 64):
        array = np.ascontiguousarray(value)
        digest = hashlib.blake2b(array.tobytes(), digest_size=16).hexdigest()
        return {"shape": list(array.shape), "dtype": array.dtype.name, "fingerprint": digest}
    if isinstance(value, list | tuple):
        return [as_options(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def as_given(value: Any) -> Any:
    """A keyword as JSON has it; an array that is too large to be held becomes {"missing": shape}."""
    if isinstance(value, Matrix):
        if value.maps:
            paths = [file.path + (f"::{file.selector}" if file.selector else "") for file in value.maps]
            return paths[0] if len(paths) == 1 else paths
        value = np.asarray(value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str | int | float | None):
        return value
    if isinstance(value, os.PathLike):
        return os.path.abspath(value)
    if isinstance(value, list | tuple | set | frozenset) and all(
        isinstance(item, str | int | np.integer | os.PathLike) for item in value
    ):
        return [as_given(item) for item in value]
    array = np.asarray(value)
    if array.nbytes > _HELD_BYTES or array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        return {"missing": list(array.shape)}
    return _packed(array)


def _packed(value: Any) -> Any:
    """An array as JSON has it, bfloat16 by its bits; anything else as it is."""
    if not isinstance(value, np.ndarray):
        return value
    buffer, is_bfloat16 = io.BytesIO(), value.dtype.name == "bfloat16"
    np.save(buffer, value.astype(BFLOAT16).view(np.uint16) if is_bfloat16 else value, allow_pickle=False)
    return {"npy": base64.b64encode(buffer.getvalue()).decode()} | ({"dtype": "bfloat16"} if is_bfloat16 else {})


def from_given(name: str, value: Any, path: str) -> Any:
    """The inverse of `as_given`."""
    if isinstance(value, dict):
        if "npy" not in value:
            shape = tuple(value["missing"])
            raise BigvocabError(
                f"{path}: {name} was an array of shape {shape}, too large for a state; expected it again: {name}=..."
            )
        array = np.load(io.BytesIO(base64.b64decode(value["npy"])), allow_pickle=False)
        return array.view(BFLOAT16) if value.get("dtype") == "bfloat16" else array
    return value


# ---- writing


def write_state(path: str | os.PathLike[str], state: State, *, fixed: bool = False) -> None:
    """Write a state, whole or not at all; `fixed`: nobody else writes it (see `replacing`)."""
    sums = state.tally.state()
    table = _groups_table(sums)
    write_file(path, state, sums, table.schema, table.to_batches(), fixed=fixed)


def write_file(
    path: str | os.PathLike[str],
    state: State,
    sums: dict[str, Any],
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    *,
    fixed: bool = False,
) -> None:
    """Write a state with these lines."""
    metadata = schema.with_metadata({KEY: json.dumps(_metadata(state, sums))})
    with replacing(path, fixed=fixed) as temporary:
        with pa.OSFile(os.fsencode(temporary), "wb") as sink, pa.ipc.new_file(sink, metadata) as writer:
            for batch in batches:
                writer.write_batch(batch)
        _seal(temporary)


def _metadata(state: State, sums: dict[str, Any]) -> dict[str, Any]:
    def listed(one: dict[str, Any]) -> dict[str, Any]:
        return {"low": one["low"], "digits": one["digits"][0].tolist(), "specials": one["specials"][0].tolist()}

    groups = {name: one["low"] for name, one in sums["group_sums"].items()} if sums["groups"] else None
    return {
        "format": FORMAT,
        "version": VERSION,
        "checksum": "0" * 64,
        "options": state.options,
        "given": state.given,
        "data": None if state.data is None else asdict(state.data),
        "seen": state.seen,
        "sampled": state.sampled,
        "learned": state.learned and {name: _packed(value) for name, value in state.learned.items()},
        "counts": sums["counts"],
        "extremes": {name: [least.hex(), greatest.hex()] for name, (least, greatest) in sums["extremes"].items()},
        "sums": {name: listed(one) for name, one in sums["sums"].items()},
        "groups": groups,
    }


def _groups_table(sums: dict[str, Any]) -> pa.Table:
    columns = {"group": pa.array(sums["groups"], pa.string()), "rows": pa.array(sums["group_rows"], pa.int64())}
    for name, one in sums["group_sums"].items() if sums["groups"] else ():
        for what in ("digits", "specials"):
            values = one[what]
            if what == "digits" or values.any():
                columns[f"{name}_{what}"] = _fixed_lists(values)
    return pa.table(columns)


def _fixed_lists(values: Any) -> pa.Array:
    kind = pa.list_(pa.int64(), values.shape[1])
    return pa.Array.from_buffers(kind, len(values), [None], children=[pa.array(values.reshape(-1), pa.int64())])


def _seal(path: Path) -> None:
    """Put the checksum where its zeros are: in the schema, and in the copy of it that the footer holds."""
    with path.open("r+b") as file:
        found, places = _digest(file)
        for place in places:
            file.seek(place)
            file.write(found.encode())


def _digest(file: Any) -> tuple[str, list[int]]:
    """The checksum of an open state file with zeros for its own digits, and where they are."""
    import mmap

    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        size, places, start = len(whole), [], 0
        ends = (whole.find(b'"checksum": "'), whole.rfind(b'"checksum": "'))
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


def read_state(path: str | os.PathLike[str], *, names: Callable[[Any], list[str]] | None = None) -> State:
    """Read a state file, all of it checked before any of it is used.

    Raises:
        BigvocabError: no such file, or one that a newer bigvocab wrote; FormatError: no state, cut short or damaged.
    """
    shown = arguments.path("state", path)
    if "\0" in shown or os.path.exists(shown) and not os.path.isfile(shown):
        raise BigvocabError(f"{shown!r}: is no regular file, expected a state")
    try:
        with open(path, "rb") as file:
            head = file.read(8)
            if not head.startswith(b"ARROW1") or os.fstat(file.fileno()).st_size < 32:
                raise FormatError(
                    f"{shown}: is no state of an evaluation, expected an Arrow IPC file that bigvocab wrote"
                )
            found, places = _digest(file)
            stored = []
            for place in places:
                file.seek(place)
                stored.append(file.read(64))
    except OSError as error:
        raise BigvocabError(f"{shown}: cannot be read: {error.strerror}") from None
    intact = len(places) == 2 and all(digits == found.encode() for digits in stored)
    if not intact and not places and not _is_ours(shown):
        raise FormatError(f"{shown}: is no state of an evaluation, expected an Arrow IPC file that bigvocab wrote")
    if not intact:
        raise FormatError(f"{shown}: truncated or damaged: its checksum does not fit, so nothing of it can be used")
    return parse_state(pa.memory_map(os.fsencode(shown)), shown, names)


def _is_ours(path: str) -> bool:
    with open(path, "rb") as file:
        return FORMAT.encode() in file.read(1 << 16)


def parse_state(source: Any, path: str = "state", names: Callable[[Any], list[str]] | None = None) -> State:
    """A state from bytes that are known to be whole; `names` makes a list of the column of groups."""
    reader = pa.ipc.open_file(source)
    held = json.loads((reader.schema.metadata or {}).get(KEY, b"{}"))
    if held.get("format") != FORMAT:
        raise FormatError(f"{path}: is no state of an evaluation, expected an Arrow IPC file that bigvocab wrote")
    if held["version"] > VERSION:
        raise BigvocabError(
            f"{path}: is of version {held['version']}, of a newer bigvocab; this one reads up to version {VERSION}"
        )
    data = None if held["data"] is None else Data(**held["data"])
    table = reader.read_all()
    of_classes = data is not None and data.classes is not None
    sums = _sums(held, table if held["groups"] else None, names)
    tally = Tally.from_state(sums, tuple(held["options"]["top_k"]))
    state = State(held["options"], held["given"], tally, data, held["seen"], held["sampled"], path)
    state.table = table if of_classes else None
    if learned := held.get("learned"):
        state.learned = {name: from_given(name, value, path) for name, value in learned.items()}
    return state


def _sums(held: dict[str, Any], table: pa.Table | None, names: Callable[[Any], list[str]] | None) -> dict[str, Any]:
    def arrays(one: dict[str, Any]) -> dict[str, Any]:
        return {
            "low": one["low"],
            "digits": np.array([one["digits"]], np.int64),
            "specials": np.array([one["specials"]]),
        }

    found: dict[str, Any] = {
        "counts": held["counts"],
        "extremes": {name: (float.fromhex(a), float.fromhex(b)) for name, (a, b) in held["extremes"].items()},
        "sums": {name: arrays(one) for name, one in held["sums"].items()},
        "groups": [],
        "group_rows": np.zeros(0, np.int64),
        "group_sums": {
            name: {"low": 0, "digits": np.zeros((0, 0)), "specials": np.zeros((0, 3))} for name in ("weight", "loss")
        },
    }
    if table is not None:
        column = table.column("group").combine_chunks()
        found["groups"] = names(column) if names else column.to_pylist()
        found["group_rows"] = table.column("rows").to_numpy()
        for name, low in held["groups"].items():
            specials = f"{name}_specials"
            zeros = np.zeros((len(table), 3), np.int64)
            found["group_sums"][name] = {
                "low": low,
                "digits": _matrix(table, f"{name}_digits"),
                "specials": _matrix(table, specials) if specials in table.column_names else zeros,
            }
    return found


def _matrix(table: pa.Table, name: str) -> Any:
    column = table.column(name).combine_chunks()
    return column.flatten().to_numpy().reshape(len(table), column.type.list_size)
