"""How each kernel scales with threads, and what bounds it: a table of 1, 2, 4, ... threads.

usage: python scripts/benchmarks/scaling.py [--classes 1000000] [--repeats 7]

Rows are in memory, so "read" is the memory's own speed with as many threads: a kernel near it is bound by memory
bandwidth, one far below it by arithmetic. Medians of all repeats, kernels in turns.
"""

import argparse
import statistics
import time

import ml_dtypes
import numpy as np

import bigvocab as bv
from bigvocab.threads import run_threads, usable_cores

HIDDEN = 512


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


def kernels(classes):
    """Name -> (call with a number of threads, bytes that it reads, terms that it makes)."""
    rng = np.random.default_rng(1)
    rows = max(8, (256 << 20) // (4 * classes))
    logits = rng.standard_normal((rows, classes), np.float32)
    half, brain = logits.astype(np.float16), logits.astype(ml_dtypes.bfloat16)
    labels = rng.integers(0, classes, rows)
    soft = np.abs(logits)
    soft /= soft.sum(1, keepdims=True)
    layer = rng.standard_normal((max(1024, classes // 8), HIDDEN), np.float32)
    states, targets = rng.standard_normal((256, HIDDEN), np.float32), rng.integers(0, len(layer), 256)
    found = {"read": (reading(logits), logits.nbytes, logits.size)}
    for name, array in (("float32", logits), ("float16", half), ("bfloat16", brain)):

        def softmax(threads, array=array):
            bv.sparse_softmax_cross_entropy(array, labels, num_threads=threads)

        found[f"softmax, {name}"] = softmax, array.nbytes, array.size

    def evaluator(threads):
        metrics = ("accuracy", "rank", "logsumexp", "entropy", "predicted")
        bv.Evaluator(metrics=metrics, threads=threads).update(logits, labels)

    found["+ rank, entropy, argmax"] = evaluator, logits.nbytes, logits.size
    found["soft labels"] = (
        lambda threads: bv.softmax_cross_entropy(logits, soft, num_threads=threads), 2 * logits.nbytes, logits.size
    )  # fmt: skip
    found["sigmoid, sparse"] = (
        lambda threads: bv.sparse_sigmoid_cross_entropy(logits, labels[:, None], num_threads=threads),
        logits.nbytes,
        logits.size,
    )
    found["linear head"] = (
        lambda threads: bv.linear_cross_entropy(states, layer, targets, num_threads=threads),
        layer.nbytes,
        len(states) * len(layer),
    )
    return found


def measure(found, threads, repeats):
    """Seconds of each kernel, in turns."""
    times = {name: [] for name in found}
    for _ in range(repeats + 1):  # the first one compiles
        for name, (call, _, _) in found.items():
            began = time.perf_counter()
            call(threads)
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    found = kernels(given.classes)
    seconds = {threads: measure(found, threads, given.repeats) for threads in counts()}
    print("| kernel | threads | GB/s | G terms/s | of 1 thread | of reading |")
    print("|---|---|---|---|---|---|")
    for name, (_, size, terms) in found.items():
        for threads, times in seconds.items():
            speed = size / times[name]
            share = speed / (found["read"][1] / times["read"])
            gain = seconds[1][name] / times[name]
            rate = f"{speed / 1e9:.2f} | {terms / times[name] / 1e9:.3f}"
            print(f"| {name} | {threads} | {rate} | {gain:.2f} x | {share:.0%} |")


if __name__ == "__main__":
    main()
