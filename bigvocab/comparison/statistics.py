"""The metrics of one candidate against the reference: added row block by row block, merged in any order.

Sums are exact, counts are whole numbers, and the values of rows that percentiles need are kept: tallies that saw the
same rows in any split report the same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.comparison.breakdowns import CONFIDENCES, confidence_shown, groups_shown, macro
from bigvocab.comparison.extremes import Worst, spread_of
from bigvocab.comparison.flips import mcnemar_p
from bigvocab.comparison.moments import Lines, Moments, exact_product, spread, stderr
from bigvocab.evaluation.crossed_sums import CrossedSums
from bigvocab.losses.exact_sums import ExactSums, divide, exp, to_float

Floats = npt.NDArray[np.float64]
Names = tuple[npt.NDArray[Any], list[str]]  # the line of each row, and what the lines are called

RANKS = (1, 5, 10)
ACCURACIES = (1, 5)  # as an evaluation has them
_TOPS = ("top_rank_in_candidate", "top_rank_in_reference")
_OF_LABEL = ("rank_reference", "rank_candidate")
# Values of which percentiles are reported, and that are kept row by row.
KEPT = ("kl", "kl_reverse", "js", "tv", "delta_p")
# Values of which only a mean is reported.
AVERAGED = ("logit_difference", "entropy_reference", "entropy_candidate")
_SUMMED = ("loss_reference", "loss_candidate", "loss_difference", *KEPT, *AVERAGED)
_COUNTS = (
    "rows",
    "ignored_rows",
    "skipped_rows",
    "nonfinite_reference",
    "nonfinite_candidate",
    "same_top",
    "tied_rows",
)
_FLIPS = ("both_right", "to_wrong", "to_right", "both_wrong")


@dataclass
class ComparedRows:
    """What a block of rows (n) has to say.

    Args:
        columns: values by the names of records: those of `PairRows.columns` or `StoredRows.columns`.
        rows: number of each row in the data.
        counted: False for rows in no metric: ignored, or skipped as not finite.
        ignored: by their label.
        nonfinite: (2, n), of the reference and of the candidate.
        labels: None where there are none.
        groups: of each row.
        clusters: of each row; rows of one are not independent.
        mass: of the reference in classes that llama.cpp files leave out.
        floored_labels: whether the label's loss is only known to be at least what is given.
    """

    columns: dict[str, npt.NDArray[Any]]
    rows: npt.NDArray[np.int64]
    counted: npt.NDArray[np.bool_]
    ignored: npt.NDArray[np.bool_]
    nonfinite: npt.NDArray[np.bool_]
    labels: npt.NDArray[np.int64] | None = None
    groups: Names | None = None
    clusters: Names | None = None
    mass: Floats | None = None
    floored_labels: npt.NDArray[np.bool_] | None = None


class PairTally:
    """Everything that was seen of one candidate."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(_COUNTS, 0)
        self.flips: dict[str, int] = {}
        self.ranks: dict[str, dict[int, int]] = {}
        self.moments: dict[str, Moments] = {}
        self.products = ExactSums()  # of the two losses
        self.groups = Lines(("same_top",), ("kl", "loss_difference"))
        self.clusters = Lines(("same_top",), ("kl", "loss_difference"))
        self.crossed = CrossedSums()
        self.floor: dict[str, float] = {}
        self._kept: dict[str, list[npt.NDArray[Any]]] = {}
        self.worst = Worst()

    # ---- adding

    def add(self, rows: ComparedRows) -> None:
        """Add a block of rows."""
        self.counts["ignored_rows"] += int(np.count_nonzero(rows.ignored))
        self.counts["skipped_rows"] += int(np.count_nonzero(~rows.counted & ~rows.ignored))
        for side, name in enumerate(("nonfinite_reference", "nonfinite_candidate")):
            self.counts[name] += int(np.count_nonzero(rows.nonfinite[side]))
        kept = np.flatnonzero(rows.counted)
        columns = {name: column[kept] for name, column in rows.columns.items()}
        self.counts["rows"] += len(kept)
        self.counts["same_top"] += int(np.count_nonzero(columns["same_top"]))
        if "tied" in columns:
            self.counts["tied_rows"] += int(np.count_nonzero(columns["tied"]))
        self._add_sums(columns)
        self._add_ranks(columns)
        self._keep(columns)
        self.worst.add(columns, rows.rows[kept], None if rows.labels is None else rows.labels[kept])
        self._add_lines(rows, kept, columns)
        if rows.mass is not None and rows.floored_labels is not None:
            self._add_floor(rows.mass[kept], rows.floored_labels[kept])

    def _add_sums(self, columns: dict[str, npt.NDArray[Any]]) -> None:
        for name in columns:
            if name in _SUMMED or name.startswith("overlap."):
                self._moments(name).add(columns[name])
        if "delta_p" in columns:
            self._moments("delta_p_squared").add(columns["delta_p"] ** 2)
        if "loss_reference" in columns:
            product, rest = exact_product(columns["loss_reference"], columns["loss_candidate"])
            self.products.add(product)
            self.products.add(rest)

    def _add_lines(self, rows: ComparedRows, kept: npt.NDArray[np.intp], columns: dict[str, npt.NDArray[Any]]) -> None:
        """Sums by group and by cluster, and of the pairs of a cluster with a group or a bin."""
        same_top = columns["same_top"].astype(bool)
        values: dict[str, Floats] = {name: columns[name] for name in self.groups.sums if name in columns}
        numbers: dict[str, npt.NDArray[Any]] = {"by_confidence": _bucket(columns["confidence"])}
        if rows.groups is not None:
            numbers["groups"] = self.groups.add(rows.groups[0][kept], rows.groups[1], {"same_top": same_top}, values)
        if rows.clusters is None:
            return
        clusters = self.clusters.add(rows.clusters[0][kept], rows.clusters[1], {"same_top": same_top}, values)
        for name, numbered in numbers.items():
            self.crossed.add(name, clusters, numbered, values | {"same_top": same_top.astype(np.float64)}, None)

    def _moments(self, name: str) -> Moments:
        return self.moments.setdefault(name, Moments())

    def _add_ranks(self, columns: dict[str, npt.NDArray[Any]]) -> None:
        for name in (*_TOPS, *_OF_LABEL):
            if name in columns:
                counts = self.ranks.setdefault(name, dict.fromkeys(RANKS, 0))
                for k in RANKS:
                    counts[k] += int(np.count_nonzero((columns[name] >= 1) & (columns[name] <= k)))
        if "rank_reference" in columns:
            before, after = columns["rank_reference"] == 1, columns["rank_candidate"] == 1
            cases = (before & after, before & ~after, ~before & after, ~before & ~after)
            for name, case in zip(_FLIPS, cases, strict=True):
                self.flips[name] = self.flips.get(name, 0) + int(np.count_nonzero(case))

    def _keep(self, columns: dict[str, npt.NDArray[Any]]) -> None:
        for name in KEPT:
            if name in columns:
                self._kept.setdefault(name, []).append(columns[name])
        self._kept.setdefault("bucket", []).append(_bucket(columns["confidence"]).astype(np.uint8))

    def kept(self, name: str) -> npt.NDArray[Any]:
        """A column of all rows that count, in no order that means anything; float64, but "bucket"."""
        parts = self._kept.get(name, [])
        if len(parts) != 1:
            self._kept[name] = parts = [np.concatenate(parts) if parts else np.zeros(0)]
        return parts[0]

    def _add_floor(self, mass: Floats, labels: npt.NDArray[np.bool_]) -> None:
        self._moments("mass").add(mass)
        self._join_floor(float(mass.max(initial=0.0)), int(np.count_nonzero(labels)))

    def _join_floor(self, mass_max: float, labels: int) -> None:
        """NaN, of a row that is kept although it is not finite, is the maximum in any order."""
        self.floor["mass_max"] = float(np.maximum(self.floor.get("mass_max", 0.0), mass_max))
        self.floor["labels"] = self.floor.get("labels", 0) + labels

    # ---- states

    def state(self) -> dict[str, Any]:
        """All of it as plain numbers and arrays."""
        return {
            "counts": dict(self.counts),
            "flips": dict(self.flips),
            "ranks": {name: {str(k): count for k, count in counts.items()} for name, counts in self.ranks.items()},
            "moments": {name: self.moments[name].state() for name in sorted(self.moments)},
            "products": self.products.state(),
            "groups": self.groups.state(),
            "clusters": self.clusters.state(),
            "crossed": self.crossed.state(np.argsort(self.clusters.order()), np.argsort(self.groups.order())),
            "floor": dict(self.floor),
            "kept": {name: self.kept(name) for name in sorted(self._kept)},
            "worst": self.worst.state(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> PairTally:
        """The inverse of `state`."""
        tally = cls()
        tally.counts |= state["counts"]
        tally.flips = dict(state["flips"])
        tally.ranks = {name: {int(k): n for k, n in counts.items()} for name, counts in state["ranks"].items()}
        tally.moments = {name: Moments.from_state(moments) for name, moments in state["moments"].items()}
        tally.products = ExactSums.from_state(state["products"])
        tally.groups, tally.clusters = Lines.from_state(state["groups"]), Lines.from_state(state["clusters"])
        tally.crossed = CrossedSums.from_state(state["crossed"])
        tally.floor = dict(state["floor"])
        tally._kept = {name: [np.asarray(column)] for name, column in state["kept"].items()}
        tally.worst = Worst.from_state(state["worst"])
        return tally

    def merge(self, other: PairTally) -> None:
        """Add all that `other`, which must not be this one, has seen."""
        for name, count in other.counts.items():
            self.counts[name] += count
        for name, count in other.flips.items():
            self.flips[name] = self.flips.get(name, 0) + count
        for name, counts in other.ranks.items():
            mine = self.ranks.setdefault(name, dict.fromkeys(RANKS, 0))
            for k, count in counts.items():
                mine[k] += count
        for name, moments in other.moments.items():
            self._moments(name).merge(moments)
        self.products.merge(other.products)
        groups, clusters = self.groups.merge(other.groups), self.clusters.merge(other.clusters)
        self.crossed.merge(other.crossed, clusters, groups)
        for name in other._kept:
            self._kept.setdefault(name, []).append(other.kept(name))
        self.worst.merge(other.worst)
        if other.floor:
            self._join_floor(other.floor["mass_max"], int(other.floor["labels"]))

    # ---- metrics

    def to_dict(self) -> dict[str, Any]:
        """The metrics by their names in reports; NaN where there is nothing to divide by."""
        n = self.counts["rows"]
        found: dict[str, Any] = {"rows": n, "ignored_rows": self.counts["ignored_rows"]}
        found["nonfinite_rows"] = {side: self.counts[f"nonfinite_{side}"] for side in ("reference", "candidate")}
        if "loss_reference" in self.moments:
            found |= {side: self._side(side, n) for side in ("reference", "candidate")}
            found["difference"] = self._difference(n)
        for name in KEPT[:-1]:
            if name in self.moments:
                found[name] = self._divergence(name, n)
        if "tv" in found:
            found["tv"]["acceptance"] = 1.0 - found["tv"]["mean"]
        if "delta_p" in self.moments:
            found["delta_p"] = self._delta_p(n)
        found["same_top"] = self._same_top(n)
        for name in _TOPS:
            if name in self.ranks:
                found[name.replace("top_rank", "top")] = self._shares(name, RANKS, n)
        if self.flips:
            found["flips"] = self._flips(n)
        for name in AVERAGED:
            if name in self.moments:
                found[name] = {"mean": self.moments[name].mean(n)}
        overlaps = {name.split(".")[1]: moments.mean(n) for name, moments in self.moments.items() if "overlap." in name}
        if overlaps:
            found["overlap"] = overlaps
        errors = self.crossed if len(self.clusters) else None
        found["by_confidence"] = confidence_shown(self.kept("kl"), self.kept("bucket"), errors)
        if len(self.groups):
            found["groups"] = groups_shown(self.groups, errors, labelled="loss_difference" in self.moments)
            found["macro"] = macro(found["groups"])
        if len(self.clusters):
            found["clusters"] = {"count": len(self.clusters)}
        if self.floor:
            found["floor"] = {"mass": self.moments["mass"].mean(n), **self.floor}
            found["kl"]["bound"] = "lower"
        found["worst"] = self.worst.to_list()
        return found

    def _side(self, side: str, n: int) -> dict[str, Any]:
        moments = self.moments[f"loss_{side}"]
        mean, error = moments.mean(n), moments.stderr(n)
        return {
            "mean": mean,
            "stderr": error,
            "perplexity": exp(mean),
            "perplexity_stderr": exp(mean) * error,
            "accuracy": self._shares(f"rank_{side}", ACCURACIES, n),
        }

    def _shares(self, name: str, ks: tuple[int, ...], n: int) -> dict[str, float]:
        """The share of rows whose rank is at most k, for each k."""
        return {str(k): divide(Fraction(self.ranks[name][k]), n) for k in ks}

    def _difference(self, n: int) -> dict[str, float]:
        p, q, d = (self.moments[f"loss_{name}"] for name in ("reference", "candidate", "difference"))
        mean, error = d.mean(n), d.stderr(n)
        ppl_p, ppl_q = exp(p.mean(n)), exp(q.mean(n))
        of_p, of_q = p.spread(n), q.spread(n)
        of_both = spread(p.total.exact(), q.total.exact(), self.products.exact(), n)
        found = {"mean": mean, "stderr": error, **self._clustered("loss_difference")}
        found |= {"perplexity_ratio": exp(mean), "perplexity_ratio_stderr": exp(mean) * error}
        found |= {"perplexity": ppl_q - ppl_p, "perplexity_stderr": math.nan, "correlation": math.nan}
        if of_p is None or of_q is None or of_both is None or not (math.isfinite(ppl_p) and math.isfinite(ppl_q)):
            return found
        a, b = Fraction(ppl_p), Fraction(ppl_q)
        found["perplexity_stderr"] = stderr(b * b * of_q + a * a * of_p - 2 * a * b * of_both, n)
        if of_p > 0 and of_q > 0:
            root = math.sqrt(to_float(of_p) * to_float(of_q))
            found["correlation"] = max(-1.0, min(1.0, to_float(of_both) / root)) if root else math.nan
        return found

    def _clustered(self, name: str) -> dict[str, float]:
        return {"cluster_stderr": self.clusters.cluster_stderr(name)} if len(self.clusters) else {}

    def _divergence(self, name: str, n: int) -> dict[str, Any]:
        moments, values = self.moments[name], self.kept(name)
        infinite = int(np.count_nonzero(np.isinf(values)))
        found: dict[str, Any] = {"mean": moments.mean(n), "stderr": moments.stderr(n)}
        if name == "kl":
            found |= self._clustered(name)
        found |= spread_of(values)
        if name in ("kl", "kl_reverse"):
            finite = Fraction(moments.total.integer(), 1 << 1074)
            known = not math.isnan(found["mean"])
            found |= {"infinite_rows": infinite, "finite_mean": divide(finite, n - infinite) if known else math.nan}
        return found

    def _delta_p(self, n: int) -> dict[str, Any]:
        moments, squares = self.moments["delta_p"], self.moments["delta_p_squared"]
        rms = math.sqrt(squares.mean(n))
        error = squares.stderr(n) / (2 * rms) if rms else 0.0 * squares.stderr(n)
        found = {"mean": moments.mean(n), "stderr": moments.stderr(n), "rms": rms, "rms_stderr": error}
        return found | spread_of(self.kept("delta_p"))

    def _same_top(self, n: int) -> dict[str, Any]:
        share = divide(Fraction(self.counts["same_top"]), n)
        found = {"share": share, "stderr": math.sqrt(share * (1 - share) / (n - 1)) if n > 1 else math.nan}
        if len(self.clusters):
            found["cluster_stderr"] = self.clusters.cluster_stderr_of_count("same_top")
        return found | ({"tied_rows": self.counts["tied_rows"]} if _TOPS[0] in self.ranks else {})

    def _flips(self, n: int) -> dict[str, Any]:
        wrong, right = self.flips["to_wrong"], self.flips["to_right"]
        share = divide(Fraction(wrong + right), n)
        return {"share": share, "to_wrong": wrong, "to_right": right, "mcnemar_p": mcnemar_p(wrong, right)}


def _bucket(confidence: Floats) -> npt.NDArray[np.int64]:
    """The bin of each row by the top probability of the reference."""
    return np.searchsorted(np.array(CONFIDENCES[1:-1]), confidence, side="right")
