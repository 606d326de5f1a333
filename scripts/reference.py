"""The reference of the command, from its own options, as Markdown: see scripts/reference."""

import argparse
import textwrap
from pathlib import Path

import click

from bigvocab.command.cli import cli
from bigvocab.command.options import HELP

README = Path(__file__).parents[1] / "bigvocab" / "command" / "README.md"
BEGIN, END = "<!-- reference -->", "<!-- /reference -->"


def reference():
    """All commands in their order, each with a table of its options under their headings."""
    context = click.Context(cli, info_name="bigvocab", **HELP)  # commands keep the first help option they make
    return "\n\n".join(section for name in cli.commands for section in of_command(name, cli.commands[name], context))


def of_command(name, command, parent):
    """Heading, usage, what it does, and its options."""
    context = click.Context(command, info_name=name, parent=parent)
    yield f"### `bigvocab {name}`"
    yield textwrap.fill(command.help, 100)
    yield f"`{' '.join(command.get_usage(context).removeprefix('Usage: ').split())}`"
    sections = {}
    for option in command.params:
        if isinstance(option, click.Option):
            hidden, option.hidden = option.hidden, False  # what --help leaves out is here
            names, text = option.get_help_record(context)
            option.hidden = hidden
            sections.setdefault(option.section, []).append(f"| `{escaped(names)}` | {escaped(text)} |")
    yield "\n".join(
        ["| option | meaning |", "|---|---|"]
        + [line for heading, lines in sections.items() for line in [f"| **{heading}** | |", *lines]]
    )


def escaped(text):
    """Text in a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def written(readme):
    """The text of a README with the reference as it is now between its marks."""
    before, _, rest = readme.partition(BEGIN)
    return before + BEGIN + "\n" + reference() + "\n" + END + rest.partition(END)[2]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put it into bigvocab/command/README.md")
    if parser.parse_args().write:
        README.write_text(written(README.read_text()))
    else:
        print(reference())


if __name__ == "__main__":
    main()
