"""Arrow columns of vectors of one width: fixed-size lists, tensors, lists of every kind, and extensions over these.

What engines hand out differs: Spark has lists, NumPy columns of Ray are an extension over lists, those of Hugging Face
may be lists of lists. All are the same numbers, one row after the other, so they are read where they lie.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bigvocab.errors import BigvocabError, FormatError, Place
from bigvocab.formats.layout import BFLOAT16

_FIRST_NULLS = 2**22  # elements looked at in one go for the first null
LISTS = "FixedSizeList, fixed_shape_tensor or list"


class VectorType(NamedTuple):
    """Numbers of a column of vectors: their dtype, and how many a row has; None where the rows alone say so."""

    dtype: np.dtype[Any]
    width: int | None


class Vectors(NamedTuple):
    """The rows of a chunk: the numbers of row i are `width` of `values` from `starts[i]` on.

    `starts` is None where rows lie one after the other.
    """

    values: Any  # pyarrow array of numbers without nulls among them
    width: int
    starts: npt.NDArray[np.int64] | None

    def array(self, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """(n, width): a view where rows lie at equal distances, else a copy."""
        size = dtype.itemsize
        buffer = self.values.buffers()[1]
        if not len(self.values):
            return np.zeros((0 if self.starts is None else len(self.starts), self.width), dtype)
        flat = np.frombuffer(buffer, dtype, len(self.values), self.values.offset * size)
        if self.starts is None:
            return flat.reshape(-1, self.width)
        if len(self.starts) == 1:
            return flat[self.starts[0] : self.starts[0] + self.width][None]
        windows = np.lib.stride_tricks.sliding_window_view(flat, self.width)
        steps = np.diff(self.starts)
        if steps[0] >= self.width and (steps == steps[0]).all():
            return windows[self.starts[0] :: int(steps[0])][: len(self.starts)]
        return windows[self.starts]


def vector_type(kind: Any, *, bfloat16: bool = False) -> VectorType | None:
    """What a column of this type holds; None where its rows are no vectors of floats.

    Args:
        kind: a type of pyarrow.
        bfloat16: uint16 are the bits of bfloat16 (Arrow has no name for them).
    """
    import pyarrow as pa

    width: int | None = None
    levels = 0
    while True:
        if isinstance(kind, pa.BaseExtensionType):
            shape = getattr(kind, "shape", None)  # of tensors: the shape of a row
            if isinstance(shape, tuple | list) and sum(size != 1 for size in shape) > 1:
                return None
            kind = kind.storage_type
        elif _is_list(kind):
            fixed = kind.list_size if pa.types.is_fixed_size_list(kind) else None
            width = fixed if levels == 0 or width is None or fixed is None else width * fixed
            kind, levels = kind.value_type, levels + 1
        else:
            break
    names = {pa.float16(): np.float16, pa.float32(): np.float32, pa.float64(): np.float64}
    dtype = BFLOAT16 if bfloat16 and kind == pa.uint16() else names.get(kind)
    return None if levels == 0 or dtype is None else VectorType(np.dtype(dtype), width)


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    tests = (types.is_fixed_size_list, types.is_list, types.is_large_list, types.is_list_view, types.is_large_list_view)
    return any(test(kind) for test in tests)


def vectors_of(column: Any, place: Place, first_row: int = 0, width: int | None = None) -> Vectors:
    """The rows of one chunk of a column that has a `vector_type`.

    Args:
        column: an array of pyarrow, whose `validate` has passed.
        place: what messages call it.
        first_row: the number of its first row there.
        width: of the rows before it; None where there are none.

    Raises:
        FormatError: a null, or a row of another width than those before it; the message names the row.
    """
    import pyarrow as pa

    rows, starts = len(column), None
    sizes: list[int] = []  # of the levels of a row, the outer one first
    nested = _levels(column.type) > 1
    while True:
        if isinstance(column, pa.ExtensionArray):
            column = column.storage
            continue
        each = int(np.prod(sizes)) if sizes else 1
        if column.null_count:
            if starts is None:
                raise _null(place, first_row, _first_null(column), each, bool(sizes))
            _refuse_nulls_in_rows(column, starts, each, place, first_row)
        if not _is_list(column.type):
            break
        column, size, found = _level(column, place, first_row, each, None if nested else width)
        sizes.append(size)
        if found is not None and starts is not None:
            raise FormatError(f"{place}: lists of list views are not supported; write plain lists")
        if starts is not None:
            starts = starts * size
        starts = found if found is not None else starts
    total = int(np.prod(sizes))
    if rows and sum(size != 1 for size in sizes) > 1:
        shape = tuple(sizes)
        raise FormatError.of_row(place, first_row, f" has shape {shape}, expected a vector; reshape each row to (V,)")
    if rows and width is not None and total != width:
        raise FormatError.of_row(place, first_row, f" has {total} numbers, expected {width}, as rows before")
    return Vectors(column, total, starts)


def _levels(kind: Any) -> int:
    """How deep lists are nested in a type."""
    import pyarrow as pa

    depth = 0
    while isinstance(kind, pa.BaseExtensionType) or _is_list(kind):
        depth += _is_list(kind)
        kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind.value_type
    return depth


def _level(
    column: Any, place: Place, first_row: int, each: int, expected: int | None
) -> tuple[Any, int, npt.NDArray[np.int64] | None]:
    """One level of lists without nulls: what is in them, how many items each has, and where they begin, where they do
    not follow one another.
    """
    from pyarrow import types

    kind, count = column.type, len(column)
    if types.is_fixed_size_list(kind):
        return column.values.slice(column.offset * kind.list_size, count * kind.list_size), kind.list_size, None
    if count == 0:
        return column.values.slice(0, 0), expected or 0, None
    view = types.is_list_view(kind) or types.is_large_list_view(kind)
    offsets = _integers(column, 1, count + (not view))
    lengths = _integers(column, 2, count) if view else np.diff(offsets)
    size = int(lengths[0]) if expected is None else expected
    wrong = lengths != size
    if wrong.any():
        at = int(np.argmax(wrong))
        what = "numbers" if each == 1 else "items in a list"
        raise FormatError.of_row(
            place, first_row + at // each, f" has {lengths[at]} {what}, expected {size}, as rows before"
        )
    if offsets.min() < 0 or int(offsets.max()) + (size if view else 0) > len(column.values):
        raise FormatError(f"{place}: lists that lie outside their values, at rows from {first_row} on")
    begin = int(offsets[0])
    if view and count > 1 and (np.diff(offsets) != size).any():
        return column.values, size, offsets
    return column.values.slice(begin, count * size), size, None


def _integers(column: Any, which: int, count: int) -> npt.NDArray[np.int64]:
    """Offsets or sizes of a column of lists."""
    from pyarrow import types

    kind = column.type
    width = 8 if types.is_large_list(kind) or types.is_large_list_view(kind) else 4
    buffer = column.buffers()[which]
    if buffer is None or buffer.size < (column.offset + count) * width:
        raise BigvocabError("lists without all of their offsets")
    return np.frombuffer(buffer, f"<i{width}", count, column.offset * width).astype(np.int64)


def _first_null(array: Any) -> int:
    for start in range(0, len(array), _FIRST_NULLS):
        block = array.slice(start, _FIRST_NULLS)
        if block.null_count:
            return start + int(np.argmax(block.is_null().to_numpy(zero_copy_only=False)))
    return 0


def _null(place: Place, first_row: int, at: int, each: int, inside: bool) -> FormatError:
    where = f" has a null at class {at % each}" if inside else " is null; logits may have no nulls"
    return FormatError.of_row(place, first_row + at // each, where)


def _refuse_nulls_in_rows(column: Any, starts: Any, each: int, place: Place, first_row: int) -> None:
    """Raise for a null in a row; what lies between rows may be anything."""
    nulls = column.is_null().to_numpy(zero_copy_only=False)
    for row, start in enumerate(starts):
        if nulls[start : start + each].any():
            raise _null(place, first_row + row, int(np.argmax(nulls[start : start + each])), each, True)
