"""The output layer of a model in GGUF, by the names and keys that llama.cpp gives them.

Converters have already added the 1 to norms that multiply by 1 + weight, and Falcon-H1's multiplier to its head. The
key `logit_scale` multiplies for some architectures and divides for others.

Source: https://github.com/ggml-org/llama.cpp, src/models/*.cpp and conversion/*.py.
"""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np

from bigvocab.errors import BigvocabError, FormatError
from bigvocab.formats.gguf import EMBEDDING, OUTPUT, GGUFFile, output_layer_of, read_gguf, tensor_layout
from bigvocab.formats.gguf_header import GGUFArray
from bigvocab.heads.found_model import FoundModel, TensorPlace

_MULTIPLIED = ("command-r", "cohere2", "cohere2moe", "grok")
_DIVIDED = ("granite", "granitemoe", "granitehybrid", "minicpm")
_SCALED_BY_DEFAULT = {"grok": 0.5773502691896257}  # files of Grok-1 may lack the key
_NEED_SCALE = ("command-r", "cohere2", "cohere2moe", "minicpm")
_CAPPED_BY_DEFAULT = {"gemma2": 30.0, "gemma3n": 30.0}
_NORM_IN_EMBEDDING_SLOT = ("lfm2", "lfm2moe")
_CENTRED = ("command-r", "cohere2", "cohere2moe")  # LayerNorm without biases, also where there is an RMS epsilon
_STREAMS = ("gemma3n", "deepseek4")  # several streams of states are merged before the norm
_REFUSED = {
    "minicpm3": "the divisor of its states is not in the file",
    "clip": "an encoder of images has no output layer",
    "t5": "an encoder-decoder scales its states before the layer",
    "t5encoder": "an encoder has no output layer",
    "bert": "a transform stands between its states and its classes",
    "modern-bert": "a transform stands between its states and its classes",
    "neo-bert": "a transform stands between its states and its classes",
    "eurobert": "a transform stands between its states and its classes",
    "nomic-bert": "a transform stands between its states and its classes",
    "nomic-bert-moe": "a transform stands between its states and its classes",
    "jina-bert-v2": "a transform stands between its states and its classes",
    "jina-bert-v3": "a transform stands between its states and its classes",
    "gemma-embedding": "a model of embeddings has no output layer",
    "llama-embed": "a model of embeddings has no output layer",
    "wavtokenizer-dec": "a decoder of sound has no classes",
}
_UNUSED_TOKEN = 5


def find_gguf_model(path: str | os.PathLike[str], *, tokenizer: bool = False) -> FoundModel:
    """Find head, final norm, scale, softcap and number of classes of a model in GGUF.

    Args:
        path: a file, or any part of a set.
        tokenizer: leave out the tokens after the last one that is not marked unused.

    Raises:
        FormatError: the file is not what it says, or its keys and tensors do not fit together.
        BigvocabError: an architecture or a type of tensor that is not evaluated, with the reason; no output layer.
    """
    return _Search(read_gguf(path)).found(tokenizer)


class _Search:
    """One model, and what was noted and where it came from while its parts were found."""

    def __init__(self, model: GGUFFile) -> None:
        self.model, self.shown = model, model.path
        self.notes: list[str] = []
        self.sources: dict[str, str] = {}
        self.type = self._text("general.architecture")
        kind = model.keys.get("general.type", "model")
        if kind != "model":
            raise BigvocabError(f"{self.shown}: general.type is {kind!r:.80}, expected a model with an output layer")
        if self.type in _REFUSED:
            raise BigvocabError(f"{self.shown}: architecture {self.type}: {_REFUSED[self.type]}")

    def found(self, tokenizer: bool) -> FoundModel:
        head, (rows, columns) = self._head()
        norm, norm_biases, kind, epsilon = self._norm(columns)
        after_norm_only = "its several streams of states are merged before the norm" if self.type in _STREAMS else ""
        if kind == "unknown":
            after_norm_only = "the file has no epsilon of a norm"
        biases = self._vector("output.bias", rows, "biases")
        return FoundModel(
            path=self.shown,
            model_type=self.type,
            head=self._place(head),
            biases=biases,
            norm=norm,
            norm_biases=norm_biases,
            norm_kind=kind,
            norm_epsilon=epsilon,
            norm_offset=0,
            logit_scale=self._logit_scale(),
            softcap=self._softcap(),
            num_classes=self._num_classes(rows, tokenizer),
            rows=rows,
            hidden_size=columns,
            tied=head == EMBEDDING,
            after_norm_only=after_norm_only,
            notes=tuple(self.notes),
            sources=self.sources,
        )

    def _text(self, key: str) -> str:
        value = self.model.keys.get(key)
        if not isinstance(value, str) or not value:
            raise FormatError(f"{self.shown}: {key} is {value!r:.80}, expected a name")
        return value

    def _place(self, tensor: str) -> TensorPlace:
        held = self.model.tensors[tensor].file
        return TensorPlace(next(file.shown for file in self.model.files if file.path == held), tensor)

    def _number(self, name: str, *, positive: bool = True) -> float | None:
        """A number among the keys of the architecture; 0 is what writers put where there is none."""
        value = self.model.keys.get(f"{self.type}.{name}")
        if value is None or value == 0 and type(value) in (int, float):
            return None
        if type(value) not in (int, float) or not math.isfinite(value) or (positive and value <= 0):
            raise FormatError(f"{self.shown}: {self.type}.{name} is {value!r:.80}, expected a positive number")
        single = float(np.float32(value))
        return float(str(np.float32(value))) if single == value else float(value)  # 1e-05, as the writer was given it

    def _count(self, name: str) -> int | None:
        value = self.model.keys.get(f"{self.type}.{name}")
        if value is not None and type(value) is not int:
            raise FormatError(f"{self.shown}: {self.type}.{name} is {value!r:.80}, expected a whole number")
        return value

    def _head(self) -> tuple[str, tuple[int, int]]:
        tensors = self.model.tensors
        name = output_layer_of(tensors)
        if name is None:
            raise BigvocabError(f"{self.shown}: has no output layer, expected {OUTPUT} or {EMBEDDING} in it")
        if name == OUTPUT and "output.scale" in tensors:
            raise BigvocabError(f"{self.shown}: {OUTPUT} has a scale of its own (output.scale), expected none")
        shape = tensor_layout(self.shown, tensors[name]).shape
        if len(shape) != 2:
            raise FormatError(f"{self._place(name)}: has shape {shape}, expected (classes, hidden size)")
        columns = self._count("embedding_length")
        if columns not in (None, shape[1]):
            raise FormatError(
                f"{self._place(name)}: has {shape[1]} columns, but {self.type}.embedding_length is {columns}"
            )
        self.sources["head"] = str(self._place(name))
        if name == EMBEDDING:
            self.notes.append(f"no {OUTPUT} in the file: the embedding, {EMBEDDING}, is the head")
        return name, (shape[0], shape[1])

    def _vector(self, name: str, size: int, field: str) -> TensorPlace | None:
        """A tensor (size,), where there is one."""
        if name not in self.model.tensors:
            return None
        shape = tensor_layout(self.shown, self.model.tensors[name]).shape
        if shape != (size,):
            raise FormatError(f"{self._place(name)}: has shape {shape}, expected ({size},)")
        self.sources[field] = str(self._place(name))
        return self._place(name)

    def _norm(self, columns: int) -> tuple[TensorPlace | None, TensorPlace | None, str, float]:
        """Weights, biases, kind and epsilon of the final norm."""
        slot = "token_embd_norm" if self.type in _NORM_IN_EMBEDDING_SLOT else "output_norm"
        slot = slot if f"{slot}.weight" in self.model.tensors else "output_norm"
        weights = self._vector(f"{slot}.weight", columns, "norm")
        biases = self._vector(f"{slot}.bias", columns, "norm_biases")
        rms = self._number("attention.layer_norm_rms_epsilon")
        centred = self._number("attention.layer_norm_epsilon")
        if rms is None and centred is None:
            self.notes.append("no epsilon of a norm in the file: hidden states must come from after the final norm")
            return weights, biases, "unknown", 0.0
        is_layer = rms is None or (centred is not None and (biases is not None or self.type in _CENTRED))
        kind = "layer" if is_layer else "rms"
        if rms is not None and centred is not None:
            self.notes.append(f"epsilons of both kinds of norm in the file: the final one is taken as {kind}")
        if weights is None:
            self.notes.append("no output_norm.weight in the file: the final norm is taken to have no weights")
        self.sources["norm_kind"] = f"{self.type}.attention.layer_norm_{'' if is_layer else 'rms_'}epsilon"
        self.sources["norm_epsilon"] = self.sources["norm_kind"]
        if not is_layer and biases is not None:
            raise FormatError(f"{biases}: biases of an RMS norm, expected none")
        return weights, biases, kind, float((centred if is_layer else rms) or 0.0)

    def _logit_scale(self) -> float:
        value, key = self._number("logit_scale"), f"{self.type}.logit_scale"
        if value is None:
            if self.type in _NEED_SCALE:
                raise FormatError(f"{self.shown}: has no {key}, expected one: convert the model anew")
            if self.type in _SCALED_BY_DEFAULT:
                self.sources["logit_scale"] = f"llama.cpp's default for {self.type}"
            return _SCALED_BY_DEFAULT.get(self.type, 1.0)
        if value == 1.0:
            return 1.0
        if self.type in _MULTIPLIED:
            self.sources["logit_scale"] = f"{key} = {value:g}, which multiplies"
            return value
        if self.type in _DIVIDED:
            self.sources["logit_scale"] = f"{key} = {value:g}, which divides"
            return 1.0 / value
        raise BigvocabError(
            f"{self.shown}: {key} is {value:g}, and whether it multiplies or divides is known of "
            f"{', '.join(_MULTIPLIED + _DIVIDED)} alone; name the layer (--weights {self.shown}) and give --logit-scale"
        )

    def _softcap(self) -> float | None:
        value = self._number("final_logit_softcapping")
        if value is not None:
            self.sources["softcap"] = f"{self.type}.final_logit_softcapping"
        elif self.type in _CAPPED_BY_DEFAULT and f"{self.type}.final_logit_softcapping" not in self.model.keys:
            value = _CAPPED_BY_DEFAULT[self.type]
            self.sources["softcap"] = f"llama.cpp's default for {self.type}"
            self.notes.append(
                f"no {self.type}.final_logit_softcapping in the file: {value:g} is taken, as llama.cpp does"
            )
        return value

    def _num_classes(self, rows: int, tokenizer: bool) -> int:
        """Classes by the keys, else all rows; tokens that are marked unused count, unless `tokenizer`."""
        tokens: Any = self.model.keys.get("tokenizer.ggml.tokens")
        count, key = self._count("vocab_size"), f"{self.type}.vocab_size"
        if (not count or tokenizer) and isinstance(tokens, GGUFArray):
            count, key = tokens.count, "tokenizer.ggml.tokens"
        if not count:
            self.sources["num_classes"] = "the rows of the head"
            return rows
        if count > rows:
            raise FormatError(f"{self.shown}: {key} says {count} classes, but the head has {rows} rows")
        types = self.model.array("tokenizer.ggml.token_type")
        used = np.ones(count, bool) if types is None else types[:count] != _UNUSED_TOKEN
        if tokenizer and used.any():
            count, key = int(np.flatnonzero(used)[-1]) + 1, f"{key} that are not marked unused"
        elif not used.all():
            self.notes.append(f"{len(used) - np.count_nonzero(used)} of {count} tokens are marked unused; they count")
        if count < rows:
            self.notes.append(f"the head has {rows} rows, of which {key} makes {count} classes; the rest is left out")
        self.sources["num_classes"] = key
        return count
