"""Quantised rows d q and (d s) q as whole numbers q, which are exact in bfloat16, and the scales of their blocks."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from bigvocab.kernels import lanes as v
from bigvocab.kernels import llvm
from bigvocab.kernels import memory as m
from bigvocab.kernels.jit import inline, jit
from bigvocab.kernels.panels import num_steps, picked, transpose
from bigvocab.kernels.quantised import CHUNK, Q6_K, Q8_0, STRIDE, half_at, scale_q6_k, signed32

BLOCK_OF_SCALE = {Q8_0: 32, Q6_K: 16}  # the types that may be multiplied so: how many numbers have one scale


@intrinsic
def _six_bits(typingctx, row, low, low_shift, high, high_shift):
    """32 whole numbers, less 32: four bits of each of the bytes from `low` on, two more of those from `high` on."""
    lanes, words = v.Lanes("int", 32), ir.VectorType(llvm.I64, 4)

    def codegen(context, builder, signature, args):
        parts = []
        for at, shift, bits in ((args[1], args[2], 15), (args[3], args[4], 3)):
            pointer, _ = m.pointer_to(context, builder, row, args[0], at, 32)
            word = builder.load(builder.bitcast(pointer, words.as_pointer()), align=1)
            word = builder.lshr(word, llvm.splat(builder, shift, 4))  # what comes from the next byte is masked
            parts.append(builder.and_(word, ir.Constant(words, [int.from_bytes(bytes([bits] * 8))] * 4)))
        whole = builder.or_(parts[0], builder.shl(parts[1], ir.Constant(words, [4] * 4)))
        small = builder.bitcast(whole, ir.VectorType(ir.IntType(8), 32))
        small = builder.sub(small, ir.Constant(small.type, [32] * 32))
        return builder.sext(small, ir.VectorType(v.I32, 32))

    return lanes(row, types.intp, types.intp, types.intp, types.intp), codegen


@intrinsic
def _put_whole(typingctx, out, at, lanes):
    """Write whole numbers of up to 8 bits to `out` from `at` on, as bfloat16 in uint16, exactly."""

    def codegen(context, builder, signature, args):
        floats = builder.sitofp(args[2], ir.VectorType(v.F32, lanes.count))
        bits = builder.bitcast(floats, args[2].type)
        upper = builder.lshr(bits, ir.Constant(bits.type, [16] * lanes.count))
        pointer, _ = m.pointer_to(context, builder, out, args[0], args[1], lanes.count)
        builder.store(builder.trunc(upper, pointer.type.pointee), pointer, align=2)
        return context.get_dummy_value()

    return types.void(out, types.intp, lanes), codegen


@inline
def _whole_q6_k(row, at, out, to):
    for j in range(8):
        half, quarter = j // 4, j % 4
        low, high = at + half * 64 + quarter % 2 * 32, at + 128 + half * 32
        _put_whole(out, to + 32 * j, _six_bits(row, low, quarter // 2 * 4, high, quarter * 2))


@jit
def _whole_part(row, kind, first, count, out, scales, i):
    """As `decode_part`, of whole numbers alone, as bfloat16; their scales go into scales[:, i]."""
    if kind == Q8_0:
        for b in range(count // 32):
            at = (first // 32 + b) * 34
            _put_whole(out, b * 32, signed32(row, at + 2))
            scales[first // 32 + b, i] = half_at(row, at)
    else:
        for b in range(count // 256):
            at = (first // 256 + b) * 210
            _whole_q6_k(row, at, out, b * 256)
            for j in range(16):
                scales[first // 16 + b * 16 + j, i] = scale_q6_k(row, at, j)


@jit
def pack_whole(rows, kind, ids, first, stop, depth, panel, scales):
    """As `panels.pack_panel` of the whole numbers of rows; NaN if a scale, of those put in (blocks, width), is not
    finite.
    """
    width = m.width(panel)
    decoded = np.empty((width, STRIDE), np.uint16)
    count = min(width, stop - first)
    side = width // 2
    square = side * (depth // num_steps(panel, depth))  # numbers of a row in a square
    for begin in range(0, depth, CHUNK):
        here = min(CHUNK, depth - begin)
        for i in range(count):
            _whole_part(rows[picked(ids, first + i)], kind, begin, here, decoded[i], scales, i)
        for half in range(0, width, side):
            for k in range(0, here // square * side, side):
                transpose(decoded, None, half, count, k, panel, (num_steps(panel, begin) + k) * width + half)
    zero = v.zeros_for(scales)
    check, flat = zero, scales.reshape(-1)
    for b in range(scales.shape[0]):
        for i in range(count, width):
            scales[b, i] = scales[b, count - 1]
        check = v.fma(m.load(flat, b * width), zero, check)
    return v.total(check)
