"""Stored members of a zip archive (.npz, .pt), found in a memory map: each is a range of bytes of the file.

The central directory says what there is, the local header of a member where its bytes begin. Neither is believed:
offsets, sizes and names are held against each other and against the file.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from typing import Any, NamedTuple

from bigvocab.errors import BigvocabError, FormatError
from bigvocab.formats.magic import ZIP
from bigvocab.storage.mapped import MappedFile

_END, _END_64, _LOCATOR_64, _CENTRAL, _LOCAL = b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\1\2", ZIP
_MOST_MEMBERS = 1_000_000
_MOST_DIRECTORY = 256 << 20
_UNKNOWN = 0xFFFFFFFF  # the value is in the Zip64 extra field
_METHODS = {8: "deflate", 9: "deflate64", 12: "bzip2", 14: "LZMA", 93: "zstandard", 95: "xz"}


class Member(NamedTuple):
    """One entry of the central directory; `start` is where its local header begins."""

    name: str
    start: int
    size: int
    packed_size: int
    method: int
    flags: int


class ZipMembers:
    """The members of an archive by name; `span` finds the bytes of one.

    Source: APPNOTE.TXT, .ZIP File Format Specification, version 6.3.10, sections 4.3 and 4.5.3.
    """

    def __init__(self, file: MappedFile) -> None:
        self._file, self.shown = file, file.shown
        self.directory, size, count = _find_directory(file)
        members = _read_directory(file, self.directory, size, count)
        self.members = {member.name: member for member in members}
        if len(self.members) < len(members):
            names = [member.name for member in members]
            twin = next(name for name in names if names.count(name) > 1)
            raise FormatError(f"{self.shown}: two members are called {twin!r:.200}")
        self._starts = sorted(member.start for member in members)
        if len(set(self._starts)) < len(members):
            raise FormatError(f"{self.shown}: two members share their bytes")

    def span(self, name: str) -> tuple[int, int]:
        """(first byte, size) of a stored member in the file.

        Raises:
            FormatError: compressed, encrypted, truncated, or a local header that says something else.
        """
        member, buffer = self.members[name], self._file.buffer
        shown = f"{self.shown}: member {name!r:.200}"
        if member.flags & 0x41:
            raise FormatError(f"{shown} is encrypted; write it without a password")
        if member.method != 0:
            method = _METHODS.get(member.method, f"method {member.method}")
            raise FormatError(
                f"{shown} is compressed ({method}), so it cannot be memory-mapped; write it with np.savez (not "
                "np.savez_compressed), or as .npy or .safetensors"
            )
        if member.size != member.packed_size:
            raise FormatError(f"{shown} is stored, but its sizes differ: {member.packed_size} and {member.size}")
        header = buffer[member.start : member.start + 30]
        if len(header) < 30 or header[:4] != _LOCAL:
            raise FormatError(f"{shown}: no local header at byte {member.start}; truncated or corrupt")
        flags, method = struct.unpack("<HH", header[6:10])
        length, extra = struct.unpack("<HH", header[26:30])
        if method != 0 or flags & 0x41:
            raise FormatError(f"{shown}: the local header at byte {member.start} says that it is not stored plainly")
        begin = member.start + 30 + length + extra
        own = buffer[member.start + 30 : member.start + 30 + length]
        if _text(own, flags) != name:
            raise FormatError(f"{shown}: the local header at byte {member.start} is of {_text(own, flags)!r:.200}")
        at = bisect_right(self._starts, member.start)
        room = self._starts[at] if at < len(self._starts) else self.directory
        if begin + member.size > room:
            raise FormatError(
                f"{shown}: truncated, or overlaps the next one: it ends at byte {begin + member.size}, there is room "
                f"up to {room}"
            )
        return begin, member.size

    def content(self, name: str, most: int) -> bytes:
        """The bytes of a stored member of at most `most` bytes."""
        begin, size = self.span(name)
        if size > most:
            raise FormatError(f"{self.shown}: member {name!r:.200} has {size} bytes, expected at most {most}")
        return self._file.buffer[begin : begin + size]


def _text(raw: bytes, flags: int) -> str:
    """A name as UTF-8 where the entry says so, else as code page 437, in which every byte is a letter."""
    return raw.decode("utf-8", "replace") if flags & 0x800 else raw.decode("cp437")


def _find_directory(file: MappedFile) -> tuple[int, int, int]:
    """(offset, size, number of entries) of the central directory, by the record at the end of the file."""
    tail_start = max(0, file.size - 22 - 0xFFFF)
    tail = file.buffer[tail_start : file.size]
    at = tail.rfind(_END)
    while at >= 0 and (len(tail) < at + 22 or at + 22 + struct.unpack("<H", tail[at + 20 : at + 22])[0] != len(tail)):
        at = tail.rfind(_END, 0, at)  # not this one: a comment must reach to the end of the file
    if at < 0:
        raise FormatError(f"{file.shown}: truncated: the end of the zip archive is missing")
    end = tail_start + at
    disk, first_disk, here, count, size, offset = struct.unpack("<HHHHII", tail[at + 4 : at + 20])
    if file.buffer[max(0, end - 20) : max(0, end - 16)] == _LOCATOR_64:
        record = int.from_bytes(file.buffer[end - 12 : end - 4], "little")
        header = file.buffer[record : record + 56] if record <= end - 76 else b""
        if len(header) < 56 or header[:4] != _END_64:
            raise FormatError(f"{file.shown}: the Zip64 record of the archive is not at byte {record}; corrupt")
        disk, first_disk, here, count, size, offset = struct.unpack("<IIQQQQ", header[16:56])
        end = record
    if disk or first_disk or here != count:
        raise FormatError(f"{file.shown}: a zip archive of several disks; expected one file")
    if offset + size != end:
        raise FormatError(
            f"{file.shown}: the directory of the archive should end at byte {end}, got {offset + size}: truncated, or "
            "something was put before the archive"
        )
    if size > _MOST_DIRECTORY or count > _MOST_MEMBERS or count * 46 > size:
        raise FormatError(f"{file.shown}: a directory of {count} members in {size} bytes; corrupt")
    return offset, size, count


def _read_directory(file: MappedFile, offset: int, size: int, count: int) -> list[Member]:
    table, at, members = file.buffer[offset : offset + size], 0, []
    for number in range(count):
        entry = table[at : at + 46]
        if len(entry) < 46 or entry[:4] != _CENTRAL:
            raise FormatError(f"{file.shown}: entry {number} of the archive's directory is corrupt")
        flags, method = struct.unpack("<HH", entry[8:12])
        packed, plain, length, extra, comment, disk = struct.unpack("<IIHHHH", entry[20:36])
        start = int.from_bytes(entry[42:46], "little")
        rest = at + 46 + length
        name = _text(table[at + 46 : rest], flags)
        sizes = _zip64_sizes(table[rest : rest + extra], [plain, packed, start])
        at = rest + extra + comment
        if at > len(table) or sizes is None or disk not in (0, 0xFFFF):
            raise FormatError(f"{file.shown}: entry {number} ({name!r:.200}) of the archive's directory is corrupt")
        plain, packed, start = sizes
        if start + 30 + packed > offset:
            raise FormatError(
                f"{file.shown}: truncated: member {name!r:.200} of {packed} bytes at byte {start} runs into the "
                f"directory at {offset}"
            )
        members.append(Member(name, start, plain, packed, method, flags))
    if at != len(table):
        raise FormatError(f"{file.shown}: the archive's directory has {len(table) - at} bytes after its last entry")
    return members


def _zip64_sizes(extra: bytes, values: list[int]) -> list[int] | None:
    """Sizes and offset, those that do not fit 32 bits from the Zip64 extra field; None where it lacks one."""
    missing = [i for i, value in enumerate(values) if value == _UNKNOWN]
    at = 0
    while missing and at + 4 <= len(extra):
        tag, length = struct.unpack("<HH", extra[at : at + 4])
        if tag == 1:
            field = extra[at + 4 : at + 4 + length]
            if len(field) < 8 * len(missing):
                return None
            for place, i in enumerate(missing):
                values[i] = int.from_bytes(field[8 * place : 8 * place + 8], "little")
            return values
        at += 4 + length
    return None if missing else values


def listed(names: Any) -> str:
    """The first 20 of some names, in words."""
    names = list(names)
    text = ", ".join(repr(name)[:200] for name in names[:20])
    return text + (f" and {len(names) - 20} more" if len(names) > 20 else "") or "none"


def choose(shown: str, names: list[str], selector: str | None, what: str) -> str:
    """The name asked for, or the only one."""
    if selector is None:
        if not names:
            raise FormatError(f"{shown}: holds no {what}")
        if len(names) > 1:
            raise BigvocabError(f"{shown}: holds {len(names)} {what}s, name one with file::name: {listed(names)}")
        return names[0]
    if selector not in names:
        raise BigvocabError(f"{shown}: no {what} {selector!r}; there are: {listed(names)}")
    return selector
