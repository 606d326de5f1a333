"""The report of a comparison: metrics of each candidate, what lies between them, and what they were made of."""

from __future__ import annotations

from typing import Any

from bigvocab.comparison.llama_table import STORED_CANDIDATE
from bigvocab.comparison.rules import ONLY
from bigvocab.comparison.sums import ComparisonSums
from bigvocab.evaluation.reporting import SCHEMA_VERSION
from bigvocab.reports.report import Report
from bigvocab.reports.versions import versions


def comparison_report(sums: ComparisonSums) -> Report:
    """The report of all rows in some sums; of one candidate its metrics stand at the top."""
    found = sums.tally.to_dict()
    names = list(sums.tally.candidates)
    blocks = found["candidates"] if len(names) > 1 else {names[0]: found} if names else {}
    for name, block in blocks.items():
        if "floor" in block and name in sums.floors:
            block["floor"] |= sums.floors[name]
        if name in sums.tables and block["rows"]:
            block["llama_cpp"] = sums.tables[name].to_dict()
            block["llama_cpp"] |= {"note": STORED_CANDIDATE} if name in sums.stored else {}
    head: dict[str, Any] = {"schema_version": SCHEMA_VERSION}
    if len(names) > 1:
        counts = sums.counts()
        head |= {"rows": counts["rows"], "ignored_rows": counts["ignored_rows"]}
        clusters = [block["clusters"] for block in blocks.values() if "clusters" in block]
        head |= {"clusters": clusters[0]} if clusters else {}
    elif not names:
        head |= {"rows": 0, "ignored_rows": 0}
    elif names[0] != ONLY:
        head["name"] = names[0]
    beside = {"notes": list(sums.notes), "models": dict(sums.models)}
    return Report({**head, **found, **{name: value for name, value in beside.items() if value}, "versions": versions()})
