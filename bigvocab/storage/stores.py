"""Object stores and web servers as one kind of thing: sizes, ranges of bytes, listings, whole uploads."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from bigvocab.storage import uris
from bigvocab.storage.arrow_store import ArrowStore
from bigvocab.storage.attempts import Final, attempt
from bigvocab.storage.file_identity import RemoteIdentity
from bigvocab.storage.web import HttpStore


class Store(Protocol):
    """One object, or a folder of them."""

    def identity(self) -> RemoteIdentity:
        """Its size, time of change and ETag; one request."""

    def read(self, start: int, stop: int, expected: RemoteIdentity) -> bytes:
        """Bytes `start` to `stop`, or fewer where the answer was short; one request."""

    def list(self, *, recursive: bool = False) -> list[str]:
        """URIs of the objects in this folder: directly, or at any depth."""

    def write(self, source: Path) -> None:
        """Make the content of a file the object, whole or not at all."""

    def check_writable(self) -> None:
        """Raise where it is known beforehand that nothing can be written."""

    def delete(self) -> None:
        """Remove the object."""


def store_of(uri: str) -> Store:
    """The store that a URI is of."""
    return HttpStore(uri) if uris.on_web(uri) else ArrowStore(uri)


def is_there(uri: str) -> bool:
    """Whether there is such an object; no where that may not be looked at."""

    def look() -> bool:
        try:
            store_of(uri).identity()
        except Final:
            return False
        return True

    found: bool = attempt(uri, look)
    return found


def object_bytes(uri: str) -> bytes:
    """All of a small object."""

    def request() -> bytes:
        store = store_of(uri)
        found = store.identity()
        content = store.read(0, found.size, found) if found.size else b""
        if len(content) < found.size:
            raise OSError(f"{len(content)} bytes came of {found.size}")
        return content

    content: bytes = attempt(uri, request)
    return content
