"""One side of a benchmark: a process that makes its inputs and runs a case whenever it is told to.

It reads a case's name from standard input and answers the seconds of one run, so that several sides can take turns.
Every side makes the same inputs from the same seed.
"""

import statistics
import sys
import time

import numpy as np

SHAPE = (128, 1_000_000)  # of logits
NARROW, MIDDLE = (2000, 32_000), (500, 128_000)  # of fewer classes
PAIR = (64, 262_144)  # of logits of two models
PAIRS = {"32k": (512, 32_768), "128k": (128, 131_072), "1M": (16, 1_000_000)}  # the same, of other vocabularies
SOFT = (64, 1_000_000)  # of soft labels, beside as many logits
HEAD = (256, 512, 262_144)  # rows, hidden size, classes
LAYER = (512, 2048, 131_072)  # the same, as language models have them
SAMPLED = {"classes": 1_000_000, "size": 256, "rows": 512, "sampled": 8192}


def logits(shape=SHAPE, seed=0):
    """float32 logits; the other types are made from them."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) * 3


def labels(shape=SHAPE, seed=1):
    """One label for each row."""
    return np.random.default_rng(seed).integers(0, shape[1], shape[0])


def probabilities(shape=SOFT, seed=2):
    """Soft labels that sum to 1."""
    values = np.random.default_rng(seed).random(shape, dtype=np.float32)
    return values / values.sum(1, keepdims=True)


def head(seed=3):
    """(hidden states, layer, labels) of a linear head."""
    rng = np.random.default_rng(seed)
    rows, size, classes = HEAD
    layer = rng.standard_normal((classes, size), dtype=np.float32) * np.float32(0.05)
    return rng.standard_normal((rows, size), dtype=np.float32), layer, rng.integers(0, classes, rows)


def sampled(seed=4):
    """(weights, biases, labels, inputs) of a sampled loss."""
    rng = np.random.default_rng(seed)
    sizes = SAMPLED
    weights = rng.standard_normal((sizes["classes"], sizes["size"]), dtype=np.float32) * np.float32(0.05)
    ids = np.minimum(rng.zipf(1.3, (sizes["rows"], 1)) - 1, sizes["classes"] - 1)
    inputs = rng.standard_normal((sizes["rows"], sizes["size"]), dtype=np.float32)
    return weights, np.zeros(sizes["classes"], np.float32), ids, inputs


WIDTHS = (32_768, 131_072, 1_000_000)  # classes


def rows_of(classes):
    """The shape of as many logits as SHAPE has, in rows of so many classes."""
    return SHAPE[0] * SHAPE[1] // classes, classes


ITEMS = (10_000, 128, 1_000_000)  # users, size of a vector, items
TOP = 100  # of each user


def items(seed=6):
    """(users, items) of a retrieval model."""
    rng = np.random.default_rng(seed)
    rows, size, classes = ITEMS
    return rng.standard_normal((rows, size), dtype=np.float32), rng.standard_normal((classes, size), dtype=np.float32)


def excluded(seed=7, number=200):
    """For each row of logits classes that are not its label, as a pair (offsets, ids)."""
    rng, y = np.random.default_rng(seed), labels()
    rows = [np.setdiff1d(rng.integers(0, SHAPE[1], number), y[row]) for row in range(SHAPE[0])]
    return np.concatenate([[0], np.cumsum([len(row) for row in rows])]), np.concatenate(rows)


class Seconds(float):
    """What a run may return: the seconds that it says itself it took."""


def serve(cases):
    """Answer requests until standard input ends; `cases` maps a name to what makes the function to time."""
    current, run = None, None
    for line in sys.stdin:
        name = line.strip()
        if name not in cases:
            print("none", flush=True)
            continue
        if name != current:
            run = None  # give the memory of the last case back first
            current, run = name, cases[name]()
            run()
        times, end = [], time.perf_counter() + 0.2
        while not times or time.perf_counter() < end:
            start = time.perf_counter()
            told = run()
            times.append(told if isinstance(told, Seconds) else time.perf_counter() - start)
        print(statistics.median(times), flush=True)
