"""Object stores and web servers as one kind of thing: sizes, ranges of bytes, listings, whole uploads.

Credentials are found as Arrow finds them. What can pass by itself (a dropped connection, a short answer, 503) is tried
again; what cannot (403, 404, an object that has changed) is one error of one line, without a key in it.
"""

from __future__ import annotations

import base64
import functools
import http.client
import re
import sys
import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote, urljoin, urlsplit

from bigvocab.errors import BigvocabError, FormatError
from bigvocab.storage import uris

ATTEMPTS, PAUSE = 5, 0.2  # of a request, and seconds before the second one; each pause is twice the one before
_TIMEOUT, _REDIRECTS, _PIECE = 60.0, 5, 8 << 20
_FINAL = re.compile(r"\b(40[0134]|ACCESS_DENIED|NO_SUCH_(KEY|BUCKET)|INVALID_ACCESS_KEY|SIGNATURE)|not found|No such file|forbidden", re.IGNORECASE)  # fmt: skip # noqa: E501


class RemoteIdentity(NamedTuple):
    """What changes when an object is written anew."""

    size: int
    changed_ns: int
    etag: str


class Final(Exception):
    """What another attempt cannot mend."""


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


def attempt(uri: str, request: Callable[[], Any], what: str = "cannot be read") -> Any:
    """The result of a request, tried again while that may help; else one BigvocabError that names the URI."""
    pause = PAUSE
    for left in reversed(range(ATTEMPTS)):
        try:
            return request()
        except BigvocabError:
            raise
        except Final as error:
            reason = str(error)
            break
        except Exception as error:
            if not isinstance(error, _EXPECTED) and not _is_arrow(error):
                raise
            reason = _one_line(error)
            if not left or _FINAL.search(reason):
                break
        time.sleep(pause)
        pause *= 2
    raise BigvocabError(f"{uris.shown(uri)}: {what}: {reason}") from None


_EXPECTED = (OSError, http.client.HTTPException, ValueError, NotImplementedError)


def _is_arrow(error: Exception) -> bool:
    """Whether it is one of Arrow's own, which are not all OSError or ValueError."""
    arrow = sys.modules.get("pyarrow")
    return arrow is not None and isinstance(error, arrow.ArrowException)


def _one_line(error: BaseException) -> str:
    """What an error says, without secrets: those of a URI, and what services add."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0][:400]
    return re.sub(r"(?i)(key|secret|token|signature|credential)(id)?=[^\s&'\"]+", r"\1=...", uris.redacted(text))


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


class HttpStore:
    """A file on a web server that answers ranges."""

    def __init__(self, uri: str) -> None:
        self.uri = self._place = uri
        self._idle: list[tuple[tuple[str, str], http.client.HTTPConnection]] = []
        self._lock = threading.Lock()

    def __del__(self) -> None:
        for _, connection in self._idle:
            connection.close()

    def _request(self, method: str, headers: dict[str, str]) -> tuple[int, Any, bytes]:
        """Status, headers and body; connections stay open for the next request."""
        for _ in range(_REDIRECTS):
            parts = urlsplit(self._place)
            user, _, host = parts.netloc.rpartition("@")
            given = dict(headers)
            if user:
                given["Authorization"] = "Basic " + base64.b64encode(unquote(user).encode()).decode()
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            place = (parts.scheme.lower(), host)
            connection = self._connection(place)
            try:
                connection.request(method, target, headers=given)
                answer = connection.getresponse()
                body = answer.read() if method == "GET" else b""
                if method != "GET":
                    answer.read()
            except BaseException:
                connection.close()
                raise
            if answer.will_close:
                connection.close()
            else:
                with self._lock:
                    self._idle.append((place, connection))
            if answer.status in (301, 302, 303, 307, 308) and answer.headers.get("Location"):
                self._place = urljoin(self._place, answer.headers["Location"])
                continue
            return answer.status, answer.headers, body
        raise Final("is redirected again and again")

    def _connection(self, place: tuple[str, str]) -> http.client.HTTPConnection:
        """One that is idle, or a new one."""
        with self._lock:
            for i, (other, connection) in enumerate(self._idle):
                if other == place:
                    del self._idle[i]
                    return connection
        kind = http.client.HTTPSConnection if place[0] == "https" else http.client.HTTPConnection
        return kind(place[1], timeout=_TIMEOUT)

    def identity(self) -> RemoteIdentity:
        """Its size, time of change and ETag."""
        status, headers, _ = self._request("HEAD", {"Accept-Encoding": "identity"})
        if status == 404 and "." not in uris.name_of(self.uri):
            raise Final("404 Not Found; of a folder on a web server, which lists none, name each file")
        _refuse(status, (200,))
        length = headers.get("Content-Length", "")
        if not length.isdecimal():
            raise Final("the server does not say how long it is")
        changed = 0
        if headers.get("Last-Modified"):
            changed = int(parsedate_to_datetime(headers["Last-Modified"]).timestamp()) * 10**9
        return RemoteIdentity(int(length), changed, headers.get("ETag", ""))

    def read(self, start: int, stop: int, expected: RemoteIdentity) -> bytes:
        """Bytes of the file, of the very version that was opened where the server has strong ETags."""
        headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        if expected.etag and not expected.etag.startswith("W/"):
            headers["If-Match"] = expected.etag
        status, found, body = self._request("GET", headers)
        if status == 412 or found.get("ETag", expected.etag) != expected.etag:
            raise Final("changed while it was read (another ETag)")
        if status == 200:
            raise Final("the server does not answer ranges of bytes")
        _refuse(status, (206,))
        if not found.get("Content-Range", f"bytes {start}-").startswith(f"bytes {start}-"):
            raise OSError("another range than the one asked for")
        return body

    def list(self, *, recursive: bool = False) -> list[str]:
        """Web servers have no listings."""
        raise Final("a web server lists no files; name each of them")

    def delete(self) -> None:
        """Nothing is removed from the web."""
        self.check_writable()

    def check_writable(self) -> None:
        """Nothing is written to the web."""
        raise Final("a web server takes no files; expected a path, or a URI of an object store")

    def write(self, source: Path) -> None:
        """Nothing is written to the web."""
        self.check_writable()


def _refuse(status: int, good: tuple[int, ...]) -> None:
    if status in good:
        return
    text = f"{status} {http.client.responses.get(status, '')}".strip()
    raise OSError(text) if status >= 500 or status in (408, 425, 429) else Final(text)


def short(uri: str, wanted: int, got: int) -> FormatError:
    """The error of answers that stay too short."""
    return FormatError(f"{uris.shown(uri)}: {got} bytes came for a range of {wanted}, {ATTEMPTS} times")
