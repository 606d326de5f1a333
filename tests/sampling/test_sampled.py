"""Sampled softmax and NCE on arrays: TensorFlow's answers, the oracle, identities with exact losses, and bad input."""

import os
import re
from pathlib import Path

import golden_files
import ml_dtypes
import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bigvocab as bv
from bigvocab.sampling import sampled_rows

BF16 = np.dtype(ml_dtypes.bfloat16)
LOSSES = {"sampled_softmax_loss": bv.sampled_softmax_loss, "nce_loss": bv.nce_loss}
CASES = [case for case in golden_files.load("losses_tensorflow") if case.function in LOSSES]


def typed(value, dtype):
    return [typed(part, dtype) for part in value] if isinstance(value, list) else value.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, BF16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_tensorflow(case, dtype):
    arguments = {
        name: typed(value, dtype) if name in ("weights", "biases", "inputs") else value
        for name, value in case.arguments.items()
    }
    got = LOSSES[case.function](**arguments)
    assert got.dtype == np.float64
    tolerance = max(case.tolerance, 0.0 if dtype == np.float64 else 2e-6)
    np.testing.assert_allclose(got, case.expected, rtol=tolerance, atol=tolerance)


def test_there_are_golden_cases_of_each_kind():
    names = [case.name for case in CASES]
    for part in (
        "1_true",
        "3_true",
        "/mod",
        "/div",
        "no_log_q",
        "with_hits",
        "own_candidates",
        "differs/duplicate_hits",
    ):
        assert any(part in name for name in names), part


# ---- against the oracle


def problem(seed, rows=5, classes=30, size=7, sampled=8, true=1, ragged=False, dtype=np.float64):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 4, rows) if ragged else np.full(rows, true)
    ids = rng.integers(0, classes, counts.sum())
    labels = (np.concatenate([[0], np.cumsum(counts)]), ids) if ragged else ids.reshape(rows, true)
    q_true = rng.uniform(0.01, 2.0, ids.shape if ragged else labels.shape)
    candidates = rng.integers(0, classes, sampled)
    candidates[: min(3, sampled)] = ids[0]  # a hit, three times
    return {
        "weights": rng.standard_normal((classes, size)).astype(dtype),
        "biases": rng.standard_normal(classes).astype(dtype),
        "labels": labels,
        "inputs": rng.standard_normal((rows, size)).astype(dtype),
        "sampled_values": (candidates, q_true, rng.uniform(0.01, 2.0, sampled)),
    }


def sizes(arguments, true=1):
    candidates = len(arguments["sampled_values"][0])
    return {"num_sampled": candidates, "num_classes": len(arguments["biases"]), "num_true": true}


@given(
    seed=st.integers(0, 2**32),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 60), st.integers(1, 20), st.integers(1, 50)),
    true=st.integers(1, 3),
    ragged=st.booleans(),
    remove=st.booleans(),
    log_q=st.booleans(),
    loss=st.sampled_from(["sampled_softmax_loss", "nce_loss"]),
)
@settings(max_examples=40, deadline=None)
def test_oracle(seed, shape, true, ragged, remove, log_q, loss):
    arguments = problem(seed, *shape, 1 if ragged else true, ragged)
    options = {"remove_accidental_hits": remove, "subtract_log_q": log_q}
    expected = getattr(naive, loss)(**arguments, **options)
    got = LOSSES[loss](**arguments, **sizes(arguments, 1 if ragged else true), **options)
    np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("true_label", ["uniform", "one"])
def test_the_target_of_nce(true_label):
    arguments = problem(1, true=3)
    expected = naive.nce_loss(**arguments, true_label=true_label)
    np.testing.assert_allclose(
        bv.nce_loss(**arguments, **sizes(arguments, 3), true_label=true_label), expected, rtol=1e-12
    )


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("sampled", [1023, 1024, 1025, 2500])
def test_more_candidates_than_a_tile(loss, sampled):
    arguments = problem(2, rows=30, classes=3000, sampled=sampled, true=2)
    arguments["sampled_values"][0][[0, 1, 5, sampled - 1]] = arguments["labels"][[0, 3, 3, 29], [0, 1, 0, 1]]
    expected = getattr(naive, loss)(**arguments, remove_accidental_hits=True)
    got = LOSSES[loss](**arguments, **sizes(arguments, 2), remove_accidental_hits=True)
    np.testing.assert_allclose(got, expected, rtol=1e-11)


def test_one_expected_count_for_all_true_classes_of_a_row():
    arguments = problem(3, true=3)
    candidates, q_true, q_sampled = arguments["sampled_values"]
    short = {**arguments, "sampled_values": (candidates, q_true[:, :1], q_sampled)}
    whole = {**arguments, "sampled_values": (candidates, np.repeat(q_true[:, :1], 3, axis=1), q_sampled)}
    got = [bv.sampled_softmax_loss(**a, **sizes(arguments, 3)) for a in (short, whole)]
    assert np.array_equal(*got)


def test_no_biases_are_zeros():
    arguments = problem(4)
    zeros = bv.nce_loss(**{**arguments, "biases": np.zeros(30)}, **sizes(arguments))
    assert np.array_equal(bv.nce_loss(**{**arguments, "biases": None}, **sizes(arguments)), zeros)


def test_a_row_without_a_true_class_is_for_nce_alone():
    arguments = problem(5, rows=2, ragged=True)
    ids = arguments["labels"][1][:2]
    arguments |= {"labels": (np.array([0, 0, 2]), ids)}
    values = arguments["sampled_values"]
    arguments["sampled_values"] = (values[0], values[1][:2], values[2])
    expected = naive.nce_loss(**arguments, true_label="one")
    np.testing.assert_allclose(bv.nce_loss(**arguments, **sizes(arguments), true_label="one"), expected, rtol=1e-12)
    assert (
        bv.nce_loss(**arguments, **sizes(arguments))[0]
        == bv.nce_loss(**arguments, **sizes(arguments), true_label="one")[0]
    )
    with pytest.raises(bv.BigvocabError, match="row 0 has no true class"):
        bv.sampled_softmax_loss(**arguments, **sizes(arguments))


# ---- identities


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 2e-6), (np.float16, 2e-6), (BF16, 2e-6)]
)
def test_all_candidates_without_hits_are_the_exact_losses(dtype, tolerance):
    rng = np.random.default_rng(6)
    classes, rows = 2500, 50
    weights, biases = (rng.standard_normal(shape).astype(dtype) for shape in ((classes, 33), classes))
    inputs, labels = rng.standard_normal((rows, 33)).astype(dtype), rng.integers(0, classes, (rows, 1))
    values = bv.AllCandidateSampler(classes).sample(labels, classes)
    arguments = {"weights": weights, "biases": biases, "labels": labels, "inputs": inputs, "sampled_values": values}
    options = {"num_sampled": classes, "num_classes": classes, "remove_accidental_hits": True}
    logits = inputs.astype(np.float64) @ weights.astype(np.float64).T + biases.astype(np.float64)
    softmax = bv.sparse_softmax_cross_entropy(logits, labels[:, 0])
    np.testing.assert_allclose(bv.sampled_softmax_loss(**arguments, **options), softmax, rtol=tolerance, atol=tolerance)
    sigmoid = bv.sparse_sigmoid_cross_entropy(logits, labels)
    np.testing.assert_allclose(bv.nce_loss(**arguments, **options), sigmoid, rtol=tolerance)


@pytest.mark.parametrize("loss", LOSSES)
def test_threads_and_row_order_do_not_show(loss, monkeypatch):
    arguments = problem(7, rows=700, classes=5000, size=20, sampled=3000, dtype=np.float32)
    whole = LOSSES[loss](**arguments, **sizes(arguments), num_threads=1)
    for threads in (2, 3, 8):
        assert np.array_equal(LOSSES[loss](**arguments, **sizes(arguments), num_threads=threads), whole)
    monkeypatch.setattr(sampled_rows, "BLOCK_BYTES", 1 << 16)
    assert np.array_equal(LOSSES[loss](**arguments, **sizes(arguments)), whole)
    order = np.random.default_rng(0).permutation(700)
    values = arguments["sampled_values"]
    moved = arguments | {"labels": arguments["labels"][order], "inputs": arguments["inputs"][order]}
    moved["sampled_values"] = (values[0], values[1][order], values[2])
    assert np.array_equal(LOSSES[loss](**moved, **sizes(arguments)), whole[order])


def test_the_default_draw_is_that_of_the_log_uniform_sampler():
    arguments = problem(8, classes=1000)
    options = sizes(arguments) | {"num_sampled": 50}
    del arguments["sampled_values"]
    first = bv.sampled_softmax_loss(**arguments, **options, seed=(1, 7))
    values = bv.LogUniformSampler(1000).sample(arguments["labels"], 50, seed=(1, 7))
    assert np.array_equal(bv.sampled_softmax_loss(**arguments, **options, sampled_values=values), first)
    assert np.array_equal(bv.sampled_softmax_loss(**arguments, **options, seed=(1, 7)), first)
    free = [bv.sampled_softmax_loss(**arguments, **options) for _ in range(3)]
    assert not np.array_equal(free[0], free[1]) or not np.array_equal(free[0], free[2])


# ---- layers of every kind


@pytest.mark.parametrize("strategy", ["div", "mod"])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 40])
def test_shards(strategy, count):
    arguments = problem(9)
    whole = bv.sampled_softmax_loss(**arguments, **sizes(arguments))
    for name in ("weights", "biases"):
        values = arguments[name]
        shards = [values[i::count] for i in range(count)] if strategy == "mod" else np.array_split(values, count)
        split = {**arguments, name: shards}
        got = bv.sampled_softmax_loss(**split, **sizes(arguments), partition_strategy=strategy)
        assert np.array_equal(got, whole)


def test_mapped_layers_and_files(tmp_path):
    arguments = problem(10, dtype=np.float32)
    whole = bv.nce_loss(**arguments, **sizes(arguments))
    np.save(tmp_path / "w.npy", arguments["weights"])
    np.save(tmp_path / "b.npy", arguments["biases"])
    for weights in (np.load(tmp_path / "w.npy", mmap_mode="r"), tmp_path / "w.npy", bv.open_matrix(tmp_path / "w.npy")):
        got = bv.nce_loss(
            **{**arguments, "weights": weights, "biases": bv.open_matrix(tmp_path / "b.npy")}, **sizes(arguments)
        )
        assert np.array_equal(got, whole)


def test_only_the_rows_that_are_needed_are_read(tmp_path):
    """A sparse file of 64 GB, in which all but a few rows are holes."""
    classes, size = 1 << 27, 128
    path = tmp_path / "layer.bin"
    with path.open("wb") as file:
        file.truncate(classes * size * 4)
    weights = np.memmap(path, np.float32, "r", shape=(classes, size))
    labels = np.random.default_rng(0).integers(0, classes, (20, 1))
    got = bv.sampled_softmax_loss(
        weights=weights, biases=None, labels=labels, inputs=np.ones((20, size), np.float32), num_sampled=50,
        num_classes=classes, seed=1, subtract_log_q=False,
    )  # fmt: skip
    np.testing.assert_allclose(got, np.log(51), rtol=1e-6)
    sections = Path("/proc/self/smaps").read_text().split(str(path))[1:]
    assert sum(int(re.search(r"Rss: +(\d+) kB", section)[1]) for section in sections) < 16_384


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs Linux")
def test_a_cold_layer_costs_little_more_than_its_rows(tmp_path):
    path = tmp_path / "w.npy"
    np.save(path, np.ones((1 << 18, 128), np.float32))  # 128 MiB
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    rng = np.random.default_rng(0)
    values = (rng.integers(0, 1 << 18, 500), np.ones((2, 1)), np.ones(500))
    arguments = {"weights": path, "biases": None, "labels": [[3], [70_000]], "inputs": np.ones((2, 128), np.float32)}

    def bytes_read():
        return int(re.search(r"read_bytes: (\d+)", Path("/proc/self/io").read_text())[1])

    before = bytes_read()
    bv.sampled_softmax_loss(**arguments, num_sampled=500, num_classes=1 << 18, sampled_values=values)
    assert bytes_read() - before < 24 << 20  # all of it with reading ahead


@pytest.mark.parametrize("loss", LOSSES)
def test_layouts(loss):
    arguments = problem(11, rows=40)
    whole = LOSSES[loss](**arguments, **sizes(arguments))
    for change in (np.asfortranarray, lambda a: np.repeat(a, 2, axis=0)[::2], lambda a: a.astype(">f8")):
        changed = {name: change(arguments[name]) for name in ("weights", "biases", "inputs")}
        assert np.array_equal(LOSSES[loss](**{**arguments, **changed}, **sizes(arguments)), whole)


def test_what_is_not_finite_stays_in_its_row():
    arguments = problem(12, rows=6, sampled=4)
    arguments["sampled_values"] = (np.array([20, 21, 22, 23]), *arguments["sampled_values"][1:])
    arguments["labels"] = np.arange(6)[:, None]
    clean = {name: LOSSES[name](**arguments, **sizes(arguments)) for name in LOSSES}
    arguments["inputs"][2] = np.nan
    for name in LOSSES:
        got = LOSSES[name](**arguments, **sizes(arguments))
        assert np.isnan(got[2])
        assert np.array_equal(np.delete(got, 2), np.delete(clean[name], 2))
    arguments["inputs"][2] = 0
    arguments["biases"][20] = np.inf  # a candidate
    assert (bv.sampled_softmax_loss(**arguments, **sizes(arguments)) == np.inf).all()
    arguments["biases"][20] = -np.inf  # a masked one is as good as none
    values = arguments["sampled_values"]
    less = {**arguments, "sampled_values": (values[0][1:], values[1], values[2][1:])}
    for name in LOSSES:
        np.testing.assert_allclose(
            LOSSES[name](**arguments, **sizes(arguments)), LOSSES[name](**less, **sizes(less)), rtol=1e-14
        )


def test_a_constant_on_all_logits_changes_nothing():
    arguments = problem(15, sampled=8)
    plain = bv.sampled_softmax_loss(**arguments, **sizes(arguments))
    for constant in (-300.0, 300.0):
        shifted = {**arguments, "biases": arguments["biases"] + constant}
        np.testing.assert_allclose(bv.sampled_softmax_loss(**shifted, **sizes(arguments)), plain, rtol=1e-12)


def test_all_candidates_are_hits():
    arguments = problem(13, rows=1, sampled=3)
    arguments["sampled_values"] = (np.full(3, arguments["labels"][0, 0]), *arguments["sampled_values"][1:])
    assert bv.sampled_softmax_loss(**arguments, **sizes(arguments)).tolist() == [0.0]


def test_no_rows():
    arguments = problem(14)
    values = arguments["sampled_values"]
    arguments |= {
        "labels": np.zeros((0, 1), int),
        "inputs": np.zeros((0, 7)),
        "sampled_values": (values[0], np.zeros((0, 1)), values[2]),
    }
    for loss in LOSSES.values():
        assert loss(**arguments, **sizes(arguments)).shape == (0,)


# ---- bad input


def changed_values(at, change):
    def apply(arguments):
        values = list(arguments["sampled_values"])
        values[at] = change(values[at])
        return {"sampled_values": tuple(values)}

    return apply


def put(values, at, value):
    values = values.copy()
    values[at] = value
    return values


BAD = {
    "label too large": (lambda a: {"labels": put(a["labels"], 3, 30)}, "labels: row 3 has the id 30, expected"),
    "label negative": (lambda a: {"labels": put(a["labels"], 0, -1)}, "labels: row 0 has the id -1"),
    "labels of one dimension": (lambda a: {"labels": a["labels"][:, 0]}, r"labels: got shape \(5,\), expected"),
    "labels of other rows": (lambda a: {"labels": a["labels"][:4]}, "labels: 4 rows of labels, but inputs has 5"),
    "num_true": (lambda a: {"num_true": 2}, "num_true: got 2, but row 0 of labels has 1"),
    "candidate out of range": (changed_values(0, lambda c: put(c, 7, 30)), "candidate 7 is 30, expected a class in"),
    "candidate negative": (changed_values(0, lambda c: put(c, 0, -1)), "candidate 0 is -1"),
    "count of candidates": (lambda a: {"num_sampled": 9}, r"shape \(8,\), expected \(9,\)"),
    "shape of Qsampled": (changed_values(2, lambda q: q[1:]), r"sampled_expected_count has shape \(7,\)"),
    "shape of Qtrue": (changed_values(1, lambda q: np.ones((5, 2))), r"shape \(5, 2\), expected \(5, 1\)"),
    "Qtrue of 0": (changed_values(1, lambda q: put(q, 2, 0)), "true_expected_count: row 2 is 0.0, expected a finite"),
    "Qsampled NaN": (changed_values(2, lambda q: put(q, 4, np.nan)), "sampled_expected_count: row 4 is nan"),
    "num_classes": (lambda a: {"num_classes": 31}, "num_classes: got 31, but weights has 30 rows"),
    "hidden size": (lambda a: {"inputs": np.ones((5, 6))}, "inputs: has 6 columns, but weights has 7"),
    "biases": (lambda a: {"biases": np.ones(29)}, r"biases: got shape \(29,\), expected \(30,\)"),
    "strategy": (lambda a: {"partition_strategy": "row"}, "partition_strategy: got 'row', expected one of div, mod"),
    "shards": (lambda a: {"weights": [np.ones((14, 7)), np.ones((16, 7))]}, "shard 0 has 14 rows, expected 15: 'div'"),
    "types of shards": (lambda a: {"weights": [np.ones((15, 7)), np.ones((15, 7), "f4")]}, "shard 1 is float32"),
    "too many to draw": (lambda a: {"sampled_values": None, "num_sampled": 31}, "num_sampled: got 31 unique"),
    "nothing to draw": (lambda a: {"sampled_values": None, "num_sampled": 0}, "num_sampled: got 0"),
}  # fmt: skip


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", BAD)
def test_bad_values(loss, name):
    arguments = problem(20)
    change, message = BAD[name]
    arguments = arguments | sizes(arguments)
    with pytest.raises(bv.BigvocabError, match=message):
        LOSSES[loss](**(arguments | change(arguments)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": np.ones((5, 7), int)}, "inputs: expected one of float16"),
        ({"weights": np.ones((30, 7), int)}, "weights: expected one of float16"),
        ({"labels": np.ones((5, 1))}, "labels: expected integers"),
        ({"sampled_values": ([1], [1.0])}, "sampled_values: expected"),
        ({"sampled_values": 3}, "sampled_values: expected"),
        ({"num_true": 1.0}, "num_true: expected an int"),
        ({"remove_accidental_hits": "no"}, "remove_accidental_hits: expected True or False, got 'no'"),
        ({"subtract_log_q": 0}, "subtract_log_q: expected True or False, got 0"),
        ({"sampled_values": None, "seed": "a"}, "seed: expected an int"),
    ],
)
def test_wrong_types(change, message):
    arguments = problem(21)
    with pytest.raises(TypeError, match=message):
        bv.sampled_softmax_loss(**(arguments | sizes(arguments) | change))


def test_true_label_of_nce():
    arguments = problem(22)
    with pytest.raises(bv.BigvocabError, match="true_label: got 'all', expected one of uniform, one"):
        bv.nce_loss(**arguments, **sizes(arguments), true_label="all")
