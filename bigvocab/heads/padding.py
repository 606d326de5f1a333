"""Rows of a head that are padding: classes that no token of the model's own tokenizer stands for."""

from __future__ import annotations

import os
import re
from typing import Any

from bigvocab.errors import BigvocabError
from bigvocab.heads.open_model import find_layer
from bigvocab.heads.output_layer import OutputLayer

_MOST_READ = 256 << 20


def padding_notes(layer: OutputLayer | None, greatest: float) -> list[dict[str, str]]:
    """A note {code, text} where the greatest label is an id that the model's tokenizer does not know.

    The text depends on the model alone, so that those of shards are one. A tokenizer that is not there, or cannot be
    read, says nothing.
    """
    if layer is None or layer.found is None or not 0 <= greatest < layer.num_classes:
        return []
    path = layer.found.path
    tokenizer = os.path.join(path, "tokenizer.json") if os.path.isdir(path) else path
    if not os.path.isfile(tokenizer) or (tokenizer != path and _names(tokenizer, int(greatest))):
        return []
    try:
        known = find_layer(path, tokenizer=True).num_classes
    except BigvocabError:
        return []
    if greatest < known:
        return []
    text = (
        f"labels reach ids that {tokenizer} does not know: it has {known:,} tokens, and the other "
        f"{layer.num_classes - known:,} of the {layer.num_classes:,} classes are padding; are the labels of another "
        "tokenizer?"
    )
    return [{"code": "padded_labels", "text": text}]


def _names(path: str, token: int) -> bool:
    """Whether a number stands as a value in a JSON file: far quicker than parsing it, and nearly always true."""
    try:
        with open(path, "rb") as file:
            data: Any = file.read(min(os.path.getsize(path), _MOST_READ))
    except OSError:
        return False
    return re.search(rb":\s*%d\s*[,}\]]" % token, data) is not None
