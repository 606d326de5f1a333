"""Divergences of ranges of classes merged by the chain rule, and what else is counted of a pair of rows.

With P_k and Q_k the shares that range k has of each side,

    kl = sum_k P_k kl_k + sum_k term(P_k, Q_k),

where no term is negative and none cancels; kl_reverse likewise. js, tv and distances are no functions of a few sums:
they take a second pass with the logsumexps of the whole rows.
"""

from __future__ import annotations

import math

import numpy as np

from bigvocab.kernels import lanes as v
from bigvocab.kernels import memory as m
from bigvocab.kernels.divergence import BOTH, KL, KL_REVERSE
from bigvocab.kernels.divergence_terms import share_terms
from bigvocab.kernels.jit import inline, jit
from bigvocab.kernels.merge import merge_statistics
from bigvocab.kernels.row_statistics import MAX, SHIFTED, SKIP, SUM, TOTAL, count_block
from bigvocab.kernels.softmax_wide import transformed

# What is counted of a pair of rows (n, 4), int64: logits of q above the one it has at p's top class, and back; classes
# that share the top of p, and of q.
ABOVE_IN_OTHER, ABOVE_IN_FIRST, TIES, OTHER_TIES = range(4)


@inline
def _gap(row, tile, transform):
    """Logsumexp of a tile less that of the classes before it, both with classes."""
    scale, softcap = transform
    high = transformed(tile[MAX], scale, softcap) - transformed(row[MAX], scale, softcap)
    return high + (math.log(tile[SUM]) - math.log(row[SUM]))


@inline
def _softplus(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


@inline
def _log_shares(row, tile, transform):
    """(ln share of the classes before, ln share of the tile); -inf for a part without a class."""
    if row[MAX] == -np.inf:
        return (-np.inf, -np.inf) if tile[MAX] == -np.inf else (-np.inf, 0.0)
    if tile[MAX] == -np.inf:
        return 0.0, -np.inf
    gap = _gap(row, tile, transform)
    return -_softplus(gap), -_softplus(-gap)


@inline
def _part(p, q, kl):
    """What a range of classes adds to the divergence of p from q: ln of its shares, and the divergence within."""
    if p == -np.inf:
        return 0.0 if q == -np.inf else math.exp(q)
    if q == -np.inf or kl == np.inf:
        return np.inf
    forward, backward = share_terms(abs(q - p))
    return math.exp(p) * kl + math.exp(max(p, q)) * (backward if q > p else forward)


@jit
def rows_chain(tiles, other_tiles, found, transforms, stats, other_stats, out):
    """Merge a tile's statistics and divergences (KL and KL_REVERSE within it, BOTH) into those of the classes before.

    tiles, other_tiles and stats, other_stats (n, row_statistics.COLUMNS); found and out (n, divergence.COLUMNS);
    transforms as in `divergence.rows_divergence`. Rows that are left out have no class.
    """
    for r in range(out.shape[0]):
        p, tile_p = _log_shares(stats[r], tiles[r], transforms[0])
        q, tile_q = _log_shares(other_stats[r], other_tiles[r], transforms[1])
        kl, reverse = out[r, KL], out[r, KL_REVERSE]
        out[r, KL] = _part(p, q, kl) + _part(tile_p, tile_q, found[r, KL])
        out[r, KL_REVERSE] = _part(q, p, reverse) + _part(tile_q, tile_p, found[r, KL_REVERSE])
        out[r, BOTH] += found[r, BOTH]
    merge_statistics(tiles.reshape(1, *tiles.shape), transforms[0], stats)
    merge_statistics(other_tiles.reshape(1, *other_tiles.shape), transforms[1], other_stats)


@jit
def match_equal_rows(logits, others, labels, span, stats, other_stats):
    """Give rows of equal values the same statistics: of two types, the sums may differ in the last bits."""
    for r in range(labels.size):
        mine, theirs = stats[r], other_stats[r]
        if labels[r] == SKIP or mine[MAX] != theirs[MAX]:
            continue
        equal = True
        for i in range(span[1]):
            if m.load_scalar(logits[r], i) != m.load_scalar(others[r], i):
                equal = False
                break
        if equal:
            theirs[SUM], theirs[SHIFTED], theirs[TOTAL] = mine[SUM], mine[SHIFTED], mine[TOTAL]


@jit
def rows_tops(logits, others, labels, span, stats, other_stats, at_top, out):
    """Add what a tile of pairs of rows has above and at their tops to `out` (n, 4).

    stats and other_stats are those of the whole rows; at_top (2, n) has p's logits at q's top class, and q's at p's.
    """
    for r in range(labels.size):
        if labels[r] == SKIP:
            continue
        x, y = logits[r, : span[1]], others[r, : span[1]]
        above, ties = _above_and_ties(y, at_top[1, r], other_stats[r, MAX])
        out[r, ABOVE_IN_OTHER] += above
        out[r, OTHER_TIES] += ties
        above, ties = _above_and_ties(x, at_top[0, r], stats[r, MAX])
        out[r, ABOVE_IN_FIRST] += above
        out[r, TIES] += ties


@inline
def _above_and_ties(x, value, top):
    if not (-np.inf < top < np.inf) or math.isnan(value):
        return 0, 0
    lane_value = v.like_lane(value, x)
    above, ties = count_block(x, 0, x.size, lane_value)
    if value == top:
        return 0, ties
    return above, count_block(x, 0, x.size, v.like_lane(top, x))[1]
