"""Which rows of which files are in: never the same row twice, none left out, never rows of different jobs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bigvocab.errors import BigvocabError
from bigvocab.evaluation.compatibility import refuse_difference

Ranges = list[list[int]]  # [first, stop) of rows, sorted


@dataclass
class Coverage:
    """What a job evaluated, of which files.

    Attributes:
        files: role, path, shape, dtype, bytes and fingerprint of the content of each.
        rows: of the whole job.
        columns: names of the columns of labels by role.
        ranges: the rows that are in.
        output: whether per-row records are kept.
        output_is: the fingerprint of what a run that has ended wrote.
        lines: bytes that count of the file of records beside an unfinished state.
        classes: [first, stop, number of classes] where it is of a range of classes.
        part: the rows this run is for.
        inputs, seconds, bytes_read: for reports.
    """

    files: list[dict[str, Any]]
    rows: int
    columns: dict[str, Any]
    ranges: Ranges = field(default_factory=list)
    output: bool = False
    output_is: str | None = None
    lines: int = 0
    classes: list[int] | None = None
    part: list[int] | None = None
    inputs: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    bytes_read: int = 0

    def identity(self) -> dict[str, Any]:
        """What is the same in all states of a job: not where the files lie."""
        files = [{name: value for name, value in file.items() if name != "path"} for file in self.files]
        return {"files": files, "rows": self.rows, "columns": self.columns}


def joined(mine: Ranges, theirs: Ranges) -> Ranges:
    """The union of ranges that have no row in common; else a BigvocabError that names those rows.

    >>> joined([[0, 4]], [[4, 6], [8, 9]])
    [[0, 6], [8, 9]]
    """
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
    """Ranges as people write them: both ends included.

    >>> shown_rows([[0, 10], [12, 13]])
    '0-9, 12'
    """
    shown = [f"{start}-{stop - 1}" if stop - start > 1 else f"{start}" for start, stop in ranges]
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} ranges more" if len(shown) > 5 else "")


def refuse_other_files(mine: Coverage, theirs: Coverage, names: tuple[str, str]) -> None:
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


def merged_coverage(
    mine: Coverage | None, theirs: Coverage | None, names: tuple[str, str] = ("this evaluator", "merge")
) -> Coverage | None:
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
    return Coverage(**{**vars(mine), "ranges": ranges, "seconds": seconds, "bytes_read": read})


def refuse_incomplete(coverage: Coverage, name: str) -> None:
    """Raise unless all rows of the job are in."""
    if coverage.lines:
        raise BigvocabError(f"{name}: its run has not ended; finish it with --resume")
    if gaps := missing(coverage.ranges, coverage.rows):
        count = sum(stop - start for start, stop in gaps)
        raise BigvocabError(
            f"{name}: rows {shown_rows(gaps)} of 0-{coverage.rows - 1} are missing ({count} rows); "
            "expected the states of all shards, each run to its end (--resume)"
        )
