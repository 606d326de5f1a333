"""Tables of two columns, names and values, and what stands in the one of the data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bigvocab.reports.numerals import counted, significant, size, tail

Pairs = list[tuple[str, str]]

_MOST_FILES = 4


def title(text: str) -> Any:
    """A line above a table."""
    from rich.text import Text

    return Text(f" {text}", style="bold", overflow="fold")


def pairs_table(pairs: Pairs, width: int, style: str = "") -> Any:
    """Names on the left, in a column of `width`, and values on the right."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(style="dim" if style == "dim" else "cyan", no_wrap=True, min_width=width)
    table.add_column(style=style, overflow="fold")
    for name, value in pairs:
        table.add_row(Text(name), Text(value))
    return table


def source_pairs(values: Mapping[str, Any]) -> Pairs:
    """Which data, and how fast."""
    files = values.get("inputs", [])
    pairs = _model(values.get("model"))
    pairs += [("data" if i == 0 else "", _file(file)) for i, file in enumerate(files[:_MOST_FILES])]
    if more := len(files) - _MOST_FILES:
        pairs += [("", f"... and {counted(more, 'more file')}")] if more > 0 else []
    if "seconds" in values:
        rate = f"{significant(values['seconds'], 3)} s"
        if "rows_per_second" in values:
            rate += f", {significant(values['rows_per_second'], 3)} rows/s"
        if "bytes_per_second" in values:
            rate += f", {size(values['bytes_per_second'])}/s"
        pairs.append(("time", rate))
    return pairs


def _model(model: Mapping[str, Any] | None) -> Pairs:
    """Which model made the logits, in one line."""
    if not model:
        return []
    facts = [str(model["type"]), f"{model['num_classes']:,} classes", f"{model['norm']} norm"]
    facts.append(str(model["hidden_states"]))
    facts += [f"scale {model['logit_scale']:g}"] if model["logit_scale"] != 1 else []
    facts += [f"softcap {model['softcap']:g}"] if "softcap" in model else []
    shown = ", ".join(facts)
    return [("model", f"{tail(str(model['path']), max(12, 60 - len(shown)))}  {shown}")]


def _file(file: Mapping[str, Any]) -> str:
    facts = []
    if file.get("shape"):
        facts.append(" x ".join(f"{n:,}" for n in file["shape"]) + f" {file.get('dtype', '')}".rstrip())
    if "bytes" in file:
        facts.append(size(_bytes_of(file)))
    facts_shown = ", ".join(facts)
    return f"{tail(str(file.get('path', '')), max(20, 58 - len(facts_shown)))}  {facts_shown}".rstrip()


def _bytes_of(file: Mapping[str, Any]) -> int:
    """Bytes of a file, or of the one tensor of it that is read."""
    whole, element = int(file["bytes"]), _ELEMENTS.get(file.get("dtype", ""))
    one_tensor = "::" in str(file.get("path", "")) and element is not None
    return min(whole, math.prod(file["shape"]) * element) if one_tensor and element else whole


_ELEMENTS = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}  # bytes
