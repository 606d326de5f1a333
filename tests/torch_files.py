"""Archives as torch.save writes them, and pickles put together instruction by instruction, without PyTorch."""

from __future__ import annotations

import struct
import zipfile

import ml_dtypes
import numpy as np

STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


class Raw(bytes):
    """Instructions as they are."""


def name(module, attribute):
    return Raw(f"c{module}\n{attribute}\n".encode())


def call(function, *arguments):
    return Raw(function + put(tuple(arguments)) + b"R")


def storage(key, dtype, count):
    return Raw(put(("storage", name("torch", STORAGES[dtype]), str(key), "cpu", count)) + b"Q")


def tensor(key, dtype, count, shape, strides, offset=0):
    made = name("torch._utils", "_rebuild_tensor_v2")
    hooks = call(name("collections", "OrderedDict"))
    return call(made, storage(key, dtype, count), offset, tuple(shape), tuple(strides), False, hooks)


def put(value):
    """Instructions that make a value."""
    if isinstance(value, Raw):
        return bytes(value)
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value) if abs(value) < 2**31 else b"\x8a\x09" + value.to_bytes(9, "little")
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, tuple):
        return b"(" + b"".join(map(put, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(put, value)) + b"e"
    assert isinstance(value, dict)
    return b"}(" + b"".join(put(key) + put(item) for key, item in value.items()) + b"u"


def pickled(value):
    return b"\x80\x02" + put(value) + b"."


def write(path, data, storages=(), *, byteorder=b"little", root="archive", compression=zipfile.ZIP_STORED):
    """An archive of a pickle and its storages."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{root}/data.pkl", data)
        if byteorder is not None:
            archive.writestr(f"{root}/byteorder", byteorder)
        for key, content in enumerate(storages):
            archive.writestr(f"{root}/data/{key}", content)
        archive.writestr(f"{root}/version", b"3\n")
    return path


def save(path, tree, **options):
    """An archive of a tree of lists, dicts and arrays, each array in a storage of its own."""
    storages = []

    def made(value):
        if isinstance(value, np.ndarray):
            storages.append(value.tobytes())
            strides = [stride // value.itemsize for stride in np.ascontiguousarray(value).strides]
            return tensor(len(storages) - 1, value.dtype.name, value.size, value.shape, strides)
        if isinstance(value, dict):
            return {key: made(item) for key, item in value.items()}
        return [made(item) for item in value] if isinstance(value, list) else value

    return write(path, pickled(made(tree)), storages, **options)


BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
