"""Conditions such as 'perplexity > 20', under which a command fails although it did its work."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from bigvocab.catalogue import LOSSES, RANKING
from bigvocab.errors import BigvocabError

_OPERATORS = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_ALWAYS = ("mean", "sum", "weight", "stderr", "rows", "ignored_rows", "nonfinite_rows")
_TIMES = ("seconds", "rows_per_second", "bytes_per_second")
_LIKELIHOODS = ("perplexity", "perplexity_stderr", "bits_per_token")
_RANKS = ("mean_rank", "mrr", "tied_rows")
_BIAS = ("exact_mean", "bias", "bias_stderr")
_CALIBRATION = ("ece", "brier")
_MACRO = ("groups", "mean")
_CLUSTERS = ("cluster_stderr", "perplexity_cluster_stderr")
_REDUCTIONS = ("sum", "mean", "sum_over_batch_size", "sum_by_nonzero_weights")


class Condition(NamedTuple):
    """One value of a report, by its dotted name, against a limit."""

    text: str
    name: str
    sign: str
    limit: float

    def verdict(self, value: Any) -> str | None:
        """Why the command fails if the value is this; None where it does not. NaN never passes.

        Raises:
            BigvocabError: the value is no number.
        """
        if isinstance(value, Mapping):
            names = ", ".join(f"{self.name}.{key}" for key in list(value)[:5])
            raise BigvocabError(f"{self.text!r}: {self.name} is no number; there are {names}")
        if value is None or isinstance(value, str | Sequence):
            raise BigvocabError(f"{self.text!r}: {self.name} is no number")
        if math.isnan(value):
            return f"{self.text}: {self.name} is nan, which passes no condition"
        return f"{self.text}: {self.name} is {value!r}" if _OPERATORS[self.sign](value, self.limit) else None


def parse_condition(text: str) -> Condition:
    """A condition from its text: a dotted name, one of < <= > >= == !=, and a number.

    >>> parse_condition("groups.St. John.mean >= 4.5")[1:]
    ('groups.St. John.mean', '>=', 4.5)
    """
    match = re.fullmatch(r"\s*(.*[^\s<>=!])\s*(<=|>=|==|!=|<|>)\s*([^\s<>=!]+)\s*", text)
    try:
        limit = float(_number(match[3])) if match else math.nan
    except ValueError:
        limit = math.nan
    if match is None or math.isnan(limit):
        raise BigvocabError(
            f"got {text!r}, expected a name, one of {' '.join(_OPERATORS)}, and a number, as in 'mean > 4'"
        )
    return Condition(text.strip(), match[1], match[2], limit)


def _number(text: str) -> str:
    """A number without the commas between its groups of three digits; a comma elsewhere stays, and is no number."""
    return text.replace(",", "") if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?", text) else text


def check_name(name: str, loss: str, metrics: Collection[str], top_k: Sequence[int], columns: Collection[str]) -> None:
    """Raise if it is known before any work that the report will have no value of this dotted name.

    `loss`, `metrics` and `top_k` are what is asked for; `columns` those of "group", "bytes", "cluster", "exact" and
    "smoothing" that are given.
    """
    head, _, rest = name.partition(".")
    likelihood = LOSSES[loss].is_likelihood
    single, nested = _known(loss, metrics, columns), _known_blocks(loss, metrics, top_k, columns)
    if name in single or (head in nested and rest in nested[head]):
        return
    if head == "groups" and "group" in columns:
        _check_group(name, rest, likelihood, nested.get("ranking", ()), "cluster" in columns)
        return
    if head in _OPEN:  # which bins there are is known from the data alone
        return
    if needed := _needed(name, head, loss, metrics, columns):
        raise BigvocabError(f"{name!r} needs {needed}")
    names = single + [f"{key}.{part}" for key, parts in nested.items() for part in parts]
    raise BigvocabError(f"the report has no value named {name!r}; {_advice(name, names)}")


_OPEN = ("by_frequency", "by_position", "loss_histogram", "rank_histogram", "worst")


def _known(loss: str, metrics: Collection[str], columns: Collection[str]) -> list[str]:
    """Names of values without a dot."""
    likelihoods = _LIKELIHOODS if LOSSES[loss].is_likelihood else ()
    single = [*_ALWAYS, *_TIMES, *likelihoods]
    single += [*_RANKS] if "rank" in metrics else []
    single += [*["entropy"] * ("entropy" in metrics), *["bits_per_byte"] * ("bytes" in columns and bool(likelihoods))]
    single += ["bytes", "rows_without_bytes"] if "bytes" in columns else []
    return single + ([*_CLUSTERS[: 1 + bool(likelihoods)]] if "cluster" in columns else [])


def _known_blocks(
    loss: str, metrics: Collection[str], top_k: Sequence[int], columns: Collection[str]
) -> dict[str, tuple[str, ...]]:
    """Names of values with a dot: what stands before it, and after."""
    clusters = ("cluster_stderr",) if "cluster" in columns else ()
    nested: dict[str, tuple[str, ...]] = {"reductions": _REDUCTIONS}
    if "accuracy" in metrics:
        nested["accuracy"] = tuple(str(k) for k in top_k)
    if LOSSES[loss].sampled:
        biases = (*_BIAS, *(f"bias_{one}" for one in clusters))
        if "ranking" in metrics:
            rankings = _rankings(top_k, "cluster" in columns)
            biases += tuple(f"{block}.{one}" for block in ("exact_ranking", "ranking_bias") for one in rankings)
        nested["sampled"] = ("mean", *biases) if "exact" in columns else ("mean",)
    if "logsumexp" in metrics:
        nested["logsumexp"] = ("mean", "min", "max")
    if "ranking" in metrics:
        nested["ranking"] = _rankings(top_k, "cluster" in columns)
    if "calibration" in metrics:
        nested["calibration"] = _CALIBRATION
    if "cluster" in columns:
        nested["clusters"] = ("count",)
    if "group" in columns:
        nested["macro"] = (*_MACRO, *["perplexity_of_mean", "mean_perplexity"] * LOSSES[loss].is_likelihood)
    if "smoothing" in columns and LOSSES[loss].is_likelihood:
        nested["nll"] = ("mean", "stderr", *clusters)
    if loss == "softmax":
        nested["label_mass"] = ("mean", "min")
    return nested


def _rankings(top_k: Sequence[int], clusters: bool) -> tuple[str, ...]:
    """Names within a block of rankings."""
    parts = ("", "stderr.", *["cluster_stderr."] * clusters)
    return tuple(f"{part}{one}.{k}" for part in parts for one in RANKING for k in top_k)


def _check_group(name: str, rest: str, likelihood: bool, ranking: Sequence[str], clusters: bool) -> None:
    if any(rest.endswith(f".ranking.{one}") for one in ranking if "stderr." not in one):
        return
    parts = ("rows", "weight", "mean", "stderr", *["cluster_stderr"] * clusters, *["perplexity"] * likelihood)
    group, _, part = rest.rpartition(".")
    if not group or part not in parts:
        raise BigvocabError(f"the report has no value named {name!r}; expected groups.NAME.{'|'.join(parts)}")


def _needed(name: str, head: str, loss: str, metrics: Collection[str], columns: Collection[str]) -> str | None:
    """The option that would bring a value into the report; None where no option does for this loss."""
    metric = "rank" if head in _RANKS else head
    if metric in LOSSES[loss].metrics and metric not in metrics:
        return f"{metric} in --metrics"
    if head in ("groups", "macro") and "group" not in columns:
        return "--group-column"
    if (head == "clusters" or "cluster_stderr" in name.split(".")) and "cluster" not in columns:
        return "--cluster-column"
    if head == "nll" and LOSSES[loss].is_likelihood and "smoothing" not in columns:
        return "--label-smoothing"
    if head in ("bytes", "rows_without_bytes") and "bytes" not in columns:
        return "--bytes-column"
    if LOSSES[loss].sampled and name.removeprefix("sampled.") in _BIAS and "exact" not in columns:
        return "--exact"
    is_likelihood = LOSSES[loss].is_likelihood
    return "--bytes-column" if head == "bits_per_byte" and is_likelihood and "bytes" not in columns else None


def _advice(name: str, names: Sequence[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, names, n=3)
    return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(names)}"
