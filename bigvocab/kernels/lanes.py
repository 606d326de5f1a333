"""Vectors of numbers for kernels: Numba types `<32 x float>` and `<16 x double>` with the few operations the losses
need.

Written out, a loop has the order of its sums in the source: no fastmath flag may reorder it, and no compiler has to
find out by itself that it can be vectorised. LLVM splits a vector into whatever registers the processor has, so AVX2
and AVX-512 machines, whose instructions differ, return the same bits.
"""

from __future__ import annotations

import math

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

from bigvocab.kernels import llvm
from bigvocab.kernels.llvm import F32, F64, I32


class Lanes(types.Type):
    """A vector of `count` numbers of one kind: "float", "double", "int", "long" or "short"."""

    def __init__(self, kind: str, count: int) -> None:
        self.kind, self.count = kind, count
        super().__init__(name=f"Lanes({kind} x {count})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, ir.VectorType(llvm.ELEMENTS[fe_type.kind], fe_type.count))


FLOATS, DOUBLES, SHORTS = Lanes("float", 32), Lanes("double", 16), Lanes("short", 32)


def lanes_of(dtype: types.Type) -> Lanes:
    """The vector that elements of an array of `dtype` are loaded into."""
    return DOUBLES if dtype == types.float64 else FLOATS


# ---- arithmetic


@intrinsic
def splat(typingctx, scalar, like):
    """A vector like `like` with `scalar` in every lane."""

    def codegen(context, builder, signature, args):
        return llvm.splat(builder, args[0], like.count)

    return like(llvm.scalar_type(like), like), codegen


@intrinsic
def zeros_for(typingctx, array):
    """Zeros in the vector that elements of `array` are loaded into."""
    lanes = lanes_of(array.dtype)
    return lanes(array), lambda context, builder, signature, args: llvm.constant(lanes, 0.0)


@intrinsic
def sums_for(typingctx, array):
    """Zeros to sum blocks of vectors of `array` in: as many float64."""
    lanes = Lanes("double", lanes_of(array.dtype).count)
    return lanes(array), lambda context, builder, signature, args: llvm.constant(lanes, 0.0)


@intrinsic
def floor_value(typingctx, array):
    """-inf in the type of one lane of `array`."""
    lanes = lanes_of(array.dtype)
    return llvm.scalar_type(lanes)(array), lambda context, builder, signature, args: ir.Constant(
        llvm.ELEMENTS[lanes.kind], -math.inf
    )


@intrinsic
def like_lane(typingctx, value, array):
    """`value` rounded to the type of one lane of `array`."""
    scalar = llvm.scalar_type(lanes_of(array.dtype))

    def codegen(context, builder, signature, args):
        return builder.fptrunc(args[0], F32) if scalar == types.float32 else args[0]

    return scalar(types.float64, array), codegen


@intrinsic
def widen(typingctx, lanes):
    """The same lanes as float64."""

    def codegen(context, builder, signature, args):
        wide = ir.VectorType(F64, lanes.count)
        return args[0] if args[0].type == wide else builder.fpext(args[0], wide)

    return Lanes("double", lanes.count)(lanes), codegen


@intrinsic
def narrow(typingctx, lanes):
    """Float64 lanes rounded to float."""

    def codegen(context, builder, signature, args):
        return builder.fptrunc(args[0], ir.VectorType(F32, lanes.count))

    return Lanes("float", lanes.count)(lanes), codegen


@intrinsic
def fold(typingctx, lanes):
    """Float lanes as half as many float64, the upper half added to the lower one in float; float64 as they are."""

    def codegen(context, builder, signature, args):
        if lanes.kind == "double":
            return args[0]
        lower, upper = llvm.pieces(builder, args[0], lanes.count // 2)
        return builder.fpext(builder.fadd(lower, upper), llvm.vector_type(DOUBLES))

    return DOUBLES(lanes), codegen


def _binary(operation):
    @intrinsic
    def apply(typingctx, a, b):
        return a(a, a), lambda context, builder, signature, args: getattr(builder, operation)(*args)

    return apply


add, sub, mul, div = _binary("fadd"), _binary("fsub"), _binary("fmul"), _binary("fdiv")


@intrinsic
def fma(typingctx, a, b, c):
    """a * b + c, rounded once."""
    return a(a, a, a), lambda context, builder, signature, args: llvm.call(builder, "llvm.fma", args)


@intrinsic
def absolute(typingctx, a):
    """|a|."""
    return a(a), lambda context, builder, signature, args: llvm.call(builder, "llvm.fabs", args)


@intrinsic
def larger(typingctx, x, top):
    """max(x, top) that keeps `top` where x is NaN: one instruction, because it is the processor's own rule."""

    def codegen(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return x(x, x), codegen


@intrinsic
def at_least(typingctx, x, low):
    """max(x, low) that lets a NaN in x through."""

    def codegen(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered("<", *args), args[1], args[0])

    return x(x, x), codegen


@intrinsic
def at_most(typingctx, x, high):
    """min(x, high) that lets a NaN in x through."""

    def codegen(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered(">", *args), args[1], args[0])

    return x(x, x), codegen


@intrinsic
def where_finite(typingctx, x, yes, no):
    """`yes` in the lanes where x is finite, `no` in the others."""

    def codegen(context, builder, signature, args):
        size = llvm.call(builder, "llvm.fabs", [args[0]])
        return builder.select(builder.fcmp_ordered("<", size, llvm.constant(x, math.inf)), args[1], args[2])

    return x(x, x, x), codegen


@intrinsic
def where_nonzero(typingctx, x, yes):
    """`yes` in the lanes where x is not 0, and 0 elsewhere."""

    def codegen(context, builder, signature, args):
        nonzero = builder.fcmp_unordered("!=", args[0], ir.Constant(args[0].type, None))
        return builder.select(nonzero, args[1], ir.Constant(args[1].type, None))

    return yes(x, yes), codegen


@intrinsic
def keep_first(typingctx, x, count):
    """The first `count` lanes of x, and zeros."""

    def codegen(context, builder, signature, args):
        number = ir.Constant(ir.VectorType(I32, x.count), list(range(x.count)))
        mask = builder.icmp_signed("<", number, llvm.splat(builder, builder.trunc(args[1], I32), x.count))
        return builder.select(mask, args[0], llvm.constant(x, 0.0))

    return x(x, types.intp), codegen


def _counting(comparison, *, signed=True):
    @intrinsic
    def count(typingctx, x, y):
        def codegen(context, builder, signature, args):
            integers = builder.icmp_signed if signed else builder.icmp_unsigned
            compare = builder.fcmp_ordered if x.kind in ("float", "double") else integers
            bits = builder.bitcast(compare(comparison, *args), ir.IntType(x.count))
            return builder.zext(builder.ctpop(bits), ir.IntType(64))

        return types.int64(x, x), codegen

    return count


count_greater, count_equal, count_at_least = _counting(">"), _counting("=="), _counting(">=")
count_below = _counting("<", signed=False)  # of numbers that are stored as integers


def _plus(comparison):
    @intrinsic
    def plus(typingctx, counts, x, y):
        def codegen(context, builder, signature, args):
            held = builder.fcmp_ordered(comparison, args[1], args[2])
            more = builder.fadd(args[0], llvm.constant(counts, 1.0))
            return builder.select(held, more, args[0])

        return counts(counts, x, y), codegen

    return plus


# `counts`, plus 1 where x compares with y: numbers as x has them, up to 2**24, because an addition under a mask is one
# instruction, of integers two; to count the lanes of each vector is cheaper where few vectors are counted.
plus_greater, plus_equal = _plus(">"), _plus("==")


def _mask(comparison):
    @intrinsic
    def mask(typingctx, x, y):
        def codegen(context, builder, signature, args):
            bits = builder.bitcast(builder.fcmp_ordered(comparison, *args), ir.IntType(x.count))
            return builder.zext(bits, ir.IntType(64))

        return types.int64(x, x), codegen

    return mask


mask_greater, mask_at_least = _mask(">"), _mask(">=")  # a bit for each lane, the first the lowest


@intrinsic
def lowest_bit(typingctx, mask):
    """The place of the lowest bit of a number that is not 0."""

    def codegen(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), codegen


def _any(comparison):
    @intrinsic
    def test(typingctx, x, y):
        def codegen(context, builder, signature, args):
            held = builder.fcmp_ordered(comparison, *args)
            return llvm.call(builder, "llvm.vector.reduce.or", [held], ir.IntType(1))

        return types.boolean(x, x), codegen

    return test


any_greater, any_at_least = _any(">"), _any(">=")


@intrinsic
def any_above(typingctx, x, y):
    """Whether any lane of x lies above that of y, or is NaN."""

    def codegen(context, builder, signature, args):
        bits = builder.bitcast(builder.fcmp_unordered(">", *args), ir.IntType(x.count))
        return builder.icmp_signed("!=", bits, ir.Constant(bits.type, 0))

    return types.boolean(x, x), codegen


@intrinsic
def any_outside(typingctx, x, low, high):
    """Whether any lane lies below `low` or above `high`; a NaN does not."""

    def codegen(context, builder, signature, args):
        outside = builder.or_(builder.fcmp_ordered("<", args[0], args[1]), builder.fcmp_ordered(">", args[0], args[2]))
        bits = builder.bitcast(outside, ir.IntType(x.count))
        return builder.icmp_signed("!=", bits, ir.Constant(bits.type, 0))

    return types.boolean(x, x, x), codegen


@intrinsic
def constant(typingctx, scalar, like):
    """A vector like `like` with `scalar` in every lane, for a loop to keep in a register."""

    def codegen(context, builder, signature, args):
        bits = builder.bitcast(args[0], ir.IntType(32 if like.kind == "float" else 64))
        return llvm.splat(builder, builder.bitcast(llvm.opaque(builder, bits), args[0].type), like.count)

    return like(llvm.scalar_type(like), like), codegen


# ---- from lanes to one number


@intrinsic
def total(typingctx, lanes):
    """Sum of all lanes."""

    def codegen(context, builder, signature, args):
        return llvm.folded(builder, args[0], builder.add if lanes.kind == "int" else builder.fadd)

    return llvm.scalar_type(lanes)(lanes), codegen


@intrinsic
def largest(typingctx, lanes):
    """Greatest of all lanes; none of them is NaN."""

    def codegen(context, builder, signature, args):
        return llvm.folded(builder, args[0], lambda a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))

    return llvm.scalar_type(lanes)(lanes), codegen
