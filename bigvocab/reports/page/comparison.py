"""What the page of a comparison shows: a line per candidate, best first, pictures of all, then each in full."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bigvocab.reports.comparison_table import candidates_of
from bigvocab.reports.page import pictures
from bigvocab.reports.page.evaluation import WORST_BUDGET, top, worst_section
from bigvocab.reports.page.groups import BUDGET, group_section
from bigvocab.reports.page.shown import (
    Html,
    Section,
    Table,
    Tile,
    digits,
    erring,
    error_of,
    named,
    number,
    percent,
    plain_name,
    whole,
)

_Report = Mapping[str, Any]
_Sides = Sequence[tuple[str, _Report]]
MOST_PAIRS, MOST_CANDIDATES, MOST_IN_FULL = 200, 200, 20
_PERCENTILES = ("0.1", "1", "5", "10", "25", "50", "75", "90", "95", "99", "99.9")
_DIVERGENCES = {
    "kl": ("KL", "KL(reference, candidate), nats: what is lost by coding the reference with the candidate"),
    "kl_reverse": ("KL reversed", "KL(candidate, reference), nats"),
    "js": ("JS", "Jensen-Shannon divergence, nats: at most ln 2"),
    "tv": ("TV", "total variation: 1 - the acceptance rate of speculative sampling"),
}


def tiles(report: _Report) -> list[Tile]:
    """The numbers of the first screen: those of the candidate, or of the nearest of several."""
    sides = candidates_of(report)
    if not sides:
        return []
    name, block = sides[0]
    nearest = Html(f"nearest of {len(sides):,}: {named(name, 40)}") if len(sides) > 1 else _error_note(report, block)
    kl = block["kl"]
    found = [Tile("Mean KL", f"{erring(number(kl['mean']), error_of(kl))} nats", nearest)]
    if "candidate" in block and "perplexity" in block["candidate"]:
        side = block["candidate"]
        shown = erring(digits(side["perplexity"]), error_of(side, "perplexity_stderr"))
        base = (block.get("reference") or report.get("reference") or {}).get("perplexity")
        found.append(Tile("Perplexity", shown, "" if base is None else f"the reference: {digits(base)}"))
    if "perplexity_ratio" in block.get("difference", {}):
        found.append(Tile("Its ratio to the reference", _ratio(block)))
    if "same_top" in block:
        found.append(Tile("Same top class", _share(block["same_top"])))
    return found


def _error_note(report: _Report, block: _Report) -> str:
    if "cluster_stderr" in block["kl"]:
        over = f" over {whole(report['clusters']['count'])} clusters" if "clusters" in report else " over clusters"
        return f"± one standard error{over}"
    return "± one standard error, rows taken as independent" if "stderr" in block["kl"] else ""


def _ratio(block: _Report) -> str:
    difference = block["difference"]
    return erring(number(difference["perplexity_ratio"]), error_of(difference, "perplexity_ratio_stderr"))


def _share(block: _Report) -> str:
    error = error_of(block)
    return percent(block["share"]) + ("" if error is None else f" ± {percent(error)}")


def _candidate_table(sides: _Sides) -> Table:
    """One line per candidate, best first."""
    rows = []
    for name, block in sides[:MOST_CANDIDATES]:
        kl = block["kl"]
        rows.append(
            (
                named(name),
                erring(number(kl["mean"]), error_of(kl)),
                number(kl.get("percentiles", {}).get("99.9")) if "percentiles" in kl else "",
                number(kl["max"]) if "max" in kl else "",
                digits(block["candidate"]["perplexity"]) if "perplexity" in block.get("candidate", {}) else "",
                _ratio(block) if "perplexity_ratio" in block.get("difference", {}) else "",
                _share(block["same_top"]) if "same_top" in block else "",
            )
        )
    columns = ("candidate", "mean KL (nats)", "99.9%", "maximum", "perplexity", "ratio to reference", "same top")
    return Table(columns, rows)


# ---- sections


def sections(report: _Report) -> list[Section]:
    """Pictures of all candidates, pairs of them, and what each has in full."""
    sides = candidates_of(report)
    left = len(sides) - MOST_CANDIDATES
    after = f"{left:,} more are in the report." if left > 0 else ""
    found = [Section("candidates", "Candidates", table=_candidate_table(sides), after=after)]
    if len(sides) > 1:
        found.append(_mean_section(sides))
    found += [
        section
        for section in (
            _percentile_section("kl", "Percentiles of KL", "kl", sides),
            _confidence_section(sides),
            _percentile_section("delta-p", "Change of the label's probability", "delta_p", sides),
            _flip_section(sides),
        )
        if section is not None
    ]
    if report.get("between"):
        found.append(_between(report["between"]))
    for i, (name, block) in enumerate(sides[:MOST_IN_FULL]):
        found += _in_full(i, name, report, block, len(sides))
    return found


def _more(sides: _Sides) -> str:
    left = len(sides) - pictures.MOST_SERIES
    return f" The picture has the {pictures.MOST_SERIES} nearest candidates." if left > 0 else ""


def _mean_section(sides: _Sides) -> Section:
    items = [(name, block["kl"]["mean"], error_of(block["kl"])) for name, block in sides[:MOST_IN_FULL]]
    title = "Mean KL of the candidates"
    what = f"Mean KL from the reference with standard errors, of {len(items)} candidates, nearest first."
    text = "How far each is from the reference, nearest first; errors are those of each mean, not of a difference."
    return Section("means", title, text, pictures.forest("means", title, items, "mean KL (nats)", what))


def _percentile_section(key: str, title: str, name: str, sides: _Sides) -> Section | None:
    """Percentiles of kl on a logarithmic axis, of the change of probability on a linear one."""
    with_them = [(side, block[name]) for side, block in sides if block.get(name, {}).get("percentiles")]
    if not with_them:
        return None
    places = [p for p in _PERCENTILES if any(p in block["percentiles"] for _, block in with_them)]
    series = [
        pictures.Series(side, [*(block["percentiles"].get(p) for p in places), block.get("max")])
        for side, block in with_them
    ]
    show = number if name == "kl" else percent
    rows = [
        (place, *(show(item.values[i]) if item.values[i] is not None else "" for item in series[:MOST_IN_FULL]))
        for i, place in enumerate([*(f"{p}%" for p in places), "max"])
    ]
    if name == "delta_p" and any("min" in block for _, block in with_them):
        rows.insert(0, ("min", *(show(b["min"]) if "min" in b else "" for _, b in with_them[:MOST_IN_FULL])))
    text, axis = {
        "kl": ("Half of the rows lie below 50%; the right end is where a quantised model breaks.", "KL (nats)"),
        "delta_p": (
            "Candidate less reference, of the probability of the true class: below 0 the candidate is worse.",
            "change of probability",
        ),
    }[name]
    what = f"{title} from {places[0]}% to the maximum, for {len(series)} candidates." if places else title
    picture = pictures.steps(
        key,
        title,
        [*(f"{p}%" for p in places), "max"],
        series,
        ("share of rows below", axis),
        what,
        log=name == "kl",
        percent=name == "delta_p",
    )
    table = Table(("share of rows below", *(named(item.name) for item in series[:MOST_IN_FULL])), rows)
    zeros = " Values of 0 have no place on its axis." if name == "kl" and any(0 in s.values for s in series) else ""
    return Section(key, title, text + _more(with_them) + zeros, picture, folded=[("Numbers", table)])


def _confidence_section(sides: _Sides) -> Section | None:
    with_them = [(side, block["by_confidence"]) for side, block in sides if block.get("by_confidence")]
    if not with_them:
        return None
    places = [_confidence(item) for item in with_them[0][1]]
    series, rows = [], []
    for side, bins in with_them:
        values = {_confidence(item): item for item in bins if item["rows"]}
        series.append(pictures.Series(side, [values.get(place, {}).get("kl_mean") for place in places]))
        if len(with_them) == 1:
            series[0] = pictures.Series("mean", series[0].values)
            series.append(pictures.Series("median", [values.get(place, {}).get("kl_median") for place in places]))
    for side, bins in with_them[:MOST_IN_FULL]:
        rows += [
            (
                named(side),
                _confidence(item),
                whole(item["rows"]),
                number(item["kl_mean"]) if "kl_mean" in item and item["rows"] else "",
                number(item["kl_median"]) if "kl_median" in item and item["rows"] else "",
            )
            for item in bins
        ]
    title = "KL by confidence of the reference"
    text = (
        "Where the reference is sure, a difference costs; where it is not, the two may differ and no one will notice."
    )
    what = f"Mean KL in {len(places)} classes of the probability of the reference's top class."
    axes = ("probability of the reference's top class", "KL (nats)")
    picture = pictures.steps("confidence", title, places, series, axes, what, log=True)
    table = Table(("candidate", "confidence", "rows", "mean KL", "median KL"), rows, frozenset({0, 1}))
    return Section("confidence", title, text + _more(with_them), picture, folded=[("Numbers", table)])


def _confidence(item: _Report) -> str:
    end = 1 if item["to"] is None else item["to"]
    return f"{100 * item['from']:.4g}–{100 * end:.4g}%"


def _flip_section(sides: _Sides) -> Section | None:
    with_them = [(side, block["flips"]) for side, block in sides if "to_wrong" in block.get("flips", {})][:MOST_IN_FULL]
    items = [(side, *_flipped(block)) for side, block in with_them]
    if not items:
        return None
    rows = [
        (
            named(side),
            percent(block["share"]) if "share" in block else "",
            whole(block["to_wrong"]),
            whole(block["to_right"]) if "to_right" in block else "",
            digits(block["mcnemar_p"], 3) if "mcnemar_p" in block else "",
        )
        for side, block in with_them
    ]
    title = "Flips"
    text = "Rows in which one model alone has the label on top. Accuracy hides flips that go both ways."
    what = f"Shares of rows that became wrong and right with each of {len(items)} candidates."
    table = Table(("candidate", "flips", "became wrong", "became right", "McNemar p"), rows)
    return Section("flips", title, text, pictures.flips("flips", title, items, what), table)


def _flipped(block: _Report) -> tuple[float, float]:
    """Shares of rows that became wrong and right, of the share that flipped and the two counts."""
    wrong, right = block["to_wrong"], block.get("to_right", 0)
    each = (block.get("share") or 0.0) / max(1, wrong + right)
    return each * wrong, each * right


def _between(pairs: list[_Report]) -> Section:
    rows = []
    for pair in pairs[:MOST_PAIRS]:
        sides = [pair.get(name) for name in ("kl_difference", "loss_difference")]
        shown = [erring(number(side["mean"]), error_of(side)) if side else "" for side in sides]
        lower = percent(pair["lower_share"]) if "lower_share" in pair else ""
        rows.append((Html(f"{named(pair['a'], 40)} − {named(pair['b'], 40)}"), *shown, lower))
    text = (
        "Paired differences on the same rows: an error here is that of the difference, smaller than those of the means."
    )
    left = len(pairs) - MOST_PAIRS
    table = Table(("a − b", "KL (nats)", "loss (nats)", "a has the lower KL"), rows)
    return Section(
        "between", "Between candidates", text, table=table, after=f"{left:,} more pairs." if left > 0 else ""
    )


def _in_full(i: int, name: str, report: _Report, block: _Report, sides: int) -> list[Section]:
    title = named(name, 40) if sides > 1 else ""
    lead = Html(f"{title}: ") if title else ""
    found = [Section(f"full-{i}", Html(f"{lead}All metrics" if lead else "Metrics"), table=_metrics(report, block))]
    if block.get("groups"):
        found.append(_group_section(f"groups-{i}", Html(f"{lead}Groups"), block, BUDGET // min(sides, MOST_IN_FULL)))
    if block.get("worst"):
        found.append(
            worst_section(
                f"worst-{i}",
                Html(f"{lead}Worst rows"),
                block["worst"],
                {
                    key: label
                    for key, label in (
                        ("kl", "KL (nats)"),
                        ("loss_reference", "loss of reference"),
                        ("loss_candidate", "loss of candidate"),
                    )
                    if any(key in row for row in block["worst"])
                },
                WORST_BUDGET // min(sides, MOST_IN_FULL),
            )
        )
    return found


def _metrics(report: _Report, block: _Report) -> Table:
    return Table(("metric", "value", "what it says"), list(_lines(report, block)), frozenset({0, 2}), "meanings")


def _lines(report: _Report, block: _Report) -> Iterator[tuple[str, str, str]]:
    for title, side in (
        ("reference", block.get("reference", report.get("reference"))),
        ("candidate", block.get("candidate")),
    ):
        if side and "mean" in side:
            yield f"loss of {title}", f"{erring(number(side['mean']), error_of(side))} nats", ""
        if side and "perplexity" in side:
            yield f"perplexity of {title}", erring(digits(side["perplexity"]), error_of(side, "perplexity_stderr")), ""
        for k, share in (side or {}).get("accuracy", {}).items():
            yield f"{top(k)} accuracy of {title}", percent(share), ""
    difference = block.get("difference", {})
    if "mean" in difference:
        shown = f"{erring(number(difference['mean']), error_of(difference))} nats"
        yield "difference of losses", shown, "candidate less reference, paired"
    if "perplexity_ratio" in difference:
        yield "ratio of perplexities", _ratio(block), "exp of that"
    if "perplexity" in difference:
        shown = erring(digits(difference["perplexity"]), error_of(difference, "perplexity_stderr"))
        yield "difference of perplexities", shown, ""
    if "correlation" in difference:
        yield "correlation", number(difference["correlation"]), "of the two losses over rows"
    for key, (title, meaning) in _DIVERGENCES.items():
        if key in block:
            yield title, erring(number(block[key]["mean"]), error_of(block[key])), meaning
    yield from _shares(block)


def _shares(block: _Report) -> Iterator[tuple[str, str, str]]:
    delta = block.get("delta_p", {})
    if "rms" in delta:
        error = f" ± {percent(delta['rms_stderr'])}" if "rms_stderr" in delta else ""
        yield "RMS Δp", percent(delta["rms"]) + error, "change of the label's probability"
    if "same_top" in block:
        yield "same top class", _share(block["same_top"]), "lowest id where classes tie"
    for key, meaning in (
        ("top_in_candidate", "the reference's top class is among the candidate's k highest"),
        ("top_in_reference", "the candidate's top class is among the reference's k highest"),
        ("overlap", "of the two lists of the k highest"),
    ):
        for k, share in block.get(key, {}).items():
            yield f"{key.replace('_', ' ')}, k = {plain_name(k, 12)}", percent(share), meaning


def _group_section(key: str, title: Html, block: _Report, budget: int) -> Section:
    groups = block["groups"]
    loss = any("difference" in group for group in groups.values())

    def cells(item: tuple[str, _Report]) -> Sequence[str]:
        name, group = item
        kl = erring(number(group["kl"]), error_of(group, "kl_stderr"))
        difference = erring(number(group.get("difference")), error_of(group, "difference_stderr"))
        same = percent(group["same_top"]) if "same_top" in group else ""
        return named(name), whole(group["rows"]), kl, *([difference] if loss else []), same

    columns = ("group", "rows", "KL (nats)", *(["difference of losses"] if loss else []), "same top")
    line = ("all rows", block["kl"]["mean"])
    return group_section(key, title, groups, "kl", "kl_stderr", columns, cells, "mean KL (nats)", line, budget)
