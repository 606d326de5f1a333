"""llama.cpp's own table of a `--kl-divergence` run, from its logits file and the candidate's exact logits.

Not what this package takes for right: classes with p of at most exp(-16) are skipped, tokens of one window count as
independent, and probabilities are float32. It is here so that its numbers can be laid beside ours. The steps are those
of tools/perplexity/perplexity.cpp, types and all; what a printed table shows is met to its last digit.

Two stored files do not give a printed table: the candidate's logits were live in the run that printed it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.errors import BigvocabError
from bigvocab.formats.llama_logits import LlamaLogits
from bigvocab.reports.llama_cpp import format_table as format_table

STORED_CANDIDATE = (
    "the printed table needs the candidate's live logits; from two stored files its values differ in the fifth digit"
)
_F = np.float32
_LEAST = _F(-16.0)
_LEAST_ROWS = 100  # with fewer, llama.cpp prints no values but those of each window
_KLD = (99.9, 99.0, 95.0, 90.0, 50.0, 10.0, 5.0, 1.0, 0.1)
_DELTA = (99.9, 99.0, 95.0, 90.0, 75.0, 50.0, 25.0, 10.0, 5.0, 1.0, 0.1)
# Columns of what is kept of a row: loss, loss of the base, KL (float64), difference of probabilities, same top.
ROW = np.dtype([("loss", "f4"), ("base", "f4"), ("kl", "f8"), ("delta", "f4"), ("same", "?")])

Floats = npt.NDArray[np.float64]


def table_rows(log_base: npt.NDArray[np.float32], logits: npt.NDArray[Any], labels: npt.NDArray[np.int64]) -> Any:
    """What llama.cpp adds up for each row, as an array of ROW.

    Args:
        log_base: (n, V) float32, what `LlamaLogits.log_probabilities` returns.
        logits: (n, V) of the candidate; llama.cpp has them in float32.
        labels: (n,).
    """
    x, each = logits.astype(_F), np.arange(len(labels))
    found = np.zeros(len(labels), ROW)
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        highest = x.max(axis=1)
        total = _expf(x - highest[:, None]).sum(axis=1, dtype=np.float64)
        log_total = np.log(total).astype(_F)
        found["loss"] = highest + log_total - x[each, labels]
        found["base"] = -log_base[each, labels]
        offset = highest + log_total
        terms = _expf(log_base) * ((log_base - x) + offset[:, None])
        found["kl"] = np.where(log_base > _LEAST, terms, _F(0)).sum(axis=1, dtype=np.float64)
        found["delta"] = _expf(-found["loss"]) - _expf(-found["base"])
    found["same"] = x.argmax(axis=1) == log_base.argmax(axis=1)
    return found


def _expf(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """exp in float32, rounded once as the C library's is; NumPy's own is off in the last bit more often."""
    return np.exp(x.astype(np.float64)).astype(_F)


class LlamaTable:
    """Rows as llama.cpp adds them up; `to_dict` is the table. Rows must be in the file's order in the end.

    >>> import numpy as np
    >>> table = LlamaTable()
    >>> table.add(0, table_rows(np.log(np.full((2, 4), 0.25, np.float32)), np.zeros((2, 4)), np.array([0, 1])))
    >>> table.merge(LlamaTable())
    >>> [(name, round(one["value"], 6)) for name, one in table.window(2).items()][:2]
    [('mean_ppl_q', 4.0), ('mean_ppl_base', 4.0)]
    """

    def __init__(self) -> None:
        self._parts: dict[int, Any] = {}

    def add(self, first_row: int, rows: Any) -> None:
        """Add an array of ROW that begins with row `first_row`."""
        if len(rows):
            self._parts[first_row] = rows

    def merge(self, other: LlamaTable) -> None:
        """Add the rows of another table, which has none of those here."""
        self._parts |= other._parts

    def state(self) -> dict[str, Any]:
        """All of it as arrays, in one canonical form."""
        firsts = sorted(self._parts)
        rows = np.concatenate([self._parts[first] for first in firsts]) if firsts else np.zeros(0, ROW)
        places = [np.arange(first, first + len(self._parts[first])) for first in firsts]
        columns = {name: np.ascontiguousarray(rows[name]) for name in ROW.names or ()}
        return columns | {"row": np.concatenate(places) if places else np.zeros(0, np.int64)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> LlamaTable:
        """The inverse of `state`."""
        table, places = cls(), np.asarray(state["row"], np.int64)
        rows = np.zeros(len(places), ROW)
        for name in ROW.names or ():
            rows[name] = state[name]
        starts = np.flatnonzero(np.diff(places, prepend=-2) != 1)
        for start, stop in zip(starts, [*starts[1:], len(places)], strict=True):
            table.add(int(places[start]), rows[start:stop])
        return table

    def _rows(self) -> Any:
        return (
            np.concatenate([self._parts[first] for first in sorted(self._parts)]) if self._parts else np.zeros(0, ROW)
        )

    def window(self, rows: int) -> dict[str, dict[str, float]]:
        """The running line after the first `rows` rows: perplexity, ln of the ratio, KL, RMS of the difference, same
        top.
        """
        return _running(self._rows()[:rows])

    def to_dict(self) -> dict[str, Any]:
        """Every printed value, in the units printed; those of the running line alone below 100 rows."""
        rows = self._rows()
        found: dict[str, Any] = _running(rows)
        if len(rows) < _LEAST_ROWS:
            return found
        kld, delta = np.sort(rows["kl"].astype(_F)), np.sort(rows["delta"])
        found["kld"] = _spread(kld, _KLD, 1.0)
        found["dp"] = _spread(delta, _DELTA, 100.0)
        return found


def _mean_and_error(total: float, squares: float, count: int) -> tuple[float, float]:
    if count < 1:
        return 0.0, 0.0
    mean = total / count
    spread = squares / count - mean * mean
    return mean, math.sqrt(spread / (count - 1)) if spread > 0 and count > 10 else 0.0


def _covariance(a: Floats, b: Floats) -> float:
    n = len(a)
    products = (a.astype(_F) * b.astype(_F)).astype(np.float64)
    return float(products.sum() / n - (a.sum() / n) * (b.sum() / n)) / (n - 1) if n >= 10 else 0.0


def _sums(values: npt.NDArray[np.float32]) -> tuple[float, float, int]:
    """(sum, sum of squares that were made in float32, count)."""
    squares = (values * values).astype(np.float64)
    return float(values.sum(dtype=np.float64)), float(squares.sum()), len(values)


def _running(rows: Any) -> dict[str, dict[str, float]]:
    n = len(rows)
    if not n:
        raise BigvocabError("llama_cpp: no rows, expected at least one")
    loss, error = _mean_and_error(*_sums(rows["loss"]))
    base, base_error = _mean_and_error(*_sums(rows["base"]))
    covariance = _covariance(rows["loss"].astype(np.float64), rows["base"].astype(np.float64))
    ppl, base_ppl = math.exp(loss), math.exp(base)
    log_error = _root(error**2 + base_error**2 - 2 * covariance)
    ratio = math.exp(loss - base)
    u, w = ppl * error, base_ppl * base_error
    kl, kl_error = _mean_and_error(float(rows["kl"].sum()), float((rows["kl"] ** 2).sum()), n)
    delta = rows["delta"].astype(np.float64)
    mean_delta, delta_error = _mean_and_error(float(delta.sum()), _sums(rows["delta"])[1], n)
    squares = (rows["delta"] * rows["delta"]).astype(np.float64)
    mean_square, square_error = _mean_and_error(float(squares.sum()), float((squares * squares).sum()), n)
    rms = math.sqrt(mean_square)
    same = int(np.count_nonzero(rows["same"])) / n
    correlation = covariance / (error * base_error) if error and base_error else math.nan
    return {
        "mean_ppl_q": _with_error(ppl, u),
        "mean_ppl_base": _with_error(base_ppl, w),
        "cor": {"value": 100 * correlation},
        "mean_ln_ratio": _with_error(loss - base, log_error),
        "mean_ratio": _with_error(ratio, ratio * log_error),
        "mean_difference": _with_error(ppl - base_ppl, _root(u**2 + w**2 - 2 * ppl * base_ppl * covariance)),
        "mean_kld": _with_error(kl, kl_error),
        "mean_dp": _with_error(100 * mean_delta, 100 * delta_error),
        "rms_dp": _with_error(100 * rms, 100 * (0.5 / rms * square_error if rms else math.nan)),
        "same_top_p": _with_error(100 * same, 100 * math.sqrt(same * (1 - same) / (n - 1)) if n > 1 else math.nan),
    }


def _with_error(value: float, error: float) -> dict[str, float]:
    return {"value": value, "error": error}


def _root(square: float) -> float:
    """The square root; NaN below 0, where rounding takes it with rows that are alike."""
    return math.sqrt(square) if square >= 0 else math.nan


def _spread(ordered: npt.NDArray[np.float32], percents: tuple[float, ...], unit: float) -> dict[str, float]:
    """Extremes and percentiles of sorted numbers, at a position in float32."""
    middle = len(ordered) // 2
    median = float(ordered[middle]) if len(ordered) % 2 else float((ordered[middle - 1] + ordered[middle]) * _F(0.5))
    found = {"max": float(ordered[-1])}
    for percent in percents:
        found[f"{percent:g}"] = median if percent == 50 else _percentile(ordered, _F(percent / 100))
    found["min"] = float(ordered[0])
    return {name: unit * value for name, value in found.items()}


def _percentile(ordered: npt.NDArray[np.float32], fraction: np.float32) -> float:
    place = fraction * _F(len(ordered) - 1)
    if place <= 0:
        return float(ordered[0])
    low = int(place)
    if low >= len(ordered) - 1:
        return float(ordered[-1])
    share = place - _F(low)
    return float((_F(1) - share) * ordered[low] + share * ordered[low + 1])


def llama_table(base: LlamaLogits, logits: npt.NDArray[Any], which: npt.NDArray[np.int64] | None = None) -> LlamaTable:
    """The table of a base file against logits of its rows (n, V), or against rows `which` of more logits."""
    table, step = LlamaTable(), max(1, (8 << 20) // base.shape[1])
    for start in range(0, len(base), step):
        stop = min(start + step, len(base))
        rows = logits[start:stop] if which is None else logits[which[start:stop]]
        table.add(start, table_rows(base.log_probabilities(start, stop), np.asarray(rows), base.labels[start:stop]))
    return table
