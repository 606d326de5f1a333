"""One array in a file, of any type and shape: what .npy, .npz, .pt and .safetensors files are made of."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from bigvocab.errors import FormatError
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

    def rows_layout(self, wanted: Stored | None) -> Layout:
        """As a matrix of rows, whatever dimensions come before the columns.

        Raises:
            FormatError: more than two dimensions in Fortran order, whose rows do not lie together.
        """
        if len(self.shape) < 3:
            return self.layout(wanted)
        if self.fortran:
            raise FormatError(f"{self.shown}: is of shape {self.shape} in Fortran order, expected rows in C order")
        flat = self._replace(shape=(math.prod(self.shape[:-1]), self.shape[-1])).layout(wanted)
        return replace(flat, leading=self.shape[:-1])

    def view(self, file: MappedFile) -> np.ndarray[Any, np.dtype[Any]]:
        """The array itself, read-only, in the map of its file."""
        return np.ndarray(self.shape, self.dtype, file.buffer, self.offset, order="F" if self.fortran else "C")
