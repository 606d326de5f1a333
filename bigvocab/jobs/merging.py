"""States that become one report: the same rows never twice, none left out, and never rows of different jobs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bigvocab
from bigvocab.errors import BigvocabError, Keyword
from bigvocab.evaluation.evaluator import Evaluator
from bigvocab.evaluation.figures import make_report
from bigvocab.evaluation.state import Data, State, as_given, as_options, from_given, read_state
from bigvocab.evaluation.tally import Tally
from bigvocab.matrices import fingerprints
from bigvocab.reports.report import Report
from bigvocab.sampling.draw_blocks import DrawBlocks

if TYPE_CHECKING:
    import pyarrow as pa

Ranges = list[list[int]]
FILE_OPTIONS = ("class_weights", "pos_weight", "vocab_file", "candidates")  # keywords of `Evaluator` that may be a path


# ---- states of evaluators


def state_of(evaluator: Evaluator) -> State:
    """All that an evaluator holds; its tally is shared, not copied."""
    shown = None if evaluator.draws is None else evaluator.draws.shown()
    options, data = identity(evaluator), evaluator._data
    state = State(options, given_of(evaluator), evaluator._tally, data, evaluator._seen, as_options(shown))
    if data is None and evaluator.draws is not None:
        state.learned = evaluator.draws.learned()
    return state


def identity(evaluator: Evaluator) -> dict[str, Any]:
    """What decides the figures, by content: files by their fingerprints, wherever they lie."""
    options = as_options(evaluator.options())
    if evaluator.layer is not None:
        files = [entry for matrix in evaluator.layer.matrices() for entry in fingerprints.of_matrix("layer", matrix)]
        options["layer"]["files"] = [[entry["shape"], entry["fingerprint"]] for entry in files]
    for name in ("vocab_file", "candidates"):
        if options["draws"] and options["draws"].get(name):
            options["draws"][name] = fingerprints.of_file(options["draws"][name], 1 << 30)
    return {"bigvocab": bigvocab.__version__, **options}


def given_of(evaluator: Evaluator) -> dict[str, Any]:
    """The keywords that make an evaluator like this one, as JSON has them; paths are absolute."""
    given = {name: value for name, value in evaluator._given.items() if name != "threads"}
    if evaluator.layer is not None:
        given |= {"weights": evaluator.layer.weights, **evaluator.layer.vectors}
    for name in FILE_OPTIONS:
        if isinstance(given[name], str):
            given[name] = os.path.abspath(given[name])
    return {name: as_given(value) for name, value in given.items()}


def load(path: str | os.PathLike[str], **options: Any) -> Evaluator:
    """The evaluator whose state was saved; see `Evaluator.load`."""
    state = read_state(path)
    if state.table is not None:
        raise BigvocabError(
            f"{state.path}: is of a range of classes, expected a state of rows; `bigvocab merge` takes it"
        )
    given = {name: value for name, value in state.given.items() if name not in options}
    evaluator = Evaluator(**options, **{name: from_given(name, value, state.path) for name, value in given.items()})
    refuse_difference(state.options, identity(evaluator), (state.path, "the options and files given now"))
    evaluator._tally, evaluator._data, evaluator._seen = state.tally, state.data, state.seen
    if state.learned is not None and isinstance(evaluator.draws, DrawBlocks):
        evaluator.draws.restore(state.learned)
    return evaluator


# ---- rows that are in


def joined(mine: Ranges, theirs: Ranges) -> Ranges:
    """The union of ranges that have no row in common; else a BigvocabError that names those rows."""
    out: Ranges = []
    for start, stop in sorted([*mine, *theirs]):
        if out and start < out[-1][1]:
            raise BigvocabError(f"rows {shown_rows([[start, min(stop, out[-1][1])]])} are in both")
        if out and start == out[-1][1]:
            out[-1][1] = stop
        elif start < stop:
            out.append([start, stop])
    return out


def missing(ranges: Ranges, rows: int) -> Ranges:
    """The ranges of `rows` rows that are not in `ranges`, which are sorted."""
    edges = [0, *(edge for one in ranges for edge in one), rows]
    return [[a, b] for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]


def shown_rows(ranges: Ranges) -> str:
    """Ranges as people write them: both ends included."""
    shown = [f"{start}-{stop - 1}" if stop - start > 1 else f"{start}" for start, stop in ranges]
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} ranges more" if len(shown) > 5 else "")


# ---- what must be equal


def refuse_difference(mine: dict[str, Any], theirs: dict[str, Any], names: tuple[str, str]) -> None:
    """Raise for the first option that differs; `names` of where they come from."""
    for name in (*mine, *theirs):
        a, b = mine.get(name), theirs.get(name)
        if a != b:
            a, b, name = _deepest(a, b, name)
            raise BigvocabError(f"{names[1]}: {name} is {b!r}, but {a!r} in {names[0]}; expected the same")


def _deepest(a: Any, b: Any, name: str) -> tuple[Any, Any, str]:
    """The first thing inside that differs."""
    if isinstance(a, dict) and isinstance(b, dict):
        key = next(key for key in (*a, *b) if a.get(key) != b.get(key))
        return _deepest(a.get(key), b.get(key), f"{name} {key}")
    return a, b, name


def refuse_other_files(mine: Data, theirs: Data, names: tuple[str, str]) -> None:
    """Raise unless both are of the same rows of the same files; `names` of where they come from."""
    a, b = mine.identity(), theirs.identity()
    for here, there in zip(a["files"], b["files"], strict=False):
        if here != there:
            path = next(file["path"] for file, entry in zip(theirs.files, b["files"], strict=True) if entry is there)
            what = next(name for name in (*here, *there) if here.get(name) != there.get(name))
            what = "content" if what == "fingerprint" else what
            raise BigvocabError(
                f"{names[1]}: the {what} of {path} is not that of the {here['role']} in {names[0]}; "
                "expected the same files"
            )
    if len(a["files"]) != len(b["files"]):
        raise BigvocabError(
            f"{names[1]}: is of {len(b['files'])} files, but {names[0]} of {len(a['files'])}; expected the same"
        )
    refuse_difference({"rows": a["rows"], **a["columns"]}, {"rows": b["rows"], **b["columns"]}, names)


def refuse_same_draws(options: dict[str, Any], mine: Tally, theirs: Tally) -> None:
    """Raise if both counted their rows from 0 and drew by them: rows of the same number had the same candidates."""
    draws = options["draws"]
    if (
        draws
        and "candidates" not in draws
        and draws["sampler"] != "all"
        and all(any(tally.counts.values()) for tally in (mine, theirs))
    ):
        raise BigvocabError(
            "merge: both evaluators drew candidates for rows 0, 1, ..., expected one evaluator for all rows, "
            "shards of one job over files, or one draw for all rows (candidates)",
        )


def merge_data(
    mine: Data | None, theirs: Data | None, names: tuple[str, str] = ("this evaluator", "merge")
) -> Data | None:
    """What was evaluated in both; nothing is changed."""
    if mine is None or theirs is None:
        if mine is not theirs:
            raise BigvocabError(
                f"{names[1]}: rows of files and rows fed by update cannot be told apart, "
                f"expected one kind; the other is {names[0]}"
            )
        return None
    refuse_other_files(mine, theirs, names)
    try:
        ranges = joined(mine.ranges, theirs.ranges)
    except BigvocabError as error:
        raise BigvocabError(f"{names[1]}: {error}, in it and in {names[0]}: merging would count them twice") from None
    seconds, read = mine.seconds + theirs.seconds, mine.bytes_read + theirs.bytes_read
    return Data(**{**vars(mine), "ranges": ranges, "seconds": seconds, "bytes_read": read})


# ---- the command


def merge_states(paths: Iterable[str | os.PathLike[str]], *, output: str | os.PathLike[str] | None = None) -> Report:
    """The report of a whole job from the states of its shards, in any order.

    Args:
        paths: state files: of ranges of rows, of ranges of classes, or of evaluators fed by `update`.
        output: losses.parquet of states of ranges of classes; ranges of rows have written theirs.

    Raises:
        BigvocabError: states of different jobs, rows that are in two of them, or rows that are in none.
    """
    found = _refuse_twice(paths)
    names = _Names()
    whole = read_state(found[0], names=names)
    if whole.data is not None and whole.data.classes is not None:
        from bigvocab.jobs.class_merging import merge_classes

        return merge_classes([whole, *(read_state(path) for path in found[1:])], output)
    if output is not None:
        raise BigvocabError(
            Keyword("output"),
            f": {whole.path} is the state of a range of rows, whose losses were written by its own run; "
            "expected states of ranges of classes, or no output",
        )
    owners = [] if whole.data is None else [(one, whole.path) for one in whole.data.ranges]
    for path in found[1:]:
        state = read_state(path, names=names)
        refuse_difference(whole.options, state.options, (whole.path, state.path))
        if state.data is not None and whole.data is not None:
            _refuse_overlap(owners, state)
            owners += [(one, state.path) for one in state.data.ranges]
        if state.data is None and whole.data is None:
            refuse_same_draws(whole.options, whole.tally, state.tally)
        whole.data = merge_data(whole.data, state.data, (whole.path, state.path))
        whole.tally.merge(state.tally)
    if whole.data is not None:
        refuse_incomplete(whole.data, f"{len(found)} states" if len(found) > 1 else whole.path)
    return state_report(whole)


def _refuse_twice(paths: Iterable[str | os.PathLike[str]]) -> list[str]:
    seen: dict[Path, str] = {}
    for path in paths:
        place = Path(path).resolve()
        if place in seen:
            raise BigvocabError(f"{os.fspath(path)}: is given twice; merging would count its rows twice")
        seen[place] = os.fspath(path)
    if not seen:
        raise BigvocabError("merge: expected at least one state")
    return list(seen.values())


def _refuse_overlap(owners: list[tuple[list[int], str]], state: State) -> None:
    for (start, stop), path in owners:
        for a, b in state.data.ranges if state.data else ():
            if max(start, a) < min(stop, b):
                rows = shown_rows([[max(start, a), min(stop, b)]])
                raise BigvocabError(f"{state.path}: rows {rows} are in {path} too; merging would count them twice")


def refuse_incomplete(data: Data, name: str) -> None:
    """Raise unless all rows of the job are in."""
    if data.lines:
        raise BigvocabError(f"{name}: its run has not ended; --resume ends it")
    if gaps := missing(data.ranges, data.rows):
        count = sum(stop - start for start, stop in gaps)
        raise BigvocabError(
            f"{name}: rows {shown_rows(gaps)} of 0-{data.rows - 1} are missing ({count} rows); "
            "expected the states of all shards, each run to its end (--resume)"
        )


def state_report(state: State) -> Report:
    """The report of all rows of a state; times and rates are sums over its machines."""
    draws = state.options["draws"] or {}
    report = make_report(state.options["loss"], state.tally, state.sampled, exact=draws.get("exact", False))
    data = state.data
    if data is None:
        return report
    if data.ranges:
        refuse_nothing(str(state.path), state.tally, data.rows)
    return with_times(report, data)


def refuse_nothing(name: str, tally: Tally, rows: int) -> None:
    """Raise where all `rows` of a job were left out: no figure says anything then."""
    ignored, nonfinite = tally.counts["ignored_rows"], tally.counts["nonfinite_rows"]
    if tally.counts["rows"] == 0 and ignored + nonfinite == rows:
        why = "ignored" if not nonfinite else "not finite" if not ignored else "ignored or not finite"
        raise BigvocabError(f"{name}: all {rows} rows are {why}, so there is nothing to evaluate")


def with_times(report: Report, data: Data) -> Report:
    """A report with its files and its rates."""
    figures = report.to_dict()
    made, seconds = figures.pop("versions"), data.seconds
    rows = sum(stop - start for start, stop in data.ranges)
    inputs = [
        {name: value for name, value in entry.items() if name in ("path", "shape", "dtype", "bytes")}
        for entry in data.inputs
    ]
    rates = {
        "rows_per_second": rows / seconds if seconds else 0.0,
        "bytes_per_second": data.bytes_read / seconds if seconds else 0.0,
    }
    return Report({**figures, "inputs": inputs, "seconds": seconds, **rates, "versions": made})


class _Names:
    """Lists of names of groups, made once where the states that follow have the same, as most shards do."""

    def __init__(self) -> None:
        self._column: pa.Array | None = None
        self._names: list[str] = []

    def __call__(self, column: pa.Array) -> list[str]:
        if self._column is None or not column.equals(self._column):
            self._column, self._names = column, column.to_pylist()
        return self._names
