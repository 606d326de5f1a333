"""Divergence of two rows of logits in float64, with what is done to their logits before the softmax."""

from __future__ import annotations

import numpy as np

from bigvocab.kernels import divergence_terms as terms
from bigvocab.kernels import doubles as d
from bigvocab.kernels import lanes as v
from bigvocab.kernels.exp import LOG2E, exp2_normal
from bigvocab.kernels.jit import inline, jit
from bigvocab.kernels.row_statistics import MAX, SUM
from bigvocab.kernels.softmax_wide import transformed_lanes

_LEAST = -1022.0


@inline
def _most(x, y, r, sides):
    """The greater one of p and q, each from its own logit: share * 2**((g(z) - g(top)) / ln 2)."""
    top_x, top_y, share_x, share_y = sides
    z = d.where_positive(r, v.sub(y, top_y), v.sub(x, top_x))
    exponent = v.mul(z, v.splat(LOG2E, z))
    least = v.splat(_LEAST, z)
    found = v.mul(exp2_normal(v.at_least(exponent, least)), d.where_positive(r, share_y, share_x))
    return d.nothing_below(exponent, least, found)


@inline
def _add(x, y, held, both, t, sides, full):
    gap, rest = terms.difference(y, x)
    r = v.add(v.add(gap, t), rest)
    u = v.absolute(r)
    if v.count_greater(v.splat(1.0000000000000002, u), u) == d.SIZE:
        return terms.add_near(held, _most(x, y, r, sides), r, u, full), both + d.SIZE
    rest = v.where_finite(gap, rest, v.splat(0.0, u))
    r = terms.with_masks(x, y, terms.limited(v.add(v.add(gap, t), rest)))
    ones = terms.where_both(x, y, v.splat(1.0, u), v.splat(0.0, u))
    both += v.count_greater(ones, v.splat(0.0, u))
    return terms.add_any(held, _most(x, y, r, sides), x, y, r, full), both


@inline
def _sums(x, y, transforms, t, sides, full):
    (scale, softcap), (other_scale, other_softcap) = transforms
    sums, both = terms.nothing(t), 0
    for i in range(0, x.size, d.SIZE):
        if i + d.SIZE <= x.size:
            a, b = d.load(x, i), d.load(y, i)
        else:
            a, b = d.load_part(x, i, x.size, -np.inf), d.load_part(y, i, x.size, -np.inf)
        a, b = transformed_lanes(a, scale, softcap), transformed_lanes(b, other_scale, other_softcap)
        sums, both = _add(a, b, sums, both, t, sides, full)
    return sums, both


@jit
def wide_row(x, y, transforms, t, stats_x, stats_y, full, out):
    """Add a pair of rows in float64; see `divergence.rows_divergence`."""
    (scale, softcap), (other_scale, other_softcap) = transforms
    like = d.load_part(x, 0, 0, 0.0)
    # tops as the lanes have them, so that the greatest class is exactly its share
    top_x = v.largest(transformed_lanes(v.splat(stats_x[MAX], like), scale, softcap))
    top_y = v.largest(transformed_lanes(v.splat(stats_y[MAX], like), other_scale, other_softcap))
    sides = (v.splat(top_x, like), v.splat(top_y, like))
    sides = (sides[0], sides[1], v.splat(1.0 / stats_x[SUM], like), v.splat(1.0 / stats_y[SUM], like))
    if full:
        sums, both = _sums(x, y, transforms, v.splat(t, like), sides, True)
    else:
        sums, both = _sums(x, y, transforms, v.splat(t, like), sides, False)
    out[0] += v.total(sums[0])
    out[1] += v.total(sums[1])
    out[2] += v.total(sums[2])
    out[3] += 0.5 * v.total(sums[3])
    out[4] += v.total(sums[4])
    out[5] += both
