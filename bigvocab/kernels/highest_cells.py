"""The highest classes of a tile of logits, found from the maxima of its cells, which are left by the pass of the loss.

A cell is what one lane meets in some hundred classes: of 256 classes and 32 lanes, the eight classes c, c + 32, c + 64,
... The k-th greatest of the cells' maxima is no greater than the k-th greatest logit, and hardly less where logits lie
as they come. So a bisection over 512 maxima (cells are folded until they are so few) gives a threshold that some 1.1 k
classes reach. They are picked from the few cells that reach it, without a branch per class, and sorted by a network.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload

from bigvocab.kernels import lanes as v
from bigvocab.kernels import memory as m
from bigvocab.kernels import orders as o
from bigvocab.kernels.highest import COUNT, THRESHOLD, keep_row, key_of, number_of, shrink
from bigvocab.kernels.jit import inline, jit
from bigvocab.kernels.row_statistics import SKIP, lanes_at

LANES = 32  # maxima of the cells of some classes, one per lane; of float64 the half
_FINE, _COARSE = 256, 512  # classes of the cells of all lanes: few, or few to write
_LONG = 1 << 18  # classes, from which on they are coarse
_FLUSH = 96  # cells whose classes are looked at together
FOLDED = 16  # vectors of maxima that are searched


@inline
def lane_maxima(x, cells):
    """Put the maxima of the cells of a tile into `cells` = (array, classes of the cells of all lanes); returns those of
    all cells.
    """
    maxima, step = cells
    every = v.splat(v.floor_value(x), v.zeros_for(x))
    for c in range(x.size // step):
        top = v.splat(v.floor_value(x), v.zeros_for(x))
        for i in range(c * step, c * step + step, m.width(x)):
            top = v.larger(m.load_unordered(x, i), top)
        m.store(top, maxima, c * LANES)
        every = v.larger(top, every)
    return every


@jit
def _bound(maxima, number, k, least, folded):
    """An order that `k` of the maxima reach, and few more; `least` where so many do not reach that."""
    vectors = min(number, FOLDED)
    top = bottom = o.load_floats(maxima, 0)
    for j in range(vectors):
        here = o.load_floats(maxima, j * LANES)
        for c in range(j + FOLDED, number, FOLDED):
            here = v.larger(o.load_floats(maxima, c * LANES), here)
        top, bottom = v.larger(here, top), v.at_most(bottom, here)
        m.store(o.order_lanes(here), folded, j * LANES)
    high, low = o.order_of(v.largest(top)) + 1, max(least, o.order_of(_smallest(bottom)))
    if _reaching(folded, vectors, low) < k:
        low = least
    enough = k + k // 8
    while high - low > 1:
        middle = low + (high - low) // 2
        found = _reaching(folded, vectors, middle)
        if found >= k:
            low = middle
            if found <= enough:
                break
        else:
            high = middle
    return low


@inline
def _smallest(lanes):
    return -v.largest(v.sub(v.splat(np.float32(0.0), lanes), lanes))


@inline
def _reaching(folded, vectors, order):
    y, found = o.least_lanes(order), 0
    for j in range(vectors):
        found += v.count_at_least(o.load_ints(folded, j * LANES), y)
    return found


@inline
def _reaching_cells(maxima, number, least):
    y, found = v.splat(least, o.load_floats(maxima, 0)), 0
    for c in range(number):
        found += v.count_at_least(o.load_floats(maxima, c * LANES), y)
    return found


@jit
def _shrink(room, count, k):
    """Keep the `k` greatest of `count` packed logits, which are more, in any order; returns the least of them."""
    like = o.load_longs(room, 0)
    whole = count - count % 16
    low = high = room[0]
    for i in range(count):
        low, high = min(low, room[i]), max(high, room[i])
    found = count
    while found != k:
        middle = (low | high) - ((low ^ high) >> 1)  # half way, rounded up, without overflow
        y, here = v.splat(middle, like), 0
        for i in range(0, whole, 16):
            here += v.count_at_least(o.load_longs(room, i), y)
        for i in range(whole, count):
            here += room[i] >= middle
        if here >= k:
            low, found = middle, here
        else:
            high = middle - 1
    to, lowest = 0, high
    for i in range(count):
        packed = room[i]
        room[to] = packed
        to += packed >= low
        if packed >= low:
            lowest = min(lowest, packed)
    return lowest


@inline
def _add_hits(mask, first, places, hits):
    """Put the first class of each cell of a mask behind `hits` others; up to two without a branch."""
    for _ in range(2):
        places[hits] = first + v.lowest_bit(mask)
        hits += mask != 0
        mask &= mask - 1
    while mask:
        places[hits] = first + v.lowest_bit(mask)
        hits += 1
        mask &= mask - 1
    return hits


@jit
def _collect(x, maxima, step, least, k, room, places):
    """Put what reaches `least` into the room, packed; of more than fit, the `k` greatest at least. Returns how many."""
    size, number = m.width(x), x.size // step
    limit, count, hits = k + 2 * _FINE, 0, 0
    above = v.splat(least, o.load_floats(maxima, 0))
    for c in range(number):
        hits = _add_hits(v.mask_at_least(o.load_floats(maxima, c * LANES), above), c * step, places, hits)
        if hits > _FLUSH or c == number - 1:
            before = count
            for h in range(hits):
                at = m.place_of(x, places[h])
                for i in range(at, at + step, _FINE):
                    for j in range(_FINE // 32):
                        count = o.append_from(x, i + j * size, least, room, count)
            hits = 0
            o.pack_all(x, room, before, count)
            if count > limit:  # those behind have higher classes
                least = o.of_order(o.order_in(_shrink(room, count, k)) + 1)
                count, above = k, v.splat(least, above)
    before = count
    above = v.splat(least, above)
    for i in range(number * step, x.size, size):
        if v.any_at_least(lanes_at(x, i, x.size, size), above):
            for at in range(i, min(i + size, x.size)):
                count = o.append_from(x, at, least, room, count)
    o.pack_all(x, room, before, count)
    return count


@inline
def _sort_all(room, count):
    """Shell's sort, the greatest first."""
    gap = count // 2
    while gap > 0:
        for i in range(gap, count):
            packed, at = room[i], i
            while at >= gap and room[at - gap] < packed:
                room[at] = room[at - gap]
                at -= gap
            room[at] = packed
        gap //= 2


@jit
def _in_order(room, count, k):
    """Sort what is in the room, the `k` greatest of it at most; returns how many."""
    if count > o.SORTED:
        if count > k:
            _shrink(room, count, k)
            count = k
        if count > o.SORTED:
            _sort_all(room, count)
            return count
    for i in range(count, o.SORTED):
        room[i] = o.NONE
    o.sort_packed(room)
    return min(count, k)


@inline
def no_hits(hits, r):
    """Row r has none."""
    hits[2][r + 1] = hits[2][r]


def keep_tile(x, first_class, hits, bound, k, r, scratch):
    """Put what may be among the highest classes of a row behind the hits of the rows before it, `k` at most; the maxima
    of the cells of `x` are in `scratch`.

    Args:
        x: (classes,) logits of row r.
        first_class: of the tile.
        hits: (keys, ids, offsets), see `highest.merge_hits`.
        bound: what the last of the row's highest classes is no less than, as far as is known.
        k: how many classes are asked for.
        r: the row.
        scratch: see `scratch_for`.
    """
    raise NotImplementedError  # only for kernels: see the overload below


@overload(keep_tile)
def _keep_tile_of(x, first_class, hits, bound, k, r, scratch):
    return _keep_doubles if x.dtype.bitwidth == 64 else _keep_floats


def _keep_doubles(x, first_class, hits, bound, k, r, scratch):
    (maxima, step), room, folded, places = scratch
    keys, ids, offsets = hits
    kept = (room[: 2 * k], room[2 * k : 4 * k], np.empty(2))
    kept[2][COUNT], kept[2][THRESHOLD] = 0.0, number_of(key_of(bound) - 1) if bound > -np.inf else bound
    whole = x.size - x.size % step
    for start in range(0, whole, step):
        top = m.load(maxima, start // step * LANES)
        if v.any_greater(top, v.splat(kept[2][THRESHOLD], top)):
            keep_row(x[start : start + step], first_class + start, kept)
    keep_row(x[whole:], first_class + whole, kept)
    count, at = int(kept[2][COUNT]), offsets[r]
    if count > k:
        shrink(kept[0], kept[1], count, k)
        count = k
    for i in range(count):
        keys[at + i], ids[at + i] = kept[0][i], kept[1][i]
    offsets[r + 1] = at + count


def _keep_floats(x, first_class, hits, bound, k, r, scratch):
    (maxima, step), room, folded, places = scratch
    keys, ids, offsets = hits
    number, at, lane = x.size // step, offsets[r], np.float32(bound)
    order = max(o.order_of(np.float32(-np.inf)) + 1, o.order_of(lane) - (np.float64(lane) > bound))
    least = o.of_order(order)
    reached = _reaching_cells(maxima, number, least)
    offsets[r + 1] = at
    if reached == 0 and number * step == x.size:
        return
    if reached > k + k // 8:
        least = o.of_order(_bound(maxima, number, k, order, folded))
    count = _collect(x, maxima, step, least, k, room, places)
    if bound == -np.inf:
        count = _in_order(room, count, k)
    elif count > k:
        _shrink(room, count, k)
        count = k
    for i in range(count):
        keys[at + i] = key_of(np.float64(o.of_order(o.order_in(room[i]))))
        ids[at + i] = first_class + o.class_in(room[i])
    offsets[r + 1] = at + count


@jit
def rows_highest(logits, labels, span, highest):
    """What may be among the highest classes of rows whose statistics are known already; `highest` as of
    `rows_softmax_with`.
    """
    first_class, classes = span
    hits, bounds, scratch, k = highest[:3], highest[3], highest[4], highest[5]
    whole = classes - classes % scratch[0][1]
    for r in range(labels.size):
        no_hits(hits, r)
        if labels[r] == SKIP:
            continue
        x, bound = logits[r, :classes], v.like_lane(bounds[r], logits[r])
        top = lane_maxima(x, scratch[0])
        if whole < classes or v.any_at_least(top, v.splat(bound, top)):
            keep_tile(x, first_class, hits, bounds[r], k, r, scratch)


def cells_of(highest):
    """Where the maxima of cells go; None where none are asked for."""
    raise NotImplementedError  # only for kernels: see the overload below


@overload(cells_of, inline="always")
def _cells_of(highest):
    if highest is None or isinstance(highest, types.NoneType):
        return lambda highest: None
    return lambda highest: highest[4][0]


def scratch_for(piece, classes, k):
    """Room for `keep_tile`: maxima of the cells and how many classes have them, packed logits, maxima as integers, and
    places of cells.
    """
    kind = np.float64 if piece.dtype == np.float64 else np.float32
    step = _COARSE if classes >= _LONG else _FINE
    maxima = np.empty(max(1, classes // step) * LANES, kind)
    most = 4 * k + (_FLUSH + 2 * LANES) * (step // LANES) + 2 * _COARSE + 2 * o.SORTED
    places = np.empty(_FLUSH + 2 * LANES, np.int64)
    return (maxima, step), np.empty(most, np.int64), np.empty(FOLDED * LANES, np.int32), places
