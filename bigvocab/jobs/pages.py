"""The page of a job's report: what can be wrong with it is known before any work."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterable
from typing import Any

from bigvocab.errors import BigvocabError, Keyword
from bigvocab.reports.report import Report
from bigvocab.storage.output import check_writable, refuse_overwriting, write_text

_NEEDED = ("jinja2", "matplotlib")


def check_page(path: str | os.PathLike[str] | None, inputs: Iterable[str]) -> None:
    """Raise unless a page can be written: its packages are there, and its place is none of the inputs."""
    if path is None:
        return
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise BigvocabError(Keyword("html"), f": needs {missing[0]}: pip install 'bigvocab[html]'")
    refuse_overwriting({"html": path}, list(inputs))
    check_writable(path)


def write_page(path: str | os.PathLike[str] | None, report: Report) -> None:
    """Write the page of a report, whole or not at all; None writes none."""
    if path is None:
        return
    from bigvocab.reports.page import page_of

    values: Any = json.loads(report.to_json())
    options = {"options": report.options} if report.options else {}
    write_text(path, page_of(values | options))
