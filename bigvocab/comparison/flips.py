"""The exact test of McNemar: whether rows that flip do so more often one way than the other."""

from __future__ import annotations

import math

_EXACT_FLIPS = 2000  # up to these in whole numbers
_NEGLIGIBLE = 1e-20


def mcnemar_p(to_wrong: int, to_right: int) -> float:
    """Two-sided p-value of the binomial test that a flip goes either way with probability 1/2; 1 where none flips.

    p = min(1, 2 P(X <= min(to_wrong, to_right))), X binomial with n = to_wrong + to_right.

    Source: Q. McNemar, 1947, doi:10.1007/BF02295996, in its exact form.

    >>> mcnemar_p(1, 7)
    0.0703125
    """
    flips, fewer = to_wrong + to_right, min(to_wrong, to_right)
    if 2 * fewer == flips:
        return 1.0
    if flips <= _EXACT_FLIPS:
        tail = sum(math.comb(flips, k) for k in range(fewer + 1))
        return min(1.0, 2 * tail / 2**flips)
    log_last = math.lgamma(flips + 1) - math.lgamma(fewer + 1) - math.lgamma(flips - fewer + 1) - flips * math.log(2)
    total, term, k = 1.0, 1.0, fewer
    while k and term > _NEGLIGIBLE * total:
        term *= k / (flips - k + 1)  # each term falls below the one of more flips
        total += term
        k -= 1
    return min(1.0, 2 * math.exp(log_last + math.log(total)))
