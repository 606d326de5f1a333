"""Which tensor is a model's head: the rule of vLLM (#51665), and the heads that are refused by name."""

from __future__ import annotations

import os
import re
from typing import Any

import numpy as np

from bigvocab.errors import BigvocabError, FormatError
from bigvocab.heads import families
from bigvocab.heads.checkpoint import FLOATS, Entry, check_floats, tensor_names
from bigvocab.heads.found_model import TensorPlace
from bigvocab.heads.model_config import HIDDEN_SIZES, read_json_object
from bigvocab.heads.model_files import ModelFiles

COMPARED_WHOLE = 64 << 20  # heads up to this size are compared with the embedding to the last byte
_PIECES, _PIECE = 256, 64 << 10
_QUANTISED = re.compile(
    r"scale|packed|qweight|qzeros|absmax|biases|quant|g_idx|zero_point|codebook|weight_shape|nested", re.IGNORECASE
)


def find_head(model: ModelFiles) -> tuple[Entry, bool, TensorPlace | None]:
    """The head, whether it is the embedding (or equal to it), and its biases.

    Raises BigvocabError where it is quantised, more than a linear layer, or not there.
    """
    heads = model.family.heads if model.family else families.HEADS
    embeddings = model.family.embeddings if model.family else families.EMBEDDINGS
    modules = model.checkpoint.modules(heads)
    for module in modules:
        _refuse_siblings(model, module, "the head")
    name, embedding = model.checkpoint.find(heads), model.checkpoint.find(embeddings)
    if name is None and embedding is None:
        for module in model.checkpoint.modules(embeddings):
            _refuse_siblings(model, module, "the embedding")
        raise BigvocabError(
            f"{model.folder}: no head and no embedding among its tensors (looked for "
            f"{', '.join((*heads, *embeddings))}); name the layer itself: model.safetensors::NAME"
        )
    if name is None:
        assert embedding is not None
        _refuse_siblings(model, embedding.removesuffix(".weight"), "the embedding", floats_only=True)
        head, tied = _layer(model, embedding), True
        _say_tied(model)
    else:
        head = _layer(model, name)
        tied = _is_tied(model, head, embedding)
    model.sources["head"] = str(head.place)
    return head, tied, _biases(model, modules, head)


def _layer(model: ModelFiles, name: str) -> Entry:
    """A tensor that can be a head: floats, of two dimensions, as wide as config.json says."""
    entry = model.checkpoint.entry(name)
    if entry.code not in FLOATS:
        raise BigvocabError(_quantised(model.folder, name.removesuffix(".weight"), f"weight {entry.code}"))
    check_floats(entry, 2)
    if not entry.shape[0]:
        raise FormatError(f"{entry.place}: has no rows, expected one for each class")
    keys = (model.family.width_key,) if model.family and model.family.width_key else ()
    for key in (*keys, *HIDDEN_SIZES):
        width, place = model.config.integer(key)
        if width is not None and width != entry.shape[1]:
            raise FormatError(f"{entry.place}: has shape {entry.shape}, but {place} is {width}")
        if width is not None:
            break
    return entry


def _refuse_siblings(model: ModelFiles, module: str, part: str, *, floats_only: bool = False) -> None:
    """Raise where more than weight and bias belong to a layer: it is quantised, or more than a linear layer."""
    siblings = [name for name in model.checkpoint.siblings(module) if name not in ("weight", "bias")]
    quantised = [name for name in siblings if _QUANTISED.search(name)]
    if quantised and not (part == "the head" and quantised == ["logit_scale"]):
        present = [n for n in model.checkpoint.siblings(module) if n == "weight" or n in quantised]
        stored = [_stored(model, module, name) for name in present[:4]]
        raise BigvocabError(_quantised(model.folder, module, ", ".join(stored)))
    if siblings and not floats_only:
        raise BigvocabError(
            f"{model.folder}: {part} {module} is more than a linear layer (it has {', '.join(siblings[:4])}); "
            "evaluate the model's logits instead"
        )


def _stored(model: ModelFiles, module: str, name: str) -> str:
    """A tensor and its type, where its file is there to tell."""
    try:
        return f"{name} {model.checkpoint.entry(f'{module}.{name}').code}"
    except BigvocabError:
        return name


def _is_tied(model: ModelFiles, head: Entry, embedding: str | None) -> bool:
    """Whether a head that is stored equals the embedding, where config.json or the family says that it should."""
    flag, place = _tie_flag(model)
    if not flag or embedding is None:
        return False
    other = model.checkpoint.entry(embedding)
    if (other.code, other.shape, other.nbytes) != (head.code, head.shape, head.nbytes):
        same, how = False, "differ in type or shape"
    else:
        same, how = _are_equal(head, other)
    if not same:
        model.notes.append(
            f"{place} says that {head.place.tensor} is the embedding {embedding}, but the two {how}; the head is used"
        )
    else:
        model.sources["tied"] = f"{place}; the two are {how}"
    return same


def _say_tied(model: ModelFiles) -> None:
    flag, place = _tie_flag(model)
    model.sources["tied"] = f"no head is stored; {place}"
    if flag is False and model.config.has("tie_word_embeddings"):
        model.notes.append(f"{place} is false, but no head is stored: the embedding is used as the head")


def _tie_flag(model: ModelFiles) -> tuple[bool | None, str]:
    flag, place = model.config.flag("tie_word_embeddings", outer_first=True)
    if flag is None and model.family is not None:
        return model.family.tied, f"the default of {model.model_type}"
    return flag, place or "config.json does not say"


def _biases(model: ModelFiles, modules: list[str], head: Entry) -> TensorPlace | None:
    """The head's biases: of the module that is the head, or should be where the embedding is."""
    for module in (head.place.tensor.removesuffix(".weight"), *modules):
        if "bias" in model.checkpoint.siblings(module):
            entry = check_floats(model.checkpoint.entry(f"{module}.bias"), 1)
            if entry.shape != head.shape[:1]:
                raise FormatError(f"{entry.place}: has shape {entry.shape}, expected {head.shape[:1]}, as the head")
            model.sources["biases"] = str(entry.place)
            return entry.place
    return None


def refuse_adapter(model: ModelFiles, tied: bool) -> None:
    """Raise where an adapter lies beside the model that changes its head or norm."""
    path = os.path.join(model.folder, "adapter_config.json")
    weights = os.path.join(model.folder, "adapter_model.safetensors")
    if not os.path.lexists(path) and not os.path.lexists(weights):
        return
    words: list[str] = []
    if os.path.lexists(path):
        adapter = read_json_object(path, 1 << 20)
        for key in ("target_modules", "modules_to_save"):
            words += _words(adapter.get(key))
    if os.path.lexists(weights):
        words += tensor_names(weights)
    changed = {"lm_head", "embed_out", "output_layer", "norm"} | ({"embed_tokens", "wte"} if tied else set())
    for word in words:
        parts = set(word.split("."))
        if parts & changed and not re.search(r"layers\.\d+\.", word):
            raise BigvocabError(
                f"{model.folder}: holds an adapter that changes {sorted(parts & changed)[0]}; merge it into the "
                "model (merge_and_unload) and save that"
            )
    model.notes.append("an adapter lies beside the model; it does not change the head")


def _quantised(folder: str, module: str, stored: str) -> str:
    scheme = "an integer type"
    for name, mark in (
        ("MLX integers", "biases"),
        ("GPTQ or AWQ integers", "qweight"),
        ("packed integers (compressed-tensors)", "packed"),
        ("bitsandbytes integers", "absmax"),
        ("NVFP4", "weight_scale_2"),
        ("FP8", "F8_"),
        ("FP4", "F4"),
    ):
        if mark in stored:
            scheme = name
            break
    return (
        f"{folder}: {module} is stored as {scheme} ({stored}); bigvocab evaluates layers of floats: "
        "dequantise it, or use the checkpoint that is not quantised"
    )


def _words(value: Any) -> list[str]:
    """Names of modules in an adapter's configuration: a list, or a pattern."""
    if isinstance(value, str):
        return re.findall(r"[A-Za-z_][A-Za-z0-9_]*", value.replace("\\", " "))
    return [word for word in value if isinstance(word, str)] if isinstance(value, list) else []


def _are_equal(first: Entry, second: Entry) -> tuple[bool, str]:
    """Whether two tensors of one type and shape hold the same bytes: a sample, then the whole of all but large ones."""
    total = first.nbytes
    step = max(_PIECE, (total - _PIECE) // _PIECES)
    for start in range(0, total, step):
        stop = min(start + _PIECE, total)
        if not np.array_equal(first.bytes_of(start, stop), second.bytes_of(start, stop)):
            return False, "hold other bytes"
    if total > COMPARED_WHOLE:
        return True, f"equal in {_PIECES} samples"
    for start in range(0, total, 16 << 20):
        stop = min(start + (16 << 20), total)
        if not np.array_equal(first.bytes_of(start, stop), second.bytes_of(start, stop)):
            return False, "hold other bytes"
    return True, "equal"
