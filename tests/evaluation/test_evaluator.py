"""The main path: files and batches in, the same report to the bit out, whatever the split."""

import json
import math
import os
import pickle
import random
from pathlib import Path

import ml_dtypes
import naive
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_jobs import values_of

import bigvocab as bv
from bigvocab.evaluation.specification import specify
from bigvocab.jobs import work
from bigvocab.jobs.blocks import block_rows
from bigvocab.jobs.class_ranges import ClassTask
from bigvocab.matrices.opening import as_matrix


@pytest.fixture(scope="module")
def job():
    rng = np.random.default_rng(3)
    logits = (rng.standard_normal((300, 501)) * 3).astype(np.float16)
    labels = rng.integers(0, 501, 300)
    ignored = rng.random(300) < 0.1
    return {
        "logits": logits,
        "labels": labels,
        "ignored": ignored,
        "weights": rng.choice([0.0, 0.5, 1.0, 2.0], 300),
        "groups": rng.choice(["Ruth", "Jonah", "Mark"], 300),
        "bytes": rng.integers(1, 9, 300),
    }


@pytest.fixture
def files(job, tmp_path):
    np.save(tmp_path / "logits.npy", job["logits"])
    table = pa.table(
        {
            "label": pa.array(job["labels"], mask=job["ignored"]),
            "weight": job["weights"],
            "book": job["groups"],
            "bytes": job["bytes"],
        }
    )
    pq.write_table(table, tmp_path / "labels.parquet", row_group_size=70)
    return tmp_path


COLUMNS = {"weight_column": "weight", "group_column": "book", "bytes_column": "bytes"}


def test_every_value_is_that_of_the_oracle(job, files):
    report = bv.evaluate(
        logits=files / "logits.npy",
        labels=files / "labels.parquet",
        metrics="accuracy,rank,logsumexp,entropy,predicted",
        top_k="1,5,50",
        output=files / "losses.parquet",
        report=files / "report.json",
        **COLUMNS,
    )
    keep = ~job["ignored"]
    x, y, w = job["logits"].astype(float)[keep], job["labels"][keep], job["weights"][keep]
    losses = np.array(naive.sparse_softmax_cross_entropy(x, y))
    mean = (w * losses).sum() / w.sum()
    assert report["mean"] == pytest.approx(mean, abs=1e-6)
    assert report["perplexity"] == pytest.approx(math.exp(mean), rel=1e-6)
    assert report["rows"] == keep.sum()
    assert report["ignored_rows"] == (~keep).sum()
    assert report["nonfinite_rows"] == 0
    assert report["weight"] == w.sum()
    for name, value in report["reductions"].items():
        assert value == pytest.approx(naive.compute_weighted_loss(losses, w, reduction=name), rel=1e-6)
    live = (w != 0).sum()
    assert report["stderr"] == pytest.approx(
        math.sqrt((w**2 * (losses - mean) ** 2).sum() * live / (live - 1)) / w.sum(), rel=1e-6
    )
    ranks = np.array(naive.rank(x, y))
    for k in (1, 5, 50):
        assert report["accuracy"][str(k)] == pytest.approx((w * (ranks <= k)).sum() / w.sum(), rel=1e-12)
    assert report["mean_rank"] == pytest.approx((w * ranks).sum() / w.sum(), rel=1e-12)
    assert report["mrr"] == pytest.approx((w / ranks).sum() / w.sum(), rel=1e-12)
    assert report["tied_rows"] == sum(t for t, weight in zip(naive.tied(x, y), w, strict=True) if weight)
    assert report["entropy"] == pytest.approx((w * naive.entropy(x)).sum() / w.sum(), abs=3e-6)
    lse = np.array(naive.logsumexp(x))
    assert report["logsumexp"]["mean"] == pytest.approx((w * lse).sum() / w.sum(), abs=1e-6)
    assert report["logsumexp"]["min"] == pytest.approx(lse[w != 0].min(), abs=1e-6)
    num_bytes = job["bytes"][keep]
    assert report["bits_per_byte"] == pytest.approx((w * losses).sum() / (w * num_bytes).sum() / math.log(2), rel=1e-6)
    for book in ("Ruth", "Jonah", "Mark"):
        here = job["groups"][keep] == book
        group = report["groups"][book]
        assert group["rows"] == here.sum()
        assert group["mean"] == pytest.approx((w * losses)[here].sum() / w[here].sum(), abs=1e-6)

    written = pq.read_table(files / "losses.parquet")
    expected = ["row", "loss", "weight", "group", "rank", "predicted", "logsumexp", "entropy"]
    assert written.column_names == expected
    assert written["row"].to_pylist() == list(range(300))
    assert [value is None for value in written["loss"].to_pylist()] == job["ignored"].tolist()
    np.testing.assert_allclose(written["loss"].drop_null(), losses, atol=1e-6)
    assert written["rank"].drop_null().to_pylist() == ranks.tolist()
    assert written["predicted"].drop_null().to_pylist() == list(naive.argmax(x))
    on_disk = json.loads((files / "report.json").read_text())
    assert on_disk["mean"] == report["mean"]
    assert [entry["bytes"] for entry in on_disk["inputs"]][0] == (files / "logits.npy").stat().st_size


def test_values_without_weights(job):
    report = bv.evaluate(logits=job["logits"], labels=job["labels"])
    losses = np.array(naive.sparse_softmax_cross_entropy(job["logits"].astype(float), job["labels"]))
    assert report["stderr"] == pytest.approx(naive.stderr(losses), rel=1e-6)
    assert report["perplexity_stderr"] == pytest.approx(naive.perplexity_stderr(losses), rel=1e-6)
    assert "groups" not in report.to_dict()
    assert "bits_per_byte" not in report.to_dict()


@pytest.mark.parametrize("chunk_rows", [1, 7, 64, 1000])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_chunks_and_threads_do_not_show(files, chunk_rows, threads):
    def run(name, **options):
        report = bv.evaluate(
            logits=files / "logits.npy", labels=files / "labels.parquet", output=files / name, **COLUMNS, **options
        )
        return values_of(report), (files / name).read_bytes()

    assert run("a.parquet", chunk_rows=chunk_rows, threads=threads) == run("b.parquet")


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**9))
def test_splits_orders_and_merges_do_not_show(job, seed):
    rng = random.Random(seed)
    whole = bv.Evaluator(metrics=("accuracy", "rank", "logsumexp", "entropy"))
    whole.update(job["logits"], job["labels"], job["weights"], job["groups"])
    edges = [0, *sorted(rng.sample(range(1, 300), rng.randint(1, 6))), 300]
    parts = list(zip(edges[:-1], edges[1:], strict=True))
    rng.shuffle(parts)
    evaluators = [bv.Evaluator(metrics=("accuracy", "rank", "logsumexp", "entropy")) for _ in range(rng.randint(1, 4))]
    for a, b in parts:
        chosen = rng.choice(evaluators)
        chosen.update(job["logits"][a:b], job["labels"][a:b], job["weights"][a:b], job["groups"][a:b])
    while len(evaluators) > 1:
        evaluators.insert(0, evaluators.pop())
        evaluators[0].merge(evaluators.pop(rng.randrange(1, len(evaluators))))
    assert values_of(evaluators[0].report()) == values_of(whole.report())


def test_update_returns_unweighted_losses_and_nan_where_ignored(job):
    ev = bv.Evaluator(ignore_index=-100)
    labels = job["labels"].copy()
    labels[4] = -100
    losses = ev.update(job["logits"], labels, weights=job["weights"])
    assert np.isnan(losses[4])
    expected = naive.sparse_softmax_cross_entropy(job["logits"].astype(float), job["labels"])
    np.testing.assert_allclose(np.delete(losses, 4), np.delete(expected, 4), atol=1e-6)


@pytest.mark.parametrize("table", [False, True])
def test_arrow_batches(job, table):
    logits = pa.FixedSizeListArray.from_arrays(pa.array(job["logits"].reshape(-1)), 501)
    batch = pa.record_batch(
        {
            "logits": logits,
            "label": pa.array(job["labels"], mask=job["ignored"]),
            "weight": job["weights"],
            "book": job["groups"],
        }
    )
    data = pa.Table.from_batches([batch.slice(0, 100), batch.slice(100)]) if table else batch
    ev = bv.Evaluator(weight_column="weight", group_column="book")
    out = ev.update_batch(data)
    assert type(out) is type(data)
    assert out.schema.names == [*batch.schema.names, "loss"]
    assert out.column("loss").null_count == job["ignored"].sum()
    other = bv.Evaluator(ignore_index=-1)
    other.update(job["logits"], np.where(job["ignored"], -1, job["labels"]), job["weights"], job["groups"])
    mine, theirs = values_of(ev.report()), values_of(other.report())
    assert mine == theirs
    with pytest.raises(bv.BigvocabError, match="column 'loss' already"):
        ev.update_batch(out)
    with pytest.raises(bv.BigvocabError, match="no column 'logits'; there are: 'label'"):
        ev.update_batch(data.select(["label", "weight", "book"]))


def test_row_split_files_and_vocab_shards_give_the_same_report(job, tmp_path):
    logits = job["logits"].astype(np.float32)
    np.save(tmp_path / "whole.npy", logits)
    for i, (a, b) in enumerate([(0, 100), (100, 101), (101, 300)]):
        np.save(tmp_path / f"rows-{i}.npy", logits[a:b])
    for i, (a, b) in enumerate([(0, 200), (200, 333), (333, 501)]):
        np.save(tmp_path / f"classes-{i}.npy", logits[:, a:b])
    options = {"labels": job["labels"], "metrics": "accuracy,rank,logsumexp,entropy"}
    whole = bv.evaluate(logits=tmp_path / "whole.npy", **options)
    split = bv.evaluate(logits=str(tmp_path / "rows-*.npy"), **options)
    assert values_of(split) == values_of(whole)
    shards = bv.evaluate(logits=str(tmp_path / "classes-*.npy"), vocab_shards=True, **options)
    assert shards["mean"] == pytest.approx(whole["mean"], abs=1e-7)
    for name in ("accuracy", "mean_rank", "mrr", "tied_rows"):
        assert shards[name] == whole[name]


def test_padded_classes_are_left_out(job):
    padded = np.pad(job["logits"], ((0, 0), (0, 11)), constant_values=60.0)
    whole = values_of(bv.evaluate(logits=job["logits"], labels=job["labels"]))
    assert values_of(bv.evaluate(logits=padded, labels=job["labels"], num_classes=501)) == whole


def test_nonfinite_rows(job):
    logits = job["logits"].astype(np.float32)
    logits[7, 3], logits[11], logits[12, 0] = np.nan, -np.inf, np.inf
    with pytest.raises(bv.BigvocabError, match=r"logits: row 7 holds a NaN"):
        bv.Evaluator().update(logits, job["labels"])
    with pytest.raises(bv.BigvocabError, match=r"row 0 holds a NaN, or one comes of logit_scale=1e\+308"):
        bv.Evaluator(logit_scale=1e308).update(job["logits"], job["labels"])
    with pytest.raises(bv.BigvocabError, match=r"row 0 has no finite logit"):
        bv.Evaluator().update(logits[11:], job["labels"][11:])
    with pytest.raises(bv.BigvocabError, match=r"row 0 holds \+inf"):
        bv.Evaluator().update(logits[12:], job["labels"][12:])
    skip = bv.evaluate(logits=logits, labels=job["labels"], nonfinite="skip")
    assert (skip["rows"], skip["nonfinite_rows"]) == (297, 3)
    good = np.delete(np.arange(300), [7, 11, 12])
    assert skip["mean"] == bv.evaluate(logits=logits[good], labels=job["labels"][good])["mean"]
    bad = {"logits": logits[[7, 11, 12]], "labels": job["labels"][:3]}
    with pytest.raises(bv.BigvocabError, match="logits: all 3 rows are not finite, so there is nothing to evaluate"):
        bv.evaluate(**bad, nonfinite="skip")
    with pytest.raises(bv.BigvocabError, match="logits: all 3 rows are ignored or not finite"):
        bv.evaluate(**bad | {"labels": [0, -1, 0]}, ignore_index=-1, nonfinite="skip")
    keep = bv.evaluate(logits=logits, labels=job["labels"], nonfinite="keep")
    assert math.isnan(keep["mean"])
    assert json.loads(keep.to_json())["mean"] is None
    weights = np.ones(300)
    weights[[7, 11, 12]] = 0
    ev = bv.Evaluator()
    ev.update(logits, job["labels"], weights)
    assert ev.report()["mean"] == skip["mean"]


def test_ignored_rows_may_hold_anything(job):
    logits = job["logits"].astype(np.float32)
    logits[5] = np.nan
    labels = job["labels"].copy()
    labels[5] = 17
    labels[labels == 17] = 17  # ignore_index may be a class
    report = bv.evaluate(logits=logits, labels=labels, ignore_index=17)
    assert report["ignored_rows"] == (labels == 17).sum()
    assert math.isfinite(report["mean"])


def test_class_weights_and_smoothing(job):
    class_weights = np.random.default_rng(0).random(501)
    report = bv.evaluate(logits=job["logits"], labels=job["labels"], class_weights=class_weights, label_smoothing=0.1)
    expected = bv.sparse_softmax_cross_entropy(
        job["logits"], job["labels"], class_weights=class_weights, label_smoothing=0.1, reduction="mean"
    )
    assert report["mean"] == pytest.approx(expected, rel=1e-12)


def test_bfloat16_is_exact_and_evaluators_travel(job):
    logits = job["logits"].astype(ml_dtypes.bfloat16)
    report = bv.evaluate(logits=logits, labels=job["labels"])
    expected = np.mean(naive.sparse_softmax_cross_entropy(logits.astype(float), job["labels"]))
    assert report["mean"] == pytest.approx(expected, abs=1e-7)
    ev = bv.Evaluator()
    ev.update(logits, job["labels"])
    assert values_of(pickle.loads(pickle.dumps(ev)).report()) == values_of(ev.report())


def test_nothing_seen_is_nan_in_the_library():
    report = bv.Evaluator().report()
    assert report["rows"] == 0
    assert math.isnan(report["mean"])
    assert json.loads(report.to_json())["perplexity"] is None


BAD_OPTIONS = [
    ({"loss": "cross"}, "loss: got 'cross', expected one of sparse-softmax"),
    ({"metrics": "accuracy,speed"}, "metrics: got 'speed', expected one of accuracy"),
    ({"nonfinite": "drop"}, "nonfinite: got 'drop'"),
    ({"label_smoothing": 2}, r"label_smoothing: got 2.0, expected a number in \[0, 1\]"),
    ({"logit_scale": 0}, "logit_scale: got 0.0, expected a finite number above 0"),
    ({"softcap": -1}, "softcap: got -1.0"),
    ({"top_k": "0"}, "top_k: expected integers of at least 1"),
    ({"threads": 0}, "threads: expected a positive int"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_bad_options(options, message):
    with pytest.raises(bv.BigvocabError, match=message):
        bv.Evaluator(**options)


def test_bad_data_leaves_no_output(files, job):
    out, report = files / "losses.parquet", files / "report.json"

    def fails(match, error=bv.BigvocabError, **changes):
        options = {"logits": files / "logits.npy", "labels": files / "labels.parquet", "output": out, "report": report}
        with pytest.raises(error, match=match):
            bv.evaluate(**(options | changes))
        assert sorted(path.name for path in files.iterdir()) == before

    np.save(files / "class_weights.npy", np.ones(501))
    before = sorted(path.name for path in files.iterdir())
    too_high = job["labels"].copy()
    too_high[123] = 501
    fails(r"labels?.*row 123 is 501, expected a class in \[0, 501\)", labels=too_high)
    too_high[50] = -3
    fails(r"row 50 is -3", labels=too_high)
    fails(r"299 rows of labels.*has 300 rows", labels=job["labels"][:299])
    fails("all 300 rows are ignored", labels=np.full(300, -1), ignore_index=-1)
    fails("no rows", logits=job["logits"][:0], labels=job["labels"][:0])
    fails("expected integers", labels=job["labels"].astype(float))
    fails("num_classes: got 600, expected 1 to 501, the classes of ", num_classes=600)
    fails("num_classes: got 0, expected 1 to 501", num_classes=0)
    fails("report_every: got -1, expected seconds, 0 or more", report_every=-1)
    fails("report_every: got nan, expected", report_every=float("nan"))
    for name in ("output", "report", "state"):
        fails(f"{name}: expected a path, got int", TypeError, **{name: 3})
    fails(r"class_weights: got shape \(3,\)", class_weights=[1, 2, 3])
    fails("cannot be written", output=files / "no" / "folder.parquet")
    fails("cannot be written", report=files / "no" / "folder.json")
    for name in ("output", "report", "state"):
        for read in ("logits.npy", "labels.parquet", "class_weights.npy"):
            weights = {"class_weights": files / "class_weights.npy"}
            fails("is one of the files that are read", **weights, **{name: files / read})
    fails("output: is the same file as report", output=files / "o", report=files / "o")
    fails("is the output as well; choose another report", output=files / "o", report=files / "." / "p" / ".." / "o")
    fails(r"expected 2 dimensions, \(rows, classes\), got shape \(300,\)", logits=job["logits"][:, 0])
    fails("max_memory: got '12Q'", max_memory="12Q")
    fails("chunk_rows: got 0", chunk_rows=0)
    bad = job["logits"].copy()
    bad[250, 7] = np.nan
    fails("row 250 holds a NaN", logits=bad)


def test_rows_that_are_kept_have_ranks_that_are_true():
    """A NaN has no place in an order: its row counts as wrong; +inf has one."""
    ev = bv.Evaluator(nonfinite="keep", top_k=(1,), metrics="accuracy,rank,predicted")
    logits = np.array([[np.inf, 1, 0], [0, 1, 2], [np.nan, 1, 2]], np.float32)
    ev.update(logits, [2, 2, 2])
    report = ev.report()
    assert report["accuracy"]["1"] == pytest.approx(1 / 3)
    assert report["mean_rank"] == pytest.approx((3 + 1 + 3) / 3)


def test_a_failed_batch_counts_nothing(job):
    ev = bv.Evaluator()
    ev.update(job["logits"][:10], job["labels"][:10])
    before = values_of(ev.report())
    bad = job["logits"].copy()
    bad[299, 0] = np.nan
    with pytest.raises(bv.BigvocabError):
        ev.update(bad, job["labels"])
    assert values_of(ev.report()) == before


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    path = tmp_path / "logits.npy"
    np.save(path, np.zeros((64, 30_000), np.float32))

    def shrink(done, total, read):
        if done == 16:
            with path.open("r+b") as file:
                file.truncate(1_000_000)

    with pytest.raises(bv.FormatError, match="shrank while it is read"):
        bv.evaluate(
            logits=path, labels=np.zeros(64, int), chunk_rows=16, progress=shrink, output=tmp_path / "out.parquet"
        )
    assert [p.name for p in tmp_path.iterdir()] == ["logits.npy"]


def test_merging_different_jobs_is_refused():
    with pytest.raises(bv.BigvocabError, match=r"label_smoothing is 0.0 here and 0.1 there"):
        bv.Evaluator().merge(bv.Evaluator(label_smoothing=0.1))


def test_the_real_sample_is_what_pytorch_says():
    folder = Path(__file__).parents[2] / "data" / "kjv"
    expected = json.loads((folder / "expected.json").read_text())["logits"]
    report = bv.evaluate(
        logits=folder / "logits.npy", labels=folder / "labels.parquet", group_column="book", bytes_column="bytes"
    )
    assert report["mean"] == pytest.approx(expected["mean_loss"], abs=1e-7)
    assert report["bits_per_byte"] == pytest.approx(expected["bits_per_byte"], rel=1e-7)
    for book, value in expected["books"].items():
        assert report["groups"][book]["perplexity"] == pytest.approx(value["perplexity"], rel=1e-6)


def test_an_evaluator_is_not_merged_with_itself(job):
    ev = bv.Evaluator()
    ev.update(job["logits"], job["labels"])
    before = ev.report().to_dict()
    with pytest.raises(bv.BigvocabError, match="merge: got the evaluator itself"):
        ev.merge(ev)
    assert ev.report().to_dict() == before


def test_class_weights_of_zero_are_no_weights_of_zero():
    logits, labels = np.zeros((3, 3)), [0, 1, 2]
    class_weights = np.array([1.0, 0.0, 2.0])
    report = bv.evaluate(logits=logits, labels=labels, class_weights=class_weights)
    for name, value in report["reductions"].items():
        found = bv.sparse_softmax_cross_entropy(logits, labels, class_weights=class_weights, reduction=name)
        assert value == pytest.approx(found, rel=1e-15), name


@pytest.mark.parametrize("what", ["logits", "labels", "weights"])
def test_masked_arrays_are_refused(what):
    batch = {"logits": np.zeros((3, 4)), "labels": np.arange(3), "weights": np.ones(3)}
    batch[what] = np.ma.masked_array(batch[what], mask=np.zeros_like(batch[what], bool))
    with pytest.raises(TypeError, match="expected a plain array, got a masked one"):
        bv.Evaluator().update(**batch)


@pytest.mark.parametrize("weight", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(weight):
    weights = np.array([1.0, weight, weight])
    with pytest.raises(bv.BigvocabError, match=f"weights: row 2 is {weight}, expected a finite number"):
        bv.Evaluator(ignore_index=1).update(np.zeros((3, 4)), np.arange(3), weights)


def test_a_group_has_one_name_wherever_it_comes_from():
    logits, labels, mixed = np.zeros((4, 3), np.float32), np.zeros(4, int), [True, None, True, None]
    ev = bv.Evaluator(group_column="g", label_column="y")
    ev.update(logits, labels, groups=mixed)
    column = pa.FixedSizeListArray.from_arrays(pa.array(logits.reshape(-1)), 3)
    ev.update_batch(pa.table({"logits": column, "y": labels, "g": mixed}))
    ev.update(logits, labels, groups=["a\0", "a", "a", "a"])
    assert {name: group["rows"] for name, group in ev.report()["groups"].items()} == {
        "true": 4, "(null)": 4, "a\0": 1, "a": 3,
    }  # fmt: skip
    with pytest.raises(bv.BigvocabError, match="groups: expected text"):
        ev.update(logits, labels, groups=["\ud800"] * 4)
    with pytest.raises(TypeError, match="groups: expected a sequence"):
        ev.update(logits, labels, groups=3)


def test_kept_rows_of_batches_are_nan_and_ignored_ones_null():
    logits = pa.FixedSizeListArray.from_arrays(pa.array([np.nan, 0, 0, 0, 0, 0]), 2)
    table = pa.table({"logits": logits, "label": pa.array([0, None, 1])})
    found = bv.Evaluator(nonfinite="keep").update_batch(table)["loss"]
    assert found.is_null().to_pylist() == [False, True, False]
    assert np.isnan(found[0].as_py())


def test_tensors_of_another_rank_are_no_rows():
    kind = pa.fixed_shape_tensor(pa.float32(), [2, 3])
    logits = pa.ExtensionArray.from_storage(kind, pa.array([[0.0] * 6] * 2, kind.storage_type))
    with pytest.raises(bv.BigvocabError, match="column 'logits' is .*fixed_shape_tensor"):
        bv.Evaluator().update_batch(pa.table({"logits": logits, "label": [0, 1]}))


@pytest.mark.parametrize(
    "options",
    [
        {"ignore_index": np.int64(-100), "num_classes": np.int64(4), "top_k": np.int64(3)},
        {"metrics": (name for name in ("accuracy", "rank")), "top_k": (k for k in (1, 2))},
        {"weights": np.eye(4, dtype=ml_dtypes.bfloat16)},
        {"class_weights": np.array([1, 2, 3, 4], ml_dtypes.bfloat16)},
        {"threads": np.int64(1)},
    ],
)
def test_states_hold_options_of_every_kind(options, tmp_path):
    ev = bv.Evaluator(**options)
    logits, labels = np.eye(4, dtype=np.float32)[:3], np.arange(3)
    ev.update(logits, labels)
    ev.save(tmp_path / "a.state")
    again = bv.Evaluator.load(tmp_path / "a.state")
    again.update(logits, labels)
    ev.update(logits, labels)
    assert again.report().to_dict() == ev.report().to_dict()


def test_ranks_are_not_reported_where_only_accuracy_is_asked_for(tmp_path):
    values = bv.evaluate(logits=np.eye(3), labels=[0, 1, 1], metrics="accuracy", output=tmp_path / "l.parquet")
    assert values["accuracy"] == {"1": pytest.approx(2 / 3), "5": 1.0}
    assert not {"mean_rank", "mrr", "tied_rows"} & set(values.to_dict())
    assert pq.read_schema(tmp_path / "l.parquet").names == ["row", "loss"]


def test_predictions_of_rows_without_one(tmp_path):
    logits = np.array([[0, 1, 2], [np.nan, 1, 2], [-np.inf] * 3, [0, np.inf, 1]])
    options = {"metrics": ("predicted", "entropy"), "nonfinite": "keep", "output": tmp_path / "l.parquet"}
    bv.evaluate(logits=logits, labels=[0, 1, 2, 0], **options)
    table = pq.read_table(tmp_path / "l.parquet")
    assert table["predicted"].to_pylist() == [2, None, 0, 1]
    assert np.isnan(table["entropy"].to_numpy()[1:]).all()


def test_boolean_labels_of_independent_classes():
    logits, labels = np.linspace(-3, 3, 12).reshape(4, 3), np.arange(12).reshape(4, 3) % 2 == 0
    expected = bv.Evaluator(loss="sigmoid").update(logits, labels).mean()
    assert bv.evaluate(logits=logits, labels=labels, loss="sigmoid")["mean"] == pytest.approx(expected, rel=1e-15)


def test_uneven_lists_are_named():
    with pytest.raises(bv.BigvocabError, match="labels: row 1 has another length or depth"):
        bv.Evaluator(loss="sparse-sigmoid").update(np.zeros((2, 3)), [[0], [1, 2]])
    with pytest.raises(bv.BigvocabError, match="logits: row 2 has another length or depth"):
        bv.sparse_softmax_cross_entropy([[1.0, 2.0], [1.0, 2.0], [3.0]], [0, 1, 0])


def test_an_output_may_be_called_labels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        bv.evaluate(logits=np.eye(3), labels=[0, 1, 1], output="labels")
    assert pq.read_table("labels").num_rows == 3


@pytest.mark.parametrize("dtype", ["f2", ">f2", "f4", "f8"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("loss", ["sparse-softmax", "sparse-sigmoid"])
def test_rows_that_are_copied_have_the_same_bits_in_any_split(dtype, order, loss):
    """How many rows are copied together must not decide how a row's sum is cut."""
    rng = np.random.default_rng(3)
    logits = np.asarray(rng.standard_normal((70, 150_000)) * 3, dtype, order=order)
    labels = rng.integers(0, 150_000, (70, 1) if loss == "sparse-sigmoid" else 70)
    found = {
        bv.evaluate(logits=logits, labels=labels, loss=loss, threads=threads, chunk_rows=rows)["mean"]
        for threads, rows in ((1, None), (2, None), (2, 1), (3, 30))
    }
    assert len(found) == 1


def test_a_row_with_a_nan_predicts_nothing_in_any_tile(tmp_path):
    logits = np.arange(12, dtype=np.float32).reshape(2, 6)
    logits[0, 5] = logits[1, 0] = np.nan
    logits[1, 3] = np.inf
    np.save(tmp_path / "a.npy", logits[:, :3])
    np.save(tmp_path / "b.npy", logits[:, 3:])
    out, options = tmp_path / "l.parquet", {"labels": [0, 1], "metrics": "predicted", "nonfinite": "keep"}
    for source in (logits, [tmp_path / "a.npy", tmp_path / "b.npy"]):
        bv.evaluate(logits=source, output=out, vocab_shards=isinstance(source, list), **options)
        assert pq.read_table(out)["predicted"].to_pylist() == [None, None]


def test_groups_past_64_bits_go_by_their_text():
    ev = bv.Evaluator()
    ev.update(np.zeros((3, 4)), [0, 1, 2], groups=[2**70, 1, -1])
    assert sorted(ev.report()["groups"]) == ["-1", "1", str(2**70)]


def test_evaluators_take_the_options_of_files(job, tmp_path):
    job["logits"].astype(np.float32).tofile(tmp_path / "raw.bin")
    options = {"shape": job["logits"].shape, "dtype": "float32", "chunk_rows": 7, "max_memory": "64M"}
    found = bv.Evaluator(**options).update(tmp_path / "raw.bin", job["labels"])
    assert np.array_equal(found, bv.Evaluator().update(job["logits"].astype(np.float32), job["labels"]))
    with pytest.raises(TypeError, match=r"evaluate\(\) got an unexpected keyword argument 'fail_if'; it belongs to"):
        bv.evaluate(logits=job["logits"], labels=job["labels"], fail_if="mean > 3")
    with pytest.raises(bv.BigvocabError, match="chunk_rows: got 0"):
        bv.Evaluator(chunk_rows=0)
    with pytest.raises(bv.BigvocabError, match="threads: expected"):
        bv.Evaluator(threads=0)


def test_memory_bounds_the_blocks_that_are_asked_for():
    matrix = as_matrix(np.zeros((1000, 4096), np.float32))
    for chunk_rows, max_memory, expected in ((500, "4M", 96), (90, "4M", 90), (500, None, 500)):
        asked = specify(chunk_rows=chunk_rows, max_memory=max_memory)
        assert block_rows(asked, matrix, 4 * 4096) == expected


def test_blocks_grow_while_they_are_quick_where_no_one_asked_for_a_size(job, tmp_path, monkeypatch):
    row_bytes, now, seen, slow = job["logits"][0].nbytes, [0.0], [], []
    monkeypatch.setattr(work, "clock", lambda: now[0])
    monkeypatch.setattr("bigvocab.jobs.blocks.BLOCK_BYTES", 2 * row_bytes)

    def look(done, rows, read):
        now[0] += done in slow
        seen.append(done)

    def sizes(**options):
        seen.clear()
        bv.evaluate(logits=job["logits"], labels=job["labels"], progress=look, metrics="", **options)
        return np.diff(seen).tolist()

    assert sizes() == [2, 4, *[8] * 36, 6]
    assert set(sizes(chunk_rows=3)) == {3}
    assert set(sizes(max_memory="1M")) == {3}
    with monkeypatch.context() as copied:
        copied.setitem(job, "logits", np.asfortranarray(job["logits"]))
        assert set(sizes()) == {2}
        parts = [job["logits"][:6], np.asfortranarray(job["logits"][6:])]
        for i, part in enumerate(parts):
            np.save(tmp_path / f"{i}.npy", part)
        copied.setitem(job, "logits", tmp_path)
        assert set(sizes()) == {2}
    weighted = pa.table({"label": job["labels"], "weight": np.ones(300)})
    assert set(sizes(vocab_shard="1/2", state=tmp_path / "s")) == {2}
    assert set(sizes(class_weights=np.ones(501))) == {2}  # the first bad row would depend on it
    with monkeypatch.context() as columns:
        columns.setitem(job, "labels", weighted)
        assert sizes()[:4] == [2, 4, 8, 8]
        assert set(sizes(weight_column="weight")) == {2}
    slow += [14, 16]
    assert sizes()[:8] == [2, 4, 8, 2, 2, 4, 8, 8]
    slow[:] = [2, 4, 6, 9, 11, 13]  # what is quick is a rest of a batch of labels, and says nothing of a block
    with monkeypatch.context() as rests:
        rests.setattr("bigvocab.labels.columns.MAX_ROWS", 7)
        assert sizes()[:8] == [2, 2, 2, 1, 2, 2, 2, 1]
    dense = np.eye(501)[job["labels"]]
    bv.evaluate(logits=job["logits"], labels=dense, progress=look, loss="softmax")
    assert set(np.diff(seen[-100:])) == {2}  # labels are looked at block by block, and the first bad row is named


@pytest.mark.parametrize("what", ["labels", "logits"])
def test_files_that_change_before_a_worker_opens_them_are_refused(job, tmp_path, what):
    for name in ("labels", "logits"):
        np.save(tmp_path / f"{name}.npy", job[name])

    def change(done, rows, read):
        if done == 0:
            np.save(tmp_path / f"{what}.npy", job[what][::-1])

    options = {"workers": 2, "progress": change, "output": tmp_path / "out"}
    with pytest.raises(bv.FormatError, match=rf"{what}.npy: (changed|was written to or replaced) while"):
        bv.evaluate(logits=tmp_path / "logits.npy", labels=tmp_path / "labels.npy", **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.npy", "logits.npy"]


@pytest.mark.parametrize("what", ["labels", "logits"])
@pytest.mark.parametrize("at", [0, 3])
def test_files_that_change_while_logits_of_labels_are_picked_are_refused(job, tmp_path, monkeypatch, what, at):
    for name in ("labels", "logits"):
        np.save(tmp_path / f"{name}.npy", job[name])
    monkeypatch.setattr("bigvocab.labels.columns.MAX_ROWS", 75)
    pick, seen = ClassTask.label_logits, []

    def changed(self, *given):
        if len(seen) == at:
            os.utime(tmp_path / f"{what}.npy", (1, 1))
        seen.append(given)
        return pick(self, *given)

    monkeypatch.setattr(ClassTask, "label_logits", changed)
    paths = {name: tmp_path / f"{name}.npy" for name in ("labels", "logits")}
    with pytest.raises(bv.FormatError, match=rf"{what}.npy: (changed|was written to or replaced) while"):
        bv.evaluate(**paths, first_class=0, num_classes=600, save_label_logits=tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.npy", "logits.npy"]
    assert len(seen) == at + 1


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("at", [100, 300])
def test_labels_that_change_while_they_are_read_are_refused(job, tmp_path, dense, at):
    """Whether they are written to before the last block or in the midst of it."""
    np.save(tmp_path / "labels.npy", np.eye(501, dtype=np.float32)[job["labels"]] if dense else job["labels"])
    options = {"loss": "softmax" if dense else "sparse-softmax", "chunk_rows": 50, "output": tmp_path / "out"}

    seen = []

    def change(done, rows, read):
        seen.append(done)
        if done == at:
            with (tmp_path / "labels.npy").open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(b"\0")
            os.utime(tmp_path / "labels.npy", (1, 1))

    with pytest.raises(bv.FormatError, match=r"labels.npy: (changed|was written to or replaced) while"):
        bv.evaluate(logits=job["logits"], labels=tmp_path / "labels.npy", progress=change, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["labels.npy"]
    assert seen[-1] == at  # at once


def test_masked_arrays_and_uneven_lists_are_refused_wherever_they_come():
    masked, logits = np.ma.masked_array([1.0, 2.0, 3.0], mask=[0, 1, 0]), np.zeros((2, 3), np.float32)
    soft = np.ma.masked_array(np.full((2, 3), 1 / 3), mask=[[0, 1, 0]] * 2)
    calls = {
        "unigrams": lambda given: bv.FixedUnigramSampler(given),
        "class_weights": lambda given: bv.Evaluator(class_weights=given),
        "pos_weight": lambda given: bv.Evaluator(loss="weighted-sigmoid", pos_weight=given),
        "labels": lambda given: bv.Evaluator(loss="softmax").update(logits, given),
    }
    for name, call in calls.items():
        with pytest.raises(TypeError, match=f"{name}: expected a plain array, got a masked one"):
            call(soft if name == "labels" else masked)
        with pytest.raises(bv.BigvocabError, match=f"{name}: row 1 has another length or depth"):
            call([[1.0, 2.0, 3.0], [1.0]])
    probabilities = np.ma.masked_array([1.0, 1.0], mask=[0, 1])
    with pytest.raises(TypeError, match="labels: expected a plain array, got a masked one"):
        bv.Evaluator(loss="softmax").update(logits, ([0, 1, 2], [0, 1], probabilities))


def test_a_row_with_a_nan_is_right_for_no_k():
    ev = bv.Evaluator(nonfinite="keep", top_k=(1, 3, 5))
    ev.update(np.array([[np.nan, 0.0, 0.0]]), [1])
    assert ev.report()["accuracy"] == {"1": 0.0, "3": 0.0, "5": 0.0}


def test_a_row_is_named_by_its_part_of_a_file_that_is_given_twice(tmp_path):
    from safetensors.numpy import save_file

    good = np.zeros((10, 3), np.float32)
    bad = good.copy()
    bad[5] = np.nan
    save_file({"a": good, "b": bad}, tmp_path / "m.safetensors")
    np.save(tmp_path / "z.npy", good)
    names = [f"{tmp_path}/m.safetensors::a", f"{tmp_path}/z.npy", f"{tmp_path}/m.safetensors::b"]
    with pytest.raises(bv.BigvocabError, match=r"m\.safetensors::b: row 5 \(row 25 of all files\)"):
        bv.evaluate(logits=names, labels=np.zeros(30, int))


def test_a_bad_label_is_named_by_its_file_and_its_row_there(tmp_path):
    logits = np.zeros((300, 7), np.float32)
    for i in range(3):
        labels = np.zeros(100, int)
        labels[42 + i] = 9 if i else 0
        np.save(tmp_path / f"{i}.npy", labels)
        pq.write_table(pa.table({"label": labels, "w": np.where(labels, np.nan, 1.0)}), tmp_path / f"{i}.parquet")
    found = r"{}: row 43 \(row 143 of all files\) is 9, expected a class in \[0, 7\)"
    for name in ("npy", "parquet"):
        with pytest.raises(bv.BigvocabError, match=found.format(f"1.{name}")):
            bv.evaluate(logits=logits, labels=[tmp_path / f"{i}.{name}" for i in range(3)])
    with pytest.raises(bv.BigvocabError, match=r"1.parquet: column 'w': row 43 \(row 143 of all files\): expected"):
        bv.evaluate(logits=logits, labels=f"{tmp_path}/*.parquet", weight_column="w")
    with pytest.raises(bv.BigvocabError, match=r"1.npy: row 43 is 9"):
        bv.evaluate(logits=logits[:100], labels=tmp_path / "1.npy")


def test_a_bad_dense_label_is_named_by_its_file_and_its_row_there(tmp_path):
    soft = np.full((150, 7), 1 / 7, np.float32)
    soft[143, 2] = np.nan
    np.save(tmp_path / "soft0.npy", soft[:100])
    np.save(tmp_path / "soft1.npy", soft[100:])
    logits = tmp_path / "logits.npy"
    np.save(logits, np.zeros((150, 7), np.float32))
    found = r"soft1.npy: row 43 \(row 143 of all files\), class 2, is nan, expected a finite number"
    for workers in (1, 2):
        with pytest.raises(bv.BigvocabError, match=found):
            bv.evaluate(logits=logits, labels=tmp_path / "soft*.npy", loss="softmax", workers=workers)


def test_messages_name_the_argument(job):
    labels = job["labels"]
    with pytest.raises(TypeError, match="logits: expected one of .*, got int64; are logits and labels swapped"):
        bv.evaluate(logits=labels, labels=labels)
    with pytest.raises(bv.BigvocabError, match="logits: row 1 has another length"):
        bv.Evaluator().update([[1.0, 2.0], [1.0]], [0, 0])
    with pytest.raises(bv.BigvocabError, match="logits: expected the name of a file, got ''"):
        bv.evaluate(logits="", labels=labels)
    with pytest.raises(TypeError, match="inputs: expected one of"):
        bv.evaluate(inputs=labels[:, None], weights=np.ones((5, 1), np.float32), labels=labels)
    with pytest.raises(TypeError, match="weights: expected one of"):
        bv.Evaluator(weights=np.ones((5, 1), int))
    with pytest.raises(bv.BigvocabError, match="top_k: .* got 'a'"):
        bv.Evaluator(top_k="a")


@pytest.mark.filterwarnings("error")
def test_class_weights_that_overflow_are_refused(job):
    with pytest.raises(bv.BigvocabError, match="class_weights: times the loss of logits: row [0-9]+, they are past"):
        bv.Evaluator(class_weights=np.full(501, 1e308)).update(job["logits"], job["labels"])


def test_labels_of_another_library_are_not_taken_for_arrow():
    class Series:
        def null_count(self):  # as polars has it
            return 0

        def __array__(self, dtype=None, copy=None):
            return np.array([1.0, 2.0, 3.0], dtype)

    with pytest.raises(TypeError, match="labels: expected integers, got float64"):
        bv.Evaluator().update(np.zeros((3, 4), np.float32), Series())


@pytest.mark.parametrize("labels", [[1, None, 2], pa.array([1, None, 2]), pa.chunked_array([[1], [None, 2]])])
def test_a_null_among_labels_in_memory_is_named(labels):
    logits = np.zeros((3, 4), np.float32)
    expected = "labels: row 1 is null, expected integers; ignore_index is what stands for an ignored row"
    for call in (bv.Evaluator().update, bv.sparse_softmax_cross_entropy):
        with pytest.raises(bv.BigvocabError, match=expected):
            call(logits, labels)
