"""Values of options as JSON has them, and back: numbers, paths, and arrays that are small enough."""

from __future__ import annotations

import base64
import hashlib
import io
import os
from typing import Any

import numpy as np

from bigvocab.arguments import BFLOAT16
from bigvocab.errors import BigvocabError, FormatError
from bigvocab.matrices.matrix import Matrix
from bigvocab.storage import uris
from bigvocab.storage.remote import remember

_HELD_BYTES = 1 << 20  # of an array among the options
_FEW = 16  # ids that are shown


def as_options(value: Any) -> Any:
    """Options as JSON has them: tuples become lists, arrays their size and fingerprint."""
    if isinstance(value, dict):
        return {str(name): as_options(item) for name, item in value.items()}
    if isinstance(value, np.ndarray) or (isinstance(value, list) and len(value) > 64):
        array = np.ascontiguousarray(value)
        digest = hashlib.blake2b(array.tobytes(), digest_size=16).hexdigest()
        return {"shape": list(array.shape), "dtype": array.dtype.name, "fingerprint": digest}
    if isinstance(value, list | tuple):
        return [as_options(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def as_given(value: Any) -> Any:
    """A keyword as JSON has it; an array that is too large to be held becomes {"missing": shape}."""
    if isinstance(value, Matrix):
        if value.maps:
            paths = [uris.shown(file.path) + (f"::{file.selector}" if file.selector else "") for file in value.maps]
            return paths[0] if len(paths) == 1 else paths
        value = np.asarray(value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        return remember(value)
    if isinstance(value, int | float | None):
        return value
    if isinstance(value, os.PathLike):
        return uris.absolute(value)
    if isinstance(value, list | tuple | set | frozenset) and all(
        isinstance(item, str | int | np.integer | os.PathLike) for item in value
    ):
        return [as_given(item) for item in value]
    array = np.asarray(value)
    if array.nbytes > _HELD_BYTES or array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        return {"missing": list(array.shape)}
    return packed(array)


def shown_value(value: Any) -> Any:
    """A keyword for people, the same from memory and from a state: arrays become words with their shape, a few ids a
    list.
    """
    if isinstance(value, Matrix):
        value = as_given(value) if value.maps else np.empty(value.shape, np.bool_)
    if isinstance(value, dict) and "npy" in value:
        value = from_given("", value, "")
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and value.ndim == 1 and value.size <= _FEW:
        return value.tolist()
    if isinstance(value, dict):
        shape = value["missing"] if "missing" in value else from_given("", value, "").shape
        return _shape_in_words(shape)
    if isinstance(value, str):
        return uris.shown(value)
    if isinstance(value, int | float | bool | None):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple | set | frozenset) and all(isinstance(i, str | int | os.PathLike) for i in value):
        return [shown_value(item) for item in value]
    return _shape_in_words(np.shape(value))


def _shape_in_words(shape: Any) -> str:
    return f"array of shape ({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"


def packed(value: Any) -> Any:
    """An array as JSON has it, bfloat16 by its bits; anything else as it is."""
    if not isinstance(value, np.ndarray):
        return value
    buffer, is_bfloat16 = io.BytesIO(), value.dtype.name == "bfloat16"
    np.save(buffer, value.astype(BFLOAT16).view(np.uint16) if is_bfloat16 else value, allow_pickle=False)
    return {"npy": base64.b64encode(buffer.getvalue()).decode()} | ({"dtype": "bfloat16"} if is_bfloat16 else {})


def from_given(name: str, value: Any, path: str) -> Any:
    """The inverse of `as_given`."""
    if isinstance(value, dict):
        if not value.keys() & {"npy", "missing"}:
            raise FormatError(f"{path}: {name} is an option of no kind, expected what bigvocab wrote")
        if "npy" not in value:
            shape = tuple(value["missing"])
            raise BigvocabError(
                f"{path}: {name} was an array of shape {shape}, too large for a state; expected it again: {name}=..."
            )
        array = np.load(io.BytesIO(base64.b64decode(value["npy"])), allow_pickle=False)
        return array.view(BFLOAT16) if value.get("dtype") == "bfloat16" else array
    return value
