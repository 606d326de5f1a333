"""Divergences of two arrays of logits, row by row: float64, whatever the input types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab import arguments
from bigvocab.comparison.pairs import KL_ALONE, Asked, PairRows, Transform
from bigvocab.comparison.tile_pairs import compare_tiles
from bigvocab.errors import BigvocabError
from bigvocab.losses.leading import by_block, float_rows, shaped
from bigvocab.losses.reductions import check_reduction, reduce_losses
from bigvocab.threads import resolve_threads

Floats = npt.NDArray[np.float64]


def kl_divergence(
    reference: npt.ArrayLike,
    candidate: npt.ArrayLike,
    *,
    reverse: bool = False,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    num_classes: int | None = None,
    reduction: str = "none",
    num_threads: int | None = None,
) -> Any:
    """Kullback-Leibler divergence of the reference's softmax from the candidate's, row by row.

    KL(P, Q) = sum_j p_j (ln p_j - ln q_j), p = softmax(reference), q = softmax(candidate); with `reverse`, KL(Q, P).
    Added up as sum_j p_j (exp(r_j) - 1 - r_j), r = ln q - ln p, whose terms are never negative: rows that are equal
    give 0 exactly, and rows that are near lose no digit.

    Args:
        reference: (..., V) float16, bfloat16, float32 or float64, in any layout; -inf is a masked class.
        candidate: as `reference`, of the same shape; the type may be another.
        reverse: KL(Q, P); to the bit what swapping the two arrays gives.
        logit_scale: multiplies both sides' logits.
        softcap: c, in c tanh(logit_scale x / c); of both sides.
        num_classes: classes from this one on do not exist; then V may differ.
        reduction: see `compute_weighted_loss`; every row has weight 1.
        num_threads: None is all usable cores; no result depends on it.

    Returns:
        float64 (...) in nats, or one float: within 1e-6 of it and 1e-10 of the stored values' divergence for logsumexps
        below 100, within 1e-12 of it where both sides are float64. inf where the candidate has masked a class that the
        reference has. A class that both have masked does not exist. NaN for a row that has a NaN or +inf, or no class,
        on either side.

    Raises:
        BigvocabError: shapes that differ, an option outside its range.
        TypeError: arrays that are no floats.

    Source: torch.nn.functional.kl_div of two log_softmax, whose terms cancel: it is negative for rows that are near,
    and NaN where both sides have masked a class.

    >>> import numpy as np
    >>> p, q = np.log([[0.5, 0.25, 0.25]]), np.log([[0.25, 0.5, 0.25]])
    >>> kl_divergence(p, q).round(6), kl_divergence(p, p)
    (array([0.173287]), array([0.]))
    """
    backwards = arguments.boolean("reverse", reverse)

    def of(rows: PairRows) -> Floats:
        return rows.kl_reverse if backwards else rows.kl

    return _found(of, KL_ALONE, reference, candidate, logit_scale, softcap, num_classes, reduction, num_threads)


def js_divergence(
    reference: npt.ArrayLike,
    candidate: npt.ArrayLike,
    *,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    num_classes: int | None = None,
    reduction: str = "none",
    num_threads: int | None = None,
) -> Any:
    """Jensen-Shannon divergence of two softmaxes, row by row; at most ln 2, and the same with the sides swapped.

    JS(P, Q) = (KL(P, M) + KL(Q, M)) / 2, M = (P + Q) / 2.

    Args:
        reference: (..., V) float16, bfloat16, float32 or float64, in any layout; -inf is a masked class.
        candidate: as `reference`, of the same shape; the type may be another.
        logit_scale: multiplies both sides' logits.
        softcap: c, in c tanh(logit_scale x / c); of both sides.
        num_classes: classes from this one on do not exist; then V may differ.
        reduction: see `compute_weighted_loss`; every row has weight 1.
        num_threads: None is all usable cores; no result depends on it.

    Returns:
        float64 (...) in nats, or one float. NaN for a row that has a NaN or +inf, or no class, on either side.

    Raises:
        BigvocabError: shapes that differ, an option outside its range.
        TypeError: arrays that are no floats.

    Source: J. Lin, Divergence measures based on the Shannon entropy, 1991, doi:10.1109/18.61115;
    scipy.spatial.distance.jensenshannon is its square root.

    >>> import numpy as np
    >>> js_divergence(np.array([[0.0, -np.inf]]), np.array([[-np.inf, 0.0]])).round(6)
    array([0.693147])
    """

    def of(rows: PairRows) -> Floats:
        return rows.js

    return _found(of, Asked(True), reference, candidate, logit_scale, softcap, num_classes, reduction, num_threads)


def total_variation(
    reference: npt.ArrayLike,
    candidate: npt.ArrayLike,
    *,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    num_classes: int | None = None,
    reduction: str = "none",
    num_threads: int | None = None,
) -> Any:
    """Total variation distance of two softmaxes, row by row; the same with the sides swapped.

    TV(P, Q) = sum_j |p_j - q_j| / 2. 1 - TV = sum_j min(p_j, q_j) is the share of tokens that speculative sampling
    accepts when one side drafts for the other.

    Args:
        reference: (..., V) float16, bfloat16, float32 or float64, in any layout; -inf is a masked class.
        candidate: as `reference`, of the same shape; the type may be another.
        logit_scale: multiplies both sides' logits.
        softcap: c, in c tanh(logit_scale x / c); of both sides.
        num_classes: classes from this one on do not exist; then V may differ.
        reduction: see `compute_weighted_loss`; every row has weight 1.
        num_threads: None is all usable cores; no result depends on it.

    Returns:
        float64 (...) between 0 and 1, or one float. NaN for a row that has a NaN or +inf, or no class, on either side.

    Raises:
        BigvocabError: shapes that differ, an option outside its range.
        TypeError: arrays that are no floats.

    Source: Y. Leviathan et al., Fast inference from transformers via speculative decoding, 2023, arXiv:2211.17192,
    section 3.2, for the share that is accepted.

    >>> import numpy as np
    >>> total_variation(np.log([[0.5, 0.25, 0.25]]), np.log([[0.25, 0.5, 0.25]])).round(6)
    array([0.25])
    """

    def of(rows: PairRows) -> Floats:
        return rows.tv

    return _found(of, Asked(True), reference, candidate, logit_scale, softcap, num_classes, reduction, num_threads)


def _found(
    of: Callable[[PairRows], Floats],
    asked: Asked,
    reference: npt.ArrayLike,
    candidate: npt.ArrayLike,
    logit_scale: float,
    softcap: float | None,
    num_classes: int | None,
    reduction: str,
    num_threads: int | None,
) -> Any:
    """What `of` takes from pairs of rows, in the shape of the dimensions before the classes, or reduced."""
    from bigvocab.kernels.row_statistics import NO_LABEL

    check_reduction(reduction)
    x, y = float_rows("reference", reference), float_rows("candidate", candidate)
    shapes = (*x.leading, x.shape[1]), (*y.leading, y.shape[1])
    classes = classes_of(*shapes, arguments.index_or_none("num_classes", num_classes))
    scale = arguments.positive("logit_scale", logit_scale)
    transform = Transform(scale, 0.0 if softcap is None else arguments.positive("softcap", softcap))
    threads = resolve_threads(num_threads)

    def of_block(start: int, mine: npt.NDArray[Any]) -> Floats:
        def of_part(first: int, theirs: npt.NDArray[Any]) -> Floats:
            here = mine[first - start : first - start + len(theirs)]
            labels = np.full(len(theirs), NO_LABEL, np.int64)
            rows = compare_tiles(
                [(0, here)], {"": [(0, theirs)]}, labels, classes, transform=transform, asked=asked, num_threads=threads
            )
            return of(rows[""])

        return by_block(y, of_part, start, start + len(mine))

    values = by_block(x, of_block)
    return shaped(reduce_losses(values, np.array(1.0), reduction), x.leading, reduction)


def classes_of(reference: tuple[int, ...], candidate: tuple[int, ...], num_classes: int | None) -> int:
    """How many classes rows of these two shapes have in common; an error where that is not said."""
    both = f"shape {reference} of the reference and {candidate} of the candidate"
    if reference[:-1] != candidate[:-1]:
        expected = "number of rows" if len(reference) == len(candidate) == 2 else "dimensions before the classes"
        raise BigvocabError(f"candidate: got {both}, expected the same {expected}")
    if num_classes is None:
        if reference[-1] != candidate[-1]:
            raise BigvocabError(f"candidate: got {both}, expected the same classes, or num_classes= for how many exist")
        return reference[-1]
    most = min(reference[-1], candidate[-1])
    if not 1 <= num_classes <= most:
        raise BigvocabError(f"num_classes: got {num_classes}, expected a number in [1, {most}]")
    return num_classes
