"""The sigmoid family: sums of softplus over a row of logits, element-wise losses of logits, and those of probabilities.

Sums of softplus(x) = max(x, 0) + log1p(e), e = exp(-|x|). A logarithm a logit would take most of the time, so a block
of 2,048 classes carries q = prod(1 + e) - 1 by q <- q + r + q r and takes four logarithms. Kept less 1, the product
loses nothing where every e is 3e-7. In float32 lanes a lane's product is at most 2**64. Eight vectors are combined as
a tree before they meet the block's product, which keeps rounding errors of equal logits from adding up. Blocks are
counted from class 0 of a tile, their sums are float64 and are added one by one: no split into pieces changes a bit.

A positive class is taken out of its vector (as -inf, which adds 0) and its softplus(-x) added in float64: nothing
cancels, however large its logit.

Element-wise losses are float64 throughout: writing them takes longer than computing them.
"""

from __future__ import annotations

import math

import numpy as np

from bigvocab.kernels import doubles as d
from bigvocab.kernels import lanes as v
from bigvocab.kernels import memory as m
from bigvocab.kernels.exp import LOG2E
from bigvocab.kernels.jit import inline, jit
from bigvocab.kernels.row_statistics import AHEAD, lanes_at
from bigvocab.kernels.softmax_wide import transformed, transformed_lanes

BLOCK = 2048
_LOG2E_LOW = 2.0355273740931033e-17  # 1 / ln 2 less LOG2E
_LEAST_FLOAT, _LEAST_DOUBLE = -87.0, -708.0  # exp below is no normal number any more: 0
_OVERFLOW = 1e300


# ---- sums of softplus


@inline
def _least(x):
    """The least logit whose exponential is kept, in the lanes of x."""
    return v.like_lane(_LEAST_FLOAT if m.width(x) > d.SIZE else _LEAST_DOUBLE, x)


@inline
def _term(logits, constants):
    """(e, max(x, 0)) of a vector; max lets a NaN through."""
    high, low, least, zero = constants
    e = d.exp_negative(d.negative(v.absolute(logits)), high, low, least)
    return e, v.at_least(logits, zero)


@inline
def _combined(a, b):
    """Two (product - 1, sum) made one."""
    return v.add(v.fma(a[0], b[0], a[0]), b[0]), v.add(a[1], b[1])


@inline
def _two(x, i, size, constants):
    ahead = i + AHEAD * x.itemsize // 2
    m.prefetch(x, ahead)
    m.prefetch(x, ahead + size)
    return _combined(_term(m.load(x, i), constants), _term(m.load(x, i + size), constants))


@inline
def _four(x, i, size, constants):
    return _combined(_two(x, i, size, constants), _two(x, i + 2 * size, size, constants))


@inline
def _eight(x, i, size, constants):
    return _combined(_four(x, i, size, constants), _four(x, i + 4 * size, size, constants))


@inline
def _log_products(q):
    """Sum of log(1 + q) over the lanes."""
    a, b, c, e = d.quarter_products(q)
    ab, ce = a + b + a * b, c + e + c * e
    whole = ab + ce + ab * ce
    if whole < _OVERFLOW:
        return math.log1p(whole)
    return (math.log1p(a) + math.log1p(b)) + (math.log1p(c) + math.log1p(e))


@inline
def _sum_softplus(x, positive, scale):
    """Sum of softplus(scale x) over the classes of x but the ids `positive`, which rise."""
    size = m.width(x)
    factor = v.like_lane(scale * LOG2E, x)
    rest = v.like_lane((scale * LOG2E - np.float64(factor)) + scale * _LOG2E_LOW, x)
    zero = v.zeros_for(x)
    least = v.like_lane(np.float64(_least(x)) / scale, x)
    constants = (v.splat(factor, zero), v.splat(rest, zero), v.splat(least, zero), zero)
    masked = v.floor_value(x)
    total, at = 0.0, 0
    group = 8 * size
    for start in range(0, x.size, BLOCK):
        stop = min(start + BLOCK, x.size)
        q, above = zero, zero
        whole = stop - (stop - start) % group
        i = start
        while i < stop:
            free = stop if at == positive.size else min(stop, positive[at])
            fast = i + max(0, min(whole, free) - i) // group * group
            for j in range(i, fast, group):
                q, above = _combined((q, above), _eight(x, j, size, constants))
            i = fast
            for _ in range(8):  # a group with positives, or the end of the row
                if i < stop:
                    logits = lanes_at(x, i, stop, size)
                    while at < positive.size and positive[at] < i + size:
                        logits = d.without(logits, positive[at] - i, masked)
                        at += 1
                    q, above = _combined((q, above), _term(logits, constants))
                    i += size
        total += scale * v.total(v.widen(above)) + _log_products(q)
    return total


@inline
def _sum_softplus_wide(x, positive, scale, softcap):
    """As `_sum_softplus`, of softplus(softcap tanh(scale x / softcap)), in float64."""
    size = m.width(x)
    zero = v.sums_for(x)
    constants = (v.splat(LOG2E, zero), v.splat(_LOG2E_LOW, zero), v.splat(_LEAST_DOUBLE, zero), zero)
    masked = v.floor_value(x)
    total, at = 0.0, 0
    for start in range(0, x.size, BLOCK):
        stop = min(start + BLOCK, x.size)
        q, above = zero, zero
        for i in range(start, stop, size):
            logits = lanes_at(x, i, stop, size)
            while at < positive.size and positive[at] < i + size:
                logits = d.without(logits, positive[at] - i, masked)
                at += 1
            q, above = _combined((q, above), _term(transformed_lanes(v.widen(logits), scale, softcap), constants))
        total += v.total(above) + _log_products(q)
    return total


@inline
def _softplus(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


@jit
def rows_softplus(logits, skip, offsets, ids, pos_weight, transform, span, out):
    """Add the sparse sigmoid losses of a tile of logits to `out` (n,).

    logits (n, at least classes); span = (first class, classes); skip (n,) True leaves the row out;
    ids[offsets[r]:offsets[r + 1]] are row r's positive classes, rising; pos_weight (V,) or (1,); transform =
    (scale, softcap or 0).
    """
    scale, softcap = transform
    first_class, classes = span
    for r in range(skip.size):
        if skip[r]:
            continue
        mine = ids[offsets[r] : offsets[r + 1]]
        a = np.searchsorted(mine, first_class)
        b = np.searchsorted(mine, first_class + classes)
        positive = mine[a:b] - first_class
        x = logits[r, :classes]
        if softcap > 0:
            total = _sum_softplus_wide(x, positive, scale, softcap)
        else:
            total = _sum_softplus(x, positive, scale)
        for y in positive:
            weight = pos_weight[first_class + y] if pos_weight.size > 1 else pos_weight[0]
            logit = transformed(m.load_scalar(x, y), scale, softcap)
            if math.isnan(logit):
                total = np.nan
            elif weight != 0:
                total += weight * _softplus(-logit)
        out[r] += total


# ---- element-wise

BAD_LABEL, BAD_PREDICTION = 1, 2  # what is wrong with a row: a label that is not finite, a prediction outside [0, 1]


@inline
def _sigmoid_lanes(x, z, weight, smoothing):
    """The sum q z softplus(-x) + (1 - z) softplus(x), z smoothed towards 1/2; 0 times an infinite term is 0."""
    z = v.fma(z, v.splat(1.0 - smoothing, z), v.splat(0.5 * smoothing, z))
    size = v.absolute(x)
    e = d.exp_negative(d.negative(size), v.splat(LOG2E, x), v.splat(_LOG2E_LOW, x), v.splat(_LEAST_DOUBLE, x))
    positive, negative = v.mul(weight, z), v.sub(v.splat(1.0, z), z)
    linear = d.times(d.where_positive(x, negative, positive), size)
    return v.fma(v.add(positive, negative), d.log1p_unit(e), linear)


@inline
def _weights_at(pos_weight, i, stop, like):
    if pos_weight.size == 1:
        return v.splat(pos_weight[0], like)
    if i + d.SIZE <= stop:
        return d.load(pos_weight, i)
    return d.load_part(pos_weight, i, stop, 0.0)


@inline
def _pair_at(x, z, i, stop):
    """16 logits and their labels as float64; past `stop` they are 0."""
    if i + d.SIZE <= stop:
        return d.load(x, i), d.load(z, i)
    return d.load_part(x, i, stop, 0.0), d.load_part(z, i, stop, 0.0)


@inline
def _no_doubles(labels):
    return v.splat(0.0, d.load_part(labels, 0, 0, 0.0))


@inline
def _is_bad(label_check):
    """Whether a sum of 0 z met a label that is not finite."""
    return not v.total(label_check) == 0


@jit
def rows_sigmoid(logits, labels, pos_weight, smoothing, transform, classes, out, faults):
    """Put the sigmoid loss of every element into `out` (n, classes); pos_weight (classes,) or (1,); faults (n,)."""
    scale, softcap = transform
    for r in range(out.shape[0]):
        x, z, losses = logits[r, :classes], labels[r, :classes], out[r]
        check = _no_doubles(z)
        for i in range(0, x.size, d.SIZE):
            a, b = _pair_at(x, z, i, x.size)
            if scale != 1.0 or softcap > 0:
                a = transformed_lanes(a, scale, softcap)
            found = _sigmoid_lanes(a, b, _weights_at(pos_weight, i, x.size, a), smoothing)
            check = v.fma(b, v.splat(0.0, b), check)
            if i + d.SIZE <= x.size:
                d.store(losses, i, found)
            else:
                d.store_part(losses, i, x.size, found)
        if _is_bad(check):
            faults[r] = BAD_LABEL


@jit
def rows_sigmoid_sums(logits, labels, skip, pos_weight, smoothing, transform, classes, out, faults):
    """Add the sums over classes of the sigmoid losses to `out` (n,); block by block, so that no split changes a bit."""
    scale, softcap = transform
    for r in range(skip.size):
        if skip[r]:
            continue
        x, z = logits[r, :classes], labels[r, :classes]
        check = _no_doubles(z)
        for start in range(0, x.size, BLOCK):
            stop = min(start + BLOCK, x.size)
            total = _no_doubles(z)
            for i in range(start, stop, d.SIZE):
                a, b = _pair_at(x, z, i, stop)
                if scale != 1.0 or softcap > 0:
                    a = transformed_lanes(a, scale, softcap)
                found = _sigmoid_lanes(a, b, _weights_at(pos_weight, i, stop, a), smoothing)
                check = v.fma(b, v.splat(0.0, b), check)
                total = v.add(total, found if i + d.SIZE <= stop else v.keep_first(found, stop - i))
            out[r] += v.total(total)
        if _is_bad(check):
            faults[r] = BAD_LABEL


# ---- probabilities


@inline
def _log_loss_lanes(p, z, epsilon):
    """-z log(p + eps) - (1 - z) log(1 - p + eps)."""
    one, eps = v.splat(1.0, p), v.splat(epsilon, p)
    yes = d.times(z, d.log(v.add(p, eps)))
    no = d.times(v.sub(one, z), d.log(v.add(v.sub(one, p), eps)))
    return d.negative(v.add(yes, no))


@inline
def _outside(p):
    """Whether a lane is below 0 or above 1; NaN is neither."""
    return v.any_greater(v.splat(0.0, p), p) or v.any_greater(p, v.splat(1.0, p))


@jit
def rows_log_loss(predictions, labels, epsilon, classes, out, faults):
    """Put the log loss of every element into `out` (n, classes); faults (n,)."""
    for r in range(out.shape[0]):
        p, z, losses = predictions[r, :classes], labels[r, :classes], out[r]
        check = _no_doubles(z)
        for i in range(0, p.size, d.SIZE):
            a, b = _pair_at(p, z, i, p.size)
            if _outside(a):
                faults[r] = BAD_PREDICTION
            found = _log_loss_lanes(a, b, epsilon)
            check = v.fma(b, v.splat(0.0, b), check)
            if i + d.SIZE <= p.size:
                d.store(losses, i, found)
            else:
                d.store_part(losses, i, p.size, found)
        if _is_bad(check) and faults[r] == 0:
            faults[r] = BAD_LABEL


@jit
def rows_log_loss_sums(predictions, labels, skip, epsilon, classes, out, faults):
    """Add the sums over classes of the log losses to `out` (n,); faults (n,)."""
    for r in range(skip.size):
        if skip[r]:
            continue
        p, z = predictions[r, :classes], labels[r, :classes]
        check = _no_doubles(z)
        for start in range(0, p.size, BLOCK):
            stop = min(start + BLOCK, p.size)
            total = _no_doubles(z)
            for i in range(start, stop, d.SIZE):
                a, b = _pair_at(p, z, i, stop)
                if _outside(a):
                    faults[r] = BAD_PREDICTION
                found = _log_loss_lanes(a, b, epsilon)
                check = v.fma(b, v.splat(0.0, b), check)
                total = v.add(total, found if i + d.SIZE <= stop else v.keep_first(found, stop - i))
            out[r] += v.total(total)
        if _is_bad(check) and faults[r] == 0:
            faults[r] = BAD_LABEL
