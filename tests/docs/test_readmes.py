"""The READMEs tell the truth: links lead somewhere, fences run as they stand, the reference is that of the options."""

import ast
import doctest
import glob
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from unittest import mock

import pytest
from click.testing import CliRunner
from commands import ENVIRONMENT, ROOT

from bigvocab.command.cli import cli

PACKAGES = sorted(path.parent for path in ROOT.glob("bigvocab/*/__init__.py"))
READMES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "data" / "README.md"]
READMES += sorted(path for folder in ("bigvocab", "scripts", "tests") for path in ROOT.glob(f"{folder}/**/README.md"))
READMES = [path for path in READMES if "golden" not in path.parts]
WIDTH = 100
RUN = {"python", "pycon", "sh", "console"}
MARKS = re.compile(r"<!-- (not run: .+|run as a file) -->")


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


def prose(path):
    """The text outside fences, and outside the parts that scripts write."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", "", text)


# ---- links


def anchors(path):
    """What a heading is called in a link, by GitHub's rule."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", READMES, ids=shown)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"https?://", target):
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), f"{shown(path)}: {target}"
        if found.is_dir():
            found = found / "README.md"
            assert found.exists(), f"{shown(path)}: {target}"
        assert not anchor or anchor in anchors(found), f"{shown(path)}: {target}"


@pytest.mark.parametrize("path", PACKAGES, ids=shown)
def test_a_package_and_its_readme_open_with_the_same_promise(path):
    promise = ast.get_docstring(ast.parse((path / "__init__.py").read_text())).split("\n\n")[0]
    title, opening, *_ = (path / "README.md").read_text().split("\n\n")
    assert title == f"# {path.name}"
    assert " ".join(opening.split()) == " ".join(promise.split())


@pytest.mark.parametrize("path", [path for path in READMES if "data" not in path.parts], ids=shown)
def test_prose_is_wrapped(path):
    for number, line in enumerate(path.read_text().split("\n"), 1):
        if not line.startswith(("|", "<!--")) and "](" not in line:
            assert len(line) <= WIDTH, f"{shown(path)}:{number}"


def test_the_front_page_is_short_and_leads_to_every_room():
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 260
    for path in READMES[1:]:
        if path.parents[1] in (ROOT, ROOT / "bigvocab") or path.parent == ROOT:
            assert f"({shown(path)})" in text, shown(path)


# ---- the reference of the command


def test_the_reference_is_that_of_the_options():
    place = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "reference.py")
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    text = module.README.read_text()
    assert text == module.written(text), "scripts/reference --write makes it anew"


def test_the_reference_names_every_command_and_option():
    text = (ROOT / "bigvocab" / "command" / "README.md").read_text()
    for name, command in cli.commands.items():
        section = re.search(rf"### `bigvocab {name}`\n.*?(?=\n### |<!-- /reference)", text, flags=re.S)[0]
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert f"{parameter.opts[0]} " in section or f"{parameter.opts[0]}`" in section, (name, parameter.name)


# ---- fences


def test_fences_have_a_language_and_marks_a_reason():
    known = RUN | {"", "text"}
    for path in READMES:
        for fence in fences(path):
            assert fence.language in known, f"{shown(path)}:{fence.line}"


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
            assert without_times(run(command)) == without_times("\n".join(printed)), f"{place}: {command}"

    def as_file(self, fence, folder):
        (folder / "recipe.py").write_text(fence.text)
        done = subprocess.run(
            [sys.executable, "recipe.py"], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    def run(self, path, folder):
        for fence in fences(path):
            place = f"{shown(path)}:{fence.line}"
            if fence.language not in RUN or fence.mark.startswith("not run"):
                continue
            if fence.mark == "run as a file":
                self.as_file(fence, folder)
            else:
                getattr(self, fence.language)(fence, place)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where fences run: an empty folder with data/kjv in it."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "kjv").symlink_to(ROOT / "data" / "kjv")
    monkeypatch.chdir(tmp_path)
    return tmp_path


ADDS = ROOT / "bigvocab" / "losses" / "README.md"  # to the catalogue, before anything has read it
RUNNABLE = [path for path in READMES if path != ADDS and any(fence.language in RUN for fence in fences(path))]


@pytest.mark.parametrize("path", RUNNABLE, ids=shown)
def test_fences_run_as_they_stand(path, folder):
    Page().run(path, folder)


def test_a_loss_and_a_metric_are_added_as_the_readme_says(folder):
    """In a process of its own: what is added to the catalogue stays there."""
    blocks = [fence for fence in fences(ADDS) if fence.language in ("python", "pycon")]
    lines = ["import doctest"]
    for fence in blocks:
        if fence.language == "python":
            lines.append(fence.text)
        else:
            lines += [f"doctest.run_docstring_examples({fence.text!r}, globals())", "import bigvocab as bv"]
    lines += [
        "import json",
        "import pyarrow.parquet as pq",
        "from bigvocab.command.cli import cli",
        "columns = pq.read_table('losses.parquet').column_names",
        "helped = '--help' and [p.help for p in cli.commands['eval'].params if p.name == 'loss'][0]",
        "print(json.dumps([report['confidence'], columns, 'softmax-z' in helped]))",
    ]
    (folder / "added.py").write_text("\n".join(lines))
    done = subprocess.run([sys.executable, "added.py"], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    confidence, columns, in_help = json.loads(done.stdout)
    assert 0.2 < confidence < 0.6
    assert columns == ["row", "loss", "confidence"]
    assert in_help
