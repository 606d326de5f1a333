"""The final norm of hidden states: root mean square, or mean and variance, in float64, rounded once at the end."""

from __future__ import annotations

import math

from bigvocab.kernels.jit import jit


@jit
def rows_norm(x, centred, weight, bias, epsilon, out):
    """Put (x - m) / sqrt(mean (x - m)^2 + epsilon) * weight + bias into `out`; m = mean x if `centred`, else 0."""
    rows, depth = x.shape
    for r in range(rows):
        mean = 0.0
        if centred:
            for k in range(depth):
                mean += x[r, k]
            mean /= depth
        square = 0.0
        for k in range(depth):
            square += (x[r, k] - mean) * (x[r, k] - mean)
        scale = 1.0 / math.sqrt(square / depth + epsilon)
        for k in range(depth):
            out[r, k] = (x[r, k] - mean) * scale * weight[k] + bias[k]
