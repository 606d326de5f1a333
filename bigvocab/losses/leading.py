"""Logits (..., V) of any library as rows, and the results of rows in the shape of the dimensions before the columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.arguments import as_integers, refuse_other_floats
from bigvocab.errors import BigvocabError
from bigvocab.losses.reductions import broadcast_weights
from bigvocab.matrices.row_source import RowSource, as_row_source

Floats = npt.NDArray[np.float64]


def float_rows(name: str, values: Any) -> RowSource:
    """Rows of an array (..., V) of one of the four float types."""
    source = as_row_source(values, name)
    refuse_other_floats(name, source.dtype)
    return source


def by_block(
    source: RowSource, work: Callable[[int, npt.NDArray[Any]], Floats], start: int = 0, stop: int | None = None
) -> Floats:
    """The results of `work(first row, rows)` for all rows, or those from `start` to before `stop`, one after the other;
    no row's may depend on the blocks.
    """
    found = [work(first, rows) for first, rows in source.blocks(start, stop)]
    return found[0] if len(found) == 1 else np.concatenate(found) if found else np.empty(0)


def flat_weights(weights: Any, shape: tuple[int, ...]) -> Floats:
    """A weight per row of `shape`, flat; or a scalar."""
    found = broadcast_weights(1.0 if weights is None else weights, shape)
    return np.broadcast_to(found, shape).reshape(-1) if found.ndim and len(shape) > 1 else found


def flat_elements(weights: Any, shape: tuple[int, ...]) -> Floats:
    """Weights that broadcast to `shape` (..., V), as those of (N, V); or a scalar."""
    found = broadcast_weights(1.0 if weights is None else weights, shape)
    if not found.ndim or len(shape) == 2:
        return found
    return np.broadcast_to(found, (*shape[:-1], found.shape[-1])).reshape(-1, found.shape[-1])


def flat_ids(name: str, labels: Any, leading: tuple[int, ...]) -> Any:
    """Ids (..., T) as (N, T); pairs (offsets, ids) as they are."""
    if isinstance(labels, tuple) or len(leading) == 1:
        return labels
    ids = as_integers(name, labels)
    if ids.shape[:-1] != leading:
        raise BigvocabError(f"{name}: got shape {ids.shape}, expected {leading} before the last dimension")
    return ids.reshape(-1, ids.shape[-1])


def shaped(found: Any, shape: tuple[int, ...], reduction: str) -> Any:
    """Losses in the shape of the labels; one value of all as it is."""
    return found.reshape(shape) if reduction == "none" else found
