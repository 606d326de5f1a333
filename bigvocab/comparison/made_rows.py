"""Pairs of rows of logits of which a side is made while it is read: a layer over hidden states, on one side or both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.comparison.pairs import KL_ALONE, UNCHANGED, Asked, PairBlock, PairRows, Transform
from bigvocab.losses.row_sums import SeesCopies
from bigvocab.matrices.logit_rows import Array, Bools, Floats, Ids, LogitRows, State
from bigvocab.matrices.tiles import kernel_view
from bigvocab.threads import resolve_threads, run_threads

CLASSES = 4096  # made of both sides at a time; with the tiles of a head it decides last bits
Look = Callable[[PairBlock, tuple[int, int], Array, Array, slice], None]
ROWS_AT_ONCE = 120  # of a thread's turn; no result depends on it


class Copies(SeesCopies):
    """The reduction that keeps logits as they are, as kernels take them: of a few classes, for a moment."""

    lookup: Ids | None = None
    beside: Array | None = None

    def __init__(self, skip: Bools, classes: int, dtype: np.dtype[Any]) -> None:
        self.skip, self.columns = skip, classes
        self.found: Floats = np.zeros(0)
        self._dtype = dtype

    def state(self, *shape: int) -> State:
        """(..., classes) logits."""
        return (np.empty((*shape, self.columns), self._dtype),)

    def clear(self, state: State) -> None:
        """Nothing is kept of rows that are left out."""

    def add(self, piece: Array, span: tuple[int, int], rows: slice | Ids, state: State) -> None:
        """Copy the logits of some rows."""
        out = state[0]  # a piece may have rows of padding at the end
        out[:, span[0] : span[0] + span[1]] = piece[: len(out), : span[1]]

    def merge(self, groups: State, into: State) -> None:
        """There is one group where the classes are few."""
        into[0][...] = groups[0][0]


def compare_rows(
    reference: LogitRows,
    candidates: Mapping[str, LogitRows],
    labels: Ids,
    *,
    transform: Transform = UNCHANGED,
    transforms: Mapping[str, Transform] | None = None,
    asked: Asked = KL_ALONE,
    num_threads: int | None = None,
) -> dict[str, PairRows]:
    """What lies between a block of rows of a reference and of each candidate, of any kind.

    For stored rows there is `tile_pairs.compare_tiles`, which reads them once.

    4,096 classes of all sides are made at a time: 16 KiB per row and side. What is asked for beside kl and kl_reverse
    has each product made twice.

    Args:
        reference: rows (n, V).
        candidates: the same rows by name of the candidate, of as many classes.
        labels: (n,); row_statistics.SKIP leaves a row out, NO_LABEL reads a row without a label.
        transform: of the reference's logits.
        transforms: of the candidates'; as the reference's where there is none.
        asked: what is wanted beside kl and kl_reverse.
        num_threads: None is all usable cores; no result depends on it.
    """
    from bigvocab.kernels.row_statistics import SKIP

    threads, labels = resolve_threads(num_threads), np.ascontiguousarray(labels)
    made = {"": reference, **{f"={name}": rows for name, rows in candidates.items()}}
    types = {name: _type(rows) for name, rows in made.items()}
    looked_up = {name: _logits_of(rows, labels, threads) for name, rows in made.items()}
    blocks = {
        name: PairBlock(
            labels,
            np.stack([looked_up[""], looked_up[f"={name}"]]),
            (transform, (transforms or {}).get(name, transform)),
            reference.num_classes,
            asked,
        )
        for name in candidates
    }

    def each(look: Look) -> None:
        for first in range(0, reference.num_classes, CLASSES):
            stop = min(first + CLASSES, reference.num_classes)
            tiles = {}
            for name, rows in made.items():
                copies = Copies(labels == SKIP, stop - first, types[name])
                (tiles[name],) = rows.classes(first, stop).reduce(copies, threads)

            span = (first, stop - first)
            run_threads(partial(_look, look, blocks, span, tiles), len(labels), ROWS_AT_ONCE, threads)

    each(PairBlock.add)
    if asked.tops:
        for name, block in blocks.items():
            block.at_top[0] = _logits_of(reference, block.top_of(1), threads)
            block.at_top[1] = _logits_of(candidates[name], block.top_of(0), threads)
    if asked.tops or asked.spread:
        each(PairBlock.revisit)
    return {name: block.result() for name, block in blocks.items()}


def made_logits(rows: LogitRows, num_threads: int) -> Array:
    """All logits (n, V) of rows, as kernels take them: for few rows."""
    out = np.empty((len(rows), rows.num_classes), _type(rows))
    for first in range(0, rows.num_classes, CLASSES):
        stop = min(first + CLASSES, rows.num_classes)
        copies = Copies(np.zeros(len(rows), bool), stop - first, out.dtype)
        (out[:, first:stop],) = rows.classes(first, stop).reduce(copies, num_threads)
    return out


def _look(
    look: Look, blocks: Mapping[str, PairBlock], span: tuple[int, int], tiles: dict[str, Array], start: int, stop: int
) -> None:
    part = slice(start, stop)
    for name, block in blocks.items():
        look(block, span, tiles[""][part], tiles[f"={name}"][part], part)


def _type(rows: LogitRows) -> np.dtype[Any]:
    """The type in which kernels take logits of these rows."""
    none = np.zeros(0, np.int64)
    return kernel_view(rows.gather(none, none, 1).reshape(0, 1)).dtype


def _logits_of(rows: LogitRows, classes: Ids, threads: int) -> npt.NDArray[np.float64]:
    """The raw logit of a class of each row; NaN where it is below 0."""
    found, here = np.full(len(classes), np.nan), np.flatnonzero(classes >= 0)
    found[here] = rows.gather(here, classes[here], threads)
    return found
