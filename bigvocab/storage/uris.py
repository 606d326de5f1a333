"""What a user may name beside paths: URIs of object stores and of files on the web. Nothing is opened here."""

from __future__ import annotations

import os
import re
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from bigvocab.errors import BigvocabError

_REMOTE = re.compile(r"(s3|gs|gcs|abfs|abfss|hdfs|viewfs|https?)://", re.IGNORECASE)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_FLATTENED = re.compile(r"(s3|gs|gcs|abfss?|hdfs|viewfs|https?):/(?!/)", re.IGNORECASE)
# Of a query, what says where and how, and is no secret.
_SHOWN = {
    "endpoint_override", "scheme", "region", "anonymous", "allow_bucket_creation", "replication", "buffer_size",
    "blob_storage_authority", "blob_storage_scheme", "dfs_storage_authority", "dfs_storage_scheme", "enable_tls",
    "credential_kind", "retry_limit_seconds", "endpoint",
}  # fmt: skip
_LOOSE_SECRET = re.compile(r"[^/@]*:(?!\d+(/|$))[^@]*/[^@]*@")
_IN_TEXT = re.compile(r"((?:s3|gs|gcs|abfss?|hdfs|viewfs|https?)://[^\s'\"<>]*[^\s'\"<>:;,.)\]])", re.IGNORECASE)


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether it is a URI of an object store, of HDFS or of the web.

    >>> is_remote("s3://bucket/logits.npy"), is_remote("logits.npy"), is_remote("file:///logits.npy")
    (True, False, False)
    """
    return isinstance(path, str) and _REMOTE.match(path) is not None


def on_web(path: str) -> bool:
    """Whether it is a URI of a web server, which lists no files."""
    return path[:4].lower() == "http" and is_remote(path)


def plain(path: str) -> str:
    """The path of a file:// URI; anything else as it is.

    Raises:
        BigvocabError: a URI of another kind.

    >>> plain("file:///data/a%20b.npy::x"), plain("a.npy")
    ('/data/a b.npy::x', 'a.npy')
    """
    if is_remote(path):
        return path
    if _is_file(path):
        local = re.sub(r"^file:(//(localhost)?)?(?=/)", "", path, flags=re.IGNORECASE)
        if local.startswith("//") and not path[5:].startswith("////"):
            raise BigvocabError(f"{path}: names a machine, expected file:///folder/file")
        return unquote(local)
    if found := _SCHEME.match(path):
        known = "s3, gs, abfs, hdfs, http, https and file"
        rest = path[found.end() :].rpartition("@")[2].partition("?")[0]
        raise BigvocabError(f"{found[0]}{rest}: got a URI of {found[1]}, expected a path, or a URI of {known}")
    if found := _FLATTENED.match(path):
        raise BigvocabError(f"{found[0]}: got a Path of a URI, which cuts its slashes; expected the URI as text")
    return path


def _is_file(path: str) -> bool:
    return path[:6].lower() == "file:/"


def shown(uri: str) -> str:
    """A URI as messages, reports and states have it: without user, password, keys and signatures.

    >>> shown("s3://key:secret@bucket/a.npy?region=eu&secret_key=x"), shown("https://host/a.npy?sig=abc")
    ('s3://bucket/a.npy?region=eu', 'https://host/a.npy')
    """
    if not is_remote(uri):
        return uri
    scheme, _, rest = uri.partition("://")
    before, mark, query = rest.partition("?")
    if _LOOSE_SECRET.match(before):  # whose / is not written %2F, and so not a part of the host
        return f"{scheme}://{before.rpartition('@')[2]}"
    host, slash, path = before.partition("/")
    user, at, place = host.rpartition("@")
    if at and scheme.lower().startswith("abfs") and (container := user.partition(":")[0]):
        place = f"{container}@{place}"  # which is no user
    elif user == "anonymous" and scheme.lower() in ("gs", "gcs"):  # which is no user either
        place = f"{user}@{place}"
    kept = [pair for pair in parse_qsl(query, keep_blank_values=True) if pair[0] in _SHOWN]
    return f"{scheme}://{place}{slash}{path.partition('#')[0]}" + (f"?{urlencode(kept, safe=':/')}" if kept else "")


def redacted(text: str) -> str:
    """A text with its URIs as they are shown.

    >>> redacted("no https://me:secret@host/a?sig=1: 404")
    'no https://host/a: 404'
    """
    return _IN_TEXT.sub(lambda found: shown(found[1]) if _holds_more(found[1]) else found[1], text)


def _holds_more(uri: str) -> bool:
    """Whether a URI has anything that is not shown."""
    before, _, query = uri.partition("?")
    return "@" in before or any(name not in _SHOWN for name, _ in parse_qsl(query, keep_blank_values=True))


def absolute(path: str | os.PathLike[str]) -> str:
    """The absolute path; a URI as it is."""
    text = os.fsdecode(path)
    return text if is_remote(text) else os.path.abspath(plain(text))


def split_query(uri: str) -> tuple[str, str]:
    """A URI before its query, and the query with its question mark."""
    before, mark, query = uri.partition("?")
    return before, mark + query


def quoted(name: str) -> str:
    """A name, or path, as it may stand in a URI.

    >>> quoted("a b/c=1.npy")
    'a%20b/c=1.npy'
    """
    return quote(name, safe="/=+,~:@!$&'()*;")


def path_of(uri: str) -> str:
    """The path of a URI, as the store knows it."""
    return unquote(urlsplit(split_query(uri)[0]).path)


def name_of(uri: str) -> str:
    """The last name of the path of a URI."""
    return unquote(split_query(uri)[0].rstrip("/").rpartition("/")[2])
