"""What was asked, as values: the formula, what to report beside it, and where rows, layers and candidates come from.

A `Specification` is frozen, travels to other processes by pickle and into states as JSON (its keywords, those of
`Evaluator`). It holds no sums and opens no data but vectors of class weights.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import numpy as np

from bigvocab import arguments
from bigvocab.arguments import integer, one_of, parse_bytes, parse_seed, parse_sizes, parse_top_k
from bigvocab.catalogue import (
    DEFAULT_KEEP_TOP,
    LOSSES,
    METRICS,
    MOST_KEPT,
    TIES,
    LossSpec,
    default_metrics,
    metrics_fault,
)
from bigvocab.errors import BigvocabError, Keyword
from bigvocab.evaluation.json_values import as_given, as_options, from_given
from bigvocab.evaluation.rules import refuse_faults
from bigvocab.heads.found_model import AFTER, BEFORE, FoundModel
from bigvocab.heads.open_model import find_layer
from bigvocab.labels.exclusions import NO_IDS, class_ids
from bigvocab.labels.stored_ids import StoredIds, as_indices, as_offset
from bigvocab.losses.sigmoid_rows import pos_weight_vector
from bigvocab.matrices.vectors import read_vector
from bigvocab.sampling.vocab_file import read_vocab_weights
from bigvocab.storage import uris
from bigvocab.threads import resolve_threads

NONFINITE = ("error", "skip", "keep")
TOKENIZER = "tokenizer"  # for num_classes
# Keywords that may be a path.
FILE_OPTIONS = ("class_weights", "pos_weight", "exclude_classes", "class_counts", "vocab_file", "candidates")


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


_LAYER = (
    "weights", "biases", "final_norm", "norm_weight", "norm_bias", "norm_epsilon", "transpose_weights", "shard_classes"
)  # fmt: skip
_OF_MODEL = ("logit_scale", "softcap", "num_classes")  # of the loss, where they are not given by hand


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
        given = {name: getattr(self, name) for name in _LAYER if name != "norm_epsilon" or hand}
        return {name: value for name, value in given.items() if value is not None and value is not False}

    def keywords(self) -> dict[str, Any]:
        """The keywords that make it."""
        if self.model is None:
            return {name: getattr(self, name) for name in _LAYER}
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


@dataclass(frozen=True, eq=False)
class Specification:
    """All that was asked of an evaluation; made by `specify`."""

    loss: LossOptions
    measures: Measures
    nonfinite: str
    columns: Columns
    label_dtype: str | None
    head: HeadOptions | None
    sequences: Sequences
    sampling: Sampling
    opening: Opening
    threads: int
    threads_asked: int | None
    chunk_rows: int | None
    max_memory: int | str | None

    def identity(self) -> dict[str, Any]:
        """What decides the numbers, but for the layer and the candidates: values as JSON has them."""
        loss, measures = self.loss, self.measures
        names = ("label_smoothing", "logit_scale", "softcap", "epsilon")
        vectors = {
            "class_weights": loss.class_weights,
            "pos_weight": loss.pos_weight,
            "class_counts": measures.frequencies,
        }
        found = {
            "loss": loss.name,
            "ignore_index": _one_or_more(loss.ignore_index),
            **{name: getattr(loss, name) for name in names},
            "num_classes": loss.num_classes,
            "metrics": measures.metrics,
            "top_k": measures.accuracies,
            "ties": measures.ties,
            "keep_top": measures.keep_top if "topk" in measures else None,
            "nonfinite": self.nonfinite,
            **self.sequences.identity(),
        }
        for name, value in vectors.items():
            value = value.values if isinstance(value, ClassVector) else value
            found[name] = None if value is None else np.asarray(value).tolist()
        if loss.label_offset:
            found["label_offset"] = loss.label_offset
        if len(loss.excluded):
            found["exclude_classes"] = loss.excluded.tolist()
        return dict(as_options(found))

    def with_head(self, given: Mapping[str, Any]) -> Specification:
        """The same with other weights, biases and norm."""
        assert self.head is not None
        return replace(self, head=replace(self.head, **given))

    def with_threads(self, threads: int) -> Specification:
        """The same with so many threads."""
        return replace(self, threads=threads, threads_asked=threads)

    def files(self) -> Iterator[str]:
        """Paths of the vectors that were read."""
        for vector in (
            self.loss.class_weights,
            self.loss.pos_weight,
            self.loss.exclude_classes,
            self.measures.frequencies,
        ):
            if isinstance(vector, ClassVector) and vector.path is not None:
                yield vector.path

    def keywords(self) -> dict[str, Any]:
        """The keywords of `specify` that make a specification like this one."""
        loss, measures = self.loss, self.measures
        head = {} if self.head is None else self.head.keywords()
        vectors = {
            name: value.given() if isinstance(value, ClassVector) else value
            for name, value in vars(loss).items()
            if name in ("class_weights", "pos_weight", "exclude_classes")
        }
        if measures.frequencies is not None and self.sampling.vocab_file is None:
            vectors["class_counts"] = measures.frequencies.given()
        found = {
            **DEFAULTS,
            **{name: value for name, value in vars(loss).items() if name != "name"},
            **vectors,
            "loss": loss.name,
            "ignore_index": _one_or_more(loss.ignore_index),
            "label_dtype": self.label_dtype,
            "metrics": list(measures.metrics),
            "top_k": list(measures.top_k),
            "exact": measures.exact,
            "keep_top": measures.keep_top if "topk" in measures else None,
            "ties": measures.ties,
            "nonfinite": self.nonfinite,
            "threads": self.threads_asked,
            **self.columns.keywords(),
            **head,
            **vars(self.sequences),
            **vars(self.sampling),
            **vars(self.opening),
            "chunk_rows": self.chunk_rows,
            "max_memory": self.max_memory,
        }
        for name in ("vocab_file", "candidates", "model"):
            if isinstance(found[name], str | os.PathLike):
                found[name] = uris.shown(uris.absolute(found[name]))
        if self.head is not None and self.head.model is not None:
            for name in (*_OF_MODEL, "norm_epsilon"):
                if name not in self.head.by_hand:
                    del found[name]
            if self.head.tokenizer:
                found["num_classes"] = TOKENIZER
        return found

    def to_json(self) -> dict[str, Any]:
        """The keywords as JSON has them; arrays over 1 MiB are left out, and how many threads."""
        return {name: as_given(value) for name, value in self.keywords().items() if name != "threads"}

    @classmethod
    def from_json(cls, held: Mapping[str, Any], path: str, **instead: Any) -> Specification:
        """The inverse of `to_json`, with other keywords `instead`; `path` is where it was read."""
        given = {name: value for name, value in held.items() if name not in instead}
        return specify(**instead, **{name: from_given(name, value, path) for name, value in given.items()})


def specify(**options: Any) -> Specification:
    """The keywords of `Evaluator`, checked, as a specification.

    Raises:
        BigvocabError: an option outside its range, or one that means nothing to the loss; TypeError: one of the wrong
            kind, or a keyword that there is not.
    """
    if unknown := [name for name in options if name not in DEFAULTS]:
        raise TypeError(f"Evaluator() got an unexpected keyword argument {unknown[0]!r}")
    asked = DEFAULTS | options
    asked |= {
        "shard_classes": parse_sizes("shard_classes", asked["shard_classes"]),
        "transpose_weights": arguments.boolean("transpose_weights", asked["transpose_weights"]),
    }
    head, of_model = _head_options(asked, options)
    asked |= of_model
    loss = _loss_options(asked)
    metrics = default_metrics(loss.name) if asked["metrics"] is None else parse_metrics(asked["metrics"], loss.name)
    if asked["chunk_rows"] is not None:
        integer("chunk_rows", asked["chunk_rows"], 1, 2**62)
    if asked["max_memory"] is not None:
        parse_bytes("max_memory", asked["max_memory"])
    found = Specification(
        loss,
        _measures(asked, metrics, loss.spec),
        one_of("nonfinite", asked["nonfinite"], NONFINITE),
        Columns(*(asked[f"{role}_column"] for role in Columns.__dataclass_fields__)),
        asked["label_dtype"],
        head,
        _sequences(asked),
        _picked(Sampling, asked | {"seed": parse_seed(asked["seed"])}),
        _picked(Opening, asked | {"vocab_shards": arguments.boolean("vocab_shards", asked["vocab_shards"])}),
        resolve_threads(asked["threads"], "threads"),
        asked["threads"],
        asked["chunk_rows"],
        asked["max_memory"],
    )
    refuse_faults({**asked, "metrics": metrics}, given_among(asked))
    if isinstance(loss.pos_weight, float):
        pos_weight_vector(loss.pos_weight, 1)
    return found


def _head_options(asked: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[HeadOptions | None, dict[str, Any]]:
    """The layer, and what a model says of the loss where that is not given by hand."""
    states = asked["hidden_states"]
    if states is not None:
        states = one_of("hidden_states", states, (BEFORE, AFTER))
    layer = {name: asked[name] for name in _LAYER}
    if asked["model"] is None:
        return (None if asked["weights"] is None else HeadOptions(**layer)), {}
    tokenizer = (
        isinstance(asked["num_classes"], str) and one_of("num_classes", asked["num_classes"], (TOKENIZER,)) != ""
    )
    found = find_layer(asked["model"], tokenizer=tokenizer)
    names = {name for name in (*_OF_MODEL, "norm_epsilon") if options.get(name) is not None}
    by_hand = frozenset(names - ({"num_classes"} if tokenizer else set()))
    head = HeadOptions(**layer, model=found, hidden_states=states, by_hand=by_hand, tokenizer=tokenizer)
    return head, {name: getattr(found, name) for name in _OF_MODEL if name not in by_hand}


def _sequences(asked: Mapping[str, Any]) -> Sequences:
    layer = asked["layer"]
    return Sequences(
        None if layer is None else integer("layer", layer, -(2**31), 2**31),
        arguments.boolean("shift_labels", asked["shift_labels"]),
        integer("score_from", asked["score_from"], 0, 2**62),
    )


def _measures(asked: Mapping[str, Any], metrics: tuple[str, ...], loss: LossSpec) -> Measures:
    keep_top, counts = asked["keep_top"], asked["class_counts"]
    frequencies = None
    if "class_counts" in loss.options:
        frequencies = ClassVector.read("class_counts", counts)
        if asked["vocab_file"] is not None and not loss.sampled and "vocab_file" in loss.options:
            path = os.path.abspath(asked["vocab_file"])
            frequencies = ClassVector(read_vocab_weights(path), path)
        _check_counts(frequencies)
    return Measures(
        metrics,
        parse_top_k(asked["top_k"]),
        arguments.boolean("exact", asked["exact"]),
        DEFAULT_KEEP_TOP if keep_top is None else integer("keep_top", keep_top, 1, MOST_KEPT),
        one_of("ties", asked["ties"], TIES),
        frequencies,
    )


def _check_counts(counts: ClassVector | None) -> None:
    """Raise unless counts are a vector of numbers, finite and not below 0."""
    if counts is None:
        return
    values = np.asarray(counts.values)
    if values.ndim != 1 or values.dtype.kind not in "fiu":
        raise BigvocabError(
            Keyword("class_counts"), f": got shape {values.shape} of {values.dtype}, expected one number for each class"
        )
    bad = ~((values >= 0) & (values < np.inf))
    if bad.any():
        at = int(np.argmax(bad))
        raise BigvocabError(Keyword("class_counts"), f": class {at} has {values[at]}, expected a count of 0 or more")


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


def _picked(kind: Any, asked: Mapping[str, Any]) -> Any:
    """A dataclass of the options that it has fields for."""
    return kind(**{name: asked[name] for name in kind.__dataclass_fields__})


def _loss_options(asked: Mapping[str, Any]) -> LossOptions:
    positive = asked["pos_weight"]
    number = isinstance(positive, int | float) and not isinstance(positive, bool)
    return LossOptions(
        one_of("loss", asked["loss"], tuple(LOSSES)),
        as_indices("ignore_index", asked["ignore_index"]),
        as_offset(asked["label_offset"]),
        _class_ids("exclude_classes", asked["exclude_classes"]),
        arguments.in_unit_interval("label_smoothing", asked["label_smoothing"]),
        ClassVector.read("class_weights", asked["class_weights"]),
        float(positive) if number else ClassVector.read("pos_weight", positive),
        arguments.in_unit_interval("epsilon", asked["epsilon"]),
        arguments.positive("logit_scale", asked["logit_scale"]),
        None if asked["softcap"] is None else arguments.positive("softcap", asked["softcap"]),
        _num_classes(asked["num_classes"]),
        None if asked["num_true"] is None else integer("num_true", asked["num_true"], 1, 2**31 - 1),
    )


def _num_classes(value: Any) -> int | None:
    if isinstance(value, str):
        raise BigvocabError(
            Keyword("num_classes"), f": got {value!r}, expected a number, or {TOKENIZER} with ", Keyword("model")
        )
    return arguments.index_or_none("num_classes", value)


def _one_or_more(indices: tuple[int, ...]) -> int | list[int] | None:
    """As a keyword has them."""
    return (indices[0] if len(indices) == 1 else list(indices)) if indices else None


def _class_ids(name: str, given: Any) -> ClassVector | None:
    """Ids of classes from integers, from text such as "0,1,7", or from a path."""
    if isinstance(given, str) and re.fullmatch(r"\s*-?\d+(\s*,\s*-?\d+)*\s*", given):
        given = [int(part) for part in given.split(",")]
    found = ClassVector.read(name, given)
    if found is None or np.asarray(found.values).size == 0:
        return None
    values = np.asarray(found.values)
    if found.path is not None and values.dtype.kind == "f" and (np.floor(values) == values).all():
        values = values.astype(np.int64)  # of a text file
    return ClassVector(class_ids(name, values), found.path)


def parse_metrics(metrics: str | Iterable[str], loss: str) -> tuple[str, ...]:
    """The by-products that are asked for, in the order of the catalogue, if the loss has them."""
    if not isinstance(metrics, Iterable):
        raise TypeError(f"metrics: expected names, got {metrics!r}")
    names = [part.strip() for part in metrics.split(",") if part.strip()] if isinstance(metrics, str) else list(metrics)
    chosen = tuple(
        metric for metric in METRICS if metric in [one_of("metrics", name, tuple(METRICS)) for name in names]
    )
    if fault := metrics_fault(loss, chosen):
        raise BigvocabError(Keyword("metrics"), f": {fault}")
    return chosen
