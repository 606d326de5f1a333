"""Pictures of a report: each takes numbers and gives SVG for the page, beside a table of the same numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bigvocab.reports.page.canvas import (
    HEIGHT,
    Canvas,
    drawable,
    linear_ticks,
    log_scale,
    log_ticks,
    share_ticks,
    short,
)
from bigvocab.reports.page.shown import Html
from bigvocab.reports.page.svg import INK, MUTED, PAPER, SERIES

MOST_SERIES = len(SERIES)
_MARKERS = "osD^vPX"
_DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
_NAMES = 132  # units left of the axes for names


@dataclass(frozen=True)
class Series:
    """A name, and a value with its error at each place; None where there is nothing to draw."""

    name: str
    values: Sequence[float | None]
    errors: Sequence[float | None] = ()


def histogram(
    key: str, title: str, edges: Sequence[float], counts: Sequence[int], mean: float | None, what: str
) -> Html:
    """Bars of rows between finite `edges`; a logarithmic axis where the bins widen."""
    canvas = Canvas()
    axes, starts = canvas.axes, list(edges)
    widths = [b - a for a, b in zip(edges, edges[1:], strict=False)]
    log = max(widths) > 3 * min(widths) and starts[1] > 0
    if log and starts[0] <= 0:
        starts[0] = starts[1] / 2
    sizes = [b - a for a, b in zip(starts, starts[1:], strict=False)]
    axes.bar(starts[:-1], counts, width=sizes, align="edge", color=SERIES[0], edgecolor=PAPER, linewidth=0.5)
    if log:
        axes.set_xscale("log")
        log_ticks(axes.xaxis, starts[0], starts[-1])
    else:
        linear_ticks(axes.xaxis)
    axes.set_xlim(starts[0], starts[-1])
    linear_ticks(axes.yaxis, most=5, whole=True)
    axes.grid(visible=False, axis="x")
    if mean is not None and drawable(mean) and starts[0] <= mean <= starts[-1]:
        _mean_line(axes, mean, to_left=not log and mean > (starts[0] + starts[-1]) / 2)
    axes.set_xlabel("loss of the row (nats)")
    axes.set_ylabel("rows")
    return canvas.svg(key, title, what)


def _mean_line(axes: Any, mean: float, *, to_left: bool) -> None:
    axes.axvline(mean, color=INK, linewidth=1.2, linestyle="--")
    axes.annotate(
        f"mean {mean:.4g}",
        (mean, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-4 if to_left else 4, -2),
        textcoords="offset points",
        ha="right" if to_left else "left",
        va="top",
    )


def rank_curve(key: str, title: str, ks: Sequence[int], shares: Sequence[float], what: str) -> Html:
    """The share of rows whose label is among the k highest classes, over a logarithmic k."""
    canvas = Canvas()
    axes, top = canvas.axes, max(ks[-1], 2)
    axes.plot(ks, shares, color=SERIES[0], marker="o")
    axes.set_xscale("log")
    axes.set_xlim(0.9, top * 1.1)
    log_ticks(axes.xaxis, 1, top)
    axes.set_ylim(0, 1.04)
    share_ticks(axes.yaxis)
    axes.set_xlabel("k (highest classes looked at)")
    axes.set_ylabel("label among them")
    return canvas.svg(key, title, what)


def reliability(key: str, title: str, bins: Sequence[Mapping[str, Any]], what: str) -> Html:
    """Accuracy over confidence, the diagonal of a model that is as right as it says, and the rows of each bin."""
    canvas = Canvas(310, rows=(3, 1))
    axes, below = canvas.panels
    live = [item for item in bins if drawable(item.get("confidence")) and drawable(item.get("accuracy"))]
    axes.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1.2)
    for item in live:
        axes.plot([item["confidence"]] * 2, [item["confidence"], item["accuracy"]], color=SERIES[1], linewidth=1.5)
    axes.plot([item["confidence"] for item in live], [item["accuracy"] for item in live], color=SERIES[0], marker="o")
    axes.text(0.98, 0.04, "below: too sure", ha="right", transform=axes.transAxes, fontsize=10)
    axes.text(0.02, 0.92, "above: not sure enough", transform=axes.transAxes, fontsize=10)
    axes.set_xlim(0, 1.04)  # room for the last tick
    axes.set_ylim(0, 1.02)
    share_ticks(axes.yaxis)
    axes.set_ylabel("accuracy")
    below.bar(
        [item["from"] for item in bins],
        [item["rows"] for item in bins],
        width=[(item["to"] or 1) - item["from"] for item in bins],
        align="edge",
        color=SERIES[0],
        edgecolor=PAPER,
        linewidth=0.5,
    )
    below.grid(visible=False, axis="x")
    share_ticks(below.xaxis)
    linear_ticks(below.yaxis, most=2, whole=True)
    below.set_xlabel("confidence (probability of the top class)")
    below.set_ylabel("rows")
    return canvas.svg(key, title, what)


def steps(
    key: str,
    title: str,
    places: Sequence[str],
    series: Sequence[Series],
    labels: tuple[str, str],
    what: str,
    *,
    log: bool = False,
    percent: bool = False,
) -> Html:
    """Up to seven series over named places, with errors; `labels` are those of the axes."""
    shown, legend = series[:MOST_SERIES], len(series) > 1
    every = max(1, math.ceil(len(places) / 16))
    tilted = max(len(place) for place in places) * len(places) / every > 48
    top = 14 + (16 * math.ceil(len(shown) / 2) + 4 if legend else 0)
    bottom = 40 + 3.9 * max(len(place) for place in places) if tilted else 42
    canvas = Canvas(HEIGHT + top - 14 + bottom - 42, top=top, bottom=bottom)
    axes = canvas.axes
    drawn: list[float] = []
    for i, item in enumerate(shown):
        name = canvas.placeholder(item.name, 22) if legend else None
        drawn += _series(axes, i, item, (i - (len(shown) - 1) / 2) * 0.08, name, log)
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.set_xticks(range(0, len(places), every), places[::every])
    if tilted:
        for label in axes.get_xticklabels():
            label.set(rotation=40, ha="right", rotation_mode="anchor")
    axes.grid(visible=False, axis="x")
    if log and drawn:
        log_scale(axes, drawn)
    else:
        linear_ticks(axes.yaxis, (lambda value, _: f"{short(value * 100)}%") if percent else short)
        if drawn and min(drawn) < 0 < max(drawn):
            axes.axhline(0, color=MUTED, linewidth=1.2)
    if legend:
        axes.legend(loc="lower left", bbox_to_anchor=(-0.12, 1.0), ncols=2, borderaxespad=0, handlelength=2.6)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    return canvas.svg(key, title, what)


def _series(axes: Any, i: int, item: Series, offset: float, name: str | None, log: bool) -> list[float]:
    """Draw one series and say which values it reaches."""
    points = [
        (place, value, error if error is not None and drawable(error) else 0.0)
        for place, (value, error) in enumerate(zip(item.values, item.errors or [None] * len(item.values), strict=True))
        if value is not None and drawable(value) and (value > 0 or not log)
    ]
    at = [place + offset for place, _, _ in points]
    values = [value for _, value, _ in points]
    axes.plot(at, values, color=SERIES[i], marker=_MARKERS[i], linestyle=_DASHES[i], label=name)
    if not any(error for _, _, error in points):
        return values
    down = [min(error, 0.99 * value) if log else error for _, value, error in points]
    up = [error for _, _, error in points]
    axes.errorbar(at, values, yerr=[down, up], fmt="none", ecolor=SERIES[i], elinewidth=1.4, capsize=3)
    return values + [value + error for value, error in zip(values, up, strict=True)]


def forest(
    key: str,
    title: str,
    items: Sequence[tuple[str, float | None, float | None]],
    label: str,
    what: str,
    *,
    line: tuple[str, float | None] | None = None,
) -> Html:
    """A value with its error for each name, from the top; `line` is what all are held against."""
    canvas = Canvas(66 + 20 * max(2, len(items)), left=_NAMES, top=24 if line else 10)
    axes = canvas.axes
    for i, (_, value, error) in enumerate(items):
        if drawable(value):
            wide = None if error is None or not drawable(error) else [error]
            axes.errorbar([value], [i], xerr=wide, fmt="o", color=SERIES[0], elinewidth=1.6, capsize=3)
    if line and line[1] is not None and drawable(line[1]):
        axes.axvline(line[1], color=INK, linestyle="--", linewidth=1.2)
        where = ("data", "axes fraction")
        axes.annotate(line[0], (line[1], 1), xycoords=where, xytext=(0, 4), textcoords="offset points", ha="center")
    axes.margins(x=0.08)
    _name_axis(canvas, [name for name, _, _ in items])
    linear_ticks(axes.xaxis, most=5)
    axes.set_xlabel(label)
    return canvas.svg(key, title, what)


def flips(key: str, title: str, items: Sequence[tuple[str, float, float]], what: str) -> Html:
    """For each name the share of rows that became wrong, to the left, and right, to the right."""
    canvas = Canvas(88 + 24 * max(2, len(items)), left=_NAMES, top=32)
    axes, places = canvas.axes, range(len(items))
    axes.barh(places, [-item[1] for item in items], color=SERIES[1], height=0.62, hatch="///", label="became wrong")
    axes.barh(places, [item[2] for item in items], color=SERIES[0], height=0.62, label="became right")
    axes.axvline(0, color=MUTED, linewidth=1.2)
    most = max(max(wrong, right) for _, wrong, right in items) or 1e-3
    axes.set_xlim(-most * 1.08, most * 1.08)
    _name_axis(canvas, [item[0] for item in items])
    linear_ticks(axes.xaxis, lambda value, _: f"{short(abs(value) * 100)}%", most=4)
    axes.set_xlabel("share of rows")
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2, borderaxespad=0.2)
    return canvas.svg(key, title, what)


def _name_axis(canvas: Canvas, names: Sequence[str]) -> None:
    """Names from the top down."""
    axes = canvas.axes
    axes.set_ylim(max(2, len(names)) - 0.4, -0.6)
    axes.set_yticks(range(len(names)), [canvas.placeholder(name, 20) for name in names])
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
