"""Classes that do not exist for a row: its logits with -inf in their place, and no more copied than a block.

Ids are int64 and rising: `common` those of all rows, `own` those of one row. They count from class 0 of the matrix, of
which a tile has the classes from `first_class` on. `nothing` is -inf as the tile stores it.
"""

from __future__ import annotations

import numpy as np

from bigvocab.kernels.jit import inline, jit

_NEVER = 1 << 62


@inline
def position(ids, value):
    """How many of the rising ids are below `value`."""
    low, high = 0, ids.size
    while low < high:
        middle = (low + high) // 2
        if ids[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low


@inline
def _put(out, ids, first, stop, nothing):
    """Put -inf in place of those of the ids that lie in [first, stop), of which `out` has the first one at 0."""
    for i in range(position(ids, first), ids.size):
        if ids[i] >= stop:
            break
        out[ids[i] - first] = nothing


@inline
def _any_in(ids, first, stop):
    at = position(ids, first)
    return at < ids.size and ids[at] < stop


@inline
def _next_of(ids, at):
    return ids[at] if at < ids.size else _NEVER


@inline
def first_hidden(start, first_class, hidden):
    """Where to look from `start` on: the places in (common, own), and the first hidden class of the tile there."""
    if hidden is None:
        return 0, 0, 0
    common, own, _, _, _ = hidden
    i, j = position(common, first_class + start), position(own, first_class + start)
    return i, j, min(_next_of(common, i), _next_of(own, j)) - first_class


@inline
def show_strip(x, start, stop, first_class, hidden, following):
    """Copy the strip of a row that holds the `following` hidden class into the room; returns what follows after it."""
    common, own, room, _, nothing = hidden
    i, j, at = following
    strip = x[start:stop]
    for k in range(strip.size):
        room[k] = strip[k]
    while at < stop:
        room[at - start] = nothing
        if i < common.size and common[i] - first_class == at:
            i += 1
        if j < own.size and own[j] - first_class == at:
            j += 1
        at = min(_next_of(common, i), _next_of(own, j)) - first_class
    return i, j, at


@inline
def shown_block(x, start, stop, first_class, hidden):
    """A block of a row as (array, start, stop): where it lies, or a copy where a class of it is hidden.

    hidden = None, or (common, own, room, the same room read-only, nothing); the room has as many elements as a block.
    """
    if hidden is None:
        return x, start, stop
    common, own, room, shown, nothing = hidden
    first, last = first_class + start, first_class + stop
    if not (_any_in(common, first, last) or _any_in(own, first, last)):
        return x, start, stop
    block = x[start:stop]
    for i in range(block.size):
        room[i] = block[i]
    _put(room, common, first, last, nothing)
    _put(room, own, first, last, nothing)
    return shown, 0, stop - start


@jit
def shown_row(x, first_class, common, own, nothing):
    """A copy of a whole row of a tile."""
    out = np.empty_like(x)
    out[:] = x
    _put(out, common, first_class, first_class + x.size, nothing)
    _put(out, own, first_class, first_class + x.size, nothing)
    return out


@jit
def hide_in_tile(tile, span, common, offsets, ids, nothing):
    """Put -inf into a tile (n, at least classes) of one's own; span = (first class, classes); row r has the
    ids[offsets[r] : offsets[r + 1]].
    """
    first, classes = span
    for r in range(offsets.size - 1):
        row = tile[r]
        _put(row, common, first, first + classes, nothing)
        _put(row, ids[offsets[r] : offsets[r + 1]], first, first + classes, nothing)


@jit
def copy_rows(tile, classes, skip, out):
    """Copy the classes of the rows that are not skipped into `out` (n, classes)."""
    for r in range(skip.size):
        if not skip[r]:
            out[r] = tile[r, :classes]
