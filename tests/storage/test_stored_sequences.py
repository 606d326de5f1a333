"""Folders of sequences, states of several layers, archives and tables in stores: as from a disk, with few bytes."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fault_server import serving
from safetensors.numpy import save

import bigvocab as bv
from bigvocab.storage import attempts, remote

CLASSES, SIZE, LAYERS = 50, 8, 3
RNG = np.random.default_rng(2)
LAYER = RNG.normal(size=(CLASSES, SIZE)).astype(np.float32)
LENGTHS = [5, 9, 1, 12, 7, 30, 4, 4, 11, 6]
STATES = [RNG.normal(size=(length, LAYERS, SIZE)).astype(np.float32) for length in LENGTHS]
TOKENS = [RNG.integers(0, CLASSES, length) for length in LENGTHS]
SHIFTED = {"weights": LAYER, "shift_labels": True}


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setattr(attempts, "PAUSE", 0.0)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with serving() as (faults, web, query):
        yield faults, web, query


@pytest.fixture
def folder(store, tmp_path):
    """One object for each request, as serving systems write them; the same files on the disk."""
    for i, (states, tokens) in enumerate(zip(STATES, TOKENS, strict=True)):
        content = save({"hidden_states": states, "token_ids": tokens})
        (tmp_path / f"req-{i}.safetensors").write_bytes(content)
        store[0].put(f"/b/run/req-{i}.safetensors", content)
    return tmp_path


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def named(store, name):
    """What a folder, or each of its objects, is called: stores list, web servers do not."""
    _, web, query = store
    return f"s3://b/run{query}::{name}", [f"{web}/b/run/req-{i}.safetensors::{name}" for i in range(len(LENGTHS))]


@pytest.mark.parametrize("layer", [None, 0, -2])
@pytest.mark.parametrize("kind", [0, 1])
def test_one_object_for_each_sequence(store, folder, kind, layer):
    expected = bv.evaluate(inputs=f"{folder}::hidden_states", labels=f"{folder}::token_ids", layer=layer, **SHIFTED)
    states, tokens = named(store, "hidden_states")[kind], named(store, "token_ids")[kind]
    for options in ({}, {"chunk_rows": 7}, {"max_memory": "1M", "score_from": 2}):
        found = bv.evaluate(inputs=states, labels=tokens, layer=layer, **SHIFTED, **options)
        if "score_from" not in options:
            assert (found["sum"], found["rows"]) == (expected["sum"], expected["rows"])
            assert found["by_position"] == expected["by_position"]
        assert found["rows"] + found["ignored_rows"] == sum(LENGTHS)


def test_workers_shards_and_a_state_of_sequences(store, folder, tmp_path):
    expected = bv.evaluate(inputs=f"{folder}::hidden_states", labels=f"{folder}::token_ids", **SHIFTED)["sum"]
    given = {"inputs": named(store, "hidden_states")[0], "labels": named(store, "token_ids")[0], **SHIFTED}
    assert bv.evaluate(**given, workers=2)["sum"] == expected
    for i in (1, 2):
        bv.evaluate(**given, shard=(i, 2), state=tmp_path / f"{i}.state")
    assert bv.merge([tmp_path / "1.state", tmp_path / "2.state"])["sum"] == expected
    states = STATES[3] + 1
    store[0].put("/b/run/req-3.safetensors", save({"hidden_states": states, "token_ids": TOKENS[3]}))
    with pytest.raises(bv.BigvocabError, match="inputs"):
        bv.evaluate(**given, shard=(1, 2), state=tmp_path / "1.state", resume=True)


def test_objects_are_fetched_at_once_and_labels_alone_of_large_ones(store):
    faults, _, query = store
    for i in range(24):
        large = np.zeros((100_000, SIZE), np.float32) if i == 5 else np.zeros((2, SIZE), np.float32)
        faults.put(f"/b/run/r-{i}.safetensors", save({"hidden_states": large, "token_ids": np.zeros(2, np.int64)}))
    faults.gate = 8  # no range is answered before so many were asked for
    labels = list(bv.read_labels(f"s3://b/run{query}::token_ids"))
    assert sum(map(len, labels)) == 48
    assert faults.fetched("/b/run/r-5.safetensors") < 2 << 20  # the header's block, not 3 MB of states


def test_files_of_rows_are_no_sequences(store, tmp_path):
    """Three files of rows beside one file of labels are one sequence, as on a disk."""
    rows = np.concatenate([states[:, 0] for states in STATES])
    for i, part in enumerate(np.split(rows, [20, 50])):
        np.save(tmp_path / f"part-{i}.npy", part)
        store[0].put(f"/b/parts/part-{i}.npy", npy(part))
    given = {"labels": np.concatenate(TOKENS), **SHIFTED}
    expected = bv.evaluate(inputs=str(tmp_path), **given)
    found = bv.evaluate(inputs=f"s3://b/parts{store[2]}", **given)
    assert (found["sum"], found["rows"]) == (expected["sum"], len(rows) - 1) == (expected["sum"], expected["rows"])
    bad = rows.copy()
    bad[33] = np.nan
    store[0].put("/b/parts/part-1.npy", npy(bad[20:50]))
    with pytest.raises(bv.BigvocabError, match=r"s3://b/parts/part-1.npy\?.*: row 13"):
        bv.evaluate(inputs=f"s3://b/parts{store[2]}", **given)


@pytest.mark.parametrize("kind", ["s3", "http"])
def test_of_archives_only_the_rows_are_fetched(store, kind):
    faults, web, query = store
    file, rows, other = io.BytesIO(), np.concatenate(STATES), np.zeros(1 << 19)
    np.savez(file, a=other, states=rows, z=other, tokens=np.concatenate(TOKENS))
    faults.put("/b/all.npz", file.getvalue())
    place = f"s3://b/all.npz{query}" if kind == "s3" else f"{web}/b/all.npz"
    expected = bv.evaluate(inputs=rows, labels=np.concatenate(TOKENS), layer=1, weights=LAYER)["sum"]
    found = bv.evaluate(inputs=f"{place}::states", labels=f"{place}::tokens", layer=1, weights=LAYER)
    assert found["sum"] == expected
    assert faults.fetched("/b/all.npz") < len(file.getvalue())


def test_a_folder_of_datasets_and_partitions(store):
    faults, _, query = store

    def arrow(labels):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, pa.schema([("label", pa.int64())])) as writer:
            writer.write_table(pa.table({"label": labels}))
        return sink.getvalue().to_pybytes()

    for name, labels in {"b": [1, 2], "a": [3, 4], "cache": [9, 9]}.items():
        faults.put(f"/b/set/{name}.arrow", arrow(labels))
    faults.put("/b/set/state.json", json.dumps({"_data_files": [{"filename": f"{n}.arrow"} for n in "ba"]}).encode())
    logits = np.tile(np.arange(5, dtype=np.float32), (4, 1))
    report = bv.evaluate(logits=logits, labels=f"s3://b/set{query}")
    assert report["sum"] == bv.evaluate(logits=logits, labels=[1, 2, 3, 4])["sum"]
    faults.put("/b/set/state.json", json.dumps({"_data_files": [{"filename": "c.arrow"}]}).encode())
    with pytest.raises(bv.FormatError, match=r"c.arrow: is missing, though state.json lists it"):
        bv.read_labels(f"s3://b/set{query}")
    for book, labels in {"Ruth": [1, 2], "Song of Songs": [3, 4]}.items():
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"label": labels}), sink)
        faults.put(f"/b/books/book={book.replace(' ', '%20')}/part-0.parquet", sink.getvalue().to_pybytes())
    report = bv.evaluate(logits=logits, labels=f"s3://b/books{query}", group_column="book")
    assert set(report["groups"]) == {"Ruth", "Song of Songs"}


# ---- faults


@pytest.mark.parametrize(("kind", "fault"), [(0, "503"), (0, "drop"), (1, "503"), (1, "drop"), (1, "short")])
def test_what_passes_is_tried_again(store, folder, kind, fault):
    expected = bv.evaluate(inputs=f"{folder}::hidden_states", labels=f"{folder}::token_ids", **SHIFTED)["sum"]
    store[0].plan = [fault, "", fault, "", "", fault, fault, "", "", "", "", "", "", "", fault]
    found = bv.evaluate(inputs=named(store, "hidden_states")[kind], labels=named(store, "token_ids")[kind], **SHIFTED)
    assert found["sum"] == expected
    assert not store[0].plan


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize(("status", "words"), [(403, "403|ACCESS_DENIED|Forbidden"), (404, "404|no such|NO_SUCH")])
def test_what_never_passes_is_one_line(store, folder, kind, status, words, tmp_path):
    store[0].status["/b/run/req-7.safetensors"] = status
    with pytest.raises(bv.BigvocabError, match=rf"(?i)^\w+://[^ ]*req-7[^ ]*: cannot be read: [^\n]*({words})[^\n]*$"):
        bv.evaluate(
            inputs=named(store, "hidden_states")[kind],
            labels=np.concatenate(TOKENS),
            output=tmp_path / "l.parquet",
            **SHIFTED,
        )
    assert not (tmp_path / "l.parquet").exists()


@pytest.mark.parametrize("kind", [0, 1])
def test_an_object_that_changes_under_the_run_is_refused(store, folder, kind, monkeypatch):
    """It has the same size; only its ETag tells."""
    monkeypatch.setattr(remote, "RANGE", 256)
    faults = store[0]

    def progress(done, rows, read):
        states = save({"hidden_states": STATES[9][::-1].copy(), "token_ids": TOKENS[9]})
        faults.put("/b/run/req-9.safetensors", states)

    with pytest.raises(bv.BigvocabError, match=r"req-9.*: cannot be read: changed while it was read"):
        bv.evaluate(
            inputs=named(store, "hidden_states")[kind],
            labels=np.concatenate(TOKENS),
            chunk_rows=5,
            progress=progress,
            **SHIFTED,
        )
