"""Comparisons over files: the same bits in any split, killed and resumed, by workers; and what is refused."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import naive
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import ENVIRONMENT
from comparisons import CLASSES, ROWS, layers, pair, write_pair
from sample_jobs import values_of

import bigvocab as bv
from bigvocab.comparison.llama_table import STORED_CANDIDATE
from bigvocab.evaluation.state import read_state
from bigvocab.jobs import checkpoints
from bigvocab.reports.comparison_names import check_comparison_name
from bigvocab.reports.llama_cpp import format_table

LLAMA = Path(__file__).parents[1] / "data/llama/kjv-751"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def whole(folder):
    report = bv.compare(**pair(folder), output=folder / "whole.parquet")
    return shown(report), (folder / "whole.parquet").read_bytes()


def shown(report):
    """All values, NaN equal to NaN."""
    return json.dumps(values_of(report))


@pytest.fixture
def at_every_block(monkeypatch):
    monkeypatch.setattr(checkpoints, "MIN_SECONDS", 0)
    monkeypatch.setattr(checkpoints, "SHARE", 0)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    place = tmp_path_factory.mktemp("llama")
    with np.load(LLAMA / "logits.npz") as file:
        for name in file.files:
            np.save(place / f"{name}.npy", file[name])
    return place


# ---- the same bits


@pytest.mark.parametrize("options", [{"chunk_rows": 7}, {"threads": 1}, {"max_memory": "1M"}, {"chunk_rows": 1000}])
def test_blocks_and_threads_change_no_bit(folder, whole, tmp_path, options):
    report = bv.compare(**pair(folder, **options), output=tmp_path / "rows.parquet")
    assert (shown(report), (tmp_path / "rows.parquet").read_bytes()) == whole


@pytest.mark.parametrize("count", [1, 3])
def test_shards_merge_in_any_order(folder, whole, tmp_path, count):
    states = [tmp_path / f"{i}.state" for i in range(count)]
    for i, state in enumerate(states):
        bv.compare(**pair(folder), shard=(i + 1, count), state=state, chunk_rows=11 + i)
    assert shown(bv.merge(states[::-1], rows=ROWS)) == whole[0]
    if count > 1:
        with pytest.raises(bv.BigvocabError, match="rows 0-85 of 0-259 are missing"):
            bv.merge(states[1:])
        with pytest.raises(bv.BigvocabError, match="is given twice"):
            bv.merge([states[0], states[0]])


def test_workers_change_no_bit(folder, whole, tmp_path):
    report = bv.compare(**pair(folder), workers=2, output=tmp_path / "rows.parquet", state=tmp_path / "s")
    assert (shown(report), (tmp_path / "rows.parquet").read_bytes()) == whole
    assert shown(bv.merge(tmp_path / "s")) == whole[0]


def test_workers_open_layers_and_llama_files(llama, tmp_path):
    states, layer, rounded, labels = layers()
    for name, array in (("states", states), ("layer", layer), ("rounded", rounded)):
        np.save(tmp_path / f"{name}.npy", array)
    files = {name: tmp_path / f"{name}.npy" for name in ("states", "layer", "rounded")}
    job = {"inputs": files["states"], "reference_weights": files["layer"], "labels": labels}
    job |= {"candidate_weights": {"r": files["rounded"]}, "candidate_logit_scale": 0.9}
    assert shown(bv.compare(**job, workers=2)) == shown(bv.compare(**job, chunk_rows=13))
    job = {"reference": LLAMA / "base.kld", "candidate": {"file": LLAMA / "candidate.kld", "live": None}}
    job["candidate"]["live"], job["llama_cpp"] = llama / "candidate.npy", True
    assert shown(bv.compare(**job, workers=2)) == shown(bv.compare(**job, chunk_rows=17))


def test_going_on_is_the_same_run(folder, whole, tmp_path, at_every_block):
    job = pair(folder, chunk_rows=20) | {"state": tmp_path / "s", "output": tmp_path / "rows.parquet"}

    def stop_at(rows):
        def stop(done, total, read):
            if done >= rows:
                raise KeyboardInterrupt

        return stop

    with pytest.raises(KeyboardInterrupt):
        bv.compare(**job, progress=stop_at(80))
    with pytest.raises(KeyboardInterrupt):
        bv.compare(**job, progress=stop_at(200), resume=True)
    assert 200 <= read_state(tmp_path / "s").coverage.ranges[-1][1] < ROWS
    with pytest.raises(bv.BigvocabError, match=r"nonfinite is 'skip', but 'error' in"):
        bv.compare(**job, resume=True, nonfinite="skip")
    with pytest.raises(bv.BigvocabError, match=r"the dtype of .*q4\.npy is not that of the candidate q8 in"):
        bv.compare(**{**job, "candidate": {"q8": folder / "q4.npy", "q4": folder / "q8.npy"}}, resume=True)
    report = bv.compare(**job, resume=True)
    assert (shown(report), (tmp_path / "rows.parquet").read_bytes()) == whole
    assert shown(bv.compare(**job, resume=True)) == whole[0]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_run_goes_on(folder, whole, tmp_path):
    code = f"""
import os, signal, pathlib
import bigvocab as bv
from bigvocab.jobs import checkpoints
checkpoints.MIN_SECONDS = checkpoints.SHARE = 0
folder, place = pathlib.Path({str(folder)!r}), pathlib.Path({str(tmp_path)!r})
def progress(done, total, read):
    if done >= 120:
        os.kill(os.getpid(), signal.SIGKILL)
bv.compare(reference=str(folder / "reference-*.npy"), candidate={{"q8": folder / "q8.npy", "q4": folder / "q4.npy"}},
    labels=folder / "labels.parquet", group_column="group", cluster_column="document", chunk_rows=20,
    metrics="kl_reverse,js,tv,delta_p,tops,entropy,overlap,logit_difference",
    state=place / "s", output=place / "rows.parquet", progress=progress)
"""
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    report = bv.compare(**pair(folder), state=tmp_path / "s", output=tmp_path / "rows.parquet", resume=True)
    assert (shown(report), (tmp_path / "rows.parquet").read_bytes()) == whole


def test_shards_of_another_pair_are_refused(folder, tmp_path):
    bv.compare(**pair(folder), shard="1/2", state=tmp_path / "1.state")
    swapped = pair(folder) | {"candidate": {"q4": folder / "q4.npy", "q8": folder / "q8.npy"}}
    bv.compare(**swapped, shard="2/2", state=tmp_path / "2.state")
    other = pair(folder) | {"candidate": {"q8": folder / "q4.npy", "q4": folder / "q4.npy"}}
    bv.compare(**other, shard="2/2", state=tmp_path / "3.state")
    bv.evaluate(logits=folder / "q8.npy", labels=folder / "labels.parquet", state=tmp_path / "4.state")
    for name, words in (("2", "candidate"), ("3", "the dtype of .*q4.npy"), ("4", "task is 'evaluate'")):
        with pytest.raises(bv.BigvocabError, match=words):
            bv.merge([tmp_path / "1.state", tmp_path / f"{name}.state"])
    with pytest.raises(bv.BigvocabError, match="is of the task compare"):
        bv.Evaluator.load(tmp_path / "1.state")


# ---- what is in the report and the records


def test_records_have_what_rows_have(folder, whole):
    table = pq.read_table(folder / "whole.parquet")
    x = np.concatenate([np.load(folder / f"reference-{i}.npy") for i in range(2)])
    y = np.load(folder / "q4.npy")
    labels = pq.read_table(folder / "labels.parquet")["label"]
    ignored = np.array(labels.is_null())
    assert table.column_names[:2] == ["row", "group"]
    assert table["row"].to_pylist() == list(range(ROWS))
    expected = naive.kl_divergence(x, y).astype(float)
    found = table["q4.kl"].to_numpy(zero_copy_only=False)
    assert (np.isnan(found) == ignored).all()
    np.testing.assert_allclose(found[~ignored], expected[~ignored], rtol=1e-6)
    for name, formula in (("js", naive.js_divergence), ("tv", naive.total_variation)):
        values = table[f"q4.{name}"].to_numpy(zero_copy_only=False)
        np.testing.assert_allclose(values[~ignored], formula(x, y).astype(float)[~ignored], rtol=1e-5)
    losses = [table[f"q4.loss_{side}"].to_numpy(zero_copy_only=False) for side in ("reference", "candidate")]
    difference = table["q4.loss_difference"].to_numpy(zero_copy_only=False)
    np.testing.assert_array_equal((losses[1] - losses[0])[~ignored], difference[~ignored])
    assert table.schema.field("q8.same_top").type == pa.bool_()
    assert table.schema.field("q8.top_rank_in_candidate").type == pa.int64()
    assert {"q8.overlap.1", "q8.overlap.5", "q8.entropy_reference", "q8.confidence"} <= set(table.column_names)


@pytest.mark.parametrize("ignore_index", [-100, (-100, 7), (7, -100, -1)])
def test_labels_that_mark_ignored_rows(folder, tmp_path, ignore_index):
    x, y = np.load(folder / "q8.npy"), np.load(folder / "q4.npy")
    labels = np.arange(ROWS) % CLASSES
    labels[[3, 100, 259]] = -100
    left_out = np.isin(labels, ignore_index)
    np.save(tmp_path / "labels.npy", labels)
    masked = pa.table({"label": pa.array(labels, mask=left_out)})
    expected = shown(bv.compare(reference=x, candidate=y, labels=masked, output=tmp_path / "masked.parquet"))
    files = {"reference": folder / "q8.npy", "candidate": folder / "q4.npy", "labels": tmp_path / "labels.npy"}
    jobs = ({"reference": x, "candidate": y, "labels": labels}, files, files | {"workers": 2, "state": tmp_path / "s"})
    for job in jobs:
        report = bv.compare(**job, ignore_index=ignore_index, output=tmp_path / "rows.parquet")
        assert report["ignored_rows"] == left_out.sum()
        assert shown(report) == expected
        assert (tmp_path / "rows.parquet").read_bytes() == (tmp_path / "masked.parquet").read_bytes()
    assert shown(bv.merge(tmp_path / "s")) == expected
    comparison = bv.Comparison(ignore_index=ignore_index)
    assert (np.isnan(comparison.update(x, y, labels)) == left_out).all()
    assert comparison.report()["kl"]["mean"] == report["kl"]["mean"]
    again = bv.Comparison.from_bytes(comparison.to_bytes())
    again.update(x[:4], y[:4], labels[:4])
    assert again.report()["ignored_rows"] == left_out.sum() + left_out[:4].sum()


def test_tokens_of_a_llama_file_that_mark_ignored_rows(llama, tmp_path):
    job = {"reference": LLAMA / "base.kld", "candidate": llama / "candidate.npy", "metrics": "tops,overlap"}
    tokens, counts = np.unique(np.load(LLAMA / "rows.npz")["label"], return_counts=True)
    common = np.argsort(-counts)[:2]
    left_out, common = counts[common].sum(), tokens[common].tolist()
    for options in ({}, {"workers": 2}):
        report = bv.compare(**job, **options, ignore_index=common, output=tmp_path / "rows.parquet")
        assert (report["rows"], report["ignored_rows"]) == (200 - left_out, left_out)
        assert pq.read_table(tmp_path / "rows.parquet")["overlap.5"].null_count == left_out
    comparison = bv.Comparison(metrics="tops,overlap", ignore_index=common)
    comparison.update(job["reference"], job["candidate"])
    assert comparison.report()["kl"] == report["kl"]
    assert report["overlap"]["1"] == report["same_top"]["share"]


def test_one_candidate_stands_at_the_top(folder, tmp_path):
    job = pair(folder) | {"candidate": folder / "q4.npy", "metrics": "kl"}
    report = bv.compare(**job, output=tmp_path / "rows.parquet").to_dict()
    assert "candidates" not in report
    assert report["kl"]["mean"] == bv.compare(**pair(folder))["candidates"]["q4"]["kl"]["mean"]
    assert not {"kl_reverse", "js", "tv", "delta_p", "top_in_candidate"} & report.keys()
    assert "kl_reverse" not in pq.read_schema(tmp_path / "rows.parquet").names
    named = bv.compare(**(job | {"candidate": {"q4": folder / "q4.npy"}}))
    assert (named["name"], named["kl"]) == ("q4", report["kl"])


def test_each_side_has_what_an_evaluation_has(folder):
    found = bv.compare(**pair(folder), candidate_logit_scale=0.9)
    sides = {name: found["candidates"][name]["candidate"] for name in ("q8", "q4")}
    sides["reference-*"] = found["candidates"]["q4"]["reference"]
    for name, side in sides.items():
        scale = 1.0 if "*" in name else 0.9
        expected = bv.evaluate(
            logits=str(folder / f"{name}.npy"), labels=folder / "labels.parquet", logit_scale=scale
        ).to_dict()
        assert side == {key: expected[key] for key in side}, name


def test_without_labels(folder, tmp_path):
    job = pair(folder) | {"labels": None, "group_column": None, "cluster_column": None}
    report = bv.compare(**job, output=tmp_path / "rows.parquet")
    assert report["rows"] == ROWS
    assert not {"reference", "difference", "flips", "delta_p"} & report["candidates"]["q4"].keys()
    assert "q4.loss_reference" not in pq.read_schema(tmp_path / "rows.parquet").names
    assert "mean KL" in str(report)
    assert "perplexity" not in str(report)


def test_no_value_of_the_table_is_cut_where_digits_are_many():
    x, labels = np.random.default_rng(1).standard_normal((3000, 5000)) * 0.5, np.arange(3000)
    report = bv.compare(
        reference=x, candidate=x + np.random.default_rng(2).standard_normal(x.shape) * 3e-4, labels=labels
    )
    lines = str(report).split("\n")
    first = next(i for i, line in enumerate(lines) if line.lstrip().startswith("candidate")) + 1
    assert max(map(len, lines)) <= 80
    assert re.fullmatch(r" candidate +5,\d+\.\d +\d\.\d+ ± \S+ ± \S+ \S+ \S+ \d+\.\d%", lines[first]), lines[first]
    assert re.fullmatch(r" +0\.0+\d", lines[first + 1]), lines[first + 1]  # the error of the ratio


def test_layers_are_as_their_logits():
    states, layer, rounded, labels = layers()
    options = {"inputs": states, "reference_weights": layer, "candidate_weights": {"r": rounded}, "labels": labels}
    found = bv.compare(**options)
    expected = bv.compare(reference=states @ layer.T, candidate={"r": states @ rounded.T}, labels=labels)
    for name in ("kl", "js", "tv", "difference"):
        assert found[name]["mean"] == pytest.approx(expected[name]["mean"], rel=1e-4), name
    tight = bv.compare(**options, max_memory="1MB", threads=1)  # 16 rows at a time
    for name in ("kl", "js", "tv", "difference", "top_in_candidate"):
        assert tight[name] == found[name], name
    mixed = bv.compare(
        reference=states @ layer.T, candidate={"logits": states @ rounded.T}, inputs=states,
        candidate_weights={"r": rounded}, labels=labels,
    )  # fmt: skip
    logits, made = (mixed["candidates"][name]["kl"]["mean"] for name in ("logits", "r"))
    assert made == pytest.approx(logits, rel=1e-4)
    shared = {"inputs": states, "weights": rounded}  # of the sides without logits
    assert bv.compare(reference=states @ layer.T, candidate_inputs=states, weights=rounded)["kl"]["mean"] == made
    assert bv.compare(candidate=states @ rounded.T, **shared)["kl"]["mean"] < 1e-9
    named = {"logits": states @ rounded.T, "r": None}
    both = bv.compare(reference=states @ layer.T, candidate=named, candidate_inputs={"r": states}, weights=rounded)
    assert both["candidates"]["r"]["kl"]["mean"] == made
    assert both["candidates"]["logits"]["kl"]["mean"] == logits


def test_rows_that_are_not_finite(folder, tmp_path):
    bad = np.load(folder / "q4.npy")
    bad[120, 3], bad[130, :] = np.nan, -np.inf
    np.save(tmp_path / "bad.npy", bad)
    job = {"reference": str(folder / "reference-*.npy"), "candidate": {"ok": folder / "q8.npy", "bad": None}}
    job["candidate"]["bad"] = tmp_path / "bad.npy"
    with pytest.raises(bv.BigvocabError, match=r"bad\.npy: row 120 holds a NaN; expected finite logits"):
        bv.compare(**job)
    report = bv.compare(**job, nonfinite="skip")
    found = report["candidates"]
    assert (found["ok"]["rows"], found["bad"]["rows"], report["rows"]) == (ROWS, ROWS - 2, ROWS)
    assert found["bad"]["nonfinite_rows"] == {"reference": 0, "candidate": 2}
    kept = bv.compare(**job, nonfinite="keep", output=tmp_path / "kept.parquet")
    assert math.isnan(kept["candidates"]["bad"]["kl"]["mean"])
    row = pq.read_table(tmp_path / "kept.parquet").slice(120, 1).to_pylist()[0]
    assert row["bad.predicted_candidate"] is None  # a row with a NaN has no greatest logit
    assert row["bad.predicted_reference"] == row["ok.predicted_reference"]
    swapped = {"reference": tmp_path / "bad.npy", "candidate": str(folder / "reference-*.npy")}
    with pytest.raises(bv.BigvocabError, match=r"bad\.npy: row 120 holds a NaN"):
        bv.compare(**swapped)
    with pytest.raises(bv.BigvocabError, match=r"all 2 rows are not finite"):
        bv.compare(reference=np.full((2, 3), np.nan), candidate=np.zeros((2, 3)), nonfinite="skip")


def test_a_class_that_one_side_has_masked_is_an_infinity_with_a_name():
    x = np.zeros((3, 4), np.float32)
    y = x.copy()
    y[1, 2] = -np.inf
    report = bv.compare(reference=x, candidate=y)
    assert report["kl"]["mean"] == math.inf
    held = json.loads(report.to_json())
    assert (held["kl"]["mean"], held["infinite"]["kl.mean"]) == (None, "inf")
    assert (held["kl"]["infinite_rows"], held["kl"]["finite_mean"]) == (1, 0.0)
    assert held["worst"][0]["kl"] is None
    assert held["infinite"]["worst.0.kl"] == "inf"


def test_padding_after_the_classes_that_count(folder):
    x = np.load(folder / "q8.npy")
    y = np.load(folder / "q4.npy")
    padded = np.concatenate([y, np.full((ROWS, 10), 99, np.float32)], axis=1)
    expected = bv.compare(reference=x, candidate=y)
    assert bv.compare(reference=x, candidate=padded, num_classes=CLASSES)["kl"] == expected["kl"]
    with pytest.raises(bv.BigvocabError, match="candidate: 160 classes, but reference has 150.*num_classes"):
        bv.compare(reference=x, candidate=padded)


def test_conditions_know_every_value_of_a_report(folder):
    for candidate in ({"q8": folder / "q8.npy", "q4": folder / "q4.npy"}, folder / "q4.npy"):
        report = json.loads(bv.compare(**(pair(folder) | {"candidate": candidate})).to_json())
        asked = {"metrics": pair(folder)["metrics"].split(",") + ["kl"], "top_k": (1, 5), "labelled": True}
        names = list(candidate) if isinstance(candidate, dict) else ["candidate"]
        asked |= {"names": names, "clustered": True, "grouped": True, "llama_cpp": False}
        for name in leaves(report):
            check_comparison_name(name, **asked)
        for name in ("kl.meen", "candidates.q9.kl.mean", "groups.a.perplexity", "nothing"):
            with pytest.raises(bv.BigvocabError, match="the report has no value named"):
                check_comparison_name(name, **asked)


def leaves(report, prefix=""):
    """Dotted names of the numbers of a report, except lists and what is text."""
    for name, value in report.items():
        if isinstance(value, dict) and name not in ("versions", "infinite"):
            yield from leaves(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and name != "schema_version":
            yield prefix + name


def test_the_same_file_twice_is_noted(folder):
    report = bv.compare(reference=folder / "q8.npy", candidate={"a": folder / "q8.npy", "b": folder / "q4.npy"})
    assert [note["code"] for note in report["notes"]] == ["same_file"]
    assert report["candidates"]["a"]["kl"]["max"] == 0
    assert "says what the reference says" in str(report)
    cooler = bv.compare(reference=folder / "q8.npy", candidate=folder / "q8.npy", candidate_logit_scale=0.9)
    assert "notes" not in cooler
    assert cooler["kl"]["mean"] > 0


def test_the_report_so_far_and_the_page(folder, tmp_path):
    pytest.importorskip("matplotlib")
    bv.compare(**pair(folder, chunk_rows=50), report=tmp_path / "r.json", report_every=0, html=tmp_path / "p.html")
    assert json.loads((tmp_path / "r.json").read_text())["candidates"]["q8"]["rows"]
    assert "Percentiles of KL" in (tmp_path / "p.html").read_text()
    with pytest.raises(bv.BigvocabError, match=r"q8\.npy"):
        bv.compare(**pair(folder), html=folder / "q8.npy")


# ---- llama.cpp's files


@pytest.mark.parametrize(
    ("printed", "file", "live"),
    [("printed.txt", "base", "candidate"), ("printed_self.txt", "base", "base"),
     ("printed_reverse.txt", "candidate", "base")],
)  # fmt: skip
def test_printed_tables_come_out_to_the_last_digit(llama, tmp_path, printed, file, live):
    job = {"reference": LLAMA / f"{file}.kld", "candidate": llama / f"{live}.npy", "llama_cpp": True}
    states = [tmp_path / f"{i}.state" for i in range(2)]
    for i, state in enumerate(states):
        bv.compare(**job, shard=(i + 1, 2), state=state, chunk_rows=23)
    text = (LLAMA / printed).read_text()
    for report in (bv.compare(**job), bv.merge(states)):
        assert format_table(report["llama_cpp"]).rstrip() == text[text.index("====== Perp") :].rstrip()
        assert "note" not in report["llama_cpp"]
    assert text[text.index("====== KL") : text.index("====== Token")].strip().splitlines()[1] in str(report)


def test_a_llama_file_brings_labels_windows_and_the_floor(llama):
    expected = json.loads((LLAMA / "expected.json").read_text())
    report = bv.compare(reference=LLAMA / "base.kld", candidate=LLAMA / "candidate.kld", llama_cpp=True)
    assert (report["rows"], report["clusters"]["count"], report["kl"]["bound"]) == (200, 10, "lower")
    assert report["kl"]["mean"] == pytest.approx(expected["kl_mean_and_error"]["kept classes, both files"][0], abs=5e-8)
    assert report["floor"]["nats"] == 16.0
    assert 0 < report["floor"]["step"] < 2.5e-4
    assert report["llama_cpp"]["note"] == STORED_CANDIDATE
    assert report["llama_cpp"]["mean_kld"]["value"] == pytest.approx(0.030072, abs=2e-6)
    itself = bv.compare(reference=LLAMA / "base.kld", candidate=LLAMA / "base.kld")
    for name in ("kl", "kl_reverse", "js", "tv"):
        assert (itself[name]["mean"], itself[name]["stderr"], itself[name]["max"]) == (0.0, 0.0, 0.0)
    assert (itself["difference"]["mean"], itself["difference"]["stderr"], itself["same_top"]["share"]) == (0, 0, 1)
    assert (itself["difference"]["correlation"], itself["flips"]["mcnemar_p"]) == (1.0, 1.0)


def test_a_row_of_nan_beside_a_llama_file_is_the_same_in_any_split(llama, tmp_path):
    bad = np.load(llama / "candidate.npy")
    bad[90] = np.nan
    np.save(tmp_path / "bad.npy", bad)
    job = {"reference": tmp_path / "bad.npy", "candidate": LLAMA / "base.kld", "nonfinite": "keep"}
    expected = bv.compare(**job)
    assert math.isnan(expected["floor"]["mass_max"])
    assert shown(bv.compare(**job, chunk_rows=50, threads=1)) == shown(expected)
    states = [tmp_path / f"{i}.state" for i in (1, 2)]
    for i, state in enumerate(states, 1):
        bv.compare(**job, shard=(i, 2), state=state)
    assert shown(bv.merge(states)) == shown(bv.merge(states[::-1])) == shown(expected)


def test_rows_of_every_position_go_with_a_llama_file(llama):
    scored = np.load(llama / "candidate.npy")
    every = np.full((10, 42, 751), np.nan, np.float32)
    every[:, 21:41] = scored.reshape(10, 20, 751)
    expected = bv.compare(reference=LLAMA / "base.kld", candidate=scored)
    for candidate in (every.reshape(420, 751), every[:, :-1].reshape(410, 751)):
        assert bv.compare(reference=LLAMA / "base.kld", candidate=candidate)["kl"] == expected["kl"]
    both = bv.compare(reference=every.reshape(420, 751), candidate={"f": LLAMA / "base.kld", "same": scored})
    assert both["candidates"]["same"]["kl"]["max"] == 0
    with pytest.raises(bv.FormatError, match=r"candidate: got 199 rows, expected 200 .*420.*410"):
        bv.compare(reference=LLAMA / "base.kld", candidate=scored[:199])
    labels = np.arange(200) % 751
    with pytest.raises(bv.BigvocabError, match=r"labels: row 0 is 0, expected \d+, the token in .*base\.kld"):
        bv.compare(reference=LLAMA / "base.kld", candidate=scored, labels=labels)


def test_a_layer_against_a_llama_file():
    """Rows that a layer makes are made whole, a few at a time."""
    logits = np.load(LLAMA / "logits.npz")["candidate"]
    eye = np.eye(751, dtype=np.float32)
    made = bv.compare(reference=LLAMA / "base.kld", candidate_inputs=logits, candidate_weights=eye, llama_cpp=True)
    stored = bv.compare(reference=LLAMA / "base.kld", candidate=logits, llama_cpp=True)
    assert made["kl"]["mean"] == pytest.approx(stored["kl"]["mean"], rel=1e-6)
    shared = bv.compare(reference=LLAMA / "base.kld", candidate_inputs=logits, weights=eye)
    assert shared["kl"] == made["kl"]
    assert made["llama_cpp"]["mean_kld"]["value"] == pytest.approx(stored["llama_cpp"]["mean_kld"]["value"], rel=1e-6)


# ---- what is refused


def test_what_does_not_fit_is_refused(folder, llama, tmp_path):
    x, y = np.zeros((4, 3), np.float32), np.zeros((5, 3), np.float32)
    data = (LLAMA / "candidate.kld").read_bytes()
    files = {"short": data[:-1512], "doubled": data + data, "other": data[:24] + b"\0\0\0\0" + data[28:]}
    for name, content in files.items():
        (tmp_path / f"{name}.kld").write_bytes(content)
    base = {"reference": LLAMA / "base.kld"}
    cases = [
        ({"reference": x, "candidate": y}, bv.BigvocabError, "candidate: 5 rows, but reference has 4 rows"),
        ({"reference": x, "candidate": {"q": y}}, bv.BigvocabError, "candidate q: 5 rows, but reference"),
        ({"reference": x}, bv.BigvocabError, "candidate: expected one"),
        ({"candidate": x}, bv.BigvocabError, "reference: expected it, or reference_inputs"),
        ({"reference": x, "candidate": [x, x]}, TypeError, "got 2 arrays, expected one, or a dict"),
        ({"reference": x, "candidate": {0: x}}, TypeError, "expected names for keys, got int"),
        ({"reference": x, "candidate": {}}, bv.BigvocabError, "empty dict"),
        ({"reference": x, "candidate": {" ": x}}, bv.BigvocabError, "got the name ' '"),
        ({"reference": x, "candidate": x, "labels": [0, 1]}, bv.BigvocabError, "2 rows of labels"),
        ({"reference": x, "candidate": x, "labels": [0, 1, 2, 3]}, bv.BigvocabError, "row 3 is 3, expected a class"),
        ({"reference": x, "candidate": x, "weight_column": "w"}, bv.BigvocabError, "weight_column: goes with no"),
        ({"reference": x, "candidate": x, "vocab_shard": "1/2"}, bv.BigvocabError, "vocab_shard: goes with no"),
        ({"reference": x, "candidate": x, "group_column": "g"}, bv.BigvocabError, "group_column: needs labels"),
        ({"reference": x, "candidate": x, "llama_cpp": True}, bv.BigvocabError, "llama_cpp: needs a llama.cpp"),
        ({"reference": x, "candidate": x, "metrics": "klx"}, bv.BigvocabError, "metrics: got 'klx'"),
        ({"reference": x, "candidate": x, "tops": 1}, TypeError, "unexpected keyword argument 'tops'"),
        ({"reference": x, "candidate": x, "candidate_weights": x}, bv.BigvocabError, "candidate_weights: belongs"),
        ({"reference": x, "candidate": x, "inputs": x}, bv.BigvocabError, "inputs: belongs to hidden states, but all"),
        ({"reference": x, "candidate": x, "weights": x}, bv.BigvocabError, "weights: belongs to hidden states"),
        ({"reference": x, "candidate": x, "final_norm": "rms"}, bv.BigvocabError, "final_norm: belongs to hidden"),
        ({"reference": x, "candidate_inputs": x}, bv.BigvocabError, "candidate_inputs: needs candidate_weights"),
        ({"reference": x, "candidate": x, "num_classes": "tokenizer"}, bv.BigvocabError, "tokenizer needs model"),
        ({"reference": x, "candidate": x, "resume": True}, bv.BigvocabError, "resume: needs state"),
        ({"reference": x, "candidate": x, "metrics": "overlap", "top_k": 65}, bv.BigvocabError, "at most 64"),
        ({**base, "candidate": x}, bv.FormatError, "got 4 rows, expected 200"),
        ({**base, "candidate": tmp_path / "short.kld"}, bv.FormatError, "199 whole rows, expected 200"),
        ({**base, "candidate": tmp_path / "doubled.kld"}, bv.FormatError, "second file begins there"),
        ({**base, "candidate": tmp_path / "other.kld"}, bv.FormatError, r"token 1 \(window 0\) is 0, expected"),
        ({**base, "candidate": LLAMA / "candidate.kld", "logit_scale": 2.0}, bv.BigvocabError, "log probabilities"),
        ({**base, "candidate": llama / "base.npy", "num_classes": 700}, bv.BigvocabError, "expected a class in"),
        ({**base, "candidate": llama / "base.npy", "num_classes": 752}, bv.BigvocabError, "expected 1 to 751"),
    ]
    for job, kind, words in cases:
        with pytest.raises(kind, match=words):
            bv.compare(**job)


def test_outputs_never_overwrite_what_is_read(folder):
    with pytest.raises(bv.BigvocabError, match=r"q4\.npy"):
        bv.compare(**pair(folder), output=folder / "q4.npy")
    with pytest.raises(bv.BigvocabError, match=r"base\.kld"):
        bv.compare(reference=LLAMA / "base.kld", candidate=LLAMA / "candidate.kld", report=LLAMA / "base.kld")
    assert os.path.getsize(LLAMA / "base.kld") == 304100
