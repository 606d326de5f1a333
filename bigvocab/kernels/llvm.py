"""Pieces of LLVM code for vectors, put together while a kernel is compiled: types, constants, calls, registers."""

from __future__ import annotations

from llvmlite import ir
from numba import types

F32, F64, I16, I32, I64 = ir.FloatType(), ir.DoubleType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
ELEMENTS = {"float": F32, "double": F64, "int": I32, "short": I16, "long": I64}


def vector_type(lanes):
    """The LLVM type of these lanes."""
    return ir.VectorType(ELEMENTS[lanes.kind], lanes.count)


def constant(lanes, value):
    """A constant vector with `value` in every lane."""
    return ir.Constant(vector_type(lanes), [value] * lanes.count)


def scalar_type(lanes):
    """The Numba type of one lane."""
    return {"float": types.float32, "double": types.float64, "int": types.int32, "long": types.int64}[lanes.kind]


def splat(builder, scalar, count):
    """A vector of `count` lanes with `scalar` in each."""
    empty = ir.Constant(ir.VectorType(scalar.type, count), ir.Undefined)
    first = builder.insert_element(empty, scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(I32, count), [0] * count))


_SUFFIX = {"float": "f32", "double": "f64", "half": "f16"}


def suffix(kind):
    """How LLVM names a vector type in the name of an intrinsic function."""
    element = _SUFFIX.get(str(kind.element)) or str(kind.element)
    return f"v{kind.count}{element}"


def function(builder, name, result, arguments):
    """The LLVM function `name`, declared once a module."""
    known = builder.module.globals.get(name)
    return known or ir.Function(builder.module, ir.FunctionType(result, [a.type for a in arguments]), name)


def call(builder, name, arguments, result=None):
    """Call the LLVM intrinsic `name` for vectors like the first argument."""
    full = f"{name}.{suffix(arguments[0].type)}"
    return builder.call(function(builder, full, result or arguments[0].type, arguments), arguments)


def pieces(builder, vector, size):
    """The registers of `size` numbers that a vector is made of."""
    count = vector.type.count
    for start in range(0, count, size):
        yield builder.shuffle_vector(
            vector, vector, ir.Constant(ir.VectorType(I32, size), list(range(start, start + size)))
        )


def joined(builder, parts):
    """One vector of several of equal size, as many as a power of 2, in their order."""
    while len(parts) > 1:
        size = 2 * parts[0].type.count
        order = ir.Constant(ir.VectorType(I32, size), list(range(size)))
        parts = [builder.shuffle_vector(a, b, order) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def has(context, *features):
    """Whether the processor that the code is made for has these features (NUMBA_CPU_FEATURES is honoured)."""
    return all(f"+{feature}" in context.codegen().magic_tuple()[2].split(",") for feature in features)


def opaque(builder, number):
    """A number that the compiler knows nothing of: a loop keeps it in a register, where it would load a constant anew
    each time.
    """
    kind = ir.FunctionType(number.type, [number.type])
    return builder.asm(kind, "", "=r,0", [number], False)


def folded(builder, vector, combine):
    """Fold the upper half on the lower one until one lane is left: the same tree on every processor."""
    while vector.type.count > 1:
        lower, upper = pieces(builder, vector, vector.type.count // 2)
        vector = combine(lower, upper)
    return builder.extract_element(vector, ir.Constant(I32, 0))
