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
They are kept for a portion of the classes, and the pair has a loop of its own: the constants and sums of all would not
fit the registers.
"""

from __future__ import annotations

import numpy as np

from bigvocab.kernels import divergence_terms as terms
from bigvocab.kernels import doubles as d
from bigvocab.kernels import lanes as v
from bigvocab.kernels import memory as m
from bigvocab.kernels.exp import power_constants, power_terms
from bigvocab.kernels.jit import inline
from bigvocab.kernels.row_statistics import AHEAD, total_counts
from bigvocab.kernels.softmax_block import HALF_STRIP, STRIP, lowest_logit

TERMS = 8  # vectors whose terms are summed in float32
PORTION = 1024  # classes between the two looks: whole strips, and few enough for the first-level cache


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
def _exponentials(x, start, stop, side, carried, kept):
    """Add whole vectors to (sums of 2**t, top), as `softmax_block` does, and keep each exponential in the units of the
    pair.
    """
    constants, low, share = side
    sums, top = carried
    zero, size, ahead = v.zeros_for(x), m.width(x), AHEAD * x.itemsize // 2
    length = (HALF_STRIP if x.itemsize == 2 else STRIP) * size
    for strip in range(start, stop, length):
        total = zero
        for i in range(strip, min(strip + length, stop), size):
            m.prefetch(x, i + ahead)
            logits = m.load_unordered(x, i)
            p, e = power_terms(v.at_least(logits, low), constants)
            total, top = v.fma(p, e, total), v.larger(logits, top)
            m.store(v.mul(v.mul(p, e), share), kept, i - start)
        sums = v.add(sums, v.fold(total))
    return sums, top


@inline
def _add_lanes(x, y, p, q, held, lows, t, exact):
    """Add a vector of both rows to (kl, reverse, gain); p and q are its exponentials."""
    r = _log_ratio(x, y, t, exact)
    u = v.absolute(r)
    if not v.any_above(u, terms.number(1.0, u)):  # NaN is: a class is masked
        return terms.add_near_signed(held, d.where_positive(r, q, p), r, u)
    r = terms.with_masks(x, y, terms.limited(r))
    most = d.where_positive(r, q, p)
    most = d.nothing_below(d.where_positive(r, y, x), d.where_positive(r, lows[1], lows[0]), most)
    return terms.add_any_signed(held, most, x, y, r)


@inline
def _ranked(x, y, labels, ranks):
    """Add a vector of both rows to the logits above and at the label's of x, and of y, lane by lane."""
    above, at, other_above, other_at = ranks
    above, at = v.plus_greater(above, x, labels[0]), v.plus_equal(at, x, labels[0])
    return above, at, v.plus_greater(other_above, y, labels[1]), v.plus_equal(other_at, y, labels[1])


@inline
def _divergences(x, y, start, stop, kept, pair, lows, t, exact, labels, ranks):
    """Add whole vectors, whose exponentials were kept, to (kl, reverse, gain), strip by strip; and what they count."""
    zero, size = v.zeros_for(x), m.width(x)
    length = TERMS * size
    for strip in range(start, stop, length):
        held = zero, zero, zero
        for i in range(strip, min(strip + length, stop), size):
            p, q = m.load(kept[0], i - start), m.load(kept[1], i - start)
            a, b = m.load_unordered(x, i), m.load_unordered(y, i)
            held = _add_lanes(a, b, p, q, held, lows, t, exact)
            if labels is not None:
                ranks = _ranked(a, b, labels, ranks)
        pair = _folded(pair, held)
    return pair, ranks


@inline
def _folded(pair, held):
    return v.add(pair[0], v.fold(held[0])), v.add(pair[1], v.fold(held[1])), v.add(pair[2], v.fold(held[2]))


@inline
def _last(x, start, stop, side, carried):
    """As `_exponentials`, of the classes after the last whole vector; also the logits and their exponentials."""
    constants, low, share = side
    logits = m.load_part(x, start, stop, v.floor_value(x))
    p, e = power_terms(v.at_least(logits, low), constants)
    carried = v.add(carried[0], v.fold(v.fma(p, e, v.zeros_for(x)))), v.larger(logits, carried[1])
    return carried, logits, v.mul(v.mul(p, e), share)


@inline
def pair_block(x, y, start, stop, sides, t, exact, ranked, kept):
    """Sums of classes `start` to `stop` of both rows and of the pair: for each row (sum of 2**t, top, (logits above the
    label's, logits at it)), sum and top as `softmax_block` has them, to the bit; then the sums of p phi(r), of
    q phi(-r) and of q - p.

    Args:
        x: a row of float32 or of a half type.
        y: another of the same type.
        start: first class.
        stop: class after the last.
        sides: (factor, reference, share, label's logit) of x and of y: p = share * 2**(factor x - reference).
        t: guessed logsumexp of x less that of y.
        exact: whether the rounding of y - x is computed and added.
        ranked: whether to count.
        kept: two of (PORTION,) float32, room for exponentials of x and y between the two looks at a portion.
    """
    zero, size = v.zeros_for(x), m.width(x)
    (factor, reference, share, label), (other_factor, other_reference, other_share, other_label) = sides
    side = _constants(x, zero, factor, reference, share)
    other_side = _constants(y, zero, other_factor, other_reference, other_share)
    lows = side[1], other_side[1]
    high = v.like_lane(t, x)
    parts = (v.splat(high, zero), v.splat(v.like_lane(t - np.float64(high), x), zero))
    none, lowest = v.fold(zero), v.splat(v.floor_value(x), zero)
    sums, top, other_sums, other_top = none, lowest, none, lowest
    labels, ranks = (v.splat(label, zero), v.splat(other_label, zero)), (zero, zero, zero, zero)
    pair = none, none, none
    whole = stop - (stop - start) % size
    for begin in range(start, whole, PORTION):
        end = min(begin + PORTION, whole)
        sums, here = _exponentials(x, begin, end, side, (sums, lowest), kept[0])
        other_sums, other_here = _exponentials(y, begin, end, other_side, (other_sums, lowest), kept[1])
        if ranked and (v.any_at_least(here, labels[0]) or v.any_at_least(other_here, labels[1])):
            if exact:
                pair, ranks = _divergences(x, y, begin, end, kept, pair, lows, parts, True, labels, ranks)
            else:
                pair, ranks = _divergences(x, y, begin, end, kept, pair, lows, parts, False, labels, ranks)
        elif exact:
            pair, ranks = _divergences(x, y, begin, end, kept, pair, lows, parts, True, None, ranks)
        else:
            pair, ranks = _divergences(x, y, begin, end, kept, pair, lows, parts, False, None, ranks)
        top, other_top = v.larger(here, top), v.larger(other_here, other_top)
    if whole < stop:
        (sums, here), a, p = _last(x, whole, stop, side, (sums, lowest))
        (other_sums, other_here), b, q = _last(y, whole, stop, other_side, (other_sums, lowest))
        pair = _folded(pair, _add_lanes(a, b, p, q, (zero, zero, zero), lows, parts, True))
        if ranked:
            ranks = _ranked(a, b, labels, ranks)
        top, other_top = v.larger(here, top), v.larger(other_here, other_top)
    totals = v.total(pair[0]), v.total(pair[1]), v.total(pair[2])
    return (
        (sums, top, total_counts(ranks[0], ranks[1])),
        (other_sums, other_top, total_counts(ranks[2], ranks[3])),
        totals,
    )
