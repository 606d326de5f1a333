"""How a chunk of a column of a label table becomes NumPy arrays.

Zero-copy where there are no nulls: values are read from Arrow's buffers by offset and length, so that slices are
honoured (`.values` ignores them). Every function gets `where` (file and column) and the absolute number of the chunk's
first row for its messages. Chunks must have passed `cut` and `plain`: a file is never trusted with memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from bigvocab.errors import BigvocabError, FormatError, Place
from bigvocab.labels.column_choice import is_any_list, is_group, numpy_name, plain_type
from bigvocab.labels.stored_ids import PLAIN, StoredIds, whole_numbers
from bigvocab.labels.tables import as_table_source

MAX_ROWS = 65_536  # of a batch
MAX_BYTES = 32 << 20  # of labels in a batch: soft labels and long lists make batches of fewer rows
_INT64_MAX = np.iinfo(np.int64).max


def cut(array: pa.Array, start: int, count: int, where: Place, first_row: int) -> pa.Array:
    """`count` rows of a chunk from `start` on (row `first_row` of all), after a full check of buffers and offsets.

    Raises:
        FormatError: buffers too short, offsets that fall or pass the end, dictionary indices out of range, no UTF-8.
    """
    row = first_row - start
    try:
        array.validate()
        if len(array) < start + count:
            raise FormatError(
                f"{where}: expected {start + count} rows in the chunk from row {row} on, got {len(array)}"
            )
        array, row = array.slice(start, count), first_row
        array.validate(full=True)
    except pa.ArrowInvalid as error:
        raise FormatError(f"{where}: {_offset_fault(array, row) or str(error).splitlines()[0]}") from error
    return array


def plain(array: pa.Array) -> pa.Array:
    """The same values without extension type or dictionary (each batch may bring its own)."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if types.is_dictionary(array.type) and types.is_string_view(array.type.value_type):  # Arrow cannot decode these
        array = pa.DictionaryArray.from_arrays(array.indices, array.dictionary.cast(pa.string()))
    return array.dictionary_decode() if types.is_dictionary(array.type) else array


def _offset_fault(array: pa.Array, first_row: int) -> str | None:
    """The first row of a list column whose offsets are wrong, in words."""
    if not (types.is_list(array.type) or types.is_large_list(array.type)):
        return None
    try:
        array.values.validate()
    except pa.ArrowInvalid:
        return None
    width = 8 if types.is_large_list(array.type) else 4
    buffer = array.buffers()[1]
    if buffer is None or buffer.size < (array.offset + len(array) + 1) * width:
        return None
    offsets = np.frombuffer(buffer, f"i{width}", len(array) + 1, array.offset * width)
    wrong = np.flatnonzero((offsets[:-1] < 0) | (offsets[1:] < offsets[:-1]) | (offsets[1:] > len(array.values)))
    if not wrong.size:
        return None
    row = wrong[0]
    return (
        f"row {first_row + row}: its list runs from {offsets[row]} to {offsets[row + 1]} of {len(array.values)} values"
    )


def _nulls(array: pa.Array) -> np.ndarray | None:
    return array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None


def _values(array: pa.Array) -> np.ndarray:
    """The values of a fixed-width array; at a null, whatever lies there."""
    dtype = np.dtype(numpy_name(array.type))
    if len(array) == 0:
        return np.empty(0, dtype)
    values = np.frombuffer(array.buffers()[1], dtype, len(array), array.offset * dtype.itemsize)
    return values if values.flags.aligned else values.copy()


def _to_int64(
    array: pa.Array, rows: np.ndarray | None, where: Place, first_row: int, nulls: np.ndarray | None = None
) -> np.ndarray:
    """Integers of any width as int64, 0 at nulls; `rows` gives the row of each value (None: its own position)."""
    values, nulls = _values(array), _nulls(array) if nulls is None else nulls
    if nulls is not None:
        values = np.where(nulls, values.dtype.type(0), values)
    if values.dtype == np.uint64 and values.size and values.max() > _INT64_MAX:
        at = int(np.argmax(values > _INT64_MAX))
        row = first_row + (at if rows is None else int(rows[at]))
        raise BigvocabError.of_row(where, row, f": expected an integer of 64 bits with sign, got {values[at]}")
    return values.astype(np.int64, copy=False)


def ids(
    array: pa.Array, where: Place, first_row: int, stored: StoredIds = PLAIN
) -> tuple[np.ndarray, np.ndarray | None]:
    """A column of integers, or of whole numbers, as (int64 ids, ignored or not); ignored ids, null or NaN, are 0."""
    nulls = _nulls(array)
    if not types.is_integer(array.type):
        array, nulls = _whole(array, nulls, where, first_row)
    marked = stored.marks(_values(array))
    if marked is not None and marked.any():
        nulls = marked if nulls is None else nulls | marked
    return stored.shifted(_to_int64(array, None, where, first_row, nulls), where, first_row, skip=nulls), nulls


def _whole(array: pa.Array, nulls: Any, where: Place, first_row: int) -> tuple[pa.Array, np.ndarray | None]:
    """A column of float64 or decimals as integers; NaN counts as null."""
    if types.is_decimal(array.type):
        try:
            return array.cast(pa.int64()), nulls
        except pa.ArrowInvalid:
            for row, value in enumerate(array):
                number = value.as_py()
                if number is not None and (number != int(number) or not -(2**63) <= number < 2**63):
                    rest = f" is {number}, expected a whole number of 64 bits"
                    raise BigvocabError.of_row(where, first_row + row, rest) from None
            raise
    values = _values(array)
    found, missing = whole_numbers(values if nulls is None else np.where(nulls, np.nan, values), where, first_row)
    return pa.array(found), missing if missing.any() else None


def _lists(array: pa.Array, where: Place, first_row: int) -> tuple[np.ndarray, pa.Array, np.ndarray | None]:
    """A list column as (offsets from 0, values, null or not); null rows are empty and no value is null."""
    count, nulls = len(array), _nulls(array)
    if types.is_fixed_size_list(array.type):
        width = array.type.list_size
        offsets = np.arange(count + 1, dtype=np.int64) * width
        child = array.values.slice(array.offset * width, count * width)
    elif count == 0:  # its buffer of offsets may be empty too
        return np.zeros(1, np.int64), array.values.slice(0, 0), None
    else:
        offsets = _values(array.offsets).astype(np.int64)
        child = array.values.slice(offsets[0], offsets[-1] - offsets[0])
        offsets -= offsets[0]
    lengths = np.diff(offsets)
    if nulls is not None and lengths[nulls].any():  # a null row may hide values
        child = child.filter(pa.array(np.repeat(~nulls, lengths)))
        lengths[nulls] = 0
        np.cumsum(lengths, out=offsets[1:])
    if child.null_count:
        at = int(np.argmax(child.is_null().to_numpy(zero_copy_only=False)))
        row = int(np.searchsorted(offsets, at, side="right")) - 1
        raise _inner_null(where, first_row + row, at - offsets[row])
    return offsets, child, nulls


def _inner_null(where: Place, row: int, position: int) -> BigvocabError:
    return BigvocabError.of_row(where, row, f": expected no null inside a list, got one at position {position}")


def _rows_of(offsets: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def id_lists(
    array: pa.Array, where: Place, first_row: int, stored: StoredIds = PLAIN
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray | None]:
    """A column of integer lists as ((offsets, int64 ids), null or not)."""
    offsets, child, nulls = _lists(array, where, first_row)
    rows = _rows_of(offsets) if types.is_uint64(child.type) or stored.offset else None  # else none can be out of range
    return (offsets, stored.shifted(_to_int64(child, rows, where, first_row), where, first_row, rows)), nulls


def probabilities(
    array: pa.Array, offsets: np.ndarray, nulls: np.ndarray | None, where: Place, first_row: int
) -> np.ndarray:
    """A column of number lists parallel to the ids at `offsets`, flat, as float64; empty where the ids are null."""
    own_offsets, child, own_nulls = _lists(array, where, first_row)
    lengths, own_lengths = np.diff(offsets), np.diff(own_offsets)
    values = _values(child).astype(np.float64, copy=False)
    if nulls is not None:
        values = values[np.repeat(~nulls, own_lengths)]
        own_lengths = np.where(nulls, 0, own_lengths)
    wrong = own_lengths != lengths
    if own_nulls is not None:
        wrong |= own_nulls if nulls is None else own_nulls & ~nulls
    if wrong.any():
        row = int(np.argmax(wrong))
        got = "null" if own_nulls is not None and own_nulls[row] else own_lengths[row]
        wanted = f"as many probabilities as ids, {lengths[row]}"
        raise BigvocabError.of_row(where, first_row + row, f": expected {wanted}, got {got}")
    bad = ~((values >= 0) & (values < np.inf))
    if bad.any():
        at = int(np.argmax(bad))
        raise BigvocabError.of_row(
            where, first_row + _rows_of(offsets)[at], f": expected finite probabilities >= 0, got {values[at]}"
        )
    return values


def list_width(array: pa.Array) -> int | None:
    """The length of the first list of a column that is not null; None where all are."""
    if array.null_count:
        array = array.drop_null()
    return len(array[0]) if len(array) else None


def dense(
    array: pa.Array, where: Place, first_row: int, width: int | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """A column of lists of floats as ((n, V) float32 or float64, null or not); null rows are 0.

    Lists that are of no fixed size must have `width` floats.
    """
    if not types.is_fixed_size_list(array.type):
        array = _of_fixed_size(array, where, first_row, width or 0)
    count, width, nulls = len(array), array.type.list_size, _nulls(array)
    child = array.values.slice(array.offset * width, count * width)
    if child.null_count:
        inner = _nulls(child).reshape(count, width)  # type: ignore[union-attr]
        rows = inner.any(axis=1) if nulls is None else inner.any(axis=1) & ~nulls
        if rows.any():
            row = int(np.argmax(rows))
            at = int(np.argmax(inner[row]))
            raise _inner_null(where, first_row + row, at)
    values = _values(child).reshape(count, width)
    if values.dtype == np.float16:
        values = values.astype(np.float32)
    return (values if nulls is None else np.where(nulls[:, None], values.dtype.type(0), values)), nulls


def _of_fixed_size(array: pa.Array, where: Place, first_row: int, width: int) -> pa.Array:
    """Lists that all have `width` floats, except null ones, as fixed-size lists."""
    offsets, child, nulls = _lists(array, where, first_row)
    lengths = np.diff(offsets)
    wrong = lengths != width if nulls is None else (lengths != width) & ~nulls
    if wrong.any():
        row = int(np.argmax(wrong))
        raise BigvocabError.of_row(
            where, first_row + row, f": expected {width} labels, as in the first row, got {lengths[row]}"
        )
    if nulls is None:
        return pa.FixedSizeListArray.from_arrays(child, width)
    values = _values(child)
    filled = np.zeros((len(array), width), values.dtype)
    filled[~nulls] = values.reshape(-1, width)
    return pa.FixedSizeListArray.from_arrays(pa.array(filled.reshape(-1)), width, mask=pa.array(nulls))


def weights(array: pa.Array, where: Place, ignored: np.ndarray | None, first_row: int) -> np.ndarray:
    """A numeric column as finite float64; rows without a label may lack a weight too, and get 0."""
    if types.is_decimal(array.type):
        array = array.cast(pa.float64())
    values = _values(array).astype(np.float64, copy=False)
    return _complete(values, np.isfinite(values), "a finite number", array, ignored, where, first_row)


def positions(array: pa.Array, where: Place, ignored: np.ndarray | None, first_row: int) -> np.ndarray:
    """A column of positions as int64; rows without a label may lack one too, and get 0."""
    values = _to_int64(array, None, where, first_row)
    return _complete(values, values >= 0, "a position >= 0", array, ignored, where, first_row)


def texts(array: pa.Array) -> pa.Array:
    """A column of texts as Arrow holds it, to be looked at in few places."""
    return array if types.is_string(array.type) or types.is_large_string(array.type) else array.cast(pa.large_string())


def nameable(kind: pa.DataType) -> int | None:
    """How many classes integers of 8 or 16 bits can name; None for wider ones."""
    kind = plain_type(kind)
    if not types.is_integer(kind) or kind.bit_width > 16:
        return None
    return 1 << (kind.bit_width - types.is_signed_integer(kind))


def num_bytes(array: pa.Array, where: Place, ignored: np.ndarray | None, first_row: int) -> np.ndarray:
    """A column of byte counts as int64; rows without a label may lack a count too, and get 0."""
    values = _to_int64(array, None, where, first_row)
    return _complete(values, values >= 0, "a count >= 0", array, ignored, where, first_row)


def _complete(
    values: np.ndarray,
    good: np.ndarray,
    wanted: str,
    array: pa.Array,
    ignored: np.ndarray | None,
    where: Place,
    first_row: int,
) -> np.ndarray:
    """`values`, all good and none null, except for the ignored rows, which become 0 where they are not."""
    nulls = _nulls(array)
    bad = ~good if nulls is None else ~good | nulls
    if not bad.any():
        return values
    if ignored is not None:
        values = np.where(bad & ignored, values.dtype.type(0), values)
        bad &= ~ignored
    if bad.any():
        row = int(np.argmax(bad))
        got = "null" if nulls is not None and nulls[row] else values[row]
        raise BigvocabError.of_row(where, first_row + row, f": expected {wanted}, got {got}")
    return values


def groups(array: pa.Array) -> tuple[np.ndarray, list[str]]:
    """A column of names as (int32 codes, names in order of appearance); null becomes the group "(null)"."""
    text = array if types.is_string(array.type) or types.is_large_string(array.type) else array.cast(pa.string())
    encoded = pc.fill_null(text, "(null)").dictionary_encode()
    return _values(encoded.indices), encoded.dictionary.to_pylist()


def groups_of(values: Any) -> tuple[np.ndarray, list[str]]:
    """The same of a sequence of strings, integers, booleans or None; anything else goes by its `str`."""
    values = as_table_source(values, "groups")
    if isinstance(values, str | bytes) or not hasattr(values, "__len__"):
        raise TypeError(f"groups: expected a sequence of names, got {type(values).__name__}")
    try:
        array = pa.array(values)
        if isinstance(array, pa.ChunkedArray):
            array = array.combine_chunks()
        if not is_group(plain_type(array.type)):
            array = pa.array([None if name is None else str(name) for name in values], pa.string())
    except (pa.ArrowException, TypeError, OverflowError):  # of several types, or past 64 bits
        array = pa.array([None if name is None else str(name) for name in values], pa.string())
    except UnicodeEncodeError as error:
        raise BigvocabError(f"groups: expected text, got {error.object!r}, which is no Unicode") from None
    return groups(plain(array))


def batch_rows(rows: int, size: int) -> int:
    """How many rows to put into one batch where `rows` rows have `size` bytes of labels."""
    return max(1, min(MAX_ROWS, MAX_BYTES * rows // max(1, size)))


def decoded_rows(kind: pa.DataType) -> int:
    """How many rows of such labels to decode at once: few of lists, whose lengths are not known before."""
    kind = plain_type(kind)
    if types.is_fixed_size_list(kind):
        return batch_rows(1, 8 * kind.list_size)
    return min(MAX_ROWS, 4096) if is_any_list(kind) else MAX_ROWS


def gathered(pieces: Iterable[list[pa.Array]]) -> Iterator[list[pa.Array]]:
    """Small pieces joined, because a file of many small record batches would make many small row blocks."""
    held: list[list[pa.Array]] = []
    rows = size = 0
    for piece in pieces:
        more = sum(array.nbytes for array in piece)
        if held and (rows + len(piece[0]) > MAX_ROWS or size + more > MAX_BYTES):
            yield _joined(held)
            held, rows, size = [], 0, 0
        held.append(piece)
        rows, size = rows + len(piece[0]), size + more
    if held:
        yield _joined(held)


def _joined(pieces: list[list[pa.Array]]) -> list[pa.Array]:
    return pieces[0] if len(pieces) == 1 else [pa.concat_arrays(arrays) for arrays in zip(*pieces, strict=True)]
