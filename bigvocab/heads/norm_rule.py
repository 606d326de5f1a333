"""Which norm stands before a model's head: its kind, weights, biases and epsilon."""

from __future__ import annotations

from typing import NamedTuple

from bigvocab.errors import FormatError
from bigvocab.heads import families
from bigvocab.heads.checkpoint import check_floats
from bigvocab.heads.families import Family
from bigvocab.heads.found_model import TensorPlace
from bigvocab.heads.model_files import ModelFiles


class FoundNorm(NamedTuple):
    """The final norm, as `FoundModel` tells it."""

    weights: TensorPlace | None
    biases: TensorPlace | None
    kind: str
    epsilon: float
    offset: int
    after_norm_only: str


def find_norm(model: ModelFiles, columns: int) -> FoundNorm:
    """The final norm of a model whose head has so many columns."""
    family = model.family
    if family is None:
        return _unknown_norm(model, columns)
    kind, (epsilon, place) = family.norm_kind, _epsilon(model, family)
    if family.rms_key is not None:
        value, where = model.config.number(family.rms_key, zero=True)
        if value is not None:
            kind, epsilon, place = "rms", value, where
    if family.norm_key is not None and model.config.flag(family.norm_key)[0] is False:
        kind = "none"
        model.notes.append(f"{family.norm_key} is false: this model has no final norm")
    after_norm_only = family.after_norm_only or ""
    norm = norm_biases = None
    if kind != "none" and family.norms:
        norm = _vector(model, model.checkpoint.find(family.norms), columns)
        if norm is None:
            kind, after_norm_only = "unknown", "the final norm is not among the tensors of the folder"
            model.notes.append(
                f"no final norm among the tensors (looked for {', '.join(family.norms)}): "
                "hidden states must come from after it"
            )
    if norm is not None:
        norm_biases = _norm_biases(model, family, norm, columns)
    if kind == "none":
        epsilon, place = 0.0, ""
    _note_sources(model, norm, norm_biases, f"the family {model.model_type}", place)
    return FoundNorm(
        weights=norm,
        biases=norm_biases,
        kind=kind,
        epsilon=epsilon,
        offset=family.norm_offset if norm is not None else 0,
        after_norm_only=after_norm_only,
    )


def _unknown_norm(model: ModelFiles, columns: int) -> FoundNorm:
    name = model.checkpoint.find(families.NORMS)
    if name is not None and model.checkpoint.entry(name).shape != (columns,):
        name = None
    norm = _vector(model, name, columns)
    biases = None
    if norm is not None:
        beside = norm.tensor.removesuffix(".weight") + ".bias"
        biases = _vector(model, beside if beside in model.checkpoint.files else None, columns)
    _note_sources(model, norm, biases, "", "")
    return FoundNorm(
        weights=norm,
        biases=biases,
        kind="unknown",
        epsilon=0.0,
        offset=0,
        after_norm_only=f"the final norm of model type {model.model_type!r} is not known",
    )


def _vector(model: ModelFiles, name: str | None, columns: int) -> TensorPlace | None:
    """The place of a vector as wide as the states."""
    if name is None:
        return None
    entry = check_floats(model.checkpoint.entry(name), 1)
    if entry.shape != (columns,):
        raise FormatError(f"{entry.place}: has shape {entry.shape}, expected ({columns},), as wide as the head")
    return entry.place


def _norm_biases(model: ModelFiles, family: Family, norm: TensorPlace, columns: int) -> TensorPlace | None:
    name = norm.tensor.removesuffix(".weight") + ".bias"
    there = name in model.checkpoint.files
    if there != family.norm_has_biases:
        verb = "is there, which transformers ignores" if there else "is missing, so that none are added"
        model.notes.append(f"{name} {verb}")
    return _vector(model, name, columns) if there and family.norm_has_biases else None


def _epsilon(model: ModelFiles, family: Family) -> tuple[float, str]:
    if family.epsilon_key is not None:
        value, place = model.config.number(family.epsilon_key, zero=True)
        if value is not None:
            return value, place
    return family.epsilon, f"the default of {model.model_type}"


def _note_sources(
    model: ModelFiles, norm: TensorPlace | None, biases: TensorPlace | None, kind: str, epsilon: str
) -> None:
    given = {"norm": norm and str(norm), "norm_biases": biases and str(biases)}
    given |= {"norm_kind": kind, "norm_epsilon": epsilon}
    model.sources.update({key: value for key, value in given.items() if value})
