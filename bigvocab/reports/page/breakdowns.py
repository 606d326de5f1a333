"""The loss by a property of the rows on a page: by how often the label occurs, by position, by group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from bigvocab.reports.page import pictures
from bigvocab.reports.page.groups import BUDGET, group_section
from bigvocab.reports.page.rankings import group_rankings
from bigvocab.reports.page.shown import (
    Section,
    Table,
    digits,
    erring,
    error_of,
    named,
    number,
    percent,
    span,
    whole,
    within,
)

_Report = dict[str, Any]
_RANKINGS = 500_000  # bytes of HTML for the rankings of groups


def frequency_section(report: _Report) -> Section:
    """The loss by the count of the label."""
    text = (
        "The loss by how often the label occurs in the training text: rare classes are where large vocabularies fail."
    )
    return _breakdown(report, "by_frequency", "Loss by frequency of the label", "count of the label", text)


def position_section(report: _Report) -> Section:
    """The loss by the position of the row."""
    text = "The loss by place in the sequence: with more to look back at, it should fall."
    return _breakdown(report, "by_position", "Loss by position", "position in the sequence", text)


def _breakdown(report: _Report, name: str, title: str, label: str, text: str) -> Section:
    bins = report[name]
    live = [item for item in bins if item["rows"]]
    more = _columns(live)
    rows = [(span(item), *_cells(item, more)) for item in bins]
    series = pictures.Series("loss", [item.get("mean") for item in live], [error_of(item) for item in live])
    what = f"Mean loss with standard errors in {len(live)} classes of {label}."
    key = name.replace("_", "-")
    picture = pictures.steps(key, title, [span(item) for item in live], [series], (label, "mean loss (nats)"), what)
    folded = [("Numbers", Table((label, "rows", "mean (nats)", *(title for title, _ in more)), rows))]
    if rankings := group_rankings(label, ((span(item), item) for item in live)):
        folded.append(("Rankings", rankings))
    return Section(key, title, text, picture if live else "", folded=folded)


def groups_section(report: _Report) -> Section:
    """The groups of the user, the worst first."""
    groups = report["groups"]
    more = _columns(list(groups.values()))

    def cells(item: tuple[str, _Report]) -> Sequence[str]:
        return (named(item[0]), *_cells(item[1], more))

    rankings = group_rankings("group", ((named(name), group) for name, group in groups.items()))
    budget = BUDGET - _RANKINGS if rankings else BUDGET
    columns = ("group", "rows", "mean (nats)", *(title for title, _ in more))
    line = ("all rows", report["mean"])
    label = "mean loss (nats)"
    found = group_section("groups", "Groups", groups, "mean", "stderr", columns, cells, label, line, budget)
    if not rankings:
        return found
    shown = within(rankings.rows, _RANKINGS)
    left = len(rankings.rows) - len(shown)
    title = "Rankings by group" + (f", {left:,} more are in the report" if left else "")
    return replace(found, folded=[*found.folded, (title, replace(rankings, rows=shown))])


_Column = tuple[str, Callable[[_Report], str]]


def _columns(items: Sequence[_Report]) -> list[_Column]:
    """What some of the items have besides rows and mean: (title, how it is shown)."""
    found: list[_Column] = []
    if any(item.get("weight", item["rows"]) != item["rows"] for item in items):
        found.append(("weight", _shower("weight", whole)))
    if any("cluster_stderr" in item and "stderr" in item for item in items):
        found.append(("± if rows were independent", _shower("stderr", number)))
    plain = [("perplexity", digits), ("bits_per_byte", number), ("accuracy", percent)]
    for key, show in plain:
        if any(key in item for item in items):
            found.append((key.replace("_", " "), _shower(key, show)))
    return found


def _shower(key: str, show: Callable[[Any], str]) -> Callable[[_Report], str]:
    return lambda item: show(item[key]) if key in item and item["rows"] else ""


def _cells(item: _Report, more: Sequence[_Column]) -> Sequence[str]:
    mean = erring(number(item.get("mean")), error_of(item)) if item["rows"] or "mean" in item else ""
    return (whole(item["rows"]), mean, *(show(item) for _, show in more))
