"""NumPy's .npy, versions 1 to 3, by the header alone: nothing is ever unpickled."""

from __future__ import annotations

import io
import re
import warnings

from numpy.lib import format as npy

from bigvocab.errors import FormatError
from bigvocab.formats.layout import Layout, Stored, check_room, check_shape, num_bytes, refuse_second, resolve_dtype
from bigvocab.storage.mapped import MappedFile

_HEAD = 2**17  # longer than any header NumPy agrees to parse
_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0, (3, 0): npy.read_array_header_2_0}


def reason_of(error: Exception) -> str:
    """One line of what NumPy, or Python's parser, says of a header; without addresses of objects in memory."""
    placed = len(error.args) == 2 and isinstance(error.args[1], tuple)  # in what was parsed
    text = str(error.args[0] if placed else error) or type(error).__name__
    return re.sub(r"(: )?<[^<>]* object at 0x[0-9a-f]+>", "", text[:300].splitlines()[0])


def npy_layout(file: MappedFile, wanted: Stored | None) -> Layout:
    """Layout of a .npy file in C or Fortran order; bytes after the array are left alone, as NumPy does.

    Source: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
    """
    head = file.buffer[:_HEAD]
    stream = io.BytesIO(head)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about headers written by Python 2, and odd escapes in lying ones
            version = npy.read_magic(stream)
            if version not in _READERS:
                raise ValueError(f"version {version} of the format is unknown")
            shape, fortran, dtype = _READERS[version](stream)
    except Exception as error:  # the parser evaluates the header as a Python literal: any error may come of lies
        raise FormatError(f"{file.shown}: not a valid .npy header: {reason_of(error)}") from error
    offset = stream.tell()
    if dtype.hasobject:
        raise FormatError(f"{file.shown}: holds pickled Python objects, which are refused: unpickling runs code")
    # np.dtype(">V2") forgets the order, and that is how a big-endian machine writes bfloat16
    stored = resolve_dtype(file.shown, dtype, wanted, swapped_void=b"'>V2'" in head[:offset])
    shape = check_shape(file.shown, shape)
    check_room(file.shown, file.size, offset, num_bytes(shape, dtype.itemsize))
    end = offset + num_bytes(shape, dtype.itemsize)
    refuse_second(file.shown, file.buffer[end : end + len(npy.MAGIC_PREFIX)], end, npy.MAGIC_PREFIX, "array")
    return Layout(shape, stored, ((offset, shape[0]),), fortran=bool(fortran) and len(shape) == 2)
