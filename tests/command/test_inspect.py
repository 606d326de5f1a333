"""The command `inspect`: what it finds in every format, and what it says of bad files."""

import json
import os
import re
from pathlib import Path

import commands
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import CLASSES, ROWS, run

from bigvocab.inspection import inspect_path


@pytest.fixture
def data(tmp_path, monkeypatch):
    return commands.make_data(tmp_path, monkeypatch)


def found_by(*arguments):
    result = run("inspect", *arguments, "--format", "json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_inspect_shows_matrices_and_labels(data):
    logits, labels = found_by("logits.npy", "labels.parquet")
    sample = logits.pop("sample")
    assert logits == {
        "path": "logits.npy",
        "format": ".npy",
        "shape": [ROWS, CLASSES],
        "dtype": "float32",
        "bytes": os.path.getsize("logits.npy"),
    }
    values = np.load("logits.npy")
    assert (sample["finite"], sample["rows"]) == (True, ROWS)
    assert (np.float32(sample["min"]), np.float32(sample["max"])) == (values.min(), values.max())
    assert (labels["format"], labels["rows"]) == ("Parquet", ROWS)
    assert labels["columns"][0] == {"name": "label", "type": "int64"}
    assert labels["labels"]["column"] == "label"
    text = run("inspect", "logits.npy", "labels.parquet", "labels.npy").stdout
    for word in (f"{ROWS} rows x {CLASSES} columns", "all finite", "column 'label'", "weight  double"):
        assert word in text
    (ids,) = found_by("labels.npy")
    assert (ids["rows"], ids["dtype"], ids["labels"]["kind"]) == (ROWS, "int64", "id")


def test_inspect_shows_arrays_of_integers_and_partitions(data):
    np.save("column.npy", np.arange(6)[:, None])
    np.save("tokens.npy", np.arange(6).reshape(2, 3))
    column, tokens = found_by("column.npy", "tokens.npy")
    assert (column["shape"], column["dtype"]) == ([6, 1], "int64")
    assert (tokens["shape"], tokens["dtype"], tokens["labels"]["kind"]) == ([2, 3], "int64", "list")
    assert "one class per row, ids 0 to 5" in run("inspect", "column.npy").stdout
    text = " ".join(run("inspect", "tokens.npy").stdout.split())
    assert "several classes per row, or sequences of 3 tokens, ids 0 to 5" in text
    for book in ("Ruth", "Job"):
        Path("hive", f"book={book}").mkdir(parents=True)
        pq.write_table(pa.table({"label": [1, 2]}), f"hive/book={book}/part-0.parquet")
    Path("hive/_SUCCESS").touch()
    (found,) = found_by("hive")
    assert (found["rows"], found["files"]) == (4, 2)
    assert {"name": "book", "type": "string"} in found["columns"]


def test_inspect_counts_what_is_not_finite_in_the_first_middle_and_last_rows(data):
    logits = np.zeros((1000, CLASSES), np.float16)
    logits[0, 0], logits[500, 1], logits[999, 2:4] = np.nan, np.inf, -np.inf
    np.save("odd.npy", logits)
    sample = found_by("odd.npy")[0]["sample"]
    assert sample == {
        "rows": 64, "finite": False, "nan": 1, "plus_inf": 1, "minus_inf": 2, "min": 0.0, "max": 0.0
    }  # fmt: skip
    assert "64 rows: 1 NaN, 1 +inf, 2 -inf" in run("inspect", "odd.npy").stdout
    np.save("none.npy", np.full((3, 2), np.nan, np.float32))
    assert "min" not in found_by("none.npy")[0]["sample"]
    np.save("empty.npy", np.zeros((0, 2), np.float32))
    assert "sample" not in found_by("empty.npy")[0]


def test_inspect_opens_every_format(data):
    logits = np.load("logits.npy")
    np.save("fortran.npy", np.asfortranarray(logits))
    np.save("swapped.npy", logits.astype(">f8"))
    np.save("bias.npy", logits[0])
    logits.tofile("raw.bin")
    assert found_by("fortran.npy")[0]["order"] == "fortran"
    assert found_by("swapped.npy")[0]["byte_order"] == "swapped"
    assert "byte-swapped" in run("inspect", "swapped.npy").stdout
    assert found_by("bias.npy")[0]["sample"]["elements"] == CLASSES
    assert found_by("raw.bin", "--shape", f"-1,{CLASSES}", "--dtype", "float32")[0]["shape"] == [ROWS, CLASSES]
    flat = pa.FixedSizeListArray.from_arrays(pa.array(logits.reshape(-1)), CLASSES)
    table = pa.table({"logits": flat, "label": np.zeros(ROWS, np.int32)})
    with pa.ipc.new_file("both.arrow", table.schema) as writer:
        writer.write_table(table)
    (both,) = found_by("both.arrow")
    assert both["shape"] == [ROWS, CLASSES]
    assert [column["name"] for column in both["columns"]] == ["logits", "label"]
    assert both["labels"]["column"] == "label"
    assert found_by("both.arrow::logits")[0]["shape"] == [ROWS, CLASSES]


def test_inspect_lists_tensors_and_opens_the_one_named(data):
    from safetensors.numpy import save_file

    save_file({"a.weight": np.ones((3, 4), np.float32), "ids": np.arange(5)}, "model.safetensors")
    (model,) = found_by("model.safetensors")
    assert {tensor["name"]: (tensor["shape"], tensor["dtype"]) for tensor in model["tensors"]} == {
        "a.weight": ([3, 4], "F32"),
        "ids": ([5], "I64"),
    }
    assert "3 x 4 F32" in run("inspect", "model.safetensors").stdout
    assert found_by("model.safetensors::a.weight")[0]["shape"] == [3, 4]


def test_inspect_takes_folders_and_globs(data):
    os.makedirs("parts")
    for i in range(3):
        np.save(f"parts/part-{i}.npy", np.load("logits.npy"))
    (whole,) = found_by("parts")
    assert (whole["shape"], whole["files"]) == ([3 * ROWS, CLASSES], 3)
    assert found_by("parts/*.npy")[0]["files"] == 3
    np.save("parts/part-9.npy", np.zeros((2, 3), np.float32))
    assert [entry["path"] for entry in found_by("parts")] == [f"parts/part-{i}.npy" for i in (0, 1, 2, 9)]


def test_inspect_shows_the_rest_where_one_file_is_bad(data):
    Path("bad.npy").write_bytes(b"\x93NUMPY")
    Path("notes.txt").write_text("hello")
    found = run("inspect", "bad.npy", "logits.npy", "none.npy", "notes.txt", "none*")
    assert found.exit_code == 1
    assert f"{ROWS} rows" in found.stdout
    lines = found.stderr.splitlines()
    assert [re.split("[: ]+", line)[2] for line in lines] == ["bad.npy", "none.npy", "notes.txt", "none*"]
    assert json.loads(run("inspect", "bad.npy", "--format", "json").stdout)[0]["error"].startswith("bad.npy")
    assert run("inspect", "logits.npy", "--dtype", "float64").exit_code == 1
    pq.write_table(pa.table({"a": ["x"]}), "words.parquet")
    assert "column 'a'" in run("inspect", "words.parquet").stdout


def test_a_column_that_is_not_there(tmp_path):
    pq.write_table(pa.table({"y": [1]}), tmp_path / "l.parquet")
    (found,) = inspect_path(f"{tmp_path}/l.parquet::foo")
    assert str(found["error"]).endswith("l.parquet: no column 'foo'; the columns are: 'y'")


def test_a_folder_that_leads_to_itself(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 3), np.float32))
    (tmp_path / "b.npy").symlink_to("gone.npy")
    (tmp_path / "c.npy").symlink_to(tmp_path)
    found = list(inspect_path(str(tmp_path)))
    assert [Path(entry["path"]).name for entry in found] == ["a.npy", "b.npy"]
    assert "cannot open" in str(found[1]["error"])


def test_a_table_whose_column_cannot_be_read_is_an_error(data):
    content = bytearray(Path("labels.parquet").read_bytes())
    content[4:200] = bytes(196)
    Path("corrupt.parquet").write_bytes(content)
    found = run("inspect", "corrupt.parquet")
    assert (found.exit_code, found.stdout) == (1, "")
    assert "corrupt.parquet: truncated or corrupt Parquet" in found.stderr


def test_inspect_says_each_thing_of_a_llama_cpp_file_once():
    lines = run("inspect", Path(__file__).parents[1] / "data/llama/kjv-751/base.kld").stdout.splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["format", "shape", "size", "dialect", "windows", "floor"]
    assert "10 of 42 tokens, 20 rows each" in lines[4]
