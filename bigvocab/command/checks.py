"""What is refused before anything slow is imported, and how the conditions of --fail-if end a command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from bigvocab.command.options import as_usage, usage
from bigvocab.command.shell import say
from bigvocab.errors import BigvocabError
from bigvocab.evaluation.rules import faults

if TYPE_CHECKING:
    from bigvocab.reports.fail_if import Condition
    from bigvocab.reports.report import Report


def check_evaluation(ctx: click.Context, options: dict[str, Any], conditions: list[Condition]) -> None:
    """Refuse options that do not go together, before anything slow is imported."""
    refuse_extra(ctx, "--logits 'part-*.npy'")
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


def refuse_extra(ctx: click.Context, example: str) -> None:
    """Refuse arguments that are no options: most often a glob that the shell expanded."""
    if ctx.args:
        raise click.UsageError(f"Got unexpected extra argument ({ctx.args[0]}); a glob must be quoted: {example}")


def check_sides(ctx: click.Context, given: dict[str, Any], options: dict[str, Any]) -> tuple[str, ...]:
    """Refuse sides that are missing and options that do not go together; the names of the candidates."""
    from bigvocab.comparison.rules import candidate_names, comparison_faults

    if ctx.get_parameter_source("top_k") is not click.core.ParameterSource.DEFAULT:
        if "overlap" not in options["metrics"]:
            raise click.UsageError("'--top-k' needs overlap in '--metrics'.")
    if fault := next(comparison_faults(given, given), None):
        raise click.UsageError(usage(fault))
    return candidate_names(given)


def check_conditions(
    given: dict[str, Any], options: dict[str, Any], names: tuple[str, ...], conditions: list[Condition]
) -> None:
    """Refuse conditions on values that there will not be."""
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


def judge(report: Report, conditions: list[Condition]) -> None:
    """Exit with 3 if a condition holds; with 2 if its value is not in the report."""
    codes = []
    for condition in conditions:
        try:
            verdict = condition.verdict(report.value(condition.name))
        except KeyError:
            say(f"error: --fail-if: the report has no value named {condition.name!r}")
            codes.append(2)
        except BigvocabError as error:
            say(f"error: --fail-if: {error}")
            codes.append(2)
        else:
            if verdict is not None:
                say(f"failed: {verdict}")
                codes.append(3)
    if codes:
        raise click.exceptions.Exit(min(codes))


def check_raw(options: dict[str, Any]) -> None:
    """Refuse a dtype or shape of raw binary that cannot be read, of any side."""
    from bigvocab.formats.layout import parse_dtype, parse_shape

    for side in ("", "reference-", "candidate-"):
        for name, parse in (("dtype", parse_dtype), ("shape", parse_shape)):
            given = options.get(f"{side}{name}".replace("-", "_"))
            for value in given.values() if isinstance(given, dict) else [given]:
                if value:
                    as_usage(f"--{side}{name}", parse, value)
