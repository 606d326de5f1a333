"""Exact sums of float64 numbers: they merge, and no order, chunk or thread changes a bit of them."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

_CARRY_AFTER = 1 << 29
_UNIT = 1074  # the exponent of the smallest number


class ExactSums:
    """Exact sums of float64 numbers, one for each of `size` groups.

    >>> sums = ExactSums()
    >>> sums.add([1e100, 1.0, -1e100])
    >>> sums.value()
    1.0
    """

    def __init__(self, size: int = 1) -> None:
        self._low = 0  # digit k of a line stands for 2**(32 (k + low) - 1074)
        self._digits = np.zeros((size, 0), np.int64)
        self._specials = np.zeros((size, 3), np.int64)
        self._pending = 0

    def __len__(self) -> int:
        return len(self._specials)

    def grow(self, size: int) -> None:
        """Have at least `size` groups; new ones are 0."""
        if (more := size - len(self)) > 0:
            self._digits = np.pad(self._digits, ((0, more), (0, 0)))
            self._specials = np.pad(self._specials, ((0, more), (0, 0)))

    def _cover(self, low: int, high: int) -> None:
        """Have digits `low` to `high`, both included, and one above for carries."""
        if high < low:
            return
        width = self._digits.shape[1]
        if width == 0:
            self._low, self._digits = low, np.zeros((len(self), high - low + 2), np.int64)
            return
        below, above = max(0, self._low - low), max(0, high + 2 - (self._low + width))
        if below or above:
            self.carry()  # the last digit may hold more than 32 bits, or be negative: it moves with its sign
            self._digits = np.pad(self._digits, ((0, 0), (below, above)))
            self._low -= below

    def add(self, values: npt.ArrayLike, groups: npt.NDArray[np.int32] | None = None) -> None:
        """Add `values` (n,) to the sums of `groups` (n,), or all to the first."""
        from bigvocab.kernels import sums

        bits = np.ascontiguousarray(values, np.float64).reshape(-1).view(np.uint64)
        if bits.size == 0:
            return
        where = np.zeros(1, np.int32) if groups is None else np.ascontiguousarray(groups, np.int32)
        if groups is not None and len(where) == 1 and bits.size > 1:
            where = np.repeat(where, bits.size)
        for start in range(0, bits.size, _CARRY_AFTER):
            part = bits[start : start + _CARRY_AFTER]
            if self._pending + part.size > _CARRY_AFTER:
                self.carry()
            self._pending += part.size
            self._cover(*sums.digit_range(part))
            digits = self._digits if self._digits.shape[1] else np.zeros((len(self), 1), np.int64)
            sums.add_numbers(
                part,
                where[start : start + _CARRY_AFTER] if groups is not None else where,
                self._low,
                digits,
                self._specials,
            )

    def carry(self) -> None:
        """Propagate carries, so that equal sums have equal digits."""
        from bigvocab.kernels import sums

        if self._digits.shape[1]:
            sums.carry(self._digits)
        self._pending = 0

    def merge(self, other: ExactSums, groups: npt.NDArray[np.intp] | None = None) -> None:
        """Add the sums of `other`; its group i is group `groups[i]` here, each another one, or the same one."""
        to = np.arange(len(other)) if groups is None else groups
        self.grow(int(to.max(initial=-1)) + 1)
        other.carry()
        self.carry()
        if width := other._digits.shape[1]:
            self._cover(other._low, other._low + width - 1)
            start = other._low - self._low
            self._digits[to, start : start + width] += other._digits
        self._specials[to] += other._specials
        self._pending = 2 * len(other)

    def integer(self, group: int = 0) -> int:
        """The sum of the group's finite numbers in units of 2**-1074."""
        total = 0
        for digit in reversed(self._digits[group].tolist()):
            total = (total << 32) + digit
        return total << 32 * self._low if total else 0

    def special(self, group: int = 0) -> float | None:
        """NaN or an infinity where one was added, else None."""
        nans, plus, minus = self._specials[group].tolist()
        if nans or (plus and minus):
            return float("nan")
        return float("inf") if plus else float("-inf") if minus else None

    def units(self, group: int = 0) -> int | None:
        """The sum in units of 2**-1074; None where it is not finite."""
        return None if self._specials[group].any() else self.integer(group)

    def exact(self, group: int = 0) -> Fraction | float:
        """The sum as a fraction; a float where it is not finite."""
        special = self.special(group)
        return Fraction(self.integer(group), 1 << 1074) if special is None else special

    def value(self, group: int = 0) -> float:
        """The sum, rounded once."""
        return to_float(self.exact(group))

    def values(self, groups: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """The sums of these groups, each rounded once."""
        self.carry()
        digits, special = self._digits[groups], self._specials[groups].any(axis=1)
        found = np.zeros(len(groups))
        if digits.shape[1]:
            lower, last = digits[:, :-1].astype("<u4"), digits[:, -1:].astype("<i8")
            lines = np.hstack([np.ascontiguousarray(part).view(np.uint8) for part in (lower, last)])
            data, width = lines.tobytes(), lines.shape[1]
            wholes = [int.from_bytes(data[at : at + width], "little", signed=True) for at in range(0, len(data), width)]
            try:  # rounded once: what is below the smallest normal number has fewer bits than a float
                with np.errstate(over="ignore", under="ignore"):
                    found = np.ldexp(np.array([float(whole) for whole in wholes]), 32 * self._low - _UNIT)
            except OverflowError:
                found = np.array([self.value(int(group)) for group in groups])
        for i in np.flatnonzero(special).tolist():
            found[i] = self.value(int(groups[i]))
        return found

    def state(self, order: npt.NDArray[np.intp] | None = None) -> dict[str, Any]:
        """The sums, or those of the groups `order`, in their one canonical form: {low, digits, specials}."""
        self.carry()
        digits, specials = self._digits, self._specials
        if order is not None:
            digits, specials = digits[order], specials[order]
        while digits.shape[1] > 1 and np.isin(digits[:, -1], (0, -1)).all():  # a last digit that is only a sign
            digits = np.hstack([digits[:, :-2], digits[:, -2:-1] + (digits[:, -1:] << 32)])
        used = np.flatnonzero(digits.any(0))
        first, stop = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)
        digits = np.ascontiguousarray(digits[:, first:stop])
        return {"low": self._low + first if used.size else 0, "digits": digits, "specials": specials.copy()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> ExactSums:
        """The inverse of `state`."""
        sums = cls(len(state["specials"]))
        sums._specials = np.array(state["specials"], np.int64).reshape(-1, 3)
        digits = np.array(state["digits"], np.int64)
        digits = digits.reshape(len(sums), -1 if digits.size else 0)
        if digits.shape[1]:
            sums._low, sums._digits = int(state["low"]), np.pad(digits, ((0, 0), (0, 1)))
        return sums


def to_float(number: Fraction | float | int) -> float:
    """`number` rounded once to float64; beyond its range an infinity."""
    try:
        return float(number)
    except OverflowError:
        return float("inf") if number > 0 else float("-inf")


def exp(x: float) -> float:
    """e^x; beyond the range of float64 infinite."""
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def divide(numerator: Fraction | float, denominator: Fraction | float | int) -> float:
    """The quotient, rounded once; NaN where there is nothing to divide by."""
    if denominator == 0 or denominator != denominator:
        return float("nan")
    if isinstance(numerator, float) or isinstance(denominator, float):
        return to_float(numerator) / to_float(denominator)
    return to_float(Fraction(numerator) / denominator)


def spread_error(
    total: Fraction | float,
    weight: Fraction | float,
    squares: Fraction | float,
    products: Fraction | float,
    weights: Fraction | float,
    *,
    n: int,
) -> float:
    """Standard error of the mean total / weight: sqrt(sum((w (v - mean))^2) n / (n - 1)) / sum(w); NaN for n < 2.

    Args:
        total: sum(w v).
        weight: sum(w).
        squares: sum((w v)^2).
        products: sum(w^2 v).
        weights: sum(w^2).
        n: weights that are not 0.
    """
    exact = all(isinstance(s, Fraction) for s in (total, weight, squares, products, weights))
    if n < 2 or not exact or weight == 0:
        return math.nan
    t, w, q, p, v = (_in_units(s) for s in (total, weight, squares, products, weights))
    return spread_of_units(t, w, q, p, v, n=n)


def _in_units(number: Fraction | float) -> int:
    return int(Fraction(number) * (1 << _UNIT))


def spread_of_units(t: int, w: int, q: int, p: int, v: int, *, n: int) -> float:
    """As `spread_error`, of sums as integers in units of 2**-1074: no fraction is ever reduced."""
    spread = max(q * w * w - 2 * t * w * p + t * t * v, 0) << _UNIT
    return math.sqrt(quotient(spread * n, w**4 * (n - 1)))


def quotient(numerator: int, denominator: int) -> float:
    """The quotient of two integers, rounded once; past float64 an infinity, and NaN where the denominator is 0."""
    if denominator == 0:
        return math.nan
    try:
        return numerator / denominator
    except OverflowError:
        return math.inf if (numerator > 0) == (denominator > 0) else -math.inf
