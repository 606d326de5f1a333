"""The report of a tally: its numbers, what they were made with, and by what versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bigvocab.catalogue import LOSSES
from bigvocab.errors import BigvocabError
from bigvocab.evaluation.coverage import Coverage
from bigvocab.evaluation.json_values import shown_value
from bigvocab.evaluation.keywords import DEFAULTS, given_among
from bigvocab.evaluation.notes import notes_of
from bigvocab.evaluation.tally import Tally
from bigvocab.reports.report import SCHEMA_VERSION, Report
from bigvocab.reports.versions import versions

# Options that decide no number, or say only where data lie.
_SILENT = ("threads", "chunk_rows", "max_memory", "loss")


def make_report(
    loss: str,
    tally: Tally,
    sampled: dict[str, Any] | None,
    *,
    exact: bool = False,
) -> Report:
    """The report of a tally.

    Args:
        loss: its name.
        tally: of all rows.
        sampled: what the report says of the draws.
        exact: whether there are exact losses beside the sampled ones.
    """
    found = tally.metrics(perplexity=LOSSES[loss].is_likelihood)
    if sampled is not None:
        found["sampled"] = sampled | tally.bias(exact=exact)
    if notes := notes_of(loss, tally, sampled):
        found["notes"] = notes
    return Report({"schema_version": SCHEMA_VERSION, "loss": loss, **found, "versions": versions()})


def shown_options(given: Mapping[str, Any], metrics: tuple[str, ...]) -> dict[str, Any]:
    """The options of an evaluation that are not their defaults, for people; of arrays their shape.

    Args:
        given: keywords of `Evaluator`, or those of a state.
        metrics: those that are the default of the loss.
    """
    shown = {name: shown_value(given[name]) for name in given_among(given) if name not in _SILENT}
    if shown.get("metrics") == list(metrics):
        del shown["metrics"]
    if "top_k" in shown and shown["top_k"] == list(DEFAULTS["top_k"]):
        del shown["top_k"]
    return shown


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
