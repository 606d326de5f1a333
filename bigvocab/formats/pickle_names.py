"""The names that a file of torch.save may hold, by what its reader makes of them: none is ever looked up."""

from __future__ import annotations

_STORAGES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
}
STORAGE_TYPES: dict[str, str | None] = {f"torch.{name}Storage": dtype for name, dtype in _STORAGES.items()}
STORAGE_TYPES |= {
    f"torch.{name}Storage": name.lower() for name in ("ComplexFloat", "ComplexDouble", "QInt8", "QUInt8", "QInt32")
}
STORAGE_TYPES |= {"torch.storage.UntypedStorage": None, "torch.UntypedStorage": None}
DTYPES = {f"torch.{name}" for name in (*_STORAGES.values(), "uint16", "uint32", "uint64", "complex64", "complex128")}
DTYPES |= {f"torch.float8_{kind}" for kind in ("e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz", "e8m0fnu")}
DTYPES |= {"torch.qint8", "torch.quint8", "torch.qint32", "torch.complex32", "torch.float4_e2m1fn_x2"}
PARAMETERS = {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}
FAULTY = {
    "torch._utils._rebuild_sparse_tensor": "sparse; call .to_dense() on it",
    "torch._utils._rebuild_sparse_csr_tensor": "sparse; call .to_dense() on it",
    "torch._utils._rebuild_qtensor": "quantised; call .dequantize() on it",
    "torch._utils._rebuild_nested_tensor": "nested; join its sequences with torch.cat(list(x.unbind()))",
    "torch._utils._rebuild_meta_tensor_no_storage": "on the meta device, which has no data",
    "torch._utils._rebuild_wrapper_subclass": "of a class of its own; save a plain copy of it",
    "torch._utils._rebuild_device_tensor_from_numpy": "of another device; call .cpu() on it",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "of another device; call .cpu() on it",
    "torch.distributed.tensor.DTensor": "distributed; call .full_tensor() on it",
}
MAPPINGS = {
    "collections.defaultdict",
    "collections.OrderedDict",
    "collections.Counter",
    "builtins.dict",
    "__builtin__.dict",
}
_EMPTY = {
    "torch.device",
    "torch.Tensor",
    "torch.nn.parameter.Parameter",
    "torch.nn.Parameter",
    "torch.storage.TypedStorage",
    "torch.storage._LegacyStorage",
    "torch.serialization._get_layout",
    "torch.strided",
    "torch.per_tensor_affine",
    "torch.per_channel_affine",
    "_codecs.encode",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"{module}.multiarray.{name}" for module in ("numpy.core", "numpy._core") for name in ("scalar", "_reconstruct")),
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("set", "frozenset", "complex", "list")),
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("tuple", "int", "float", "bytearray")),
}
TENSORS = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"}
_OTHERS = {"torch.Size", "torch._tensor._rebuild_from_type_v2"}
LISTED = {*STORAGE_TYPES, *DTYPES, *PARAMETERS, *FAULTY, *MAPPINGS, *_EMPTY, *TENSORS, *_OTHERS}
