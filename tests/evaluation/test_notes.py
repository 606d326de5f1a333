"""Notes: when they must speak, and when they must be silent."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import EVAL, make_data, run

import bigvocab as bv
from bigvocab.jobs.merging import merge

ROWS, CLASSES = 120, 60


@pytest.fixture
def random():
    return np.random.default_rng(3)


def codes(report):
    return [note["code"] for note in report["notes"]] if "notes" in report else []


def noted(logits, labels, **options):
    return codes(bv.evaluate(logits=np.asarray(logits), labels=labels, **options))


def probabilities(random, classes=CLASSES):
    e = np.exp(random.standard_normal((ROWS, classes)) * 2)
    return e / e.sum(1, keepdims=True)


# ---- probabilities where logits are expected


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("classes", [8, 5000])
def test_probabilities_are_noted(random, dtype, classes):
    p, labels = probabilities(random, classes).astype(dtype), random.integers(0, classes, ROWS)
    assert "probabilities" in noted(p, labels)
    assert "probabilities" not in noted(np.log(p.astype(np.float32) + 1e-30), labels)


def test_what_only_looks_like_probabilities_is_not_noted(random):
    labels = random.integers(0, CLASSES, ROWS)
    p = probabilities(random)
    p[0] += 1.0  # one row is none
    for logits in (
        p,
        np.zeros((ROWS, CLASSES)),  # uniform, as logits and
        np.full((ROWS, CLASSES), 1 / CLASSES),  # as probabilities: the numbers are the same
        random.random((ROWS, CLASSES)),
        random.standard_normal((ROWS, CLASSES)),
    ):
        assert "probabilities" not in noted(logits, labels)
    ev = bv.Evaluator()
    ev.update(probabilities(random), labels)
    assert "probabilities" in codes(ev.report())
    ev.update(random.standard_normal((4, CLASSES)), labels[:4])  # a few rows that are none, in a block of their own
    assert "probabilities" not in codes(ev.report())
    two = np.array([[0.25, 0.75]] * ROWS)
    assert "probabilities" not in noted(two, labels % 2)
    assert "probabilities" not in noted(p - (np.arange(ROWS) == 0)[:, None], p > 0.5, loss="log-loss")
    as_targets = bv.evaluate(
        logits=random.standard_normal((ROWS, CLASSES)), labels=probabilities(random), loss="softmax"
    )
    assert codes(as_targets) == []


# ---- labels


@pytest.mark.parametrize(
    ("dtype", "classes", "speaks"),
    [
        (np.uint16, 70_000, True),
        (np.uint8, 1000, True),
        (np.int16, 40_000, True),
        (np.uint16, 65_536, False),
        (np.uint8, 256, False),
        (np.uint8, 260, False),  # bytes, and a few special tokens
        (np.int32, 70_000, False),
    ],
)
def test_narrow_labels(tmp_path, random, dtype, classes, speaks):
    logits = np.zeros((5, classes), np.float16)
    logits[:, 3] = 1
    labels = random.integers(0, 100, 5).astype(dtype)
    assert ("label_type" in noted(logits, labels)) == speaks
    np.save(tmp_path / "labels.npy", labels)
    assert ("label_type" in noted(logits, tmp_path / "labels.npy")) == speaks
    ev = bv.Evaluator()
    ev.update(logits, labels)
    assert ("label_type" in codes(ev.report())) == speaks


def test_labels_from_1(random):
    logits = random.standard_normal((ROWS, CLASSES)) * 3
    labels = random.integers(0, CLASSES - 1, ROWS)
    labels[:2] = 0, CLASSES - 2
    logits[np.arange(ROWS), labels] += 8.0
    assert "labels_from_1" in noted(logits, labels + 1)
    assert noted(logits, labels) == []
    logits[np.arange(ROWS), labels + 1] += 16.0  # class 0 is padding, and the model knows it
    assert noted(logits, labels + 1) == []
    assert "labels_from_1" not in noted(np.zeros((ROWS, CLASSES)), labels + 1)
    small = random.standard_normal((ROWS, 4)) * 3
    assert noted(small, random.integers(1, 4, ROWS)) == []
    with pytest.raises(bv.BigvocabError, match=r"is 60, expected a class in \[0, 60\); labels run from 1 to 60"):
        bv.evaluate(logits=logits, labels=np.arange(ROWS) % CLASSES + 1)


def test_minus_100_names_the_option(random):
    logits, labels = random.standard_normal((4, 9)), np.array([1, -100, 2, 3])
    for loss, given in (("sparse-softmax", {}), ("nce", {"num_sampled": 2})):
        rows = {"logits": logits} if not given else {"inputs": logits, "weights": np.eye(9)}
        with pytest.raises(bv.BigvocabError, match=r"row 1 .*-100.*left out with ignore_index"):
            bv.evaluate(**rows, labels=labels, loss=loss, **given)
    with pytest.raises(bv.BigvocabError, match=r"row 1 is -5, expected a class in \[0, 9\)$"):
        bv.evaluate(logits=logits, labels=np.array([1, -5, 2, 3]))
    bv.evaluate(logits=logits, labels=labels, ignore_index=-100)


# ---- ties, and classes that are there twice


def test_ties(random):
    labels = random.integers(0, CLASSES, ROWS)
    logits = random.standard_normal((ROWS, CLASSES))
    assert noted(logits, labels) == []
    half = logits.copy()
    half[: ROWS // 2, 0] = half[np.arange(ROWS // 2), labels[: ROWS // 2]]
    half[np.arange(ROWS), labels] = np.where(labels == 0, logits[:, 0], half[np.arange(ROWS), labels])
    assert "ties" not in noted(half, labels)
    exact = logits.copy()
    exact[: ROWS // 2] = 0.0
    assert "ties" not in noted(exact, labels)  # half of the rows, not more
    exact[ROWS // 2] = 0.0
    assert "ties" in noted(exact, labels)
    assert noted(np.zeros((ROWS, CLASSES)), labels) == ["ties"]
    assert noted(np.zeros((ROWS, CLASSES)), labels, metrics="entropy") == []  # ranks are not known


def test_a_vocabulary_that_is_there_twice(random):
    labels, logits = random.integers(0, CLASSES, ROWS), random.standard_normal((ROWS, CLASSES))
    twice = np.concatenate([logits, logits], axis=1)
    assert noted(twice, labels) == ["vocabulary_twice"]
    twice[:, -1] += 1.0
    assert "vocabulary_twice" not in noted(twice, labels)
    constant = np.zeros((ROWS, CLASSES))
    assert "vocabulary_twice" not in noted(constant, labels)


# ---- bytes, masses, draws


def test_rows_without_bytes(random):
    logits = random.standard_normal((ROWS, CLASSES)).astype(np.float32)
    labels = random.integers(0, CLASSES, ROWS)
    lengths = random.integers(1, 5, ROWS)
    for some, expected in ((False, []), (True, ["rows_without_bytes"])):
        lengths[:10] *= not some
        table = pa.table({"label": labels, "bytes": lengths})
        report = bv.evaluate(logits=logits, labels=table, bytes_column="bytes")
        assert codes(report) == expected
    losses = bv.sparse_softmax_cross_entropy(logits, labels)
    shown = losses[10:].sum() / lengths.sum() / np.log(2)
    assert report["notes"][0]["text"].endswith(f"over the rows that have bytes it is {shown:.4f}")
    sigmoid = pa.table({"label": [[1]] * ROWS, "bytes": lengths})
    assert codes(bv.evaluate(logits=logits, labels=sigmoid, bytes_column="bytes", loss="sparse-sigmoid")) == []


def test_lists_whose_mass_is_below_1(random):
    logits = random.standard_normal((ROWS, CLASSES))
    offsets, ids = np.arange(ROWS + 1) * 3, np.tile([3, 4, 9], ROWS)
    for mass, expected in ((0.69, ["label_mass"]), (1.0, []), (0.9995, [])):
        shares = np.tile([0.5, 0.3, 0.2], ROWS) * mass
        assert noted(logits, (offsets, ids, shares), loss="softmax") == expected


def test_log_uniform_draws_over_ids_that_are_not_sorted(random):
    classes = 5000
    inputs, layer = random.standard_normal((400, 8)), random.standard_normal((classes, 8))
    job = {"inputs": inputs, "weights": layer, "loss": "sampled-softmax", "num_sampled": 20}
    scattered = random.integers(0, classes, 400)
    sorted_ids = np.minimum(np.exp(random.random(400) * np.log(classes + 1)).astype(int) - 1, classes - 1)
    assert codes(bv.evaluate(**job, labels=scattered)) == ["log_uniform"]
    assert codes(bv.evaluate(**job, labels=sorted_ids)) == []
    assert codes(bv.evaluate(**job, labels=scattered, sampler="uniform")) == []
    few = job | {"inputs": inputs[:99]}  # may lie anywhere by chance
    assert codes(bv.evaluate(**few, labels=scattered[:99])) == []


# ---- where they stand


def test_notes_change_nothing_and_merge(random, tmp_path):
    logits, labels = np.zeros((ROWS, CLASSES), np.float32), random.integers(0, CLASSES, ROWS)
    whole = bv.evaluate(logits=logits, labels=labels)
    for i in (1, 2):
        bv.evaluate(logits=logits, labels=labels, shard=(i, 2), state=tmp_path / f"{i}.state")
    assert merge([tmp_path / "2.state", tmp_path / "1.state"])["notes"] == whole["notes"]


def by_ranges(tmp_path, logits, labels, ranges=3, **options):
    np.save(tmp_path / "logits.npy", logits)
    np.save(tmp_path / "labels.npy", labels)
    files = {"logits": tmp_path / "logits.npy", "labels": tmp_path / "labels.npy"}
    states = [tmp_path / f"{i}.state" for i in range(1, ranges + 1)]
    for i, state in enumerate(states, 1):
        bv.evaluate(**files, **options, vocab_shard=(i, ranges), state=state)
        state_of = bv.merge(states) if i == ranges else None
    whole = bv.evaluate(**files, **options)
    for state in states:
        state.unlink()
    assert codes(state_of) == codes(whole)
    return codes(state_of)


def test_notes_of_logits_in_ranges_of_classes(random, tmp_path):
    labels = random.integers(0, CLASSES, ROWS)
    p, logits = probabilities(random), random.standard_normal((ROWS, CLASSES))
    assert by_ranges(tmp_path, p, labels) == ["probabilities"]
    p[3] += 1.0
    assert by_ranges(tmp_path, p, labels) == []
    assert by_ranges(tmp_path, np.full((ROWS, CLASSES), 1 / CLASSES), labels) == ["ties"]
    assert by_ranges(tmp_path, random.random((ROWS, CLASSES)), labels) == []
    twice = np.concatenate([logits, logits], axis=1)
    assert by_ranges(tmp_path, twice, labels) == ["vocabulary_twice"]
    assert by_ranges(tmp_path, np.zeros((ROWS, CLASSES)), labels) == ["ties"]
    swapped = np.concatenate([logits, logits[:, ::-1]], axis=1)  # the same numbers in other places
    assert by_ranges(tmp_path, swapped, labels) == ["ties"]


def test_the_command_says_them_on_stderr(tmp_path, monkeypatch):
    make_data(tmp_path, monkeypatch)
    np.save("logits.npy", np.zeros((40, 11), np.float32))
    found = run(*EVAL, "--fail-if", "mean > 9")
    assert found.exit_code == 0
    assert found.stderr.startswith("bigvocab: note: in 40 of 40 rows another class has the label's logit")
    assert found.stderr.count("\n") == 1
    quiet = run(*EVAL, "-q", "--report", "report.json")
    assert (quiet.stderr, quiet.exit_code) == ("", 0)
    assert '"code": "ties"' in (tmp_path / "report.json").read_text()
    pq.write_table(pa.table({"label": [0, -100] * 20}), "labels.parquet")
    refused = run(*EVAL)
    assert refused.exit_code == 1
    assert "left out with --ignore-index" in refused.stderr
