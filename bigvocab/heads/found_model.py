"""What makes logits of a model's hidden states, as its files tell it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class FoundModel:
    """logits = softcap(logit_scale (norm(x) . w_j + b_j)), of the first `num_classes` of `rows` rows of the head.

    Tensors are named as `open_matrix` takes them, "file::tensor"; None: there is none. `norm_kind` is "rms", "layer" or
    None (not known); its weights are multiplied as norm_offset + norm. `sources` says where a field comes from.
    """

    path: str
    model_type: str
    head: str
    biases: str | None
    norm: str | None
    norm_biases: str | None
    norm_kind: str | None
    norm_epsilon: float
    norm_offset: float
    logit_scale: float
    softcap: float | None
    num_classes: int
    rows: int
    hidden_size: int
    tied: bool
    after_norm_only: bool
    notes: tuple[str, ...] = ()
    sources: dict[str, str] = field(default_factory=dict)
