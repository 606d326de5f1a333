"""Products of rows with rows, inputs (n, D) times weights (m, D) transposed, whose bits depend on the two rows alone.

A BLAS sums an element in an order that depends on the shape of the call, on where the element lies in it and on the
processor's name, so its results would change with chunks and threads. Here every element is summed in one order: k in
pairs, of which the odd one comes first, in blocks of 128 with one accumulator and a fused multiply-add for each k;
blocks are added in order, and the bias comes last. The same bits come out for any tile, thread and processor with FMA.

That order of a pair is the one of AVX512-BF16's instruction, which multiplies 32 pairs of bfloat16 at a time and
rounds after each addition. So bfloat16 inputs with bfloat16 weights take it where the processor has it, and the bits
stay the same (except for numbers below 1.2e-38, which it takes for 0).

Inputs are packed once; a panel of weights is packed right before it is multiplied with all panels of inputs, so
half-precision layers are never held in float32 (see panels.py). The accumulators of 12 rows and one vector of classes
fill AVX-512's registers; where there are fewer, the same panels are worked in quarters, with the same sums.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from bigvocab.kernels import lanes as v
from bigvocab.kernels import llvm
from bigvocab.kernels import memory as m
from bigvocab.kernels.jit import inline, jit
from bigvocab.kernels.panels import (
    ROWS,
    constant,
    data_of,
    element_type,
    num_steps,
    of_pairs,
    pointer_at,
    stored_type,
    width_of,
)
from bigvocab.kernels.quantised import ask_for_weights, pack_weights

DEPTH = 128  # of one block of k: its sum is accumulated in registers
_REGISTER = 16  # float32 in a register of AVX-512


class _BFloat(ir.Type):
    """LLVM's type of bfloat16, which llvmlite does not have."""

    def __str__(self):
        return "bfloat"

    def __eq__(self, other):
        return isinstance(other, _BFloat)

    def __hash__(self):
        return hash(_BFloat)


def _fma(builder, x, weights, held):
    return llvm.call(builder, "llvm.fma", [x, weights, held])


def _dot(builder, x, weights, held):
    """One step of pairs: held + x1 w1, rounded, + x0 w0, rounded."""
    pairs = ir.VectorType(_BFloat(), 2 * _REGISTER)
    values = [held, builder.bitcast(x, pairs), builder.bitcast(weights, pairs)]
    return builder.call(llvm.function(builder, "llvm.x86.avx512bf16.dpbf16ps.512", held.type, values), values)


@intrinsic
def _multiply(typingctx, packed, row_at, panel, panel_at, depth, biases, bias_at, out, out_at, stride, first, last):
    """Add `depth` steps of 12 rows and a width of classes to `out`, which is 0 if `first`; + biases if `last`."""
    element, width = element_type(panel), width_of(panel)

    def codegen(context, builder, signature, args):
        wide = llvm.has(context, "avx512f")
        rows, lanes = (ROWS, width) if wide else (ROWS // 2, width // 2)
        for row in range(0, ROWS, rows):
            for lane in range(0, width, lanes):
                _emit_block(context, builder, signature.args, args, (row, rows), (lane, lanes))
        return context.get_dummy_value()

    def _emit_block(context, builder, kinds, args, row_span, lane_span):
        (row, rows), (lane, lanes) = row_span, lane_span
        piece = _REGISTER if of_pairs(panel) else lanes
        step = _dot if of_pairs(panel) else _fma
        vector, stored = ir.VectorType(element, piece), ir.VectorType(stored_type(panel), piece)
        size, starts = 8 if element == v.F64 else 4, range(0, lanes, piece)
        a = builder.gep(data_of(context, builder, kinds[0], args[0]).data, [builder.add(args[1], constant(row))])
        b = builder.gep(data_of(context, builder, kinds[2], args[2]).data, [builder.add(args[3], constant(lane))])
        before = builder.block
        loop, after = builder.append_basic_block("k"), builder.append_basic_block("k.end")
        builder.branch(loop)
        builder.position_at_end(loop)
        k = builder.phi(ir.IntType(64))
        sums = [[builder.phi(vector) for _ in starts] for _ in range(rows)]
        k.add_incoming(constant(0), before)
        line, column = builder.mul(k, constant(width)), builder.mul(k, constant(ROWS))
        weights = [
            builder.load(pointer_at(builder, b, builder.add(line, constant(start)), stored), align=size)
            for start in starts
        ]
        grown = []
        for r in range(rows):
            x = llvm.splat(builder, builder.load(builder.gep(a, [builder.add(column, constant(r))])), piece)
            grown.append([step(builder, x, w, held) for w, held in zip(weights, sums[r], strict=True)])
        following = builder.add(k, constant(1))
        k.add_incoming(following, loop)
        zero = ir.Constant(vector, [0.0] * piece)
        for phis, values in zip(sums, grown, strict=True):
            for phi, value in zip(phis, values, strict=True):
                phi.add_incoming(zero, before)
                phi.add_incoming(value, loop)
        builder.cbranch(builder.icmp_signed("<", following, args[4]), loop, after)
        builder.position_at_end(after)
        addends = data_of(context, builder, kinds[5], args[5]).data
        data = data_of(context, builder, kinds[7], args[7]).data
        is_first, is_last = (builder.trunc(args[i], ir.IntType(1)) for i in (10, 11))
        for j, start in enumerate(starts):
            place = constant(lane + start)
            bias = builder.load(pointer_at(builder, addends, builder.add(args[6], place), vector), align=size)
            bias = builder.select(is_last, bias, zero)
            for r in range(rows):
                at = builder.add(args[8], builder.mul(args[9], constant(row + r)))
                pointer = pointer_at(builder, data, builder.add(at, place), vector)
                held = builder.select(is_first, zero, builder.load(pointer, align=size))
                builder.store(builder.fadd(builder.fadd(held, grown[r][j]), bias), pointer, align=size)

    arguments = (
        packed,
        types.intp,
        panel,
        types.intp,
        types.intp,
        biases,
        types.intp,
        out,
        types.intp,
        types.intp,
        types.boolean,
        types.boolean,
    )
    return types.void(*arguments), codegen


@inline
def _multiply_panel(packed, row_panel, depth, panel, biases, bias, out, at, stride):
    """One panel of rows times one panel of weights, into out[at:]."""
    steps, block = num_steps(panel, depth), num_steps(panel, DEPTH)
    for k in range(0, steps, block):
        here = min(block, steps - k)
        a, b = (row_panel * steps + k) * ROWS, k * m.width(panel)
        _multiply(packed, a, panel, b, here, biases, bias, out, at, stride, k == 0, k + here == steps)


@jit
def tile_product(packed, depth, weights, ids, span, biases, panel, out):
    """Put the logits of packed inputs and a span of `weights` into out[:, column:], biases added.

    span = (first row of weights, row after the last, column of `out`), where the rows of weights are weights[ids]
    unless `ids` is None. `out` needs room for one width of padding on
    the right and for whole panels of rows below, `biases` for one width past the last. Returns the first row of
    weights of a panel that holds a NaN or an infinity, or -1.
    """
    first, stop, column = span
    width = m.width(panel)
    flat, stride = out.reshape(-1), out.shape[1]
    panels = packed.size // (num_steps(packed, depth) * ROWS)
    fault = -1
    if ids is not None:
        ask_for_weights(weights, ids, first, min(stop, first + width), depth)
    for c in range(first, stop, width):
        check = pack_weights(weights, ids, c, min(stop, c + width), depth, panel)
        if ids is not None:
            ask_for_weights(weights, ids, c + width, min(stop, c + 2 * width), depth)
        if check != check and fault < 0:
            fault = c
        for p in range(panels):
            at = p * ROWS * stride + column + c - first
            _multiply_panel(packed, p, depth, panel, biases, c - first, flat, at, stride)
    return fault


@jit
def paired_products(packed, depth, weights, ids, biases, panel, square, out):
    """Put each row of inputs times the same row of weights, or of weights[ids], + biases[r], into out[r].

    The bits are those of `tile_product`. square (12, width) is room for the products of 12 rows with 12 rows, of which
    the diagonal is taken.
    """
    flat, stride = square.reshape(-1), square.shape[1]
    for first in range(0, out.size, ROWS):
        stop = min(out.size, first + ROWS)
        pack_weights(weights, ids, first, stop, depth, panel)
        if ids is not None:
            ask_for_weights(weights, ids, stop, min(out.size, stop + ROWS), depth)
        _multiply_panel(packed, first // ROWS, depth, panel, biases, first, flat, 0, stride)
        for r in range(stop - first):
            out[first + r] = square[r, r]
