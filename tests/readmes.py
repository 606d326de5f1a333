"""READMEs as the tests see them: their fences, and `Page`, which runs these as they stand."""

import doctest
import glob
import re
import shlex
from dataclasses import dataclass
from unittest import mock

from click.testing import CliRunner
from commands import ROOT

from bigvocab.command.cli import cli

RUN = {"python", "pycon", "sh", "console"}
MARKS = re.compile(r"<!-- (not run: .+|recipe: .+) -->")


def shown(path):
    return str(path.relative_to(ROOT))


@dataclass
class Fence:
    """A block of code in a README: its language, its text, its line, and the mark on the line before it."""

    language: str
    text: str
    line: int
    mark: str


def fences(path):
    lines = path.read_text().split("\n")
    start = None
    for i, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = i
            continue
        mark = MARKS.fullmatch(lines[start - 1])
        text = "\n".join(lines[start + 1 : i]) + "\n"
        yield Fence(lines[start][3:].strip(), text, start + 1, mark[1] if mark else "")
        start = None
    assert start is None, f"{shown(path)}: a fence that does not end, at line {start}"


def arguments_of(command):
    """The arguments of a command as a shell has them: quotes taken off, globs without quotes expanded."""
    for word in shlex.split(command, posix=False, comments=True):
        (plain,) = shlex.split(word)
        found = sorted(glob.glob(plain)) if plain == word and any(c in word for c in "*?[") else []
        yield from found or [plain]


def commands_of(text):
    """The commands of a fence of the shell, one string each, long ones joined; the result of each beside it."""
    found = []
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.startswith("$ ") or not any(part.startswith("$ ") for part in text.splitlines()):
            found.append([line.removeprefix("$ "), []])
        else:
            found[-1][1].append(line)
    return found


def run(command):
    program, *arguments = arguments_of(command)
    assert program == "bigvocab", command
    with mock.patch("bigvocab.command.progress.Display.watch_compiler"):
        done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, f"{command}\n{done.output}"
    return done.stdout


def without_times(text):
    return re.sub(r"^ time .*$", "", text, flags=re.M).rstrip()


def is_cut_of(printed, whole):
    """Whether a README shows what was printed; a line ` ...` stands for any number of lines."""
    pattern = re.escape(without_times(printed) + "\n").replace(re.escape("\n ...\n"), r"\n(?:.*\n)*?")
    return re.fullmatch(pattern, without_times(whole) + "\n") is not None


class Page:
    """The fences of a README, run one after the other in one namespace."""

    def __init__(self):
        self.names = {"__name__": "__readme__"}

    def python(self, fence, place):
        exec(compile("\n" * fence.line + fence.text, place, "exec"), self.names)

    def pycon(self, fence, place):
        test = doctest.DocTestParser().get_doctest(fence.text, self.names, place, place, fence.line)
        runner = doctest.DocTestRunner(verbose=False)
        told = []
        runner.run(test, out=told.append, clear_globs=False)
        self.names |= test.globs
        assert runner.failures == 0, "".join(told)

    def sh(self, fence, place):
        for command, _ in commands_of(fence.text):
            run(command)

    def console(self, fence, place):
        for command, printed in commands_of(fence.text):
            whole = run(command)
            assert is_cut_of("\n".join(printed), whole), f"{place}: {command}\n{whole}"

    def run(self, path):
        for fence in fences(path):
            place = f"{shown(path)}:{fence.line}"
            if fence.language in RUN and not fence.mark:
                getattr(self, fence.language)(fence, place)
