"""Names, numbers and tables as HTML; what comes from data is cut, made visible and isolated here."""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from bigvocab.reports.numerals import count, fixed, printable, significant, with_error

NAME, TEXT = 64, 300  # characters shown of a name and of a text
_FEW = 8  # entries shown of a list
_CELL, _ROW = 9, 26  # bytes of the marks around a cell, and around a row


class Html(str):
    """Text that is HTML already, and is not escaped again."""

    def __html__(self) -> str:
        return str(self)


@dataclass(frozen=True)
class Table:
    """Rows of cells, the first of which heads its row; `texts` are the columns that are not numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: frozenset[int] = frozenset({0})
    # "meanings": the last column explains, "meanings k2" of two numbers; "texts": columns of text get their own lines
    # on a phone; "words", "paths": the names in the first column, or all others, are not broken.
    kind: str = ""


@dataclass(frozen=True)
class Section:
    """A heading, what it tells, a picture and tables; those of `folded` are opened by a click on their summary."""

    key: str
    title: str
    text: str = ""
    picture: str = ""
    table: Table | None = None
    folded: Sequence[tuple[str, Table]] = field(default=())
    after: str = ""


@dataclass(frozen=True)
class Tile:
    """A number of the first screen, as shown with its error and unit, and a line below it."""

    name: str
    shown: str
    detail: str = ""

    @property
    def value(self) -> str:
        """The number alone."""
        return self.shown.partition(" ")[0]

    @property
    def error(self) -> str:
        """What follows it: an error, a unit."""
        return self.shown.partition(" ")[2]


# ---- text from data


def cut(text: str, most: int) -> str:
    """A text of at most `most` characters: head and tail of a longer one, which tell names apart.

    >>> cut("Ruth", 8), cut("the first and the last", 9)
    ('Ruth', 'the fi…st')
    """
    if len(text) <= most:
        return text
    end = most // 4
    return f"{text[: most - 1 - end]}…{text[-end:]}"


def named(text: str, most: int = NAME) -> Html:
    r"""A name from data: cut, isolated from the direction of what surrounds it, and without invisible characters.

    >>> named("Ruth & Boaz"), named("a\u202eb")
    ('<bdi>Ruth &amp; Boaz</bdi>', '<bdi>a<i>\\u202e</i>b</bdi>')
    """
    shown = cut(text, most)
    if shown.isprintable():
        return Html(f"<bdi>{html.escape(shown)}</bdi>")
    parts = (html.escape(c) if c.isprintable() else f"<i>{printable(c)}</i>" for c in shown)
    return Html(f"<bdi>{''.join(parts)}</bdi>")


def plain_name(text: str, most: int) -> str:
    """The same for a picture: no markup, no longer than `most`, and shorter where letters are wide."""
    if any(unicodedata.east_asian_width(c) in "WF" for c in text[:most]):
        most = most // 2 + 1
    return cut(printable(cut(text, most)), most)


def text_of(value: Any, most: int = NAME) -> Html:
    """Any value of a report: texts as they are, all else as in JSON, the first few of what there is many of.

    >>> text_of("Ruth"), text_of([1, 2.5, None]), text_of({"a<b": ["c"]})
    ('<bdi>Ruth</bdi>', '<bdi>1, 2.5, null</bdi>', '<bdi>a&lt;b c</bdi>')
    """
    return named(_written(value), most if isinstance(value, str) else max(most, TEXT))


def _written(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, list):
        more = f", … ({len(value):,} in all)" if len(value) > _FEW else ""
        return ", ".join(_written(item) for item in value[:_FEW]) + more
    if isinstance(value, dict):
        return ", ".join(f"{key} {_written(item)}" for key, item in islice(value.items(), _FEW))
    return repr(value)


# ---- numbers, as in the table on a terminal


def number(value: float | None, decimals: int = 6) -> str:
    """A loss, a share, a bound."""
    return fixed(math.nan if value is None else value, decimals)


def digits(value: float | None, most: int = 5) -> str:
    """A perplexity or a rank."""
    return significant(math.nan if value is None else value, most)


def whole(value: float | None) -> str:
    """A count."""
    return count(math.nan if value is None else value)


def percent(value: float | None, decimals: int = 2) -> str:
    """A share."""
    return "nan" if value is None else f"{value:.{decimals}%}"


def erring(shown: str, error: float | None) -> str:
    """A number as shown, with its error where there is one; a line may end before the sign, not after it."""
    return with_error(shown, error, "±\u00a0").replace("\u00a0 ", "\u00a0")


def error_of(block: Mapping[str, Any], name: str = "stderr") -> float | None:
    """The error over clusters where they are known, else that over rows."""
    return block.get(name.replace("stderr", "cluster_stderr"), block.get(name))


def span(item: dict[str, Any]) -> str:
    """A bin of whole numbers, `to` left out of it.

    >>> span({"from": 1, "to": 10}), span({"from": 0, "to": 1}), span({"from": 1000, "to": None})
    ('1–9', '0', '≥ 1,000')
    """
    start, end = item["from"], item["to"]
    if end is None or math.isinf(end):
        return f"≥ {start:,.0f}"
    return f"{start:,.0f}" if end - start <= 1 else f"{start:,.0f}–{end - 1:,.0f}"


def within(rows: Iterable[Sequence[str]], budget: int) -> list[Sequence[str]]:
    """The first rows of a table that fit in so many bytes of HTML."""
    found = []
    for cells in rows:
        budget -= _ROW + sum(_CELL + len(str(cell).encode()) for cell in cells)
        if budget < 0:
            break
        found.append(cells)
    return found
