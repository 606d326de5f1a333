"""Metrics of rankings: how far up the true classes of a row stand among its k highest classes.

With R the true classes of a row, T of them, h(i) = 1 where the class in place i is one of them, else 0, and
hits(k) = sum_{i <= k} h(i):

    recall@k     hits(k) / T
    precision@k  hits(k) / k
    hit_rate@k   1 if hits(k) > 0, else 0
    mrr@k        1 / (the first place i <= k with h(i) = 1), 0 where there is none
    map@k        sum_{i <= k} h(i) hits(i) / i / T                      (average precision, as trec_eval's map_cut)
    ndcg@k       sum_{i <= k} h(i) / log2(i + 1) over its value where the true classes come first
    psp@k        sum_{i <= k} h(i) / p(i) / k, p = 1 / (1 + C exp(-A log(n + B))), C = (log N - 1) (B + 1)^A,
                 where n is how often the class occurs and N the sum over classes; A = 0.55, B = 1.5

Sources: E. Voorhees and D. Harman, TREC (2005), for recall, precision, map and reciprocal rank; K. Jarvelin and
J. Kekalainen, doi:10.1145/582415.582418, for ndcg, with the discount of C. Burges et al., doi:10.1145/1102351.1102363;
H. Jain, Y. Prabhu and M. Varma, doi:10.1145/2939672.2939756, for psp, not divided by its greatest value.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.catalogue import RANKING
from bigvocab.labels.ragged import RaggedIds

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

NOWHERE = np.iinfo(np.int64).max  # the place of a class that is not among the highest


def places_among(highest: Ids, sets: RaggedIds) -> Ids:
    """The place, from 1 on, of each id of the sets among the highest classes (n, K) of its row; else NOWHERE.

    >>> places_among(np.array([[7, 3, 5]]), RaggedIds(np.array([0, 2]), np.array([5, 6]))).tolist() == [3, NOWHERE]
    True
    """
    rows = sets.rows()
    width = int(max(highest.max(initial=0), sets.ids.max(initial=0))) + 2
    keys = (np.arange(len(highest))[:, None] * width + highest + 1).reshape(-1)  # -1 stands after the last
    order = np.argsort(keys, kind="stable")
    wanted = rows * width + sets.ids + 1
    at = np.minimum(np.searchsorted(keys, wanted, sorter=order), max(len(keys) - 1, 0))
    found = order[at] if len(keys) else np.zeros(len(wanted), np.int64)
    there = keys[found] == wanted if len(keys) else np.zeros(len(wanted), bool)
    return np.where(there, found % max(1, highest.shape[1]) + 1, NOWHERE)


def ranking_values(places: Ids, sets: RaggedIds, top_k: tuple[int, ...], inverse: Floats | None = None) -> Floats:
    """The metrics of each row: (n, 6, K), or (n, 7, K) with psp.

    Args:
        places: of each id of the sets.
        sets: the true classes of each row, each once.
        top_k: the k.
        inverse: 1 / p of each id of the sets, for psp.

    >>> sets = RaggedIds(np.array([0, 2]), np.array([4, 6]))
    >>> ranking_values(np.array([2, 3]), sets, (1, 3))[0, :, 1].round(4).tolist()
    [1.0, 0.6667, 0.6934, 0.5833, 1.0, 0.5]
    """
    count, rows = sets.num_rows, sets.rows()
    order = np.lexsort((places, rows))
    places, sizes = places[order], np.diff(sets.offsets)
    number = np.arange(len(places)) - np.repeat(sets.offsets[:-1] - sets.offsets[0], sizes) + 1  # of hits up to here
    first = np.full(count, NOWHERE)
    there = sizes > 0
    first[there] = places[(sets.offsets[:-1] - sets.offsets[0])[there]]
    with np.errstate(divide="ignore", invalid="ignore"):
        gains, steps = 1.0 / np.log2(places + 1.0), number / places
        ideal = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(2, max(top_k, default=0) + 2)))])
        out = np.zeros((count, len(RANKING) - (inverse is None), len(top_k)))
        for j, k in enumerate(top_k):
            hit = places <= k

            def total(values: Any, hit: Array = hit) -> Array:
                return np.bincount(rows, np.where(hit, values, 0.0), count)

            hits = total(1.0)
            out[:, 0, j] = hits / sizes
            out[:, 1, j] = hits / k
            out[:, 2, j] = total(gains) / ideal[np.minimum(sizes, k)]
            out[:, 3, j] = total(steps) / sizes
            out[:, 4, j] = hits > 0
            out[:, 5, j] = np.where(first <= k, 1.0 / first, 0.0)
            if inverse is not None:
                out[:, 6, j] = total(inverse[order]) / k
    out[~there] = np.nan
    return out


def inverse_propensities(counts: Array) -> Floats:
    """1 / p of each class, of how often it occurs.

    >>> inverse_propensities(np.array([0, 10, 1000])).round(3).tolist()
    [8.837, 3.556, 1.219]
    """
    counts = np.asarray(counts, np.float64)
    a, b = 0.55, 1.5
    scale = (np.log(counts.sum()) - 1.0) * (b + 1.0) ** a
    found: Floats = 1.0 + scale * np.exp(-a * np.log(counts + b))
    return found
