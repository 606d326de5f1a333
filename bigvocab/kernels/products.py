"""Products of rows with rows, inputs (n, D) times weights (m, D) transposed, whose bits depend on the two rows alone.

A BLAS sums an element in an order that depends on the shape of the call, on where the element lies in it and on the
processor's name, so its results would change with chunks and threads. Here every element is summed in one order: k in
pairs, of which the odd one comes first, in blocks of 128 with one accumulator and a fused multiply-add for each k;
blocks are added in order, and the bias comes last. The same bits come out for any tile, thread and processor with FMA.

That order of a pair is the one of AVX512-BF16's instruction, which multiplies 32 pairs of bfloat16 at a time and
rounds after each addition. So bfloat16 inputs with bfloat16 weights take it where the processor has it, and the bits
stay the same (except for numbers below 1.2e-38, which it takes for 0).

bfloat16 inputs with a layer of whole numbers (Q8_0, Q6_K) have another order, which is this instruction's too: whole
numbers are exact in bfloat16, so each block of 32 or 16 of them is summed as they are, k in pairs, and its sum times
the block's scale is added with a fused multiply-add, block by block.

Inputs are packed once; a panel of weights is packed right before it is multiplied with all panels of inputs, so
half-precision layers are never held in float32 (see panels.py). The accumulators of 12 rows and one vector of classes
fill AVX-512's registers; where there are fewer, the same panels are worked in quarters, with the same sums.
"""

from __future__ import annotations

from bigvocab.kernels import memory as m
from bigvocab.kernels.jit import inline, jit
from bigvocab.kernels.panels import ROWS, num_steps
from bigvocab.kernels.product_steps import DEPTH, multiply, multiply_one, multiply_two
from bigvocab.kernels.weights import ask_for_weights, pack_weights, scales_of


@inline
def _multiply_panels(packed, row_panel, panels, depth, panel, scales, biases, bias, out, at, stride):
    """Panels of rows times one panel of weights, into out[at:]; scales (blocks, width) of whole numbers, or None."""
    steps, width = num_steps(panel, depth), m.width(panel)
    start = row_panel * steps * ROWS
    if scales is None:
        block = num_steps(panel, DEPTH)
        for _ in range(panels):
            for k in range(0, steps, block):
                here = min(block, steps - k)
                last = k + here == steps
                multiply(packed, start + k * ROWS, panel, k * width, here, biases, bias, out, at, stride, k == 0, last)
            start += steps * ROWS
            at += stride * ROWS
    else:
        block = steps // scales.shape[0]
        flat, blocks, between = scales.reshape(-1), scales.shape[0], steps * ROWS
        group = num_steps(panel, DEPTH) // block  # whose weights stay in the first cache for all rows
        for b in range(0, blocks, group):
            a, k, here = start + b * block * ROWS, b * block * width, min(group, blocks - b)
            last = b + here == blocks
            if panels == 2:
                multiply_two(
                    packed, a, panel, k, block, flat, b, here, biases, bias, out, at, stride, b == 0, last, between
                )
            else:
                multiply_one(
                    packed, a, panel, k, block, flat, b, here, biases, bias, out, at, stride, b == 0, last, between
                )


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
        for p in range(0, panels, 2):
            at, here = p * ROWS * stride + column + c - first, min(2, panels - p)
            _multiply_panels(packed, p, here, depth, panel, scales_of(weights), biases, c - first, flat, at, stride)
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
        _multiply_panels(packed, first // ROWS, 1, depth, panel, scales_of(weights), biases, first, flat, 0, stride)
        for r in range(stop - first):
            out[first + r] = square[r, r]
