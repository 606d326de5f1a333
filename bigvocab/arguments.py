"""Checks of arguments: each message names the argument or file, what came, what was expected and the first bad row."""

from __future__ import annotations

import contextlib
import math
import operator
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from bigvocab.arrays import as_host_array, first_null
from bigvocab.errors import BigvocabError, Keyword

FLOATS = ("float16", "bfloat16", "float32", "float64")
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def as_array(name: str, values: Any) -> npt.NDArray[Any]:
    """`values` as an array; an error for nested lists of different lengths, and for masked arrays."""
    if isinstance(values, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected a plain array, got a masked one; fill it, or take the rows that count")
    values = as_host_array(values, name)
    try:
        return np.asarray(values)
    except ValueError as error:
        if "inhomogeneous" not in str(error):
            raise
        row = _first_uneven(values)
        raise BigvocabError(
            Keyword(name), f": {row} has another length or depth than those before, expected an array"
        ) from None


def _first_uneven(values: Any) -> str:
    shapes = []
    for row, value in enumerate(values):
        with contextlib.suppress(ValueError):
            shapes.append(np.shape(value))
        if len(shapes) <= row or shapes[row] != shapes[0]:
            return f"row {row}"
    return "a row"


def as_matrix_of_floats(name: str, values: Any, ndim: int = 2) -> npt.NDArray[Any]:
    """`values` as an array of one of the four float types, not copied where it is one already."""
    array = as_array(name, values)
    refuse_other_floats(name, array.dtype)
    if array.ndim != ndim:
        raise BigvocabError(Keyword(name), f": expected {ndim} dimensions, got shape {array.shape}")
    if array.ndim == 2 and array.shape[1] == 0:
        raise BigvocabError(Keyword(name), f": expected at least one column, got shape {array.shape}")
    return array


def refuse_other_floats(name: str, dtype: np.dtype[Any]) -> None:
    """Raise unless a dtype is one of the four float types."""
    if dtype.name not in FLOATS:
        hint = "; are logits and labels swapped?" if dtype.kind in "iu" and name == "logits" else ""
        raise TypeError(f"{name}: expected one of {', '.join(FLOATS)}, got {dtype}{hint}")


def as_integers(name: str, values: Any) -> npt.NDArray[np.int64]:
    """`values` as int64; a TypeError where they are no integers, an error where one does not fit."""
    values = as_host_array(values, name)
    array = as_array(name, values)
    if array.dtype.kind not in "iu":
        if array.size == 0 and array.dtype.kind == "f" and not isinstance(values, np.ndarray):
            return array.astype(np.int64)  # an empty list has no type of its own
        if not isinstance(values, np.ndarray) and (at := _past_int64(values)) is not None:
            raise BigvocabError.of_row(name, at, f" is {values[at]}, which is past the largest 64-bit integer")
        if (at := first_null(values)) is not None:
            hint = "; ignore_index is what stands for an ignored row" if name == "labels" else ""
            raise BigvocabError.of_row(name, at, f" is null, expected integers{hint}")
        raise TypeError(f"{name}: expected integers, got {array.dtype}")
    if array.dtype.kind == "u" and array.size and int(array.max()) > np.iinfo(np.int64).max:
        place = int(np.argmax(array > np.uint64(np.iinfo(np.int64).max)))
        row = place // (array.size // max(1, len(array))) if array.ndim else 0
        raise BigvocabError.of_row(name, row, f" is {array.flat[place]}, which is past the largest 64-bit integer")
    return array.astype(np.int64, copy=False)


def _past_int64(values: Any) -> int | None:
    """The place of the first Python int of a list that no int64 holds."""
    whole = isinstance(values, list | tuple) and all(isinstance(value, int | np.integer) for value in values)
    places = (at for at, value in enumerate(values) if not -(2**63) <= value < 2**63) if whole else iter(())
    return next(places, None)


def one_per_row(name: str, array: npt.NDArray[Any], rows: int, of: str = "logits") -> None:
    """Raise unless `array` is (rows,)."""
    if array.shape != (rows,):
        raise BigvocabError(Keyword(name), f": got shape {array.shape}, expected ({rows},), one for each row of {of}")


IGNORED_HINT: tuple[str | Keyword, ...] = (
    "; rows whose label is -100 are left out with ",
    Keyword("ignore_index"),
    " -100",
)


def first_outside(ids: npt.NDArray[Any], stop: int, left_out: npt.NDArray[np.bool_] | None = None) -> int | None:
    """The place of the first id outside [0, stop), of those that are not left out; None where there is none."""
    if ids.size == 0 or ids.min() >= 0 and ids.max() < stop:
        return None
    wrong = (ids < 0) | (ids >= stop)
    if left_out is not None:
        wrong &= ~left_out
    return int(np.argmax(wrong)) if wrong.any() else None


def labels_in_range(
    labels: npt.NDArray[np.int64],
    num_classes: int,
    *,
    ignored: npt.NDArray[np.bool_] | None = None,
    name: str = "labels",
    first_row: int = 0,
    whole: bool = False,
) -> npt.NDArray[np.int64]:
    """Labels for a kernel: -1 where the row is ignored; an error naming the first label outside [0, num_classes).

    Where these are the `whole` of the labels, the message can say what they look like.
    """
    if (row := first_outside(labels, num_classes, ignored)) is not None:
        hint = IGNORED_HINT if labels[row] == -100 else ()
        if whole:
            seen = labels if ignored is None else labels[~ignored]
            hint += offset_hint(int(seen.min()), int(seen.max()), num_classes, None)
        rest = f" is {labels[row]}, expected a class in [0, {num_classes})"
        raise BigvocabError.of_row(name, first_row + row, rest, *hint)
    return np.where(ignored, -1, labels) if ignored is not None and ignored.any() else labels


def offset_hint(least: int, greatest: int, num_classes: int, option: str | None = "label_offset") -> tuple[Any, ...]:
    """What may be meant by labels out of range, of which these are the least and the greatest."""
    if (least, greatest) == (1, num_classes):
        way = ("subtract 1",) if option is None else (Keyword(option), " -1?")
        return (f"; labels run from 1 to {num_classes}: ", *way)
    return ()


def in_unit_interval(name: str, value: Any) -> float:
    """`value` as a float in [0, 1]."""
    number = real(name, value)
    if not 0.0 <= number <= 1.0:
        raise BigvocabError(Keyword(name), f": got {number}, expected a number in [0, 1]")
    return number


def positive(name: str, value: Any) -> float:
    """`value` as a finite float above 0."""
    number = real(name, value)
    if not 0.0 < number < math.inf:
        raise BigvocabError(Keyword(name), f": got {number}, expected a finite number above 0")
    return number


def real(name: str, value: Any) -> float:
    """`value` as a float; a TypeError where it is no real number."""
    wrong = isinstance(value, (bool, np.bool_, str, bytes, complex, np.complexfloating))
    if wrong or not np.isscalar(value) and getattr(value, "ndim", None) != 0:
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}") from None


def path(name: str, value: Any) -> str:
    """`value` as the text of a path; a TypeError for anything else."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name}: expected a path, got {type(value).__name__}")
    return os.fsdecode(value)


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
    array = as_array(name, values)
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        raise TypeError(f"{name}: expected real numbers, got {array.dtype}")
    if array.shape != (num_classes,):
        raise BigvocabError(Keyword(name), f": got shape {array.shape}, expected ({num_classes},), one for each class")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        bad = int(np.argmin(np.isfinite(array)))
        raise BigvocabError(Keyword(name), f": class {bad} is {array[bad]}, expected a finite number")
    return array


def optional_class_vector(name: str, values: Any, num_classes: int) -> npt.NDArray[np.float64] | None:
    """`class_vector`, or None for None."""
    return None if values is None else class_vector(name, values, num_classes)


def is_of_floats(values: Any) -> bool:
    """Whether an array, or nested lists, hold floats; of integers, and of what is no array, False."""
    dtype = getattr(values, "dtype", None)
    if dtype is None:
        dtype = np.asarray(values).dtype
    return "float" in str(dtype) or str(dtype) in ("torch.half", "torch.double")


def integer(name: str, value: Any, low: int, high: int) -> int:
    """`value` as an int from `low` to `high`."""
    if isinstance(value, (bool, np.bool_)) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    number = operator.index(value)
    if not low <= number <= high:
        raise BigvocabError(f"{name}: got {number}, expected an int from {low} to {high}")
    return number


def one_of(name: str, value: str, expected: Sequence[str]) -> str:
    """`value`, which must be one of `expected`."""
    if value not in expected:
        raise BigvocabError(Keyword(name), f": got {value!r}, expected one of {', '.join(expected)}")
    return value


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_bytes(name: str, value: int | str) -> int:
    """A number of bytes from an int, or from text such as "512M" (binary units)."""
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?\s*", value.upper())
        if not match:
            raise BigvocabError(Keyword(name), f": got {value!r}, expected bytes such as 512M or 2G")
        number = int(float(match[1]) * _UNITS[match[2]])
    else:
        raise TypeError(f"{name}: expected bytes as an int or text such as '512M', got {type(value).__name__}")
    if number < 1 << 20:
        raise BigvocabError(Keyword(name), f": got {value!r}, expected at least 1M")
    return number


def parse_shard(name: str, value: Any) -> tuple[int, int] | None:
    """(I, N) from "I/N", I from 1 to N."""
    if value is None:
        return None
    match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", value) if isinstance(value, str) else None
    pair = (int(match[1]), int(match[2])) if match else value
    if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(number, int) for number in pair):
        raise BigvocabError(Keyword(name), f": got {value!r}, expected I/N, such as 2/8")
    if not 1 <= pair[0] <= pair[1]:
        raise BigvocabError(Keyword(name), f": got {pair[0]}/{pair[1]}, expected I from 1 to N")
    return pair[0], pair[1]


def parse_seed(seed: Any) -> Any:
    """An int or a pair from text such as "1,7"; anything else as it is."""
    if not isinstance(seed, str):
        return seed
    if not re.fullmatch(r"\s*-?\d+\s*(,\s*-?\d+\s*)?", seed):
        raise BigvocabError(Keyword("seed"), f": got {seed!r}, expected two whole numbers such as 1,7, or one")
    numbers = [int(part) for part in seed.split(",")]
    return numbers[0] if len(numbers) == 1 else tuple(numbers)


def parse_sizes(name: str, values: Any) -> tuple[int, ...] | None:
    """Numbers of at least 1, as integers or as text such as "50,50,28"; None stays None."""
    if values is None:
        return None
    if isinstance(values, str):
        if not re.fullmatch(r"\s*\d+(\s*,\s*\d+)*\s*", values):
            raise BigvocabError(Keyword(name), f": got {values!r}, expected numbers such as 50,50,28")
        values = [int(part) for part in values.split(",")]
    if not isinstance(values, Iterable):
        raise TypeError(f"{name}: expected numbers, got {type(values).__name__}")
    return tuple(integer(name, value, 1, 2**62) for value in values)


def parse_top_k(values: int | str | Iterable[int]) -> tuple[int, ...]:
    """The k of the accuracies, rising."""
    if isinstance(values, str):
        parts = [part for part in values.split(",") if part.strip()]
        if not all(re.fullmatch(r"\s*\d+\s*", part) for part in parts):
            raise BigvocabError(Keyword("top_k"), f": expected integers of at least 1, such as 1,5, got {values!r}")
        values = [int(part) for part in parts]
    if not isinstance(values, Iterable) and not isinstance(values, int | np.integer):
        raise TypeError(f"top_k: expected integers, got {values!r}")
    found = list(values) if isinstance(values, Iterable) else [values]
    if any(isinstance(k, bool) or not isinstance(k, int | np.integer) for k in found):
        raise TypeError(f"top_k: expected integers, got {found!r}")
    if any(k < 1 for k in found):
        raise BigvocabError(Keyword("top_k"), f": expected integers of at least 1, such as 1,5, got {min(found)}")
    return tuple(sorted({int(k) for k in found}))
