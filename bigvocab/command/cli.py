"""The command `bigvocab`: a thin shell over the library, and the only place that imports click.

Nothing slow is imported before a command runs, so that --help is quick. An option that is not given is not passed on:
its default is the library's. Exit codes: 0 done, 1 the data is wrong or the work failed, 2 the command is wrong, 3 a
--fail-if held. An interrupt is 1 too, as in every command of click.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

import bigvocab
from bigvocab.catalogue import DEFAULT_SAMPLER, default_metrics
from bigvocab.command import signals
from bigvocab.command.checks import check_conditions, check_evaluation, check_raw, check_sides, judge, refuse_extra
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
from bigvocab.command.shell import (
    Command,
    Commands,
    drop_stdout,
    print_report,
    print_result,
    print_tables,
    rendered_error,
    say,
    say_notes,
)
from bigvocab.evaluation.rules import raw_faults, sampler_faults

if TYPE_CHECKING:
    from bigvocab.reports.fail_if import Condition
    from bigvocab.reports.report import Report


@click.group(cls=Commands, context_settings=HELP, epilog=EPILOG)
@click.version_option(bigvocab.__version__, "-V", "--version", message="bigvocab %(version)s")
def cli() -> None:
    """Exact, streaming losses of models with huge vocabularies, on ordinary machines."""


@cli.command(
    "eval",
    cls=Command,
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
    check_evaluation(ctx, options, conditions)
    report = _evaluate(options, quiet)
    say_notes(report, quiet=quiet)
    print_report(report, form)
    judge(report, conditions)


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
        check_raw(given)
        display.watch_compiler()
        signals.work_begins()
        yield display.update


@cli.command(
    "compare",
    cls=Command,
    short_help="Which of two models, or more: KL, flips, differences.",
    epilog=COMPARE_EPILOG,
    context_settings={"allow_extra_args": True},
)
@with_options(COMPARE)
@click.pass_context
def compare_(ctx: click.Context, form: str, quiet: bool, conditions: list[Condition], **options: Any) -> None:
    """Compare candidates with a reference, row by row: divergence, flips, and paired differences with their errors."""
    refuse_extra(ctx, "--reference 'part-*.npy'")
    given = _given(options)
    names = check_sides(ctx, given, options)
    check_conditions(given, options, names, conditions)
    given["metrics"] = options["metrics"]
    with _working(given, quiet) as progress:
        from bigvocab.jobs.comparison import compare

        if "max_memory" in given:
            from bigvocab.arguments import parse_bytes

            as_usage("--max-memory", parse_bytes, "max_memory", given["max_memory"])
        report = compare(**given, progress=progress)
    say_notes(report, quiet=quiet)
    print_report(report, form)
    judge(report, conditions)


@cli.command(
    "label-logits",
    cls=Command,
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
    say(f"{options['output']}: {report['label_logits']:,} logits of the labels of {report['rows']:,} rows")


@cli.command("sample", cls=Command, short_help="Draw candidates as TensorFlow does.", epilog=SAMPLE_EPILOG)
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
    say(
        f"{drawn['path']}: {drawn['num_sampled']:,} of {drawn['range_max']:,} classes, {drawn['sampler']}, "
        f"seed {seed}, step {drawn['step']}, {drawn['num_tries']:,} tries"
    )


@cli.command("merge", cls=Command, short_help="One report from the states of all shards.", epilog=MERGE_EPILOG)
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
            report.value(condition.name)
        except KeyError as error:
            raise click.UsageError(f"--fail-if: the report has no value named {condition.name!r}") from error
    if options["report"] is not None:
        write_text(options["report"], report.to_json() + "\n")
    write_page(options["html"], report)
    say_notes(report, quiet=False)
    print_report(report, form)
    judge(report, conditions)


@cli.command("page", cls=Command, short_help="A page to look at, from a report.json.", epilog=PAGE_EPILOG)
@click.argument("report", metavar="REPORT.json")
@with_options(PAGE)
def page_(report: str, html: str) -> None:
    """Make one HTML page of a report: what was evaluated, its numbers and pictures."""
    from bigvocab.reports.page import page_of_file

    signals.work_begins()
    page_of_file(report, html)


@cli.command("inspect", cls=Command, short_help="What files hold: shape, dtype, rows, columns.", epilog=INSPECT_EPILOG)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@with_options([*RAW, FORMAT])
@click.pass_context
def inspect_(ctx: click.Context, paths: tuple[str, ...], form: str, **options: Any) -> None:
    """Show what files hold: shape, dtype, rows, columns, bytes, and whether a quick sample is finite."""
    if fault := next(raw_faults(options), None):
        raise click.UsageError(usage(fault))
    from bigvocab.inspection import inspect_path, shown
    from bigvocab.reports.inspection_table import rendered
    from bigvocab.reports.report import as_json

    check_raw(options)
    given = {name: value for name, value in options.items() if value is not None}
    found = [entry for path in paths for entry in inspect_path(path, **given)]
    opened = [entry for entry in found if "error" not in entry]
    if form == "json":
        print_result(as_json([shown(entry) for entry in found]))
    elif opened:
        print_tables(item for i, entry in enumerate(opened) for item in [""] * (i > 0) + [*rendered(entry)])
    for entry in found:
        if "error" in entry:
            say(f"error: {rendered_error(entry['error'], ctx.command)}")
    if len(opened) < len(found):
        raise click.exceptions.Exit(1)


def main() -> None:
    """Run the command."""
    signals.heed()
    try:
        cli(prog_name="bigvocab")
    except OSError as error:  # of what click itself prints
        drop_stdout()
        say(f"error: standard output: {error.strerror or error}")
        sys.exit(1)
    except SystemExit as ended:
        sys.exit(signals.code_of(ended.code))
