"""Exact, streaming losses of models with huge vocabularies, on ordinary machines.

Names are loaded when they are first used, so that `bigvocab --help` need not wait for Numba.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "errors": ["BigvocabError", "FormatError"],
    "linear": ["linear_cross_entropy"],
    "losses": [
        "compute_weighted_loss",
        "log_loss",
        "sigmoid_cross_entropy",
        "softmax_cross_entropy",
        "sparse_sigmoid_cross_entropy",
        "sparse_softmax_cross_entropy",
        "weighted_sigmoid_cross_entropy",
    ],
    "matrix": ["open_matrix"],
    "labels": ["read_labels"],
    "evaluator": ["Evaluator"],
    "job": ["evaluate"],
    "report": ["Report"],
    "sampled": ["nce_loss", "sampled_softmax_loss"],
    "samplers": [
        "AllCandidateSampler",
        "FixedUnigramSampler",
        "LearnedUnigramSampler",
        "LogUniformSampler",
        "SampledValues",
        "UniformSampler",
        "compute_accidental_hits",
    ],
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        value = getattr(importlib.import_module(f"bigvocab.{_HOME_OF[name]}"), name)
        globals()[name] = value
        return value
    if name in _HOMES:
        return importlib.import_module(f"bigvocab.{name}")
    raise AttributeError(f"module 'bigvocab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
