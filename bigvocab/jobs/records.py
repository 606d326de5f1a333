"""losses.parquet: one record for every row of the data, in batches that do not show how they were computed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bigvocab.catalogue import METRICS, RANKING
from bigvocab.evaluation.options import Measures
from bigvocab.evaluation.row_result import RowResult
from bigvocab.labels.labels import LabelBatch

GROUP_ROWS = 65_536  # rows of a row group: fixed, so that the file does not depend on the size of the batches
_LISTS = {"list<int64>": pa.list_(pa.int64()), "list<float>": pa.list_(pa.float32())}
# Whole numbers first, lists last.
_METRICS = {
    name: (metric.name, _LISTS.get(kind) or pa.type_for_alias(kind))
    for metric in sorted(METRICS.values(), key=lambda m: [kind != "int64" for _, kind in m.records])
    for name, kind in metric.records
}


def ranking_columns_of(measures: Measures) -> tuple[str, ...]:
    """The columns of the ranking, where there is one: recall@10 and the like."""
    if "ranking" not in measures:
        return ()
    psp = measures.frequencies is not None
    return tuple(f"{name}@{k}" for name in RANKING if psp or name != "psp" for k in measures.top_k)


def record_schema(
    metrics: tuple[str, ...], *, weight: bool, group: bool, half_ranks: bool = False, ranking: tuple[str, ...] = ()
) -> pa.Schema:
    """The columns of losses.parquet: those that are always there, and those of the metrics that were asked for.

    `half_ranks`: where a rank is a mean over ties, it may be no whole number.
    """
    fields = [pa.field("row", pa.int64(), nullable=False), pa.field("loss", pa.float64())]
    fields += [pa.field("weight", pa.float64())] * weight + [pa.field("group", pa.string())] * group
    for name, (metric, kind) in _METRICS.items():
        if metric in metrics:
            fields.append(pa.field(name, pa.float64() if name == "rank" and half_ranks else kind))
    return pa.schema(fields + [pa.field(name, pa.float64()) for name in ranking])


def records_of(schema: pa.Schema, batch: LabelBatch, rows: RowResult) -> pa.RecordBatch:
    """One record for every row of a block; values of ignored and skipped rows are null."""
    null = ~rows.counted
    columns: dict[str, Any] = {
        **rows.values,
        "row": np.arange(batch.first_row, batch.first_row + len(rows)),
        "loss": rows.loss,
    }
    if (ranking := rows.values.get("ranking")) is not None:
        names = [name for name in schema.names if "@" in name]
        columns |= dict(zip(names, ranking.reshape(len(rows), -1).T, strict=True))
    columns["weight"] = batch.weights if batch.weights is not None else np.ones(len(rows))
    if batch.groups is not None:
        columns["group"] = group_names(batch.groups)
    arrays = []
    for field in schema:
        mask = null if field.name in _METRICS or field.name == "loss" or "@" in field.name else None
        values = columns[field.name]
        if field.name == "predicted":
            mask = null | (values < 0)
        if pa.types.is_list(field.type):
            arrays.append(_lists(values, columns["top_ids"] >= 0, null, field.type))
        else:
            arrays.append(values if isinstance(values, pa.Array) else pa.array(values, field.type, mask=mask))
    return pa.record_batch(arrays, schema=schema)


def _lists(values: Any, there: Any, null: Any, kind: pa.DataType) -> pa.Array:
    """The values (n, K) of each row that are there as a list; null where the row is, or has none."""
    there = there & ~null[:, None]
    counts = np.count_nonzero(there, axis=1)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    flat = pa.array(values[there], kind.value_type)
    return pa.ListArray.from_arrays(pa.array(offsets), flat, mask=pa.array(counts == 0))


def group_names(groups: tuple[Any, list[str]]) -> pa.Array:
    """The name of each row's group, from codes and names."""
    codes, names = groups
    return pa.DictionaryArray.from_arrays(codes, pa.array(names, pa.string())).cast(pa.string())


class RecordGroups:
    """Records in batches of any size go in, batches of 65,536 come out: files do not show how they were computed."""

    def __init__(self) -> None:
        self._held: list[pa.RecordBatch] = []
        self._rows = 0

    def add(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """The batches that are full now."""
        self._held.append(batch)
        self._rows += len(batch)
        if self._rows >= GROUP_ROWS:
            table = pa.Table.from_batches(self._held)
            whole = self._rows // GROUP_ROWS * GROUP_ROWS
            self._held, self._rows = table.slice(whole).to_batches(), self._rows - whole
            for start in range(0, whole, GROUP_ROWS):
                yield from table.slice(start, GROUP_ROWS).combine_chunks().to_batches()

    def rest(self) -> Iterator[pa.RecordBatch]:
        """The last batch."""
        if self._rows:
            yield from pa.Table.from_batches(self._held).combine_chunks().to_batches()


class RecordSink(Protocol):
    """What records are written to, in the order of the data."""

    def append(self, batch: pa.RecordBatch) -> None:
        """Add records."""

    def close(self) -> None:
        """Write what is left, and what ends the file."""


class RecordWriter:
    """Writes losses.parquet from records in the order of the data."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._file = pa.OSFile(os.fsencode(path), "wb")
        self._writer = pq.ParquetWriter(self._file, schema, compression="zstd")
        self._groups = RecordGroups()

    def append(self, batch: pa.RecordBatch) -> None:
        """Add records."""
        for full in self._groups.add(batch):
            self._writer.write_batch(full, row_group_size=GROUP_ROWS)

    def close(self) -> None:
        """Write what is left and the footer."""
        for last in self._groups.rest():
            self._writer.write_batch(last, row_group_size=GROUP_ROWS)
        self._writer.close()
        self._file.close()


def regrouped(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Records in batches of 65,536 rows."""
    groups = RecordGroups()
    for batch in batches:
        yield from groups.add(batch)
    yield from groups.rest()
