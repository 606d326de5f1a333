"""Groups on a page: the worst as a picture and a table, the others folded, within a budget of bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bigvocab.reports.numerals import counted
from bigvocab.reports.page import pictures
from bigvocab.reports.page.shown import Section, Table, error_of, within

MOST_OPEN = 20
BUDGET = 1_600_000  # bytes of HTML for the folded rows of all tables of groups
Groups = Mapping[str, dict[str, Any]]


def group_section(
    key: str,
    title: str,
    groups: Groups,
    value: str,
    error: str,
    columns: Sequence[str],
    cells: Callable[[tuple[str, dict[str, Any]]], Sequence[str]],
    label: str,
    line: tuple[str, float | None],
    budget: int = BUDGET,
) -> Section:
    """Groups with the highest `value` first; those that do not fit in `budget` are counted."""
    ranked = sorted(groups.items(), key=lambda item: (*_badness(item[1][value]), item[0]))
    worst, rest = ranked[:MOST_OPEN], ranked[MOST_OPEN:]
    items = [(name, group[value], error_of(group, error)) for name, group in worst]
    errors = " with standard errors" if any(error is not None for _, _, error in items) else ""
    what = f"The {len(worst)} worst of {len(groups):,} groups{errors}, beside {line[0]}."
    picture = pictures.forest(key, "Groups", items, label, what, line=line)
    shown = within((cells(item) for item in rest), budget)
    left = len(rest) - len(shown)
    folded = [(f"{counted(len(shown), 'more group')}", Table(columns, shown))] if shown else []
    text = "Highest first." if not rest else f"The {MOST_OPEN} worst of {len(groups):,}, highest first."
    after = f"{counted(left, 'more group')} of lower values are in the report alone." if left else ""
    return Section(key, title, text, picture, Table(columns, [cells(item) for item in worst]), folded, after)


def _badness(value: float | None) -> tuple[bool, float]:
    """Highest first, nothing to average last."""
    missing = value is None or math.isnan(value)
    return missing, 0.0 if missing or value is None else -value
