"""What tells inputs apart by their content: sizes and hashes, so that copies on other machines match and changed files
do not.

Files up to 1 MiB, and labels up to 256 MiB, are hashed whole; of others the size, both ends and blocks spread evenly
between them. Nothing else is read, so that a job over terabytes starts at once; a change between the blocks of such a
file, of the same size, goes unseen.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.errors import BigvocabError
from bigvocab.matrices.matrix import Matrix

_WHOLE, _WHOLE_LABELS = 1 << 20, 256 << 20
_BLOCKS, _BLOCK_BYTES = 16, 16 << 10


def of_file(path: str | os.PathLike[str], whole: int = _WHOLE) -> str:
    """The fingerprint of a file: of all of it up to `whole` bytes, else of blocks of it."""
    found = hashlib.blake2b(digest_size=16)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            found.update(b"%d:" % size)
            if size <= whole:
                while block := file.read(1 << 20):
                    found.update(block)
            else:
                for i in range(_BLOCKS):
                    file.seek((size - _BLOCK_BYTES) * i // (_BLOCKS - 1))
                    found.update(file.read(_BLOCK_BYTES))
    except OSError as error:
        raise BigvocabError(f"{path}: cannot be read: {error.strerror}") from error
    return found.hexdigest()


def of_array(array: npt.NDArray[Any]) -> str:
    """The fingerprint of an array: of all of it up to 1 MiB, else of rows of it."""
    rows = np.arange(len(array)) if array.nbytes <= _WHOLE else np.linspace(0, len(array) - 1, _BLOCKS).astype(np.int64)
    found = hashlib.blake2b(f"{array.shape} {array.dtype.name}:".encode(), digest_size=16)
    for row in rows if array.ndim > 1 else [slice(None)] * bool(len(array)):
        found.update(np.ascontiguousarray(array[row]).tobytes())
    return found.hexdigest()


def of_matrix(role: str, matrix: Matrix) -> Iterator[dict[str, Any]]:
    """One entry {role, path, shape, dtype, bytes, fingerprint} for each file of a matrix."""
    for i, file in enumerate(matrix.files):
        mapped = matrix.maps[i] if matrix.maps else None
        found = of_array(np.asarray(matrix)) if mapped is None else of_file(mapped.path)
        tensor = {} if mapped is None or mapped.selector is None else {"tensor": mapped.selector}
        yield {"role": role, **file, "fingerprint": found, **tensor}


def of_labels(labels: Any) -> Iterator[dict[str, Any]]:
    """As `of_matrix`, one entry for each file of labels; of labels in memory, one for all."""
    if hasattr(labels, "_matrix"):
        yield from of_matrix("labels", labels._matrix)
    elif getattr(labels._parts[0], "identity", None) is not None:
        for file in labels.files:
            yield {"role": "labels", **file, "fingerprint": of_file(file["path"], _WHOLE_LABELS)}
    else:
        yield {"role": "labels", **labels.files[0], "path": "<array>", "fingerprint": _of_batches(labels)}


def _of_batches(labels: Any) -> str:
    found = hashlib.blake2b(digest_size=16)
    for batch in labels:
        groups = None if batch.groups is None else np.asarray(batch.groups[1])[batch.groups[0]]
        columns = batch.labels if isinstance(batch.labels, tuple) else (batch.labels,)
        for values in (*columns, batch.probabilities, batch.ignored, batch.weights, groups, batch.num_bytes):
            found.update(b"-" if values is None else np.ascontiguousarray(values).tobytes())
    return found.hexdigest()
