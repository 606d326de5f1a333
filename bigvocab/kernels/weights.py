"""Rows of a layer as products take them, of any kind.

Rows of floats are an array, quantised ones a pair (blocks (n, row bytes), type), those that are multiplied as whole
numbers such a pair with room for scales (blocks of a row, width), and rows that are stored as columns a tuple of that
array alone.
"""

from __future__ import annotations

from numba import types
from numba.extending import overload

from bigvocab.kernels.panels import ask_for_rows, pack_columns, pack_panel
from bigvocab.kernels.quantised import pack_blocks
from bigvocab.kernels.whole_numbers import pack_whole


def pack_weights(weights, ids, first, stop, depth, panel):
    """As `panels.pack_panel`, of rows of either kind."""
    raise NotImplementedError("for kernels alone")


@overload(pack_weights)
def _pack_weights(weights, ids, first, stop, depth, panel):
    if isinstance(weights, types.BaseTuple) and len(weights) == 1:
        return lambda weights, ids, first, stop, depth, panel: pack_columns(weights[0], ids, first, stop, depth, panel)
    if isinstance(weights, types.BaseTuple) and len(weights) == 3:
        return lambda weights, ids, first, stop, depth, panel: pack_whole(
            weights[0], weights[1], ids, first, stop, depth, panel, weights[2]
        )
    if isinstance(weights, types.BaseTuple):
        return lambda weights, ids, first, stop, depth, panel: pack_blocks(
            weights[0], weights[1], ids, first, stop, depth, panel
        )
    return lambda weights, ids, first, stop, depth, panel: pack_panel(weights, ids, first, stop, depth, panel)


def scales_of(weights):
    """The scales of the panel that was packed last; None where numbers are multiplied as they are."""
    raise NotImplementedError("for kernels alone")


@overload(scales_of, inline="always")
def _scales_of(weights):
    if isinstance(weights, types.BaseTuple) and len(weights) == 3:
        return lambda weights: weights[2]
    return lambda weights: None


def ask_for_weights(weights, ids, first, stop, depth):
    """As `panels.ask_for_rows`, of rows of either kind."""
    raise NotImplementedError("for kernels alone")


@overload(ask_for_weights)
def _ask_for_weights(weights, ids, first, stop, depth):
    if isinstance(weights, types.BaseTuple) and len(weights) == 1:
        return lambda weights, ids, first, stop, depth: None
    if isinstance(weights, types.BaseTuple):
        return lambda weights, ids, first, stop, depth: ask_for_rows(weights[0], ids, first, stop, weights[0].shape[1])
    return lambda weights, ids, first, stop, depth: ask_for_rows(weights, ids, first, stop, depth)
