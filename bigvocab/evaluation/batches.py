"""Batches that come one by one: labels in memory as a label batch; logits and labels of an Arrow RecordBatch or Table,
and the same batch with its losses.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bigvocab import arguments
from bigvocab.errors import BigvocabError
from bigvocab.labels.columns import groups_of
from bigvocab.labels.label_sources import labels_of
from bigvocab.labels.labels import LabelBatch, Labels, read_labels

_ELEMENTS = {
    pa.float16(): np.float16,
    pa.float32(): np.float32,
    pa.float64(): np.float64,
    pa.uint16(): ml_dtypes.bfloat16,
}


def label_batch(
    kinds: tuple[str, ...], labels: Any, weights: Any, groups: Any, *, rows: int, ignore_index: int | None
) -> LabelBatch:
    """Arrays of as many rows as a label batch; row numbers in messages count from its start."""
    found, probabilities = labels_of(kinds, labels, rows)
    values = None
    if weights is not None:
        values = arguments.as_array("weights", weights)
        if values.dtype.kind not in "fiub":
            raise TypeError(f"weights: expected real numbers, got {values.dtype}")
        values = values.astype(np.float64)
        if values.ndim == 0:
            values = np.broadcast_to(values, (rows,))
        arguments.one_per_row("weights", values, rows)
        _check_weights(values, found, ignore_index)
    coded = None
    if groups is not None:
        coded = groups_of(groups)
        arguments.one_per_row("groups", coded[0], rows)
    return LabelBatch(0, found, probabilities=probabilities, weights=values, groups=coded)


def _check_weights(weights: npt.NDArray[np.float64], labels: Any, ignore_index: int | None) -> None:
    """Raise for the first weight that is not finite; ignored rows may have any."""
    bad = ~np.isfinite(weights)
    if ignore_index is not None and isinstance(labels, np.ndarray) and labels.ndim == 1:
        bad &= labels != ignore_index
    if bad.any():
        row = int(np.argmax(bad))
        raise BigvocabError.of_row("weights", row, f" is {weights[row]}, expected a finite number")


def arrays_of(batch: Any, columns: dict[str, str | None], name: str = "logits") -> tuple[npt.NDArray[Any], Labels]:
    """The column `name` as (N, V), zero-copy where it is in one chunk, and the labels of the other columns."""
    if not isinstance(batch, pa.RecordBatch | pa.Table):
        raise TypeError(f"batch: expected a pyarrow RecordBatch or Table, got {type(batch).__name__}")
    listed = ", ".join(f"{field.name!r} ({field.type})" for field in batch.schema)
    if (count := batch.schema.names.count(name)) != 1:
        raise BigvocabError(f"batch: {count or 'no'} column{'s' * (count > 1)} {name!r}; there are: {listed}")
    if "loss" in batch.schema.names:
        raise BigvocabError(f"batch: has a column 'loss' already; there are: {listed}")
    column = batch.column(name)
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    arrays = [_values(name, column.type, chunk) for chunk in chunks if len(chunk)]
    width = getattr(_storage(column.type), "list_size", 0)
    matrix = arrays[0] if len(arrays) == 1 else np.concatenate(arrays or [np.zeros((0, max(1, width)), np.float32)])
    rest = batch.select([other for other in batch.schema.names if other != name])
    table = rest if isinstance(rest, pa.Table) else pa.Table.from_batches([rest])
    return matrix, read_labels(table, **columns)


def _storage(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.FixedShapeTensorType) else kind


def _values(name: str, kind: pa.DataType, chunk: Any) -> npt.NDArray[Any]:
    """One chunk as (n, V)."""
    array = chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk
    kind = array.type
    flat_tensor = not isinstance(chunk, pa.FixedShapeTensorArray) or len(chunk.type.shape) == 1
    if not flat_tensor or not pa.types.is_fixed_size_list(kind) or kind.value_type not in _ELEMENTS:
        raise BigvocabError(
            f"batch: column {name!r} is {chunk.type}, expected a FixedSizeList or fixed_shape_tensor of floats"
        )
    flat = array.flatten()  # unlike .values, this honours the slice
    if array.null_count or flat.null_count:
        raise BigvocabError(f"batch: column {name!r} has nulls, expected none")
    values = np.frombuffer(
        flat.buffers()[1], _ELEMENTS[kind.value_type], len(flat), flat.offset * kind.value_type.bit_width // 8
    )
    return values.reshape(len(array), kind.list_size)


def with_losses(batch: Any, losses: npt.NDArray[np.float64], left_out: npt.NDArray[np.bool_]) -> Any:
    """The same batch with a column `loss`, null where the row is ignored or skipped."""
    column = pa.array(losses, mask=left_out)
    if isinstance(batch, pa.Table):
        return batch.append_column("loss", column)
    fields = [*batch.schema, pa.field("loss", pa.float64())]
    return pa.RecordBatch.from_arrays([*batch.columns, column], schema=pa.schema(fields, batch.schema.metadata))
