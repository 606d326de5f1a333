"""A tally as a state holds it: sums that are few as JSON, groups as a table.

JSON: {counts: integers, extremes: {name: [least, greatest]} as C99 hexadecimal floats, sums: {name: {low, digits,
specials}}, groups: null or {name: low}}. An exact sum is sum_k digits[k] 2**(32 (k + low) - 1074), with how many NaN,
+inf and -inf it has. The table has one line per group, by name: `group`, `rows`, and for each sum its digits and (where
there are any) its specials.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from bigvocab.evaluation.tally import Tally


def stored(tally: Tally) -> tuple[dict[str, Any], pa.Table]:
    """JSON and table of a tally."""
    state = tally.state()
    groups = state["groups"]
    return {
        "counts": state["counts"],
        "extremes": {name: [least.hex(), greatest.hex()] for name, (least, greatest) in state["extremes"].items()},
        "sums": {name: _listed(one) for name, one in state["sums"].items()},
        "groups": {name: one["low"] for name, one in groups["sums"].items()} if groups["names"] else None,
    }, _table(groups)


def restored(
    held: dict[str, Any], table: pa.Table, top_k: tuple[int, ...], names: Callable[[Any], list[str]] | None = None
) -> Tally:
    """The inverse of `stored`; `names` makes a list of the column of groups."""
    return Tally.from_state(
        {
            "counts": held["counts"],
            "extremes": {name: (float.fromhex(a), float.fromhex(b)) for name, (a, b) in held["extremes"].items()},
            "sums": {name: _arrays(one) for name, one in held["sums"].items()},
            "groups": _groups(held["groups"], table, names),
        },
        top_k,
    )


def _listed(one: dict[str, Any]) -> dict[str, Any]:
    return {"low": one["low"], "digits": one["digits"].tolist(), "specials": one["specials"].tolist()}


def _arrays(one: dict[str, Any]) -> dict[str, Any]:
    return {"low": one["low"], "digits": np.array(one["digits"], np.int64), "specials": np.array(one["specials"])}


def _table(groups: dict[str, Any]) -> pa.Table:
    columns = {"group": pa.array(groups["names"], pa.string()), "rows": pa.array(groups["rows"], pa.int64())}
    for name, one in groups["sums"].items() if groups["names"] else ():
        for what in ("digits", "specials"):
            values = one[what]
            if what == "digits" or values.any():
                columns[f"{name}_{what}"] = _fixed_lists(values)
    return pa.table(columns)


def _fixed_lists(values: Any) -> pa.Array:
    kind = pa.list_(pa.int64(), values.shape[1])
    return pa.Array.from_buffers(kind, len(values), [None], children=[pa.array(values.reshape(-1), pa.int64())])


def _groups(lows: dict[str, int] | None, table: pa.Table, names: Callable[[Any], list[str]] | None) -> dict[str, Any]:
    if lows is None:
        empty = {"low": 0, "digits": np.zeros((0, 0)), "specials": np.zeros((0, 3))}
        return {"names": [], "rows": np.zeros(0, np.int64), "sums": {name: empty for name in ("weight", "loss")}}
    column = table.column("group").combine_chunks()
    sums = {}
    for name, low in lows.items():
        there = f"{name}_specials" in table.column_names
        specials = _matrix(table, f"{name}_specials") if there else np.zeros((len(table), 3), np.int64)
        sums[name] = {"low": low, "digits": _matrix(table, f"{name}_digits"), "specials": specials}
    return {
        "names": names(column) if names else column.to_pylist(),
        "rows": table.column("rows").to_numpy(),
        "sums": sums,
    }


def _matrix(table: pa.Table, name: str) -> Any:
    column = table.column(name).combine_chunks()
    return column.flatten().to_numpy().reshape(len(table), column.type.list_size)


class Names:
    """Lists of names of groups, made once where the states that follow have the same, as most shards do."""

    def __init__(self) -> None:
        self._column: pa.Array | None = None
        self._names: list[str] = []

    def __call__(self, column: pa.Array) -> list[str]:
        """The names of a column."""
        if self._column is None or not column.equals(self._column):
            self._column, self._names = column, column.to_pylist()
        return self._names
