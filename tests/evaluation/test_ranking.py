"""Metrics of rankings: as trec_eval has them, as the plain formulas say, for every kind of labels and of logits."""

import json
import math

import golden_files
import ml_dtypes
import naive
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import process
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_jobs import values_of

import bigvocab as bv
from bigvocab.errors import BigvocabError
from bigvocab.reports.fail_if import check_name

NAMES = ("recall", "precision", "ndcg", "map", "hit_rate", "mrr")
TYPES = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)
ROWS, CLASSES = 30, 70


def make(seed=0, dtype=np.float32, most=6, rows=ROWS, classes=CLASSES):
    """Logits with ties, and true classes of each row."""
    rng = np.random.default_rng(seed)
    logits = np.round(rng.normal(size=(rows, classes)) * 3).astype(dtype)
    sets = [np.sort(rng.choice(classes, rng.integers(1, most + 1), replace=False)).tolist() for _ in range(rows)]
    return logits, sets


def means(rows, weights=None):
    weights = [1.0] * len(rows) if weights is None else weights
    return {
        name: math.fsum(w * row[name] for w, row in zip(weights, rows, strict=True)) / math.fsum(weights)
        for name in rows[0]
    }


def flat(report, part="ranking"):
    found = report.value(part)
    return {f"{name}@{k}": value for name in found if name != "stderr" for k, value in found[name].items()}


@pytest.mark.parametrize("case", golden_files.load("ranking_trec_eval"), ids=str)
@pytest.mark.parametrize("loss", ["softmax", "sparse-sigmoid"])
def test_as_trec_eval(case, loss, tmp_path):
    offsets, ids, top_k = (case.arguments[name] for name in ("offsets", "ids", "top_k"))
    labels = pa.table({"label": pa.LargeListArray.from_arrays(offsets, ids)})
    options = {"loss": loss, "metrics": "ranking", "top_k": top_k, "output": tmp_path / "losses.parquet"}
    for dtype in TYPES[:1] + TYPES[2:]:
        report = bv.evaluate(logits=case.arguments["logits"].astype(dtype), labels=labels, **options)
        rows = pq.read_table(tmp_path / "losses.parquet")
        expected = np.array(case.value)
        for i, name in enumerate(NAMES):
            for j, k in enumerate(top_k):
                assert rows[f"{name}@{k}"].to_numpy() == pytest.approx(expected[:, i, j], abs=1e-12)
                assert report["ranking"][name][str(k)] == pytest.approx(expected[:, i, j].mean(), abs=1e-12)
                error = expected[:, i, j].std(ddof=1) / math.sqrt(len(expected))
                assert report["ranking"]["stderr"][name][str(k)] == pytest.approx(error, abs=1e-12)


@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: np.dtype(t).name)
@pytest.mark.parametrize("loss", ["sparse-softmax", "softmax", "sparse-sigmoid"])
def test_as_the_formulas_say_with_ties_by_id(loss, dtype):
    logits, sets = make(dtype=dtype)
    counts = np.random.default_rng(2).integers(0, 50, CLASSES)
    if loss == "sparse-softmax":
        sets = [[row[0]] for row in sets]
    labels = [row[0] for row in sets] if loss == "sparse-softmax" else pa.array(sets)
    own = [[c for c in range(0, CLASSES, 7) if c not in row] for row in sets]
    table = pa.table({"label": labels, "exclude": own})
    options = {"loss": loss, "metrics": "ranking", "top_k": (1, 4, 20), "class_counts": counts, "label_column": "label"}
    for excluded, more in ((None, {}), (own, {"exclude_column": "exclude"})):
        rows = [
            naive.ranking(row, true, (1, 4, 20), () if excluded is None else excluded[i], counts.tolist())
            for i, (row, true) in enumerate(zip(naive.floats(logits), sets, strict=True))
        ]
        found = flat(bv.evaluate(logits=logits, labels=table, **options, **more))
        assert found == pytest.approx(means(rows), rel=1e-12, abs=1e-15)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 9), st.integers(1, 8), st.integers(1, 3))
def test_any_ranking(seed, classes, most, chunk, threads):
    logits, sets = make(seed, np.float32, min(most, classes), 6, classes)
    top_k = sorted({1, (classes + 1) // 2, classes})
    rows = [naive.ranking(row, true, top_k) for row, true in zip(naive.floats(logits), sets, strict=True)]
    ev = bv.Evaluator(loss="sparse-sigmoid", metrics="ranking", top_k=top_k, threads=threads)
    other = bv.Evaluator(loss="sparse-sigmoid", metrics="ranking", top_k=top_k)
    for start in range(0, 6, chunk):
        part = sets[start : start + chunk]
        pair = np.concatenate([[0], np.cumsum([len(row) for row in part])]), np.concatenate(part)
        (ev if start % 2 else other).update(logits[start : start + chunk], pair)
    ev.merge(other)
    assert flat(ev.report()) == pytest.approx(means(rows), rel=1e-12, abs=1e-15)


def test_heads_and_stored_logits_rank_alike():
    rng = np.random.default_rng(0)
    inputs, weights = rng.normal(size=(40, 16)).astype(np.float32), rng.normal(size=(3000, 16)).astype(np.float32)
    logits = np.empty((40, 3000), np.float32)
    for c in range(0, 3000):
        logits[:, c] = -bv.linear_cross_entropy(inputs, weights, np.full(40, c))  # up to a constant of the row
    labels = pa.array([rng.choice(3000, 5, replace=False).tolist() for _ in range(40)])
    options = {"loss": "softmax", "metrics": "ranking", "top_k": (10, 100), "labels": labels}
    found = bv.evaluate(inputs=inputs, weights=weights, **options)
    assert flat(found) == pytest.approx(flat(bv.evaluate(logits=logits, **options)), abs=1e-3)
    for more in ({"threads": 1, "chunk_rows": 7}, {"threads": 3}):
        assert values_of(bv.evaluate(inputs=inputs, weights=weights, **options, **more)) == values_of(found)


def test_weights_ignored_rows_and_rows_without_order(tmp_path):
    logits, sets = make(rows=6)
    logits[4, 3] = np.nan
    weights = [1.0, 2.0, 0.0, 0.5, 1.0, 3.0]
    labels = pa.table({"label": [sets[0], None, *sets[2:]], "w": weights})
    options = {"loss": "softmax", "metrics": "ranking", "top_k": 5, "weight_column": "w", "label_column": "label"}
    found = bv.evaluate(logits=logits, labels=labels, nonfinite="skip", output=tmp_path / "l.parquet", **options)
    rows = [naive.ranking(row, true, (5,)) for row, true in zip(naive.floats(logits), sets, strict=True)]
    kept = [0, 2, 3, 5]
    assert flat(found) == pytest.approx(means([rows[i] for i in kept], [weights[i] for i in kept]))
    assert pq.read_table(tmp_path / "l.parquet")["ndcg@5"].is_null().to_pylist() == [
        False,
        True,
        False,
        False,
        True,
        False,
    ]
    found = bv.evaluate(logits=logits, labels=labels, nonfinite="keep", **options)
    rows[4] = dict.fromkeys(rows[4], 0.0)  # right for no k
    kept = [0, 2, 3, 4, 5]
    assert flat(found) == pytest.approx(means([rows[i] for i in kept], [weights[i] for i in kept]))


def test_shards_and_states_merge_to_the_same_bits(tmp_path):
    logits, sets = make(rows=50)
    np.save(tmp_path / "logits.npy", logits)
    pq.write_table(pa.table({"label": sets}), tmp_path / "labels.parquet")
    options = {
        "logits": tmp_path / "logits.npy", "labels": tmp_path / "labels.parquet", "loss": "sparse-sigmoid",
        "metrics": "ranking", "top_k": (3, 9), "class_counts": np.arange(CLASSES),
    }  # fmt: skip
    whole = bv.evaluate(**options)
    for i in (1, 2, 3):
        bv.evaluate(**options, shard=(i, 3), state=tmp_path / f"{i}.state")
    assert values_of(bv.merge([tmp_path / f"{i}.state" for i in (2, 3, 1)])) == values_of(whole)
    assert values_of(bv.evaluate(**options, workers=2, engine="local")) == values_of(whole)


def test_by_group_with_weights():
    logits, sets = make()
    weights = np.random.default_rng(4).random(ROWS).tolist()
    table = pa.table({"label": sets, "g": [f"{row % 4}" for row in range(ROWS)], "w": weights})
    options = {"loss": "softmax", "metrics": "ranking", "top_k": (2, 7), "label_column": "label"}
    options |= {"group_column": "g", "weight_column": "w"}
    report = bv.evaluate(logits=logits, labels=table, **options)
    rows = [naive.ranking(row, true, (2, 7)) for row, true in zip(naive.floats(logits), sets, strict=True)]
    for group in range(4):
        found = report["groups"][f"{group}"]["ranking"]
        expected = means(rows[group::4], weights[group::4])
        assert {f"{name}@{k}": v for name, by_k in found.items() for k, v in by_k.items()} == pytest.approx(expected)
    ev = bv.Evaluator.from_bytes(_half(logits, table, options, 0).to_bytes())
    ev.merge(_half(logits, table, options, 1))
    assert values_of(ev.report())["groups"] == report["groups"]


def _half(logits, table, options, half):
    part = slice(half * 15, half * 15 + 15)
    ev = bv.Evaluator(**options)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(logits[part].reshape(-1)), CLASSES)
    ev.update_batch(table.slice(half * 15, 15).append_column("logits", flat))
    return ev


def test_several_true_classes_share_one_softmax():
    """Each of T has the probability 1 / T."""
    logits, sets = make()
    dense = np.zeros(logits.shape)
    for row, ids in enumerate(sets):
        dense[row, ids] = 1 / len(ids)
    expected = bv.softmax_cross_entropy(logits, dense)
    pair = np.concatenate([[0], np.cumsum([len(row) for row in sets])]), np.concatenate(sets)
    ev = bv.Evaluator(loss="softmax")
    assert ev.update(logits, pair) == pytest.approx(expected, rel=1e-12)
    table = pa.table({"label": sets, "p": [[1 / len(ids)] * len(ids) for ids in sets]})
    listed = bv.evaluate(logits=logits, labels=table, loss="softmax", probability_column="p", label_column="label")
    assert values_of(bv.evaluate(logits=logits, labels=table.select(["label"]), loss="softmax")) == values_of(listed)


SAMPLED = {"sampler": "uniform", "num_sampled": 40, "seed": 3}


def of_candidates(logits, sets, candidates, top_k):
    """The metrics where nothing exists but the candidates and the true classes."""
    rows = []
    for row, true in zip(logits, sets, strict=True):
        out = [c for c in range(len(row)) if c not in candidates and c not in true]
        rows.append(naive.ranking(row, true, top_k, out))
    return means(rows)


def test_a_ranking_of_all_candidates_is_the_exact_one_where_classes_tie():
    rng = np.random.default_rng(2)
    inputs, weights = rng.integers(-1, 2, (40, 3)).astype(float), rng.integers(-1, 2, (60, 3)).astype(float)
    sets = pa.array([rng.choice(60, 3, replace=False).tolist() for _ in range(40)])
    options = {"loss": "sampled-softmax", "sampler": "all", "metrics": "ranking", "top_k": (1, 10), "exact": True}
    report = bv.evaluate(inputs=inputs, weights=weights, labels=sets, **options)
    assert flat(report) == flat(report, "sampled.exact_ranking")
    assert set(flat(report, "sampled.ranking_bias").values()) == {0.0}
    counts = rng.integers(0, 900, 60)
    report = bv.evaluate(inputs=inputs, weights=weights, labels=sets, class_counts=counts, **options)
    assert report["ranking"]["psp"] == report["sampled"]["exact_ranking"]["psp"]


def test_conditions_know_sampled_rankings():
    known = {"loss": "nce", "metrics": ("ranking",), "top_k": (10,)}
    for name in ("exact_ranking.recall.10", "ranking_bias.stderr.ndcg.10", "ranking_bias.cluster_stderr.psp.10"):
        check_name(f"sampled.{name}", columns=("exact", "cluster"), **known)
    with pytest.raises(BigvocabError, match="no value named"):
        check_name("sampled.ranking_bias.recall.5", columns=("exact",), **known)


@pytest.mark.parametrize("loss", ["sampled-softmax", "nce"])
def test_sampled_metrics_beside_exact_ones(loss, tmp_path):
    rng = np.random.default_rng(0)
    inputs, weights = rng.normal(size=(60, 8)), rng.normal(size=(200, 8))
    sets = [rng.choice(200, 3, replace=False).tolist() for _ in range(60)]
    bv.write_candidates(tmp_path / "c.arrow", range_max=200, **SAMPLED)
    with pa.memory_map(str(tmp_path / "c.arrow")) as file:
        candidates = set(pa.ipc.open_file(file).read_all()["sampled_candidates"].to_pylist()[0])
    options = {"loss": loss, "metrics": "ranking", "top_k": (1, 10), "exact": True}
    report = bv.evaluate(
        inputs=inputs, weights=weights, labels=pa.array(sets), candidates=tmp_path / "c.arrow", **options
    )
    logits = inputs @ weights.T
    sampled = of_candidates(logits, sets, candidates, (1, 10))
    exact = means([naive.ranking(row, true, (1, 10)) for row, true in zip(logits, sets, strict=True)])
    assert flat(report) == pytest.approx(sampled, rel=1e-12)
    assert flat(report, "sampled.exact_ranking") == pytest.approx(exact, rel=1e-12)
    bias = flat(report, "sampled.ranking_bias")
    assert bias == pytest.approx({name: exact[name] - sampled[name] for name in exact}, abs=1e-12)
    assert all(value < 0 for name, value in bias.items() if name.startswith(("recall@10", "ndcg@10")))
    drawn = bv.evaluate(inputs=inputs, weights=weights, labels=pa.array(sets), **SAMPLED, **options)
    assert flat(drawn, "sampled.exact_ranking") == pytest.approx(exact, rel=1e-12)
    again = bv.evaluate(
        inputs=inputs, weights=weights, labels=pa.array(sets), **SAMPLED, **options, threads=1, chunk_rows=7
    )
    assert values_of(again) == values_of(drawn)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([[1], [2]], {"top_k": 9}, "top_k: got 9, but only 5 classes exist"),
        ([[1], [2]], {"top_k": 5, "exclude_classes": [0]}, "top_k: got 5, but only 4 classes exist"),
        ([[1], []], {}, "row 1 has no true class"),
        ([[1], [2, 3, 2]], {}, "row 1 has the id 2 twice"),
        ([[1], [5]], {}, "row 1 has the id 5"),
        ([[1], [2]], {"class_counts": [1, 2]}, r"class_counts: got 2 counts, expected 5"),
        (np.full((2, 5), 0.2), {}, "ranking needs ids of true classes"),
    ],
)
@pytest.mark.parametrize("loss", ["softmax", "sparse-sigmoid"])
def test_what_is_refused(labels, options, message, loss):
    if isinstance(labels, np.ndarray) and loss != "softmax":
        return
    labels = labels if isinstance(labels, np.ndarray) else pa.array(labels, pa.list_(pa.int64()))
    options = {"loss": loss, "metrics": "ranking", "top_k": 2, **options}
    with pytest.raises(BigvocabError, match=message):
        bv.evaluate(logits=np.zeros((2, 5), np.float32), labels=labels, **options)


def test_the_command(tmp_path):
    logits, sets = make()
    np.save(tmp_path / "logits.npy", logits)
    pq.write_table(pa.table({"label": sets}), tmp_path / "labels.parquet")
    np.savetxt(tmp_path / "counts.txt", np.arange(CLASSES), fmt="%d")
    command = (
        "eval", "--logits", "logits.npy", "--labels", "labels.parquet", "--loss", "softmax", "--metrics", "ranking",
        "--top-k", "1,10", "--class-counts", "counts.txt",
    )  # fmt: skip
    done = process(*command, "--format", "json", "--fail-if", "ranking.recall.10 < 0.999", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    expected = bv.evaluate(
        logits=logits, labels=pa.array(sets), loss="softmax", metrics="ranking", top_k=(1, 10),
        class_counts=np.arange(CLASSES),
    )  # fmt: skip
    assert json.loads(done.stdout)["ranking"] == expected["ranking"]
    done = process(*command, cwd=tmp_path)
    assert "ndcg" in done.stdout
    assert "@10" in done.stdout
    done = process(*command, "--vocab-shard", "1/2", "--state", "s", cwd=tmp_path)
    assert done.returncode == 2
    assert process(*command[:5], "--metrics", "rank", "--top-k", "3", cwd=tmp_path).returncode == 2
