"""How commands look, fail and print: sections of the help, a failure in one line, results alone on stdout."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import click

from bigvocab.errors import BigvocabError, Keyword

if TYPE_CHECKING:
    from bigvocab.reports.report import Report

_ASCII = str.maketrans({"±": "+/-", "…": "~"})


@contextlib.contextmanager
def _to_stdout() -> Iterator[None]:
    """What fails has a name then."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from None


class Command(click.Command):
    """A command whose help has the sections of its options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Name stdout where the help cannot be printed."""
        with _to_stdout():  # of --help
            return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One list of options per section, in the order in which sections first occur."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(ctx)) is not None:
                sections.setdefault(getattr(parameter, "section", "Help"), []).append(record)
        width = min(26, max(len(names) for records in sections.values() for names, _ in records))
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl([(f"{names:<{width}}", text) for names, text in records])


class Commands(click.Group):
    """All commands; whatever fails in one of them is told in one line."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what it may raise becomes one line and an exit code."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:  # which quotes what was given
            from bigvocab.storage.uris import redacted

            error.message = redacted(error.message)  # type: ignore[misc]
            raise
        except KeyboardInterrupt:
            fail("interrupted")
        except MemoryError:
            bounds = "; --max-memory, --chunk-rows and --threads bound what is used"
            fail("error: out of memory" + (bounds if ctx.invoked_subcommand in ("eval", "compare") else ""))
        except OSError as error:
            name = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
            fail(f"error: {name}{error.strerror or error}")
        except (BigvocabError, TypeError) as error:
            if os.environ.get("BIGVOCAB_TRACEBACK"):
                raise
            command = self.commands.get(ctx.invoked_subcommand or "")
            fail(f"error: {rendered_error(error, command)}")


def rendered_error(error: Exception, command: click.Command | None) -> str:
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


def say(text: str) -> None:
    """One line on stderr."""
    from bigvocab.errors import printable
    from bigvocab.storage.uris import redacted

    click.echo("bigvocab: " + printable(redacted(" ".join(text.splitlines()))), err=True)


def fail(text: str, code: int = 1) -> NoReturn:
    """One line on stderr, and the end of the command."""
    say(text)
    raise click.exceptions.Exit(code)


def print_result(text: str) -> None:
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
        drop_stdout()
    except OSError:
        drop_stdout()
        raise


def drop_stdout() -> None:
    """What is still buffered would fail again when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_tables(items: Iterable[Any]) -> None:
    """What rich can print: in colours and as wide as the window on a terminal, as plain text elsewhere."""
    from bigvocab.reports.report import plain_text

    if sys.stdout is None or not sys.stdout.isatty():
        print_result(plain_text(items))
        return
    from rich.console import Console

    console = Console(highlight=False)
    console.width = min(console.width, 100)
    with console.capture() as captured:
        for item in items:
            console.print(item)
    print_result(captured.get().rstrip("\n"))


def say_notes(report: Report, *, quiet: bool) -> None:
    """What is probably not what was meant, one line each."""
    for note in report["notes"] if "notes" in report and not quiet else ():
        say(f"note: {note['text']}")


def print_report(report: Report, form: str) -> None:
    """The report on stdout: JSON, or a table."""
    if form == "json":
        print_result(report.to_json())
    else:
        print_tables([report])
