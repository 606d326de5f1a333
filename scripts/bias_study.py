"""Mean sampled softmax loss against the exact one on data/kjv: a table, and a picture as plain SVG."""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

import bigvocab as bv

ROOT = Path(__file__).parents[1]
DATA = ROOT / "data" / "kjv"
JOB = {
    "inputs": DATA / "hidden.safetensors",
    "weights": f"{DATA / 'model.safetensors'}::lm_head.weight",
    "biases": f"{DATA / 'model.safetensors'}::lm_head.bias",
    "labels": DATA / "labels_hidden.parquet",
}
SAMPLERS = {"log-uniform": {}, "unigram": {"vocab_file": DATA / "vocab.txt"}}
COLOURS = {"log-uniform": "#0b6fb8", "unigram": "#c2410c"}
SIZES = [2**k for k in range(4, 13)]
Scale = Callable[[float], float]
BEGIN, END = "<!-- bias -->", "<!-- /bias -->"


def measure(seeds: int) -> tuple[bv.Report, dict[str, dict[int, list[float]]]]:
    """The exact report, and the means of the sampled loss by sampler, S and seed."""
    exact = bv.evaluate(**JOB, metrics="")
    means: dict[str, dict[int, list[float]]] = {}
    for sampler, options in SAMPLERS.items():
        job = JOB | options | {"loss": "sampled-softmax", "sampler": sampler}
        means[sampler] = {
            size: [bv.evaluate(**job, num_sampled=size, seed=(1, seed))["mean"] for seed in range(seeds)]
            for size in SIZES
        }
    return exact, means


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation over the seeds."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def table(exact: bv.Report, means: dict[str, dict[int, list[float]]], classes: int) -> str:
    """The values as a table in Markdown."""
    lines = ["| S | share of the classes | " + " | ".join(f"{name} | bias" for name in means) + " |"]
    lines.append("|---:|---:|" + "---:|---:|" * len(means))
    for size in SIZES:
        cells = []
        for by_size in means.values():
            mean, deviation = spread(by_size[size])
            cells += [f"{mean:.3f} ± {deviation:.4f}", f"{exact['mean'] - mean:.3f}"]
        lines.append(f"| {size:,} | {size / classes:.1%} | " + " | ".join(cells) + " |")
    lines.append("| all | 100% | " + " | ".join([f"**{exact['mean']:.3f}**", "0"] * len(means)) + " |")
    return "\n".join(lines)


# ---- the picture

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 68, 28, 64, 62
FONT = "font-family='system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif'"


def picture(exact: bv.Report, means: dict[str, dict[int, list[float]]], seeds: int, classes: int) -> str:
    """The curves with error bars, and the exact loss as a line."""
    top = 1.08 * exact["mean"]

    def x(size: float) -> float:
        low, high = math.log2(SIZES[0]) - 0.35, math.log2(SIZES[-1]) + 0.35
        return LEFT + (math.log2(size) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(loss: float) -> float:
        return HEIGHT - BOTTOM - loss / top * (HEIGHT - TOP - BOTTOM)

    size_of_it = f"viewBox='0 0 {WIDTH} {HEIGHT}' width='{WIDTH}' height='{HEIGHT}'"
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' {size_of_it} {FONT}>",
        "<title>Mean sampled softmax loss against the exact loss</title>",
        f"<rect width='{WIDTH}' height='{HEIGHT}' fill='#ffffff'/>",
        text(LEFT, 26, "Sampled softmax underestimates the loss", 17, "#111827", "start", "600"),
        text(
            LEFT, 46, f"{exact['rows']:,} rows, {classes:,} classes; bars: ± 1 sd over {seeds} seeds", 12.5, "#6b7280"
        ),
    ]
    for tick in range(int(top) + 1):
        parts.append(line(LEFT, y(tick), WIDTH - RIGHT, y(tick), "#e5e7eb" if tick else "#6b7280", 1))
        parts.append(text(LEFT - 10, y(tick) + 4, str(tick), 12.5, "#374151", "end"))
    for size in SIZES:
        parts.append(line(x(size), y(0), x(size), y(0) + 5, "#6b7280", 1))
        parts.append(text(x(size), y(0) + 21, f"{size:,}", 12.5, "#374151", "middle"))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 16, "candidates S (log scale)", 13, "#374151", "middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = text(22, middle, "mean loss (nats)", 13, "#374151", "middle")
    parts.append(f"<g transform='rotate(-90 22 {middle:.1f})'>{turned}</g>")
    parts.append(line(LEFT, y(exact["mean"]), WIDTH - RIGHT, y(exact["mean"]), "#111827", 1.5, "6 4"))
    for name, by_size in means.items():
        parts += curve(by_size, COLOURS[name], x, y)
    return "\n".join([*parts, *legend(exact, means), "</svg>"]) + "\n"


def curve(by_size: dict[int, list[float]], colour: str, x: Scale, y: Scale) -> list[str]:
    """A line through the means, a bar of one standard deviation either way and a dot at each."""
    points = [(x(size), *spread(losses)) for size, losses in by_size.items()]
    joined = " ".join(f"{at:.1f},{y(mean):.1f}" for at, mean, _ in points)
    parts = [f"<polyline points='{joined}' fill='none' stroke='{colour}' stroke-width='2' stroke-linejoin='round'/>"]
    for at, mean, deviation in points:
        if not math.isnan(deviation):
            low, high = y(mean - deviation), y(mean + deviation)
            parts += [line(at, low, at, high, colour, 1.5), line(at - 4, low, at + 4, low, colour, 1.5)]
            parts.append(line(at - 4, high, at + 4, high, colour, 1.5))
        parts.append(f"<circle cx='{at:.1f}' cy='{y(mean):.1f}' r='3.5' fill='{colour}'/>")
    return parts


def legend(exact: bv.Report, means: Iterable[str]) -> list[str]:
    """What the lines are, at the lower right."""
    entries = [(f"exact, {exact['mean']:.3f}", "#111827", "6 4"), *((name, COLOURS[name], "") for name in means)]
    left, top = WIDTH - RIGHT - 190, HEIGHT - BOTTOM - 26 - 24 * len(entries)
    parts = [
        f"<rect x='{left - 14}' y='{top - 4}' width='196' height='{24 * len(entries) + 10}' rx='5' fill='#ffffff' "
        "stroke='#d1d5db'/>"
    ]
    for i, (name, colour, dashes) in enumerate(entries):
        at = top + 15 + 24 * i
        parts.append(line(left, at, left + 34, at, colour, 2 if not dashes else 1.5, dashes))
        if not dashes:
            parts.append(f"<circle cx='{left + 17}' cy='{at}' r='3.5' fill='{colour}'/>")
        parts.append(text(left + 44, at + 4, name, 13, "#111827"))
    return parts


def line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float, dashes: str = "") -> str:
    """A straight line."""
    dashed = f" stroke-dasharray='{dashes}'" if dashes else ""
    ends = f"x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}'"
    return f"<line {ends} stroke='{colour}' stroke-width='{width}'{dashed}/>"


def text(x: float, y: float, words: str, size: float, colour: str, anchor: str = "start", weight: str = "400") -> str:
    """Words at a place."""
    style = f"font-size='{size}' fill='{colour}' text-anchor='{anchor}' font-weight='{weight}'"
    return f"<text x='{x:.1f}' y='{y:.1f}' {style}>{words}</text>"


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=8, help="draws of each kind, two or more (default 8)")
    parser.add_argument("--write", action="store_true", help="put the table into bigvocab/sampling/README.md")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error(f"--seeds: got {options.seeds}, expected 2 or more: error bars need them")
    exact, means = measure(options.seeds)
    classes = bv.open_matrix(JOB["weights"]).shape[0]
    found = table(exact, means, classes)
    print(found)
    (DATA / "bias.svg").write_text(picture(exact, means, options.seeds, classes))
    if options.write:
        readme = ROOT / "bigvocab" / "sampling" / "README.md"
        before, rest = readme.read_text().split(BEGIN)
        readme.write_text(before + BEGIN + "\n" + found + "\n" + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
