"""Vectors of one number per class, from files or arrays."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from bigvocab import arguments
from bigvocab.errors import BigvocabError
from bigvocab.matrices.opening import as_matrix
from bigvocab.storage.spool import local_copy


def read_vector(name: str, values: Any) -> Any:
    """Numbers from a path (.npy, text with one per line, or what `open_matrix` reads) or an array; None stays None."""
    if not isinstance(values, str | os.PathLike):
        return None if values is None else arguments.as_array(name, values)
    values = local_copy(values)
    if str(values).lower().endswith((".txt", ".csv")):
        try:
            return _one_dimension(values, np.loadtxt(values, dtype=np.float64, ndmin=1))
        except OSError as error:
            raise BigvocabError(f"{values}: cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise BigvocabError(f"{values}: expected one number per line: {error}") from None
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
