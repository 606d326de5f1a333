"""Softmax statistics of rows with what only some ask for: sums of squares, and the highest classes."""

from __future__ import annotations

import numpy as np

from bigvocab.kernels.highest_cells import cells_of, keep_tile, lane_maxima, no_hits
from bigvocab.kernels.jit import jit
from bigvocab.kernels.row_statistics import SKIP
from bigvocab.kernels.softmax import softmax_row_with
from bigvocab.kernels.softmax_capped import row_capped
from bigvocab.kernels.softmax_wide import row_wide


@jit
def rows_softmax_with(logits, labels, label_logits, transform, capped, want, entropy, span, stats, squares, highest):
    """As `rows_softmax`, with more: `squares` True adds the column SQUARED, else None; `highest` = (keys, ids,
    offsets, bounds, scratch, k) gets what may be among the k highest classes of each row, see `highest_cells`,
    else None.

    transform = (scale, softcap); `capped` is True where there is a softcap, else None: then no loop for one is
    compiled.
    """
    scale, softcap = transform
    first_class, classes = span
    for r in range(labels.size):
        if labels[r] == SKIP:
            if highest is not None:
                no_hits(highest, r)
            continue
        x = logits[r, :classes]
        label = label_logits[r] if labels[r] >= 0 else np.nan
        cells = cells_of(highest)
        if capped is None:
            done = softmax_row_with(x, label, scale, want, entropy, first_class, stats[r], None, squares, cells)
        else:
            done = row_capped(x, label, scale, softcap, want, first_class, stats[r], squares)
        if not done:
            row_wide(x, label, scale, softcap, want, first_class, stats[r])
        if highest is not None and (capped is not None or not done):
            lane_maxima(x, cells)
        if highest is not None:
            keep_tile(x, first_class, highest[:3], highest[3][r], highest[5], r, highest[4])
