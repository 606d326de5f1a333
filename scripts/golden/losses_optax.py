"""optax's losses on small inputs, in float64, as tests/golden/losses_optax.json.

usage: PYTHON_WITH_OPTAX scripts/golden/losses_optax.py
"""

from __future__ import annotations

import jax
import numpy as np
import optax
from _golden import SEED, Golden, distributions, grid

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_platforms", "cpu")

N, V = 6, 11

golden = Golden("losses_optax", optax=optax.__version__, jax=jax.__version__)
rng = np.random.default_rng(SEED)
LOGITS = grid(rng, (N, V), 3.0)
LABELS = rng.integers(0, V, N)
SOFT = distributions(rng, N, V)
MULTI_HOT = (rng.random((N, V)) < 0.3).astype(np.float64)
WIDE = grid(rng, (3, 1031), 4.0)
INFINITE = np.array([[np.inf, np.inf, -np.inf, -np.inf]]), np.array([[1.0, 0.0, 1.0, 0.0]])


def case(name: str, peer, function: str, logits: np.ndarray, labels: np.ndarray, **options: object) -> None:
    value = peer(logits, labels)
    if value.dtype != np.float64:
        raise TypeError(f"{name}: optax worked in {value.dtype}, not in float64")
    golden.case(name, f"optax.{peer.__name__}", function, {"logits": logits, "labels": labels}, value, **options)


def main() -> None:
    masked = np.where(SOFT == 0, -np.inf, LOGITS)
    ids, soft, safe = (
        optax.softmax_cross_entropy_with_integer_labels,
        optax.softmax_cross_entropy,
        optax.safe_softmax_cross_entropy,
    )
    case("integer_labels/plain", ids, "sparse_softmax_cross_entropy", LOGITS, LABELS)
    case("integer_labels/wide", ids, "sparse_softmax_cross_entropy", WIDE, np.array([0, 1023, 1030]))
    case("integer_labels/one_class", ids, "sparse_softmax_cross_entropy", LOGITS[:, :1], np.zeros(N, np.int64))
    case("integer_labels/masked", ids, "sparse_softmax_cross_entropy", masked, SOFT.argmax(1))
    case("softmax/plain", soft, "softmax_cross_entropy", LOGITS, SOFT)
    case("softmax/unnormalised", soft, "softmax_cross_entropy", LOGITS, SOFT * np.arange(N)[:, None] / 2)
    smoothed = optax.smooth_labels(np.eye(V)[LABELS], 0.1)
    value, arguments = soft(LOGITS, smoothed), {"logits": LOGITS, "labels": LABELS, "label_smoothing": 0.1}
    golden.case("softmax/smooth_labels", "optax.smooth_labels", "sparse_softmax_cross_entropy", arguments, value)
    case("safe_softmax/plain", safe, "softmax_cross_entropy", LOGITS, SOFT)
    case("safe_softmax/masked", safe, "softmax_cross_entropy", masked, SOFT)
    case("sigmoid/plain", optax.sigmoid_binary_cross_entropy, "sigmoid_cross_entropy", LOGITS, MULTI_HOT)
    case("sigmoid/soft", optax.sigmoid_binary_cross_entropy, "sigmoid_cross_entropy", LOGITS, SOFT)
    case(
        "differs/masked_class_of_no_probability",
        soft,
        "softmax_cross_entropy",
        masked,
        SOFT,
        ours=safe(masked, SOFT),
        why="0 * -inf is 0, as in optax's own safe variant",
    )
    case(
        "differs/sigmoid_at_infinity",
        optax.sigmoid_binary_cross_entropy,
        "sigmoid_cross_entropy",
        *INFINITE,
        ours=np.array([[0.0, np.inf, np.inf, 0.0]]),
        why="infinite logits take their limits",
    )
    golden.write()


if __name__ == "__main__":
    main()
