"""Paths and URIs alike: is it a file, a folder, what is in it, how does it begin."""

from __future__ import annotations

import glob
import os

from bigvocab.errors import BigvocabError
from bigvocab.storage import uris
from bigvocab.storage.attempts import attempt
from bigvocab.storage.mapped import MappedFile
from bigvocab.storage.paths import Source, names_one
from bigvocab.storage.remote import RemoteFile
from bigvocab.storage.stores import store_of


def is_file(path: str) -> bool:
    """Whether a path is one of a file; of a URI, whether it means one object, there or not."""
    return names_one(path) if uris.is_remote(path) else os.path.isfile(path)


def is_folder(path: str) -> bool:
    """Whether a path is one of a folder; of a URI, whether it means one, there or not."""
    if uris.is_remote(path):
        return not names_one(path) and not glob.has_magic(uris.split_query(path)[0])
    return os.path.isdir(path)


def names_in(folder: str) -> list[str]:
    """The names of the files in a folder, and of what else is in it on a disk."""
    if not uris.is_remote(folder):
        return os.listdir(folder)
    place = within(folder, "")
    return [uris.name_of(one) for one in attempt(place, lambda: store_of(place).list(), "cannot be listed")]


def within(folder: str, name: str) -> str:
    """The path, or URI, of a file in a folder."""
    if not uris.is_remote(folder):
        return os.path.join(folder, name)
    before, query = uris.split_query(folder)
    return f"{before.rstrip('/')}/{uris.quoted(name)}{query}"


def folder_of(path: str) -> str:
    """The folder that a file or an object is in."""
    if not uris.is_remote(path):
        return os.path.dirname(path) or os.curdir
    before, query = uris.split_query(path)
    return before.rpartition("/")[0] + query


def first_bytes(path: str, count: int) -> bytes:
    """So many bytes from the beginning of a file or an object, or all that it has."""
    if uris.is_remote(path):
        file = RemoteFile(Source(path, path, None))
        return file.read(0, min(count, file.size)).tobytes()
    try:
        with open(path, "rb") as stream:
            return stream.read(count)
    except OSError as error:
        raise BigvocabError(f"{path}: cannot be read: {error.strerror}") from None


def open_header(path: str, selector: str | None = None) -> MappedFile:
    """A file, or an object, for a parser that looks at few of its bytes."""
    if uris.is_remote(path):
        return RemoteFile(Source(path, uris.shown(path), selector))
    return MappedFile(Source(os.path.abspath(path), path, selector))
