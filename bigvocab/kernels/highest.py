"""The highest classes of each row: a threshold, and a buffer of twice as many as are asked for.

What a tile has above the threshold (`highest_cells` finds it) is put into the buffer of its row. When that is nearly
full, the lower half is thrown out, which raises the threshold: no class below it is looked at again. Of equals, the
lower ids stay, whatever the order in which tiles come, so all groups of classes of a row share one buffer, and a group
that comes late has nearly nothing to put in. Logits are kept as integers in the same order, because counting integers
vectorises: a bisection of their range finds which half is which.

A row's buffer is (keys, ids, marks): keys and ids (2 K,) int64, marks (2,) float64 = how many there are, the threshold.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from bigvocab.kernels import lanes as v
from bigvocab.kernels import memory as m
from bigvocab.kernels.jit import inline, jit
from bigvocab.kernels.row_statistics import SKIP, lanes_at

COUNT, THRESHOLD = range(2)
_MAGNITUDE = 0x7FFF_FFFF_FFFF_FFFF
_NO_LIMIT = _MAGNITUDE


@intrinsic
def _bits_of(typingctx, number):
    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(64))

    return types.int64(types.float64), codegen


@intrinsic
def _number_of(typingctx, bits):
    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.int64), codegen


@inline
def key_of(number):
    """An integer for each number that is no NaN, in the same order; -0 is 0."""
    bits = _bits_of(number + 0.0)
    return bits if bits >= 0 else bits ^ _MAGNITUDE


@inline
def number_of(key):
    """The number of such an integer."""
    return _number_of(key if key >= 0 else key ^ _MAGNITUDE)


@inline
def _count_from(keys, count, least):
    """How many of the first `count` keys are at least this."""
    found = 0
    for i in range(count):
        found += keys[i] >= least
    return found


@inline
def _last_of(keys, ids, count, key, wanted):
    """The id up to which as many of the first `count` entries have this key as are wanted, fewer than have it."""
    low, high = 0, 0
    for i in range(count):
        high = max(high, ids[i])
    while low < high:
        middle = low + (high - low) // 2
        here = 0
        for i in range(count):
            here += (keys[i] == key) & (ids[i] <= middle)
        if here >= wanted:
            high = middle
        else:
            low = middle + 1
    return low


@inline
def shrink(keys, ids, count, most):
    """Keep the `most` greatest of `count` entries, no fewer than so many, in their order, of equals the lower ids;
    returns what all others are no greater than.
    """
    low, high = keys[0], keys[0]
    for i in range(count):
        low, high = min(low, keys[i]), max(high, keys[i])
    found = count
    while low < high and found != most:
        middle = (low | high) - ((low ^ high) >> 1)  # half way, rounded up, without overflow
        here = _count_from(keys, count, middle)
        if here >= most:
            low, found = middle, here
        else:
            high = middle - 1
    last = _NO_LIMIT if found == most else _last_of(keys, ids, count, low, most - _count_from(keys, count, low + 1))
    to = 0
    for i in range(count):
        key, name = keys[i], ids[i]
        if key > low or (key == low and name <= last):
            keys[to], ids[to] = key, name
            to += 1
    return low


@inline
def put(key, class_id, kept):
    """Put a class that is above the threshold into the buffer."""
    keys, ids, marks = kept
    count = int(marks[COUNT])
    keys[count], ids[count] = key, class_id
    count += 1
    if count == keys.size:
        marks[THRESHOLD] = number_of(shrink(keys, ids, count, keys.size // 2))
        count = keys.size // 2
    marks[COUNT] = count


@inline
def keep_row(x, first_class, kept):
    """Put the classes of `x` that are above the threshold into the buffer."""
    keys, ids, marks = kept
    size, zero = m.width(x), v.zeros_for(x)
    above = v.splat(v.like_lane(marks[THRESHOLD], x), zero)
    for i in range(0, x.size, size):
        mask = v.mask_greater(lanes_at(x, i, x.size, size), above)
        while mask:
            at = i + v.lowest_bit(mask)
            mask &= mask - 1
            logit = m.load_scalar(x, at)
            if logit > marks[THRESHOLD]:
                put(key_of(logit), first_class + at, kept)
                above = v.splat(v.like_lane(marks[THRESHOLD], x), zero)


@jit
def merge_hits(rows, hit_keys, hit_ids, offsets, keys, ids, marks):
    """Put hits of tiles into the buffers of their rows: those of rows[i] are hit_keys and hit_ids from offsets[i] to
    offsets[i + 1]; a row has no class twice. A threshold is what the last of the highest classes is no less than.
    """
    for i in range(rows.size):
        start, stop = offsets[i], offsets[i + 1]
        if start == stop:
            continue
        row, names, mark = keys[rows[i]], ids[rows[i]], marks[rows[i]]
        most, count = row.size // 2, int(mark[COUNT])
        least = key_of(mark[THRESHOLD])
        for h in range(start, stop):
            if hit_keys[h] >= least:
                row[count], names[count] = hit_keys[h], hit_ids[h]
                count += 1
                if count == row.size:
                    least, count = shrink(row, names, count, most), most
        if count >= most and (least == key_of(-np.inf) or count >= most + most // 4):
            least, count = shrink(row, names, count, most), most
        mark[COUNT], mark[THRESHOLD] = count, number_of(least)


@jit
def sort_highest(labels, keys, ids, marks, logits):
    """Put what the buffers hold in order, highest first, ties by id: ids (n, 2 K) and logits (n, K), -1 and -inf after
    the last one; labels (n,) are SKIP for rows that were not read.
    """
    most = logits.shape[1]
    for r in range(labels.size):
        row, names = keys[r], ids[r]
        count = 0 if labels[r] == SKIP else int(marks[r, COUNT])
        if count > most:
            shrink(row, names, count, most)
            count = most
        for i in range(1, count):  # by insertion: what comes from one tile is in order
            key, name, at = row[i], names[i], i
            while at > 0 and (row[at - 1] < key or (row[at - 1] == key and names[at - 1] > name)):
                row[at], names[at] = row[at - 1], names[at - 1]
                at -= 1
            row[at], names[at] = key, name
        for i in range(most):
            if i < count:
                logits[r, i] = number_of(row[i])
            else:
                logits[r, i], names[i] = -np.inf, -1
