"""Jobs over sequences: a file per request, (B, T) arrays, one layer of several, shifted labels, a first position."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import naive
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file
from sample_jobs import values_of

import bigvocab as bv
from bigvocab.matrices.sequences import open_rows

GOLDEN = Path(__file__).parents[1] / "golden" / "families"
MODEL = GOLDEN / "llama"
CLASSES, LAYERS = 53, 3
ANSWERS = load_file(GOLDEN / "llama.safetensors")
LENGTHS = (5, 1, 9, 2, 12, 30)


def make(lengths=LENGTHS, seed=0):
    """States of a model and tokens, as arrays, one of each per sequence."""
    rng = np.random.default_rng(seed)
    states = [ANSWERS["before"][rng.integers(0, 12, length)] for length in lengths]
    return states, [rng.integers(0, CLASSES, length) for length in lengths]


def write_requests(folder, states, tokens, layers=LAYERS):
    """What vLLM's connector writes: a file per request, the last layer last, and a lock beside it."""
    rng = np.random.default_rng(1)
    folder.mkdir()
    for i, (rows, ids) in enumerate(zip(states, tokens, strict=True)):
        whole = rng.standard_normal((len(rows), layers, rows.shape[1])).astype(rows.dtype)
        whole[:, -1] = rows
        save_file({"hidden_states": whole, "token_ids": ids}, folder / f"cmpl-{i}.safetensors")
        (folder / f"cmpl-{i}.safetensors.lock").touch()
    return {"inputs": f"{folder}::hidden_states", "labels": f"{folder}::token_ids", "model": MODEL}


def by_hand(states, tokens, score_from=0):
    """The report of the rows that are scored, put together by the oracle."""
    pairs = naive.next_tokens(tokens, score_from)
    rows, labels = (np.array(column) for column in zip(*pairs, strict=True))
    return bv.evaluate(inputs=np.concatenate(states)[rows], labels=labels, model=MODEL)


@pytest.mark.parametrize("layers", [1, 3, 7])
def test_a_folder_of_requests_and_a_model_give_the_perplexity(tmp_path, layers):
    states, tokens = make()
    report = bv.evaluate(**write_requests(tmp_path / "dump", states, tokens, layers), shift_labels=True)
    expected = by_hand(states, tokens)
    assert report["mean"] == expected["mean"]
    assert report["rows"] == expected["rows"] == sum(LENGTHS) - len(LENGTHS)
    assert report["ignored_rows"] == len(LENGTHS)
    assert report["model"]["hidden_states"] == "before-norm"
    assert "notes" not in report


@pytest.mark.parametrize("score_from", [1, 4, 11])
def test_rows_are_scored_from_a_position_on(tmp_path, score_from):
    states, tokens = make()
    given = write_requests(tmp_path / "dump", states, tokens)
    report = bv.evaluate(**given, shift_labels=True, score_from=score_from)
    expected = by_hand(states, tokens, score_from)
    assert (report["mean"], report["rows"]) == (expected["mean"], expected["rows"])
    unshifted = bv.evaluate(**given, score_from=score_from)
    assert unshifted["rows"] == sum(max(0, length - score_from) for length in LENGTHS)


def test_a_layer_is_picked(tmp_path):
    states, tokens = make()
    given = write_requests(tmp_path / "dump", states, tokens)
    expected = bv.evaluate(**given, shift_labels=True)
    for layer in (2, -1):
        assert values_of(bv.evaluate(**given, shift_labels=True, layer=layer)) == values_of(expected)
    rng = np.random.default_rng(1)
    first = [rng.standard_normal((len(rows), LAYERS, 32)).astype(np.float32)[:, 0] for rows in states]
    found = bv.evaluate(**given, shift_labels=True, layer=0, hidden_states="before-norm")
    rows, labels = zip(*naive.next_tokens(tokens), strict=True)
    given = {"inputs": np.concatenate(first)[list(rows)], "labels": list(labels), "model": MODEL}
    assert found["mean"] == bv.evaluate(**given, hidden_states="before-norm")["mean"]


def test_losses_of_all_rows_are_written(tmp_path):
    states, tokens = make()
    given = write_requests(tmp_path / "dump", states, tokens)
    bv.evaluate(**given, shift_labels=True, output=tmp_path / "losses.parquet")
    losses = pq.read_table(tmp_path / "losses.parquet")["loss"].to_pylist()
    scored = dict(naive.next_tokens(tokens))
    assert [loss is not None for loss in losses] == [row in scored for row in range(sum(LENGTHS))]


def test_shards_workers_states_and_resume_are_one_run(tmp_path):
    states, tokens = make([7, 30, 1, 100, 3] * 20)
    given = write_requests(tmp_path / "dump", states, tokens) | {"shift_labels": True, "score_from": 2}
    expected = values_of(bv.evaluate(**given))
    assert values_of(bv.evaluate(**given, workers=2)) == expected
    assert values_of(bv.evaluate(**given, chunk_rows=7)) == expected
    parts = [tmp_path / f"{i}.state" for i in range(3)]
    for i, state in enumerate(parts):
        bv.evaluate(**given, shard=(i + 1, 3), state=state)
    assert values_of(bv.merge(parts)) == expected
    bv.evaluate(**given, shard=(1, 3), state=parts[0], resume=True)
    with pytest.raises(bv.BigvocabError, match="score_from is None, but 2 in"):
        bv.evaluate(**given | {"score_from": 0}, shard=(1, 3), state=parts[0], resume=True)
    tokens[0][1] = (tokens[0][1] + 1) % CLASSES
    other = write_requests(tmp_path / "other", states, tokens)
    with pytest.raises(bv.BigvocabError, match="is not that of the"):
        bv.evaluate(**given | other, shard=(1, 3), state=parts[0], resume=True)


# ---- (B, T) arrays


@pytest.mark.parametrize("kind", ["npy", "safetensors", "memory", "parquet"])
def test_batches_of_sequences(tmp_path, kind):
    states, tokens = make([6] * 8)
    x, y = np.stack(states), np.stack(tokens)
    given = {"inputs": x, "labels": y}
    if kind == "npy":
        np.save(tmp_path / "x.npy", x)
        np.save(tmp_path / "y.npy", y)
        given = {"inputs": tmp_path / "x.npy", "labels": tmp_path / "y.npy"}
    if kind == "safetensors":
        save_file({"x": x, "y": y}, tmp_path / "xy.safetensors")
        given = {"inputs": f"{tmp_path}/xy.safetensors::x", "labels": f"{tmp_path}/xy.safetensors::y"}
    if kind == "parquet":  # a list column beside flat rows; what belongs to a list belongs to each of its rows
        np.save(tmp_path / "x.npy", x.reshape(-1, 32))
        pq.write_table(pa.table({"label": y.tolist(), "group": list("aabbccdd")}), tmp_path / "y.parquet")
        given = {"inputs": tmp_path / "x.npy", "labels": tmp_path / "y.parquet", "group_column": "group"}
    report = bv.evaluate(**given, model=MODEL, shift_labels=True, score_from=1)
    expected = by_hand(states, tokens, 1)
    assert (report["mean"], report["rows"]) == (expected["mean"], expected["rows"])
    whole = bv.evaluate(**given, model=MODEL)
    plain = bv.evaluate(inputs=x.reshape(-1, 32), labels=y.reshape(-1), model=MODEL)
    assert (whole["mean"], whole["rows"]) == (plain["mean"], plain["rows"])
    if kind == "parquet":
        assert {name: group["rows"] for name, group in report["groups"].items()} == dict.fromkeys("abcd", 8)


@pytest.mark.parametrize("shape", [(4, 6), (24,), (24, 1)])
def test_logits_in_a_file_of_three_dimensions(tmp_path, shape):
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((4, 6, 11)).astype(np.float32), rng.integers(0, 11, 24)
    np.save(tmp_path / "logits.npy", logits)
    np.save(tmp_path / "labels.npy", labels.reshape(shape))
    found = bv.evaluate(logits=tmp_path / "logits.npy", labels=tmp_path / "labels.npy")
    assert values_of(found) == values_of(bv.evaluate(logits=logits.reshape(-1, 11), labels=labels))
    np.save(tmp_path / "logits.npy", np.asfortranarray(logits))
    with pytest.raises(bv.FormatError, match=r"logits\.npy: is of shape \(4, 6, 11\) in Fortran order"):
        bv.evaluate(logits=tmp_path / "logits.npy", labels=tmp_path / "labels.npy")


def test_labels_of_other_sequences_are_refused(tmp_path):
    logits, labels = np.zeros((4, 6, 11), np.float32), np.arange(24) % 11
    np.save(tmp_path / "logits.npy", logits)
    np.save(tmp_path / "turned.npy", labels.reshape(6, 4))  # as many
    shapes = r"got shape \(6, 4\), expected \(4, 6\), as .* before their columns, or \(24,\)"
    for shift in (False, True):
        with pytest.raises(bv.BigvocabError, match=r"turned\.npy: " + shapes):
            bv.evaluate(logits=tmp_path / "logits.npy", labels=tmp_path / "turned.npy", shift_labels=shift)
    with pytest.raises(bv.BigvocabError, match="labels: " + shapes):
        bv.evaluate(logits=logits, labels=labels.reshape(6, 4))
    flat = bv.evaluate(logits=logits.reshape(1, 24, 11), labels=tmp_path / "turned.npy")  # of which no other is known
    assert flat["rows"] == 24


def test_an_evaluator_picks_a_layer():
    states, tokens = make([6] * 4)
    x = np.stack(states)[:, :, None].repeat(3, axis=2)
    x[:, :, :2] = 7
    evaluator = bv.Evaluator(model=MODEL, layer=2)
    losses = evaluator.update(x, np.stack(tokens))
    assert losses.shape == (4, 6)
    plain = bv.Evaluator(model=MODEL).update(np.concatenate(states), np.concatenate(tokens))
    assert np.array_equal(losses.reshape(-1), plain)


@pytest.mark.parametrize("option", [{"shift_labels": True}, {"score_from": 2}])
def test_an_evaluator_does_not_see_sequences(option):
    (name,) = option
    with pytest.raises(bv.BigvocabError, match=f"{name}: belongs to evaluate"):
        bv.Evaluator(**option).update(np.zeros((2, 3)), [0, 1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layer": 3}, r"layer: got 3, but .*cmpl-0.* has 3 layers \(shape \(5, 3, 32\)\)"),
        ({"layer": -4}, "layer: got -4, but"),
        ({"inputs": np.zeros((59, 32), np.float32), "layer": 0}, "layer: got 0, but inputs has no axis of layers"),
        ({"logits": np.zeros((2, 2)), "inputs": None, "model": None, "layer": 0}, "layer: picks a layer of hidden"),
        ({"score_from": -1}, "score_from: got -1"),
        ({"labels": np.zeros(60, np.int64)}, "60 rows of labels, but .*hidden_states has"),
        (
            {"labels": np.zeros((59, 53)), "loss": "softmax", "shift_labels": True},
            "shift_labels: needs one integer per",
        ),
    ],
)
def test_bad_sequences_are_refused(tmp_path, change, words):
    states, tokens = make()
    given = write_requests(tmp_path / "dump", states, tokens) | change
    with pytest.raises(bv.BigvocabError, match=words):
        bv.evaluate(**given)


def test_a_request_whose_tokens_are_of_another_length_is_named(tmp_path):
    states, tokens = make()
    given = write_requests(tmp_path / "dump", states, tokens)
    for name, change in (("cmpl-2", -1), ("cmpl-4", 1)):  # as many in all
        path = tmp_path / f"dump/{name}.safetensors"
        held = load_file(path)
        held["token_ids"] = np.resize(held["token_ids"], len(held["token_ids"]) + change)
        save_file(held, path)
    with pytest.raises(bv.BigvocabError, match=r"cmpl-2\.safetensors: 8 labels, but the sequence of .* has 9 rows"):
        bv.evaluate(**given, shift_labels=True)
    (tmp_path / "dump/cmpl-5.safetensors").unlink()
    save_file({"token_ids": tokens[5]}, tmp_path / "dump/cmpl-5.safetensors")
    with pytest.raises(bv.BigvocabError, match=r"cmpl-5\.safetensors: no tensor 'hidden_states'"):
        bv.evaluate(**given, shift_labels=True)


def test_a_label_out_of_range_is_named_by_its_file(tmp_path):
    states, tokens = make()
    tokens[2][3] = CLASSES
    given = write_requests(tmp_path / "dump", states, tokens)
    with pytest.raises(bv.BigvocabError, match=r"cmpl-2\.safetensors: row 3 \(row \d+ of all files\) is 53"):
        bv.evaluate(**given, shift_labels=True)
    with pytest.raises(bv.BigvocabError, match=r"cmpl-2\.safetensors: row 3 \(row \d+ of all files\) is 53"):
        bv.evaluate(**given)


def test_a_file_that_changes_is_noticed(tmp_path):
    states, tokens = make([40] * 6)
    given = write_requests(tmp_path / "dump", states, tokens)
    changed = tmp_path / "dump/cmpl-5.safetensors"

    def change(done, rows, read):
        if done == 0:
            changed.write_bytes(changed.read_bytes())

    with pytest.raises(bv.FormatError, match=r"cmpl-5\.safetensors.*: was written to|cmpl-5.safetensors: changed"):
        bv.evaluate(**given, shift_labels=True, progress=change, chunk_rows=40)


# ---- many files


def test_more_files_than_may_be_open(tmp_path):
    """In a process that may open 64 files, 300 requests; nothing is mapped, and every row is there."""
    states, tokens = make([3] * 300)
    given = write_requests(tmp_path / "dump", states, tokens)
    code = f"""
import resource, json, bigvocab as bv
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
report = bv.evaluate(inputs={given["inputs"]!r}, labels={given["labels"]!r}, model={str(MODEL)!r}, shift_labels=True)
print(json.dumps([report["mean"], report["rows"], len(report["inputs"])]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    expected = by_hand(states, tokens)
    mean, rows, entries = json.loads(done.stdout)
    assert (mean, rows) == (expected["mean"], expected["rows"])
    assert entries == 4  # states, layer, norm, labels: not one for each file
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 64


def test_many_small_files_of_rows(tmp_path):
    states, tokens = make([2] * 300)
    for i, rows in enumerate(states):
        np.save(tmp_path / f"x-{i}.npy", rows)
    np.save(tmp_path / "labels", np.concatenate(tokens))
    given = {"inputs": f"{tmp_path}/x-*.npy", "labels": f"{tmp_path}/labels.npy", "model": str(MODEL)}
    code = f"""
import resource, bigvocab as bv
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
print(bv.evaluate(**{given!r})["mean"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    expected = bv.evaluate(inputs=np.concatenate(states), labels=np.concatenate(tokens), model=MODEL)
    assert float(done.stdout) == expected["mean"]


def test_rows_of_a_file_that_has_changed_are_not_read(tmp_path):
    states, tokens = make()
    write_requests(tmp_path / "dump", states, tokens)
    rows = open_rows(f"{tmp_path}/dump::hidden_states", "inputs", layer=-1)
    assert np.array_equal(rows[5:7], np.concatenate(states)[5:7])
    assert np.array_equal(rows[[58, 0]], np.concatenate(states)[[58, 0]])
    path = tmp_path / "dump/cmpl-1.safetensors"
    path.write_bytes(path.read_bytes())
    assert np.array_equal(rows[:5], states[0])
    with pytest.raises(bv.FormatError, match=r"cmpl-1\.safetensors::hidden_states: was written to or replaced"):
        rows[4:6]
    path.unlink()
    with pytest.raises(bv.FormatError, match=r"cmpl-1\.safetensors::hidden_states: is gone"):
        rows[4:6]


# ---- notes


def trained(rows=200):
    """States of which each knows the next token: its logit is the greatest by far."""
    rng = np.random.default_rng(0)
    weights = np.eye(20, dtype=np.float32) * 12
    tokens = rng.integers(0, 20, rows)
    return np.eye(20, dtype=np.float32)[np.roll(tokens, -1)], weights, tokens


def test_labels_that_were_not_shifted_are_noted():
    states, weights, tokens = trained()
    given = {"inputs": states, "weights": weights}
    ties, note = bv.evaluate(**given, labels=tokens)["notes"]
    assert (ties["code"], note["code"]) == ("ties", "labels_not_shifted")
    assert "the label of the next row fits a row better, by 12.0 nats" in note["text"]
    assert "--shift-labels" in note["text"]
    shifted = np.roll(tokens, -1)
    assert "notes" not in bv.evaluate(**given, labels=shifted)
    assert "notes" not in bv.evaluate(**given, labels=tokens, shift_labels=True)
    ties, note = bv.evaluate(**given, labels=shifted, shift_labels=True)["notes"]
    assert (ties["code"], note["code"]) == ("ties", "labels_shifted_twice")
    logits = states @ weights
    assert bv.evaluate(logits=logits, labels=tokens)["notes"][-1]["code"] == "labels_not_shifted"
    assert "notes" not in bv.evaluate(logits=logits, labels=shifted)


def test_tokens_of_the_inputs_are_noted_by_their_name(tmp_path):
    states, tokens = make([40] * 3)
    given = write_requests(tmp_path / "dump", states, tokens)
    (note,) = bv.evaluate(**given)["notes"]
    assert note["code"] == "labels_not_shifted"
    assert "labels are token_ids, the tokens of the inputs" in note["text"]
    assert "notes" not in bv.evaluate(**given, shift_labels=True)
    for i, state in enumerate(parts := [tmp_path / "1", tmp_path / "2"]):
        bv.evaluate(**given, shard=(i + 1, 2), state=state)
    assert bv.merge(parts)["notes"] == [note]
