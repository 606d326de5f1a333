"""One block of a row of logits: its maximum, its sums of exponentials, the label's rank in it, the sum of its logits.

`softmax` says how blocks become the statistics of a row. Here are the loops over the vectors of one block: whole strips
of vectors, copies of the strips that have hidden classes, and the last vector, which stands apart.
"""

from __future__ import annotations

import numpy as np
from numba.extending import overload

from bigvocab.kernels import lanes as v
from bigvocab.kernels import memory as m
from bigvocab.kernels.exp import power_constants, power_terms
from bigvocab.kernels.hidden import first_hidden, show_strip, shown_block
from bigvocab.kernels.highest_cells import LANES
from bigvocab.kernels.jit import inline
from bigvocab.kernels.row_statistics import AHEAD

STRIP, HALF_STRIP = 4, 8

# How the logits of a block are compared with the label's: not at all, as numbers, or as integers that run downwards.
UNRANKED, UPWARDS, DOWNWARDS = range(3)

_LEAST = -125.0  # exponents below this count as this: 2**-125 vanishes beside 1
_FAINT = 2.0**-60  # the square of less vanishes beside 1, and would be slow where it underflows


@inline
def lowest_logit(factor, reference):
    """The logit whose exponent is _LEAST."""
    return (_LEAST + reference) / factor


@inline
def reference_exponent(top, c):
    """The exponent of a maximum, in eighths as `power_constants` asks for."""
    return np.floor(8.0 * (np.float64(top) * c) + 0.5) / 8.0


@inline
def _add_lanes(logits, ordered, held, constants, low, origin, y, ranked, entropy, squares):
    """Add one vector to a strip's (sum of 2**t, maximum, sum of (x - origin) 2**t, logits above, at the label's, sum of
    2**2t).

    `ordered` and `y` are the logits and the label as they are compared; `squares` is _FAINT in all lanes, or None.
    """
    sums, top, shifted, greater, equal, squared = held
    x = v.at_least(logits, low)
    p, e = power_terms(x, constants)
    if entropy is not None:
        shifted = v.fma(v.sub(x, origin), v.mul(p, e), shifted)
    if ranked == UPWARDS:
        greater += v.count_greater(ordered, y)
    elif ranked == DOWNWARDS:
        greater += v.count_below(ordered, y)
    if ranked != UNRANKED:
        equal += v.count_equal(ordered, y)
    if squares is not None:
        term = v.at_least(v.mul(p, e), squares)
        squared = v.fma(term, term, squared)
    return v.fma(p, e, sums), v.larger(logits, top), shifted, greater, equal, squared


@inline
def _strip_length(x):
    return (HALF_STRIP if x.itemsize == 2 else STRIP) * m.width(x)


@inline
def _strips(x, start, stop, at, low, origin, constants, y, ranked, entropy, faint, carried, cells):
    """Add whole vectors, strip by strip, to what `_block` carries; `at` is where `start` lies in the block.

    `cells` is None, or gets the maxima of the lanes, see `highest_cells.lane_maxima`.
    """
    length = _strip_length(x)
    if cells is None:
        for strip in range(start, stop, length):
            part = min(strip + length, stop)
            carried = _strip(
                x, strip, part, strip - start + at, low, origin, constants, y, ranked, entropy, faint, carried
            )
    else:
        maxima, step = cells
        for cell in range(start, stop, step):
            top = carried[3]
            sums, shifted, late, _, greater, equal, squared = carried
            carried = sums, shifted, late, v.splat(v.floor_value(x), top), greater, equal, squared
            end = min(cell + step, stop)
            for strip in range(cell, end, length):
                part = min(strip + length, end)
                carried = _strip(
                    x, strip, part, strip - start + at, low, origin, constants, y, ranked, entropy, faint, carried
                )
            if end == cell + step:
                m.store(carried[3], maxima, cell // step * LANES)
            sums, shifted, late, here, greater, equal, squared = carried
            carried = sums, shifted, late, v.larger(here, top), greater, equal, squared
    return carried


@inline
def _strip(x, start, stop, at, low, origin, constants, y, ranked, entropy, faint, carried):
    """Add the vectors of one strip, `at` from the start of its block."""
    sums, shifted, late, top, greater, equal, squared = carried
    zero, size, ahead = v.zeros_for(x), m.width(x), AHEAD * x.itemsize // 2
    held = (zero, top, late, greater, equal, zero)
    for i in range(start, stop, size):
        m.prefetch(x, i + ahead)
        logits, ordered = m.load_unordered(x, i), m.load_order(x, i)
        held = _add_lanes(logits, ordered, held, constants, low, origin, y, ranked, entropy, faint)
    sums = v.add(sums, v.fold(held[0]))
    if faint is not None:
        squared = v.add(squared, v.fold(held[5]))
    if entropy is not None:
        late = held[2]
        if x.itemsize != 2 or at & _strip_length(x):
            shifted, late = v.add(shifted, v.fold(late)), zero
    return sums, shifted, late, held[1], held[3], held[4], squared


@inline
def _block(x, start, stop, terms, label, first_class, hidden, ranked, entropy, squares, cells):
    """What `_add_lanes` says of a block, sums in float64; the last vector stands apart: the loop has no branch.

    terms = (factor, reference, origin); `ranked` is a constant, each a loop of its own; `entropy` and `squares` are
    None or True, and so other functions. Of a strip with a hidden class, a copy is read.
    """
    factor, reference, origin = terms
    zero = v.zeros_for(x)
    constants = power_constants(zero, factor, reference)
    low = v.splat(v.like_lane(lowest_logit(factor, reference), x), zero)
    y = m.order_of(label, x)
    origin = v.splat(origin, zero)
    if squares is None:
        faint = None
    else:
        faint = v.splat(v.like_lane(_FAINT, x), zero)
    sums, shifted, squared = v.fold(zero), v.fold(zero), v.fold(zero)
    top, greater, equal = v.splat(v.floor_value(x), zero), 0, 0
    whole = stop - (stop - start) % m.width(x)
    late = zero  # sums of (x - origin) 2**t; of half types, of two strips: they may be half as fine
    carried = (sums, shifted, late, top, greater, equal, squared)
    if hidden is None:
        carried = _strips(x, start, whole, 0, low, origin, constants, y, ranked, entropy, faint, carried, cells)
    else:
        length, following, at = _strip_length(x), first_hidden(start, first_class, hidden), start
        while at < whole:
            end = whole
            if following[2] < whole:
                end = at + (following[2] - at) // length * length
            carried = _strips(x, at, end, at - start, low, origin, constants, y, ranked, entropy, faint, carried, cells)
            at = end
            if at < whole:
                end = min(at + length, whole)
                following = show_strip(x, at, end, first_class, hidden, following)
                shown = hidden[3]
                carried = _strips(
                    shown, 0, end - at, at - start, low, origin, constants, y, ranked, entropy, faint, carried, cells
                )
                at = end
    sums, shifted, late, top, greater, equal, squared = carried
    if entropy is not None:
        shifted = v.add(shifted, v.fold(late))
    if whole < stop:
        part, begin, last = shown_block(x, whole, stop, first_class, hidden)
        rest = m.load_part(part, begin, last, v.floor_value(x))
        held = (zero, top, zero, greater, equal, zero)
        order = UNRANKED if ranked == UNRANKED else UPWARDS
        held = _add_lanes(rest, rest, held, constants, low, origin, v.splat(label, zero), order, entropy, faint)
        sums = v.add(sums, v.fold(held[0]))
        shifted = v.add(shifted, v.fold(held[2]))
        if squares is not None:
            squared = v.add(squared, v.fold(held[5]))
        top, greater, equal = held[1], held[3], held[4]
    return sums, top, shifted, greater, equal, squared


def any_block(x, start, stop, terms, label, first_class, hidden, ranked, entropy, squares, cells):
    """`_block` for what is known at run time only."""
    raise NotImplementedError  # only for kernels: see the overload below


@overload(any_block, inline="always")
def _any_block_of(x, start, stop, terms, label, first_class, hidden, ranked, entropy, squares, cells):
    return _block_of_halves if m.is_half(x.dtype) else _block_of_numbers


def _block_of_numbers(x, start, stop, terms, label, first_class, hidden, ranked, entropy, squares, cells):
    if ranked == UNRANKED:
        return _block(x, start, stop, terms, label, first_class, hidden, UNRANKED, entropy, squares, cells)
    return _block(x, start, stop, terms, label, first_class, hidden, UPWARDS, entropy, squares, cells)


def _block_of_halves(x, start, stop, terms, label, first_class, hidden, ranked, entropy, squares, cells):
    if ranked == UPWARDS:
        return _block(x, start, stop, terms, label, first_class, hidden, UPWARDS, entropy, squares, cells)
    if ranked == DOWNWARDS:
        return _block(x, start, stop, terms, label, first_class, hidden, DOWNWARDS, entropy, squares, cells)
    return _block(x, start, stop, terms, label, first_class, hidden, UNRANKED, entropy, squares, cells)


@inline
def block_total(x, start, stop, totals):
    """Add the logits of a block, in float64: in float32 the sum of a million equal logits would drift.

    Half types come eight vectors at a time: float32 has room for the sum of eight numbers of 11 bits, exactly unless
    they are of very different size. An eighth of each is added, so that none overflows.
    """
    size = m.width(x)
    if x.itemsize == 2:
        zero = v.zeros_for(x)
        eighth, eight = v.splat(v.like_lane(0.125, x), zero), v.splat(8.0, totals)
        strip = HALF_STRIP * size
        strips = stop - (stop - start) % strip
        for i in range(start, strips, strip):
            held, others = v.mul(m.load_unordered(x, i), eighth), v.mul(m.load_unordered(x, i + size), eighth)
            for j in range(i + 2 * size, i + strip, 2 * size):
                held = v.fma(m.load_unordered(x, j), eighth, held)
                others = v.fma(m.load_unordered(x, j + size), eighth, others)
            totals = v.fma(v.widen(v.add(held, others)), eight, totals)
        start = strips
    whole, even = stop - (stop - start) % size, stop - (stop - start) % (2 * size)
    others = v.sums_for(x)
    for i in range(start, even, 2 * size):
        totals = v.add(totals, v.widen(m.load(x, i)))
        others = v.add(others, v.widen(m.load(x, i + size)))
    if even < whole:
        totals = v.add(totals, v.widen(m.load(x, even)))
    if whole < stop:
        others = v.add(others, v.widen(m.load_part(x, whole, stop, v.like_lane(0.0, x))))
    return v.add(totals, others)
