"""Row statistics of logits in float64 and two passes, and what is done to logits before their softmax."""

from __future__ import annotations

import math

import numpy as np

from bigvocab.kernels import lanes as v
from bigvocab.kernels import memory as m
from bigvocab.kernels.exp import LN2, LOG2E, exp2, tanh
from bigvocab.kernels.jit import inline, jit
from bigvocab.kernels.row_statistics import (
    ARGMAX,
    EQUAL,
    GREATER,
    LOGIT_SUM,
    MAX,
    PREDICTED,
    SQUARES,
    SUM,
    TOTAL,
    count_block,
    first_at,
    lanes_at,
    merge_squares,
    merge_tile,
    padding,
)

_FAINT = 2.0**-500  # the square of less vanishes beside 1, and would be slow where it underflows
BLOCK = 8192  # classes summed by themselves, else a million roundings of equal terms would add up


@inline
def transformed(x, scale, softcap):
    """g(x) = softcap tanh(scale x / softcap), or scale x where softcap is 0; -inf, a masked class, stays -inf."""
    y = scale * x
    return softcap * math.tanh(y / softcap) if softcap > 0 and abs(x) < np.inf else y


@inline
def transformed_lanes(x, scale, softcap):
    """`transformed` for lanes of float64."""
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
def row_wide(x, label, scale, softcap, want, first_class, stats):
    """As `softmax.softmax_row`, in float64 and two passes: for softcaps, for what is too large or small there, and to
    tell NaN from +inf.
    """
    lane_label = v.like_lane(label, x)
    top = v.splat(v.floor_value(x), v.zeros_for(x))
    size = m.width(x)
    for i in range(0, x.size, size):
        top = v.larger(lanes_at(x, i, x.size, size), top)
    greater, equal = count_block(x, 0, x.size, lane_label)
    best = np.float64(v.largest(top))
    if best == np.inf:
        if want & PREDICTED and best > stats[MAX]:
            stats[ARGMAX] = first_class + first_at(x, 0, x.size, best)
        stats[MAX], stats[SUM] = np.inf, np.nan if _has_nan(x) or math.isnan(stats[SUM]) else 1.0
        stats[GREATER] += greater
        stats[EQUAL] += equal - padding(x, label)
        return
    sums, shifted_sums, totals, squares = v.sums_for(x), v.sums_for(x), v.sums_for(x), v.sums_for(x)
    highest = 0.0
    if best > -np.inf:  # as the lanes have it, so that the maximum counts as exactly 1
        highest = v.largest(transformed_lanes(v.splat(best, sums), scale, softcap))
    base, log2e, low = v.splat(highest, sums), v.splat(LOG2E, sums), v.splat(-1022.0, sums)
    for start in range(0, x.size, BLOCK):
        part, shifted_part, totals_part, squares_part = v.sums_for(x), v.sums_for(x), v.sums_for(x), v.sums_for(x)
        for i in range(start, min(start + BLOCK, x.size), size):
            y = transformed_lanes(v.widen(lanes_at(x, i, x.size, size)), scale, softcap)
            if want & LOGIT_SUM:
                inside = y if i + size <= x.size else v.keep_first(y, x.size - i)
                totals_part = v.add(totals_part, inside)
            t = v.at_least(v.mul(v.sub(y, base), log2e), low)
            e = exp2(t)
            part = v.add(part, e)
            shifted_part = v.fma(t, e, shifted_part)
            if want & SQUARES:
                seen = v.at_least(e, v.splat(_FAINT, e))
                squares_part = v.fma(seen, seen, squares_part)
        sums, shifted_sums, totals = v.add(sums, part), v.add(shifted_sums, shifted_part), v.add(totals, totals_part)
        squares = v.add(squares, squares_part)
    total = v.total(sums)
    if math.isnan(total):
        stats[SUM] = np.nan
        return
    if best > -np.inf:
        gap = abs(highest - transformed(stats[MAX], scale, softcap))
        if want & PREDICTED and best > stats[MAX]:
            stats[ARGMAX] = first_class + first_at(x, 0, x.size, best)
        shifted = LN2 * v.total(shifted_sums) if total > 1.0 else 0.0  # of masked classes alone
        if want & SQUARES:
            merge_squares(stats, best, max(v.total(squares), 1.0), gap)
        merge_tile(stats, best, max(total, 1.0), shifted, gap)
        stats[MAX] = max(best, stats[MAX])
    stats[TOTAL] += v.total(totals)
    stats[GREATER] += greater
    stats[EQUAL] += equal - padding(x, label)
