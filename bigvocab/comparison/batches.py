"""Batches of Arrow with a column of vectors for each side."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bigvocab.comparison.rules import ONLY
from bigvocab.comparison.specification import ComparisonSpecification
from bigvocab.errors import BigvocabError
from bigvocab.evaluation.batches import arrays_of
from bigvocab.formats.vectors import vector_type
from bigvocab.labels.labels import Labels, read_columns

_REFERENCE = "reference"


def vectors_of_batch(batch: Any) -> tuple[npt.NDArray[Any], dict[str, npt.NDArray[Any]], pa.Table]:
    """(reference, candidates by name, the other columns) of a batch.

    Raises:
        BigvocabError: columns that are missing.
    """
    table = batch if isinstance(batch, pa.Table) else pa.Table.from_batches([batch])
    vectors = [field.name for field in table.schema if vector_type(field.type) is not None and field.name != _REFERENCE]
    names = [ONLY] if ONLY in table.column_names else vectors
    listed = ", ".join(f"{field.name!r} ({field.type})" for field in table.schema)
    if _REFERENCE not in table.column_names or not names:
        missing = _REFERENCE if _REFERENCE not in table.column_names else "of a candidate"
        raise BigvocabError(f"batch: no column {missing}; there are: {listed}")
    rest = table.select([name for name in table.column_names if name not in (_REFERENCE, *names)])
    return _rows(table, _REFERENCE), {name: _rows(table, name) for name in names}, rest


def _rows(table: pa.Table, name: str) -> npt.NDArray[Any]:
    """A column of vectors as (N, V)."""
    beside = pa.array(np.zeros(len(table), np.int8))
    rows, _ = arrays_of(table.select([name]).append_column("label", beside), {"label_column": "label"}, name)
    return rows


def labels_of_batch(rest: pa.Table, asked: ComparisonSpecification) -> Labels | None:
    """The labels of a batch; None where there are none."""
    named = any(name in rest.column_names for name in ("label", "labels"))
    columns = asked.columns
    if columns.label is None and not named:
        if columns.group is None and columns.cluster is None:
            return None
        raise BigvocabError("batch: groups and clusters stand beside labels, expected a column label or labels")
    return read_columns(rest, columns.keywords(), asked.stored_ids)


def with_columns(batch: Any, columns: dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]]) -> Any:
    """The same batch with columns of values appended, null where the second array is False."""
    for name, (values, there) in columns.items():
        if name in batch.schema.names:
            raise BigvocabError(f"batch: has a column {name!r} already, expected none of that name")
        column = pa.array(values, mask=~there)
        if isinstance(batch, pa.Table):
            batch = batch.append_column(name, column)
            continue
        schema = pa.schema([*batch.schema, pa.field(name, pa.float64())], batch.schema.metadata)
        batch = pa.RecordBatch.from_arrays([*batch.columns, column], schema=schema)
    return batch
