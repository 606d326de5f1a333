"""What reports say of a model: which tensors, norm, scale, cap and classes were used, and where each came from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bigvocab.evaluation.specification import Specification
from bigvocab.heads.found_model import FoundModel
from bigvocab.heads.output_layer import OutputLayer, shown_as
from bigvocab.reports.report import Report

GIVEN = "given"


def with_model(report: Report, block: dict[str, Any] | None, notes: Iterable[dict[str, str]] = ()) -> Report:
    """A report with what it says of the model, and with notes."""
    found = report.to_dict()
    versions = found.pop("versions", None)
    found |= {} if block is None else {"model": block}
    every = [*found.pop("notes", []), *notes]
    found |= {"notes": every} if every else {}
    return Report(found if versions is None else {**found, "versions": versions})


def model_notes(layer: OutputLayer | None) -> list[dict[str, str]]:
    """What was noted of a model while its parts were found."""
    return [] if layer is None or layer.found is None else [{"code": "model", "text": t} for t in layer.found.notes]


def model_block(layer: OutputLayer, asked: Specification) -> dict[str, Any]:
    """The block `model` of a report.

    Args:
        layer: of a model, for states that were told apart.
        asked: what was asked with it.
    """
    found, head, loss = layer.found, asked.head, asked.loss
    assert found is not None
    assert head is not None
    by_hand = {*head.by_hand, *head.instead}
    applied = layer.final_norm
    block: dict[str, Any] = {
        "path": found.path,
        "type": found.model_type,
        "tensors": _tensors(found, layer, by_hand),
        "norm": found.norm_kind if applied is None else applied.kind,
    }
    if applied is not None:
        block["norm_epsilon"] = applied.epsilon
        block |= {"norm_offset": layer.norm_offset} if layer.norm_offset else {}
    block["logit_scale"] = loss.logit_scale
    block |= {} if loss.softcap is None else {"softcap": loss.softcap}
    block |= {"num_classes": layer.num_classes, "hidden_states": layer.hidden_states}
    block["sources"] = _sources(found, block, by_hand, told=head.hidden_states is None)
    return block


def _tensors(found: FoundModel, layer: OutputLayer, by_hand: set[str]) -> dict[str, str]:
    """The tensor, or the file, of each part."""
    places = {"head": found.head, "biases": found.biases, "norm": found.norm, "norm_biases": found.norm_biases}
    keywords = {"head": "weights", "biases": "biases", "norm": "norm_weight", "norm_biases": "norm_bias"}
    matrices = {"weights": layer.weights, **layer.vectors}
    named = {}
    for part, place in places.items():
        keyword = keywords[part]
        if matrices[keyword] is None:
            continue
        named[part] = shown_as(keyword, matrices[keyword]) if keyword in by_hand or place is None else place.tensor
    return named


def _sources(found: FoundModel, block: dict[str, Any], by_hand: set[str], *, told: bool) -> dict[str, str]:
    """Where each value came from."""
    keywords = {"head": "weights", "norm": "norm_weight", "norm_biases": "norm_bias", "norm_kind": "final_norm"}
    shown = {*block["tensors"], "norm_kind", *("norm_epsilon", "logit_scale", "softcap", "num_classes", "tied")}
    sources = {name: place for name, place in found.sources.items() if name in shown}
    for name in shown:
        if keywords.get(name, name) in by_hand:
            sources[name] = GIVEN
    if block["hidden_states"] is not None:
        same = found.norm_kind == "none" and "norm_kind" not in by_hand
        sources["hidden_states"] = "the model has no final norm" if same else "told from the data" if told else GIVEN
    return dict(sorted(sources.items()))
