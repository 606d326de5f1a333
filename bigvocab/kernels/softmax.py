"""Row statistics of logits in one pass: maximum, sum of exponentials and, when asked, rank, ties, argmax, entropy and
sum.

How a row is read. Blocks of 4,096 classes, counted from the first one of the tile. Every lane sums 2**(x c - reference)
in float32 (float64 for float64 input), where c = scale / ln 2, eight terms at a time: more would let the roundings of
equal terms, added to a large one, add up. Beyond that, sums are float64. The reference is the first finite maximum of a
block, not the row's: a sum of exponentials is free of scale, so it only has to stay near enough for float32, and a
block is read again only when its maximum lies more than 8 exponents above the reference. Thus one pass over memory
finds maximum and sum together. The entropy needs the sum of (x - origin) 2**t too, where the origin is the logit that
the reference was taken from: a difference of two logits is as exact as t, and costs one addition. At the end the sum is
put in terms of the exact maximum in float64, with the constant c as it was rounded to float32, so that this rounding
cancels where it would matter (large |x|).

A tile is any range of classes: a whole row, one file of a vocab-sharded set, or one tile of a linear head. The
statistics of several tiles of a row merge.
"""

from __future__ import annotations

import math

import numpy as np
from numba.extending import overload

from bigvocab.kernels import _lanes as v
from bigvocab.kernels import _memory as m
from bigvocab.kernels._exp import LN2, LOG2E, exp2, power_constants, power_terms, tanh
from bigvocab.kernels._jit import inline, jit

FIRST, BLOCK = 512, 4096
STRIP = 8
# Classes asked for ahead, times half their bytes: the processor's own prefetch stops at the end of a page. Twice as far
# costs half types 1%, half as far float32 4%.
AHEAD = 4096

# Columns of the statistics, float64, one line per row. MAX is the greatest raw logit, SUM the sum of exp(g(x) -
# g(MAX)) with g(x) = softcap(scale x), SHIFTED the sum of (g(x) - g(MAX)) exp(g(x) - g(MAX)), TOTAL the sum of g(x).
MAX, SUM, ARGMAX, SHIFTED, TOTAL, GREATER, EQUAL = range(7)
COLUMNS = 7

# How the logits of a block are compared with the label's: not at all, as numbers, or as integers that run downwards.
UNRANKED, UPWARDS, DOWNWARDS = range(3)

# What is wanted beside maximum and sum, added up.
RANK, ENTROPY, PREDICTED, LOGIT_SUM = 1, 2, 4, 8

SKIP, NO_LABEL = -1, -2  # in place of a label: leave the row out; read it, but it has no label
_FARTHEST = 8.0  # an exponent above this is brought down by a new reference: t 2**t would be summed too coarsely
_LEAST = -125.0  # exponents below this count as this: 2**-125 vanishes beside 1
_PRECISE = 2.0**19  # references beyond this have too few bits behind the point
_SMALLEST_FACTOR = 1e-30  # with less, the logit 125 exponents below another is past float32


@inline
def _lanes_at(x, i, stop, size):
    """The lanes from `i` on; behind `stop` they are -inf."""
    if i + size <= stop:
        return m.load(x, i)
    return m.load_part(x, i, stop, v.floor_value(x))


@inline
def _block_max(x, start, stop):
    top = v.splat(v.floor_value(x), v.zeros_for(x))
    size = m.width(x)
    for i in range(start, stop, size):
        top = v.larger(_lanes_at(x, i, stop, size), top)
    return v.largest(top)


@inline
def _lowest(factor, reference):
    """The logit whose exponent is _LEAST."""
    return (_LEAST + reference) / factor


@inline
def _reference(top, c):
    """The exponent of a maximum, in eighths as `power_constants` asks for."""
    return np.floor(8.0 * (np.float64(top) * c) + 0.5) / 8.0


@inline
def _add_lanes(logits, ordered, held, constants, low, origin, y, ranked, entropy):
    """Add one vector to a strip's (sum of 2**t, maximum, sum of (x - origin) 2**t, logits above, at the label's).

    `ordered` and `y` are the logits and the label as they are compared.
    """
    sums, top, shifted, greater, equal = held
    x = v.at_least(logits, low)
    p, e = power_terms(x, constants)
    if entropy:
        shifted = v.fma(v.sub(x, origin), v.mul(p, e), shifted)
    if ranked == UPWARDS:
        greater += v.count_greater(ordered, y)
    elif ranked == DOWNWARDS:
        greater += v.count_below(ordered, y)
    if ranked != UNRANKED:
        equal += v.count_equal(ordered, y)
    return v.fma(p, e, sums), v.larger(logits, top), shifted, greater, equal


@inline
def _block(x, start, stop, terms, label, ranked, entropy):
    """What `_add_lanes` says of a block, sums in float64; the last vector stands apart: the loop has no branch.

    terms = (factor, reference, origin); `ranked` and `entropy` are constants, each pair a loop of its own.
    """
    factor, reference, origin = terms
    zero = v.zeros_for(x)
    constants = power_constants(zero, factor, reference)
    low = v.splat(v.like_lane(_lowest(factor, reference), x), zero)
    y = m.order_of(label, x)
    origin = v.splat(origin, zero)
    sums, shifted = v.fold(zero), v.fold(zero)
    top, greater, equal = v.splat(v.floor_value(x), zero), 0, 0
    size, ahead = m.width(x), AHEAD * x.itemsize // 2
    whole = stop - (stop - start) % size
    late = zero  # sums of (x - origin) 2**t of two strips: they may be half as fine
    for strip in range(start, whole, STRIP * size):
        held = (zero, top, late, greater, equal)
        for i in range(strip, min(strip + STRIP * size, whole), size):
            m.prefetch(x, i + ahead)
            logits, ordered = m.load_unordered(x, i), m.load_order(x, i)
            held = _add_lanes(logits, ordered, held, constants, low, origin, y, ranked, entropy)
        sums = v.add(sums, v.fold(held[0]))
        if entropy:
            late = held[2]
            if (strip - start) & (STRIP * size):
                shifted, late = v.add(shifted, v.fold(late)), zero
        top, greater, equal = held[1], held[3], held[4]
    if entropy:
        shifted = v.add(shifted, v.fold(late))
    if whole < stop:
        rest = m.load_part(x, whole, stop, v.floor_value(x))
        held = (zero, top, zero, greater, equal)
        order = UNRANKED if ranked == UNRANKED else UPWARDS
        held = _add_lanes(rest, rest, held, constants, low, origin, v.splat(label, zero), order, entropy)
        sums = v.add(sums, v.fold(held[0]))
        shifted = v.add(shifted, v.fold(held[2]))
        top, greater, equal = held[1], held[3], held[4]
    return sums, top, shifted, greater, equal


def _any_block(x, start, stop, terms, label, ranked, entropy):
    """`_block` for what is known at run time only."""
    raise NotImplementedError  # only for kernels: see the overload below


@overload(_any_block, inline="always")
def _any_block_of(x, start, stop, terms, label, ranked, entropy):
    return _block_of_halves if m.is_half(x.dtype) else _block_of_numbers


def _block_of_numbers(x, start, stop, terms, label, ranked, entropy):
    if entropy:
        if ranked == UNRANKED:
            return _block(x, start, stop, terms, label, UNRANKED, True)
        return _block(x, start, stop, terms, label, UPWARDS, True)
    if ranked == UNRANKED:
        return _block(x, start, stop, terms, label, UNRANKED, False)
    return _block(x, start, stop, terms, label, UPWARDS, False)


def _block_of_halves(x, start, stop, terms, label, ranked, entropy):
    if entropy:
        if ranked == UPWARDS:
            return _block(x, start, stop, terms, label, UPWARDS, True)
        if ranked == DOWNWARDS:
            return _block(x, start, stop, terms, label, DOWNWARDS, True)
        return _block(x, start, stop, terms, label, UNRANKED, True)
    if ranked == UPWARDS:
        return _block(x, start, stop, terms, label, UPWARDS, False)
    if ranked == DOWNWARDS:
        return _block(x, start, stop, terms, label, DOWNWARDS, False)
    return _block(x, start, stop, terms, label, UNRANKED, False)


@inline
def _block_counts(x, start, stop, label):
    y = v.splat(label, v.zeros_for(x))
    size = m.width(x)
    greater, equal = 0, 0
    for i in range(start, stop, size):
        logits = _lanes_at(x, i, stop, size)
        greater += v.count_greater(logits, y)
        equal += v.count_equal(logits, y)
    return greater, equal


@inline
def _block_total(x, start, stop, totals):
    """Add the logits of a block, in float64: in float32 the sum of a million equal logits would drift."""
    size = m.width(x)
    for i in range(start, stop, size):
        if i + size <= stop:
            totals = v.add(totals, v.widen(m.load(x, i)))
        else:
            totals = v.add(totals, v.widen(m.load_part(x, i, stop, v.like_lane(0.0, x))))
    return totals


@inline
def _padding(x, label):
    """Lanes behind the last class, which hold -inf and so count as ties of a label at -inf."""
    return -x.size % m.width(x) if label == -np.inf else 0


@inline
def _first_at(x, start, stop, value):
    """Position of the first logit equal to `value`, which is there."""
    lane_value, size = v.splat(v.like_lane(value, x), v.zeros_for(x)), m.width(x)
    while start + size <= stop and v.count_equal(m.load(x, start), lane_value) == 0:
        start += size
    for i in range(start, stop):
        if m.load_scalar(x, i) == value:
            return i
    return start


@inline
def _merge(stats, top, total, shifted, gap):
    """Add a tile's (max, sum, shifted sum) to the row's; `gap` = g(higher max) - g(lower max)."""
    lower = math.exp(-gap)
    if top > stats[MAX]:
        if stats[SUM] != 0:  # else gap may be infinite; a sum of NaN stays
            stats[SHIFTED] = lower * (stats[SHIFTED] - gap * stats[SUM]) if lower > 0 else 0.0  # gap * SUM may overflow
            stats[SUM] *= lower
        stats[SHIFTED] += shifted
        stats[SUM] += total
    else:
        if lower > 0:
            stats[SHIFTED] += lower * (shifted - gap * total)
        stats[SUM] += total * lower


@inline
def _row(x, label, scale, want, first_class, stats):
    """Add the classes of `x` to the row's statistics; False where its logits are too large for this method."""
    factor = v.like_lane(scale * LOG2E, x)
    c = np.float64(factor)
    lane_label = v.like_lane(label, x)
    nothing = v.floor_value(x)
    if not c > _SMALLEST_FACTOR:
        return False
    reference, origin, limit = v.like_lane(0.0, x), v.like_lane(0.0, x), nothing
    started = False
    sums, shifted_sums, totals = v.fold(v.zeros_for(x)), v.fold(v.zeros_for(x)), v.sums_for(x)
    greater, equal = 0, 0
    best, best_start = nothing, 0
    downwards = m.runs_downwards(lane_label, x)
    near = True  # whether the label's logit was reached in the block before: then count in the same pass
    start = stop = due = 0
    again = False  # the same block, whose logits are counted already
    while stop < x.size:
        start, stop = stop, min(stop + BLOCK if stop else FIRST, x.size)
        if want & ENTROPY and started and start >= due:
            mean = v.like_lane(np.float64(origin) + v.total(shifted_sums) / v.total(sums), x)
            shifted_sums = v.fma(v.splat(np.float64(origin) - np.float64(mean), sums), sums, shifted_sums)
            origin, due = mean, 2 * start
        if not started:
            first = _block_max(x, start, stop)
            if first > nothing:
                started = True
                reference = v.like_lane(_reference(first, c), x)
                if not abs(np.float64(reference)) < _PRECISE:
                    return False
                origin, due = first, stop
                limit = v.like_lane((np.float64(reference) + _FARTHEST) / c, x)
        counted = want & RANK and near and label != 0 and not again
        ranked = UNRANKED if not counted else DOWNWARDS if downwards else UPWARDS
        block = _any_block(x, start, stop, (factor, reference, origin), lane_label, ranked, want & ENTROPY)
        top = block[1]
        if want & RANK and not again:
            near = v.any_at_least(top, v.splat(lane_label, top))
            if counted:
                greater += block[3]
                equal += block[4]
            elif near:
                above, at = _block_counts(x, start, stop, lane_label)
                greater += above
                equal += at
        if not again and v.any_greater(top, v.splat(limit, top)):
            highest = v.largest(top)
            moved = v.like_lane(_reference(highest, c), x)
            if not abs(np.float64(moved)) < _PRECISE:
                return False
            gap = np.float64(reference) - np.float64(moved)
            scaling = v.splat(2.0**gap, sums)
            lower = np.float64(origin) - np.float64(highest)
            shifted_sums = v.mul(v.fma(v.splat(lower, sums), sums, shifted_sums), scaling)
            sums = v.mul(sums, scaling)
            reference, origin, due = moved, highest, stop
            limit = v.like_lane((np.float64(reference) + _FARTHEST) / c, x)
            stop, again = start, True
            continue
        again = False
        sums = v.add(sums, block[0])
        shifted_sums = v.add(shifted_sums, block[2])
        if want & LOGIT_SUM:
            totals = _block_total(x, start, stop, totals)
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
        term, higher = _term_of(best, x, factor, reference), top - np.float64(origin)
        others = max(total - term, 0.0) * 2.0**-above
        shifted = LN2 * c * ((shifted - higher * term) * 2.0**-above - higher * others)
        if others == 0:  # the rest of `shifted` is from masked classes
            shifted = 0.0
        total = others + 1.0
        gap = scale * abs(top - stats[MAX])
        if want & PREDICTED and top > stats[MAX]:
            stats[ARGMAX] = first_class + _first_at(x, best_start, min(best_start + BLOCK, x.size), top)
        _merge(stats, top, total, shifted, gap)
        stats[MAX] = max(top, stats[MAX])
    stats[TOTAL] += scale * v.total(totals)
    stats[GREATER] += greater
    stats[EQUAL] += equal - _padding(x, label)
    return True


@inline
def _term_of(logit, x, factor, reference):
    """2**t of one logit as it was added: without the maximum's, a row of one likely class is exact."""
    lanes = v.splat(logit, v.zeros_for(x))
    p, e = power_terms(lanes, power_constants(lanes, factor, reference))
    return np.float64(v.largest(v.mul(p, e)))


@inline
def _transformed(x, scale, softcap):
    """g(x) = softcap tanh(scale x / softcap), or scale x where softcap is 0; -inf, a masked class, stays -inf."""
    y = scale * x
    return softcap * math.tanh(y / softcap) if softcap > 0 and abs(x) < np.inf else y


@inline
def _transformed_lanes(x, scale, softcap):
    y = v.mul(v.splat(scale, x), x)
    if softcap > 0:
        u = v.at_least(v.mul(y, v.splat(2.0 * LOG2E / softcap, x)), v.splat(-200.0, x))
        capped = v.mul(v.splat(softcap, x), tanh(v.at_most(u, v.splat(200.0, x))))
        return v.where_finite(x, capped, y)
    return y


@inline
def _has_nan(x):
    for i in range(x.size):
        if math.isnan(m.load_scalar(x, i)):
            return True
    return False


@jit
def _row_wide(x, label, scale, softcap, want, first_class, stats):
    """As `_row`, in float64 and two passes: for softcaps, for what is too large or too small there, and to tell NaN
    from +inf.
    """
    lane_label = v.like_lane(label, x)
    top = v.splat(v.floor_value(x), v.zeros_for(x))
    size = m.width(x)
    for i in range(0, x.size, size):
        top = v.larger(_lanes_at(x, i, x.size, size), top)
    greater, equal = _block_counts(x, 0, x.size, lane_label)
    best = np.float64(v.largest(top))
    if best == np.inf:
        if want & PREDICTED and best > stats[MAX]:
            stats[ARGMAX] = first_class + _first_at(x, 0, x.size, best)
        stats[MAX], stats[SUM] = np.inf, np.nan if _has_nan(x) or math.isnan(stats[SUM]) else 1.0
        stats[GREATER] += greater
        stats[EQUAL] += equal - _padding(x, label)
        return
    sums, shifted_sums, totals = v.sums_for(x), v.sums_for(x), v.sums_for(x)
    highest = 0.0
    if best > -np.inf:  # as the lanes have it, so that the maximum counts as exactly 1
        highest = v.largest(_transformed_lanes(v.splat(best, sums), scale, softcap))
    base, log2e, low = v.splat(highest, sums), v.splat(LOG2E, sums), v.splat(-1022.0, sums)
    for i in range(0, x.size, size):
        y = _transformed_lanes(v.widen(_lanes_at(x, i, x.size, size)), scale, softcap)
        if want & LOGIT_SUM:
            inside = y if i + size <= x.size else v.keep_first(y, x.size - i)
            totals = v.add(totals, inside)
        t = v.at_least(v.mul(v.sub(y, base), log2e), low)
        e = exp2(t)
        sums = v.add(sums, e)
        shifted_sums = v.fma(t, e, shifted_sums)
    total = v.total(sums)
    if math.isnan(total):
        stats[SUM] = np.nan
        return
    if best > -np.inf:
        gap = abs(highest - _transformed(stats[MAX], scale, softcap))
        if want & PREDICTED and best > stats[MAX]:
            stats[ARGMAX] = first_class + _first_at(x, 0, x.size, best)
        shifted = LN2 * v.total(shifted_sums) if total > 1.0 else 0.0  # of masked classes alone
        _merge(stats, best, max(total, 1.0), shifted, gap)
        stats[MAX] = max(best, stats[MAX])
    stats[TOTAL] += v.total(totals)
    stats[GREATER] += greater
    stats[EQUAL] += equal - _padding(x, label)


@jit
def clear_statistics(stats):
    """The statistics of no class at all."""
    stats[:] = 0.0
    stats[:, MAX] = -np.inf
    stats[:, ARGMAX] = -1.0


@jit
def rows_gather(logits, labels, span, label_logits):
    """Put the logit of each row's label into `label_logits` where this tile has it; span = (first class, classes)."""
    first_class, classes = span
    for r in range(labels.size):
        k = labels[r] - first_class
        if labels[r] >= 0 and 0 <= k < classes:
            label_logits[r] = m.load_scalar(logits[r], k)


@jit
def rows_softmax(logits, labels, label_logits, transform, want, span, stats):
    """Add a tile of logits to the rows' statistics.

    logits (n, at least classes); span = (first class, classes), the rest is padding; labels (n,) int64, SKIP or
    NO_LABEL; label_logits (n,) float64, raw, of all rows that have a label; transform = (scale, softcap or 0); want =
    RANK | ENTROPY | PREDICTED | LOGIT_SUM; stats (n, COLUMNS).
    """
    scale, softcap = transform
    first_class, classes = span
    for r in range(labels.size):
        if labels[r] == SKIP:
            continue
        x = logits[r, :classes]
        label = label_logits[r] if labels[r] >= 0 else np.nan
        if softcap > 0 or not _row(x, label, scale, want, first_class, stats[r]):
            _row_wide(x, label, scale, softcap, want, first_class, stats[r])


@jit
def rows_weighted_sum(logits, labels, class_weights, transform, out):
    """Add S_c w_c g(x_c) of a tile of logits to `out` (n,), in float64; a class of weight 0 adds 0, even at -inf."""
    scale, softcap = transform
    for r in range(labels.size):
        if labels[r] == SKIP:
            continue
        x, total = logits[r], 0.0
        for c in range(class_weights.size):
            if class_weights[c] != 0:
                total += class_weights[c] * _transformed(m.load_scalar(x, c), scale, softcap)
        out[r] += total
