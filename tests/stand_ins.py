"""Arrays with the protocols of PyTorch, JAX, TensorFlow, CuPy and pandas, for tests without these libraries.

Each has what its library has, and refuses what it refuses: PyTorch's bfloat16 has no NumPy, what lies on a GPU has none
before it comes to the host. `copied` counts the bytes that came from there, and the largest piece.
"""

from __future__ import annotations

import types

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class Traffic:
    """Bytes that were copied from a device: all, and the most at a time."""

    def __init__(self):
        self.total = self.largest = 0

    def add(self, array):
        self.total += array.nbytes
        self.largest = max(self.largest, array.nbytes)


def torch_module():
    """A module with the parts of PyTorch's that its tensors are recognised and read by."""
    torch = types.ModuleType("torch")
    torch.strided, torch.sparse_coo, torch.int16 = "torch.strided", "torch.sparse_coo", "torch.int16"

    class Tensor:
        is_nested = is_quantized = False
        layout = torch.strided

        def __init__(self, array, dtype=None, device="cpu", requires_grad=False, traffic=None, **flags):
            self._array = array
            self._dtype = dtype or array.dtype.name
            self.dtype = f"torch.{self._dtype}"
            self.device = types.SimpleNamespace(type=device)
            self.requires_grad = requires_grad
            self.shape = array.shape
            self.ndim = array.ndim
            self.traffic = traffic
            for name, value in flags.items():
                setattr(self, name, value)

        def _like(self, array, **changed):
            own = {"dtype": self._dtype, "device": self.device.type, "traffic": self.traffic}
            return Tensor(array, **{**own, "requires_grad": self.requires_grad, **changed})

        def __getitem__(self, key):
            return self._like(self._array[key])

        def __len__(self):
            return len(self._array)

        def detach(self):
            return self._like(self._array, requires_grad=False)

        def cpu(self):
            if self.device.type != "cpu":
                self.traffic.add(self._array)
            return self._like(self._array, device="cpu")

        def view(self, dtype):
            assert dtype == torch.int16
            return self._like(self._array.view(np.int16), dtype="int16")

        def numpy(self):
            if self.requires_grad:
                raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
            if self.device.type != "cpu":
                raise TypeError(f"can't convert {self.device.type} device type tensor to numpy.")
            if self._dtype == "bfloat16" or self._dtype.startswith("float8"):
                raise TypeError("Got unsupported ScalarType BFloat16")
            return self._array

        def __array__(self, dtype=None, copy=None):
            return self.numpy()

    Tensor.__module__ = "torch"
    torch.Tensor = Tensor
    return torch


def jax_module():
    """A module with the parts of JAX's that its arrays are recognised and read by."""
    jax = types.ModuleType("jax")

    class Array:
        is_fully_addressable = True

        def __init__(self, array, platform="cpu", traffic=None):
            self._array, self._platform, self.traffic = array, platform, traffic
            self.dtype, self.shape, self.ndim = array.dtype, array.shape, array.ndim

        def devices(self):
            return [types.SimpleNamespace(platform=self._platform)]

        def __getitem__(self, key):
            return Array(self._array[key], self._platform, self.traffic)

        def __len__(self):
            return len(self._array)

        def __array__(self, dtype=None, copy=None):
            if self._platform != "cpu":
                self.traffic.add(self._array)
            return self._array

    jax.Array = Array
    return jax


def tensorflow_module():
    """A module with the parts of TensorFlow's that its tensors are recognised and read by."""
    tensorflow = types.ModuleType("tensorflow")

    class Tensor:
        def __init__(self, array, device="/job:localhost/replica:0/task:0/device:CPU:0", traffic=None):
            self._array, self.device, self.traffic = array, device, traffic
            self.dtype, self.shape, self.ndim = types.SimpleNamespace(name=array.dtype.name), array.shape, array.ndim

        def __getitem__(self, key):
            return type(self)(self._array[key], self.device, self.traffic)

        def __len__(self):
            return len(self._array)

    class EagerTensor(Tensor):
        def numpy(self):
            if self.traffic is not None:
                self.traffic.add(self._array)
            return self._array

        def __array__(self, dtype=None, copy=None):
            return self.numpy()

    class RaggedTensor:
        pass

    tensorflow.Tensor, tensorflow.EagerTensor, tensorflow.RaggedTensor = Tensor, EagerTensor, RaggedTensor
    return tensorflow


def cupy_module():
    """A module with the parts of CuPy's that its arrays are recognised and read by."""
    cupy = types.ModuleType("cupy")

    class ndarray:  # noqa: N801 - its name there
        def __init__(self, array, traffic):
            self._array, self.traffic = array, traffic
            self.dtype, self.shape, self.ndim = array.dtype, array.shape, array.ndim

        def __getitem__(self, key):
            return ndarray(self._array[key], self.traffic)

        def __len__(self):
            return len(self._array)

        def get(self):
            self.traffic.add(self._array)
            return self._array

        def __array__(self, dtype=None, copy=None):
            raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    cupy.ndarray = ndarray
    return cupy


class OfDlpack:
    """An array that speaks DLPack alone, on a device of that protocol."""

    def __init__(self, array, device=1):
        self._array, self._device = array, device

    def __dlpack_device__(self):
        return self._device, 0

    def __dlpack__(self, **options):
        if self._array.dtype == BFLOAT16:
            raise BufferError("Unsupported dtype in DLTensor.")
        return self._array.__dlpack__(**options)


class OfDlpackAndArray(OfDlpack):
    """The same, with NumPy's protocol as well."""

    def __array__(self, dtype=None, copy=None):
        return self._array


class OfArrow:
    """A table, or a column, that speaks Arrow's protocol of streams alone, as those of Polars and DuckDB do."""

    def __init__(self, table):
        self._table = table

    def __len__(self):
        return len(self._table)

    def __arrow_c_stream__(self, requested_schema=None):
        return self._table.__arrow_c_stream__(requested_schema)
