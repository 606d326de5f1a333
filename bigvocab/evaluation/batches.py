"""Batches that come one by one: labels in memory as a label batch; logits and labels of an Arrow RecordBatch or Table,
and the same batch with its losses.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bigvocab import arguments
from bigvocab.errors import BigvocabError, Place
from bigvocab.formats.vectors import LISTS, vector_type, vectors_of
from bigvocab.labels.columns import groups_of, nameable
from bigvocab.labels.label_sources import labels_of
from bigvocab.labels.labels import LabelBatch, Labels, read_columns
from bigvocab.labels.ragged import as_ragged
from bigvocab.labels.stored_ids import PLAIN, StoredIds


def label_batch(
    kinds: tuple[str, ...],
    labels: Any,
    weights: Any,
    groups: Any,
    exclude: Any = None,
    *,
    rows: int,
    stored: StoredIds = PLAIN,
) -> LabelBatch:
    """Arrays of as many rows as a label batch; row numbers in messages count from its start."""
    found, probabilities, ignored = labels_of(kinds, labels, rows, stored)
    values = None
    if weights is not None:
        values = arguments.as_array("weights", weights)
        if values.dtype.kind not in "fiub":
            raise TypeError(f"weights: expected real numbers, got {values.dtype}")
        values = values.astype(np.float64)
        if values.ndim == 0:
            values = np.broadcast_to(values, (rows,))
        arguments.one_per_row("weights", values, rows)
        _check_weights(values, ignored)
    coded = None
    if groups is not None:
        coded = groups_of(groups)
        arguments.one_per_row("groups", coded[0], rows)
    excluded = None if exclude is None else _excluded(exclude, rows, stored)
    batch = LabelBatch(
        0, found, probabilities=probabilities, ignored=ignored, weights=values, groups=coded, excluded=excluded
    )
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "iu":
        batch.nameable = nameable(pa.from_numpy_dtype(labels.dtype.newbyteorder("=")))
    return batch


def _excluded(exclude: Any, rows: int, stored: StoredIds) -> Any:
    """Lists of ids for each row, (N, T) or a pair (offsets, ids), as a pair."""
    sets = as_ragged("exclude", exclude, rows)
    return sets.offsets, stored.shifted(sets.ids, "exclude", rows=sets.rows())


def _check_weights(weights: npt.NDArray[np.float64], ignored: npt.NDArray[np.bool_] | None) -> None:
    """Raise for the first weight that is not finite; ignored rows may have any."""
    bad = ~np.isfinite(weights)
    if ignored is not None:
        bad &= ~ignored
    if bad.any():
        row = int(np.argmax(bad))
        raise BigvocabError.of_row("weights", row, f" is {weights[row]}, expected a finite number")


def as_batch(batch: Any) -> Any:
    """A pyarrow RecordBatch or Table as it is; what has `__arrow_c_stream__` (Polars, pandas, DuckDB) as a Table.

    Raises:
        TypeError: none of these; BigvocabError: columns that Arrow cannot hold.
    """
    if isinstance(batch, pa.RecordBatch | pa.Table):
        return batch
    if not hasattr(batch, "__arrow_c_stream__"):
        kind = type(batch).__name__
        raise TypeError(
            f"batch: expected a pyarrow RecordBatch or Table, or what has __arrow_c_stream__ (a data frame), got {kind}"
        )
    try:
        return pa.table(batch)
    except (pa.ArrowException, TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BigvocabError(f"batch: {type(batch).__name__} is no Arrow table: {reason}") from error


def arrays_of(
    batch: Any, columns: dict[str, str | None], name: str = "logits", stored: StoredIds = PLAIN
) -> tuple[npt.NDArray[Any], Labels]:
    """The column `name` as (N, V), zero-copy where it is in one chunk, and the labels of the other columns."""
    listed = ", ".join(f"{field.name!r} ({field.type})" for field in batch.schema)
    if (count := batch.schema.names.count(name)) != 1:
        raise BigvocabError(f"batch: {count or 'no'} column{'s' * (count > 1)} {name!r}; there are: {listed}")
    if "loss" in batch.schema.names:
        raise BigvocabError(f"batch: has a column 'loss' already; there are: {listed}")
    matrix = _rows(batch.column(name), name)
    rest = batch.select([other for other in batch.schema.names if other != name])
    table = rest if isinstance(rest, pa.Table) else pa.Table.from_batches([rest])
    return matrix, read_columns(table, columns, stored)


def _rows(column: Any, name: str) -> npt.NDArray[Any]:
    """A column of vectors as (N, V); (0, 0) where there are no rows, and a list says by its rows how wide it is."""
    found, place = vector_type(column.type, bfloat16=True), Place("batch", f": column {name!r}")
    if found is None:
        raise BigvocabError(f"batch: column {name!r} is {column.type}, expected a {LISTS} of floats")
    arrays, width, row = [], found.width, 0
    for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
        if len(chunk):
            rows = vectors_of(chunk, place, row, width)
            width, row = rows.width, row + len(chunk)
            if not width:
                raise BigvocabError.of_row(place, row - len(chunk), " is empty, expected one number for each class")
            arrays.append(rows.array(found.dtype))
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays or [np.zeros((0, width or 0), found.dtype)])


def with_losses(batch: Any, losses: npt.NDArray[np.float64], left_out: npt.NDArray[np.bool_]) -> Any:
    """The same batch with a column `loss`, null where the row is ignored or skipped."""
    column = pa.array(losses, mask=left_out)
    if isinstance(batch, pa.Table):
        return batch.append_column("loss", column)
    fields = [*batch.schema, pa.field("loss", pa.float64())]
    return pa.RecordBatch.from_arrays([*batch.columns, column], schema=pa.schema(fields, batch.schema.metadata))
