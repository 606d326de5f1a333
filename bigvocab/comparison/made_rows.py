"""Pairs of rows of logits of which a side is made while it is read: a layer over hidden states, on one side or both.

Logits of some rows are made whole and then compared as stored ones are, by `tile_pairs`: each product is made once,
whatever is asked for, and every value has the bits of stored logits. Rows too wide for that are made a few classes of
all sides at a time, and made again for what needs the sums of whole rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.comparison.pairs import KL_ALONE, UNCHANGED, Asked, PairBlock, PairRows, Transform
from bigvocab.comparison.tile_pairs import compare_tiles
from bigvocab.losses.row_sums import SeesCopies
from bigvocab.matrices.logit_rows import Array, Bools, Floats, Ids, LogitRows, State
from bigvocab.matrices.tiles import StoredRows, Tiles, kernel_view
from bigvocab.storage import memory
from bigvocab.threads import resolve_threads, run_threads

WIDEST = 1 << 20  # classes of rows that are made whole
CLASSES = 4096  # of wider rows, made of all sides at a time; both decide last bits
ROWS_AT_ONCE = 120  # of a thread's turn at such a range; no result depends on it
Look = Callable[[PairBlock, tuple[int, int], Array, Array, slice], None]


class Kept(SeesCopies):
    """The reduction that keeps logits as they are.

    Args:
        skip: (n,) rows whose place in `out` is left alone.
        out: (n, classes).
    """

    lookup: Ids | None = None
    beside: Array | None = None
    columns = 0

    def __init__(self, skip: Bools, out: Array) -> None:
        self.skip, self.out = skip, out
        self.found: Floats = np.zeros(0)

    def state(self, *shape: int) -> State:
        """Nothing but the number of rows."""
        return (np.empty((*shape, 0)),)

    def clear(self, state: State) -> None:
        """There is nothing to clear."""

    def add(self, piece: Array, span: tuple[int, int], rows: slice | Ids, state: State) -> None:
        """Copy the logits of some rows."""
        first, classes = span  # a piece may have rows of padding at the end
        self.out[rows, first : first + classes] = piece[: len(state[0]), :classes]

    def merge(self, groups: State, into: State) -> None:
        """There is nothing to merge."""


def held_bytes(num_classes: int, reference: int, candidates: Sequence[int]) -> int:
    """Bytes per row that `compare_rows` holds at a time; the sizes of a number are 0 of sides that are stored."""
    if num_classes > WIDEST:
        return CLASSES * sum((reference, *candidates))
    return num_classes * (reference + max(candidates))


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

    All logits of a made reference and of one made candidate at a time are held, up to 1,048,576 classes of a row; of
    wider rows, 4,096 classes of all sides.

    Args:
        reference: rows (n, V).
        candidates: the same rows by name of the candidate, of as many classes.
        labels: (n,); row_statistics.SKIP leaves a row out, NO_LABEL reads a row without a label.
        transform: of the reference's logits.
        transforms: of the candidates'; as the reference's where there is none.
        asked: what is wanted beside kl and kl_reverse.
        num_threads: None is all usable cores; no result depends on it.
    """
    threads, labels = resolve_threads(num_threads), np.ascontiguousarray(labels)
    given = {name: (transforms or {}).get(name, transform) for name in candidates}
    if reference.num_classes > WIDEST:
        return _compare_ranges(reference, candidates, labels, (transform, given), asked, threads)
    mine = _tiles(reference, labels, threads)
    found: dict[str, PairRows] = {}
    for name, rows in candidates.items():
        found |= compare_tiles(
            mine,
            {name: _tiles(rows, labels, threads)},
            labels,
            reference.num_classes,
            transform=transform,
            transforms=given,
            asked=asked,
            num_threads=threads,
        )
    return found


def made_logits(rows: LogitRows, num_threads: int, skip: Bools | None = None) -> Array:
    """All logits (n, V) of rows, as kernels take them; those of rows that are skipped are any numbers."""
    out = memory.empty((len(rows), rows.num_classes), _type(rows))
    rows.reduce(Kept(np.zeros(len(rows), bool) if skip is None else skip, out), num_threads)
    return out


def _tiles(rows: LogitRows, labels: Ids, threads: int) -> Tiles:
    """Tiles of rows as they are stored, or of their logits."""
    from bigvocab.kernels.row_statistics import SKIP

    return rows.tiles if isinstance(rows, StoredRows) else [(0, made_logits(rows, threads, labels == SKIP))]


# ---- rows too wide to be made whole


def _compare_ranges(
    reference: LogitRows,
    candidates: Mapping[str, LogitRows],
    labels: Ids,
    transforms: tuple[Transform, Mapping[str, Transform]],
    asked: Asked,
    threads: int,
) -> dict[str, PairRows]:
    """As `compare_rows`, a range of classes of all sides at a time."""
    from bigvocab.kernels.row_statistics import SKIP

    made = {"": reference, **{f"={name}": rows for name, rows in candidates.items()}}
    types = {name: _type(rows) for name, rows in made.items()}
    looked_up = {name: _logits_of(rows, labels, threads) for name, rows in made.items()}
    blocks = {
        name: PairBlock(
            labels,
            np.stack([looked_up[""], looked_up[f"={name}"]]),
            (transforms[0], transforms[1][name]),
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
                tiles[name] = np.empty((len(labels), stop - first), types[name])
                rows.classes(first, stop).reduce(Kept(labels == SKIP, tiles[name]), threads)

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
