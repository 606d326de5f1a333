"""The side of bigvocab, and the limits: what reading the same array costs, and what a bare matrix product costs."""

import functools
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import layers
import ml_dtypes
import numba
import numpy as np
import worker

import bigvocab as bv
from bigvocab.comparison.made_rows import compare_rows
from bigvocab.comparison.pairs import Asked
from bigvocab.comparison.tile_pairs import compare_tiles
from bigvocab.heads.linear_rows import LinearRows
from bigvocab.heads.output_layer import OutputLayer
from bigvocab.losses.row_statistics import softmax_rows, wanted
from bigvocab.matrices.tiles import StoredRows
from bigvocab.storage import memory
from bigvocab.threads import run_threads


@numba.njit(nogil=True)
def _read(rows, out):
    """Maximum of the bits of each row as integers: vectorised, and no cheaper way to touch every byte."""
    for r in range(rows.shape[0]):
        row, top = rows[r], rows[r, 0]
        for i in range(row.size):
            top = max(top, row[i])
        out[r] = top


def reading(array):
    """Read `array` once, on all cores."""
    words = np.ascontiguousarray(array).view(np.int32)
    out = np.empty(len(words), np.int64)
    return lambda: run_threads(lambda a, b: _read(words[a:b], out[a:b]), len(words), 1)


@functools.lru_cache(maxsize=1)  # a limit and its case read the same memory: on a virtual machine some is twice as fast
def typed(dtype, shape=worker.SHAPE):
    return worker.logits(shape).astype(dtype)


def loss(dtype, **asked):
    x, y = typed(dtype), worker.labels()
    return lambda: softmax_rows(StoredRows.of(x), y, want=wanted(**asked))


@functools.lru_cache(maxsize=1)  # the file and its limit are the same pages of the same memory
def saved(dtype, times=4):
    """A folder with so many times the logits as logits.npy, in the page cache, and their labels."""
    folder = tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_FOLDER"))
    x = repeated(dtype, times)
    y = np.concatenate([worker.labels()] * times)
    np.save(Path(folder.name) / "logits.npy", x.view(np.uint16) if dtype == ml_dtypes.bfloat16 else x)
    np.save(Path(folder.name) / "labels.npy", y)
    if hasattr(os, "sync"):
        os.sync()  # else the system writes it to the disk meanwhile
    return folder, y


def repeated(dtype, times):
    """So many times the logits, in memory."""
    x = typed(dtype)
    many = memory.empty((times * len(x), x.shape[1]), dtype)
    many.reshape(times, *x.shape)[:] = x
    return many


def mapped_loss(dtype):
    """The loss alone of the pages of the file, mapped before."""
    folder, y = saved(dtype)
    x = np.load(Path(folder.name) / "logits.npy", mmap_mode="r").view(dtype)
    return lambda: softmax_rows(StoredRows.of(x), y)


def file_loss(dtype):
    """All of `evaluate` over a file in the page cache."""
    folder, y = saved(dtype)
    name = "bfloat16" if dtype == ml_dtypes.bfloat16 else None
    return lambda: bv.evaluate(logits=Path(folder.name) / "logits.npy", labels=y, metrics="", dtype=name)


COMMAND = 8  # times the logits: 4 GB of float32


def command(dtype):
    """The command over a file in the page cache, in a process of its own: the seconds that its report says."""
    folder, _ = saved(dtype, COMMAND)
    line = [sys.executable, "-m", "bigvocab", "eval", "--logits", "logits.npy", "--labels", "labels.npy"]
    line += ["--metrics", "", "--format", "json", *["--dtype", "bfloat16"] * (dtype == ml_dtypes.bfloat16)]

    def run():
        done = subprocess.run(line, cwd=folder.name, stdout=subprocess.PIPE, check=True)
        return worker.Seconds(json.loads(done.stdout)["seconds"])

    return run


def loss_in_memory(dtype):
    """The loss alone of as many logits in memory."""
    x, y = repeated(dtype, COMMAND), np.concatenate([worker.labels()] * COMMAND)
    return lambda: softmax_rows(StoredRows.of(x), y)


def by_products(dtype):
    return loss(dtype, rank=True, entropy=True, predicted=True)


def matmul():
    inputs, layer, _ = worker.head()
    rows = layer[: 1 << 17]
    return lambda: (inputs @ rows.T, inputs @ layer[1 << 17 :].T)


def head(dtype):
    inputs, layer, y = worker.head()
    inputs, layer = inputs.astype(dtype), layer.astype(dtype)
    return lambda: bv.linear_cross_entropy(inputs, layer, y)


@functools.lru_cache(maxsize=1)
def apart(dtype, shape=worker.PAIR):
    """A second model near the first: logits with noise."""
    x = worker.logits(shape)
    return x.astype(dtype), (x + worker.logits(shape, 6) * np.float32(0.03)).astype(dtype)


def compared(dtype, shape=worker.PAIR, **asked):
    """Both losses, both divergences and tops of two arrays, and what is asked beside."""
    x, y = apart(dtype, shape)
    tiles, labels = {"q": [(0, y)]}, worker.labels(shape)
    return lambda: compare_tiles([(0, x)], tiles, labels, x.shape[1], asked=Asked(tops=True, **asked))


def compared_limit(dtype, shape=worker.PAIR):
    both = [reading(side) for side in apart(dtype, shape)]
    return lambda: [read() for read in both]


def compared_heads():
    """Rows of two layers over the same hidden states, and all that is found without asking for it."""
    inputs, layer, y = worker.head()
    sides = {"reference": inputs, "candidate": inputs}
    layers = {"reference": layer, "candidate": layer + np.float32(0.001)}
    rows = {name: LinearRows(OutputLayer(layers[name]), sides[name]) for name in sides}
    asked = Asked(spread=True, tops=True)
    return lambda: compare_rows(rows["reference"], {"q": rows["candidate"]}, y, asked=asked)


def two_matmuls():
    once = matmul()
    return lambda: (once(), once())


def soft_labels():
    x, z = worker.logits(worker.SOFT), worker.probabilities()
    return lambda: bv.softmax_cross_entropy(x, z)


def soft_labels_limit():
    both = np.concatenate([worker.logits(worker.SOFT), worker.probabilities()])
    return reading(both)


def sigmoid_sum():
    x = worker.logits()
    ids = worker.labels()[:, None]
    return lambda: bv.sparse_sigmoid_cross_entropy(x, ids)


def sigmoid():
    shape = (32, worker.SHAPE[1])
    x, z = worker.logits(shape), (worker.probabilities(shape) > 1e-6).astype(np.float32)
    return lambda: bv.sigmoid_cross_entropy(x, z)


def log_uniform():
    sampler, true = bv.LogUniformSampler(worker.SAMPLED["classes"]), worker.sampled()[2]
    step = iter(range(10**9))
    return lambda: sampler.sample(true, worker.SAMPLED["sampled"], seed=(1, 7), step=next(step))


def unigram(kept=list):
    counts, true = kept(np.random.default_rng(5).integers(1, 10_000, 1_000_000).tolist()), np.array([[0], [9]])
    return lambda: bv.FixedUnigramSampler(counts, distortion=0.75).sample(true, 64, seed=(1, 7))


def sampled(name):
    weights, biases, ids, inputs = worker.sampled()
    function = getattr(bv, name)
    sizes = {"num_sampled": worker.SAMPLED["sampled"], "num_classes": worker.SAMPLED["classes"]}
    return lambda: function(weights=weights, biases=biases, labels=ids, inputs=inputs, seed=42, **sizes)


def with_option(dtype, shape=worker.SHAPE, **options):
    """The loss of arrays with an option, or without: what it costs."""
    x, y = typed(dtype, shape), worker.labels(shape)
    return lambda: bv.sparse_softmax_cross_entropy(x, y, **options)


def smoothed(dtype, shape=worker.SHAPE):
    return with_option(dtype, shape, label_smoothing=0.1)


def class_weighted(dtype):
    """Smoothing with class weights needs a second sum."""
    weights = np.random.default_rng(11).random(worker.SHAPE[1])
    return with_option(dtype, class_weights=weights, label_smoothing=0.1)


def capped(dtype):
    x, y = typed(dtype), worker.labels()
    return lambda: softmax_rows(StoredRows.of(x), y, softcap=30.0)


def without(dtype):
    """The loss where 200 classes of each row do not exist."""
    x, y, exclude = typed(dtype), worker.labels(), worker.excluded()
    return lambda: bv.sparse_softmax_cross_entropy(x, y, exclude=exclude)


def loss_alone(dtype, classes):
    """The loss of as many logits as elsewhere, in rows of so many classes."""
    shape = worker.rows_of(classes)
    x, y = typed(dtype, shape), worker.labels(shape)
    return lambda: bv.sparse_softmax_cross_entropy(x, y)


def evaluated(dtype, classes, **options):
    """All that an evaluator does with these rows."""
    shape = worker.rows_of(classes)
    x, y = typed(dtype, shape), worker.labels(shape)
    return lambda: bv.Evaluator(**options).update(x, y)


def kept(dtype, classes):
    return evaluated(dtype, classes, metrics="topk", keep_top=worker.TOP)


def items_alone():
    """The head alone of all users and items: what a ranking cannot do without."""
    users, layer = worker.items()
    y = np.arange(len(users))
    return lambda: bv.linear_cross_entropy(users, layer, y)


def ranking():
    """Whole rankings of all items for all users, k = 100."""
    users, layer = worker.items()
    labels = np.arange(len(users))
    return lambda: bv.evaluate(inputs=users, weights=layer, labels=labels, metrics="ranking", top_k=worker.TOP)


BF16 = ml_dtypes.bfloat16
TYPES = {"f32": np.float32, "bf16": BF16, "f16": np.float16}
CASES = layers.CASES | {
    "limit f32": lambda: reading(typed(np.float32)),
    "limit bf16": lambda: reading(typed(BF16)),
    "limit f16": lambda: reading(typed(np.float16)),
    "softmax f32": lambda: loss(np.float32),
    "softmax bf16": lambda: loss(BF16),
    "softmax f16": lambda: loss(np.float16),
    "by-products f32": lambda: by_products(np.float32),
    "by-products bf16": lambda: by_products(BF16),
    "by-products f16": lambda: by_products(np.float16),
    "mapped f32": lambda: mapped_loss(np.float32),
    "mapped bf16": lambda: mapped_loss(BF16),
    "file f32": lambda: file_loss(np.float32),
    "file bf16": lambda: file_loss(BF16),
    "memory f32": lambda: loss_in_memory(np.float32),
    "memory bf16": lambda: loss_in_memory(BF16),
    "command f32": lambda: command(np.float32),
    "command bf16": lambda: command(BF16),
    "compare limit f32": lambda: compared_limit(np.float32),
    "compare limit bf16": lambda: compared_limit(BF16),
    "compare limit f16": lambda: compared_limit(np.float16),
    "compare f32": lambda: compared(np.float32),
    "compare bf16": lambda: compared(BF16),
    "compare f16": lambda: compared(np.float16),
    "compare js f32": lambda: compared(np.float32, spread=True),
    "compare js bf16": lambda: compared(BF16, spread=True),
    **{f"compare limit f32 {name}": partial(compared_limit, np.float32, shape) for name, shape in worker.PAIRS.items()},
    **{f"compare f32 {name}": partial(compared, np.float32, shape) for name, shape in worker.PAIRS.items()},
    **{
        f"compare js f32 {name}": partial(compared, np.float32, shape, spread=True)
        for name, shape in worker.PAIRS.items()
    },
    "compare heads limit": two_matmuls,
    "compare heads": compared_heads,
    "soft labels limit": soft_labels_limit,
    "soft labels f32": soft_labels,
    "sigmoid sum f32": sigmoid_sum,
    "sigmoid f32": sigmoid,
    "matmul f32": matmul,
    "head f32": lambda: head(np.float32),
    "head bf16": lambda: head(BF16),
    **{
        f"{work} {name} {classes}": functools.partial(make, dtype, classes)
        for work, make in (("alone", loss_alone), ("kept", kept))
        for name, dtype in (("f32", np.float32), ("bf16", BF16))
        for classes in worker.WIDTHS
    },
    **{
        f"{work} {name}": functools.partial(evaluated, dtype, worker.WIDTHS[1], metrics=metrics)
        for work, metrics in (("default", "accuracy,rank"), ("calibration", "accuracy,rank,calibration"))
        for name, dtype in (("f32", np.float32), ("bf16", BF16))
    },
    "without f32": lambda: without(np.float32),
    "without bf16": lambda: without(BF16),
    "items f32": items_alone,
    "ranking f32": ranking,
    "log-uniform": log_uniform,
    "unigram": unigram,
    "unigram graph": lambda: unigram(np.array),
    "sampled softmax": lambda: sampled("sampled_softmax_loss"),
    "nce": lambda: sampled("nce_loss"),
}
for name, dtype in TYPES.items():
    CASES |= {
        f"smoothed {name}": lambda dtype=dtype: smoothed(dtype),
        f"class weights {name}": lambda dtype=dtype: class_weighted(dtype),
        f"capped {name}": lambda dtype=dtype: capped(dtype),
        f"smoothed 32k {name}": lambda dtype=dtype: smoothed(dtype, worker.NARROW),
        f"softmax 32k {name}": lambda dtype=dtype: with_option(dtype, worker.NARROW),
        f"smoothed 128k {name}": lambda dtype=dtype: smoothed(dtype, worker.MIDDLE),
        f"softmax 128k {name}": lambda dtype=dtype: with_option(dtype, worker.MIDDLE),
    }

if __name__ == "__main__":
    worker.serve(CASES)
