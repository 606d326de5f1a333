"""Rows of which a side is a llama.cpp logits file: divergences given the classes that are stored.

Such a file has no probabilities below its floor, and its rows do not sum to 1. K being the classes stored above the
floor, on both sides where both are such files,

    kl = min(1, P_K) KL(P given K, Q given K)

with both sides normalised over K. By the chain rule it is a lower bound of the true divergence, except for the rounding
to 16 bits (about step / 3.5 * sqrt(2 kl) per row, of either sign). js and tv are those given K. Where the files store
no class in common, all of them are 0: nothing is known, and P_K, which is 0, says so. Where exact logits have masked
all of K, nothing is shared: kl, or kl_reverse, is infinite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.comparison.pairs import KL_ALONE, UNCHANGED, Asked, PairBlock, PairRows, Transform, delta_p
from bigvocab.errors import BigvocabError
from bigvocab.formats.llama_logits import LlamaLogits
from bigvocab.losses.row_statistics import RowStatistics, softmax_rows, wanted
from bigvocab.matrices.tiles import StoredRows, in_one_piece, kernel_view
from bigvocab.threads import resolve_threads, run_threads

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_DECODED_BYTES = 4 << 20  # of a side, at a time and thread
_LEAST_MASS = 1e-4  # of the classes that exist in a row; 16 bits know no less of it


@dataclass
class _Own:
    """What a side says of itself, from all of its classes; `within` is the mass of its stored classes."""

    loss: Floats
    rank: Integers
    predicted: Integers
    entropy: Floats
    confidence: Floats
    within: Floats
    finite: npt.NDArray[np.bool_]


@dataclass
class StoredPairs:
    """Columns of rows, by the name they have in records, and what the floor hides.

    Args:
        columns: as `PairRows.columns` has them; kl and kl_reverse are lower bounds.
        nonfinite: (2, n) rows without finite sums, of the reference and of the candidate.
        mass: (n,) of the reference that lies in classes left out.
        floored_labels: (n,) whether the label's loss is only known to be at least what is given.
    """

    columns: dict[str, npt.NDArray[Any]]
    nonfinite: npt.NDArray[np.bool_]
    mass: Floats
    floored_labels: npt.NDArray[np.bool_]


class LlamaSide:
    """Rows of a llama.cpp file as a side, decoded a block at a time.

    Args:
        file: the file.
        num_classes: classes from this one on do not exist, and others share their mass; None is all of the file.
    """

    masks = True

    def __init__(self, file: LlamaLogits, num_classes: int | None = None) -> None:
        self._file, self.num_classes = file, file.shape[1] if num_classes is None else num_classes

    def _stored(self, start: int, stop: int) -> npt.NDArray[np.uint16]:
        """The stored numbers of the classes that exist."""
        return self._file.rows(start, stop)[:, : self.num_classes]

    def _log_mass(self, start: int, stop: int) -> Floats | float:
        """The log of what the classes that exist have of the file's mass: 0 where all do."""
        file, cut = self._file, slice(self.num_classes, None)
        if self.num_classes == file.shape[1]:
            return 0.0
        scales, lowest = (side(start, stop).astype(np.float64)[:, None] for side in (file.scales, file.lowest))
        stored = file.rows(start, stop)[:, cut].astype(np.float64)
        there = (stored > 0) | ~file.floored(start, stop)[:, None]
        cut_mass = np.where(there, np.exp(scales * stored + lowest), 0.0).sum(axis=1)
        return np.log1p(-np.minimum(cut_mass, 1.0 - _LEAST_MASS))

    def decode(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Log probabilities (n, V) less those of the top; -inf below the floor."""
        from bigvocab.kernels import stored_logits

        file, out = self._file, np.empty((stop - start, self.num_classes), np.float32)
        stored_logits.decode_rows(self._stored(start, stop), file.scales(start, stop), file.floored(start, stop), out)
        return out

    def own(self, start: int, stop: int, labels: Integers, given: RowStatistics) -> _Own:
        """What the side says of itself; `given` are its statistics over the classes that are compared."""
        from bigvocab.kernels import stored_logits

        file, rows = self._file, stop - start
        stored, scales, lowest = self._stored(start, stop), file.scales(start, stop), file.lowest(start, stop)
        loss, rank, top = np.empty(rows), np.empty(rows, np.int64), np.empty(rows, np.int64)
        counts = np.empty((rows, 2), np.int64)
        nobody = np.full(rows, -1)
        stored_logits.stored_losses(stored, scales, lowest, labels, loss)
        stored_logits.stored_tops(stored, file.floored(start, stop), labels, nobody, top, counts, rank)
        highest = scales.astype(np.float64) * 65535 + lowest.astype(np.float64)
        mass = self._log_mass(start, stop)
        within = np.minimum(np.exp(given.logsumexp + highest - mass), 1.0)
        if self.num_classes < file.shape[1]:
            loss = np.maximum(loss + mass, 0.0)
            highest = scales * stored.max(axis=1).astype(np.float64) + lowest.astype(np.float64) - mass
        return _Own(loss, rank, top, given.entropy, np.exp(np.minimum(highest, 0.0)), within, np.ones(rows, bool))

    def entropy(self, start: int, stop: int) -> Floats:
        """The entropy given the classes stored above the floor."""
        from bigvocab.kernels.row_statistics import NO_LABEL

        rows, labels = StoredRows.of(self.decode(start, stop)), np.full(stop - start, NO_LABEL)
        return softmax_rows(rows, labels, want=wanted(entropy=True), num_threads=1).entropy

    def tops(self, start: int, stop: int, others: Integers) -> tuple[Integers, npt.NDArray[np.bool_]]:
        """(rank of the other side's top class, whether the top is shared)."""
        from bigvocab.kernels import stored_logits

        rows = stop - start
        top, rank, counts = np.empty(rows, np.int64), np.empty(rows, np.int64), np.empty((rows, 2), np.int64)
        nobody = np.full(rows, -1)
        stored = self._stored(start, stop)
        stored_logits.stored_tops(stored, self._file.floored(start, stop), nobody, others, top, counts, rank)
        return 1 + counts[:, 0], counts[:, 1] > 1

    def highest(self, start: int, stop: int, labels: Integers, most: int) -> Integers:
        """The highest classes of rows (n, most), -1 after those above the floor."""
        return _highest(self.decode(start, stop), labels, most)

    def floored_labels(self, start: int, stop: int, labels: Integers) -> npt.NDArray[np.bool_]:
        """Whether the label lies under the floor."""
        q = self._stored(start, stop)[np.arange(stop - start), np.maximum(labels, 0)]
        return (labels >= 0) & (q == 0) & self._file.floored(start, stop)


class ExactSide:
    """Logits as a side.

    Args:
        logits: an array or `Matrix` (N, V).
        transform: of its logits.
        which: the row here of each row of the other side's file (`LlamaLogits.rows_of`); all in order where None.
    """

    masks = False

    def __init__(self, logits: Any, transform: Transform = UNCHANGED, which: Integers | None = None) -> None:
        self._logits, self._transform, self._which = logits, transform, which
        self.num_classes = logits.shape[1]

    def _rows(self, start: int, stop: int) -> npt.NDArray[Any]:
        rows = self._logits[start:stop] if self._which is None else self._logits[self._which[start:stop]]
        return in_one_piece(np.asarray(rows))

    def decode(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Logits (n, V), transformed, in float32, or float64 where they are or are transformed."""
        from bigvocab.kernels import convert

        rows, (scale, softcap) = self._rows(start, stop), self._transform
        plain = scale == 1.0 and not softcap
        wide = rows.dtype.itemsize == 8 or not plain
        out = np.empty(rows.shape, np.float64 if wide else np.float32)
        convert.widen_rows(kernel_view(rows), rows.shape[1], out)
        if not plain:
            stats = RowStatistics(np.empty((0, 0)), np.empty(0), scale, softcap)
            out = stats.transformed(out)
        return out

    def own(self, start: int, stop: int, labels: Integers, given: RowStatistics) -> _Own:
        """What the side says of itself; `given` are its statistics over the classes that are compared."""
        scale, softcap = self._transform
        want = wanted(rank=True, entropy=True, predicted=True)
        rows = StoredRows.of(self._rows(start, stop))
        whole = softmax_rows(rows, labels, want=want, scale=scale, softcap=softcap, num_threads=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            within = np.minimum(np.exp(given.logsumexp - whole.logsumexp), 1.0)
            confidence = 1.0 / whole.exp_sum
        return _Own(whole.label_loss, whole.rank, whole.predicted, whole.entropy, confidence, within, whole.finite)

    def tops(self, start: int, stop: int, others: Integers) -> tuple[Integers, npt.NDArray[np.bool_]]:
        """(rank of the other side's top class, whether the top is shared)."""
        rows = self._rows(start, stop)
        ranks, shared = np.empty(len(rows), np.int64), np.empty(len(rows), bool)
        for r, row in enumerate(rows):  # no label: as many comparisons as the kernel would make
            values = row.astype(np.float64)
            ranks[r] = 1 + np.count_nonzero(values > values[max(others[r], 0)])
            shared[r] = np.count_nonzero(values == values.max(initial=-np.inf)) > 1
        return ranks, shared

    def highest(self, start: int, stop: int, labels: Integers, most: int) -> Integers:
        """The highest classes of rows (n, most), -1 after those that are not masked."""
        return _highest(self._rows(start, stop), labels, most)

    def floored_labels(self, start: int, stop: int, labels: Integers) -> npt.NDArray[np.bool_]:
        """None is hidden."""
        return np.zeros(stop - start, bool)


Side = LlamaSide | ExactSide


def _highest(logits: npt.NDArray[Any], labels: Integers, most: int) -> Integers:
    """The highest classes of rows of logits, ties by id; -1 where there are none left."""
    from bigvocab.kernels import top_classes

    ids, values = np.full((len(labels), most), -1), np.full((len(labels), most), -np.inf)
    top_classes.rows_top_classes(kernel_view(logits), labels, (0, logits.shape[1]), ids, values)
    return ids


def _overlaps(mine: Integers, theirs: Integers, ks: tuple[int, ...]) -> dict[str, Floats]:
    """The share of common classes among the k highest of each side."""
    from bigvocab.kernels import top_classes

    found, shared = {}, np.empty(len(mine), np.int64)
    for k in ks:
        top_classes.rows_shared(mine, theirs, k, shared)
        found[f"overlap.{k}"] = shared / k
    return found


def compare_stored(
    reference: Side,
    candidate: Side,
    labels: Integers,
    start: int,
    *,
    asked: Asked = KL_ALONE,
    num_threads: int | None = None,
) -> StoredPairs:
    """What lies between rows of two sides, at least one of them a llama.cpp file, from row `start` of the file on.

    Args:
        reference: P.
        candidate: Q.
        labels: of the rows (n,); row_statistics.SKIP leaves a row out, NO_LABEL reads a row without a label.
        start: the first row.
        asked: what is wanted beside kl and kl_reverse.
        num_threads: None is all usable cores; no result depends on it.

    Raises:
        BigvocabError: numbers of classes that differ.
        FormatError: a row of a file that is damaged.
    """
    if reference.num_classes != candidate.num_classes:
        both = f"{candidate.num_classes} classes of the candidate and {reference.num_classes} of the reference"
        raise BigvocabError(f"candidate: got {both}, expected the same")
    labels, rows = np.ascontiguousarray(labels), len(labels)
    parts: dict[int, StoredPairs] = {}

    def work(a: int, b: int) -> None:
        parts[a] = _block(reference, candidate, start + a, labels[a:b], asked)

    threads = resolve_threads(num_threads)
    step = max(1, min(_DECODED_BYTES // (4 * reference.num_classes), -(-rows // threads)))
    run_threads(work, rows, step, threads, step)
    ordered = [parts[a] for a in sorted(parts)] or [_block(reference, candidate, start, labels, asked)]
    return StoredPairs(
        {name: np.concatenate([part.columns[name] for part in ordered]) for name in ordered[0].columns},
        np.concatenate([part.nonfinite for part in ordered], axis=1),
        np.concatenate([part.mass for part in ordered]),
        np.concatenate([part.floored_labels for part in ordered]),
    )


def _block(reference: Side, candidate: Side, start: int, labels: Integers, asked: Asked) -> StoredPairs:
    from bigvocab.kernels import stored_logits
    from bigvocab.kernels.row_statistics import NO_LABEL

    rows, stop = len(labels), start + len(labels)
    x, y = reference.decode(start, stop), candidate.decode(start, stop)
    if reference.masks:  # a class that exact logits have masked is the other side's own affair
        stored_logits.mask_rows(y, x)
    if candidate.masks:
        stored_logits.mask_rows(x, y)
    unlabelled = np.where(labels >= 0, NO_LABEL, labels)
    within = Asked(asked.spread, entropy=asked.entropy)
    block = PairBlock(unlabelled, np.full((2, rows), np.nan), (UNCHANGED, UNCHANGED), x.shape[1], within)
    block.whole(kernel_view(x), kernel_view(y), slice(0, rows))
    given = block.result()
    mine = reference.own(start, stop, labels, given.reference)
    theirs = candidate.own(start, stop, labels, given.candidate)
    if asked.entropy and isinstance(reference, LlamaSide) and isinstance(candidate, LlamaSide):
        mine.entropy, theirs.entropy = (side.entropy(start, stop) for side in (reference, candidate))
    _settle_unshared(given, mine.finite & theirs.finite)
    columns = _columns(given.columns(labelled=False), mine, theirs, bool((labels != NO_LABEL).any()))
    if asked.tops:
        columns["top_rank_in_candidate"], shared = candidate.tops(start, stop, mine.predicted)
        columns["top_rank_in_reference"], tied = reference.tops(start, stop, theirs.predicted)
        columns["tied"] = shared | tied
    if asked.overlap:
        most = max(asked.overlap)
        highest = [side.highest(start, stop, labels, most) for side in (reference, candidate)]
        columns |= _overlaps(highest[0], highest[1], asked.overlap)
    floored = reference.floored_labels(start, stop, labels) | candidate.floored_labels(start, stop, labels)
    nonfinite = ~np.stack([mine.finite, theirs.finite])
    return StoredPairs(columns, nonfinite, 1.0 - mine.within, floored)


def _settle_unshared(given: PairRows, finite: npt.NDArray[np.bool_]) -> None:
    """Divergences of rows that are `finite`, of which a side has no class that is compared; all others of NaN."""
    has = np.stack([given.reference.finite, given.candidate.finite])
    given.divergences[~finite] = np.nan
    given.divergences[finite & ~has.any(axis=0)] = (0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    given.divergences[finite & has[0] & ~has[1]] = (np.inf, 0.0, np.log(2.0), 1.0, np.nan, 0.0)
    given.divergences[finite & has[1] & ~has[0]] = (0.0, np.inf, np.log(2.0), 1.0, np.nan, 0.0)


def _columns(given: dict[str, npt.NDArray[Any]], mine: _Own, theirs: _Own, labelled: bool) -> dict[str, Any]:
    """What is known given the stored classes, and what each side says of itself, in the order of records."""
    columns: dict[str, npt.NDArray[Any]] = {}
    with np.errstate(invalid="ignore"):
        if labelled:
            columns |= {"loss_reference": mine.loss, "loss_candidate": theirs.loss}
            columns |= {"loss_difference": theirs.loss - mine.loss, "delta_p": delta_p(mine.loss, theirs.loss)}
            columns |= {"rank_reference": mine.rank, "rank_candidate": theirs.rank}
        columns |= {"kl": mine.within * given["kl"], "kl_reverse": theirs.within * given["kl_reverse"]}
    columns |= {name: given[name] for name in ("js", "tv", "logit_difference") if name in given}
    columns |= {"predicted_reference": mine.predicted, "predicted_candidate": theirs.predicted}
    columns |= {
        "same_top": np.asarray((mine.predicted == theirs.predicted) & (mine.predicted >= 0)),
        "confidence": mine.confidence,
    }
    return columns | {"entropy_reference": mine.entropy, "entropy_candidate": theirs.entropy}
