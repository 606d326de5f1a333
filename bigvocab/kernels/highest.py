"""The highest classes of each row: a threshold, and a buffer of twice as many as are asked for.

Classes above the threshold are put into the buffer in order of their ids; when it is full, the lower half is thrown
out, which raises the threshold. So most blocks are told to be of no interest by their maximum alone, and of equals the
lower ids stay. Logits are kept as integers in the same order, because counting integers vectorises: a bisection of
their range finds which half is which.

A row's buffer is (keys, ids, marks): keys and ids (2 K,) int64, marks (2,) float64 = how many there are, the threshold.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from bigvocab.kernels import lanes as v
from bigvocab.kernels import memory as m
from bigvocab.kernels.jit import inline, jit
from bigvocab.kernels.row_statistics import SKIP, lanes_at

COUNT, THRESHOLD = range(2)
_MAGNITUDE = 0x7FFF_FFFF_FFFF_FFFF


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
def _of_key(key):
    return _number_of(key if key >= 0 else key ^ _MAGNITUDE)


def buffer_of(highest, r):
    """The buffer of a row; None where there are none."""
    raise NotImplementedError  # only for kernels: see the overload below


@overload(buffer_of, inline="always")
def _buffer_of(highest, r):
    if highest is None or isinstance(highest, types.NoneType):
        return lambda highest, r: None
    return lambda highest, r: (highest[0][r], highest[1][r], highest[2][r])


@inline
def _count_from(keys, count, least):
    """How many of the first `count` keys are at least this."""
    found = 0
    for i in range(count):
        found += keys[i] >= least
    return found


@inline
def _shrink(keys, ids, count, most):
    """Keep the `most` greatest of `count` entries, more than so many, in their order; returns what all others are no
    greater than.
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
    equals = count if found == most else most - _count_from(keys, count, low + 1)
    to = 0
    for i in range(count):
        key = keys[i]
        if key > low or (key == low and equals > 0):
            equals -= key == low
            keys[to], ids[to] = key, ids[i]
            to += 1
    return low


@inline
def put(key, class_id, kept):
    """Put a class that is above the threshold into the buffer, after all others."""
    keys, ids, marks = kept
    count = int(marks[COUNT])
    keys[count], ids[count] = key, class_id
    count += 1
    if count == keys.size:
        marks[THRESHOLD] = _of_key(_shrink(keys, ids, count, keys.size // 2))
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
def clear_highest(keys, ids, marks):
    """Buffers of rows, flat, without a class; a masked class, at -inf, is never put in."""
    for r in range(marks.shape[0]):
        marks[r, COUNT], marks[r, THRESHOLD] = 0.0, -np.inf


@jit
def merge_highest(keys, ids, marks, to_keys, to_ids, to_marks):
    """Add the buffers of groups of classes (G, n, ...), in order of class, to those of the rows."""
    for g in range(marks.shape[0]):
        for r in range(marks.shape[1]):
            kept = (to_keys[r], to_ids[r], to_marks[r])
            for i in range(int(marks[g, r, COUNT])):
                if _of_key(keys[g, r, i]) > to_marks[r, THRESHOLD]:
                    put(keys[g, r, i], ids[g, r, i], kept)


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
            _shrink(row, names, count, most)
            count = most
        for i in range(1, count):  # by insertion, which keeps the order of equals
            key, name, at = row[i], names[i], i
            while at > 0 and row[at - 1] < key:
                row[at], names[at] = row[at - 1], names[at - 1]
                at -= 1
            row[at], names[at] = key, name
        for i in range(most):
            if i < count:
                logits[r, i] = _of_key(row[i])
            else:
                logits[r, i], names[i] = -np.inf, -1
