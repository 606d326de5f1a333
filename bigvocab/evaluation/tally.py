"""The sums behind a report: added row block by row block, merged in any order, divided once.

Every sum is exact, every count an integer, so two tallies that saw the same rows in any split are equal to the bit.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.catalogue import RANKING
from bigvocab.evaluation.breakdowns import (
    EDGES,
    bins_shown,
    cluster_stderr,
    groups_shown,
    macro,
    position_bins,
)
from bigvocab.evaluation.crossed_sums import CrossedSums
from bigvocab.evaluation.grouped_sums import GroupedSums
from bigvocab.evaluation.row_result import RowResult
from bigvocab.evaluation.statistics import KINDS, add_values, ranking_columns, read_values, share_within, weighted
from bigvocab.evaluation.sums import Sums
from bigvocab.evaluation.worst_rows import WorstRows, cut
from bigvocab.labels.labels import LabelBatch
from bigvocab.losses.exact_sums import divide, exp
from bigvocab.losses.reductions import REDUCTIONS, reduced

Floats = npt.NDArray[np.float64]
Columns = dict[str, npt.NDArray[Any]]
_COUNTS = ("rows", "ignored_rows", "nonfinite_rows", "nonzero_weights")
_MASS_TOLERANCE = 1e-3
_RANKINGS = ("ranking", "exact_ranking", "ranking_bias")  # columns of metrics of rankings


class Tally(Sums):
    """Exact sums of everything that was seen. `top_k` are the k of the accuracies that are kept."""

    def __init__(self, top_k: tuple[int, ...] = ()) -> None:
        super().__init__(top_k)
        self.counts = dict.fromkeys(_COUNTS, 0)
        self.groups, self.clusters, self.crossed = GroupedSums(), GroupedSums(), CrossedSums()
        self.worst = WorstRows()

    def add(self, rows: RowResult, batch: LabelBatch, *, numbered: bool = True) -> None:
        """Add a block of rows; `numbered`: the rows of the batch have numbers that tell them apart from all others."""
        kept = slice(None) if rows.counted.all() else np.flatnonzero(rows.counted)
        values = rows.weighted[kept]
        weights = None if rows.weight is None else rows.weight[kept]
        n = len(values)
        self.counts["rows"] += n
        self.counts["ignored_rows"] += int(np.count_nonzero(rows.ignored))
        self.counts["nonfinite_rows"] += int(np.count_nonzero(rows.nonfinite))
        of_rows = weights if rows.row_weight is None else rows.row_weight[kept]
        live = np.ones(n, bool) if of_rows is None else of_rows != 0
        self.counts["nonzero_weights"] += int(np.count_nonzero(live))
        columns = {name: column[kept] for name, column in rows.values.items()}
        self._add_losses(values, weights)
        add_values(self, columns, weights)
        if batch.num_bytes is not None:
            self._add_bytes(np.asarray(batch.num_bytes)[kept], values, columns, weights, live)
        self._add_breakdowns(rows, batch, kept, values, columns, weights)
        for name, count in rows.counts.items():
            self.counts[name] = self.counts.get(name, 0) + count
        for name, extremes in rows.extremes.items():
            self.widen(name, *extremes)
        if "loss" in rows.values:
            self._add_worst(rows, batch, numbered)

    def _add_losses(self, values: Floats, weights: Floats | None) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            self.sum_of("loss").add(values)
            self.sum_of("loss_squared").add(values * values)
            if weights is None:
                self.sum_of("weight").add([float(len(values))])
                self.sum_of("weight_squared").add([float(len(values))])
                self.sum_of("weight_loss").add(values)
            else:
                self.sum_of("weight").add(weights)
                with np.errstate(over="ignore"):  # only the standard error is lost
                    self.sum_of("weight_squared").add(weights * weights)
                    self.sum_of("weight_loss").add(weights * values)

    def _add_bytes(self, num_bytes: Any, values: Floats, columns: Columns, weights: Floats | None, live: Any) -> None:
        """Bytes of text, and the loss of the rows that have some."""
        texts, there = num_bytes.astype(np.float64), num_bytes > 0
        self.sum_of("bytes").add(texts if weights is None else weights * texts)
        self.counts["bytes"] = self.counts.get("bytes", 0) + int(num_bytes.sum())
        self.counts["rows_without_bytes"] = self.counts.get("rows_without_bytes", 0) + int((live & ~there).sum())
        lost = _weighted_nll(values, columns, weights)
        self.sum_of("loss_with_bytes").add(lost[there])

    def _add_breakdowns(
        self, rows: RowResult, batch: LabelBatch, kept: Any, values: Floats, columns: Columns, weights: Floats | None
    ) -> None:
        """Sums by group, cluster, and the bins of the row."""
        bins = dict(rows.bins)
        if batch.positions is not None:
            bins["by_position"] = position_bins(batch.positions)
        if not bins and batch.groups is None and batch.clusters is None:
            return
        with np.errstate(over="ignore", invalid="ignore"):
            own = {"loss": values, "loss_squared": values * values}
        if "nll" in columns:
            own["nll"] = _weighted_nll(values, columns, weights)
        numbers = {name: chosen[kept] for name, chosen in bins.items()}
        if batch.groups is not None:
            ranking = ranking_columns(columns["ranking"], self.top_k) if "ranking" in columns else {}
            of_groups = own | {name: weighted(column, weights) for name, column in ranking.items()}
            numbers["groups"] = self.groups.add(batch.groups[0][kept], batch.groups[1], of_groups, weights)
        if batch.clusters is not None:
            of_clusters: Columns = {name: column for name, column in own.items() if name != "loss_squared"}
            of_clusters |= {name: weighted(column, weights) for name, column in self._erring(columns).items()}
            clusters = self.clusters.add(batch.clusters[0][kept], batch.clusters[1], of_clusters, weights)
            for name, chosen in numbers.items():
                self.crossed.add(name, clusters, chosen, {"loss": values}, weights)
        if "place" in columns:
            own["top_1"] = weighted(share_within(columns["place"], 1), weights)
        for name in bins:
            self.bins_of(name, len(EDGES[name])).add(numbers[name], own, weights)

    def _erring(self, columns: Columns) -> Columns:
        """Columns beside the loss whose means have errors over clusters."""
        found = {"bias": columns["bias"]} if "bias" in columns else {}
        for name in _RANKINGS:
            if name in columns:
                found |= ranking_columns(columns[name], self.top_k, name)
        return found

    def _add_worst(self, rows: RowResult, batch: LabelBatch, numbered: bool) -> None:
        live = (
            rows.counted
            if rows.row_weight is None and rows.weight is None
            else rows.counted & ((rows.weight if rows.row_weight is None else rows.row_weight) != 0)
        )
        predicted, found = rows.values.get("predicted"), []
        for i in self.worst.candidates(rows.loss, live).tolist():
            row: dict[str, Any] = {"row": batch.first_row + i} if numbered else {}
            row |= {"loss": float(rows.loss[i]), "label": int(batch.labels[i])}
            if predicted is not None and predicted[i] >= 0:
                row["predicted"] = int(predicted[i])
            if batch.groups is not None:
                row["group"] = cut(batch.groups[1][batch.groups[0][i]])
            if batch.texts is not None:
                row["text"] = cut(batch.texts[i].as_py())
            found.append(row)
        self.worst.add(found)

    def state(self) -> dict[str, Any]:
        """All of it as plain numbers and arrays, in one canonical form: groups by name."""
        groups, clusters = self.groups, self.clusters
        by_name = {"groups": groups.state(), "clusters": clusters.state()}
        places = [np.argsort(named.order()) for named in (clusters, groups)]
        return {**super().state(), **by_name, "crossed": self.crossed.state(*places), "worst": self.worst.state()}

    @classmethod
    def from_state(cls, state: dict[str, Any], top_k: tuple[int, ...] = ()) -> Tally:
        """The inverse of `state`."""
        tally = cls(top_k)
        tally.restore(state)
        tally.groups = GroupedSums.from_state(state["groups"])
        tally.clusters = GroupedSums.from_state(state["clusters"])
        tally.crossed = CrossedSums.from_state(state["crossed"])
        tally.worst = WorstRows.from_state(state["worst"])
        return tally

    def merge(self, other: Tally) -> None:  # type: ignore[override]  # only another tally has groups
        """Add all that `other`, which must not be this one, has seen."""
        super().merge(other)
        groups, clusters = self.groups.merge(other.groups), self.clusters.merge(other.clusters)
        self.crossed.merge(other.crossed, clusters, groups)
        self.worst.merge(other.worst)

    # ---- numbers: each one division of exact sums

    def bias(self, *, exact: bool) -> dict[str, Any]:
        """The mean of the sampled loss; with `exact`, beside it that of the exact one, and exact less sampled with its
        standard error.
        """
        found: dict[str, Any] = {"mean": self.mean()}
        if exact:
            found |= {"exact_mean": self.mean("exact"), "bias": self.mean("bias"), "bias_stderr": self.stderr("bias")}
            if self.clusters and "bias" in self.clusters.bins.sums:
                found["bias_cluster_stderr"] = cluster_stderr(self.clusters, "bias")
            for name in _RANKINGS[1:]:
                if (ranking := KINDS["ranking"].read(self, name)) is not None:
                    found[name] = ranking | self._ranking_errors(name)
        return found

    def reductions(self) -> dict[str, float]:
        """The four reductions to one number."""
        total, weight = self.sum_of("loss").exact(), self.sum_of("weight").exact()
        counts = self.counts["rows"], self.counts["nonzero_weights"]
        return {name: reduced(name, total, weight, *counts) for name in REDUCTIONS if name != "none"}

    @property
    def mass_is_off(self) -> bool:
        """Whether soft labels do not sum to 1 in the mean: then exp of the loss is no perplexity."""
        return "mass" in self.sums and not abs(self.mean("mass") - 1.0) <= _MASS_TOLERANCE

    def metrics(self, *, perplexity: bool = True) -> dict[str, Any]:
        """What a report has from the rows; `perplexity` and bits only where the loss is a log-likelihood."""
        likelihood = ("nll" if "nll" in self.sums else "loss") if perplexity else None
        named = None if self.mass_is_off else likelihood
        found = self._averages(likelihood, named) | {name: self.counts[name] for name in _COUNTS[:3]}
        found["reductions"] = self.reductions()
        values = read_values(self)
        if not self.counts.get("listed_rows") and not self.mass_is_off:
            values.pop("label_mass", None)
        if "nll" in values and self.clusters:
            values["nll"]["cluster_stderr"] = cluster_stderr(self.clusters, "nll")
        if "ranking" in values:
            values["ranking"] |= self._ranking_errors("ranking")
        found |= values
        if "bytes" in self.sums:
            if likelihood is not None:
                found["bits_per_byte"] = self._per_byte(likelihood)
            found |= {name: self.counts[name] for name in ("bytes", "rows_without_bytes")}
        for name in EDGES:
            if name in self.bins:
                found[name] = bins_shown(self.bins[name], name, named, self._errors(name, len(EDGES[name])))
        if self.groups:
            found["groups"] = groups_shown(self.groups, named, self._errors("groups", len(self.groups.bins)))
            found["macro"] = macro(self.groups, found["groups"], named)
        if self.worst.rows:
            found["worst"] = self.worst.shown()
        return found

    def _averages(self, likelihood: str | None, named: str | None) -> dict[str, Any]:
        """The mean, and what is made of it; `named` is the loss that has a perplexity."""
        found: dict[str, Any] = {
            "mean": self.mean(),
            "sum": self.sum_of("loss").value(),
            "weight": self.sum_of("weight").value(),
            "stderr": self.stderr(),
        }
        if self.clusters:
            found["cluster_stderr"] = cluster_stderr(self.clusters, "loss")
        if named is not None:
            value = exp(self.mean(named))
            found |= {"perplexity": value, "perplexity_stderr": value * self.stderr(named)}
            if self.clusters:
                found["perplexity_cluster_stderr"] = value * cluster_stderr(self.clusters, named)
        if likelihood is not None:
            found["bits_per_token"] = self.mean(likelihood) / math.log(2)
        if self.clusters:
            found["clusters"] = {"count": len(self.clusters.bins)}
        return found

    def _errors(self, name: str, size: int) -> list[float] | None:
        """Errors over clusters of groups or of bins; None where there are no clusters."""
        return self.crossed.errors(name, size) if self.crossed else None

    def _ranking_errors(self, name: str) -> dict[str, Any]:
        """The block `cluster_stderr` of a ranking, where there are clusters."""
        there = [one for one in RANKING if any(f"{name}.{one}@{k}" in self.clusters.bins.sums for k in self.top_k)]
        found = {one: {str(k): cluster_stderr(self.clusters, f"{name}.{one}@{k}") for k in self.top_k} for one in there}
        return {"cluster_stderr": found} if found else {}

    def _per_byte(self, likelihood: str) -> float:
        return divide(self.sum_of(likelihood).exact(), self.sum_of("bytes").exact()) / math.log(2)

    def bits_per_byte_of_rows_with_bytes(self) -> float:
        """Bits per byte without the rows that have no bytes."""
        return self._per_byte("loss_with_bytes")


def _weighted_nll(values: Floats, columns: Columns, weights: Floats | None) -> Floats:
    """Numerators of the mean of the loss without label smoothing."""
    return values if "nll" not in columns else weighted(columns["nll"], weights)
