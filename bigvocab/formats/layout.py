"""The description of a matrix in a file, and the rules for dtypes and shapes that all formats share."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from bigvocab.errors import BigvocabError, FormatError, Keyword

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SUPPORTED = "float16, bfloat16, float32, float64"
_NAMES = {"float16": "f2", "float32": "f4", "float64": "f8", "f2": "f2", "f4": "f4", "f8": "f8"}
_MOST_ELEMENTS = 2**59  # NumPy counts bytes in signed 64 bits, also for arrays without rows


@dataclass(frozen=True)
class Stored:
    """A dtype as users see it, and as the bytes lie: only byte-swapped bfloat16 differs, which NumPy cannot name."""

    dtype: np.dtype[Any]
    raw: np.dtype[Any]


class Blocks(NamedTuple):
    """A way to store rows of numbers in blocks: its name and code in the format, numbers and bytes of a block."""

    name: str
    code: int
    values: int
    num_bytes: int

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of so many numbers, a whole number of blocks."""
        return columns // self.values * self.num_bytes


@dataclass(frozen=True)
class Layout:
    """Where a matrix lies in its file: `parts` are (byte offset, rows), in order; Fortran order has one part.

    Quantised rows lie in `blocks` and decode to `stored.dtype`. `leading` are the dimensions before the columns, where
    the rows came as more than one.
    """

    shape: tuple[int, ...]
    stored: Stored
    parts: tuple[tuple[int, int], ...]
    fortran: bool = False
    blocks: Blocks | None = None
    leading: tuple[int, ...] = ()

    @property
    def stored_columns(self) -> tuple[int, ...]:
        """The shape of a row as it lies in the file, in elements of `stored.raw`."""
        return self.shape[1:] if self.blocks is None else (self.blocks.row_bytes(self.shape[1]),)

    @property
    def type_name(self) -> str:
        """What the elements are, as reports name it."""
        return self.stored.dtype.name if self.blocks is None else self.blocks.name


def refuse_second(shown: str, behind: bytes, end: int, magic: bytes, what: str) -> None:
    """Raise if what lies past the end of the data begins as a file does: two were joined, and one would be lost."""
    if behind.startswith(magic):
        raise FormatError(
            f"{shown}: a second {what} begins at byte {end}; expected one, with each in a file of its own"
        )


def parse_dtype(value: Any) -> Stored | None:
    """The dtype named by the argument `dtype`: a name (`<` or `>` in front where it matters), a NumPy dtype or None."""
    if value is None:
        return None
    if isinstance(value, str):
        order, name = re.fullmatch(r"([<>=|]?)(.*)", value.strip(), re.DOTALL).groups()  # type: ignore[union-attr]
        if name == "bfloat16":
            return Stored(BFLOAT16, np.dtype(">u2") if order == ">" else BFLOAT16)
        if name in _NAMES:
            dtype = np.dtype(order.replace("|", "=") + _NAMES[name])
            return Stored(dtype, dtype)
    elif isinstance(value, np.dtype | type):
        try:
            dtype = np.dtype(value)
        except TypeError:
            raise TypeError(f"dtype: expected a dtype or its name, got {value!r}") from None
        if is_supported(dtype):
            return Stored(dtype, dtype)
    else:
        raise TypeError(f"dtype: expected a dtype or its name, got {type(value).__name__}")
    raise BigvocabError(Keyword("dtype"), f": got {str(value)!r}, expected one of {SUPPORTED}")


def is_supported(dtype: np.dtype[Any]) -> bool:
    """Whether logits may have this dtype (in either byte order)."""
    return dtype == BFLOAT16 or (dtype.kind == "f" and dtype.itemsize in (2, 4, 8))


def dtype_label(dtype: np.dtype[Any]) -> str:
    """How messages and reports name a dtype."""
    return dtype.name if dtype.isnative else f"{dtype.name} (byte-swapped)"


def resolve_dtype(shown: str, found: np.dtype[Any], wanted: Stored | None, *, swapped_void: bool = False) -> Stored:
    """What the elements are by the file's word (`found`) and the caller's (`wanted`); .npy has no name for bfloat16."""
    bits = found.fields is None and found.subdtype is None and found.itemsize == 2
    if is_supported(found):
        stored = Stored(found, found)
    elif bits and found.kind == "V":
        stored = Stored(BFLOAT16, np.dtype(">u2") if swapped_void else BFLOAT16)
    elif bits and found.kind == "u" and wanted is not None and wanted.dtype == BFLOAT16:
        stored = Stored(BFLOAT16, BFLOAT16 if found.isnative else found)
    else:
        hint = "; if these are bfloat16 bits, pass dtype='bfloat16'" if bits and found.kind == "u" else ""
        raise FormatError(f"{shown}: holds {found}, expected one of {SUPPORTED}{hint}")
    if wanted is not None and wanted.dtype.name != stored.dtype.name:
        raise BigvocabError(f"{shown}: dtype={wanted.dtype.name} was asked for, but the file holds {stored.dtype.name}")
    return stored


def check_shape(shown: str, shape: Any) -> tuple[int, ...]:
    """A shape read from a header, as (rows, columns) or (columns,) of plain ints that NumPy can count."""
    if not isinstance(shape, tuple | list) or any(type(size) is not int or size < 0 for size in shape):
        raise FormatError(f"{shown}: the header gives shape {shape!r:.200}, expected non-negative integers")
    if len(shape) not in (1, 2):
        raise FormatError(
            f"{shown}: has {len(shape)} dimensions (shape {tuple(shape)!r:.200}), expected 2 (or 1 for biases)"
        )
    if shape[-1] == 0:
        raise FormatError(f"{shown}: has no classes (shape {tuple(shape)})")
    if max(shape) * shape[-1] > _MOST_ELEMENTS:
        raise FormatError(f"{shown}: the header gives shape {tuple(shape)!r:.200}, more than any file holds")
    return tuple(shape)


def num_bytes(shape: tuple[int, ...], itemsize: int) -> int:
    """Bytes of an array of this shape, in Python's own integers."""
    total = itemsize
    for size in shape:
        total *= size
    return total


def check_room(shown: str, size: int, offset: int, needed: int) -> None:
    """Raise if `needed` bytes from `offset` on do not lie inside a file of `size` bytes."""
    if offset + needed > size:
        raise FormatError(f"{shown}: truncated: the header promises {offset + needed} bytes, the file has {size}")


def parse_shape(value: Any) -> tuple[int, ...]:
    """The argument `shape`: (N, V), (V,) or "N,V"; the first size may be -1, as many as there are."""
    sizes: list[Any] = value.split(",") if isinstance(value, str) else value
    if not isinstance(sizes, tuple | list):
        raise TypeError(f"shape: expected (N, V) or 'N,V', got {type(value).__name__}")
    try:
        shape = tuple(int(size) if isinstance(size, str) else operator.index(size) for size in sizes)
    except ValueError:
        raise BigvocabError(Keyword("shape"), f": expected whole numbers N,V, got {value!r:.200}") from None
    except TypeError:
        raise TypeError(f"shape: expected whole numbers (N, V), got {value!r:.200}") from None
    if len(shape) not in (1, 2) or shape[0] < -1 or (len(shape) == 2 and shape[1] < 1) or shape == (0,):
        raise BigvocabError(
            Keyword("shape"),
            f": expected (N, V) or (V,) with V >= 1 and N >= 0 (or -1: as many as there are), got {value!r:.200}",
        )
    if max(shape) * shape[-1] > _MOST_ELEMENTS:
        raise BigvocabError(Keyword("shape"), f": got {value!r:.200}, more than any file holds")
    return shape
