"""The safetensors files of a model folder: which tensors there are, where they lie, and what their headers say."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from bigvocab.errors import BigvocabError, FormatError
from bigvocab.formats.layout import check_shape, num_bytes
from bigvocab.formats.magic import LONGEST, kind_of
from bigvocab.formats.safetensors import MOST_HEADER, check_offsets, check_whole, read_header
from bigvocab.heads.found_model import TensorPlace
from bigvocab.heads.model_config import read_json_object
from bigvocab.storage import uris
from bigvocab.storage.folders import is_plain_name
from bigvocab.storage.mapped import MappedFile
from bigvocab.storage.paths import LFS_ADVICE, Source, natural_key
from bigvocab.storage.spool import filled, with_header

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MOST_INDEX = 256 << 20
FLOATS = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
# What may stand before the names of the body's own tensors; it differs between versions and wrappers.
PREFIXES = (
    "",
    "model.",
    "model.language_model.",
    "language_model.model.",
    "language_model.",
    "transformer.",
    "backbone.",
    "gpt_neox.",
    "model.decoder.",
    "decoder.",
    "rwkv.",
    "biogpt.",
    "model.text_model.",
    "text_model.",
    "thinker.model.",
    "thinker.",
    "language_model.transformer.",
    "language_model.backbone.",
    "llm.model.",
    "llm.",
)
_NOT_THE_BODY = re.compile(
    r"(^|\.)(layers|h|blocks|block)\.\d+\.|mtp|visual|vision|audio|per_layer|lora", re.IGNORECASE
)


class Entry(NamedTuple):
    """What the header of its file says of a tensor; `start` counts from the beginning of the file."""

    place: TensorPlace
    code: str
    shape: tuple[int, ...]
    start: int
    nbytes: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of its elements, one of FLOATS."""
        return FLOATS[self.code]

    def bytes_of(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """A range of its bytes, mapped."""
        path = filled(self.place.file, self.start + start, self.start + stop)
        return np.memmap(path, np.uint8, "r", self.start + start, (stop - start,))


class Checkpoint:
    """The tensors of a model folder by name; a header is read when a tensor of its file is asked for."""

    def __init__(self, folder: str):
        self.folder = folder
        self._headers: dict[str, dict[str, Entry]] = {}
        self.files = self._find_files()  # tensor -> name of the file in the folder

    def _find_files(self) -> dict[str, str]:
        if os.path.lexists(os.path.join(self.folder, WHOLE)):
            return dict.fromkeys(self._header(WHOLE), WHOLE)
        if os.path.lexists(os.path.join(self.folder, INDEX)):
            return _weight_map(os.path.join(self.folder, INDEX))
        try:
            listed = sorted(os.listdir(self.folder), key=natural_key)
        except OSError as error:
            raise BigvocabError(f"{self.folder}: cannot list the folder: {error.strerror}") from error
        shards = [name for name in listed if SHARD.fullmatch(name)]
        if not shards:
            raise BigvocabError(_no_weights(self.folder, listed))
        return self._join(shards)

    def _join(self, shards: list[str]) -> dict[str, str]:
        """The tensors of shards that have lost their index: all shards must be there, and no name twice."""
        total = max(int(name[-17:-12]) for name in shards)
        for number in range(1, total + 1):
            name = f"model-{number:05d}-of-{total:05d}.safetensors"
            if name not in shards:
                raise BigvocabError(
                    f"{self.folder}: the shard {name} is missing, and so is {INDEX}; fetch the model again"
                )
        found: dict[str, str] = {}
        for shard in shards:
            for tensor in self._header(shard):
                if tensor in found:
                    raise FormatError(f"{self.folder}: tensor {tensor!r:.200} is in {found[tensor]} and in {shard}")
                found[tensor] = shard
        return found

    def _header(self, name: str, wanted_for: str = "") -> dict[str, Entry]:
        """What a file of the folder holds."""
        if name not in self._headers:
            path = os.path.join(self.folder, name)
            if wanted_for and not os.path.lexists(path):
                raise BigvocabError(
                    f"{path}: this shard is missing, and tensor {wanted_for!r:.200} is in it; fetch the model again"
                )
            self._headers[name] = _read_entries(path)
        return self._headers[name]

    def entry(self, tensor: str) -> Entry:
        """What the header of its own file says of a tensor."""
        name = self.files[tensor]
        entries = self._header(name, tensor)
        if tensor not in entries:
            raise FormatError(
                f"{os.path.join(self.folder, INDEX)}: says that {tensor!r:.200} is in {name}, "
                "but that file has no such tensor; the index is stale"
            )
        return entries[tensor]

    def copies(self, tensor: str) -> list[str]:
        """Other files of the model whose headers name the tensor too: what an earlier download left, for example."""
        quoted = json.dumps(tensor, ensure_ascii=False).encode()
        shards = [name for name in os.listdir(self.folder) if SHARD.fullmatch(name)]
        others = {*self.files.values(), *shards, WHOLE} - {self.files[tensor]}
        found = [name for name in others if quoted in _header_text(os.path.join(self.folder, name))]
        return sorted((name for name in found if self._holds(name, tensor)), key=natural_key)

    def _holds(self, name: str, tensor: str) -> bool:
        try:
            return tensor in self._header(name)
        except BigvocabError:
            return False  # nothing of a file that is not used is an error

    def find(self, candidates: Iterable[str]) -> str | None:
        """The tensor that the first of some names means, with any of PREFIXES before it; None if there is none.

        Raises FormatError where two tensors could be meant.
        """
        for base in candidates:
            found = [prefix + base for prefix in PREFIXES if prefix + base in self.files]
            found = [name for name in found if not _NOT_THE_BODY.search(name)]
            if len(found) > 1:
                raise FormatError(f"{self.folder}: has both {found[0]!r} and {found[1]!r}, expected one of them")
            if found:
                return found[0]
        return None

    def siblings(self, module: str) -> list[str]:
        """What there is below a module, without its name: `weight`, `bias`, `weight_scale`, ..."""
        prefix = module + "."
        return sorted(name[len(prefix) :] for name in self.files if name.startswith(prefix))

    def modules(self, bases: Iterable[str]) -> list[str]:
        """The modules below which there is any tensor, of those that the names of weights mean, in their order."""
        wanted = [prefix + base.removesuffix(".weight") for base in bases for prefix in PREFIXES]
        parents = {name[:at] for name in self.files for at in _dots(name)}
        return [module for module in wanted if module in parents and not _NOT_THE_BODY.search(module)]


def _dots(name: str) -> list[int]:
    return [at for at, letter in enumerate(name) if letter == "."]


def _weight_map(path: str) -> dict[str, str]:
    """Tensor -> file of an index, whose every file lies in its own folder."""
    index = read_json_object(path, MOST_INDEX)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict):
        raise FormatError(f"{path}: weight_map is a JSON {type(weight_map).__name__}, expected an object")
    for tensor, name in weight_map.items():
        if not isinstance(name, str):
            raise FormatError(
                f"{path}: weight_map gives a JSON {type(name).__name__} for {tensor!r:.200}, "
                "expected the name of a file"
            )
        if not name.endswith(".safetensors") or not is_plain_name(name) or name.startswith("."):
            raise FormatError(
                f"{path}: weight_map gives the file {name!r:.200} for {tensor!r:.200}, "
                "expected a .safetensors file of the same folder"
            )
    return weight_map


def _no_weights(folder: str, listed: list[str]) -> str:
    """What to say of a folder without weights that can be read."""
    expected = f"expected {WHOLE} or {INDEX}"
    if any(name == "adapter_model.safetensors" for name in listed):
        return f"{folder}: holds an adapter without its model; merge it into the model and save that"
    if any(name.startswith("pytorch_model") and name.endswith(".bin") for name in listed):
        return (
            f"{folder}: holds pytorch_model*.bin alone, {expected}; load the model with transformers "
            "and write it anew: model.save_pretrained(FOLDER, safe_serialization=True)"
        )
    if any(name.startswith("consolidated") for name in listed):
        return f"{folder}: holds consolidated files alone, {expected}; fetch those of the same model"
    if any(name.endswith(".gguf") for name in listed):
        return f"{folder}: holds GGUF files alone, {expected}; name the GGUF file itself"
    return f"{folder}: holds no weights, {expected}"


def _read_entries(path: str) -> dict[str, Entry]:
    file = MappedFile(Source(with_header(uris.absolute(path)), path, None))
    if kind_of(file.buffer[:LONGEST]) == "git-lfs":
        raise FormatError(f"{path}: is {LFS_ADVICE}")
    header, start = read_header(file)
    raw = {name: entry for name, entry in header.items() if name != "__metadata__"}
    check_offsets(file, raw, file.size - start)
    check_whole(file, raw, file.size - start)
    entries = {}
    for name, entry in raw.items():
        begin, end = entry["data_offsets"]
        code, shape = entry.get("dtype"), entry.get("shape")
        if not isinstance(code, str):
            raise FormatError(f"{path}: tensor {name!r:.200} has dtype {code!r:.200}, expected the name of one")
        if not isinstance(shape, list) or any(type(size) is not int or size < 0 for size in shape):
            raise FormatError(f"{path}: tensor {name!r:.200} has shape {shape!r:.200}, expected non-negative integers")
        entries[name] = Entry(TensorPlace(path, name), code, tuple(shape), start + begin, end - begin)
    return entries


def _header_text(path: str) -> bytes:
    """What stands where a .safetensors file has its header; of a file in a store, only what was fetched before."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return b""
        with open(path, "rb") as file:
            return file.read(min(int.from_bytes(file.read(8), "little"), MOST_HEADER, status.st_size))
    except OSError:
        return b""


def tensor_names(path: str) -> list[str]:
    """The names of the tensors in a file."""
    return list(_read_entries(path))


def check_floats(entry: Entry, ndim: int) -> Entry:
    """The entry, if it is of a float type, has so many dimensions, and as many bytes as these need."""
    if entry.code not in FLOATS:
        raise FormatError(f"{entry.place}: holds {entry.code!r:.200}, expected one of {', '.join(FLOATS)}")
    shape = check_shape(str(entry.place), entry.shape)
    if len(shape) != ndim:
        raise FormatError(f"{entry.place}: has shape {shape}, expected {ndim} dimensions")
    needed = num_bytes(shape, entry.dtype.itemsize)
    if needed != entry.nbytes:
        raise FormatError(
            f"{entry.place}: shape {shape} of {entry.code} needs {needed} bytes, but data_offsets give {entry.nbytes}"
        )
    return entry
