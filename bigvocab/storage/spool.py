"""Objects of stores as local files: whole, or sparse ones of which only the bytes that are asked for are fetched.

A layer is read again for each block of rows, so it is fetched once, and mapped; of a model's file only the header and
the tensors in use are ever there. All of it goes with the process.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

from bigvocab.errors import BigvocabError
from bigvocab.storage import uris
from bigvocab.storage.attempts import attempt
from bigvocab.storage.file_identity import RemoteIdentity
from bigvocab.storage.folders import is_plain_name
from bigvocab.storage.mapped import MappedFile
from bigvocab.storage.paths import Source
from bigvocab.storage.places import within
from bigvocab.storage.remote import RemoteFile, at_once, whole_uri
from bigvocab.storage.stores import is_there, object_bytes, store_of

_STEP = 256 << 20  # bytes fetched and written at a time
_HEADER, _MOST_HEADER = 1 << 20, 100_000_008
_lock = threading.Lock()
_folder: tempfile.TemporaryDirectory[str] | None = None
_files: dict[str, SparseFile] = {}  # by URI
_by_path: dict[str, SparseFile] = {}  # those of mirrored folders
_SMALL = 256 << 20  # bytes of an object of a mirrored folder that is fetched whole
_TEXTS = (".json", ".txt", ".model")
INDEX = "model.safetensors.index.json"
_OF_MODEL = ("config.json", INDEX, "model.safetensors", "tokenizer.json")


class SparseFile:
    """A local file of the size of an object, with the ranges of bytes that were fetched."""

    def __init__(self, uri: str, path: str, identity: RemoteIdentity | None = None) -> None:
        self.remote, self.path = RemoteFile(Source(uri, uri, None), identity), path
        self._filled: list[tuple[int, int]] = []
        self._lock = threading.Lock()
        with open(path, "wb") as file:
            file.truncate(self.remote.size)

    def fill(self, start: int, stop: int) -> None:
        """Have bytes `start` to `stop` in the file."""
        stop = min(stop, self.remote.size)
        with self._lock:
            if start >= stop or any(first <= start and stop <= last for first, last in self._filled):
                return
            try:
                with open(self.path, "r+b") as file:
                    for at in range(start, stop, _STEP):
                        piece = self.remote.read(at, min(at + _STEP, stop))
                        file.seek(at)
                        file.write(piece.tobytes())
            except OSError as error:
                raise BigvocabError(
                    f"{self.remote.shown}: cannot be kept in {os.path.dirname(self.path)}: {error.strerror}; "
                    "TMPDIR names another folder"
                ) from None
            self._filled.append((start, stop))
        self.remote.check()

    def fill_header(self) -> None:
        """Have what a parser of headers looks at: the beginning; of a .safetensors file all of its header."""
        self.fill(0, _HEADER)
        if self.remote.suffix == ".safetensors" and self.remote.size >= 8:
            with open(self.path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
            self.fill(0, min(8 + length, _MOST_HEADER))


def _home() -> str:
    """The folder of all local copies, which goes with the process."""
    global _folder
    if _folder is None:
        _folder = tempfile.TemporaryDirectory(prefix="bigvocab-", ignore_cleanup_errors=True)
    return _folder.name


def sparse(uri: str, *, newest: bool = False) -> SparseFile:
    """The local file of an object, made at first, with nothing in it; with `newest`, anew if the object has changed."""
    uri = whole_uri(uri)
    with _lock:
        if newest and uri in _files and not _files[uri].remote.is_same():
            del _files[uri]
        if uri not in _files:
            place = tempfile.mkdtemp(dir=_home())
            _files[uri] = SparseFile(uri, os.path.join(place, uris.name_of(uri) or "object"))
        return _files[uri]


def local_copy(path: Any) -> Any:
    """The path of a local copy of an object, all of it; anything but a URI as it is."""
    if not isinstance(path, str | os.PathLike):
        return path
    text = uris.plain(os.fsdecode(path))
    if not uris.is_remote(text):
        return text if isinstance(path, str) else path
    found = sparse(text, newest=True)
    found.fill(0, found.remote.size)
    return found.path


@contextlib.contextmanager
def as_local(path: str | os.PathLike[str]) -> Iterator[str]:
    """The path of a local copy of an object, or that of a file; errors in here call the copy by its URI."""
    local = os.fsdecode(local_copy(path))
    try:
        yield local
    except BigvocabError as error:
        if not uris.is_remote(path):
            raise
        raise error.renamed(local, uris.shown(os.fspath(path))) from error


def copies(base: str, names: list[str]) -> str:
    """A local folder with copies of some objects of a folder of a store, all of each."""
    with _lock:
        place = tempfile.mkdtemp(dir=_home())
    for name in names:
        os.symlink(local_copy(within(base, name)), os.path.join(place, name))
    return place


def mirror(uri: str, fetched: tuple[str, ...] = _TEXTS) -> str:
    """A local folder with the objects of a folder: those with the suffixes of texts whole, of others nothing but what
    `filled` asks for. Of a web server, which lists nothing, the files that the index or the usual names say.
    """
    before, query = uris.split_query(uri)
    base = before.rstrip("/")
    names: list[str] = _on_the_web(base, query) if uris.on_web(base) else _listed(base, query)
    if not names:
        raise BigvocabError(f"{uris.shown(uri)}: no such folder in this store, or an empty one")
    with _lock:
        place = tempfile.mkdtemp(dir=_home())
    for one, found in zip(names, at_once(lambda one: _empty(one, place), names), strict=True):
        if found is None:
            continue
        with _lock:
            held = _files.get(one)
            if held is not None and held.remote.identity == found.remote.identity:
                os.replace(held.path, found.path)
                held.path = found.path
                found = held
            _files[one] = _by_path[found.path] = found
        if found.path.lower().endswith(fetched) and found.remote.size <= _SMALL:
            found.fill(0, found.remote.size)
    return place


def _listed(base: str, query: str) -> list[str]:
    place = f"{base}/{query}"
    found: list[str] = attempt(place, lambda: store_of(place).list(), "cannot be listed")
    return found


def _on_the_web(base: str, query: str) -> list[str]:
    """The files of a model on a web server."""
    found = [f"{base}/{name}{query}" for name in _OF_MODEL if is_there(f"{base}/{name}{query}")]
    names: set[str] = set()
    for one in found:
        if uris.name_of(one) == INDEX:
            with contextlib.suppress(ValueError, AttributeError, TypeError):
                names |= {name for name in json.loads(object_bytes(one))["weight_map"].values() if is_plain_name(name)}
    return found + [f"{base}/{uris.quoted(name)}{query}" for name in sorted(names)]


def _empty(uri: str, place: str) -> SparseFile | None:
    """A sparse file of an object in a folder; None of one that has no bytes, of which an empty file is all."""
    path = os.path.join(place, uris.name_of(uri))
    identity: RemoteIdentity = attempt(uri, lambda: store_of(uri).identity())
    if identity.size:
        return SparseFile(uri, path, identity)
    open(path, "wb").close()
    return None


def filled(path: str, start: int, stop: int, *, newest: bool = False) -> str:
    """The path of the file itself, with these bytes in it, where it is a mirrored one, or the URI of one."""
    found = sparse(path, newest=newest) if uris.is_remote(path) else _by_path.get(path)
    if found is None:
        return path
    found.fill(start, stop)
    return found.path


def with_header(path: str) -> str:
    """As `filled`, of what a parser of headers looks at."""
    found = sparse(path) if uris.is_remote(path) else _by_path.get(path)
    if found is None:
        return path
    found.fill_header()
    return found.path


class SpooledFile(MappedFile):
    """An object as a mapped file: its header at first, all of it, or what `fill` asks for."""

    def __init__(self, source: Source, *, whole: bool) -> None:
        self._sparse = sparse(source.path, newest=True)
        if whole:
            self._sparse.fill(0, self._sparse.remote.size)
        else:
            self._sparse.fill_header()
        remote = self._sparse.remote
        super().__init__(Source(self._sparse.path, remote.shown, source.selector))
        self.path = source.path
        self.identity: RemoteIdentity = remote.identity  # type: ignore[assignment]

    def fill(self, start: int, stop: int) -> None:
        """Have bytes `start` to `stop` in the map."""
        self._sparse.fill(start, stop)  # a map of the file sees what is written to it

    def check(self) -> None:
        """What was fetched is here, and is of one version of the object."""

    def watched(self) -> list[MappedFile]:
        """Nobody else cuts this file short."""
        return []
