"""Azure's file systems for URIs with the key of an account, which Arrow no longer takes from a URI."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, unquote

from bigvocab.storage.attempts import Final

_BLOB, _LAKE = ".blob.core.windows.net", ".dfs.core.windows.net"


def keyed_system(netloc: str, query: str) -> tuple[Any, str] | None:
    """The file system of what stands before the path of a URI, and the container it names, if any; None without a key.

    The four forms are Arrow's: account.blob.core.windows.net, container@account.dfs.core.windows.net,
    account@host.domain or account@host:port, and account@container, each with `:key` before the `@`.
    """
    user, _, host = netloc.rpartition("@")
    name, _, key = (unquote(part) for part in user.partition(":"))
    if not key:
        return None
    options = _options(query)
    container = ""
    if host.endswith(_BLOB):
        account = host.removesuffix(_BLOB)
    elif host.endswith(_LAKE):
        account, container = host.removesuffix(_LAKE), name
    else:
        account = name
        if "." in host or ":" in host:
            options = {"blob_storage_authority": host, "dfs_storage_authority": host} | options
        else:
            container = host
    from pyarrow.fs import AzureFileSystem

    return AzureFileSystem(account, account_key=key, **options), container


def _options(query: str) -> dict[str, str]:
    """The options of a file system that a query has."""
    found = {}
    for name, value in parse_qsl(query[1:]):
        if name in ("blob_storage_authority", "dfs_storage_authority"):
            found[name] = value
        elif name == "enable_tls":
            found |= dict.fromkeys(
                ("blob_storage_scheme", "dfs_storage_scheme"), "https" if value in ("true", "1") else "http"
            )
        else:
            raise Final(f"unexpected query parameter beside the key of an account: {name!r}")
    return found
