"""Rows of numbers of any type, and their products: the one place where hidden states meet an output layer.

Half and single precision are accumulated in float32, double precision in float64.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def accumulator(*dtypes: Any) -> np.dtype[Any]:
    """The type that products of these types are summed in: float64 where one of them is, else float32."""
    wide = any(np.dtype(dtype).newbyteorder("=") == np.float64 for dtype in dtypes)
    return np.dtype(np.float64 if wide else np.float32)


def converted(array: Array, dtype: Any = None) -> Array:
    """`array` (n, D) or (n,) as native, C-contiguous `dtype`, by default its accumulator; not copied where it is so.

    >>> import numpy as np
    >>> converted(np.array([[1.5, 2.0]], np.float16))
    array([[1.5, 2. ]], dtype=float32)
    """
    from bigvocab.kernels import convert
    from bigvocab.rows import kernel_view

    dtype = accumulator(array.dtype) if dtype is None else np.dtype(dtype)
    if array.dtype == dtype and array.flags.c_contiguous and array.flags.aligned:
        return array
    if array.ndim == 1:
        return converted(array[None, :], dtype)[0]
    out = np.empty(array.shape, dtype)
    if array.size:
        convert.widen_rows(kernel_view(array), array.shape[1], out)
    return out


def product(inputs: Array, rows: Array, out: Array | None = None) -> Array:
    """Inputs (n, D) times rows (m, D) transposed: (n, m) in the accumulator's type."""
    dtype = accumulator(inputs.dtype, rows.dtype)
    return np.matmul(converted(inputs, dtype), converted(rows, dtype).T, out=out)


def one_blas_thread() -> AbstractContextManager[Any]:
    """Hold BLAS to one thread, so that it does not fight with the workers over the cores."""
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[Any] = threadpool_limits(1, "blas")
    return limits
