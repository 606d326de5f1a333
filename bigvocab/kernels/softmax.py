"""Row statistics of logits in one pass: maximum, sum of exponentials and, when asked, rank, ties, argmax, entropy and
sum.

How a row is read. Blocks of 8,192 classes, except for a short first one; `softmax_block` has their loops. Every lane
sums 2**(x c - reference) in float32 (float64 for float64 input), where c = scale / ln 2, four terms at a time, eight of
half types, whose speed arithmetic bounds: more would let the roundings of equal terms add up. Beyond that, sums are
float64. The reference is the first finite maximum of a block, not the row's: a sum of exponentials is free of scale, so
it only has to stay near enough for float32, and a block is read again only when its maximum lies more than 8 exponents
above the reference. Thus one pass over memory finds maximum and sum together. The entropy needs the sum of
(x - origin) 2**t too, where the origin is the logit that the reference was taken from: a difference of two logits is as
exact as t, and costs one addition. At the end the sum is put in terms of the exact maximum in float64, with the
constant c as it was rounded to float32, so that this rounding cancels where it would matter (large |x|); where a scale
rounds badly and classes are many, the sum is moved to the exact c by its derivative, which is the entropy's sum.

A tile is any range of classes: a whole row, one file of a vocab-sharded set, or one tile of a linear head. The
statistics of several tiles of a row merge.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from bigvocab.kernels import lanes as v
from bigvocab.kernels import memory as m
from bigvocab.kernels.exp import LN2, LOG2E, power_constants, power_terms
from bigvocab.kernels.hidden import shown_block, shown_row
from bigvocab.kernels.jit import inline, jit
from bigvocab.kernels.row_statistics import (
    AHEAD,
    ARGMAX,
    ENTROPY,
    EQUAL,
    GREATER,
    LOGIT_SUM,
    MAX,
    PREDICTED,
    RANK,
    SKIP,
    SUM,
    TOTAL,
    block_max,
    count_block,
    first_at,
    merge_squares,
    merge_tile,
    padding,
    within_sum,
)
from bigvocab.kernels.softmax_block import (
    DOWNWARDS,
    UNRANKED,
    UPWARDS,
    any_block,
    block_total,
    reference_exponent,
)
from bigvocab.kernels.softmax_wide import row_wide, transformed, transformed_lanes

FIRST, BLOCK = 512, 8192

FARTHEST = 8.0  # an exponent above this is brought down by a new reference: t 2**t would be summed too coarsely
PRECISE = 2.0**19  # references beyond this have too few bits after the point
_DRIFT = 4e-7  # nats that the rounding of c may cost; past it the sum is put right by its derivative
_NATS = 22.0  # the logarithm of 2**31 classes is 21.5
_SMALLEST_FACTOR = 1e-30  # with less, the logit 125 exponents below another is past float32


def entropy_wanted(want: int, scale: float, logits: Any) -> Literal[True] | None:
    """True where the sum that the entropy is made from is needed: it is asked for, or `scale` rounds badly, and the sum
    may have to be put right by it. Else None, and no loop with it is compiled.
    """
    exact = scale * LOG2E
    with np.errstate(over="ignore"):
        c = exact if logits.dtype.name == "float64" else float(np.float32(exact))
    drifts = _SMALLEST_FACTOR < c < np.inf and abs(exact / c - 1.0) > _DRIFT / _NATS
    return True if want & ENTROPY or drifts else None


@inline
def softmax_row(x, label, scale, want, entropy, first_class, stats, hidden):
    """Add the classes of `x` to the row's statistics; False where its logits are too large for this method.

    hidden is None, or what `hidden.shown_block` takes; a block that is read again is shown again.
    """
    return softmax_row_with(x, label, scale, want, entropy, first_class, stats, hidden, None, None)


@jit
def softmax_row_with(x, label, scale, want, entropy, first_class, stats, hidden, squares, cells):
    """As `softmax_row`, with the sum of squares, and with the maxima of cells (see `highest_cells`) put into `cells`.

    Each is None where it is not asked for: then nothing of it is compiled. No class is hidden from `cells`.
    """
    factor = v.like_lane(scale * LOG2E, x)
    c = np.float64(factor)
    lane_label = v.like_lane(label, x)
    nothing = v.floor_value(x)
    if not _SMALLEST_FACTOR < c < np.inf:
        return False
    inexact = scale * LOG2E / c - 1.0
    drifts = abs(inexact) > _DRIFT / _NATS and abs(inexact) * math.log(x.size) > _DRIFT
    reference, origin, limit = v.like_lane(0.0, x), v.like_lane(0.0, x), nothing
    started = False
    sums, shifted_sums, totals = v.fold(v.zeros_for(x)), v.fold(v.zeros_for(x)), v.sums_for(x)
    squared_sums = v.fold(v.zeros_for(x))
    greater, equal = 0, 0
    best, best_start = nothing, 0
    downwards = m.runs_downwards(lane_label, x)
    near = True  # whether the label's logit was reached in the block before: then count in the same pass
    start = stop = due = 0
    again = False  # the same block, whose logits are counted already
    while stop < x.size:
        start, stop = stop, min(stop + BLOCK if stop else FIRST, x.size)
        if entropy is not None and started and start >= due:
            mean = v.like_lane(np.float64(origin) + v.total(shifted_sums) / v.total(sums), x)
            shifted_sums = v.fma(v.splat(np.float64(origin) - np.float64(mean), sums), sums, shifted_sums)
            origin, due = mean, 2 * start
        if not started:
            shown, begin, end = shown_block(x, start, stop, first_class, hidden)
            first = block_max(shown, begin, end)
            if first > nothing:
                started = True
                reference = v.like_lane(reference_exponent(first, c), x)
                if not abs(np.float64(reference)) < PRECISE:
                    return False
                origin, due = first, stop
                limit = v.like_lane((np.float64(reference) + FARTHEST) / c, x)
        counted = want & RANK and near and label != 0 and not again
        ranked = UNRANKED if not counted else DOWNWARDS if downwards else UPWARDS
        terms = (factor, reference, origin)
        block = any_block(x, start, stop, terms, lane_label, first_class, hidden, ranked, entropy, squares, cells)
        top = block[1]
        if want & RANK and not again:
            near = v.any_at_least(top, v.splat(lane_label, top))
            if counted:
                greater += block[3]
                equal += block[4]
            elif near:
                shown, begin, end = shown_block(x, start, stop, first_class, hidden)
                above, at = count_block(shown, begin, end, lane_label)
                greater += above
                equal += at
        if not again and v.any_greater(top, v.splat(limit, top)):
            highest = v.largest(top)
            moved = v.like_lane(reference_exponent(highest, c), x)
            if not abs(np.float64(moved)) < PRECISE:
                return False
            gap = np.float64(reference) - np.float64(moved)
            scaling = v.splat(2.0**gap, sums)
            lower = np.float64(origin) - np.float64(highest)
            shifted_sums = v.mul(v.fma(v.splat(lower, sums), sums, shifted_sums), scaling)
            sums = v.mul(sums, scaling)
            squared_sums = v.mul(squared_sums, v.mul(scaling, scaling))
            reference, origin, due = moved, highest, stop
            limit = v.like_lane((np.float64(reference) + FARTHEST) / c, x)
            stop, again = start, True
            continue
        again = False
        sums = v.add(sums, block[0])
        shifted_sums = v.add(shifted_sums, block[2])
        squared_sums = v.add(squared_sums, block[5])
        if want & LOGIT_SUM:
            shown, begin, end = shown_block(x, start, stop, first_class, hidden)
            totals = block_total(shown, begin, end, totals)
        if v.any_greater(top, v.splat(best, top)):
            best = v.largest(top)
            best_start = start
    total, shifted = v.total(sums), v.total(shifted_sums)
    top = np.float64(best)
    if not total < np.inf:
        stats[SUM] = np.nan
        return True
    if started:
        above = top * c - np.float64(reference)  # exponent of the maximum, in the terms of the sum
        term, higher = term_of(best, x, factor, reference), top - np.float64(origin)
        others = max(total - term, 0.0) * 2.0**-above
        shifted = LN2 * c * ((shifted - higher * term) * 2.0**-above - higher * others)
        if others == 0:  # the rest of `shifted` is from masked classes
            shifted = 0.0
        total = others + 1.0
        if entropy is not None and drifts:
            total += inexact * shifted
        gap = scale * abs(top - stats[MAX])
        if want & PREDICTED and top > stats[MAX]:
            stop = min(best_start + BLOCK, x.size)
            shown, begin, end = shown_block(x, best_start, stop, first_class, hidden)
            stats[ARGMAX] = first_class + best_start + first_at(shown, begin, end, top) - begin
        if squares is not None:
            rest = max(v.total(squared_sums) - term * term, 0.0) * 2.0 ** (-2.0 * above)
            merge_squares(stats, top, 1.0 + within_sum(rest, others, x.size), gap)
        merge_tile(stats, top, total, shifted, gap)
        stats[MAX] = max(top, stats[MAX])
    stats[TOTAL] += scale * v.total(totals)
    stats[GREATER] += greater
    stats[EQUAL] += equal - padding(x, label)
    return True


@inline
def term_of(logit, x, factor, reference):
    """2**t of one logit as it was added: without the maximum's, a row of one likely class is exact."""
    lanes = v.splat(logit, v.zeros_for(x))
    p, e = power_terms(lanes, power_constants(lanes, factor, reference))
    return np.float64(v.largest(v.mul(p, e)))


@jit
def rows_gather(logits, labels, span, label_logits):
    """Put the logit of each row's label into `label_logits` where this tile has it; span = (first class, classes)."""
    first_class, classes = span
    for r in range(labels.size):
        k = labels[r] - first_class
        if labels[r] >= 0 and 0 <= k < classes:
            label_logits[r] = m.load_scalar(logits[r], k)


@jit
def rows_softmax(logits, labels, label_logits, scale, want, entropy, span, stats):
    """Add a tile of logits to the rows' statistics.

    logits (n, at least classes); span = (first class, classes), the rest is padding; labels (n,) int64, SKIP or
    NO_LABEL; label_logits (n,) float64, raw, of all rows that have a label; want = RANK | ENTROPY | PREDICTED |
    LOGIT_SUM; entropy as `entropy_wanted` says; stats (n, COLUMNS). Softcapped logits have a kernel of their own,
    `softmax_capped.rows_softmax_capped`: both in one would take half as long again to compile.
    """
    first_class, classes = span
    for r in range(labels.size):
        if labels[r] == SKIP:
            continue
        x = logits[r, :classes]
        label = label_logits[r] if labels[r] >= 0 else np.nan
        if not softmax_row(x, label, scale, want, entropy, first_class, stats[r], None):
            row_wide(x, label, scale, 0.0, want, first_class, stats[r])


@jit
def rows_softmax_without(logits, labels, label_logits, scale, want, entropy, span, stats, hidden):
    """As `rows_softmax`, where classes do not exist: hidden = (common, offsets, ids, room, the same
    room read-only, nothing), see `hidden`.
    """
    first_class, classes = span
    common, offsets, ids, room, shown, nothing = hidden
    for r in range(labels.size):
        if labels[r] == SKIP:
            continue
        x, own = logits[r, :classes], ids[offsets[r] : offsets[r + 1]]
        label = label_logits[r] if labels[r] >= 0 else np.nan
        room_of_row = (common, own, room, shown, nothing)
        if not softmax_row(x, label, scale, want, entropy, first_class, stats[r], room_of_row):
            whole = shown_row(x, first_class, common, own, nothing)
            row_wide(whole, label, scale, 0.0, want, first_class, stats[r])


@inline
def _add_weighted(x, i, weights, transform, totals):
    """Add w g(x) of the lanes from `i` on; a class of weight 0 adds 0, even at -inf."""
    m.prefetch(x, i + AHEAD * x.itemsize // 2)
    y = transformed_lanes(v.widen(m.load(x, i)), transform[0], transform[1])
    return v.add(totals, v.where_nonzero(weights, v.mul(weights, y)))


@inline
def _finish_weighted(x, whole, class_weights, transform, totals):
    total = v.total(totals)
    for c in range(whole, class_weights.size):
        if class_weights[c] != 0:
            total += class_weights[c] * transformed(m.load_scalar(x, c), transform[0], transform[1])
    return total


@jit
def rows_weighted_sum(logits, labels, class_weights, transform, out):
    """Add sum_c w_c g(x_c) of a tile of logits to `out` (n,), in float64; a class of weight 0 adds 0, even at -inf.

    Four rows at a time: the weights, eight bytes each, are read once for them.
    """
    size = m.width(logits[0])
    whole = class_weights.size - class_weights.size % size
    zero = v.sums_for(logits[0])
    r = 0
    while r < labels.size:
        if r + 4 <= labels.size and min(labels[r], labels[r + 1], labels[r + 2], labels[r + 3]) > SKIP:
            x0, x1, x2, x3 = logits[r], logits[r + 1], logits[r + 2], logits[r + 3]
            a, b, c, d = zero, zero, zero, zero
            for i in range(0, whole, size):
                m.prefetch(class_weights, i + AHEAD // 4)
                m.prefetch(class_weights, i + AHEAD // 4 + size // 2)
                weights = m.load_beside(class_weights, i, zero)
                a = _add_weighted(x0, i, weights, transform, a)
                b = _add_weighted(x1, i, weights, transform, b)
                c = _add_weighted(x2, i, weights, transform, c)
                d = _add_weighted(x3, i, weights, transform, d)
            out[r] += _finish_weighted(x0, whole, class_weights, transform, a)
            out[r + 1] += _finish_weighted(x1, whole, class_weights, transform, b)
            out[r + 2] += _finish_weighted(x2, whole, class_weights, transform, c)
            out[r + 3] += _finish_weighted(x3, whole, class_weights, transform, d)
            r += 4
            continue
        if labels[r] != SKIP:
            x, totals = logits[r], zero
            for i in range(0, whole, size):
                totals = _add_weighted(x, i, m.load_beside(class_weights, i, zero), transform, totals)
            out[r] += _finish_weighted(x, whole, class_weights, transform, totals)
        r += 1
