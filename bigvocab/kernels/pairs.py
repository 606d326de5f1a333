"""All that one look at pairs of whole rows of logits finds, row after row, while a pair lies in the cache."""

from __future__ import annotations

from bigvocab.kernels import memory as m
from bigvocab.kernels.divergence import rows_divergence
from bigvocab.kernels.divergence_merge import match_equal_rows, rows_tops
from bigvocab.kernels.jit import inline, jit
from bigvocab.kernels.row_statistics import ARGMAX, SKIP, clear_statistics
from bigvocab.kernels.softmax import rows_softmax
from bigvocab.kernels.softmax_capped import rows_softmax_capped

# What is asked for, added up.
FULL, WIDE, TOPS, TWO_TYPES, KNOWN = 1, 2, 4, 8, 16


@inline
def _softmax(logits, labels, label_logits, transform, capped, want, span, stats):
    if capped is None:
        rows_softmax(logits, labels, label_logits, transform[0], want, True, span, stats)
    elif transform[1] > 0:
        rows_softmax_capped(logits, labels, label_logits, transform, want, span, stats)
    else:
        rows_softmax(logits, labels, label_logits, transform[0], want, True, span, stats)


@jit
def rows_compared(
    logits, others, labels, label_logits, transforms, capped, want, asked, span, stats, other_stats, at_top, out, tops
):
    """Statistics of both sides, divergences and tops of pairs of rows of all their classes.

    logits and others (n, at least classes); labels (n,), SKIP leaves a row out; label_logits (2, n); transforms as in
    `rows_divergence`, with a softcap only where `capped` is not None; want as in `rows_softmax`; asked = FULL | WIDE |
    TOPS | TWO_TYPES | KNOWN, where KNOWN says that `stats` is there already; span = (0, classes); stats, other_stats
    (n, row_statistics.COLUMNS), at_top (2, n), out (n, divergence.COLUMNS) and tops (n, 4) are written, the last two
    added to.
    """
    for r in range(labels.size):
        if labels[r] == SKIP:
            continue
        x, y, label = logits[r : r + 1], others[r : r + 1], labels[r : r + 1]
        mine, theirs = stats[r : r + 1], other_stats[r : r + 1]
        if not asked & KNOWN:
            clear_statistics(mine)
            _softmax(x, label, label_logits[0, r : r + 1], transforms[0], capped, want, span, mine)
        clear_statistics(theirs)
        _softmax(y, label, label_logits[1, r : r + 1], transforms[1], capped, want, span, theirs)
        if asked & TWO_TYPES:
            match_equal_rows(x, y, label, span, mine, theirs)
        rows_divergence(
            x, y, label, transforms, span, asked & WIDE != 0, asked & FULL != 0, mine, theirs, out[r : r + 1]
        )
        if asked & TOPS:
            top, other_top = int(stats[r, ARGMAX]), int(other_stats[r, ARGMAX])
            if top >= 0 and other_top >= 0:
                at_top[0, r] = m.load_scalar(logits[r], other_top)
                at_top[1, r] = m.load_scalar(others[r], top)
                rows_tops(x, y, label, span, mine, theirs, at_top[:, r : r + 1], tops[r : r + 1])
