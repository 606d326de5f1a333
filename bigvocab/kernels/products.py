"""Products of rows with rows, inputs (n, D) times weights (m, D) transposed, whose bits depend on the two rows alone.

A BLAS sums an element in an order that depends on the shape of the call, on where the element lies in it and on the
processor's name, so its results would change with chunks and threads. Here every element is summed in one order: k
rising in blocks of 128, one fused multiply-add a step and one accumulator a block; blocks are added in order, and the
bias comes last. The same bits come out for any tile, any thread and any processor with FMA.

Inputs are packed once as panels [12 rows][k] -> (k, 12). A panel of weights (one vector's width of classes) is
widened and transposed to (k, width) right before it is multiplied with all row panels, so half-precision layers are
never held in float32. The accumulators of 12 rows and one vector of classes fill AVX-512's registers; where there are
fewer, the same panels are worked in quarters, with the same sums.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from bigvocab.kernels import _lanes as v
from bigvocab.kernels._jit import inline, jit

ROWS = 12  # of inputs in a panel
DEPTH = 128  # of one block of k: its sum is accumulated in registers
_I64 = ir.IntType(64)


def _element(array):
    return v.F64 if array.dtype == types.float64 else v.F32


def _width(array):
    return v.lanes_of(array.dtype).count


def _data(context, builder, array_type, array):
    from numba.np import arrayobj

    return arrayobj.make_array(array_type)(context, builder, array)


def _number(value):
    return ir.Constant(_I64, value)


def _at(builder, data, index, kind):
    """Pointer to a `kind` that begins at element `index` of `data`."""
    return builder.bitcast(builder.gep(data, [index]), kind.as_pointer())


@intrinsic
def _multiply(typingctx, packed, row_at, panel, panel_at, depth, biases, bias_at, out, out_at, stride, first, last):
    """Add `depth` steps of 12 rows and a width of classes to `out`, which is 0 if `first`; + biases if `last`."""
    element, width = _element(panel), _width(panel)

    def codegen(context, builder, signature, args):
        wide = v._has(context, "avx512f")
        rows, lanes = (ROWS, width) if wide else (ROWS // 2, width // 2)
        for row in range(0, ROWS, rows):
            for lane in range(0, width, lanes):
                _emit_block(context, builder, signature.args, args, (row, rows), (lane, lanes))
        return context.get_dummy_value()

    def _emit_block(context, builder, kinds, args, row_span, lane_span):
        (row, rows), (lane, lanes) = row_span, lane_span
        vector = ir.VectorType(element, lanes)
        size = 4 if element == v.F32 else 8
        a = builder.gep(_data(context, builder, kinds[0], args[0]).data, [builder.add(args[1], _number(row))])
        b = builder.gep(_data(context, builder, kinds[2], args[2]).data, [builder.add(args[3], _number(lane))])
        depth = args[4]
        before = builder.block
        loop, after = builder.append_basic_block("k"), builder.append_basic_block("k.end")
        builder.branch(loop)
        builder.position_at_end(loop)
        k = builder.phi(_I64)
        sums = [builder.phi(vector) for _ in range(rows)]
        k.add_incoming(_number(0), before)
        weights = builder.load(_at(builder, b, builder.mul(k, _number(width)), vector), align=size)
        base = builder.mul(k, _number(ROWS))
        grown = []
        for r in range(rows):
            x = builder.load(builder.gep(a, [builder.add(base, _number(r))]))
            grown.append(v._call(builder, "llvm.fma", [v._splat(builder, x, lanes), weights, sums[r]]))
        following = builder.add(k, _number(1))
        k.add_incoming(following, loop)
        for phi, value in zip(sums, grown, strict=True):
            phi.add_incoming(ir.Constant(vector, [0.0] * lanes), before)
            phi.add_incoming(value, loop)
        builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)
        builder.position_at_end(after)
        biases = _data(context, builder, kinds[5], args[5]).data
        bias = builder.load(_at(builder, biases, builder.add(args[6], _number(lane)), vector), align=size)
        zero = ir.Constant(vector, [0.0] * lanes)
        bias = builder.select(builder.trunc(args[11], ir.IntType(1)), bias, zero)
        data = _data(context, builder, kinds[7], args[7]).data
        for r in range(rows):
            at = builder.add(args[8], builder.mul(args[9], _number(row + r)))
            pointer = _at(builder, data, builder.add(at, _number(lane)), vector)
            held = builder.select(builder.trunc(args[10], ir.IntType(1)), zero, builder.load(pointer, align=size))
            builder.store(builder.fadd(builder.fadd(held, grown[r]), bias), pointer, align=size)

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


@intrinsic
def _transpose(typingctx, rows, first, stop, column, panel, at):
    """panel[at + k * width + i] = rows[first + i, column + k] for a square of half a width.

    Rows from `stop` on repeat the last one. Returns the sum of 0 x: NaN where an x is not finite.
    """
    target, width = _element(panel), _width(panel)
    side = width // 2

    def codegen(context, builder, signature, args):
        source = _data(context, builder, signature.args[0], args[0])
        stride = builder.extract_value(source.strides, 0)
        stored = context.get_data_type(rows.dtype)
        size = context.get_abi_sizeof(stored)
        vector = ir.VectorType(target, side)
        last = builder.sub(args[2], _number(1))
        lines, check = [], ir.Constant(vector, [0.0] * side)
        for i in range(side):
            row = builder.add(args[1], _number(i))
            row = builder.select(builder.icmp_signed("<", row, last), row, last)
            begin = builder.gep(builder.bitcast(source.data, ir.IntType(8).as_pointer()), [builder.mul(row, stride)])
            pointer = _at(builder, builder.bitcast(begin, stored.as_pointer()), args[3], ir.VectorType(stored, side))
            line = v._widened(builder, rows.dtype, builder.load(pointer, align=size), side)
            line = line if line.type == vector else builder.fpext(line, vector)
            check = v._call(builder, "llvm.fma", [line, ir.Constant(vector, [0.0] * side), check])
            lines.append(line)
        step = side // 2
        while step:  # swap the off-diagonal halves, then quarters, ...
            lower = [j if not j & step else side + j - step for j in range(side)]
            upper = [j + step if not j & step else side + j for j in range(side)]
            for i in range(side):
                if not i & step:
                    a, b = lines[i], lines[i + step]
                    for place, order in ((i, lower), (i + step, upper)):
                        lines[place] = builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(v.I32, side), order))
            step //= 2
        data = _data(context, builder, signature.args[4], args[4]).data
        for k, line in enumerate(lines):
            index = builder.add(args[5], _number(k * width))
            builder.store(line, _at(builder, data, index, vector), align=4 if target == v.F32 else 8)
        return v._folded(builder, check, builder.fadd)

    scalar = types.float64 if target == v.F64 else types.float32
    return scalar(rows, types.intp, types.intp, types.intp, panel, types.intp), codegen


@jit
def pack_panel(rows, first, stop, depth, panel):
    """Widen and transpose rows `first` to `stop`, at most a width of them, to panel (depth, width).

    Returns NaN where one of them is not finite, else 0.
    """
    width = v.width(panel)
    side = width // 2
    check = 0.0
    whole = depth - depth % side
    for half in range(0, width, side):
        for k in range(0, whole, side):
            check += _transpose(rows, first + half, stop, k, panel, k * width + half)
    for i in range(width):
        row = rows[min(first + i, stop - 1)]
        for k in range(whole, depth):
            x = v.load_scalar(row, k)
            check += 0.0 * x
            panel[k * width + i] = x
    return check


@jit
def pack_rows(inputs, packed):
    """Inputs (n, D) as panels of 12 rows, k first; missing rows of the last panel are zeros."""
    rows, depth = inputs.shape
    at = 0
    for first in range(0, rows, ROWS):
        here = min(ROWS, rows - first)
        for k in range(depth):
            for r in range(here):
                packed[at + r] = inputs[first + r, k]
            for r in range(here, ROWS):
                packed[at + r] = 0.0
            at += ROWS


@inline
def _multiply_panel(packed, row_panel, depth, panel, biases, bias, out, at, stride):
    """One panel of rows times one panel of weights, into out[at:]."""
    for k in range(0, depth, DEPTH):
        steps = min(DEPTH, depth - k)
        a, b = (row_panel * depth + k) * ROWS, k * v.width(panel)
        _multiply(packed, a, panel, b, steps, biases, bias, out, at, stride, k == 0, k + steps == depth)


@jit
def tile_product(packed, depth, weights, span, biases, panel, out):
    """Put the logits of packed inputs and a span of `weights` into out[:, column:], biases added.

    span = (first row of weights, row behind the last, column of `out`). `out` needs room for one width of padding on
    the right and for whole panels of rows below, `biases` for one width behind the last. Returns the first row of
    weights of a panel that holds a NaN or an infinity, or -1.
    """
    first, stop, column = span
    width = v.width(panel)
    flat, stride = out.reshape(-1), out.shape[1]
    panels = packed.size // (depth * ROWS)
    fault = -1
    for c in range(first, stop, width):
        check = pack_panel(weights, c, min(stop, c + width), depth, panel)
        if check != check and fault < 0:
            fault = c
        for p in range(panels):
            at = p * ROWS * stride + column + c - first
            _multiply_panel(packed, p, depth, panel, biases, c - first, flat, at, stride)
    return fault


@jit
def paired_products(packed, depth, weights, biases, panel, square, out):
    """Put the product of each row of inputs with the same row of weights, + biases[r], into out[r]: bits of
    `tile_product`.

    square (12, width) is room for the products of 12 rows with 12 rows, of which the diagonal is taken.
    """
    flat, stride = square.reshape(-1), square.shape[1]
    for first in range(0, out.size, ROWS):
        stop = min(out.size, first + ROWS)
        pack_panel(weights, first, stop, depth, panel)
        _multiply_panel(packed, first // ROWS, depth, panel, biases, first, flat, 0, stride)
        for r in range(stop - first):
            out[first + r] = square[r, r]
