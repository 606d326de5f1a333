"""Statistics of rows that were made of several ranges of classes apart, merged in order of class."""

from __future__ import annotations

import numpy as np

from bigvocab.kernels.jit import jit
from bigvocab.kernels.row_statistics import (
    ARGMAX,
    EQUAL,
    GREATER,
    MAX,
    SHIFTED,
    SQUARED,
    SUM,
    TOTAL,
    merge_squares,
    merge_tile,
)
from bigvocab.kernels.softmax_wide import transformed


@jit
def merge_statistics(groups, transform, stats):
    """Add groups' statistics (G, n, columns), in order, to stats (n, columns); transform = (scale, softcap or 0)."""
    scale, softcap = transform
    for g in range(groups.shape[0]):
        for r in range(stats.shape[0]):
            mine, other = stats[r], groups[g, r]
            mine[TOTAL] += other[TOTAL]
            mine[GREATER] += other[GREATER]
            mine[EQUAL] += other[EQUAL]
            top = other[MAX]
            if np.isnan(mine[SUM]) or np.isnan(other[SUM]):
                mine[SUM] = np.nan
            elif mine[MAX] == np.inf or top == np.inf:
                if top > mine[MAX]:
                    mine[ARGMAX] = other[ARGMAX]
                mine[MAX], mine[SUM] = np.inf, 1.0
            elif top > -np.inf:
                gap = 0.0
                if mine[MAX] > -np.inf:
                    gap = abs(transformed(top, scale, softcap) - transformed(mine[MAX], scale, softcap))
                if top > mine[MAX]:
                    mine[ARGMAX] = other[ARGMAX]
                if stats.shape[1] > SQUARED:
                    merge_squares(mine, top, other[SQUARED], gap)
                merge_tile(mine, top, other[SUM], other[SHIFTED], gap)
                mine[MAX] = max(top, mine[MAX])
