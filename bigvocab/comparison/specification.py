"""What was asked of a comparison: metrics, columns, limits, and what each side is, which is a `Specification` too."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from bigvocab import arguments
from bigvocab.arguments import integer, one_of, parse_top_k
from bigvocab.catalogue import COMPARISON_METRICS, DEFAULT_COMPARISON_METRICS
from bigvocab.comparison.pairs import Asked
from bigvocab.comparison.rules import LAYER_OPTIONS, SIDE_OPTIONS, value_for
from bigvocab.errors import BigvocabError, Keyword
from bigvocab.evaluation import option_checks
from bigvocab.evaluation.option_checks import TOKENIZER
from bigvocab.evaluation.options import Sequences
from bigvocab.evaluation.specification import NONFINITE, Specification, one_or_more, specify
from bigvocab.labels.stored_ids import StoredIds, as_indices
from bigvocab.threads import resolve_threads

_MOST_OVERLAP = 64
# Columns of records by the metric that they belong to; those not listed are always there.
_COLUMNS_OF = {
    "kl_reverse": ("kl_reverse",),
    "js": ("js",),
    "tv": ("tv",),
    "delta_p": ("delta_p",),
    "entropy": ("entropy_reference", "entropy_candidate"),
    "logit_difference": ("logit_difference",),
}


class ComparisonOptions(TypedDict, total=False):
    """The keywords of `Comparison`, which `compare` takes too; see there what they mean."""

    metrics: str | Iterable[str] | None
    top_k: int | str | Iterable[int]
    llama_cpp: bool
    ignore_index: int | Iterable[int] | None
    num_classes: int | str | None
    nonfinite: str
    shift_labels: bool
    score_from: int
    threads: int | None
    chunk_rows: int | None
    max_memory: int | str | None
    label_column: str | None
    group_column: str | None
    cluster_column: str | None
    vocab_shards: bool
    weights: Any
    biases: Any
    model: Any
    hidden_states: str | None
    layer: int | None
    final_norm: str | None
    norm_weight: Any
    norm_bias: Any
    norm_epsilon: float
    logit_scale: float
    softcap: float | None
    shape: Any
    dtype: str | None
    offset: int
    reference_weights: Any
    reference_biases: Any
    reference_model: Any
    reference_hidden_states: str | None
    reference_layer: int | None
    reference_final_norm: str | None
    reference_norm_weight: Any
    reference_norm_bias: Any
    reference_norm_epsilon: float | None
    reference_logit_scale: float | None
    reference_softcap: float | None
    reference_shape: Any
    reference_dtype: str | None
    reference_offset: int | None
    candidate_weights: Any
    candidate_biases: Any
    candidate_model: Any
    candidate_hidden_states: Any
    candidate_layer: Any
    candidate_final_norm: Any
    candidate_norm_weight: Any
    candidate_norm_bias: Any
    candidate_norm_epsilon: Any
    candidate_logit_scale: Any
    candidate_softcap: Any
    candidate_shape: Any
    candidate_dtype: Any
    candidate_offset: Any


# The default of each keyword; of those not listed, None.
COMPARISON_DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(ComparisonOptions.__annotations__),
    "top_k": (1, 5),
    "llama_cpp": False,
    "nonfinite": "error",
    "shift_labels": False,
    "score_from": 0,
    "vocab_shards": False,
    "norm_epsilon": 1e-6,
    "logit_scale": 1.0,
    "offset": 0,
}


@dataclass(frozen=True)
class ComparisonColumns:
    """Names of the columns of labels by role; None is the one that fits, or none."""

    label: str | None = None
    group: str | None = None
    cluster: str | None = None

    def keywords(self) -> dict[str, str | None]:
        """As keywords of `read_labels`."""
        return {f"{role}_column": name for role, name in vars(self).items()}


@dataclass(frozen=True, eq=False)
class ComparisonSpecification:
    """All that was asked of a comparison; made by `specify_comparison`.

    Attributes:
        metrics: by-products beside kl, in the order of the catalogue.
        top_k: the k of the overlap.
        reference: how its rows become logits.
        candidates: the same, by name.
    """

    metrics: tuple[str, ...]
    top_k: tuple[int, ...]
    llama_cpp: bool
    ignore_index: tuple[int, ...]
    num_classes: int | None
    nonfinite: str
    sequences: Sequences
    columns: ComparisonColumns
    threads: int
    threads_asked: int | None
    max_memory: int | str | None
    reference: Specification
    candidates: Mapping[str, Specification]

    @property
    def asked(self) -> Asked:
        """What kernels are asked for."""
        spread = any(name in self.metrics for name in ("js", "tv", "logit_difference"))
        return Asked(
            spread, "tops" in self.metrics, self.top_k if "overlap" in self.metrics else (), "entropy" in self.metrics
        )

    @property
    def stored_ids(self) -> StoredIds:
        """How labels are stored: which of them mark ignored rows."""
        return StoredIds(ignored=self.ignore_index)

    def keeps(self, column: str) -> bool:
        """Whether a column of values was asked for, or is always there."""
        owner = next((metric for metric, columns in _COLUMNS_OF.items() if column in columns), None)
        return owner is None or owner in self.metrics

    def identity(self) -> dict[str, Any]:
        """What decides the values, except for the sides: values as JSON has them."""
        return {
            "metrics": list(self.metrics),
            "top_k": list(self.asked.overlap),
            "llama_cpp": self.llama_cpp,
            "ignore_index": one_or_more(self.ignore_index),
            "num_classes": self.num_classes,
            "nonfinite": self.nonfinite,
            **self.sequences.identity(),
        }

    def with_threads(self, threads: int) -> ComparisonSpecification:
        """The same with so many threads."""
        return replace(self, threads=threads, threads_asked=threads)

    def with_sides(self, reference: Specification, candidates: Mapping[str, Specification]) -> ComparisonSpecification:
        """The same with sides whose layers are opened."""
        return replace(self, reference=reference, candidates=candidates)

    def to_json(self) -> dict[str, Any]:
        """What `from_json` takes, as JSON has it; arrays over 1 MiB are left out, and how many threads."""
        own = {**self.identity(), "top_k": list(self.top_k), "max_memory": self.max_memory, **self.columns.keywords()}
        own |= {"shift_labels": self.sequences.shift_labels, "score_from": self.sequences.score_from}
        sides = {name: one.to_json() for name, one in self.candidates.items()}
        return {"options": own, "reference": self.reference.to_json(), "candidates": sides}

    @classmethod
    def from_json(cls, held: Mapping[str, Any], path: str, **instead: Any) -> ComparisonSpecification:
        """The inverse of `to_json`; `instead` may have `threads`, `path` is where it was read."""
        if unknown := [name for name in instead if name != "threads"]:
            raise TypeError(f"load() got an unexpected keyword argument {unknown[0]!r}, expected threads alone")
        found = specify_comparison((), **held["options"], **instead)
        candidates = {name: Specification.from_json(one, path) for name, one in held["candidates"].items()}
        return found.with_sides(Specification.from_json(held["reference"], path), candidates)


def specify_comparison(
    names: Iterable[str], *, with_logits: Collection[str | None] = (), **options: Any
) -> ComparisonSpecification:
    """The keywords of `Comparison`, checked, as a specification for candidates of these names.

    Args:
        names: of the candidates.
        with_logits: the candidates, and None for the reference, that have logits: no layer of both sides is theirs.
        options: the keywords.

    Raises:
        BigvocabError: an option outside its range; TypeError: one of the wrong kind, or a keyword that there is not.
    """
    if unknown := [name for name in options if name not in COMPARISON_DEFAULTS]:
        raise TypeError(f"Comparison() got an unexpected keyword argument {unknown[0]!r}")
    asked = COMPARISON_DEFAULTS | options
    names = tuple(names)
    option_checks.check_bounds(asked)
    num_classes = _num_classes(asked["num_classes"])

    def side(name: str | None, classes: Any) -> Specification:
        return _side(options, classes, name, layer=name not in with_logits)

    sides = {name: side(name, num_classes) for name in (None, *names)}
    if num_classes == TOKENIZER:
        num_classes = _told_classes(sides)
        sides = {name: one if _told(one) else side(name, num_classes) for name, one in sides.items()}
    found = ComparisonSpecification(
        parse_comparison_metrics(asked["metrics"]),
        parse_top_k(asked["top_k"]),
        arguments.boolean("llama_cpp", asked["llama_cpp"]),
        as_indices("ignore_index", asked["ignore_index"]),
        num_classes,
        one_of("nonfinite", asked["nonfinite"], NONFINITE),
        option_checks.sequences(asked),
        ComparisonColumns(*(asked[f"{role}_column"] for role in ("label", "group", "cluster"))),
        resolve_threads(asked["threads"], "threads"),
        asked["threads"],
        asked["max_memory"],
        sides.pop(None),
        {name: side for name, side in sides.items() if name is not None},
    )
    most = max(found.asked.overlap, default=0)
    if most > _MOST_OVERLAP:
        raise BigvocabError(Keyword("top_k"), f": got {most}, expected at most {_MOST_OVERLAP} for overlap")
    return found


def _num_classes(value: Any) -> Any:
    """A number of classes, "tokenizer", or None."""
    return value if value in (None, TOKENIZER) else integer("num_classes", value, 1, 2**31 - 1)


def _side(options: Mapping[str, Any], num_classes: Any, name: str | None, *, layer: bool) -> Specification:
    """How rows of a side become logits: what `specify` makes of its options, those that were given."""
    prefix = "reference" if name is None else "candidate"
    own = {option: value_for(options, prefix, option, name) for option in SIDE_OPTIONS}
    if not layer or own["weights"] is None and own["model"] is None:
        own |= dict.fromkeys(LAYER_OPTIONS)
    if num_classes == TOKENIZER and own["model"] is None:
        num_classes = None  # that of the sides with a model, once it is known
    shared = ("ignore_index", "nonfinite", "threads", "chunk_rows", "max_memory", "vocab_shards")
    own |= {option: options.get(option) for option in shared} | {"num_classes": num_classes}
    return specify(metrics=(), **{option: value for option, value in own.items() if value is not None})


def _told(side: Specification) -> bool:
    """Whether a side has a model, whose tokenizer may say how many classes there are."""
    return side.head is not None and side.head.model is not None


def _told_classes(sides: Mapping[str | None, Specification]) -> int:
    """The number of classes that the tokenizers of all models know."""
    told = {side.loss.num_classes for side in sides.values() if _told(side)}
    known = sorted(number for number in told if number is not None)
    if len(known) != 1:
        got = f"tokenizers of {' and '.join(map(str, known))} classes" if known else "no model"
        raise BigvocabError(Keyword("num_classes", TOKENIZER), f": got {got}, expected one number of classes")
    return known[0]


def parse_comparison_metrics(metrics: str | Iterable[str] | None) -> tuple[str, ...]:
    """By-products by name, in the order of the catalogue; kl is always there.

    >>> parse_comparison_metrics("tv, js")
    ('kl', 'js', 'tv')
    """
    if metrics is None:
        return DEFAULT_COMPARISON_METRICS
    if not isinstance(metrics, Iterable):
        raise TypeError(f"metrics: expected names, got {metrics!r}")
    names = [part.strip() for part in metrics.split(",") if part.strip()] if isinstance(metrics, str) else list(metrics)
    chosen = {"kl", *(one_of("metrics", name, tuple(COMPARISON_METRICS)) for name in names)}
    return tuple(name for name in COMPARISON_METRICS if name in chosen)


def comparison_signature(*own: inspect.Parameter) -> inspect.Signature:
    """The signature of a function with keywords of its own and those of `Comparison`, as help and editors show it."""
    keyword, types = inspect.Parameter.KEYWORD_ONLY, ComparisonOptions.__annotations__
    options = [
        inspect.Parameter(name, keyword, default=COMPARISON_DEFAULTS[name], annotation=types[name]) for name in types
    ]
    return inspect.Signature([*own, *options])
