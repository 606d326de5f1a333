"""TensorFlow's candidate samplers, several calls of each op, as tests/golden/samplers.json.

usage: PYTHON_WITH_TENSORFLOW scripts/golden/samplers_tensorflow.py

A case: {name, sampler, arguments, true_classes, num_sampled, unique, seed, steps}; `steps` holds one entry a call:
candidates (all of them up to 32, else the first 8 and the SHA-256 of all as little-endian int64), true_expected_count,
and sampled_expected_count (of the candidates shown). Unigrams given as {"words": n, "kind": k} are made by `unigrams`.
"""

from __future__ import annotations

import os

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "TF_ENABLE_ONEDNN_OPTS": "0"}

import hashlib  # noqa: E402
import json  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from _golden import FOLDER, SEED, Golden, plain  # noqa: E402

OPS = {
    "UniformSampler": tf.raw_ops.UniformCandidateSampler,
    "LogUniformSampler": tf.raw_ops.LogUniformCandidateSampler,
    "FixedUnigramSampler": tf.raw_ops.FixedUnigramCandidateSampler,
    "LearnedUnigramSampler": tf.raw_ops.LearnedUnigramCandidateSampler,
    "AllCandidateSampler": tf.raw_ops.AllCandidateSampler,
}
RANGES = (1, 2, 10, 1000, 1024, 10**6, 2**31 - 1, 2**31, 2**40)
rng = np.random.default_rng(SEED)
cases: list[dict] = []


def unigrams(words: int, kind: str) -> list[float]:
    """Weights of words; the same lines stand in tests/sampling/test_samplers.py."""
    if kind == "zipf":
        return [1000.0 / (i + 1) for i in range(words)]
    return [float(1 + i * 7919 % 1000) for i in range(words)]


def calls(sampler: str, true_classes: np.ndarray, attributes: dict, steps: int) -> list[list[np.ndarray]]:
    """Run one op `steps` times in one session: its stream goes on from call to call."""
    graph = tf.Graph()
    with graph.as_default():
        values = OPS[sampler](true_classes=true_classes, num_true=true_classes.shape[1], **attributes)
        with tf.compat.v1.Session(graph=graph) as session:
            return [session.run(list(values)) for _ in range(steps)]


def entry(candidates: np.ndarray, true_count: np.ndarray, sampled_count: np.ndarray) -> dict:
    """One call as JSON."""
    shown = len(candidates) if len(candidates) <= 32 else 8
    made = {"candidates": candidates[:shown].tolist()}
    if shown < len(candidates):
        made["sha256"] = hashlib.sha256(candidates.astype("<i8").tobytes()).hexdigest()
    return made | {"true_expected_count": plain(true_count), "sampled_expected_count": plain(sampled_count[:shown])}


def case(sampler: str, arguments: dict, num_sampled: int, unique: bool, *, seed=(1, 7), steps=2, true=None) -> None:
    """Add one case."""
    attributes = {key: value for key, value in arguments.items() if key != "vocab_lines"}
    if isinstance(arguments.get("unigrams"), dict):
        attributes["unigrams"] = unigrams(**arguments["unigrams"])
    if sampler == "AllCandidateSampler":
        attributes.pop("range_max")
    with tempfile.TemporaryDirectory() as folder:
        if "vocab_lines" in arguments:
            attributes["vocab_file"] = str(Path(folder) / "vocab.txt")
            Path(attributes["vocab_file"]).write_bytes(arguments["vocab_lines"].encode())
        attributes |= {"num_sampled": num_sampled, "unique": unique, "seed": seed[0], "seed2": seed[1]}
        reserved = arguments.get("num_reserved_ids", 0)
        true = rng.integers(reserved, arguments["range_max"], (3, 2)) if true is None else np.array(true)
        entries = [entry(*values) for values in calls(sampler, true, attributes, steps)]
    name = f"{sampler} {len(cases)}: {num_sampled} of {arguments['range_max']}{' unique' if unique else ''}"
    cases.append(
        {
            "name": name,
            "sampler": sampler,
            "arguments": arguments,
            "true_classes": true.tolist(),
            "num_sampled": num_sampled,
        }
        | {"unique": unique, "seed": seed, "steps": entries}
    )


for range_max in RANGES:
    for sampler in ("UniformSampler", "LogUniformSampler"):
        for num_sampled, unique in ((8, True), (8, False), (20_000, True)):
            if num_sampled <= range_max or not unique:
                case(sampler, {"range_max": range_max}, num_sampled, unique)
for seed in ((87654321, 0), (87654321, 42), (0, 2**31 - 1), (2**31 - 2, 12345), (0, 5), (5, 0)):
    case("LogUniformSampler", {"range_max": 1000}, 8, True, seed=seed)
case("LogUniformSampler", {"range_max": 1000}, 8, True, steps=3, true=[[0], [9]])
case("LogUniformSampler", {"range_max": 10**6}, 8, False, true=[[0], [9]])
case("LogUniformSampler", {"range_max": 10**6}, 8192, True, steps=3)
case("LogUniformSampler", {"range_max": 300}, 300, True)
case("UniformSampler", {"range_max": 1000}, 8, True, true=[[0], [9]])
case("UniformSampler", {"range_max": 300}, 300, True)
case("UniformSampler", {"range_max": 2**62 + 2**61}, 1000, True)  # a quarter of the 64-bit words is rejected
case("AllCandidateSampler", {"range_max": 10}, 10, True)

case("LearnedUnigramSampler", {"range_max": 10}, 4, False, true=[[0], [9]], steps=3)
for range_max, num_sampled, unique in ((1, 3, False), (2, 2, True), (7, 5, True), (1000, 8, True), (1000, 500, True)):
    case("LearnedUnigramSampler", {"range_max": range_max}, num_sampled, unique, steps=4)
case("LearnedUnigramSampler", {"range_max": 10**5}, 20_000, True, steps=2)

TEN = {"words": 10, "kind": "mixed"}
case(
    "FixedUnigramSampler",
    {"unigrams": [i + 1.0 for i in range(10)], "range_max": 10, "distortion": 0.75},
    6,
    True,
    true=[[0], [9]],
)
for distortion in (0.0, 0.5, 0.7, 0.75, 1.0, 1.5, -0.5):
    for kind in ("zipf", "mixed"):
        arguments = {"unigrams": {"words": 1009, "kind": kind}, "range_max": 1009, "distortion": distortion}
        case("FixedUnigramSampler", arguments, 8, False)
        case("FixedUnigramSampler", arguments, 100, True)
for words in (1, 2, 8):
    case("FixedUnigramSampler", {"unigrams": {"words": words, "kind": "mixed"}, "range_max": words}, 5, False)
case(
    "FixedUnigramSampler",
    {"unigrams": {"words": 10**5, "kind": "zipf"}, "range_max": 10**5, "distortion": 0.75},
    20_000,
    True,
)
case("FixedUnigramSampler", {"unigrams": [0.0, 3.0, 0.0, 1.0, 2.0], "range_max": 5}, 3, True, true=[[1], [4]])
case("FixedUnigramSampler", {"unigrams": [0.1, 0.2, 0.3, 1e-12], "range_max": 4}, 3, True, true=[[1], [3]])
case("FixedUnigramSampler", {"unigrams": TEN, "range_max": 13, "num_reserved_ids": 3, "distortion": 0.75}, 6, True)
for shard in range(3):
    size = len(range(shard, 10, 3))
    arguments = {"unigrams": TEN, "range_max": size, "num_shards": 3, "shard": shard, "distortion": 0.75}
    case("FixedUnigramSampler", arguments, 3, True)
# TensorFlow numbers words from the reserved ids of its own shard on: right only where that shard has all of them
arguments = {"unigrams": TEN, "range_max": 6, "num_reserved_ids": 1, "num_shards": 2, "shard": 0}
case("FixedUnigramSampler", arguments, 3, True, true=[[1], [4]])
lines = "the,3\r\n,,7\r\nno comma in word,0.25\r\n2\nlast, 1e1 "
case("FixedUnigramSampler", {"vocab_lines": lines, "range_max": 5, "distortion": 0.75}, 4, True)

head = json.dumps({"made_by": "scripts/golden/samplers_tensorflow.py", "seed": SEED})[:-1]
versions = json.dumps(Golden("samplers", tensorflow=tf.__version__).versions)
path = FOLDER / "samplers.json"
path.write_text(f'{head}, "versions": {versions},\n"cases": [\n' + ",\n".join(map(json.dumps, cases)) + "\n]}\n")
print(f"tests/golden/{path.name}: {len(cases)} cases, {path.stat().st_size} bytes")
