"""Options as text or numbers, and what they mean: sizes of memory, lists of metrics, vectors in files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from bigvocab import arguments
from bigvocab.catalogue import METRICS, metrics_fault
from bigvocab.errors import BigvocabError, Keyword
from bigvocab.matrices.matrix import as_matrix

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


def one_of(name: str, value: str, expected: Sequence[str]) -> str:
    """`value`, which must be one of `expected`."""
    if value not in expected:
        raise BigvocabError(Keyword(name), f": got {value!r}, expected one of {', '.join(expected)}")
    return value


def parse_metrics(metrics: str | Iterable[str], loss: str) -> tuple[str, ...]:
    """The by-products that are asked for, in the order of METRICS, if the loss has them."""
    if not isinstance(metrics, Iterable):
        raise TypeError(f"metrics: expected names, got {metrics!r}")
    names = [part.strip() for part in metrics.split(",") if part.strip()] if isinstance(metrics, str) else list(metrics)
    chosen = tuple(metric for metric in METRICS if metric in [one_of("metrics", name, METRICS) for name in names])
    if fault := metrics_fault(loss, chosen):
        raise BigvocabError(Keyword("metrics"), f": {fault}")
    return chosen


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


def read_vector(name: str, values: Any) -> Any:
    """Numbers from a path (.npy, text with one a line, or what `open_matrix` reads) or an array; None stays None."""
    if not isinstance(values, str | os.PathLike):
        return None if values is None else arguments.as_array(name, values)
    if str(values).lower().endswith((".txt", ".csv")):
        try:
            return _one_dimension(values, np.loadtxt(values, dtype=np.float64, ndmin=1))
        except OSError as error:
            raise BigvocabError(f"{values}: cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise BigvocabError(f"{values}: expected one number a line: {error}") from None
    if str(values).lower().endswith(".npy"):
        try:
            numbers = np.load(values, allow_pickle=False)
        except OSError as error:
            raise BigvocabError(f"{values}: cannot be read: {error.strerror or error}") from None
        except (ValueError, EOFError) as error:
            raise BigvocabError(f"{values}: expected a .npy of numbers: {error}") from None
        if numbers.dtype.kind in "iu":
            return _one_dimension(values, numbers)
    return _one_dimension(values, np.asarray(as_matrix(values, name)))


def _one_dimension(path: Any, numbers: Any) -> Any:
    """The numbers of a file as a vector; one row or one column of a matrix will do."""
    if numbers.ndim > 1 and max(numbers.shape) < numbers.size:
        raise BigvocabError(f"{path}: got shape {numbers.shape}, expected one number for each class")
    return numbers.reshape(-1)
