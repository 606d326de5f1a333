"""What a file holds and where: which parser reads a file, by its suffix and first bytes.

Every parser returns a `Layout`: shape, dtype, order, and the byte offsets of the rows. The data are looked at by
`bigvocab.matrix` alone, through a memory map, so a parser never holds more than a header.
"""

from __future__ import annotations

from bigvocab.errors import BigvocabError, FormatError
from bigvocab.formats.arrow import arrow_layout
from bigvocab.formats.gguf import gguf_layout
from bigvocab.formats.layout import Layout, Stored
from bigvocab.formats.npy import npy_layout
from bigvocab.formats.safetensors import safetensors_layout
from bigvocab.storage.mapped import MappedFile
from bigvocab.storage.paths import SUFFIXES

_MAPPABLE = ".npy, .safetensors, Arrow IPC (.arrow, .ipc, .feather) or raw binary"
_MAGIC = {
    b"\x93NUMPY": "npy",
    b"ARROW1": "arrow",
    b"PAR1": "parquet",
    b"PK\x03\x04": "zip",
    b"FEA1": "feather",
    b"GGUF": "gguf",
    b"FUGG": "gguf",
}
_REFUSED = {
    "parquet": f"Parquet is compressed in pages and cannot be memory-mapped; write it as {_MAPPABLE}",
    "zip": f"a zip archive (.npz, .pt) cannot be memory-mapped; write its array as {_MAPPABLE}",
    "feather": "Feather version 1 cannot hold a matrix; write version 2 (pyarrow.feather.write_feather), uncompressed",
}


def _magic(file: MappedFile) -> str | None:
    """The kind of a file as its first bytes give it away."""
    if file.suffix == ".safetensors" and file.buffer[8:9] == b"{":
        return "safetensors"
    return next((kind for start, kind in _MAGIC.items() if file.buffer[: len(start)] == start), None)


def read_layout(file: MappedFile, wanted: Stored | None) -> Layout:
    """Parse the header of one file that describes itself; `wanted` is the caller's dtype, which must agree with it."""
    kind = _magic(file)
    if kind not in _REFUSED:
        kind = SUFFIXES.get(file.suffix, kind)
    if kind in _REFUSED:
        raise FormatError(f"{file.shown}: {_REFUSED[kind]}")
    if kind == "safetensors":
        return safetensors_layout(file, wanted)
    if kind == "arrow":
        return arrow_layout(file, wanted)
    if kind == "gguf":
        return gguf_layout(file, wanted)
    if kind == "npy":
        refuse_selector(file)
        return npy_layout(file, wanted)
    raise FormatError(
        f"{file.shown}: unknown format (known suffixes: {', '.join(SUFFIXES)}); raw binary needs shape=(N, V) "
        "and dtype= (--shape N,V --dtype T on the command line)"
    )


def refuse_selector(file: MappedFile) -> None:
    """Refuse `::name` on a file that holds one array."""
    if file.selector is not None:
        raise BigvocabError(
            f"{file.shown}: '::{file.selector}' names a tensor of a .safetensors or .gguf file or a column of an Arrow "
            "IPC file, and this is none of them"
        )


def refuse_header(file: MappedFile) -> None:
    """Refuse to read a file as raw binary from byte 0 where the first bytes are a header."""
    kind = _magic(file)
    if kind is not None:
        raise BigvocabError(
            f"{file.shown}: shape= means raw binary, but this is a {kind} file with a header of its own; leave out "
            "shape= (or pass offset=)"
        )
