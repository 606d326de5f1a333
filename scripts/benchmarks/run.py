"""Let the sides take turns and write the table of medians: see scripts/bench."""

import argparse
import datetime
import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from worker import PAIRS

HERE = Path(__file__).parent
README, FRONT_PAGE = HERE / "README.md", HERE.parents[1] / "README.md"
M = 128_000_000  # logits of the big array
PAIR = 64 * 262_144 / 1e9
HEAD = 2 * 256 * 512 * 262_144
SAMPLED = 2 * 512 * 256 * 8192
LAYER = 2 * 512 * 2048 * 131_072
ITEMS = 2 * 10_000 * 128 * 1_000_000

TYPES = (("float32", "f32"), ("bfloat16", "bf16"), ("float16", "f16"))

# title, case, limit, unit, amount of one run in that unit
ROWS = [
    ("softmax, float32 (128 x 1,000,000)", "softmax f32", "limit f32", "G logits/s", M / 1e9),
    ("softmax, bfloat16", "softmax bf16", "limit bf16", "G logits/s", M / 1e9),
    ("softmax, float16", "softmax f16", "limit f16", "G logits/s", M / 1e9),
    ("+ rank, ties, argmax, entropy, float32", "by-products f32", "softmax f32", "G logits/s", M / 1e9),
    ("+ rank, ties, argmax, entropy, bfloat16", "by-products bf16", "softmax bf16", "G logits/s", M / 1e9),
    ("+ rank, ties, argmax, entropy, float16", "by-products f16", "softmax f16", "G logits/s", M / 1e9),
    ("`evaluate` on a cached file, float32 (512 x 1,000,000)", "file f32", "mapped f32", "G logits/s", 4 * M / 1e9),
    ("`evaluate` on a cached file, bfloat16", "file bf16", "mapped bf16", "G logits/s", 4 * M / 1e9),
    (
        "`bigvocab eval` on a cached file, float32 (1,024 x 1,000,000)",
        "command f32",
        "memory f32",
        "G logits/s",
        8 * M / 1e9,
    ),
    ("`bigvocab eval` on a cached file, bfloat16", "command bf16", "memory bf16", "G logits/s", 8 * M / 1e9),
    (
        "two models: losses, KL both ways, tops, float32 (64 x 262,144)",
        "compare f32",
        "compare limit f32",
        "G pairs/s",
        PAIR,
    ),
    ("two models, bfloat16", "compare bf16", "compare limit bf16", "G pairs/s", PAIR),
    ("two models, float16", "compare f16", "compare limit f16", "G pairs/s", PAIR),
    (
        "+ JS, TV, mean difference of log probabilities, float32",
        "compare js f32",
        "compare limit f32",
        "G pairs/s",
        PAIR,
    ),
    (
        "+ JS, TV, mean difference of log probabilities, bfloat16",
        "compare js bf16",
        "compare limit bf16",
        "G pairs/s",
        PAIR,
    ),
    *(
        (
            f"two models, {more}float32 ({rows:,} x {classes:,})",
            f"compare {case}f32 {name}",
            f"compare limit f32 {name}",
            "G pairs/s",
            rows * classes / 1e9,
        )
        for name, (rows, classes) in PAIRS.items()
        for more, case in (("", ""), ("with JS, TV and mean difference, ", "js "))
    ),
    (
        "two layers on the same hidden states (256 x 512 x 262,144)",
        "compare heads",
        "compare heads limit",
        "GFLOP/s",
        2 * HEAD / 1e9,
    ),
    ("softmax, soft labels, float32 (64 x 1,000,000)", "soft labels f32", "soft labels limit", "G logits/s", M / 2e9),
    ("sigmoid summed over classes, float32", "sigmoid sum f32", "limit f32", "G logits/s", M / 1e9),
    ("sigmoid elementwise, float32 (32 x 1,000,000)", "sigmoid f32", None, "G logits/s", M / 4e9),
    ("linear head, float32 (256 x 512 x 262,144)", "head f32", "matmul f32", "GFLOP/s", HEAD / 1e9),
    ("linear head, bfloat16", "head bf16", "matmul f32", "GFLOP/s", HEAD / 1e9),
    ("softmax without 200 classes of each row, float32", "without f32", "softmax f32", "G logits/s", M / 1e9),
    ("softmax without 200 classes of each row, bfloat16", "without bf16", "softmax bf16", "G logits/s", M / 1e9),
    *[
        (f"softmax with {what}, {name}", f"{case} {short}", f"softmax {short}", "G logits/s", M / 1e9)
        for what, case in (
            ("label smoothing", "smoothed"),
            ("label smoothing and class weights", "class weights"),
            ("softcap", "capped"),
        )
        for name, short in TYPES
    ],
    *[
        (
            f"softmax with label smoothing, {name} ({shape})",
            f"smoothed {short}",
            f"softmax {short}",
            "G logits/s",
            0.064,
        )
        for shape, size in (("2,000 x 32,000", "32k"), ("500 x 128,000", "128k"))
        for name, short in ((name, f"{size} {short}") for name, short in TYPES)
    ],
    *[
        (
            f"{kind} layer, {name} states (512 x 2,048 x 131,072)",
            f"states {short}, layer {kind}",
            f"states {short}, layer bf16",
            "GFLOP/s",
            LAYER / 1e9,
        )
        for name, short in TYPES[:2]
        for kind in ("Q8_0", "Q6_K")
    ],
    *[
        (
            f"layer stored (D, V), {name} (512 x 2,048 x 131,072)",
            f"turned {short}",
            f"straight {short}",
            "GFLOP/s",
            LAYER / 1e9,
        )
        for name, short in TYPES[:2]
    ],
    ("opening a model's folder with a shard of 5 GB", "opening large", "opening small", "openings/s", 1.0),
    *(
        (
            f"top 100 of {classes:,} classes, {kind}",
            f"kept {name} {classes}",
            f"alone {name} {classes}",
            "G logits/s",
            M / 1e9,
        )
        for kind, name in (("float32", "f32"), ("bfloat16", "bf16"))
        for classes in (32_768, 131_072, 1_000_000)
    ),
    *(
        (
            f"metrics with calibration, {kind} (976 x 131,072)",
            f"calibration {name}",
            f"default {name}",
            "G logits/s",
            M / 1e9,
        )
        for kind, name in (("float32", "f32"), ("bfloat16", "bf16"))
    ),
    ("rankings, k = 100 (10,000 x 128 x 1,000,000)", "ranking f32", "items f32", "GFLOP/s", ITEMS / 1e9),
    ("log-uniform, 8,192 unique of 1,000,000", "log-uniform", None, "M draws/s", 8192 / 1e6),
    ("fixed unigram, list of 1,000,000 weights: build (TensorFlow: eager)", "unigram", None, "builds/s", 1.0),
    ("the same from an array (TensorFlow: a list, tf.function)", "unigram graph", None, "builds/s", 1.0),
    ("sampled softmax (512 x 256, 8,192 of 1,000,000)", "sampled softmax", None, "GFLOP/s", SAMPLED / 1e9),
    ("NCE (512 x 256, 8,192 of 1,000,000)", "nce", None, "GFLOP/s", SAMPLED / 1e9),
]

ON_FRONT_PAGE = ("softmax f32", "softmax bf16", "by-products f32", "head f32", "log-uniform", "sampled softmax")


PEERS = ("torch", "tf", "numpy", "faiss")


class Side:
    """A process that runs cases when told to."""

    def __init__(self, python, script):
        self._process = subprocess.Popen(
            [python, str(HERE / script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            stderr=subprocess.DEVNULL if script == "tensorflow.py" else None,
        )

    def run(self, case):
        """Seconds of one run; None where this side has no such case."""
        self._process.stdin.write(case + "\n")
        answer = self._process.stdout.readline().strip()
        if not answer:
            raise SystemExit(f"bench: a side ended during {case!r}")
        return None if answer == "none" else float(answer)

    def close(self):
        self._process.stdin.close()
        self._process.wait()


def measured(sides, case, limit, rounds):
    """Median seconds of each side, and of the limit, taken in turns."""
    turns = [(name, side, case) for name, side in sides.items()]
    if limit:
        turns.append(("limit", sides["ours"], limit))
    times = {}
    for _ in range(rounds):
        for name, side, what in turns:
            seconds = side.run(what)
            if seconds is not None:
                times.setdefault(name, []).append(seconds)
                time.sleep(0.3)  # OpenMP threads of the last side spin for 0.2 s
    return {name: statistics.median(values) for name, values in times.items()}


def table(results):
    lines = [
        "| work | limit | bigvocab | of limit | PyTorch | TensorFlow | NumPy | faiss | to the fastest peer |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for title, _, limit, unit, amount, times in results:
        rate = {name: amount / seconds for name, seconds in times.items()}
        peers = [rate[name] for name in PEERS if name in rate]

        def cell(name, rate=rate):
            return f"{rate[name]:.3g}" if name in rate else "-"

        share = f"{rate['ours'] / rate['limit']:.0%}" if limit else "-"
        ahead = f"{rate['ours'] / max(peers):.1f} x" if peers else "-"
        shown = f"{cell('limit')} ({limit})" if limit else "-"
        lines.append(
            f"| {title} | {shown} | {cell('ours')} {unit} | {share} | {' | '.join(map(cell, PEERS))} | {ahead} |"
        )
    return "\n".join(lines)


def short_table(results):
    """The few rows of the front page, without the limits."""
    chosen = [row for row in results if row[1] in ON_FRONT_PAGE]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(chosen).splitlines()]
    return "\n".join(
        f"| {' | '.join([row[0], row[2], *row[4:6], row[8]])} |" if i != 1 else "|---|---|---|---|---|"
        for i, row in enumerate(rows)
    )


def put(text, mark, path):
    """Put text between two marks of a README."""
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    before, rest = path.read_text().split(begin)
    path.write_text(before + begin + "\n" + text + "\n" + end + rest.split(end)[1])


def machine():
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    cores = len(os.sched_getaffinity(0))
    return f"{cpu}, {cores} cores"


def peer_version(python, package):
    code = f"import importlib.metadata as m; print(m.version('{package}'))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="measure only rows whose title has this text")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if options.write and (options.only or options.no_peers):
        parser.error("--write: the tables need all rows and all sides")
    sides = {"ours": Side(sys.executable, "ours.py")}
    used = [f"Python {platform.python_version()}"]
    used += [f"{name} {importlib.metadata.version(name)}" for name in ("bigvocab", "numba", "numpy")]
    if not options.no_peers:
        sides |= {
            "torch": Side(os.environ["BENCH_TORCH"], "pytorch.py"),
            "tf": Side(os.environ["BENCH_TF"], "tensorflow.py"),
            "numpy": Side(sys.executable, "plain.py"),
            "faiss": Side(os.environ["BENCH_FAISS"], "inner_products.py"),
        }
        used.append(f"torch {peer_version(os.environ['BENCH_TORCH'], 'torch')}")
        used.append(f"faiss-cpu {peer_version(os.environ['BENCH_FAISS'], 'faiss-cpu')}")
        used.append(f"tensorflow-cpu {peer_version(os.environ['BENCH_TF'], 'tensorflow-cpu')}")
    results = []
    for title, case, limit, unit, amount in ROWS:
        if options.only in title:
            results.append((title, case, limit, unit, amount, measured(sides, case, limit, options.rounds)))
            print(table(results[-1:]).splitlines()[-1], file=sys.stderr)
    for side in sides.values():
        side.close()
    note = f"{machine()}; {', '.join(used)}; medians of {options.rounds} runs in turns; {datetime.date.today()}"
    text = f"{table(results)}\n\n{textwrap.fill(note, 100, break_on_hyphens=False)}"
    print(text)
    if options.write:
        put(text, "bench", README)
        put(short_table(results), "speed", FRONT_PAGE)


if __name__ == "__main__":
    main()
