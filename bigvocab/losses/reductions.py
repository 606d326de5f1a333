"""The five reductions: every number is a quotient of exact sums, divided once.

Because the sums are exact, no number depends on chunks, threads, the order of batches or the order of merges.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.arguments import as_array
from bigvocab.errors import BigvocabError, Keyword
from bigvocab.losses.exact_sums import ExactSums, divide, to_float

REDUCTIONS = ("none", "sum", "mean", "sum_over_batch_size", "sum_by_nonzero_weights")


def check_reduction(reduction: str) -> None:
    """Raise unless `reduction` is one of the five names."""
    if not isinstance(reduction, str):
        raise TypeError(f"reduction: expected one of {', '.join(REDUCTIONS)}, got {type(reduction).__name__}")
    if reduction not in REDUCTIONS:
        raise BigvocabError(Keyword("reduction"), f": got {reduction!r}, expected one of {', '.join(REDUCTIONS)}")


def reduced(reduction: str, total: Fraction | float, weight: Fraction | float, count: int, nonzero: int) -> float:
    """The value `reduction` of total = sum(w l), weight = sum(w), `count` losses of which `nonzero` have a weight."""
    if reduction == "sum":
        return to_float(total)
    return divide(total, {"mean": weight, "sum_over_batch_size": count, "sum_by_nonzero_weights": nonzero}[reduction])


def compute_weighted_loss(
    losses: npt.ArrayLike, weights: npt.ArrayLike = 1.0, *, reduction: str = "sum_by_nonzero_weights"
) -> Any:
    """Weight losses and reduce them.

    With w the weights broadcast to the losses l, "none" is w l, "sum" sum(w l), "mean" sum(w l) / sum(w),
    "sum_over_batch_size" sum(w l) / number of losses, "sum_by_nonzero_weights" sum(w l) / number of weights that are
    not 0 (a negative one counts). A loss of weight 0 is left out, even if it is NaN.

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
    """`compute_weighted_loss` of checked arrays; where `counted` (bool, of the losses' shape) is False, a loss counts
    for nothing.
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
    """One value of weighted losses w l, their weights w and the number of losses that count."""
    total = ExactSums()
    total.add(weighted)
    weight = ExactSums()
    if reduction == "mean":
        weight.add(weights)
    nonzero = int(np.count_nonzero(weights)) if reduction == "sum_by_nonzero_weights" else 0
    return reduced(reduction, total.exact(), weight.exact(), count, nonzero)
