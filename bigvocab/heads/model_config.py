"""config.json of a model folder: found, bounded, and asked for values of one type."""

from __future__ import annotations

import json
import math
import os
import stat
from dataclasses import dataclass
from typing import Any

from bigvocab.errors import BigvocabError, FormatError
from bigvocab.formats.magic import kind_of
from bigvocab.storage.paths import LFS_ADVICE

MOST_CONFIG = 16 << 20
MOST_TOKENIZER = 512 << 20
NESTED = ("text_config", "llm_config", "language_config", "thinker_config")
HIDDEN_SIZES = ("hidden_size", "n_embd", "d_model", "dim")


def read_json_object(path: str, most_bytes: int) -> dict[str, Any]:
    """The JSON object in a file; FormatError if it is none or larger than `most_bytes`."""
    try:
        status = os.stat(path)  # before opening: a FIFO would wait for its writer
        if not stat.S_ISREG(status.st_mode):
            raise BigvocabError(f"{path}: not a regular file")
        with open(path, "rb") as stream:
            data = stream.read(min(status.st_size, most_bytes) + 1)  # as much as is asked for is allocated at once
    except OSError as error:
        raise BigvocabError(f"{path}: cannot open: {error.strerror or error}") from error
    if len(data) > most_bytes:
        raise FormatError(f"{path}: is larger than {most_bytes >> 20} MiB, which no such file needs")
    if kind_of(data) == "git-lfs":
        raise FormatError(f"{path}: is {LFS_ADVICE}")
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: is not valid UTF-8 JSON: {str(error)[:300]}") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path}: is a JSON {type(value).__name__}, expected an object")
    return value


@dataclass(frozen=True)
class ModelConfig:
    """The configuration of a language model: `levels` are its JSON objects, the text model's own first.

    >>> config = ModelConfig("config.json", ({"vocab_size": 10}, {"model_type": "llava"}), ("text_config", ""))
    >>> config.integer("vocab_size"), config.types
    ((10, 'config.json: text_config.vocab_size'), ('llava',))
    """

    path: str
    levels: tuple[dict[str, Any], ...]
    names: tuple[str, ...]

    @classmethod
    def read(cls, path: str) -> ModelConfig:
        """The configuration in a file; those of text models that lie inside that of a wrapper come first."""
        level, name = read_json_object(path, MOST_CONFIG), ""
        levels, names = [level], [name]
        for _ in range(3):
            inner = next((key for key in NESTED if isinstance(level.get(key), dict)), None)
            if inner is None:
                break
            level, name = level[inner], f"{name}{inner}."
            levels.insert(0, level)
            names.insert(0, name.removesuffix("."))
        return cls(path, tuple(levels), tuple(names))

    @property
    def types(self) -> tuple[str, ...]:
        """The model types, the text model's own first."""
        found = [level.get("model_type") for level in self.levels]
        return tuple(name for name in found if isinstance(name, str) and name)

    def _find(self, key: str, *, outer_first: bool = False) -> tuple[Any, str]:
        """The value of a key and where it stands; (None, "") where no level has it."""
        pairs = list(zip(self.levels, self.names, strict=True))
        for level, name in reversed(pairs) if outer_first else pairs:
            if key in level:
                return level[key], f"{self.path}: {name}{'.' if name else ''}{key}"
        return None, ""

    def has(self, key: str) -> bool:
        """Whether any level has the key."""
        return any(key in level for level in self.levels)

    def value(self, key: str) -> Any:
        """What stands there, of any type; None if nothing does."""
        return self._find(key)[0]

    def integer(self, key: str) -> tuple[int | None, str]:
        """A positive integer and where it stands; None where it is absent or null."""
        value, place = self._find(key)
        if value is None:
            return None, place
        if type(value) is not int or not 0 < value < 2**48:
            raise FormatError(f"{place} is {value!r:.200}, expected a positive integer")
        return value, place

    def number(self, key: str, *, zero: bool = False) -> tuple[float | None, str]:
        """A finite number above 0 (or 0 itself, if allowed) and where it stands; None where it is absent or null."""
        value, place = self._find(key)
        if value is None:
            return None, place
        if type(value) not in (int, float) or not _is_finite(value) or value < 0 or (value == 0 and not zero):
            raise FormatError(f"{place} is {value!r:.200}, expected a {'non-negative' if zero else 'positive'} number")
        return float(value), place

    def flag(self, key: str, *, outer_first: bool = False) -> tuple[bool | None, str]:
        """True or false and where it stands; None where it is absent or null."""
        value, place = self._find(key, outer_first=outer_first)
        if value is not None and not isinstance(value, bool):
            raise FormatError(f"{place} is {value!r:.200}, expected true or false")
        return value, place


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:  # an integer of any length is valid JSON
        return False


def count_tokens(folder: str) -> int:
    """The largest id that tokenizer.json knows, added tokens included, plus 1."""
    path = os.path.join(folder, "tokenizer.json")
    tokenizer = read_json_object(path, MOST_TOKENIZER)
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens", [])
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, dict):
        ids = list(vocab.values())
    elif isinstance(vocab, list):  # Unigram: pairs of text and score, in the order of ids
        ids = [len(vocab) - 1] if vocab else []
    else:
        raise FormatError(f"{path}: model.vocab is a JSON {type(vocab).__name__}, expected an object or a list")
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise FormatError(f"{path}: added_tokens is not a list of objects")
    ids += [token.get("id") for token in added]
    if not ids:
        raise FormatError(f"{path}: has no tokens")
    wrong = [i for i in ids if type(i) is not int or i < 0]
    if wrong:
        raise FormatError(f"{path}: has the id {wrong[0]!r:.200}, expected non-negative integers")
    return max(ids) + 1
