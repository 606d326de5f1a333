"""Lists of Python numbers read into arrays, by functions of Python's C API: a quarter of the time of NumPy's loop.

Only objects whose class is int, bool or float itself are read: no code of theirs runs, so the list stays as it is while
these kernels, which keep the GIL, hold it; they look at its length themselves, for it may have changed before. Source
of the functions: the Python/C API reference manual, Integer and Floating-Point Objects, Exception Handling.
"""

from __future__ import annotations

import ctypes

from numba import types
from numba.extending import intrinsic

from bigvocab.kernels.jit import inline, jit_with_gil

_address = types.intp
_integer_of = types.ExternalFunction("PyLong_AsLongLong", types.int64(_address))
_float_of = types.ExternalFunction("PyFloat_AsDouble", types.float64(_address))
_error = types.ExternalFunction("PyErr_Occurred", _address())
_clear_error = types.ExternalFunction("PyErr_Clear", types.void())

# The header of an object ends with the address of its class; a list has its length after it, and where its items lie.
_WORD = ctypes.sizeof(ctypes.c_void_p)
_CLASS_AT, _LENGTH_AT, _ITEMS_AT = (object.__basicsize__ + _WORD * i for i in (-1, 0, 1))


def _word_at(place: int) -> int | None:
    return ctypes.c_void_p.from_address(place).value


_PLAIN = [1, True, 0.5]
READABLE = (
    all(_word_at(id(one) + _CLASS_AT) == id(type(one)) for one in (*_PLAIN, _PLAIN))
    and _word_at(id(_PLAIN) + _LENGTH_AT) == len(_PLAIN)
    and all(
        _word_at((_word_at(id(_PLAIN) + _ITEMS_AT) or id(_PLAIN)) + _WORD * i) == id(one)
        for i, one in enumerate(_PLAIN)
    )
)


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
def read_integers(values, classes, out):
    """Put the integers of the list at the address `values` into `out`, int64; False where one is none or too large, or
    there are not as many.

    `classes` are the addresses of int and bool, and one of the two again.
    """
    if _load_address(values + _LENGTH_AT) != out.size:
        return False
    place = _load_address(values + _ITEMS_AT)
    for i in range(out.size):
        item = _load_address(place + _WORD * i)
        if not _is_plain(item, classes):
            return False
        out[i] = _integer_of(item)
        if out[i] == -1 and _error() != 0:
            _clear_error()
            return False
    return True


@jit_with_gil
def read_floats(values, classes, out):
    """Put the numbers of the list at the address `values` into `out`, float64; False where one is none or too large, or
    there are not as many.

    `classes` are the addresses of int, bool and float.
    """
    if _load_address(values + _LENGTH_AT) != out.size:
        return False
    place = _load_address(values + _ITEMS_AT)
    for i in range(out.size):
        item = _load_address(place + _WORD * i)
        if not _is_plain(item, classes):
            return False
        out[i] = _float_of(item)
        if out[i] == -1.0 and _error() != 0:
            _clear_error()
            return False
    return True
