"""Columns and tables of other libraries as Arrow's: pandas, Polars, Hugging Face `datasets`, whoever speaks Arrow."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pyarrow as pa

from bigvocab.arrays import as_host_array
from bigvocab.errors import BigvocabError


def _is_of(value: Any, library: str, *names: str) -> bool:
    """Whether `value` is an instance of one of these classes of a library that the caller has loaded."""
    kinds = tuple(getattr(sys.modules.get(library), name, ()) for name in names)
    return isinstance(value, kinds)


def as_table_source(value: Any, name: str) -> Any:
    """A column or a table of another library as pyarrow's, an array as NumPy's; anything else, a path say, as it came.

    Nulls stay nulls; NaN of pandas, which has nothing else for them among floats, becomes one.

    Raises:
        TypeError: what has no rows yet (a LazyFrame, an IterableDataset). BigvocabError: a DatasetDict of splits.
    """
    if isinstance(value, np.ndarray | pa.Array | pa.ChunkedArray | pa.Table | pa.RecordBatch | str | list | tuple):
        return value
    if _is_of(value, "pandas", "DataFrame"):
        return pa.Table.from_pandas(value, preserve_index=False)
    if _is_of(value, "pandas", "Series", "Index"):
        return pa.array(value, from_pandas=True)
    if _is_of(value, "polars", "LazyFrame"):
        raise TypeError(f"{name}: got a Polars LazyFrame, which has no rows yet; call .collect() on it")
    if _is_of(value, "datasets", "DatasetDict", "IterableDatasetDict"):
        raise BigvocabError(f"{name}: got a DatasetDict, expected one of its splits: {', '.join(map(repr, value))}")
    if _is_of(value, "datasets", "IterableDataset"):
        raise TypeError(f"{name}: got an IterableDataset, which has no rows yet; save it, or give its batches")
    if _is_of(value, "datasets", "Dataset"):
        return value.with_format("arrow")[:]
    if _is_of(value, "polars", "Series", "DataFrame"):
        return value.to_arrow()
    found = as_host_array(value, name)
    if isinstance(found, np.ndarray | pa.Array | pa.ChunkedArray):
        return found
    return _by_protocol(found, name)


def _by_protocol(value: Any, name: str) -> Any:
    """What gives an Arrow stream of record batches as a table, and of arrays as a column."""
    if not hasattr(value, "__arrow_c_stream__"):
        return pa.array(value) if hasattr(value, "__arrow_c_array__") else value
    try:
        return pa.table(value)
    except (pa.ArrowException, TypeError, ValueError):
        return pa.chunked_array(value)
