"""The table of a comparison: one line per candidate, best first, what that says in words, then each in full.

Where clusters are known, errors are those over clusters: rows of one are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from bigvocab.errors import printable
from bigvocab.reports.llama_cpp import format_table
from bigvocab.reports.numerals import count, counted, fixed, is_within_error, significant, to_error
from bigvocab.reports.pairs import Pairs, pairs_table, source_pairs, title

_Values = Mapping[str, Any]
_MOST_GROUPS, _MOST_WORST = 20, 5
_PERCENTS = ("99.9", "99", "95", "90", "50", "10", "1")
_DIVERGENCES = {"kl": "KL", "kl_reverse": "KL reversed", "js": "JS", "tv": "TV"}


def comparison_tables(values: _Values, sign: str, width: int) -> Iterator[Any]:
    """What rich prints of a comparison, block by block with a line between."""
    sides = candidates_of(values)
    yield pairs_table(_head(values, sides, sign), 12, "bold")
    yield ""
    yield _line_each(sides, sign, width)
    words = list(_in_words(values, sides))
    if words:
        yield ""
        yield from words
    for name, block in sides:
        yield ""
        if len(sides) > 1:
            yield title(printable(name))
        yield from _in_full(block, sign, width)
    if source := source_pairs(values):
        yield ""
        yield pairs_table(source, 12, "dim")


def candidates_of(values: _Values) -> list[tuple[str, _Values]]:
    """The candidates with their values, nearest to the reference first; a mean of NaN (in JSON None) comes last."""
    blocks = values["candidates"] if "candidates" in values else {values.get("name", "candidate"): values}

    def place(item: tuple[str, _Values]) -> tuple[bool, float]:
        mean = item[1]["kl"]["mean"]
        return (True, 0.0) if mean is None or math.isnan(mean) else (False, mean)

    return sorted(blocks.items(), key=place)


def _head(values: _Values, sides: list[tuple[str, _Values]], sign: str) -> Pairs:
    """The reference and how many rows."""
    rows = f"{values['rows']:,}"
    notes = [f"{values['ignored_rows']:,} ignored"] if values.get("ignored_rows") else []
    if "clusters" in values:
        notes.append(f"in {counted(values['clusters']['count'], 'cluster')}, over which errors are taken")
    pairs = [("rows", rows + (f" ({', '.join(notes)})" if notes else ""))]
    reference = next((block["reference"] for _, block in sides if "reference" in block), None)
    if reference is not None:
        shown = to_error(reference["perplexity"], reference["perplexity_stderr"], sign)
        pairs.insert(0, ("reference", f"perplexity {shown}"))
    return pairs


def _error(block: _Values, of: str = "") -> float:
    """The error that is shown: over clusters where there are some."""
    return float(block.get(f"{of}cluster_stderr", block.get(f"{of}stderr", math.nan)))


def _ratio(block: _Values, sign: str, digits: int = 2) -> str:
    found = block["difference"]
    return to_error(found["perplexity_ratio"], found["perplexity_ratio"] * _error(found), sign, digits)


def _line_each(sides: list[tuple[str, _Values]], sign: str, width: int) -> Any:
    """One line per candidate."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 0, 0, 1), header_style="cyan")
    labelled = all("difference" in block for _, block in sides)
    columns = [*["perplexity", "its ratio"] * labelled, "mean KL", "99.9%", "max", "same\ntop"]
    rows = []
    for _, block in sides:
        kl = block["kl"]
        cells = []
        if labelled:
            cells = [significant(block["candidate"]["perplexity"]), _ratio(block, sign, 1)]
        cells += [to_error(kl["mean"], _error(kl), sign, 1), _short(kl["percentiles"]["99.9"], 2)]
        rows.append([*cells, _short(kl["max"], 2), f"{block['same_top']['share']:.1%}"])
    needed = sum(
        1 + max(len(line) for cell in column for line in cell.split("\n"))
        for column in zip(columns, *rows, strict=True)
    )
    names = 9
    table.add_column("candidate", overflow="fold", min_width=names, max_width=24)  # names give way to values
    for name in columns:  # then errors move to a line of their own: no value is cut
        folded = sign in "".join(row[columns.index(name)] for row in rows) and 1 + names + needed > width
        table.add_column(name, justify="right", no_wrap=not folded)
    for (name, _), cells in zip(sides, rows, strict=True):
        table.add_row(Text(printable(name)), *cells)
    return table


# ---- in words


def _in_words(values: _Values, sides: list[tuple[str, _Values]]) -> Iterator[Any]:
    """Whether differences are more than their errors: of each candidate to the reference, and between neighbours."""
    from rich.padding import Padding
    from rich.text import Text

    for text in (*_against_reference(sides), *_between(values.get("between", ()))):
        yield Padding(Text(text, overflow="fold"), (0, 0, 0, 1))


def _against_reference(sides: list[tuple[str, _Values]]) -> Iterator[str]:
    for name, block in sides:
        shown = printable(name)
        if block["kl"]["max"] == 0 and not _hides(block):
            yield f"{shown} says what the reference says: KL is 0 in every row."
            continue
        if "difference" not in block:
            continue
        difference = block["difference"]
        mean, error = difference["mean"], _error(difference)
        if math.isnan(error) or not math.isfinite(mean):
            continue
        if is_within_error(mean, error):
            yield f"{shown}: its loss is that of the reference, within the error of the difference."
        else:
            more = "higher" if mean > 0 else "lower"
            yield f"{shown}: its loss is {more} than the reference's; the difference is more than its error."


def _hides(block: _Values) -> bool:
    """Whether sides that have a KL of 0 above a floor differ all the same."""
    differences = [block.get("difference", {}).get(name) or 0.0 for name in ("mean", "stderr")]
    return "floor" in block and (block["same_top"]["share"] < 1 or any(abs(number) > 0 for number in differences))


def _between(pairs: Any) -> Iterator[str]:
    for pair in pairs:
        a, b, difference = printable(pair["a"]), printable(pair["b"]), pair["kl_difference"]
        mean, error = difference["mean"], _error(difference)
        if math.isnan(error) or not math.isfinite(mean):
            continue
        near, far = (a, b) if mean < 0 else (b, a)
        if is_within_error(mean, error):
            yield f"{a} and {b} are as near to the reference: their difference is within its error."
        else:
            yield f"{near} is nearer to the reference than {far}: their difference is more than its error."


# ---- in full


def _in_full(block: _Values, sign: str, width: int) -> Iterator[Any]:
    yield pairs_table([*_losses(block, sign), *_divergences(block, sign), *_tops(block, sign)], 12)
    if "by_confidence" in block:
        yield ""
        yield _by_confidence(block["by_confidence"])
    if block.get("groups"):
        yield ""
        yield _groups(block["groups"], sign, width)
    if block.get("worst"):
        yield ""
        yield _worst(block["worst"])
    if "llama_cpp" in block:
        yield ""
        yield from _llama_cpp(block["llama_cpp"])


def _losses(block: _Values, sign: str) -> Iterator[tuple[str, str]]:
    for side in ("reference", "candidate"):
        if side in block:
            found = block[side]
            shown = f"{to_error(found['mean'], found['stderr'], sign)} nats"
            perplexity = to_error(found["perplexity"], found["perplexity_stderr"], sign)
            yield f"loss of {side}"[:17], f"{shown}, perplexity {perplexity}, {found['accuracy']['1']:.2%} top-1"
    if "difference" in block:
        found = block["difference"]
        yield "difference", f"{to_error(found['mean'], _error(found), sign)} nats, ratio {_ratio(block, sign)}"
        yield "", f"perplexity {to_error(found['perplexity'], found['perplexity_stderr'], sign)}"
        if not math.isnan(found["correlation"]):
            yield "correlation", fixed(found["correlation"])


def _divergences(block: _Values, sign: str) -> Iterator[tuple[str, str]]:
    for name, shown in _DIVERGENCES.items():
        if name in block:
            found = block[name]
            acceptance = f", acceptance {found['acceptance']:.4f}" if "acceptance" in found else ""
            bound = " at least" if found.get("bound") == "lower" else ""
            yield shown, f"mean{bound} {to_error(found['mean'], _error(found), sign)}{acceptance}"
            if found.get("infinite_rows"):
                rest = f"{fixed(found['finite_mean'])} without"
                yield "", f"infinite in {counted(found['infinite_rows'], 'row')}; mean {rest}"
            yield "", _percentiles(found, _short)
    if "logit_difference" in block:
        yield "ln p differs", f"{significant(block['logit_difference']['mean'])} nats on average"
    if "delta_p" in block:
        found = block["delta_p"]
        rms = to_error(100 * found["rms"], 100 * found["rms_stderr"], sign)
        yield "Δp", f"mean {to_error(100 * found['mean'], 100 * found['stderr'], sign)} %, RMS {rms} %"
        yield "", _percentiles(found, lambda value: f"{value:.2%}")
    if "floor" in block:
        found = block["floor"]
        text = f"{_short(found['mass'])} of the reference's mass lies under it on average"
        yield "floor", text + (f", and {counted(found['labels'], 'label')}" if found["labels"] else "")


def _short(number: float, digits: int = 3) -> str:
    return f"{number:.{digits}g}"


def _percentiles(found: _Values, show: Any) -> str:
    shown = [f"{name}% {show(found['percentiles'][name])}" for name in _PERCENTS if name in found["percentiles"]]
    return "  ".join([f"max {show(found['max'])}", *shown])


def _tops(block: _Values, sign: str) -> Iterator[tuple[str, str]]:
    same = block["same_top"]
    tied = f" ({counted(same['tied_rows'], 'row')} tied at the top)" if same.get("tied_rows") else ""
    yield "same top", f"{to_error(100 * same['share'], 100 * _error(same), sign)} %{tied}"
    for name, shown in (("top_in_candidate", "top within"), ("top_in_reference", "and back"), ("overlap", "overlap")):
        if name in block:
            yield shown, "   ".join(f"{share:.2%} of {k}" for k, share in block[name].items())
    if "flips" in block:
        found = block["flips"]
        p = f"p = {significant(found['mcnemar_p'], 3)}" if found["to_wrong"] + found["to_right"] else ""
        yield "flips", f"{count(found['to_wrong'])} to wrong, {count(found['to_right'])} to right {p}".rstrip()
    sides = [side for side in ("reference", "candidate") if f"entropy_{side}" in block]
    entropies = [(side, block[f"entropy_{side}"]["mean"]) for side in sides]
    if entropies:
        yield "entropy", ", ".join(f"{fixed(mean, 4)} nats of the {side}" for side, mean in entropies)
    bad = {side: n for side, n in block.get("nonfinite_rows", {}).items() if n}
    if bad:
        yield "not finite", ", ".join(f"{counted(n, 'row')} of the {side}" for side, n in bad.items())


def _table(*columns: str) -> Any:
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), header_style="cyan")
    table.add_column(columns[0], no_wrap=True, overflow="ellipsis", min_width=12, max_width=40)
    for name in columns[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _by_confidence(lines: Any) -> Any:
    table = _table("confidence", "rows", "mean KL", "median KL")
    for line in lines:
        values = [f"{line[name]:.4g}" if name in line else "" for name in ("kl_mean", "kl_median")]
        table.add_row(f"{line['from']:.0%} to {line['to']:.0%}", count(line["rows"]), *values)
    return table


def _groups(groups: _Values, sign: str, width: int) -> Any:
    """Groups with the highest KL first."""
    from rich.text import Text

    labelled = any("difference" in group for group in groups.values())
    table = _table("group", "rows", "mean KL", *["difference"] * labelled, "same top")
    ranked = sorted(groups.items(), key=lambda item: (math.isnan(item[1]["kl"]), -item[1]["kl"], item[0]))
    for name, group in ranked[:_MOST_GROUPS]:
        cells = [count(group["rows"]), to_error(group["kl"], _error(group, "kl_"), sign)]
        if labelled:
            cells.append(to_error(group["difference"], _error(group, "difference_"), sign))
        table.add_row(Text(printable(name)), *cells, f"{group['same_top']:.2%}")
    if (more := len(ranked) - _MOST_GROUPS) > 0:
        table.caption, table.caption_justify = f" ... and {more:,} more; --format json has all", "left"
    return table


def _worst(rows: Any) -> Any:
    labelled = "label" in rows[0]
    table = _table("worst rows", "KL", *["label", "loss", "before"] * labelled, "top", "before")
    for row in rows[:_MOST_WORST]:
        cells = [f"{row['kl']:.4g}"]
        if labelled:
            cells += [str(row["label"]), fixed(row["loss_candidate"], 3), fixed(row["loss_reference"], 3)]
        table.add_row(str(row["row"]), *cells, str(row["predicted_candidate"]), str(row["predicted_reference"]))
    return table


def _llama_cpp(block: _Values) -> Iterator[Any]:
    """llama.cpp's own table, as it prints it."""
    from rich.padding import Padding
    from rich.text import Text

    if "kld" in block:
        yield Padding(Text(format_table(block).rstrip(), no_wrap=True), (0, 0, 0, 1))
    else:
        yield title("llama.cpp prints no table of fewer than 100 rows")
    if "note" in block:
        yield Padding(Text(f"({block['note']})", overflow="fold"), (0, 0, 0, 1))
