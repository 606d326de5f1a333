"""Exact, streaming losses of models with huge vocabularies, on ordinary machines.

Names are loaded when they are first used, so that `bigvocab --help` need not wait for Numba.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bigvocab.errors import BigvocabError as BigvocabError
    from bigvocab.errors import FormatError as FormatError
    from bigvocab.evaluator import Evaluator as Evaluator
    from bigvocab.job import evaluate as evaluate
    from bigvocab.labels import read_labels as read_labels
    from bigvocab.linear import linear_cross_entropy as linear_cross_entropy
    from bigvocab.losses import compute_weighted_loss as compute_weighted_loss
    from bigvocab.losses import log_loss as log_loss
    from bigvocab.losses import sigmoid_cross_entropy as sigmoid_cross_entropy
    from bigvocab.losses import softmax_cross_entropy as softmax_cross_entropy
    from bigvocab.losses import sparse_sigmoid_cross_entropy as sparse_sigmoid_cross_entropy
    from bigvocab.losses import sparse_softmax_cross_entropy as sparse_softmax_cross_entropy
    from bigvocab.losses import weighted_sigmoid_cross_entropy as weighted_sigmoid_cross_entropy
    from bigvocab.matrix import open_matrix as open_matrix
    from bigvocab.report import Report as Report
    from bigvocab.sampled import nce_loss as nce_loss
    from bigvocab.sampled import sampled_softmax_loss as sampled_softmax_loss
    from bigvocab.samplers import AllCandidateSampler as AllCandidateSampler
    from bigvocab.samplers import FixedUnigramSampler as FixedUnigramSampler
    from bigvocab.samplers import LearnedUnigramSampler as LearnedUnigramSampler
    from bigvocab.samplers import LogUniformSampler as LogUniformSampler
    from bigvocab.samplers import SampledValues as SampledValues
    from bigvocab.samplers import UniformSampler as UniformSampler
    from bigvocab.samplers import compute_accidental_hits as compute_accidental_hits

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


if not TYPE_CHECKING:  # a checker that saw it would take any name

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
