"""A header becomes dtype, shape and offsets; nothing else is read.

Here is which parser reads a file, by its suffix and first bytes. Every parser returns a `Layout`: shape, dtype, order,
and the byte offsets of the rows. The data are looked at by `bigvocab.matrices` alone, through a memory map, so a parser
never holds more than a header.
"""

from __future__ import annotations

from bigvocab.errors import BigvocabError, FormatError
from bigvocab.formats.arrow import arrow_layout
from bigvocab.formats.gguf import gguf_layout
from bigvocab.formats.layout import Layout, Stored
from bigvocab.formats.magic import LONGEST, kind_of
from bigvocab.formats.npy import npy_array, npy_layout
from bigvocab.formats.npz import npz_array, npz_arrays, npz_names
from bigvocab.formats.safetensors import safetensors_array, safetensors_layout
from bigvocab.formats.stored_array import StoredArray
from bigvocab.formats.torch_file import pickle_member, torch_array, torch_shapes
from bigvocab.formats.zip_members import ZipMembers
from bigvocab.storage.mapped import MappedFile
from bigvocab.storage.paths import LFS_ADVICE, SUFFIXES

_MAPPABLE = ".npy, .safetensors, Arrow IPC (.arrow, .ipc, .feather) or raw binary"
_REFUSED = {
    "parquet": f"Parquet is compressed in pages and cannot be memory-mapped; write it as {_MAPPABLE}",
    "feather": "Feather version 1 cannot hold a matrix; write version 2 (pyarrow.feather.write_feather), uncompressed",
    "git-lfs": LFS_ADVICE,
}
_ARRAYS = ("npy", "safetensors", "zip")
_OLD_TORCH = (
    "no zip archive, as torch.save writes since PyTorch 1.6: an old format, whose pickle would have to be run; load "
    "it with torch and save it again"
)


def _magic(file: MappedFile) -> str | None:
    """The kind of a file as its first bytes give it away."""
    if file.suffix == ".safetensors" and file.buffer[8:9] == b"{":
        return "safetensors"
    return kind_of(file.buffer[:LONGEST])


def read_layout(file: MappedFile, wanted: Stored | None, *, any_leading: bool = False) -> Layout:
    """Parse the header of one file that describes itself; `wanted` is the caller's dtype, which must agree with it.
    With `any_leading`, an array (..., V) counts as its rows.
    """
    kind = _kind(file)
    if any_leading and kind in _ARRAYS and len((array := read_array(file)).shape) > 2:
        return array.rows_layout(wanted)
    if kind == "safetensors":
        return safetensors_layout(file, wanted)
    if kind == "arrow":
        return arrow_layout(file, wanted)
    if kind == "gguf":
        return gguf_layout(file, wanted)
    if kind == "npy":
        refuse_selector(file)
        return npy_layout(file, wanted)
    if kind == "zip":
        return _zipped(file).layout(wanted)
    raise FormatError(
        f"{file.shown}: unknown format (known suffixes: {', '.join(SUFFIXES)}); raw binary needs shape=(N, V) "
        "and dtype= (--shape N,V --dtype T on the command line)"
    )


def has_arrays(file: MappedFile) -> bool:
    """Whether `read_array` reads such files."""
    try:
        return _kind(file) in _ARRAYS
    except FormatError:  # whoever opens it says why
        return False


def read_array(file: MappedFile) -> StoredArray:
    """The array of any plain type and shape in a .npy, .npz, .pt or .safetensors file."""
    kind = _kind(file)
    if kind == "safetensors":
        return safetensors_array(file)
    if kind == "npy":
        refuse_selector(file)
        return npy_array(file, file.shown, 0, file.size)
    if kind == "zip":
        return _zipped(file)
    raise FormatError(f"{file.shown}: expected .npy, .npz, .pt or .safetensors")


def list_archive(file: MappedFile) -> list[tuple[str, tuple[int, ...], str]]:
    """(key, shape, type) of every array of a .npz or .pt file."""
    if _kind(file) != "zip":
        raise FormatError(f"{file.shown}: expected .npz or .pt")
    archive = ZipMembers(file)
    if pickle_member(archive) is not None:
        return torch_shapes(file, archive)
    return [(name, array.shape, str(array.dtype)) for name, array in npz_arrays(file, archive)]


def _kind(file: MappedFile) -> str | None:
    """The format of a file by its first bytes where they refuse it or are a zip archive's, else by its suffix."""
    kind = _magic(file)
    if kind not in _REFUSED and kind != "zip":
        kind = SUFFIXES.get(file.suffix, kind)
    if kind in _REFUSED:
        raise FormatError(f"{file.shown}: {_REFUSED[kind]}")
    if kind in ("npz", "torch"):
        raise FormatError(f"{file.shown}: {'no zip archive, as .npz files are' if kind == 'npz' else _OLD_TORCH}")
    return kind


def _zipped(file: MappedFile) -> StoredArray:
    """An array of a .npz, or of what torch.save writes: the archive itself says which it is."""
    archive = ZipMembers(file)
    if pickle_member(archive) is not None:
        return torch_array(file, archive)
    if npz_names(archive):
        return npz_array(file, archive)
    raise FormatError(f"{file.shown}: a zip archive, but neither .npz nor .pt; write its array as {_MAPPABLE}")


def refuse_selector(file: MappedFile) -> None:
    """Refuse `::name` on a file that holds one array."""
    if file.selector is not None:
        raise BigvocabError(
            f"{file.shown}: '::{file.selector}' names a tensor of a .safetensors or .gguf file or a column of an Arrow "
            "IPC file, and this is none of them"
        )


def refuse_header(file: MappedFile, option: str = "shape", way_out: str = " (or pass offset=)") -> None:
    """Refuse to read a file as raw binary, as an option says, from byte 0 where the first bytes are a header."""
    kind = _magic(file)
    if kind is not None:
        raise BigvocabError(
            f"{file.shown}: {option}= means raw binary, but this is a {kind} file with a header of its own; leave out "
            f"{option}={way_out}"
        )
