"""The loss by a property of the rows: by how often the label occurs, by position, by group."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.catalogue import RANKING
from bigvocab.errors import BigvocabError, Keyword
from bigvocab.evaluation.crossed_sums import cluster_error
from bigvocab.evaluation.grouped_sums import BinnedSums, GroupedSums
from bigvocab.losses.exact_sums import exp

Array = npt.NDArray[Any]

# The first bin is what never occurs, or the first place; then decades, and powers of two.
FREQUENCY_EDGES = np.concatenate([[0.0], 10.0 ** np.arange(19)])
POSITION_EDGES = np.concatenate([[0], 1 << np.arange(63)])
EDGES = {"by_frequency": FREQUENCY_EDGES, "by_position": POSITION_EDGES}


def check_counts(counts: Array, classes: int) -> None:
    """Raise unless there is one count for each class."""
    if counts.shape != (classes,):
        raise BigvocabError(
            Keyword("class_counts"), f": got {counts.size} counts, expected {classes}, one for each class"
        )


def frequency_bins(counts: Array, labels: Array, classes: int) -> Array:
    """The bin of each row by the count of its label; `counts` one for each class."""
    check_counts(counts, classes)
    return np.searchsorted(FREQUENCY_EDGES, counts[labels], "right") - 1


def position_bins(positions: Array) -> Array:
    """The bin of each row by its position, from 0."""
    return np.searchsorted(POSITION_EDGES, positions, "right") - 1


def bins_shown(sums: BinnedSums, name: str, likelihood: str | None, errors: list[float] | None) -> list[dict[str, Any]]:
    """A breakdown as reports have it, from the first bin with a row to the last.

    Args:
        sums: of the bins.
        name: by_frequency or by_position.
        likelihood: the loss that perplexity is of; None: there is none.
        errors: of each bin over clusters; None where there are none.
    """
    edges: list[Any] = [*EDGES[name].tolist(), None]
    used = np.flatnonzero(sums.rows)
    shown = []
    for i, (start, end) in enumerate(itertools.pairwise(edges)):
        if used.size and used[0] <= i <= used[-1]:
            shown.append({"from": _whole(start), "to": _whole(end), **_values(sums, i, likelihood, errors)})
    return shown


def _whole(edge: float | None) -> int | None:
    return None if edge is None else int(edge)


def _values(sums: BinnedSums, i: int, likelihood: str | None, errors: list[float] | None) -> dict[str, Any]:
    found: dict[str, Any] = {"rows": int(sums.rows[i])}
    if not sums.rows[i]:
        return found
    found |= {"weight": sums.sums["weight"].value(i), "mean": sums.mean(i), "stderr": sums.stderr(i)}
    if errors is not None:
        found["cluster_stderr"] = errors[i]
    if likelihood is not None:
        found["perplexity"] = exp(sums.mean(i, likelihood))
    if "top_1" in sums.sums:
        found["accuracy"] = sums.mean(i, "top_1")
    if ranking := _ranking_of(sums, i):
        found["ranking"] = ranking
    return found


def _ranking_of(sums: BinnedSums, i: int) -> dict[str, dict[str, float]]:
    """The metrics of rankings of a bin; their sums are called ranking.recall@10 and the like."""
    names = [name.removeprefix("ranking.").split("@") for name in sums.sums if name.startswith("ranking.")]
    found: dict[str, dict[str, float]] = {}
    for metric, k in sorted(names, key=lambda name: (RANKING.index(name[0]), int(name[1]))):
        found.setdefault(metric, {})[k] = sums.mean(i, f"ranking.{metric}@{k}")
    return found


def groups_shown(groups: GroupedSums, likelihood: str | None, errors: list[float] | None) -> dict[str, dict[str, Any]]:
    """Groups as reports have them, by name; arguments as of `bins_shown`."""
    return {name: _values(groups.bins, groups.ids[name], likelihood, errors) for name in sorted(groups.ids)}


def macro(groups: GroupedSums, shown: dict[str, dict[str, Any]], likelihood: str | None) -> dict[str, Any]:
    """Averages that count each group once, of means and of perplexities; groups without weight are left out."""
    live = [name for name in shown if not math.isnan(shown[name]["mean"])]
    found: dict[str, Any] = {"groups": len(live), "mean": _average([shown[name]["mean"] for name in live])}
    if likelihood is not None:
        means = [groups.bins.mean(groups.ids[name], likelihood) for name in live]
        found["perplexity_of_mean"] = exp(_average(means))
        found["mean_perplexity"] = _average([shown[name]["perplexity"] for name in live])
    return found


def _average(values: list[float]) -> float:
    """The mean, rounded once or twice, so that no order of the values changes it."""
    if not values:
        return math.nan
    try:
        return math.fsum(values) / len(values)
    except (OverflowError, ValueError):  # past the largest float, or infinities of both signs
        return sum(values) / len(values)


def cluster_stderr(clusters: GroupedSums, name: str) -> float:
    """Standard error over clusters of the mean of the values of this name; see `cluster_error`."""
    bins = clusters.bins
    live = np.flatnonzero(bins.live)
    return cluster_error(bins.sums[name].values(live), bins.sums["weight"].values(live)) if len(live) else math.nan
