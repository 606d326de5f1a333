"""Softmax statistics of rows with what only some ask for: sums of squares, and the highest classes."""

from __future__ import annotations

import numpy as np

from bigvocab.kernels.highest import buffer_of, forget_tile, keep_row
from bigvocab.kernels.jit import jit
from bigvocab.kernels.row_statistics import SKIP
from bigvocab.kernels.softmax import softmax_row_with
from bigvocab.kernels.softmax_wide import row_wide


@jit
def rows_softmax_with(logits, labels, label_logits, transform, want, span, stats, squares, highest):
    """As `rows_softmax`, with more: `squares` True adds the column SQUARED, else None; `highest` = (keys, ids, marks)
    of `kernels.highest` gets the highest classes of the rows, else None.
    """
    scale, softcap = transform
    first_class, classes = span
    for r in range(labels.size):
        if labels[r] == SKIP:
            continue
        x = logits[r, :classes]
        label = label_logits[r] if labels[r] >= 0 else np.nan
        kept = buffer_of(highest, r)
        if softcap > 0 or not softmax_row_with(x, label, scale, want, first_class, stats[r], None, squares, kept):
            row_wide(x, label, scale, softcap, want, first_class, stats[r])
            if highest is not None:
                forget_tile(first_class, kept)
                keep_row(x, first_class, kept)
