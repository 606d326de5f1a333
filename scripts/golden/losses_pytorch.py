"""PyTorch's losses on small inputs, in float64, as tests/golden/losses_pytorch.json.

usage: PYTHON_WITH_TORCH scripts/golden/losses_pytorch.py
"""

from __future__ import annotations

import numpy as np
import torch
from _golden import SEED, Golden, distributions, grid
from torch.nn import functional

N, V, D = 6, 11, 4
REDUCTIONS = ("none", "sum", "mean")

golden = Golden("losses_pytorch", torch=torch.__version__)
rng = np.random.default_rng(SEED)
LOGITS = grid(rng, (N, V), 3.0)
LABELS = rng.integers(0, V, N)
CLASS_WEIGHTS = rng.integers(0, 13, V) / 4
SOFT = distributions(rng, N, V)
MULTI_HOT = (rng.random((N, V)) < 0.3).astype(np.float64)
MULTI_HOT[1] = 0
POS_WEIGHT = rng.integers(1, 17, V) / 4
WIDE = grid(rng, (3, 1031), 4.0)
INPUTS, LAYER, BIASES = grid(rng, (N, D), 1.0), grid(rng, (V, D), 1.0), grid(rng, (V,), 1.0)
WIDE_LAYER, WIDE_BIASES = grid(rng, (1031, D), 1.0), grid(rng, (1031,), 1.0)
IGNORE = LABELS.copy()
IGNORE[[0, 4]] = -100
SOME_NAN = LOGITS.copy()
SOME_NAN[[0, 4]] = np.nan


def tensor(value: object) -> torch.Tensor | None:
    return None if value is None else torch.tensor(value)


def cross_entropy(name: str, logits: np.ndarray, labels: np.ndarray, class_weights=None, **options: object) -> None:
    """F.cross_entropy with class ids or probabilities, every reduction."""
    function = "softmax_cross_entropy" if labels.dtype.kind == "f" else "sparse_softmax_cross_entropy"
    arguments = {"logits": logits, "labels": labels, **options}
    if class_weights is not None:
        arguments["class_weights"] = class_weights
    for reduction in REDUCTIONS:
        value = functional.cross_entropy(
            tensor(logits), tensor(labels), weight=tensor(class_weights), reduction=reduction, **options
        )
        title = f"cross_entropy/{name}/{reduction}"
        golden.case(title, "F.cross_entropy", function, arguments | {"reduction": reduction}, value)


def sparse_softmax() -> None:
    cross_entropy("plain", LOGITS, LABELS)
    cross_entropy("class_weights", LOGITS, LABELS, CLASS_WEIGHTS)
    cross_entropy("smoothing", LOGITS, LABELS, label_smoothing=0.1)
    cross_entropy("smoothing_one", LOGITS, LABELS, label_smoothing=1.0)
    cross_entropy("class_weights+smoothing", LOGITS, LABELS, CLASS_WEIGHTS, label_smoothing=0.1)
    cross_entropy("ignore", LOGITS, IGNORE, ignore_index=-100)
    cross_entropy("ignore_a_class", LOGITS, LABELS, ignore_index=int(LABELS[2]))
    cross_entropy("ignore_nan_rows", SOME_NAN, IGNORE, ignore_index=-100)
    cross_entropy("ignore+class_weights", LOGITS, IGNORE, CLASS_WEIGHTS, ignore_index=-100)
    cross_entropy("ignore+smoothing", LOGITS, IGNORE, ignore_index=-100, label_smoothing=0.2)
    cross_entropy(
        "ignore+class_weights+smoothing", LOGITS, IGNORE, CLASS_WEIGHTS, ignore_index=-100, label_smoothing=0.2
    )
    cross_entropy("ignore_all", LOGITS, np.full(N, -100), ignore_index=-100)
    cross_entropy("class_weights_all_zero", LOGITS, LABELS, np.zeros(V))
    cross_entropy("empty", LOGITS[:0], LABELS[:0])
    cross_entropy("one_class", LOGITS[:, :1], np.zeros(N, np.int64))
    cross_entropy("two_classes", LOGITS[:, :2], LABELS % 2)
    cross_entropy("wide", WIDE, np.array([0, 1023, 1030]))
    cross_entropy("wide+smoothing", WIDE, np.array([0, 1024, 5]), label_smoothing=0.1)
    cross_entropy("huge", np.array([[3e38, -3e38, 0.0]]), np.array([1]))
    masked = LOGITS.copy()
    masked[:, ::2] = -np.inf
    cross_entropy("masked", masked, LABELS // 2 * 2 + 1 - 2 * (LABELS == V - 1))
    cross_entropy("masked_label", masked, LABELS // 2 * 2)
    worked = np.array([[1.0, 2, 3], [0, 0, 0], [3, 1, 0]]), np.arange(3), np.array([1.0, 2, 0])
    cross_entropy("worked", *worked)
    cross_entropy("worked+smoothing", *worked, label_smoothing=0.1)


def soft_labels() -> None:
    cross_entropy("soft", LOGITS, SOFT)
    cross_entropy("soft+smoothing", LOGITS, SOFT, label_smoothing=0.1)
    cross_entropy("soft_unnormalised", LOGITS, SOFT * np.array([[0, 0.5, 1, 2, 3, 4]]).T)
    cross_entropy("soft_wide", WIDE[:, :129], distributions(np.random.default_rng(SEED + 1), 3, 129))


def sigmoid() -> None:
    def bce(name: str, function: str, logits: np.ndarray, labels: np.ndarray, weights=None, pos_weight=None) -> None:
        arguments = {"logits": logits, "labels": labels}
        arguments |= {} if weights is None else {"weights": weights}
        arguments |= {} if pos_weight is None else {"pos_weight": pos_weight}
        for reduction in REDUCTIONS:
            value = functional.binary_cross_entropy_with_logits(
                tensor(logits), tensor(labels), tensor(weights), pos_weight=tensor(pos_weight), reduction=reduction
            )  # its mean divides by the number of elements, whatever the weights
            ours = "sum_over_batch_size" if reduction == "mean" else reduction
            title = f"bce_with_logits/{name}/{reduction}"
            peer = "F.binary_cross_entropy_with_logits"
            golden.case(title, peer, function, arguments | {"reduction": ours}, value)

    by_row = np.array([[1.0], [0], [0.5], [2], [-1], [3]])
    bce("plain", "sigmoid_cross_entropy", LOGITS, MULTI_HOT)
    bce("soft", "sigmoid_cross_entropy", LOGITS, SOFT)
    bce("weights", "sigmoid_cross_entropy", LOGITS, MULTI_HOT, by_row)
    bce("pos_weight", "weighted_sigmoid_cross_entropy", LOGITS, MULTI_HOT, None, POS_WEIGHT)
    bce("pos_weight_scalar", "weighted_sigmoid_cross_entropy", LOGITS, SOFT, None, 2.5)
    bce("weights+pos_weight", "weighted_sigmoid_cross_entropy", LOGITS, SOFT, by_row, POS_WEIGHT)
    bce("far", "sigmoid_cross_entropy", np.array([[100.0, -100, 40, -40, 800, -800]]), np.array([[1.0, 0, 0, 1, 0, 1]]))


def multi_label() -> None:
    """A set of ids per row against its multi-hot matrix, summed over the classes."""
    ids = [np.flatnonzero(row) for row in MULTI_HOT]
    ragged = np.cumsum([0, *map(len, ids)]), np.concatenate(ids)
    fixed = np.sort(rng.permuted(np.tile(np.arange(V), (N, 1)), axis=1)[:, :3], axis=1)
    fixed_hot = np.zeros((N, V))
    np.put_along_axis(fixed_hot, fixed, 1.0, axis=1)
    wide_ids = np.array([[0, 1], [1022, 1023], [1024, 1030]])
    wide_hot = np.zeros(WIDE.shape)
    np.put_along_axis(wide_hot, wide_ids, 1.0, axis=1)
    rare = WIDE / 32 - 15
    table = {
        "ragged": (LOGITS, ragged, MULTI_HOT, None),
        "ragged+pos_weight": (LOGITS, ragged, MULTI_HOT, POS_WEIGHT),
        "fixed": (LOGITS, fixed, fixed_hot, None),
        "fixed+pos_weight_scalar": (LOGITS, fixed, fixed_hot, 2.5),
        "wide": (WIDE, wide_ids, wide_hot, None),
        "rare": (rare, wide_ids, wide_hot, None),
    }
    for name, (logits, labels, hot, pos_weight) in table.items():
        elements = functional.binary_cross_entropy_with_logits(
            tensor(logits), tensor(hot), pos_weight=tensor(pos_weight), reduction="none"
        )
        arguments = {"logits": logits, "labels": labels}
        arguments |= {} if pos_weight is None else {"pos_weight": pos_weight}
        peer = "F.binary_cross_entropy_with_logits(...).sum(1)"
        golden.case(f"multi_label/{name}", peer, "sparse_sigmoid_cross_entropy", arguments, elements.sum(1))


def log_loss() -> None:
    """Inside (0, 1) and with epsilon 0 both agree; at 0 and 1 PyTorch clamps the log at -100."""
    predictions = rng.integers(1, 256, (N, V)) / 256
    value = functional.binary_cross_entropy(tensor(predictions), tensor(SOFT), reduction="none")
    arguments = {"predictions": predictions, "labels": SOFT, "epsilon": 0.0}
    golden.case("bce/inside", "F.binary_cross_entropy", "log_loss", arguments, value)


def linear() -> None:
    """F.linear_cross_entropy by its plain path and by its chunked one."""
    chunked = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=4)

    def head(name: str, inputs: np.ndarray, weights: np.ndarray, labels: np.ndarray, biases=None, **extra) -> None:
        arguments = {"inputs": inputs, "weights": weights, "labels": labels, **extra}
        arguments |= {} if biases is None else {"biases": biases}
        for path, options in (("plain", None), ("chunked", chunked)):
            if options and "label_smoothing" in extra:
                continue  # the chunked path has no smoothing
            for reduction in REDUCTIONS:
                value = functional.linear_cross_entropy(
                    *map(tensor, (inputs, weights, labels)),
                    linear_bias=tensor(biases),
                    reduction=reduction,
                    options=options,
                    **extra,
                )
                title, peer = f"linear/{name}/{path}/{reduction}", f"F.linear_cross_entropy ({path})"
                golden.case(title, peer, "linear_cross_entropy", arguments | {"reduction": reduction}, value)

    head("no_biases", INPUTS, LAYER, LABELS)
    head("biases", INPUTS, LAYER, LABELS, BIASES)
    head("ignore", INPUTS, LAYER, IGNORE, BIASES, ignore_index=-100)
    head("smoothing", INPUTS, LAYER, LABELS, BIASES, label_smoothing=0.1)
    head("ignore+smoothing", INPUTS, LAYER, IGNORE, BIASES, ignore_index=-100, label_smoothing=0.1)
    head("wide", INPUTS, WIDE_LAYER, LABELS * 103, WIDE_BIASES)

    logits = tensor(INPUTS) @ tensor(LAYER).T + tensor(BIASES)
    options = {"logit_scale": 1.5, "softcap": 4.0, "num_classes": 8}
    labels = LABELS % 8
    steps = {
        "logit_scale": (1.5 * logits, LABELS, ("logit_scale",)),
        "softcap": (4 * torch.tanh(logits / 4), LABELS, ("softcap",)),
        "num_classes": (logits[:, :8], labels, ("num_classes",)),
        "everything": (4 * torch.tanh(1.5 * logits[:, :8] / 4), labels, tuple(options)),
    }
    for name, (scored, targets, used) in steps.items():
        arguments = {"inputs": INPUTS, "weights": LAYER, "biases": BIASES, "labels": targets}
        value = functional.cross_entropy(scored, tensor(targets), reduction="none")
        peer = "F.cross_entropy of the logits made by hand"
        arguments |= {option: options[option] for option in used}
        golden.case(f"linear/{name}", peer, "linear_cross_entropy", arguments, value)


def differences() -> None:
    """Where this project departs from PyTorch, and why."""
    z, x = np.array([[0.0, 1.0, 0.0]]), np.array([[-np.inf, 1.0, 2.0]])
    value = functional.cross_entropy(tensor(x), tensor(z), reduction="none")
    ours = functional.cross_entropy(tensor(x), torch.tensor([1]), reduction="none")
    golden.case(
        "differs/masked_class_of_no_probability",
        "F.cross_entropy",
        "softmax_cross_entropy",
        {"logits": x, "labels": z},
        value,
        ours=ours,
        why="0 * -inf is 0: a masked class that the label does not ask for adds nothing",
    )
    x, y = np.array([[np.inf, 1.0, 2.0]]), np.array([1])
    golden.case(
        "differs/infinite_logit_elsewhere",
        "F.cross_entropy",
        "sparse_softmax_cross_entropy",
        {"logits": x, "labels": y},
        functional.cross_entropy(tensor(x), tensor(y), reduction="none"),
        ours=np.array([np.inf]),
        why="the label's probability tends to 0, so the loss is inf, not NaN",
    )
    x, z = np.array([[np.inf, np.inf, -np.inf, -np.inf]]), np.array([[1.0, 0.0, 1.0, 0.0]])
    golden.case(
        "differs/sigmoid_at_infinity",
        "F.binary_cross_entropy_with_logits",
        "sigmoid_cross_entropy",
        {"logits": x, "labels": z},
        functional.binary_cross_entropy_with_logits(tensor(x), tensor(z), reduction="none"),
        ours=np.array([[0.0, np.inf, np.inf, 0.0]]),
        why="infinite logits take their limits",
    )
    golden.case(
        "differs/log_loss_at_zero",
        "F.binary_cross_entropy",
        "log_loss",
        {"predictions": np.array([[0.0, 1.0]]), "labels": np.array([[1.0, 1.0]])},
        functional.binary_cross_entropy(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 1.0]]), reduction="none"),
        ours=np.array([[-np.log(1e-7), -np.log1p(1e-7)]]),
        why="epsilon is added to the probability, as TensorFlow does; PyTorch clamps the log at -100",
    )
    bf16 = torch.tensor(WIDE).to(torch.bfloat16)
    labels = np.array([0, 1023, 1030])
    golden.case(
        "differs/bfloat16",
        "F.cross_entropy of bfloat16 logits",
        "sparse_softmax_cross_entropy",
        {"logits": WIDE, "labels": labels},
        functional.cross_entropy(bf16, tensor(labels), reduction="none").double(),
        ours=functional.cross_entropy(bf16.double(), tensor(labels), reduction="none"),
        why="the loss is that of the stored values in float64, not rounded to the logits' type",
    )
    arguments = {"logits": LOGITS, "labels": LABELS, "label_smoothing": -0.1}
    value = functional.cross_entropy(tensor(LOGITS), tensor(LABELS), label_smoothing=-0.1, reduction="none")
    golden.case(
        "differs/smoothing_below_its_range",
        "F.cross_entropy",
        "sparse_softmax_cross_entropy",
        arguments,
        value,
        ours="error",
        why="smoothing outside [0, 1] is an error; PyTorch says so above 1 only, and ignores what is below 0",
    )
    try:
        functional.cross_entropy(tensor(LOGITS), tensor(LABELS), label_smoothing=1.5)
    except RuntimeError:
        arguments = arguments | {"label_smoothing": 1.5}
        title = "cross_entropy/smoothing_above_its_range"
        golden.case(title, "F.cross_entropy", "sparse_softmax_cross_entropy", arguments, "error")


if __name__ == "__main__":
    for part in (sparse_softmax, soft_labels, sigmoid, multi_label, log_loss, linear, differences):
        part()
    golden.write()
