"""Rows of llama.cpp's logits files as logits: 16 bits and a scale, with what lies at the floor masked."""

from __future__ import annotations

import math

import numpy as np

from bigvocab.kernels.jit import jit

_TOP = np.int32(65535)


@jit
def decode_rows(stored, scales, floored, out):
    """out = scale (q - 65535), the log probability less that of the top; -inf for q = 0 in a floored row.

    stored (n, V) uint16, scales (n,) float32, floored (n,) bool, out (n, V) float32. One rounding, relative to the
    distance from the top.
    """
    for r in range(out.shape[0]):
        q, x, scale = stored[r], out[r], scales[r]
        low = np.float32(-np.inf) if floored[r] else np.float32(0.0)
        for i in range(x.size):
            value = scale * np.float32(np.int32(q[i]) - _TOP)
            x[i] = value + low if q[i] == 0 else value


@jit
def mask_rows(x, other):
    """x = -inf where `other` is; both (n, V) of float32 or float64."""
    for r in range(x.shape[0]):
        a, b = x[r], other[r]
        for i in range(a.size):
            a[i] = a[i] if b[i] > -np.inf else -np.inf


@jit
def stored_tops(stored, floored, labels, others, tops, counts, ranks):
    """Of rows of 16-bit numbers: the lowest id of the top, what lies above and at it, and above the label.

    tops (n,) is written; others (n,) are ids of another side's tops, -1 where there is none; counts (n, 2) = (numbers
    above that of `others`, numbers at the top); ranks (n,) = 1 + numbers above the label's, 0 without a label.
    """
    for r in range(tops.size):
        q = stored[r]
        best = q[0]
        for i in range(q.size):  # loops without a branch, which become vectors
            best = max(best, q[i])
        top = 0
        while q[top] != best:
            top += 1
        tops[r] = top
        other = q[others[r]] if others[r] >= 0 else best
        label = q[labels[r]] if labels[r] >= 0 else best
        above, ties, above_label = 0, 0, 0
        for i in range(q.size):
            above += q[i] > other
            ties += q[i] == best
            above_label += q[i] > label
        counts[r, 0], counts[r, 1] = above, ties
        ranks[r] = 1 + above_label if labels[r] >= 0 else 0


@jit
def stored_losses(stored, scales, lowest, labels, out):
    """out = -(scale q + lowest) of each row's label, in float64; NaN without one."""
    for r in range(out.size):
        y = labels[r]
        out[r] = math.nan if y < 0 else -(np.float64(scales[r]) * np.float64(stored[r, y]) + np.float64(lowest[r]))
