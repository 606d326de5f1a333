"""The sums behind a report: added row block by row block, merged in any order, divided once.

Every sum is exact, every count an integer, so two tallies that saw the same rows in any split are equal to the bit.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.evaluation.grouped_sums import GroupedSums
from bigvocab.evaluation.row_result import RowResult
from bigvocab.evaluation.statistics import add_values, read_values
from bigvocab.evaluation.sums import Sums
from bigvocab.losses.exact_sums import divide
from bigvocab.losses.reductions import REDUCTIONS, reduced

Floats = npt.NDArray[np.float64]
_COUNTS = ("rows", "ignored_rows", "nonfinite_rows", "nonzero_weights")


class Tally(Sums):
    """Exact sums of everything that was seen. `top_k` are the k of the accuracies that are kept."""

    def __init__(self, top_k: tuple[int, ...] = ()) -> None:
        super().__init__(top_k)
        self.counts = dict.fromkeys(_COUNTS, 0)
        self.groups = GroupedSums()

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
        add_values(self, {name: column[kept] for name, column in rows.values.items()}, weights)
        if num_bytes is not None:
            texts = np.asarray(num_bytes)[kept].astype(np.float64)
            self.sum_of("bytes").add(texts if weights is None else weights * texts)
        if groups is not None:
            self.groups.add(groups[0][kept], groups[1], values, weights)

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

    def state(self) -> dict[str, Any]:
        """All of it as plain numbers and arrays, in one canonical form: groups by name."""
        return {**super().state(), "groups": self.groups.state()}

    @classmethod
    def from_state(cls, state: dict[str, Any], top_k: tuple[int, ...] = ()) -> Tally:
        """The inverse of `state`."""
        tally = cls(top_k)
        tally.restore(state)
        tally.groups = GroupedSums.from_state(state["groups"])
        return tally

    def merge(self, other: Tally) -> None:  # type: ignore[override]  # only another tally has groups
        """Add all that `other`, which must not be this one, has seen."""
        super().merge(other)
        self.groups.merge(other.groups)

    # ---- numbers: each one division of exact sums

    def bias(self, *, exact: bool) -> dict[str, float]:
        """The mean of the sampled loss; with `exact`, beside it that of the exact one, and exact less sampled with its
        standard error.
        """
        found = {"mean": self.mean()}
        if exact:
            found |= {"exact_mean": self.mean("exact"), "bias": self.mean("bias"), "bias_stderr": self.stderr("bias")}
        return found

    def reductions(self) -> dict[str, float]:
        """The four reductions to one number."""
        total, weight = self.sum_of("loss").exact(), self.sum_of("weight").exact()
        counts = self.counts["rows"], self.counts["nonzero_weights"]
        return {name: reduced(name, total, weight, *counts) for name in REDUCTIONS if name != "none"}

    def metrics(self, *, perplexity: bool = True) -> dict[str, Any]:
        """What a report has from the rows; `perplexity` and bits only where the loss is a log-likelihood."""
        mean, stderr = self.mean(), self.stderr()
        found: dict[str, Any] = {
            "mean": mean,
            "sum": self.sum_of("loss").value(),
            "weight": self.sum_of("weight").value(),
            "stderr": stderr,
        }
        if perplexity:
            found["perplexity"] = _exp(mean)
            found["perplexity_stderr"] = _exp(mean) * stderr
            found["bits_per_token"] = mean / math.log(2)
        found |= {name: self.counts[name] for name in ("rows", "ignored_rows", "nonfinite_rows")}
        found["reductions"] = self.reductions()
        found |= read_values(self)
        if perplexity and "bytes" in self.sums:
            found["bits_per_byte"] = divide(self.sum_of("loss").exact(), self.sum_of("bytes").exact()) / math.log(2)
        if self.groups:
            found["groups"] = self._groups(perplexity)
        return found

    def _groups(self, perplexity: bool) -> dict[str, dict[str, Any]]:
        loss, weight = self.groups.sums["loss"], self.groups.sums["weight"]
        found = {}
        for name in sorted(self.groups.ids):
            i = self.groups.ids[name]
            mean = divide(loss.exact(i), weight.exact(i))
            found[name] = {"rows": int(self.groups.rows[i]), "weight": weight.value(i), "mean": mean}
            if perplexity:
                found[name]["perplexity"] = _exp(mean)
        return found


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf
