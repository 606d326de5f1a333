"""The READMEs tell the truth: links lead somewhere, fences run as they stand, the reference is that of the options."""

import ast
import importlib.util
import json
import re
import subprocess
import sys

import pytest
from commands import ENVIRONMENT, ROOT
from readmes import RUN, Page, fences, shown

from bigvocab.command.cli import cli

PACKAGES = sorted(path.parent for path in ROOT.glob("bigvocab/*/__init__.py"))
READMES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "data" / "README.md"]
READMES += sorted(path for folder in ("bigvocab", "scripts", "tests") for path in ROOT.glob(f"{folder}/**/*.md"))
READMES = [path for path in READMES if "golden" not in path.parts]
WIDTH = 100


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


@pytest.mark.parametrize("path", PACKAGES, ids=shown)
def test_a_readme_names_every_module_of_its_package(path):
    text = (path / "README.md").read_text()
    modules = sorted(module.stem for module in path.glob("*.py") if module.stem != "__init__")
    assert [module for module in modules if not re.search(rf"`{module}(\.py)?`", text)] == []


@pytest.mark.parametrize("path", [path for path in READMES if "data" not in path.parts], ids=shown)
def test_prose_is_wrapped(path):
    fenced = False  # code is the formatter's
    for number, line in enumerate(path.read_text().split("\n"), 1):
        fenced ^= line.startswith("```")
        if not fenced and not line.startswith(("|", "<!--")) and "](" not in line:
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
            named = fence.language in known or fence.language == "bash" and fence.mark.startswith("recipe: ")
            assert named, f"{shown(path)}:{fence.line}"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where fences run: an empty folder with the data of the repository in it."""
    for data in ("data/kjv", "data/retrieval", "tests/data/llama"):
        (tmp_path / data).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / data).symlink_to(ROOT / data)
    monkeypatch.chdir(tmp_path)
    return tmp_path


ADDS = ROOT / "bigvocab" / "losses" / "README.md"  # to the catalogue, before anything has read it
RUNNABLE = [path for path in READMES if path != ADDS and any(fence.language in RUN for fence in fences(path))]


@pytest.mark.parametrize("path", RUNNABLE, ids=shown)
def test_fences_run_as_they_stand(path, folder):
    Page().run(path)


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
        "(loss,) = [option for option in cli.commands['eval'].params if option.name == 'loss']",
        "print(json.dumps([report['top_probability'], columns, 'softmax-z' in loss.help]))",
    ]
    (folder / "added.py").write_text("\n".join(lines))
    done = subprocess.run([sys.executable, "added.py"], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    probability, columns, in_help = json.loads(done.stdout)
    assert 0.2 < probability < 0.6
    assert columns == ["row", "loss", "top_probability"]
    assert in_help
