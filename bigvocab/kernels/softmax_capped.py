"""Row statistics of softcapped logits, c tanh(x / c), in float32 where that is exact enough, in one pass over memory.

Exponents are t = (g(x) - g(top)) / ln 2, where top is the greatest logit so far. Near 0 a softcap takes little away:
g(x) = y - y w Q(w) with y = scale x and w = (y / c)**2, so that t is a difference of two numbers, and one product is
taken from it: for w up to 1.44 a polynomial Q of degree 7 in float32 leaves an error of some 1e-7 of what is taken.
Where that is much (y beyond (6 c**2)**(1/3), and near the maximum) or Q ends, the whole vector is done in float64 by
`softmax_wide.transformed_lanes`. The maximum counts as exactly 1.
"""

from __future__ import annotations

import numpy as np
from numba.extending import overload

from bigvocab.kernels import lanes as v
from bigvocab.kernels import memory as m
from bigvocab.kernels.exp import LN2, LOG2E, power_constants, power_terms
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
    TOTAL,
    count_block,
    first_at,
    lanes_at,
    merge_tile,
    padding,
)
from bigvocab.kernels.softmax_wide import row_wide, transformed, transformed_lanes

BLOCK = 8192
_STRIP = 4
_WIDEST = 1.2  # of |y / c|, where Q ends
_MUCH = 2.0  # nats that the softcap takes away, from which on float32 is too coarse
_LEAST = -125.0  # exponents below this count as this: 2**-125 vanishes beside 1
_FEWEST, _MOST = 1e-4, 1e4  # of factors, so that their powers stay within float32

# Q(w) = (1 - tanh(u) / u) / w, w = u**2, on [0, 1.44]: Chebyshev fit, relative error 7e-8.
_Q = (
    0.3333333160092576, -0.1333317397608371, 0.053943941966629126, -0.02172580577234021,
    0.008434645444634601, -0.002863270660311247, 0.0007003200164173185, -8.554875909005668e-05,
)  # fmt: skip


@inline
def _factors(x, transform):
    """What `_near` multiplies with: log2(e) scale in two parts, and that times Q's coefficients in terms of x * x."""
    scale, softcap = transform
    high = v.like_lane(scale * LOG2E, x)
    w = (scale / softcap) ** 2
    k = scale * LOG2E * w
    return (
        high,
        v.like_lane(np.float64(high) - scale * LOG2E, x),
        v.like_lane(_Q[0] * k, x),
        v.like_lane(_Q[1] * k * w, x),
        v.like_lane(_Q[2] * k * w**2, x),
        v.like_lane(_Q[3] * k * w**3, x),
        v.like_lane(_Q[4] * k * w**4, x),
        v.like_lane(_Q[5] * k * w**5, x),
        v.like_lane(_Q[6] * k * w**6, x),
        v.like_lane(_Q[7] * k * w**7, x),
    )


@inline
def _near(x, factors, reference):
    """The exponents t of lanes of logits, where little is taken: x high - reference - x (w Q(w) - what high lacks)."""
    w = v.mul(x, x)
    q = v.fma(v.splat(factors[9], w), w, v.splat(factors[8], w))
    q = v.fma(q, w, v.splat(factors[7], w))
    q = v.fma(q, w, v.splat(factors[6], w))
    q = v.fma(q, w, v.splat(factors[5], w))
    q = v.fma(q, w, v.splat(factors[4], w))
    q = v.fma(q, w, v.splat(factors[3], w))
    q = v.fma(q, w, v.splat(factors[2], w))
    taken = v.fma(q, w, v.splat(factors[1], w))
    return v.sub(v.fma(x, v.splat(factors[0], x), v.splat(-reference, x)), v.mul(x, taken))


@jit
def _far(x, transform, reference):
    """The same in float64, for any logits."""
    scale, softcap = transform
    g = transformed_lanes(v.widen(x), scale, softcap)
    return v.narrow(v.fma(g, v.splat(LOG2E, g), v.splat(-np.float64(reference), g)))


@inline
def _exponents(x, transform, factors, bounds, reference):
    """The exponents t of lanes of logits, in float; those that are not `_far` are at least _LEAST."""
    if v.any_outside(x, v.splat(bounds[1], x), v.splat(bounds[0], x)):
        return _far(x, transform, reference)
    return _near(x, factors, reference)


@inline
def _bounds(x, transform, top, reference):
    """Logits above the one or below the other are done in float64, where `top` is the greatest of all."""
    scale, softcap = transform
    much = (_MUCH * 3.0 * softcap * softcap) ** (1.0 / 3.0)
    end = _WIDEST * softcap
    above, below = min(much, end), -(min(much, end) if top < 0 else end)
    below = max(below, LN2 * (np.float64(reference) + _LEAST) + _MUCH)
    return v.like_lane(above / scale, x), v.like_lane(below / scale, x)


@inline
def _add_lanes(t, held, constants, low, totals, entropy, total):
    """Add exponents to a strip's (sum of 2**t, sum of t 2**t) and to the totals of t."""
    part, late = held
    if total:
        totals = v.add(totals, v.widen(t))
    t = v.at_least(t, low)
    p, e = power_terms(t, constants)
    if entropy:
        late = v.fma(t, v.mul(p, e), late)
    return v.fma(p, e, part), late, totals


@inline
def _block(x, start, stop, transform, factors, bounds, reference, totals, entropy, total):
    """Sums of 2**t and t 2**t of a block in float64, totals of t, and the greatest logits of the next block.

    `entropy` and `total` are constants. Behind the end of the row the last lanes are looked at again.
    """
    zero = v.zeros_for(x)
    constants = power_constants(zero, v.like_lane(1.0, x), v.like_lane(0.0, x))
    low = v.splat(v.like_lane(_LEAST, x), zero)
    sums, shifted, size = v.fold(zero), v.fold(zero), m.width(x)
    top = v.splat(v.floor_value(x), zero)
    whole, last = stop - (stop - start) % size, x.size - size
    for strip in range(start, whole, _STRIP * size):
        held = (zero, zero)
        for i in range(strip, min(strip + _STRIP * size, whole), size):
            m.prefetch(x, i + BLOCK + AHEAD * x.itemsize // 2)
            top = v.larger(m.load_unordered(x, min(i + BLOCK, last)), top)
            t = _exponents(m.load(x, i), transform, factors, bounds, reference)
            part, late, totals = _add_lanes(t, held, constants, low, totals, entropy, total)
            held = (part, late)
        sums = v.add(sums, v.fold(held[0]))
        if entropy:
            shifted = v.add(shifted, v.fold(held[1]))
    if whole < stop:
        t = _exponents(m.load_part(x, whole, stop, v.floor_value(x)), transform, factors, bounds, reference)
        nothing = v.sums_for(x)
        part, late, rest = _add_lanes(t, (zero, zero), constants, low, nothing, entropy, total)
        if total:
            totals = v.add(totals, v.keep_first(rest, stop - whole))
        sums, shifted = v.add(sums, v.fold(part)), v.add(shifted, v.fold(late))
    return sums, shifted, totals, top


@inline
def _any_block(x, start, stop, transform, factors, bounds, reference, totals, want):
    """`_block` for what is known at run time only."""
    if want & LOGIT_SUM:
        if want & ENTROPY:
            return _block(x, start, stop, transform, factors, bounds, reference, totals, True, True)
        return _block(x, start, stop, transform, factors, bounds, reference, totals, False, True)
    if want & ENTROPY:
        return _block(x, start, stop, transform, factors, bounds, reference, totals, True, False)
    return _block(x, start, stop, transform, factors, bounds, reference, totals, False, False)


def _row_capped(x, label, scale, softcap, want, first_class, stats):
    """As `softmax_wide.row_wide`; False where that has to do it, and nothing is changed then."""
    raise NotImplementedError  # only for kernels: see the overload below


@overload(_row_capped)
def _row_capped_of(x, label, scale, softcap, want, first_class, stats):
    return _row_of_doubles if x.dtype.bitwidth == 64 else _row_of_floats


def _row_of_doubles(x, label, scale, softcap, want, first_class, stats):
    return False


def _row_of_floats(x, label, scale, softcap, want, first_class, stats):
    return _row(x, label, scale, softcap, want, first_class, stats)


@jit
def _row(x, label, scale, softcap, want, first_class, stats):
    transform = (scale, softcap)
    if not (_FEWEST < scale < _MOST and _FEWEST < softcap < _MOST and _FEWEST < scale / softcap < _MOST):
        return False
    zero, nothing = v.zeros_for(x), v.floor_value(x)
    factors = _factors(x, transform)
    sums, shifted, totals = v.fold(zero), v.fold(zero), v.sums_for(x)
    greater, equal, best, best_start = 0, 0, nothing, 0
    reference, lane_label = v.like_lane(0.0, x), v.like_lane(label, x)
    started, size, references = False, m.width(x), 0.0
    top = v.splat(nothing, zero)
    for i in range(0, min(BLOCK, x.size), size):
        top = v.larger(lanes_at(x, i, min(BLOCK, x.size), size), top)
    for start in range(0, x.size, BLOCK):
        stop = min(start + BLOCK, x.size)
        highest = v.largest(top)
        if highest == np.inf:
            return False
        if want & RANK and label == label and v.any_at_least(top, v.splat(lane_label, top)):
            above, at = count_block(x, start, stop, lane_label)
            greater += above
            equal += at
        if highest > best:
            moved = v.like_lane(transformed(np.float64(highest), scale, softcap) * LOG2E, x)
            if started:
                gap = np.float64(reference) - np.float64(moved)
                shifted = v.mul(v.fma(v.splat(gap, sums), sums, shifted), v.splat(2.0**gap, sums))
                sums = v.mul(sums, v.splat(2.0**gap, sums))
            best, best_start, reference, started = highest, start, moved, True
        references += np.float64(reference) * (stop - start)
        bounds = _bounds(x, transform, np.float64(best), reference)
        block = _any_block(x, start, stop, transform, factors, bounds, reference, totals, want)
        sums, shifted, totals, top = v.add(sums, block[0]), v.add(shifted, block[1]), block[2], block[3]
    total = v.total(sums)
    if not (started and total < np.inf):
        return False
    t = _exponents(
        v.splat(best, zero), transform, factors, _bounds(x, transform, np.float64(best), reference), reference
    )
    p, e = power_terms(t, power_constants(zero, v.like_lane(1.0, x), v.like_lane(0.0, x)))
    term, exponent = np.float64(v.largest(v.mul(p, e))), np.float64(v.largest(t))
    base = transformed(np.float64(best), scale, softcap)
    above = base * LOG2E - np.float64(reference)
    others = max(total - term, 0.0) * 2.0**-above
    moved_sum = LN2 * ((v.total(shifted) - exponent * term) * 2.0**-above - above * others)
    gap = abs(base - transformed(stats[MAX], scale, softcap))
    if want & PREDICTED and np.float64(best) > stats[MAX]:
        stats[ARGMAX] = first_class + first_at(x, best_start, min(best_start + BLOCK, x.size), np.float64(best))
    merge_tile(stats, np.float64(best), others + 1.0, moved_sum if others > 0 else 0.0, gap)
    stats[MAX] = max(np.float64(best), stats[MAX])
    stats[TOTAL] += LN2 * (v.total(totals) + references)
    stats[GREATER] += greater
    stats[EQUAL] += equal - padding(x, label)
    return True


@jit
def rows_softmax_capped(logits, labels, label_logits, transform, want, span, stats):
    """As `softmax.rows_softmax`, with a softcap: transform = (scale, softcap)."""
    scale, softcap = transform
    first_class, classes = span
    for r in range(labels.size):
        if labels[r] == SKIP:
            continue
        x = logits[r, :classes]
        label = label_logits[r] if labels[r] >= 0 else np.nan
        if not _row_capped(x, label, scale, softcap, want, first_class, stats[r]):
            row_wide(x, label, scale, softcap, want, first_class, stats[r])
