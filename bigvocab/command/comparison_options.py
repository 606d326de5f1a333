"""The options of `bigvocab compare`: those of a side three times, for both sides, the reference and candidates."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import click

from bigvocab.catalogue import COMPARISON_METRICS, DEFAULT_COMPARISON_METRICS
from bigvocab.command.options import (
    BIG_JOBS,
    COLUMNS,
    DATA,
    ENGINES,
    FORMAT,
    MEASURES,
    REPORT,
    REPORT_EVERY,
    RESULT,
    RUN,
    STATE,
    Classes,
    Number,
    conditions_of,
    ks_of,
    option,
    shard_of,
)

BOTH = "Both sides; of one alone with --reference-... or --candidate-..."
REFERENCE, CANDIDATES = "The reference alone", "Candidates alone, [NAME=]VALUE"
_SHOWN = ("inputs", "weights", "biases", "model")  # of one side; all others are there, but not in the help

# Name, how its value is called, its type, whether files may be given one after the other, help.
_SIDE: tuple[tuple[str, str, Any, bool, str], ...] = (
    ("inputs", "PATH", str, True, "Hidden states, in place of logits."),
    ("weights", "PATH", str, True, "Output layer for them."),
    ("biases", "PATH", str, False, "Biases of that layer."),
    ("model", "PATH", str, False, "A model's folder, or GGUF file: gives layer, norm, scale, softcap, classes."),
    ("hidden-states", "WHERE", click.Choice(["before-norm", "after-norm"]), False, "Of --model; told from the data."),
    ("layer", "I", click.INT, False, "Which layer of states (T, L, D); default: the last."),
    ("final-norm", "NAME", click.Choice(["rms", "layer"]), False, "Norm before that layer: rms or layer."),
    ("norm-weight", "PATH", str, False, "Weight of that norm."),
    ("norm-bias", "PATH", str, False, "Bias of that norm (layer)."),
    ("norm-epsilon", "E", Number(0), False, "Added under that norm's root; default 1e-6."),
    ("logit-scale", "S", Number(0, min_open=True), False, "Multiplies all logits."),
    ("softcap", "C", Number(0, min_open=True), False, "Then logits become C tanh(x / C)."),
    ("shape", "N,V", str, False, "Shape of raw binary; -1,V: all rows there are."),
    ("dtype", "TYPE", str, False, "float16, bfloat16, float32 or float64 (raw)."),
    ("offset", "BYTES", click.IntRange(0), False, "Bytes to skip in each raw file."),
)


def split_name(text: str) -> tuple[str | None, str]:
    """(name, value) of [NAME=]VALUE; a file whose own name has a = is found first.

    >>> split_name("q8=runs/q8.npy"), split_name("runs/lr=3/q8.npy")
    (('q8', 'runs/q8.npy'), (None, 'runs/lr=3/q8.npy'))
    """
    name, equals, rest = text.partition("=")
    if not equals or not name or "/" in name or os.sep in name or os.path.exists(text):
        return None, text
    return name, rest


def _named(kind: Any) -> Callable[..., Any]:
    """What reads [NAME=]VALUE, any number of times: nothing, one value, or values by name."""

    def read(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> Any:
        found: dict[str | None, Any] = {}
        for text in values:
            name, value = split_name(text)
            if name in found:
                if name is None:
                    raise click.BadParameter(f"got {found[None]!r} and {text!r}: several need names, NAME=VALUE.")
                raise click.BadParameter(f"{name!r} is named twice.")
            if name is not None and (not name.strip() or name == "reference"):
                raise click.BadParameter(f"got the name {name!r}, expected one that tells a candidate apart.")
            if not value:
                raise click.BadParameter(f"got {text!r}, expected a value after the =.")
            found[name] = value if kind is str else kind.convert(value, param, ctx)
        if None in found and len(found) > 1:
            raise click.BadParameter(f"{found[None]!r} has no name, but others have: expected NAME=VALUE for each.")
        return None if not found else found[None] if None in found else found

    return read


def _metrics(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    if unknown := [name for name in names if name not in COMPARISON_METRICS]:
        raise click.BadParameter(f"{unknown[0]!r} is not one of {', '.join(COMPARISON_METRICS)}.")
    return names


def _sides() -> list[Callable[[Any], Any]]:
    made = []
    for section, prefix in ((BOTH, ""), (REFERENCE, "reference-"), (CANDIDATES, "candidate-")):
        for name, value, kind, several, text in _SIDE:
            given: dict[str, Any] = {"type": kind, "hidden": bool(prefix) and name not in _SHOWN}
            if section == CANDIDATES:
                given |= {"type": str, "multiple": True, "callback": _named(kind)}
            elif several:
                given["multiple"] = True
            made.append(option(section, f"--{prefix}{name}", metavar=value, help=text, **given))
    return made


# fmt: off
COMPARE = [
    option(DATA, "--reference", metavar="PATH", multiple=True,
           help="Logits, or a llama.cpp logits file: file, quoted glob or folder."),
    option(DATA, "--candidate", metavar="[NAME=]PATH", multiple=True, callback=_named(str),
           help="What is compared with it; repeatable, with names."),
    option(DATA, "--labels", metavar="PATH", help="Labels: Arrow IPC, Parquet, .npy; llama.cpp files have theirs."),
    option(DATA, "--shift-labels", is_flag=True,
           help="Row t of a sequence is scored on label t + 1; its last row is ignored."),
    option(DATA, "--score-from", type=click.IntRange(0), metavar="K",
           help="Rows before position K of their sequence are ignored."),
    option(DATA, "--num-classes", type=Classes(1), metavar="V|tokenizer",
           help="Classes that count on all sides; others are padding."),
    option(DATA, "--vocab-shards", is_flag=True, help="Several files are split by classes, not rows."),
    *_sides(),
    option(COLUMNS, "--label-column", metavar="NAME", help="Class of the row."),
    option(COLUMNS, "--group-column", metavar="NAME", help="Group of the row: values for each group."),
    option(COLUMNS, "--cluster-column", metavar="NAME",
           help="Rows of one cluster are not independent; default: llama.cpp's windows."),
    option(COLUMNS, "--weight-column", metavar="NAME", hidden=True,
           help="Refused: percentiles and flips have no weights."),
    option(MEASURES, "--ignore-index", type=int, metavar="ID", multiple=True,
           help="Rows with this label do not count; repeatable."),
    option(MEASURES, "--metrics", metavar="NAMES", default=",".join(DEFAULT_COMPARISON_METRICS), callback=_metrics,
           show_default=True,
           help=f"Of {', '.join(COMPARISON_METRICS)}. js, tv, tops and logit_difference look at rows twice: rows "
                "beyond the cache are read twice, and a layer makes those of more than 1,048,576 classes twice."),
    option(MEASURES, "--top-k", metavar="K,...", default="1,5", callback=ks_of, show_default=True,
           help="The k of overlap, at most 64."),
    option(MEASURES, "--llama-cpp", is_flag=True, help="llama.cpp's own table as well, to its last digit."),
    option(MEASURES, "--nonfinite", type=click.Choice(["error", "skip", "keep"]), metavar="WAY", default="error",
           show_default=True, help="Rows with NaN or +inf: error, skip or keep."),
    *RUN,
    *STATE,
    *ENGINES,
    option(BIG_JOBS, "--vocab-shard", metavar="I/N", callback=shard_of, hidden=True,
           help="Refused: values of ranges of classes do not merge; --vocab-shards reads files split so."),
    option(RESULT, "--output", metavar="PATH", help="Write the values of every row, as Parquet."),
    REPORT,
    REPORT_EVERY,
    option(RESULT, "--html", metavar="PATH", help="Write the report as a page (needs bigvocab[html])."),
    FORMAT,
    option(RESULT, "--fail-if", "conditions", metavar="CONDITION", multiple=True, callback=conditions_of,
           help="Exit with 3 if it holds: 'kl.mean > 0.01', 'candidates.q4.kl.max > 1'; names as in JSON; repeatable."),
]
# fmt: on

COMPARE_EPILOG = """\b
Examples:
  bigvocab compare --reference f16.npy --candidate q8=q8.npy --candidate q4=q4.npy \\
      --labels labels.parquet
  bigvocab compare --reference base.kld --candidate logits.npy --llama-cpp
  bigvocab compare --inputs hidden.npy --reference-weights f16.npy \\
      --candidate-weights q4=q4.npy --fail-if 'kl.mean > 0.01'
"""
