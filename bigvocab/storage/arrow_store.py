"""Objects of stores by pyarrow.fs. Credentials are found as Arrow finds them."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from bigvocab.storage import uris
from bigvocab.storage.attempts import Final
from bigvocab.storage.azure import keyed_system
from bigvocab.storage.file_identity import RemoteIdentity

_PIECE, _UNSENT = 8 << 20, 64 << 20  # bytes given to Arrow at a time, and those that it may still have to send
GOOGLE_SECONDS = 15  # that Google's client goes on with a request that fails


class ArrowStore:
    """An object by pyarrow.fs."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        base, self._query = uris.split_query(uri)
        if not urlsplit(base).netloc.rpartition("@")[2] and not base.startswith(("hdfs", "viewfs")):
            raise Final("names no bucket or container")
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
        etag = ""
        if self.system.type_name != "gcs":  # whose time of change is exact, and where opening begins to fetch all
            with self.system.open_input_file(self.path) as file:  # looks again
                if file.size() != found.size:  # S3's client takes an answer that is cut short for all of it
                    raise OSError(f"two answers about its size: {found.size} and {file.size()} bytes")
                etag = _etag(file)
        return RemoteIdentity(found.size, found.mtime_ns or 0, etag)

    def read(self, start: int, stop: int, expected: RemoteIdentity) -> bytes:
        """Bytes of the object; threads share one open file."""
        with self._lock:
            if self._file is None:
                self._file = self._opened(expected)
            file = self._file
        try:
            return bytes(file.read_at(stop - start, start))
        except FileNotFoundError:  # Google's stores answer so for a version that another one has replaced
            raise Final("changed while it was read, or removed") from None

    def _opened(self, expected: RemoteIdentity) -> Any:
        """The object, of the very version that is expected."""
        if self.system.type_name == "abfs":
            self.system.get_file_info(self.path)  # raises without credentials; opening would end the process
        file = self.system.open_input_file(self.path)
        size, etag = file.size(), _etag(file)
        if size != expected.size or expected.etag and etag != expected.etag:
            if self.identity() == expected:
                raise OSError("an answer about its size was cut short")
            if size == expected.size:
                raise Final("changed while it was read (another ETag)")
            raise Final(f"changed while it was read ({expected.size} bytes before, {size} now)")
        # Arrow has begun to fetch all of an object of Google's: have it give that up for the last byte.
        file.seek(expected.size - 1)
        return file

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
        """Look at what is there, which also finds out whether the store answers and has such a bucket."""
        found = self.system.get_file_info(self.path).type.name
        if found == "Directory":
            raise Final("is a folder, expected an object to write")
        if found == "NotFound" and self._lacks_bucket():
            raise Final("there is no such bucket or container")

    def _lacks_bucket(self) -> bool:
        """Whether there is none; no where one may not look, as who writes objects need not be allowed to."""
        bucket = self.path.partition("/")[0]
        try:
            return bool(bucket) and self.system.get_file_info(bucket).type.name == "NotFound"
        except Exception:
            return False

    def write(self, source: Path) -> None:
        """Upload a file. Most stores make an object visible when it is whole. In Azure an empty one takes its place
        at first, so there the file goes to another name beside it, and is copied by the store.
        """
        if self.system.type_name != "abfs":
            self._upload(source, self.path)
            return
        folder, _, name = self.path.rpartition("/")
        beside = f"{folder}/.{name}.{secrets.token_hex(8)}.part"
        try:
            self._upload(source, beside)
            if self.system.get_file_info(beside).size != source.stat().st_size:
                raise OSError("the upload is not whole")
            self.system.copy_file(beside, self.path)
        finally:
            with contextlib.suppress(Exception):
                self.system.delete_file(beside)

    def _upload(self, source: Path, path: str) -> None:
        """Send a file in a thread of its own, where no signal ends it halfway; what ends this one stops it."""
        stop = threading.Event()
        with ThreadPoolExecutor(1, "upload") as thread:
            sent = thread.submit(self._send, source, path, stop)
            try:
                sent.result()
            finally:
                stop.set()

    def _send(self, source: Path, path: str, stop: threading.Event) -> None:
        sink = self.system.open_output_stream(path)
        try:
            with source.open("rb") as file:
                while not stop.is_set():
                    if not (piece := file.read(_PIECE)):
                        sink.close()
                        return
                    sink.write(piece)
                    if not file.tell() % _UNSENT:
                        sink.flush()  # Arrow copies what it is given, and sends it when it can
            _abandon(sink)
        except BaseException:
            _abandon(sink)
            raise


def _abandon(sink: Any) -> None:
    """Never close an output stream, not at the end of the process either: what came so far would be the object."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(sink))


def _etag(file: Any) -> str:
    """The ETag of an opened object; "" where the store has none."""
    held = file.metadata() or {}
    return next((_text(value) for name, value in held.items() if _text(name).lower() == "etag"), "")


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _file_system(base: str, query: str) -> tuple[Any, str]:
    """The file system of a URI, made once for each host and query, and the path in it."""
    parts = urlsplit(base)
    if parts.scheme in ("hdfs", "viewfs"):
        from pyarrow.fs import FileSystem

        return FileSystem.from_uri(base + query)
    system, container = _system_of(parts.scheme, parts.netloc, query)
    return system, f"{container.strip('/')}{unquote(parts.path)}".lstrip("/")


@functools.lru_cache(64)
def _system_of(scheme: str, netloc: str, query: str) -> tuple[Any, str]:
    """The file system of what stands before the path of a URI, and the bucket or container it names, if any."""
    from pyarrow.fs import FileSystem

    if scheme == "s3" and "anonymous=true" in query.lower():
        return _anonymous_s3(query), netloc.rpartition("@")[2]
    if scheme.startswith("abfs") and (found := keyed_system(netloc, query)):
        return found
    if scheme in ("gs", "gcs"):
        scheme = "gs"
        if "retry_limit_seconds=" not in query:  # which is a quarter of an hour by default, of each of our attempts
            query += f"{'&' if query else '?'}retry_limit_seconds={GOOGLE_SECONDS}"
    found = FileSystem.from_uri(f"{scheme}://{netloc}{query}")
    return found


def _anonymous_s3(query: str) -> Any:
    """S3 without signatures, which Arrow has no word for in a URI."""
    from pyarrow.fs import S3FileSystem

    given = {name: value for name, value in parse_qsl(query[1:]) if name in ("endpoint_override", "scheme", "region")}
    return S3FileSystem(anonymous=True, **given)
