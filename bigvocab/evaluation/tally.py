"""The sums behind a report: added row block by row block, merged in any order, divided once.

Every sum is exact, every count an integer, so two tallies that saw the same rows in any split are equal to the bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.losses.exact_sums import ExactSums, divide, to_float
from bigvocab.losses.reductions import REDUCTIONS, reduced

Floats = npt.NDArray[np.float64]
COUNTS = ("rows", "ignored_rows", "nonfinite_rows", "nonzero_weights", "tied_rows")


@dataclass
class RowResult:
    """What one block of rows has to say; arrays are (n,)."""

    loss: Floats  # unweighted
    weighted: Floats  # numerator of the mean: weight times loss, or what class weights make of it
    weight: Floats | None  # denominator of the mean; None: 1 for each row
    counted: npt.NDArray[np.bool_]  # False for rows in no figure: ignored, or skipped as not finite
    ignored: npt.NDArray[np.bool_]
    nonfinite: npt.NDArray[np.bool_]
    row_weight: Floats | None = None  # of the row alone, where `weight` has the class weight in it
    figures: dict[str, npt.NDArray[Any]] = field(
        default_factory=dict
    )  # rank, tied, place, predicted, logsumexp, entropy

    def __len__(self) -> int:
        return len(self.loss)


class Tally:
    """Exact sums of everything that was seen. `top_k` are the k of the accuracies that are kept."""

    def __init__(self, top_k: tuple[int, ...] = ()) -> None:
        self.top_k = top_k
        self.counts = dict.fromkeys(COUNTS, 0)
        self.sums: dict[str, ExactSums] = {}
        self.extremes: dict[str, tuple[float, float]] = {}
        self._ids: dict[str, int] | None = {}
        self._names: list[str] = []  # of the groups, where `_ids` is not made yet
        self._met: tuple[list[str], npt.NDArray[np.intp]] | None = None  # merged last, and their groups
        self.group_rows = np.zeros(0, np.int64)
        self.group_sums = {"weight": ExactSums(0), "loss": ExactSums(0)}

    @property
    def group_ids(self) -> dict[str, int]:
        """The number of each group, by name."""
        if self._ids is None:
            self._ids = {name: i for i, name in enumerate(self._names)}
        return self._ids

    def _sum(self, name: str) -> ExactSums:
        return self.sums.setdefault(name, ExactSums())

    def add(
        self, rows: RowResult, groups: tuple[npt.NDArray[Any], list[str]] | None = None, num_bytes: Any = None
    ) -> None:
        """Add a block of rows; `groups` = (codes, names), `num_bytes` (n,) bytes of text."""
        kept = slice(None) if rows.counted.all() else np.flatnonzero(rows.counted)
        values = rows.weighted[kept]
        weights = None if rows.weight is None else rows.weight[kept]
        n = len(values)
        self.counts["rows"] += n
        self.counts["ignored_rows"] += int(np.count_nonzero(rows.ignored))
        self.counts["nonfinite_rows"] += int(np.count_nonzero(rows.nonfinite))
        of_rows = weights if rows.row_weight is None else rows.row_weight[kept]
        self.counts["nonzero_weights"] += n if of_rows is None else int(np.count_nonzero(of_rows))
        self._add_losses(values, weights)
        self._add_figures({name: column[kept] for name, column in rows.figures.items()}, weights)
        if num_bytes is not None:
            texts = np.asarray(num_bytes)[kept].astype(np.float64)
            self._sum("bytes").add(texts if weights is None else weights * texts)
        if groups is not None:
            self._add_groups(groups[0][kept], groups[1], values, weights)

    def _add_losses(self, values: Floats, weights: Floats | None) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            self._sum("loss").add(values)
            self._sum("loss_squared").add(values * values)
            if weights is None:
                self._sum("weight").add([float(len(values))])
                self._sum("weight_squared").add([float(len(values))])
                self._sum("weight_loss").add(values)
            else:
                self._sum("weight").add(weights)
                with np.errstate(over="ignore"):  # only the standard error is lost
                    self._sum("weight_squared").add(weights * weights)
                    self._sum("weight_loss").add(weights * values)

    def _add_figures(self, figures: dict[str, npt.NDArray[Any]], weights: Floats | None) -> None:
        live = None if weights is None or weights.all() else weights != 0  # a row of weight 0 may hold anything

        def add(name: str, column: npt.NDArray[Any]) -> None:
            column = column.astype(np.float64, copy=False)
            if live is not None:
                column = np.where(live, column, 0.0)
            with np.errstate(over="ignore"):
                self._sum(name).add(column if weights is None else weights * column)

        if "rank" in figures:
            rank = figures["rank"]
            add("rank", rank)
            add("reciprocal_rank", 1.0 / rank)
            self.counts["tied_rows"] += int(np.count_nonzero(figures["tied"] & (True if live is None else live)))
        for k in self.top_k if "place" in figures else ():
            add(f"top_{k}", figures["place"] <= k)
        for name in ("entropy", "logsumexp", "exact", "bias"):
            if name in figures:
                add(name, figures[name])
        if "bias" in figures:
            bias = figures["bias"] if live is None else np.where(live, figures["bias"], 0.0)
            weighted = bias if weights is None else weights * bias
            self._sum("bias_squared").add(weighted * weighted)
            self._sum("weight_bias").add(weighted if weights is None else weights * weighted)
        if "logsumexp" in figures:
            column = figures["logsumexp"] if live is None else figures["logsumexp"][live]
            if column.size:
                low, high = self.extremes.get("logsumexp", (math.inf, -math.inf))
                column = column[~np.isnan(column)] if np.isnan(column).any() else column
                self.extremes["logsumexp"] = (
                    min(low, float(column.min(initial=math.inf))),
                    max(high, float(column.max(initial=-math.inf))),
                )

    def _grow_groups(self, names: list[str]) -> npt.NDArray[np.int32]:
        """Numbers of the groups with these names here."""
        ids = [self.group_ids.setdefault(name, len(self.group_ids)) for name in names]
        if (more := len(self.group_ids) - len(self.group_rows)) > 0:
            self.group_rows = np.pad(self.group_rows, (0, more))
            for sums in self.group_sums.values():
                sums.grow(len(self.group_ids))
        return np.array(ids, np.int32)

    def _add_groups(self, codes: npt.NDArray[Any], names: list[str], values: Floats, weights: Floats | None) -> None:
        seen = np.unique(codes)
        place = np.zeros(len(names), np.int32)
        place[seen] = self._grow_groups([names[code] for code in seen])
        ids = place[codes]
        counts = np.bincount(ids, minlength=len(self.group_rows))
        self.group_rows += counts
        self.group_sums["loss"].add(values, ids)
        if weights is None:
            self.group_sums["weight"].add(counts.astype(np.float64), np.arange(len(counts), dtype=np.int32))
        else:
            self.group_sums["weight"].add(weights, ids)

    def state(self) -> dict[str, Any]:
        """All of it as plain numbers and arrays, in one canonical form: groups by name."""
        names = sorted(self.group_ids)
        order = np.array([self.group_ids[name] for name in names], np.intp)
        return {
            "counts": dict(self.counts),
            "extremes": dict(self.extremes),
            "sums": {name: self.sums[name].state() for name in sorted(self.sums)},
            "groups": names,
            "group_rows": self.group_rows[order],
            "group_sums": {name: sums.state(order) for name, sums in self.group_sums.items()},
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], top_k: tuple[int, ...] = ()) -> Tally:
        """The inverse of `state`."""
        tally = cls(top_k)
        tally.counts |= state["counts"]
        tally.extremes = dict(state["extremes"])
        tally.sums = {name: ExactSums.from_state(sums) for name, sums in state["sums"].items()}
        tally._ids, tally._names = None, state["groups"]
        tally.group_rows = np.array(state["group_rows"], np.int64)
        tally.group_sums = {name: ExactSums.from_state(sums) for name, sums in state["group_sums"].items()}
        return tally

    def merge(self, other: Tally) -> None:
        """Add all that `other`, which must not be this one, has seen."""
        for name, count in other.counts.items():
            self.counts[name] += count
        for name, sums in other.sums.items():
            self._sum(name).merge(sums)
        for name, (low, high) in other.extremes.items():
            mine = self.extremes.get(name, (math.inf, -math.inf))
            self.extremes[name] = (min(low, mine[0]), max(high, mine[1]))
        names = other._names if other._ids is None else list(other._ids)
        if names:
            if self._met is None or self._met[0] is not names:  # states of one job mostly have the same groups
                self._met = names, self._grow_groups(names).astype(np.intp)
            ids = self._met[1]
            self.group_rows[ids] += other.group_rows
            for name, sums in other.group_sums.items():
                self.group_sums[name].merge(sums, ids)

    # ---- figures: each one division of exact sums

    def _mean(self, name: str) -> float:
        return divide(self._sum(name).exact(), self._sum("weight").exact())

    def mean(self) -> float:
        """S w l / S w."""
        return self._mean("loss")

    def stderr(self, name: str = "loss") -> float:
        """Standard error of the mean: sd(l) / sqrt(n), and for weights sqrt(S (w (l - mean))^2 n / (n - 1)) / S w."""
        names = (name, "weight", f"{name}_squared", f"weight_{name}", "weight_squared")
        total, weight, squares, products, weights = (self._sum(name).exact() for name in names)
        n = self.counts["nonzero_weights"]
        exact = all(isinstance(s, Fraction) for s in (total, weight, squares, products, weights))
        if n < 2 or not exact or weight == 0:
            return math.nan
        mean = Fraction(total) / Fraction(weight)
        spread = max(Fraction(squares) - 2 * mean * Fraction(products) + mean * mean * Fraction(weights), Fraction(0))
        return math.sqrt(to_float(spread / Fraction(weight) ** 2 * Fraction(n, n - 1)))

    def bias(self, *, exact: bool) -> dict[str, float]:
        """The mean of the sampled loss; with `exact`, beside it that of the exact one, and exact less sampled with its
        standard error.
        """
        figures = {"mean": self.mean()}
        if exact:
            figures |= {
                "exact_mean": self._mean("exact"),
                "bias": self._mean("bias"),
                "bias_stderr": self.stderr("bias"),
            }
        return figures

    def reductions(self) -> dict[str, float]:
        """The four reductions to one number."""
        total, weight = self._sum("loss").exact(), self._sum("weight").exact()
        counts = self.counts["rows"], self.counts["nonzero_weights"]
        return {name: reduced(name, total, weight, *counts) for name in REDUCTIONS if name != "none"}

    def figures(self, *, perplexity: bool = True) -> dict[str, Any]:
        """What a report has from the rows; `perplexity` and bits only where the loss is a log-likelihood."""
        mean, stderr = self.mean(), self.stderr()
        figures: dict[str, Any] = {
            "mean": mean,
            "sum": self._sum("loss").value(),
            "weight": self._sum("weight").value(),
            "stderr": stderr,
        }
        if perplexity:
            figures["perplexity"] = _exp(mean)
            figures["perplexity_stderr"] = _exp(mean) * stderr
            figures["bits_per_token"] = mean / math.log(2)
        figures |= {name: self.counts[name] for name in ("rows", "ignored_rows", "nonfinite_rows")}
        figures["reductions"] = self.reductions()
        figures |= self._by_products()
        if perplexity and "bytes" in self.sums:
            figures["bits_per_byte"] = divide(self._sum("loss").exact(), self._sum("bytes").exact()) / math.log(2)
        if self.group_ids:
            figures["groups"] = self._groups(perplexity)
        return figures

    def _by_products(self) -> dict[str, Any]:
        figures: dict[str, Any] = {}
        if hits := {str(k): self._mean(f"top_{k}") for k in self.top_k if f"top_{k}" in self.sums}:
            figures["accuracy"] = hits
        if "rank" in self.sums:
            figures["mean_rank"] = self._mean("rank")
            figures["mrr"] = self._mean("reciprocal_rank")
            figures["tied_rows"] = self.counts["tied_rows"]
        if "entropy" in self.sums:
            figures["entropy"] = self._mean("entropy")
        if "logsumexp" in self.sums:
            low, high = self.extremes.get("logsumexp", (math.nan, math.nan))
            figures["logsumexp"] = {"mean": self._mean("logsumexp"), "min": low, "max": high}
        return figures

    def _groups(self, perplexity: bool) -> dict[str, dict[str, Any]]:
        loss, weight = self.group_sums["loss"], self.group_sums["weight"]
        groups = {}
        for name in sorted(self.group_ids):
            i = self.group_ids[name]
            mean = divide(loss.exact(i), weight.exact(i))
            groups[name] = {"rows": int(self.group_rows[i]), "weight": weight.value(i), "mean": mean}
            if perplexity:
                groups[name]["perplexity"] = _exp(mean)
        return groups


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf
