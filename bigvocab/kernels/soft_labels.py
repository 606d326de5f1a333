"""Softmax cross-entropy with a distribution as label: the row's softmax statistics and its sums with the labels, in
one pass over memory.

A row is read in parts of 65,536 classes: `softmax` reads a part's logits from memory, and the sums of z and z
(reference - x), in float64, read them again from the cache, together with the labels. The reference is the maximum of
the row's first part that has one: sums with it, unlike sums of z x, do not cancel against log sum_j exp(x_j) where
logits are large.
"""

from __future__ import annotations

import math

import numpy as np

from bigvocab.kernels import doubles as d
from bigvocab.kernels import lanes as v
from bigvocab.kernels import memory as m
from bigvocab.kernels.jit import inline, jit
from bigvocab.kernels.row_statistics import AHEAD, MAX, SKIP
from bigvocab.kernels.softmax import softmax_row
from bigvocab.kernels.softmax_wide import row_wide, transformed, transformed_lanes

PART = 65536

# Columns of the sums with labels: REFERENCE a raw logit (NaN: none yet), LABEL_SUM sum(z), SHIFT
# sum(z (g(reference) - g(x))) with 0 where z is 0.
REFERENCE, LABEL_SUM, SHIFT = range(3)
SUMS = 3


@inline
def _base(sums, transform):
    """g(reference); 0 while every logit was infinite, because their differences are so from any number."""
    scale, softcap = transform
    return 0.0 if math.isnan(sums[REFERENCE]) else transformed(sums[REFERENCE], scale, softcap)


@inline
def _label_sums(x, z, transform, sums):
    """Add the sums of one part to the row's."""
    scale, softcap = transform
    plain = scale == 1.0 and softcap == 0
    base = _base(sums, transform)
    zero = v.splat(0.0, d.load_part(z, 0, 0, 0.0))
    reference = v.splat(base, zero)
    mass, shift = zero, zero
    whole = x.size - x.size % d.SIZE
    for i in range(0, whole, d.SIZE):
        m.prefetch(z, i + AHEAD)
        logits, labels = d.load(x, i), d.load(z, i)
        if not plain:
            logits = transformed_lanes(logits, scale, softcap)
        mass = v.add(mass, labels)
        shift = d.add_times(labels, v.sub(reference, logits), shift)
    if whole < x.size:
        logits, labels = d.load_part(x, whole, x.size, 0.0), d.load_part(z, whole, x.size, 0.0)
        if not plain:
            logits = transformed_lanes(logits, scale, softcap)
        mass = v.add(mass, labels)
        shift = d.add_times(labels, v.sub(reference, logits), shift)
    sums[LABEL_SUM] += v.total(mass)
    sums[SHIFT] += v.total(shift)


@jit
def rows_soft_labels(logits, soft, labels, transform, want, entropy, span, stats, sums):
    """Add a tile of logits and soft labels to the rows' statistics.

    logits, soft (n, at least classes); labels (n,) SKIP or NO_LABEL; transform, want, entropy, span and
    stats as for `rows_softmax`; sums (n, SUMS).
    """
    scale, softcap = transform
    first_class, classes = span
    for r in range(labels.size):
        if labels[r] == SKIP:
            continue
        for start in range(0, classes, PART):
            stop = min(start + PART, classes)
            x = logits[r, start:stop]
            if softcap > 0 or not softmax_row(x, np.nan, scale, want, entropy, first_class + start, stats[r], None):
                row_wide(x, np.nan, scale, softcap, want, first_class + start, stats[r])
            if math.isnan(sums[r, REFERENCE]) and abs(stats[r, MAX]) < np.inf:
                sums[r, REFERENCE] = stats[r, MAX]
            _label_sums(x, soft[r, start:stop], transform, sums[r])


@jit
def merge_label_sums(groups, transform, sums):
    """Add the sums of ranges of classes made apart, groups (G, n, SUMS), in order, to sums (n, SUMS)."""
    scale, softcap = transform
    for g in range(groups.shape[0]):
        for r in range(sums.shape[0]):
            mine, other = sums[r], groups[g, r]
            if math.isnan(mine[REFERENCE]):
                mine[REFERENCE] = other[REFERENCE]
            elif not math.isnan(other[REFERENCE]):
                gap = transformed(mine[REFERENCE], scale, softcap) - transformed(other[REFERENCE], scale, softcap)
                mine[SHIFT] += other[LABEL_SUM] * gap
            mine[LABEL_SUM] += other[LABEL_SUM]
            mine[SHIFT] += other[SHIFT]


@jit
def rows_sparse_labels(logits, labels, offsets, ids, probabilities, transform, span, sums):
    """As `rows_soft_labels` for labels of few classes: the same sums over the listed ids that this tile has."""
    scale, softcap = transform
    first_class, classes = span
    for r in range(labels.size):
        if labels[r] == SKIP:
            continue
        base = _base(sums[r], transform)
        for k in range(offsets[r], offsets[r + 1]):
            c = ids[k] - first_class
            if 0 <= c < classes and probabilities[k] != 0:
                sums[r, LABEL_SUM] += probabilities[k]
                sums[r, SHIFT] += probabilities[k] * (base - transformed(m.load_scalar(logits[r], c), scale, softcap))
