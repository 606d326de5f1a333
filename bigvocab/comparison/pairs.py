"""Pairs of rows of logits: what both sides say of themselves, and what lies between them.

Rows come as tiles, a list of (first class, 2-D array), on either side; the two sides may be split differently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.matrices.rows import RowStatistics, Tiles, kernel_view, share_rows, streamed, wanted

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Piece = tuple[tuple[int, int], npt.NDArray[Any]]

# Classes of a row that are worked at a time; more are merged by the chain rule. Part of what a bit depends on.
SEGMENT = 1 << 18
_CACHED_BYTES = 1 << 20  # of rows of all sides, where several candidates are held against one reference


@dataclass(frozen=True)
class Transform:
    """What is done to the logits of a side before anything else: softcap tanh(scale x / softcap), or scale x."""

    scale: float = 1.0
    softcap: float = 0.0

    def __iter__(self) -> Any:
        return iter((self.scale, self.softcap))


@dataclass(frozen=True)
class Asked:
    """What is wanted beside kl and kl_reverse.

    Args:
        spread: js, tv and logit_difference, which take a second look at rows of several tiles.
        tops: the ranks that each side gives to the other's top class, and ties; another look as well.
    """

    spread: bool = False
    tops: bool = False


UNCHANGED, KL_ALONE = Transform(), Asked()


@dataclass
class PairRows:
    """What rows of two sides have: statistics of each, `divergences` and `top_counts` of the pair (n rows)."""

    reference: RowStatistics
    candidate: RowStatistics
    divergences: Floats
    top_counts: Integers
    asked: Asked

    def _column(self, index: int) -> Floats:
        return self.divergences[:, index]

    @property
    def kl(self) -> Floats:
        """Sum of p (ln p - ln q)."""
        return self._column(0)

    @property
    def kl_reverse(self) -> Floats:
        """Sum of q (ln q - ln p)."""
        return self._column(1)

    @property
    def js(self) -> Floats:
        """Half of the divergences of both sides from their middle; at most ln 2."""
        return np.minimum(self._column(2), np.log(2.0))

    @property
    def tv(self) -> Floats:
        """Half the sum of |p - q|; at most 1."""
        return np.minimum(self._column(3), 1.0)

    @property
    def logit_difference(self) -> Floats:
        """Mean of |ln p - ln q| over the classes that both sides have."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self._column(4) / self._column(5)

    def columns(self, *, labelled: bool = True) -> dict[str, npt.NDArray[Any]]:
        """Every value of a row, by the name it has in records; `labelled` for those that need a label."""
        p, q = self.reference, self.candidate
        found: dict[str, npt.NDArray[Any]] = {}
        if labelled:
            losses = p.label_loss, q.label_loss
            with np.errstate(invalid="ignore"):
                found |= {"loss_reference": losses[0], "loss_candidate": losses[1]}
                found["loss_difference"] = losses[1] - losses[0]
                found["delta_p"] = delta_p(*losses)
        found |= {"kl": self.kl, "kl_reverse": self.kl_reverse}
        if self.asked.spread:
            found |= {"js": self.js, "tv": self.tv, "logit_difference": self.logit_difference}
        found |= {"predicted_reference": p.predicted, "predicted_candidate": q.predicted}
        found["same_top"] = np.asarray(p.predicted == q.predicted)
        if self.asked.tops:
            found["top_rank_in_candidate"] = 1 + self.top_counts[:, 0]
            found["top_rank_in_reference"] = 1 + self.top_counts[:, 1]
            found["tied"] = np.asarray((self.top_counts[:, 2:] > 1).any(axis=1))
        if labelled:
            found |= {"rank_reference": p.rank, "rank_candidate": q.rank}
        with np.errstate(divide="ignore"):
            found["confidence"] = 1.0 / p.columns[:, 1]
        return found | {"entropy_reference": p.entropy, "entropy_candidate": q.entropy}


def delta_p(loss_reference: Floats, loss_candidate: Floats) -> Floats:
    """exp(-l_Q) - exp(-l_P), the larger one times 1 - exp(-|d|), which loses no digit where they are near."""
    with np.errstate(invalid="ignore", over="ignore"):
        gap = loss_candidate - loss_reference
        larger = np.exp(-np.fmin(loss_reference, loss_candidate))
        found = np.where(gap > 0, 1.0, -1.0) * larger * np.expm1(-np.abs(gap))
    both = (loss_reference == np.inf) & (loss_candidate == np.inf)
    return np.where(both, 0.0, np.where(np.isnan(loss_reference) | np.isnan(loss_candidate), np.nan, found)) + 0.0


class PairBlock:
    """Rows of two sides, added range of classes by range of classes, in their order.

    Each range is `add`ed once; then, for what was asked that needs the whole rows' sums, `revisit`ed once. What drives
    it makes the tiles however it likes: maps of files, or products of a layer.

    Args:
        labels: (n,) int64; row_statistics.SKIP leaves a row out, NO_LABEL reads one without a label.
        label_logits: (2, n), the raw logits of the labels on both sides; NaN where there is no label.
        transforms: of the reference and of the candidate.
        num_classes: of whole rows; few of them are summed in float64.
    """

    def __init__(
        self,
        labels: Integers,
        label_logits: Floats,
        transforms: tuple[Transform, Transform],
        num_classes: int,
        asked: Asked,
    ) -> None:
        from bigvocab.kernels import divergence, row_statistics

        rows = len(labels)
        self.labels, self.label_logits, self.asked = labels, label_logits, asked
        self.transforms = (tuple(transforms[0]), tuple(transforms[1]))
        self.num_classes, self.wide = num_classes, num_classes < divergence.FEW_CLASSES
        self.stats = np.zeros((2, rows, row_statistics.COLUMNS))
        for side in self.stats:
            row_statistics.clear_statistics(side)
        self.out = np.zeros((rows, divergence.COLUMNS))
        self.tops = np.zeros((rows, 4), np.int64)
        self.at_top = np.full((2, rows), np.nan)
        self._want = wanted(rank=True, entropy=True, predicted=True)

    def whole(self, x: npt.NDArray[Any], y: npt.NDArray[Any], rows: slice, known: bool = False) -> None:
        """Do all at once for `rows`, whose classes are all in x and y (kernel views); `known`: x was seen already."""
        from bigvocab.kernels import pairs

        flags = (self.asked.spread, self.wide, self.asked.tops, x.dtype != y.dtype, known)
        asked = sum(flag << bit for bit, flag in enumerate(map(int, flags)))
        pairs.rows_compared(
            x, y, self.labels[rows], self.label_logits[:, rows], self.transforms, self._want, asked,
            (0, self.num_classes), self.stats[0, rows], self.stats[1, rows], self.at_top[:, rows], self.out[rows],
            self.tops[rows],
        )  # fmt: skip

    def add(self, span: tuple[int, int], x: npt.NDArray[Any], y: npt.NDArray[Any], rows: slice) -> None:
        """Add a range of classes, span = (first class, classes), of `rows`."""
        from bigvocab.kernels import divergence, divergence_merge, row_statistics, softmax

        labels, tiles = self.labels[rows], np.empty_like(self.stats[:, rows])
        found = np.zeros_like(self.out[rows])
        for side, values in enumerate((x, y)):
            row_statistics.clear_statistics(tiles[side])
            transform, logits = self.transforms[side], self.label_logits[side, rows]
            softmax.rows_softmax(values, labels, logits, transform, self._want, span, tiles[side])
        if x.dtype != y.dtype:
            divergence_merge.match_equal_rows(x, y, labels, span, *tiles)
        divergence.rows_divergence(x, y, labels, self.transforms, span, self.wide, False, *tiles, found)
        stats, others = self.stats[0, rows], self.stats[1, rows]
        divergence_merge.rows_chain(*tiles, found, self.transforms, stats, others, self.out[rows])

    def find_tops(self, span: tuple[int, int], x: npt.NDArray[Any], y: npt.NDArray[Any], rows: slice) -> None:
        """Take what each side has at the other's top class from a range of classes, before `revisit` counts."""
        from bigvocab.kernels import row_statistics, softmax

        for side, values in enumerate((x, y)):
            top = self.stats[1 - side, rows, row_statistics.ARGMAX].astype(np.int64)
            softmax.rows_gather(values, top, span, self.at_top[side, rows])

    def revisit(self, span: tuple[int, int], x: npt.NDArray[Any], y: npt.NDArray[Any], rows: slice) -> None:
        """Look at a range of classes again, with the sums of whole rows known."""
        from bigvocab.kernels import divergence, divergence_merge

        labels, stats = self.labels[rows], self.stats[:, rows]
        if self.asked.spread:
            found = np.zeros_like(self.out[rows])
            divergence.rows_divergence(x, y, labels, self.transforms, span, self.wide, True, *stats, found)
            self.out[rows, 2:5] += found[:, 2:5]
        if self.asked.tops:
            divergence_merge.rows_tops(x, y, labels, span, *stats, self.at_top[:, rows], self.tops[rows])

    def result(self) -> PairRows:
        """What was found, with NaN divergences in rows that one side has no finite sum or no class of."""
        sides = [
            RowStatistics(stats, logits, scale, softcap)
            for stats, logits, (scale, softcap) in zip(self.stats, self.label_logits, self.transforms, strict=True)
        ]
        self.out[~(sides[0].finite & sides[1].finite)] = np.nan
        return PairRows(sides[0], sides[1], self.out, self.tops, self.asked)


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
    step = num_rows if len(blocks) == 1 and _is_whole(mine) else max(1, _CACHED_BYTES // max(1, row_bytes))
    for at in range(0, num_rows, max(1, step)):
        part = slice(at, min(at + step, num_rows))
        known: PairBlock | None = None  # where the reference's own sums stand already
        for name, block in blocks.items():
            here = slice(rows.start + part.start, rows.start + part.stop)
            known = _work_block(block, mine, others[name], part, here, known)


def _is_whole(pieces: Sequence[Piece]) -> bool:
    return len(pieces) == 1


def _work_block(
    block: PairBlock, mine: Sequence[Piece], theirs: Sequence[Piece], part: slice, rows: slice, known: PairBlock | None
) -> PairBlock | None:
    """Do rows of one pair of sides; the block whose sums of the reference the next candidate may take."""
    from bigvocab.kernels import softmax

    for side, pieces in enumerate((mine, theirs)):
        for span, piece in pieces:
            softmax.rows_gather(piece[part], block.labels[rows], span, block.label_logits[side, rows])
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
