"""Alias tables: a class is drawn in constant time, however uneven the weights (Vose 1991, doi:10.1109/32.92917).

A table is (V, 2) uint32, threshold and alias of each bucket. Every rounding is TensorFlow's: w * V in float32, the rest
in float64, the probability stored as float32. A fraction u = k / 2^23 is below p just where k < ceil(p 2^23), so
integers are compared.
"""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from bigvocab.kernels.jit import inline, jit


@intrinsic
def _highest_bit(typingctx, word):
    """Number of the highest bit that is set; there is one."""

    def codegen(context, builder, signature, args):
        zeros = builder.ctlz(args[0], ir.Constant(ir.IntType(1), 1))
        return builder.sub(ir.Constant(zeros.type, 63), zeros)

    return types.int64(types.uint64), codegen


@jit
def build_alias(weights, masses, marks, table):
    """Fill the table of float32 weights.

    `masses` is the same memory as `table`, as float64 (V,): what a bucket has to give lies there until it is filled.
    `marks` are ceil(V / 64) uint64 to work with, one bit a bucket.
    """
    scale = np.float32(weights.size)
    total = 0.0
    for weight in weights:
        total += np.float64(weight)
    whole = weights.size // 64
    for word in range(whole):
        for i in range(64 * word, 64 * word + 64):
            masses[i] = np.float64(weights[i] * scale) / total
        bits = np.uint64(0)
        for bit in range(64):
            bits |= np.uint64(masses[64 * word + bit] < 1.0) << np.uint64(bit)
        marks[word] = bits
    marks[whole:] = 0
    for i in range(64 * whole, weights.size):
        masses[i] = np.float64(weights[i] * scale) / total
        marks[whole] |= np.uint64(masses[i] < 1.0) << np.uint64(i - 64 * whole)
    _pair_buckets(masses, marks, table)


@inline
def _fill_bucket(table, bucket, mass, alias):
    table[bucket, 0] = np.uint32(math.ceil(np.float64(np.float32(mass)) * 2.0**23))
    table[bucket, 1] = alias


@inline
def _before(marks, flipped, cursor):
    """Take the last bucket before the cursor (number of its word, bits of it that are left): (bucket or -1, cursor)."""
    word, bits = cursor
    while bits == 0:
        word -= 1
        if word < 0:
            return -1, (word, bits)
        bits = marks[word] ^ flipped
    bit = _highest_bit(bits)
    return 64 * word + bit, (word, bits & ~(np.uint64(1) << np.uint64(bit)))


@inline
def _pair_buckets(masses, marks, table):
    """Fill each bucket below 1 from the last one above, which may fall below 1 and is then the next to be filled."""
    nothing, everything = np.uint64(0), ~np.uint64(0)
    last = marks.size - 1
    in_last = everything >> np.uint64(64 * marks.size - masses.size)
    low, lows = _before(marks, nothing, (last, marks[last]))
    high, highs = _before(marks, everything, (last, (marks[last] ^ everything) & in_last))
    if low >= 0 and high >= 0:
        low_mass, high_mass = masses[low], masses[high]
        while True:
            _fill_bucket(table, low, low_mass, high)
            high_mass -= 1.0 - low_mass
            if high_mass < 1.0:
                low, low_mass = high, high_mass
                high, highs = _before(marks, everything, highs)
                if high < 0:
                    break
                high_mass = masses[high]
            else:
                low, lows = _before(marks, nothing, lows)
                if low < 0:
                    break
                low_mass = masses[low]
    while low >= 0:  # what is left is 1 except for rounding, and keeps all to itself
        _fill_bucket(table, low, 1.0, low)
        low, lows = _before(marks, nothing, lows)
    while high >= 0:
        _fill_bucket(table, high, 1.0, high)
        high, highs = _before(marks, everything, highs)


@jit
def alias_probabilities(table):
    """What an alias table really draws, rounding and all."""
    size = table.shape[0]
    probabilities = np.zeros(size)
    for i in range(size):
        own = np.float64(table[i, 0]) * 2.0**-23
        probabilities[i] += own / size
        probabilities[table[i, 1]] += (1.0 - own) / size
    return probabilities
