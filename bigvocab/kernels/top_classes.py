"""The k highest classes of rows of logits, and how many of them two sides share."""

from __future__ import annotations

from bigvocab.kernels import lanes as v
from bigvocab.kernels import memory as m
from bigvocab.kernels.jit import inline, jit
from bigvocab.kernels.row_statistics import SKIP, lanes_at


@inline
def _insert(ids, values, at, value):
    """Put a class after all that are as high: those came before it."""
    place = ids.size - 1
    while place > 0 and values[place - 1] < value:
        ids[place], values[place] = ids[place - 1], values[place - 1]
        place -= 1
    ids[place], values[place] = at, value


@jit
def rows_top_classes(logits, labels, span, ids, values):
    """Merge a tile of logits into the highest classes of its rows, ties by id; tiles come in order of class.

    labels (n,), SKIP leaves a row out; span = (first class, classes); ids (n, k) int64, -1 where there is none yet, and
    values (n, k) float64, -inf there: a masked class is none of them.
    """
    for r in range(labels.size):
        if labels[r] == SKIP:
            continue
        x, mine, best = logits[r, : span[1]], ids[r], values[r]
        size, last = m.width(x), mine.size - 1
        for start in range(0, x.size, size):
            least = v.splat(v.like_lane(best[last], x), v.zeros_for(x))
            if not v.any_greater(lanes_at(x, start, x.size, size), least):
                continue
            for i in range(start, min(start + size, x.size)):
                value = m.load_scalar(x, i)
                if value > best[last]:
                    _insert(mine, best, span[0] + i, value)


@jit
def rows_shared(ids, others, k, out):
    """out = how many of the first k classes of each row are among the first k of the other side."""
    for r in range(out.size):
        count = 0
        for i in range(k):
            for j in range(k):
                count += ids[r, i] >= 0 and ids[r, i] == others[r, j]
        out[r] = count
