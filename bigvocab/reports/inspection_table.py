"""What `bigvocab inspect` found in a file, as a table for people."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from bigvocab.errors import printable
from bigvocab.reports.numerals import count, counted, fixed, size
from bigvocab.reports.pairs import pairs_table, title

_MOST_SHOWN = 100
_KINDS = {
    "id": "one class per row",
    "list": "several classes per row",
    "dense": "soft labels",
    "sparse": "sparse soft labels",
}


def rendered(found: Mapping[str, Any]) -> Iterator[Any]:
    """What rich prints for one path."""
    yield title(printable(found["path"]))
    yield pairs_table([(name, printable(value)) for name, value in _pairs(found)], len("columns"))


def _pairs(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "format", found["format"] + (f", {counted(found['files'], 'file')}" if "files" in found else "")
    if "shape" in found:
        words = ("row", "column") if len(found["shape"]) == 2 else ("element",)
        yield "shape", " x ".join(counted(n, word) for n, word in zip(found["shape"], words, strict=True))
    elif "rows" in found:
        yield "rows", count(found["rows"])
    if "leading" in found:
        yield "dimensions", " x ".join(f"{n:,}" for n in found["leading"]) + " before the columns"
    yield from _model_pairs(found.get("model", {}))
    if "dtype" in found:
        notes = ["byte-swapped"] * ("byte_order" in found) + ["Fortran order"] * ("order" in found)
        yield "dtype", ", ".join([found["dtype"], *notes])
    yield "size", size(found["bytes"]) + (f" ({found['bytes']:,} bytes)" if found["bytes"] >= 1000 else "")
    if "dialect" in found:
        yield "dialect", found["dialect"]
        per_window = f"{counted(found['rows_per_window'], 'row')} each"
        yield "windows", f"{found['windows']:,} of {counted(found['context'], 'token')}, {per_window}"
        yield "floor", f"{found['floor']} below a row's top"
    if "sample" in found:
        yield "sample", _sample_text(found["sample"])
    if "labels" in found:
        yield "labels", _labels_text(found["labels"], found)
    for heading, texts in (("tensors", _tensor_texts(found)), ("columns", _column_texts(found))):
        for i, text in enumerate(texts[:_MOST_SHOWN]):
            yield heading if i == 0 else "", text
        if len(texts) > _MOST_SHOWN:
            yield "", f"... and {len(texts) - _MOST_SHOWN:,} more; --format json has all"


def _model_pairs(model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What would be used of a model."""
    if "error" in model:
        yield "model", f"none: {model['error']}"
    if "type" not in model:
        return
    padding = f", {model['rows'] - model['num_classes']:,} rows of padding" * (model["rows"] > model["num_classes"])
    yield "model", model["type"] + ", head tied to the embedding" * model["tied"]
    yield "classes", f"{model['num_classes']:,} x {model['hidden_size']:,}{padding}"
    for part, place in model["tensors"].items():
        yield part.replace("_", " "), place.removeprefix(model["path"] + os.sep)
    plus = "1 + weight, " * model.get("norm_offset", 0)
    yield "norm kind", model["norm"] + (f", {plus}epsilon {model['norm_epsilon']:g}" if "norm_epsilon" in model else "")
    for name in ("logit_scale", "softcap"):
        if model.get(name, 1.0) != 1.0:
            yield (
                name.replace("_", " "),
                f"{model[name]:g}, from {model['sources'].get(name, 'the model').removeprefix(model['path'] + os.sep)}",
            )
    before = "after the norm only: " + model["after_norm_only"] if "after_norm_only" in model else "before or after it"
    yield "states", before if model["norm"] != "none" else "as they meet the head"
    for i, note in enumerate(model["notes"]):
        yield "notes" if i == 0 else "", note


def _sample_text(sample: Mapping[str, Any]) -> str:
    what = counted(sample["rows"], "row") if "rows" in sample else counted(sample["elements"], "element")
    if "columns" in sample:
        what += f" of the first {sample['columns']:,} columns"
    bad = [f"{sample[key]:,} {word}" for key, word in (("nan", "NaN"), ("plus_inf", "+inf")) if sample[key]]
    bad += [f"{sample['minus_inf']:,} -inf (masked)"] if sample["minus_inf"] else []
    spread = f", from {fixed(sample['min'], 3)} to {fixed(sample['max'], 3)}" if "min" in sample else ""
    return f"{what}: {', '.join(bad) or 'all finite'}{spread}"


def _labels_text(labels: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    if "error" in labels:
        return labels["error"]
    what = _KINDS[labels["kind"]]
    if labels["kind"] == "list" and "columns" not in found and "shape" in found:  # an array of integers (N, T)
        width = found["shape"][-1]
        what = _KINDS["id"] if width == 1 else f"{what}, or sequences of {width:,} tokens"
    text = (f"column {labels['column']!r}, " if "columns" in found else "") + what
    if "min" in labels:
        text += f", ids {labels['min']:,} to {labels['max']:,} in the first {counted(labels['sampled_rows'], 'row')}"
    return text + (f", {labels['null']:,} null" if labels.get("null") else "")


def _tensor_texts(found: Mapping[str, Any]) -> list[str]:
    tensors = found.get("tensors", [])
    width = min(40, max((len(tensor["name"]) for tensor in tensors), default=0))
    return [f"{tensor['name']:<{width}}  {_dimensions(tensor['shape'])} {tensor['dtype']}" for tensor in tensors]


def _dimensions(shape: Any) -> str:
    return (" x ".join(map(str, shape)) or "scalar") if isinstance(shape, list) else str(shape)


def _column_texts(found: Mapping[str, Any]) -> list[str]:
    columns = found.get("columns", [])
    width = min(40, max((len(column["name"]) for column in columns), default=0))
    return [f"{column['name']:<{width}}  {column['type']}" for column in columns]
