"""A folder as transformers saves models: where its head and final norm are, and all that lies between them and logits.

Only headers and JSON are read; of the head and the embedding, where both are there and said to be one, a few bytes.
"""

from __future__ import annotations

import os

from bigvocab.errors import FormatError
from bigvocab.heads.checkpoint import INDEX, WHOLE, Entry
from bigvocab.heads.found_model import FoundModel, TensorPlace
from bigvocab.heads.head_rule import find_head, refuse_adapter
from bigvocab.heads.model_config import count_tokens
from bigvocab.heads.model_files import ModelFiles
from bigvocab.heads.norm_rule import find_norm


def find_model(path: str | os.PathLike[str], *, tokenizer: bool = False) -> FoundModel:
    """Find head, final norm, scale, softcap and number of classes of the model in a folder.

    Args:
        path: a folder with config.json and model.safetensors, whole or in shards.
        tokenizer: count only the classes that tokenizer.json knows.

    Raises:
        BigvocabError: a folder without a model, a shard that is missing, a head that cannot be evaluated, and why.
        FormatError: a file that is not what it says.

    The head, by the rule of vLLM (#51665): where one is stored it is used, and `tied` tells whether it equals the
    embedding; where none is, the embedding is the head.
    """
    model = ModelFiles(os.fsdecode(path))
    if model.family is None:
        model.notes.append(
            f"model type {model.model_type!r} is not known: its head was found by name, without scale or softcap; "
            "hidden states must come from after the final norm"
        )
    tied_states, place = model.config.flag("tie_last_hidden_states")
    if tied_states is False:
        model.notes.append(f"{place} is false: hidden_states[-1] of transformers is from before the final norm")
    head, tied, biases = find_head(model)
    refuse_adapter(model, tied)
    norm = find_norm(model, head.shape[1])
    _note_copies(model, [place for place in (head.place, biases, norm.weights, norm.biases) if place is not None])
    return FoundModel(
        path=model.folder,
        model_type=model.model_type,
        head=head.place,
        biases=biases,
        norm=norm.weights,
        norm_biases=norm.biases,
        norm_kind=norm.kind,
        norm_epsilon=norm.epsilon,
        norm_offset=norm.offset,
        logit_scale=_scale(model),
        softcap=_softcap(model),
        num_classes=_num_classes(model, head, tokenizer),
        rows=head.shape[0],
        hidden_size=head.shape[1],
        tied=tied,
        after_norm_only=norm.after_norm_only,
        notes=tuple(model.notes),
        sources=dict(model.sources),
    )


def _note_copies(model: ModelFiles, places: list[TensorPlace]) -> None:
    """A note where a tensor in use lies in a second file as well."""
    tensors: dict[tuple[str, ...], list[str]] = {}
    for place in places:
        if copies := model.checkpoint.copies(place.tensor):
            tensors.setdefault((os.path.basename(place.file), *copies), []).append(place.tensor)
    for (used, *copies), names in tensors.items():
        listed = [*copies[:2], *([f"{len(copies) - 2} more files"] if len(copies) > 2 else [])]
        which = "a whole file comes first" if used == WHOLE else f"as {INDEX} says"
        model.notes.append(f"{', '.join(names)}: taken from {used}, {which}; a copy in {' and '.join(listed)} is not")


def _scale(model: ModelFiles) -> float:
    family = model.family
    if family is None or family.scale_key is None:
        return 1.0
    value, place = model.config.number(family.scale_key)
    if value is None:
        value, place = family.scale, f"the default of {model.model_type}"
        if family.scale_rule == "width":
            return 1.0
    if family.scale_rule == "width":
        width, _ = model.config.integer("hidden_size")
        value = value / width if width else 1.0
    elif family.scale_rule == "divide":
        value = 1.0 / value
    model.sources["logit_scale"] = place
    return value


def _softcap(model: ModelFiles) -> float | None:
    family = model.family
    if family is None or family.softcap_key is None:
        return None
    if model.config.has(family.softcap_key):
        value, place = model.config.number(family.softcap_key)
    else:
        value, place = family.softcap, f"the default of {model.model_type}"
    if value is not None:
        model.sources["softcap"] = place
    return value


def _num_classes(model: ModelFiles, head: Entry, tokenizer: bool) -> int:
    """Rows of the head that are classes; the others are padding."""
    rows = head.shape[0]
    if tokenizer:
        count, place = count_tokens(model.folder), os.path.join(model.folder, "tokenizer.json")
    else:
        keys = (model.family.classes_key,) if model.family and model.family.classes_key else ()
        found = (model.config.integer(key) for key in (*keys, "vocab_size"))
        count, place = next((pair for pair in found if pair[0] is not None), (rows, ""))  # type: ignore[assignment]
    model.sources["num_classes"] = place or f"the rows of {head.place.tensor}"
    if not place:
        model.notes.append("config.json has no vocab_size: every row of the head is a class")
    if count > rows:
        raise FormatError(f"{head.place}: has {rows} rows, but {place} names {count} classes")
    if count < rows and not tokenizer:
        model.notes.append(f"the head has {rows} rows, of which {place} makes {count} classes; the rest is left out")
    return count
