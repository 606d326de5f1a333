"""Safetensors, by a header parser that trusts nothing in the header: the format's own reader copies what it reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from bigvocab.errors import BigvocabError, FormatError
from bigvocab.formats.layout import BFLOAT16, Layout, Stored, check_shape, num_bytes
from bigvocab.formats.stored_array import StoredArray
from bigvocab.storage.mapped import MappedFile

_DTYPES = {"F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": BFLOAT16}
_INTEGERS = {f"{kind}{bits}": np.dtype(f"<{kind.lower()}{bits // 8}") for kind in "IU" for bits in (8, 16, 32, 64)}
_INTEGERS["BOOL"] = np.dtype("bool")
MOST_HEADER = 100_000_000  # the format's own limit


def safetensors_layout(file: MappedFile, wanted: Stored | None) -> Layout:
    """Layout of one tensor of a .safetensors file; its name may be left out where the file holds one.

    Source: https://huggingface.co/docs/safetensors/index#format
    """
    return _tensor(file, _DTYPES, check_shape).layout(wanted)


def safetensors_array(file: MappedFile) -> StoredArray:
    """One tensor of a .safetensors file, of any plain type."""
    return _tensor(file, _DTYPES | _INTEGERS, _any_shape)


def _any_shape(shown: str, shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, list) or any(type(size) is not int or size < 0 for size in shape):
        raise FormatError(f"{shown}: the header gives shape {shape!r:.200}, expected non-negative integers")
    return tuple(shape)


def _tensor(
    file: MappedFile, dtypes: dict[str, np.dtype[Any]], shape_of: Callable[[str, Any], tuple[int, ...]]
) -> StoredArray:
    header, start = read_header(file)
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    check_offsets(file, entries, file.size - start)
    name = _choose(file, entries)
    shown = f"{file.shown}::{name}"
    code = entries[name].get("dtype")
    if not isinstance(code, str) or code not in dtypes:
        raise FormatError(f"{shown}: holds {code!r:.200}, expected one of {', '.join(dtypes)}")
    shape = shape_of(shown, entries[name].get("shape"))
    begin, end = entries[name]["data_offsets"]
    needed = num_bytes(shape, dtypes[code].itemsize)
    if end - begin != needed:
        raise FormatError(f"{shown}: shape {shape} of {code} needs {needed} bytes, but data_offsets give {end - begin}")
    check_whole(file, entries, file.size - start)
    return StoredArray(shown, shape, dtypes[code], start + begin)


def read_header(file: MappedFile) -> tuple[dict[str, Any], int]:
    """The JSON object at the start, and where the data begin."""
    if file.size < 8:
        raise FormatError(f"{file.shown}: truncated: a .safetensors file begins with 8 bytes, this one has {file.size}")
    length = int.from_bytes(file.buffer[:8], "little")
    if length > MOST_HEADER:
        raise FormatError(f"{file.shown}: a header of {length} bytes is more than .safetensors allows ({MOST_HEADER})")
    if 8 + length > file.size:
        raise FormatError(f"{file.shown}: truncated: the header ends at byte {8 + length}, the file has {file.size}")
    try:
        header = json.loads(file.buffer[8 : 8 + length].decode("utf-8"), object_pairs_hook=_without_twins)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file.shown}: the header is not valid UTF-8 JSON: {str(error)[:300]}") from error
    if not isinstance(header, dict):
        raise FormatError(f"{file.shown}: the header is a JSON {type(header).__name__}, expected an object")
    return header, 8 + length


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Which of two equal keys counts is every parser's own guess, so neither does."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r:.200} appears twice")
    return found


def check_offsets(file: MappedFile, entries: dict[str, Any], room: int) -> None:
    """Every tensor's bytes lie inside the file, and no two tensors share any."""
    spans = []
    for name, entry in entries.items():
        span = entry.get("data_offsets") if isinstance(entry, dict) else None
        if (
            not isinstance(span, list)
            or len(span) != 2
            or any(type(at) is not int or at < 0 for at in span)
            or span[0] > span[1]
        ):
            raise FormatError(
                f"{file.shown}: tensor {name!r:.200} has data_offsets {span!r:.200}, expected [begin, end]"
            )
        if span[1] > room:
            raise FormatError(
                f"{file.shown}: truncated: tensor {name!r:.200} ends at byte {span[1]} of the data, the file has {room}"
            )
        if span[0] < span[1]:
            spans.append((span[0], span[1], name))
    spans.sort()
    for (_, end, first), (begin, _, second) in zip(spans, spans[1:], strict=False):
        if begin < end:
            raise FormatError(
                f"{file.shown}: tensors {first!r:.200} and {second!r:.200} overlap at byte {begin} of the data"
            )


def check_whole(file: MappedFile, entries: dict[str, Any], room: int) -> None:
    """The tensors are all there is, as the format says: bytes that belong to none mean a header that is wrong."""
    covered = sum(end - begin for begin, end in (entry["data_offsets"] for entry in entries.values()))
    if covered != room:
        raise FormatError(f"{file.shown}: its tensors are {covered} bytes, but the file has {room} after the header")


def _choose(file: MappedFile, entries: dict[str, Any]) -> str:
    """The tensor asked for, or the only one."""
    if not entries:
        raise FormatError(f"{file.shown}: holds no tensors")
    listed = ", ".join(repr(name)[:200] for name in list(entries)[:20])
    listed += f" and {len(entries) - 20} more" if len(entries) > 20 else ""
    if file.selector is None:
        if len(entries) > 1:
            raise BigvocabError(f"{file.shown}: holds {len(entries)} tensors, name one with file::tensor: {listed}")
        return next(iter(entries))
    if file.selector not in entries:
        raise BigvocabError(f"{file.shown}: no tensor {file.selector!r}; there are: {listed}")
    return file.selector
