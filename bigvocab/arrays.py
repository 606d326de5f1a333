"""The one door for arrays of other libraries: whatever a caller holds becomes NumPy, by a view wherever one exists.

No library is imported for it: an object of PyTorch can only be there if PyTorch is, so its module is taken from
`sys.modules`. What lies on an accelerator comes to the host block by block of rows (`matrices.row_source`), and
whole only where the whole is needed (`as_host_array`: labels, biases, a layer).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
BLOCK_BYTES = 64 << 20  # copied to the host, or gathered, at a time
_OWN = (np.ndarray, np.generic, list, tuple, int, float, str, bytes)
_HOST_DEVICES = (1, 3, 11)  # DLPack's kDLCPU, kDLCUDAHost, kDLROCMHost
_PLAIN = {"bool", "float16", "bfloat16", "float32", "float64", "complex64", "complex128"}
_PLAIN |= {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}


class ForeignArray:
    """An array of another library: its shape, NumPy's dtype for its elements, and how it comes to the host.

    Args:
        value: the object itself; `value[i]` and `value[start:stop]` are of its own kind.
        on_host: whether `to_numpy` is a view.
        to_numpy: makes any such piece a NumPy array.
    """

    def __init__(self, value: Any, shape: Any, dtype: Any, on_host: bool, to_numpy: Callable[[Any], Array]) -> None:
        self.value, self.on_host, self.to_numpy = value, on_host, to_numpy
        self.shape = tuple(int(size) for size in shape)
        self.dtype = np.dtype(dtype)


# ---- what each library calls its arrays


def _module(name: str) -> Any:
    """A library that the caller has imported, or None."""
    return sys.modules.get(name)


def _is_of(value: Any, library: str, *names: str) -> bool:
    """Whether `value` is an instance of one of these classes of a library that is loaded."""
    module = _module(library)
    kinds = tuple(kind for name in names if isinstance(kind := getattr(module, name, None), type))
    return isinstance(value, kinds)


def _refused(name: str, what: str, advice: str) -> TypeError:
    return TypeError(f"{name}: got {what}, expected a dense array of a plain type; {advice}")


def _numpy_dtype(name: str, library: str, dtype: str, advice: str) -> np.dtype[Any]:
    """NumPy's dtype for another library's name of one; a TypeError for those that NumPy has no word for."""
    if dtype not in _PLAIN:
        raise _refused(name, f"{library} of {dtype}", advice)
    return BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype)


def _from_torch(value: Any, name: str) -> ForeignArray:
    torch = _module("torch")
    kind = type(value).__name__
    if value.is_nested:
        raise _refused(name, "a nested torch tensor", "join its sequences with torch.cat(list(x.unbind()))")
    if value.is_quantized:
        raise _refused(name, f"a quantised torch tensor ({value.dtype})", "call .dequantize() on it")
    if value.layout is not torch.strided:
        raise _refused(name, f"a torch tensor of layout {value.layout}", "call .to_dense() on it")
    if value.device.type == "meta":
        raise _refused(name, "a torch tensor on the meta device, which has no data", "load the weights first")
    if hasattr(value, "full_tensor"):
        raise _refused(name, f"a distributed torch tensor ({kind})", "call .full_tensor() on it")
    dtype = str(value.dtype).removeprefix("torch.")
    stored = _numpy_dtype(name, "a torch tensor", dtype, "call .to(torch.bfloat16) or .float() on it, with its scale")

    def to_numpy(piece: Any) -> Array:
        piece = piece.detach().cpu()
        return piece.view(torch.int16).numpy().view(BFLOAT16) if stored == BFLOAT16 else piece.numpy()

    return ForeignArray(value.detach(), value.shape, stored, value.device.type == "cpu", to_numpy)


def _from_jax(value: Any, name: str) -> ForeignArray:
    if _is_of(value, "jax.core", "Tracer"):
        raise _refused(name, "a traced JAX value, which has no data", "call bigvocab outside of jit")
    if not value.is_fully_addressable:
        raise _refused(name, "a JAX array of several hosts", "give each host's own part, or gather it first")
    stored = _numpy_dtype(name, "a JAX array", str(value.dtype), "call .astype(jnp.bfloat16) on it, with its scale")
    on_host = all(device.platform == "cpu" for device in value.devices())
    return ForeignArray(value, value.shape, stored, on_host, np.asarray)


def _from_tensorflow(value: Any, name: str) -> ForeignArray:
    if _is_of(value, "tensorflow", "RaggedTensor"):
        raise _refused(name, "a tf.RaggedTensor", "give .flat_values, or (.row_splits, .values) for lists of ids")
    if _is_of(value, "tensorflow", "SparseTensor", "IndexedSlices"):
        raise _refused(name, f"a tf.{type(value).__name__}", "call tf.sparse.to_dense on it")
    if not hasattr(value, "numpy"):
        raise _refused(name, "a symbolic TensorFlow tensor, which has no data", "call bigvocab outside of tf.function")
    stored = _numpy_dtype(name, "a TensorFlow tensor", value.dtype.name, "cast it with tf.cast first, with its scale")
    on_host = "GPU" not in str(value.device).upper() and "TPU" not in str(value.device).upper()
    return ForeignArray(value, value.shape, stored, on_host, lambda piece: np.asarray(piece.numpy()))


def _from_cupy(value: Any, name: str) -> ForeignArray:
    stored = _numpy_dtype(name, "a CuPy array", str(value.dtype), "call .astype(cupy.float32) on it")
    return ForeignArray(value, value.shape, stored, False, lambda piece: np.asarray(piece.get()))


def _from_dlpack(value: Any, name: str) -> Array | None:
    """A view of an array of any library on the host; None where DLPack has no word for its type."""
    device, number = value.__dlpack_device__()
    if int(device) not in _HOST_DEVICES:
        kind = type(value).__name__
        raise _refused(name, f"{kind} on device {int(device)}:{number} of DLPack", "bring it to the host first")
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError):  # bfloat16, among others
        return None


_SPARSE = ("scipy.sparse", "cupyx.scipy.sparse", "sparse")


def foreign_array(value: Any, name: str) -> ForeignArray | None:
    """What is known of an array of another library; None for NumPy's own, lists, numbers and all else."""
    if isinstance(value, _OWN) or value is None:
        return None
    if _is_of(value, "torch", "Tensor"):
        return _from_torch(value, name)
    if _is_of(value, "jax", "Array"):
        return _from_jax(value, name)
    if _is_of(value, "tensorflow", "Tensor", "Variable", "RaggedTensor", "SparseTensor", "IndexedSlices"):
        return _from_tensorflow(value, name)
    if _is_of(value, "cupy", "ndarray"):
        return _from_cupy(value, name)
    if type(value).__module__.startswith(_SPARSE):
        raise _refused(name, f"a sparse array ({type(value).__name__})", "call .toarray() (or .todense()) on it")
    return None


def _own_bfloat16(array: Array) -> Array:
    """The same array, where another library registered a bfloat16 of its own."""
    if array.dtype.name == "bfloat16" and array.dtype != BFLOAT16 and array.itemsize == 2:
        return array.view(np.uint16).view(BFLOAT16)
    return array


def to_host(found: ForeignArray, piece: Any, name: str) -> Array:
    """One piece on the host, without the library's own words for what cannot be."""
    try:
        return _own_bfloat16(found.to_numpy(piece))
    except (TypeError, RuntimeError, ValueError, BufferError) as error:
        raise _no_view(found.value, name, error) from error


def _no_view(value: Any, name: str, error: Exception) -> TypeError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    kind = f"{type(value).__module__.split('.')[0]}.{type(value).__name__}"
    return TypeError(f"{name}: got {kind}, which gives no NumPy array: {reason}")


# ---- doors


def as_host_array(value: Any, name: str) -> Any:
    """An array of another library as NumPy's; a column of a table library as well; anything else as it came.

    A view where the elements are in host memory: bfloat16 of PyTorch too. What lies on an accelerator is copied, block
    by block of rows: rows of logits go through
    `matrices.row_source` and are never copied whole. A column with nulls
    stays Arrow's, which knows where they are.

    Raises:
        TypeError: float8, quantised, sparse, nested, ragged, traced, distributed and meta arrays; with what to do.
    """
    if (found := foreign_array(value, name)) is not None:
        return _whole(found, name)
    if isinstance(value, _OWN) or value is None:
        return _own_bfloat16(value) if isinstance(value, np.ndarray) else value
    value = _as_column(value)
    if first_null(value) is not None:
        return value
    if hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__"):
        array = _from_dlpack(value, name)
        if array is not None:
            return array
    if not hasattr(value, "__array__"):
        _refuse_holder(value, name)
        return value
    try:
        return _own_bfloat16(np.asarray(value))
    except (TypeError, RuntimeError, BufferError) as error:
        raise _no_view(value, name, error) from error


def _refuse_holder(value: Any, name: str) -> None:
    """Raise for what holds the array that is meant: a module of PyTorch, or what a model of transformers returns."""
    is_module = hasattr(value, "register_forward_pre_hook")
    held = "weight" if is_module else "logits" if isinstance(value, dict) and hasattr(value, "logits") else ""
    if is_module or held:
        advice = f"; give its .{held}" if hasattr(value, held) else ""
        raise TypeError(f"{name}: got {type(value).__name__}, expected an array{advice}")


def _as_column(value: Any) -> Any:
    """A column of Polars or of Hugging Face's `datasets` as Arrow's; anything else as it is."""
    if _is_of(value, "polars", "Series"):
        return value.to_arrow()
    if _is_of(value, "datasets.arrow_dataset", "Column") and _is_of(value.source, "datasets.arrow_dataset", "Dataset"):
        return value.source.select_columns([value.column_name]).with_format("arrow")[:].column(value.column_name)
    return value


def first_null(value: Any) -> int | None:
    """The place of the first null of a list or a column; None where there is none, or where `value` knows no nulls."""
    if isinstance(value, list | tuple):
        return next((at for at, item in enumerate(value) if item is None), None)
    if _is_of(value, "pyarrow", "Array", "ChunkedArray"):
        return int(np.argmax(np.asarray(value.is_null()))) if value.null_count else None
    if _is_of(value, "pandas", "Series", "Index") and (not isinstance(value.dtype, np.dtype) or value.dtype == object):
        return _first_true(value.isna())  # of numbers with a mask, of Arrow's, of objects
    return None


def _first_true(flags: Any) -> int | None:
    where = np.asarray(flags)
    return int(np.argmax(where)) if where.any() else None


def _whole(found: ForeignArray, name: str) -> Array:
    if found.on_host or not found.shape or 0 in found.shape:
        return to_host(found, found.value, name)
    out = np.empty(found.shape, found.dtype)
    step = max(1, BLOCK_BYTES * len(out) // max(1, out.nbytes))
    for start in range(0, len(out), step):
        out[start : start + step] = to_host(found, found.value[start : start + step], name)
    return out
