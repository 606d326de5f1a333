"""The laws of the house: imports point upwards, heavy libraries stay in their rooms, nothing foreign is written."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bigvocab"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# The rooms from the ground up. A module imports nothing from a room above its own: at the top of a file, inside a
# function or for type checkers alone.
ROOMS = [
    "errors",
    "catalogue",
    "arrays",
    "arguments",
    "threads",
    "kernels",
    "storage",
    "formats",
    "matrices",
    "reports",
    "labels",
    "losses",
    "heads",
    "sampling",
    "evaluation",
    "comparison",
    "jobs",
    "inspection",
    "command",
    "__main__",
]
# Where a heavy library may be imported.
HOMES = {
    "numba": {"kernels"},
    "llvmlite": {"kernels"},
    "click": {"command"},
    "jinja2": {"reports"},
    "matplotlib": {"reports"},
    "rich": {"command", "reports"},
}
# pyarrow belongs to readers and writers; what computes works on arrays.
NO_ARROW = ("kernels", "arguments", "arrays", "threads", "losses", "heads")


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """Modules that a file imports, wherever the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_room_is_on_the_list():
    assert {room(path) for path in SOURCES} - {"__init__"} <= set(ROOMS)
    assert len([path for path in PACKAGE.glob("*.py")]) <= 9


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_upwards(path):
    if room(path) == "__init__":
        return
    height, name = ROOMS.index(room(path)), str(path.relative_to(PACKAGE))
    for module in imports(path):
        parts = module.split(".")
        if parts[0] == "bigvocab" and len(parts) > 1 and parts[1] in ROOMS:
            assert ROOMS.index(parts[1]) <= height, f"{name} imports {module}, which stands above it"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_libraries_stay_in_their_rooms(path):
    for module in imports(path):
        library = module.split(".")[0]
        if path.name == "__init__.py" or path.name == "versions.py":  # there for its version alone
            continue
        assert room(path) in HOMES.get(library, {room(path)}), f"{path.name} imports {module}"
        assert library != "pyarrow" or room(path) not in NO_ARROW, f"{path.name} imports {module}"


def test_kernels_use_no_fastmath_and_no_threads_of_numba():
    for path in (PACKAGE / "kernels").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword):
                assert node.arg not in ("fastmath", "parallel"), f"{path.name}:{node.value.lineno}"


def test_nothing_foreign_is_written_down():
    """No paths of a machine, no host of a package registry."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.split() if listed.returncode == 0 else []
    for name in names:
        path = ROOT / name
        if path.suffix in {".npy", ".parquet", ".safetensors"} or not path.is_file() or path == Path(__file__):
            continue
        text = path.read_text(errors="replace")
        assert not re.search(r"files\.pythonhosted|pypi\.org|download\.pytorch|/work/|/tmp/envs", text), name


def test_importing_the_package_is_light():
    heavy = "('numpy', 'numba', 'pyarrow', 'rich')"
    code = f"import bigvocab, bigvocab.command.cli, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_scripts_say_which_environment_they_want():
    """Without a word, what is sourced sees the arguments of its caller."""
    for script in (ROOT / "scripts").iterdir():
        if script.is_file() and script.suffix == "":
            for line in script.read_text().splitlines():
                if line.startswith(". "):
                    assert re.search(r"_venv\"? (\"\"|dev)$", line), (script, line)


def test_nothing_below_the_evaluator_knows_it():
    """Jobs do not import it either: they share with it what it is made of."""
    for path in SOURCES:
        if room(path) != "__init__":
            assert "bigvocab.evaluation.evaluator" not in imports(path), path
