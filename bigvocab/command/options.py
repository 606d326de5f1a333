"""The options of the commands: how each is read from text, where it stands in the help, and what the help says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from bigvocab.catalogue import (
    DEFAULT_LOSS,
    DEFAULT_METRICS,
    DEFAULT_SAMPLER,
    LOSSES,
    METRICS,
    MOST_KEPT,
    SAMPLERS,
    TIES,
    enumerated,
)
from bigvocab.errors import BigvocabError, Keyword

if TYPE_CHECKING:
    from bigvocab.reports.fail_if import Condition


class SectionOption(click.Option):
    """An option that stands under a heading of its own in the help."""

    def __init__(self, *args: Any, section: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section

    def get_help_extra(self, ctx: click.Context) -> Any:
        """What click adds to the help, except ranges: the help says them in words."""
        extra: Any = super().get_help_extra(ctx)
        extra.pop("range", None)
        return extra


# ---- kinds of options


def _option(section: str, *names: str, **kwargs: Any) -> Callable[[Any], Any]:
    return click.option(*names, cls=SectionOption, section=section, **kwargs)


class _Number(click.FloatRange):
    """A finite number in a range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if number - number != 0:
            self.fail(f"{value} is no finite number.", param, ctx)
        return number


class _Classes(click.IntRange):
    """A number of classes, or the word that stands for that of the tokenizer."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "tokenizer" else super().convert(value, param, ctx)


def _metrics(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    if unknown := [name for name in names if name not in METRICS]:
        raise click.BadParameter(f"{unknown[0]!r} is not one of {', '.join(METRICS)}.")
    return names


def _ks(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        ks = tuple(dict.fromkeys(int(k) for k in value.split(",")))
    except ValueError:
        ks = (0,)
    if min(ks) < 1:
        raise click.BadParameter(f"expected whole numbers from 1 on, such as 1,5, got {value!r}.")
    return ks


def _shard(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    first, _, second = value.partition("/")
    pair = (int(first), int(second)) if first.isdecimal() and second.isdecimal() else (0, 0)
    if not 1 <= pair[0] <= pair[1]:
        raise click.BadParameter(f"expected I/N, such as 2/8, with I from 1 to N, got {value!r}.")
    return pair


def _number_or_path(ctx: click.Context, param: click.Parameter, value: str | None) -> float | str | None:
    try:
        return None if value is None else float(value)
    except ValueError:
        return value


def _seed(ctx: click.Context, param: click.Parameter, value: str | None) -> int | tuple[int, int] | None:
    if value is None:
        return None
    try:
        seeds = [int(part) for part in value.split(",")]
    except ValueError:
        seeds = []
    if len(seeds) not in (1, 2) or not all(-(2**63) <= seed < 2**63 for seed in seeds):
        raise click.BadParameter(f"expected two whole numbers such as 1,7, or one, got {value!r}.")
    return seeds[0] if len(seeds) == 1 else (seeds[0], seeds[1])


def _conditions(ctx: click.Context, param: click.Parameter, texts: Sequence[str]) -> list[Condition]:
    from bigvocab.reports.fail_if import parse_condition

    return [as_usage("--fail-if", parse_condition, text) for text in texts]


# For options that stand in other modules.
option, Number, Classes, ks_of, shard_of, conditions_of = _option, _Number, _Classes, _ks, _shard, _conditions


def as_usage(option: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a check of the library; what it refuses here is a wrong command, not wrong data."""
    try:
        return function(*args, **kwargs)
    except BigvocabError as error:
        raise click.BadParameter(error.problem, param_hint=f"'{option}'") from None


def usage(fault: BigvocabError) -> str:
    """What is wrong with options together, in the words of the command."""
    options = [f"'--{part.name.replace('_', '-')}'" if isinstance(part, Keyword) else part for part in fault.parts]
    values = [f" {part.value}" if isinstance(part, Keyword) and part.value else "" for part in fault.parts]
    text = "".join(a.removesuffix("'") + b + "'" * (b != "") if b else a for a, b in zip(options, values, strict=True))
    return text.replace("': ", "' ", 1) + "."


def with_options(options: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """A decorator that adds all of `options` to a command, in order."""

    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


# ---- options

_INT32 = click.IntRange(1, 2**31 - 1)
DATA, COLUMNS, LOSS, MEASURES = "Data", "Columns of the labels", "Loss", "Metrics"
SAMPLING = "Sampled losses"
RUNNING, BIG_JOBS, RESULT = "Running", "Big jobs", "Result"
# fmt: off
RAW = [
    _option(DATA, "--shape", metavar="N,V", help="Shape of raw binary; -1,V: all rows there are."),
    _option(DATA, "--dtype", metavar="TYPE", help="float16, bfloat16, float32 or float64 (raw)."),
    _option(DATA, "--offset", type=click.IntRange(0), metavar="BYTES", help="Bytes to skip in each raw file."),
]
FORMAT = _option(RESULT, "--format", "form", type=click.Choice(["table", "json"]), default="table",
                 help="A table for people, or JSON.")
REPORT = _option(RESULT, "--report", metavar="PATH", help="Write the report, as JSON.")
HTML = _option(RESULT, "--html", metavar="PAGE", help="Write the report as a page (needs bigvocab[html]).")
FAIL_IF = _option(RESULT, "--fail-if", "conditions", metavar="CONDITION", multiple=True, callback=_conditions,
                  help="Exit with 3 if it holds: 'perplexity > 20', 'accuracy.1 < 0.3'; names as in JSON; repeatable.")
STATE = [
    _option(BIG_JOBS, "--state", metavar="PATH", help="Keep progress and sums in this file, to resume or to merge."),
    _option(BIG_JOBS, "--resume", is_flag=True, help="Continue from --state if it exists."),
    _option(BIG_JOBS, "--shard", metavar="I/N", callback=_shard, help="Only the I-th of N ranges of rows."),
]
ENGINES = [
    _option(BIG_JOBS, "--engine", type=click.Choice(["local", "ray"]), metavar="NAME",
            help="local: --workers processes of this machine; ray: tasks of Ray."),
    _option(BIG_JOBS, "--workers", type=click.IntRange(1), metavar="K", help="Processes that share the rows."),
    _option(BIG_JOBS, "--address", metavar="HOST", help="Of a Ray cluster; default RAY_ADDRESS, or a Ray of our own."),
]
JOBS = [
    *STATE,
    _option(BIG_JOBS, "--vocab-shard", metavar="I/N", callback=_shard, help="Only the I-th of N ranges of classes."),
    _option(BIG_JOBS, "--first-class", type=click.IntRange(0), metavar="C",
            help="The files hold a slice: classes from C on, of --num-classes."),
    _option(BIG_JOBS, "--save-label-logits", metavar="PATH", help="First pass of slices: the labels' logits alone."),
    _option(BIG_JOBS, "--label-logits", metavar="PATH", multiple=True, help="Those of all slices, for ranks."),
    *ENGINES,
]
RUN = [
    _option(RUNNING, "--chunk-rows", type=click.IntRange(1), metavar="N", help="Rows of a block; changes no value."),
    _option(RUNNING, "--threads", type=click.IntRange(1), metavar="N", help="Default: all cores; changes no value."),
    _option(RUNNING, "--max-memory", metavar="512M", help="Most memory for mapped logits, at least 1M."),
    _option(RUNNING, "--quiet", "-q", is_flag=True, help="No progress bar and no messages."),
]
REPORT_EVERY = _option(RESULT, "--report-every", type=_Number(0), metavar="SECONDS",
                       help="Also write --report this often while the job runs.")
SAMPLER = _option(SAMPLING, "--sampler", type=click.Choice(list(SAMPLERS)), metavar="NAME",
                  help=f"{enumerated(SAMPLERS)}; default {DEFAULT_SAMPLER} (ids by falling frequency).")
VOCABULARY = [
    _option(SAMPLING, "--vocab-file", metavar="PATH", help="A word and its count per line, comma-separated (unigram)."),
    _option(SAMPLING, "--distortion", type=_Number(), metavar="P", help="Power of the counts (unigram); default 1."),
]
SEED = _option(
    SAMPLING, "--seed", metavar="A,B", callback=_seed, help="TensorFlow's two seeds, or the op's; default 0."
)
SAMPLING_OPTIONS = [
    SAMPLER,
    _option(
        SAMPLING, "--num-sampled", type=_INT32, metavar="S", help="Candidates to draw for each 512 rows."
    ),
    _option(SAMPLING, "--num-true", type=_INT32, metavar="T", help="True classes each row must have."),
    *VOCABULARY,
    SEED,
    _option(SAMPLING, "--candidates", metavar="PATH", help="One draw for all rows, of bigvocab sample."),
    _option(SAMPLING, "--exact", is_flag=True, help="Also the loss over all classes, and the bias."),
]
SAMPLE = [
    SAMPLER,
    _option(SAMPLING, "--num-sampled", type=_INT32, metavar="S", required=True, help="Candidates to draw."),
    _option(SAMPLING, "--range-max", type=click.IntRange(1, 2**62), metavar="V", help="Classes to draw from."),
    *VOCABULARY,
    SEED,
    _option(SAMPLING, "--step", type=click.IntRange(0, 2**40), metavar="K", help="Number of the call, from 0."),
    _option(DATA, "--true-classes", metavar="PATH", help="Labels: their expected counts are written as well."),
    _option(RESULT, "--output", metavar="PATH", required=True, help="Arrow file to write."),
]
ROWS = [
    _option(DATA, "--logits", multiple=True, metavar="PATH", help="Logits: file, quoted glob or folder; repeatable."),
    _option(DATA, "--labels", metavar="PATH", required=True, help="Labels: Arrow IPC, Parquet, .npy, .safetensors."),
    _option(DATA, "--inputs", multiple=True, metavar="PATH", help="Hidden states, in place of logits; repeatable."),
    _option(DATA, "--weights", multiple=True, metavar="PATH", help="Output layer for --inputs; repeatable."),
    _option(DATA, "--biases", metavar="PATH", help="Biases of the output layer."),
    _option(DATA, "--model", metavar="PATH",
            help="A model's folder, or GGUF file: gives layer, norm, scale, softcap and classes for --inputs."),
    _option(DATA, "--hidden-states", type=click.Choice(["before-norm", "after-norm"]), metavar="WHERE",
            help="before-norm or after-norm of --model; told from the data by default."),
    _option(DATA, "--layer", type=int, metavar="I",
            help="Which layer of states (T, L, D); default: the last, where labels are (T,)."),
    _option(DATA, "--shift-labels", is_flag=True,
            help="Row t of a sequence is scored on label t + 1; its last row is ignored."),
    _option(DATA, "--score-from", type=click.IntRange(0), metavar="K",
            help="Rows before position K of their sequence are ignored."),
    _option(DATA, "--final-norm", type=click.Choice(["rms", "layer"]), metavar="NAME",
            help="Norm of the hidden states before that layer: rms or layer; none by default."),
    _option(DATA, "--norm-weight", metavar="PATH", help="Weight of that norm, one per column; 1 by default."),
    _option(DATA, "--norm-bias", metavar="PATH", help="Bias of that norm (layer)."),
    _option(DATA, "--norm-epsilon", type=_Number(0), metavar="E", help="Added under that norm's root; default 1e-6."),
    _option(DATA, "--vocab-shards", is_flag=True, help="Several files are split by classes, not rows."),
    _option(DATA, "--shard-classes", metavar="50,50,28", help="Real classes of each of these; others are padding."),
    _option(DATA, "--transpose-weights", is_flag=True, help="The layer is stored (D, V)."),
    *RAW,
]
EVAL = [
    *ROWS,
    _option(COLUMNS, "--label-column", metavar="NAME", help="Class, list of classes, or soft labels, of the row."),
    _option(COLUMNS, "--probability-column", metavar="NAME", help="Probabilities of the listed classes."),
    _option(COLUMNS, "--weight-column", metavar="NAME", help="Weight of the row."),
    _option(COLUMNS, "--group-column", metavar="NAME", help="Group of the row: values for each group."),
    _option(COLUMNS, "--bytes-column", metavar="NAME", help="Bytes of text per label, for bits per byte."),
    _option(COLUMNS, "--position-column", metavar="NAME", help="Place in the sequence, from 0: loss by position."),
    _option(COLUMNS, "--cluster-column", metavar="NAME", help="Rows that depend on each other: errors over clusters."),
    _option(COLUMNS, "--text-column", metavar="NAME", help="Text to show with the worst rows."),
    _option(LOSS, "--loss", type=click.Choice(list(LOSSES)), metavar="NAME", default=DEFAULT_LOSS,
            help=f"{enumerated(LOSSES)}."),
    _option(COLUMNS, "--exclude-column", metavar="NAME", help="Lists of classes that do not exist for the row."),
    _option(COLUMNS, "--label-offset", type=int, metavar="N", help="Added to every label, and to --exclude-column."),
    _option(COLUMNS, "--label-dtype", metavar="TYPE", help="The labels are raw files of uint16, int32, ..."),
    _option(LOSS, "--ignore-index", type=int, multiple=True, metavar="ID",
            help="Rows with this label, as stored, count in no metric; repeatable."),
    _option(LOSS, "--exclude-classes", metavar="0,1,7|PATH", help="Classes that do not exist for any row."),
    _option(LOSS, "--label-smoothing", type=_Number(0, 1), metavar="E", help="Share spread over all classes."),
    _option(LOSS, "--class-weights", metavar="PATH", help="One weight per class (sparse-softmax)."),
    _option(LOSS, "--pos-weight", metavar="X|PATH", callback=_number_or_path,
            help="Weight of positives, or one per class (sigmoid)."),
    _option(LOSS, "--epsilon", type=_Number(0), metavar="E", help="Added inside the logarithms (log-loss)."),
    _option(LOSS, "--logit-scale", type=_Number(0, min_open=True), metavar="S", help="Multiplies all logits."),
    _option(LOSS, "--softcap", type=_Number(0, min_open=True), metavar="C", help="Then logits become C tanh(x / C)."),
    _option(LOSS, "--num-classes", type=_Classes(1), metavar="V|tokenizer",
            help="Classes that count; others are padding. tokenizer: those that the tokenizer of --model knows."),
    *SAMPLING_OPTIONS,
    _option(MEASURES, "--metrics", metavar="NAMES", default=",".join(DEFAULT_METRICS), callback=_metrics,
            show_default=True, help=f"Of {', '.join(METRICS)}, as they fit the loss."),
    _option(MEASURES, "--top-k", metavar="K,...", default="1,5", callback=_ks, show_default=True,
            help="The k of the accuracies and rankings."),
    _option(MEASURES, "--keep-top", type=click.IntRange(1, MOST_KEPT), metavar="K",
            help="Highest classes per row in --output (topk); default 10."),
    _option(MEASURES, "--ties", type=click.Choice(TIES), metavar="WAY",
            help="The label before, after or amid equal logits: optimistic (default), pessimistic, mean."),
    _option(MEASURES, "--class-counts", metavar="PATH", help="Training counts of the classes: loss by frequency, psp."),
    _option(MEASURES, "--nonfinite", type=click.Choice(["error", "skip", "keep"]), metavar="WAY", default="error",
            show_default=True, help="Rows with NaN or +inf: error, skip or keep."),
    *RUN,
    *JOBS,
    _option(RESULT, "--output", metavar="PATH", help="Write the loss of every row, as Parquet."),
    REPORT,
    HTML,
    REPORT_EVERY,
    FORMAT,
    FAIL_IF,
]
LABEL_LOGITS = [
    *ROWS,
    _option(COLUMNS, "--label-column", metavar="NAME", help="Class of the row."),
    _option(COLUMNS, "--label-offset", type=int, metavar="N", help="Added to every label."),
    _option(COLUMNS, "--label-dtype", metavar="TYPE", help="The labels are raw files of uint16, int32, ..."),
    _option(LOSS, "--ignore-index", type=int, multiple=True, metavar="ID", help="Rows with this label have no logit."),
    _option(LOSS, "--num-classes", type=click.IntRange(1), metavar="V", help="Classes of all slices together."),
    _option(BIG_JOBS, "--vocab-shard", metavar="I/N", callback=_shard, help="Only the I-th of N ranges of classes."),
    _option(BIG_JOBS, "--first-class", type=click.IntRange(0), metavar="C", help="The files hold classes from C on."),
    _option(RUNNING, "--threads", type=click.IntRange(1), metavar="N", help="Default: all cores."),
    _option(RUNNING, "--quiet", "-q", is_flag=True, help="No progress bar and no messages."),
    _option(RESULT, "--output", metavar="PATH", required=True, help="Arrow file to write, for --label-logits."),
]
PAGE = [
    _option(RESULT, "--html", metavar="PAGE", required=True, help="Page to write: one file, nothing loaded."),
]
MERGE = [
    _option(DATA, "--rows", type=click.IntRange(0), metavar="N", help="Fail unless all states have seen N rows."),
    _option(RESULT, "--output", metavar="PATH", help="The loss of every row, of states of ranges of classes."),
    REPORT,
    HTML,
    FORMAT,
    FAIL_IF,
]
# fmt: on

HELP = {"help_option_names": ["-h", "--help"]}
EPILOG = """\b
Example:
  bigvocab eval --logits logits.npy --labels labels.parquet
"""
EVAL_EPILOG = """\b
Examples:
  bigvocab eval --logits logits.npy --labels labels.parquet
  bigvocab eval --logits 'part-*.npy' --labels labels/ --group-column book
  bigvocab eval --logits logits.bin --shape 1000,262144 --dtype bfloat16 \\
      --labels labels.npy --fail-if 'perplexity > 20'
"""
SAMPLE_EPILOG = """\b
Examples:
  bigvocab sample --num-sampled 64 --range-max 50000 --seed 1,7 --output candidates.arrow
  bigvocab sample --sampler unigram --vocab-file vocab.txt --num-sampled 64 --output c.arrow
  bigvocab eval --loss sampled-softmax --candidates candidates.arrow \\
      --inputs hidden.npy --weights layer.npy --labels labels.arrow --exact
"""
LABEL_LOGITS_EPILOG = """\b
Examples:
  bigvocab label-logits --logits slice.npy --first-class 50000 --num-classes 200000 \\
      --labels labels.parquet --output 1.arrow
  bigvocab eval --logits slice.npy --first-class 50000 --num-classes 200000 \\
      --labels labels.parquet --label-logits 0.arrow --label-logits 1.arrow --state 1.state
"""
MERGE_EPILOG = """\b
Examples:
  bigvocab eval --logits 'part-*.npy' --labels labels/ --shard 2/8 --state 2.state
  bigvocab merge *.state --report report.json
"""
PAGE_EPILOG = """\b
Example:
  bigvocab page report.json --html report.html
"""
INSPECT_EPILOG = """\b
Examples:
  bigvocab inspect logits.npy labels.parquet
  bigvocab inspect model.safetensors::lm_head.weight
  bigvocab inspect logits.bin --shape 1000,262144 --dtype bfloat16
"""
