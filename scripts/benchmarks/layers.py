"""Layers as people have them, of bigvocab's side: quantised blocks of GGUF, (D, V) in place, a model's folder."""

import functools
import json
import struct
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import worker

import bigvocab as bv

BF16 = ml_dtypes.bfloat16
BLOCKS = {"Q8_0": (8, 32, 34, 0), "Q6_K": (14, 256, 210, 208)}  # code, numbers, bytes, where the scale lies
SMALL, LARGE = 1 << 20, 5 << 30  # bytes of a shard beside the head's


@functools.lru_cache(maxsize=1)
def states(dtype):
    rows, size, classes = worker.LAYER
    rng = np.random.default_rng(8)
    return rng.standard_normal((rows, size), dtype=np.float32).astype(dtype), rng.integers(0, classes, rows)


@functools.lru_cache(maxsize=1)  # a limit and its case multiply the same memory
def layer(dtype):
    _, size, classes = worker.LAYER
    values = np.random.default_rng(9).standard_normal((classes, size), dtype=np.float32)
    return (values * np.float32(0.05)).astype(dtype)


@functools.lru_cache(maxsize=1)
def other_way_round(dtype):
    """The same layer (D, V)."""
    return np.ascontiguousarray(layer(dtype).T)


def head(inputs, weights):
    x, y = states(inputs)
    return lambda: bv.linear_cross_entropy(x, weights, y)


def turned(dtype):
    """A layer that is stored (D, V), read in place."""
    x, y = states(dtype)
    evaluator = bv.Evaluator(weights=other_way_round(dtype), transpose_weights=True, metrics="")
    return lambda: evaluator.update(x, y)


def straight(dtype):
    """The same in the other order, by the same way in."""
    x, y = states(dtype)
    evaluator = bv.Evaluator(weights=layer(dtype), metrics="")
    return lambda: evaluator.update(x, y)


@functools.lru_cache(maxsize=1)
def quantised(name):
    """A GGUF file with one tensor of random blocks, in the page cache."""
    _, size, classes = worker.LAYER
    code, numbers, block, scale = BLOCKS[name]
    blocks = np.random.default_rng(10).integers(0, 256, (classes * size // numbers, block), np.uint8)
    blocks[:, scale : scale + 2] = np.array([2.0**-12], np.float16).view(np.uint8)
    word = b"output.weight"
    header = b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, len(word)) + word
    header += struct.pack("<IQQIQ", 2, size, classes, code, 0)
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "layer.gguf"
    with path.open("wb") as file:
        file.write(header + bytes(-len(header) % 32))
        blocks.tofile(file)
    return folder, bv.open_matrix(path)


@functools.lru_cache(maxsize=2)
def model_folder(beside):
    """A model's folder whose only shard holds so many bytes beside head and norm, all of them a hole."""
    rows, size = 32_000, 512
    tensors = {"model.layers.0.mlp.up_proj.weight": (beside // 2 // size, size), "model.norm.weight": (size,)}
    tensors["lm_head.weight"] = (rows, size)
    header, end = {}, 0
    for name, shape in tensors.items():
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name)
    with (path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    config = {"model_type": "llama", "vocab_size": rows, "hidden_size": size, "rms_norm_eps": 1e-5}
    (path / "config.json").write_text(json.dumps(config))
    return folder


def opening(beside):
    folder = model_folder(beside)
    return lambda: bv.open_model(folder.name)


CASES = {
    "opening small": lambda: opening(SMALL),
    "opening large": lambda: opening(LARGE),
}
for short, dtype in (("f32", np.float32), ("bf16", BF16)):
    CASES |= {
        f"states {short}, layer bf16": lambda dtype=dtype: head(dtype, layer(BF16)),
        f"states {short}, layer Q8_0": lambda dtype=dtype: head(dtype, quantised("Q8_0")[1]),
        f"states {short}, layer Q6_K": lambda dtype=dtype: head(dtype, quantised("Q6_K")[1]),
        f"straight {short}": lambda dtype=dtype: straight(dtype),
        f"turned {short}": lambda dtype=dtype: turned(dtype),
    }
