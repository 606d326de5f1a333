"""Products of rows with rows, inputs (n, D) times weights (m, D) transposed, whose bits depend on the two rows alone.

A BLAS sums an element in an order that depends on the shape of the call, on where the element lies in it and on the
processor's name, so its results would change with chunks and threads. Here every element is summed in one order: k in
pairs, of which the odd one comes first, in blocks of 128 with one accumulator and a fused multiply-add for each k;
blocks are added in order, and the bias comes last. The same bits come out for any tile, thread and processor with FMA.

That order of a pair is the one of AVX512-BF16's instruction, which multiplies 32 pairs of bfloat16 at a time and
rounds after each addition. So bfloat16 inputs with bfloat16 weights take it where the processor has it, and the bits
stay the same (but for numbers below 1.2e-38, which it takes for 0).

Inputs are packed once as panels of 12 rows, (steps, 12): a step is one k, or a pair of bfloat16 in a uint32. A panel of
weights (one vector's width of classes) is widened and transposed to (steps, width) right before it is multiplied with
all row panels, so half-precision layers are never held in float32. The accumulators of 12 rows and one vector of
classes fill AVX-512's registers; where there are fewer, the same panels are worked in quarters, with the same sums.
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
_REGISTER = 16  # float32 in a register of AVX-512


class _BFloat(ir.Type):
    """LLVM's type of bfloat16, which llvmlite does not have."""

    def __str__(self):
        return "bfloat"

    def __eq__(self, other):
        return isinstance(other, _BFloat)

    def __hash__(self):
        return hash(_BFloat)


def _of_pairs(array):
    """Whether an array of steps holds pairs of bfloat16."""
    return array.dtype == types.uint32


def _stored(array):
    return v.I32 if _of_pairs(array) else _element(array)


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


def _fma(builder, x, weights, held):
    return v._call(builder, "llvm.fma", [x, weights, held])


def _dot(builder, x, weights, held):
    """One step of pairs: held + x1 w1, rounded, + x0 w0, rounded."""
    pairs = ir.VectorType(_BFloat(), 2 * _REGISTER)
    values = [held, builder.bitcast(x, pairs), builder.bitcast(weights, pairs)]
    return builder.call(v._function(builder, "llvm.x86.avx512bf16.dpbf16ps.512", held.type, values), values)


def _boolean(context, value):
    return ir.Constant(context.get_value_type(types.boolean), int(value))


@intrinsic
def _has_dot(typingctx):
    """Whether the processor multiplies pairs of bfloat16."""

    def codegen(context, builder, signature, args):
        return _boolean(context, v._has(context, "avx512bf16", "avx512f"))

    return types.boolean(), codegen


@jit
def multiplies_pairs():
    """Whether bfloat16 inputs and weights are to be packed in pairs."""
    return _has_dot()


@intrinsic
def _are_pairs(typingctx, steps):
    """Whether the steps of an array are pairs of bfloat16."""
    return types.boolean(steps), lambda context, builder, signature, args: _boolean(context, _of_pairs(steps))


@inline
def _num_steps(steps, depth):
    return (depth + 1) // 2 if _are_pairs(steps) else depth


@intrinsic
def _step_at(typingctx, row, k, depth, steps):
    """Step k of a row of `depth` numbers, as an element of `steps`."""

    def load(context, builder, signature, args, index):
        pointer, size = v._pointer(context, builder, signature.args[0], args[0], index, 1)
        return builder.load(pointer, align=size)

    def number(context, builder, signature, args):
        other = builder.xor(args[1], _number(1))
        index = builder.select(builder.icmp_signed("<", other, args[2]), other, args[1])
        value = v._widened(builder, row.dtype, load(context, builder, signature, args, index), 1)
        value = builder.extract_element(value, ir.Constant(v.I32, 0))
        return value if value.type == _element(steps) else builder.fpext(value, _element(steps))

    def pair(context, builder, signature, args):
        first = builder.mul(args[1], _number(2))
        second = builder.add(first, _number(1))
        inside = builder.icmp_signed("<", second, args[2])
        halves = []
        for index in (first, builder.select(inside, second, first)):
            half = load(context, builder, signature, args, index)
            halves.append(builder.zext(builder.extract_element(half, ir.Constant(v.I32, 0)), v.I32))
        upper = builder.select(inside, builder.shl(halves[1], ir.Constant(v.I32, 16)), ir.Constant(v.I32, 0))
        return builder.or_(halves[0], upper)

    return steps.dtype(row, types.intp, types.intp, steps), pair if _of_pairs(steps) else number


def _halves(builder, pairs):
    """Both numbers of pairs of bfloat16, as float32."""
    floats = ir.VectorType(v.F32, pairs.type.count)
    shifted = builder.shl(pairs, ir.Constant(pairs.type, [16] * pairs.type.count))
    masked = builder.and_(pairs, ir.Constant(pairs.type, [-65536] * pairs.type.count))
    return [builder.bitcast(shifted, floats), builder.bitcast(masked, floats)]


@intrinsic
def _check_step(typingctx, step):
    """0 times the step, NaN where it is not finite."""

    def codegen(context, builder, signature, args):
        if step != types.uint32:
            return builder.fmul(args[0], ir.Constant(args[0].type, 0.0))
        one = v._splat(builder, args[0], 1)
        low, high = (builder.extract_element(half, ir.Constant(v.I32, 0)) for half in _halves(builder, one))
        zero = ir.Constant(v.F32, 0.0)
        return builder.fadd(builder.fmul(low, zero), builder.fmul(high, zero))

    return (types.float64 if step == types.float64 else types.float32)(step), codegen


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
        piece = _REGISTER if _of_pairs(panel) else lanes
        step = _dot if _of_pairs(panel) else _fma
        vector, stored = ir.VectorType(element, piece), ir.VectorType(_stored(panel), piece)
        size, starts = 8 if element == v.F64 else 4, range(0, lanes, piece)
        a = builder.gep(_data(context, builder, kinds[0], args[0]).data, [builder.add(args[1], _number(row))])
        b = builder.gep(_data(context, builder, kinds[2], args[2]).data, [builder.add(args[3], _number(lane))])
        before = builder.block
        loop, after = builder.append_basic_block("k"), builder.append_basic_block("k.end")
        builder.branch(loop)
        builder.position_at_end(loop)
        k = builder.phi(_I64)
        sums = [[builder.phi(vector) for _ in starts] for _ in range(rows)]
        k.add_incoming(_number(0), before)
        line, column = builder.mul(k, _number(width)), builder.mul(k, _number(ROWS))
        weights = [
            builder.load(_at(builder, b, builder.add(line, _number(start)), stored), align=size) for start in starts
        ]
        grown = []
        for r in range(rows):
            x = v._splat(builder, builder.load(builder.gep(a, [builder.add(column, _number(r))])), piece)
            grown.append([step(builder, x, w, held) for w, held in zip(weights, sums[r], strict=True)])
        following = builder.add(k, _number(1))
        k.add_incoming(following, loop)
        zero = ir.Constant(vector, [0.0] * piece)
        for phis, values in zip(sums, grown, strict=True):
            for phi, value in zip(phis, values, strict=True):
                phi.add_incoming(zero, before)
                phi.add_incoming(value, loop)
        builder.cbranch(builder.icmp_signed("<", following, args[4]), loop, after)
        builder.position_at_end(after)
        addends = _data(context, builder, kinds[5], args[5]).data
        data = _data(context, builder, kinds[7], args[7]).data
        is_first, is_last = (builder.trunc(args[i], ir.IntType(1)) for i in (10, 11))
        for j, start in enumerate(starts):
            place = _number(lane + start)
            bias = builder.load(_at(builder, addends, builder.add(args[6], place), vector), align=size)
            bias = builder.select(is_last, bias, zero)
            for r in range(rows):
                at = builder.add(args[8], builder.mul(args[9], _number(row + r)))
                pointer = _at(builder, data, builder.add(at, place), vector)
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


@intrinsic
def _transpose(typingctx, rows, first, stop, column, panel, at):
    """panel[at + k * width + i] = step column + k of rows[first + i], for a square of half a width.

    Rows from `stop` on repeat the last one. Returns the sum of 0 x: NaN where an x is not finite.
    """
    target, width = _element(panel), _width(panel)
    side = width // 2

    def codegen(context, builder, signature, args):
        source = _data(context, builder, signature.args[0], args[0])
        stride = builder.extract_value(source.strides, 0)
        stored = context.get_data_type(rows.dtype)
        size = context.get_abi_sizeof(stored)
        vector, floats = ir.VectorType(_stored(panel), side), ir.VectorType(target, side)
        column = builder.mul(args[3], _number(2 if _of_pairs(panel) else 1))
        last = builder.sub(args[2], _number(1))
        lines, check, zeros = [], ir.Constant(floats, [0.0] * side), ir.Constant(floats, [0.0] * side)
        for i in range(side):
            row = builder.add(args[1], _number(i))
            row = builder.select(builder.icmp_signed("<", row, last), row, last)
            begin = builder.gep(builder.bitcast(source.data, ir.IntType(8).as_pointer()), [builder.mul(row, stride)])
            start = builder.bitcast(begin, stored.as_pointer())
            if _of_pairs(panel):
                line = builder.load(_at(builder, start, column, vector), align=size)
                values = _halves(builder, line)
            else:
                loaded = builder.load(_at(builder, start, column, ir.VectorType(stored, side)), align=size)
                line = v._widened(builder, rows.dtype, loaded, side)
                line = line if line.type == vector else builder.fpext(line, vector)
                values = [line]
            for value in values:
                check = v._call(builder, "llvm.fma", [value, zeros, check])
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
            index = builder.add(args[5], _number((k if _of_pairs(panel) else k ^ 1) * width))
            builder.store(line, _at(builder, data, index, vector), align=4 if target == v.F32 else 8)
        return v._folded(builder, check, builder.fadd)

    scalar = types.float64 if target == v.F64 else types.float32
    return scalar(rows, types.intp, types.intp, types.intp, panel, types.intp), codegen


@jit
def pack_panel(rows, first, stop, depth, panel):
    """Widen and transpose rows `first` to `stop`, at most a width of them, to panel (steps, width).

    Returns NaN where one of them is not finite, else 0.
    """
    width = v.width(panel)
    side = width // 2
    check = 0.0
    square = 2 * side if _are_pairs(panel) else side
    whole = depth // square * side
    for half in range(0, width, side):
        for k in range(0, whole, side):
            check += _transpose(rows, first + half, stop, k, panel, k * width + half)
    for i in range(width):
        row = rows[min(first + i, stop - 1)]
        for k in range(whole, _num_steps(panel, depth)):
            step = _step_at(row, k, depth, panel)
            check += _check_step(step)
            panel[k * width + i] = step
    return check


@jit
def pack_rows(inputs, depth, packed):
    """Inputs (n, at least depth) as panels of 12 rows, step first; missing rows of the last panel are zeros."""
    rows, steps = inputs.shape[0], _num_steps(packed, depth)
    at = 0
    for first in range(0, rows, ROWS):
        here = min(ROWS, rows - first)
        for k in range(steps):
            for r in range(here):
                packed[at + r] = _step_at(inputs[first + r], k, depth, packed)
            for r in range(here, ROWS):
                packed[at + r] = 0
            at += ROWS


@inline
def _multiply_panel(packed, row_panel, depth, panel, biases, bias, out, at, stride):
    """One panel of rows times one panel of weights, into out[at:]."""
    steps, block = _num_steps(panel, depth), _num_steps(panel, DEPTH)
    for k in range(0, steps, block):
        here = min(block, steps - k)
        a, b = (row_panel * steps + k) * ROWS, k * v.width(panel)
        _multiply(packed, a, panel, b, here, biases, bias, out, at, stride, k == 0, k + here == steps)


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
    panels = packed.size // (_num_steps(packed, depth) * ROWS)
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
