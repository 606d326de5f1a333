"""One block of a pair of rows of logits, read once: sums of exponentials of both sides, and the sums from which their
divergence follows.

The divergence needs the difference of the two logsumexps, which is not known yet. A guess will do. Let p and q be the
exponentials in units in which their guessed logsumexps are 0, P and Q their sums, and r = ln q - ln p. Then with
phi(r) = exp(r) - 1 - r

    KL = sum p phi(r) / P - phi(s), s = ln(Q / P),

and the reverse likewise with -r and -s. Q - P is summed as q - p, class by class, from the same numbers as p phi(r):
so s is as exact as the differences are, and nothing is lost while s**2 is no larger than the divergence. A block whose
guess was worse is read again with its own logsumexps, from the cache.

M = max(p, q) is the greater of the two exponentials that the sums need anyway: one per side, and none for the pair.
"""

from __future__ import annotations

import numpy as np

from bigvocab.kernels import divergence_terms as terms
from bigvocab.kernels import doubles as d
from bigvocab.kernels import lanes as v
from bigvocab.kernels import memory as m
from bigvocab.kernels.exp import power_constants, power_terms
from bigvocab.kernels.jit import inline
from bigvocab.kernels.row_statistics import AHEAD
from bigvocab.kernels.softmax_block import HALF_STRIP, STRIP, lowest_logit


@inline
def _constants(x, zero, factor, reference, share):
    """Of a side: those of its exponentials, its lowest logit, and the factor that takes it to the units of the pair."""
    low = v.splat(v.like_lane(lowest_logit(factor, reference), x), zero)
    return power_constants(zero, factor, reference), low, v.splat(v.like_lane(share, x), zero)


@inline
def _log_ratio(x, y, t, exact):
    """ln q - ln p of each class; t = its two parts."""
    if exact:
        gap, rest = terms.difference(y, x)
        return v.add(v.add(gap, t[0]), v.add(rest, t[1]))
    return v.add(v.sub(y, x), t[0])


@inline
def _add_lanes(x, y, held, mine, theirs, t, exact):
    """Add a vector of both rows to (sum of x, top of x, sum of y, top of y, kl, reverse, gain)."""
    sum_x, top_x, sum_y, top_y, kl, reverse, gain = held
    constants_x, low_x, share_x = mine
    constants_y, low_y, share_y = theirs
    p, e = power_terms(v.at_least(x, low_x), constants_x)
    q, f = power_terms(v.at_least(y, low_y), constants_y)
    sum_x, sum_y = v.fma(p, e, sum_x), v.fma(q, f, sum_y)
    top_x, top_y = v.larger(x, top_x), v.larger(y, top_y)
    r = _log_ratio(x, y, t, exact)
    u = v.absolute(r)
    size = v.count_greater(terms.number(2.0, low_x), terms.number(0.0, low_x))
    if v.count_greater(terms.number(1.0000001, u), u) == size:  # NaN is not: no class is masked
        most = v.mul(d.where_positive(r, v.mul(q, f), v.mul(p, e)), d.where_positive(r, share_y, share_x))
        kl, reverse, gain = terms.add_near_signed((kl, reverse, gain), most, r, u)
    else:
        r = terms.with_masks(x, y, terms.limited(r))
        most = v.mul(d.where_positive(r, v.mul(q, f), v.mul(p, e)), d.where_positive(r, share_y, share_x))
        most = d.nothing_below(d.where_positive(r, y, x), d.where_positive(r, low_y, low_x), most)
        kl, reverse, gain = terms.add_any_signed((kl, reverse, gain), most, x, y, r)
    return sum_x, top_x, sum_y, top_y, kl, reverse, gain


@inline
def _folded(pair, held):
    return v.add(pair[0], v.fold(held[4])), v.add(pair[1], v.fold(held[5])), v.add(pair[2], v.fold(held[6]))


@inline
def pair_block(x, y, start, stop, sides, t, exact):
    """Sums of classes `start` to `stop`: (sum of 2**t of x, top of x, the same of y, sum of p phi(r), of q phi(-r), of
    q - p), those of x and y as `softmax_block` has them, to the bit.

    Args:
        x: a row of float32 or of a half type.
        y: another of the same type.
        start: first class.
        stop: class after the last.
        sides: (factor, reference, share) of x and of y: p = share * 2**(factor x - reference).
        t: guessed logsumexp of x less that of y.
        exact: a constant, whether the rounding of y - x is computed and added.
    """
    zero, size = v.zeros_for(x), m.width(x)
    (factor, reference, share), (other_factor, other_reference, other_share) = sides
    mine = _constants(x, zero, factor, reference, share)
    theirs = _constants(y, zero, other_factor, other_reference, other_share)
    high = v.like_lane(t, x)
    parts = (v.splat(high, zero), v.splat(v.like_lane(t - np.float64(high), x), zero))
    sums_x = sums_y = v.fold(zero)
    pair = sums_x, sums_x, sums_x
    top_x = top_y = v.splat(v.floor_value(x), zero)
    whole, ahead = stop - (stop - start) % size, AHEAD * x.itemsize // 2
    length = (HALF_STRIP if x.itemsize == 2 else STRIP) * size
    for strip in range(start, whole, length):
        end = min(strip + length, whole)
        sum_x, sum_y = zero, zero
        for few in range(strip, end, STRIP * size):
            held = sum_x, top_x, sum_y, top_y, zero, zero, zero
            for i in range(few, min(few + STRIP * size, end), size):
                m.prefetch(x, i + ahead)
                m.prefetch(y, i + ahead)
                held = _add_lanes(m.load_unordered(x, i), m.load_unordered(y, i), held, mine, theirs, parts, exact)
            sum_x, top_x, sum_y, top_y = held[0], held[1], held[2], held[3]
            pair = _folded(pair, held)
        sums_x, sums_y = v.add(sums_x, v.fold(sum_x)), v.add(sums_y, v.fold(sum_y))
    if whole < stop:
        masked = v.floor_value(x)
        a, b = m.load_part(x, whole, stop, masked), m.load_part(y, whole, stop, masked)
        held = _add_lanes(a, b, (zero, top_x, zero, top_y, zero, zero, zero), mine, theirs, parts, exact)
        sums_x, top_x, sums_y, top_y = v.add(sums_x, v.fold(held[0])), held[1], v.add(sums_y, v.fold(held[2])), held[3]
        pair = _folded(pair, held)
    return sums_x, top_x, sums_y, top_y, v.total(pair[0]), v.total(pair[1]), v.total(pair[2])
