"""Machine code of kernels: what the compiler made of one, and the bits that older processors return."""

import hashlib
import os
import re
import subprocess
import sys
from unittest import mock

import ml_dtypes
import numba
import numpy as np
from gguf_files import BLOCKS, random_blocks
from llvmlite import binding

from bigvocab.comparison.pairs import Asked
from bigvocab.comparison.tile_pairs import compare_tiles
from bigvocab.heads.products import Packed, paired, product
from bigvocab.kernels import jit
from bigvocab.kernels.row_statistics import NO_LABEL
from bigvocab.losses.row_statistics import softmax_rows, wanted
from bigvocab.matrices.tiles import StoredRows, kernel_view
from bigvocab.matrices.weight_rows import WeightRows

FLOATS = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)


def assembly(kernels, name, call):
    """Assembly of the kernel `name` of the module `kernels`, for arguments of the types that `call()` gives it.

    A kernel that was loaded from its cache shows none, so it is compiled anew; the text is kept beside the cache, for
    this version of all kernels and this processor.
    """
    kernel, given = getattr(kernels, name), []
    with mock.patch.object(kernels, name, lambda *arguments: given.append(arguments) or kernel(*arguments)):
        call()
    types = tuple(numba.typeof(argument) for argument in given[0])
    key = repr((kernels.__name__, name, types, binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()))
    kept = jit.folder and jit.folder / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.s"
    if kept and kept.exists():
        return kept.read_text()
    fresh = jit.fresh(kernel.py_func)
    fresh.compile(types)
    (text,) = fresh.inspect_asm().values()
    if kept:
        written = kept.with_suffix(f".{os.getpid()}")
        written.write_text(text)
        written.replace(kept)
    return text


class Loop:
    """What matters of the machine code of a loop over vectors."""

    def __init__(self, code):
        lines = code.splitlines()
        self.register = "zmm" if "zmm" in code else "ymm"
        fused = [line for line in lines if "vfmadd" in line]
        self.packed = [line for line in fused if self.register in line and re.search(r"p[sd]\t", line)]
        self.scalar = [line for line in fused if re.search(r"s[sd]\t", line)]
        self.gathers = "gather" in code
        self.named = " ".join(line for line in lines if "$" in line or "call" in line)


# ---- older processors

OLDER = {
    "haswell": "+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+popcnt,+sse4.2",
    "ivybridge": "+avx,+f16c,+popcnt,+sse4.2",  # no fused multiply-add, no lookup in a register
}


def softmax_bits():
    """A hash of all statistics of rows of all types."""
    digest = hashlib.sha256()
    rng = np.random.default_rng(0)
    for dtype in FLOATS:
        logits = (rng.standard_normal((6, 9001)) * 5).astype(dtype)
        logits[2, :4000], logits[3, 8000] = -np.inf, 200
        want = wanted(rank=True, entropy=True, predicted=True, logit_sum=True)
        digest.update(softmax_rows(StoredRows.of(logits), rng.integers(0, 9001, 6), want=want).columns.tobytes())
    return digest.hexdigest()


def product_bits():
    """A hash of products of all types."""
    rng = np.random.default_rng(0)
    inputs, weights = rng.standard_normal((30, 300)), rng.standard_normal((3000, 300))
    digest = hashlib.sha256()
    for dtype in FLOATS:
        digest.update(product(inputs.astype(dtype), weights.astype(dtype)).tobytes())
    states = Packed.of(inputs.astype(ml_dtypes.bfloat16)[:, :256].copy(), ml_dtypes.bfloat16)
    for name in ("Q8_0", "Q6_K"):
        blocks, tile = random_blocks(rng, name, 90, 256), states.tile(90)
        rows = WeightRows(90, (kernel_view(blocks), BLOCKS[name][0]))
        states.multiply_stored(rows, np.zeros(122, "f4"), states.panel(), tile)
        digest.update(tile[:30, :90].tobytes())
    pairs = paired(Packed.of(inputs.astype("f4"), np.float32), weights[:30].astype("f4"), np.arange(30))
    return hashlib.sha256(digest.digest() + pairs.tobytes()).hexdigest()


def divergence_bits():
    """A hash of divergences of rows, near and far, masked and cut."""
    digest, rng = hashlib.sha256(), np.random.default_rng(0)
    for distance, shift in ((0.01, 0.0), (1.0, 0.0), (0.1, 5.0)):
        x = (rng.standard_normal((6, 3001)) * 4).astype(np.float32)
        y = (x + shift + distance * rng.standard_normal(x.shape)).astype(np.float32)
        x[1, 5] = y[2, :100] = y[3, 7] = x[3, 7] = -np.inf
        for tiles in ([(0, y)], [(0, y[:, :999]), (999, y[:, 999:])], [(0, y[:, :40])]):
            classes = sum(tile.shape[1] for _, tile in tiles)
            mine = [(0, x[:, :classes])]
            rows = compare_tiles(mine, {"": tiles}, np.full(6, NO_LABEL), classes, asked=Asked(True, True))[""]
            digest.update(rows.divergences.tobytes())
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):  # rows that are read once
        x = (rng.standard_normal((4, 17_001)) * 4).astype(dtype)
        y = (x + 0.3 * rng.standard_normal(x.shape)).astype(dtype)
        x[1, 5] = y[2, :600] = y[3, 7] = x[3, 7] = -np.inf
        rows = compare_tiles([(0, x)], {"": [(0, y)]}, np.arange(4), 17_001, asked=Asked(True, True))[""]
        digest.update(rows.divergences.tobytes() + rows.reference.rank.tobytes() + rows.top_counts.tobytes())
    return digest.hexdigest()


def on(processor, function):
    """What a function of this file returns on an older processor; its machine code is kept beside that of this one."""
    variables = {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": OLDER[processor]}
    code = f"import machine_code; print(machine_code.{function.__name__}())"
    paths = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": paths, **variables}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
