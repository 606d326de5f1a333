"""What the page of an evaluation shows, in its order: tiles, metrics, pictures with their numbers, worst rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from bigvocab.reports.page import pictures
from bigvocab.reports.page.breakdowns import frequency_section, groups_section, position_section
from bigvocab.reports.page.rankings import ranking_section, ranking_table, ranking_tile
from bigvocab.reports.page.shown import (
    TEXT,
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
    text_of,
    whole,
    within,
)

_Report = dict[str, Any]
WORST_BUDGET = 150_000  # bytes of HTML


def tiles(report: _Report) -> list[Tile]:
    """The numbers of the first screen."""
    found = [Tile("Loss", f"{erring(number(report['mean']), error_of(report))} nats", _error_note(report))]
    if "nll" in report:
        nll = report["nll"]
        found.append(Tile("Loss without smoothing", f"{erring(number(nll['mean']), error_of(nll))} nats"))
    if "perplexity" in report:
        shown = erring(digits(report["perplexity"]), error_of(report, "perplexity_stderr"))
        found.append(Tile("Perplexity", shown, "of the loss without smoothing" if "nll" in report else ""))
    if report.get("accuracy"):
        (k, share), *rest = report["accuracy"].items()
        detail = ", ".join(f"{percent(other)} {top(k)}" for k, other in rest[:4])
        found.append(Tile("Accuracy", f"{percent(share)} {top(k)}", detail))
    found += ranking_tile(report.get("ranking", {}))
    if "bits_per_byte" in report:
        found.append(Tile("Bits per byte", number(report["bits_per_byte"])))
    return found


def _error_note(report: _Report) -> str:
    if "cluster_stderr" not in report:
        return "± one standard error, rows taken as independent" if "stderr" in report else ""
    over = f" over {whole(report['clusters']['count'])} clusters" if "clusters" in report else " over clusters"
    rows = f"; {number(report['stderr'])} if rows were independent" if "stderr" in report else ""
    return f"± one standard error{over}{rows}"


def _metric_table(report: _Report) -> Table:
    """The metrics of the table on a terminal, each with what it means."""
    return Table(("metric", "value", "what it says"), list(_metrics(report)), frozenset({0, 2}), "meanings")


_PLAIN: dict[str, tuple[str, Callable[[Any], str], str]] = {
    "bits_per_token": ("bits per token", number, "the loss in bits"),
    "bits_per_byte": ("bits per byte", number, "bits over bytes of text: comparable between tokenizers"),
    "bytes": ("bytes", whole, "of text in the rows that count"),
    "rows_without_bytes": ("rows without bytes", whole, "their loss counts in bits per byte, their text does not"),
    "mean_rank": ("mean rank", digits, "of the label among all classes; a few far rows decide it"),
    "mrr": ("mrr", number, "mean of 1 / rank"),
    "tied_rows": ("tied rows", whole, "another class has the label's logit"),
    "entropy": ("entropy", lambda value: f"{number(value)} nats", "how unsure the model says it is"),
}


def _metrics(report: _Report) -> Iterator[tuple[str, str, str]]:
    unit = " nats"
    yield "mean", erring(number(report["mean"]), error_of(report)) + unit, "mean loss per row, weighted where rows are"
    if "nll" in report:
        shown = erring(number(report["nll"]["mean"]), error_of(report["nll"])) + unit
        yield "nll", shown, "the loss without label smoothing"
    if "perplexity" in report:
        shown = erring(digits(report["perplexity"]), error_of(report, "perplexity_stderr"))
        yield "perplexity", shown, "exp of the mean" if "nll" not in report else "exp of the mean without smoothing"
    yield "rows", whole(report["rows"]), "that count"
    for name, word in (("ignored_rows", "ignored rows"), ("nonfinite_rows", "rows not finite")):
        if report.get(name):
            yield word, whole(report[name]), "count in no metric"
    if report.get("weight", report["rows"]) != report["rows"]:
        yield "weight", whole(report["weight"]), "sum over the rows that count"
    for k, share in report.get("accuracy", {}).items():
        yield f"{top(k)} accuracy", percent(share), _ties(report, k)
    for name, (title, show, meaning) in _PLAIN.items():
        if name in report:
            yield title, show(report[name]), meaning
    if "logsumexp" in report:
        block = report["logsumexp"]
        spread = f"{number(block['mean'])} ({number(block['min'], 3)} to {number(block['max'], 3)})"
        yield "logsumexp", spread, "mean, lowest and highest normaliser; far from 0 is no error"
    if "label_mass" in report:
        block = report["label_mass"]
        yield "label mass", f"{number(block['mean'])} (least {number(block['min'])})", "sum of each row's soft labels"
    if "calibration" in report:
        yield from _calibration_metrics(report["calibration"])
    if "macro" in report:
        yield from _macro(report["macro"])


def top(k: str) -> str:
    """The k of an accuracy, which is a key of the report and may be anything."""
    return f"top-{plain_name(k, 12)}"


def _ties(report: _Report, k: str) -> str:
    bounds = report.get("accuracy_ties", {}).get(k, [])
    if len(bounds) != 2:
        return "no class is higher" if k == "1" else f"the label is among the {plain_name(k, 12)} highest classes"
    return f"{percent(bounds[0])} if ties count against, {percent(bounds[1])} if for"


def _calibration_metrics(block: _Report) -> Iterator[tuple[str, str, str]]:
    if "ece" in block:
        yield "ece", percent(block["ece"]), "mean distance of confidence and accuracy over the bins"
    if "brier" in block:
        yield "brier", number(block["brier"]), "mean squared error of all probabilities, 0 to 2"


def _macro(block: _Report) -> Iterator[tuple[str, str, str]]:
    groups = f"{whole(block['groups'])} groups"
    yield "macro mean", f"{number(block['mean'])} nats", f"mean of the means of {groups}, each counted once"
    if "perplexity_of_mean" in block:
        yield "perplexity of macro mean", digits(block["perplexity_of_mean"]), "exp of that"
    if "mean_perplexity" in block:
        yield "mean perplexity of groups", digits(block["mean_perplexity"]), "one bad group decides it"


# ---- sections


def sections(report: _Report) -> list[Section]:
    """The pictures in their order, groups, the sampled loss, worst rows, and the metrics of the table."""
    made: list[tuple[str, Callable[[_Report], Section | None]]] = [
        ("ranking", ranking_section),
        ("loss_histogram", _losses),
        ("rank_histogram", _ranks),
        ("calibration", _calibration),
        ("by_frequency", frequency_section),
        ("by_position", position_section),
        ("groups", groups_section),
        ("sampled", _sampled),
        ("worst", _worst),
    ]
    found = (make(report) for name, make in made if report.get(name))
    table = Section("metrics", "Metrics", table=_metric_table(report))
    return [*(section for section in found if section is not None), table]


def _losses(report: _Report) -> Section | None:
    edges, counts = list(report["loss_histogram"]["edges"]), list(report["loss_histogram"]["counts"])
    total = sum(counts)
    if not total:
        return None
    rows = [
        (f"{_edge(start)} to {_edge(end)}", whole(n), percent(n / total))
        for start, end, n in zip(edges, edges[1:], counts, strict=False)
        if n
    ]
    while not counts[-1]:
        del counts[-1], edges[-1]
    while not counts[0]:
        del counts[0], edges[0]
    open_end = edges[-1] is None or math.isinf(edges[-1])
    text = "How many rows have which loss. A mean is made by all of them, often by the few on the right."
    if open_end:
        edges[-1] = edges[-2] + (edges[-2] - edges[-3] if len(edges) > 2 else 1.0)
        text += f" The last bar holds everything from {_edge(edges[-2])} nats on."
    what = f"Histogram of {total:,} rows from {_edge(edges[0])} to {_edge(edges[-1])} nats."
    title = "Losses of the rows"
    picture = pictures.histogram("loss", title, edges, counts, report["mean"], what)
    return Section("loss", title, text, picture, folded=[("Numbers", Table(("loss (nats)", "rows", "share"), rows))])


def _edge(value: float | None) -> str:
    return "∞" if value is None or math.isinf(value) else f"{value:.6g}"


def _ranks(report: _Report) -> Section | None:
    edges, counts = report["rank_histogram"]["edges"], report["rank_histogram"]["counts"]
    total, so_far = sum(counts), 0
    if not total:
        return None
    ks, shares, rows = [], [], []
    for edge, n in zip(edges, counts, strict=True):
        so_far += n
        ks.append(edge)
        shares.append(so_far / total)
        rows.append((f"{edge:,.0f}", whole(n), whole(so_far), percent(so_far / total)))
        if so_far == total:
            break
    title = "Accuracy at every k"
    what = f"The share of rows whose label is among the k highest classes, from {percent(shares[0])} at k = 1 up."
    text = "The share of rows whose label is among the k highest classes: what a list of k suggestions would catch."
    if report.get("weight", report["rows"]) != report["rows"]:
        text += " Rows are counted here, not weighted."
    table = Table(("k", "rows of rank above the last k, up to this", "so far", "share"), rows)
    return Section(
        "rank", title, text, pictures.rank_curve("rank", title, ks, shares, what), folded=[("Numbers", table)]
    )


def _calibration(report: _Report) -> Section | None:
    block = report["calibration"]
    if not block["bins"]:
        return None
    rows = [
        (
            f"{percent(item['from'], 1)} to {percent(item['to'], 1)}",
            whole(item["rows"]),
            percent(item.get("confidence")) if item["rows"] else "",
            percent(item.get("accuracy")) if item["rows"] else "",
        )
        for item in block["bins"]
    ]
    title = "Reliability"
    text = "Is the model right as often as it says? On the diagonal it is; below it, it is too sure of itself."
    ece = f" Expected calibration error {percent(block['ece'])}." if "ece" in block else ""
    what = f"Accuracy over confidence in {len(rows)} bins of the top class's probability.{ece}"
    table = Table(("probability of the top class", "rows", "confidence", "accuracy"), rows)
    picture = pictures.reliability("calibration", title, block["bins"], what)
    return Section("calibration", title, f"{text}{ece}", picture, folded=[("Numbers", table)])


def _sampled(report: _Report) -> Section:
    block = report["sampled"]
    rows: list[tuple[str, str]] = [("sampler", named(str(block.get("sampler", "?"))))]
    if "num_sampled" in block:
        rows.append(("candidates", whole(block["num_sampled"])))
    if "seed" in block:
        rows.append(("seed", text_of(block["seed"])))
    rows += [
        (title, f"{number(block[key])} nats")
        for key, title in (("exact_mean", "exact mean"), ("mean", "sampled mean"))
        if key in block
    ]
    if "bias" in block:
        rows.append(("bias", f"{erring(number(block['bias']), error_of(block, 'bias_stderr'))} nats"))
    title, picture = "Sampled against exact", ""
    text = "The loss over drawn candidates; it is not the loss over all classes, mostly below it, and no perplexity."
    if "exact_mean" in block and "mean" in block:
        items = [("exact", block["exact_mean"], None), ("sampled", block["mean"], error_of(block, "bias_stderr"))]
        what = "The sampled mean, with the standard error of its difference from the exact mean, beside the exact mean."
        picture = pictures.forest("sampled", title, items, "mean loss (nats)", what)
    rankings = [("exact_ranking", "Ranking over all classes"), ("ranking_bias", "Exact less sampled ranking")]
    folded = [(name, ranking_table(block[key])) for key, name in rankings if block.get(key)]
    return Section("sampled", title, text, picture, table=Table(("", ""), rows), folded=folded)


def _worst(report: _Report) -> Section:
    return worst_section("worst", "Worst rows", report["worst"], {"loss": "loss (nats)"})


def worst_section(
    key: str, title: str, rows: list[_Report], losses: dict[str, str], budget: int = WORST_BUDGET
) -> Section:
    """The rows of the highest loss, or divergence, with what is known of them."""
    others = [name for name in ("label", "predicted", "predicted_reference", "predicted_candidate", "group", "text")]
    used = [name for name in others if any(row.get(name) is not None for row in rows)]
    numbered = any("row" in row for row in rows)  # rows of batches have no number
    lines = (
        (
            *([str(row.get("row", ""))] if numbered else []),
            *(number(row.get(name)) for name in losses),
            *(_worst_cell(row.get(name), TEXT if name == "text" else 64) for name in used),
        )
        for row in rows
    )
    shown = within(lines, budget)
    columns = (*["row"] * numbered, *losses.values(), *(name.replace("_", " ") for name in used))
    texts = frozenset(i for i, name in enumerate(columns) if name in ("group", "text"))
    text = "Where it fails most. Look here first: broken rows, wrong labels and hard cases look different."
    left = len(rows) - len(shown)
    after = f"{left:,} more are in the report." if left else ""
    return Section(key, title, text, table=Table(columns, shown, texts, "texts"), after=after)


def _worst_cell(value: Any, most: int) -> str:
    return "" if value is None else text_of(value, most)
