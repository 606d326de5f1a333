"""The one door for arrays of other libraries: whatever a caller holds becomes NumPy, by a view wherever one exists.

No library is imported for it: an object of PyTorch can only be there if PyTorch is, so its module is taken from
`sys.modules`. What lies on an accelerator comes to the host block by block of rows (`as_row_source`), and whole only
where the whole is needed (`as_host_array`: labels, biases, a layer).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from bigvocab.errors import BigvocabError

Array = npt.NDArray[Any]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
BLOCK_BYTES = 64 << 20  # copied to the host, or gathered, at a time
_SMALL_PIECE = 4 << 20  # pieces below this are gathered into blocks
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


def _foreign(value: Any, name: str) -> ForeignArray | None:
    """What is known of an array of another library; None for NumPy's own, lists, numbers and all else."""
    if isinstance(value, np.ndarray | np.generic | list | tuple | int | float | str | bytes) or value is None:
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


def _to_numpy(found: ForeignArray, piece: Any, name: str) -> Array:
    """One piece on the host, without the library's own words for what cannot be."""
    try:
        return _own_bfloat16(found.to_numpy(piece))
    except (TypeError, RuntimeError, ValueError, BufferError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        kind = f"{type(found.value).__module__.split('.')[0]}'s {type(found.value).__name__}"
        raise TypeError(f"{name}: got {kind}, which gives no NumPy array: {reason}") from error


# ---- doors


def is_array(value: Any) -> bool:
    """Whether `value` is an array of any library: a number, a list, a path or a table is none."""
    foreign = any(
        _is_of(value, library, *kinds)
        for library, kinds in {
            "torch": ("Tensor",),
            "jax": ("Array",),
            "tensorflow": ("Tensor", "Variable"),
            "cupy": ("ndarray",),
        }.items()
    )
    return foreign or isinstance(value, np.ndarray) or hasattr(value, "__array__") or hasattr(value, "__dlpack__")


def as_host_array(value: Any, name: str) -> Any:
    """An array of another library as NumPy's; a column of a table library as well; anything else as it came.

    A view where the elements are in host memory: bfloat16 of PyTorch too. What lies on an accelerator is copied, block
    by block of rows: matrices of logits go through `as_row_source` and are never copied whole. A column with nulls
    stays Arrow's, which knows where they are.

    Raises:
        TypeError: float8, quantised, sparse, nested, ragged, traced, distributed and meta arrays; with what to do.
    """
    if (found := _foreign(value, name)) is not None:
        return _whole(found, name)
    if isinstance(value, np.ndarray | np.generic | list | tuple | int | float | str | bytes) or value is None:
        return _own_bfloat16(value) if isinstance(value, np.ndarray) else value
    from bigvocab.tables import as_column  # pyarrow is loaded for tables alone

    if (column := as_column(value, name)) is not None:
        return column if column.null_count else column.to_numpy()
    if hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__"):
        array = _from_dlpack(value, name)
        if array is not None:
            return array
    if not hasattr(value, "__array__"):
        return value
    try:
        return _own_bfloat16(np.asarray(value))
    except (TypeError, RuntimeError, BufferError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise TypeError(f"{name}: got {type(value).__name__}, which gives no NumPy array: {reason}") from error


def _whole(found: ForeignArray, name: str) -> Array:
    if found.on_host or not found.shape or 0 in found.shape:
        return _to_numpy(found, found.value, name)
    out = np.empty(found.shape, found.dtype)
    step = max(1, BLOCK_BYTES * len(out) // max(1, out.nbytes))
    for start in range(0, len(out), step):
        out[start : start + step] = _to_numpy(found, found.value[start : start + step], name)
    return out


class RowSource:
    """Rows (N, V) of an array (..., V) of any library, in C order of its leading dimensions, as NumPy arrays.

    Rows in host memory are views. A copy is made of a few rows at a time, and only where they lie on an accelerator or
    not evenly spaced, as those of `x[:, :-1]` do.

    Attributes: `shape` (N, V), `leading` (the shape without V), `dtype`.
    """

    def __init__(
        self, pieces: list[Any], leading: tuple[int, ...], width: int, dtype: Any, to_numpy: Callable[[Any], Array]
    ) -> None:
        self._pieces, self._to_numpy = pieces, to_numpy
        self._firsts = np.concatenate([[0], np.cumsum([piece.shape[0] for piece in pieces], dtype=np.int64)])
        self.leading, self.dtype = leading, np.dtype(dtype)
        self.shape = (int(self._firsts[-1]), width)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def is_one_piece(self) -> bool:
        """Whether `rows` of any range is a view of the same host array."""
        return len(self._pieces) == 1 and isinstance(self._pieces[0], np.ndarray)

    def rows(self, start: int, stop: int) -> Array:
        """Rows `start` to `stop` as (stop - start, V): a view where they lie evenly in host memory."""
        if not 0 <= start <= stop <= len(self):
            raise BigvocabError(f"rows: got {start} to {stop}, expected a range within {len(self)} rows")
        found = [self._to_numpy(piece[a:b]) for piece, a, b in self._spans(start, stop)]
        if len(found) == 1:
            return found[0]
        return np.concatenate(found) if found else np.empty((0, self.shape[1]), self.dtype)

    def _spans(self, start: int, stop: int) -> Iterator[tuple[Any, int, int]]:
        at = int(np.searchsorted(self._firsts, start, side="right")) - 1
        while start < stop:
            first, end = int(self._firsts[at]), min(stop, int(self._firsts[at + 1]))
            if end > start:
                yield self._pieces[at], start - first, end - first
                start = end
            at += 1

    def blocks(self, max_bytes: int = BLOCK_BYTES) -> Iterator[tuple[int, Array]]:
        """(first row, rows) for all rows in order: whole host arrays as they are, others `max_bytes` at a time."""
        if self.is_one_piece:
            yield 0, self._pieces[0]
            return
        row_bytes = max(1, self.shape[1] * self.dtype.itemsize)
        step, start = max(1, max_bytes // row_bytes), 0
        for first, piece in zip(self._firsts[:-1], self._pieces, strict=True):
            first, stop = int(first), int(first) + int(piece.shape[0])
            if isinstance(piece, np.ndarray) and piece.nbytes >= _SMALL_PIECE:
                yield from self._cut(start, first, step)
                yield first, piece
                start = stop
        yield from self._cut(start, len(self), step)

    def _cut(self, start: int, stop: int, step: int) -> Iterator[tuple[int, Array]]:
        return ((row, self.rows(row, min(stop, row + step))) for row in range(start, stop, step))


def as_row_source(value: Any, name: str) -> RowSource:
    """The rows of an array (..., V), V >= 1, of any library.

    Raises:
        TypeError: no array, or one without plain elements, as `as_host_array` says.
        BigvocabError: fewer than 2 dimensions, or no columns.
    """
    found = _foreign(value, name)
    array: Any = None
    if found is None:
        array = as_host_array(value, name)
        if isinstance(array, list | tuple):
            array = np.asarray(array)
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{name}: expected an array, got {type(value).__name__}")
    elif found.on_host:
        array = _to_numpy(found, found.value, name)
    shape = array.shape if array is not None else found.shape  # type: ignore[union-attr]
    if len(shape) < 2 or shape[-1] == 0:
        raise BigvocabError(f"{name}: expected rows (..., V) with V >= 1, got shape {shape}")
    if array is not None:
        return RowSource(_even_pieces(array), shape[:-1], shape[-1], array.dtype, lambda piece: piece)
    assert found is not None
    here: ForeignArray = found
    pieces = [here.value[index] for index in np.ndindex(shape[:-2])]
    return RowSource(pieces, shape[:-1], shape[-1], here.dtype, lambda piece: _to_numpy(here, piece, name))


def _even_pieces(array: Array) -> list[Array]:
    """Views (n, V) that hold the rows in order, as few as its strides allow."""
    keep = array.ndim - 2  # the outermost dimension that one view can reach
    while keep > 0 and _evenly_spaced(array, keep - 1):
        keep -= 1
    if 0 in array.shape:
        return [array.reshape(-1, array.shape[-1]) if 0 not in array.shape[:-1] else array.reshape(0, array.shape[-1])]
    return [array[index].reshape(-1, array.shape[-1]) for index in np.ndindex(array.shape[:keep])]


def _evenly_spaced(array: Array, axis: int) -> bool:
    """Whether a step along `axis` is as long as all those of the next leading dimension together."""
    shape, strides = array.shape, array.strides
    inner = next((i for i in range(axis + 1, array.ndim - 1) if shape[i] != 1), None)
    return shape[axis] == 1 or inner is None or strides[axis] == shape[inner] * strides[inner]


def flat_labels(labels: Array, leading: tuple[int, ...], name: str = "labels", of: str = "logits") -> Array:
    """Labels, or weights, of the shape of the leading dimensions of the logits, as one for each row.

    Dimensions of size 1 may be missing or more, so that (N, 1) goes with N rows.

    Raises:
        BigvocabError: any other shape; both are named.
    """
    if labels.shape == leading:
        return labels.reshape(-1)
    if [size for size in labels.shape if size != 1] != [size for size in leading if size != 1]:
        if len(leading) == 1:
            raise BigvocabError(
                f"{name}: got shape {labels.shape}, expected ({leading[0]},), one for each row of {of}"
            )
        raise BigvocabError(f"{name}: got shape {labels.shape}, expected {leading}, as the {of} before their columns")
    return labels.reshape(-1)
