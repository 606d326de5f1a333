"""Labels in .csv, .tsv and .jsonl against Python's own readers, and text of every bad kind."""

from __future__ import annotations

import csv
import gzip
import io
import json
import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bigvocab as bv
from bigvocab.errors import BigvocabError, FormatError
from bigvocab.labels import text_files

ROWS = 500
RNG = np.random.default_rng(8)
LABELS = [None if i % 7 == 3 else int(label) for i, label in enumerate(RNG.integers(0, 90, ROWS))]
WEIGHTS = [round(float(weight), 6) for weight in RNG.random(ROWS)]
GROUPS = ["plain", 'with "quotes"', "two\nlines", "comma, tab\t", "", "naïve"]
COLUMNS = {"label_column": "label", "weight_column": "w", "group_column": "g", "bytes_column": "n"}


def rows():
    return [
        {"label": LABELS[i], "w": WEIGHTS[i], "g": GROUPS[i % len(GROUPS)], "n": i % 5, "date": "2026-11-28"}
        for i in range(ROWS)
    ]


def text(kind):
    if kind == "jsonl":
        return "".join(json.dumps(row) + "\n" + "\n" * (i % 3 == 0) for i, row in enumerate(rows())).encode()
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows()[0]), delimiter="\t" if kind == "tsv" else ",", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows())
    return out.getvalue().encode()


def write(path, data):
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read(path, start=0, stop=None, **columns):
    found = []
    for batch in bv.read_labels(path, **columns).batches(start, stop):
        for i in range(len(batch)):
            ignored = batch.ignored is not None and batch.ignored[i]
            row = {"label": None if ignored else int(batch.labels[i])}
            if batch.weights is not None:
                row |= {"w": float(batch.weights[i]), "g": batch.groups[1][batch.groups[0][i]]}
                row |= {"n": int(batch.num_bytes[i])}
            found.append(row)
    return found


def expected():
    return [{key: value for key, value in row.items() if key != "date"} for row in rows()]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "csv.gz", "tsv.gz", "jsonl.gz"])
@pytest.mark.parametrize("block", [64, 1000, 1 << 20])
def test_what_python_reads(tmp_path, monkeypatch, kind, block):
    monkeypatch.setattr(text_files, "BLOCK", block)
    plain = text(kind.removesuffix(".gz"))
    for data in (plain, b"\xef\xbb\xbf" + plain, plain.rstrip(b"\n")):
        path = write(tmp_path / f"y.{kind}", data)
        labels = bv.read_labels(path, **COLUMNS)
        assert labels.num_rows == ROWS
        assert read(path, **COLUMNS) == expected()
        for start, stop in ((0, 1), (123, 321), (ROWS - 1, ROWS), (7, 7)):
            assert read(path, start, stop, **COLUMNS) == expected()[start:stop]
    again = pickle.loads(pickle.dumps(labels))
    assert sum(map(len, again)) == ROWS


def test_columns_by_name_and_by_type(tmp_path):
    write(tmp_path / "y.csv", b"id,score,label\n0,0.5,7\n1,1.5,8\n")
    assert [row["label"] for row in read(tmp_path / "y.csv")] == [7, 8]
    assert [row["label"] for row in read(f"{tmp_path}/y.csv::id")] == [0, 1]
    with pytest.raises(BigvocabError, match=r"column 'score': row 0 is 0.5, expected a whole number"):
        list(bv.read_labels(f"{tmp_path}/y.csv::score"))
    write(tmp_path / "y.jsonl", b'{"ids": [1, 2]}\n{"ids": []}\n{"ids": null}\n')
    (batch,) = bv.read_labels(tmp_path / "y.jsonl")
    assert [part.tolist() for part in batch.labels] == [[0, 2, 2, 2], [1, 2]]
    assert batch.ignored.tolist() == [False, False, True]
    write(tmp_path / "p.jsonl", b'{"ids": [1, 2], "p": [0.5, 0.5]}\n{"ids": [4], "p": [1]}\n')
    assert bv.read_labels(tmp_path / "p.jsonl", label_column="ids", probability_column="p").kind == "sparse"


def test_empty_lines(tmp_path):
    """In the one column of a file an empty line is a null, as pandas and Polars write it; else it is no row."""
    assert [r["label"] for r in read(write(tmp_path / "y.csv", b"label\n1\n\n2\n"))] == [1, None, 2]
    assert [r["label"] for r in read(write(tmp_path / "y.csv", b"label,w\n1,1\n\n2,1\n"))] == [1, 2]
    assert [r["label"] for r in read(write(tmp_path / "y.jsonl", b'\n{"label": 1}\n \n{"label": 2}'))] == [1, 2]
    assert bv.read_labels(write(tmp_path / "y.csv", b"label,w\n")).num_rows == 0
    assert [r["label"] for r in read(write(tmp_path / "y.csv", b"label,w\r\n1,1\r\n,2\r\n"))] == [1, None]


def test_an_evaluation_over_text(tmp_path):
    logits = RNG.normal(size=(ROWS, 90)).astype(np.float32)
    ids = np.array([label if label is not None else -1 for label in LABELS])
    whole = bv.sparse_softmax_cross_entropy(logits, ids, ignore_index=-1, reduction="mean")
    for kind in ("csv", "jsonl.gz"):
        path = write(tmp_path / f"y.{kind}", text(kind.removesuffix(".gz")))
        report = bv.evaluate(logits=logits, labels=str(path), group_column="g")
        assert report["mean"] == pytest.approx(whole, rel=1e-12)
        assert len(report["groups"]) == len(GROUPS)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("block", [64, 1 << 20])
@pytest.mark.parametrize("at", [0, 1, 137, ROWS - 1])
def test_the_row_that_does_not_fit_is_named(tmp_path, monkeypatch, kind, block, at):
    monkeypatch.setattr(text_files, "BLOCK", block)
    clean = [{"label": i, "w": 0.5} for i in range(ROWS)]
    if kind == "jsonl":
        lines = [json.dumps(row) for row in clean]
        bad = ['{"label": "x", "w": 0.5}', '{"label": 1', "nonsense", "[1]", '{"label": 1.5}', "7", '{"label": 1} x']
    else:
        mark = "\t" if kind == "tsv" else ","
        lines = [f"{row['label']}{mark}{row['w']}" for row in clean]
        bad = [f"x{mark}0.5", "1", f"1{mark}2{mark}3", f"99999999999999999999{mark}1"]
    for wrong in bad:
        new = [*lines[:at], wrong, *lines[at + 1 :]]
        if at == 0 and (kind != "jsonl" or 'x"' in wrong or "[" in wrong or "1.5" in wrong):
            continue  # the first row says what the others are to be
        head = "" if kind == "jsonl" else mark.join(clean[0]) + "\n"
        path = write(tmp_path / f"y.{kind}", (head + "\n".join(new) + "\n").encode())
        with pytest.raises(BigvocabError) as caught:
            list(bv.read_labels(path, weight_column="w"))
        assert f"y.{kind}: " in str(caught.value), wrong
        typed = "expected integers, got double" in str(caught.value)  # by the first block, with that row in it
        assert f"row {at}" in str(caught.value) or typed, (wrong, caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("y.csv", b"", "the file is empty"),
        ("y.csv", b"\n\n", "line of names"),
        ("y.csv", b"3\n1\n2\n", "the first line is '3', expected names of columns"),
        ("y.csv", b"1,2.5\n3,4\n", "the first line is '1, 2.5', expected names"),
        ("y.csv", "label\n1\n".encode("utf-16"), "UTF-16 text, expected UTF-8"),
        ("y.csv", b"label\n\xff\xfe\n", "y.csv"),
        ("y.csv", b'label\n"1\n2\n', "y.csv"),
        ("y.csv", b"\0\0\0\0\n\0\n", "y.csv"),
        ("y.jsonl", b'[{"label": 1}]', "a JSON array, expected one object a line"),
        ("y.jsonl", b"{}\n{}\n", "no column of integers"),
        ("y.jsonl", b"\xff\xff", "y.jsonl"),
        ("y.jsonl", b'{"label": 1, "label": 2}\n', "y.jsonl"),
        ("y.jsonl", b"[" * 100_000, "y.jsonl"),
        ("y.jsonl", b'{"label":' * 50_000, "y.jsonl"),
        ("y.csv.gz", b"label\n1\n", "gzip"),
        ("y.jsonl.gz", gzip.compress(b'{"label": 1}\n' * 999, mtime=0)[:-9], "gzip"),
        ("y.csv.gz", gzip.compress(b"label\n" + b"1\n" * 999, mtime=0)[:30], "gzip"),
    ],
)
def test_text_that_is_none(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BigvocabError, match=words) as caught:
        list(bv.read_labels(tmp_path / name))
    assert str(tmp_path / name) in str(caught.value)


def test_a_record_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "MOST_RECORD", 1 << 16)
    monkeypatch.setattr(text_files, "BLOCK", 1 << 12)
    for data in (b'label,g\n1,"' + b"x\n" * 100_000, b"label\n" + b"1" * 200_000, b'a,"' + b'""\n' * 100_000):
        write(tmp_path / "y.csv", data)
        with pytest.raises(FormatError, match=r"y.csv: a record of more than 65536 bytes at byte \d+"):
            bv.read_labels(tmp_path / "y.csv")


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.one_of(st.binary(max_size=120), st.text('label,"\n\r\t1.{}[]:-eN ', max_size=80).map(str.encode)))
def test_any_bytes(tmp_path, data):
    """An error of the package in one line, or labels: never anything else."""
    for name in ("y.csv", "y.tsv", "y.jsonl", "y.csv.gz"):
        (tmp_path / name).write_bytes(data)
        try:
            for batch in bv.read_labels(tmp_path / name):
                assert len(batch)
        except BigvocabError as error:
            assert str(tmp_path / name) in str(error)  # noqa: PT017


@pytest.mark.parametrize("kind", ["csv", "jsonl", "csv.gz"])
def test_truncated_anywhere(tmp_path, kind):
    data = text(kind.removesuffix(".gz"))
    whole = gzip.compress(data) if kind.endswith("gz") else data
    for size in range(1, len(whole), max(1, len(whole) // 200)):
        (tmp_path / f"y.{kind}").write_bytes(whole[:size])
        try:
            count = sum(map(len, bv.read_labels(tmp_path / f"y.{kind}", label_column="label")))
        except BigvocabError as error:
            assert f"y.{kind}" in str(error)  # noqa: PT017
        else:
            assert count <= ROWS
            assert not kind.endswith("gz")


def test_a_file_that_changes(tmp_path):
    path = write(tmp_path / "y.csv", b"label\n" + b"1\n" * 1000)
    labels = bv.read_labels(path)
    path.write_bytes(b"label\n" + b"1\n" * 900)
    with pytest.raises(FormatError, match="y.csv: shrank while it is read, from 2006 to 1806 bytes"):
        list(labels)
