"""The divergence by a property of the rows: by how sure the reference is, by group."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.comparison.extremes import percentiles
from bigvocab.comparison.moments import Lines
from bigvocab.evaluation.crossed_sums import CrossedSums
from bigvocab.losses.exact_sums import ExactSums, divide

CONFIDENCES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)


def confidence_shown(
    kl: npt.NDArray[np.float64], bucket: npt.NDArray[Any], errors: CrossedSums | None
) -> list[dict[str, Any]]:
    """Rows by the reference's top probability, as reports have them.

    Args:
        kl: of each row.
        bucket: between which two of CONFIDENCES each row lies.
        errors: sums by cluster and bin; None where there are no clusters.
    """
    found, bins = [], list(pairwise(CONFIDENCES))
    over_clusters = errors.errors("by_confidence", len(bins), "kl") if errors else None
    for number, (low, high) in enumerate(bins):
        values = kl[bucket == number]
        total = ExactSums()
        total.add(values)
        line: dict[str, Any] = {"from": low, "to": high, "rows": len(values)}
        if len(values):
            line |= {"kl_mean": divide(total.exact(), len(values)), "kl_median": percentiles(values, (50.0,))[0]}
            line |= {} if over_clusters is None else {"kl_cluster_stderr": over_clusters[number]}
        found.append(line)
    return found


def groups_shown(groups: Lines, errors: CrossedSums | None, *, labelled: bool) -> dict[str, dict[str, Any]]:
    """Groups as reports have them, by name; `errors` as of `confidence_shown`, `labelled` where there are losses."""
    names = {"kl": "kl"} | ({"difference": "loss_difference"} if labelled else {})
    over_clusters = {}
    if errors:
        columns = names | {"same_top": "same_top"}
        over_clusters = {name: errors.errors("groups", len(groups), column) for name, column in columns.items()}
    found = {}
    for group in sorted(groups.ids):
        line = groups.ids[group]
        n = int(groups.rows[line])
        shown: dict[str, Any] = {"rows": n}
        for name, column in names.items():
            moments = groups.sums[column]
            shown |= {name: moments.mean(n, line), f"{name}_stderr": moments.stderr(n, line)}
        shown["same_top"] = divide(Fraction(int(groups.counts["same_top"][line])), n)
        shown |= {f"{name}_cluster_stderr": values[line] for name, values in over_clusters.items()}
        found[group] = shown
    return found


def macro(groups: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Plain means over groups as `groups_shown` has them."""
    names = {"kl": "kl", "loss_difference": "difference", "same_top": "same_top"}
    found: dict[str, Any] = {"groups": len(groups)}
    for name, column in names.items():
        values = [group[column] for group in groups.values() if column in group]
        if values:
            found[name] = _plain_sum(values) / len(values)
    return found


def _plain_sum(values: list[float]) -> float:
    return math.fsum(values) if all(map(math.isfinite, values)) else sum(values)
