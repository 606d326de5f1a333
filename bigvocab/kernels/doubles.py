"""Sixteen float64 lanes out of arrays of any float type, their stores, the logarithm, and the selections of the
sigmoid family.

Loops over two arrays of different types (logits and soft labels) load both through here, so that their lanes fit.
"""

from __future__ import annotations

import math

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from bigvocab.kernels import lanes as v
from bigvocab.kernels import llvm
from bigvocab.kernels import memory as m
from bigvocab.kernels import powers as w
from bigvocab.kernels.exp import LN2, exp2_polynomial
from bigvocab.kernels.jit import inline
from bigvocab.kernels.lanes import DOUBLES
from bigvocab.kernels.llvm import F32, F64, I32

SIZE = DOUBLES.count
_I64 = ir.IntType(64)


def _to_doubles(builder, dtype, raw, count):
    wide = m.widened(builder, dtype, raw, count)
    return wide if wide.type.element == F64 else builder.fpext(wide, ir.VectorType(F64, count))


@intrinsic
def load(typingctx, array, index):
    """16 elements from `index` on, all within the array, as float64."""

    def codegen(context, builder, signature, args):
        pointer, size = m.pointer_to(context, builder, array, args[0], args[1], SIZE)
        return _to_doubles(builder, array.dtype, builder.load(pointer, align=size), SIZE)

    return DOUBLES(array, types.intp), codegen


def _mask(builder, index, stop):
    left = builder.trunc(builder.sub(stop, index), I32)
    number = ir.Constant(ir.VectorType(I32, SIZE), list(range(SIZE)))
    return builder.icmp_signed("<", number, llvm.splat(builder, left, SIZE))


@intrinsic
def load_part(typingctx, array, index, stop, fill):
    """The elements from `index` to `stop`, fewer than 16, as float64, and `fill` in the lanes after them."""

    def codegen(context, builder, signature, args):
        pointer, size = m.pointer_to(context, builder, array, args[0], args[1], SIZE)
        mask, stored = _mask(builder, args[1], args[2]), pointer.type.pointee
        arguments = [pointer, ir.Constant(I32, size), mask, ir.Constant(stored, None)]
        raw = builder.call(
            llvm.function(builder, f"llvm.masked.load.{llvm.suffix(stored)}.p0", stored, arguments), arguments
        )
        wide = _to_doubles(builder, array.dtype, raw, SIZE)
        return builder.select(mask, wide, llvm.splat(builder, args[3], SIZE))

    return DOUBLES(array, types.intp, types.intp, types.float64), codegen


@intrinsic
def store(typingctx, array, index, lanes):
    """Put 16 lanes into a float64 array from `index` on."""

    def codegen(context, builder, signature, args):
        pointer, size = m.pointer_to(context, builder, array, args[0], args[1], SIZE)
        builder.store(args[2], pointer, align=size)
        return context.get_dummy_value()

    return types.void(array, types.intp, DOUBLES), codegen


@intrinsic
def store_part(typingctx, array, index, stop, lanes):
    """Put the first `stop` - `index` lanes into a float64 array."""

    def codegen(context, builder, signature, args):
        pointer, size = m.pointer_to(context, builder, array, args[0], args[1], SIZE)
        mask = _mask(builder, args[1], args[2])
        arguments = [args[3], pointer, ir.Constant(I32, size), mask]
        name = f"llvm.masked.store.{llvm.suffix(args[3].type)}.p0"
        builder.call(llvm.function(builder, name, ir.VoidType(), arguments), arguments)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, DOUBLES), codegen


# ---- selections, for lanes of either kind


def _constant(vector, value):
    return ir.Constant(vector.type, [value] * vector.type.count)


@intrinsic
def rounded_down(typingctx, x):
    """floor(x)."""
    return x(x), lambda context, builder, signature, args: llvm.call(builder, "llvm.floor", args)


@intrinsic
def negative(typingctx, x):
    """-x."""
    return x(x), lambda context, builder, signature, args: builder.fneg(args[0])


@intrinsic
def nothing_below(typingctx, x, low, y):
    """y, but 0 in the lanes where x < low; a NaN in x lets y through."""

    def codegen(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered("<", args[0], args[1]), _constant(args[2], 0.0), args[2])

    return y(x, x, y), codegen


@intrinsic
def where_positive(typingctx, x, yes, no):
    """`yes` in the lanes where x > 0, `no` in the others."""

    def codegen(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered(">", args[0], _constant(args[0], 0.0)), args[1], args[2])

    return x(x, x, x), codegen


@intrinsic
def times(typingctx, factor, y):
    """The product factor * y, 0 where the factor is, whatever y is: a class that does not count adds nothing."""

    def codegen(context, builder, signature, args):
        zero = _constant(args[0], 0.0)
        counts = builder.fcmp_unordered("!=", args[0], zero)
        return builder.fmul(args[0], builder.select(counts, args[1], zero))

    return y(factor, y), codegen


@intrinsic
def add_times(typingctx, factor, y, total):
    """Add factor * y to total; a factor of 0 adds nothing, whatever y is."""

    def codegen(context, builder, signature, args):
        zero = _constant(args[0], 0.0)
        counts = builder.fcmp_unordered("!=", args[0], zero)
        return llvm.call(builder, "llvm.fma", [args[0], builder.select(counts, args[1], zero), args[2]])

    return total(factor, y, total), codegen


@intrinsic
def without(typingctx, x, lane, fill):
    """The vector x with `fill` in one lane."""

    def codegen(context, builder, signature, args):
        number = ir.Constant(ir.VectorType(I32, x.count), list(range(x.count)))
        here = llvm.splat(builder, builder.trunc(args[1], I32), x.count)
        return builder.select(builder.icmp_signed("==", number, here), llvm.splat(builder, args[2], x.count), args[0])

    return x(x, types.intp, types.float64 if x.kind == "double" else types.float32), codegen


@intrinsic
def quarter_products(typingctx, q):
    """Of lanes that hold product - 1, the four products of a quarter of the lanes each, less 1, as float64."""

    def codegen(context, builder, signature, args):
        vector = args[0]
        if vector.type.element == F32:
            vector = builder.fpext(vector, ir.VectorType(F64, vector.type.count))
        while vector.type.count > 4:
            a, b = llvm.pieces(builder, vector, vector.type.count // 2)
            vector = builder.fadd(llvm.call(builder, "llvm.fma", [a, b, a]), b)
        values = [builder.extract_element(vector, ir.Constant(I32, i)) for i in range(4)]
        return context.make_tuple(builder, signature.return_type, values)

    return types.UniTuple(types.float64, 4)(q), codegen


# ---- exp(-|x|) and log


@inline
def exp_negative(y, high, low, least):
    """exp(scale y) for y <= 0, with scale / ln 2 = high + low: 0 below `least`.

    The exponent is split off before it is rounded: for y near -15 a float32 of y / ln 2 alone would be off by 1e-6.
    """
    n = rounded_down(v.mul(y, high))
    f = v.fma(y, low, v.fma(y, high, negative(n)))
    return nothing_below(y, least, w.times_power(exp2_polynomial(f), n))


# log(1 + f) = f - f^2/2 + s (f^2/2 + R(s^2)), s = f / (2 + f): W. Kahan's and K. C. Ng's polynomial (fdlibm, e_log.c),
# error < 1 ulp for f in [sqrt(1/2) - 1, sqrt(2) - 1].
_LG = (
    6.666666666666735130e-01, 3.999999999940941908e-01, 2.857142874366239149e-01, 2.222219843214978396e-01,
    1.818357216161805012e-01, 1.531383769920937332e-01, 1.479819860511658591e-01,
)  # fmt: skip


@inline
def _log1p_core(f, base):
    """The sum base + log(1 + f)."""
    s = v.div(f, v.add(v.splat(2.0, f), f))
    z = v.mul(s, s)
    r = v.fma(v.splat(_LG[6], f), z, v.splat(_LG[5], f))
    r = v.fma(r, z, v.splat(_LG[4], f))
    r = v.fma(r, z, v.splat(_LG[3], f))
    r = v.fma(r, z, v.splat(_LG[2], f))
    r = v.fma(r, z, v.splat(_LG[1], f))
    r = v.mul(v.fma(r, z, v.splat(_LG[0], f)), z)
    half = v.mul(v.mul(v.splat(0.5, f), f), f)
    return v.add(base, v.sub(f, v.sub(half, v.mul(s, v.add(half, r)))))


@inline
def log1p_unit(e):
    """log(1 + e) for e in [0, 1], to the last bits also where e is tiny; NaN stays NaN."""
    one = v.splat(1.0, e)
    above = v.sub(e, v.splat(math.sqrt(2.0) - 1.0, e))  # log(1 + e) = ln 2 + log(1 + (e - 1) / 2) there
    f = where_positive(above, v.mul(v.splat(0.5, e), v.sub(e, one)), e)
    base = where_positive(above, v.splat(LN2, e), v.splat(0.0, e))
    return _log1p_core(f, base)


@intrinsic
def _exponent_and_mantissa(typingctx, u):
    """(k, m) with u = m 2**k and m in [sqrt(1/2), sqrt(2)) for finite u > 0."""
    pair = types.UniTuple(DOUBLES, 2)

    def codegen(context, builder, signature, args):
        integers = ir.VectorType(_I64, SIZE)

        def constant(value):
            return ir.Constant(integers, [value] * SIZE)

        small = builder.fcmp_ordered("<", args[0], _constant(args[0], 2.0**-1022))
        scaled = builder.fmul(args[0], builder.select(small, _constant(args[0], 2.0**54), _constant(args[0], 1.0)))
        bits = builder.bitcast(scaled, integers)
        # subtract the bits of sqrt(1/2): the exponent of what is left is k
        offset = builder.sub(bits, constant(0x3FE6A09E667F3BCD))
        k = builder.ashr(offset, constant(52))
        mantissa = builder.bitcast(builder.sub(bits, builder.shl(k, constant(52))), args[0].type)
        number = builder.sitofp(builder.trunc(k, ir.VectorType(I32, SIZE)), args[0].type)
        shift = builder.select(small, _constant(args[0], 54.0), _constant(args[0], 0.0))
        return context.make_tuple(builder, signature.return_type, [builder.fsub(number, shift), mantissa])

    return pair(u), codegen


@intrinsic
def _log_edges(typingctx, u, log):
    """`log`, but -inf where u is 0, and u itself where it is not finite."""

    def codegen(context, builder, signature, args):
        zero, infinity = _constant(args[0], 0.0), _constant(args[0], math.inf)
        edge = builder.select(builder.fcmp_ordered("==", args[0], zero), _constant(args[0], -math.inf), args[1])
        finite = builder.fcmp_ordered("<", args[0], infinity)
        return builder.select(finite, edge, args[0])

    return log(u, log), codegen


@inline
def log(u):
    """Natural logarithm of u >= 0; NaN stays NaN."""
    k, mantissa = _exponent_and_mantissa(u)
    return _log_edges(u, _log1p_core(v.sub(mantissa, v.splat(1.0, u)), v.mul(k, v.splat(LN2, u))))
