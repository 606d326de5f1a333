"""Files of torch.save (.pt, .pth) since PyTorch 1.6, mapped without PyTorch and without running anything in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from bigvocab.errors import BigvocabError, FormatError
from bigvocab.formats.inert_pickle import MOST_BYTES, Tensor, read_pickle
from bigvocab.formats.layout import BFLOAT16, num_bytes
from bigvocab.formats.stored_array import StoredArray
from bigvocab.formats.zip_members import ZipMembers, listed
from bigvocab.storage.mapped import MappedFile

_MOST_VISITED = 100_000
_MOST_DEPTH = 64
_PLAIN = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)} | {"bool"}
_PLAIN |= {"float16", "float32", "float64"}


def pickle_member(archive: ZipMembers) -> str | None:
    """The name of the pickle of a torch.save archive; None where it is another archive."""
    return next((name for name in archive.members if name.rpartition("/")[2] == "data.pkl"), None)


def torch_array(file: MappedFile, archive: ZipMembers) -> StoredArray:
    """The tensor `file.pt::key`, nested keys as `a.b.0`; its key may be left out where there is one.

    Source: https://docs.pytorch.org/docs/stable/notes/serialization.html
    """
    tree, root = _tree(file, archive)
    key, tensor = _choose(file, tree)
    return _stored(f"{file.shown}::{key}" if key else file.shown, tensor, archive, root)


def torch_shapes(file: MappedFile, archive: ZipMembers) -> list[tuple[str, tuple[int, ...], str]]:
    """(key, shape, type) of every tensor, also of those that cannot be mapped."""
    tree, _ = _tree(file, archive)
    return [(key, tensor.shape, tensor.dtype or "no plain type") for key, tensor in _tensors(tree)]


def _tree(file: MappedFile, archive: ZipMembers) -> tuple[Any, str]:
    """What was saved, with records for tensors, and the folder of the archive that it is in."""
    name = pickle_member(archive)
    assert name is not None
    root = name.removesuffix("data.pkl")
    tree = read_pickle(archive.content(name, MOST_BYTES), file.shown)
    order = f"{root}byteorder"
    if order in archive.members and (found := archive.content(order, 100).strip()) != b"little":
        raise FormatError(f"{file.shown}: its byte order is {found!r}, expected little")
    return tree, root


def _tensors(tree: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor with its key, in order; a tree that refers to itself is walked so far and no further."""
    rest, budget = [("", tree, 0)], _MOST_VISITED
    while rest:
        prefix, value, depth = rest.pop()
        if isinstance(value, Tensor):
            yield prefix, value
        elif depth < _MOST_DEPTH:
            dot = f"{prefix}." if prefix else ""
            inner = [(f"{dot}{key}", item, depth + 1) for key, item in islice(_pairs(value), budget)]
            budget -= len(inner)
            rest.extend(reversed(inner))


def _pairs(value: Any) -> Iterable[tuple[Any, Any]]:
    """Keys and items of a dict, a list or a plain tuple; nothing for all else."""
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, list) or type(value) is tuple else ()


def _choose(file: MappedFile, tree: Any) -> tuple[str, Tensor]:
    if file.selector is not None:
        found = _lookup(tree, file.selector, 0)
        if not isinstance(found, Tensor):
            what = "no tensor" if found is None else "a group of tensors, not one,"
            names = listed(key for key, _ in _tensors(tree))
            raise BigvocabError(f"{file.shown}: {what} {file.selector!r}; there are: {names}")
        return file.selector, found
    tensors = list(_tensors(tree))
    if not tensors:
        raise FormatError(f"{file.shown}: holds no tensors")
    if len(tensors) > 1:
        names = listed(key for key, _ in tensors)
        raise BigvocabError(f"{file.shown}: holds {len(tensors)} tensors, name one with file::key: {names}")
    return tensors[0]


def _lookup(value: Any, key: str, depth: int) -> Any:
    """What a key leads to; keys may hold dots themselves, as those of a state dict do."""
    if depth > _MOST_DEPTH:
        return None
    for own, item in _pairs(value):
        text = str(own)
        if key == text:
            return item
        if key.startswith(f"{text}.") and (found := _lookup(item, key[len(text) + 1 :], depth + 1)) is not None:
            return found
    return None


def _stored(shown: str, tensor: Tensor, archive: ZipMembers, root: str) -> StoredArray:
    """Where a tensor lies, once its storage is there and holds all of it."""
    if tensor.fault is not None or tensor.storage is None:
        raise FormatError(f"{shown}: a tensor that is {tensor.fault}, and save it again")
    if tensor.dtype not in _PLAIN and tensor.dtype != "bfloat16":
        raise FormatError(f"{shown}: holds {tensor.dtype}, expected a plain type; convert it first, with its scale")
    dtype = BFLOAT16 if tensor.dtype == "bfloat16" else np.dtype(tensor.dtype).newbyteorder("<")
    member = f"{root}data/{tensor.storage.key}"
    if member not in archive.members:
        raise FormatError(f"{shown}: its storage {member!r:.200} is missing from the archive")
    begin, size = archive.span(member)
    promised = tensor.storage.size * (1 if tensor.storage.dtype is None else dtype.itemsize)
    if size < promised:
        raise FormatError(f"{shown}: truncated: its storage should have {promised} bytes, got {size}")
    fortran = _order(shown, tensor)
    start = tensor.offset * dtype.itemsize
    needed = num_bytes(tensor.shape, dtype.itemsize)
    if start + needed > promised:
        raise FormatError(
            f"{shown}: shape {tensor.shape} at element {tensor.offset} of {tensor.dtype} needs {start + needed} "
            f"bytes, but its storage has {promised}"
        )
    return StoredArray(shown, tensor.shape, dtype, begin + start, fortran)


def _order(shown: str, tensor: Tensor) -> bool:
    """Whether a tensor lies in Fortran order (False: C); an error where it lies in neither."""
    if 0 in tensor.shape:
        return False
    dims = [(size, stride) for size, stride in zip(tensor.shape, tensor.strides, strict=True) if size != 1]
    for fortran in (False, True):
        step, even = 1, True
        for size, stride in dims if fortran else reversed(dims):
            even, step = even and stride == step, step * size
        if even:
            return fortran
    raise FormatError(
        f"{shown}: a view of shape {tensor.shape} with strides {tensor.strides}, whose rows do not lie together; save "
        ".contiguous() of it"
    )
