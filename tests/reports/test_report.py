"""Report: the dict, valid JSON, and a table that fits 80 columns and shows what matters first."""

import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from bigvocab.reports.report import Report, as_json, plain_text

VALUES = {
    "schema_version": 1,
    "loss": "sparse-softmax",
    "mean": 3.7070263404254233,
    "sum": 997.1900855744389,
    "weight": 269.0,
    "stderr": 0.18087158264188133,
    "perplexity": 40.73250166312636,
    "perplexity_stderr": 7.367352040772728,
    "bits_per_token": 5.348108517776521,
    "rows": 269,
    "ignored_rows": 0,
    "nonfinite_rows": 0,
    "reductions": {"sum": 1.0, "mean": 2.0, "sum_over_batch_size": 3.0, "sum_by_nonzero_weights": 4.0},
    "accuracy": {"1": 0.3197, "5": 0.5539},
    "mean_rank": 170.234,
    "mrr": 0.4267608953569139,
    "tied_rows": 24,
    "entropy": 3.640102861152222,
    "logsumexp": {"mean": 10.5468, "min": 8.2317, "max": 19.0329},
    "bits_per_byte": 1.2380733143561824,
    "groups": {
        "Ruth": {"rows": 68, "weight": 68.0, "mean": 3.08, "perplexity": 21.8},
        "Jonah": {"rows": 67, "weight": 67.0, "mean": 4.58, "perplexity": 97.5},
    },
    "inputs": [
        {"path": "logits.npy", "shape": [269, 12966], "dtype": "float16", "bytes": 6975836},
        {"path": "labels.parquet", "shape": [269], "dtype": "int32", "bytes": 3401},
    ],
    "seconds": 0.279,
    "rows_per_second": 963.04,
    "bytes_per_second": 2.9e10,
    "versions": {"bigvocab": "0.1.0"},
}


def report(**changes):
    return Report({**VALUES, **changes})


def line(table, name):
    return next(row.split(name, 1)[1].strip() for row in str(table).splitlines() if row.strip().startswith(name))


def test_values_are_found_by_name_and_by_dotted_name():
    values = report(groups={"St. John": {"mean": 4.0}, "St": {" John": {"mean": 0}}})
    assert values["rows"] == 269
    assert "entropy" in values
    assert "sampled" not in values
    assert values.value("accuracy.5") == 0.5539
    assert values.value("groups.St. John.mean") == 4.0
    for name in ("accuracy.2", "accuracy.", "perplexity.x", "groups", ".", "groups.St.mean"):
        if name == "groups":
            assert values.value(name) == values["groups"]
        else:
            with pytest.raises(KeyError):
                values.value(name)


def test_a_dict_is_a_copy():
    values = report()
    values.to_dict()["accuracy"]["1"] = 9
    assert values["accuracy"]["1"] == 0.3197
    assert values.to_dict() == VALUES


def test_json_is_the_dict_again():
    text = report().to_json()
    assert json.loads(text) == VALUES
    assert list(json.loads(text)) == list(VALUES)
    assert text.splitlines()[1] == '  "schema_version": 1,'
    assert float(json.loads(text)["mean"]) == VALUES["mean"]


def test_json_knows_no_nan_and_no_infinity():
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    text = report(mean=math.nan, sum=math.inf, weight=-math.inf, mrr=np.float64("nan")).to_json()
    found = json.loads(text, parse_constant=refuse)
    assert found["mean"] is None
    assert found["mrr"] is None
    assert found["sum"] is None
    assert found["weight"] is None
    assert found["infinite"] == {"sum": "inf", "weight": "-inf"}


def test_json_of_numpy_numbers_odd_texts_and_empty_things():
    value = {"a": np.int64(3), "b": np.float64(0.1), "c": True, "d": None, 'e"\n\udc80': [], "f": {}, "g": (1, [2])}
    assert json.loads(as_json(value)) == {
        "a": 3,
        "b": 0.1,
        "c": True,
        "d": None,
        'e"\n\udc80': [],
        "f": {},
        "g": [1, [2]],
    }


def test_the_table_shows_first_what_matters():
    rows = [row.split()[0] for row in str(report()).splitlines() if row]
    assert rows[:5] == ["loss", "mean", "perplexity", "rows", "accuracy"]
    assert rows.index("logsumexp") < rows.index("group") < rows.index("data")


def test_the_table_has_sensible_digits():
    table = report()
    assert line(table, "mean ") == "3.707026 ± 0.180872 nats"
    assert line(table, "perplexity") == "40.733 ± 7.367"
    assert line(table, "accuracy") == "31.97% top-1   55.39% top-5"
    assert line(table, "bits per byte") == "1.238073"
    assert line(table, "logsumexp") == "10.546800 (8.232 to 19.033)"
    assert line(table, "data") == "logits.npy  269 x 12,966 float16, 7.0 MB"
    assert line(table, "time") == "0.279 s, 963 rows/s, 29.0 GB/s"
    large = report(mean=14.5, perplexity=1982759.26, perplexity_stderr=0.01, rows=1234567, ignored_rows=1000)
    assert line(large, "perplexity") == "1,982,759 ± 1.0e-02"
    assert line(large, "rows") == "1,234,567 (1,000 ignored)"
    assert line(report(nonfinite_rows=2), "rows") == "269 (2 not finite)"


def test_values_that_are_absent_or_not_finite_do_no_harm():
    sigmoid = {name: VALUES[name] for name in ("loss", "mean", "rows", "sum")} | {"loss": "sigmoid"}
    text = str(Report(sigmoid))
    assert text.splitlines() == [" loss  sigmoid", " mean  3.707026 nats", " rows  269"]
    unknown = report(
        mean=math.nan, stderr=math.nan, perplexity=math.inf, perplexity_stderr=math.nan, mean_rank=math.nan
    )
    assert line(unknown, "mean ") == "nan nats"
    assert line(unknown, "perplexity") == "inf"
    str(report(logsumexp={"mean": math.nan, "min": math.nan, "max": -math.inf}))
    str(Report({}))


def test_reductions_stand_there_only_where_rows_are_weighted():
    assert "sum over batch size" not in str(report())
    weighted = report(weight=134.5)
    assert line(weighted, "sum over batch size") == "3.000000"
    assert line(weighted, "sum of weights") == "134.50"


def test_groups_come_worst_first_and_twenty_of_them():
    means = {f"g{i:03}": {"rows": 1, "weight": 1.0, "mean": float(i), "perplexity": 2.0} for i in range(1000)}
    means["inf"] = {"rows": 1, "weight": 1.0, "mean": math.inf, "perplexity": math.inf}
    means["nan"] = {"rows": 1, "weight": 1.0, "mean": math.nan, "perplexity": math.nan}
    rows = str(report(groups=means)).splitlines()
    start = next(i for i, row in enumerate(rows) if row.startswith(" group"))
    assert rows[start + 1].split()[0] == "inf"
    assert [row.split()[0] for row in rows[start + 2 : start + 21]] == [f"g{i:03}" for i in range(999, 980, -1)]
    assert rows[start + 21].strip() == "... and 982 more; --format json has all"
    few = {name: means[name] for name in ("nan", "g001")}
    assert "more" not in str(report(groups=few))
    assert str(report(groups=few)).index("g001") < str(report(groups=few)).index("nan")


def test_groups_show_weights_only_where_they_differ_from_rows():
    assert "weight" not in str(report())
    groups = {"a": {"rows": 2, "weight": 0.5, "mean": 1.0}}
    head = next(row for row in str(report(groups=groups)).splitlines() if row.startswith(" group"))
    assert head.split() == ["group", "rows", "weight", "mean"]


def test_names_from_files_can_neither_move_the_cursor_nor_be_markup():
    groups = {"[red]x[/red] :smile:": VALUES["groups"]["Ruth"], "\x1b[31mred\n": VALUES["groups"]["Jonah"]}
    text = str(report(groups=groups, inputs=[{"path": "\x1b]0;x\x07", "shape": [1], "dtype": "int8", "bytes": 1}]))
    assert "[red]x[/red] :smile:" in text
    assert "\x1b" not in text
    assert "\\x1b[31mred\\n" in text


def test_the_table_fits_eighty_columns():
    long = "x" * 300
    groups = {long: {"rows": 10**12, "weight": 1.5e11, "mean": 123456.789, "perplexity": 1e300}}
    inputs = [
        {"path": f"/{long}/{i}.npy", "shape": [10**9, 10**6], "dtype": "bfloat16", "bytes": 10**16} for i in range(9)
    ]
    sampled = {"sampler": "log-uniform", "num_sampled": 1024, "seed": [1, 7], "mean": 9.1, "exact_mean": 10.3}
    sampled |= {"bias": 1.1, "bias_stderr": 0.02}
    accuracy = {str(k): 0.5 for k in range(1, 30)}
    text = str(report(groups=groups, inputs=inputs, sampled=sampled, accuracy=accuracy, weight=2.5))
    assert max(map(len, text.splitlines())) <= 80
    assert "... and 5 more files" in text
    assert "/3.npy" in text
    assert "1.100000 ± 0.020000 nats" in text
    assert not any(row != row.rstrip() for row in text.splitlines())


def test_plain_text_has_no_colours_even_where_they_are_forced(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in plain_text([report()])
    assert repr(report()) == "<Report loss='sparse-softmax' mean=3.7070263404254233 rows=269>"


@pytest.mark.parametrize("width", [36, 44, 60])
def test_values_of_groups_are_whole_on_narrow_terminals(width):
    """Names give way to values."""
    groups = {"a name that is longer than any terminal of old" * 2: VALUES["groups"]["Ruth"]}
    console = Console(width=width, file=io.StringIO(), highlight=False)
    console.print(report(groups=groups))
    (row,) = [line for line in console.file.getvalue().splitlines() if line.startswith(" a ")]
    assert row.split()[-3:] == ["68", "3.080000", "21.800"]
