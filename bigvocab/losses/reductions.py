"""Exact sums that merge, and the five reductions: every figure is a quotient of exact sums, divided once.

Because the sums are exact, no figure depends on chunks, threads, the order of batches or the order of merges.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.arguments import as_array
from bigvocab.errors import BigvocabError, Keyword

REDUCTIONS = ("none", "sum", "mean", "sum_over_batch_size", "sum_by_nonzero_weights")
_CARRY_AFTER = 1 << 29


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

    def exact(self, group: int = 0) -> Fraction | float:
        """The sum as a fraction; a float where it is not finite."""
        special = self.special(group)
        return Fraction(self.integer(group), 1 << 1074) if special is None else special

    def value(self, group: int = 0) -> float:
        """The sum, rounded once."""
        return to_float(self.exact(group))

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


def divide(numerator: Fraction | float, denominator: Fraction | float | int) -> float:
    """The quotient, rounded once; NaN where there is nothing to divide by."""
    if denominator == 0 or denominator != denominator:
        return float("nan")
    if isinstance(numerator, float) or isinstance(denominator, float):
        return to_float(numerator) / to_float(denominator)
    return to_float(Fraction(numerator) / denominator)


def check_reduction(reduction: str) -> None:
    """Raise unless `reduction` is one of the five names."""
    if not isinstance(reduction, str):
        raise TypeError(f"reduction: expected one of {', '.join(REDUCTIONS)}, got {type(reduction).__name__}")
    if reduction not in REDUCTIONS:
        raise BigvocabError(Keyword("reduction"), f": got {reduction!r}, expected one of {', '.join(REDUCTIONS)}")


def reduced(reduction: str, total: Fraction | float, weight: Fraction | float, count: int, nonzero: int) -> float:
    """The figure `reduction` of sums: total = S w l, weight = S w, `count` losses of which `nonzero` have a weight."""
    if reduction == "sum":
        return to_float(total)
    return divide(total, {"mean": weight, "sum_over_batch_size": count, "sum_by_nonzero_weights": nonzero}[reduction])


def compute_weighted_loss(
    losses: npt.ArrayLike, weights: npt.ArrayLike = 1.0, *, reduction: str = "sum_by_nonzero_weights"
) -> Any:
    """Weight losses and reduce them.

    With w the weights broadcast to the losses l: none w l; sum S w l; mean S w l / S w; sum_over_batch_size S w l /
    number of losses; sum_by_nonzero_weights S w l / number of weights that are not 0 (a negative one counts). A loss of
    weight 0 is left out, even if it is NaN.

    Args:
        losses: any shape, in nats.
        weights: a scalar, or the rank of `losses` with every dimension 1 or equal.
        reduction: one of the five names.

    Returns:
        float64 array of the shape of `losses` for "none", else a float; NaN where there is nothing to average
        (TensorFlow says 0).

    Raises:
        BigvocabError: an unknown reduction, or weights that do not fit.

    Source: the reductions of tf.compat.v1.losses.compute_weighted_loss.

    >>> compute_weighted_loss([[0, 1], [2, 3], [4, 5]], [[2], [0], [0.5]])
    1.625
    """
    check_reduction(reduction)
    values = as_floats("losses", losses)
    found = reduce_losses(values, broadcast_weights(weights, values.shape), reduction)
    return values.copy() if found is values else found  # which may be the caller's array


def as_floats(name: str, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """`values` as float64; a TypeError where they are no real numbers."""
    array = as_array(name, values)
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        raise TypeError(f"{name}: expected real numbers, got {array.dtype}")
    return array.astype(np.float64, copy=False)


def broadcast_weights(weights: npt.ArrayLike, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """`weights` as float64 of the rank of losses of `shape`, or a scalar; an error where they do not fit."""
    array = as_floats("weights", weights)
    if array.ndim and (
        array.ndim != len(shape) or any(w not in (1, n) for w, n in zip(array.shape, shape, strict=True))
    ):
        per_example = (shape[0], *[1] * (len(shape) - 1)) if shape else ()
        hint = f"; a weight per example is {per_example}" if array.ndim == 1 and shape else ""
        raise BigvocabError(
            Keyword("weights"),
            f": got shape {array.shape}, expected a scalar or the rank of the losses {shape} "
            f"with every dimension 1 or equal{hint}",
        )
    return array


def reduce_losses(
    losses: npt.NDArray[np.float64], weights: npt.NDArray[np.float64], reduction: str, counted: Any = None
) -> Any:
    """`compute_weighted_loss` of checked arrays; where `counted` (bool, of the losses' shape) is False, a loss is in no
    figure.
    """
    spread = np.broadcast_to(weights, losses.shape)
    unit = not weights.ndim and weights == 1.0
    weighted = losses if unit else np.where(spread == 0, 0.0, spread * np.where(spread == 0, 0.0, losses))
    if counted is not None:
        weighted, spread = np.where(counted, weighted, 0.0), np.where(counted, spread, 0.0)
    if reduction == "none":
        return weighted
    count = losses.size if counted is None else int(np.count_nonzero(counted))
    return reduce_weighted(weighted, spread, count, reduction)


def reduce_weighted(
    weighted: npt.NDArray[np.float64], weights: npt.NDArray[np.float64], count: int, reduction: str
) -> float:
    """One figure of weighted losses w l, their weights w and the number of losses that count."""
    total = ExactSums()
    total.add(weighted)
    weight = ExactSums()
    if reduction == "mean":
        weight.add(weights)
    nonzero = int(np.count_nonzero(weights)) if reduction == "sum_by_nonzero_weights" else 0
    return reduced(reduction, total.exact(), weight.exact(), count, nonzero)
