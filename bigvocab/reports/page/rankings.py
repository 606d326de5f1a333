"""Metrics of rankings on the page: a line for each, a column for each k, with errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from bigvocab.catalogue import RANKING
from bigvocab.reports.page.shown import Section, Table, Tile, erring, number, plain_name

_MOST_K = 8  # columns
_MEANINGS = {
    "recall": "share of the true classes that are among the k highest",
    "precision": "share of the k highest classes that are true",
    "ndcg": "gain of the true classes, less the further down, over its best value",
    "map": "mean precision at the places of the true classes",
    "hit_rate": "share of rows with a true class among the k highest",
    "mrr": "mean of 1 / place of the first true class, 0 beyond k",
    "psp": "precision that counts rare classes more",
}


def ranking_tile(block: dict[str, Any]) -> Iterator[Tile]:
    """ndcg at the first k, if there is one."""
    if found := _cells(block, "ndcg"):
        k, shown = next(iter(found.items()))
        yield Tile(f"NDCG at {plain_name(k, 12)}", shown)


def ranking_section(report: dict[str, Any]) -> Section | None:
    """All metrics of the ranking."""
    table = ranking_table(report["ranking"])
    text = "Where the true classes of a row stand among its k highest classes that exist."
    return Section("ranking", "Ranking", text, table=table) if table.rows else None


def ranking_table(block: dict[str, Any]) -> Table:
    """The metrics of a block of rankings."""
    lines = {name: _cells(block, name) for name in RANKING if block.get(name)}
    every = list(dict.fromkeys(k for cells in lines.values() for k in cells))[:_MOST_K]
    rows = [
        (name.replace("_", " "), *(cells.get(k, "") for k in every), _MEANINGS[name]) for name, cells in lines.items()
    ]
    columns = ("metric", *(f"k = {plain_name(k, 12)}" for k in every), "what it says")
    kind = f"meanings k{len(every)}" if 0 < len(every) < 4 else ""
    return Table(columns, rows, frozenset({0, len(every) + 1}), kind)


def group_rankings(first: str, groups: Iterable[tuple[str, dict[str, Any]]]) -> Table | None:
    """The metrics of the ranking of each group, a column for each metric and k; None where there are none."""
    blocks = [(name, group["ranking"]) for name, group in groups if group.get("ranking")]
    every = dict.fromkeys((metric, k) for _, block in blocks for metric in RANKING for k in block.get(metric, {}))
    if not every:
        return None
    rows = [(name, *(number(block[m][k]) if k in block.get(m, {}) else "" for m, k in every)) for name, block in blocks]
    return Table((first, *(f"{m.replace('_', ' ')} at {plain_name(k, 12)}" for m, k in every)), rows)


def _cells(block: dict[str, Any], name: str) -> dict[str, str]:
    """The metric at each k, with its error, over clusters where these are known."""
    errors = block.get("cluster_stderr", block.get("stderr", {})).get(name, {})
    return {k: erring(number(value), errors.get(k)) for k, value in block.get(name, {}).items()}
