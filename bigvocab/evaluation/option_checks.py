"""Keywords as they were given become checked options, subject by subject."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from bigvocab import arguments
from bigvocab.arguments import integer, one_of, parse_bytes, parse_top_k
from bigvocab.catalogue import DEFAULT_KEEP_TOP, LOSSES, METRICS, MOST_KEPT, TIES, LossSpec, metrics_fault
from bigvocab.errors import BigvocabError, Keyword
from bigvocab.evaluation.options import LAYER, OF_MODEL, ClassVector, HeadOptions, LossOptions, Measures, Sequences
from bigvocab.heads.found_model import AFTER, BEFORE
from bigvocab.heads.open_model import find_layer
from bigvocab.labels.exclusions import class_ids
from bigvocab.labels.stored_ids import as_indices, as_offset
from bigvocab.sampling.vocab_file import read_vocab_weights
from bigvocab.storage import uris

TOKENIZER = "tokenizer"  # for num_classes


def loss_options(asked: Mapping[str, Any]) -> LossOptions:
    """The formula."""
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


def measures(asked: Mapping[str, Any], metrics: tuple[str, ...], loss: LossSpec) -> Measures:
    """What to report beside the loss, of `metrics` that were checked."""
    keep_top, counts = asked["keep_top"], asked["class_counts"]
    frequencies = None
    if "class_counts" in loss.options:
        frequencies = ClassVector.read("class_counts", counts)
        if asked["vocab_file"] is not None and not loss.sampled and "vocab_file" in loss.options:
            path = uris.absolute(asked["vocab_file"])
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


def head_options(asked: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[HeadOptions | None, dict[str, Any]]:
    """The layer, and what a model says of the loss where that is not given by hand."""
    states = asked["hidden_states"]
    if states is not None:
        states = one_of("hidden_states", states, (BEFORE, AFTER))
    layer = {name: asked[name] for name in LAYER}
    if asked["model"] is None:
        return (None if asked["weights"] is None else HeadOptions(**layer)), {}
    tokenizer = (
        isinstance(asked["num_classes"], str) and one_of("num_classes", asked["num_classes"], (TOKENIZER,)) != ""
    )
    found = find_layer(asked["model"], tokenizer=tokenizer)
    names = {name for name in (*OF_MODEL, "norm_epsilon") if options.get(name) is not None}
    by_hand = frozenset(names - ({"num_classes"} if tokenizer else set()))
    head = HeadOptions(**layer, model=found, hidden_states=states, by_hand=by_hand, tokenizer=tokenizer)
    return head, {name: getattr(found, name) for name in OF_MODEL if name not in by_hand}


def sequences(asked: Mapping[str, Any]) -> Sequences:
    """How rows are positions of sequences."""
    layer = asked.get("layer")
    return Sequences(
        None if layer is None else integer("layer", layer, -(2**31), 2**31),
        arguments.boolean("shift_labels", asked["shift_labels"]),
        integer("score_from", asked["score_from"], 0, 2**62),
    )


def check_bounds(asked: Mapping[str, Any]) -> None:
    """Raise unless chunk_rows and max_memory, where given, are a number of rows and an amount of memory."""
    if asked["chunk_rows"] is not None:
        integer("chunk_rows", asked["chunk_rows"], 1, 2**62)
    if asked["max_memory"] is not None:
        parse_bytes("max_memory", asked["max_memory"])
