"""2 ** t and tanh for vectors of numbers.

For sums of many terms in float32 there is a method of its own, below. Else 2**t = 2**floor(t) * p(t - floor(t)), where
p is the minimax polynomial of 2**f on [0, 1] with p(0) = 1. Its relative error is at most 1.4e-7 and 3e-9 in the mean
for float32 (degree 5), and under 1e-15 for float64 (degree 11).
"""

from __future__ import annotations

import math

import numpy as np
from numba.extending import overload

from bigvocab.kernels import lanes as v
from bigvocab.kernels import powers as w
from bigvocab.kernels.jit import inline

LOG2E = 1.0 / math.log(2.0)
LN2 = math.log(2.0)

_F = tuple(
    np.float32(c)
    for c in (
        1.0,
        0.6931512951850891,
        0.24016444385051727,
        0.05579991266131401,
        0.009017030708491802,
        0.0018671300495043397,
    )
)
_D = (
    1.0, 0.6931471805599453, 0.24022650695909673, 0.05550410866498067, 0.009618129105151757, 0.001333355834393728,
    0.00015403521219107733, 1.5252998899728418e-05, 1.3210583477765189e-06, 1.0236023803275179e-07,
    6.634445866251414e-09, 6.123092916826387e-10,
)  # fmt: skip


def exp2_polynomial(f):
    """2**f for f in [0, 1]."""
    raise NotImplementedError  # only for kernels: see the overload below


@overload(exp2_polynomial, inline="always")
def _exp2_polynomial(f):
    if f.kind == "float":
        return _polynomial_float
    return _polynomial_double


@inline
def _horner(f, c5, c4, c3, c2, c1, c0):
    p = v.fma(v.splat(c5, f), f, v.splat(c4, f))
    p = v.fma(p, f, v.splat(c3, f))
    p = v.fma(p, f, v.splat(c2, f))
    p = v.fma(p, f, v.splat(c1, f))
    return v.fma(p, f, v.splat(c0, f))


def _polynomial_float(f):
    return _horner(f, _F[5], _F[4], _F[3], _F[2], _F[1], _F[0])


def _polynomial_double(f):
    p = _horner(f, _D[11], _D[10], _D[9], _D[8], _D[7], _D[6])
    p = v.fma(p, f, v.splat(_D[5], f))
    p = v.fma(p, f, v.splat(_D[4], f))
    p = v.fma(p, f, v.splat(_D[3], f))
    p = v.fma(p, f, v.splat(_D[2], f))
    p = v.fma(p, f, v.splat(_D[1], f))
    return v.fma(p, f, v.splat(_D[0], f))


@inline
def exp2(t):
    """2**t; t = -inf gives a number that vanishes beside 1, NaN and +inf give what is not finite."""
    return w.times_power(exp2_polynomial(w.fraction(t)), t)


# (2**f - 1) / f on [-1/2, 1/2], relative error 1e-16.
_M = (
    0.6931471805599453, 0.24022650695910097, 0.0555041086648216, 0.009618129107606874, 0.0013333558146416472,
    0.00015403530441760255, 1.5252733830588655e-05, 1.321544257331132e-06, 1.0178062012336164e-07,
    7.072588755505414e-09, 4.4550411082972e-10,
)  # fmt: skip


@inline
def tanh(u):
    """Tanh of u ln 2 / 2, for doubles of at most 200: (2**u - 1) / (2**u + 1), where u near 0 loses no digit."""
    one = v.splat(1.0, u)
    whole = w.floor(v.add(u, v.splat(0.5, u)))
    f = v.sub(u, whole)
    p = _horner(f, _M[10], _M[9], _M[8], _M[7], _M[6], _M[5])
    p = v.fma(p, f, v.splat(_M[4], f))
    p = v.fma(p, f, v.splat(_M[3], f))
    p = v.fma(p, f, v.splat(_M[2], f))
    p = v.fma(p, f, v.splat(_M[1], f))
    p = v.fma(p, f, v.splat(_M[0], f))
    power = w.times_power(one, whole)
    less = v.fma(power, v.mul(p, f), v.sub(power, one))  # 2**u - 1
    return v.div(less, v.add(less, v.splat(2.0, u)))


@inline
def exp2_normal(t):
    """2**t for t of at least -126 (-1022): one instruction less."""
    return w.times_power(exp2_polynomial(v.sub(t, w.floor(t))), t)


# In float32, sums take 2**t = p e with e = 2**n, where n is t rounded to eighths, and p = 2**(t - n): t - n in [-1/16,
# 1/16] needs a polynomial of degree 3 only, and 2**n is one of eight numbers moved by a whole exponent. n is found by
# adding a number so large that float32 has three bits after the point there; t - n is rounded once, however large the
# logit. The polynomial is off by 6e-8 at most and by nothing in the mean.

_SHIFT = np.float32(1.5 * 2.0**20)
_E = tuple(np.float32(c) for c in (1.0, 0.693149209022522, 0.24024873971939087, 0.05497574433684349))


def power_constants(like, scale, reference):
    """What `power_terms` needs, for a loop to keep; `reference` is a multiple of 1/8 and less than 2**19."""
    raise NotImplementedError  # only for kernels: see the overload below


def power_terms(x, constants):
    """(p, e) with p e = 2**t, t = scale x - reference of at least -125 and at most 100; relative error 1.5e-7."""
    raise NotImplementedError  # only for kernels: see the overload below


@overload(power_constants, inline="always")
def _power_constants(like, scale, reference):
    return _constants_float if like.kind == "float" else _constants_double


@overload(power_terms, inline="always")
def _power_terms(x, constants):
    return _terms_float if x.kind == "float" else _terms_double


def _constants_float(like, scale, reference):
    polynomial = (v.constant(_E[3], like), v.constant(_E[2], like), v.constant(_E[1], like), v.constant(_E[0], like))
    return v.splat(scale, like), v.splat(_SHIFT - reference, like), polynomial, w.eighths(like)


def _terms_float(x, constants):
    scale, shift, polynomial, eighths = constants
    u = v.fma(x, scale, shift)
    f = v.fma(x, scale, v.sub(shift, u))
    p = v.fma(polynomial[0], f, polynomial[1])
    p = v.fma(p, f, polynomial[2])
    p = v.fma(p, f, polynomial[3])
    return p, w.power_of_eighths(u, eighths)


def _constants_double(like, scale, reference):
    return v.splat(scale, like), v.splat(-reference, like)


def _terms_double(x, constants):
    return exp2_normal(v.fma(x, constants[0], constants[1])), v.splat(1.0, x)
