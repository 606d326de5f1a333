"""The terms of two distributions' divergence, class by class, for vectors of numbers.

Let r = ln q - ln p, u = |r|, M = max(p, q) and g = 1 - exp(-u). Every value is M times a function of u that cannot be
negative and is 0 at 0:

    p phi(r) = M A for r <= 0, M B for r > 0    A = u - g, B = g (1 + u) - u    (phi(r) = exp(r) - 1 - r)
    q phi(-r) = M B for r <= 0, M A for r > 0
    |q - p| = M g
    js = M J    J = ((1 + e) (ln 2 - log1p(e)) - u e) / 2, e = exp(-u)

So M never underflows before the term does, and the two sides of a swap are the same operations. Up to u = 1, where A, B
and J are small differences, A / u**2 and J / u**2 are polynomials, and only M takes an exponential; most vectors of two
models that are alike hold no other class. Beyond, exp(-u) is a second one.

A class that is masked (-inf) on one side has e = 0 there: B = 1, J = ln 2 / 2. That its other divergence is infinite is
decided by the mask, not by what underflows.
"""

from __future__ import annotations

import math

import numpy as np
from numba.extending import overload

from bigvocab.kernels import doubles as d
from bigvocab.kernels import lanes as v
from bigvocab.kernels.exp import LOG2E, exp2_normal
from bigvocab.kernels.jit import inline

# A / u**2 and J / u**2 on [0, 1], and (1 + e) (ln 2 - log1p(e)) / 2 on [0, 1/e]; lowest power first. Relative errors
# 6e-8, 5e-9, 6e-9 in float32, below 1e-16 in float64.
_ALPHA_F = (
    0.5, -0.16666603088378906, 0.04165925458073616, -0.00830117054283619, 0.0013248180039227009,
    -0.00013742418377660215,
)  # fmt: skip
_ALPHA_D = (
    0.5, -0.1666666666666664, 0.04166666666665401, -0.008333333333096557, 0.0013888888865978557,
    -0.0001984126853148021, 2.4801539739718985e-05, -2.7556179049708925e-06, 2.753900275371731e-07,
    -2.4856214837612005e-08, 1.952715306431462e-09, -1.0509453754979482e-10,
)  # fmt: skip
_NEAR_F = (
    0.125, -0.0624999962747097, 0.015624936670064926, -0.0026038140058517456, 0.000433157489169389,
    -8.587652700953186e-05, 1.0649784599081613e-05,
)  # fmt: skip
_NEAR_D = (
    0.125, -0.062499999999999716, 0.015624999999981445, -0.002604166666189589, 0.0004340277713642839,
    -8.680550380019875e-05, 1.0850423243451357e-05, 2.593169509713442e-07, -2.8245065678152064e-08,
    -9.048468062575711e-08, 2.6383683241730607e-09, 1.0794592440217474e-08, -2.8984354879954772e-09,
    2.33473808222883e-10,
)  # fmt: skip
_FAR_F = (
    0.3465735912322998, -0.15342655777931213, -0.24999341368675232, 0.08322294056415558, -0.04076617956161499,
    0.02107379585504532, -0.007329673506319523,
)  # fmt: skip
_FAR_D = (
    0.34657359027997264, -0.15342640972002983, -0.24999999999955758, 0.08333333330231887, -0.04166666552793144,
    0.02499997484334168, -0.016666304583383047, 0.01190119751666965, -0.008903852826771265, 0.0068216933701121495,
    -0.005116328143832573, 0.0034148295146344417, -0.0017052731828865852, 0.0004501215450520947,
)  # fmt: skip

_BEYOND = 1e30  # |r| of a class that one side has masked: e is 0, and products with it are finite


def polynomial(x, short, long):
    """The polynomial `short` of float lanes, `long` of double lanes; lowest power first."""
    raise NotImplementedError  # only for kernels: see the overload below


@overload(polynomial, inline="always")
def _polynomial(x, short, long):
    return _of_floats if x.kind == "float" else _of_doubles


def _of_floats(x, short, long):
    return _horner_floats(x, short)


def _of_doubles(x, short, long):
    return _horner_doubles(x, long)


@inline
def _horner_floats(x, coefficients):
    p = v.splat(np.float32(coefficients[-1]), x)
    for i in range(len(coefficients) - 2, -1, -1):
        p = v.fma(p, x, v.splat(np.float32(coefficients[i]), x))
    return p


@inline
def _horner_doubles(x, coefficients):
    p = v.splat(coefficients[-1], x)
    for i in range(len(coefficients) - 2, -1, -1):
        p = v.fma(p, x, v.splat(coefficients[i], x))
    return p


def number(value, like):
    """`value` in every lane, rounded to their type."""
    raise NotImplementedError  # only for kernels: see the overload below


@overload(number, inline="always")
def _number(value, like):
    if like.kind == "float":
        return lambda value, like: v.splat(np.float32(value), like)
    return lambda value, like: v.splat(np.float64(value), like)


@inline
def nothing(like):
    """Sums of no class: (kl, kl_reverse, js, tv, distance), each a vector like `like`."""
    zero = number(0.0, like)
    return zero, zero, zero, zero, zero


@inline
def _near(u):
    """(A, B, u**2) for u of at most 1; B as a product, so that no rounding takes it below 0."""
    square, one = v.mul(u, u), number(1.0, u)
    alpha = polynomial(u, _ALPHA_F, _ALPHA_D)
    return v.mul(square, alpha), v.mul(square, v.fma(d.negative(alpha), v.add(one, u), one)), square


@inline
def add_near(held, most, r, u, full):
    """Add the terms of classes with u = |r| of at most 1, none of them masked; `most` is M, `full` a constant."""
    kl, reverse, js, tv, distance = held
    a, b, square = _near(u)
    kl = v.fma(most, d.where_positive(r, b, a), kl)
    reverse = v.fma(most, d.where_positive(r, a, b), reverse)
    if full:
        js = v.fma(most, v.mul(square, polynomial(u, _NEAR_F, _NEAR_D)), js)
        tv = v.fma(most, v.sub(u, a), tv)
        distance = v.add(distance, u)
    return kl, reverse, js, tv, distance


@inline
def _alpha(u, square):
    """A / u**2 of float lanes, pair by pair of powers (G. Estrin): numbers wait less for one another."""
    c = _ALPHA_F
    low = v.fma(number(c[1], u), u, number(c[0], u))
    middle = v.fma(number(c[3], u), u, number(c[2], u))
    high = v.fma(number(c[5], u), u, number(c[4], u))
    return v.fma(v.fma(high, square, middle), square, low)


@inline
def add_near_signed(held, most, r, u):
    """As `add_near`, to (kl, reverse, gain), where the gain is q - p."""
    kl, reverse, gain = held
    square = v.mul(u, u)
    alpha = _alpha(u, square)
    a = v.mul(square, alpha)
    g = v.fma(d.negative(v.mul(u, alpha)), r, r)  # with the sign of r
    b = v.fma(g, r, d.negative(a))
    kl = v.fma(most, d.where_positive(r, b, a), kl)
    reverse = v.fma(most, d.where_positive(r, a, b), reverse)
    return kl, reverse, v.fma(most, g, gain)


@inline
def where_both(x, y, yes, no):
    """`yes` in the lanes where x and y are finite, `no` in the others."""
    return v.where_finite(x, v.where_finite(y, yes, no), no)


@inline
def with_masks(x, y, r):
    """The log ratio r, with what stands for it where a class is masked: far on the side that has it, 0 where none."""
    far = number(_BEYOND, r)
    masked_x = v.where_finite(y, far, number(0.0, r))
    return v.where_finite(x, v.where_finite(y, r, d.negative(far)), masked_x)


@inline
def _any_terms(u):
    """(A, B, g, exp(-u), u**2) for any u."""
    one, beyond = number(1.0, u), v.sub(u, number(1.0, u))
    a, b, square = _near(u)
    fall = d.negative(u)
    e = exp2_normal(v.at_least(v.mul(fall, number(LOG2E, u)), _least_exponent(u)))
    e = d.nothing_below(fall, _least_logarithm(u), e)
    g = v.sub(one, e)
    near_g = v.sub(u, a)
    a = d.where_positive(beyond, v.sub(u, g), a)
    b = d.where_positive(beyond, v.fma(fall, e, g), b)
    return a, b, d.where_positive(beyond, g, near_g), e, square


@inline
def _masked(x, y):
    """inf in the lanes where only y is masked, and 0 elsewhere."""
    zero = number(0.0, x)
    return v.where_finite(x, v.where_finite(y, zero, number(np.inf, x)), zero)


@inline
def add_any(held, most, x, y, r, full):
    """Add the terms of any classes; r as `with_masks` returns it, x and y say which are masked."""
    kl, reverse, js, tv, distance = held
    zero, u = number(0.0, r), v.absolute(r)
    a, b, g, e, square = _any_terms(u)
    a = where_both(x, y, a, zero)
    kl = v.add(v.fma(most, d.where_positive(r, b, a), kl), _masked(x, y))
    reverse = v.add(v.fma(most, d.where_positive(r, a, b), reverse), _masked(y, x))
    if full:
        far = v.fma(v.mul(d.negative(u), number(0.5, r)), e, polynomial(e, _FAR_F, _FAR_D))
        near = v.mul(square, polynomial(u, _NEAR_F, _NEAR_D))
        js = v.fma(most, d.where_positive(v.sub(u, number(1.0, r)), far, near), js)
        tv = v.fma(most, g, tv)
        distance = v.add(distance, where_both(x, y, u, zero))
    return kl, reverse, js, tv, distance


@inline
def add_any_signed(held, most, x, y, r):
    """As `add_any`, to (kl, reverse, gain), where the gain is q - p."""
    kl, reverse, gain = held
    a, b, g, _, _ = _any_terms(v.absolute(r))
    a = where_both(x, y, a, number(0.0, r))
    kl = v.add(v.fma(most, d.where_positive(r, b, a), kl), _masked(x, y))
    reverse = v.add(v.fma(most, d.where_positive(r, a, b), reverse), _masked(y, x))
    return kl, reverse, v.fma(most, d.where_positive(r, g, d.negative(g)), gain)


@inline
def _least_exponent(like):
    return number(_floor_of(like, -126.0, -1022.0), like)


@inline
def _least_logarithm(like):
    return number(_floor_of(like, -87.0, -708.0), like)


def _floor_of(like, short, long):
    raise NotImplementedError  # only for kernels: see the overload below


@overload(_floor_of, inline="always")
def _floor_of_kind(like, short, long):
    if like.kind == "float":
        return lambda like, short, long: short
    return lambda like, short, long: long


@inline
def limited(r):
    """The log ratio r between the greatest numbers of its type: an infinite one times a probability of 0 would be
    NaN.
    """
    most = number(_floor_of(r, 3.0e38, 1.7e308), r)
    return v.at_most(v.at_least(r, d.negative(most)), most)


@inline
def difference(y, x):
    """(y - x rounded, what the rounding left out), for any finite numbers (D. Knuth's TwoSum)."""
    found = v.sub(y, x)
    back = v.sub(found, y)
    return found, v.sub(v.sub(y, v.sub(found, back)), v.add(x, back))


@inline
def share_terms(u):
    """(A, B) of one number u >= 0; see the top."""
    if u > 1.0:
        e = math.exp(-u)
        return u - (1.0 - e), (1.0 - e) - u * e if u < np.inf else 1.0
    alpha = _ALPHA_D[-1]
    for i in range(len(_ALPHA_D) - 2, -1, -1):
        alpha = alpha * u + _ALPHA_D[i]
    return u * u * alpha, u * u * (1.0 - alpha * (1.0 + u))
