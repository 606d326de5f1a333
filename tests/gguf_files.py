"""GGUF files written byte by byte, right or wrong as a test wants them, and random blocks of every quantised type."""

import struct

import numpy as np

TEXT, ARRAY = 8, 9
BLOCKS = {  # name: code, numbers and bytes of a block, where its half-precision scales stand
    "Q8_0": (8, 32, 34, (0,)),
    "Q6_K": (14, 256, 210, (208,)),
    "Q4_0": (2, 32, 18, (0,)),
    "Q4_1": (3, 32, 20, (0, 2)),
    "Q5_0": (6, 32, 22, (0,)),
    "Q5_1": (7, 32, 24, (0, 2)),
    "Q4_K": (12, 256, 144, (0, 2)),
    "Q5_K": (13, 256, 176, (0, 2)),
}
F32, F16, BF16, F64 = 0, 1, 30, 28


def text(value):
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def value_bytes(value):
    """A value with its type in front; (code, bytes) is taken as it is."""
    if isinstance(value, tuple):
        return struct.pack("<I", value[0]) + value[1]
    if isinstance(value, bool):
        return struct.pack("<IB", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str | bytes):
        return struct.pack("<I", TEXT) + text(value)
    if isinstance(value, np.ndarray):
        code = {"int32": 5, "float32": 6, "uint8": 0}[value.dtype.name]
        return struct.pack("<IIQ", ARRAY, code, value.size) + value.tobytes()
    return struct.pack("<IIQ", ARRAY, TEXT, len(value)) + b"".join(map(text, value))


def gguf_bytes(keys=(), tensors=(), *, magic=b"GGUF", version=3, counts=None, alignment=32, behind=b""):
    """A file: keys a dict or pairs; tensors (name, code, shape outermost first, data[, offset])."""
    pairs = list(keys.items()) if isinstance(keys, dict) else list(keys)
    infos, data = b"", b""
    for name, code, shape, content, *offset in tensors:
        data += b"\0" * (-len(data) % alignment)
        at = offset[0] if offset else len(data)
        infos += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], code, at)
        data += content
    counts = (len(tensors), len(pairs)) if counts is None else counts
    header = magic + struct.pack("<IQQ", version, *counts)
    header += b"".join(text(key) + value_bytes(value) for key, value in pairs) + infos
    return header + b"\0" * (-len(header) % alignment) + data + behind


def random_blocks(rng, name, rows, columns):
    """Bytes (rows, row bytes) of a quantised type: all of them random, except for scales of a sane size."""
    _, values, size, scales = BLOCKS[name]
    blocks = rng.integers(0, 256, (rows, columns // values, size), dtype=np.uint8)
    for at in scales:
        scale = (rng.standard_normal(blocks.shape[:2]) * 0.01).astype("<f2")
        blocks[:, :, at : at + 2] = scale[..., None].view(np.uint8)
    return blocks.reshape(rows, -1)


def model_keys(arch="llama", *, rms=1e-5, layer=None, tokens=None, **more):
    """Keys of a model; names with `__` for dots are keys of the architecture."""
    keys = {"general.architecture": arch}
    if rms is not None:
        keys[f"{arch}.attention.layer_norm_rms_epsilon"] = rms
    if layer is not None:
        keys[f"{arch}.attention.layer_norm_epsilon"] = layer
    if tokens is not None:
        keys["tokenizer.ggml.tokens"] = tokens
    return keys | {f"{arch}.{name.replace('__', '.')}": value for name, value in more.items()}


def plain_tensor(name, array):
    """A tensor of float32."""
    array = np.asarray(array, "<f4")
    return name, F32, array.shape, array.tobytes()
