"""What tells matrices apart by their content; see `storage.fingerprints`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.matrices.matrix import Matrix
from bigvocab.storage.fingerprints import WHOLE, of_file

_ROWS = 16  # of an array that is not hashed whole


def of_array(array: npt.NDArray[Any]) -> str:
    """The fingerprint of an array: of all of it up to 1 MiB, else of rows of it."""
    rows = np.arange(len(array)) if array.nbytes <= WHOLE else np.linspace(0, len(array) - 1, _ROWS).astype(np.int64)
    found = hashlib.blake2b(f"{array.shape} {array.dtype.name}:".encode(), digest_size=16)
    for row in rows if array.ndim > 1 else [slice(None)] * bool(len(array)):
        found.update(np.ascontiguousarray(array[row]).tobytes())
    return found.hexdigest()


def of_matrix(role: str, matrix: Matrix) -> Iterator[dict[str, Any]]:
    """One entry {role, path, shape, dtype, bytes, fingerprint} for each file of a matrix."""
    for i, file in enumerate(matrix.files):
        mapped = matrix.maps[i] if matrix.maps else None
        found = matrix.digest() or (of_array(np.asarray(matrix)) if mapped is None else of_file(mapped.path))
        tensor = {} if mapped is None or mapped.selector is None else {"tensor": mapped.selector}
        yield {"role": role, **file, "fingerprint": found, **tensor}
