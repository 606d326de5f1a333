"""Objects of stores by pyarrow.fs. Credentials are found as Arrow finds them."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from bigvocab.storage import uris
from bigvocab.storage.attempts import Final
from bigvocab.storage.file_identity import RemoteIdentity

_PIECE = 8 << 20


class ArrowStore:
    """An object by pyarrow.fs."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        base, self._query = uris.split_query(uri)
        self.system, self.path = _file_system(base, self._query)
        self._file: Any = None
        self._lock = threading.Lock()

    def identity(self) -> RemoteIdentity:
        """Its size, time of change and ETag."""
        found = self.system.get_file_info(self.path)
        if not found.is_file:
            raise Final(
                "is a folder, expected an object" if found.type.name == "Directory" else "there is no such object"
            )
        with self.system.open_input_file(self.path) as file:
            return RemoteIdentity(found.size, found.mtime_ns or 0, _etag(file))

    def read(self, start: int, stop: int, expected: RemoteIdentity) -> bytes:
        """Bytes of the object; threads share one open file."""
        with self._lock:
            if self._file is None:
                file = self.system.open_input_file(self.path)
                if file.size() != expected.size:
                    raise Final(f"changed while it was read ({expected.size} bytes before, {file.size()} now)")
                if expected.etag and _etag(file) != expected.etag:
                    raise Final("changed while it was read (another ETag)")
                self._file = file
            file = self._file
        return bytes(file.read_at(stop - start, start))

    def list(self, *, recursive: bool = False) -> list[str]:
        """URIs of the objects in this folder: directly, or at any depth."""
        from pyarrow.fs import FileSelector

        scheme = uris.split_query(self.uri)[0]
        root = scheme.removesuffix("/")
        found = self.system.get_file_info(FileSelector(self.path, allow_not_found=True, recursive=recursive))
        begin = len(self.path.rstrip("/")) + 1
        return [f"{root}/{uris.quoted(info.path[begin:])}{self._query}" for info in found if info.is_file]

    def delete(self) -> None:
        """Remove the object."""
        self.system.delete_file(self.path)

    def check_writable(self) -> None:
        """Look at what is there, which also finds out whether the store answers."""
        if self.system.get_file_info(self.path).type.name == "Directory":
            raise Final("is a folder, expected an object to write")

    def write(self, source: Path) -> None:
        """Upload a file; stores make an object visible when it is whole."""
        with source.open("rb") as file, self.system.open_output_stream(self.path) as sink:
            while piece := file.read(_PIECE):
                sink.write(piece)


def _etag(file: Any) -> str:
    """The ETag of an opened object; "" where the store has none."""
    held = file.metadata() or {}
    return next((_text(value) for name, value in held.items() if _text(name).lower() == "etag"), "")


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


@functools.lru_cache(64)
def _system_of(root: str, query: str) -> Any:
    from pyarrow.fs import FileSystem

    return FileSystem.from_uri(root + query)[0]


def _file_system(base: str, query: str) -> tuple[Any, str]:
    """The file system of a URI, made once for each host and query, and the path in it."""
    parts = urlsplit(base)
    if parts.scheme in ("s3", "gs", "gcs"):
        root = f"{'gs' if parts.scheme == 'gcs' else parts.scheme}://{parts.netloc}"
        bucket = parts.netloc.rpartition("@")[2]
        if parts.scheme == "s3" and "anonymous=true" in query.lower():
            return _anonymous_s3(query), f"{bucket}{unquote(parts.path)}"
        return _system_of(root, query), f"{bucket}{unquote(parts.path)}"
    from pyarrow.fs import FileSystem

    return FileSystem.from_uri(base + query)


@functools.lru_cache(64)
def _anonymous_s3(query: str) -> Any:
    """S3 without signatures, which Arrow has no word for in a URI."""
    from urllib.parse import parse_qsl

    from pyarrow.fs import S3FileSystem

    given = {name: value for name, value in parse_qsl(query[1:]) if name in ("endpoint_override", "scheme", "region")}
    return S3FileSystem(anonymous=True, **given)
