"""The page of a report.json, as files: whole or not at all."""

from __future__ import annotations

import json
import os
from typing import Any

from bigvocab import arguments
from bigvocab.errors import BigvocabError, FormatError
from bigvocab.reports.page.document import page_of
from bigvocab.storage import uris
from bigvocab.storage.output import refuse_overwriting, write_text
from bigvocab.storage.spool import as_local

_MOST_BYTES = 1 << 30


def page_of_file(report: str | os.PathLike[str], html: str | os.PathLike[str]) -> None:
    """Write the page of a report.json; both may be URIs.

    Raises:
        FormatError: the file is no JSON; BigvocabError: no such file, no report, or a page that cannot be written.
    """
    given = arguments.path("report", report)
    refuse_overwriting({"html": html}, [given])
    with as_local(given) as local:
        values = _read(local)
    try:
        found = page_of(values)
    except FormatError:
        raise
    except BigvocabError as error:
        raise BigvocabError(f"{uris.shown(uris.plain(given))}: ", *error.parts) from None
    write_text(html, found)


def _read(path: str) -> Any:
    """The content of a JSON file."""
    try:
        if os.path.getsize(path) > _MOST_BYTES:
            raise FormatError(f"{path}: is larger than {_MOST_BYTES:,} bytes, expected a report.json")
        with open(path, encoding="utf-8-sig") as file:
            return json.load(file, parse_constant=_refuse_constant)
    except OSError as error:
        raise BigvocabError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        why = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise FormatError(f"{path}: is no JSON, expected a report.json: {why}") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
