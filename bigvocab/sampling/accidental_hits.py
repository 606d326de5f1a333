"""Candidates that are true classes themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.arguments import as_integers
from bigvocab.errors import BigvocabError
from bigvocab.kernels import random as kernels
from bigvocab.labels.ragged import as_ragged


def compute_accidental_hits(
    true_classes: Any, sampled_candidates: Any
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where a candidate is one of the true classes of a row: candidates[positions[i]] is in true_classes[rows[i]].

    All positions of a repeated candidate are hits; a true class repeated in a row is one.

    >>> rows, positions = compute_accidental_hits([[1, 2], [5, 5], [3, 9]], [5, 2, 2, 7])
    >>> rows.tolist(), positions.tolist()
    ([0, 0, 1], [1, 2, 0])

    Args:
        true_classes: (N, T) integers, or a pair (offsets (N + 1,), ids) for ragged rows.
        sampled_candidates: (S,) integers.

    Returns:
        (rows, positions), int64, rows ascending and positions ascending within a row.

    Raises:
        BigvocabError: shapes that do not fit, a negative candidate; TypeError: what should be integers is not.
    """
    rows = as_ragged("true_classes", true_classes)
    candidates = as_integers("sampled_candidates", sampled_candidates)
    if candidates.ndim != 1:
        raise BigvocabError(f"sampled_candidates: expected shape (S,), got {candidates.shape}")
    if candidates.size and candidates.min() < 0:
        at = int(np.argmax(candidates < 0))
        raise BigvocabError.of_row("sampled_candidates", at, f" is {candidates[at]}, expected a class >= 0")
    hits = kernels.accidental_hits(rows.offsets, rows.ids, np.ascontiguousarray(candidates))
    hits.sort()
    return np.divmod(hits, max(1, candidates.size))
