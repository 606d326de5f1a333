"""How messages call the data: they belong to the data, not to what is asked of them."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass


@dataclass(frozen=True)
class DataNames:
    """Names of the logits (or hidden states) and of the labels, and the files that hold the rows of the former.

    Attributes:
        logits: the file, or "logits" or "inputs" for those in memory.
        labels: the file, or "labels".
        files: (first row, path) of each file, where rows are split over several.
    """

    logits: str = "logits"
    labels: str = "labels"
    files: tuple[tuple[int, str], ...] = ()

    def row(self, row: int) -> str:
        """A row of logits, by its file and its number there where there are several.

        >>> DataNames("a.npy", files=((0, "a.npy"), (10, "b.npy"))).row(12)
        'b.npy: row 2 (row 12 of all files)'
        """
        if len(self.files) < 2:
            return f"{self.logits}: row {row}"
        first, path = self.files[bisect_right(self.files, row, key=lambda file: file[0]) - 1]
        return f"{path}: row {row - first} (row {row} of all files)"
