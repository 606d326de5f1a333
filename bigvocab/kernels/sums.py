"""Exact sums of float64 numbers: integers of 32-bit digits, wide enough for the exponents that were seen.

A float64 is m 2**e with a 53-bit integer m; m, shifted, is added to three digits of its group's integer. Integer sums
do not depend on any order, so neither does what is read from them (the idea is U. Kulisch's long accumulator). A digit
is held in 64 bits, so 2**29 numbers fit before carries must be propagated.
"""

from __future__ import annotations

import numpy as np

from bigvocab.kernels.jit import inline, jit

NAN, PLUS_INFINITY, MINUS_INFINITY = range(3)


@inline
def _split(bits):
    """(mantissa, position of its lowest bit counted from 2**-1074) of the bits of a finite number."""
    exponent = np.int64((bits >> np.uint64(52)) & np.uint64(0x7FF))
    mantissa = bits & np.uint64(0xFFFFFFFFFFFFF)
    if exponent > 0:
        return mantissa | np.uint64(0x10000000000000), exponent - 1
    return mantissa, exponent


@jit
def digit_range(bits):
    """The lowest and the highest digit that the numbers with these bits touch; (0, -1) if there is nothing to add."""
    low, high = np.int64(1 << 60), np.int64(-1)
    for i in range(bits.size):
        if bits[i] << np.uint64(1) == 0 or (bits[i] >> np.uint64(52)) & np.uint64(0x7FF) == 0x7FF:
            continue
        digit = _split(bits[i])[1] >> 5
        low, high = min(low, digit), max(high, digit + 2)
    return (low, high) if high >= 0 else (np.int64(0), np.int64(-1))


@jit
def add_numbers(bits, groups, low, digits, specials):
    """Add numbers, as uint64 `bits`, to their groups: digits (G, L) from digit `low` on, specials (G, 3) counts."""
    word = np.uint64(0xFFFFFFFF)
    for i in range(bits.size):
        b = bits[i]
        g = np.int64(groups[i]) if groups.size > 1 else np.int64(groups[0])
        negative = b >> np.uint64(63) != 0
        if (b >> np.uint64(52)) & np.uint64(0x7FF) == 0x7FF:
            kind = NAN if b & np.uint64(0xFFFFFFFFFFFFF) else (MINUS_INFINITY if negative else PLUS_INFINITY)
            specials[g, kind] += 1
            continue
        mantissa, position = _split(b)
        if mantissa == 0:
            continue
        shift = np.uint64(position & 31)
        lower, upper = (mantissa & word) << shift, (mantissa >> np.uint64(32)) << shift
        d0 = np.int64(lower & word)
        d1 = np.int64((lower >> np.uint64(32)) + (upper & word))
        d2 = np.int64(upper >> np.uint64(32))
        k = (position >> 5) - low
        if negative:
            d0, d1, d2 = -d0, -d1, -d2
        digits[g, k] += d0
        digits[g, k + 1] += d1
        digits[g, k + 2] += d2


@jit
def carry(digits):
    """Bring every digit but a line's last into [0, 2**32): the one form in which a sum can be written."""
    for g in range(digits.shape[0]):
        over = np.int64(0)
        for k in range(digits.shape[1] - 1):
            value = digits[g, k] + over
            over = value >> 32
            digits[g, k] = value & 0xFFFFFFFF
        digits[g, digits.shape[1] - 1] += over
