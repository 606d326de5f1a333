"""Sampled softmax loss and sampled ranking metrics against the exact ones on data/kjv: tables, and pictures as SVG."""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
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
README = ROOT / "bigvocab" / "sampling" / "README.md"
Means = dict[str, dict[int, list[float]]]  # by sampler, S and seed


@dataclass(frozen=True)
class Study:
    """One number of the report by sampler and S, beside the exact one.

    Attributes:
        name: what it is called.
        said: the same in a sentence.
        title: of its picture.
        axis: what stands beside it.
        exact: the exact number.
        means: the sampled ones.
        tick: between two lines of the picture.
        digits: behind the point, in the table.
    """

    name: str
    said: str
    title: str
    axis: str
    exact: float
    means: Means
    tick: float
    digits: int


def measure(seeds: int) -> tuple[bv.Report, list[Study]]:
    """The exact report, and what samples say of the loss and of the ranking."""
    asked = {"metrics": "ranking", "top_k": 10}
    exact = bv.evaluate(**JOB, **asked)
    reports: dict[str, dict[int, list[bv.Report]]] = {}
    for sampler, options in SAMPLERS.items():
        job = JOB | options | asked | {"loss": "sampled-softmax", "sampler": sampler}
        reports[sampler] = {
            size: [bv.evaluate(**job, num_sampled=size, seed=(1, seed)) for seed in range(seeds)] for size in SIZES
        }

    def study(name: str, metric: str, title: str, axis: str, tick: float, digits: int) -> Study:
        means = {
            sampler: {size: [one.value(metric) for one in found] for size, found in by_size.items()}
            for sampler, by_size in reports.items()
        }
        said = "softmax loss" if name == "loss" else name
        return Study(name, said, title, axis, exact.value(metric), means, tick, digits)

    return exact, [
        study("loss", "mean", "Sampled softmax underestimates the loss", "mean loss (nats)", 1.0, 4),
        study("recall@10", "ranking.recall.10", "Sampled recall@10 flatters the model", "recall@10", 0.2, 5),
        study("ndcg@10", "ranking.ndcg.10", "Sampled ndcg@10 flatters the model", "ndcg@10", 0.2, 5),
    ]


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation over the seeds."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def table(study: Study, classes: int) -> str:
    """The values as a table in Markdown."""
    lines = ["| S | share of the classes | " + " | ".join(f"{name} | bias" for name in study.means) + " |"]
    lines.append("|---:|---:|" + "---:|---:|" * len(study.means))
    for size in SIZES:
        cells = []
        for by_size in study.means.values():
            mean, deviation = spread(by_size[size])
            cells += [f"{mean:.3f} ± {deviation:.{study.digits}f}", f"{study.exact - mean:.3f}"]
        lines.append(f"| {size:,} | {size / classes:.1%} | " + " | ".join(cells) + " |")
    lines.append("| all | 100% | " + " | ".join([f"**{study.exact:.3f}**", "0"] * len(study.means)) + " |")
    return "\n".join(lines)


# ---- the picture

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 68, 28, 64, 62
FONT = "font-family='system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif'"


def picture(study: Study, rows: int, seeds: int, classes: int) -> str:
    """The curves with error bars, and the exact number as a line."""
    means = study.means
    top = 1.08 * max(study.exact, *(max(map(max, by_size.values())) for by_size in means.values()))

    def x(size: float) -> float:
        low, high = math.log2(SIZES[0]) - 0.35, math.log2(SIZES[-1]) + 0.35
        return LEFT + (math.log2(size) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(loss: float) -> float:
        return HEIGHT - BOTTOM - loss / top * (HEIGHT - TOP - BOTTOM)

    size_of_it = f"viewBox='0 0 {WIDTH} {HEIGHT}' width='{WIDTH}' height='{HEIGHT}'"
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' {size_of_it} {FONT}>",
        f"<title>Mean sampled {study.said} against the exact {study.said.split()[-1]}</title>",
        f"<rect width='{WIDTH}' height='{HEIGHT}' fill='#ffffff'/>",
        text(LEFT, 26, study.title, 17, "#111827", "start", "600"),
        text(LEFT, 46, f"{rows:,} rows, {classes:,} classes; bars: ± 1 sd over {seeds} seeds", 12.5, "#6b7280"),
    ]
    for number in range(int(top / study.tick + 1e-9) + 1):
        tick = number * study.tick
        parts.append(line(LEFT, y(tick), WIDTH - RIGHT, y(tick), "#e5e7eb" if number else "#6b7280", 1))
        parts.append(text(LEFT - 10, y(tick) + 4, f"{tick:g}", 12.5, "#374151", "end"))
    for size in SIZES:
        parts.append(line(x(size), y(0), x(size), y(0) + 5, "#6b7280", 1))
        parts.append(text(x(size), y(0) + 21, f"{size:,}", 12.5, "#374151", "middle"))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 16, "candidates S (log scale)", 13, "#374151", "middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = text(22, middle, study.axis, 13, "#374151", "middle")
    parts.append(f"<g transform='rotate(-90 22 {middle:.1f})'>{turned}</g>")
    parts.append(line(LEFT, y(study.exact), WIDTH - RIGHT, y(study.exact), "#111827", 1.5, "6 4"))
    for name, by_size in means.items():
        parts += curve(by_size, COLOURS[name], x, y)
    return "\n".join([*parts, *legend(study), "</svg>"]) + "\n"


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


def legend(study: Study) -> list[str]:
    """What the lines are, at the right: at the bottom where the curves rise, at the top where they fall."""
    entries = [(f"exact, {study.exact:.3f}", "#111827", "6 4"), *((name, COLOURS[name], "") for name in study.means)]
    falling = all(by_size[SIZES[0]][0] > study.exact for by_size in study.means.values())
    left, top = WIDTH - RIGHT - 190, TOP + 8 if falling else HEIGHT - BOTTOM - 26 - 24 * len(entries)
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
    parser.add_argument("--write", action="store_true", help="put the tables into bigvocab/sampling/README.md")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error(f"--seeds: got {options.seeds}, expected 2 or more: error bars need them")
    exact, studies = measure(options.seeds)
    classes = bv.open_matrix(JOB["weights"]).shape[0]
    for study in studies:
        found = table(study, classes)
        print(f"{study.name}\n\n{found}\n")
        mark = "" if study.name == "loss" else study.name.replace("@", "")
        name = f"bias_{mark}".strip("_")
        (DATA / f"{name}.svg").write_text(picture(study, exact["rows"], options.seeds, classes))
        if options.write:
            begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
            before, rest = README.read_text().split(begin)
            README.write_text(before + begin + "\n" + found + "\n" + end + rest.split(end)[1])


if __name__ == "__main__":
    main()
