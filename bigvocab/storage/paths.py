"""From what a user names to files in order: globs, folders in natural order, and `file::tensor`."""

from __future__ import annotations

import fnmatch
import glob
import itertools
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

from bigvocab.errors import BigvocabError
from bigvocab.storage import uris
from bigvocab.storage.folders import dataset_files, dataset_names, parse_json, partitioned_files

SUFFIXES = {
    ".npy": "npy",
    ".safetensors": "safetensors",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".gguf": "gguf",
    ".npz": "npz",
    ".pt": "torch",
    ".pth": "torch",
}
LFS_ADVICE = "a git-lfs pointer, which stands for the file itself; fetch that with `git lfs pull`"


class Kinds(NamedTuple):
    """Which files of a folder are meant: those of the first group of suffixes that any has; with `partitions`, also
    those in folders named key=value below it.
    """

    groups: tuple[tuple[str, ...], ...]
    partitions: bool = False


MATRICES = Kinds(((".npy", ".safetensors", ".arrow", ".arrows", ".feather", ".ipc"), (".npz", ".pt", ".pth")))
RAW = Kinds(((".bin", ".dat", ".raw"),))


class Source(NamedTuple):
    """One file: its absolute path, what messages call it, and the tensor or column asked for."""

    path: str
    shown: str
    selector: str | None


def natural_key(path: str) -> tuple[Any, ...]:
    """Sort key that puts part-2 before part-10, folder by folder."""
    names = path.split(os.sep)
    return tuple(
        tuple(int(s) if s.isascii() and s.isdigit() else s for s in re.split(r"([0-9]+)", name)) for name in names
    ), path


def split_selector(path: str) -> tuple[str, str | None]:
    """Split `file::name`; a file whose own name holds `::` is found first."""
    if uris.is_remote(path):
        return _split_uri(path)
    path = uris.plain(path)
    if "::" not in path or os.path.exists(path):
        return path, None
    splits = [(path[: found.start()], path[found.end() :]) for found in re.finditer("::", path)]
    file, selector = next((split for split in splits if os.path.exists(split[0])), splits[0])
    if not selector:
        raise BigvocabError(f"{path}: expected the name of a tensor or column after '::'")
    return file, selector


def _split_uri(uri: str) -> tuple[str, str | None]:
    """A URI and the tensor named after `::`, before the query or after it."""
    before, query = uris.split_query(uri)
    query, _, name = query.partition("::")
    if not name:
        before, _, name = before.partition("::")
    if uri.partition("?")[0].endswith("::"):
        raise BigvocabError(f"{uris.shown(uri)}: expected the name of a tensor or column after '::'")
    return before + query, name or None


def names_one(uri: str) -> bool:
    """Whether a URI means one object: no glob, and no folder by its name (which has no suffix, or ends with /)."""
    before, _ = uris.split_query(uri)
    if glob.has_magic(before.rpartition("/")[2]) or _is_tree(before):
        return False
    return uris.on_web(before) or ("." in uris.name_of(uri) and not before.endswith("/"))


def _is_tree(before: str) -> bool:
    """Whether a URI is a glob with a wildcard among its folders."""
    return any("*" in name for name in before.split("/")[3:-1]) and not uris.on_web(before)


def uri_files(uri: str, kinds: Kinds) -> list[str]:
    """The objects that a URI means: one, those of a folder (a name without a suffix, or with / at its end), a glob."""
    before, query = uris.split_query(uri)
    folder, _, pattern = before.rpartition("/")
    if names_one(uri):
        return [uri]
    if not glob.has_magic(pattern):
        folder, pattern = before.rstrip("/"), ""
    from bigvocab.storage.attempts import attempt
    from bigvocab.storage.stores import store_of

    if _is_tree(before):
        return _objects_below(before, query)
    place = f"{folder}/{query}"
    listed: list[str] = attempt(place, lambda: store_of(place).list(), "cannot be listed")
    names = {found: uris.name_of(found) for found in listed}
    if pattern:
        found = [
            one
            for one, name in names.items()
            if fnmatch.fnmatchcase(name, unquote(pattern)) and not _hidden(name, pattern)
        ]
    else:
        if (chosen := _dataset_objects(place, names)) is not None:
            return chosen
        found = _of_kinds(names, kinds)
        if not found and kinds.partitions:
            listed = attempt(place, lambda: store_of(place).list(recursive=True), "cannot be listed")
            found = _of_kinds({one: uris.name_of(one) for one in listed if _in_partitions(one, folder)}, kinds)
        if not found and not listed:
            return [uri]  # opening says what is wrong with it
    if not found:
        looked = (
            f"no object matches {pattern!r}"
            if pattern
            else f"no object with a known suffix: {', '.join(itertools.chain(*kinds.groups))}"
        )
        raise BigvocabError(f"{uris.shown(place)}: {looked}")
    return sorted(found, key=natural_key)


def _objects_below(before: str, query: str) -> list[str]:
    """The objects that a glob means whose folders have wildcards too, `**` of any number of folders among them."""
    from bigvocab.storage.attempts import attempt
    from bigvocab.storage.stores import store_of

    parts = before.split("/")
    fixed = next(at for at, part in enumerate(parts) if at > 2 and "*" in part)
    root, patterns = "/".join(parts[:fixed]), [unquote(part) for part in parts[fixed:]]
    place = f"{root}/{query}"
    listed: list[str] = attempt(place, lambda: store_of(place).list(recursive=True), "cannot be listed")
    found = []
    for one in listed:
        names = [unquote(name) for name in uris.split_query(one)[0][len(root) + 1 :].split("/")]
        if _fits(names, patterns):
            found.append(one)
    if not found:
        raise BigvocabError(f"{uris.shown(place)}: no object matches {'/'.join(patterns)!r}")
    return sorted(found, key=natural_key)


def _fits(names: list[str], patterns: list[str]) -> bool:
    """Whether the names of folders and of an object in them fit the patterns, one by one."""
    if not names or not patterns:
        return not names and not patterns
    if patterns[0] == "**":
        return _fits(names, patterns[1:]) or not _hidden(names[0]) and _fits(names[1:], patterns)
    fits = fnmatch.fnmatchcase(names[0], patterns[0]) and not _hidden(names[0], patterns[0])
    return fits and _fits(names[1:], patterns[1:])


def _of_kinds(names: Mapping[str, str], kinds: Kinds) -> list[str]:
    """Objects with the first group of suffixes that any has, of those of these names."""
    for suffixes in kinds.groups:
        found = [one for one, name in names.items() if name.lower().endswith(suffixes) and not _hidden(name)]
        if found:
            return found
    return []


def _in_partitions(uri: str, folder: str) -> bool:
    """Whether an object is in folders named key=value below this one, as `folders.partitioned_files` has it."""
    between = uris.split_query(uri)[0].removeprefix(folder).strip("/").split("/")[:-1]
    return bool(between) and all("=" in unquote(name) and not name.startswith((".", "_")) for name in between)


def _dataset_objects(place: str, names: Mapping[str, str]) -> list[str] | None:
    """The objects of a folder of `datasets`, in its order; None for any other folder."""
    by_name = {name: one for one, name in names.items()}

    def read(name: str) -> dict[str, Any]:
        from bigvocab.storage.stores import object_bytes

        return parse_json(uris.shown(by_name[name]), object_bytes(by_name[name]))

    chosen = dataset_names(uris.shown(place), by_name.__contains__, read)
    return None if chosen is None else [by_name[name] for name in chosen]


def _hidden(name: str, pattern: str = "") -> bool:
    """Hidden files, and Spark's _SUCCESS and the like, unless the pattern itself begins so."""
    return name.startswith((".", "_")) and not pattern.startswith(name[0])


def check_listing(path: str) -> None:
    """Raise where the folder that a path or pattern begins with is there but may not be listed, as glob does not."""
    while glob.has_magic(path) and not os.path.isdir(path):
        path = os.path.dirname(path)
    try:
        os.scandir(path or os.curdir).close()
    except PermissionError as error:
        raise BigvocabError(f"{path or os.curdir}: cannot list the folder: {error.strerror}") from None
    except OSError:  # it is not there, or no folder
        pass


def _folder(path: str, kinds: Kinds) -> list[str]:
    if (listed := dataset_files(path)) is not None:
        return listed
    try:
        with os.scandir(path) as entries:
            # a link that leads nowhere is kept: opening says so, else its rows would go missing
            names = [e.name for e in entries if not _hidden(e.name) and not os.path.isdir(e.path)]
    except OSError as error:
        raise BigvocabError(f"{path}: cannot list the folder: {error.strerror}") from error
    for suffixes in kinds.groups:
        found = [os.path.join(path, name) for name in names if name.lower().endswith(suffixes)]
        if not found and kinds.partitions:
            found = partitioned_files(path, suffixes)
        if found:
            return sorted(found, key=natural_key)
    known = ", ".join(itertools.chain(*kinds.groups))
    raise BigvocabError(f"{path}: no file with a known suffix in this folder (looked for {known})")


def files_of(path: str, kinds: Kinds) -> list[str]:
    """The files that a path, a glob or a folder means, the last two in natural order."""
    if os.path.isdir(path):
        return _folder(path, kinds)
    if os.path.lexists(path) or not glob.has_magic(path):
        return [path]  # opening says what is wrong with it
    pattern = os.path.basename(path)
    found = [file for file in glob.glob(path, recursive=True) if not os.path.isdir(file)]
    found = [file for file in found if not _hidden(os.path.basename(file), pattern)]
    if not found:
        check_listing(path)
        raise BigvocabError(f"{path}: no file matches this pattern")
    return sorted(found, key=natural_key)


def _as_texts(path: Any) -> Iterator[str]:
    for item in path if isinstance(path, list | tuple) else [path]:
        if not isinstance(item, str | os.PathLike):
            raise TypeError(f"path: expected a str, an os.PathLike or a list of them, got {type(item).__name__}")
        text = os.fsdecode(item)
        if not text or "\0" in text:
            raise BigvocabError(f"path: expected the name of a file, got {text!r}")
        yield text


def expand(path: Any, *, raw: bool = False) -> list[Source]:
    """The files meant by a path, a glob, a folder (both in natural order) or a list of these, in its own order."""
    sources = []
    for text in _as_texts(path):
        place, selector = split_selector(text)
        if uris.is_remote(place):
            found = uri_files(place, RAW if raw else MATRICES)
            sources += [Source(file, uris.shown(file), selector) for file in found]
            continue
        for file in files_of(place, RAW if raw else MATRICES):
            sources.append(Source(os.path.abspath(file), file, selector))
    if not sources:
        raise BigvocabError("path: got an empty list, expected at least one file")
    return sources
