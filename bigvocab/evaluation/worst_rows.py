"""The rows of the highest loss: who they are, in an order that no split of the rows changes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

MOST = 20
_LONGEST = 1000  # characters of a text, or of the name of a group, that are kept

Row = dict[str, Any]


class WorstRows:
    """Up to 20 rows {row, loss, label, predicted, group, text}, as far as known; a loss of NaN is worst."""

    def __init__(self, rows: list[Row] | None = None) -> None:
        self.rows: list[Row] = [] if rows is None else rows

    def candidates(self, losses: npt.NDArray[np.float64], live: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
        """Which of some rows may be among them; ties of the last one included."""
        keys = np.where(np.isnan(losses), np.inf, losses)
        chosen = np.flatnonzero(live)
        if len(self.rows) == MOST and not math.isnan(self.rows[-1]["loss"]):
            chosen = chosen[keys[chosen] >= self.rows[-1]["loss"]]
        if len(chosen) > MOST:
            last = np.partition(keys[chosen], len(chosen) - MOST)[len(chosen) - MOST]
            chosen = chosen[keys[chosen] >= last]
        return chosen

    def add(self, rows: list[Row]) -> None:
        """Add rows, which may be more than are kept."""
        self.rows = sorted([*self.rows, *rows], key=_order)[:MOST]

    def merge(self, other: WorstRows) -> None:
        """Add all of `other`."""
        self.add(other.rows)

    def shown(self) -> list[Row]:
        """For the report."""
        return [dict(row) for row in self.rows]

    def state(self) -> list[Row]:
        """As JSON holds them: losses as C99 hexadecimal floats."""
        return [{**row, "loss": float(row["loss"]).hex()} for row in self.rows]

    @classmethod
    def from_state(cls, state: list[Row]) -> WorstRows:
        """The inverse of `state`."""
        return cls([{**row, "loss": float.fromhex(row["loss"])} for row in state])


def cut(text: str | None) -> str | None:
    """A text of at most 1,000 characters.

    >>> len(cut("a" * 5000))
    1000
    """
    return text if text is None or len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _order(row: Row) -> tuple[Any, ...]:
    """Highest first; of equal losses the first row, and where rows have no number, by what they are."""
    lost = math.isnan(row["loss"])
    texts = (row.get("group") or "", row.get("text") or "")
    return not lost, 0.0 if lost else -row["loss"], row.get("row", -1), row["label"], row.get("predicted") or -1, texts
