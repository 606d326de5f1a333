"""NumPy's .npz as np.savez writes it: a zip archive of stored .npy files, each mapped where it lies."""

from __future__ import annotations

from bigvocab.formats.npy import npy_array
from bigvocab.formats.stored_array import StoredArray
from bigvocab.formats.zip_members import ZipMembers, choose
from bigvocab.storage.mapped import MappedFile


def npz_names(archive: ZipMembers) -> list[str]:
    """The keys of the arrays, in the order of the archive."""
    return [name.removesuffix(".npy") for name in archive.members if name.endswith(".npy")]


def npz_arrays(file: MappedFile, archive: ZipMembers) -> list[tuple[str, StoredArray]]:
    """Every array with its key."""
    found = []
    for name in npz_names(archive):
        begin, size = archive.span(f"{name}.npy")
        found.append((name, npy_array(file, f"{file.shown}::{name}", begin, begin + size)))
    return found


def npz_array(file: MappedFile, archive: ZipMembers) -> StoredArray:
    """The array `file.npz::key`; its key may be left out where there is one.

    Source: https://numpy.org/doc/stable/reference/generated/numpy.savez.html
    """
    selector = None if file.selector is None else file.selector.removesuffix(".npy")
    name = choose(file.shown, npz_names(archive), selector, "array")
    begin, size = archive.span(f"{name}.npy")
    return npy_array(file, f"{file.shown}::{name}", begin, begin + size)
