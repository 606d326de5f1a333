"""The recipes of bigvocab/jobs/recipes.md that need no engine, as they stand; `scripts/test_engines` runs them all."""

import importlib.util
import re
from pathlib import Path

import pyarrow as pa
import pytest

import bigvocab as bv

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("engines", ROOT / "scripts/engines.py")
engines = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(engines)
RECIPES = engines.fences(engines.README)


@pytest.mark.parametrize("name", ["pool", "shell-from-1", "shell-from-0"])
def test_recipes_survive_a_kill(name):
    engines.run_recipe(name, RECIPES, kill=True)


def function_of(name):
    """The function that a recipe hands to its engine."""
    code = RECIPES[name][1]
    found = re.search(r"^def (\w+)\(.*?(?=^\S)", code, re.DOTALL | re.MULTILINE)
    scope = {"pa": pa, "bv": bv}
    exec(found[0], scope)
    return scope[found[1]]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return engines.make_data(folder), engines.values_of(engines.expected_report(folder))


def test_what_ray_calls(data):
    table, expected = data
    batches = [table.slice(at, 256) for at in range(0, engines.ROWS, 256)]
    states = [state for batch in batches for state in function_of("ray")(batch)["state"].to_pylist()]
    assert engines.values_of(bv.merge(states, rows=engines.ROWS).to_dict()) == expected
    with_losses = pa.concat_tables([function_of("ray-losses")(batch) for batch in batches])
    assert with_losses["loss"].null_count == table["label"].null_count
    states = with_losses["state"].drop_null().to_pylist()
    assert engines.values_of(bv.merge(states, rows=engines.ROWS).to_dict()) == expected
    with pytest.raises(bv.BigvocabError, match="rows"):  # a batch that came twice
        bv.merge([*states, states[0]], rows=engines.ROWS)


def test_what_spark_calls(data):
    """Once per partition, which may be empty."""
    table, expected = data
    sums = function_of("spark")
    partitions = [table.slice(0, 900), table.slice(0, 0), table.slice(900)]
    states = [
        row for part in partitions for out in sums(iter(part.to_batches(256))) for row in out["state"].to_pylist()
    ]
    assert len(states) == 3
    assert engines.values_of(bv.merge(states, rows=engines.ROWS).to_dict()) == expected


def test_every_recipe_has_its_code_compiled_and_is_run_by_the_script():
    for name, (language, code) in RECIPES.items():
        if language == "python":
            compile(code, name, "exec")
            module = re.search(
                r"^(?:import|from) (ray|pyspark|dask|datasets|polars|duckdb|pandas)\b", code, re.MULTILINE
            )
            assert (module is None) == (name not in engines.NEEDS)
