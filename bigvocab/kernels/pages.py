"""Pages of a mapped file, entered in the map before they are read."""

from __future__ import annotations

import numpy as np

from bigvocab.kernels.jit import jit

AROUND = 1 << 16  # bytes, aligned, that Linux enters for one page fault (its fault_around_bytes)


@jit
def touch_rows(data, address, stride, width, left_out):
    """Read one byte of all that a page fault brings, for rows that are not left out.

    data, bytes, begins at `address`; row r is data[r * stride : r * stride + width]; left_out (n,) bool. What it
    returns means nothing, but without it the compiler would leave the reads out.
    """
    seen, done = np.uint8(0), 0
    for r in range(left_out.size):
        if left_out[r]:
            continue
        at, stop = max(r * stride, done), r * stride + width
        while at < stop:
            seen |= data[at]
            at += AROUND - (address + at) % AROUND
        done = at
    return seen
