"""GGUF, the format of llama.cpp: a model's keys and tensors, in one file or in a set `name-00001-of-0000N.gguf`.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigvocab.errors import BigvocabError, FormatError
from bigvocab.formats.gguf_header import GGUFArray, GGUFTensor, Header, read_header
from bigvocab.formats.gguf_types import BY_NAME, PLAIN, READ
from bigvocab.formats.layout import Layout, Stored, check_shape, resolve_dtype
from bigvocab.storage import uris
from bigvocab.storage.mapped import MappedFile
from bigvocab.storage.paths import Source
from bigvocab.storage.places import folder_of, within
from bigvocab.storage.remote import whole_uri
from bigvocab.storage.spool import as_local, copies

_PART = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf", re.DOTALL)
_SIDECARS = {"mmproj": "the encoder of images or sound", "mtp": "the layers that predict further tokens"}
OUTPUT, EMBEDDING = "output.weight", "token_embd.weight"


@dataclass(frozen=True)
class GGUFFile:
    """A model in GGUF: `keys` of the first file, scalars and strings as they are and arrays as `GGUFArray`; tensors of
    all files by name.
    """

    path: str
    keys: dict[str, Any]
    tensors: dict[str, GGUFTensor]
    files: tuple[MappedFile, ...]

    def array(self, key: str) -> np.ndarray[Any, np.dtype[Any]] | None:
        """The numbers of an array among the keys, as a view of the file; None where there is no such array."""
        found = self.keys.get(key)
        if not isinstance(found, GGUFArray) or found.dtype is None:
            return None
        view: np.ndarray[Any, np.dtype[Any]] = np.ndarray(
            (found.count,), found.dtype, self.files[0].buffer, found.offset
        )
        return view


def read_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Read the header of a GGUF file, or of all files of a set of which any one is named.

    Raises:
        FormatError: a file is not what it says (truncated, lying, big-endian, version 1, parts that do not belong
            together).
        BigvocabError: no such file, a missing part, or a sidecar (mmproj, mtp) that has no output layer.
    """
    shown = os.fspath(path)
    _refuse_sidecar(shown)
    first = MappedFile(Source(os.path.abspath(shown), shown, None))
    header = read_header(first)
    count = _number_of_parts(first, header)
    if count == 1:
        return GGUFFile(shown, header.keys, {tensor.name: tensor for tensor in header.tensors}, (first,))
    names = part_names(shown)
    for name in names:
        if not os.path.exists(name):
            raise BigvocabError(f"{shown}: is one of {count} parts, but {name} is not there")
    files, headers = [], []
    for name in names:
        files.append(first if name == shown else MappedFile(Source(os.path.abspath(name), name, None)))
        headers.append(header if name == shown else read_header(files[-1]))
    return GGUFFile(shown, headers[0].keys, _joined(files, headers), tuple(files))


def part_names(name: str) -> list[str]:
    """The names of all files of a set, by that of one of them; of a file that is no part of a set its own.

    >>> part_names("m-00002-of-00002.gguf")
    ['m-00001-of-00002.gguf', 'm-00002-of-00002.gguf']
    """
    named = _PART.fullmatch(name)
    if named is None or not 0 < int(named[2]) <= int(named[3]):
        return [name]
    return [f"{named[1]}-{i:05d}-of-{named[3]}.gguf" for i in range(1, int(named[3]) + 1)]


def _refuse_sidecar(shown: str) -> None:
    for prefix, what in _SIDECARS.items():
        if re.match(rf"{prefix}[-.]", os.path.basename(shown), re.IGNORECASE):
            raise BigvocabError(f"{shown}: holds {what} of a model, expected the model itself")


def _number_of_parts(file: MappedFile, header: Header) -> int:
    """How many files there are, by the file's own word and its name, which must agree."""
    count = header.keys.get("split.count", 0)
    named = _PART.fullmatch(file.shown)
    by_name = int(named[3]) if named else 1
    if type(count) is not int or max(count, 1) != by_name:
        raise FormatError(
            f"{file.shown}: split.count is {count!r:.80}, but by its name it is one of {by_name}, "
            "expected name-00001-of-0000N.gguf for the first of N"
        )
    return by_name


def _joined(files: list[MappedFile], headers: list[Header]) -> dict[str, GGUFTensor]:
    """The tensors of all parts of a set."""
    tensors: dict[str, GGUFTensor] = {}
    for number, (file, header) in enumerate(zip(files, headers, strict=True)):
        place = header.keys.get("split.no"), header.keys.get("split.count")
        if place != (number, len(files)):
            raise FormatError(
                f"{file.shown}: split.no and split.count are {place!r:.80}, expected {(number, len(files))}"
            )
        for tensor in header.tensors:
            if tensor.name in tensors:
                raise FormatError(f"{file.shown}: tensor {tensor.name!r} is in {tensors[tensor.name].file} as well")
            tensors[tensor.name] = tensor
    promised = headers[0].keys.get("split.tensors.count", len(tensors))
    if promised != len(tensors):
        raise FormatError(f"{files[0].shown}: promises {promised!r:.80} tensors in all parts, there are {len(tensors)}")
    return tensors


def output_layer_of(tensors: Any) -> str | None:
    """The name of the output layer: its own tensor, or the embedding where the two are one."""
    return next((name for name in (OUTPUT, EMBEDDING) if name in tensors), None)


def locate(source: Source) -> Source:
    """The file of a set that holds the tensor asked for, by its path or URI; of a single file itself."""
    if not uris.is_remote(source.path):
        if not _PART.fullmatch(source.shown):
            return source
        name, file = _place_of(source.shown, source.selector)
        return Source(file.path, file.shown, name)
    uri = whole_uri(source.path)
    if not _PART.fullmatch(uris.name_of(uri)) or (source.selector and source.selector in _names_in(uri)):
        return source  # no other part is fetched for it
    with as_local_set(uri) as copy:
        name, file = _place_of(copy, source.selector)
    held = within(folder_of(uri), os.path.basename(file.path))
    return Source(held, uris.shown(held), name)


def _names_in(uri: str) -> set[str]:
    """The names of the tensors of one file in a store."""
    with as_local(uri) as copy:
        return {tensor.name for tensor in read_header(MappedFile(Source(copy, copy, None))).tensors}


def _place_of(path: str, selector: str | None) -> tuple[str, MappedFile]:
    """A tensor of a set, and the file that holds it."""
    model = read_gguf(path)
    name = _choose(path, selector, model.tensors)
    return name, next(file for file in model.files if file.path == model.tensors[name].file)


@contextlib.contextmanager
def as_local_set(path: str) -> Iterator[str]:
    """The path of a local copy of an object, of a file of a set with those of all others beside it, or that of a file;
    errors in here call copies by their URIs.
    """
    name = uris.name_of(path)
    if not uris.is_remote(path) or not _PART.fullmatch(name):
        with as_local(path) as local:
            yield local
        return
    folder = folder_of(path)
    place = copies(folder, part_names(name))
    try:
        yield os.path.join(place, name)
    except BigvocabError as error:
        raise error.renamed(place, uris.split_query(uris.shown(folder))[0].rstrip("/")) from error


def _choose(shown: str, selector: str | None, tensors: Any) -> str:
    """The tensor asked for, or the output layer."""
    name = output_layer_of(tensors) if selector is None else selector
    if name is None:
        raise BigvocabError(f"{shown}: has no output layer, expected {OUTPUT} or {EMBEDDING} among its tensors")
    if name not in tensors:
        listed = ", ".join(repr(name) for name in list(tensors)[:20])
        listed += f" and {len(tensors) - 20} more" if len(tensors) > 20 else ""
        raise BigvocabError(f"{shown}: no tensor {name!r:.200}; there are: {listed or 'none'}")
    return name


def gguf_layout(file: MappedFile, wanted: Stored | None) -> Layout:
    """Layout of one tensor of a GGUF file, by default of the output layer."""
    _refuse_sidecar(file.shown)
    tensors = {tensor.name: tensor for tensor in read_header(file).tensors}
    return tensor_layout(file.shown, tensors[_choose(file.shown, file.selector, tensors)], wanted)


def tensor_layout(shown: str, tensor: GGUFTensor, wanted: Stored | None = None) -> Layout:
    """Layout of a tensor; raises FormatError where its type is not one that is read."""
    shown = f"{shown}::{tensor.name}"
    if tensor.type not in READ:
        raise FormatError(f"{shown}: is stored as {tensor.type}, expected one of {', '.join(READ)}")
    shape = check_shape(shown, tensor.shape)
    parts = ((tensor.offset, shape[0]),)
    if tensor.type in PLAIN:
        return Layout(shape, resolve_dtype(shown, PLAIN[tensor.type].dtype, wanted), parts)
    if len(shape) != 2:
        raise FormatError(f"{shown}: has shape {shape} of {tensor.type}, expected 2 dimensions for quantised rows")
    stored = Stored(np.dtype(np.float32), np.dtype(np.uint8))
    if wanted is not None and wanted.dtype != stored.dtype:
        raise BigvocabError(f"{shown}: dtype={wanted.dtype.name} was asked for, but {tensor.type} decodes to float32")
    return Layout(shape, stored, parts, blocks=BY_NAME[tensor.type])
