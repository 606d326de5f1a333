"""What products of rows read: both sides widened, transposed and laid out in the order in which they are multiplied.

Inputs become panels of 12 rows, (steps, 12), a layer's rows panels of one vector's width of classes, (steps, width). A
step is one k, or a pair of bfloat16 in a uint32 where the processor multiplies such pairs. Rows of a layer may lie
anywhere: those of the next panel are asked for while the one before is multiplied, so that no copy of them is needed.
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

ROWS = 12  # of inputs in a panel
_ASKED = 4096  # bytes of a row that are asked for ahead: the processor's own prefetch goes on from there


def of_pairs(array):
    """Whether an array of steps holds pairs of bfloat16."""
    return array.dtype == types.uint32


def stored_type(array):
    """LLVM's type of a step."""
    return v.I32 if of_pairs(array) else element_type(array)


def element_type(array):
    """LLVM's type of the numbers that are multiplied."""
    return v.F64 if array.dtype == types.float64 else v.F32


def width_of(array):
    """Classes of a panel: one vector."""
    return v.lanes_of(array.dtype).count


def data_of(context, builder, array_type, array):
    """The fields of an array."""
    from numba.np import arrayobj

    return arrayobj.make_array(array_type)(context, builder, array)


def constant(value):
    """An int64."""
    return ir.Constant(ir.IntType(64), value)


def pointer_at(builder, data, index, kind):
    """Pointer to a `kind` that begins at element `index` of `data`."""
    return builder.bitcast(builder.gep(data, [index]), kind.as_pointer())


def _boolean(context, value):
    return ir.Constant(context.get_value_type(types.boolean), int(value))


@intrinsic
def _has_dot(typingctx):
    """Whether the processor multiplies pairs of bfloat16."""

    def codegen(context, builder, signature, args):
        return _boolean(context, llvm.has(context, "avx512bf16", "avx512f"))

    return types.boolean(), codegen


@jit
def multiplies_pairs():
    """Whether bfloat16 inputs and weights are to be packed in pairs."""
    return _has_dot()


@intrinsic
def _are_pairs(typingctx, steps):
    """Whether the steps of an array are pairs of bfloat16."""
    return types.boolean(steps), lambda context, builder, signature, args: _boolean(context, of_pairs(steps))


@inline
def num_steps(steps, depth):
    """Steps of rows of `depth` numbers."""
    return (depth + 1) // 2 if _are_pairs(steps) else depth


@intrinsic
def _step_at(typingctx, row, k, depth, steps):
    """Step k of a row of `depth` numbers, as an element of `steps`."""

    def load(context, builder, signature, args, index):
        pointer, size = m.pointer_to(context, builder, signature.args[0], args[0], index, 1)
        return builder.load(pointer, align=size)

    def number(context, builder, signature, args):
        other = builder.xor(args[1], constant(1))
        index = builder.select(builder.icmp_signed("<", other, args[2]), other, args[1])
        value = m.widened(builder, row.dtype, load(context, builder, signature, args, index), 1)
        value = builder.extract_element(value, ir.Constant(v.I32, 0))
        return value if value.type == element_type(steps) else builder.fpext(value, element_type(steps))

    def pair(context, builder, signature, args):
        first = builder.mul(args[1], constant(2))
        second = builder.add(first, constant(1))
        inside = builder.icmp_signed("<", second, args[2])
        halves = []
        for index in (first, builder.select(inside, second, first)):
            half = load(context, builder, signature, args, index)
            halves.append(builder.zext(builder.extract_element(half, ir.Constant(v.I32, 0)), v.I32))
        upper = builder.select(inside, builder.shl(halves[1], ir.Constant(v.I32, 16)), ir.Constant(v.I32, 0))
        return builder.or_(halves[0], upper)

    return steps.dtype(row, types.intp, types.intp, steps), pair if of_pairs(steps) else number


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
        one = llvm.splat(builder, args[0], 1)
        low, high = (builder.extract_element(half, ir.Constant(v.I32, 0)) for half in _halves(builder, one))
        zero = ir.Constant(v.F32, 0.0)
        return builder.fadd(builder.fmul(low, zero), builder.fmul(high, zero))

    return (types.float64 if step == types.float64 else types.float32)(step), codegen


@inline
def picked(ids, i):
    """Where row i of the weights lies: they are the first ones, or those of `ids`."""
    return i if ids is None else ids[i]


def _row_start(context, builder, rows, array, row):
    """Pointer to the first element of a row."""
    source = data_of(context, builder, rows, array)
    offset = builder.mul(row, builder.extract_value(source.strides, 0))
    begin = builder.gep(builder.bitcast(source.data, ir.IntType(8).as_pointer()), [offset])
    return builder.bitcast(begin, context.get_data_type(rows.dtype).as_pointer())


@intrinsic
def _ask_for(typingctx, rows, row, start):
    """Ask for the memory of 64 bytes of a row, from byte `start` on, for the second-level cache."""

    def codegen(context, builder, signature, args):
        first = builder.bitcast(_row_start(context, builder, rows, args[0], args[1]), m.BYTES)
        m.ask_for(builder, builder.gep(first, [args[2]]), 2)
        return context.get_dummy_value()

    return types.none(rows, types.intp, types.intp), codegen


@inline
def ask_for_rows(rows, ids, first, stop, depth):
    """Ask for the memory of a panel's rows, which lie anywhere: it comes while the panel before is multiplied."""
    for i in range(first, stop):
        for start in range(0, min(depth * rows.itemsize, _ASKED), 64):
            _ask_for(rows, ids[i], start)


def _widened_line(builder, rows, start, column, vector, size):
    """Elements of a row from a column on, as the numbers of `vector`."""
    stored = ir.VectorType(start.type.pointee, vector.count)
    line = m.widened(
        builder, rows.dtype, builder.load(pointer_at(builder, start, column, stored), align=size), vector.count
    )
    return line if line.type == vector else builder.fpext(line, vector)


def _transposed(builder, lines):
    """Lines of a square as its columns: the off-diagonal halves change places, then quarters, ..."""
    side, lines = len(lines), list(lines)
    step = side // 2
    while step:
        lower = [j if not j & step else side + j - step for j in range(side)]
        upper = [j + step if not j & step else side + j for j in range(side)]
        for i in range(side):
            if not i & step:
                a, b = lines[i], lines[i + step]
                for place, order in ((i, lower), (i + step, upper)):
                    lines[place] = builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(v.I32, side), order))
        step //= 2
    return lines


@intrinsic
def _transpose_inputs(typingctx, inputs, first, column, packed, at):
    """packed[at + k * 12 + r] = step column + k of inputs[first + r], for 12 rows and 16 steps."""
    side = 16

    def codegen(context, builder, signature, args):
        size = context.get_abi_sizeof(context.get_data_type(inputs.dtype))
        vector = ir.VectorType(stored_type(packed), side)
        column = builder.mul(args[2], constant(2 if of_pairs(packed) else 1))
        lines = []
        for r in range(ROWS):
            start = _row_start(context, builder, inputs, args[0], builder.add(args[1], constant(r)))
            if of_pairs(packed):
                lines.append(builder.load(pointer_at(builder, start, column, vector), align=size))
            else:
                lines.append(_widened_line(builder, inputs, start, column, vector, size))
        lines += [ir.Constant(vector, ir.Undefined)] * (side - ROWS)
        data = data_of(context, builder, signature.args[3], args[3]).data
        twelve = ir.Constant(ir.VectorType(v.I32, ROWS), list(range(ROWS)))
        for k, line in enumerate(_transposed(builder, lines)):
            index = builder.add(args[4], constant((k if of_pairs(packed) else k ^ 1) * ROWS))
            rows = builder.shuffle_vector(line, line, twelve)
            builder.store(rows, pointer_at(builder, data, index, rows.type), align=8 if vector.element == v.F64 else 4)
        return context.get_dummy_value()

    return types.none(inputs, types.intp, types.intp, packed, types.intp), codegen


@intrinsic
def transpose(typingctx, rows, ids, first, stop, column, panel, at):
    """panel[at + k * width + i] = step column + k of the row picked for first + i, for a square of half a width.

    Rows from `stop` on repeat the last one. Returns the sum of 0 x: NaN where an x is not finite.
    """
    target, width = element_type(panel), width_of(panel)
    side = width // 2

    def codegen(context, builder, signature, args):
        size = context.get_abi_sizeof(context.get_data_type(rows.dtype))
        vector, floats = ir.VectorType(stored_type(panel), side), ir.VectorType(target, side)
        column = builder.mul(args[4], constant(2 if of_pairs(panel) else 1))
        last = builder.sub(args[3], constant(1))
        lines, check, zeros = [], ir.Constant(floats, [0.0] * side), ir.Constant(floats, [0.0] * side)
        for i in range(side):
            row = builder.add(args[2], constant(i))
            row = builder.select(builder.icmp_signed("<", row, last), row, last)
            if ids != types.none:
                row = builder.load(builder.gep(data_of(context, builder, ids, args[1]).data, [row]))
            start = _row_start(context, builder, rows, args[0], row)
            if of_pairs(panel):
                line = builder.load(pointer_at(builder, start, column, vector), align=size)
                values = _halves(builder, line)
            else:
                line = _widened_line(builder, rows, start, column, vector, size)
                values = [line]
            for value in values:
                check = llvm.call(builder, "llvm.fma", [value, zeros, check])
            lines.append(line)
        data = data_of(context, builder, signature.args[5], args[5]).data
        for k, line in enumerate(_transposed(builder, lines)):
            index = builder.add(args[6], constant((k if of_pairs(panel) else k ^ 1) * width))
            builder.store(line, pointer_at(builder, data, index, vector), align=4 if target == v.F32 else 8)
        return llvm.folded(builder, check, builder.fadd)

    scalar = types.float64 if target == v.F64 else types.float32
    return scalar(rows, ids, types.intp, types.intp, types.intp, panel, types.intp), codegen


@jit
def pack_panel(rows, ids, first, stop, depth, panel):
    """Widen and transpose rows[first:stop], or rows[ids[first:stop]], at most a width of them, to panel (steps, width).

    Returns NaN where one of them is not finite, else 0.
    """
    width = m.width(panel)
    side = width // 2
    check = 0.0
    square = 2 * side if _are_pairs(panel) else side
    whole = depth // square * side
    for half in range(0, width, side):
        for k in range(0, whole, side):
            check += transpose(rows, ids, first + half, stop, k, panel, k * width + half)
    for i in range(width):
        row = rows[picked(ids, min(first + i, stop - 1))]
        for k in range(whole, num_steps(panel, depth)):
            step = _step_at(row, k, depth, panel)
            check += _check_step(step)
            panel[k * width + i] = step
    return check


@jit
def pack_rows(inputs, depth, packed):
    """Inputs (n, at least depth) as panels of 12 rows, step first; missing rows of the last panel are zeros."""
    rows, steps = inputs.shape[0], num_steps(packed, depth)
    whole = depth // (32 if _are_pairs(packed) else 16) * 16
    at = 0
    for first in range(0, rows, ROWS):
        here, begin = min(ROWS, rows - first), 0
        if here == ROWS:
            for k in range(0, whole, 16):
                _transpose_inputs(inputs, first, k, packed, at + k * ROWS)
            begin = whole
        for r in range(ROWS):
            row = inputs[min(first + r, rows - 1)]
            for k in range(begin, steps):
                packed[at + k * ROWS + r] = _step_at(row, k, depth, packed) if r < here else 0
        at += steps * ROWS


# ---- layers that are stored the other way round: a row of the weights is a column there

_LINES = 8  # steps that are put at a time


@intrinsic
def _put_lines(typingctx, columns, step, first, panel, at):
    """panel[at + k * width + i] = step `step` + k of column first + i, for a width of columns and 8 steps.

    Returns the sum of 0 x: NaN where an x is not finite.
    """
    target, width = element_type(panel), width_of(panel)

    def codegen(context, builder, signature, args):
        size = context.get_abi_sizeof(context.get_data_type(columns.dtype))
        floats = ir.VectorType(target, width)
        check, zeros = ir.Constant(floats, [0.0] * width), ir.Constant(floats, [0.0] * width)
        data = data_of(context, builder, signature.args[3], args[3]).data
        row = builder.mul(args[1], constant(2 if of_pairs(panel) else 1))

        def line_at(number):
            return _row_start(context, builder, columns, args[0], builder.add(row, constant(number)))

        for k in range(_LINES):
            if of_pairs(panel):
                shorts, whole = ir.VectorType(ir.IntType(16), width), ir.VectorType(v.I32, width)
                low, high = (
                    builder.zext(
                        builder.load(pointer_at(builder, line_at(2 * k + i), args[2], shorts), align=size), whole
                    )
                    for i in range(2)
                )
                line = builder.or_(low, builder.shl(high, ir.Constant(whole, [16] * width)))
                values = _halves(builder, line)
            else:
                line = _widened_line(builder, columns, line_at(k ^ 1), args[2], floats, size)
                values = [line]
            for value in values:
                check = llvm.call(builder, "llvm.fma", [value, zeros, check])
            place = builder.add(args[4], constant(k * width))
            builder.store(line, pointer_at(builder, data, place, line.type), align=4 if target == v.F32 else 8)
        return llvm.folded(builder, check, builder.fadd)

    scalar = types.float64 if target == v.F64 else types.float32
    return scalar(columns, types.intp, types.intp, panel, types.intp), codegen


@jit
def pack_columns(columns, ids, first, stop, depth, panel):
    """As `pack_panel` of rows that are stored as columns (D, V), which only have to be widened, not transposed."""
    width, steps = m.width(panel), num_steps(panel, depth)
    check = 0.0
    begin = 0
    if ids is None and stop - first == width:
        begin = (depth // 2 if _are_pairs(panel) else depth) // _LINES * _LINES
        for k in range(0, begin, _LINES):
            check += _put_lines(columns, k, first, panel, k * width)
    row = np.empty(depth, columns.dtype)
    for i in range(width if begin < steps else 0):
        column = picked(ids, min(first + i, stop - 1))
        for k in range(depth):
            row[k] = columns[k, column]
        for k in range(begin, steps):
            step = _step_at(row, k, depth, panel)
            check += _check_step(step)
            panel[k * width + i] = step
    return check
