"""One record for every row that was compared; of several candidates, columns are called NAME.kl and so on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from bigvocab.comparison.blocks import Block
from bigvocab.comparison.specification import ComparisonSpecification
from bigvocab.jobs.records import group_names

_LABELLED = ("loss_reference", "loss_candidate", "loss_difference", "delta_p", "rank_reference", "rank_candidate")
_SPREAD = ("js", "tv", "logit_difference")
_TOPS = ("top_rank_in_candidate", "top_rank_in_reference")
_ORDER = (
    *_LABELLED[:3], "kl", "kl_reverse", "js", "tv", "delta_p", "predicted_reference", "predicted_candidate", "same_top",
    *_TOPS, "rank_reference", "rank_candidate", "confidence", "entropy_reference", "entropy_candidate",
    "logit_difference",
)  # fmt: skip


def _type(column: str) -> pa.DataType:
    if column == "same_top":
        return pa.bool_()
    return pa.int64() if "rank" in column or column.startswith("predicted") else pa.float64()


def _columns(asked: ComparisonSpecification, labelled: bool) -> Iterator[str]:
    for column in _ORDER:
        there = labelled or column not in _LABELLED
        if column in _TOPS:
            there = asked.asked.tops
        if there and asked.keeps(column):
            yield column
    yield from (f"overlap.{k}" for k in asked.asked.overlap)


def _prefix(asked: ComparisonSpecification, name: str) -> str:
    return f"{name}." if len(asked.candidates) > 1 else ""


def comparison_schema(asked: ComparisonSpecification, *, labelled: bool, group: bool) -> pa.Schema:
    """The columns of the records: those that are always there, and those of the metrics that were asked for."""
    fields = [pa.field("row", pa.int64(), nullable=False), *[pa.field("group", pa.string())] * group]
    for name in asked.candidates:
        fields += [
            pa.field(_prefix(asked, name) + column, _type(column)) for column in _columns(asked, labelled=labelled)
        ]
    return pa.schema(fields)


def comparison_records(schema: pa.Schema, asked: ComparisonSpecification, block: Block) -> pa.RecordBatch:
    """One record for every row of a block; values of ignored and skipped rows are null."""
    columns: dict[str, Any] = {"row": pa.array(np.arange(block.start, block.stop))}
    for name, rows in block.rows.items():
        if rows.groups is not None:
            columns.setdefault("group", group_names(rows.groups))
        for column, values in rows.columns.items():
            null = ~rows.counted | (values < 0) if column.startswith("predicted") else ~rows.counted
            field = _prefix(asked, name) + column
            if field in schema.names:
                columns[field] = pa.array(values, _type(column), mask=null)
    return pa.record_batch([columns[field.name] for field in schema], schema=schema)
