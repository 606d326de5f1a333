"""NumPy's .npy, versions 1 to 3, by the header alone: nothing is ever unpickled."""

from __future__ import annotations

import io
import re
import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy

from bigvocab.errors import FormatError
from bigvocab.formats.layout import Layout, Stored, check_room, check_shape, num_bytes, refuse_second, resolve_dtype
from bigvocab.formats.magic import NPY
from bigvocab.formats.stored_array import StoredArray
from bigvocab.storage.mapped import MappedFile

_HEAD = 2**17  # longer than any header NumPy agrees to parse
_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0, (3, 0): npy.read_array_header_2_0}
_SPELT = re.compile(rb"\b(?:np|numpy)\.u?int(?:8|16|32|64|p)?\((\d{1,20})\)")


class NpyHeader(NamedTuple):
    """What a header says, and where the data begin."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    begin: int
    swapped_void: bool


def reason_of(error: Exception) -> str:
    """One line of what NumPy, or Python's parser, says of a header; without addresses of objects in memory."""
    placed = len(error.args) == 2 and isinstance(error.args[1], tuple)  # in what was parsed
    text = str(error.args[0] if placed else error) or type(error).__name__
    return re.sub(r"(: )?<[^<>]* object at 0x[0-9a-f]+>", "", text[:300].splitlines()[0])


def read_npy_header(head: bytes) -> NpyHeader:
    """The header at the start of `head`, the first bytes of a file.

    A shape may be spelt `(np.int64(4), 3)`: NumPy 2 writes, but does not read it.

    Raises:
        Exception: the parser evaluates the header as a Python literal, so any error may come of lies.

    Source: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
    """
    plain = _SPELT.sub(lambda found: found[1].ljust(len(found[0])), head[: npy.MAGIC_LEN + 4 + 10_000])
    stream = io.BytesIO(plain + head[len(plain) :])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about headers written by Python 2, and odd escapes in lying ones
        version = npy.read_magic(stream)
        if version not in _READERS:
            raise ValueError(f"version {version} of the format is unknown")
        if version == (3, 0):
            plain[12 : 12 + int.from_bytes(plain[8:12], "little")].decode(
                "utf-8"
            )  # NumPy's public reader takes any byte
        shape, fortran, dtype = _READERS[version](stream)
    # np.dtype(">V2") forgets the order, and that is how a big-endian machine writes bfloat16
    swapped = b"'>V2'" in head[: stream.tell()]
    return NpyHeader(shape, bool(fortran), dtype, stream.tell(), swapped)


def npy_array(file: MappedFile, shown: str, begin: int, end: int) -> StoredArray:
    """The .npy that takes up bytes `begin` to `end` of a file; bytes after the array are left alone, as NumPy does."""
    try:
        header = read_npy_header(file.buffer[begin : min(end, begin + _HEAD)])
    except Exception as error:
        raise FormatError(f"{shown}: not a valid .npy header: {reason_of(error)}") from error
    if header.dtype.hasobject:
        raise FormatError(f"{shown}: holds pickled Python objects, which are refused: unpickling runs code")
    if any(type(size) is not int or size < 0 for size in header.shape):
        raise FormatError(f"{shown}: the header gives shape {header.shape!r:.200}, expected non-negative integers")
    needed = num_bytes(header.shape, header.dtype.itemsize)
    check_room(shown, end - begin, header.begin, needed)
    after = begin + header.begin + needed
    refuse_second(shown, file.buffer[after : min(end, after + 6)], after, NPY, "array")
    return StoredArray(
        shown, header.shape, header.dtype, begin + header.begin, header.fortran, swapped_void=header.swapped_void
    )


def npy_layout(file: MappedFile, wanted: Stored | None) -> Layout:
    """Layout of a .npy file in C or Fortran order."""
    try:
        header = read_npy_header(file.buffer[:_HEAD])
    except Exception as error:
        raise FormatError(f"{file.shown}: not a valid .npy header: {reason_of(error)}") from error
    if not header.dtype.hasobject:  # what is wrong with type or shape comes before what is wrong with the size
        resolve_dtype(file.shown, header.dtype, wanted, swapped_void=header.swapped_void)
        check_shape(file.shown, header.shape)
    return npy_array(file, file.shown, 0, file.size).layout(wanted)
