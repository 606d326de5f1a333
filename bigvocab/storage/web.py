"""Files of web servers, by ranges of bytes."""

from __future__ import annotations

import base64
import http.client
import io
import ssl
import threading
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from bigvocab.storage import uris
from bigvocab.storage.attempts import Final
from bigvocab.storage.file_identity import RemoteIdentity

_TIMEOUT, _REDIRECTS = 60.0, 5
_GONE = (400, 401, 403, 404, 410)
_NO_HEAD = (400, 403, 405, 501)  # of servers, or signatures, for GET alone
_CLOSED = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)  # by the server


class _Lines(io.BufferedReader):
    """What a server sends, of which every line must be whole: a connection that ends within the headers ends them."""

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(size)
        if not line.endswith(b"\n") and (size is None or not 0 <= size <= len(line)):
            raise ConnectionResetError("the connection ended within an answer")
        return line


class _Answer(http.client.HTTPResponse):
    def __init__(self, sock: Any, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp: Any = _Lines(self.fp.detach())


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
        """Status, headers and body; connections stay open for the next request. A file that is elsewhere for now is
        asked for there, until that place refuses it: such places have signatures that end.
        """
        moved = self._place != self.uri
        for _ in range(_REDIRECTS):
            parts = urlsplit(self._place)
            user, _, host = parts.netloc.rpartition("@")
            given = dict(headers)
            if user:
                given["Authorization"] = "Basic " + base64.b64encode(unquote(user).encode()).decode()
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            place = (parts.scheme.lower(), host)
            connection, answer = self._answer(place, method, target, given)
            if answer.status == 200 and "Range" in headers:  # all of the file, however large
                connection.close()
                return answer.status, answer.headers, b""
            try:
                body = answer.read()
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
            if moved and answer.status in _GONE:
                self._place, moved = self.uri, False
                continue
            return answer.status, answer.headers, body
        raise Final("is redirected again and again")

    def _answer(
        self, place: tuple[str, str], method: str, target: str, headers: dict[str, str]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """A connection, and an answer whose body is still to be read. Servers close connections that were idle for
        long: one that is found closed before a byte came is replaced, which is no failed attempt.
        """
        while True:
            connection = self._idle_one(place)
            was_idle = connection is not None
            if connection is None:
                kind = http.client.HTTPSConnection if place[0] == "https" else http.client.HTTPConnection
                connection = kind(place[1], timeout=_TIMEOUT)
                connection.response_class = _Answer
            try:
                connection.request(method, target, headers=headers)
                return connection, connection.getresponse()
            except _CLOSED:
                connection.close()
                if not was_idle:
                    raise
            except BaseException:
                connection.close()
                raise

    def _idle_one(self, place: tuple[str, str]) -> http.client.HTTPConnection | None:
        with self._lock:
            for i, (other, connection) in enumerate(self._idle):
                if other == place:
                    del self._idle[i]
                    return connection
        return None

    def identity(self) -> RemoteIdentity:
        """Its size, time of change and ETag."""
        status, headers, _ = self._request("HEAD", {"Accept-Encoding": "identity"})
        length = headers.get("Content-Length", "")
        if status in _NO_HEAD or status == 200 and not length.isdecimal():
            asked, found, _ = self._request("GET", {"Range": "bytes=0-0", "Accept-Encoding": "identity"})
            if asked == 206:
                status, headers, length = 200, found, found.get("Content-Range", "").rpartition("/")[2]
        if status == 404 and "." not in uris.name_of(self.uri):
            raise Final("404 Not Found; of a folder on a web server, which lists none, name each file")
        _refuse(status, (200,))
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
