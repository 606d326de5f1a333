"""Arrow batches in a pipeline: logits and labels of a RecordBatch or Table, and the same batch with its losses."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bigvocab.errors import BigvocabError
from bigvocab.labels import Labels, read_labels

_ELEMENTS = {
    pa.float16(): np.float16,
    pa.float32(): np.float32,
    pa.float64(): np.float64,
    pa.uint16(): ml_dtypes.bfloat16,
}


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
    return matrix, read_labels(table, **{f"{role}_column": chosen for role, chosen in columns.items()})


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
