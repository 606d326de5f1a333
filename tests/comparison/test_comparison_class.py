"""`Comparison`: batches in any split and order are the job's report to the bit; states, Arrow batches, and refusals."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest
from comparisons import layers, pair, write_pair

import bigvocab as bv
from bigvocab.storage.output import write_text

METRICS = "kl_reverse,js,tv,delta_p,tops,entropy,overlap,logit_difference"


def data(rows=90, classes=70, seed=3):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((rows, classes)) * 3).astype(np.float32)
    others = {"q8": x + np.float32(0.01), "q4": x + rng.standard_normal(x.shape).astype(np.float32)}
    names = [f"g{row % 3}" for row in range(rows)], [f"d{row // 9}" for row in range(rows)]
    return x, others, rng.integers(0, classes, rows), *names


def shown(report, without=("seconds", "rows_per_second", "bytes_per_second", "inputs")):
    return json.dumps({name: value for name, value in report.to_dict().items() if name not in without})


def fed(parts, **options):
    """A comparison that has seen the rows of some ranges."""
    x, others, labels, groups, clusters = data()
    comparison = bv.Comparison(metrics=METRICS, **options)
    for start, stop in parts:
        here = slice(start, stop)
        part = {name: other[here] for name, other in others.items()}
        comparison.update(x[here], part, labels[here], groups[here], clusters[here])
    return comparison


def unnumbered(report):
    """A report whose worst rows are told by their kl: batches number their rows as they come."""
    values = report.to_dict()
    for block in values["candidates"].values():
        block["worst"] = [{**row, "row": 0} for row in block["worst"]]
    return json.dumps(values)


def test_batches_in_any_split_are_one_batch():
    whole = fed([(0, 90)])
    assert shown(fed([(0, 1), (1, 50), (50, 90)], threads=1).report()) == shown(whole.report())
    a, b = fed([(60, 90), (0, 20)]), fed([(20, 60)])
    b.merge(bv.Comparison.from_bytes(a.to_bytes()))
    assert unnumbered(b.report()) == unnumbered(whole.report())
    assert unnumbered(bv.merge([a.to_bytes(), fed([(20, 60)]).to_bytes()], rows=90)) == unnumbered(whole.report())
    empty = bv.Comparison(metrics=METRICS)
    empty.merge(whole)
    assert shown(empty.report()) == shown(whole.report())


def test_update_returns_the_kl_of_each_row():
    x, others, labels, *_ = data()
    y = others["q4"]
    found = bv.Comparison().update(x, y, labels)
    np.testing.assert_array_equal(found, bv.kl_divergence(x, y))
    both = bv.Comparison().update(x, others)
    assert list(both) == ["q8", "q4"]
    np.testing.assert_array_equal(both["q4"], found)
    cube = bv.Comparison(ignore_index=-1)
    ids = np.where(np.arange(90) == 7, -1, labels).reshape(9, 10)
    folded = cube.update(x.reshape(9, 10, -1), y.reshape(9, 10, -1), ids)
    assert folded.shape == (9, 10)
    assert np.isnan(folded[0, 7])
    assert (np.delete(folded.reshape(-1), 7) == np.delete(found, 7)).all()
    assert (cube.report()["rows"], cube.report()["ignored_rows"]) == (89, 1)


def test_files_and_batches_report_the_same(tmp_path):
    write_pair(tmp_path, split=())
    options = pair(tmp_path)
    report = bv.compare(**options)
    loaded = bv.Comparison(metrics=options["metrics"])
    table = {}
    for batch in bv.read_labels(tmp_path / "labels.parquet", group_column="group", cluster_column="document"):
        table = {"labels": np.where(batch.ignored, -100, batch.labels)}
        table["groups"] = np.array(batch.groups[1])[batch.groups[0]].tolist()
        table["clusters"] = np.array(batch.clusters[1])[batch.clusters[0]].tolist()
    loaded = bv.Comparison(metrics=options["metrics"], ignore_index=-100)
    loaded.update(np.load(tmp_path / "reference-0.npy"), options["candidate"], **table)
    assert shown(loaded.report()) == shown(report)


def test_states_come_back(tmp_path):
    states, layer, rounded, labels = layers()
    np.save(tmp_path / "layer.npy", layer)
    comparison = bv.Comparison(reference_weights=tmp_path / "layer.npy", candidate_weights=rounded[:, :], softcap=30.0)
    comparison.update(states, states, labels)
    comparison.save(tmp_path / "c.state")
    again = bv.Comparison.load(tmp_path / "c.state", threads=1)
    assert shown(again.report()) == shown(comparison.report())
    again.update(states[:5], states[:5], labels[:5])
    assert again.report()["rows"] == 75
    np.save(tmp_path / "layer.npy", layer + 1)
    with pytest.raises(bv.BigvocabError, match="layer files"):
        bv.Comparison.load(tmp_path / "c.state")
    with pytest.raises(bv.FormatError, match="truncated or damaged"):
        bv.Comparison.from_bytes(comparison.to_bytes()[:-100] + bytes(100))
    with pytest.raises(bv.BigvocabError, match="is of the task evaluate"):
        bv.Comparison.from_bytes(bv.Evaluator().to_bytes())
    with pytest.raises(TypeError, match="expected bytes"):
        bv.Comparison.from_bytes("c.state")


def test_a_state_of_a_job_is_a_comparison(tmp_path):
    write_pair(tmp_path)
    report = bv.compare(**pair(tmp_path), state=tmp_path / "s")
    comparison = bv.Comparison.load(tmp_path / "s")
    assert comparison.report()["candidates"]["q4"] == report["candidates"]["q4"]
    with pytest.raises(bv.BigvocabError, match="holds rows of a job over files"):
        comparison.update(np.zeros((1, 3)), {"q8": np.zeros((1, 3)), "q4": np.zeros((1, 3))})


def vectors(array):
    return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])


def test_arrow_batches():
    x, others, labels, groups, clusters = data()
    columns = {"reference": vectors(x), **{name: vectors(other) for name, other in others.items()}}
    table = pa.table({**columns, "label": pa.array(labels, mask=labels == 3), "book": groups, "doc": clusters})
    comparison = bv.Comparison(metrics=METRICS, group_column="book", cluster_column="doc")
    out = comparison.update_batch(table)
    assert out.column_names == [*table.column_names, "q8.kl", "q4.kl"]
    assert np.array(out["q4.kl"].is_null()).tolist() == (labels == 3).tolist()
    expected = bv.Comparison(metrics=METRICS, ignore_index=3)
    expected.update(x, others, labels, groups, clusters)
    assert shown(comparison.report()) == shown(expected.report())
    batch = pa.record_batch({"reference": vectors(x), "candidate": vectors(others["q4"])})
    alone = bv.Comparison().update_batch(batch)
    assert isinstance(alone, pa.RecordBatch)
    np.testing.assert_array_equal(alone["kl"].to_numpy(), bv.kl_divergence(x, others["q4"]))
    for bad, words in (
        (batch.drop_columns("candidate"), "no column of a candidate"),
        (batch.drop_columns("reference"), "no column reference"),
        (batch.append_column("kl", pa.array(labels)), "has a column 'kl' already"),
    ):
        with pytest.raises(bv.BigvocabError, match=words):
            bv.Comparison().update_batch(bad)


def test_what_does_not_fit_counts_nothing():
    x, others, labels, *_ = data()
    comparison = bv.Comparison()
    comparison.update(x, others, labels)
    before = shown(comparison.report())
    unlabelled = bv.Comparison()
    unlabelled.update(x, others)
    for call, words in (
        (lambda: comparison.update(x, others["q4"], labels), "candidate: got candidate, expected q8, q4, as before"),
        (lambda: comparison.update(x, {**others, "q8": x[:, :5]}, labels), "candidate q8: 5 classes, but reference"),
        (lambda: comparison.update(x, others, labels + 100), "row 0 is"),
        (lambda: comparison.update(x, others, labels[:5]), r"labels: got shape \(5,\)"),
        (lambda: comparison.update(x, others, labels, groups=["a"]), "groups"),
        (lambda: comparison.update(x * np.nan, others), "reference: row 0 holds a NaN"),
        (lambda: comparison.merge(comparison), "its rows would count twice"),
        (lambda: comparison.merge(fed([(0, 3)])), "metrics is"),
        (lambda: comparison.update(x, others), "update: got no labels, expected them, as with the rows before"),
        (lambda: comparison.update(x, others, labels, clusters=labels), "update: got clusters, expected none"),
        (lambda: comparison.merge(unlabelled), "merge: got no labels"),
        (lambda: bv.merge([comparison.to_bytes(), unlabelled.to_bytes()]), "merge: got no labels"),
        (lambda: bv.Comparison().to_bytes(), "has seen no batch"),
    ):
        with pytest.raises(bv.BigvocabError, match=words):
            call()
    assert shown(comparison.report()) == before
    fresh = bv.Comparison()
    with pytest.raises(bv.BigvocabError, match="candidate a: 3 rows"):
        fresh.update(x, {"a": x[:3]})
    fresh.update(x, {"b": x})  # names are those of the first batch that counts
    with pytest.raises(TypeError, match="unexpected keyword argument 'tops'"):
        bv.Comparison(tops=3)
    with pytest.raises(TypeError, match="expected a Comparison"):
        comparison.merge(bv.Evaluator())


def test_nothing_seen_has_no_values():
    report = bv.Comparison().report()
    assert "kl" not in report
    assert (report["rows"], report["ignored_rows"]) == (0, 0)
    assert "rows" in str(report)
    ignored = bv.Comparison(ignore_index=0)
    ignored.update([[0.0, 1.0]], [[0.0, 2.0]], [0])
    assert (ignored.report()["rows"], ignored.report()["ignored_rows"]) == (0, 1)
    assert math.isnan(ignored.report()["kl"]["mean"])
    assert json.loads(ignored.report().to_json())["kl"]["mean"] is None


def test_a_state_whose_arrays_lie(tmp_path):
    from bigvocab.comparison.sums import restored_sums, stored_sums

    comparison = fed([(0, 90)])
    held, table = stored_sums(comparison.sums)
    wrong = pa.table({**{name: table[name] for name in table.column_names}, "type": ["<f4"] * len(table)})
    with pytest.raises(bv.FormatError, match="holds an array of"):
        restored_sums(held, wrong.select(["name", "type", "shape", "bytes"]), "s")
    write_text(tmp_path / "x.json", json.dumps(held))  # all of it is JSON
    assert stored_sums(restored_sums(json.loads((tmp_path / "x.json").read_text()), table))[0] == held


def test_words_for_differences():
    x, others, labels, *_ = data()
    rng = np.random.default_rng(0)
    noise = x + np.float32(0.3) * rng.standard_normal(x.shape).astype(np.float32)
    twin = x + np.float32(0.3) * rng.standard_normal(x.shape).astype(np.float32)
    comparison = bv.Comparison()
    comparison.update(x, {"far": others["q4"], "near": noise, "twin": twin}, labels)
    text = str(comparison.report())
    words = " ".join(text.split())
    first = text.index(" candidate")
    assert text.index(" far ", first) > text.index(" near ", first)
    assert "near is nearer to the reference than far: their difference is more than its error." in words
    assert "near and twin are as near to the reference: their difference is within its error." in words
    assert max(map(len, text.splitlines())) <= 80
