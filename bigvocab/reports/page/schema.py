"""What the page takes a report to hold; a report edited by hand is refused with one line that names the value.

A check is a function of a value and its dotted name. All keys of a record may be absent unless they are required, and
keys that are not known pass: they are shown as plain values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from bigvocab.errors import BigvocabError
from bigvocab.reports.numerals import printable
from bigvocab.reports.report import SCHEMA_VERSION
from bigvocab.reports.report import is_comparison as is_comparison

MOST_BINS = 1000  # of a histogram or a breakdown: more would be a page that no browser likes
_DEEPEST = 12

Check = Callable[[Any, str], None]


def check_report(report: Any) -> None:
    """Refuse what is no report, is of a newer schema, or has a value of the wrong type.

    Raises:
        BigvocabError: names the value, what it is and what was expected.
    """
    if not isinstance(report, dict):
        raise _wrong("report", report, "an object of named values")
    version = report.get("schema_version")
    if isinstance(version, bool) or not isinstance(version, int):
        raise _wrong("schema_version", version, "a whole number; is this a report.json?")
    if version > SCHEMA_VERSION:
        raise BigvocabError(
            f"schema_version: got {version}, expected at most {SCHEMA_VERSION}: the report is of a newer bigvocab"
        )
    _check_depth(report)
    if is_comparison(report):
        _COMPARISON(report, "")
    elif "loss" in report:
        _EVALUATION(report, "")
    else:
        raise BigvocabError("report: got neither loss nor kl, expected the values of an evaluation or a comparison")


def with_infinities(report: dict[str, Any]) -> dict[str, Any]:
    """The report with the values that `infinite` names put back as floats."""
    names = report.get("infinite")
    if not names:
        return report

    def put(value: Any, name: str) -> Any:
        if isinstance(value, dict):
            return {key: put(item, f"{name}.{key}" if name else key) for key, item in value.items()}
        if isinstance(value, list):
            return [put(item, f"{name}.{i}") for i, item in enumerate(value)]
        return float(names[name]) if value is None and name in names else value

    found = put({key: value for key, value in report.items() if key != "infinite"}, "")
    return dict(found) | {"infinite": names}


# ---- values


def _wrong(name: str, value: Any, expected: str) -> BigvocabError:
    got = repr(value)
    got = got if len(got) <= 60 else f"{got[:59]}…"
    shown = name if len(name) <= 120 else f"{name[:119]}…"
    return BigvocabError(f"{printable(shown)}: got {printable(got)}, expected {expected}")


def _number(value: Any, name: str) -> None:
    """A float or an integer that is one; null stands for NaN."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(name, value, "a number")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise BigvocabError(f"{printable(name)}: got an integer of more than 64 bits, expected a number")


def _magnitude(value: Any, name: str) -> None:
    _number(value, name)
    if value is not None and value < 0:
        raise _wrong(name, value, "a number not below 0")


def _share(value: Any, name: str) -> None:
    _number(value, name)
    if value is not None and (value < 0 or value > 1 + 1e-9):
        raise _wrong(name, value, "a share from 0 to 1")


def _whole(value: Any, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise _wrong(name, value, "a whole number not below 0")


def _text(value: Any, name: str) -> None:
    if not isinstance(value, str):
        raise _wrong(name, value, "text")


def _anything(value: Any, name: str) -> None:
    """Shown as it is."""


def _maybe(check: Check) -> Check:
    return lambda value, name: None if value is None else check(value, name)


def _infinity(value: Any, name: str) -> None:
    if value not in ("inf", "-inf"):
        raise _wrong(name, value, '"inf" or "-inf"')


def _check_depth(value: Any) -> None:
    """Refuse what is nested so deep that nothing sensible could be shown; without recursion of our own."""
    level = [("", value)]
    for _ in range(_DEEPEST):
        deeper = []
        for name, item in level:
            if isinstance(item, dict):
                bad = next((key for key in item if not isinstance(key, str)), None)
                if bad is not None:
                    raise _wrong(name or "report", bad, "names that are text")
                deeper += [(f"{name}.{key}".lstrip("."), v) for key, v in item.items() if isinstance(v, dict | list)]
            elif isinstance(item, list):
                deeper += [(f"{name}.{i}", v) for i, v in enumerate(item) if isinstance(v, dict | list)]
        if not deeper:
            return
        level = deeper
    raise BigvocabError(f"{printable(level[0][0][:80])}: got more than {_DEEPEST} levels, expected fewer")


# ---- records and lists


def _record(known: Mapping[str, Check], *required: str) -> Check:
    def check(value: Any, name: str) -> None:
        if not isinstance(value, dict):
            raise _wrong(name, value, "an object")
        for key in required:
            if key not in value:
                raise BigvocabError(f"{printable(f'{name}.{key}'.lstrip('.'))}: missing, expected in such a report")
        for key, item in value.items():
            if key in known:
                known[key](item, f"{name}.{key}" if name else key)

    return check


def _each(one: Check) -> Check:
    def check(value: Any, name: str) -> None:
        if not isinstance(value, dict):
            raise _wrong(name, value, "an object")
        for key, item in value.items():
            one(item, f"{name}.{key}")

    return check


def _list(one: Check, most: int | None = None) -> Check:
    def check(value: Any, name: str) -> None:
        if not isinstance(value, list):
            raise _wrong(name, value, "a list")
        if most is not None and len(value) > most:
            raise BigvocabError(f"{name}: got {len(value):,} entries, expected at most {most:,}")
        for i, item in enumerate(value):
            one(item, f"{name}.{i}")

    return check


def _bins(known: Mapping[str, Check]) -> Check:
    """A breakdown: records of `from`, `to` (null: no end) and `rows`, in rising order."""
    listed = _list(_record({"from": _number, "to": _number, "rows": _whole, **known}, "from", "to", "rows"), MOST_BINS)

    def check(value: Any, name: str) -> None:
        listed(value, name)
        for i, item in enumerate(value):
            start, end = item["from"], item["to"]
            if start is None or not math.isfinite(start):
                raise _wrong(f"{name}.{i}.from", start, "a number")
            if end is not None and not end >= start:
                raise _wrong(f"{name}.{i}.to", end, f"no less than from ({start})")

    return check


def _histogram(extra: int, open_ended: bool) -> Check:
    """`edges` and `counts`, with `extra` more edges than counts."""
    record = _record({"edges": _list(_number), "counts": _list(_whole, MOST_BINS)}, "edges", "counts")

    def check(value: Any, name: str) -> None:
        record(value, name)
        edges, counts = value["edges"], value["counts"]
        if not counts or len(edges) != len(counts) + extra:
            expected = f"expected {len(counts) + extra} for {len(counts)} counts"
            raise BigvocabError(f"{name}.edges: got {len(edges)} edges, {expected}")
        finite = edges[:-1] if open_ended and (edges[-1] is None or math.isinf(edges[-1])) else edges
        rising = all(a < b for a, b in zip(finite, finite[1:], strict=False)) if None not in finite else False
        if not rising or not all(math.isfinite(edge) and abs(edge) < 1e100 for edge in finite):
            raise _wrong(f"{name}.edges", edges, "rising numbers")

    return check


def _ranking(value: Any, name: str) -> None:
    """Metrics at each k, and blocks of their errors."""
    numbers, errors = _each(_number), _each(_each(_magnitude))
    _each(_anything)(value, name)
    for key, item in value.items():
        (errors if key in ("stderr", "cluster_stderr") else numbers)(item, f"{name}.{key}")


_MEAN = {"mean": _number, "stderr": _magnitude, "cluster_stderr": _magnitude}
_LIKELIHOOD = _MEAN | {
    "perplexity": _magnitude,
    "perplexity_stderr": _magnitude,
    "bits_per_token": _number,
    "bits_per_byte": _number,
    "accuracy": _each(_share),
}
_RESULTS = _LIKELIHOOD | {"rows": _whole, "weight": _magnitude, "ranking": _ranking}
_CLUSTERS = _record({"count": _whole}, "count")
_COMMON: dict[str, Check] = {
    "rows": _whole,
    "ignored_rows": _whole,
    "nonfinite_rows": _whole,
    "clusters": _CLUSTERS,
    "notes": _list(_record({"code": _text, "text": _text}, "code", "text")),
    "infinite": _each(_infinity),
    "inputs": _list(_record({"path": _text, "shape": _maybe(_list(_whole)), "dtype": _maybe(_text), "bytes": _whole})),
    "versions": _each(_text),
    "options": _each(_anything),
    "model": _record({}),
    "seconds": _magnitude,
    "rows_per_second": _magnitude,
    "bytes_per_second": _magnitude,
    "progress": _record({"rows_done": _whole, "rows_total": _whole}, "rows_done", "rows_total"),
}
_WORST: dict[str, Check] = {
    "row": _whole,
    "loss": _number,
    "kl": _number,
    "group": _maybe(_text),
    "text": _maybe(_text),
}
_EVALUATION = _record(
    _COMMON
    | _LIKELIHOOD
    | {
        "loss": _text,
        "sum": _number,
        "weight": _number,
        "nll": _record(_MEAN, "mean"),
        "reductions": _each(_number),
        "mean_rank": _number,
        "mrr": _number,
        "tied_rows": _whole,
        "entropy": _number,
        "logsumexp": _record({"mean": _number, "min": _number, "max": _number}, "mean", "min", "max"),
        "bytes": _whole,
        "rows_without_bytes": _whole,
        "label_mass": _record({"mean": _number, "min": _number}, "mean", "min"),
        "accuracy_ties": _each(_list(_share)),
        "macro": _record(
            {"groups": _whole, "mean": _number, "perplexity_of_mean": _magnitude, "mean_perplexity": _magnitude},
            "groups",
            "mean",
        ),
        "ranking": _ranking,
        "loss_histogram": _histogram(1, open_ended=True),
        "rank_histogram": _histogram(0, open_ended=False),
        "calibration": _record(
            {"bins": _bins({"confidence": _share, "accuracy": _share}), "ece": _share, "brier": _magnitude}, "bins"
        ),
        "by_frequency": _bins(_RESULTS | {"accuracy": _share}),
        "by_position": _bins(_RESULTS | {"accuracy": _share}),
        "groups": _each(_record(_RESULTS, "rows", "mean")),
        "worst": _list(_record(_WORST | {"label": _anything, "predicted": _maybe(_whole)}, "loss")),
        "sampled": _record(
            {
                "sampler": _text,
                "num_sampled": _whole,
                "seed": _list(_whole),
                "bias": _number,
                "bias_stderr": _magnitude,
                "bias_cluster_stderr": _magnitude,
                "exact_ranking": _ranking,
                "ranking_bias": _ranking,
                **{f"{side}{what}": check for side in ("", "exact_") for what, check in _MEAN.items()},
            }
        ),
    },
    "rows",
    "mean",
)

_PERCENTILES = _MEAN | {"percentiles": _each(_number), "max": _number, "min": _number, "infinite_rows": _whole}
_SHARE = {"share": _share, "stderr": _magnitude, "cluster_stderr": _magnitude, "tied_rows": _whole}
_CANDIDATE: dict[str, Check] = {
    "reference": _record(_LIKELIHOOD),
    "candidate": _record(_LIKELIHOOD),
    "difference": _record(
        _MEAN
        | {
            "perplexity_ratio": _magnitude,
            "perplexity_ratio_stderr": _magnitude,
            "perplexity": _number,
            "perplexity_stderr": _magnitude,
            "correlation": _number,
        }
    ),
    **{name: _record(_PERCENTILES, "mean") for name in ("kl", "kl_reverse", "js", "tv")},
    "delta_p": _record(_PERCENTILES | {"rms": _magnitude, "rms_stderr": _magnitude}),
    "same_top": _record(_SHARE, "share"),
    "top_in_candidate": _each(_share),
    "top_in_reference": _each(_share),
    "overlap": _each(_share),
    "flips": _record({"share": _share, "to_wrong": _whole, "to_right": _whole, "mcnemar_p": _share}),
    "nonfinite_rows": _record({"reference": _whole, "candidate": _whole}),
    "by_confidence": _bins({"kl_mean": _number, "kl_cluster_stderr": _magnitude, "kl_median": _number}),
    "groups": _each(
        _record(
            {
                "rows": _whole,
                "kl": _number,
                "kl_stderr": _magnitude,
                "difference": _number,
                "difference_stderr": _magnitude,
                "kl_cluster_stderr": _magnitude,
                "difference_cluster_stderr": _magnitude,
                "same_top_cluster_stderr": _magnitude,
                "same_top": _share,
            },
            "rows",
            "kl",
        )
    ),
    "worst": _list(_record(_WORST, "row", "kl")),
}
_PAIR = _record(_MEAN, "mean")
_COMPARISON = _record(
    _COMMON
    | _CANDIDATE
    | {
        "candidates": _each(_record(_CANDIDATE, "kl")),
        "between": _list(
            _record(
                {"a": _text, "b": _text, "kl_difference": _PAIR, "loss_difference": _PAIR, "lower_share": _share},
                "a",
                "b",
            )
        ),
    }
)
