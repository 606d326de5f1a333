"""What lies between the hidden states of a model and its logits, as its files tell it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

BEFORE, AFTER = "before-norm", "after-norm"  # where hidden states are from


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

    @property
    def norm_text(self) -> str:
        """The norm in words."""
        if self.norm_kind == "none":
            return "no norm"
        if self.norm_kind not in ("rms", "layer"):
            return "norm unknown"
        weights = "no weights" if self.norm is None else f"{'1 + ' * self.norm_offset}{self.norm.tensor}"
        return f"{self.norm_kind} norm ({weights}, epsilon {self.norm_epsilon:g})"

    def lines(self) -> Iterator[tuple[str, str]]:
        """(name, text) of each part, with where it came from, and the notes: for a person."""
        sources, scale = self.sources, f"{self.logit_scale:g}" if self.logit_scale != 1 else ""
        padding = f", {self.rows - self.num_classes} of its rows are padding" if self.rows > self.num_classes else ""
        cap = "" if self.softcap is None else f"{self.softcap:g}"
        yield "type", self.model_type
        tied = " (the embedding)" if self.tied else ""
        yield "head", f"{self.head}, {self.rows} x {self.hidden_size}{tied}"
        yield from [("biases", str(self.biases))] if self.biases else []
        yield "classes", f"{self.num_classes}, from {sources.get('num_classes', 'the head')}{padding}"
        yield "norm", ", ".join([self.norm_text, *(str(place) for place in (self.norm, self.norm_biases) if place)])
        for name, text in (("logit_scale", scale), ("softcap", cap)):
            yield from [(name.replace("_", " "), f"{text}, from {sources.get(name, 'the model')}")] if text else []
        wanted = f"after the norm only: {self.after_norm_only}" if self.after_norm_only else "before or after the norm"
        yield "hidden states", wanted if self.norm_kind != "none" else "as they meet the head"
        yield from (("note", note) for note in self.notes)

    def summary(self) -> dict[str, Any]:
        """What was found, as JSON has it; what there is not is absent."""
        places = {"head": self.head, "biases": self.biases, "norm": self.norm, "norm_biases": self.norm_biases}
        has_norm = self.norm_kind in ("rms", "layer")
        return {
            "path": self.path,
            "type": self.model_type,
            "tensors": {part: str(place) for part, place in places.items() if place is not None},
            "tied": self.tied,
            "norm": self.norm_kind,
            **({"norm_epsilon": self.norm_epsilon, "norm_offset": self.norm_offset} if has_norm else {}),
            "logit_scale": self.logit_scale,
            **({} if self.softcap is None else {"softcap": self.softcap}),
            "num_classes": self.num_classes,
            "rows": self.rows,
            "hidden_size": self.hidden_size,
            **({"after_norm_only": self.after_norm_only} if self.after_norm_only else {}),
            "sources": dict(self.sources),
            "notes": list(self.notes),
        }

    def describe(self) -> str:
        """One line for a person."""
        parts = [f"{self.model_type}: {self.head.tensor} ({self.num_classes} x {self.hidden_size})", self.norm_text]
        parts += [f"biases {self.biases.tensor}"] if self.biases else []
        parts += [f"logit scale {self.logit_scale:g}"] if self.logit_scale != 1 else []
        parts += [f"softcap {self.softcap:g}"] if self.softcap is not None else []
        return ", ".join(parts)
