"""Report: the values of an evaluation as a dict, as JSON, and as a table for a person.

The values are made elsewhere; here is only how they are shown, and how one of them is found by a dotted name.
"""

from __future__ import annotations

import copy
import io
import json
import math
import numbers
from collections.abc import Iterable, Iterator, KeysView, Mapping
from typing import Any

from bigvocab.errors import printable
from bigvocab.reports.infinities import finite_values
from bigvocab.reports.numerals import count, counted, fixed, significant, with_error
from bigvocab.reports.pairs import Pairs, pairs_table, source_pairs

SCHEMA_VERSION = 1  # of what reports hold, and of the newest that pages are made of
_MOST_GROUPS = 20
_WIDTH = 80


class Report:
    """The values of an evaluation: `report["mean"]`, `.to_dict()`, `.to_json()`, and the table, `str(report)`.

    >>> report = Report({"loss": "sparse-softmax", "mean": 1.5, "rows": 2, "accuracy": {"1": 0.5}})
    >>> report["mean"], report.value("accuracy.1")
    (1.5, 0.5)
    >>> print(report)
     loss      sparse-softmax
     mean      1.500000 nats
     rows      2
     accuracy  50.00% top-1
    """

    def __init__(self, values: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> None:
        """`options`: those that were given, for the page alone: values do not depend on how rows came."""
        self._values, self.options = dict(values), dict(options or {})

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def keys(self) -> KeysView[str]:
        """Names of the values, so that `dict(report)` is a copy."""
        return self._values.keys()

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __repr__(self) -> str:
        shown = [f"{name}={self._values[name]!r}" for name in ("loss", "mean", "rows") if name in self]
        return f"<Report {' '.join(shown)}>"

    def to_dict(self) -> dict[str, Any]:
        """All values, as a copy; floats may be NaN or infinite.

        >>> Report({"mean": 1.5}).to_dict()
        {'mean': 1.5}
        """
        return copy.deepcopy(self._values)

    def to_json(self) -> str:
        """All values as JSON: NaN and infinities are null, and `infinite` names the infinities.

        >>> print(Report({"mean": float("nan")}).to_json())
        {
          "mean": null
        }
        """
        return as_json(finite_values(self._values))

    def value(self, name: str) -> Any:
        """The value of a dotted name such as `perplexity`, `accuracy.1` or `groups.St. John.mean`.

        Raises:
            KeyError: there is no value of that name.

        >>> Report({"accuracy": {"1": 0.5}}).value("accuracy.1")
        0.5
        """
        found = _find(self._values, name)
        if found is None:
            raise KeyError(name)
        return found[0]

    figure = value  # its former name

    def __str__(self) -> str:
        return plain_text([self])

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        """What rich prints: the table, in colours where the console has them."""
        values, sign = self._values, "+/-" if options.ascii_only else "±"
        if is_comparison(values):
            from bigvocab.reports.comparison_table import comparison_tables

            yield from comparison_tables(values, sign, options.max_width)
            return
        blocks = [_first(values, sign), _ranking(values), _rest(values), _reductions(values)]
        blocks.append(_sampled(values, sign))
        source = source_pairs(values)
        width = max(len(name) for block in [*blocks, source] for name, _ in block)
        tables = [pairs_table(pairs, width, "bold" if i == 0 else "") for i, pairs in enumerate(blocks) if pairs]
        if values.get("groups"):
            tables.append(_groups_table(values["groups"], width, options.max_width))
        if source:
            tables.append(pairs_table(source, width, "dim"))
        for i, table in enumerate(tables):
            if i:
                yield ""
            yield table


def is_comparison(values: Mapping[str, Any]) -> bool:
    """Whether values are those of a comparison of models."""
    return "candidates" in values or "kl" in values


def plain_text(items: Iterable[Any]) -> str:
    """What rich can print, as text of 80 columns without colours."""
    from rich.console import Console

    text = io.StringIO()
    console = Console(file=text, width=_WIDTH, color_system=None, force_terminal=False, highlight=False)
    for item in items:
        console.print(item)
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip().split("\n"))


# ---- what stands in the table, as pairs of a name and a text


def _first(values: Mapping[str, Any], sign: str) -> Pairs:
    """What matters most."""
    pairs = [("loss", str(values.get("loss", "?")))]
    if "mean" in values:
        shown = with_error(fixed(values["mean"]), _error_of(values, "stderr"), sign) + " nats"
        over = f", {counted(values['clusters']['count'], 'cluster')}" if "cluster_stderr" in values else ""
        pairs.append(("mean", shown + over))
    if "nll" in values:
        nll = values["nll"]
        shown = with_error(fixed(nll["mean"]), _error_of(nll, "stderr"), sign)
        pairs.append(("nll", f"{shown} nats, without label smoothing"))
    if "perplexity" in values:
        shown = with_error(significant(values["perplexity"]), _error_of(values, "perplexity_stderr"), sign)
        pairs.append(("perplexity", shown))
    if "rows" in values:
        left_out = [(values.get(f"{what}_rows", 0), word) for what, word in _ROWS.items()]
        notes = [f"{n:,} {word}" for n, word in left_out if n]
        pairs.append(("rows", f"{values['rows']:,}" + (f" ({', '.join(notes)})" if notes else "")))
    if "accuracy" in values:
        shares = [f"{share:.2%} top-{k}" for k, share in values["accuracy"].items()]
        pairs.append(("accuracy", "   ".join(shares)))
    return pairs


def _error_of(values: Mapping[str, Any], name: str) -> float | None:
    """The standard error that is shown: over clusters where there are some."""
    found: float | None = values.get(name.replace("stderr", "cluster_stderr"), values.get(name))
    return found


def _ranking(values: Mapping[str, Any]) -> Pairs:
    """Metrics of rankings, a line for each, a share for each k."""
    pairs = []
    for name, by_k in values.get("ranking", {}).items():
        if not name.endswith("stderr"):
            pairs.append((name.replace("_", " "), "   ".join(f"{fixed(value)} @{k}" for k, value in by_k.items())))
    return pairs


_ROWS = {"ignored": "ignored", "nonfinite": "not finite"}
_REST = {
    "bits_per_token": fixed,
    "bits_per_byte": fixed,
    "mean_rank": significant,
    "mrr": fixed,
    "tied_rows": count,
}


def _rest(values: Mapping[str, Any]) -> Pairs:
    pairs = [(name.replace("_", " "), show(values[name])) for name, show in _REST.items() if name in values]
    if "entropy" in values:
        pairs.append(("entropy", f"{fixed(values['entropy'])} nats"))
    if "logsumexp" in values:
        found = values["logsumexp"]
        spread = f"({fixed(found['min'], 3)} to {fixed(found['max'], 3)})"
        pairs.append(("logsumexp", f"{fixed(found['mean'])} {spread}"))
    if "calibration" in values:
        found = values["calibration"]
        pairs.append(("calibration", f"ece {found['ece']:.2%}, brier {fixed(found['brier'])}"))
    if "label_mass" in values:
        found = values["label_mass"]
        pairs.append(("label mass", f"{fixed(found['mean'])} (least {fixed(found['min'])})"))
    if values.get("rows_without_bytes"):
        pairs.append(("without bytes", counted(values["rows_without_bytes"], "row")))
    if "macro" in values:
        found = values["macro"]
        pairs.append(("macro mean", f"{fixed(found['mean'])} nats over {counted(found['groups'], 'group')}"))
    return pairs


def _reductions(values: Mapping[str, Any]) -> Pairs:
    """The other reductions, which tell something only where rows were weighted."""
    if "reductions" not in values or values.get("weight") == values.get("rows"):
        return []
    shown = [(name.replace("_", " "), fixed(value)) for name, value in values["reductions"].items() if name != "mean"]
    return [("sum of weights", count(values["weight"])), *shown]


def _sampled(values: Mapping[str, Any], sign: str) -> Pairs:
    """The sampled loss beside the exact one."""
    found = values.get("sampled")
    if not found:
        return []
    seed = f", seed {','.join(map(str, found['seed']))}" if "seed" in found else ""
    pairs = [("sampler", f"{found['sampler']}, {counted(found['num_sampled'], 'candidate')}{seed}")]
    if "exact_mean" in found:
        pairs.append(("exact mean", f"{fixed(found['exact_mean'])} nats"))
    pairs.append(("sampled mean", f"{fixed(found['mean'])} nats"))
    if "bias" in found:
        pairs.append(("bias", with_error(fixed(found["bias"]), found.get("bias_stderr"), sign) + " nats"))
    return pairs


# ---- tables of rich


def _groups_table(groups: Mapping[str, Mapping[str, Any]], width: int, most: int) -> Any:
    """Groups with the highest mean first; those with nothing to average last. Names give way to values."""
    from rich.table import Table
    from rich.text import Text

    def badness(item: tuple[str, Mapping[str, Any]]) -> tuple[bool, float, str]:
        mean = item[1]["mean"]
        return math.isnan(mean), 0.0 if math.isnan(mean) else -mean, item[0]

    ranked = sorted(groups.items(), key=badness)
    weighted = any(group.get("weight", group["rows"]) != group["rows"] for group in groups.values())
    columns = ["rows", *["weight"] * weighted, "mean", *["perplexity"] * any("perplexity" in g for _, g in ranked)]
    show = {"rows": count, "weight": count, "mean": fixed, "perplexity": significant}
    table = Table(box=None, padding=(0, 1), header_style="cyan")
    rest = sum(
        2 + max(len(name), *(len(show[name](group[name])) for _, group in ranked[:_MOST_GROUPS] if name in group))
        for name in columns
    )
    room = max(5, min(40, most - rest - 2))
    table.add_column("group", no_wrap=True, overflow="ellipsis", min_width=min(width, room), max_width=room)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for name, group in ranked[:_MOST_GROUPS]:
        table.add_row(Text(printable(name)), *(show[c](group[c]) if c in group else "" for c in columns))
    if more := len(ranked) - _MOST_GROUPS:
        if more > 0:
            table.caption = f" ... and {more:,} more; --format json has all"
            table.caption_justify = "left"
    return table


# ---- dotted names and JSON


def _find(values: Any, name: str) -> tuple[Any] | None:
    """The value at a dotted path in nested dicts; keys may hold dots themselves, and the longest key goes first."""
    if not isinstance(values, Mapping):
        return None
    if name in values:
        return (values[name],)
    dots = [i for i, letter in enumerate(name) if letter == "."]
    for dot in reversed(dots):
        if name[:dot] in values and (found := _find(values[name[:dot]], name[dot + 1 :])):
            return found
    return None


def as_json(value: Any, indent: str = "\n") -> str:
    """JSON with two spaces of indent; `json` itself writes NaN and Infinity, which are no JSON: here they are null."""
    deeper = indent + "  "
    if isinstance(value, Mapping):
        items = [f"{json.dumps(str(key))}: {as_json(item, deeper)}" for key, item in value.items()]
        return "{" + deeper + f",{deeper}".join(items) + indent + "}" if items else "{}"
    if isinstance(value, list | tuple):
        flat = all(isinstance(item, numbers.Number | str) for item in value)
        items = [as_json(item, deeper) for item in value]
        if flat or not items:
            return "[" + ", ".join(items) + "]"
        return "[" + deeper + f",{deeper}".join(items) + indent + "]"
    if value is None or isinstance(value, str | bool):
        return json.dumps(value)
    if isinstance(value, numbers.Integral):
        return str(int(value))
    number = float(value)
    return repr(number) if math.isfinite(number) else "null"
