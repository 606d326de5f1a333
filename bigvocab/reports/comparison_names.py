"""Which values a comparison will report: conditions on others are refused before any work."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from bigvocab.errors import BigvocabError

_SPREAD = (
    "mean", "stderr", "max", "min",
    *(f"percentiles.{p}" for p in ("99.9", "99", "95", "90", "75", "50", "25", "10", "5", "1", "0.1")),
)  # fmt: skip
_SIDE = ("mean", "stderr", "perplexity", "perplexity_stderr", "accuracy.1", "accuracy.5")
_DIFFERENCE = (
    "mean", "stderr", "perplexity_ratio", "perplexity_ratio_stderr", "perplexity", "perplexity_stderr", "correlation",
)  # fmt: skip
_GROUP = ("rows", "kl", "kl_stderr", "same_top")
_TIMES = ("seconds", "rows_per_second", "bytes_per_second")
_LABELLED = ("reference", "candidate", "difference", "flips", "delta_p")
_OF_METRIC = {
    "top_in_candidate": "tops",
    "top_in_reference": "tops",
    "entropy_reference": "entropy",
    "entropy_candidate": "entropy",
    **dict.fromkeys(("kl_reverse", "js", "tv", "delta_p", "overlap", "logit_difference"), ""),
}


def check_comparison_name(
    name: str,
    *,
    metrics: Collection[str],
    top_k: Sequence[int],
    names: Sequence[str],
    labelled: bool,
    clustered: bool,
    grouped: bool,
    llama_cpp: bool,
) -> None:
    """Raise if it is known before any work that the report will have no value of this dotted name.

    Args:
        name: of the value.
        metrics: what is asked for.
        top_k: the k of the overlap.
        names: of the candidates.
        labelled: whether there may be labels.
        clustered: whether there may be clusters.
        grouped: whether there is a column of groups.
        llama_cpp: whether llama.cpp's own table is asked for.
    """
    known = list(_of_candidate(metrics, top_k, labelled, clustered))
    several = len(names) > 1
    prefixes = [f"candidates.{one}." for one in names] if several else [""]
    inner = next((name.removeprefix(prefix) for prefix in prefixes if name.startswith(prefix)), None)
    top = [*_TIMES, "rows", "ignored_rows", *["clusters.count"] * clustered]
    if name in top or inner is not None and inner in known:
        return
    if inner is not None and inner.startswith("groups.") and grouped:
        parts = [*_GROUP, *("difference", "difference_stderr") * labelled]
        erring = ("kl", *["difference"] * labelled, "same_top")
        parts += [f"{name}_cluster_stderr" for name in erring] * clustered
        group, _, part = inner.removeprefix("groups.").rpartition(".")
        if group and part in parts:
            return
        raise BigvocabError(f"the report has no value named {name!r}; expected groups.NAME.{'|'.join(parts)}")
    made = ("floor", "macro", *["llama_cpp"] * llama_cpp)  # whether they are there, the files say
    if inner is not None and "." in inner and inner.split(".")[0] in made:
        return
    if inner is not None and (needed := _needed(inner, metrics, labelled, grouped, clustered)):
        raise BigvocabError(f"{name!r} needs {needed}")
    if several and inner is None and name.split(".")[0] in {one.split(".")[0] for one in known}:
        raise BigvocabError(f"the report has no value named {name!r}; did you mean {prefixes[0]}{name}?")
    every = [*top, *(prefix + one for prefix in prefixes for one in known)]
    raise BigvocabError(f"the report has no value named {name!r}; {_advice(name, every, known)}")


def _of_candidate(metrics: Collection[str], top_k: Sequence[int], labelled: bool, clustered: bool) -> list[str]:
    """The values of one candidate."""
    found = ["rows", "ignored_rows", "nonfinite_rows.reference", "nonfinite_rows.candidate", "clusters.count"]
    found += [f"same_top.{part}" for part in ("share", "stderr", *["cluster_stderr"] * clustered)]
    for name in ("kl", "kl_reverse", "js", "tv", *["delta_p"] * labelled):
        if name in metrics:
            found += [f"{name}.{part}" for part in _SPREAD]
    found += [f"kl.{part}" for part in ("infinite_rows", "finite_mean", *["cluster_stderr"] * clustered)]
    found += [f"kl_reverse.{part}" for part in ("infinite_rows", "finite_mean")] * ("kl_reverse" in metrics)
    found += ["tv.acceptance"] * ("tv" in metrics)
    if "tops" in metrics:
        found += ["same_top.tied_rows"]
        found += [f"{name}.{k}" for name in ("top_in_candidate", "top_in_reference") for k in (1, 5, 10)]
    found += ["entropy_reference.mean", "entropy_candidate.mean"] * ("entropy" in metrics)
    found += ["logit_difference.mean"] * ("logit_difference" in metrics)
    found += [f"overlap.{k}" for k in top_k] * ("overlap" in metrics)
    if labelled:
        found += [f"{side}.{part}" for side in ("reference", "candidate") for part in _SIDE]
        found += [f"difference.{part}" for part in (*_DIFFERENCE, *["cluster_stderr"] * clustered)]
        found += [f"flips.{part}" for part in ("share", "to_wrong", "to_right", "mcnemar_p")]
        found += ["delta_p.rms", "delta_p.rms_stderr"] * ("delta_p" in metrics)
    return found


def _needed(name: str, metrics: Collection[str], labelled: bool, grouped: bool, clustered: bool) -> str | None:
    """The option that would bring a value into the report."""
    head = name.split(".")[0]
    if head in _LABELLED and not labelled:
        return "--labels"
    metric = _OF_METRIC.get(head, head) or head
    if head in _OF_METRIC and metric not in metrics:
        return f"{metric} in --metrics"
    if head == "groups" and not grouped:
        return "--group-column"
    if head == "llama_cpp":
        return "--llama-cpp"
    return "--cluster-column" if name.endswith("cluster_stderr") and not clustered else None


def _advice(name: str, names: Sequence[str], known: Sequence[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"there are {', '.join(dict.fromkeys(one.split('.')[0] for one in known))}; all as in JSON"
