"""Statistics of rows of logits: their columns, and what kernels share that add to them."""

from __future__ import annotations

import math

import numpy as np

from bigvocab.kernels import lanes as v
from bigvocab.kernels import memory as m
from bigvocab.kernels.jit import inline, jit

# Classes asked for ahead, times half their bytes: the processor's own prefetch stops at the end of a page. Twice as far
# costs half types 1%, half as far float32 4%.
AHEAD = 4096

# Columns of the statistics, float64, one line per row. MAX is the greatest raw logit, SUM the sum of exp(g(x) -
# g(MAX)) with g(x) = softcap(scale x), SHIFTED the sum of (g(x) - g(MAX)) exp(g(x) - g(MAX)), TOTAL the sum of g(x).
MAX, SUM, ARGMAX, SHIFTED, TOTAL, GREATER, EQUAL = range(7)
COLUMNS = 7
# One more column where it is wanted: the sum of exp(2 (g(x) - g(MAX))).
SQUARED = 7

# What is wanted beside maximum and sum, added up.
RANK, ENTROPY, PREDICTED, LOGIT_SUM, SQUARES = 1, 2, 4, 8, 16

SKIP, NO_LABEL = -1, -2  # in place of a label: leave the row out; read it, but it has no label


@jit
def clear_statistics(stats):
    """The statistics of no class at all."""
    stats[:] = 0.0
    stats[:, MAX] = -np.inf
    stats[:, ARGMAX] = -1.0


@inline
def lanes_at(x, i, stop, size):
    """The lanes from `i` on; past `stop` they are -inf."""
    if i + size <= stop:
        return m.load(x, i)
    return m.load_part(x, i, stop, v.floor_value(x))


@inline
def block_max(x, start, stop):
    """The greatest logit of a block; -inf where there is none."""
    top = v.splat(v.floor_value(x), v.zeros_for(x))
    size = m.width(x)
    for i in range(start, stop, size):
        top = v.larger(lanes_at(x, i, stop, size), top)
    return v.largest(top)


@inline
def total_counts(greater, equal):
    """Counts in lanes, added up."""
    return np.int64(v.total(v.widen(greater))), np.int64(v.total(v.widen(equal)))


@inline
def count_block(x, start, stop, label):
    """How many logits of a block lie above the label's, and how many are equal to it."""
    y, size = v.splat(label, v.zeros_for(x)), m.width(x)
    greater = equal = more = also = v.zeros_for(x)  # of even vectors, and of odd ones: no addition waits for another
    whole, even = stop - (stop - start) % size, stop - (stop - start) % (2 * size)
    for i in range(start, even, 2 * size):
        logits, others = m.load_unordered(x, i), m.load_unordered(x, i + size)
        greater, equal = v.plus_greater(greater, logits, y), v.plus_equal(equal, logits, y)
        more, also = v.plus_greater(more, others, y), v.plus_equal(also, others, y)
    if even < whole:
        logits = m.load_unordered(x, even)
        greater, equal = v.plus_greater(greater, logits, y), v.plus_equal(equal, logits, y)
    if whole < stop:
        logits = m.load_part(x, whole, stop, v.floor_value(x))
        more, also = v.plus_greater(more, logits, y), v.plus_equal(also, logits, y)
    return total_counts(v.add(greater, more), v.add(equal, also))


@inline
def padding(x, label):
    """Lanes past the last class, which hold -inf and so count as ties of a label at -inf."""
    return -x.size % m.width(x) if label == -np.inf else 0


@inline
def first_at(x, start, stop, value):
    """Position of the first logit equal to `value`, which is there."""
    lane_value, size = v.splat(v.like_lane(value, x), v.zeros_for(x)), m.width(x)
    while start + size <= stop and v.count_equal(m.load(x, start), lane_value) == 0:
        start += size
    for i in range(start, stop):
        if m.load_scalar(x, i) == value:
            return i
    return start


@inline
def merge_tile(stats, top, total, shifted, gap):
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
def merge_squares(stats, top, squared, gap):
    """Add a tile's sum of squares to the row's, before `merge_tile` and before MAX moves; `gap` as there."""
    lower = math.exp(-2.0 * gap)
    if top > stats[MAX]:
        mine = stats[SQUARED] * lower if stats[SQUARED] != 0 else 0.0  # gap may be infinite where there is none
        stats[SQUARED] = mine + squared
    else:
        stats[SQUARED] += squared * lower


@inline
def within_sum(rest, others, classes):
    """A sum of squares of numbers up to 1, within what their sum allows: of few tiny ones the rounding is larger."""
    return min(max(rest, others * others / max(classes - 1, 1)), others * min(others, 1.0))
