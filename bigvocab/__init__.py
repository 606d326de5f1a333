"""Exact, streaming losses of models with huge vocabularies, on ordinary machines.

Names are loaded when they are first used, so that `bigvocab --help` need not wait for Numba.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bigvocab.comparison.comparison import Comparison as Comparison
    from bigvocab.comparison.divergence import js_divergence as js_divergence
    from bigvocab.comparison.divergence import kl_divergence as kl_divergence
    from bigvocab.comparison.divergence import total_variation as total_variation
    from bigvocab.errors import BigvocabError as BigvocabError
    from bigvocab.errors import FormatError as FormatError
    from bigvocab.evaluation.evaluator import Evaluator as Evaluator
    from bigvocab.heads.linear import linear_cross_entropy as linear_cross_entropy
    from bigvocab.heads.open_model import open_model as open_model
    from bigvocab.heads.output_layer import OutputLayer as OutputLayer
    from bigvocab.heads.recording import record_inputs as record_inputs
    from bigvocab.inspection import inspect as inspect
    from bigvocab.jobs.comparison import compare as compare
    from bigvocab.jobs.evaluation import evaluate as evaluate
    from bigvocab.jobs.evaluation import write_label_logits as write_label_logits
    from bigvocab.jobs.merging import merge as merge
    from bigvocab.labels.labels import read_labels as read_labels
    from bigvocab.losses.softmax import compute_weighted_loss as compute_weighted_loss
    from bigvocab.losses.softmax import log_loss as log_loss
    from bigvocab.losses.softmax import sigmoid_cross_entropy as sigmoid_cross_entropy
    from bigvocab.losses.softmax import softmax_cross_entropy as softmax_cross_entropy
    from bigvocab.losses.softmax import sparse_sigmoid_cross_entropy as sparse_sigmoid_cross_entropy
    from bigvocab.losses.softmax import sparse_softmax_cross_entropy as sparse_softmax_cross_entropy
    from bigvocab.losses.softmax import weighted_sigmoid_cross_entropy as weighted_sigmoid_cross_entropy
    from bigvocab.matrices.opening import open_matrix as open_matrix
    from bigvocab.matrices.writer import MatrixWriter as MatrixWriter
    from bigvocab.reports.report import Report as Report
    from bigvocab.sampling.accidental_hits import compute_accidental_hits as compute_accidental_hits
    from bigvocab.sampling.candidates import write_candidates as write_candidates
    from bigvocab.sampling.losses import nce_loss as nce_loss
    from bigvocab.sampling.losses import sampled_softmax_loss as sampled_softmax_loss
    from bigvocab.sampling.samplers import AllCandidateSampler as AllCandidateSampler
    from bigvocab.sampling.samplers import FixedUnigramSampler as FixedUnigramSampler
    from bigvocab.sampling.samplers import LearnedUnigramSampler as LearnedUnigramSampler
    from bigvocab.sampling.samplers import LogUniformSampler as LogUniformSampler
    from bigvocab.sampling.samplers import SampledValues as SampledValues
    from bigvocab.sampling.samplers import UniformSampler as UniformSampler

__version__ = "0.1.0"

_HOMES = {
    "comparison.comparison": ["Comparison"],
    "comparison.divergence": ["js_divergence", "kl_divergence", "total_variation"],
    "errors": ["BigvocabError", "FormatError"],
    "evaluation.evaluator": ["Evaluator"],
    "heads.linear": ["linear_cross_entropy"],
    "heads.open_model": ["open_model"],
    "heads.output_layer": ["OutputLayer"],
    "heads.recording": ["record_inputs"],
    "inspection": ["inspect"],
    "jobs.comparison": ["compare"],
    "jobs.evaluation": ["evaluate", "write_label_logits"],
    "jobs.merging": ["merge"],
    "labels.labels": ["read_labels"],
    "losses.softmax": [
        "compute_weighted_loss",
        "log_loss",
        "sigmoid_cross_entropy",
        "softmax_cross_entropy",
        "sparse_sigmoid_cross_entropy",
        "sparse_softmax_cross_entropy",
        "weighted_sigmoid_cross_entropy",
    ],
    "matrices.opening": ["open_matrix"],
    "matrices.writer": ["MatrixWriter"],
    "reports.report": ["Report"],
    "sampling.accidental_hits": ["compute_accidental_hits"],
    "sampling.candidates": ["write_candidates"],
    "sampling.losses": ["nce_loss", "sampled_softmax_loss"],
    "sampling.samplers": [
        "AllCandidateSampler",
        "FixedUnigramSampler",
        "LearnedUnigramSampler",
        "LogUniformSampler",
        "SampledValues",
        "UniformSampler",
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
        raise AttributeError(f"module 'bigvocab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
