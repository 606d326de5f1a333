"""Classes that do not exist: a report without them is that of logits with -inf in their place, to the bit."""

import math

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

TYPES = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)
ROWS = 24


def lists(rows):
    """Lists of ids as a pair (offsets, ids)."""
    return np.concatenate([[0], np.cumsum([len(row) for row in rows])]), np.concatenate([*rows, []]).astype(np.int64)


class Case:
    """Logits, labels of every kind, classes excluded for all rows and for each, and logits that have -inf there."""

    def __init__(self, classes, dtype=np.float32, seed=0, most=30, rows=ROWS):
        rng = np.random.default_rng(seed)
        self.logits = (rng.normal(size=(rows, classes)) * 4).astype(dtype)
        self.common = np.unique(rng.integers(0, classes, 3))
        self.own, self.labels, self.sets = [], np.zeros(rows, np.int64), []
        for row in range(rows):
            highest = np.argsort(self.logits[row].astype(np.float64))[-2:]
            own = np.append(rng.integers(0, classes, rng.integers(0, most + 1)), highest)
            left = np.setdiff1d(np.arange(classes), np.append(own, self.common))
            self.labels[row] = rng.choice(left)
            self.sets.append(np.sort(rng.choice(left, min(3, len(left)), replace=False)))
            self.own.append(own)
        self.masked = self.logits.copy()
        self.masked[:, self.common] = -np.inf
        for row, own in enumerate(self.own):
            self.masked[row, own] = -np.inf

    def table(self, kind="id"):
        columns = {"exclude": pa.array([row.tolist() for row in self.own], pa.list_(pa.int32()))}
        if kind == "id":
            columns["label"] = self.labels
        else:
            columns["label"] = [row.tolist() for row in self.sets]
        if kind == "sparse":
            columns["p"] = [(np.arange(1.0, len(row) + 1) / 7).tolist() for row in self.sets]
        columns["group"] = [f"g{row % 3}" for row in range(len(self.own))]
        return pa.table(columns)


ALL = "accuracy,rank,logsumexp,entropy,predicted,calibration,topk,ranking"
LOSSES = {
    "sparse-softmax": ("id", {"metrics": ALL, "top_k": (1, 3)}),
    "softmax": ("sparse", {"metrics": "logsumexp,entropy,predicted,ranking", "probability_column": "p", "top_k": (2,)}),
    "sparse-sigmoid": ("list", {"metrics": "ranking", "top_k": (2, 5)}),
}


@pytest.mark.parametrize("classes", [40, 600, 9000])
@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: np.dtype(t).name)
@pytest.mark.parametrize("loss", LOSSES)
def test_excluding_is_minus_infinity_to_the_bit_of_the_report(loss, dtype, classes):
    case = Case(classes, dtype, seed=classes)
    kind, options = LOSSES[loss]
    options = {"loss": loss, "group_column": "group", "label_column": "label", **options}
    expected = bv.evaluate(logits=case.masked, labels=case.table(kind), **options)
    for more in ({}, {"threads": 1, "chunk_rows": 5}, {"threads": 3, "chunk_rows": 7}):
        found = bv.evaluate(
            logits=case.logits,
            labels=case.table(kind),
            exclude_classes=case.common,
            exclude_column="exclude",
            **options,
            **more,
        )
        assert values_of(found) == values_of(expected)


@pytest.mark.parametrize(
    "options", [{"softcap": 5.0}, {"logit_scale": 1e-40}, {"logit_scale": 3.0}, {"metrics": "predicted"}]
)
def test_with_caps_and_scales(options):
    case = Case(700)
    expected = bv.evaluate(logits=case.masked, labels=case.labels, **options)
    found = bv.evaluate(
        logits=case.logits, labels=case.table(), exclude_classes=case.common, exclude_column="exclude",
        label_column="label", **options,
    )  # fmt: skip
    assert values_of(found) == values_of(expected)
    assert found.options["exclude_classes"] == case.common.tolist()  # a page names them


def test_classes_in_several_files(tmp_path):
    case = Case(700)
    for i, part in enumerate(np.split(case.masked, [90, 650], axis=1)):
        np.save(tmp_path / f"masked-{i}.npy", part)
    for i, part in enumerate(np.split(case.logits, [90, 650], axis=1)):
        np.save(tmp_path / f"logits-{i}.npy", part)
    options = {"vocab_shards": True, "label_column": "label", "metrics": ALL}
    expected = bv.evaluate(logits=f"{tmp_path}/masked-*.npy", labels=case.table(), **options)
    options |= {"exclude_classes": case.common, "exclude_column": "exclude"}
    found = bv.evaluate(logits=f"{tmp_path}/logits-*.npy", labels=case.table(), **options)
    assert values_of(found) == values_of(expected)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("source", ["shards", "head"])
def test_every_loss_from_shards_and_heads(tmp_path, loss, source):
    case = Case(700, np.float32)
    kind, options = LOSSES[loss]
    options = {"loss": loss, "group_column": "group", "label_column": "label", **options}
    if source == "shards":
        for name, logits in (("masked", case.masked), ("logits", case.logits)):
            for i, part in enumerate(np.split(logits, [90, 650], axis=1)):
                np.save(tmp_path / f"{name}-{i}.npy", part)
        options["vocab_shards"] = True
        rows = {name: {"logits": f"{tmp_path}/{name}-*.npy"} for name in ("masked", "logits")}
        excluded = {"exclude_classes": case.common, "exclude_column": "exclude"}
        table = case.table(kind)
    else:  # biases mask for all rows what lists exclude for each
        rng = np.random.default_rng(1)
        head = {name: rng.normal(size=(n, 8)).astype(np.float32) for name, n in (("inputs", ROWS), ("weights", 700))}
        biases = np.where(np.isin(np.arange(700), case.common), -np.inf, 0.0).astype(np.float32)
        rows = {"masked": {**head, "biases": biases}, "logits": head}
        excluded = {"exclude_column": "exclude"}
        table = case.table(kind).drop("exclude")
        table = table.append_column("exclude", pa.array([case.common.tolist()] * ROWS, pa.list_(pa.int64())))
    outputs = [tmp_path / f"{i}.parquet" for i in range(2)]
    expected = bv.evaluate(**rows["masked"], labels=table, **options, output=outputs[0])
    found = bv.evaluate(**rows["logits"], labels=table, **options, **excluded, output=outputs[1])
    assert values_of(found) == values_of(expected)
    assert pq.read_table(outputs[1]).equals(pq.read_table(outputs[0]))


def test_sequences_leave_classes_out(tmp_path):
    case = Case(80, rows=24)
    labels = np.roll(case.labels, 1).reshape(4, 6)  # row t is scored on the label behind it
    shape = (4, 6, 80)
    common = np.setdiff1d(np.arange(70, 80), labels)
    masked = case.logits.copy()
    masked[:, common] = -np.inf
    options = {"labels": labels, "shift_labels": True, "metrics": "accuracy,rank,logsumexp"}
    expected = bv.evaluate(logits=masked.reshape(shape), **options)
    found = bv.evaluate(logits=case.logits.reshape(shape), exclude_classes=common, **options)
    assert values_of(found) == values_of(expected)


def test_rows_with_fewer_classes_than_k_rank_what_is_left():
    logits = np.arange(12.0, dtype=np.float32).reshape(2, 6)
    table = pa.table({"label": [[0, 3], [5]], "e": [[1, 2, 4], []]})
    options = {"label_column": "label", "exclude_column": "e", "loss": "softmax", "metrics": "ranking", "top_k": (5,)}
    found = bv.evaluate(logits=logits, labels=table, **options)["ranking"]
    assert (found["recall"]["5"], found["precision"]["5"]) == (1.0, (2 / 5 + 1 / 5) / 2)
    with pytest.raises(BigvocabError, match="top_k: got 5, but only 4 classes exist"):
        bv.evaluate(logits=logits, labels=table, exclude_classes=[1, 2], **options)


def test_ranges_of_classes_apart_are_all_of_them(tmp_path):
    case = Case(700)
    pq.write_table(case.table(), tmp_path / "labels.parquet")
    np.save(tmp_path / "logits.npy", case.logits)
    options = {
        "logits": tmp_path / "logits.npy", "labels": tmp_path / "labels.parquet", "label_column": "label",
        "exclude_classes": case.common, "exclude_column": "exclude", "metrics": ALL, "top_k": (1, 3),
    }  # fmt: skip
    np.save(tmp_path / "masked.npy", case.masked)
    pq.write_table(case.table().drop("exclude"), tmp_path / "plain.parquet")
    masked = {"logits": tmp_path / "masked.npy", "labels": tmp_path / "plain.parquet"}
    masked |= {name: options[name] for name in ("label_column", "metrics", "top_k")}
    for i in (1, 2, 3):
        bv.evaluate(**options, vocab_shard=(i, 3), state=tmp_path / f"{i}.state")
        bv.evaluate(**masked, vocab_shard=(i, 3), state=tmp_path / f"masked-{i}.state")
    merged = bv.merge([tmp_path / f"{i}.state" for i in (1, 2, 3)])
    assert values_of(merged) == values_of(bv.merge([tmp_path / f"masked-{i}.state" for i in (1, 2, 3)]))
    assert merged["mean"] == pytest.approx(bv.evaluate(**options)["mean"], rel=1e-6)


@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: np.dtype(t).name)
def test_heads(dtype):
    """Masked biases say the same of all rows; stored logits, made by the same steps, the same of each."""
    rng = np.random.default_rng(3)
    inputs, weights = rng.normal(size=(ROWS, 8)).astype(dtype), rng.normal(size=(2100, 8)).astype(dtype)
    common, labels = np.array([0, 5, 1024, 2099]), rng.integers(6, 1000, ROWS)
    biases = np.zeros(2100, np.float32)
    biases[common] = -np.inf
    options = {"inputs": inputs, "weights": weights, "metrics": ALL}
    expected = bv.evaluate(labels=labels, biases=biases, **options)
    found = bv.evaluate(labels=labels, exclude_classes=common, **options)
    assert values_of(found) == values_of(expected)
    own = [np.setdiff1d(rng.integers(0, 2100, 40), labels[row]) for row in range(ROWS)]
    table = pa.table({"label": labels, "exclude": [row.tolist() for row in own]})
    options["exclude_column"] = "exclude"
    found = bv.evaluate(labels=table, **options)
    logits = np.asarray(inputs, np.float64) @ np.asarray(weights, np.float64).T
    for row, ids in enumerate(own):
        logits[row, ids] = -np.inf
    plain = bv.evaluate(logits=logits, labels=labels, metrics=ALL)
    assert found["mean"] == pytest.approx(plain["mean"], rel=1e-5)
    assert found["accuracy"] == plain["accuracy"]
    assert values_of(bv.evaluate(labels=table, **options, threads=3, chunk_rows=5)) == values_of(found)
    loss = bv.linear_cross_entropy(inputs, weights, labels, exclude=lists(own))
    assert math.fsum(loss) / ROWS == pytest.approx(found["mean"], rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_cancellation_where_the_excluded_hold_nearly_all(dtype):
    """1 - 1e-12 of the mass is in classes that do not exist: of a subtraction few digits would be left."""
    logits = np.random.default_rng(0).normal(size=(3, 5000)).astype(dtype)
    logits[:, 7] += math.log(5000 * 1e12)
    losses = bv.sparse_softmax_cross_entropy(logits, [1, 2, 3], exclude=[7])
    expected = bv.sparse_softmax_cross_entropy(np.delete(logits, 7, axis=1), [1, 2, 3])
    assert losses == pytest.approx(expected, rel=1e-7 if dtype == np.float32 else 1e-13)
    assert (losses < 20).all()


def test_array_functions():
    case = Case(300)
    pair, dense = lists(case.own), np.zeros(case.logits.shape)
    dense[np.arange(ROWS), case.labels] = 1.0
    for exclude, masked in ((case.common, None), (pair, None)):
        masked = case.logits.copy()
        if exclude is case.common:
            masked[:, case.common] = -np.inf
        else:
            for row, own in enumerate(case.own):
                masked[row, own] = -np.inf
        for function, labels in (
            (bv.sparse_softmax_cross_entropy, case.labels),
            (bv.softmax_cross_entropy, dense),
            (bv.sparse_sigmoid_cross_entropy, lists(case.sets)),
        ):
            found, expected = function(case.logits, labels, exclude=exclude), function(masked, labels)
            assert found.tobytes() == expected.tobytes()
    rows = naive.id_rows(pair)
    plain = [
        naive.negative_log_likelihoods([x if c not in set(rows[r]) else -math.inf for c, x in enumerate(row)])[y]
        for r, (row, y) in enumerate(zip(naive.floats(case.logits), case.labels, strict=True))
    ]
    assert bv.sparse_softmax_cross_entropy(case.logits, case.labels, exclude=pair) == pytest.approx(plain, rel=1e-6)


def test_update_takes_lists_for_its_rows():
    case = Case(300)
    ev = bv.Evaluator(exclude_classes=[0, 1, 7], metrics=ALL)
    masked, labels = case.logits.copy(), np.where(np.isin(case.labels, [0, 1, 7]), 2, case.labels)
    own = [np.setdiff1d(row, [labels[r]]) for r, row in enumerate(case.own)]
    masked[:, [0, 1, 7]] = -np.inf
    for row, ids in enumerate(own):
        masked[row, ids] = -np.inf
    found = ev.update(case.logits, labels, exclude=lists(own))
    assert found.tobytes() == bv.Evaluator(metrics=ALL).update(masked, labels).tobytes()
    table = pa.table(
        {
            "logits": pa.FixedSizeListArray.from_arrays(pa.array(case.logits.reshape(-1)), 300),
            "label": labels,
            "exclude": [row.tolist() for row in own],
        }
    )
    again = bv.Evaluator(exclude_classes="0,1,7", exclude_column="exclude", metrics=ALL)
    assert np.array_equal(again.update_batch(table)["loss"].to_numpy(), found)
    half = bv.Evaluator(exclude_classes=[1, 7, 0, 0], metrics=ALL)
    half.update(case.logits[:9], labels[:9], exclude=lists(own[:9]))
    rest = bv.Evaluator.from_bytes(bv.Evaluator(exclude_classes=[0, 1, 7], metrics=ALL).to_bytes())
    rest.update(case.logits[9:], labels[9:], exclude=lists(own[9:]))
    half.merge(rest)
    assert values_of(half.report()) == values_of(ev.report())
    with pytest.raises(BigvocabError, match="exclude_classes"):
        half.merge(bv.Evaluator(exclude_classes=[0], metrics=ALL))


def test_other_losses_that_sum_over_classes():
    case = Case(60)
    dense = np.zeros(case.logits.shape, np.float32)
    dense[np.arange(ROWS), case.labels] = 1.0
    for loss, options in (("sigmoid", {}), ("weighted-sigmoid", {"pos_weight": 3.0})):
        masked = case.logits.copy()
        masked[:, case.common] = -np.inf
        expected = bv.evaluate(logits=masked, labels=dense, loss=loss, **options)
        found = bv.evaluate(logits=case.logits, labels=dense, loss=loss, exclude_classes=case.common, **options)
        assert values_of(found) == values_of(expected)


@pytest.mark.parametrize(
    ("options", "labels", "message"),
    [
        ({"exclude_classes": [9]}, [0, 1], r"exclude_classes: has the id 9, expected classes in \[0, 5\)"),
        ({"exclude_classes": [-1]}, [0, 1], r"exclude_classes: has the id -1"),
        ({"exclude_classes": [1]}, [0, 1], "labels: row 1 is 1, a class that is excluded"),
        ({"exclude_classes": [0, 1, 2, 3, 4]}, [0, 1], "labels: row 0 has no class left: all 5 are excluded"),
        ({"exclude_classes": [1.5]}, [0, 1], "expected integers"),
        ({"exclude_classes": [1], "label_smoothing": 0.1}, [0, 0], "label_smoothing: spreads over all classes"),
        ({"exclude_column": "e"}, {"label": [0, 1], "e": [[2], [7]]}, "row 1 excludes the id 7"),
        ({"exclude_column": "e"}, {"label": [0, 1], "e": [[2], [3, 1, 3]]}, "row 1 is 1, a class that is excluded"),
        ({"exclude_column": "e"}, {"label": [0, 1], "e": ["a", "b"]}, "expected lists of integers"),
        ({"exclude_column": "e"}, {"label": [0, 1], "e": [[1, 2, 3], [0, 2, 3, 4]]}, None),
        ({"loss": "log-loss", "exclude_classes": [1]}, [0, 1], "exclude_classes: goes with sparse-softmax, softmax"),
        ({"loss": "nce", "exclude_classes": [1]}, [0, 1], "exclude_classes: goes with sparse-softmax, softmax"),
        (
            {"loss": "softmax", "exclude_classes": [1]}, {"label": [[0, 2], [3, 1]]},
            "row 1 .*1, a class that is excluded",
        ),
        (
            {"loss": "softmax", "exclude_classes": [1], "metrics": "ranking", "top_k": (1,)},
            {"label": [[0, 2], [3, 3]]}, "row 1 .*3.* twice",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(options, labels, message):
    labels = pa.table(labels) if isinstance(labels, dict) else labels
    if isinstance(labels, pa.Table):
        options = {**options, "label_column": "label"}
    logits = np.full((2, 5), 0.5, np.float32)
    if message is None:
        assert bv.evaluate(logits=logits, labels=labels, **options)["rows"] == 2
        return
    with pytest.raises((BigvocabError, TypeError), match=message):
        bv.evaluate(logits=logits, labels=labels, **options)


def test_repeated_ids_are_one_and_null_lists_none():
    logits = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    table = pa.table({"label": [0, 1, 2], "e": pa.array([[5, 5, 3, 5], None, []], pa.list_(pa.int64()))})
    found = bv.Evaluator(exclude_column="e", label_column="label")
    masked = logits.copy()
    masked[0, [3, 5]] = -np.inf
    batch = table.append_column("logits", pa.FixedSizeListArray.from_arrays(pa.array(logits.reshape(-1)), 6))
    losses = found.update_batch(batch)["loss"].to_numpy()
    assert losses.tobytes() == bv.sparse_softmax_cross_entropy(masked, [0, 1, 2]).tobytes()


def test_ignored_rows_may_exclude_anything():
    table = pa.table({"label": pa.array([None, 1]), "e": [[0, 1, 2, 3, 4], [0]]})
    report = bv.evaluate(logits=np.zeros((2, 5), np.float32), labels=table, label_column="label", exclude_column="e")
    assert report["mean"] == pytest.approx(math.log(4))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(8, 1200), st.integers(0, 60), st.sampled_from(TYPES))
def test_any_exclusions(seed, classes, most, dtype):
    case = Case(classes, dtype, seed, min(most, classes // 3), rows=4)
    expected = bv.Evaluator(metrics=ALL).update(case.masked, case.labels)
    ev = bv.Evaluator(metrics=ALL, exclude_classes=case.common)
    assert ev.update(case.logits, case.labels, exclude=lists(case.own)).tobytes() == expected.tobytes()


def test_the_command(tmp_path):
    case = Case(50, most=8)
    np.save(tmp_path / "logits.npy", case.logits)
    pq.write_table(case.table(), tmp_path / "labels.parquet")
    np.savetxt(tmp_path / "padding.txt", case.common, fmt="%d")
    expected = bv.evaluate(logits=case.masked, labels=case.labels)
    for classes in (",".join(map(str, case.common)), "padding.txt"):
        done = process(
            "eval", "--logits", "logits.npy", "--labels", "labels.parquet", "--label-column", "label",
            "--exclude-column", "exclude", "--exclude-classes", classes, "--format", "json", cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert f'"mean": {expected["mean"]!r}' in done.stdout
    done = process(
        "eval", "--logits", "logits.npy", "--labels", "labels.parquet", "--label-column", "label",
        "--exclude-classes", "50", cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        1, "bigvocab: error: --exclude-classes: has the id 50, expected classes in [0, 50)\n",
    )  # fmt: skip
