"""What was asked, as values: the formula, what to report beside it, and where rows, layers and candidates come from.

A `Specification` is frozen, travels to other processes by pickle and into states as JSON (its keywords, those of
`Evaluator`). It holds no sums and opens no data but vectors of class weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bigvocab import arguments
from bigvocab.arguments import one_of, parse_seed, parse_sizes
from bigvocab.catalogue import default_metrics
from bigvocab.evaluation import option_checks
from bigvocab.evaluation.json_values import as_given, as_options, from_given
from bigvocab.evaluation.keywords import DEFAULTS, given_among
from bigvocab.evaluation.option_checks import TOKENIZER
from bigvocab.evaluation.options import (
    OF_MODEL,
    ClassVector,
    Columns,
    HeadOptions,
    LossOptions,
    Measures,
    Opening,
    Sampling,
    Sequences,
)
from bigvocab.evaluation.rules import refuse_faults
from bigvocab.losses.sigmoid_rows import pos_weight_vector
from bigvocab.storage import uris
from bigvocab.storage.remote import remember
from bigvocab.threads import resolve_threads

NONFINITE = ("error", "skip", "keep")


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
        """What decides the numbers, except the layer and the candidates: values as JSON has them."""
        loss, measures = self.loss, self.measures
        names = ("label_smoothing", "logit_scale", "softcap", "epsilon")
        vectors = {
            "class_weights": loss.class_weights,
            "pos_weight": loss.pos_weight,
            "class_counts": measures.frequencies,
        }
        found = {
            "loss": loss.name,
            "ignore_index": one_or_more(loss.ignore_index),
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
            "ignore_index": one_or_more(loss.ignore_index),
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
                found[name] = remember(uris.absolute(found[name]))
        if self.head is not None and self.head.model is not None:
            for name in (*OF_MODEL, "norm_epsilon"):
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
    head, of_model = option_checks.head_options(asked, options)
    asked |= of_model
    loss = option_checks.loss_options(asked)
    metrics = asked["metrics"]
    metrics = default_metrics(loss.name) if metrics is None else option_checks.parse_metrics(metrics, loss.name)
    option_checks.check_bounds(asked)
    found = Specification(
        loss,
        option_checks.measures(asked, metrics, loss.spec),
        one_of("nonfinite", asked["nonfinite"], NONFINITE),
        Columns(*(asked[f"{role}_column"] for role in Columns.__dataclass_fields__)),
        asked["label_dtype"],
        head,
        option_checks.sequences(asked),
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


def _picked(kind: Any, asked: Mapping[str, Any]) -> Any:
    """A dataclass of the options that it has fields for."""
    return kind(**{name: asked[name] for name in kind.__dataclass_fields__})


def one_or_more(indices: tuple[int, ...]) -> int | list[int] | None:
    """As a keyword has them."""
    return (indices[0] if len(indices) == 1 else list(indices)) if indices else None
