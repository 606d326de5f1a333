"""The header of one GGUF file, by a parser that trusts nothing in it: keys, tensors, and where the data begin.

Arrays are not read but stepped over, so that a vocabulary of any size costs milliseconds.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; the limits are those of ggml's own reader.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import numpy as np

from bigvocab.errors import FormatError
from bigvocab.formats.gguf_types import TYPES, type_name
from bigvocab.formats.magic import GGUF, GGUF_SWAPPED, LONGEST, kind_of
from bigvocab.storage.mapped import MappedFile
from bigvocab.storage.paths import LFS_ADVICE

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
_NUMBERS = {code: struct.Struct("<" + letter) for code, letter in _SCALARS.items()}
_LENGTH = struct.Struct("<Q")
_MOST = 2**30  # bytes of a string, elements of an array
_MOST_ENTRIES = 2**16  # keys, and tensors, of a file: models have some hundreds or thousands
_MOST_NAME = 63  # bytes of a tensor's name
_KEPT = 2**20  # bytes of a string that is kept as one
_FEW, _MANY = 2**12, 2**20  # strings that never need a kernel, and that are worth the start of Numba


@dataclass(frozen=True)
class GGUFArray:
    """An array among the keys, left in the file; `dtype` is None for one of strings, as for a very long string."""

    dtype: np.dtype[Any] | None
    count: int
    offset: int


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor: the file it lies in, its type, (rows, columns), and its bytes, None where the type is not known."""

    file: str
    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int | None


class Header(NamedTuple):
    """What one file says."""

    keys: dict[str, Any]
    tensors: list[GGUFTensor]


def is_gguf(file: MappedFile) -> bool:
    """Whether a file begins as GGUF does, in either byte order."""
    return file.buffer[:4] in (GGUF, GGUF_SWAPPED)


def read_header(file: MappedFile) -> Header:
    """Keys and tensors of one file."""
    return _Parser(file).parse()


class _Parser:
    """A place in the header of a file, and what lies after it."""

    def __init__(self, file: MappedFile) -> None:
        self.file, self.at = file, 0

    def parse(self) -> Header:
        self._check_start()
        tensors = self._count("tensors", 24)
        keys = self._count("keys", 13)
        found: dict[str, Any] = {}
        for i in range(keys):
            key = self._text(f"key {i}", _MOST)
            if key in found:
                self._fail(f"the key {key!r:.200} appears twice")
            found[key] = self._value(key)
        alignment = found.get("general.alignment", 32)
        if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
            self._fail(f"general.alignment is {alignment!r:.80}, expected a power of two")
        entries = [self._tensor(i) for i in range(tensors)]
        return Header(found, self._placed(entries, -(-self.at // alignment) * alignment, alignment))

    def _fail(self, what: str) -> NoReturn:
        raise FormatError(f"{self.file.shown}: {what}")

    def _take(self, count: int, what: str) -> int:
        """Where the next `count` bytes begin, all of them in the file."""
        start, end = self.at, self.at + count
        if end > self.file.size:
            self._fail(f"truncated: {what} ends at byte {end}, the file has {self.file.size}")
        self.at = end
        return start

    def _number(self, code: int, what: str) -> Any:
        kind = _NUMBERS[code]
        return kind.unpack_from(self.file.buffer, self._take(kind.size, what))[0]

    def _check_start(self) -> None:
        start = self.file.buffer[:4]
        if start == GGUF_SWAPPED:
            self._fail("a big-endian GGUF file, expected a little-endian one: convert it anew")
        if start != GGUF and GGUF.startswith(start):
            self._fail(f"truncated: has {self.file.size} bytes, expected a header of at least 24")
        if start != GGUF:
            pointer = f": {LFS_ADVICE}" if kind_of(self.file.buffer[:LONGEST]) == "git-lfs" else ""
            self._fail(f"begins with {start!r}, expected {GGUF!r}{pointer}")
        self.at = 4
        version = self._number(4, "the version")
        if version not in (2, 3):
            if version and not version & 0xFFFF:
                self._fail("a big-endian GGUF file, expected a little-endian one: convert it anew")
            old = ": convert the model anew" if version == 1 else ""
            self._fail(f"is GGUF version {version}, expected 2 or 3{old}")

    def _count(self, what: str, least: int) -> int:
        """A number of entries of at least so many bytes each."""
        count: int = self._number(10, f"the number of {what}")
        most = min(_MOST_ENTRIES, (self.file.size - self.at) // least)
        if count > most:
            self._fail(f"promises {count} {what}, expected at most {most} in {self.file.size} bytes")
        return count

    def _text(self, what: str, most: int) -> str:
        """A string that names something."""
        length = self._number(10, f"the length of {what}")
        if length > min(most, _KEPT):
            self._fail(f"{what} has {length} bytes, expected at most {min(most, _KEPT)}")
        start = self._take(length, what)
        try:
            return self.file.buffer[start : self.at].decode("utf-8")
        except UnicodeDecodeError:
            self._fail(f"{what} is not valid UTF-8")

    def _value(self, key: str) -> Any:
        what = f"the value of {key!r:.200}"
        code = self._number(4, what)
        if code == _STRING:
            length = self._number(10, what)
            if length > _MOST:
                self._fail(f"{what} is a string of {length} bytes, expected at most {_MOST}")
            start = self._take(length, what)
            if length > _KEPT:
                return GGUFArray(None, length, start)
            return self.file.buffer[start : self.at].decode("utf-8", "replace")
        if code == _ARRAY:
            return self._array(what)
        if code not in _NUMBERS:
            self._fail(f"{what} has type {code}, expected 0 to 12")
        value = self._number(code, what)
        return bool(value) if code == _BOOL else value

    def _array(self, what: str) -> GGUFArray:
        """Step over an array."""
        code, count = self._number(4, what), self._number(10, what)
        if count > _MOST:
            self._fail(f"{what} is an array of {count} elements, expected at most {_MOST}")
        if code == _STRING:
            start = self.at
            self._skip_strings(count, what)
            return GGUFArray(None, count, start)
        if code not in _NUMBERS:
            self._fail(f"{what} is an array of type {code}, expected numbers, booleans or strings")
        dtype = np.dtype(f"<{_SCALARS[code]}")
        return GGUFArray(dtype, count, self._take(count * dtype.itemsize, what))

    def _skip_strings(self, count: int, what: str) -> None:
        size = self.file.size
        if 8 * count > size - self.at:
            self._fail(f"truncated: {what} holds {count} strings, the file has {size} bytes")
        if count > _MANY or (count > _FEW and "numba" in sys.modules):  # 3 ns a string, else 90 ns
            from bigvocab.kernels.strings import end_of_strings

            end = int(end_of_strings(np.frombuffer(self.file.buffer, np.uint8), self.at, count))
        else:
            at, length_at, buffer = self.at, _LENGTH.unpack_from, self.file.buffer
            try:
                for _ in range(count):
                    at += 8 + length_at(buffer, at)[0]
            except (struct.error, OverflowError):
                at = size + 1
            end = at if at <= size else -1
        if end < 0:
            self._fail(f"truncated: a string of {what} ends past the end of the file, at {size} bytes")
        self.at = end

    def _tensor(self, number: int) -> tuple[str, int, tuple[int, ...], int]:
        """Name, type, shape and offset in the data of the next tensor."""
        name = self._text(f"the name of tensor {number}", _MOST_NAME)
        what = f"tensor {name!r}"
        dims = self._number(4, what)
        if not 1 <= dims <= 4:
            self._fail(f"{what} has {dims} dimensions, expected 1 to 4")
        shape = tuple(self._number(10, what) for _ in range(dims))[::-1]  # the innermost comes first
        if not all(shape):
            self._fail(f"{what} has shape {shape}, expected sizes of at least 1")
        return name, self._number(4, what), shape, self._number(10, what)

    def _placed(self, entries: list[tuple[str, int, tuple[int, ...], int]], start: int, alignment: int) -> list[Any]:
        """The tensors of a file whose data begin at `start`: all in the file, none twice, none over another."""
        tensors: dict[str, GGUFTensor] = {}
        for name, code, shape, offset in entries:
            if name in tensors:
                self._fail(f"tensor {name!r} appears twice")
            if offset % alignment:
                self._fail(f"tensor {name!r} begins at byte {offset} of the data, expected a multiple of {alignment}")
            nbytes = self._num_bytes(name, code, shape)
            end = start + offset + (nbytes or 0)
            if end > self.file.size:
                self._fail(f"truncated: tensor {name!r} ends at byte {end}, the file has {self.file.size}")
            tensors[name] = GGUFTensor(self.file.path, name, type_name(code), shape, start + offset, nbytes)
        placed = sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.nbytes or 0))
        for first, second in zip(placed, placed[1:], strict=False):
            if first.offset + (first.nbytes or 1) > second.offset:
                self._fail(f"tensors {first.name!r} and {second.name!r} overlap at byte {second.offset}")
        return list(tensors.values())

    def _num_bytes(self, name: str, code: int, shape: tuple[int, ...]) -> int | None:
        if code not in TYPES:
            return None
        blocks = TYPES[code]
        if shape[-1] % blocks.values:
            self._fail(
                f"tensor {name!r} has rows of {shape[-1]} numbers, expected a multiple of {blocks.values} "
                f"for {blocks.name}"
            )
        total = blocks.row_bytes(shape[-1])
        for size in shape[:-1]:
            total *= size
        return total
