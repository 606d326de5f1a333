"""What compared rows add up to, and the form that it has in states.

JSON holds all that is small; the table has one line for each larger array: its dotted name, its type (NumPy's, little-
endian), its shape and its bytes. Values of rows, which percentiles need, are there, so merged percentiles are exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bigvocab.comparison.between import ComparisonTally
from bigvocab.comparison.blocks import Block
from bigvocab.comparison.llama_table import LlamaTable
from bigvocab.errors import BigvocabError, FormatError

_SMALL = 64  # elements of an array that JSON holds
_TYPES = ("<f8", "<f4", "<i8", "<i4", "|u1", "|b1")
_SCHEMA = pa.schema(
    [("name", pa.string()), ("type", pa.string()), ("shape", pa.list_(pa.int64())), ("bytes", pa.large_binary())]
)


@dataclass
class ComparisonSums:
    """Tallies of all candidates, and what reports say beside them.

    Attributes:
        tally: of the candidates and what lies between them.
        tables: llama.cpp's own table, by candidate.
        floors: {"step", "nats"} of llama.cpp files, by candidate.
        stored: candidates that are llama.cpp files themselves.
        notes: see `Sides.notes`.
        models: what reports say of models, by side.
    """

    tally: ComparisonTally
    tables: dict[str, LlamaTable] = field(default_factory=dict)
    floors: dict[str, dict[str, float]] = field(default_factory=dict)
    stored: list[str] = field(default_factory=list)
    notes: list[dict[str, str]] = field(default_factory=list)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, names: Iterable[str]) -> ComparisonSums:
        """Of no row."""
        return cls(ComparisonTally(names))

    def merge(self, other: Any) -> None:
        """Add other sums, or a `BlockRows`."""
        other.add_to(self)

    def add_to(self, sums: ComparisonSums) -> None:
        """Add all of it to other sums.

        Raises:
            BigvocabError: labels, or clusters, on one side alone.
        """
        refuse_other_kind(sums.beside(), self.beside(), "merge")
        sums.tally.merge(self.tally)
        for name, table in self.tables.items():
            sums.tables.setdefault(name, LlamaTable()).merge(table)
        sums.floors |= self.floors
        sums.models |= self.models
        sums.stored = sorted({*sums.stored, *self.stored})
        sums.notes += [note for note in self.notes if note not in sums.notes]

    @property
    def seen(self) -> int:
        """How many rows were seen, those left out among them."""
        counts = next(iter(self.tally.candidates.values())).counts
        return counts["rows"] + counts["ignored_rows"] + counts["skipped_rows"]

    def beside(self) -> dict[str, bool]:
        """Whether rows came with labels and with clusters, as far as that is known."""
        found = {}
        for tally in self.tally.candidates.values():
            if tally.moments:
                found["labels"] = "loss_reference" in tally.moments
            if tally.counts["rows"]:
                found["clusters"] = len(tally.clusters) > 0
        return found

    def counts(self) -> dict[str, int]:
        """Rows in the metrics of the candidate that has most, and rows that were left out everywhere."""
        every = [tally.counts for tally in self.tally.candidates.values()]
        best = max(every, key=lambda counts: counts["rows"])
        bad = best["skipped_rows"]
        return {"rows": best["rows"], "ignored_rows": best["ignored_rows"], "nonfinite_rows": bad}

    def state(self) -> dict[str, Any]:
        """All of it as plain numbers and arrays."""
        return {
            "tally": self.tally.state(),
            "tables": {name: table.state() for name, table in self.tables.items()},
            "floors": self.floors,
            "stored": self.stored,
            "notes": self.notes,
            "models": self.models,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> ComparisonSums:
        """The inverse of `state`."""
        tables = {name: LlamaTable.from_state(table) for name, table in state["tables"].items()}
        tally = ComparisonTally.from_state(state["tally"])
        floors, models = dict(state["floors"]), dict(state["models"])
        return cls(tally, tables, floors, list(state["stored"]), list(state["notes"]), models)


@dataclass
class BlockRows:
    """The rows of a block, not added up yet."""

    block: Block

    def beside(self) -> dict[str, bool]:
        """As `ComparisonSums.beside`."""
        every = self.block.rows.values()
        return {
            "labels": any(rows.labels is not None for rows in every),
            "clusters": any(rows.clusters is not None for rows in every),
        }

    def add_to(self, sums: ComparisonSums) -> None:
        """Add the rows to sums."""
        sums.tally.add(self.block.rows)
        for name, table in self.block.tables.items():
            sums.tables.setdefault(name, LlamaTable()).merge(table)


def refuse_other_kind(mine: Mapping[str, bool], others: Mapping[str, bool], name: str) -> None:
    """Raise where some rows came with labels, or clusters, and others without: means over all rows would be wrong."""
    for what in mine.keys() & others.keys():
        if mine[what] != others[what]:
            text = f"got no {what}, expected them" if mine[what] else f"got {what}, expected none"
            raise BigvocabError(f"{name}: {text}, as with the rows before")


def stored_sums(sums: ComparisonSums) -> tuple[dict[str, Any], pa.Table]:
    """JSON and table of sums."""
    lines: list[tuple[str, npt.NDArray[Any]]] = []
    held = _packed(sums.state(), "", lines)
    columns = [
        pa.array([name for name, _ in lines], pa.string()),
        pa.array([array.dtype.str for _, array in lines], pa.string()),
        pa.array([list(array.shape) for _, array in lines], pa.list_(pa.int64())),
        pa.array([array.tobytes() for _, array in lines], pa.large_binary()),
    ]
    return held, pa.Table.from_arrays(columns, schema=_SCHEMA)


def restored_sums(held: Mapping[str, Any], table: pa.Table, path: str = "state") -> ComparisonSums:
    """The inverse of `stored_sums`.

    Raises:
        FormatError: arrays that are not what they say.
    """
    arrays: dict[str, npt.NDArray[Any]] = {}
    for batch in table.to_batches():
        for line in range(len(batch)):
            name, kind, shape, data = (batch.column(at)[line] for at in range(4))
            arrays[name.as_py()] = _array(kind.as_py(), shape.as_py(), data.as_buffer(), path)
    try:
        return ComparisonSums.from_state(_unpacked(held, "", arrays))
    except KeyError as error:
        raise FormatError(f"{path}: has no {error} among its sums, expected a state of this version") from None


def _packed(value: Any, name: str, lines: list[tuple[str, npt.NDArray[Any]]]) -> Any:
    """A value as JSON; larger arrays become lines."""
    if isinstance(value, dict):
        return {str(key): _packed(item, f"{name}.{key}", lines) for key, item in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [_packed(item, f"{name}.{at}", lines) for at, item in enumerate(value)]
    if not isinstance(value, np.ndarray):
        return value
    array = value.astype(value.dtype.newbyteorder("<"), copy=False)
    if array.size <= _SMALL and array.dtype.kind in "iub":
        return {"=type": array.dtype.str, "=shape": list(array.shape), "=values": array.reshape(-1).tolist()}
    lines.append((name, array))
    return {"=line": name}


def _unpacked(value: Any, name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> Any:
    if isinstance(value, list):
        return [_unpacked(item, name, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"=line"}:
        return arrays[value["=line"]]
    if value.keys() == {"=type", "=shape", "=values"}:
        return np.array(value["=values"], value["=type"]).reshape(value["=shape"])
    return {key: _unpacked(item, name, arrays) for key, item in value.items()}


def _array(kind: str, shape: list[int], data: Any, path: str) -> npt.NDArray[Any]:
    if kind not in _TYPES or any(size < 0 for size in shape) or np.dtype(kind).itemsize * _product(shape) != data.size:
        raise FormatError(f"{path}: holds an array of {kind} {shape} in {data.size} bytes, which it is not")
    return np.frombuffer(data, kind).reshape(shape)


def _product(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
