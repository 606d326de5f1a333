"""Logits of up to 32 bits as integers in the same order, and packed with their class into one integer of 64 bits: the
greater is the higher logit or, of equals, the lower class, so that no two are equal and ties need no care.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from bigvocab.kernels import llvm
from bigvocab.kernels import memory as m
from bigvocab.kernels.jit import inline, jit
from bigvocab.kernels.lanes import FLOATS, Lanes
from bigvocab.kernels.llvm import F32, I32, I64

INTS, LONGS = Lanes("int", 32), Lanes("long", 16)
SORTED = 128  # how many the network sorts
NONE = -(1 << 63)  # below all that are packed
_REGISTER = 8
I0 = ir.Constant(I32, 0)


def _order(builder, numbers):
    """Float bits as integers in the same order; -0 is 0. A NaN is somewhere."""
    integers = I32 if numbers.type == F32 else ir.VectorType(I32, numbers.type.count)

    def constant(kind, value):
        return ir.Constant(kind, value if kind in (F32, I32) else [value] * kind.count)

    bits = builder.bitcast(builder.fadd(numbers, constant(numbers.type, 0.0)), integers)
    turned = builder.and_(builder.ashr(bits, constant(integers, 31)), constant(integers, 0x7FFFFFFF))
    return builder.xor(bits, turned)


@intrinsic
def order_lanes(typingctx, lanes):
    """Lanes of floats as integers in the same order."""
    return INTS(lanes), lambda context, builder, signature, args: _order(builder, args[0])


@intrinsic
def order_of(typingctx, number):
    """A float as an integer in the same order."""

    def codegen(context, builder, signature, args):
        return builder.sext(_order(builder, args[0]), I64)

    return types.int64(types.float32), codegen


@intrinsic
def of_order(typingctx, order):
    """The float of such an integer."""

    def codegen(context, builder, signature, args):
        bits = builder.trunc(args[0], I32)
        turned = builder.and_(builder.ashr(bits, ir.Constant(I32, 31)), ir.Constant(I32, 0x7FFFFFFF))
        return builder.bitcast(builder.xor(bits, turned), F32)

    return types.float32(types.int64), codegen


@intrinsic
def least_lanes(typingctx, order):
    """The same integer in all lanes."""

    def codegen(context, builder, signature, args):
        return llvm.splat(builder, builder.trunc(args[0], I32), INTS.count)

    return INTS(types.int64), codegen


def _loading(lanes):
    @intrinsic
    def load(typingctx, array, index):
        def codegen(context, builder, signature, args):
            pointer, size = m.pointer_to(context, builder, array, args[0], args[1], lanes.count)
            return builder.load(pointer, align=size)

        return lanes(array, types.intp), codegen

    return load


# Numbers of one type from an index on, whatever else the kernel reads.
load_ints, load_longs, load_floats = _loading(INTS), _loading(LONGS), _loading(FLOATS)


def _number_at(context, builder, x, array, index):
    pointer, size = m.pointer_to(context, builder, x, array, index, 1)
    number = m.widened(builder, x.dtype, builder.load(pointer, align=size), 1)
    return builder.extract_element(number, I0)


@intrinsic
def append_from(typingctx, x, index, least, room, count):
    """Put `index` behind `count` others in `room`; the count with it if the logit x[index] is at least `least`, else as
    it was. Without a branch.
    """

    def codegen(context, builder, signature, args):
        number = _number_at(context, builder, x, args[0], args[1])
        to, size = m.pointer_to(context, builder, room, args[3], args[4], 1)
        one = builder.insert_element(ir.Constant(ir.VectorType(I64, 1), ir.Undefined), args[1], I0)
        builder.store(one, to, align=size)
        return builder.add(args[4], builder.zext(builder.fcmp_ordered(">=", number, args[2]), I64))

    return types.intp(x, types.intp, types.float32, room, types.intp), codegen


@intrinsic
def _packed_from(typingctx, x, index):
    """The logit x[index] packed with its index."""

    def codegen(context, builder, signature, args):
        number = _number_at(context, builder, x, args[0], args[1])
        upper = builder.shl(builder.zext(_order(builder, number), I64), ir.Constant(I64, 32))
        return builder.or_(upper, builder.and_(builder.not_(args[1]), ir.Constant(I64, 0xFFFFFFFF)))

    return types.int64(x, types.intp), codegen


@inline
def pack_all(x, room, start, stop):
    """Pack the logits of x whose indices are in a part of the room."""
    part = room[start:stop]
    for i in range(part.size):
        part[i] = _packed_from(x, part[i])


@intrinsic
def order_in(typingctx, packed):
    """The integer in the order of logits of what is packed."""
    return types.int64(types.int64), lambda context, builder, signature, args: builder.ashr(
        args[0], ir.Constant(I64, 32)
    )


@intrinsic
def class_in(typingctx, packed):
    """The class of what is packed."""
    return types.int64(types.int64), lambda context, builder, signature, args: builder.and_(
        builder.not_(args[0]), ir.Constant(I64, 0xFFFFFFFF)
    )


def _exchange(builder, a, b):
    above = builder.icmp_signed(">", a, b)
    return builder.select(above, a, b), builder.select(above, b, a)


@intrinsic
def _sort(typingctx, array):
    """Batcher's bitonic network over registers of 8: highest first."""

    def codegen(context, builder, signature, args):
        pointers = [
            m.pointer_to(context, builder, array, args[0], ir.Constant(I64, i), _REGISTER)[0]
            for i in range(0, SORTED, _REGISTER)
        ]
        held = [builder.load(pointer, align=8) for pointer in pointers]
        size = 2
        while size <= SORTED:
            distance = size // 2
            while distance:
                held = _step(builder, held, size, distance)
                distance //= 2
            size *= 2
        for pointer, register in zip(pointers, held, strict=True):
            builder.store(register, pointer, align=8)
        return context.get_dummy_value()

    return types.none(array), codegen


def _step(builder, held, size, distance):
    """Compare each number with that at its place ^ distance; runs of `size` alternate in their direction."""
    out = list(held)
    if distance >= _REGISTER:
        apart = distance // _REGISTER
        for low in range(len(held)):
            high = low ^ apart
            if low < high:
                greater, less = _exchange(builder, held[low], held[high])
                downwards = not low * _REGISTER & size
                out[low], out[high] = (greater, less) if downwards else (less, greater)
        return out
    order = ir.Constant(ir.VectorType(I32, _REGISTER), [lane ^ distance for lane in range(_REGISTER)])
    for i, register in enumerate(held):
        greater, less = _exchange(builder, register, builder.shuffle_vector(register, register, order))
        takes = [
            (lane & distance == 0) == (not (i * _REGISTER + lane) & size) for lane in range(_REGISTER)
        ]  # the greater
        out[i] = builder.select(ir.Constant(ir.VectorType(ir.IntType(1), _REGISTER), takes), greater, less)
    return out


@jit
def sort_packed(room):
    """Put the first SORTED of the room in order, the greatest first."""
    _sort(room)
