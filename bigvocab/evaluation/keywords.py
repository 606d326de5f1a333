"""The keywords of `Evaluator`, and of `evaluate` beside its own: their types, their defaults, and which were given."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, TypedDict


class EvaluatorOptions(TypedDict, total=False):
    """The keywords of `Evaluator`, most of which `evaluate` takes too; see there what they mean."""

    loss: str
    weights: Any
    biases: Any
    final_norm: str | None
    norm_weight: Any
    norm_bias: Any
    norm_epsilon: float
    model: Any
    hidden_states: str | None
    layer: int | None
    shift_labels: bool
    score_from: int
    ignore_index: int | Iterable[int] | None
    label_offset: int
    label_dtype: str | None
    exclude_classes: Any
    label_smoothing: float
    class_weights: Any
    pos_weight: Any
    epsilon: float
    logit_scale: float
    softcap: float | None
    num_classes: int | str | None
    metrics: str | Iterable[str] | None
    top_k: int | str | Iterable[int]
    keep_top: int | None
    ties: str
    class_counts: Any
    nonfinite: str
    threads: int | None
    label_column: str | None
    probability_column: str | None
    weight_column: str | None
    group_column: str | None
    bytes_column: str | None
    position_column: str | None
    text_column: str | None
    cluster_column: str | None
    exclude_column: str | None
    sampler: str | None
    num_sampled: int | None
    num_true: int | None
    vocab_file: Any
    distortion: float | None
    seed: Any
    candidates: Any
    exact: bool
    shape: Any
    dtype: str | None
    offset: int
    vocab_shards: bool
    shard_classes: str | Iterable[int] | None
    transpose_weights: bool
    chunk_rows: int | None
    max_memory: int | str | None


# The default of each keyword; of those not listed, None.
DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(EvaluatorOptions.__annotations__),
    "loss": "sparse-softmax",
    "label_offset": 0,
    "norm_epsilon": 1e-6,
    "shift_labels": False,
    "score_from": 0,
    "label_smoothing": 0.0,
    "epsilon": 1e-7,
    "logit_scale": 1.0,
    "top_k": (1, 5),
    "ties": "optimistic",
    "nonfinite": "error",
    "exact": False,
    "offset": 0,
    "vocab_shards": False,
    "transpose_weights": False,
}


def signature(*own: inspect.Parameter) -> inspect.Signature:
    """The signature of a function with keywords of its own and those of `specify`, as help and editors show it."""
    keyword, types = inspect.Parameter.KEYWORD_ONLY, EvaluatorOptions.__annotations__
    taken = {parameter.name for parameter in own}
    options = [
        inspect.Parameter(name, keyword, default=DEFAULTS[name], annotation=types[name])
        for name in types
        if name not in taken
    ]
    return inspect.Signature([*own, *options])


def given_among(asked: Mapping[str, Any]) -> list[str]:
    """Names of the options that differ from their defaults."""
    return [name for name, value in asked.items() if _differs(value, DEFAULTS.get(name))]


def _differs(value: Any, default: Any) -> bool:
    if value is None or value is False or isinstance(value, tuple | list) and not value:
        return False
    return not isinstance(value, bool | int | float | str | tuple) or value != default
