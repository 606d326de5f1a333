"""A tally as a state holds it: sums that are few as JSON, groups as a table.

JSON: {counts: integers, extremes: {name: [least, greatest]} as C99 hexadecimal floats, sums: {name: {low, digits,
specials}}, bins: {name: {rows, live, sums}}, worst: rows, groups, clusters and crossed: null or {name: low}}. An exact
sum is sum_k digits[k] 2**(32 (k + low) - 1074), with how many NaN, +inf and -inf it has. The table has one line per
group, by name: `group`, `rows`, `live`, and for each sum its digits and (where there are any) its specials; below
these, where there are clusters, one line per cluster, with the same columns called cluster...; below these one per pair
of a cluster and a group or bin: `crossed_cluster`, `crossed_kind` and `crossed_number`, counted from 0, and the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from bigvocab.evaluation.tally import Tally

_CROSSED = "crossed_"
_KEYS = tuple(f"{_CROSSED}{name}" for name in ("cluster", "kind", "number"))


def stored(tally: Tally) -> tuple[dict[str, Any], pa.Table]:
    """JSON and table of a tally."""
    state = tally.state()
    groups, clusters, crossed = state["groups"], state["clusters"], state["crossed"]
    tables = [_table(groups, "", _names(groups, "group"))]
    tables += [_table(clusters, "cluster_", _names(clusters, "cluster"))] if clusters["names"] else []
    keys = {name: pa.array(crossed[name[len(_CROSSED) :]], pa.int64()) for name in _KEYS}
    tables += [_table(crossed, _CROSSED, keys)] if len(crossed["rows"]) else []
    return {
        "counts": state["counts"],
        "extremes": {name: [least.hex(), greatest.hex()] for name, (least, greatest) in state["extremes"].items()},
        "sums": {name: _listed(one) for name, one in state["sums"].items()},
        "bins": {name: _listed_bins(bins) for name, bins in state["bins"].items()},
        "worst": state["worst"],
        "groups": _lows(groups),
        "clusters": _lows(clusters),
        "crossed": _lows(crossed),
    }, pa.concat_tables(tables, promote_options="default") if len(tables) > 1 else tables[0]


def _lows(groups: dict[str, Any]) -> dict[str, Any] | None:
    if not len(groups["rows"]):
        return None
    return {name: one["low"] for name, one in groups["sums"].items()}


def restored(
    held: dict[str, Any], table: pa.Table, top_k: tuple[int, ...], names: Callable[[Any], list[str]] | None = None
) -> Tally:
    """The inverse of `stored`; `names` makes a list of the column of groups."""
    return Tally.from_state(
        {
            "counts": held["counts"],
            "extremes": {name: (float.fromhex(a), float.fromhex(b)) for name, (a, b) in held["extremes"].items()},
            "sums": {name: _arrays(one) for name, one in held["sums"].items()},
            "bins": {name: _bins(bins) for name, bins in held["bins"].items()},
            "worst": held["worst"],
            "groups": _named(held["groups"], table, "", "group", names),
            "clusters": _named(held["clusters"], table, "cluster_", "cluster", names),
            "crossed": _crossed(held["crossed"], table),
        },
        top_k,
    )


def _listed(one: dict[str, Any]) -> dict[str, Any]:
    return {"low": one["low"], "digits": one["digits"].tolist(), "specials": one["specials"].tolist()}


def _arrays(one: dict[str, Any]) -> dict[str, Any]:
    return {"low": one["low"], "digits": np.array(one["digits"], np.int64), "specials": np.array(one["specials"])}


def _listed_bins(bins: dict[str, Any]) -> dict[str, Any]:
    sums = {name: _listed(one) for name, one in bins["sums"].items()}
    return {"rows": bins["rows"].tolist(), "live": bins["live"].tolist(), "sums": sums}


def _bins(held: dict[str, Any]) -> dict[str, Any]:
    return {**held, "sums": {name: _arrays(one) for name, one in held["sums"].items()}}


def _names(groups: dict[str, Any], column: str) -> dict[str, pa.Array]:
    return {column: pa.array(groups["names"], pa.string())}


def _table(groups: dict[str, Any], prefix: str, keys: dict[str, pa.Array]) -> pa.Table:
    columns = keys | {f"{prefix}{what}": pa.array(groups[what], pa.int64()) for what in ("rows", "live")}
    for name, one in groups["sums"].items() if len(groups["rows"]) else ():
        for what in ("digits", "specials"):
            values = one[what]
            if what == "digits" or values.any():
                columns[f"{prefix}{name}_{what}"] = _fixed_lists(values)
    return pa.table(columns)


def _fixed_lists(values: Any) -> pa.Array:
    kind = pa.list_(pa.int64(), values.shape[1])
    return pa.Array.from_buffers(kind, len(values), [None], children=[pa.array(values.reshape(-1), pa.int64())])


def _named(
    lows: dict[str, int] | None, table: pa.Table, prefix: str, column: str, names: Callable[[Any], list[str]] | None
) -> dict[str, Any]:
    """Groups or clusters."""
    if lows is None:
        return {"names": [], **_sums(lows, table, prefix)}
    table = _lines(table, column)
    called = table.column(column).combine_chunks()
    return {"names": names(called) if names else called.to_pylist(), **_sums(lows, table, prefix)}


def _crossed(lows: dict[str, int] | None, table: pa.Table) -> dict[str, Any]:
    if lows is not None:
        table = _lines(table, _KEYS[0])
    found = {} if lows is None else {name: table.column(name).to_numpy() for name in _KEYS}
    keys = {name[len(_CROSSED) :]: found.get(name, np.zeros(0, np.int64)) for name in _KEYS}
    return {**keys, **_sums(lows, table, _CROSSED)}


def _lines(table: pa.Table, column: str) -> pa.Table:
    """The lines that have this column, of a table that may have others."""
    return table.filter(table.column(column).is_valid()) if "cluster" in table.column_names else table


def _sums(lows: dict[str, int] | None, table: pa.Table, prefix: str) -> dict[str, Any]:
    """Rows, live rows and sums of each line."""
    if lows is None:
        return {"rows": np.zeros(0, np.int64), "live": np.zeros(0, np.int64), "sums": {}}
    sums = {}
    for name, low in lows.items():
        there = f"{prefix}{name}_specials" in table.column_names
        specials = _matrix(table, f"{prefix}{name}_specials") if there else np.zeros((len(table), 3), np.int64)
        sums[name] = {"low": low, "digits": _matrix(table, f"{prefix}{name}_digits"), "specials": specials}
    return {
        "rows": table.column(f"{prefix}rows").to_numpy(),
        "live": table.column(f"{prefix}live").to_numpy(),
        "sums": sums,
    }


def _matrix(table: pa.Table, name: str) -> Any:
    column = table.column(name).combine_chunks()
    return column.flatten().to_numpy().reshape(len(table), column.type.list_size)


class Names:
    """Lists of names of groups, made once where the states that follow have the same, as most shards do."""

    def __init__(self) -> None:
        self._met: list[tuple[pa.Array, list[str]]] = []  # of groups and of clusters

    def __call__(self, column: pa.Array) -> list[str]:
        """The names of a column."""
        for known, names in self._met:
            if column.equals(known):
                return names
        self._met = [*self._met[-1:], (column, column.to_pylist())]
        return self._met[-1][1]
