"""Powers of 2 of lanes: whole exponents added to numbers, and eighths looked up in a register."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from bigvocab.kernels import llvm
from bigvocab.kernels.llvm import I32


@intrinsic
def floor(typingctx, t):
    """The greatest whole number that is not above t."""
    return t(t), lambda context, builder, signature, args: llvm.call(builder, "llvm.floor", args)


@intrinsic
def fraction(typingctx, t):
    """t - floor(t), in [0, 1].

    AVX-512's vreduceps does it in one instruction instead of two, but rounds 1 - tiny down where subtraction rounds to
    nearest.
    """

    def codegen(context, builder, signature, args):
        low = _above_underflow(builder, t, args[0])  # floor(-inf) would make a NaN
        return builder.fsub(low, llvm.call(builder, "llvm.floor", [low]))

    return t(t), codegen


def _above_underflow(builder, lanes, t):
    """t, but at least the exponent of the smallest normal number; NaN stays."""
    low = llvm.constant(lanes, -126.0 if lanes.kind == "float" else -1022.0)
    return builder.select(builder.fcmp_ordered("<", t, low), low, t)


@intrinsic
def times_power(typingctx, p, t):
    """p * 2**floor(t) for p in [1, 2]; t of -126 (-1022) or less may give anything that vanishes beside 1."""

    def codegen(context, builder, signature, args):
        if llvm.has(context, "avx512f"):
            kind, size = ("ps", 16) if p.kind == "float" else ("pd", 8)
            scalef = f"llvm.x86.avx512.mask.scalef.{kind}.512"
            return _scaled(builder, args, size, scalef, lambda v, w: [v, w, v, _all(size), ir.Constant(I32, 4)])
        bits, shift = (32, 23) if p.kind == "float" else (64, 52)
        integers = ir.VectorType(ir.IntType(bits), p.count)
        clamped = _above_underflow(builder, p, args[1])
        exponent = builder.fptosi(llvm.call(builder, "llvm.floor", [clamped]), integers)
        moved = builder.shl(exponent, ir.Constant(integers, [shift] * p.count))
        return builder.bitcast(builder.add(builder.bitcast(args[0], integers), moved), args[0].type)

    return p(p, p), codegen


# 2**(j / 8), less what the three bits of j add when they are moved to the exponent with the others.
_EIGHTHS = [int(np.float32(2.0 ** (j / 8)).view(np.int32)) - (j << 20) for j in range(8)]


@intrinsic
def eighths(typingctx, like):
    """The numbers that `power_of_eighths` chooses from, for a loop to keep in a register."""

    def codegen(context, builder, signature, args):
        integers = ir.VectorType(I32, like.count)
        table = ir.Constant(integers, _EIGHTHS * (like.count // 8))
        hidden = llvm.splat(builder, llvm.opaque(builder, ir.Constant(I32, 0)), like.count)
        return builder.bitcast(builder.add(table, hidden), llvm.vector_type(like))

    return like(like), codegen


@intrinsic
def power_of_eighths(typingctx, u, table):
    """2**(n / 8) for u = 1.5 * 2**20 + n / 8, n >= -1008.

    The lowest three bits of u choose one of `eighths`, the others are added to its exponent.
    """

    def codegen(context, builder, signature, args):
        integers = ir.VectorType(I32, u.count)
        bits = builder.bitcast(args[0], integers)
        moved = builder.shl(bits, ir.Constant(integers, [20] * u.count))
        chosen = builder.bitcast(_chosen(context, builder, bits, args[1]), integers)
        return builder.bitcast(builder.add(chosen, moved), args[0].type)

    return u(u, u), codegen


def _chosen(context, builder, bits, table):
    """The one of eight numbers that the lowest three bits of each lane name."""
    count = bits.type.count
    for feature, size, name in (
        ("avx512f", 16, "llvm.x86.avx512.permvar.sf.512"),
        ("avx2", 8, "llvm.x86.avx2.permps"),
    ):
        if llvm.has(context, feature):
            first = next(llvm.pieces(builder, table, size))
            return _scaled(builder, [bits], size, name, lambda index, first=first: [first, index])
    chosen = [ir.Constant(bits.type, [entry] * count) for entry in _EIGHTHS]
    for bit in range(3):
        mask = ir.Constant(bits.type, [1 << bit] * count)
        is_set = builder.icmp_signed("!=", builder.and_(bits, mask), ir.Constant(bits.type, [0] * count))
        chosen = [builder.select(is_set, high, low) for low, high in zip(chosen[::2], chosen[1::2], strict=True)]
    return builder.bitcast(chosen[0], table.type)


def _all(size):
    return ir.Constant(ir.IntType(size), -1)


def _scaled(builder, vectors, size, name, arguments):
    """Apply the instruction `name` of one register to every register of the vectors."""
    parts = []
    for pieces in zip(*(llvm.pieces(builder, vector, size) for vector in vectors), strict=True):
        values = arguments(*pieces)
        parts.append(builder.call(llvm.function(builder, name, values[0].type, values), values))
    return llvm.joined(builder, parts)
