"""Pairs of rows of logits that are stored, as tiles: a list of (first class, 2-D array) on either side.

The two sides may be split differently. A row of one tile is looked at once, while it lies in the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.comparison.pairs import KL_ALONE, SEGMENT, UNCHANGED, Asked, Integers, PairBlock, PairRows, Transform
from bigvocab.matrices.tiles import Tiles, kernel_view, share_rows, streamed

Piece = tuple[tuple[int, int], npt.NDArray[Any]]

_CACHED_BYTES = 1 << 20  # of rows of all sides, where several candidates are held against one reference


def compare_tiles(
    reference: Tiles,
    candidates: Mapping[str, Tiles],
    labels: Integers,
    num_classes: int,
    *,
    transform: Transform = UNCHANGED,
    transforms: Mapping[str, Transform] | None = None,
    asked: Asked = KL_ALONE,
    num_threads: int | None = None,
) -> dict[str, PairRows]:
    """What lies between a reference and each candidate, row by row; the reference is read once for all.

    Args:
        reference: tiles of the rows (n, classes).
        candidates: tiles of the same rows by name of the candidate.
        labels: (n,); row_statistics.SKIP leaves a row out, NO_LABEL reads a row without a label.
        num_classes: classes from this one on do not exist on any side.
        transform: of the reference's logits.
        transforms: of the candidates'; as the reference's where there is none.
        asked: what is wanted beside kl and kl_reverse.
        num_threads: None is all usable cores; no result depends on it.
    """
    from bigvocab.kernels.row_statistics import SKIP

    labels, rows = np.ascontiguousarray(labels), len(labels)
    blocks = {
        name: PairBlock(
            labels, np.full((2, rows), np.nan), (transform, (transforms or {}).get(name, transform)), num_classes, asked
        )
        for name in candidates
    }
    sides = [reference, *candidates.values()]
    tiles = [tile for side in sides for tile in side]

    def work(start: int, stop: int) -> None:
        read = (streamed([tile], start, stop, labels[start:stop] == SKIP) for tile in tiles)
        for pieces in zip(*read, strict=True):
            parts = iter(pieces)
            mine, *others = [[next(parts) for _ in side] for side in sides]
            _work_rows(mine, dict(zip(candidates, others, strict=True)), blocks, slice(start, stop))

    share_rows(work, tiles, rows, num_threads)
    return {name: block.result() for name, block in blocks.items()}


def _work_rows(
    mine: Sequence[Piece], others: Mapping[str, Sequence[Piece]], blocks: Mapping[str, PairBlock], rows: slice
) -> None:
    """Do all of a turn's rows: at once for one candidate, else as many as the cache holds."""
    num_rows = rows.stop - rows.start
    row_bytes = sum(piece.shape[1] * piece.itemsize for side in (mine, *others.values()) for _, piece in side)
    alone = len(blocks) == 1 and all(_in_one_call(blocks[name], mine, theirs) for name, theirs in others.items())
    step = num_rows if alone else max(1, _CACHED_BYTES // max(1, row_bytes))
    for at in range(0, num_rows, max(1, step)):
        part = slice(at, min(at + step, num_rows))
        known: PairBlock | None = None  # where the reference's own sums stand already
        for name, block in blocks.items():
            here = slice(rows.start + part.start, rows.start + part.stop)
            known = _work_block(block, mine, others[name], part, here, known)


def _in_one_call(block: PairBlock, mine: Sequence[Piece], theirs: Sequence[Piece]) -> bool:
    """Whether whole rows of a pair of sides are done by one call of a kernel."""
    if len(mine) == len(theirs) == 1 and block.reads_once(*(kernel_view(side[0][1]) for side in (mine, theirs))):
        return True
    return len(_cuts(mine, theirs, block.num_classes)) == 2


def _work_block(
    block: PairBlock, mine: Sequence[Piece], theirs: Sequence[Piece], part: slice, rows: slice, known: PairBlock | None
) -> PairBlock | None:
    """Do rows of one pair of sides; the block whose sums of the reference the next candidate may take."""
    from bigvocab.kernels import softmax

    for side, pieces in enumerate((mine, theirs)):
        for span, piece in pieces:
            softmax.rows_gather(piece[part], block.labels[rows], span, block.label_logits[side, rows])
    if len(mine) == len(theirs) == 1:
        x, y = (_cut(pieces, 0, block.num_classes, part) for pieces in (mine, theirs))
        if block.reads_once(x, y):
            block.whole(x, y, rows)
            return known
    cuts = _cuts(mine, theirs, block.num_classes)
    ranges = [((a, b - a), _cut(mine, a, b, part), _cut(theirs, a, b, part)) for a, b in pairwise(cuts)]
    if len(ranges) == 1:
        _, x, y = ranges[0]
        if known is not None:
            block.stats[0, rows] = known.stats[0, rows]
        block.whole(x, y, rows, known is not None)
        return block
    for span, x, y in ranges:
        block.add(span, x, y, rows)
    if block.asked.tops:
        for span, x, y in ranges:
            block.find_tops(span, x, y, rows)
    if block.asked.tops or block.asked.spread:
        for span, x, y in ranges:
            block.revisit(span, x, y, rows)
    return known


def _cuts(mine: Sequence[Piece], theirs: Sequence[Piece], num_classes: int) -> list[int]:
    """Where ranges of classes begin, and the last ends: at every tile of both sides, and every segment."""
    firsts = {first for (first, _), _ in (*mine, *theirs)} | set(range(0, num_classes, SEGMENT))
    return [*sorted(first for first in firsts if first < num_classes), num_classes]


def _cut(pieces: Sequence[Piece], start: int, stop: int, rows: slice) -> npt.NDArray[Any]:
    """Classes `start` to `stop`, which lie in one piece, of `rows`."""
    for (first, classes), piece in pieces:
        if first <= start and stop <= first + classes:
            return kernel_view(piece[rows, start - first : stop - first])
    raise IndexError(f"classes {start} to {stop} lie in no tile")
