"""Whether hidden states were stored before or after a model's final norm, told from a few of them.

After an RMS norm with weights g, the mean over columns of (h / g)^2 is 1; after a layer norm with weights g and biases
b, (h - b) / g has mean 0 and variance 1: to within the rounding of what is stored, and less the part that epsilon
takes. States from before the norm have any mean square, another one in each row.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bigvocab.errors import BigvocabError, Keyword
from bigvocab.heads.found_model import AFTER, BEFORE, FoundModel, TensorPlace
from bigvocab.heads.products import converted
from bigvocab.matrices.matrix import Matrix
from bigvocab.matrices.opening import open_matrix

Floats = npt.NDArray[np.float64]

SAMPLE = 48  # rows that are looked at
_ROUNDING = 2.0**-8  # relative, of an element: twice bfloat16's, since models round before the weights and after
_SLACK = 0.03  # for epsilon, where it is not small beside the variance of a row
_MOST_ROUNDING = 0.3  # beyond it, rounding hides what is looked for
_HINT = ("; say which they are: ", Keyword("hidden_states", BEFORE), f" or {AFTER}")


class _Norm(NamedTuple):
    """A norm that may have made the states."""

    kind: str
    weights: Floats
    biases: Floats


def tell_of(states: Matrix, found: FoundModel, name: str = "hidden states") -> str:
    """`tell_states` of a few dozen rows spread over a matrix (N, D); nothing else of it is read."""
    numbers = np.unique(np.linspace(0, max(0, len(states) - 1), SAMPLE).astype(np.int64))[: len(states)]
    return tell_states(states[numbers], found, name=name, numbers=numbers)


def tell_states(
    states: npt.NDArray[Any], found: FoundModel, *, name: str = "hidden states", numbers: Any = None
) -> str:
    """`before-norm` or `after-norm`, by a sample of the states (N, D) of any float type that a model is to evaluate.

    Rows of zeros (padding) and rows that are not finite are left out. Where the model has no final norm, the two are
    one, and the answer is `after-norm`.

    Args:
        states: the sample.
        found: the model.
        name: how messages call the states.
        numbers: of the rows in what they were taken from.

    Raises:
        BigvocabError: another hidden size; no row to tell by; rows of both kinds; states that another norm or scale
            has made; states from before the norm, of a model that needs those from after it.
    """
    rows = np.asarray(states).astype(np.float64)
    if rows.ndim != 2 or rows.shape[1] != found.hidden_size:
        raise BigvocabError(
            f"{name}: got shape {rows.shape}, expected (rows, {found.hidden_size}), the hidden size of {found.path}"
        )
    if found.norm_kind == "none":
        return AFTER
    kept = np.flatnonzero(np.isfinite(rows).all(axis=1) & rows.any(axis=1))
    if not len(kept):
        raise BigvocabError(f"{name}: every row is zero or not finite, so nothing tells them apart", *_HINT)
    rows = rows[kept]
    if found.norm_kind == "unknown":
        return _tell_unknown(rows, found, name)
    weights, biases = _vectors(found)
    norm = _Norm(found.norm_kind, weights + found.norm_offset, biases)
    fits = _fits(rows, norm)
    if fits.all():
        return AFTER
    if len(rows) > 1 and fits.mean() > 0.5:
        bad = int(kept[np.argmin(fits)])
        told = f" looks as before the final norm, but {int(fits.sum())} of {len(rows)} rows as after it"
        raise BigvocabError.of_row(name, bad if numbers is None else int(numbers[bad]), told, *_HINT)
    if found.after_norm_only:
        raise BigvocabError(
            f"{name}: do not look as after the final norm, and this model needs such states: {found.after_norm_only}"
        )
    if len(rows) >= 4:
        _refuse_others(rows, found, norm, weights, name)
    return BEFORE


def _vectors(found: FoundModel) -> tuple[Floats, Floats]:
    """Weights and biases of the norm as they are stored, ones and zeros where it has none."""
    ones = np.ones(found.hidden_size) - found.norm_offset
    weights = ones if found.norm is None else _vector(found.norm)
    biases = np.zeros(found.hidden_size) if found.norm_biases is None else _vector(found.norm_biases)
    return weights, biases


def _vector(place: TensorPlace) -> Floats:
    return converted(np.asarray(open_matrix(str(place))), np.float64)


def _moments(rows: Floats, norm: _Norm) -> tuple[Floats, Floats, Floats, Floats]:
    """Mean and mean square of each row before weights and biases, and how far rounding may have moved the two."""
    used = norm.weights != 0
    count = len(norm.weights)
    with np.errstate(over="ignore", invalid="ignore"):
        values = (rows[:, used] - norm.biases[used]) / norm.weights[used]
        errors = _ROUNDING * np.abs(rows[:, used]) / np.abs(norm.weights[used])
        mean, square = values.sum(axis=1) / count, (values**2).sum(axis=1) / count
        mean_error = 3 * np.sqrt((errors**2).sum(axis=1)) / count
        square_error = (6 * np.sqrt(((errors * values) ** 2).sum(axis=1)) + (errors**2).sum(axis=1)) / count
    return mean, square, mean_error, square_error


def _fits(rows: Floats, norm: _Norm) -> npt.NDArray[np.bool_]:
    """Which rows can come from a norm."""
    unseen = norm.weights == 0
    mean, square, mean_error, square_error = _moments(rows, norm)
    # a column whose weight is 0 holds its bias and nothing else, and hides what it took from the others' sum
    fits = (np.abs(rows[:, unseen] - norm.biases[unseen]) <= _ROUNDING * np.abs(norm.biases[unseen])).all(axis=1)
    variance = square - mean**2 if norm.kind == "layer" else square
    fits &= variance <= 1 + _SLACK + np.minimum(square_error, _MOST_ROUNDING)
    if not unseen.any():
        fits &= variance >= 1 - _SLACK - np.minimum(square_error, _MOST_ROUNDING)
        if norm.kind == "layer":
            fits &= np.abs(mean) <= _SLACK + np.minimum(mean_error, _MOST_ROUNDING)
    return fits


def _refuse_others(rows: Floats, found: FoundModel, norm: _Norm, weights: Floats, name: str) -> None:
    """Raise where something else than the model's own norm has made all the rows."""
    told, untold = ("1 + weight", "weight") if found.norm_offset else ("weight", "1 + weight")
    zeros, ones = np.zeros_like(norm.biases), np.ones_like(norm.weights)
    others = [(norm._replace(weights=ones, biases=zeros), "after a norm without weights")]
    if found.norm is not None:
        other = norm._replace(weights=weights + 1 - found.norm_offset)
        others.append((other, f"after a norm that multiplies by {untold}, but that of this model by {told}"))
    for candidate, what in others:
        if _fits(rows, candidate).all():
            raise BigvocabError(f"{name}: look as {what}; are they of {found.path}? Else", _HINT[0][1:], *_HINT[1:])
    mean, square, _, _ = _moments(rows, norm)
    variance = square - mean**2 if norm.kind == "layer" else square
    if variance.min() > 0 and np.ptp(variance) <= 0.01 * variance.mean():
        raise BigvocabError(
            f"{name}: look as after the final norm, times {np.sqrt(variance.mean()):.4g}; undo the factor, or",
            _HINT[0][1:],
            *_HINT[1:],
        )


def _tell_unknown(rows: Floats, found: FoundModel, name: str) -> str:
    """`after-norm` if any norm with the model's weights can have made the rows; else an error."""
    if found.norm is not None:
        weights, biases = _vectors(found)
        for offset in (0, 1):
            for kind in ("rms", "layer"):
                if _fits(rows, _Norm(kind, weights + offset, biases)).all():
                    return AFTER
    raise BigvocabError(
        f"{name}: cannot tell whether they come from after the final norm ({found.after_norm_only})", *_HINT
    )
