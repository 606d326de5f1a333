"""A model folder that is open: its configuration, its tensors, its family, and what is noted of it on the way."""

from __future__ import annotations

import os

from bigvocab.errors import BigvocabError, FormatError
from bigvocab.heads import families
from bigvocab.heads.checkpoint import Checkpoint
from bigvocab.heads.model_config import ModelConfig

_EXPECTED = "expected the folder of a model of transformers"


class ModelFiles:
    """A folder with config.json and weights.

    `notes` are sentences for a person; `sources` say where each value of `FoundModel` came from.
    """

    def __init__(self, folder: str):
        if not os.path.isdir(folder):
            raise BigvocabError(f"{folder}: no such folder, expected one with config.json and model.safetensors")
        self.folder = folder
        path = os.path.join(folder, "config.json")
        if not os.path.lexists(path):
            raise BigvocabError(f"{folder}: holds no config.json, {_EXPECTED}{_snapshots(folder)}")
        self.config = ModelConfig.read(path)
        self.notes: list[str] = []
        self.sources: dict[str, str] = {}
        self.model_type = _model_type(self.config)
        self.family = families.find_family(self.config.types)
        _refuse_family(self)
        self.checkpoint = Checkpoint(folder)


def _snapshots(folder: str) -> str:
    """Where the models are in a folder of the cache of the Hugging Face hub."""
    place = os.path.join(folder, "snapshots")
    found = sorted(os.listdir(place)) if os.path.isdir(place) else []
    return f"; this is one of the hub's cache, name a snapshot in it: {os.path.join(place, found[0])}" if found else ""


def _model_type(config: ModelConfig) -> str:
    types = config.types
    if not types:
        raise FormatError(f"{config.path}: has no model_type, expected the configuration of a model")
    return next((name for name in types if families.find_family((name,))), types[-1])


def _refuse_family(model: ModelFiles) -> None:
    """Raise where the family's head is not a linear layer over states."""
    for name in model.config.types:
        if name in families.ENCODERS:
            raise BigvocabError(
                f"{model.folder}: {name} is an encoder, whose states pass a transform before they meet the classes; "
                "evaluate its logits instead"
            )
        if name in families.ENCODER_DECODERS:
            raise BigvocabError(
                f"{model.folder}: {name} is an encoder and a decoder, whose head has rules of its own; "
                "evaluate its logits instead"
            )
    if model.config.flag("is_encoder_decoder")[0]:
        raise BigvocabError(
            f"{model.folder}: {model.model_type} is an encoder and a decoder (is_encoder_decoder); "
            "evaluate its logits instead"
        )
    family = model.family
    if family and family.refusal and (family.refuse_key is None or model.config.value(family.refuse_key)):
        raise BigvocabError(f"{model.folder}: {model.model_type}: {family.refusal}; evaluate its logits instead")
