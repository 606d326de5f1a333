"""Folders of labels and vectors: datasets, partitions, Spark's marks; Arrow files that only their footer describes."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import bigvocab as bv
from bigvocab.errors import BigvocabError, FormatError


def stream(path, table):
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def ids(source, **columns):
    return [label for batch in bv.read_labels(source, **columns) for label in batch.labels.tolist()]


def dataset(folder, order=("data-1.arrow", "data-0.arrow")):
    """As `Dataset.save_to_disk` writes it; the order is that of state.json."""
    folder.mkdir(exist_ok=True)
    for i, name in enumerate(sorted(order)):
        vectors = pa.array(np.full((2, 3), i, np.float32).tolist(), pa.list_(pa.float32(), 3))
        stream(folder / name, pa.table({"label": [2 * i, 2 * i + 1], "x": vectors}))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": n} for n in order], "_split": None}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_a_dataset_in_its_own_order(tmp_path):
    folder = dataset(tmp_path / "ds")
    assert ids(folder) == [2, 3, 0, 1]
    assert ids(f"{folder}::label") == [2, 3, 0, 1]
    assert np.asarray(bv.open_matrix(f"{folder}::x"))[:, 0].tolist() == [1, 1, 0, 0]
    assert bv.evaluate(logits=f"{folder}::x", labels=str(folder), num_classes=None, ignore_index=3)["rows"] == 3


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("", "not valid JSON"),
        ("[]", "a JSON list, expected an object"),
        ('{"_data_files": 3}', "lists no files of data"),
        ('{"_data_files": []}', "lists no files of data"),
        ('{"_data_files": [{"filename": "../secret.arrow"}]}', "expected the name of one in this folder"),
        ('{"_data_files": [{"filename": "/etc/passwd"}]}', "expected the name of one in this folder"),
        ('{"_data_files": [{"filename": ".."}]}', "expected the name of one in this folder"),
        ('{"_data_files": [{"filename": 3}]}', "expected the name of one in this folder"),
        ('{"_data_files": ["data-0.arrow"]}', "expected the name of one in this folder"),
        ('{"_data_files": [{"filename": "data-7.arrow"}]}', "data-7.arrow: is missing, though state.json lists it"),
        ('{"_data_files": [{"filename": "data-0.arrow"}], "_indices_data_files": [{"filename": "i"}]}', "flatten_ind"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_datasets_that_lie(tmp_path, state, words):
    folder = dataset(tmp_path / "ds")
    (folder / "state.json").write_text(state)
    for call in (bv.read_labels, bv.open_matrix):
        with pytest.raises(BigvocabError, match=words):
            call(folder)


def test_a_folder_of_splits(tmp_path):
    dataset(tmp_path / "train")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for call in (bv.read_labels, bv.open_matrix):
        with pytest.raises(BigvocabError, match=r"a DatasetDict of several splits.*/train, .*/test"):
            call(tmp_path)


def test_partitions_are_groups(tmp_path):
    for book, values in {
        "Ruth": [1, 2],
        "Job": [3],
        "Song%20of%20Songs": [4],
        "__HIVE_DEFAULT_PARTITION__": [5],
    }.items():
        folder = tmp_path / "labels" / f"book={book}" / "year=1611"
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"label": values}), folder / "part-0.parquet")
    (tmp_path / "labels/_SUCCESS").touch()
    (tmp_path / "labels/_delta_log").mkdir()
    labels = bv.read_labels(tmp_path / "labels", group_column="book")
    found = [(int(i), b.groups[1][g]) for b in labels for i, g in zip(b.labels, b.groups[0], strict=True)]
    assert sorted(found) == [(1, "Ruth"), (2, "Ruth"), (3, "Job"), (4, "Song of Songs"), (5, "(null)")]
    again = pickle.loads(pickle.dumps(labels))
    assert sum(map(len, again)) == 5
    assert {b.groups[1][0] for b in bv.read_labels(tmp_path / "labels", group_column="year")} == {"1611"}
    own = tmp_path / "labels" / "book=Ruth" / "year=1611" / "part-0.parquet"
    pq.write_table(pa.table({"label": [1], "book": ["own"]}), own)
    (batch,) = bv.read_labels(own, group_column="book")
    assert batch.groups[1] == ["own"]


def test_marks_of_spark(tmp_path):
    for i in range(3):
        pq.write_table(pa.table({"label": [i]}), tmp_path / f"part-{i}.parquet")
        (tmp_path / f".part-{i}.parquet.crc").touch()
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / "_metadata.parquet").write_bytes(b"x")
    for source in (tmp_path, f"{tmp_path}/*", f"{tmp_path}/part-*"):
        assert ids(source) == [0, 1, 2]


def test_text_and_archives_in_a_folder(tmp_path):
    for i in range(11):
        (tmp_path / f"part-{i}.csv").write_text(f"label\n{i}\n")
    assert ids(tmp_path) == list(range(11))
    np.save(tmp_path / "labels.npy", np.array([7]))
    assert ids(tmp_path) == [7]
    for i in range(3):
        (tmp_path / "t").mkdir(exist_ok=True)
        np.savez(tmp_path / "t" / f"{i}.npz", y=np.array([i, i]), x=np.full((2, 4), i))
    assert ids(f"{tmp_path}/t::y") == [0, 0, 1, 1, 2, 2]


# ---- Arrow files

TABLE = pa.table(
    {"label": pa.array([3, None, 5, 6, 7]), "w": [0.5] * 5, "g": pa.array(list("abcab")).dictionary_encode()}
)


def without_leading_schema(path, codec=None):
    """A file whose schema is in the footer alone: what lies before the first batch is no message."""
    options = pa.ipc.IpcWriteOptions(compression=codec)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, TABLE.schema, options=options) as writer:
        writer.write_table(TABLE, max_chunksize=2)
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[12:16], "little")
    data[8 : 16 + size] = bytes(8 + size)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("codec", [None, "lz4", "zstd"])
def test_files_are_read_by_their_footer(tmp_path, codec):
    path = without_leading_schema(tmp_path / "y.arrow", codec)
    assert pa.ipc.open_file(path).read_all().equals(TABLE)
    labels = bv.read_labels(path, label_column="label", weight_column="w", group_column="g")
    assert labels.num_rows == 5
    assert [i for b in labels for i in b.labels.tolist()] == [3, 0, 5, 6, 7]
    assert [b.groups[1][g] for b in labels for g in b.groups[0]] == list("abcab")
    for start in range(5):
        for stop in range(start, 6):
            assert sum(map(len, labels.batches(start, stop))) == stop - start


def test_footers_that_lie(tmp_path):
    """Every byte of the footer turned round, with nothing else to go by."""
    path = without_leading_schema(tmp_path / "y.arrow")
    whole, bad = path.read_bytes(), tmp_path / "bad.arrow"
    begin = len(whole) - 10 - int.from_bytes(whole[-10:-6], "little")
    refused = 0
    for at in range(begin, len(whole)):
        for value in (whole[at] ^ 0xFF, (whole[at] + 1) % 256):
            bad.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
            try:
                assert sum(map(len, bv.read_labels(bad, label_column="label"))) >= 0
            except BigvocabError as error:
                refused += "bad.arrow" in str(error)  # noqa: PT017
    assert refused > 100


def test_a_truncated_file_without_leading_schema(tmp_path):
    whole = without_leading_schema(tmp_path / "y.arrow").read_bytes()
    for size in range(8, len(whole), 7):
        (tmp_path / "y.arrow").write_bytes(whole[:size])
        with pytest.raises(FormatError, match="y.arrow: truncated or corrupt Arrow IPC file"):
            bv.read_labels(tmp_path / "y.arrow")


def test_views_of_text_in_a_dictionary(tmp_path):
    """As Polars writes a Categorical."""
    kind = pa.dictionary(pa.uint32(), pa.string_view())
    groups = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0], pa.uint32()), pa.array(["a", "b"], pa.string_view()))
    table = pa.table({"label": [1, 2, 3], "g": groups.cast(kind)})
    (batch,) = bv.read_labels(table, group_column="g")
    assert batch.groups[1] == ["a", "b"]
