"""Labels, weights and groups of a batch (B, T) as those of its rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from bigvocab import arguments
from bigvocab.arrays import as_host_array
from bigvocab.matrices.row_source import flat_labels


def flat_array(labels: Any, leading: tuple[int, ...], *, one_each: bool) -> Any:
    """Labels in memory that have the shape of logits (*leading, columns), as those of its rows; others as they are."""
    if isinstance(labels, pa.Array | pa.ChunkedArray | pa.Table | pa.RecordBatch):  # has rows already
        return labels
    found = as_host_array(labels, "labels")
    if not isinstance(found, np.ndarray):
        return labels
    if found.shape == leading or one_each and found.ndim > 1 and _without_ones(found.shape) == _without_ones(leading):
        return found.reshape(-1)
    if len(leading) > 1 and found.shape[:-1] == leading:
        return found.reshape(-1, found.shape[-1])
    return labels


def _without_ones(shape: tuple[int, ...]) -> list[int]:
    return [size for size in shape if size != 1]


def flat_batch(
    labels: Any, weights: Any, groups: Any, leading: tuple[int, ...], *, one_each: bool
) -> tuple[Any, Any, Any, tuple[int, ...]]:
    """(labels, weights, groups, shape of the losses) of rows that came as (*leading, columns).

    Labels are one for each row where `one_each` says so; else they may have a last dimension of their own, as soft
    labels (B, T, V) do. What is no array, such as a pair (offsets, ids) or a path, stays as it is.
    """
    shape = leading
    found = as_host_array(labels, "labels")
    if isinstance(found, np.ndarray) and found.dtype != object:  # as columns of lists would be
        labels = found
    if isinstance(labels, list) and labels and isinstance(labels[0], list) and (one_each or len(leading) > 1):
        labels = arguments.as_array("labels", labels)
    if isinstance(labels, np.ndarray):
        if one_each and labels.shape != leading:
            labels, shape = flat_labels(labels, leading), labels.shape
        elif len(leading) > 1 and labels.shape[:-1] == leading:
            labels = labels.reshape(-1, labels.shape[-1])
        elif len(leading) > 1:
            labels = flat_labels(labels, leading)
    if weights is not None and (one_each or len(leading) > 1):
        weights = arguments.as_array("weights", weights)
        weights = flat_labels(weights, leading, "weights") if weights.ndim else weights
    if groups is not None and len(leading) > 1:
        names = np.asarray(as_host_array(groups, "groups"))
        groups = flat_labels(names, leading, "groups") if names.ndim > 1 else groups
    return labels, weights, groups, shape
