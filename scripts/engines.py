"""Run the recipes of a README, with workers killed while they run, and compare their reports with one plain run.

usage: python scripts/engines.py [NAME...] [--without NAME] [--readme PATH] [--no-kills]

A recipe is a fence of code behind a comment `<!-- recipe: NAME -->`. Its paths below /data are those of a folder made
here. With kills, the first worker that has done a batch or a shard dies before it can deliver it: `sitecustomize` below
is what every Python process of the recipe imports first.
"""

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
README = ROOT / "bigvocab/jobs/recipes.md"
ROWS, CLASSES, FILES = 2000, 50, 8
TIMES = ("seconds", "rows_per_second", "bytes_per_second", "inputs", "versions")
NEEDS = {"ray": "ray", "ray-losses": "ray", "spark": "pyspark", "dask": "distributed"}
NEEDS |= {name: name for name in ("datasets", "polars", "duckdb", "pandas")}
# Whose engine starts workers again, or whose state goes on.
KILLED = {"ray": 1, "ray-losses": 1, "spark": 1, "dask": 1, "pool": 2, "shell-from-1": 2, "shell-from-0": 2}

SITECUSTOMIZE = '''
"""Kill the first worker that has made a state, once, before it can hand it on."""
import os, signal, sys
from importlib.abc import MetaPathFinder

MARK = os.environ.get("BIGVOCAB_KILL_ONCE")
WATCHED = ("bigvocab.evaluation.evaluator", "bigvocab.jobs.checkpoints")


def die():
    if str(os.getpid()) == os.environ.get("BIGVOCAB_MAIN"):
        return
    try:
        os.close(os.open(MARK, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def patch(module):
    if module.__name__ == WATCHED[0]:
        before = module.Evaluator.to_bytes
        def to_bytes(self):
            made = before(self)
            if self.seen:
                die()
            return made
        module.Evaluator.to_bytes = to_bytes
    else:
        finish = module.Checkpoints.finish
        def finished(self):
            if self.kept:
                self.save()
                die()
            finish(self)
        module.Checkpoints.finish = finished


class Finder(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in WATCHED:
            return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(name, path, target)):
                execute = spec.loader.exec_module
                def exec_module(module):
                    execute(module)
                    patch(module)
                spec.loader.exec_module = exec_module
                return spec


if MARK:
    sys.meta_path.insert(0, Finder())
'''


def fences(readme):
    """Name -> (language, code) of the recipes of a README."""
    found = re.findall(r"<!-- recipe: ([\w-]+) -->\n```(\w+)\n(.*?)```", readme.read_text(), re.DOTALL)
    return {name: (language, code) for name, language, code in found}


def make_data(folder):
    """The rows of all recipes: Parquet with lists, .npy beside a file of labels."""
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((ROWS, CLASSES), np.float32) * 3
    columns = {
        "label": pa.array(rng.integers(0, CLASSES, ROWS), mask=rng.random(ROWS) < 0.1),
        "weight": rng.random(ROWS),
        "group": rng.choice(["a", "b", "c"], ROWS),
    }
    labels = pa.table(columns)
    lists = pa.ListArray.from_arrays(pa.array(np.arange(ROWS + 1) * CLASSES, pa.int32()), pa.array(logits.reshape(-1)))
    table = labels.append_column("logits", lists)
    for name in ("rows", "logits"):
        (folder / name).mkdir()
    for i in range(FILES):
        start, stop = ROWS * i // FILES, ROWS * (i + 1) // FILES
        pq.write_table(table.slice(start, stop - start), folder / f"rows/part-{i}.parquet", row_group_size=100)
        np.save(folder / f"logits/part-{i}.npy", logits[start:stop])
    pq.write_table(labels, folder / "labels.parquet")
    return table


def expected_report(folder):
    """What one run says."""
    import bigvocab as bv

    columns = {"weight_column": "weight", "group_column": "group"}
    return bv.evaluate(logits=f"{folder}/logits/*.npy", labels=f"{folder}/labels.parquet", **columns).to_dict()


def values_of(report):
    """A report without times and names, and without the numbers of worst rows, which batches do not have."""
    kept = {name: value for name, value in report.items() if name not in TIMES}
    if "worst" in kept:
        kept["worst"] = [{name: value for name, value in row.items() if name != "row"} for row in kept["worst"]]
    return json.loads(json.dumps(kept))


def environment(folder, kill):
    """The variables of a recipe: this bigvocab first, and the killer, where there is to be one."""
    paths = [str(folder / "site"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    found["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    found |= {"PYSPARK_SUBMIT_ARGS": "--master local[2,4] pyspark-shell", "PYSPARK_PYTHON": sys.executable}
    found |= {"RAY_ADDRESS": "local", "SPARK_LOCAL_IP": "127.0.0.1"}
    if kill:
        found["BIGVOCAB_KILL_ONCE"] = str(folder / "killed")
    return found


def run_python(name, code, folder, kill):
    """Run a recipe in Python as a script, again where it is the user who goes on after a kill; its report."""
    script = folder / f"recipe_{name.replace('-', '_')}.py"
    out = folder / f"{name}.json"
    ending = f'\nif __name__ == "__main__":\n    open({str(out)!r}, "w").write(report.to_json())\n'
    # the process that is not to be killed says so before anything of bigvocab is imported
    start = "import os\n\nif __name__ == '__main__':\n    os.environ['BIGVOCAB_MAIN'] = str(os.getpid())\n\n"
    script.write_text(start + code.replace("/data/", f"{folder}/") + ending)
    for _ in range(KILLED.get(name, 1)):
        done = subprocess.run(
            [sys.executable, script], env=environment(folder, kill), cwd=folder, capture_output=True, text=True
        )
        if done.returncode == 0:
            return json.loads(out.read_text())
    raise SystemExit(f"{name}: failed\n{done.stdout}\n{done.stderr}")


def run_shell(name, code, merge, folder, kill):
    """Run a recipe in a shell once for each index, again where it was killed; its report."""
    variable, first = ("SLURM_ARRAY_TASK_ID", 1) if name == "shell-from-1" else ("JOB_COMPLETION_INDEX", 0)
    for i in range(first, first + FILES):
        given = {**environment(folder, kill), variable: str(i)}
        for _ in range(KILLED[name]):
            done = subprocess.run(
                ["bash", "-euc", code.replace("/data/", f"{folder}/")], env=given, capture_output=True, text=True
            )
            if done.returncode == 0:
                break
        else:
            raise SystemExit(f"{name}: failed\n{done.stdout}\n{done.stderr}")
    subprocess.run(
        ["bash", "-euc", merge.replace("/data/", f"{folder}/")], env=environment(folder, False), check=True,
        capture_output=True,
    )  # fmt: skip
    return json.loads((folder / "report.json").read_text())


def run_recipe(name, recipes, *, kill):
    """Run one recipe in a folder of its own; raise where its report is not that of one run."""
    language, code = recipes[name]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        table = make_data(folder)
        (folder / "site").mkdir()
        (folder / "site/sitecustomize.py").write_text(SITECUSTOMIZE)
        if name == "datasets":
            import datasets

            datasets.Dataset(table).save_to_disk(folder / "dataset")
        if language == "python":
            report = run_python(name, code, folder, kill)
        else:
            report = run_shell(name, code, recipes["shell-merge"][1], folder, kill)
        if kill and not (folder / "killed").exists():
            raise SystemExit(f"{name}: no worker was killed")
        expected = values_of(expected_report(folder))
        if values_of(report) != expected:
            raise SystemExit(f"{name}: another report than that of one run:\n{values_of(report)}\n{expected}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--readme", type=Path, default=README)
    parser.add_argument("--without", action="append", default=[])
    parser.add_argument("--no-kills", action="store_true")
    given = parser.parse_args()
    recipes = fences(given.readme)
    names = given.names or [name for name in recipes if name not in ("shell-merge", *given.without)]
    for name in names:
        if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
            raise SystemExit(f"{name}: {NEEDS[name]} is not installed")
        kill = name in KILLED and not given.no_kills
        run_recipe(name, recipes, kill=kill)
        print(f"{name}: {'the same bits after a kill' if kill else 'the same bits'}", flush=True)


if __name__ == "__main__":
    main()
