"""Many numbers made few without changing their sum: the first step of an exact sum of millions of element-wise losses.

For numbers below 2**M in size, adding and subtracting 1.5 * 2**(M + 10) leaves each rounded to a multiple of 2**(M -
42); 256 of those add up without rounding. What was rounded off is exact too, and is treated the same way twice more
(S. M. Rump, T. Ogita and S. Oishi, "Accurate floating-point summation", 2008, doi:10.1137/050645671). If anything is
left then, which needs numbers that are 2**-70 of the largest, the chunk is returned as it is.
"""

from __future__ import annotations

import math

import numpy as np

from bigvocab.kernels import doubles as d
from bigvocab.kernels import lanes as v
from bigvocab.kernels.jit import inline, jit

CHUNK = 256 * d.SIZE
WIDTH = 3 * d.SIZE  # numbers that stand for a chunk


@inline
def _lanes_at(x, i, stop):
    if i + d.SIZE <= stop:
        return d.load(x, i)
    return d.load_part(x, i, stop, 0.0)


@inline
def _split(values, total, constant):
    """(total with the upper parts added, the lower parts)."""
    upper = v.sub(v.add(values, constant), constant)
    return v.add(total, upper), v.sub(values, upper)


@inline
def _size(x):
    """The largest size of a number in x; NaN if one is not finite."""
    zero = v.splat(0.0, d.load_part(x, 0, 0, 0.0))
    top, check = zero, zero
    for i in range(0, x.size, d.SIZE):
        values = _lanes_at(x, i, x.size)
        top = v.larger(v.absolute(values), top)
        check = v.fma(values, zero, check)
    return v.largest(top) if v.total(check) == 0 else np.nan


@jit
def condense(values, out):
    """Put numbers with the sum of each chunk of `values` (n,) into `out` (chunks, WIDTH); True where that failed."""
    failed = np.zeros(out.shape[0], np.bool_)
    for c in range(out.shape[0]):
        x = values[c * CHUNK : min((c + 1) * CHUNK, values.size)]
        top = _size(x)
        if top == 0:
            out[c] = 0.0
            continue
        if not 1e-200 < top < 1e250:
            failed[c] = True
            continue
        zero = v.splat(0.0, d.load_part(x, 0, 0, 0.0))
        power = 1.5 * 2.0 ** (math.frexp(top)[1] + 10)
        first, second, third = v.splat(power, zero), v.splat(power * 2.0**-43, zero), v.splat(power * 2.0**-86, zero)
        a, b, e, left = zero, zero, zero, zero
        for i in range(0, x.size, d.SIZE):
            rest = _lanes_at(x, i, x.size)
            a, rest = _split(rest, a, first)
            b, rest = _split(rest, b, second)
            e, rest = _split(rest, e, third)
            left = v.larger(v.absolute(rest), left)
        failed[c] = v.largest(left) > 0
        d.store(out[c], 0, a)
        d.store(out[c], d.SIZE, b)
        d.store(out[c], 2 * d.SIZE, e)
    return failed
