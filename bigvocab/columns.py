"""What the columns of a label table mean, and how a chunk of one becomes NumPy arrays.

Zero-copy where there are no nulls: values are read from Arrow's buffers by offset and length, so that slices are
honoured (`.values` ignores them). Every function gets `where` (file and column) and the absolute number of the chunk's
first row for its messages. Chunks must have passed `cut` and `plain`: a file is never trusted with memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from bigvocab.errors import BigvocabError, FormatError

MAX_ROWS = 65_536  # of a batch
MAX_BYTES = 32 << 20  # of labels in a batch: soft labels and long lists make batches of fewer rows
_INT64_MAX = np.iinfo(np.int64).max
_FLOATS = {"halffloat": "float16", "float": "float32", "double": "float64"}  # Arrow's names and NumPy's
# Names that say "not the label", though nothing uses them unless asked for.
_OTHER_ROLES = {"weight", "weights", "group", "bytes", "num_bytes"}


class Columns(NamedTuple):
    """The columns in use by name, and the kind of label: "id", "list", "dense" or "sparse"."""

    kind: str
    dtype: np.dtype
    num_classes: int | None
    label: str
    probability: str | None
    weight: str | None
    group: str | None
    num_bytes: str | None

    @property
    def names(self) -> list[str]:
        """Each column in use once, the label first."""
        used = (self.label, self.probability, self.weight, self.group, self.num_bytes)
        return list(dict.fromkeys(name for name in used if name is not None))


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """The type behind an extension or a dictionary."""
    if isinstance(kind, pa.BaseExtensionType):
        return _plain_type(kind.storage_type)
    return _plain_type(kind.value_type) if types.is_dictionary(kind) else kind


def _is_any_list(kind: pa.DataType) -> bool:
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind))


def _is_group(kind: pa.DataType) -> bool:
    tests = (types.is_string, types.is_large_string, types.is_string_view, types.is_integer, types.is_boolean)
    return any(test(kind) for test in tests)


def _is_number_list(kind: pa.DataType) -> bool:
    return _is_any_list(kind) and bool(types.is_floating(kind.value_type) or types.is_integer(kind.value_type))


def _label_kind(arrow_type: pa.DataType) -> tuple[str, np.dtype, int | None] | None:
    """(kind, dtype, number of classes) of labels of this type; None where it cannot be labels."""
    kind = _plain_type(arrow_type)
    if types.is_integer(kind):
        return "id", np.dtype(np.int64), None
    if not _is_any_list(kind) or len(getattr(arrow_type, "shape", [0])) != 1:  # a tensor of rank 2 is no row
        return None
    if types.is_integer(kind.value_type):
        return "list", np.dtype(np.int64), None
    if types.is_fixed_size_list(kind) and types.is_floating(kind.value_type):
        return "dense", np.dtype(np.float64 if types.is_float64(kind.value_type) else np.float32), kind.list_size
    return None


def shape_and_type(arrow_type: pa.DataType) -> tuple[list[int], str]:
    """The shape of one row of labels of this type, and the name of the type of its numbers."""
    kind = _plain_type(arrow_type)
    if types.is_fixed_size_list(kind):
        shape, kind = [kind.list_size], kind.value_type
        return shape, _FLOATS.get(str(kind), str(kind))
    return [], str(kind)


def listing(schema: pa.Schema) -> str:
    """The columns of a schema in words, at most 20 of them."""
    shown = [f"{field.name!r} ({field.type})" for field in schema][:20]
    return ", ".join(shown) + (f", ... ({len(schema)} in all)" if len(schema) > 20 else "") or "none"


def _check_column(schema: pa.Schema, where: str, option: str, name: str) -> pa.DataType:
    """The type of the column called `name`, which must be there exactly once."""
    found = schema.get_all_field_indices(name)
    if len(found) != 1:
        there = f"{len(found)} columns are called" if found else "no column"
        raise BigvocabError(f"{where}: {there} {name!r} ({option}); the columns are: {listing(schema)}")
    return schema.field(found[0]).type


def _find_label(schema: pa.Schema, where: str, taken: set[str]) -> str:
    """The column called label or labels, if there is one; else the only one whose type fits."""
    free = [field for field in schema if field.name not in taken | _OTHER_ROLES]
    named = [field.name for field in free if field.name in ("label", "labels")]
    fitting = [field.name for field in free if _label_kind(field.type)]
    candidates = named or fitting or [field.name for field in free if len(free) == 1]  # one that cannot fit is named so
    if len(candidates) > 1:
        names = ", ".join(map(repr, candidates))
        raise BigvocabError(f"{where}: {names} could each be the labels; choose with label_column, or as path::column")
    if not candidates:
        wanted = "no column of integers, lists of integers or fixed-size lists of floats"
        wanted += f" besides {', '.join(map(repr, sorted(taken)))}" if taken else ""
        raise BigvocabError(f"{where}: {wanted}; choose with label_column; the columns are: {listing(schema)}")
    return candidates[0]


def choose_columns(
    schema: pa.Schema,
    where: str,
    *,
    label: str | None = None,
    probability: str | None = None,
    weight: str | None = None,
    group: str | None = None,
    num_bytes: str | None = None,
) -> Columns:
    """Settle which columns are used, and check their types, before any row is read."""
    others = [
        ("probability_column", probability, _is_number_list, "lists of floats"),
        ("weight_column", weight, _is_number, "numbers"),
        ("group_column", group, _is_group, "strings, integers or booleans"),
        ("bytes_column", num_bytes, types.is_integer, "integers"),
    ]
    for option, name, fits, wanted in others:
        if name is not None and not fits(_plain_type(kind := _check_column(schema, where, option, name))):
            raise BigvocabError(f"{where}: column {name!r} ({option}): expected {wanted}, got {kind}")
    if label is None:
        label = _find_label(schema, where, {name for _, name, _, _ in others if name is not None})
    arrow_type = _check_column(schema, where, "label_column", label)
    found = _label_kind(arrow_type)
    if found is None:
        raise BigvocabError(
            f"{where}: column {label!r}: expected integers, got {arrow_type} "
            "(labels are integers, lists of integers, or fixed-size lists of float16, float32 or float64)"
        )
    kind, dtype, num_classes = found
    if probability is not None:
        if kind != "list":
            raise BigvocabError(
                f"{where}: column {label!r}: expected lists of ids beside {probability!r}, got {arrow_type}"
            )
        kind = "sparse"
    return Columns(kind, dtype, num_classes, label, probability, weight, group, num_bytes)


def cut(array: pa.Array, start: int, count: int, where: str, first_row: int) -> pa.Array:
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
    name = str(array.type)
    dtype = np.dtype(_FLOATS.get(name, name))
    if len(array) == 0:
        return np.empty(0, dtype)
    values = np.frombuffer(array.buffers()[1], dtype, len(array), array.offset * dtype.itemsize)
    return values if values.flags.aligned else values.copy()


def _to_int64(array: pa.Array, rows: np.ndarray | None, where: str, first_row: int) -> np.ndarray:
    """Integers of any width as int64, 0 at nulls; `rows` gives the row of each value (None: its own position)."""
    values, nulls = _values(array), _nulls(array)
    if nulls is not None:
        values = np.where(nulls, values.dtype.type(0), values)
    if values.dtype == np.uint64 and values.size and values.max() > _INT64_MAX:
        at = int(np.argmax(values > _INT64_MAX))
        row = first_row + (at if rows is None else int(rows[at]))
        raise BigvocabError(f"{where}: row {row}: expected an integer of 64 bits with sign, got {values[at]}")
    return values.astype(np.int64, copy=False)


def ids(array: pa.Array, where: str, first_row: int) -> tuple[np.ndarray, np.ndarray | None]:
    """An integer column as (int64 ids, null or not); null ids are 0."""
    return _to_int64(array, None, where, first_row), _nulls(array)


def _lists(array: pa.Array, where: str, first_row: int) -> tuple[np.ndarray, pa.Array, np.ndarray | None]:
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


def _inner_null(where: str, row: int, position: int) -> BigvocabError:
    return BigvocabError(f"{where}: row {row}: expected no null inside a list, got one at position {position}")


def _rows_of(offsets: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def id_lists(array: pa.Array, where: str, first_row: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray | None]:
    """A column of integer lists as ((offsets, int64 ids), null or not)."""
    offsets, child, nulls = _lists(array, where, first_row)
    rows = _rows_of(offsets) if types.is_uint64(child.type) else None  # only uint64 can be out of range
    return (offsets, _to_int64(child, rows, where, first_row)), nulls


def probabilities(
    array: pa.Array, offsets: np.ndarray, nulls: np.ndarray | None, where: str, first_row: int
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
        raise BigvocabError(f"{where}: row {first_row + row}: expected {wanted}, got {got}")
    bad = ~((values >= 0) & (values < np.inf))
    if bad.any():
        at = int(np.argmax(bad))
        raise BigvocabError(
            f"{where}: row {first_row + _rows_of(offsets)[at]}: expected finite probabilities >= 0, got {values[at]}"
        )
    return values


def dense(array: pa.Array, where: str, first_row: int) -> tuple[np.ndarray, np.ndarray | None]:
    """A column of fixed-size lists of floats as ((n, V) float32 or float64, null or not); null rows are 0."""
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


def weights(array: pa.Array, where: str, ignored: np.ndarray | None, first_row: int) -> np.ndarray:
    """A numeric column as finite float64; rows without a label may lack a weight too, and get 0."""
    if types.is_decimal(array.type):
        array = array.cast(pa.float64())
    values = _values(array).astype(np.float64, copy=False)
    return _complete(values, np.isfinite(values), "a finite number", array, ignored, where, first_row)


def num_bytes(array: pa.Array, where: str, ignored: np.ndarray | None, first_row: int) -> np.ndarray:
    """A column of byte counts as int64; rows without a label may lack a count too, and get 0."""
    values = _to_int64(array, None, where, first_row)
    return _complete(values, values >= 0, "a count >= 0", array, ignored, where, first_row)


def _complete(
    values: np.ndarray,
    good: np.ndarray,
    wanted: str,
    array: pa.Array,
    ignored: np.ndarray | None,
    where: str,
    first_row: int,
) -> np.ndarray:
    """`values`, all good and none null, but for the ignored rows, which become 0 where they are not."""
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
        raise BigvocabError(f"{where}: row {first_row + row}: expected {wanted}, got {got}")
    return values


def groups(array: pa.Array) -> tuple[np.ndarray, list[str]]:
    """A column of names as (int32 codes, names in order of appearance); null becomes the group "(null)"."""
    text = array if types.is_string(array.type) or types.is_large_string(array.type) else array.cast(pa.string())
    encoded = pc.fill_null(text, "(null)").dictionary_encode()
    return _values(encoded.indices), encoded.dictionary.to_pylist()


def groups_of(values: Any) -> tuple[np.ndarray, list[str]]:
    """The same of a sequence of strings, integers, booleans or None; anything else goes by its `str`."""
    if isinstance(values, str | bytes) or not hasattr(values, "__len__"):
        raise TypeError(f"groups: expected a sequence of names, got {type(values).__name__}")
    try:
        array = pa.array(values)
        if isinstance(array, pa.ChunkedArray):
            array = array.combine_chunks()
        if not _is_group(_plain_type(array.type)):
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
    kind = _plain_type(kind)
    if types.is_fixed_size_list(kind):
        return batch_rows(1, 8 * kind.list_size)
    return min(MAX_ROWS, 4096) if _is_any_list(kind) else MAX_ROWS


def gathered(pieces: Iterable[list[pa.Array]]) -> Iterator[list[pa.Array]]:
    """Small pieces joined, because a file of many small record batches would make many small row blocks."""
    held: list[list[pa.Array]] = []
    rows = size = 0
    for piece in pieces:
        if held and (rows + len(piece[0]) > MAX_ROWS or size + piece[0].nbytes > MAX_BYTES):
            yield _joined(held)
            held, rows, size = [], 0, 0
        held.append(piece)
        rows, size = rows + len(piece[0]), size + piece[0].nbytes
    if held:
        yield _joined(held)


def _joined(pieces: list[list[pa.Array]]) -> list[pa.Array]:
    return pieces[0] if len(pieces) == 1 else [pa.concat_arrays(arrays) for arrays in zip(*pieces, strict=True)]
