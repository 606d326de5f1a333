"""States that become one report: the same rows never twice, none left out, and never rows of different jobs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from bigvocab.arguments import integer
from bigvocab.catalogue import default_metrics
from bigvocab.comparison.reporting import comparison_report
from bigvocab.comparison.sums import restored_sums
from bigvocab.errors import BigvocabError, Keyword
from bigvocab.evaluation.compatibility import refuse_difference, refuse_same_draws, with_told
from bigvocab.evaluation.coverage import merged_coverage, refuse_incomplete, shown_rows
from bigvocab.evaluation.model_report import with_model
from bigvocab.evaluation.reporting import make_report, refuse_nothing, shown_options, with_rates
from bigvocab.evaluation.state import State, content_of, read_state
from bigvocab.evaluation.stored_tally import Names, restored
from bigvocab.evaluation.tally import Tally
from bigvocab.jobs.class_merging import merge_classes
from bigvocab.jobs.pages import check_page, write_page
from bigvocab.reports.report import Report
from bigvocab.storage import uris
from bigvocab.storage.output import place_of, refuse_overwriting, write_text

Held = str | os.PathLike[str] | bytes
Part = Held | bytearray | memoryview
_KINDS = (str, os.PathLike, bytes, bytearray, memoryview)


def merge(
    parts: Iterable[Part] | Part,
    *,
    output: str | os.PathLike[str] | None = None,
    report: str | os.PathLike[str] | None = None,
    html: str | os.PathLike[str] | None = None,
    rows: int | None = None,
) -> Report:
    """The report of a whole job from the states of its shards, in any order.

    Args:
        parts: state files, and bytes of `Evaluator.to_bytes`, in any mix: of ranges of rows, of ranges of classes, or
            of evaluators fed by `update`. Equal bytes, of one state twice or of equal batches, are refused unless
            `rows` is given.
        output: losses.parquet of states of ranges of classes; ranges of rows have written theirs.
        report: path of report.json.
        html: path of a page to look at; needs bigvocab[html].
        rows: how many rows all of them must have seen, those left out among them; None is any number.

    Raises:
        BigvocabError: states of different jobs, rows that are in two of them, rows that are in none, or another number
            of rows; FormatError: damaged states.

    >>> import bigvocab as bv
    >>> a, b = bv.Evaluator(), bv.Evaluator()
    >>> _ = a.update([[0.0, 0.0]], [1]), b.update([[0.0, 1.0]], [1])
    >>> merge([a.to_bytes(), b.to_bytes()], rows=2)["rows"]
    2
    """
    found = merged(parts, output=output, rows=rows, outputs={"report": report, "html": html})
    if report is not None:
        write_text(report, found.to_json() + "\n")
    write_page(html, found)
    return found


def merged(
    parts: Iterable[Part] | Part,
    *,
    output: str | os.PathLike[str] | None,
    rows: int | None,
    outputs: dict[str, str | os.PathLike[str] | None],
) -> Report:
    """As `merge`, but the outputs "report" and "html" are only checked, not written."""
    given = [_part(part) for part in ([parts] if isinstance(parts, _KINDS) else parts)]
    paths = [part for part in given if not isinstance(part, bytes)]
    refuse_overwriting({"output": output, **outputs}, paths)
    check_page(outputs["html"], [os.fspath(path) for path in paths])
    found, seen, first = _merged(_refuse_twice(given), output, counted=rows is not None)
    if rows is not None and seen != integer("rows", rows, 0, 2**62):
        raise BigvocabError(Keyword("rows"), f": all states together have seen {seen} rows, expected {rows}")
    compares = first.task == "compare"
    return Report(
        found.to_dict(), {} if compares else shown_options(first.given, default_metrics(first.options["loss"]))
    )


def _part(part: Any) -> Held:
    """A path or bytes, however an engine holds them."""
    part = part.as_py() if isinstance(part, pa.Scalar) else part
    if isinstance(part, bytearray | memoryview):
        return bytes(part)
    if isinstance(part, str | os.PathLike | bytes):
        return part
    raise TypeError(f"merge: expected paths of states, or bytes of to_bytes, got {type(part).__name__}")


def _merged(parts: list[Held], output: str | os.PathLike[str] | None, *, counted: bool) -> tuple[Report, int, State]:
    """The report; how many rows were seen, those left out among them; and the first state."""
    whole = read_state(parts[0])
    met = {part for part in parts[:1] if isinstance(part, bytes)}
    if whole.task == "classes":
        found = merge_classes([whole, *(read_state(part) for part in parts[1:])], output)
        return found, whole.covered().rows, whole
    if output is not None:
        raise BigvocabError(
            Keyword("output"),
            f": {whole.path} is the state of a range of rows, whose losses were written by its own run; "
            "expected states of ranges of classes, or no output",
        )
    kind: _Evaluations | _Comparisons = _Comparisons() if whole.task == "compare" else _Evaluations()
    sums = kind.restored(whole)
    owners = [] if whole.coverage is None else [(one, whole.path) for one in whole.coverage.ranges]
    for part in parts[1:]:
        state = read_state(part)
        _tell(whole, state)
        refuse_difference(
            {"task": whole.task, **whole.options}, {"task": state.task, **state.options}, (whole.path, state.path)
        )
        if state.coverage is not None and whole.coverage is not None:
            _refuse_overlap(owners, state)
            owners += [(one, state.path) for one in state.coverage.ranges]
        more = kind.restored(state)
        twice = isinstance(part, bytes) and part in met and state.coverage is None
        if twice and not counted and kind.seen(state, more):
            raise BigvocabError(
                "bytes: are given twice; merging would count their rows twice; if they are of other rows with equal "
                "values, expected ",
                Keyword("rows"),
                ", the number of all rows",
            )
        met |= {part} if isinstance(part, bytes) else set()
        if state.coverage is None and whole.coverage is None:
            kind.refuse_same_rows(whole, sums, more)
        whole.coverage = merged_coverage(whole.coverage, state.coverage, (whole.path, state.path))
        with content_of(state.path):
            sums.merge(more)
        whole.notes += [note for note in state.notes if note not in whole.notes]
    if whole.coverage is not None:
        refuse_incomplete(whole.coverage, f"{len(parts)} states" if len(parts) > 1 else whole.path)
    with content_of(whole.path):
        return kind.report(whole, sums), kind.seen(whole, sums), whole


def _tell(whole: State, state: State) -> None:
    """Give a state without rows what rows of the other told of a model."""
    if state.coverage is None and not state.seen:
        state.options = with_told(state.options, whole.options)
    elif whole.coverage is None and not whole.seen:
        whole.options, whole.given = with_told(whole.options, state.options), state.given
        whole.model, whole.seen = state.model, state.seen


class _Evaluations:
    """States of the task "evaluate"."""

    def __init__(self) -> None:
        self._names = Names()

    def restored(self, state: State) -> Any:
        with content_of(state.path):
            return restored(state.sums, state.table, tuple(state.options["top_k"]), self._names)

    def refuse_same_rows(self, state: State, mine: Any, theirs: Any) -> None:
        refuse_same_draws(state.options, mine.counts, theirs.counts)

    def report(self, state: State, tally: Any) -> Report:
        return tally_report(state, tally)

    def seen(self, state: State, tally: Any) -> int:
        skipped = tally.counts["nonfinite_rows"] if state.options["nonfinite"] == "skip" else 0
        return int(tally.counts["rows"] + tally.counts["ignored_rows"] + skipped)


class _Comparisons:
    """States of the task "compare"."""

    def restored(self, state: State) -> Any:
        with content_of(state.path):
            return restored_sums(state.sums, state.table, state.path)

    def refuse_same_rows(self, state: State, mine: Any, theirs: Any) -> None:
        """Rows that came by `update` draw nothing."""

    def report(self, state: State, sums: Any) -> Report:
        report = comparison_report(sums)
        if state.coverage is None:
            return report
        if state.coverage.ranges:
            refuse_nothing(state.path, sums.counts(), state.coverage.rows)
        return with_rates(report, state.coverage)

    def seen(self, state: State, sums: Any) -> int:
        return int(sums.seen)


def tally_report(state: State, tally: Tally) -> Report:
    """The report of all rows of a state; times and rates are sums over its machines."""
    draws = state.options["draws"] or {}
    report = make_report(state.options["loss"], tally, state.sampled, exact=draws.get("exact", False))
    if state.coverage is None:
        return with_model(report, state.model, state.notes)
    if state.coverage.ranges:
        refuse_nothing(state.path, tally.counts, state.coverage.rows)
    return with_model(with_rates(report, state.coverage), state.model, state.notes)


def _refuse_twice(parts: list[Held]) -> list[Held]:
    """The parts, of which no path is there twice."""
    seen: set[Any] = set()
    for part in parts:
        if isinstance(part, bytes):
            continue
        if (place := place_of(part)) in seen:
            raise BigvocabError(f"{uris.shown(os.fspath(part))}: is given twice; merging would count its rows twice")
        seen.add(place)
    if not parts:
        raise BigvocabError("merge: expected at least one state")
    return parts


def _refuse_overlap(owners: list[tuple[list[int], str]], state: State) -> None:
    for (start, stop), path in owners:
        for a, b in state.covered().ranges:
            if max(start, a) < min(stop, b):
                rows = shown_rows([[max(start, a), min(stop, b)]])
                raise BigvocabError(f"{state.path}: rows {rows} are in {path} too; merging would count them twice")
