"""The true classes of rows, as the samplers and the sampled losses take them, and the candidates that hit them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.arguments import as_integers
from bigvocab.errors import BigvocabError
from bigvocab.kernels import random as kernels


class TrueClasses:
    """True classes as flat int64 `ids`, row after row, and the `shape` in which a value for each is given back.

    Args:
        true_classes: (N, T) integers, or a pair (offsets (N + 1,), ids) for ragged rows, where row i has
            ids[offsets[i] : offsets[i + 1]].
        name: what messages call it.
    """

    @classmethod
    def of(cls, true_classes: Any) -> TrueClasses:
        """True classes in any of these forms; those that have a name already keep it."""
        return true_classes if isinstance(true_classes, TrueClasses) else cls(true_classes)

    def __init__(self, true_classes: Any, name: str = "true_classes") -> None:
        self.name = name
        self._offsets: npt.NDArray[np.int64] | None = None
        if isinstance(true_classes, tuple) and len(true_classes) == 2:
            self._offsets = np.ascontiguousarray(as_integers(f"{name} offsets", true_classes[0]))
            ids = as_integers(f"{name} ids", true_classes[1])
            self._check_offsets(self._offsets, ids)
        else:
            ids = as_integers(name, true_classes)
            if ids.ndim != 2:
                raise BigvocabError(f"{name}: expected shape (N, T) or a pair (offsets, ids), got shape {ids.shape}")
        self.shape = ids.shape
        self.ids = np.ascontiguousarray(ids).reshape(-1)

    def _check_offsets(self, offsets: npt.NDArray[np.int64], ids: npt.NDArray[np.int64]) -> None:
        if offsets.ndim != 1 or ids.ndim != 1 or offsets.size == 0:
            raise BigvocabError(
                f"{self.name}: a pair is (offsets (N + 1,), ids), got shapes {offsets.shape} and {ids.shape}; "
                "a matrix is (N, T)"
            )
        if offsets[0] != 0 or offsets[-1] != ids.size:
            raise BigvocabError(
                f"{self.name}: offsets go from {offsets[0]} to {offsets[-1]}, expected 0 to {ids.size}, "
                "the number of ids"
            )
        falls = offsets[1:] < offsets[:-1]
        if falls.any():
            row = int(np.argmax(falls))
            raise BigvocabError(f"{self.name}: offsets of row {row} fall from {offsets[row]} to {offsets[row + 1]}")

    @property
    def offsets(self) -> npt.NDArray[np.int64]:
        """Where each row begins and ends in `ids`, (N + 1,)."""
        if self._offsets is None:
            num_rows, num_true = self.shape
            self._offsets = np.arange(num_rows + 1, dtype=np.int64) * num_true
        return self._offsets

    def row_of(self, at: int) -> int:
        """The row in which id number `at` stands."""
        return int(np.searchsorted(self.offsets, at, side="right")) - 1

    def check_range(self, range_max: int) -> None:
        """Raise for the first id outside [0, range_max)."""
        ids = self.ids
        if ids.size and (ids.min() < 0 or ids.max() >= range_max):
            at = int(np.argmax((ids < 0) | (ids >= range_max)))
            raise BigvocabError.of_row(
                self.name, self.row_of(at), f" is {ids[at]}, expected a class in [0, {range_max})"
            )


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
    rows = TrueClasses(true_classes)
    candidates = as_integers("sampled_candidates", sampled_candidates)
    if candidates.ndim != 1:
        raise BigvocabError(f"sampled_candidates: expected shape (S,), got {candidates.shape}")
    if candidates.size and candidates.min() < 0:
        at = int(np.argmax(candidates < 0))
        raise BigvocabError.of_row("sampled_candidates", at, f" is {candidates[at]}, expected a class >= 0")
    hits = kernels.accidental_hits(rows.offsets, rows.ids, np.ascontiguousarray(candidates))
    hits.sort()
    return np.divmod(hits, max(1, candidates.size))
