"""A layer by the names of files: which files hold a tensor of a checkpoint, and stale copies of it that are none."""

from __future__ import annotations

import glob
import os
from typing import Any

from bigvocab.errors import BigvocabError, FormatError
from bigvocab.heads.checkpoint import INDEX, SHARD, WHOLE, Checkpoint, tensor_names
from bigvocab.matrices.matrix import Matrix
from bigvocab.matrices.opening import as_matrix
from bigvocab.storage import uris
from bigvocab.storage.paths import expand, names_one, split_selector
from bigvocab.storage.places import folder_of, names_in, within
from bigvocab.storage.spool import mirror
from bigvocab.storage.uris import is_remote

_INDEX_SUFFIX = ".safetensors.index.json"


def open_weights(value: Any, name: str = "weights", **options: Any) -> Matrix:
    """A layer from an array, a Matrix or paths. `FOLDER::tensor`, the index of a checkpoint and globs of its shards
    give the one tensor that is meant; files that each hold a range of the classes are one layer; `options` of
    `open_matrix` are for files.

    Raises:
        BigvocabError: a folder of a model without the name of a tensor; one name in several shards.
    """
    if isinstance(value, str | os.PathLike):
        return as_matrix(_placed(os.fsdecode(value)), name, spooled=True, **options)
    if isinstance(value, list | tuple) and value and all(isinstance(item, str | os.PathLike) for item in value):
        placed = [_placed(os.fsdecode(item)) for item in value]
        return as_matrix(
            [path for item in placed for path in (item if isinstance(item, list) else [item])],
            name,
            spooled=True,
            **options,
        )
    return as_matrix(value, name)


def _placed(text: str) -> str | list[str]:
    """The file that holds a tensor, or the files, for a folder, an index or a glob; any other path as it is."""
    place, tensor = split_selector(text)
    if is_remote(place):
        return _in_store(place, tensor) or text
    folder = _checkpoint_folder(place)
    if folder is not None:
        if tensor is None:
            raise BigvocabError(
                f"{text}: is a checkpoint of many tensors; name one, {place}::lm_head.weight, or give its folder as "
                "the model (--model, model=), which finds the layer and the norm"
            )
        return _of_checkpoint(folder, tensor)
    if tensor is None or os.path.isfile(place):
        return text
    files = [source.shown for source in expand(text)]
    if len(files) < 2 or not all(file.lower().endswith(".safetensors") for file in files):
        return text
    return _of_files(text, files, tensor)


def tensor_place(text: str) -> str:
    """`FOLDER::tensor`, `INDEX::tensor` or a glob of shards as `FILE::tensor`, where a checkpoint says which file that
    is; any other path as it is.
    """
    place, tensor = split_selector(text)
    if is_remote(place):
        placed = _in_store(place, tensor) if tensor is not None else None
        return placed if isinstance(placed, str) else text
    if tensor is None or os.path.isfile(place) and not place.endswith(_INDEX_SUFFIX):
        return text
    folder = _checkpoint_folder(place)
    if folder is not None:
        return _of_checkpoint(folder, tensor)
    return _by_index([source.shown for source in expand(text)], tensor) or text


def _in_store(uri: str, tensor: str | None) -> str | list[str] | None:
    """As `_placed` of a folder, an index or a glob in a store, by the headers of its files; None for other URIs."""
    pattern = uris.name_of(uri)
    is_index, has_magic = pattern.endswith(_INDEX_SUFFIX), glob.has_magic(pattern)
    if names_one(uri) and not is_index or tensor is None:
        return None
    base = folder_of(uri) if is_index or has_magic else uri
    if uris.on_web(uri):
        if not is_index:
            return None
    elif not any(name.lower().endswith(".safetensors") for name in names_in(base)):
        return None
    folder = mirror(base, (_INDEX_SUFFIX,))
    inside = os.path.join(folder, pattern) if is_index or has_magic else folder
    try:
        placed = _placed(f"{inside}::{tensor}")
    except BigvocabError as error:
        raise error.renamed(folder, uris.split_query(uris.shown(base))[0].rstrip("/")) from error
    found = [split_selector(one)[0] for one in ([placed] if isinstance(placed, str) else placed)]
    there = [f"{within(base, os.path.basename(one))}::{tensor}" for one in found]
    return there[0] if isinstance(placed, str) else there


def _checkpoint_folder(place: str) -> str | None:
    """The folder of the checkpoint that a path means: itself, or that of the index."""
    if place.endswith(_INDEX_SUFFIX):
        if not os.path.isfile(place):
            raise BigvocabError(f"{place}: no such file")
        return os.path.dirname(place) or os.curdir
    is_one = os.path.isdir(place) and any(os.path.lexists(os.path.join(place, name)) for name in (WHOLE, INDEX))
    return place if is_one else None


def _of_checkpoint(folder: str, tensor: str) -> str:
    checkpoint = Checkpoint(folder)
    if tensor not in checkpoint.files:
        alike = [name for name in checkpoint.files if name.endswith((".weight", ".bias")) and ".layers." not in name]
        listed = ", ".join(map(repr, alike[:12])) or "none that could be a layer"
        raise BigvocabError(f"{folder}: no tensor {tensor!r}; there are: {listed}")
    return str(checkpoint.entry(tensor).place)


def _of_files(text: str, files: list[str], tensor: str) -> str | list[str]:
    """The files of a folder or glob, without an index, that hold a tensor: one, or all as ranges of the classes."""
    holding = [file for file in files if tensor in tensor_names(file)]
    if not holding:
        raise BigvocabError(f"{text}: none of these {len(files)} files holds the tensor {tensor!r}")
    found = [f"{file}::{tensor}" for file in holding]
    if len(holding) == 1:
        return found[0]
    if (listed := _by_index(holding, tensor)) is not None:
        return listed
    shards = all(SHARD.fullmatch(os.path.basename(file)) for file in holding)
    alike = _same_tensor(*found[:2])
    if shards or len(holding) < len(files) or alike:
        why = "which hold the same values" if alike else f"of {len(files)} files, and no index says which counts"
        raise FormatError(
            f"{text}: tensor {tensor!r} is in {holding[0]} and in {holding[1]}, {why}: is one a stale copy? Name the "
            "file that counts, or, where each holds a range of the classes, all of them one by one"
        )
    return found


def _by_index(files: list[str], tensor: str) -> str | None:
    """Where the index beside the files says that the tensor is, if that is one of them."""
    folders = {os.path.dirname(file) for file in files}
    if len(folders) != 1 or not os.path.lexists(os.path.join(folder := folders.pop(), INDEX)):
        return None
    listed = Checkpoint(folder or os.curdir).files.get(tensor)
    return next((f"{file}::{tensor}" for file in files if os.path.basename(file) == listed), None)


def _same_tensor(first: str, second: str) -> bool:
    a, b = as_matrix(first), as_matrix(second)
    if a.shape != b.shape or a.dtype != b.dtype or not len(a):
        return False
    rows = sorted({0, len(a) // 2, len(a) - 1})
    return all(bool((a[row] == b[row]).all()) for row in rows)
