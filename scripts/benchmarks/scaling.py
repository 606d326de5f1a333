"""How each kernel scales with threads, and what bounds it: a table of 1, 2, 4, ... threads, ready for a README.

usage: python scripts/benchmarks/scaling.py [--classes 1000000] [--repeats 7]

Rows are in memory, so "read" is the memory's own speed with as many threads: a kernel near it is bound by memory
bandwidth, one far below it by arithmetic. Medians of all repeats; kernels and numbers of threads take turns. The last
line is what Python costs between two blocks of a job.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np

import bigvocab as bv
from bigvocab.threads import run_threads, usable_cores

HIDDEN, SAMPLED = 512, 8192
BLOCKS = 1000
CALLS = 5


def counts():
    """1, 2, 4, ... and all usable cores."""
    cores = usable_cores()
    return sorted({cores, *(2**i for i in range(cores.bit_length()) if 2**i <= cores)})


def reading(array):
    """Add up the bits of every row, which touches each byte once."""
    words = array.view(np.int64)

    def run(threads):
        run_threads(lambda start, stop: words[start:stop].max(), len(words), 1, threads)

    return run


def kernels(classes, folder):
    """Name -> (call with a number of threads, bytes that it reads, terms that it makes)."""
    rng = np.random.default_rng(1)
    rows = max(8, (256 << 20) // (4 * classes))
    logits = rng.standard_normal((rows, classes), np.float32)
    half, brain = logits.astype(np.float16), logits.astype(ml_dtypes.bfloat16)
    labels = rng.integers(0, classes, rows)
    soft = np.abs(logits)
    soft /= soft.sum(1, keepdims=True)
    layer = rng.standard_normal((max(1024, classes // 8), HIDDEN), np.float32)
    biases = np.zeros(len(layer), np.float32)
    states, targets = rng.standard_normal((256, HIDDEN), np.float32), rng.integers(0, len(layer), 256)
    np.save(folder / "logits.npy", np.concatenate([logits] * 4))
    if hasattr(os, "sync"):
        os.sync()  # else the system writes it to the disk meanwhile

    def softmax(array):
        return lambda threads: bv.sparse_softmax_cross_entropy(array, labels, num_threads=threads)

    def evaluator(**asked):
        return lambda threads: bv.Evaluator(threads=threads, **asked).update(logits, labels)

    def sampled(threads):
        given = {"weights": layer, "biases": biases, "labels": targets[:, None], "inputs": states, "seed": 1}
        bv.sampled_softmax_loss(**given, num_sampled=SAMPLED, num_classes=len(layer), num_threads=threads)

    def file(threads):
        bv.evaluate(logits=folder / "logits.npy", labels=np.tile(labels, 4), metrics="", threads=threads)

    size, count, products = logits.nbytes, logits.size, len(states) * len(layer)
    metrics = ("accuracy", "rank", "logsumexp", "entropy", "predicted")
    return {
        "read": (reading(logits), size, count),
        "softmax, float32": (softmax(logits), size, count),
        "softmax, float16": (softmax(half), size // 2, count),
        "softmax, bfloat16": (softmax(brain), size // 2, count),
        "+ rank, entropy, argmax": (evaluator(metrics=metrics), size, count),
        "+ the 10 highest": (evaluator(metrics=("accuracy", "topk"), top_k=(1, 10)), size, count),
        "+ a softcap": (evaluator(metrics=(), softcap=30.0), size, count),
        "soft labels": (lambda n: bv.softmax_cross_entropy(logits, soft, num_threads=n), 2 * size, count),
        "sigmoid, sparse": (
            lambda n: bv.sparse_sigmoid_cross_entropy(logits, labels[:, None], num_threads=n), size, count
        ),
        "comparison, two models": (lambda n: bv.kl_divergence(logits, soft, num_threads=n), 2 * size, count),
        "linear head": (
            lambda n: bv.linear_cross_entropy(states, layer, targets, num_threads=n), layer.nbytes, products
        ),
        "sampled softmax": (sampled, SAMPLED * 4 * HIDDEN, len(states) * SAMPLED),
        "`evaluate`, file in the page cache": (file, 4 * size, 4 * count),
    }  # fmt: skip


def measure(found, repeats):
    """(name, threads) -> seconds, all in turns."""
    times = {(name, threads): [] for name in found for threads in counts()}
    for _ in range(repeats + 1):  # the first one compiles
        for (name, threads), values in times.items():
            found[name][0](threads)  # wakes the cores: a call may be shorter than that takes
            began = time.perf_counter()
            for _ in range(CALLS):
                found[name][0](threads)
            values.append((time.perf_counter() - began) / CALLS)
    return {case: statistics.median(values[1:]) for case, values in times.items()}


def seconds_of_block(folder, repeats):
    """What a block of a job costs beside its rows: the same few rows in many blocks and in one."""
    np.save(folder / "few.npy", np.zeros((BLOCKS, 64), np.float32))
    found = []
    for _ in range(repeats + 1):
        seconds = []
        for rows in (1, BLOCKS):
            began = time.perf_counter()
            bv.evaluate(logits=folder / "few.npy", labels=np.zeros(BLOCKS, int), chunk_rows=rows)
            seconds.append(time.perf_counter() - began)
        found.append((seconds[0] - seconds[1]) / BLOCKS)
    return statistics.median(found[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = kernels(given.classes, Path(place))
        times = measure(found, given.repeats)
        block = seconds_of_block(Path(place), given.repeats)
    print("| kernel | threads | GB/s | G terms/s | of 1 thread | of reading |")
    print("|---|---|---|---|---|---|")
    for (name, threads), seconds in times.items():
        _, size, terms = found[name]
        share = size / seconds / (found["read"][1] / times["read", threads])
        rate = f"{size / seconds / 1e9:.2f} | {terms / seconds / 1e9:.3f}"
        print(f"| {name} | {threads} | {rate} | {times[name, 1] / seconds:.2f} x | {share:.0%} |")
    print(f"\nPython between two blocks: {block * 1e3:.2f} ms")


if __name__ == "__main__":
    main()
