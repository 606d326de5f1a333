"""The command `bigvocab`: a thin shell over the library, and the only place that imports click.

Nothing slow is imported before a command runs, so that --help is quick. An option that is not given is not passed on:
its default is the library's. Exit codes: 0 done, 1 the data is wrong or the work failed, 2 the command is wrong, 3 a
--fail-if held, 130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

import bigvocab
from bigvocab.errors import BigvocabError
from bigvocab.options import LOSSES, METRICS, SAMPLERS, default_metrics, eval_faults, raw_faults, sampler_faults

if TYPE_CHECKING:
    from bigvocab.conditions import Condition
    from bigvocab.report import Report

_ASCII = str.maketrans({"±": "+/-", "…": "~"})


# ---- how commands look, fail and print


class _Option(click.Option):
    """An option that stands under a heading of its own in the help."""

    def __init__(self, *args: Any, section: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class _Command(click.Command):
    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(ctx)) is not None:
                sections.setdefault(getattr(parameter, "section", "Help"), []).append(record)
        width = min(26, max(len(names) for records in sections.values() for names, _ in records))
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl([(f"{names:<{width}}", text) for names, text in records])


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what it may raise becomes one line and an exit code."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _fail("interrupted", 130)
        except MemoryError:
            _fail("error: out of memory; --max-memory, --chunk-rows and --threads bound what is used")
        except OSError as error:
            name = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
            _fail(f"error: {name}{error.strerror or error}")
        except (BigvocabError, TypeError) as error:
            if os.environ.get("BIGVOCAB_TRACEBACK"):
                raise
            _fail(f"error: {error}")


def _say(text: str) -> None:
    """One line on stderr."""
    from bigvocab.numerals import printable

    click.echo("bigvocab: " + printable(" ".join(text.splitlines())), err=True)


def _fail(text: str, code: int = 1) -> NoReturn:
    _say(text)
    raise click.exceptions.Exit(code)


def _print(text: str) -> None:
    """The result on stdout. A reader that has left is no error."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(_ASCII).encode(encoding, "backslashreplace").decode(encoding)
    try:
        click.echo(text)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # what is still buffered would raise it again when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_tables(items: Iterable[Any]) -> None:
    """What rich can print: in colours and as wide as the window on a terminal, as plain text elsewhere."""
    from bigvocab.report import plain_text

    if sys.stdout is None or not sys.stdout.isatty():
        _print(plain_text(items))
        return
    from rich.console import Console

    console = Console(highlight=False)
    console.width = min(console.width, 100)
    with console.capture() as captured:
        for item in items:
            console.print(item)
    _print(captured.get().rstrip("\n"))


# ---- kinds of options


def _option(section: str, *names: str, **kwargs: Any) -> Callable[[Any], Any]:
    return click.option(*names, cls=_Option, section=section, **kwargs)


class _Whole(click.IntRange):
    """A whole number from `min` on."""

    def _describe_range(self) -> str:
        return ""  # the help says it in words


class _Number(click.FloatRange):
    """A finite number in a range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if number - number != 0:
            self.fail(f"{value} is no finite number.", param, ctx)
        return number

    def _describe_range(self) -> str:
        return ""


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
    if len(seeds) not in (1, 2):
        raise click.BadParameter(f"expected two whole numbers such as 1,7, or one, got {value!r}.")
    return seeds[0] if len(seeds) == 1 else (seeds[0], seeds[1])


def _conditions(ctx: click.Context, param: click.Parameter, texts: Sequence[str]) -> list[Condition]:
    from bigvocab.conditions import parse_condition

    return [_as_usage("--fail-if", parse_condition, text) for text in texts]


def _as_usage(option: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call a check of the library; what it refuses here is a wrong command, not wrong data."""
    try:
        return function(*args)
    except BigvocabError as error:
        raise click.BadParameter(str(error), param_hint=f"'{option}'") from None


def _with(options: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


# ---- options

DATA, COLUMNS, LOSS, FIGURES = "Data", "Columns of the labels", "Loss", "Figures"
SAMPLING = "Sampled losses"
RUNNING, BIG_JOBS, RESULT = "Running", "Big jobs", "Result"
# fmt: off
RAW = [
    _option(DATA, "--shape", metavar="N,V", help="Shape of raw binary; -1,V: all rows there are."),
    _option(DATA, "--dtype", metavar="TYPE", help="float16, bfloat16, float32 or float64 (raw)."),
    _option(DATA, "--offset", type=_Whole(0), metavar="BYTES", help="Bytes to skip in each raw file."),
]
FORMAT = _option(RESULT, "--format", "form", type=click.Choice(["table", "json"]), default="table",
                 help="A table for people, or JSON.")
REPORT = _option(RESULT, "--report", metavar="PATH", help="Write the report, as JSON.")
FAIL_IF = _option(RESULT, "--fail-if", "conditions", metavar="CONDITION", multiple=True, callback=_conditions,
                  help="Exit with 3 if it holds: 'perplexity > 20', 'accuracy.1 < 0.3'; names as in JSON; repeatable.")
JOBS = [
    _option(BIG_JOBS, "--state", metavar="PATH", help="Keep what is done in this file: to merge, to go on."),
    _option(BIG_JOBS, "--resume", is_flag=True, help="Go on from --state, where it is there."),
    _option(BIG_JOBS, "--shard", metavar="I/N", callback=_shard, help="Only the I-th of N ranges of rows."),
    _option(BIG_JOBS, "--vocab-shard", metavar="I/N", callback=_shard, help="Only the I-th of N ranges of classes."),
    _option(BIG_JOBS, "--first-class", type=_Whole(0), metavar="C",
            help="The files hold a slice: classes from C on, of --num-classes."),
    _option(BIG_JOBS, "--save-label-logits", metavar="PATH", help="First pass of slices: the labels' logits, no more."),
    _option(BIG_JOBS, "--label-logits", metavar="PATH", multiple=True, help="Those of all slices, for ranks."),
    _option(BIG_JOBS, "--engine", type=click.Choice(["local", "ray"]), metavar="NAME",
            help="local: --workers processes of this machine; ray: tasks of Ray."),
    _option(BIG_JOBS, "--workers", type=_Whole(1), metavar="K", help="Processes that share the rows."),
    _option(BIG_JOBS, "--address", metavar="HOST", help="Of a Ray cluster; default RAY_ADDRESS, or a Ray of our own."),
]
SAMPLER = _option(SAMPLING, "--sampler", type=click.Choice(SAMPLERS), metavar="NAME",
                  help=f"{', '.join(SAMPLERS[:-1])} or {SAMPLERS[-1]}; default log-uniform (ids by falling frequency).")
VOCABULARY = [
    _option(SAMPLING, "--vocab-file", metavar="PATH", help="A word and its count a line, comma-separated (unigram)."),
    _option(SAMPLING, "--distortion", type=_Number(), metavar="P", help="Power of the counts (unigram); default 1."),
]
SEED = _option(SAMPLING, "--seed", metavar="A,B", callback=_seed, help="TensorFlow's two seeds, or the op's; default 0.")
SAMPLING_OPTIONS = [
    SAMPLER,
    _option(SAMPLING, "--num-sampled", type=_Whole(1), metavar="S", help="Candidates to draw for each 512 rows."),
    _option(SAMPLING, "--num-true", type=_Whole(1), metavar="T", help="True classes each row must have."),
    *VOCABULARY,
    SEED,
    _option(SAMPLING, "--candidates", metavar="PATH", help="One draw for all rows, of bigvocab sample."),
    _option(SAMPLING, "--exact", is_flag=True, help="The loss over all classes as well, and the bias."),
]
SAMPLE = [
    SAMPLER,
    _option(SAMPLING, "--num-sampled", type=_Whole(1), metavar="S", required=True, help="Candidates to draw."),
    _option(SAMPLING, "--range-max", type=_Whole(1), metavar="V", help="Classes to draw from."),
    *VOCABULARY,
    SEED,
    _option(SAMPLING, "--step", type=_Whole(0), metavar="K", help="Number of the call, from 0."),
    _option(DATA, "--true-classes", metavar="PATH", help="Labels: their expected counts are written as well."),
    _option(RESULT, "--output", metavar="PATH", required=True, help="Arrow file to write."),
]
EVAL = [
    _option(DATA, "--logits", multiple=True, metavar="PATH", help="Logits: file, quoted glob or folder; repeatable."),
    _option(DATA, "--labels", metavar="PATH", required=True, help="Labels: Arrow IPC, Parquet, .npy, .safetensors."),
    _option(DATA, "--inputs", multiple=True, metavar="PATH", help="Hidden states, in place of logits; repeatable."),
    _option(DATA, "--weights", multiple=True, metavar="PATH", help="Output layer for --inputs; repeatable."),
    _option(DATA, "--biases", metavar="PATH", help="Biases of the output layer."),
    _option(DATA, "--final-norm", type=click.Choice(["rms", "layer"]), metavar="NAME",
            help="Norm of the hidden states before that layer: rms or layer; none by default."),
    _option(DATA, "--norm-weight", metavar="PATH", help="Weight of that norm, one per column; 1 by default."),
    _option(DATA, "--norm-bias", metavar="PATH", help="Bias of that norm (layer)."),
    _option(DATA, "--norm-epsilon", type=_Number(0), metavar="E", help="Added under that norm's root; default 1e-6."),
    _option(DATA, "--vocab-shards", is_flag=True, help="Several files are split by classes, not rows."),
    *RAW,
    _option(COLUMNS, "--label-column", metavar="NAME", help="Class, list of classes, or soft labels, of the row."),
    _option(COLUMNS, "--probability-column", metavar="NAME", help="Probabilities of the listed classes."),
    _option(COLUMNS, "--weight-column", metavar="NAME", help="Weight of the row."),
    _option(COLUMNS, "--group-column", metavar="NAME", help="Group of the row: figures for each group."),
    _option(COLUMNS, "--bytes-column", metavar="NAME", help="Bytes of text behind the label: bits per byte."),
    _option(LOSS, "--loss", type=click.Choice(LOSSES), metavar="NAME", default=LOSSES[0],
            help=f"{', '.join(LOSSES[:-1])} or {LOSSES[-1]}."),
    _option(LOSS, "--ignore-index", type=int, metavar="ID", help="Rows with this label count in no figure."),
    _option(LOSS, "--label-smoothing", type=_Number(0, 1), metavar="E", help="Share spread over all classes."),
    _option(LOSS, "--class-weights", metavar="PATH", help="One weight per class (sparse-softmax)."),
    _option(LOSS, "--pos-weight", metavar="X|PATH", callback=_number_or_path,
            help="Weight of positives, or one per class (sigmoid)."),
    _option(LOSS, "--epsilon", type=_Number(0), metavar="E", help="Added inside the logarithms (log-loss)."),
    _option(LOSS, "--logit-scale", type=_Number(0, min_open=True), metavar="S", help="Multiplies all logits."),
    _option(LOSS, "--softcap", type=_Number(0, min_open=True), metavar="C", help="Then logits become C tanh(x / C)."),
    _option(LOSS, "--num-classes", type=_Whole(1), metavar="V", help="Classes that count; others are padding."),
    *SAMPLING_OPTIONS,
    _option(FIGURES, "--metrics", metavar="NAMES", default=",".join(METRICS[:3]), callback=_metrics, show_default=True,
            help=f"Of {', '.join(METRICS)}, as they fit the loss."),
    _option(FIGURES, "--top-k", metavar="K,...", default="1,5", callback=_ks, show_default=True,
            help="The k of the accuracies."),
    _option(FIGURES, "--nonfinite", type=click.Choice(["error", "skip", "keep"]), metavar="WAY", default="error",
            show_default=True, help="Rows with NaN or +inf: error, skip or keep."),
    _option(RUNNING, "--chunk-rows", type=_Whole(1), metavar="N", help="Rows of a block; changes no figure."),
    _option(RUNNING, "--threads", type=_Whole(1), metavar="N", help="Default: all cores; changes no figure."),
    _option(RUNNING, "--max-memory", metavar="512M", help="Most memory for mapped logits."),
    _option(RUNNING, "--quiet", "-q", is_flag=True, help="No progress bar and no messages."),
    *JOBS,
    _option(RESULT, "--output", metavar="PATH", help="Write the loss of every row, as Parquet."),
    REPORT,
    _option(RESULT, "--report-every", type=_Number(0), metavar="SECONDS", help="Write --report so often, so far."),
    FORMAT,
    FAIL_IF,
]
MERGE = [
    _option(RESULT, "--output", metavar="PATH", help="The loss of every row, of states of ranges of classes."),
    REPORT,
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
MERGE_EPILOG = """\b
Examples:
  bigvocab eval --logits 'part-*.npy' --labels labels/ --shard 2/8 --state 2.state
  bigvocab merge *.state --report report.json
"""
INSPECT_EPILOG = """\b
Examples:
  bigvocab inspect logits.npy labels.parquet
  bigvocab inspect model.safetensors::lm_head.weight
  bigvocab inspect logits.bin --shape 1000,262144 --dtype bfloat16
"""


# ---- commands


@click.group(cls=_Commands, context_settings=HELP, epilog=EPILOG)
@click.version_option(bigvocab.__version__, "-V", "--version", message="bigvocab %(version)s")
def cli() -> None:
    """Exact, streaming losses of models with huge vocabularies, on ordinary machines."""


@cli.command(
    "eval",
    cls=_Command,
    short_help="Exact loss, perplexity and more of logits and labels.",
    epilog=EVAL_EPILOG,
    context_settings={"allow_extra_args": True},
)
@_with(EVAL)
@click.pass_context
def eval_(ctx: click.Context, form: str, quiet: bool, conditions: list[Condition], **options: Any) -> None:
    """Evaluate logits against labels: exact loss, perplexity, accuracy and ranks."""
    if ctx.get_parameter_source("metrics") is click.core.ParameterSource.DEFAULT:
        options["metrics"] = default_metrics(options["loss"])
    _check_together(ctx, options, conditions)
    report = _evaluate(options, quiet)
    _print_report(report, form)
    _judge(report, conditions)


def _print_report(report: Report, form: str) -> None:
    if form == "json":
        _print(report.to_json())
    else:
        _print_tables([report])


def _check_together(ctx: click.Context, options: dict[str, Any], conditions: list[Condition]) -> None:
    """Refuse options that do not go together, before anything slow is imported."""
    if ctx.args:
        hint = "a glob must be quoted: --logits 'part-*.npy'"
        raise click.UsageError(f"Got unexpected extra argument ({ctx.args[0]}); {hint}")
    default = click.core.ParameterSource.DEFAULT
    given = [name for name in options if ctx.get_parameter_source(name) is not default]
    if fault := next(eval_faults(options, given), None):
        raise click.UsageError(fault)
    columns = [role for role in ("group", "bytes") if options[f"{role}_column"] is not None] + ["exact"] * options["exact"]
    for condition in conditions:
        from bigvocab.conditions import check_name

        asked = (options["loss"], options["metrics"], options["top_k"], columns)
        _as_usage("--fail-if", check_name, condition.name, *asked)


def _evaluate(options: dict[str, Any], quiet: bool) -> Report:
    from bigvocab.progress import Display

    given = {name: value for name, value in options.items() if value is not None and value is not False and value != ()}
    given["metrics"] = options["metrics"]  # which may be empty on purpose
    for name in ("logits", "inputs", "weights", "label_logits"):
        if name in given:
            given[name] = given[name][0] if len(given[name]) == 1 else list(given[name])
    with Display(quiet=quiet) as display:
        from bigvocab.bus_errors import die_with_a_message
        from bigvocab.job import evaluate
        from bigvocab.output import remove_temporaries
        from bigvocab.settings import parse_bytes

        die_with_a_message(remove_temporaries)
        _check_raw(given)
        if "max_memory" in given:
            _as_usage("--max-memory", parse_bytes, "max_memory", given["max_memory"])
        display.watch_compiler()
        return evaluate(**given, progress=display.update)


def _check_raw(options: dict[str, Any]) -> None:
    from bigvocab.formats.layout import parse_dtype, parse_shape

    _as_usage("--dtype", parse_dtype, options.get("dtype"))
    if options.get("shape"):
        _as_usage("--shape", parse_shape, options["shape"])


def _judge(report: Report, conditions: list[Condition]) -> None:
    """Exit with 3 if a condition holds; with 2 if its figure is not in the report."""
    codes = []
    for condition in conditions:
        try:
            verdict = condition.verdict(report.figure(condition.name))
        except KeyError:
            _say(f"error: --fail-if: the report has no figure {condition.name!r}")
            codes.append(2)
        except BigvocabError as error:
            _say(f"error: --fail-if: {error}")
            codes.append(2)
        else:
            if verdict is not None:
                _say(f"failed: {verdict}")
                codes.append(3)
    if codes:
        raise click.exceptions.Exit(min(codes))


@cli.command("sample", cls=_Command, short_help="Draw candidates as TensorFlow does.", epilog=SAMPLE_EPILOG)
@_with(SAMPLE)
@click.pass_context
def sample_(ctx: click.Context, **options: Any) -> None:
    """Draw the candidates of a sampled loss, the very ones TensorFlow draws, into an Arrow file."""
    given = {name: value for name, value in options.items() if value is not None}
    sampler = given.get("sampler", SAMPLERS[0])
    if fault := next(sampler_faults(sampler, given), None):
        raise click.UsageError(fault)
    if "range_max" not in given and sampler != "unigram":
        raise click.UsageError(f"'--sampler {sampler}' needs '--range-max', the number of classes.")
    from bigvocab.candidates import write_candidates

    drawn = write_candidates(**given)
    seed = ",".join(map(str, drawn["seed"]))
    _say(
        f"{drawn['path']}: {drawn['num_sampled']:,} of {drawn['range_max']:,} classes, {drawn['sampler']}, "
        f"seed {seed}, step {drawn['step']}, {drawn['num_tries']:,} tries"
    )


@cli.command("merge", cls=_Command, short_help="One report from the states of all shards.", epilog=MERGE_EPILOG)
@click.argument("states", nargs=-1, required=True, metavar="PART.state...")
@_with(MERGE)
def merge_(states: tuple[str, ...], form: str, conditions: list[Condition], **options: Any) -> None:
    """Merge the states of shards, in any order, into the report of the whole job: the same bits as one run."""
    from bigvocab.merging import merge_states
    from bigvocab.output import write_text

    report = merge_states(states, output=options["output"])
    if options["report"] is not None:
        write_text(options["report"], report.to_json() + "\n")
    _print_report(report, form)
    _judge(report, conditions)


@cli.command("inspect", cls=_Command, short_help="What files hold: shape, dtype, rows, columns.", epilog=INSPECT_EPILOG)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@_with([*RAW, FORMAT])
def inspect_(paths: tuple[str, ...], form: str, **options: Any) -> None:
    """Show what files hold: shape, dtype, rows, columns, bytes, and whether a quick sample is finite."""
    if fault := next(raw_faults(options), None):
        raise click.UsageError(fault)
    from bigvocab.inspection import inspect_path, rendered
    from bigvocab.report import as_json

    _check_raw(options)
    given = {name: value for name, value in options.items() if value is not None}
    found = [entry for path in paths for entry in inspect_path(path, **given)]
    opened = [entry for entry in found if "error" not in entry]
    if form == "json":
        _print(as_json(found))
    elif opened:
        _print_tables(item for i, entry in enumerate(opened) for item in [""] * (i > 0) + [*rendered(entry)])
    for entry in found:
        if "error" in entry:
            _say(f"error: {entry['error']}")
    if len(opened) < len(found):
        raise click.exceptions.Exit(1)


def main() -> None:
    """Run the command; a polite end by a signal cleans up as Ctrl-C does."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
    cli(prog_name="bigvocab")
