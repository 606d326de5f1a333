"""The page itself: a report is checked, turned into sections, and put into the template."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from typing import Any

from bigvocab.errors import BigvocabError
from bigvocab.reports.numerals import counted, significant, size
from bigvocab.reports.page import comparison, evaluation
from bigvocab.reports.page.schema import check_report, is_comparison, with_infinities
from bigvocab.reports.page.shown import TEXT, Html, Section, Table, named, plain_name, text_of, whole, within

_MOST_NOTES, _MOST_FILES, _MOST_BYTES = 50, 20, 150_000
# What has a table of its own, and is not listed again among all values.
_TABLED = {
    "groups",
    "worst",
    "loss_histogram",
    "rank_histogram",
    "bins",
    "by_frequency",
    "by_position",
    "by_confidence",
    "between",
    "inputs",
    "versions",
    "options",
    "model",
    "notes",
    "infinite",
}


def page_of(report: dict[str, Any]) -> str:
    """The page of a report, as HTML: one file without scripts that loads nothing.

    Made from the dictionary of report.json alone; the same report gives the same bytes, with the same matplotlib.

    Raises:
        BigvocabError: a value has the wrong type, the report is of a newer schema, or the packages of
            `bigvocab[html]` are missing.
    """
    check_report(report)
    environment = _environment()
    from bigvocab.reports.page.canvas import style

    report = with_infinities(report)
    kind = comparison if is_comparison(report) else evaluation
    with style():
        sections = kind.sections(report)
    files = report.get("inputs", [])
    text: str = environment.get_template("page.html").render(
        style=Html(_resource("page.css")),
        title=_title(report),
        kind="comparison" if kind is comparison else "evaluation",
        subject=_subject(report),
        files=[_file_cells(file) for file in files[:3]],
        more_files=len(files) - 3,
        tiles=kind.tiles(report),
        notes=[named(note["text"], 500) for note in report.get("notes", [])[:_MOST_NOTES]],
        sections=[*sections, *_made(report), _all_values(report)],
    )
    return text


def _environment() -> Any:
    try:
        import jinja2
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise BigvocabError(f"the page needs {error.name}: pip install 'bigvocab[html]'") from None
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_resource),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _resource(name: str) -> str:
    return resources.files("bigvocab.reports.page").joinpath(name).read_text(encoding="utf-8")


# ---- what was evaluated


def _title(report: dict[str, Any]) -> str:
    files = report.get("inputs", [])
    what = "comparison" if is_comparison(report) else report["loss"]
    first = str(files[0].get("path", "")).rstrip("/").rpartition("/")[2] if files else ""
    return plain_name(f"{what}: {first}" if first else what, 80)


def _subject(report: dict[str, Any]) -> str:
    parts = [f"{whole(report['rows'])} rows"] if "rows" in report else []
    bad = report.get("nonfinite_rows", 0)
    lists = [(report.get("ignored_rows", 0), "ignored")]
    lists += [(n, f"not finite in the {side}") for side, n in bad.items()] if isinstance(bad, dict) else []
    lists += [] if isinstance(bad, dict) else [(bad, "not finite")]
    parts += [f"{whole(n)} {word}" for n, word in lists if n]
    if "progress" in report:
        parts.append(
            f"not finished: {whole(report['progress']['rows_done'])} of {whole(report['progress']['rows_total'])}"
        )
    return ", ".join(parts)


def _file_cells(file: dict[str, Any]) -> tuple[str, str, str, str]:
    shape = " × ".join(f"{n:,}" for n in (file.get("shape") or [])[:8])
    stored = size(file["bytes"]).replace(" ", "\u00a0") if "bytes" in file else ""
    return named(file.get("path", "?"), 120), shape, named(file.get("dtype") or "", 40), stored


# ---- how it was made


def _made(report: dict[str, Any]) -> Iterator[Section]:
    files = [_file_cells(file) for file in report.get("inputs", [])]
    columns, texts = ("file", "shape", "type", "size"), frozenset({0, 2})
    if files:
        more = within(files[_MOST_FILES:], _MOST_BYTES)
        left = len(files) - len(more) - _MOST_FILES
        yield Section(
            "files",
            "Files",
            table=Table(columns, files[:_MOST_FILES], texts, "paths"),
            folded=[(counted(len(more), "more file"), Table(columns, more, texts, "paths"))] if more else (),
            after=f"{left:,} more are in the report." if left > 0 else "",
        )
    lines = [*_block(report.get("options", {}), ""), *_block(report.get("model", {}), "model ")]
    if lines:
        yield Section(
            "options",
            "Options",
            table=Table(("option", "value"), within(lines, _MOST_BYTES), frozenset({0, 1}), "words"),
        )
    made = list(_block(report.get("versions", {}), ""))
    if "seconds" in report:
        made.append(("time", f"{significant(report['seconds'], 3)} s"))
    if "rows_per_second" in report:
        made.append(("speed", f"{significant(report['rows_per_second'], 3)} rows/s"))
    if "bytes_per_second" in report:
        made.append(("reading", f"{size(report['bytes_per_second'])}/s"))
    if made:
        yield Section(
            "versions",
            "Versions and time",
            table=Table(("what", "value"), within(made, _MOST_BYTES), frozenset({0, 1})),
        )


def _block(block: dict[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in block.items():
        yield named(prefix + name), text_of(value, TEXT)


def _all_values(report: dict[str, Any]) -> Section:
    """Every number by its dotted name, all digits: what `--fail-if` and a program see."""
    found = list(_leaves(report, ""))
    text = "By the names of report.json and --fail-if, with all digits."
    shown = within(found, _MOST_BYTES)
    left = len(found) - len(shown)
    after = f"{left:,} more are in the report." if left > 0 else ""
    return Section(
        "all",
        "Every value",
        text,
        folded=[(counted(len(shown), "value"), Table(("name", "value"), shown))],
        after=after,
    )


def _leaves(block: dict[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in block.items():
        if name in _TABLED and isinstance(value, dict | list):
            continue
        dotted = f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _leaves(value, f"{dotted}.")
        else:
            yield named(dotted, 120), text_of(value)
