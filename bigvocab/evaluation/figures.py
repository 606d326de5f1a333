"""The figures of a report: those of a tally, what they were made with, and by what versions."""

from __future__ import annotations

from typing import Any

import numpy as np

from bigvocab.evaluation.tally import Tally
from bigvocab.reports.report import Report

SCHEMA_VERSION = 1
_PERPLEXITY_LOSSES = ("sparse-softmax", "softmax", "sampled-softmax")


def make_report(loss: str, tally: Tally, sampled: dict[str, Any] | None, *, exact: bool = False) -> Report:
    """The report of a tally; `sampled` is what it says of the draws, beside `exact` losses or not."""
    figures = tally.figures(perplexity=loss in _PERPLEXITY_LOSSES)
    if sampled is not None:
        figures["sampled"] = sampled | tally.bias(exact=exact)
    return Report({"schema_version": SCHEMA_VERSION, "loss": loss, **figures, "versions": versions()})


def versions() -> dict[str, str]:
    """Versions of what the figures depend on."""
    import numba
    import pyarrow

    import bigvocab

    return {
        "bigvocab": bigvocab.__version__,
        "numba": numba.__version__,
        "numpy": np.__version__,
        "pyarrow": pyarrow.__version__,
    }
