"""open_model: the output layer of a model, from the folder or the GGUF file that the model is in."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bigvocab import arguments
from bigvocab.errors import BigvocabError
from bigvocab.formats.gguf import as_local_set, part_names
from bigvocab.formats.magic import GGUF
from bigvocab.heads.checkpoint import SHARD
from bigvocab.heads.found_model import FoundModel, TensorPlace
from bigvocab.heads.gguf_model import find_gguf_model
from bigvocab.heads.model_folder import find_model
from bigvocab.heads.output_layer import NORMS, OutputLayer
from bigvocab.storage import uris
from bigvocab.storage.paths import names_one, natural_key
from bigvocab.storage.places import folder_of, within
from bigvocab.storage.remote import remember, whole_uri
from bigvocab.storage.spool import filled, mirror

# What a path inside a model's folder may be, to mean the folder.
_OF_FOLDER = ("config.json", "model.safetensors", "model.safetensors.index.json")
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # what models are called there


def find_layer(model: Any, *, tokenizer: bool = False) -> FoundModel:
    """What is found of a model: a folder, a GGUF file, or what `open_model` made of one.

    Raises:
        BigvocabError, FormatError: as `open_model`; TypeError: neither a path nor a layer of a model.
    """
    if isinstance(model, FoundModel):
        return model
    if isinstance(model, OutputLayer):
        if model.found is None:
            raise TypeError("model: expected a path or what open_model returns, got a layer of no model")
        return find_layer(whole_uri(model.found.path), tokenizer=True) if tokenizer else model.found
    if not isinstance(model, str | os.PathLike):
        raise TypeError(f"model: expected a path or what open_model returns, got {type(model).__name__}")
    path = uris.plain(arguments.path("model", model))
    if uris.is_remote(path):
        return _in_store(path, tokenizer)
    if os.path.isdir(path):
        gguf = _gguf_of(path)
        return find_gguf_model(gguf, tokenizer=tokenizer) if gguf else find_model(path, tokenizer=tokenizer)
    if not os.path.exists(path):
        fetch = (
            "; one of the hub must be here first (huggingface_hub.snapshot_download)" if _HUB.fullmatch(path) else ""
        )
        raise BigvocabError(f"{path}: no such folder or file, expected the folder of a model, or a GGUF file{fetch}")
    if os.path.basename(path) in _OF_FOLDER or SHARD.fullmatch(os.path.basename(path)):
        return find_model(os.path.dirname(path) or os.curdir, tokenizer=tokenizer)
    if not is_gguf(path):
        raise BigvocabError(f"{path}: expected the folder of a model (config.json, model.safetensors), or a GGUF file")
    return find_gguf_model(path, tokenizer=tokenizer)


def _in_store(uri: str, tokenizer: bool) -> FoundModel:
    """A model in an object store: small files are fetched whole, of weights the headers and the tensors in use."""
    if names_one(uri) and uris.name_of(uri).lower().endswith(".gguf"):
        return _gguf_in_store(uri, tokenizer)
    if uris.name_of(uri) in _OF_FOLDER:
        uri = folder_of(uri)
    before, query = uris.split_query(whole_uri(uri))
    uri = before.rstrip("/") + query
    folder = mirror(uri)
    if (gguf := _gguf_of(folder)) is not None:
        for part in filter(os.path.exists, part_names(gguf)):
            filled(part, 0, os.path.getsize(part))
    places = {os.path.join(folder, name): within(uri, name) for name in os.listdir(folder)}
    try:
        found = find_layer(folder, tokenizer=tokenizer)
    except BigvocabError as error:
        raise error.renamed(folder, uris.split_query(uris.shown(uri))[0].rstrip("/")) from error
    return _moved(found, places, folder, uri)


def _gguf_in_store(uri: str, tokenizer: bool) -> FoundModel:
    """A GGUF model in an object store, all of it; of a set all parts."""
    with as_local_set(uri) as local:
        found = find_layer(local, tokenizer=tokenizer)
    place, folder = os.path.dirname(local), folder_of(uri)
    places = {os.path.join(place, one): within(folder, one) for one in part_names(os.path.basename(local))}
    return replace(_moved(found, places, place, folder), path=remember(uri))


def _moved(found: FoundModel, places: Mapping[str, str], local: str, uri: str) -> FoundModel:
    """The same model by the URIs of its files, which other processes can open."""

    def moved(place: TensorPlace | None) -> TensorPlace | None:
        return None if place is None else TensorPlace(remember(places[place.file]), place.tensor)

    head, shown = moved(found.head), uris.split_query(uris.shown(uri))[0].rstrip("/")
    assert head is not None
    return replace(
        found,
        path=remember(uri),
        head=head,
        biases=moved(found.biases),
        norm=moved(found.norm),
        norm_biases=moved(found.norm_biases),
        notes=tuple(note.replace(local, shown) for note in found.notes),
        sources={name: text.replace(local, shown) for name, text in found.sources.items()},
    )


def is_gguf(path: str) -> bool:
    """Whether a file says that it is GGUF, by its name or first bytes."""
    if path.lower().endswith(".gguf"):
        return True
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return file.read(len(GGUF)) == GGUF


def _gguf_of(folder: str) -> str | None:
    """The one GGUF model, or set, in a folder that holds no model of transformers."""
    if os.path.lexists(os.path.join(folder, "config.json")):
        return None
    try:
        names = sorted(os.listdir(folder), key=natural_key)
    except OSError as error:
        raise BigvocabError(f"{folder}: cannot list the folder: {error.strerror}") from error
    models = [n for n in names if n.lower().endswith(".gguf") and not n.lower().startswith(("mmproj", "mtp"))]
    firsts = [n for n in models if "-of-" not in n or n.endswith(f"-00001-of-{n[-10:]}")]
    if len(firsts) > 1:
        raise BigvocabError(f"{folder}: holds {len(firsts)} GGUF models, name one: {', '.join(firsts[:10])}")
    return os.path.join(folder, firsts[0]) if firsts else None


def layer_of(found: FoundModel, instead: Mapping[str, Any] | None = None, **options: Any) -> OutputLayer:
    """The layer of a model, opened.

    Args:
        found: where its parts are.
        instead: what takes the place of a part, by the keywords of `OutputLayer`; None is no other part. A norm of
            another kind comes with weights and biases of its own, or none.
        options: further keywords of `OutputLayer`.
    """
    other = {name: value for name, value in (instead or {}).items() if value is not None}
    given: dict[str, Any] = {
        "weights": str(found.head),
        "biases": found.biases and str(found.biases),
        "num_classes": found.num_classes,
        "logit_scale": found.logit_scale,
        "softcap": found.softcap,
    }
    if found.norm_kind in NORMS and "final_norm" not in other:
        given |= {
            "final_norm": found.norm_kind,
            "norm_weight": found.norm and str(found.norm),
            "norm_bias": found.norm_biases and str(found.norm_biases),
        }
    if "norm_weight" not in other and "final_norm" not in other:
        given["norm_offset"] = found.norm_offset
    if found.norm_kind in NORMS:
        given["norm_epsilon"] = found.norm_epsilon
    return OutputLayer(**(given | other | options), found=found)


def open_model(path: str | os.PathLike[str]) -> OutputLayer:
    """The output layer of a model, with the norm before it, the scale and the softcap: for `Evaluator(model=...)`,
    `evaluate(model=...)` and `linear_cross_entropy(inputs, layer, labels)`.

    logits = softcap(logit_scale * (norm(states) . head + biases)), over the first num_classes rows of the head. Only
    headers are read, and the bytes of the norm.

    Args:
        path: a folder as transformers saves models (config.json and model.safetensors, whole or in shards), or a GGUF
            file.

    Raises:
        BigvocabError: no model there, a head that cannot be evaluated, with the reason; FormatError: a file that is not
            what it says; TypeError: no path.

    Source: the rule of vLLM (https://github.com/vllm-project/vllm/pull/51665) for the head; the models of transformers
    and of llama.cpp for the rest, family by family.
    """
    return layer_of(find_layer(path))
