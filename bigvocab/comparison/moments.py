"""Sums of values and of their exact squares, one for each line of a table; means and errors are read from them.

Squares are added without rounding, so a spread of 0 is 0, and no value depends on the order of rows or merges.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.losses.exact_sums import ExactSums, divide, to_float

Floats = npt.NDArray[np.float64]
_SPLIT = 134217729.0  # 2**27 + 1


def exact_product(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """(a b rounded, what the rounding left out): T. J. Dekker's product; the rest is 0 where parts would overflow."""
    with np.errstate(over="ignore", invalid="ignore"):
        product = a * b
        (high, low), (other_high, other_low) = _halves(a), _halves(b)
        rest = ((high * other_high - product) + high * other_low + low * other_high) + low * other_low
    return product, np.where(np.isfinite(rest), rest, 0.0)


def _halves(a: Floats) -> tuple[Floats, Floats]:
    big = _SPLIT * a
    high = big - (big - a)
    return high, a - high


class Moments:
    """Sum and sum of squares of values, for each of `size` lines; how many there are is counted elsewhere."""

    def __init__(self, size: int = 1) -> None:
        self.total, self.squares = ExactSums(size), ExactSums(size)

    def add(self, values: Floats, lines: npt.NDArray[np.int32] | None = None) -> None:
        """Add values (n,) to their lines, or to the first."""
        square, rest = exact_product(values, values)
        self.total.add(values, lines)
        self.squares.add(square, lines)
        self.squares.add(rest, lines)

    def grow(self, size: int) -> None:
        """Have at least `size` lines."""
        self.total.grow(size)
        self.squares.grow(size)

    def merge(self, other: Moments, lines: npt.NDArray[np.intp] | None = None) -> None:
        """Add the sums of `other`, whose line i is `lines[i]` here."""
        self.total.merge(other.total, lines)
        self.squares.merge(other.squares, lines)

    def mean(self, count: int, line: int = 0) -> float:
        """The mean of `count` values."""
        return divide(self.total.exact(line), count)

    def spread(self, count: int, line: int = 0) -> Fraction | None:
        """The sum of squared distances from the mean; None where a value is not finite."""
        return spread(self.total.exact(line), self.total.exact(line), self.squares.exact(line), count)

    def stderr(self, count: int, line: int = 0) -> float:
        """Standard error of the mean, sqrt(spread / (n (n - 1))); NaN for fewer than two values."""
        return stderr(self.spread(count, line), count)

    def state(self, order: npt.NDArray[np.intp] | None = None) -> dict[str, Any]:
        """The sums, or those of the lines `order`."""
        return {"total": self.total.state(order), "squares": self.squares.state(order)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Moments:
        """The inverse of `state`."""
        moments = cls(0)
        moments.total = ExactSums.from_state(state["total"])
        moments.squares = ExactSums.from_state(state["squares"])
        return moments


def spread(a: Fraction | float, b: Fraction | float, products: Fraction | float, count: int) -> Fraction | None:
    """sum (a_i - mean a) (b_i - mean b) from exact sums; None where one is not finite."""
    if not (isinstance(a, Fraction) and isinstance(b, Fraction) and isinstance(products, Fraction)) or not count:
        return None
    return products - a * b / count


def stderr(squares: Fraction | None, count: int) -> float:
    """The standard error of a mean of `count` values whose squared distances from it sum to `squares`."""
    if squares is None or count < 2:
        return math.nan
    return math.sqrt(to_float(max(squares, Fraction(0)) / (count * (count - 1))))


class Lines:
    """A table with a line per name (a group, a cluster): rows, counts and sums of each."""

    def __init__(self, counts: Iterable[str], sums: Iterable[str]) -> None:
        self.ids: dict[str, int] = {}
        self.rows = np.zeros(0, np.int64)
        self.counts = {name: np.zeros(0, np.int64) for name in counts}
        self.sums = {name: Moments(0) for name in sums}

    def __len__(self) -> int:
        return len(self.ids)

    def _lines_of(self, names: list[str]) -> npt.NDArray[np.intp]:
        found = np.array([self.ids.setdefault(name, len(self.ids)) for name in names], np.intp)
        if (more := len(self.ids) - len(self.rows)) > 0:
            self.rows = np.pad(self.rows, (0, more))
            self.counts = {name: np.pad(count, (0, more)) for name, count in self.counts.items()}
            for sums in self.sums.values():
                sums.grow(len(self.ids))
        return found

    def add(
        self, codes: npt.NDArray[Any], names: list[str], counts: dict[str, Any], values: dict[str, Floats]
    ) -> npt.NDArray[Any]:
        """Add rows; row i is of the line `names[codes[i]]`, whose number here is returned."""
        if not len(codes):
            return np.zeros(0, np.int32)
        seen = np.unique(codes)
        place = np.zeros(len(names), np.int32)
        place[seen] = self._lines_of([names[code] for code in seen])
        lines = place[codes]
        self.rows += np.bincount(lines, minlength=len(self.rows))
        for name, flags in counts.items():
            self.counts[name] += np.bincount(lines[flags], minlength=len(self.rows))
        for name, column in values.items():
            self.sums[name].add(column, lines)
        return lines

    def merge(self, other: Lines) -> npt.NDArray[np.intp]:
        """Add the lines of another table; the number here of each of its lines."""
        if not len(other):
            return np.zeros(0, np.intp)
        lines = self._lines_of(list(other.ids))
        self.rows[lines] += other.rows
        for name, count in other.counts.items():
            self.counts[name][lines] += count
        for name, sums in other.sums.items():
            self.sums[name].merge(sums, lines)
        return lines

    def order(self) -> npt.NDArray[np.intp]:
        """The numbers of the lines, sorted by name."""
        return np.array([self.ids[name] for name in sorted(self.ids)], np.intp)

    def state(self) -> dict[str, Any]:
        """All of it as plain numbers and arrays, lines by name."""
        names, order = sorted(self.ids), self.order()
        return {
            "names": names,
            "rows": self.rows[order],
            "counts": {name: count[order] for name, count in self.counts.items()},
            "sums": {name: sums.state(order) for name, sums in self.sums.items()},
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Lines:
        """The inverse of `state`."""
        lines = cls((), ())
        lines.ids = {name: line for line, name in enumerate(state["names"])}
        lines.rows = np.array(state["rows"], np.int64)
        lines.counts = {name: np.array(count, np.int64) for name, count in state["counts"].items()}
        lines.sums = {name: Moments.from_state(sums) for name, sums in state["sums"].items()}
        return lines

    def cluster_stderr(self, name: str) -> float:
        """sqrt(C / (C - 1) sum_c (sum_{i in c} (v_i - mean))^2) / n over the lines as clusters; NaN below two."""
        count, clusters = int(self.rows.sum()), len(self)
        sums = [self.sums[name].total.exact(line) for line in range(clusters)]
        if clusters < 2 or not all(isinstance(value, Fraction) for value in sums):
            return math.nan
        return _cluster_stderr([Fraction(value) for value in sums], self.rows.tolist(), count)

    def cluster_stderr_of_count(self, name: str) -> float:
        """As `cluster_stderr`, of a share."""
        sums = [Fraction(value) for value in self.counts[name].tolist()]
        return _cluster_stderr(sums, self.rows.tolist(), int(self.rows.sum())) if len(sums) > 1 else math.nan


def _cluster_stderr(sums: list[Fraction], rows: list[int], count: int) -> float:
    mean = sum(sums, Fraction(0)) / count
    distances = (to_float(value - mean * size) for value, size in zip(sums, rows, strict=True))
    total = math.fsum(distance * distance for distance in distances)
    return math.sqrt(len(sums) / (len(sums) - 1) * total) / count
