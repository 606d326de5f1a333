"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bigvocab import arguments
from bigvocab.errors import BigvocabError
from bigvocab.storage import uris

_temporaries: set[Path] = set()  # of files that are being written
_STREAMS = ("/dev/stdin", "/dev/stdout", "/dev/stderr")


def refuse_overwriting(outputs: Mapping[str, Any], inputs: Iterable[Any]) -> None:
    """Raise if an output, given by its name, is one of the files that are read, or another output."""
    taken = {place_of(path): "one of the files that are read" for path in inputs if isinstance(path, str | os.PathLike)}
    for name, path in outputs.items():
        if path is None:
            continue
        if not (text := arguments.path(name, path)) or "\0" in text:
            raise BigvocabError(f"{name}: expected the name of a file, got {text!r}")
        if _is_special(Path(path)):
            continue  # several may go to one terminal
        if (place := place_of(path)) in taken:
            raise BigvocabError(f"{uris.shown(text)}: is {taken[place]}; choose another {name}")
        taken[place] = f"the {name} as well"


def place_of(path: str | os.PathLike[str]) -> Any:
    """What two paths to one file have in common."""
    if uris.is_remote(path):
        text = os.fspath(path)
        return text if uris.on_web(text) else uris.split_query(uris.shown(text))[0]
    path = uris.plain(os.fsdecode(path))
    with contextlib.suppress(OSError):
        found = os.stat(path)
        return found.st_dev, found.st_ino
    return os.path.realpath(path)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, fixed: bool = False) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place at the end, or vanishes after an error.

    A link stays one: the file it leads to is replaced. A pipe or a device, such as /dev/stdout, is written to at the
    end. With `fixed`, for a path that a lock protects, the temporary one has one name, so that what a killed run has
    left is used again.
    """
    if uris.is_remote(path):
        with _uploaded(os.fspath(path)) as temporary:
            yield temporary
        return
    target = Path(uris.plain(os.fsdecode(path)))
    if "\0" in os.fsdecode(path):
        raise BigvocabError(f"expected the name of a file to write, got {os.fsdecode(path)!r}")
    if _is_special(target):
        check_writable(path, kept=fixed)
        with _written_through(target) as temporary:
            yield temporary
        return
    target = _behind_links(target)
    try:
        if fixed:
            name = str(target.parent / f".{target.name}.part")
            handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        else:
            handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise BigvocabError(f"{target}: cannot be written: {error.strerror}") from None
    with _passing(name, target) as temporary:
        if target.is_dir():
            raise BigvocabError(f"{target}: is a folder, expected a file to write")
        yield temporary
        temporary.chmod(_mode(target))
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(target)
        sync_folder(target)


@contextlib.contextmanager
def _uploaded(uri: str) -> Iterator[Path]:
    """A temporary path whose content becomes the object at the end; nothing goes there after an error."""
    from bigvocab.storage.attempts import attempt
    from bigvocab.storage.stores import store_of

    handle, name = tempfile.mkstemp(prefix="bigvocab.", suffix=".part")
    os.close(handle)
    with _passing(name, Path(name)) as temporary:
        yield temporary
        attempt(uri, lambda: store_of(uri).write(temporary), "cannot be written")


@contextlib.contextmanager
def _passing(name: str, target: Path) -> Iterator[Path]:
    """A temporary file on its way to `target`: gone at the end, whatever happens."""
    temporary = Path(name)
    _temporaries.add(temporary)
    try:
        yield temporary
    except OSError as error:
        raise BigvocabError(f"{target}: cannot be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        _temporaries.discard(temporary)


def _is_special(path: Path) -> bool:
    """Whether there is something at `path` that is neither a file nor a folder, or a name of an open file."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    there = os.path.abspath(path)
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or there.startswith(("/dev/std", "/dev/fd/", "/proc/"))


def check_writable(path: str | os.PathLike[str], *, kept: bool = False) -> None:
    """Fail now, not after hours, if `path` cannot be written; what is `kept` while a run goes on must be a file."""
    if uris.is_remote(path):
        from bigvocab.storage.attempts import attempt
        from bigvocab.storage.stores import store_of

        attempt(os.fspath(path), lambda: store_of(os.fspath(path)).check_writable(), "cannot be written")
        return
    path = uris.plain(os.fsdecode(path))
    if _is_special(Path(path)):
        if kept:
            raise BigvocabError(f"{os.fspath(path)}: is a pipe or a device, expected a file that can be replaced")
        return
    target = _behind_links(Path(path))
    shown = os.fspath(path)
    if os.path.isdir(target):  # unlike a Path's, no error for names that are too long or may not be looked at
        raise BigvocabError(f"{shown}: is a folder, expected a file to write")
    if not os.access(target.parent, os.W_OK):
        raise BigvocabError(f"{shown}: cannot be written: expected a file in a folder that exists and can be written")
    if os.path.exists(target) and not os.access(target, os.W_OK):
        raise BigvocabError(f"{shown}: cannot be written: the file there is read-only")


def _behind_links(path: Path) -> Path:
    """The file that a link leads to, there or not; any other path as it is."""
    if not os.path.islink(path):
        return path
    target = Path(os.path.realpath(path))
    if os.path.islink(target):
        raise BigvocabError(f"{path}: cannot be written: a link that leads back to itself")
    return target


def _mode(target: Path) -> int:
    """The rights of the file that is replaced, or of a new one."""
    with contextlib.suppress(FileNotFoundError):
        return stat.S_IMODE(target.stat().st_mode)
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def _descriptor(path: Path) -> int | None:
    """The open file that a path such as /dev/stdout is another name of: it knows how far it was written."""
    there = os.path.abspath(path)
    if there in _STREAMS:
        return _STREAMS.index(there)
    found = re.fullmatch(r"/(?:dev|proc/self)/fd/(\d+)", there)
    return int(found[1]) if found else None


@contextlib.contextmanager
def _written_through(target: Path) -> Iterator[Path]:
    """A temporary path whose content goes to `target` at the end; nothing goes there after an error."""
    handle, name = tempfile.mkstemp(prefix="bigvocab.", suffix=".part")
    os.close(handle)
    with _passing(name, target) as temporary:
        yield temporary
        number = _descriptor(target)
        sink = target.open("ab") if number is None else os.fdopen(os.dup(number), "wb")
        with temporary.open("rb") as source, sink:
            shutil.copyfileobj(source, sink, 1 << 20)


def sync_folder(path: Path) -> None:
    """Make a new name in the folder of `path` outlast a loss of power, where the system lets one say so."""
    with contextlib.suppress(OSError):
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_temporaries() -> None:
    """Remove files that are half-written, when the process is about to die."""
    for path in tuple(_temporaries):
        with contextlib.suppress(OSError):
            path.unlink()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
