"""Folders that say themselves what is in them: those of Hugging Face `datasets`, and partitions named key=value."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from bigvocab.errors import BigvocabError, FormatError

_MOST_STATE = 16 << 20
_LONGEST_NAME = 255
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


def dataset_files(folder: str) -> list[str] | None:
    """The Arrow files of a folder that `Dataset.save_to_disk` wrote, in its order; None for any other folder.

    Raises:
        BigvocabError: it holds several splits. FormatError: a list of files that is not one, or rows picked by indices.
    """

    def has(name: str) -> bool:
        return os.path.isfile(os.path.join(folder, name))

    names = dataset_names(folder, has, lambda name: _read_json(os.path.join(folder, name)))
    return None if names is None else [os.path.join(folder, name) for name in names]


def dataset_names(folder: str, has: Callable[[str], bool], read: Callable[[str], dict[str, Any]]) -> list[str] | None:
    """As `dataset_files`, names alone, of a folder anywhere.

    Args:
        folder: its name in messages.
        has: whether a file is in it.
        read: the JSON object in a file of it.
    """
    if has("dataset_dict.json"):
        splits = read("dataset_dict.json").get("splits")
        splits = [name for name in splits if isinstance(name, str)] if isinstance(splits, list) else []
        listed = ", ".join(os.path.join(folder, name)[:200] for name in splits[:20]) or "none is listed"
        raise BigvocabError(f"{folder}: a DatasetDict of several splits, name the folder of one: {listed}")
    path = os.path.join(folder, "state.json")
    if not has("state.json"):
        return None
    state = read("state.json")
    if "_data_files" not in state:
        return None
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise FormatError(
            f"{path}: rows are picked by a file of indices; call flatten_indices() and save the dataset again"
        )
    entries = state["_data_files"]
    names: list[Any] = [entry.get("filename") if isinstance(entry, dict) else None for entry in _as_list(entries)]
    if not isinstance(entries, list) or not names:
        raise FormatError(f"{path}: lists no files of data")
    for name in names:
        if not isinstance(name, str) or not is_plain_name(name):
            raise FormatError(f"{path}: lists the file {name!r:.200}, expected the name of one in this folder")
        if not has(name):
            raise FormatError(
                f"{os.path.join(folder, name)}: is missing, though state.json lists it; the copy of the folder is not "
                "complete"
            )
    return names


def is_plain_name(name: str) -> bool:
    """Whether this can be the name of a file in the folder at hand, and of none elsewhere."""
    return 0 < len(name) <= _LONGEST_NAME and not set(name) & {"/", "\\", "\0"} and name not in (".", "..")


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _read_json(path: str) -> dict[str, Any]:
    try:
        if os.path.getsize(path) > _MOST_STATE:
            raise FormatError(f"{path}: has {os.path.getsize(path)} bytes, expected at most {_MOST_STATE}")
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except OSError as error:
        raise BigvocabError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not valid JSON: {str(error)[:200]}") from error
    return parse_json(path, text)


def parse_json(path: str, text: str | bytes) -> dict[str, Any]:
    """The JSON object in the content of a file, which messages call `path`."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not valid JSON: {str(error)[:200]}") from error
    if not isinstance(found, dict):
        raise FormatError(f"{path}: a JSON {type(found).__name__}, expected an object")
    return found


def partitions(path: str) -> dict[str, str | None]:
    """The values that the folders directly above a file give it: {"book": "Ruth"} for book=Ruth/part-0.parquet."""
    found: list[tuple[str, str | None]] = []
    for name in reversed(os.path.abspath(path).split(os.sep)[:-1]):
        match = re.fullmatch(r"([^=]+)=(.*)", name, re.DOTALL)
        if match is None:
            break
        found.append((unquote(match[1]), None if match[2] == _NO_VALUE else unquote(match[2])))
    return dict(reversed(found))


def partitioned_files(folder: str, suffixes: tuple[str, ...]) -> list[str]:
    """Files in folders named key=value below this one, at any depth; none where there are no such folders."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if "=" in name and not name.startswith((".", "_"))]
        if place != folder:
            visible = [name for name in names if not name.startswith((".", "_"))]
            found += [os.path.join(place, name) for name in visible if name.lower().endswith(suffixes)]
    return found
