"""Row statistics of softcapped logits, c tanh(x / c), in float32 where that is exact enough, in one pass over memory.

Exponents are t = (g(x) - g(top)) / ln 2, where top is the greatest logit of a block before, or little less. Near 0 a
softcap takes little away: g(x) = y - y w Q(w) with y = scale x and w = (y / c)**2, so that t is a difference of two
numbers, and one product is taken from it. Blocks are read as if they lay where a polynomial Q of degree 5 is enough:
|y| up to 0.6 c, and far below the top, where a term vanishes beside its rounding, down to -c. A block whose least and
greatest logit say that it did not is read again, and so is the next one: there Q has degree 7, good for |y| up to
1.2 c, and a vector with a logit beyond that, or where much is taken (y beyond (6 c**2)**(1/3), and near the maximum),
is done in float64 by `softmax_wide.transformed_lanes`. The maximum counts as exactly 1.
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
    block_max,
    count_block,
    first_at,
    merge_squares,
    merge_tile,
    padding,
    within_sum,
)
from bigvocab.kernels.softmax_wide import row_wide, transformed, transformed_lanes

FIRST, BLOCK = 512, 8192
STRIP, HALF_STRIP = 4, 8
_WIDEST = 1.2  # of |y / c|, where Q ends
_NARROW = 0.6  # of |y / c|, where the short Q ends
_LARGE = 30.0  # softcaps from which on the short Q may be used down to -c: all terms below -0.6 c are e-16 of the top's
_FARTHEST = 8.0  # an exponent above this is brought down by a new reference: t 2**t would be summed too coarsely
_FAINT = 2.0**-60  # the square of less vanishes beside 1, and would be slow where it underflows
_MUCH = 2.0  # nats that the softcap takes away, from which on float32 is too coarse
_LEAST = -125.0  # exponents below this count as this: 2**-125 vanishes beside 1
_FEWEST, _MOST = 1e-4, 1e4  # of factors, so that their powers stay within float32

# Q(w) = (1 - tanh(u) / u) / w, w = u**2, on [0, 1.44]: Chebyshev fit, relative error 7e-8.
_Q = (
    0.3333333160092576, -0.1333317397608371, 0.053943941966629126, -0.02172580577234021,
    0.008434645444634601, -0.002863270660311247, 0.0007003200164173185, -8.554875909005668e-05,
)  # fmt: skip
# The same, relative error 4e-8 on [0, 0.36], 5e-7 up to 0.49, 5e-6 up to 0.64, 1e-4 up to 1.
_SHORT = (
    0.33333332107394403, -0.13333172630433177, 0.05393348275193998, -0.0215921437494555,
    0.00785105893214013, -0.001813293173470351,
)  # fmt: skip


@inline
def _factors(x, transform):
    """What `_near` and `_short` multiply with: log2(e) scale, what that has too much, and -Q's coefficients in terms of
    x * x.
    """
    scale, softcap = transform
    high = v.like_lane(scale * LOG2E, x)
    w = (scale / softcap) ** 2
    k = -scale * LOG2E * w
    return (
        high,
        v.like_lane(scale * LOG2E - np.float64(high), x),
        (
            v.like_lane(_Q[0] * k, x),
            v.like_lane(_Q[1] * k * w, x),
            v.like_lane(_Q[2] * k * w**2, x),
            v.like_lane(_Q[3] * k * w**3, x),
            v.like_lane(_Q[4] * k * w**4, x),
            v.like_lane(_Q[5] * k * w**5, x),
            v.like_lane(_Q[6] * k * w**6, x),
            v.like_lane(_Q[7] * k * w**7, x),
        ),
        (
            v.like_lane(_SHORT[0] * k, x),
            v.like_lane(_SHORT[1] * k * w, x),
            v.like_lane(_SHORT[2] * k * w**2, x),
            v.like_lane(_SHORT[3] * k * w**3, x),
            v.like_lane(_SHORT[4] * k * w**4, x),
            v.like_lane(_SHORT[5] * k * w**5, x),
        ),
    )


@inline
def _tail(x, w, q, c, factors, reference):
    """The exponents from the first terms of Q: x high - reference + x (what high lacks - w Q(w))."""
    q = v.fma(q, w, v.splat(c[3], w))
    q = v.fma(q, w, v.splat(c[2], w))
    q = v.fma(q, w, v.splat(c[1], w))
    q = v.fma(q, w, v.splat(c[0], w))
    taken = v.fma(q, w, v.splat(factors[1], w))
    return v.fma(x, taken, v.fma(x, v.splat(factors[0], x), v.splat(-reference, x)))


@inline
def _near(x, factors, reference):
    """The exponents t of lanes of logits, where little is taken."""
    w, c = v.mul(x, x), factors[2]
    q = v.fma(v.splat(c[7], w), w, v.splat(c[6], w))
    q = v.fma(q, w, v.splat(c[5], w))
    return _tail(x, w, v.fma(q, w, v.splat(c[4], w)), c, factors, reference)


@inline
def _short(x, factors, reference):
    """The same for the range of the short Q."""
    w, c = v.mul(x, x), factors[3]
    return _tail(x, w, v.fma(v.splat(c[5], w), w, v.splat(c[4], w)), c, factors, reference)


@jit
def _far(x, transform, reference):
    """The same in float64, for any logits."""
    scale, softcap = transform
    g = transformed_lanes(v.widen(x), scale, softcap)
    return v.narrow(v.fma(g, v.splat(LOG2E, g), v.splat(-np.float64(reference), g)))


@inline
def _exponents(x, transform, factors, bounds, reference):
    """The exponents t of lanes of any logits; those that are not `_far` are at least _LEAST."""
    if v.any_outside(x, v.splat(bounds[1], x), v.splat(bounds[0], x)):
        return _far(x, transform, reference)
    return _near(x, factors, reference)


@inline
def _bounds(x, transform, want, reference):
    """(above, below, short above, short below): logits beyond the first two are done in float64, beyond the others not
    by the short Q, where `reference` is near the exponent of the greatest.
    """
    scale, softcap = transform
    much = (_MUCH * 3.0 * softcap * softcap) ** (1.0 / 3.0)
    end, narrow = _WIDEST * softcap, _NARROW * softcap
    least = LN2 * (np.float64(reference) + _LEAST) + _MUCH
    below = lower = -min(much, narrow)
    if reference >= 0:
        below = -end
        lower = -softcap if softcap >= _LARGE and not want & LOGIT_SUM else -narrow
    else:
        below = -min(much, end)
    return (
        v.like_lane(min(much, end) / scale, x),
        v.like_lane(max(below, least) / scale, x),
        v.like_lane(min(much, narrow) / scale, x),
        v.like_lane(max(lower, least) / scale, x),
    )


@inline
def _add_lanes(t, held, constants, totals, short, entropy, total, faint):
    """Add exponents to a strip's (sum of 2**t, sum of t 2**t, sum of 2**2t) and to the totals of t."""
    part, late, squared = held
    if total:
        totals = v.add(totals, v.widen(t))
    if not short:
        t = v.at_least(t, v.splat(np.float32(_LEAST), t))
    p, e = power_terms(t, constants)
    if entropy:
        late = v.fma(t, v.mul(p, e), late)
    if faint is not None:
        term = v.at_least(v.mul(p, e), faint)
        squared = v.fma(term, term, squared)
    return (v.fma(p, e, part), late, squared), totals


@inline
def _block(x, start, stop, terms, totals, short, entropy, total, squares):
    """Sums of 2**t, t 2**t and 2**2t of a block in float64, totals of t, and the greatest and the least logits.

    terms = (transform, factors, bounds, reference); `short`, `entropy` and `total` are constants; `squares` is None or
    True. The last vector, which is not whole, is done by itself and not counted among the least.
    """
    transform, factors, bounds, reference = terms
    zero = v.zeros_for(x)
    constants = power_constants(zero, v.like_lane(1.0, x), v.like_lane(0.0, x))
    faint = None if squares is None else v.splat(v.like_lane(_FAINT, x), zero)
    sums, shifted, squared, size = v.fold(zero), v.fold(zero), v.fold(zero), m.width(x)
    top, bottom = v.splat(v.floor_value(x), zero), v.splat(-v.floor_value(x), zero)
    whole = stop - (stop - start) % size
    length = (HALF_STRIP if x.itemsize == 2 else STRIP) * size
    for strip in range(start, whole, length):
        held = (zero, zero, zero)
        for i in range(strip, min(strip + length, whole), size):
            m.prefetch(x, i + AHEAD * x.itemsize // 2)
            logits = m.load_unordered(x, i)
            top, bottom = v.larger(logits, top), v.at_most(bottom, logits)
            if short:
                t = _short(logits, factors, reference)
            else:
                t = _exponents(logits, transform, factors, bounds, reference)
            held, totals = _add_lanes(t, held, constants, totals, short, entropy, total, faint)
        sums = v.add(sums, v.fold(held[0]))
        if entropy:
            shifted = v.add(shifted, v.fold(held[1]))
        if squares is not None:
            squared = v.add(squared, v.fold(held[2]))
    if whole < stop:
        logits = m.load_part(x, whole, stop, v.floor_value(x))
        top = v.larger(logits, top)
        t = _exponents(logits, transform, factors, bounds, reference)
        held, rest = _add_lanes(t, (zero, zero, zero), constants, v.sums_for(x), False, entropy, total, faint)
        if total:
            totals = v.add(totals, v.keep_first(rest, stop - whole))
        sums, shifted = v.add(sums, v.fold(held[0])), v.add(shifted, v.fold(held[1]))
        squared = v.add(squared, v.fold(held[2]))
    return sums, shifted, squared, totals, top, bottom


@inline
def _any_block(x, start, stop, terms, totals, short, want, squares):
    """`_block` for what is known at run time only; where all is read again, more may be made than is wanted."""
    if not short:
        if want & (LOGIT_SUM | ENTROPY):
            return _block(x, start, stop, terms, totals, False, True, True, squares)
        return _block(x, start, stop, terms, totals, False, False, False, squares)
    if want & LOGIT_SUM:
        return _block(x, start, stop, terms, totals, True, True, True, squares)
    if want & ENTROPY:
        return _block(x, start, stop, terms, totals, True, True, False, squares)
    return _block(x, start, stop, terms, totals, True, False, False, squares)


def row_capped(x, label, scale, softcap, want, first_class, stats, squares):
    """As `softmax_wide.row_wide`, with the sum of squares if `squares` is True, else None; False where that has to do
    it, and nothing is changed then.
    """
    raise NotImplementedError  # only for kernels: see the overload below


@overload(row_capped)
def _row_capped_of(x, label, scale, softcap, want, first_class, stats, squares):
    return _row_of_doubles if x.dtype.bitwidth == 64 else _row_of_floats


def _row_of_doubles(x, label, scale, softcap, want, first_class, stats, squares):
    return False


def _row_of_floats(x, label, scale, softcap, want, first_class, stats, squares):
    return _row(x, label, scale, softcap, want, first_class, stats, squares)


@inline
def _exponent(logit, scale, softcap):
    return transformed(np.float64(logit), scale, softcap) * LOG2E


@inline
def _beyond(top, bottom, bounds):
    """Whether logits lie beyond the range of the short Q."""
    return v.any_greater(top, v.splat(bounds[2], top)) or v.any_greater(v.splat(bounds[3], top), bottom)


@jit
def _row(x, label, scale, softcap, want, first_class, stats, squares):
    transform = (scale, softcap)
    if not (_FEWEST < scale < _MOST and _FEWEST < softcap < _MOST and _FEWEST < scale / softcap < _MOST):
        return False
    zero, nothing = v.zeros_for(x), v.floor_value(x)
    factors = _factors(x, transform)
    sums, shifted, squared, totals = v.fold(zero), v.fold(zero), v.fold(zero), v.sums_for(x)
    greater, equal, best, best_start, best_short = 0, 0, nothing, 0, False
    reference, lane_label = v.like_lane(0.0, x), v.like_lane(label, x)
    started, short, references = False, True, 0.0
    bounds = _bounds(x, transform, want, reference)
    start = stop = 0
    while stop < x.size:
        start, stop = stop, min(stop + BLOCK if stop else FIRST, x.size)
        if not started:
            first = block_max(x, start, stop)
            if first == np.inf:
                return False
            if first > nothing:
                reference, started = v.like_lane(_exponent(first, scale, softcap), x), True
                bounds = _bounds(x, transform, want, reference)
        block = _any_block(x, start, stop, (transform, factors, bounds, reference), totals, short, want, squares)
        highest = v.largest(block[4])
        if highest == np.inf:
            return False
        above = _exponent(highest, scale, softcap) - np.float64(reference) if highest > nothing else 0.0
        if above > _FARTHEST:
            moved = v.like_lane(np.float64(reference) + above, x)
            gap = np.float64(reference) - np.float64(moved)
            scaling = v.splat(2.0**gap, sums)
            shifted = v.mul(v.fma(v.splat(gap, sums), sums, shifted), scaling)
            sums, squared = v.mul(sums, scaling), v.mul(squared, v.mul(scaling, scaling))
            reference, bounds = moved, _bounds(x, transform, want, moved)
        beyond = _beyond(block[4], block[5], bounds)
        if above > _FARTHEST or (beyond and short):
            short = not beyond
            block = _any_block(x, start, stop, (transform, factors, bounds, reference), totals, short, want, squares)
        if highest > best:
            best, best_start, best_short = highest, start, short
        short = not beyond
        sums, shifted = v.add(sums, block[0]), v.add(shifted, block[1])
        squared, totals = v.add(squared, block[2]), block[3]
        references += np.float64(reference) * (stop - start)
        if want & RANK and label == label and v.any_at_least(block[4], v.splat(lane_label, block[4])):
            over, at = count_block(x, start, stop, lane_label)
            greater += over
            equal += at
    total = v.total(sums)
    if not (started and total < np.inf):
        return False
    t = _exponents(v.splat(best, zero), transform, factors, bounds, reference)
    if best_short and best >= bounds[3]:  # else it is in the last vector, which is not short
        t = _short(v.splat(best, zero), factors, reference)
    p, e = power_terms(t, power_constants(zero, v.like_lane(1.0, x), v.like_lane(0.0, x)))
    term, exponent = np.float64(v.largest(v.mul(p, e))), np.float64(v.largest(t))
    base = transformed(np.float64(best), scale, softcap)
    above = base * LOG2E - np.float64(reference)
    others = max(total - term, 0.0) * 2.0**-above
    moved_sum = LN2 * ((v.total(shifted) - exponent * term) * 2.0**-above - above * others)
    gap = abs(base - transformed(stats[MAX], scale, softcap))
    if want & PREDICTED and np.float64(best) > stats[MAX]:
        stats[ARGMAX] = first_class + first_at(x, best_start, min(best_start + BLOCK, x.size), np.float64(best))
    if squares is not None:
        rest = max(v.total(squared) - term * term, 0.0) * 2.0 ** (-2.0 * above)
        merge_squares(stats, np.float64(best), 1.0 + within_sum(rest, others, x.size), gap)
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
        if not row_capped(x, label, scale, softcap, want, first_class, stats[r], None):
            row_wide(x, label, scale, softcap, want, first_class, stats[r])
