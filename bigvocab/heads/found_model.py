"""What lies between the hidden states of a model and its logits, as its files tell it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


class TensorPlace(NamedTuple):
    """One tensor: the path of its file, and its name there."""

    file: str
    tensor: str

    def __str__(self) -> str:
        return f"{self.file}::{self.tensor}"


@dataclass(frozen=True)
class FoundModel:
    """What lies between the hidden states of a model and its logits, and where each part of it came from.

    logits = softcap(logit_scale * (norm(states) . head + biases)), over the first num_classes of the head's rows.
    norm_kind is rms, layer, none (the states go into the head as they are) or unknown (only states from after the norm
    can be used); it multiplies by norm_offset + the values at `norm`, which is None where the norm has no weights.
    `after_norm_only` says why states from before the norm cannot be used; it is empty where they can.
    """

    path: str
    model_type: str
    head: TensorPlace
    biases: TensorPlace | None
    norm: TensorPlace | None
    norm_biases: TensorPlace | None
    norm_kind: str
    norm_epsilon: float
    norm_offset: int
    logit_scale: float
    softcap: float | None
    num_classes: int
    rows: int
    hidden_size: int
    tied: bool
    after_norm_only: str
    notes: tuple[str, ...]
    sources: Mapping[str, str]

    def describe(self) -> str:
        """One line for a person."""
        norm = self.norm_kind
        if norm in ("rms", "layer"):
            weights = "no weights" if self.norm is None else f"{'1 + ' * self.norm_offset}{self.norm.tensor}"
            norm = f"{norm} norm ({weights}, epsilon {self.norm_epsilon:g})"
        elif norm == "none":
            norm = "no norm"
        else:
            norm = "norm unknown"
        parts = [f"{self.model_type}: {self.head.tensor} ({self.num_classes} x {self.hidden_size})", norm]
        parts += [f"biases {self.biases.tensor}"] if self.biases else []
        parts += [f"logit scale {self.logit_scale:g}"] if self.logit_scale != 1 else []
        parts += [f"softcap {self.softcap:g}"] if self.softcap is not None else []
        return ", ".join(parts)
