"""Quantised rows of a layer, in the blocks of GGUF, decoded to float32 while a panel of them is packed.

A block holds 32 or 256 consecutive numbers of one row: whole numbers q of 4 to 8 bits, a scale d in half precision,
perhaps a least value m, and in the K types scales s of 6 or 8 bits for each 16 or 32 of them. Values are d q, d q + m,
(d s) q or (d s) q - (dmin m), each step rounded to float32 in this order, so that decoded numbers are to the bit those
of ggml and of the package `gguf`. What is packed is what `panels.pack_panel` makes of the decoded layer.

Source: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h and ggml-quants.c.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from bigvocab.kernels import lanes as v
from bigvocab.kernels import llvm
from bigvocab.kernels import memory as m
from bigvocab.kernels.jit import inline, jit
from bigvocab.kernels.panels import picked, transpose

Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K = 2, 3, 6, 7, 8, 12, 13, 14  # the numbers GGUF gives them
CHUNK = 256  # numbers of a row that are decoded at a time: a whole number of blocks of every type
STRIDE = CHUNK + 16  # of the decoded rows, which would else meet in the same few sets of the cache


# ---- bytes as lanes of int32, and what is done to them


def _loads(count, *, signed=False):
    @intrinsic
    def load(typingctx, row, at):
        lanes = v.Lanes("int", count)

        def codegen(context, builder, signature, args):
            pointer, _ = m.pointer_to(context, builder, row, args[0], args[1], count)
            widen = builder.sext if signed else builder.zext
            return widen(builder.load(pointer, align=1), ir.VectorType(v.I32, count))

        return lanes(row, types.intp), codegen

    return load


_bytes16, _bytes32, signed32 = _loads(16), _loads(32), _loads(32, signed=True)


def _with_number(operation):
    @intrinsic
    def apply(typingctx, lanes, number):
        def codegen(context, builder, signature, args):
            other = llvm.splat(builder, builder.trunc(args[1], v.I32), lanes.count)
            return getattr(builder, operation)(args[0], other)

        return lanes(lanes, types.intp), codegen

    return apply


_and, _right, _left, _minus = (_with_number(name) for name in ("and_", "lshr", "shl", "sub"))


@intrinsic
def _or(typingctx, a, b):
    """a | b, lane by lane."""
    return a(a, a), lambda context, builder, signature, args: builder.or_(*args)


@intrinsic
def _bits16(typingctx, row, at, first):
    """Bits `first` to first + 16 of the 32 at `at`, one per lane."""
    lanes = v.Lanes("int", 16)

    def codegen(context, builder, signature, args):
        pointer, _ = m.pointer_to(context, builder, row, args[0], args[1], 1)
        word = builder.load(builder.bitcast(pointer, v.I32.as_pointer()), align=1)
        word = llvm.splat(builder, builder.lshr(word, builder.trunc(args[2], v.I32)), 16)
        kind = word.type
        return builder.and_(builder.lshr(word, ir.Constant(kind, list(range(16)))), ir.Constant(kind, [1] * 16))

    return lanes(row, types.intp, types.intp), codegen


@intrinsic
def _floats(typingctx, lanes):
    """The same lanes as float32, exactly."""
    floats = v.Lanes("float", lanes.count)

    def codegen(context, builder, signature, args):
        return builder.sitofp(args[0], ir.VectorType(v.F32, lanes.count))

    return floats(lanes), codegen


@intrinsic
def half_at(typingctx, row, at):
    """The half-precision number at `at`, as float32."""

    def codegen(context, builder, signature, args):
        pointer, _ = m.pointer_to(context, builder, row, args[0], args[1], 1)
        half = builder.load(builder.bitcast(pointer, ir.HalfType().as_pointer()), align=1)
        return builder.fpext(half, v.F32)

    return types.float32(row, types.intp), codegen


@intrinsic
def _store(typingctx, out, at, lanes):
    """Write lanes to `out` from `at` on."""

    def codegen(context, builder, signature, args):
        pointer, _ = m.pointer_to(context, builder, out, args[0], args[1], lanes.count)
        builder.store(args[2], pointer, align=4)
        return context.get_dummy_value()

    return types.void(out, types.intp, lanes), codegen


@inline
def _put(out, to, d, q):
    """d q."""
    x = _floats(q)
    _store(out, to, v.mul(v.splat(d, x), x))


@inline
def _put_above(out, to, d, q, least):
    """d q + least."""
    x = _floats(q)
    _store(out, to, v.add(v.mul(v.splat(d, x), x), v.splat(least, x)))


@inline
def _put_below(out, to, d, q, lower):
    """d q - lower."""
    x = _floats(q)
    _store(out, to, v.sub(v.mul(v.splat(d, x), x), v.splat(lower, x)))


# ---- one block of each type


@inline
def _block_q8_0(row, at, out, to):
    _put(out, to, half_at(row, at), signed32(row, at + 2))


@inline
def _block_q4_0(row, at, out, to):
    d, pairs = half_at(row, at), _bytes16(row, at + 2)
    _put(out, to, d, _minus(_and(pairs, 15), 8))
    _put(out, to + 16, d, _minus(_right(pairs, 4), 8))


@inline
def _block_q4_1(row, at, out, to):
    d, least, pairs = half_at(row, at), half_at(row, at + 2), _bytes16(row, at + 4)
    _put_above(out, to, d, _and(pairs, 15), least)
    _put_above(out, to + 16, d, _right(pairs, 4), least)


@inline
def _block_q5_0(row, at, out, to):
    d, pairs = half_at(row, at), _bytes16(row, at + 6)
    _put(out, to, d, _minus(_or(_and(pairs, 15), _left(_bits16(row, at + 2, 0), 4)), 16))
    _put(out, to + 16, d, _minus(_or(_right(pairs, 4), _left(_bits16(row, at + 2, 16), 4)), 16))


@inline
def _block_q5_1(row, at, out, to):
    d, least, pairs = half_at(row, at), half_at(row, at + 2), _bytes16(row, at + 8)
    _put_above(out, to, d, _or(_and(pairs, 15), _left(_bits16(row, at + 4, 0), 4)), least)
    _put_above(out, to + 16, d, _or(_right(pairs, 4), _left(_bits16(row, at + 4, 16), 4)), least)


@inline
def _scale_and_least(row, at, j):
    """The j-th scale and least value, of 6 bits each, of the 12 bytes at `at` that hold 8 of both."""
    if j < 4:
        return row[at + j] & 63, row[at + j + 4] & 63
    low, scale, least = row[at + j + 4], row[at + j - 4], row[at + j]
    return low & 15 | scale >> 6 << 4, low >> 4 | least >> 6 << 4


@inline
def _block_q4_k(row, at, out, to):
    d, dmin = half_at(row, at), half_at(row, at + 2)
    for j in range(8):
        scale, least = _scale_and_least(row, at + 4, j)
        pairs = _bytes32(row, at + 16 + j // 2 * 32)
        q = _and(_right(pairs, j % 2 * 4), 15)
        _put_below(out, to + 32 * j, d * np.float32(scale), q, dmin * np.float32(least))


@inline
def _block_q5_k(row, at, out, to):
    d, dmin = half_at(row, at), half_at(row, at + 2)
    high = _bytes32(row, at + 16)
    for j in range(8):
        scale, least = _scale_and_least(row, at + 4, j)
        pairs = _bytes32(row, at + 48 + j // 2 * 32)
        q = _or(_and(_right(pairs, j % 2 * 4), 15), _left(_and(_right(high, j), 1), 4))
        _put_below(out, to + 32 * j, d * np.float32(scale), q, dmin * np.float32(least))


@inline
def scale_q6_k(row, at, j):
    """The scale of the j-th sixteen numbers of a block of Q6_K."""
    return half_at(row, at + 208) * np.float32(np.int8(row[at + 192 + j]))


@inline
def _block_q6_k(row, at, out, to):
    for j in range(16):  # sixteen numbers have a scale of their own
        half, quarter, rest = j // 8, j % 8 // 2, j % 2 * 16
        low = _bytes16(row, at + half * 64 + quarter % 2 * 32 + rest)
        high = _bytes16(row, at + 128 + half * 32 + rest)
        q = _or(_and(_right(low, quarter // 2 * 4), 15), _left(_and(_right(high, quarter * 2), 3), 4))
        _put(out, to + 16 * j, scale_q6_k(row, at, j), _minus(q, 32))


# ---- rows


@jit
def decode_part(row, kind, first, count, out):
    """Put numbers `first` to first + count of a row of blocks into `out`; both are whole numbers of blocks."""
    if kind == Q8_0:
        for i in range(count // 32):
            _block_q8_0(row, (first // 32 + i) * 34, out, i * 32)
    elif kind == Q6_K:
        for i in range(count // 256):
            _block_q6_k(row, (first // 256 + i) * 210, out, i * 256)
    elif kind == Q4_0:
        for i in range(count // 32):
            _block_q4_0(row, (first // 32 + i) * 18, out, i * 32)
    elif kind == Q4_1:
        for i in range(count // 32):
            _block_q4_1(row, (first // 32 + i) * 20, out, i * 32)
    elif kind == Q5_0:
        for i in range(count // 32):
            _block_q5_0(row, (first // 32 + i) * 22, out, i * 32)
    elif kind == Q5_1:
        for i in range(count // 32):
            _block_q5_1(row, (first // 32 + i) * 24, out, i * 32)
    elif kind == Q4_K:
        for i in range(count // 256):
            _block_q4_k(row, (first // 256 + i) * 144, out, i * 256)
    elif kind == Q5_K:
        for i in range(count // 256):
            _block_q5_k(row, (first // 256 + i) * 176, out, i * 256)


@jit
def decode_rows(rows, kind, out):
    """Put the numbers of rows of blocks (n, row bytes) into out (n, D) float32."""
    for r in range(rows.shape[0]):
        decode_part(rows[r], kind, 0, out.shape[1], out[r])


@jit
def pack_blocks(rows, kind, ids, first, stop, depth, panel):
    """As `panels.pack_panel` of the decoded rows."""
    width = m.width(panel)
    decoded = np.empty((width, STRIDE), np.float32)
    check = 0.0
    for begin in range(0, depth, CHUNK):
        here = min(CHUNK, depth - begin)
        for i in range(min(width, stop - first)):
            decode_part(rows[picked(ids, first + i)], kind, begin, here, decoded[i])
        for half in range(0, width, width // 2):
            for k in range(0, here, width // 2):
                check += transpose(decoded, None, half, stop - first, k, panel, (begin + k) * width + half)
    return check
