"""Loads of stored numbers as lanes, and requests for memory ahead.

float16 arrays come as int16 and bfloat16 as uint16, and are widened in the load (NumPy's own conversion runs at 1
GB/s).
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from bigvocab.kernels import llvm
from bigvocab.kernels.lanes import SHORTS, Lanes, lanes_of
from bigvocab.kernels.llvm import F32, F64, I16, I32

BYTES = ir.IntType(8).as_pointer()


def widened(builder, dtype, raw, count):
    """Stored bits as float or double lanes."""
    if dtype == types.uint16:  # bfloat16 is the upper half of a float
        wide = builder.zext(raw, ir.VectorType(I32, count))
        shifted = builder.shl(wide, ir.Constant(wide.type, [16] * count))
        return builder.bitcast(shifted, ir.VectorType(F32, count))
    if dtype == types.int16:
        return builder.fpext(builder.bitcast(raw, ir.VectorType(ir.HalfType(), count)), ir.VectorType(F32, count))
    return raw


def pointer_to(context, builder, array_type, array, index, count):
    """Address of `count` elements from `index` on, as a pointer to a vector, and the size of one element."""
    from numba.np import arrayobj

    data = arrayobj.make_array(array_type)(context, builder, array).data
    element = context.get_data_type(array_type.dtype)
    address = builder.gep(data, [index])
    return builder.bitcast(address, ir.VectorType(element, count).as_pointer()), context.get_abi_sizeof(element)


@intrinsic
def load(typingctx, array, index):
    """The elements from `index` on, all within the array."""
    lanes = lanes_of(array.dtype)

    def codegen(context, builder, signature, args):
        pointer, size = pointer_to(context, builder, array, args[0], args[1], lanes.count)
        return widened(builder, array.dtype, builder.load(pointer, align=size), lanes.count)

    return lanes(array, types.intp), codegen


@intrinsic
def store(typingctx, lanes, array, index):
    """Put lanes into an array of their own type, from `index` on, all within the array."""

    def codegen(context, builder, signature, args):
        pointer, size = pointer_to(context, builder, array, args[1], args[2], lanes.count)
        builder.store(args[0], pointer, align=size)
        return context.get_dummy_value()

    return types.none(lanes, array, types.intp), codegen


@intrinsic
def load_unordered(typingctx, array, index):
    """As `load`, but lane by lane in any order, which is cheaper for bfloat16: the even elements, then the odd ones."""
    lanes = lanes_of(array.dtype)

    def codegen(context, builder, signature, args):
        pointer, size = pointer_to(context, builder, array, args[0], args[1], lanes.count)
        raw = builder.load(pointer, align=size)
        if array.dtype != types.uint16:
            return widened(builder, array.dtype, raw, lanes.count)
        pairs = builder.bitcast(raw, ir.VectorType(I32, lanes.count // 2))
        even = builder.shl(pairs, ir.Constant(pairs.type, [16] * pairs.type.count))
        odd = builder.and_(pairs, ir.Constant(pairs.type, [0xFFFF0000] * pairs.type.count))
        return builder.bitcast(llvm.joined(builder, [even, odd]), llvm.vector_type(lanes))

    return lanes(array, types.intp), codegen


@intrinsic
def load_beside(typingctx, array, index, lanes):
    """As many elements of a float64 array as `lanes` has, from `index` on, all within the array."""

    def codegen(context, builder, signature, args):
        pointer, size = pointer_to(context, builder, array, args[0], args[1], lanes.count)
        return builder.load(pointer, align=size)

    return Lanes("double", lanes.count)(array, types.intp, lanes), codegen


@intrinsic
def place_of(typingctx, array, index):
    """The index of the element that `load_unordered` puts into lane `index` % 32 of its vector of halves."""

    def codegen(context, builder, signature, args):
        if array.dtype != types.uint16:
            return args[1]
        number, one, four = args[1], ir.Constant(args[1].type, 1), ir.Constant(args[1].type, 4)
        lane = builder.and_(number, ir.Constant(number.type, 31))
        turned = builder.or_(
            builder.shl(builder.and_(lane, ir.Constant(number.type, 15)), one), builder.lshr(lane, four)
        )
        return builder.or_(builder.and_(number, ir.Constant(number.type, -32)), turned)

    return types.intp(array, types.intp), codegen


def ask_for(builder, address, locality):
    """Ask for the cache line of a BYTES: locality 0 to be used once, 2 for the second-level cache."""
    kinds = [BYTES, I32, I32, I32]
    function = builder.module.globals.get("llvm.prefetch.p0")
    function = function or ir.Function(builder.module, ir.FunctionType(ir.VoidType(), kinds), "llvm.prefetch.p0")
    builder.call(function, [address, *(ir.Constant(I32, n) for n in (0, locality, 1))])


@intrinsic
def prefetch(typingctx, array, index):
    """Ask for the memory of the vector at `index`, into the second-level cache; it may lie past the end of `array`.

    Asked for as memory to be used once, it passes by that cache, and Intel's processors read half as fast.
    """
    lanes = lanes_of(array.dtype)

    def codegen(context, builder, signature, args):
        pointer, size = pointer_to(context, builder, array, args[0], args[1], 1)
        address = builder.bitcast(pointer, BYTES)
        for line in range(0, lanes.count * size, 64):
            ask_for(builder, builder.gep(address, [ir.Constant(I32, line)]), 2)
        return context.get_dummy_value()

    return types.none(array, types.intp), codegen


@intrinsic
def load_part(typingctx, array, index, stop, fill):
    """The elements from `index` to `stop`, fewer than a whole vector, and `fill` in the lanes after them."""
    lanes = lanes_of(array.dtype)

    def codegen(context, builder, signature, args):
        pointer, size = pointer_to(context, builder, array, args[0], args[1], lanes.count)
        left = builder.trunc(builder.sub(args[2], args[1]), I32)
        number = ir.Constant(ir.VectorType(I32, lanes.count), list(range(lanes.count)))
        mask = builder.icmp_signed("<", number, llvm.splat(builder, left, lanes.count))
        stored = pointer.type.pointee
        arguments = [pointer, ir.Constant(I32, size), mask, ir.Constant(stored, None)]
        raw = builder.call(
            llvm.function(builder, f"llvm.masked.load.{llvm.suffix(stored)}.p0", stored, arguments), arguments
        )
        return builder.select(
            mask, widened(builder, array.dtype, raw, lanes.count), llvm.splat(builder, args[3], lanes.count)
        )

    return lanes(array, types.intp, types.intp, llvm.scalar_type(lanes)), codegen


@intrinsic
def load_scalar(typingctx, array, index):
    """One element as float64, exactly."""

    def codegen(context, builder, signature, args):
        pointer, size = pointer_to(context, builder, array, args[0], args[1], 1)
        value = builder.extract_element(
            widened(builder, array.dtype, builder.load(pointer, align=size), 1), ir.Constant(I32, 0)
        )
        return value if value.type == F64 else builder.fpext(value, F64)

    return types.float64(array, types.intp), codegen


@intrinsic
def width(typingctx, array):
    """How many elements of `array` are loaded at once."""
    lanes = lanes_of(array.dtype)
    return types.intp(array), lambda context, builder, signature, args: ir.Constant(ir.IntType(64), lanes.count)


# Half-precision numbers are compared as the integers they are stored in, twice as many in a register: with sign where
# the label is above 0; without it where it is below, because there the integers of numbers above 0 are smaller, and
# those of numbers below 0 run downwards. Not for a label of 0: to integers, -0 is another number.


def is_half(dtype):
    """Whether an array of this type holds half-precision numbers, as kernels take them."""
    return dtype in (types.int16, types.uint16)


def _order_of(dtype):
    return SHORTS if is_half(dtype) else lanes_of(dtype)


@intrinsic
def runs_downwards(typingctx, label, array):
    """Whether numbers above the label are stored as smaller integers, and compared so."""

    def codegen(context, builder, signature, args):
        if not is_half(array.dtype):
            return ir.Constant(ir.IntType(1), 0)
        return builder.fcmp_ordered("<", args[0], ir.Constant(args[0].type, 0.0))

    return types.boolean(label, array), codegen


@intrinsic
def order_of(typingctx, value, array):
    """A stored number in all lanes, to be compared with what `load_order` loads of `array`."""
    lanes = _order_of(array.dtype)

    def codegen(context, builder, signature, args):
        number = args[0]
        if array.dtype == types.uint16:
            number = builder.trunc(builder.lshr(builder.bitcast(number, I32), ir.Constant(I32, 16)), I16)
        elif array.dtype == types.int16:
            number = builder.bitcast(builder.fptrunc(number, ir.HalfType()), I16)
        return llvm.splat(builder, number, lanes.count)

    return lanes(llvm.scalar_type(lanes_of(array.dtype)), array), codegen


@intrinsic
def load_order(typingctx, array, index):
    """The elements from `index` on, all within the array, as lanes to count with."""
    lanes = _order_of(array.dtype)

    def codegen(context, builder, signature, args):
        pointer, size = pointer_to(context, builder, array, args[0], args[1], lanes.count)
        return builder.load(pointer, align=size)

    return lanes(array, types.intp), codegen
