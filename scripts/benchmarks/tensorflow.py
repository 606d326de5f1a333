"""The side of TensorFlow."""

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
here = str(Path(__file__).parent)
sys.path = [path for path in sys.path if path != here]  # this file has the name of what it imports
import tensorflow as tf  # noqa: E402

sys.path.insert(0, here)
import numpy as np  # noqa: E402
import worker  # noqa: E402


def softmax(dtype):
    x, y = tf.cast(worker.logits(), dtype), tf.constant(worker.labels())
    return lambda: tf.nn.sparse_softmax_cross_entropy_with_logits(y, x).numpy()


def soft_labels():
    x, z = tf.constant(worker.logits(worker.SOFT)), tf.constant(worker.probabilities())
    return lambda: tf.nn.softmax_cross_entropy_with_logits(z, x).numpy()


def sigmoid_sum():
    x, z = tf.constant(worker.logits()), np.zeros(worker.SHAPE, np.float32)
    z[np.arange(len(z)), worker.labels()] = 1
    z = tf.constant(z)
    return lambda: tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(z, x), 1).numpy()


def sigmoid():
    shape = (32, worker.SHAPE[1])
    x, z = tf.constant(worker.logits(shape)), tf.constant((worker.probabilities(shape) > 1e-6).astype(np.float32))
    return lambda: tf.nn.sigmoid_cross_entropy_with_logits(z, x)


def head():
    inputs, layer, y = (tf.constant(array) for array in worker.head())
    return lambda: tf.nn.sparse_softmax_cross_entropy_with_logits(y, tf.matmul(inputs, layer, transpose_b=True)).numpy()


def log_uniform():
    true, sizes = tf.constant(worker.sampled()[2], tf.int64), worker.SAMPLED

    @tf.function
    def draw():
        return tf.random.log_uniform_candidate_sampler(true, 1, sizes["sampled"], True, sizes["classes"], seed=7)

    return lambda: [part.numpy() for part in draw()]


def unigram():
    counts = np.random.default_rng(5).integers(1, 10_000, 1_000_000).tolist()
    true = tf.constant([[0], [9]], tf.int64)
    seed = iter(range(10**6))  # TensorFlow keeps a sampler; another seed builds a new one

    def run():
        return tf.random.fixed_unigram_candidate_sampler(
            true, 1, 64, True, len(counts), distortion=0.75, unigrams=counts, seed=next(seed)
        )

    return run


def unigram_graph():
    draw = unigram()
    return lambda: tf.function(draw)()


def sampled(function):
    weights, biases, ids, inputs = (tf.constant(array) for array in worker.sampled())
    sizes = worker.SAMPLED

    @tf.function
    def run(weights, biases, ids, inputs):
        return function(
            weights=weights, biases=biases, labels=tf.cast(ids, tf.int64), inputs=inputs, num_sampled=sizes["sampled"],
            num_classes=sizes["classes"],
        )  # fmt: skip

    return lambda: run(weights, biases, ids, inputs).numpy()


CASES = {
    "softmax f32": lambda: softmax(tf.float32),
    "softmax bf16": lambda: softmax(tf.bfloat16),
    "softmax f16": lambda: softmax(tf.float16),
    "soft labels f32": soft_labels,
    "sigmoid sum f32": sigmoid_sum,
    "sigmoid f32": sigmoid,
    "head f32": head,
    "log-uniform": log_uniform,
    "unigram": unigram,
    "unigram graph": unigram_graph,
    "sampled softmax": lambda: sampled(tf.nn.sampled_softmax_loss),
    "nce": lambda: sampled(tf.nn.nce_loss),
}

if __name__ == "__main__":
    worker.serve(CASES)
