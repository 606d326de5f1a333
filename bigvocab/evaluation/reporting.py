"""The report of a tally: its numbers, what they were made with, and by what versions."""

from __future__ import annotations

from typing import Any

from bigvocab.catalogue import LOSSES
from bigvocab.errors import BigvocabError
from bigvocab.evaluation.coverage import Coverage
from bigvocab.evaluation.tally import Tally
from bigvocab.reports.report import Report
from bigvocab.reports.versions import versions

SCHEMA_VERSION = 1


def make_report(loss: str, tally: Tally, sampled: dict[str, Any] | None, *, exact: bool = False) -> Report:
    """The report of a tally; `sampled` is what it says of the draws, beside `exact` losses or not."""
    found = tally.metrics(perplexity=LOSSES[loss].is_likelihood)
    if sampled is not None:
        found["sampled"] = sampled | tally.bias(exact=exact)
    return Report({"schema_version": SCHEMA_VERSION, "loss": loss, **found, "versions": versions()})


def refuse_nothing(name: str, counts: dict[str, int], rows: int) -> None:
    """Raise where all `rows` of a job were left out: no number says anything then."""
    ignored, nonfinite = counts["ignored_rows"], counts["nonfinite_rows"]
    if counts["rows"] == 0 and ignored + nonfinite == rows:
        why = "ignored" if not nonfinite else "not finite" if not ignored else "ignored or not finite"
        raise BigvocabError(f"{name}: all {rows} rows are {why}, so there is nothing to evaluate")


def with_rates(report: Report, coverage: Coverage) -> Report:
    """A report with its files and its rates."""
    found = report.to_dict()
    made, seconds = found.pop("versions"), coverage.seconds
    rows = sum(stop - start for start, stop in coverage.ranges)
    inputs = [
        {name: value for name, value in entry.items() if name in ("path", "shape", "dtype", "bytes")}
        for entry in coverage.inputs
    ]
    rates = {
        "rows_per_second": rows / seconds if seconds else 0.0,
        "bytes_per_second": coverage.bytes_read / seconds if seconds else 0.0,
    }
    return Report({**found, "inputs": inputs, "seconds": seconds, **rates, "versions": made})
