"""The loops of the product: a panel or two of rows times one panel of weights: see products."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from bigvocab.kernels import lanes as v
from bigvocab.kernels import llvm
from bigvocab.kernels.panels import ROWS, constant, data_of, element_type, of_pairs, pointer_at, stored_type, width_of

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


def _loads(builder, panel, sources, line, column, span, vector):
    """What one step multiplies: for each row its number in every lane, and the vectors of weights."""
    (rows, lanes), (a, b) = span, sources
    piece = vector.count
    stored = ir.VectorType(stored_type(panel), piece)
    size = 8 if vector.element == v.F64 else 4
    weights = [
        builder.load(pointer_at(builder, b, builder.add(line, constant(start)), stored), align=size)
        for start in range(0, lanes, piece)
    ]
    for r in range(rows):
        yield llvm.splat(builder, builder.load(builder.gep(a[r], [column])), piece), weights


def _emit_steps(builder, panel, sources, span, vector, count):
    """Sums of `count` steps, [row][vector]: a loop, from the block where the builder stands to one after it."""
    rows, lanes = span
    step = _dot if of_pairs(panel) else _fma
    starts = range(0, lanes, vector.count)
    zero = ir.Constant(vector, [0.0] * vector.count)
    before = builder.block
    loop, after = builder.append_basic_block("k"), builder.append_basic_block("k.end")
    builder.branch(loop)
    builder.position_at_end(loop)
    k = builder.phi(ir.IntType(64))
    sums = [[builder.phi(vector) for _ in starts] for _ in range(rows)]
    k.add_incoming(constant(0), before)
    line, column = builder.mul(k, constant(width_of(panel))), builder.mul(k, constant(ROWS))
    grown = []
    for held, (x, weights) in zip(sums, _loads(builder, panel, sources, line, column, span, vector), strict=True):
        grown.append([step(builder, x, w, one) for w, one in zip(weights, held, strict=True)])
    following = builder.add(k, constant(1))
    k.add_incoming(following, loop)
    for phis, values in zip(sums, grown, strict=True):
        for phi, value in zip(phis, values, strict=True):
            phi.add_incoming(zero, before)
            phi.add_incoming(value, loop)
    builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
    builder.position_at_end(after)
    return grown


def _vector_of(panel, lanes):
    """The register that a product of so many lanes is worked in."""
    return ir.VectorType(element_type(panel), _REGISTER if of_pairs(panel) else lanes)


def _places(builder, data, at, stride, corner, span, vector):
    """Pointers to the sums of a tile, [row][vector]."""
    (row, lane), (rows, lanes) = corner, span
    return [
        [
            pointer_at(
                builder,
                data,
                builder.add(builder.add(at, builder.mul(stride, constant(row + r))), constant(lane + start)),
                vector,
            )
            for start in range(0, lanes, vector.count)
        ]
        for r in range(rows)
    ]


@intrinsic
def multiply(typingctx, packed, row_at, panel, panel_at, depth, biases, bias_at, out, out_at, stride, first, last):
    """Add `depth` steps of 12 rows and a width of classes to `out`, which is 0 if `first`; + biases if `last`."""
    element, width = element_type(panel), width_of(panel)

    def codegen(context, builder, signature, args):
        wide = llvm.has(context, "avx512f")
        rows, lanes = (ROWS, width) if wide else (ROWS // 2, width // 2)
        for row in range(0, ROWS, rows):
            for lane in range(0, width, lanes):
                _emit_block(context, builder, signature.args, args, (row, lane), (rows, lanes))
        return context.get_dummy_value()

    def _emit_block(context, builder, kinds, args, corner, span):
        row, lane = corner
        vector, size = _vector_of(panel, span[1]), 8 if element == v.F64 else 4
        first = data_of(context, builder, kinds[0], args[0]).data
        a = [builder.gep(first, [builder.add(args[1], constant(row + r))]) for r in range(span[0])]
        b = builder.gep(data_of(context, builder, kinds[2], args[2]).data, [builder.add(args[3], constant(lane))])
        grown = _emit_steps(builder, panel, (a, b), span, vector, args[4])
        zero = ir.Constant(vector, [0.0] * vector.count)
        addends = data_of(context, builder, kinds[5], args[5]).data
        data = data_of(context, builder, kinds[7], args[7]).data
        is_first, is_last = (builder.trunc(args[i], ir.IntType(1)) for i in (10, 11))
        places = _places(builder, data, args[8], args[9], corner, span, vector)
        for j in range(len(grown[0])):
            place = builder.add(args[6], constant(lane + j * vector.count))
            bias = builder.load(pointer_at(builder, addends, place, vector), align=size)
            bias = builder.select(is_last, bias, zero)
            for sums, pointers in zip(grown, places, strict=True):
                held = builder.select(is_first, zero, builder.load(pointers[j], align=size))
                builder.store(builder.fadd(builder.fadd(held, sums[j]), bias), pointers[j], align=size)

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


def _whole_multiplication(panels):
    """The intrinsic that multiplies so many panels of rows, 1 or 2, with a panel of whole numbers.

    A register for the sum of a block and one for the sum of all: of 32, 16 and 16 are the best, 8 rows of 24. With 6 of
    12, the sums of a block are too few to hide how long an instruction takes (0.87 of the speed).
    """

    @intrinsic
    def multiplied(
        typingctx,
        packed,
        row_at,
        panel,
        panel_at,
        depth,
        scales,
        block,
        blocks,
        biases,
        bias_at,
        out,
        out_at,
        stride,
        first,
        last,
        between,
    ):
        """As `multiply`, of blocks of `depth` steps of whole numbers, each of them times its scales[block + i].

        The second panel of rows lies `between` numbers after the first.
        """
        width = width_of(panel)

        def codegen(context, builder, signature, args):
            wide = llvm.has(context, "avx512f")
            span = (8 if wide and panels == 2 else 6), width if wide else width // 2
            for row in range(0, panels * ROWS, span[0]):
                for lane in range(0, width, span[1]):
                    _emit_blocks(context, builder, signature.args, args, (row, lane), span)
            return context.get_dummy_value()

        def _emit_blocks(context, builder, kinds, args, corner, span):
            row, lane = corner
            vector = _vector_of(panel, span[1])
            packed = data_of(context, builder, kinds[0], args[0]).data
            begins = [builder.add(args[1], builder.mul(args[15], constant(n))) for n in range(2)]
            a = [
                builder.gep(packed, [builder.add(begins[r // ROWS], constant(r % ROWS))])
                for r in range(row, row + span[0])
            ]
            b = builder.gep(data_of(context, builder, kinds[2], args[2]).data, [builder.add(args[3], constant(lane))])
            factors = data_of(context, builder, kinds[5], args[5]).data
            addends = data_of(context, builder, kinds[8], args[8]).data
            data = data_of(context, builder, kinds[10], args[10]).data
            is_first, is_last = (builder.trunc(args[n], ir.IntType(1)) for n in (13, 14))
            zero = ir.Constant(vector, [0.0] * vector.count)
            places = _places(builder, data, args[11], args[12], corner, span, vector)
            begun = [
                [builder.select(is_first, zero, builder.load(pointer, align=4)) for pointer in pointers]
                for pointers in places
            ]
            before = builder.block
            loop, after = builder.append_basic_block("block"), builder.append_basic_block("block.end")
            builder.branch(loop)
            builder.position_at_end(loop)
            i = builder.phi(ir.IntType(64))
            i.add_incoming(constant(0), before)
            held = [[builder.phi(vector) for _ in one] for one in begun]
            steps = builder.mul(i, args[4])
            here = (
                [builder.gep(one, [builder.mul(steps, constant(ROWS))]) for one in a],
                builder.gep(b, [builder.mul(steps, constant(width))]),
            )
            grown = _emit_steps(builder, panel, here, span, vector, args[4])
            line = builder.mul(builder.add(args[6], i), constant(width))
            totals = []
            for sums, phis in zip(grown, held, strict=True):
                totals.append([])
                for j, (one, phi) in enumerate(zip(sums, phis, strict=True)):
                    place = builder.add(line, constant(lane + j * vector.count))
                    scale = builder.load(pointer_at(builder, factors, place, vector), align=4)
                    totals[-1].append(_fma(builder, one, scale, phi))
            following = builder.add(i, constant(1))
            i.add_incoming(following, builder.block)
            for phis, first, new in zip(held, begun, totals, strict=True):
                for phi, start, value in zip(phis, first, new, strict=True):
                    phi.add_incoming(start, before)
                    phi.add_incoming(value, builder.block)
            builder.cbranch(builder.icmp_signed("<", following, args[7]), loop, after)
            builder.position_at_end(after)
            for j in range(len(places[0])):
                place = builder.add(args[9], constant(lane + j * vector.count))
                bias = builder.select(is_last, builder.load(pointer_at(builder, addends, place, vector), align=4), zero)
                for values, pointers in zip(totals, places, strict=True):
                    builder.store(builder.fadd(values[j], bias), pointers[j], align=4)

        arguments = (
            packed,
            types.intp,
            panel,
            types.intp,
            types.intp,
            scales,
            types.intp,
            types.intp,
            biases,
            types.intp,
            out,
            types.intp,
            types.intp,
            types.boolean,
            types.boolean,
            types.intp,
        )
        return types.void(*arguments), codegen

    return multiplied


multiply_one, multiply_two = _whole_multiplication(1), _whole_multiplication(2)
