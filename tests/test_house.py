"""The laws of the house: imports point upwards, heavy libraries stay in their rooms, nothing foreign is written."""

import ast
import contextlib
import re
import subprocess
import sys
import textwrap
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


def file_of(name):
    """The file of a module of the package, by its dotted name; None for other names, and the package's own door."""
    base = ROOT.joinpath(*name.split("."))
    files = (base.with_suffix(".py"), base / "__init__.py")
    return next((file for file in files if file in SOURCES and name != "bigvocab"), None)


def modules_needed(path):
    """Files of the package that a file needs: a module that is imported, or that from which a name is."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (file_of(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (file_of(f"{node.module}.{alias.name}") or file_of(node.module) for alias in node.names)


def test_no_modules_need_each_other():
    needed = {path: set(modules_needed(path)) for path in SOURCES if path != PACKAGE / "__init__.py"}
    while free := {path for path, names in needed.items() if not names & needed.keys()}:
        needed = {path: names for path, names in needed.items() if path not in free}
    shown = {str(path.relative_to(PACKAGE)) for path in needed}
    assert not shown, f"in circles of imports, or above one: {sorted(shown)}"


# ---- names that begin with an underscore

# Those of others, each with the reason.
FOREIGN = {
    "os._exit",  # ends a process whose interpreter must not go on
    "sys._current_frames",  # where the main thread stands when a second signal comes
    "pool._processes",  # concurrent.futures has no public list of a pool's processes before Python 3.14
    "process._inheriting",  # multiprocessing tells no other way that a script is imported by a worker
    "caching._CacheLocator",  # numba.core.caching names the base class of locators so
    "dispatcher._cache",  # Numba: `enable_caching` would take its own folder
    "dispatcher._compile_for_args",  # Numba: what it calls to compile or load a kernel
}
NAMED_TUPLES = {"_asdict", "_fields", "_make", "_replace"}  # public, in spite of their names
OWN = {"self", "cls", "super()"}


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def defined_in(body):
    """Names that the methods of a class give to their object, and those of the methods."""
    for node in ast.walk(body):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) in OWN:
            yield node.attr
        elif isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def private_names(tree):
    """(line, what) of names that begin with an underscore and belong to another module, or to an object of another
    class: objects of one class may look at each other.
    """
    home = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            names = set(defined_in(node))
            home |= {id(inside): names | home.get(id(inside), set()) for inside in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found = [(node.module.rpartition(".")[2], alias.name) for alias in node.names]
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) not in OWN:
            found = [(ast.unparse(node.value), node.attr)]
            if node.attr in home.get(id(node), ()):
                continue
        elif isinstance(node, ast.Call) and len(node.args) > 1 and re.search("attr$", ast.unparse(node.func)):
            name = node.args[1]
            found = [(ast.unparse(node.args[0]), name.value)] if isinstance(name, ast.Constant) else []
        else:
            continue
        for owner, name in found:
            if isinstance(name, str) and is_private(name) and name not in NAMED_TUPLES:
                yield node.lineno, f"{owner}.{name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_private_names_stay_where_they_are(path):
    used = {(line, what) for line, what in private_names(ast.parse(path.read_text())) if what not in FOREIGN}
    assert not used


def test_what_a_private_name_is():
    code = """
        from bigvocab.storage.paths import _split
        class A:
            def __init__(self):
                self._x = 1
            def merge(self, other):
                return self._x + other._x + other._y + getattr(other, "_z", 0)
        def outside(a):
            return a._x + a._replace() + os._exit
    """
    found = [what for _, what in private_names(ast.parse(textwrap.dedent(code)))]
    assert sorted(found) == ["a._x", "os._exit", "other._y", "other._z", "paths._split"]


def programs(tree):
    """Programs in strings, such as those for processes of their own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" in node.value:
            with contextlib.suppress(SyntaxError, ValueError):
                yield ast.parse(textwrap.dedent(node.value))


TESTS = sorted(set((ROOT / "tests").rglob("*.py")) - {Path(__file__)})


@pytest.mark.parametrize("path", TESTS, ids=lambda p: p.name)
def test_tests_go_through_public_names(path):
    tree = ast.parse(path.read_text())
    for part in (tree, *programs(tree)):
        assert not [(line, what) for line, what in private_names(part) if what not in FOREIGN]
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not re.fullmatch(r"bigvocab(\.\w+)*\._[a-zA-Z]\w*(\.\w+)*", node.value), node.value


# ---- what else


def test_first_bytes_of_formats_stand_in_one_file():
    from bigvocab.formats import magic

    starts = [value for value in vars(magic).values() if isinstance(value, bytes)]
    assert len(starts) > 9
    for path in set(SOURCES) - {PACKAGE / "formats" / "magic.py"}:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, bytes):
                assert not any(node.value.startswith(start) for start in starts), f"{path.name}:{node.lineno}"


def test_kernels_use_no_fastmath_and_no_threads_of_numba():
    for path in (PACKAGE / "kernels").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword):
                assert node.arg not in ("fastmath", "parallel"), f"{path.name}:{node.value.lineno}"


def test_nothing_foreign_is_written_down():
    """No paths of a machine, no host of a package registry, nothing of a merge that was not finished."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.split() if listed.returncode == 0 else []
    for name in names:
        path = ROOT / name
        if path.suffix in {".npy", ".parquet", ".safetensors"} or not path.is_file() or path == Path(__file__):
            continue
        text = path.read_text(errors="replace")
        assert not re.search(r"files\.pythonhosted|pypi\.org|download\.pytorch|/work/|/tmp/envs", text), name
        assert not re.search(r"^(<{7}|>{7}) ", text, re.MULTILINE), name


def test_nothing_else_lies_on_top():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    names = {name.partition("/")[0] for name in listed.stdout.split()}
    files = {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", ".gitignore"}
    assert names <= files | {"bigvocab", "tests", "scripts", "data", ".ci"}


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
