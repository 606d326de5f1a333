"""Which columns of a label table are used: found by name or by type, and checked, before any row is read."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import types

from bigvocab.errors import BigvocabError, Keyword

_FLOATS = {"halffloat": "float16", "float": "float32", "double": "float64"}  # Arrow's names and NumPy's
ODD_ROW = b"bigvocab.odd_row"  # in the metadata of a field
# Names that say "not the label", though nothing uses them unless asked for.
_OTHER_ROLES = {"weight", "weights", "group", "bytes", "num_bytes", "exclude"}


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
    position: str | None = None
    text: str | None = None
    cluster: str | None = None
    exclude: str | None = None

    @property
    def names(self) -> list[str]:
        """Each column in use once, the label first."""
        used = self[3:]
        return list(dict.fromkeys(name for name in used if name is not None))


def numpy_name(kind: pa.DataType) -> str:
    """NumPy's name of a type of numbers."""
    return _FLOATS.get(str(kind), str(kind))


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type under an extension or a dictionary."""
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    return plain_type(kind.value_type) if types.is_dictionary(kind) else kind


def is_any_list(kind: pa.DataType) -> bool:
    """Whether rows of this type are lists, of one size or not."""
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind))


def is_group(kind: pa.DataType) -> bool:
    """Whether values of this type can name groups."""
    tests = (types.is_string, types.is_large_string, types.is_string_view, types.is_integer, types.is_boolean)
    return any(test(kind) for test in tests)


def is_text(kind: pa.DataType) -> bool:
    """Whether values of this type are strings."""
    return any(test(kind) for test in (types.is_string, types.is_large_string, types.is_string_view))


def _is_number_list(kind: pa.DataType) -> bool:
    return is_any_list(kind) and bool(types.is_floating(kind.value_type) or types.is_integer(kind.value_type))


def _is_id_list(kind: pa.DataType) -> bool:
    return is_any_list(kind) and bool(types.is_integer(kind.value_type))


def _label_kind(arrow_type: pa.DataType, whole: bool = False) -> tuple[str, np.dtype, int | None] | None:
    """(kind, dtype, number of classes) of labels of this type; None where it cannot be labels. Floats and decimals can
    where they may be `whole` numbers.
    """
    kind = plain_type(arrow_type)
    if types.is_integer(kind) or whole and (types.is_float64(kind) or types.is_decimal(kind)):
        return "id", np.dtype(np.int64), None
    if not is_any_list(kind) or len(getattr(arrow_type, "shape", [0])) != 1:  # a tensor of rank 2 is no row
        return None
    if types.is_integer(kind.value_type):
        return "list", np.dtype(np.int64), None
    if types.is_fixed_size_list(kind) and types.is_floating(kind.value_type):
        return "dense", np.dtype(np.float64 if types.is_float64(kind.value_type) else np.float32), kind.list_size
    if types.is_floating(kind.value_type):  # as many as the first row has
        return "dense", np.dtype(np.float64 if types.is_float64(kind.value_type) else np.float32), None
    return None


def shape_and_type(arrow_type: pa.DataType) -> tuple[list[int], str]:
    """The shape of one row of labels of this type, and the name of the type of its numbers."""
    kind = plain_type(arrow_type)
    if types.is_fixed_size_list(kind):
        shape, kind = [kind.list_size], kind.value_type
        return shape, numpy_name(kind)
    return [], str(kind)


def odd_row(schema: pa.Schema, name: str) -> str:
    """Of a column of text that begins with numbers, what its reader noted of the first row that is none."""
    found = (schema.field(name).metadata or {}).get(ODD_ROW)
    return "" if found is None else f"; {found.decode()}"


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
    kinds = {field.name: found for field in free if (found := _label_kind(field.type))}
    told = [name for name, (kind, _, width) in kinds.items() if kind != "dense" or width is not None]
    candidates = (
        named or told or list(kinds) or [field.name for field in free if len(free) == 1]
    )  # one that cannot fit is named so
    if len(candidates) > 1:
        names = ", ".join(map(repr, candidates))
        raise BigvocabError(
            f"{where}: {names} could each be the labels; choose with ", Keyword("label_column"), ", or as path::column"
        )
    if not candidates:
        wanted = "no column of integers, or of lists of integers or floats"
        wanted += f" besides {', '.join(map(repr, sorted(taken)))}" if taken else ""
        raise BigvocabError(
            f"{where}: {wanted}; choose with ", Keyword("label_column"), f"; the columns are: {listing(schema)}"
        )
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
    position: str | None = None,
    text: str | None = None,
    cluster: str | None = None,
    exclude: str | None = None,
    whole: bool = False,
) -> Columns:
    """Settle which columns are used, and check their types, before any row is read.

    Where labels may be `whole` numbers in a column of floats, it is not guessed: it is named, or there is no other.
    """
    others = [
        ("probability_column", probability, _is_number_list, "lists of floats"),
        ("weight_column", weight, _is_number, "numbers"),
        ("group_column", group, is_group, "strings, integers or booleans"),
        ("bytes_column", num_bytes, types.is_integer, "integers"),
        ("position_column", position, types.is_integer, "integers"),
        ("text_column", text, is_text, "strings"),
        ("cluster_column", cluster, is_group, "strings, integers or booleans"),
        ("exclude_column", exclude, _is_id_list, "lists of integers"),
    ]
    for option, name, fits, wanted in others:
        if name is not None and not fits(plain_type(kind := _check_column(schema, where, option, name))):
            raise BigvocabError(
                f"{where}: column {name!r} ({option}): expected {wanted}, got {kind}{odd_row(schema, name)}"
            )
    if label is None:
        label = _find_label(schema, where, {name for _, name, _, _ in others if name is not None})
    arrow_type = _check_column(schema, where, "label_column", label)
    found = _label_kind(arrow_type, whole)
    if found is None:
        raise BigvocabError(
            f"{where}: column {label!r}: expected integers, got {arrow_type} "
            "(labels are integers, lists of integers, or lists of float16, float32 or float64 of one length)"
            f"{odd_row(schema, label)}"
        )
    kind, dtype, num_classes = found
    if probability is not None:
        if kind != "list":
            raise BigvocabError(
                f"{where}: column {label!r}: expected lists of ids beside {probability!r}, got {arrow_type}"
            )
        kind = "sparse"
    return Columns(
        kind, dtype, num_classes, label, probability, weight, group, num_bytes, position, text, cluster, exclude
    )
