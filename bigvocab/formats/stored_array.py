"""One array in a file, of any type and shape: what .npy, .npz, .pt and .safetensors files are made of."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from bigvocab.formats.layout import Layout, Stored, check_shape, resolve_dtype
from bigvocab.storage.mapped import MappedFile


class StoredArray(NamedTuple):
    """Where an array lies; its bytes were checked to be inside the file."""

    shown: str  # file and name, for messages
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    fortran: bool = False
    swapped_void: bool = False  # two bytes of no type, high one first

    def layout(self, wanted: Stored | None) -> Layout:
        """As a matrix of one of the float types."""
        stored = resolve_dtype(self.shown, self.dtype, wanted, swapped_void=self.swapped_void)
        shape = check_shape(self.shown, self.shape)
        return Layout(shape, stored, ((self.offset, shape[0]),), fortran=self.fortran and len(shape) == 2)

    def view(self, file: MappedFile) -> np.ndarray[Any, np.dtype[Any]]:
        """The array itself, read-only, in the map of its file."""
        return np.ndarray(self.shape, self.dtype, file.buffer, self.offset, order="F" if self.fortran else "C")
