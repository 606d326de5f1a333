"""The command `bigvocab`: a thin shell over the library, and the only place that imports click.

Nothing slow is imported before a command runs, so that --help is quick. An option that is not given is not passed on:
its default is the library's. Exit codes: 0 done, 1 the data is wrong or the work failed, 2 the command is wrong, 3 a
--fail-if held. An interrupt is 1 too, as in every command of click.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import click

import bigvocab
from bigvocab.catalogue import DEFAULT_SAMPLER, default_metrics
from bigvocab.command import signals
from bigvocab.command.comparison_options import COMPARE, COMPARE_EPILOG
from bigvocab.command.options import (
    EPILOG,
    EVAL,
    EVAL_EPILOG,
    FORMAT,
    HELP,
    INSPECT_EPILOG,
    LABEL_LOGITS,
    LABEL_LOGITS_EPILOG,
    MERGE,
    MERGE_EPILOG,
    PAGE,
    PAGE_EPILOG,
    RAW,
    SAMPLE,
    SAMPLE_EPILOG,
    as_usage,
    usage,
    with_options,
)
from bigvocab.errors import BigvocabError, Keyword
from bigvocab.evaluation.rules import faults, raw_faults, sampler_faults

if TYPE_CHECKING:
    from bigvocab.reports.fail_if import Condition
    from bigvocab.reports.report import Report

_ASCII = str.maketrans({"±": "+/-", "…": "~"})


# ---- how commands look, fail and print


@contextlib.contextmanager
def _to_stdout() -> Iterator[None]:
    """What fails has a name then."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from None


class _Command(click.Command):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with _to_stdout():  # of --help
            return super().parse_args(ctx, args)

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
            _fail("interrupted")
        except MemoryError:
            bounds = "; --max-memory, --chunk-rows and --threads bound what is used"
            _fail("error: out of memory" + (bounds if ctx.invoked_subcommand in ("eval", "compare") else ""))
        except OSError as error:
            name = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
            _fail(f"error: {name}{error.strerror or error}")
        except (BigvocabError, TypeError) as error:
            if os.environ.get("BIGVOCAB_TRACEBACK"):
                raise
            command = self.commands.get(ctx.invoked_subcommand or "")
            _fail(f"error: {_rendered(error, command)}")


def _rendered(error: Exception, command: click.Command | None) -> str:
    """A message of the library, which names arguments of functions, with the options of the command in their place."""
    if not isinstance(error, BigvocabError) or command is None:
        return str(error)
    options = {option.name: option.opts[0] for option in command.params}

    def shown(part: str | Keyword) -> str:
        if isinstance(part, str) or part.name not in options:
            return str(part)
        if part.value is not None:
            return f"{options[part.name]} {part.value}"
        return options[part.name] if "_" in part.name else part.name

    return "".join(map(shown, error.parts))


def _say(text: str) -> None:
    """One line on stderr."""
    from bigvocab.errors import printable

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
        with _to_stdout():
            click.echo(text)
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        _drop_stdout()
    except OSError:
        _drop_stdout()
        raise


def _drop_stdout() -> None:
    """What is still buffered would fail again when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_tables(items: Iterable[Any]) -> None:
    """What rich can print: in colours and as wide as the window on a terminal, as plain text elsewhere."""
    from bigvocab.reports.report import plain_text

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
@with_options(EVAL)
@click.pass_context
def eval_(ctx: click.Context, form: str, quiet: bool, conditions: list[Condition], **options: Any) -> None:
    """Evaluate logits against labels: exact loss, perplexity, accuracy and ranks."""
    if ctx.get_parameter_source("metrics") is click.core.ParameterSource.DEFAULT:
        options["metrics"] = default_metrics(options["loss"])
    _check_together(ctx, options, conditions)
    report = _evaluate(options, quiet)
    _say_notes(report, quiet=quiet)
    _print_report(report, form)
    _judge(report, conditions)


def _say_notes(report: Report, *, quiet: bool) -> None:
    """What is probably not what was meant, one line each."""
    for note in report["notes"] if "notes" in report and not quiet else ():
        _say(f"note: {note['text']}")


def _print_report(report: Report, form: str) -> None:
    if form == "json":
        _print(report.to_json())
    else:
        _print_tables([report])


def _check_together(ctx: click.Context, options: dict[str, Any], conditions: list[Condition]) -> None:
    """Refuse options that do not go together, before anything slow is imported."""
    _refuse_extra(ctx, "--logits 'part-*.npy'")
    default = click.core.ParameterSource.DEFAULT
    given = [name for name in options if ctx.get_parameter_source(name) is not default]
    if "top_k" in given and not {"accuracy", "ranking"} & set(options["metrics"]):
        raise click.UsageError("'--top-k' needs accuracy or ranking in '--metrics'.")
    if fault := next(faults(options, given), None):
        raise click.UsageError(usage(fault))
    columns = [role for role in ("group", "bytes", "cluster") if options[f"{role}_column"] is not None]
    columns += ["exact"] * options["exact"] + ["smoothing"] * bool(options["label_smoothing"])
    for condition in conditions:
        from bigvocab.reports.fail_if import check_name

        asked = (options["loss"], options["metrics"], options["top_k"], columns)
        as_usage("--fail-if", check_name, condition.name, *asked)


def _evaluate(options: dict[str, Any], quiet: bool) -> Report:
    given = _given(options)
    given["metrics"] = options["metrics"]  # which may be empty on purpose
    with _working(given, quiet) as progress:
        from bigvocab.jobs.evaluation import evaluate

        if "max_memory" in given:
            from bigvocab.arguments import parse_bytes

            as_usage("--max-memory", parse_bytes, "max_memory", given["max_memory"])
        return evaluate(**given, progress=progress)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, as keywords of the library."""
    given = {name: value for name, value in options.items() if value is not None and value is not False and value != ()}
    repeated = (
        "logits", "inputs", "weights", "label_logits", "ignore_index", "reference", "reference_inputs",
        "reference_weights",
    )  # fmt: skip
    for name in repeated:
        if name in given:
            several = given[name]
            given[name] = several if isinstance(several, int) else several[0] if len(several) == 1 else list(several)
    return given


@contextlib.contextmanager
def _working(given: dict[str, Any], quiet: bool) -> Iterator[Any]:
    """The time of the work: what is shown of it, and how it may end."""
    from bigvocab.command.progress import Display

    with Display(quiet=quiet) as display:
        from bigvocab.storage.output import remove_temporaries
        from bigvocab.storage.sigbus import die_with_a_message

        die_with_a_message(remove_temporaries)
        _check_raw(given)
        display.watch_compiler()
        signals.work_begins()
        yield display.update


def _check_raw(options: dict[str, Any]) -> None:
    from bigvocab.formats.layout import parse_dtype, parse_shape

    as_usage("--dtype", parse_dtype, options.get("dtype"))
    if options.get("shape"):
        as_usage("--shape", parse_shape, options["shape"])


@cli.command(
    "compare",
    cls=_Command,
    short_help="Which of two models, or more: KL, flips, differences.",
    epilog=COMPARE_EPILOG,
    context_settings={"allow_extra_args": True},
)
@with_options(COMPARE)
@click.pass_context
def compare_(ctx: click.Context, form: str, quiet: bool, conditions: list[Condition], **options: Any) -> None:
    """Compare candidates with a reference, row by row: divergence, flips, and paired differences with their errors."""
    _refuse_extra(ctx, "--reference 'part-*.npy'")
    given = _given(options)
    names = _check_sides(ctx, given, options)
    _check_figures(given, options, names, conditions)
    given["metrics"] = options["metrics"]
    with _working(given, quiet) as progress:
        from bigvocab.jobs.comparison import compare

        if "max_memory" in given:
            from bigvocab.arguments import parse_bytes

            as_usage("--max-memory", parse_bytes, "max_memory", given["max_memory"])
        report = compare(**given, progress=progress)
    _say_notes(report, quiet=quiet)
    _print_report(report, form)
    _judge(report, conditions)


def _refuse_extra(ctx: click.Context, example: str) -> None:
    if ctx.args:
        raise click.UsageError(f"Got unexpected extra argument ({ctx.args[0]}); a glob must be quoted: {example}")


def _check_sides(ctx: click.Context, given: dict[str, Any], options: dict[str, Any]) -> tuple[str, ...]:
    """Refuse sides that are missing and options that do not go together; the names of the candidates."""
    from bigvocab.comparison.rules import candidate_names, comparison_faults

    if ctx.get_parameter_source("top_k") is not click.core.ParameterSource.DEFAULT:
        if "overlap" not in options["metrics"]:
            raise click.UsageError("'--top-k' needs overlap in '--metrics'.")
    if fault := next(comparison_faults(given, given), None):
        raise click.UsageError(usage(fault))
    return candidate_names(given)


def _check_figures(
    given: dict[str, Any], options: dict[str, Any], names: tuple[str, ...], conditions: list[Condition]
) -> None:
    """Refuse conditions on figures that there will not be."""
    for condition in conditions:
        from bigvocab.comparison.llama_source import llama_path
        from bigvocab.reports.comparison_names import check_comparison_name

        candidates = given.get("candidate")
        files = [given.get("reference"), *(candidates.values() if isinstance(candidates, dict) else [candidates])]
        llama = any(llama_path(file) for file in files)
        as_usage(
            "--fail-if",
            check_comparison_name,
            condition.name,
            metrics=options["metrics"],
            top_k=options["top_k"],
            names=names,
            labelled=llama or "labels" in given,
            clustered=llama or "cluster_column" in given,
            grouped="group_column" in given,
            llama_cpp="llama_cpp" in given,
        )


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


@cli.command(
    "label-logits",
    cls=_Command,
    short_help="The first pass of slices: logits of the labels.",
    epilog=LABEL_LOGITS_EPILOG,
)
@with_options(LABEL_LOGITS)
@click.pass_context
def label_logits_(ctx: click.Context, quiet: bool, **options: Any) -> None:
    """Write the logit of each row's label, where a slice of the classes holds it: ranks need those of all slices."""
    if options["vocab_shard"] is None and options["first_class"] is None:
        raise click.UsageError("expected '--first-class', or '--vocab-shard': which slice of the classes this is.")
    given = _given(options)
    with _working(given, quiet) as progress:
        from bigvocab.jobs.evaluation import write_label_logits

        report = write_label_logits(**given, progress=progress)
    _say(f"{options['output']}: {report['label_logits']:,} logits of the labels of {report['rows']:,} rows")


@cli.command("sample", cls=_Command, short_help="Draw candidates as TensorFlow does.", epilog=SAMPLE_EPILOG)
@with_options(SAMPLE)
@click.pass_context
def sample_(ctx: click.Context, **options: Any) -> None:
    """Draw the candidates of a sampled loss, the very ones TensorFlow draws, into an Arrow file."""
    given = {name: value for name, value in options.items() if value is not None}
    sampler = given.get("sampler", DEFAULT_SAMPLER)
    if fault := next(sampler_faults(sampler, given), None):
        raise click.UsageError(usage(fault))
    if "range_max" not in given and sampler != "unigram":
        raise click.UsageError(f"'--sampler {sampler}' needs '--range-max', the number of classes.")
    from bigvocab.sampling.candidates import write_candidates

    signals.work_begins()
    drawn = write_candidates(**given)
    seed = ",".join(map(str, drawn["seed"]))
    _say(
        f"{drawn['path']}: {drawn['num_sampled']:,} of {drawn['range_max']:,} classes, {drawn['sampler']}, "
        f"seed {seed}, step {drawn['step']}, {drawn['num_tries']:,} tries"
    )


@cli.command("merge", cls=_Command, short_help="One report from the states of all shards.", epilog=MERGE_EPILOG)
@click.argument("states", nargs=-1, required=True, metavar="PART.state...")
@with_options(MERGE)
def merge_(states: tuple[str, ...], form: str, conditions: list[Condition], **options: Any) -> None:
    """Merge the states of shards, in any order, into the report of the whole job: the same bits as one run."""
    from bigvocab.jobs.merging import merged
    from bigvocab.jobs.pages import write_page
    from bigvocab.storage.output import write_text

    signals.work_begins()
    outputs = {name: options[name] for name in ("report", "html")}
    report = merged(states, output=options["output"], rows=options["rows"], outputs=outputs)
    for condition in conditions:
        try:
            report.figure(condition.name)
        except KeyError as error:
            raise click.UsageError(f"--fail-if: the report has no figure {condition.name!r}") from error
    if options["report"] is not None:
        write_text(options["report"], report.to_json() + "\n")
    write_page(options["html"], report)
    _say_notes(report, quiet=False)
    _print_report(report, form)
    _judge(report, conditions)


@cli.command("page", cls=_Command, short_help="A page to look at, from a report.json.", epilog=PAGE_EPILOG)
@click.argument("report", metavar="REPORT.json")
@with_options(PAGE)
def page_(report: str, html: str) -> None:
    """Make one HTML page of a report: what was evaluated, its numbers and pictures."""
    from bigvocab.reports.page import page_of_file

    signals.work_begins()
    page_of_file(report, html)


@cli.command("inspect", cls=_Command, short_help="What files hold: shape, dtype, rows, columns.", epilog=INSPECT_EPILOG)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@with_options([*RAW, FORMAT])
@click.pass_context
def inspect_(ctx: click.Context, paths: tuple[str, ...], form: str, **options: Any) -> None:
    """Show what files hold: shape, dtype, rows, columns, bytes, and whether a quick sample is finite."""
    if fault := next(raw_faults(options), None):
        raise click.UsageError(usage(fault))
    from bigvocab.inspection import inspect_path, rendered, shown
    from bigvocab.reports.report import as_json

    _check_raw(options)
    given = {name: value for name, value in options.items() if value is not None}
    found = [entry for path in paths for entry in inspect_path(path, **given)]
    opened = [entry for entry in found if "error" not in entry]
    if form == "json":
        _print(as_json([shown(entry) for entry in found]))
    elif opened:
        _print_tables(item for i, entry in enumerate(opened) for item in [""] * (i > 0) + [*rendered(entry)])
    for entry in found:
        if "error" in entry:
            _say(f"error: {_rendered(entry['error'], ctx.command)}")
    if len(opened) < len(found):
        raise click.exceptions.Exit(1)


def main() -> None:
    """Run the command."""
    signals.heed()
    try:
        cli(prog_name="bigvocab")
    except OSError as error:  # of what click itself prints
        _drop_stdout()
        _say(f"error: standard output: {error.strerror or error}")
        sys.exit(1)
