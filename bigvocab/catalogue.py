"""What a loss, a metric and a sampler is, once: options, checks, help, sums, reports and docs read it here.

Imports nothing of the package and nothing heavy: the command line needs it before anything else. To add a loss, write
its row function and its row here; to add a metric, its column and its row (see losses/README.md).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TypeVar

_LOGIT_OPTIONS = ("softcap", "logit_scale")
_EXCLUDING = ("exclude_classes", "exclude_column")
SAMPLING_OPTIONS = (
    "sampler", "num_sampled", "num_true", "vocab_file", "distortion", "seed", "candidates", "exact",
)  # fmt: skip


@dataclass(frozen=True)
class Statistic:
    """How a column of row values becomes a number of the report.

    Attributes:
        kind: mean, mean_error (with its standard error), within (the share of places up to each k), between (that share
            with ties against and for), count (of rows where it is true), extremes (least and greatest), least,
            loss_histogram, rank_histogram or calibration; see `evaluation.statistics`.
        column: of the row values.
        name: dotted, in the report.
    """

    kind: str
    column: str
    name: str


@dataclass(frozen=True)
class MetricSpec:
    """A by-product of a loss: what it is called, what it says, and which numbers of the report come of it.

    Attributes:
        name: in `metrics`.
        text: one line for the help and the docs.
        unit: of its values; "" for shares and counts.
        statistics: the numbers of the report.
        records: its columns in losses.parquet: name, and Arrow's name of the type.
    """

    name: str
    text: str
    unit: str = ""
    statistics: tuple[Statistic, ...] = ()
    records: tuple[tuple[str, str], ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The row values it needs."""
        return tuple(dict.fromkeys(statistic.column for statistic in self.statistics)) or (self.name,)


@dataclass(frozen=True)
class LossSpec:
    """A loss: which labels it takes, which options and metrics mean something to it, and what its mean is.

    Attributes:
        name: in `loss`.
        text: one line for the help and the docs.
        labels: kinds of labels: "id", "list", "dense" or "sparse".
        wanted: those labels in words.
        options: options that mean something to it (of those that do not to all).
        metrics: by-products that it has.
        is_likelihood: whether its mean is that of -log p of the label: perplexity and bits come of it.
        sampled: whether it looks at sampled classes only, and so needs an output layer.
        takes: "logits", or "probabilities".
        statistics: numbers of the report that it has whatever metrics are asked for, where their columns are there.
        kernels: modules of `bigvocab.kernels` that it needs.
    """

    name: str
    text: str
    labels: tuple[str, ...]
    wanted: str
    options: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    is_likelihood: bool = False
    sampled: bool = False
    takes: str = "logits"
    statistics: tuple[Statistic, ...] = ()
    kernels: tuple[str, ...] = ()


@dataclass(frozen=True)
class SamplerSpec:
    """A sampler of candidates: what it is, and which options belong to it."""

    name: str
    text: str
    options: tuple[str, ...] = ()


_Spec = TypeVar("_Spec", LossSpec, MetricSpec, SamplerSpec)


def _by_name(*specs: _Spec) -> dict[str, _Spec]:
    return {spec.name: spec for spec in specs}


METRICS = _by_name(
    MetricSpec(
        "accuracy",
        "share of rows whose rank is at most k",
        statistics=(Statistic("within", "place", "accuracy"), Statistic("between", "tie", "accuracy_ties")),
    ),
    MetricSpec(
        "rank",
        "1 + the number of classes with a strictly greater logit than the label's",
        statistics=(
            Statistic("mean", "rank", "mean_rank"),
            Statistic("mean", "reciprocal_rank", "mrr"),
            Statistic("count", "tied", "tied_rows"),
        ),
        records=(("rank", "int64"),),
    ),
    MetricSpec(
        "logsumexp",
        "log of the sum of exp of all logits",
        "nats",
        (Statistic("mean", "logsumexp", "logsumexp.mean"), Statistic("extremes", "logsumexp", "logsumexp")),
        (("logsumexp", "double"),),
    ),
    MetricSpec(
        "entropy",
        "entropy of the softmax",
        "nats",
        (Statistic("mean", "entropy", "entropy"),),
        (("entropy", "double"),),
    ),
    MetricSpec("predicted", "the lowest id among the greatest logits", records=(("predicted", "int64"),)),
    MetricSpec(
        "calibration",
        "whether the model is right as often as it says: 15 bins of its confidence, ece, brier",
        statistics=(
            Statistic("calibration", "confidence", "calibration"),
            Statistic("mean", "brier", "calibration.brier"),
        ),
    ),
    MetricSpec(
        "topk",
        "the highest classes of each row, in losses.parquet",
        records=(("top_ids", "list<int64>"), ("top_logprobs", "list<float>")),
    ),
    MetricSpec(
        "ranking",
        "recall, precision, ndcg, map, hit_rate, mrr, and psp with class counts, of the k highest classes",
        statistics=(Statistic("ranking", "ranking", "ranking"),),
    ),
)
# What ranking says for each k; psp only with counts of the classes.
RANKING = ("recall", "precision", "ndcg", "map", "hit_rate", "mrr", "psp")
DEFAULT_METRICS = ("accuracy", "rank", "logsumexp")
DEFAULT_KEEP_TOP, MOST_KEPT = 10, 128
TIES = ("optimistic", "mean", "pessimistic")
_MASS = (Statistic("mean", "mass", "label_mass.mean"), Statistic("least", "mass", "label_mass"))
_NLL = Statistic("mean_error", "nll", "nll")

# By-products of comparing two models, beside kl, which is always there.
COMPARISON_METRICS = {
    "kl": "KL(reference, candidate)",
    "kl_reverse": "KL(candidate, reference)",
    "js": "Jensen-Shannon divergence",
    "tv": "total variation",
    "delta_p": "change of the label's probability",
    "tops": "ranks that each side gives to the other's top class",
    "entropy": "entropy of both sides",
    "overlap": "share of common classes among the k highest",
    "logit_difference": "mean difference of log probabilities",
}
DEFAULT_COMPARISON_METRICS = tuple(COMPARISON_METRICS)[:6]
_OF_SOFTMAX = ("logsumexp", "entropy", "ranking", "predicted")
_DENSE = ("dense", "list", "id")  # integers 0 and 1 too: V of them per row, or one per row where V is 1
_DENSE_WANTED = "a matrix or fixed-size lists of floats, as many as classes"
_TRUE_WANTED = "one integer label or a list of them per row"

LOSSES = _by_name(
    LossSpec(
        "sparse-softmax", "softmax cross-entropy of one class per row", ("id",), "one integer label per row",
        (
            "ignore_index", "label_offset", *_EXCLUDING, "class_weights", "label_smoothing", "ties", "keep_top",
            "class_counts", "vocab_file", "text_column", *_LOGIT_OPTIONS,
        ),
        tuple(METRICS), is_likelihood=True, kernels=("softmax",),
        statistics=(
            Statistic("loss_histogram", "loss", "loss_histogram"),
            Statistic("rank_histogram", "ranked", "rank_histogram"),
            _NLL,
        ),
    ),
    LossSpec(
        "softmax", "softmax cross-entropy of a distribution per row", ("dense", "sparse", "list"),
        "a matrix or fixed-size lists of floats, or lists of ids, alone or beside a probability column",
        ("label_smoothing", "label_offset", "probability_column", "class_counts", *_EXCLUDING, *_LOGIT_OPTIONS),
        _OF_SOFTMAX, is_likelihood=True, kernels=("softmax", "soft_labels"), statistics=(*_MASS, _NLL),
    ),
    LossSpec(
        "sigmoid", "sigmoid cross-entropy of independent classes, summed over the row", _DENSE, _DENSE_WANTED,
        ("label_smoothing", *_EXCLUDING, *_LOGIT_OPTIONS), kernels=("sigmoid",),
    ),
    LossSpec(
        "weighted-sigmoid", "the same with positives weighted", _DENSE, _DENSE_WANTED,
        ("pos_weight", *_EXCLUDING, *_LOGIT_OPTIONS), kernels=("sigmoid",),
    ),
    LossSpec(
        "sparse-sigmoid", "sigmoid cross-entropy with labels as sets of positive classes", ("list",),
        "lists of the ids of positive classes",
        ("label_offset", "pos_weight", "class_counts", *_EXCLUDING, *_LOGIT_OPTIONS),
        ("ranking",), kernels=("sigmoid",),
    ),
    LossSpec(
        "log-loss", "cross-entropy of probabilities", _DENSE, _DENSE_WANTED, ("epsilon",),
        takes="probabilities", kernels=("sigmoid",),
    ),
    LossSpec(
        "sampled-softmax", "softmax cross-entropy over true and sampled classes", ("id", "list"), _TRUE_WANTED,
        ("ignore_index", "label_offset", "class_counts", *SAMPLING_OPTIONS), ("ranking",), is_likelihood=True,
        sampled=True,
        kernels=("softmax",),
    ),
    LossSpec(
        "nce", "noise-contrastive estimation", ("id", "list"), _TRUE_WANTED,
        ("ignore_index", "label_offset", "class_counts", *SAMPLING_OPTIONS), ("ranking",), sampled=True,
        kernels=("sigmoid",),
    ),
)  # fmt: skip
DEFAULT_LOSS = "sparse-softmax"

SAMPLERS = _by_name(
    SamplerSpec("log-uniform", "P(c) = log((c + 2) / (c + 1)) / log(V + 1): ids by falling frequency"),
    SamplerSpec("uniform", "every class alike"),
    SamplerSpec("unigram", "by the counts of a vocabulary file", ("vocab_file", "distortion")),
    SamplerSpec("learned-unigram", "by the labels of all rows before"),
    SamplerSpec("all", "the first classes, each once"),
)
DEFAULT_SAMPLER = "log-uniform"


def losses_with(option: str) -> tuple[str, ...]:
    """The losses that an option means something to; all of them for options that no loss lists."""
    listed = tuple(name for name, loss in LOSSES.items() if option in loss.options)
    return listed or tuple(LOSSES)


def default_metrics(loss: str) -> tuple[str, ...]:
    """The by-products of a report that names none: of the defaults, those that the loss has."""
    return tuple(metric for metric in DEFAULT_METRICS if metric in LOSSES[loss].metrics)


def metrics_fault(loss: str, metrics: Collection[str]) -> str | None:
    """What is wrong with by-products asked for by name."""
    fitting = LOSSES[loss].metrics
    senseless = [metric for metric in metrics if metric not in fitting]
    if not senseless:
        return None
    return f"{senseless[0]} makes no sense for {loss}, which has {', '.join(fitting) or 'none'}"


def enumerated(names: Collection[str]) -> str:
    """Names as a sentence has them: "a, b or c"."""
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last
