"""What `bigvocab inspect` finds in files: shape, dtype, columns, bytes, and whether a quick sample is finite.

A file may be a matrix, a table of labels, or both (an Arrow file with a FixedSizeList column), so both doors are tried:
`open_matrix` and the readers of labels. What neither opens is an error, in the words of the door that fits the file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from bigvocab import arguments
from bigvocab.comparison.llama_source import llama_path
from bigvocab.errors import BigvocabError, FormatError
from bigvocab.formats import has_arrays, list_archive, read_array
from bigvocab.formats.gguf import as_local_set, read_gguf
from bigvocab.formats.llama_logits import open_llama_logits
from bigvocab.formats.magic import ARROW_STREAM, LONGEST, kind_of
from bigvocab.formats.safetensors import check_offsets, check_whole, read_header
from bigvocab.heads.found_model import FoundModel
from bigvocab.heads.open_model import find_layer
from bigvocab.heads.weight_files import tensor_place
from bigvocab.labels.label_files import open_source
from bigvocab.labels.labels import read_labels
from bigvocab.labels.text_files import text_kind
from bigvocab.matrices.matrix import Matrix
from bigvocab.matrices.opening import open_matrix
from bigvocab.matrices.parts import Array
from bigvocab.matrices.sequences import open_rows
from bigvocab.storage import uris
from bigvocab.storage.mapped import MappedFile
from bigvocab.storage.paths import SUFFIXES, expand, natural_key, split_selector
from bigvocab.storage.places import first_bytes, is_file, is_folder, names_in, open_header, within
from bigvocab.storage.stores import is_there

_SAMPLE_ROWS = 64
_SAMPLE_BYTES = 64 << 20
_SAMPLE_CLASSES = 4096  # of a matrix in Fortran order, where a row is spread over as many pages as there are classes
_FORMATS = {"npy": ".npy", "safetensors": ".safetensors", "arrow": "Arrow IPC", "parquet": "Parquet", "gguf": "GGUF"}
_OF_MODEL = ("config.json", "model.safetensors.index.json")  # stand for the folder they are in
_FORMATS |= {"npz": ".npz", "torch": ".pt"}


def inspect(
    path: str | os.PathLike[str], *, shape: Any = None, dtype: str | None = None, offset: int = 0
) -> dict[str, Any]:
    """What a file, glob or folder holds: format, shape, dtype, rows, columns, bytes, whether a quick sample is finite.

    Args:
        path: of a matrix, of labels, of a model, or of a folder of these; a folder that is no one of them has `files`,
            a list of such dicts.
        shape: of raw binary; see `open_matrix`.
        dtype: see `open_matrix`.
        offset: see `open_matrix`.

    Raises:
        BigvocabError: what is there cannot be opened; FormatError: it is not what it says.

    >>> import tempfile, numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/x.npy", np.zeros((2, 3), np.float32))
    ...     found = inspect(f"{folder}/x.npy")
    >>> found["shape"], found["dtype"]
    ([2, 3], 'float32')
    """
    text = uris.plain(arguments.path("path", path))
    found = list(inspect_path(text, shape=shape, dtype=dtype, offset=offset))
    if len(found) == 1 and found[0]["path"] == uris.shown(text):
        if "error" in found[0]:
            raise found[0]["error"]
        return found[0]
    return {"path": uris.shown(text), "files": [shown(entry) for entry in found]}


def shown(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry as JSON has it: an error as its message."""
    return entry | ({"error": str(entry["error"])} if "error" in entry else {})


def inspect_path(
    path: str, *, shape: Any = None, dtype: str | None = None, offset: int = 0
) -> Iterator[dict[str, Any]]:
    """What lies at a path or glob, as a dict for JSON; a folder that is no one matrix or table gives one for each file.

    A file that cannot be opened has the key `error`, an exception. The other arguments are those of `open_matrix`.
    """
    path = uris.plain(path)
    try:
        yield {"path": uris.shown(path), **_inspect(path, shape, dtype, offset)}
    except (BigvocabError, TypeError) as error:
        files = [] if shape is not None else _known_files(path)
        if not files or _is_model(path):
            yield {"path": uris.shown(path), "error": error}
        for name in files:
            yield from inspect_path(within(path, name), dtype=dtype, offset=offset)


def _known_files(path: str) -> list[str]:
    """The names of the files of a folder that may be opened each."""
    try:
        names = sorted(names_in(path), key=natural_key) if is_folder(path) else []
    except BigvocabError:
        return []
    files = [name for name in names if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")]
    return [name for name in files if uris.is_remote(path) or not os.path.isdir(os.path.join(path, name))]


def _inspect(path: str, shape: Any, dtype: str | None, offset: int) -> dict[str, Any]:
    if shape is not None:
        return {"format": "raw binary", **_matrix(open_matrix(path, shape=shape, dtype=dtype, offset=offset))}
    if _is_model(path) or _name(path) in _OF_MODEL and is_file(path):
        return {"format": "model folder", **_model(find_layer(path))}
    path = tensor_place(path)
    if (llama := llama_path(path)) is not None:
        return _llama(llama)
    kind, (place, selector) = _kind(path), split_selector(path)
    if kind == "gguf" and selector is None and is_file(place):
        return _gguf(place)
    if kind == "safetensors" and selector is None and is_file(place):
        file = open_header(place)
        if len(tensors := _tensors(file)) > 1:
            return {"format": _FORMATS[kind], "tensors": tensors, "bytes": file.size}
    if kind in ("npz", "torch") and selector is None and is_file(place):
        file = open_header(place)
        listed = list_archive(file)
        if len(listed) > 1:
            tensors = [{"name": name, "shape": list(sizes), "dtype": type_} for name, sizes, type_ in listed]
            return {"format": _FORMATS[kind], "tensors": tensors, "bytes": file.size}
    if kind is None and (text_kind(_name(place)) is not None or _has_partitions(place)):
        return _table(path)
    if kind in ("parquet", "arrow") and selector is not None:
        names = [name for name, _ in open_source(place)[0][0].columns()]
        if selector not in names:
            raise BigvocabError(f"{place}: no column {selector!r}; the columns are: {', '.join(map(repr, names))}")
    if kind == "parquet":
        return _table(path)
    found: dict[str, Any] = {}
    if kind in ("npy", "arrow", "npz", "torch", "safetensors") and not _holds_rows(place, selector):
        try:
            found = _table(path)
        except BigvocabError:
            found = {}  # the other door says why, or opens
    try:
        matrix = open_rows(path, "path", dtype=dtype, offset=offset)
    except BigvocabError:
        if kind == "arrow" and found or found.get("labels", {}).get("kind") in ("id", "list"):
            return found
        raise
    if kind == "npy" or found.get("labels", {}).get("kind") == "dense":
        found = {name: found[name] for name in ("columns",) if name in found and kind == "arrow"}
    return {"format": _FORMATS.get(kind or "", "unknown"), **found, **_matrix(matrix)}


def _has_partitions(place: str) -> bool:
    """Whether a folder holds folders named key=value, whose files are one table."""
    if uris.is_remote(place):
        return is_folder(place) and not names_in(place)
    names = os.listdir(place) if os.path.isdir(place) else []
    return any("=" in name and os.path.isdir(os.path.join(place, name)) for name in names)


def _llama(path: str) -> dict[str, Any]:
    """A llama.cpp logits file."""
    file = open_llama_logits(path)
    size = file.file.size
    return {"format": "llama.cpp logits", "shape": list(file.shape), **file.describe(), "bytes": size}


def _kind(path: str) -> str | None:
    """The format of the first file meant, by its first bytes, else by its name."""
    place = split_selector(path)[0]
    if not is_folder(place):
        place = expand(path)[0].path
        if is_file(place):
            head = first_bytes(place, LONGEST)
            kind = "arrow" if head.startswith(ARROW_STREAM) else kind_of(head)
            if kind in ("arrow", "parquet", "npy", "gguf"):
                return kind
        return SUFFIXES.get(os.path.splitext(_name(place))[1].lower())
    kinds = {SUFFIXES.get(os.path.splitext(name)[1].lower()) for name in names_in(place)} - {None}
    return kinds.pop() if len(kinds) == 1 else None


# ---- models


def _is_model(path: str) -> bool:
    if uris.is_remote(path):
        with contextlib.suppress(BigvocabError):
            if split_selector(path)[1] is not None:
                return False
            if uris.on_web(path):
                return "." not in _name(path) and is_there(within(path, "config.json"))
            return is_folder(path) and "config.json" in names_in(path)
        return False
    return os.path.isdir(path) and os.path.lexists(os.path.join(path, "config.json"))


def _name(path: str) -> str:
    """The last name of a path or a URI."""
    return uris.name_of(path) if uris.is_remote(path) else os.path.basename(path)


def _holds_rows(place: str, selector: str | None) -> bool:
    """Whether an object in a store holds an array that cannot be labels, which would be fetched to look at it."""
    if not uris.is_remote(place) or not is_file(place):
        return False
    file = open_header(place, selector)
    array = read_array(file) if has_arrays(file) else None
    return array is not None and array.dtype.kind not in "iu"


def _model(found: FoundModel) -> dict[str, Any]:
    """The entry of a model; the bytes are those of the files that its layer is in."""
    places = (found.head, found.biases, found.norm, found.norm_biases)
    return {
        "model": found.summary(),
        "bytes": sum(open_header(file).size for file in {place.file for place in places if place is not None}),
    }


def _gguf(place: str) -> dict[str, Any]:
    """Every tensor of a GGUF file, or set, and the model in it."""
    with as_local_set(place) as local:
        file = read_gguf(local)
    tensors = [{"name": t.name, "shape": list(t.shape), "dtype": t.type} for t in file.tensors.values()]
    found = {"format": _FORMATS["gguf"], "tensors": tensors, "bytes": sum(part.size for part in file.files)}
    try:
        return found | {"model": find_layer(place).summary()}
    except BigvocabError as error:  # a file of tensors may be no model
        return found | {"model": {"error": str(error)}}


# ---- matrices


def _matrix(matrix: Matrix) -> dict[str, Any]:
    rows = matrix[0 : min(2, len(matrix))]
    found: dict[str, Any] = {"shape": list(matrix.shape), "dtype": matrix.dtype.name}
    if not matrix.dtype.isnative:
        found["byte_order"] = "swapped"
    if matrix.ndim == 2 and len(rows) > 1 and not rows.flags.c_contiguous:
        found["order"] = "fortran"
    if len(matrix.leading) > 1:
        found["leading"] = list(matrix.leading)
    if (files := matrix.files[0].get("files", len(matrix.files))) > 1:
        found["files"] = files
    found["bytes"] = sum(file["bytes"] for file in matrix.files)
    if len(matrix):
        found["sample"] = _sample(matrix, "order" in found)
    return found


def _sample(matrix: Matrix, fortran: bool) -> dict[str, Any]:
    """A look at the first, middle and last rows."""
    if matrix.ndim == 1:
        blocks = [np.asarray(matrix[: _SAMPLE_BYTES // 8])]
        found: dict[str, Any] = {"elements": len(blocks[0])}
    else:
        blocks = [matrix[start:stop] for start, stop in _spots(len(matrix), matrix.nbytes // len(matrix))]
        if fortran:
            blocks = [block[:, :_SAMPLE_CLASSES] for block in blocks]
        found = {"rows": sum(map(len, blocks))}
        if fortran and matrix.shape[1] > _SAMPLE_CLASSES:
            found["columns"] = _SAMPLE_CLASSES
    counts = {"nan": 0, "plus_inf": 0, "minus_inf": 0}
    low, high = np.inf, -np.inf
    for block in blocks:
        values: Array = block.astype(np.float64 if block.dtype.itemsize == 8 else np.float32)
        counts["nan"] += int(np.count_nonzero(np.isnan(values)))
        counts["plus_inf"] += int(np.count_nonzero(np.isposinf(values)))
        counts["minus_inf"] += int(np.count_nonzero(np.isneginf(values)))
        finite = np.isfinite(values)
        low = min(low, float(values.min(initial=np.inf, where=finite)))
        high = max(high, float(values.max(initial=-np.inf, where=finite)))
    found |= {"finite": not any(counts.values()), **counts}
    return found | ({"min": low, "max": high} if low <= high else {})


def _spots(rows: int, row_bytes: int) -> list[tuple[int, int]]:
    """Ranges of the first, middle and last rows, within the limits of a sample."""
    most = max(1, min(_SAMPLE_ROWS, _SAMPLE_BYTES // max(1, row_bytes)))
    if rows <= most:
        return [(0, rows)]
    if most < 3:
        return [(0, most)]
    part = most // 3
    first, middle = most - 2 * part, (rows - part) // 2
    return [(0, first), (max(first, middle), max(first, middle) + part), (rows - part, rows)]


def _tensors(file: MappedFile) -> list[dict[str, Any]]:
    """Every tensor of a .safetensors file, of any dtype."""
    header, start = read_header(file)
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    check_offsets(file, entries, file.size - start)
    check_whole(file, entries, file.size - start)
    return [
        {"name": name, "shape": entry.get("shape"), "dtype": entry.get("dtype"), "bytes": int(np.diff(span)[0])}
        for name, entry in entries.items()
        for span in [entry["data_offsets"]]
    ]


# ---- tables of labels


def _table(path: str) -> dict[str, Any]:
    parts, _ = open_source(path)
    found: dict[str, Any] = {"format": parts[0].format, "rows": sum(part.num_rows for part in parts)}
    if parts[0].format == ".npy":
        kind = parts[0].schema.field(0).type
        if pa.types.is_fixed_size_list(kind):
            found["shape"] = [found["rows"], kind.list_size]
            kind = kind.value_type
        found["dtype"] = str(kind)
    else:
        found["columns"] = [{"name": name, "type": kind} for name, kind in parts[0].columns()]
    if len(parts) > 1:
        found["files"] = len(parts)
    found["bytes"] = sum(part.num_bytes for part in parts)
    return found | {"labels": _labels(path)}


def _labels(path: str) -> dict[str, Any]:
    """Which column would be the labels, and a look at the first of them."""
    try:
        labels = read_labels(path)
        found: dict[str, Any] = {"column": labels.chosen.label, "kind": labels.kind}
        if labels.kind == "dense":
            return found | {"classes": labels.num_classes}
        batch = next(iter(labels), None)
    except FormatError:
        raise  # a column could not be read; that none could be chosen is no fault of the file
    except BigvocabError as error:
        return {"error": str(error)}
    if batch is None:
        return found
    ids = batch.labels[1] if labels.kind != "id" else batch.labels
    nulls = np.zeros(len(batch), bool) if batch.ignored is None else batch.ignored
    if labels.kind == "id":
        ids = ids[~nulls]
    found |= {"sampled_rows": len(batch), "null": int(np.count_nonzero(nulls))}
    return found | ({"min": int(ids.min()), "max": int(ids.max())} if len(ids) else {})
