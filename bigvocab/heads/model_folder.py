"""A folder as transformers saves models: where its head and final norm are, and all that lies between them and logits.

Only headers and JSON are read; of the head and the embedding, where both are there and said to be one, a few bytes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigvocab.errors import BigvocabError, FormatError
from bigvocab.heads import families
from bigvocab.heads.checkpoint import FLOATS, Checkpoint, Entry, TensorPlace, check_floats, tensor_names
from bigvocab.heads.families import Family
from bigvocab.heads.model_config import HIDDEN_SIZES, ModelConfig, count_tokens, read_json_object

COMPARED_WHOLE = 64 << 20  # heads up to this size are compared with the embedding to the last byte
_PIECES, _PIECE = 256, 64 << 10
_QUANTISED = re.compile(
    r"scale|packed|qweight|qzeros|absmax|biases|quant|g_idx|zero_point|codebook|weight_shape|nested", re.IGNORECASE
)


@dataclass(frozen=True)
class FoundModel:
    """What lies between the hidden states of a model and its logits, and where each part of it came from.

    logits = softcap(logit_scale * (norm(states) . head + biases)), over the first num_classes of the head's rows.
    norm_kind is rms, layer, none (the states go into the head as they are) or unknown (only states from after the norm
    can be used); it multiplies by norm_offset + the values at `norm`, which is None where the norm has no weights.
    `after_norm_only` says why states from before the norm cannot be used; it is empty where they can.
    """

    path: str
    model_type: str
    head: TensorPlace
    biases: TensorPlace | None
    norm: TensorPlace | None
    norm_biases: TensorPlace | None
    norm_kind: str
    norm_epsilon: float
    norm_offset: int
    logit_scale: float
    softcap: float | None
    num_classes: int
    rows: int
    hidden_size: int
    tied: bool
    after_norm_only: str
    notes: tuple[str, ...]
    sources: Mapping[str, str]

    def describe(self) -> str:
        """One line for a person."""
        norm = self.norm_kind
        if norm in ("rms", "layer"):
            weights = "no weights" if self.norm is None else f"{'1 + ' * self.norm_offset}{self.norm.tensor}"
            norm = f"{norm} norm ({weights}, epsilon {self.norm_epsilon:g})"
        elif norm == "none":
            norm = "no norm"
        else:
            norm = "norm unknown"
        parts = [f"{self.model_type}: {self.head.tensor} ({self.num_classes} x {self.hidden_size})", norm]
        parts += [f"biases {self.biases.tensor}"] if self.biases else []
        parts += [f"logit scale {self.logit_scale:g}"] if self.logit_scale != 1 else []
        parts += [f"softcap {self.softcap:g}"] if self.softcap is not None else []
        return ", ".join(parts)


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
    return _Search(os.fsdecode(path)).found(tokenizer)


class _Search:
    """One look at a folder: gathers notes and sources on its way."""

    def __init__(self, folder: str):
        if not os.path.isdir(folder):
            raise BigvocabError(f"{folder}: no such folder, expected one with config.json and model.safetensors")
        self.folder = folder
        path = os.path.join(folder, "config.json")
        if not os.path.lexists(path):
            raise BigvocabError(f"{folder}: holds no config.json, expected the folder of a model of transformers")
        self.config = ModelConfig.read(path)
        self.notes: list[str] = []
        self.sources: dict[str, str] = {}
        self.model_type = self._model_type()
        self.family = families.find_family(self.config.types)
        self._refuse_family()
        self.checkpoint = Checkpoint(folder)

    def found(self, tokenizer: bool) -> FoundModel:
        """All of it."""
        if self.family is None:
            self.notes.append(
                f"model type {self.model_type!r} is not known: its head was found by name, without scale or softcap; "
                "hidden states must come from after the final norm"
            )
        head, tied, biases = self._head()
        self._refuse_adapter(tied)
        rows, columns = head.shape
        norm = self._norm(columns)
        return FoundModel(
            path=self.folder,
            model_type=self.model_type,
            head=head.place,
            biases=biases,
            logit_scale=self._scale(),
            softcap=self._softcap(),
            num_classes=self._num_classes(head, tokenizer),
            rows=rows,
            hidden_size=columns,
            tied=tied,
            **norm,
            notes=tuple(self.notes),
            sources=dict(self.sources),
        )

    def _model_type(self) -> str:
        types = self.config.types
        if not types:
            raise FormatError(f"{self.config.path}: has no model_type, expected the configuration of a model")
        return next((name for name in types if families.find_family((name,))), types[-1])

    def _refuse_family(self) -> None:
        """Raise where the family's head is not a linear layer over states."""
        for name in self.config.types:
            if name in families.ENCODERS:
                raise BigvocabError(
                    f"{self.folder}: {name} is an encoder, whose states pass a transform before they meet the classes; "
                    "evaluate its logits instead"
                )
            if name in families.ENCODER_DECODERS:
                raise BigvocabError(
                    f"{self.folder}: {name} is an encoder and a decoder, whose head has rules of its own; "
                    "evaluate its logits instead"
                )
        if self.config.flag("is_encoder_decoder")[0]:
            raise BigvocabError(
                f"{self.folder}: {self.model_type} is an encoder and a decoder (is_encoder_decoder); "
                "evaluate its logits instead"
            )
        family = self.family
        if family and family.refusal and (family.refuse_key is None or self.config.value(family.refuse_key)):
            raise BigvocabError(f"{self.folder}: {self.model_type}: {family.refusal}; evaluate its logits instead")

    # The head

    def _head(self) -> tuple[Entry, bool, TensorPlace | None]:
        """The head, whether it is the embedding's twin, and its biases."""
        heads = self.family.heads if self.family else families.HEADS
        embeddings = self.family.embeddings if self.family else families.EMBEDDINGS
        modules = self.checkpoint.modules(heads)
        for module in modules:
            self._refuse_siblings(module, "the head")
        name, embedding = self.checkpoint.find(heads), self.checkpoint.find(embeddings)
        if name is None and embedding is None:
            for module in self.checkpoint.modules(embeddings):
                self._refuse_siblings(module, "the embedding")
            raise BigvocabError(
                f"{self.folder}: no head and no embedding among its tensors (looked for "
                f"{', '.join((*heads, *embeddings))}); name the layer itself: model.safetensors::NAME"
            )
        if name is None:
            assert embedding is not None
            self._refuse_siblings(embedding.removesuffix(".weight"), "the embedding", floats_only=True)
            head, tied = self._layer(embedding), True
            self._say_tied()
        else:
            head = self._layer(name)
            tied = self._is_tied(head, embedding)
        self.sources["head"] = str(head.place)
        return head, tied, self._biases(modules, head)

    def _layer(self, name: str) -> Entry:
        """A tensor that can be a head: floats, of two dimensions, as wide as config.json says."""
        entry = self.checkpoint.entry(name)
        if entry.code not in FLOATS:
            raise BigvocabError(_quantised(self.folder, name.removesuffix(".weight"), f"weight {entry.code}"))
        check_floats(entry, 2)
        if not entry.shape[0]:
            raise FormatError(f"{entry.place}: has no rows, expected one for each class")
        keys = (self.family.width_key,) if self.family and self.family.width_key else ()
        for key in (*keys, *HIDDEN_SIZES):
            width, place = self.config.integer(key)
            if width is not None and width != entry.shape[1]:
                raise FormatError(f"{entry.place}: has shape {entry.shape}, but {place} is {width}")
            if width is not None:
                break
        return entry

    def _refuse_siblings(self, module: str, part: str, *, floats_only: bool = False) -> None:
        """Raise where more than weight and bias belong to a layer: it is quantised, or more than a linear layer."""
        siblings = [name for name in self.checkpoint.siblings(module) if name not in ("weight", "bias")]
        quantised = [name for name in siblings if _QUANTISED.search(name)]
        if quantised and not (part == "the head" and quantised == ["logit_scale"]):
            present = [n for n in self.checkpoint.siblings(module) if n == "weight" or n in quantised]
            stored = [self._stored(module, name) for name in present[:4]]
            raise BigvocabError(_quantised(self.folder, module, ", ".join(stored)))
        if siblings and not floats_only:
            raise BigvocabError(
                f"{self.folder}: {part} {module} is more than a linear layer (it has {', '.join(siblings[:4])}); "
                "evaluate the model's logits instead"
            )

    def _stored(self, module: str, name: str) -> str:
        """A tensor and its type, where its file is there to tell."""
        try:
            return f"{name} {self.checkpoint.entry(f'{module}.{name}').code}"
        except BigvocabError:
            return name

    def _is_tied(self, head: Entry, embedding: str | None) -> bool:
        """Whether a head that is stored equals the embedding, where config.json or the family says that it should."""
        flag, place = self._tie_flag()
        if not flag or embedding is None:
            return False
        other = self.checkpoint.entry(embedding)
        if (other.code, other.shape, other.nbytes) != (head.code, head.shape, head.nbytes):
            same, how = False, "differ in type or shape"
        else:
            same, how = _are_equal(head, other)
        if not same:
            self.notes.append(
                f"{place} says that {head.place.tensor} is the embedding {embedding}, but the two {how}; "
                "the head is used"
            )
        else:
            self.sources["tied"] = f"{place}; the two are {how}"
        return same

    def _say_tied(self) -> None:
        flag, place = self._tie_flag()
        self.sources["tied"] = f"no head is stored; {place}"
        if flag is False and self.config.has("tie_word_embeddings"):
            self.notes.append(f"{place} is false, but no head is stored: the embedding is used as the head")

    def _tie_flag(self) -> tuple[bool | None, str]:
        flag, place = self.config.flag("tie_word_embeddings", outer_first=True)
        if flag is None and self.family is not None:
            return self.family.tied, f"the default of {self.model_type}"
        return flag, place or "config.json does not say"

    def _biases(self, modules: list[str], head: Entry) -> TensorPlace | None:
        """The head's biases: of the module that is the head, or should be where the embedding is."""
        for module in (head.place.tensor.removesuffix(".weight"), *modules):
            if "bias" in self.checkpoint.siblings(module):
                entry = check_floats(self.checkpoint.entry(f"{module}.bias"), 1)
                if entry.shape != head.shape[:1]:
                    raise FormatError(f"{entry.place}: has shape {entry.shape}, expected {head.shape[:1]}, as the head")
                self.sources["biases"] = str(entry.place)
                return entry.place
        return None

    def _refuse_adapter(self, tied: bool) -> None:
        """Raise where an adapter lies beside the model that changes its head or norm."""
        path = os.path.join(self.folder, "adapter_config.json")
        weights = os.path.join(self.folder, "adapter_model.safetensors")
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
                    f"{self.folder}: holds an adapter that changes {sorted(parts & changed)[0]}; merge it into the "
                    "model (merge_and_unload) and save that"
                )
        self.notes.append("an adapter lies beside the model; it does not change the head")

    # The norm

    def _norm(self, columns: int) -> dict[str, Any]:
        """The fields of FoundModel that tell the final norm."""
        family = self.family
        if family is None:
            return self._unknown_norm(columns)
        kind, (epsilon, place) = family.norm_kind, self._epsilon(family)
        if family.rms_key is not None:
            value, where = self.config.number(family.rms_key, zero=True)
            if value is not None:
                kind, epsilon, place = "rms", value, where
        if family.norm_key is not None and self.config.flag(family.norm_key)[0] is False:
            kind = "none"
            self.notes.append(f"{family.norm_key} is false: this model has no final norm")
        after_norm_only = family.after_norm_only or ""
        norm = norm_biases = None
        if kind != "none" and family.norms:
            norm = self._vector(self.checkpoint.find(family.norms), columns)
            if norm is None:
                kind, after_norm_only = "unknown", "the final norm is not among the tensors of the folder"
                self.notes.append(
                    f"no final norm among the tensors (looked for {', '.join(family.norms)}): "
                    "hidden states must come from after it"
                )
        if norm is not None:
            norm_biases = self._norm_biases(family, norm, columns)
        if kind == "none":
            epsilon, place = 0.0, ""
        self._note_sources(norm, norm_biases, f"the family {self.model_type}", place)
        return {
            "norm": norm,
            "norm_biases": norm_biases,
            "norm_kind": kind,
            "norm_epsilon": epsilon,
            "norm_offset": family.norm_offset if norm is not None else 0,
            "after_norm_only": after_norm_only,
        }

    def _unknown_norm(self, columns: int) -> dict[str, Any]:
        name = self.checkpoint.find(families.NORMS)
        if name is not None and self.checkpoint.entry(name).shape != (columns,):
            name = None
        norm = self._vector(name, columns)
        biases = None
        if norm is not None:
            beside = norm.tensor.removesuffix(".weight") + ".bias"
            biases = self._vector(beside if beside in self.checkpoint.files else None, columns)
        self._note_sources(norm, biases, "", "")
        return {
            "norm": norm,
            "norm_biases": biases,
            "norm_kind": "unknown",
            "norm_epsilon": 0.0,
            "norm_offset": 0,
            "after_norm_only": f"the final norm of model type {self.model_type!r} is not known",
        }

    def _vector(self, name: str | None, columns: int) -> TensorPlace | None:
        """The place of a vector as wide as the states."""
        if name is None:
            return None
        entry = check_floats(self.checkpoint.entry(name), 1)
        if entry.shape != (columns,):
            raise FormatError(f"{entry.place}: has shape {entry.shape}, expected ({columns},), as wide as the head")
        return entry.place

    def _norm_biases(self, family: Family, norm: TensorPlace, columns: int) -> TensorPlace | None:
        name = norm.tensor.removesuffix(".weight") + ".bias"
        there = name in self.checkpoint.files
        if there != family.norm_has_biases:
            verb = "is there, which transformers ignores" if there else "is missing, so that none are added"
            self.notes.append(f"{name} {verb}")
        return self._vector(name, columns) if there and family.norm_has_biases else None

    def _epsilon(self, family: Family) -> tuple[float, str]:
        if family.epsilon_key is not None:
            value, place = self.config.number(family.epsilon_key, zero=True)
            if value is not None:
                return value, place
        return family.epsilon, f"the default of {self.model_type}"

    def _note_sources(self, norm: TensorPlace | None, biases: TensorPlace | None, kind: str, epsilon: str) -> None:
        given = {"norm": norm and str(norm), "norm_biases": biases and str(biases)}
        given |= {"norm_kind": kind, "norm_epsilon": epsilon}
        self.sources.update({key: value for key, value in given.items() if value})

    # Logits

    def _scale(self) -> float:
        family = self.family
        if family is None or family.scale_key is None:
            return 1.0
        value, place = self.config.number(family.scale_key)
        if value is None:
            value, place = family.scale, f"the default of {self.model_type}"
            if family.scale_rule == "width":
                return 1.0
        if family.scale_rule == "width":
            width, _ = self.config.integer("hidden_size")
            value = value / width if width else 1.0
        elif family.scale_rule == "divide":
            value = 1.0 / value
        self.sources["logit_scale"] = place
        return value

    def _softcap(self) -> float | None:
        family = self.family
        if family is None or family.softcap_key is None:
            return None
        if self.config.has(family.softcap_key):
            value, place = self.config.number(family.softcap_key)
        else:
            value, place = family.softcap, f"the default of {self.model_type}"
        if value is not None:
            self.sources["softcap"] = place
        return value

    def _num_classes(self, head: Entry, tokenizer: bool) -> int:
        """Rows of the head that are classes; the others are padding."""
        rows = head.shape[0]
        if tokenizer:
            count, place = count_tokens(self.folder), os.path.join(self.folder, "tokenizer.json")
        else:
            keys = (self.family.classes_key,) if self.family and self.family.classes_key else ()
            found = (self.config.integer(key) for key in (*keys, "vocab_size"))
            count, place = next((pair for pair in found if pair[0] is not None), (rows, ""))  # type: ignore[assignment]
        self.sources["num_classes"] = place or f"the rows of {head.place.tensor}"
        if not place:
            self.notes.append("config.json has no vocab_size: every row of the head is a class")
        if count > rows:
            raise FormatError(f"{head.place}: has {rows} rows, but {place} names {count} classes")
        if count < rows and not tokenizer:
            self.notes.append(f"the head has {rows} rows, of which {place} makes {count} classes; the rest is left out")
        return count


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
