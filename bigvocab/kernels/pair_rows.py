"""Pairs of whole rows of logits of one type, read once: statistics of both sides, divergences both ways, and tops.

Blocks are those of `softmax`, and so are the bits of the sums. Each block has a divergence of its own (`pair_blocks`);
they merge by the chain rule at the end of the row, when the logsumexps are known. Of each block the maxima are kept:
whether a class lies above the other side's top is looked up only in blocks that have one.
"""

from __future__ import annotations

import math

import numpy as np

from bigvocab.kernels import lanes as v
from bigvocab.kernels import memory as m
from bigvocab.kernels.divergence import KL, KL_REVERSE, row_spread
from bigvocab.kernels.divergence_merge import ABOVE_IN_FIRST, ABOVE_IN_OTHER, OTHER_TIES, TIES
from bigvocab.kernels.divergence_terms import share_terms
from bigvocab.kernels.exp import LN2, LOG2E
from bigvocab.kernels.jit import inline, jit
from bigvocab.kernels.pair_blocks import pair_block
from bigvocab.kernels.row_statistics import (
    ARGMAX,
    EQUAL,
    GREATER,
    MAX,
    PREDICTED,
    RANK,
    SKIP,
    SUM,
    block_max,
    clear_statistics,
    count_block,
    first_at,
    merge_tile,
    padding,
)
from bigvocab.kernels.softmax import BLOCK, FARTHEST, FIRST, PRECISE, term_of
from bigvocab.kernels.softmax_block import reference_exponent

# Of each block: logsumexps of both sides, the second less the first as the divergence has it, how far that is from the
# guess, divergences, maxima.
_LSE, _OTHER_LSE, _GAP, _OFF, _KL, _REVERSE, _MAX, _OTHER_MAX = range(8)
BLOCK_COLUMNS = 8

_CLOSE = 1.0 / 16.0  # |t| up to which the rounding of a difference of logits needs no care
# A guess that is off by s costs some 3e-8 s**2: too much where s**2 is this many times the divergence of a block, or in
# the mean that of the row; errors of 3e-11 do not matter. Beyond s = 1 the cost is exp(s).
_FAR_OFF, _OFF_IN_ALL, _WORTH = 4.0, 8.0, 1e-3
_DRIFT = 0.1  # times the divergence is less than s**2 where the blocks so far make a better guess
_EXACT = 1e-3  # |s| that a guess from the block itself is within


def most_blocks(classes):
    """How many blocks a row has at most."""
    return 1 + (max(classes - FIRST, 0) + BLOCK - 1) // BLOCK


@inline
def _phi(s):
    """exp(s) - 1 - s."""
    forward, backward = share_terms(abs(s))
    return math.exp(s) * backward if s > 0 else forward


@inline
def _shift(gain, p, q):
    """The logarithm s of Q / P, from Q - P: -0 of swapped sides is the same but for its sign."""
    if gain > 0:
        return -math.log1p(-gain / q) if gain < q else np.inf
    return math.log1p(gain / p) if -gain < p else -np.inf


@inline
def _share(logit, logsumexp, c, reference):
    """What takes 2**(c x - reference) to exp(x - logsumexp), exactly at x = `logit`."""
    return math.exp(logit - logsumexp) * 2.0 ** (reference - logit * c)


@inline
def _logsumexp(logit, total, c, reference):
    return logit + math.log(total) + LN2 * (reference - logit * c)


@inline
def _finish(x, sums, reference, c, factor, best, best_start, want, counts, label, stats):
    """The statistics of a row, as `softmax` ends it."""
    top = np.float64(best)
    if top > -np.inf:
        above = top * c - np.float64(reference)
        term = term_of(best, x, factor, reference)
        total = max(v.total(sums) - term, 0.0) * 2.0**-above + 1.0
        if want & PREDICTED:
            stop = min(best_start + BLOCK, x.size)
            stats[ARGMAX] = first_at(x, best_start, stop, top)
        merge_tile(stats, top, total, 0.0, np.inf)
        stats[MAX] = top
    stats[GREATER] += counts[0]
    stats[EQUAL] += counts[1] - padding(x, label)


@inline
def _limit(x, c, reference):
    return v.like_lane((np.float64(reference) + FARTHEST) / c, x)


@inline
def _begun(x, start, stop, c):
    """(whether a block has a class, the maximum that its side begins with, reference, limit)."""
    first = block_max(x, start, stop)
    if first > v.floor_value(x):
        reference = v.like_lane(reference_exponent(first, c), x)
        return True, np.float64(first), reference, _limit(x, c, reference)
    return False, 0.0, v.like_lane(0.0, x), v.floor_value(x)


@inline
def _moved(x, highest, c, reference, sums, run):
    """(reference, limit, sums, their total so far) of a side that has met a maximum above its limit."""
    higher = v.like_lane(reference_exponent(highest, c), x)
    scaling = 2.0 ** (np.float64(reference) - np.float64(higher))
    return higher, _limit(x, c, higher), v.mul(sums, v.splat(scaling, sums)), run * scaling


@inline
def _pair_row(x, y, label, other_label, want, known, room, stats, other_stats):
    """Statistics of both rows and the blocks of their divergence; -1 where this method does not fit, else how many.

    known: whether the statistics of both rows are there already, which make the best guess.
    """
    blocks, kept = room[0], room[1:]
    factor = v.like_lane(LOG2E, x)
    c = np.float64(factor)
    nothing = v.floor_value(x)
    zero = v.like_lane(0.0, x)
    lane_label, lane_other_label = v.like_lane(label, x), v.like_lane(other_label, x)
    reference, limit, best, best_start, counts = zero, nothing, nothing, 0, (0, 0)
    other_reference, other_limit, other_best, other_best_start, other_counts = zero, nothing, nothing, 0, (0, 0)
    sums = other_sums = v.fold(v.zeros_for(x))
    started = other_started = False
    guessed = known
    origin = other_origin = 0.0
    near = guess = other_near = other_guess = 0.0
    if known:
        near, other_near = stats[MAX], other_stats[MAX]
        guess, other_guess = near + math.log(stats[SUM]), other_near + math.log(other_stats[SUM])
        stats[:] = 0.0
        other_stats[:] = 0.0
        stats[MAX], stats[ARGMAX], other_stats[MAX], other_stats[ARGMAX] = -np.inf, -1.0, -np.inf, -1.0
    run = other_run = 0.0
    start = stop = number = 0
    again = redone = better = False
    former = near, guess, other_near, other_guess
    while stop < x.size:
        start, stop = stop, min(stop + BLOCK if stop else FIRST, x.size)
        if not started:
            started, origin, reference, limit = _begun(x, start, stop, c)
        if not other_started:
            other_started, other_origin, other_reference, other_limit = _begun(y, start, stop, c)
        if not abs(np.float64(reference)) < PRECISE or not abs(np.float64(other_reference)) < PRECISE:
            return -1
        if not guessed and started and other_started:
            guessed, near, guess, other_near, other_guess = True, origin, origin, other_origin, other_origin
        share = _share(near, guess, c, np.float64(reference))
        other_share = _share(other_near, other_guess, c, np.float64(other_reference))
        t = guess - other_guess
        sides = (factor, reference, share, lane_label), (factor, other_reference, other_share, lane_other_label)
        ranked = want & RANK != 0 and not again
        mine, theirs, pair = pair_block(x, y, start, stop, sides, t, abs(t) > _CLOSE, ranked, kept)
        counts = counts[0] + mine[2][0], counts[1] + mine[2][1]
        other_counts = other_counts[0] + theirs[2][0], other_counts[1] + theirs[2][1]
        highest, other_highest = v.largest(mine[1]), v.largest(theirs[1])
        if highest > limit or other_highest > other_limit:
            if highest > limit:
                reference, limit, sums, run = _moved(x, highest, c, reference, sums, run)
            if other_highest > other_limit:
                other_reference, other_limit, other_sums, other_run = _moved(
                    y, other_highest, c, other_reference, other_sums, other_run
                )
            stop, again = start, True
            continue
        p, q = v.total(mine[0]), v.total(theirs[0])
        if not p < np.inf or not q < np.inf:
            return -1
        line = blocks[number]
        line[_MAX], line[_OTHER_MAX] = np.float64(highest), np.float64(other_highest)
        line[_LSE] = _logsumexp(origin, p, c, np.float64(reference)) if highest > nothing else -np.inf
        line[_OTHER_LSE] = (
            _logsumexp(other_origin, q, c, np.float64(other_reference)) if other_highest > nothing else -np.inf
        )
        line[_KL] = line[_REVERSE] = line[_GAP] = line[_OFF] = 0.0
        if highest > nothing and other_highest > nothing:
            s = _shift(pair[2], share * p, other_share * q)
            line[_KL] = max(pair[0] / (share * p) - _phi(s), 0.0)
            line[_REVERSE] = max(pair[1] / (other_share * q) - _phi(-s), 0.0)
            line[_GAP], line[_OFF] = s - t, s
            if redone:
                if not abs(s) < _EXACT:
                    return -1
            else:
                weight = max(p / (run + p), q / (other_run + q))
                allowed = 1.0 if known else _FAR_OFF * min(line[_KL], line[_REVERSE]) + _WORTH / weight
                past = pair[0] == np.inf or pair[1] == np.inf  # by a mask, or because the guess is far off
                if past or not s * s <= min(allowed, 1.0):
                    former = near, guess, other_near, other_guess
                    near, other_near = np.float64(highest), np.float64(other_highest)
                    guess = _logsumexp(near, p, c, np.float64(reference))
                    other_guess = _logsumexp(other_near, q, c, np.float64(other_reference))
                    stop, again, redone = start, True, True
                    continue
            better = not known and (redone or s * s > _DRIFT * min(line[_KL], line[_REVERSE]))
            if redone:
                near, guess, other_near, other_guess = former
        again = redone = False
        sums, other_sums = v.add(sums, mine[0]), v.add(other_sums, theirs[0])
        run, other_run = run + p, other_run + q
        if highest > best:
            best, best_start = highest, start
        if other_highest > other_best:
            other_best, other_best_start = other_highest, start
        number += 1
        if better:  # the next block is likely to be as those before
            near, other_near, better = np.float64(best), np.float64(other_best), False
            guess = _logsumexp(near, run, c, np.float64(reference))
            other_guess = _logsumexp(other_near, other_run, c, np.float64(other_reference))
    _finish(x, sums, reference, c, factor, best, best_start, want, counts, lane_label, stats)
    _finish(
        y,
        other_sums,
        other_reference,
        c,
        factor,
        other_best,
        other_best_start,
        want,
        other_counts,
        lane_other_label,
        other_stats,
    )
    return number


@inline
def _total(blocks, column, number):
    """Logsumexp of those of the blocks; -inf where there is no class."""
    top = -np.inf
    for k in range(number):
        top = max(top, blocks[k, column])
    if top == -np.inf:
        return top
    total = 0.0
    for k in range(number):
        total += math.exp(blocks[k, column] - top)
    return top + math.log(total)


@inline
def _merge_blocks(blocks, number, out):
    """Divergences of a row from those of its blocks, by the chain rule (see `divergence_merge`); whether they are exact
    enough.
    """
    whole, other_whole = _total(blocks, _LSE, number), _total(blocks, _OTHER_LSE, number)
    between = other_whole - whole
    kl = reverse = off = 0.0
    for k in range(number):
        line = blocks[k]
        p, q = math.exp(line[_LSE] - whole), math.exp(line[_OTHER_LSE] - other_whole)
        if line[_LSE] == -np.inf or line[_OTHER_LSE] == -np.inf:
            kl += q if line[_LSE] == -np.inf else np.inf
            reverse += p if line[_OTHER_LSE] == -np.inf else np.inf
            if line[_LSE] == line[_OTHER_LSE]:
                kl, reverse = kl - q, reverse - p
            continue
        gap = line[_GAP] - between
        forward, backward = share_terms(abs(gap))
        most = max(p, q)
        off += most * line[_OFF] * line[_OFF]
        kl += np.inf if line[_KL] == np.inf else p * line[_KL]
        kl += most * (backward if gap > 0 else forward)
        reverse += np.inf if line[_REVERSE] == np.inf else q * line[_REVERSE]
        reverse += most * (forward if gap > 0 else backward)
    out[KL], out[KL_REVERSE] = kl, reverse
    return off <= _OFF_IN_ALL * min(kl, reverse) + _WORTH


@inline
def _above_and_ties(x, blocks, column, number, value, top):
    """How many logits lie above a value, and how many are at the top; only blocks that have one are looked at."""
    if not (-np.inf < top < np.inf) or math.isnan(value):
        return 0, 0
    lane_value, lane_top = v.like_lane(value, x), v.like_lane(top, x)
    above = ties = 0
    for k in range(number):
        start = 0 if k == 0 else FIRST + (k - 1) * BLOCK
        stop = min(FIRST + k * BLOCK, x.size)
        if blocks[k, column] > value:
            above += count_block(x, start, stop, lane_value)[0]
        if blocks[k, column] == top:
            ties += count_block(x, start, stop, lane_top)[1]
    return above, ties


@jit
def rows_paired(logits, others, labels, label_logits, want, tops_too, spread_too, room, stats, other_stats, out, tops):
    """Statistics of both sides, divergences and tops of pairs of rows; how many rows it could not do.

    logits and others (n, classes) of one type, float32 or half, as they are: no scale and no softcap; labels (n,), SKIP
    leaves a row out; label_logits (2, n); want = RANK | PREDICTED; tops_too, spread_too: whether to write `tops` (n, 4)
    and, of `out` (n, divergence.COLUMNS), JS, TV, DISTANCE and BOTH; room is an array (most_blocks(classes),
    BLOCK_COLUMNS) and two of pair_blocks.PORTION float32; stats, other_stats (n, row_statistics.COLUMNS) are written. A
    row that it could not do has the statistics of no class, and NaN in `out`.
    """
    left, blocks = 0, room[0]
    for r in range(labels.size):
        if labels[r] == SKIP:
            continue
        x, y, mine, theirs = logits[r], others[r], stats[r], other_stats[r]
        clear_statistics(stats[r : r + 1])
        clear_statistics(other_stats[r : r + 1])
        label = label_logits[0, r] if labels[r] >= 0 else np.nan
        other_label = label_logits[1, r] if labels[r] >= 0 else np.nan
        number = 0
        for attempt in range(2):
            number = _pair_row(x, y, label, other_label, want, attempt == 1, room, mine, theirs)
            if number < 0 or _merge_blocks(blocks, number, out[r]):
                break
        both = mine[MAX] > -np.inf and theirs[MAX] > -np.inf
        if number > 0 and spread_too and both and not row_spread(x, y, mine, theirs, out[r]):
            number = -1
        if number < 0:
            left += 1
            clear_statistics(stats[r : r + 1])
            clear_statistics(other_stats[r : r + 1])
            out[r] = np.nan
            continue
        if tops_too and mine[ARGMAX] >= 0 and theirs[ARGMAX] >= 0:
            at, other_at = m.load_scalar(x, int(theirs[ARGMAX])), m.load_scalar(y, int(mine[ARGMAX]))
            above, ties = _above_and_ties(x, blocks, _MAX, number, at, mine[MAX])
            tops[r, ABOVE_IN_FIRST], tops[r, TIES] = above, ties
            above, ties = _above_and_ties(y, blocks, _OTHER_MAX, number, other_at, theirs[MAX])
            tops[r, ABOVE_IN_OTHER], tops[r, OTHER_TIES] = above, ties
    return left
