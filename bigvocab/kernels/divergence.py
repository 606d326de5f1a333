"""Divergence of two rows of logits, whose logsumexps are known: kl, kl_reverse, js, tv and the mean distance.

The second pass over a pair of rows, or over one range of classes of it, while it lies in the cache. The terms are those
of `divergence_terms`: none is negative and none cancels. The log ratio r = (y - x) + t has the difference of the two
logits first, and t, the difference of the logsumexps, in two parts where it is large: an error in t that all classes
share costs kl only its square and its product with kl. Where t is small no class of weight has a rounding of y - x that
matters; else the rounding is computed and added.

M = max(p, q) is one exponential, of the side that has it: 2**(z c - reference) as in `softmax`, times the share that
2**(reference) has, which is exact at the row's mean logit, so that the rounding of c does not matter.

float32 lanes are summed in strips of four vectors, strips in float64. Fewer than 64 classes, float64 logits, softcaps,
scales that differ and logits too large for float32 take `divergence_wide`.
"""

from __future__ import annotations

import math

import numpy as np
from numba import types
from numba.extending import overload

from bigvocab.kernels import divergence_terms as terms
from bigvocab.kernels import doubles as d
from bigvocab.kernels import lanes as v
from bigvocab.kernels import memory as m
from bigvocab.kernels.divergence_wide import wide_row
from bigvocab.kernels.exp import LOG2E, power_constants, power_terms
from bigvocab.kernels.jit import inline, jit
from bigvocab.kernels.row_statistics import MAX, SHIFTED, SKIP, SUM
from bigvocab.kernels.softmax_wide import transformed

# Columns of a pair of rows, float64. KL to TV in nats (TV between 0 and 1); DISTANCE the sum of |ln p - ln q| over the
# BOTH classes that neither side has masked.
KL, KL_REVERSE, JS, TV, DISTANCE, BOTH = range(6)
COLUMNS = 6

FEW_CLASSES = 64  # with fewer, no roundings of float32 terms even out

_STRIP = 4
_CLOSE = 1.0 / 16.0  # |t| up to which the rounding of a difference of logits needs no care
_PRECISE = 2.0**19
_SMALLEST_FACTOR = 1e-30
_LEAST = -125.0  # exponents below this count as a probability of 0


@inline
def _side(x, scale, stats):
    """(reference, share) of a row: p = share * 2**(c x - reference)."""
    factor = v.like_lane(scale * LOG2E, x)
    c = np.float64(factor)
    middle = stats[MAX] + stats[SHIFTED] / (stats[SUM] * scale)
    reference = np.floor(8.0 * (middle * c) + 0.5) / 8.0
    share = math.exp(stats[SHIFTED] / stats[SUM]) / stats[SUM] * 2.0 ** (reference - middle * c)
    return v.like_lane(reference, x), v.like_lane(share, x)


@inline
def _log_ratio(x, y, scale, t, exact):
    """ln q - ln p of each class; t = its two parts."""
    if exact:
        gap, rest = terms.difference(y, x)
        return v.add(v.fma(scale, gap, t[0]), v.fma(scale, rest, t[1]))
    return v.fma(scale, v.sub(y, x), t[0])


@inline
def _most(x, y, r, sides):
    """The greater one of p and q, each from its own logit; 0 where it is below 2**-125 or so."""
    constants, shift_y, share_x, share_y, least = sides
    z = d.where_positive(r, y, x)
    shift = d.where_positive(r, shift_y, constants[1])
    p, e = power_terms(z, (constants[0], shift, constants[2], constants[3]))
    found = v.mul(v.mul(p, d.where_positive(r, share_y, share_x)), e)
    return d.nothing_below(v.fma(z, constants[0], shift), least, found)


@inline
def _add(x, y, held, both, scale, t, sides, exact, full):
    r = _log_ratio(x, y, scale, t, exact)
    u = v.absolute(r)
    size = v.count_greater(terms.number(2.0, u), terms.number(0.0, u))
    if v.count_greater(terms.number(1.0000001, u), u) == size:  # NaN is not: no class is masked
        return terms.add_near(held, _most(x, y, r, sides), r, u, full), both + size
    r = terms.with_masks(x, y, terms.limited(r))
    ones = terms.where_both(x, y, terms.number(1.0, u), terms.number(0.0, u))
    both += v.count_greater(ones, terms.number(0.0, u))
    return terms.add_any(held, _most(x, y, r, sides), x, y, r, full), both


@inline
def _folded(sums, held):
    return (
        v.add(sums[0], v.fold(held[0])),
        v.add(sums[1], v.fold(held[1])),
        v.add(sums[2], v.fold(held[2])),
        v.add(sums[3], v.fold(held[3])),
        v.add(sums[4], v.fold(held[4])),
    )


@inline
def _sums(x, y, scale, t, sides, exact, full):
    """Sums over the classes, as vectors of float64, and the number of classes that neither side has masked."""
    zero, size = v.zeros_for(x), m.width(x)
    sums, both = terms.nothing(v.fold(zero)), 0
    whole = x.size - x.size % size
    for strip in range(0, whole, _STRIP * size):
        held = terms.nothing(zero)
        for i in range(strip, min(strip + _STRIP * size, whole), size):
            held, both = _add(m.load(x, i), m.load(y, i), held, both, scale, t, sides, exact, full)
        sums = _folded(sums, held)
    if whole < x.size:
        masked = v.floor_value(x)
        a, b = m.load_part(x, whole, x.size, masked), m.load_part(y, whole, x.size, masked)
        held, both = _add(a, b, terms.nothing(zero), both, scale, t, sides, exact, full)
        sums = _folded(sums, held)
    return sums, both


@inline
def _fits(x, scale, stats_x, stats_y):
    """Whether the logits of both rows are small enough for float32."""
    c = np.float64(v.like_lane(scale * LOG2E, x))
    if not _SMALLEST_FACTOR < c < np.inf:
        return False
    if not abs(stats_x[MAX] * c) < _PRECISE or not abs(stats_y[MAX] * c) < _PRECISE:
        return False
    reference_x, reference_y = _side(x, scale, stats_x)[0], _side(x, scale, stats_y)[0]
    return abs(np.float64(reference_x)) < _PRECISE and abs(np.float64(reference_y)) < _PRECISE


@inline
def _constants(x, scale, t, stats_x, stats_y):
    """What the sums of a pair of rows need for all classes: (scale, t in two parts, sides)."""
    factor = v.like_lane(scale * LOG2E, x)
    reference_x, share_x = _side(x, scale, stats_x)
    reference_y, share_y = _side(x, scale, stats_y)
    zero = v.zeros_for(x)
    constants = power_constants(zero, factor, reference_x)
    shift_y = power_constants(zero, factor, reference_y)[1]
    least = v.add(v.sub(constants[1], v.splat(-reference_x, zero)), terms.number(_LEAST, zero))
    sides = (constants, shift_y, v.splat(share_x, zero), v.splat(share_y, zero), least)
    high = v.like_lane(t, x)
    parts = (v.splat(high, zero), v.splat(v.like_lane(t - np.float64(high), x), zero))
    return v.splat(v.like_lane(scale, x), zero), parts, sides


@inline
def _row(x, y, scale, t, stats_x, stats_y, full, out):
    """Add a pair of rows in float32; False where their logits are too large for that."""
    if not _fits(x, scale, stats_x, stats_y):
        return False
    lane_scale, parts, sides = _constants(x, scale, t, stats_x, stats_y)
    if abs(t) <= _CLOSE and scale == 1.0:
        if full:
            sums, both = _sums(x, y, lane_scale, parts, sides, False, True)
        else:
            sums, both = _sums(x, y, lane_scale, parts, sides, False, False)
    elif full:
        sums, both = _sums(x, y, lane_scale, parts, sides, True, True)
    else:
        sums, both = _sums(x, y, lane_scale, parts, sides, True, False)
    out[KL] += v.total(sums[0])
    out[KL_REVERSE] += v.total(sums[1])
    out[JS] += v.total(sums[2])
    out[TV] += 0.5 * v.total(sums[3])
    out[DISTANCE] += v.total(sums[4])
    out[BOTH] += both
    return True


@inline
def row_spread(x, y, stats_x, stats_y, out):
    """Write JS, TV, DISTANCE and BOTH of a pair of whole rows whose logits are as they are; False as `_row`."""
    if not _fits(x, 1.0, stats_x, stats_y):
        return False
    t = (stats_x[MAX] - stats_y[MAX]) + (math.log(stats_x[SUM]) - math.log(stats_y[SUM]))
    lane_scale, parts, sides = _constants(x, 1.0, t, stats_x, stats_y)
    if abs(t) <= _CLOSE:
        sums, both = _sums(x, y, lane_scale, parts, sides, False, True)
    else:
        sums, both = _sums(x, y, lane_scale, parts, sides, True, True)
    out[JS], out[TV], out[DISTANCE] = v.total(sums[2]), 0.5 * v.total(sums[3]), v.total(sums[4])
    out[BOTH] = both
    return True


def _any_row(x, y, scale, t, stats_x, stats_y, full, out):
    """`_row` where both sides are read as float32, else False."""
    raise NotImplementedError  # only for kernels: see the overload below


@overload(_any_row, inline="always")
def _any_row_of(x, y, scale, t, stats_x, stats_y, full, out):
    if types.float64 in (x.dtype, y.dtype):
        return lambda x, y, scale, t, stats_x, stats_y, full, out: False
    return lambda x, y, scale, t, stats_x, stats_y, full, out: _row(x, y, scale, t, stats_x, stats_y, full, out)


@jit
def rows_divergence(logits, others, labels, transforms, span, wide, full, stats, other_stats, out):
    """Add the divergences of a tile of pairs of rows to `out` (n, COLUMNS): of the whole rows, or within the tile.

    logits p and others q (n, at least classes), of any two types; labels (n,), SKIP leaves a row out; transforms =
    ((scale, softcap or 0), the same of q); span = (first class, classes); wide, to sum in float64; full, for JS, TV and
    DISTANCE too; stats and other_stats (n, row_statistics.COLUMNS) of the tile, or of the whole rows. NaN where a side
    has a NaN or +inf; nothing where it has no class.
    """
    (scale, softcap), (other_scale, other_softcap) = transforms
    classes = span[1]
    plain = not wide and softcap == 0 and other_softcap == 0 and scale == other_scale
    for r in range(labels.size):
        if labels[r] == SKIP:
            continue
        mine, theirs = stats[r], other_stats[r]
        if not (mine[SUM] < np.inf and theirs[SUM] < np.inf and mine[MAX] < np.inf and theirs[MAX] < np.inf):
            out[r, :] = np.nan
            continue
        if mine[MAX] == -np.inf or theirs[MAX] == -np.inf:
            continue
        x, y = logits[r, :classes], others[r, :classes]
        high = transformed(mine[MAX], scale, softcap) - transformed(theirs[MAX], other_scale, other_softcap)
        t = high + (math.log(mine[SUM]) - math.log(theirs[SUM]))
        if not plain or not _any_row(x, y, scale, t, mine, theirs, full, out[r]):
            wide_row(x, y, transforms, t, mine, theirs, full, out[r])
