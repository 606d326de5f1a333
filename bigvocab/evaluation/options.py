"""What was asked of an evaluation, subject by subject, as frozen values.

The subjects: the formula, what to report beside it, columns of labels, the layer, sequences, candidates, and how files
are opened.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from bigvocab import arguments
from bigvocab.catalogue import DEFAULT_KEEP_TOP, LOSSES, LossSpec
from bigvocab.heads.found_model import FoundModel
from bigvocab.labels.exclusions import NO_IDS
from bigvocab.labels.stored_ids import StoredIds
from bigvocab.losses.sigmoid_rows import pos_weight_vector
from bigvocab.matrices.vectors import read_vector
from bigvocab.storage import uris


@dataclass(frozen=True, eq=False)
class ClassVector:
    """One number per class, and the file that they were read from, if any."""

    values: Any
    path: str | None = None

    @classmethod
    def read(cls, name: str, given: Any) -> ClassVector | None:
        """The numbers of an array or a path; None stays None."""
        values = read_vector(name, given)
        path = uris.absolute(given) if isinstance(given, str | os.PathLike) else None
        return None if values is None else cls(values, path)

    def given(self) -> Any:
        """What a keyword would be given to have them."""
        return self.values if self.path is None else self.path


@dataclass(frozen=True, eq=False)
class LossOptions:
    """The formula: what the functions of arrays take as keywords."""

    name: str
    ignore_index: tuple[int, ...]
    label_offset: int
    exclude_classes: ClassVector | None
    label_smoothing: float
    class_weights: ClassVector | None
    pos_weight: float | ClassVector | None
    epsilon: float
    logit_scale: float
    softcap: float | None
    num_classes: int | None
    num_true: int | None

    @property
    def spec(self) -> LossSpec:
        """What the catalogue says of the loss."""
        return LOSSES[self.name]

    @property
    def stored_ids(self) -> StoredIds:
        """How the ids of labels are stored."""
        return StoredIds(self.label_offset, self.ignore_index)

    @property
    def excluded(self) -> Any:
        """Rising ids of classes that do not exist for any row."""
        return NO_IDS if self.exclude_classes is None else self.exclude_classes.values

    @property
    def transform(self) -> tuple[float, float]:
        """(logit_scale, softcap or 0), as kernels take them."""
        return self.logit_scale, self.softcap or 0.0

    def positive_weights(self, num_classes: int) -> Any:
        """pos_weight as (1,) or (V,) finite numbers."""
        value = self.pos_weight.values if isinstance(self.pos_weight, ClassVector) else self.pos_weight
        return pos_weight_vector(value, num_classes)

    def check(self, num_classes: int) -> None:
        """Raise unless vectors have one finite number for each class."""
        if self.class_weights is not None:
            arguments.class_vector("class_weights", self.class_weights.values, num_classes)
        if self.pos_weight is not None:
            self.positive_weights(num_classes)


@dataclass(frozen=True, eq=False)
class Measures:
    """What to report beside the loss: `"rank" in measures`.

    `frequencies` are counts of classes, to tell the loss of rare ones apart.
    """

    metrics: tuple[str, ...]
    top_k: tuple[int, ...]
    exact: bool
    keep_top: int = DEFAULT_KEEP_TOP
    ties: str = "optimistic"
    frequencies: ClassVector | None = None

    @property
    def ranks(self) -> bool:
        """Whether the label's rank is wanted."""
        return "rank" in self.metrics or "accuracy" in self.metrics

    def __contains__(self, metric: object) -> bool:
        return metric in self.metrics

    @property
    def accuracies(self) -> tuple[int, ...]:
        """The k of the accuracies and rankings; none where neither was asked for."""
        return self.top_k if "accuracy" in self.metrics or "ranking" in self.metrics else ()


@dataclass(frozen=True)
class Columns:
    """Names of the columns of labels by role; None is the one that fits, or none."""

    label: str | None = None
    probability: str | None = None
    weight: str | None = None
    group: str | None = None
    bytes: str | None = None
    position: str | None = None
    text: str | None = None
    cluster: str | None = None
    exclude: str | None = None

    def keywords(self) -> dict[str, str | None]:
        """As keywords of `read_labels`."""
        return {f"{role}_column": name for role, name in vars(self).items()}


LAYER = (
    "weights", "biases", "final_norm", "norm_weight", "norm_bias", "norm_epsilon", "transpose_weights", "shard_classes"
)  # fmt: skip
OF_MODEL = ("logit_scale", "softcap", "num_classes")  # of the loss, where they are not given by hand


@dataclass(frozen=True, eq=False)
class HeadOptions:
    """The output layer and the norm before it, as given: paths, arrays or matrices; None is of the model, if any.

    Attributes:
        model: what was found of a model.
        hidden_states: "before-norm" or "after-norm"; None is told from the data.
        by_hand: which of logit_scale, softcap, num_classes and norm_epsilon are not the model's.
        tokenizer: whether the number of classes is that of its tokenizer.
    """

    weights: Any
    biases: Any
    final_norm: str | None
    norm_weight: Any
    norm_bias: Any
    norm_epsilon: float
    transpose_weights: bool = False
    shard_classes: tuple[int, ...] | None = None
    model: FoundModel | None = None
    hidden_states: str | None = None
    by_hand: frozenset[str] = frozenset()
    tokenizer: bool = False

    @property
    def instead(self) -> dict[str, Any]:
        """What was given by hand, as keywords of `OutputLayer`."""
        hand = self.model is None or "norm_epsilon" in self.by_hand
        given = {name: getattr(self, name) for name in LAYER if name != "norm_epsilon" or hand}
        return {name: value for name, value in given.items() if value is not None and value is not False}

    def keywords(self) -> dict[str, Any]:
        """The keywords that make it."""
        if self.model is None:
            return {name: getattr(self, name) for name in LAYER}
        return {**self.instead, "model": self.model.path, "hidden_states": self.hidden_states}


@dataclass(frozen=True)
class Sequences:
    """Rows that are positions of sequences: which layer of stored states, and which label of which row."""

    layer: int | None
    shift_labels: bool
    score_from: int

    def identity(self) -> dict[str, Any]:
        """What of it decides numbers."""
        found = {
            "layer_of_states": self.layer,
            "shift_labels": self.shift_labels or None,
            "score_from": self.score_from or None,
        }
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Sampling:
    """Where the candidates of a sampled loss come from."""

    sampler: str | None
    num_sampled: int | None
    vocab_file: Any
    distortion: float | None
    seed: Any
    candidates: Any


@dataclass(frozen=True)
class Opening:
    """How logits, or hidden states, that come as files are opened; see `open_matrix`."""

    shape: Any
    dtype: str | None
    offset: int
    vocab_shards: bool
    shard_classes: tuple[int, ...] | None

    def keywords(self, logits: bool = True) -> dict[str, Any]:
        """As keywords of `open_matrix`, those that say something; of hidden states, files are no ranges of classes."""
        left_out = () if logits else ("vocab_shards", "shard_classes")
        return {name: value for name, value in vars(self).items() if value and name not in left_out}
