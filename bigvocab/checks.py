"""Checks of arguments: each message names the argument or file, what came, what was expected and the first bad row."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from bigvocab.errors import BigvocabError

FLOATS = ("float16", "bfloat16", "float32", "float64")
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def as_matrix_of_floats(name: str, values: Any, ndim: int = 2) -> npt.NDArray[Any]:
    """`values` as an array of one of the four float types, not copied where it is one already."""
    array = np.asarray(values)
    if array.dtype.name not in FLOATS:
        hint = "; are logits and labels swapped?" if array.dtype.kind in "iu" else ""
        raise TypeError(f"{name}: expected one of {', '.join(FLOATS)}, got {array.dtype}{hint}")
    if array.ndim != ndim:
        raise BigvocabError(f"{name}: expected {ndim} dimensions, got shape {array.shape}")
    if array.ndim == 2 and array.shape[1] == 0:
        raise BigvocabError(f"{name}: expected at least one class, got shape {array.shape}")
    return array


def as_integers(name: str, values: Any) -> npt.NDArray[np.int64]:
    """`values` as int64; a TypeError where they are no integers, an error where one does not fit."""
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        if array.size == 0 and array.dtype.kind == "f" and not isinstance(values, np.ndarray):
            return array.astype(np.int64)  # an empty list has no type of its own
        raise TypeError(f"{name}: expected integers, got {array.dtype}")
    if array.dtype == np.uint64 and array.size and int(array.max()) > np.iinfo(np.int64).max:
        row = int(np.argmax(array > np.uint64(np.iinfo(np.int64).max)))
        raise BigvocabError(f"{name}: row {row} is {array.reshape(-1)[row]}, which is past the largest 64-bit integer")
    return array.astype(np.int64, copy=False)


def one_per_row(name: str, array: npt.NDArray[Any], rows: int) -> None:
    """Raise unless `array` is (rows,)."""
    if array.shape != (rows,):
        raise BigvocabError(f"{name}: got shape {array.shape}, expected ({rows},), one for each row of logits")


def labels_in_range(
    labels: npt.NDArray[np.int64],
    num_classes: int,
    *,
    ignore_index: int | None = None,
    ignored: npt.NDArray[np.bool_] | None = None,
    name: str = "labels",
    first_row: int = 0,
) -> npt.NDArray[np.int64]:
    """Labels for a kernel: -1 where the row is ignored; an error naming the first label outside [0, num_classes)."""
    skip = None if ignore_index is None else labels == ignore_index
    if ignored is not None:
        skip = ignored if skip is None else skip | ignored
    bad = (labels < 0) | (labels >= num_classes)
    if skip is not None:
        bad &= ~skip
    if bad.any():
        row = int(np.argmax(bad))
        raise BigvocabError(f"{name}: row {first_row + row} is {labels[row]}, expected a class in [0, {num_classes})")
    return np.where(skip, -1, labels) if skip is not None and skip.any() else labels


def in_unit_interval(name: str, value: Any) -> float:
    """`value` as a float in [0, 1]."""
    number = real(name, value)
    if not 0.0 <= number <= 1.0:
        raise BigvocabError(f"{name}: got {number}, expected a number in [0, 1]")
    return number


def positive(name: str, value: Any) -> float:
    """`value` as a finite float above 0."""
    number = real(name, value)
    if not 0.0 < number < math.inf:
        raise BigvocabError(f"{name}: got {number}, expected a finite number above 0")
    return number


def real(name: str, value: Any) -> float:
    """`value` as a float; a TypeError where it is no real number."""
    if isinstance(value, (bool, str)) or not np.isscalar(value) and getattr(value, "ndim", None) != 0:
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}") from None


def boolean(name: str, value: Any) -> bool:
    """`value` as a bool; a TypeError for anything else, so that "no" is not taken for yes."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def index_or_none(name: str, value: Any) -> int | None:
    """`value` as an int or None; a TypeError for anything else."""
    if value is None:
        return None
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected an integer or None, got {type(value).__name__}")
    return int(value)


def class_vector(name: str, values: Any, num_classes: int) -> npt.NDArray[np.float64]:
    """One finite number per class, as float64."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiu" and array.dtype != BFLOAT16:
        raise TypeError(f"{name}: expected real numbers, got {array.dtype}")
    if array.shape != (num_classes,):
        raise BigvocabError(f"{name}: got shape {array.shape}, expected ({num_classes},), one for each class")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        bad = int(np.argmin(np.isfinite(array)))
        raise BigvocabError(f"{name}: class {bad} is {array[bad]}, expected a finite number")
    return array
