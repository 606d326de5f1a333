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

# The main rooms from the ground up; a module imports nothing from a room above its own, and no two modules need each
# other.
LADDER = [
    "errors",
    "kernels",
    "rows",
    "losses",
    "labels",
    "tally",
    "row_results",
    "evaluator",
    "job",
    "engines",
    "cli",
    "__main__",
]
ROOMS = {
    "numba": {"kernels"},
    "llvmlite": {"kernels"},
    "click": {"cli", "command_options"},
    "rich": {"cli", "progress", "report"},
}  # fmt: skip


# pyarrow belongs to readers and writers; what computes works on arrays.
NO_ARROW = (
    "kernels",
    "checks",
    "parallel",
    "rows",
    "reductions",
    "losses",
    "tally",
    "row_results",
    "products",
    "samplers",
    "unigram_weights",
    "sampled",
)


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """(module, whether it stands in a function or under TYPE_CHECKING) of each import of a file."""
    tree = ast.parse(path.read_text())
    later = {
        node
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(outer, ast.If) and "TYPE_CHECKING" in ast.dump(outer.test))
        for node in ast.walk(outer)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node in later
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node in later
            if node.module == "bigvocab" or node.module == "bigvocab.kernels":
                for alias in node.names:
                    yield f"{node.module}.{alias.name}", node in later


def graph():
    """Room -> rooms that it imports when it is itself imported."""
    found = {}
    for path in SOURCES:
        if room(path) == "__init__":
            continue
        for module, later in imports(path):
            parts = module.split(".")
            if parts[0] == "bigvocab" and len(parts) > 1 and not later and parts[1] != room(path):
                found.setdefault(room(path), set()).add(parts[1])
    names = {room(path) for path in SOURCES}
    return {name: needed & names for name, needed in found.items()}


def test_imports_point_upwards():
    needs = graph()

    def below(name, path=()):
        assert name not in path, " -> ".join([*path, name])
        return {name}.union(*(below(other, (*path, name)) for other in needs.get(name, ())))

    for height, name in enumerate(LADDER):
        above = below(name) & set(LADDER[height + 1 :])
        assert not above, f"{name} needs {above}, which stand above it"
    for name in needs.keys() - {"__main__"}:
        assert not needs[name] & {"cli", "__main__"}, f"{name} imports the command line"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_libraries_stay_in_their_rooms(path):
    for module, _ in imports(path):
        library = module.split(".")[0]
        if path.name == "__init__.py" or (
            library == "numba" and room(path) == "figures"
        ):  # there for its version alone
            continue
        assert room(path) in ROOMS.get(library, {room(path)}), f"{path.name} imports {module}"
        assert library != "pyarrow" or room(path) not in NO_ARROW, f"{path.name} imports {module}"


def test_kernels_use_no_fastmath_and_no_threads_of_numba():
    for path in (PACKAGE / "kernels").glob("*.py"):
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


def test_the_readme_names_every_command_and_option():
    from click import Group

    from bigvocab.cli import cli as main

    readme = (ROOT / "README.md").read_text()
    assert isinstance(main, Group)
    for name, command in main.commands.items():
        assert f"bigvocab {name}" in readme, name
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert parameter.opts[0] in readme, f"{name} {parameter.opts[0]}"


def test_importing_the_package_is_light():
    heavy = "('numpy', 'numba', 'pyarrow', 'rich')"
    code = f"import bigvocab, bigvocab.cli, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_scripts_say_which_environment_they_want():
    """Without a word, what is sourced sees the arguments of its caller."""
    for script in (ROOT / "scripts").iterdir():
        if script.is_file() and script.suffix == "":
            for line in script.read_text().splitlines():
                if line.startswith(". "):
                    assert re.search(r"_venv\"? (\"\"|dev)$", line), (script, line)
