"""Pairs of rows of logits: what both sides say of themselves, and what lies between them.

A range of classes of all rows is added at a time, in order of class; what drives it is `tile_pairs` for stored rows and
`made_rows` for those that a layer makes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.losses.row_statistics import RowStatistics, wanted
from bigvocab.losses.row_sums import add_softmax
from bigvocab.storage import memory

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


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
        overlap: the k for which the share of common classes among the k highest is wanted; at most 64.
        entropy: of both sides.
    """

    spread: bool = False
    tops: bool = False
    overlap: tuple[int, ...] = ()
    entropy: bool = False


# Classes of a row that are worked at a time; more are merged by the chain rule. Part of what a bit depends on.
SEGMENT = 1 << 18
SHORT = 1 << 14  # classes up to which a second look costs less than many blocks; whatever is asked for

UNCHANGED, KL_ALONE = Transform(), Asked()


@dataclass
class PairRows:
    """What rows of two sides have: statistics of each, and of the pair `divergences`, `top_counts` and the
    `top_classes` of both (2, n, k).
    """

    reference: RowStatistics
    candidate: RowStatistics
    divergences: Floats
    top_counts: Integers
    top_classes: Integers
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

    @property
    def nonfinite(self) -> npt.NDArray[np.bool_]:
        """(2, n) rows without finite sums, of the reference and of the candidate.

        A label that both have masked has no difference of losses, and counts for both.
        """
        with np.errstate(invalid="ignore"):
            masked = (self.reference.label_loss == np.inf) & (self.candidate.label_loss == np.inf)
        return ~np.stack([self.reference.finite, self.candidate.finite]) | masked

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
        found["same_top"] = np.asarray((p.predicted == q.predicted) & (p.predicted >= 0))
        if self.asked.tops:
            found["top_rank_in_candidate"] = 1 + self.top_counts[:, 0]
            found["top_rank_in_reference"] = 1 + self.top_counts[:, 1]
            found["tied"] = np.asarray((self.top_counts[:, 2:] > 1).any(axis=1))
        if labelled:
            found |= {"rank_reference": p.rank, "rank_candidate": q.rank}
        with np.errstate(divide="ignore"):
            found["confidence"] = 1.0 / p.exp_sum
        if self.asked.entropy:
            found |= {"entropy_reference": p.entropy, "entropy_candidate": q.entropy}
        return found | {f"overlap.{k}": self.overlap(k) for k in self.asked.overlap}

    def overlap(self, k: int) -> Floats:
        """The share of common classes among the k highest of each side."""
        from bigvocab.kernels import top_classes

        shared = np.empty(len(self.divergences), np.int64)
        top_classes.rows_shared(self.top_classes[0], self.top_classes[1], k, shared)
        return shared / k


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
        most = max(asked.overlap, default=0)
        self.top_ids, self.top_values = np.full((2, rows, most), -1), np.full((2, rows, most), -np.inf)
        self._want = wanted(rank=True, entropy=True, predicted=True)

    def whole(self, x: npt.NDArray[Any], y: npt.NDArray[Any], rows: slice, known: bool = False) -> None:
        """Do all at once for `rows`, whose classes are all in x and y (kernel views); `known`: x was seen already."""
        from bigvocab.kernels import pairs

        self._add_top_classes((0, self.num_classes), x, y, rows)
        labels: Integers | None = self.labels[rows]
        if self.reads_once(x, y):
            labels, known = self._read_once(x, y, rows), False
        if labels is None:
            return
        flags = (self.asked.spread, self.wide, self.asked.tops, x.dtype != y.dtype, known)
        asked = sum(flag << bit for bit, flag in enumerate(map(int, flags)))
        capped = True if any(softcap for _, softcap in self.transforms) else None
        pairs.rows_compared(
            x, y, labels, self.label_logits[:, rows], self.transforms, capped, self._want, asked,
            (0, self.num_classes), self.stats[0, rows], self.stats[1, rows], self.at_top[:, rows], self.out[rows],
            self.tops[rows],
        )  # fmt: skip

    def reads_once(self, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> bool:
        """Whether pairs of rows of these two arrays are read once."""
        plain = all(transform == (1.0, 0.0) for transform in self.transforms)
        long = self.num_classes > SHORT
        return plain and long and not self.wide and x.dtype == y.dtype and x.itemsize < 8

    def _read_once(self, x: npt.NDArray[Any], y: npt.NDArray[Any], rows: slice) -> Integers | None:
        """Do all of `rows` that can be done so; labels of the others, and SKIP; None if there is none."""
        from bigvocab.kernels import pair_blocks, pair_rows, row_statistics

        labels, spread = self.labels[rows], self.asked.spread
        want = wanted(rank=True, predicted=True)
        room = (
            np.empty((pair_rows.most_blocks(self.num_classes), pair_rows.BLOCK_COLUMNS)),
            *(memory.in_lines(pair_blocks.PORTION, np.float32) for _ in range(2)),
        )
        x, y = x[:, : self.num_classes], y[:, : self.num_classes]
        left = pair_rows.rows_paired(
            x, y, labels, self.label_logits[:, rows], want, self.asked.tops, spread, room, self.stats[0, rows],
            self.stats[1, rows], self.out[rows], self.tops[rows],
        )  # fmt: skip
        if self.asked.entropy:
            for side, values in enumerate((x, y)):
                own = np.empty_like(self.stats[side, rows])
                row_statistics.clear_statistics(own)
                found, span = self.label_logits[side, rows], (0, self.num_classes)
                add_softmax(values, labels, found, self.transforms[side], wanted(entropy=True), span, own)
                self.stats[side, rows, row_statistics.SHIFTED] = own[:, row_statistics.SHIFTED]
        if not left:
            return None
        todo = np.isnan(self.out[rows, 0])
        self.out[rows][todo] = 0.0
        return np.where(todo, labels, row_statistics.SKIP)

    def _add_top_classes(self, span: tuple[int, int], x: npt.NDArray[Any], y: npt.NDArray[Any], rows: slice) -> None:
        from bigvocab.kernels import top_classes

        if self.asked.overlap:
            for side, values in enumerate((x, y)):
                ids, best = self.top_ids[side, rows], self.top_values[side, rows]
                top_classes.rows_top_classes(values, self.labels[rows], span, ids, best)

    def add(self, span: tuple[int, int], x: npt.NDArray[Any], y: npt.NDArray[Any], rows: slice) -> None:
        """Add a range of classes, span = (first class, classes), of `rows`."""
        from bigvocab.kernels import divergence, divergence_merge, row_statistics

        labels, tiles = self.labels[rows], np.empty_like(self.stats[:, rows])
        found = np.zeros_like(self.out[rows])
        for side, values in enumerate((x, y)):
            row_statistics.clear_statistics(tiles[side])
            transform, logits = self.transforms[side], self.label_logits[side, rows]
            add_softmax(values, labels, logits, transform, self._want, span, tiles[side])
        if x.dtype != y.dtype:
            divergence_merge.match_equal_rows(x, y, labels, span, *tiles)
        divergence.rows_divergence(x, y, labels, self.transforms, span, self.wide, False, *tiles, found)
        stats, others = self.stats[0, rows], self.stats[1, rows]
        divergence_merge.rows_chain(*tiles, found, self.transforms, stats, others, self.out[rows])
        self._add_top_classes(span, x, y, rows)

    def top_of(self, side: int) -> Integers:
        """The top class of each row of the reference (0) or the candidate (1); -1 where there is none."""
        from bigvocab.kernels import row_statistics

        return self.stats[side, :, row_statistics.ARGMAX].astype(np.int64)

    def find_tops(self, span: tuple[int, int], x: npt.NDArray[Any], y: npt.NDArray[Any], rows: slice) -> None:
        """Take what each side has at the other's top class from a range of classes, before `revisit` counts."""
        from bigvocab.kernels import softmax

        for side, values in enumerate((x, y)):
            softmax.rows_gather(values, self.top_of(1 - side)[rows], span, self.at_top[side, rows])

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
        return PairRows(sides[0], sides[1], self.out, self.tops, self.top_ids, self.asked)
