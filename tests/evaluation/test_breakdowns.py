"""What one number hides: calibration, histograms, worst rows, breakdowns, clusters, ties; and that all of it merges."""

import json
import math

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
from bigvocab.jobs.merging import merge

ROWS, CLASSES = 240, 97
METRICS = "accuracy,rank,logsumexp,entropy,predicted,calibration"


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(11)
    logits = (rng.standard_normal((ROWS, CLASSES)) * 3).astype(np.float32)
    labels = rng.integers(0, CLASSES, ROWS)
    logits[np.arange(ROWS), labels] += rng.random(ROWS).astype(np.float32) * 8
    logits[::7] = np.round(logits[::7])  # ties
    logits[:, 5] = -np.inf
    labels[labels == 5] = 6
    return {
        "logits": logits,
        "labels": labels,
        "weights": rng.choice([0.0, 0.5, 1.0, 2.0], ROWS),
        "groups": rng.choice(["Ruth", "Jonah", "Mark"], ROWS),
        "clusters": rng.choice([f"d{i}" for i in range(12)], ROWS),
        "positions": rng.integers(0, 70, ROWS),
        "bytes": rng.integers(0, 4, ROWS),
        "texts": [f"word {i}" for i in range(ROWS)],
        "counts": np.floor(10.0 ** rng.uniform(-0.5, 4.5, CLASSES)),
    }


COLUMNS = {f"{name}_column": name for name in ("weight", "group", "cluster", "position", "bytes", "text")}


@pytest.fixture(scope="module")
def files(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    np.save(folder / "logits.npy", data["logits"])
    names = {"label": "labels", "weight": "weights", "group": "groups", "cluster": "clusters"}
    names |= {"position": "positions", "bytes": "bytes", "text": "texts"}
    pq.write_table(pa.table({name: data[key] for name, key in names.items()}), folder / "labels.parquet")
    return {"logits": folder / "logits.npy", "labels": folder / "labels.parquet", **COLUMNS, "metrics": METRICS}


def losses_of(data):
    return np.array(naive.sparse_softmax_cross_entropy(data["logits"].astype(float), data["labels"]))


# ---- each number by its oracle


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("weighted", [False, True])
def test_calibration(data, dtype, weighted):
    logits, weights = data["logits"].astype(dtype), data["weights"] if weighted else None
    ev = bv.Evaluator(metrics="calibration")
    ev.update(logits, data["labels"], weights)
    found = ev.report()["calibration"]
    live = np.ones(ROWS, bool) if weights is None else weights != 0
    x, y, w = logits.astype(float)[live], data["labels"][live], None if weights is None else weights[live]
    bins, ece = naive.calibration(x, y, w)
    assert [one["rows"] for one in found["bins"]] == [rows for rows, _, _ in bins]
    for one, (rows, confidence, accuracy) in zip(found["bins"], bins, strict=True):
        assert ("confidence" in one) == (rows > 0)
        if rows:
            assert one["confidence"] == pytest.approx(confidence, abs=1e-6)
            assert one["accuracy"] == pytest.approx(accuracy, abs=1e-12)
    assert found["ece"] == pytest.approx(ece, abs=1e-6)
    assert found["brier"] == pytest.approx(np.average(naive.brier(x, y), weights=w), abs=1e-6)
    assert found["bins"][0]["from"] == 0.0
    assert found["bins"][-1]["to"] == 1.0


@pytest.mark.parametrize("softcap", [None, 4.0])
def test_calibration_of_a_head_and_of_tiles(softcap):
    rng = np.random.default_rng(0)
    x, layer = rng.standard_normal((30, 24)).astype(np.float32), rng.standard_normal((40_000, 24)).astype(np.float32)
    labels = rng.integers(0, 40_000, 30)
    logits = x.astype(float) @ layer.T.astype(float)
    logits = logits if softcap is None else softcap * np.tanh(logits / softcap)
    ev = bv.Evaluator(weights=layer, metrics="calibration,rank", softcap=softcap)
    plain = bv.Evaluator(weights=layer, metrics="rank", softcap=softcap)
    assert ev.update(x, labels).tolist() == plain.update(x, labels).tolist()
    e = np.exp(logits - logits.max(1, keepdims=True))
    p = e / e.sum(1, keepdims=True)
    p[np.arange(30), labels] -= 1
    assert ev.report()["calibration"]["brier"] == pytest.approx((p**2).sum(1).mean(), abs=1e-6)


def test_a_sure_model_has_a_brier_of_zero_or_two():
    logits = np.full((4, 50), -40.0, np.float32)
    logits[:, 3] = 60.0
    for label, expected in ((3, 0.0), (7, 2.0)):
        ev = bv.Evaluator(metrics="calibration")
        ev.update(logits, np.full(4, label))
        assert ev.report()["calibration"]["brier"] == pytest.approx(expected, abs=1e-12)


def test_histograms(data):
    report = bv.evaluate(logits=data["logits"], labels=data["labels"])
    losses, ranks = losses_of(data), np.array(naive.rank(data["logits"], data["labels"]))
    found = report["loss_histogram"]
    assert found["edges"][:3] == [0.0, 0.25, 0.5]
    assert found["edges"][-2:] == [32.0, None]
    assert sum(found["counts"]) == ROWS
    for i, count in enumerate(found["counts"]):
        assert count == sum(i <= 4 * loss < i + 1 for loss in losses)
    found = report["rank_histogram"]
    assert found["edges"] == [1 << i for i in range(len(found["edges"]))]
    assert np.cumsum(found["counts"]).tolist() == [int((ranks <= edge).sum()) for edge in found["edges"]]
    assert found["counts"][-1] > 0


def test_losses_past_the_last_edge_are_counted_and_nan_is_in_no_bin():
    logits = np.zeros((4, 3))
    logits[0, 1], logits[1, 1], logits[2, 0] = 32.0, 1e6, np.nan
    ev = bv.Evaluator(nonfinite="keep")
    ev.update(logits, [0, 0, 0, 0])
    counts = ev.report()["loss_histogram"]["counts"]
    assert (counts[-1], sum(counts)) == (2, 3)
    assert math.isnan(ev.report()["worst"][0]["loss"])


def test_worst_rows(data, files):
    worst = bv.evaluate(**files)["worst"]
    losses, live = losses_of(data), data["weights"] != 0
    order = sorted(np.flatnonzero(live), key=lambda i: (-losses[i], i))[:20]
    assert [row["row"] for row in worst] == order
    for row in worst:
        i = row["row"]
        assert row["loss"] == pytest.approx(losses[i], abs=1e-6)
        assert (row["label"], row["group"], row["text"]) == (data["labels"][i], data["groups"][i], f"word {i}")
        assert row["predicted"] == np.argmax(data["logits"][i])


def test_equal_losses_are_worst_in_an_order_of_their_own(tmp_path):
    ev = bv.Evaluator()
    for label, rows in ((5, 20), (1, 5), (9, 5)):  # rows of `update` have no number: by label
        ev.update(np.zeros((rows, 10)), np.full(rows, label))
    assert [row["label"] for row in ev.report()["worst"]] == [1] * 5 + [5] * 15
    np.save(tmp_path / "x.npy", np.zeros((50, 10), np.float32))
    np.save(tmp_path / "y.npy", np.arange(50) % 10)
    files = {"logits": tmp_path / "x.npy", "labels": tmp_path / "y.npy"}
    for i in (1, 2):
        bv.evaluate(**files, shard=(i, 2), state=tmp_path / f"{i}.state")
    worst = merge([tmp_path / "2.state", tmp_path / "1.state"])["worst"]
    assert [row["row"] for row in worst] == list(range(20))
    assert bv.evaluate(**files, chunk_rows=3)["worst"] == worst


def test_texts_are_cut_and_control_characters_do_no_harm():
    table = pa.table({"label": [0, 1], "text": ["\x1b[31m<b>\u202e" + "x" * 10_000, None]})
    ev = bv.Evaluator(text_column="text")
    logits = pa.FixedSizeListArray.from_arrays(pa.array([0.0, 3.0, 0.0, 0.0]), 2)
    ev.update_batch(table.append_column("logits", logits))
    worst = ev.report()["worst"]
    assert len(worst[0]["text"]) == 1000
    assert worst[1]["text"] is None
    assert "row" not in worst[0]  # batches have no numbers that mean anything once they are merged


def test_by_frequency_and_position(data, files):
    files = {name: value for name, value in files.items() if name != "weight_column"}
    losses, hits = losses_of(data), np.array(naive.rank(data["logits"], data["labels"])) == 1
    report = bv.evaluate(**files, class_counts=data["counts"])
    places = {
        "by_frequency": [naive.decade(data["counts"][y]) for y in data["labels"]],
        "by_position": [naive.power_of_two(p) for p in data["positions"]],
    }
    starts = {"by_frequency": [0, *(10**i for i in range(8))], "by_position": [0, *(2**i for i in range(8))]}
    for name, where in places.items():
        expected = naive.by_bins(losses, hits, where)
        found = {starts[name].index(one["from"]): one for one in report[name] if one["rows"]}
        assert found.keys() == expected.keys()
        for place, (rows, mean, accuracy) in expected.items():
            one = found[place]
            assert (one["rows"], one["to"]) == (rows, starts[name][place + 1])
            assert one["mean"] == pytest.approx(mean, abs=1e-6)
            assert one["perplexity"] == pytest.approx(math.exp(mean), rel=1e-6)
            assert one["accuracy"] == pytest.approx(accuracy)
            mine = losses[np.array(where) == place]
            assert one["stderr"] == pytest.approx(naive.stderr(mine), rel=1e-4, nan_ok=True)


def test_a_vocabulary_file_counts_classes(data, files, tmp_path):
    lines = "".join(f"w{i},{count:.0f}\n" for i, count in enumerate(data["counts"]))
    (tmp_path / "vocab.txt").write_text(lines)
    by_file = bv.evaluate(**files, vocab_file=tmp_path / "vocab.txt")
    assert by_file["by_frequency"] == bv.evaluate(**files, class_counts=data["counts"])["by_frequency"]
    with pytest.raises(bv.BigvocabError, match="class_counts: got 3 counts, expected 97"):
        bv.evaluate(**files, class_counts=[1, 2, 3])
    with pytest.raises(bv.BigvocabError, match="class 1 has -2"):
        bv.evaluate(**files, class_counts=[1, -2, 3])


def test_clusters(data, files):
    report = bv.evaluate(**{name: value for name, value in files.items() if name != "weight_column"})
    losses = losses_of(data)
    assert report["clusters"] == {"count": 12}
    expected = naive.cluster_stderr(losses, data["clusters"])
    assert report["cluster_stderr"] == pytest.approx(expected, rel=1e-6)
    assert report["perplexity_cluster_stderr"] == pytest.approx(report["perplexity"] * expected, rel=1e-6)
    for name in ("stderr", "perplexity_stderr"):
        assert name in report


@pytest.mark.parametrize("weighted", [False, True])
def test_clusters_of_groups_and_bins(data, files, weighted):
    if not weighted:
        files = {name: value for name, value in files.items() if name != "weight_column"}
    report = bv.evaluate(**files, class_counts=data["counts"])
    losses, weights = losses_of(data), data["weights"] if weighted else np.ones(ROWS)
    labels, counts = data["labels"], data["counts"]
    places = {
        "groups": data["groups"].tolist(),
        "by_frequency": [naive.decade(counts[y]) for y in labels],
        "by_position": [naive.power_of_two(p) for p in data["positions"]],
    }
    starts = {"by_frequency": [0, *(10**i for i in range(8))], "by_position": [0, *(2**i for i in range(8))]}
    for name, where in places.items():
        found = report[name]
        if name != "groups":
            found = {starts[name].index(one["from"]): one for one in found if one["rows"]}
        assert found.keys() == set(where)
        for place, one in found.items():
            here = np.array([p == place for p in where])
            expected = naive.cluster_stderr(losses[here], data["clusters"][here], weights[here])
            assert one["cluster_stderr"] == pytest.approx(expected, rel=1e-5, nan_ok=True)
        assert any(one["cluster_stderr"] > 0 for one in found.values())


def test_a_group_within_one_cluster_has_no_error_over_clusters(data):
    table = pa.table(
        {
            "logits": pa.FixedSizeListArray.from_arrays(pa.array(data["logits"][:6].reshape(-1)), CLASSES),
            "label": data["labels"][:6],
            "group": ["a", "a", "b", "b", "b", "c"],
            "document": ["x", "x", "x", "y", "y", "y"],
        }
    )
    ev = bv.Evaluator(group_column="group", cluster_column="document")
    ev.update_batch(table)
    groups = ev.report()["groups"]
    assert {name for name, group in groups.items() if not math.isnan(group["cluster_stderr"])} == {"b"}
    assert json.loads(ev.report().to_json())["groups"]["a"]["cluster_stderr"] is None


def test_rankings_have_errors_over_clusters(data, files):
    out = files["labels"].parent / "ranking.parquet"
    report = bv.evaluate(**{**files, "metrics": "ranking"}, top_k=(2, 9), output=out)
    rows = pq.read_table(out)
    for name, by_k in report["ranking"]["cluster_stderr"].items():
        for k, found in by_k.items():
            expected = naive.cluster_stderr(rows[f"{name}@{k}"].to_pylist(), data["clusters"], data["weights"])
            assert found == pytest.approx(expected, rel=1e-9)
    assert report["ranking"].keys() == {
        "recall",
        "precision",
        "ndcg",
        "map",
        "hit_rate",
        "mrr",
        "stderr",
        "cluster_stderr",
    }
    assert "cluster_stderr" not in report["groups"]["Ruth"]["ranking"]


def test_macro_averages_bytes_and_errors_of_groups(data, files):
    report = bv.evaluate(**files)
    means = [group["mean"] for group in report["groups"].values()]
    assert report["macro"]["groups"] == 3
    assert report["macro"]["mean"] == pytest.approx(np.mean(means), rel=1e-14)
    assert report["macro"]["perplexity_of_mean"] == pytest.approx(math.exp(np.mean(means)), rel=1e-12)
    assert report["macro"]["mean_perplexity"] == pytest.approx(np.mean(np.exp(means)), rel=1e-12)
    assert report["bytes"] == data["bytes"].sum()
    assert report["rows_without_bytes"] == ((data["bytes"] == 0) & (data["weights"] != 0)).sum()
    losses, w = losses_of(data), data["weights"]
    for name, group in report["groups"].items():
        here = data["groups"] == name
        n = (w[here] != 0).sum()
        spread = (w[here] ** 2 * (losses[here] - group["mean"]) ** 2).sum()
        assert group["stderr"] == pytest.approx(math.sqrt(spread * n / (n - 1)) / w[here].sum(), rel=1e-5)


@pytest.mark.parametrize("ties", ["optimistic", "mean", "pessimistic"])
def test_ties(data, ties, tmp_path):
    out = tmp_path / "losses.parquet"
    report = bv.evaluate(
        logits=data["logits"], labels=data["labels"], metrics="accuracy,rank", top_k=(1, 3), ties=ties, output=out
    )
    places = np.array(naive.tie_places(data["logits"], data["labels"]))
    inside = [{"optimistic": [a], "pessimistic": [b], "mean": range(a, b + 1)}[ties] for a, b in places.tolist()]
    expected = {k: np.mean([np.mean([place <= k for place in one]) for one in inside]) for k in (1, 3)}
    assert report["accuracy"] == {str(k): pytest.approx(value, rel=1e-12) for k, value in expected.items()}
    ranks = [np.mean(one) for one in inside]
    assert report["mean_rank"] == pytest.approx(np.mean(ranks), rel=1e-12)
    assert report["mrr"] == pytest.approx(np.mean([np.mean([1 / place for place in one]) for one in inside]), rel=1e-12)
    assert report["tied_rows"] == (places[:, 0] != places[:, 1]).sum() > 0
    for k in (1, 3):
        worst, best = (places[:, 1] <= k).mean(), (places[:, 0] <= k).mean()
        assert report["accuracy_ties"][str(k)] == pytest.approx([worst, best], rel=1e-12)
    assert pq.read_table(out)["rank"].to_pylist() == ranks


def test_a_constant_model_is_not_right_when_ties_count_against():
    ev = bv.Evaluator()
    ev.update(np.zeros((10, 1000)), np.arange(10))
    report = ev.report()
    assert report["accuracy"]["1"] == 1.0
    assert report["accuracy_ties"] == {"1": [0.0, 1.0], "5": [0.0, 1.0]}
    ev = bv.Evaluator(ties="mean")
    ev.update(np.zeros((10, 100_000)), np.arange(10))
    assert ev.report()["accuracy"]["1"] == pytest.approx(1e-5)
    assert ev.report()["mrr"] == pytest.approx((math.log(1e5) + 0.5772156649 + 5e-6) / 1e5, rel=1e-9)


def test_no_ties_no_bounds():
    ev = bv.Evaluator()
    ev.update(np.arange(12.0).reshape(3, 4), [0, 1, 2])
    assert "accuracy_ties" not in ev.report()


def test_smoothing_leaves_perplexity_alone(data):
    plain, smooth = (
        bv.evaluate(logits=data["logits"][:, 6:], labels=data["labels"] % 91, label_smoothing=e) for e in (0.0, 0.1)
    )
    assert smooth["mean"] != plain["mean"]
    assert smooth["nll"] == {"mean": plain["mean"], "stderr": plain["stderr"]}
    for name in ("perplexity", "perplexity_stderr", "bits_per_token"):
        assert smooth[name] == plain[name]
    assert "nll" not in plain


def test_soft_labels_that_do_not_sum_to_one_have_no_perplexity(data):
    rng = np.random.default_rng(0)
    ids = [sorted(rng.choice(90, 4, replace=False).tolist()) for _ in range(ROWS)]
    for mass, whole in ((0.7, False), (1.0, True)):
        shares = [(rng.dirichlet(np.ones(4)) * mass).tolist() for _ in ids]
        offsets, flat = np.arange(ROWS + 1) * 4, np.concatenate(ids)
        ev = bv.Evaluator(loss="softmax")
        ev.update(data["logits"][:, 6:], (offsets, flat, np.concatenate(shares)))
        report = ev.report()
        assert report["label_mass"] == {"mean": pytest.approx(mass), "min": pytest.approx(mass)}
        assert ("perplexity" in report, "perplexity_stderr" in report) == (whole, whole)
        assert "bits_per_token" in report
    dense = rng.dirichlet(np.ones(91), ROWS)
    for mass in (1.0, 0.7):  # of dense labels only where it is not 1
        assert ("label_mass" in bv.evaluate(logits=data["logits"][:, 6:], labels=dense * mass, loss="softmax")) == (
            mass != 1.0
        )


# ---- the highest classes of each row


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("classes", "keep"), [(7, 10), (700, 1), (9000, 100), (40_000, 128)])
def test_topk(tmp_path, dtype, classes, keep):
    rng = np.random.default_rng(classes)
    logits = (rng.standard_normal((9, classes)) * 2).astype(dtype)
    logits[2] = logits[2, 0]  # one value: by id
    logits[3, : classes // 2] = -np.inf
    logits[4] = np.sort(logits[4])
    logits[5, -1] = 300.0
    labels = np.full(9, classes - 1)
    options = {"logits": logits, "labels": labels, "output": tmp_path / "o.parquet"}
    report = bv.evaluate(**options, metrics="topk,rank", keep_top=keep)
    table = pq.read_table(tmp_path / "o.parquet")
    assert table.schema.field("top_ids").type == pa.list_(pa.int64())
    assert table.schema.field("top_logprobs").type == pa.list_(pa.float32())
    expected = naive.highest(logits.astype(float).tolist(), keep)
    assert table["top_ids"].to_pylist() == [ids for ids, _ in expected]
    for found, (_, logs) in zip(table["top_logprobs"].to_pylist(), expected, strict=True):
        np.testing.assert_allclose(found, logs, rtol=2e-6, atol=2e-6)
    plain = bv.evaluate(**options, metrics="rank")
    assert pq.read_table(tmp_path / "o.parquet")["loss"].equals(table["loss"])  # to the bit
    assert report["mean"] == plain["mean"]


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_topk_of_heads_shards_and_huge_logits(tmp_path, softcap):
    rng = np.random.default_rng(1)
    x, layer = rng.standard_normal((20, 16)).astype(np.float32), rng.standard_normal((35_000, 16)).astype(np.float32)
    labels, out = rng.integers(0, 35_000, 20), tmp_path / "o.parquet"
    options = {"labels": labels, "metrics": "topk", "keep_top": 25, "output": out, "softcap": softcap}
    bv.evaluate(inputs=x, weights=layer, **options)
    from_head = pq.read_table(out)["top_ids"].to_pylist()
    logits = x.astype(float) @ layer.T.astype(float)
    for ids, row in zip(from_head, logits, strict=True):
        assert set(ids[:20]) <= set(np.argsort(-row)[:25].tolist())  # rounding may swap neighbours
    for i, part in enumerate(np.split(logits.astype(np.float32), [9000, 20_000], axis=1)):
        np.save(tmp_path / f"part-{i}.npy", part)
    bv.evaluate(logits=str(tmp_path / "part-*.npy"), vocab_shards=True, **options)
    from_shards = pq.read_table(out)["top_ids"].to_pylist()
    bv.evaluate(logits=logits.astype(np.float32), **options)
    assert pq.read_table(out)["top_ids"].to_pylist() == from_shards
    huge = (logits * 1e7).astype(np.float32)
    bv.evaluate(logits=huge, **options)
    assert pq.read_table(out)["top_ids"].to_pylist() == [ids for ids, _ in naive.highest(huge.astype(float), 25)]


def test_rows_without_an_order_keep_no_classes(tmp_path):
    logits = np.zeros((3, 4), np.float32)
    logits[1, 2] = np.nan
    options = {"logits": logits, "labels": [0, 0, -1], "ignore_index": -1, "nonfinite": "keep"}
    bv.evaluate(**options, metrics="topk", output=tmp_path / "o.parquet")
    assert pq.read_table(tmp_path / "o.parquet")["top_ids"].to_pylist() == [[0, 1, 2, 3], None, None]


# ---- merging


def run_all(files, data, **options):
    return bv.evaluate(**files, class_counts=data["counts"], **options)


def test_chunks_threads_workers_shards_and_states_do_not_show(files, data, tmp_path):
    whole = values_of(run_all(files, data))
    assert {"calibration", "loss_histogram", "rank_histogram", "worst", "by_frequency", "by_position"} <= whole.keys()
    assert values_of(run_all(files, data, chunk_rows=7, threads=1)) == whole
    assert values_of(run_all(files, data, workers=2)) == whole
    states = [tmp_path / f"{i}.state" for i in (1, 2, 3)]
    for i, path in enumerate(states, 1):
        run_all(files, data, shard=(i, 3), state=path)
    for order in ((0, 1, 2), (2, 0, 1)):
        assert values_of(merge([states[i] for i in order])) == whole
    run_all(files, data, shard=(1, 1), state=tmp_path / "all.state")
    assert values_of(run_all(files, data, shard=(1, 1), state=tmp_path / "all.state", resume=True)) == whole


def test_ranges_of_classes_merge(files, data, tmp_path):
    whole = values_of(run_all(files, data))
    states = [tmp_path / f"{i}.state" for i in (1, 2)]
    for i, path in enumerate(states, 1):
        run_all(files, data, vocab_shard=(i, 2), state=path)
    merged = values_of(merge(states))
    assert merged.keys() == whole.keys()
    for name in ("rank_histogram", "accuracy_ties", "clusters", "bytes", "rows_without_bytes"):
        assert merged[name] == whole[name]
    for name, group in merged["groups"].items():
        assert group["cluster_stderr"] == pytest.approx(whole["groups"][name]["cluster_stderr"], rel=1e-6)
    assert merged["calibration"]["brier"] == pytest.approx(whole["calibration"]["brier"], rel=1e-6)
    assert [row["row"] for row in merged["worst"]] == [row["row"] for row in whole["worst"]]


@pytest.mark.parametrize("ranges", [2, 50])
def test_ranges_of_classes_keep_the_highest_classes_and_rank(files, data, tmp_path, ranges):
    more = {"metrics": "topk,ranking", "keep_top": 7, "top_k": (1, 9), "class_counts": data["counts"]}
    files = files | more
    whole = bv.evaluate(**files, output=tmp_path / "whole.parquet")
    states = [tmp_path / f"{i}.state" for i in range(1, ranges + 1)]
    for i, path in enumerate(states, 1):
        bv.evaluate(**files, vocab_shard=(i, ranges), state=path, chunk_rows=50 + i)
    merged = merge(states[::-1], output=tmp_path / "merged.parquet")
    for name in ("ranking", "macro", "notes"):
        assert (name in merged) == (name in whole)
    assert merged["ranking"] == whole["ranking"]
    assert merged["groups"]["Ruth"]["ranking"] == whole["groups"]["Ruth"]["ranking"]
    rows, expected = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("merged", "whole"))
    assert rows.schema == expected.schema
    for name in rows.column_names:
        if name == "top_logprobs":
            for a, b in zip(rows[name].to_pylist(), expected[name].to_pylist(), strict=True):
                np.testing.assert_allclose(a, b, atol=1e-6)
        elif name != "loss":
            assert rows[name].equals(expected[name]), name


def test_rows_of_ranges_that_are_not_finite_or_ignored_keep_no_classes(tmp_path):
    logits = np.zeros((4, 6), np.float32)
    logits[1, 4], logits[2, 0], logits[3, 3:] = np.nan, np.inf, -np.inf
    np.save(tmp_path / "x.npy", logits)
    np.save(tmp_path / "y.npy", [0, 0, 1, 2])
    options = {"logits": tmp_path / "x.npy", "labels": tmp_path / "y.npy", "metrics": "topk", "nonfinite": "skip"}
    for i in (1, 2):
        bv.evaluate(**options, vocab_shard=(i, 2), state=tmp_path / f"{i}.state")
    bv.merge([tmp_path / f"{i}.state" for i in (1, 2)], output=tmp_path / "o.parquet")
    found = pq.read_table(tmp_path / "o.parquet")["top_ids"].to_pylist()
    assert found == [[0, 1, 2, 3, 4, 5], None, None, [0, 1, 2]]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**9))
def test_evaluators_merge_in_any_order(data, seed):
    rng = np.random.default_rng(seed)
    options = {"metrics": METRICS, "class_counts": data["counts"], "ties": "mean"}
    options |= {name: value for name, value in COLUMNS.items() if name != "text_column"}
    columns = {"label": "labels", "weight": "weights", "group": "groups", "cluster": "clusters"}
    columns |= {"position": "positions", "bytes": "bytes"}
    table = pa.table({name: data[key] for name, key in columns.items()})
    flat = pa.array(data["logits"].reshape(-1))
    table = table.append_column("logits", pa.FixedSizeListArray.from_arrays(flat, CLASSES))
    whole = bv.Evaluator(**options)
    whole.update_batch(table)
    cuts = [0, *np.sort(rng.integers(0, ROWS + 1, 3)).tolist(), ROWS]
    parts = []
    for start, stop in zip(cuts, cuts[1:], strict=False):
        ev = bv.Evaluator(**options)
        for batch in table.slice(start, stop - start).to_batches(max_chunksize=int(rng.integers(5, 80))):
            ev.update_batch(batch)
        parts.append(bv.Evaluator.from_bytes(ev.to_bytes()))
    order = rng.permutation(len(parts))
    first = parts[order[0]]
    for i in order[1:]:
        first.merge(parts[i])
    assert values_of(first.report()) == values_of(whole.report())


def test_rows_with_and_without_weights_mix(data):
    """Sums that only weights need are told apart when the first weight comes."""
    ones, groups = np.ones(ROWS), data["groups"]
    plain, mixed = bv.Evaluator(), bv.Evaluator()
    plain.update(data["logits"], data["labels"], ones, groups)
    mixed.update(data["logits"][:100], data["labels"][:100], None, groups[:100])
    mixed.update(data["logits"][100:], data["labels"][100:], ones[100:], groups[100:])
    other = bv.Evaluator()
    other.update(data["logits"][:50], data["labels"][:50], None, groups[:50])
    rest = bv.Evaluator()
    rest.update(data["logits"][50:], data["labels"][50:], ones[50:], groups[50:])
    other.merge(rest)
    assert values_of(mixed.report()) == values_of(plain.report()) == values_of(other.report())


# ---- JSON


def test_json_holds_finite_numbers_alone():
    logits = np.full((2, 3), -np.inf)
    logits[:, 0] = 0.0
    ev = bv.Evaluator()
    ev.update(logits, [1, 0], groups=["a.b", "c"])
    report = ev.report()
    assert report["mean"] == math.inf
    assert report.value("groups.a.b.mean") == math.inf

    def refuse(name):
        raise AssertionError(name)

    found = json.loads(report.to_json(), parse_constant=refuse)
    assert found["mean"] is None
    assert {"mean", "perplexity", "groups.a.b.mean", "worst.0.loss"} <= found["infinite"].keys()
    assert set(found["infinite"].values()) == {"inf"}
    assert "1e999" not in report.to_json()
