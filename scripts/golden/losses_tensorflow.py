"""TensorFlow's losses on small inputs as tests/golden/losses_tensorflow.json: float64, but tf.compat.v1.losses float32.

usage: PYTHON_WITH_TENSORFLOW scripts/golden/losses_tensorflow.py
"""

from __future__ import annotations

import os

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "TF_ENABLE_ONEDNN_OPTS": "0"}

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from _golden import SEED, Golden, distributions, grid  # noqa: E402
from tensorflow.python.ops.nn_impl import _compute_sampled_logits  # noqa: E402

N, V = 5, 7
SINGLE = 3e-6  # tf.compat.v1.losses works in float32 whatever comes in
LOSSES = tf.compat.v1.losses
REDUCTIONS = {
    "none": LOSSES.Reduction.NONE,
    "sum": LOSSES.Reduction.SUM,
    "mean": LOSSES.Reduction.MEAN,
    "sum_over_batch_size": LOSSES.Reduction.SUM_OVER_BATCH_SIZE,
    "sum_by_nonzero_weights": LOSSES.Reduction.SUM_BY_NONZERO_WEIGHTS,
}

golden = Golden("losses_tensorflow", tensorflow=tf.__version__)
rng = np.random.default_rng(SEED)
LOGITS = grid(rng, (N, V), 3.0)
LABELS = rng.integers(0, V, N)
SOFT = distributions(rng, N, V)
UNNORMALISED = SOFT * np.array([[0, 0.5, 1, 2, 3]]).T
MULTI_HOT = (rng.random((N, V)) < 0.3).astype(np.float64)
PREDICTIONS = rng.integers(0, 257, (N, V)) / 256
POS_WEIGHT = rng.integers(1, 17, V) / 4
WIDE = grid(rng, (3, 1031), 4.0)
BY_ROW = {
    "scalar": 0.5,
    "rows": np.array([1, 2, 0.5, 4, 3]),
    "zeros": np.array([1, 0, 0.5, 0, 3]),
    "negative": np.array([1, -2, 0.5, 0, 3]),
    "one": np.array([2.0]),
}
BY_ELEMENT = {
    "scalar": 0.5,
    "rows": np.array([[1, 2, 0.5, 4, 3]]).T,
    "zeros": np.array([[1, 0, 0.5, 0, 3]]).T,
    "negative": np.array([[1, -2, 0.5, 0, 3]]).T,
    "classes": np.array([[1, 0, 0.5, 0, 3, 2, 1]]),
    "elements": np.where(MULTI_HOT > 0, 0.0, 1.5) + 0.25 * (np.arange(V) % 3),
    "one": np.array([[2.0]]),
}


def reductions(name: str, call, function: str, arguments: dict, weights: dict[str, object]) -> None:
    """A tf.compat.v1.losses function under every weight shape and reduction; `call` takes both."""
    for shape, weight in {"unweighted": None, **weights}.items():
        for ours, theirs in REDUCTIONS.items():
            value = call(weights=1.0 if weight is None else weight, reduction=theirs)
            keywords = arguments | {"reduction": ours} | ({} if weight is None else {"weights": weight})
            title, peer = f"v1.{name}/{shape}/{ours}", f"tf.compat.v1.losses.{name.partition('/')[0]}"
            golden.case(title, peer, function, keywords, value.numpy(), tolerance=SINGLE)


def nn_losses() -> None:
    sparse, soft = tf.nn.sparse_softmax_cross_entropy_with_logits, tf.nn.softmax_cross_entropy_with_logits

    def sparse_softmax(name: str, logits: np.ndarray, labels: np.ndarray) -> None:
        arguments = {"logits": logits, "labels": labels}
        value = sparse(**arguments).numpy()
        golden.case(
            f"nn.sparse_softmax/{name}", f"tf.nn.{sparse.__name__}", "sparse_softmax_cross_entropy", arguments, value
        )

    def softmax(name: str, logits: np.ndarray, labels: np.ndarray) -> None:
        arguments = {"logits": logits, "labels": labels}
        value = soft(**arguments).numpy()
        golden.case(f"nn.softmax/{name}", f"tf.nn.{soft.__name__}", "softmax_cross_entropy", arguments, value)

    sparse_softmax("plain", LOGITS, LABELS)
    sparse_softmax("int32", LOGITS, LABELS.astype(np.int32))
    sparse_softmax("wide", WIDE, np.array([0, 1023, 1030]))
    sparse_softmax("one_class", LOGITS[:, :1], np.zeros(N, np.int64))
    sparse_softmax("empty", LOGITS[:0], LABELS[:0])
    sparse_softmax("worked", np.array([[1.0, 1, 1, 1], [1, 2, 3, 4]]), np.array([3, 0]))
    softmax("plain", LOGITS, SOFT)
    softmax("unnormalised", LOGITS, UNNORMALISED)
    softmax("wide", WIDE[:, :129], distributions(np.random.default_rng(SEED + 1), 3, 129))
    softmax("worked", np.array([[1.0, 1, 1, 1], [1, 2, 3, 4]]), np.array([[0.0, 0, 0, 1], [0, 0.5, 0.5, 0]]))
    softmax("worked_unnormalised", np.array([[1.0, 2, 3], [1, 2, 3]]), np.array([[1.0, 1, 0], [0, 0, 0]]))

    arguments = {"logits": LOGITS, "labels": MULTI_HOT}
    value = tf.nn.sigmoid_cross_entropy_with_logits(**arguments).numpy()
    peer = "tf.nn.sigmoid_cross_entropy_with_logits"
    golden.case("nn.sigmoid/plain", peer, "sigmoid_cross_entropy", arguments, value)
    value = tf.nn.sigmoid_cross_entropy_with_logits(logits=LOGITS, labels=SOFT).numpy()
    golden.case("nn.sigmoid/soft", peer, "sigmoid_cross_entropy", {"logits": LOGITS, "labels": SOFT}, value)
    for name, labels, pos_weight in (
        ("scalar", MULTI_HOT, 1.5),
        ("per_class", SOFT, POS_WEIGHT),
        ("less_than_one", MULTI_HOT, 0.25),
    ):
        arguments = {"logits": LOGITS, "labels": labels, "pos_weight": pos_weight}
        value = tf.nn.weighted_cross_entropy_with_logits(**arguments).numpy()
        peer = "tf.nn.weighted_cross_entropy_with_logits"
        golden.case(f"nn.weighted/{name}", peer, "weighted_sigmoid_cross_entropy", arguments, value)


def v1_losses() -> None:
    reductions(
        "sparse_softmax_cross_entropy",
        lambda **how: LOSSES.sparse_softmax_cross_entropy(LABELS, LOGITS, **how),
        "sparse_softmax_cross_entropy",
        {"logits": LOGITS, "labels": LABELS},
        BY_ROW,
    )
    for name, labels, e, weights in (
        ("softmax_cross_entropy", SOFT, 0, BY_ROW),
        ("softmax_cross_entropy/smoothing", SOFT, 0.1, {"zeros": BY_ROW["zeros"]}),
        ("softmax_cross_entropy/unnormalised+smoothing", UNNORMALISED, 0.25, {}),
    ):
        reductions(
            name,
            lambda labels=labels, e=e, **how: LOSSES.softmax_cross_entropy(labels, LOGITS, label_smoothing=e, **how),
            "softmax_cross_entropy",
            {"logits": LOGITS, "labels": labels} | ({"label_smoothing": e} if e else {}),
            weights,
        )
    one_hot = np.eye(V)[LABELS]
    reductions(
        "softmax_cross_entropy/one_hot+smoothing",
        lambda **how: LOSSES.softmax_cross_entropy(one_hot, LOGITS, label_smoothing=0.1, **how),
        "sparse_softmax_cross_entropy",
        {"logits": LOGITS, "labels": LABELS, "label_smoothing": 0.1},
        {"rows": BY_ROW["rows"]},
    )
    for name, e, weights in (
        ("sigmoid_cross_entropy", 0, BY_ELEMENT),
        ("sigmoid_cross_entropy/smoothing", 0.1, {"zeros": BY_ELEMENT["zeros"]}),
    ):
        reductions(
            name,
            lambda e=e, **how: LOSSES.sigmoid_cross_entropy(MULTI_HOT, LOGITS, label_smoothing=e, **how),
            "sigmoid_cross_entropy",
            {"logits": LOGITS, "labels": MULTI_HOT} | ({"label_smoothing": e} if e else {}),
            weights,
        )
    reductions(
        "log_loss",
        lambda **how: LOSSES.log_loss(MULTI_HOT, PREDICTIONS, **how),
        "log_loss",
        {"predictions": PREDICTIONS, "labels": MULTI_HOT},
        BY_ELEMENT,
    )
    reductions(
        "log_loss/epsilon",
        lambda **how: LOSSES.log_loss(SOFT, PREDICTIONS, epsilon=0.125, **how),
        "log_loss",
        {"predictions": PREDICTIONS, "labels": SOFT, "epsilon": 0.125},
        {},
    )
    losses = np.arange(6.0).reshape(3, 2)
    reductions(
        "compute_weighted_loss",
        lambda **how: LOSSES.compute_weighted_loss(losses, **how),
        "compute_weighted_loss",
        {"losses": losses},
        {"worked": np.array([[2], [0], [0.5]]), "scalar": -0.5, "classes": np.array([[0.5, 3]])},
    )


def sampled_losses() -> None:
    """Both sampled losses for given candidates, one of them a hit of several rows; weights whole and in shards."""
    classes, size, sampled = 11, 4, 6
    weights, biases = grid(rng, (classes, size), 1.0), grid(rng, (classes,), 1.0)
    inputs = grid(rng, (N, size), 1.0)
    labels = {1: np.array([[0], [9], [3], [10], [9]]), 3: rng.integers(0, classes, (N, 3))}
    labels[3][0] = [7, 2, 7]
    candidates = np.array([7, 9, 0, 4, 2, 10])
    counts = {key: rng.integers(8, 256, shape) / 128 for key, shape in ((1, (N, 1)), (3, (N, 3)), (0, sampled))}
    shards = {
        "whole": weights,
        "div": np.split(weights, [4, 8]),
        "mod": [weights[shard::3] for shard in range(3)],
    }

    def loss(name: str, subtract_log_q: bool, partition: str, **keywords: object) -> np.ndarray:
        strategy = "div" if partition == "whole" else partition
        if subtract_log_q:
            return getattr(tf.compat.v1.nn, name)(partition_strategy=strategy, **keywords).numpy()
        logits, targets = _compute_sampled_logits(partition_strategy=strategy, subtract_log_q=False, **keywords)
        if name == "sampled_softmax_loss":  # the public functions always subtract: the same steps after it
            return tf.nn.softmax_cross_entropy_with_logits(labels=targets, logits=logits).numpy()
        return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(labels=targets, logits=logits), 1).numpy()

    for name in ("sampled_softmax_loss", "nce_loss"):
        for num_true in (1, 3):
            for remove in (True, False):
                for subtract in (True, False):
                    for partition, layer in shards.items():
                        keywords = {
                            "weights": layer,
                            "biases": biases,
                            "labels": labels[num_true],
                            "inputs": inputs,
                            "num_sampled": sampled,
                            "num_classes": classes,
                            "num_true": num_true,
                            "sampled_values": (candidates, counts[num_true], counts[0]),
                            "remove_accidental_hits": remove,
                        }
                        value = loss(name, subtract, partition, **keywords)
                        hits = "without_hits" if remove else "with_hits"
                        log_q = "log_q" if subtract else "no_log_q"
                        title = f"{name}/{num_true}_true/{hits}/{log_q}/{partition}"
                        keywords["subtract_log_q"] = subtract
                        if partition != "whole":
                            keywords["partition_strategy"] = partition
                        golden.case(title, f"tf.compat.v1.nn.{name}", name, keywords, value)
    sampled_differences(weights, biases, inputs)
    drawn_by_the_loss(weights, biases, inputs, labels)


def drawn_by_the_loss(weights: np.ndarray, biases: np.ndarray, inputs: np.ndarray, labels: dict) -> None:
    """The whole path: the loss draws its own candidates from an op seed. float32, as the sampler's counts are."""
    for num_true, seed in ((1, 42), (3, 43)):
        keywords = {"labels": labels[num_true], "num_sampled": 5, "num_classes": len(weights), "num_true": num_true}
        single = {"weights": weights, "biases": biases, "inputs": inputs}
        value = tf.nn.sampled_softmax_loss(
            **{key: array.astype(np.float32) for key, array in single.items()}, **keywords, seed=seed
        ).numpy()
        name, arguments = f"sampled_softmax_loss/{num_true}_true/own_candidates", single | keywords | {"seed": seed}
        golden.case(name, "tf.nn.sampled_softmax_loss", "sampled_softmax_loss", arguments, value, tolerance=SINGLE)


def sampled_differences(weights: np.ndarray, biases: np.ndarray, inputs: np.ndarray) -> None:
    """Accidental hits in ways that TensorFlow gets wrong: ours is its own loss without those candidates."""
    for name in ("sampled_softmax_loss", "nce_loss"):
        row = {"weights": weights, "biases": biases, "labels": np.array([[4]]), "inputs": inputs[:1]}
        row |= {"num_classes": len(weights), "remove_accidental_hits": True}
        call, ours_values = getattr(tf.nn, name), (np.array([2, 7]), np.array([[0.5]]), np.array([0.25, 2]))
        for title, dtype, candidates, why in (
            (
                "differs/duplicate_hits",
                np.float64,
                ([4, 2, 4, 7], [0.5, 0.25, 0.5, 2]),
                "every copy of a hit is left out; TensorFlow masks the last one only",
            ),
            (
                "differs/float16_hits",
                np.float16,
                ([2, 4, 7], [0.25, 0.5, 2]),
                "a hit is left out of the sum; TensorFlow adds -FLT_MAX, which is -inf in float16, then 0 * -inf",
            ),
        ):
            ids, counts = np.array(candidates[0]), np.array(candidates[1])
            values = (ids, ours_values[1], counts)
            keywords = row | {"num_sampled": len(ids), "sampled_values": values}
            theirs = {k: v.astype(dtype) for k, v in row.items() if k in ("weights", "biases", "inputs")}
            theirs["sampled_values"] = (ids, ours_values[1].astype(dtype), counts.astype(dtype))
            value = call(**(keywords | theirs)).numpy()
            ours = call(**(row | {"num_sampled": 2, "sampled_values": ours_values})).numpy()
            golden.case(f"{title}/{name}", f"tf.nn.{name}", name, keywords, value, ours=ours, why=why)


def differences() -> None:
    """Where this project departs from TensorFlow, and why."""

    def differ(name: str, call, function: str, arguments: dict, ours: object, why: str, **theirs: object) -> None:
        try:
            value = call(**(arguments | theirs)).numpy()
        except (ValueError, tf.errors.InvalidArgumentError):
            value = "error"
        peer = getattr(call, "__name__", "tf.compat.v1.losses")
        options = {"tolerance": SINGLE} if "reduction" in theirs or "labels" not in arguments else {}
        golden.case(f"differs/{name}", peer, function, arguments, value, ours=ours, why=why, **options)

    zero = {"losses": np.array([1.0, 2, 3]), "weights": np.zeros(3)}
    to_zero = {"losses": np.array([1.0, 2, 3]), "weights": np.array([1.0, -1, 0])}
    empty = {"losses": np.zeros(0)}
    for name, arguments, without in (
        ("weights_all_zero", zero, ("mean", "sum_by_nonzero_weights")),
        ("weights_sum_to_zero", to_zero, ("mean",)),
        ("no_rows", empty, ("mean", "sum_by_nonzero_weights", "sum_over_batch_size")),
    ):
        for reduction in without:
            differ(
                f"{name}/{reduction}",
                LOSSES.compute_weighted_loss,
                "compute_weighted_loss",
                arguments | {"reduction": reduction},
                np.nan,
                "there is nothing to average: NaN, because 0.0 reads as a perfect model",
                reduction=REDUCTIONS[reduction],
            )
        for reduction in sorted(REDUCTIONS.keys() - set(without)):
            value = LOSSES.compute_weighted_loss(**arguments, reduction=REDUCTIONS[reduction]).numpy()
            title, peer = f"v1.compute_weighted_loss/{name}/{reduction}", "tf.compat.v1.losses.compute_weighted_loss"
            keywords = arguments | {"reduction": reduction}
            golden.case(title, peer, "compute_weighted_loss", keywords, value, tolerance=SINGLE)
    differ(
        "nan_of_weight_zero",
        LOSSES.compute_weighted_loss,
        "compute_weighted_loss",
        {"losses": np.array([1.0, np.nan, 3]), "weights": np.array([1.0, 0, 1]), "reduction": "mean"},
        2.0,
        "a row of weight 0 is skipped",
        reduction=REDUCTIONS["mean"],
    )
    differ(
        "weights_of_another_rank",
        LOSSES.sparse_softmax_cross_entropy,
        "sparse_softmax_cross_entropy",
        {"logits": LOGITS, "labels": LABELS, "weights": BY_ROW["rows"][:, None], "reduction": "sum"},
        "error",
        "weights have the losses' rank; TensorFlow drops the last dimension here, but not in compute_weighted_loss",
        reduction=REDUCTIONS["sum"],
    )
    for name, e in (("below", -0.1), ("above", 1.5)):
        for short, labels in (("softmax", SOFT), ("sigmoid", MULTI_HOT)):
            call = getattr(LOSSES, f"{short}_cross_entropy")
            arguments = {"logits": LOGITS, "labels": labels, "label_smoothing": e, "reduction": "sum"}
            value = call(labels, LOGITS, label_smoothing=e, reduction=REDUCTIONS["sum"]).numpy()
            why = "smoothing outside [0, 1] is an error; TensorFlow ignores what is below and takes what is above"
            peer, function = f"tf.compat.v1.losses.{short}_cross_entropy", f"{short}_cross_entropy"
            title = f"differs/{short}_smoothing_{name}_its_range"
            golden.case(title, peer, function, arguments, value, ours="error", why=why)
    for name, p in (("above", 1.5), ("below", -0.5)):
        arguments = {"predictions": np.array([[0.5], [p]]), "labels": np.array([[1.0], [1.0]]), "reduction": "sum"}
        value = LOSSES.log_loss(arguments["labels"], arguments["predictions"], reduction=REDUCTIONS["sum"]).numpy()
        why = "a probability outside [0, 1] is an error that names its row"
        peer, title = "tf.compat.v1.losses.log_loss", f"differs/probability_{name}_its_range"
        golden.case(title, peer, "log_loss", arguments, value, ours="error", why=why)

    masked = np.array([[-np.inf, 1.0, 2.0]])
    differ(
        "masked_class_of_no_probability",
        tf.nn.softmax_cross_entropy_with_logits,
        "softmax_cross_entropy",
        {"logits": masked, "labels": np.array([[0.0, 1, 0]])},
        np.array([np.log1p(np.e)]),
        "0 * -inf is 0: a masked class that the label does not ask for adds nothing",
    )
    differ(
        "infinite_logit_elsewhere",
        tf.nn.sparse_softmax_cross_entropy_with_logits,
        "sparse_softmax_cross_entropy",
        {"logits": -masked, "labels": np.array([1])},
        np.array([np.inf]),
        "the label's probability tends to 0, so the loss is inf, not NaN",
    )
    for name, x, limits in (("plus", np.inf, [0.0, np.inf]), ("minus", -np.inf, [np.inf, 0.0])):
        arguments = {"logits": np.array([[x, x]]), "labels": np.array([[1.0, 0.0]])}
        ours, why = np.array([limits]), "infinite logits take their limits"
        call = tf.nn.sigmoid_cross_entropy_with_logits
        differ(f"sigmoid_at_{name}_infinity", call, "sigmoid_cross_entropy", arguments, ours, why)
        call, arguments = tf.nn.weighted_cross_entropy_with_logits, arguments | {"pos_weight": 2.0}
        differ(f"weighted_sigmoid_at_{name}_infinity", call, "weighted_sigmoid_cross_entropy", arguments, ours, why)


if __name__ == "__main__":
    for part in (nn_losses, v1_losses, sampled_losses, differences):
        part()
    golden.write()
