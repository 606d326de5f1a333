"""read_labels against what pyarrow says of the same data, in every format, and against bad files of every kind."""

from __future__ import annotations

import datetime
import os
import pickle
from decimal import Decimal

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bigvocab as bv
from bigvocab.errors import BigvocabError, FormatError
from bigvocab.labels import columns, label_files, labels

INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
FORMATS = ["file", "stream", "lz4", "zstd-stream", "parquet", "table"]


def write(table, form, path, rows=None):
    """Write `table` in one of FORMATS, in chunks of `rows`; gives what read_labels is to be called with."""
    path = str(path)
    if form == "table":
        return table
    if form == "parquet":
        pq.write_table(table, path, row_group_size=rows)
        return path
    codec = form.split("-")[0]
    options = pa.ipc.IpcWriteOptions(compression=codec if codec in ("lz4", "zstd") else None)
    new = pa.ipc.new_stream if form.endswith("stream") else pa.ipc.new_file
    with pa.OSFile(path, "wb") as sink, new(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


def plain(found, start=0, stop=None):
    """All that the batches hold, row by row, as Python values."""
    rows, after = [], start
    for batch in found.batches(start, stop):
        assert batch.first_row == after
        after += len(batch)
        assert 0 < len(batch) <= columns.MAX_ROWS
        for i in range(len(batch)):
            rows.append({"row": batch.first_row + i, **plain_row(batch, i)})
    return rows


def plain_row(batch, i):
    row = {"label": None}
    if batch.ignored is None or not batch.ignored[i]:
        if isinstance(batch.labels, tuple):
            offsets, ids = batch.labels
            assert offsets.dtype == ids.dtype == np.int64
            assert offsets[0] == 0
            assert offsets[-1] == len(ids)
            row["label"] = ids[offsets[i] : offsets[i + 1]].tolist()
            if batch.probabilities is not None:
                assert len(batch.probabilities) == len(ids)
                row["probability"] = batch.probabilities[offsets[i] : offsets[i + 1]].tolist()
        else:
            row["label"] = batch.labels[i].tolist()
    if batch.weights is not None:
        row["weight"] = float(batch.weights[i])
    if batch.groups is not None:
        row["group"] = batch.groups[1][batch.groups[0][i]]
    if batch.num_bytes is not None:
        row["bytes"] = int(batch.num_bytes[i])
    return row


def values(found):
    return [row["label"] for row in plain(found)]


def fixed(rows, kind, width):
    return pa.array(rows, pa.list_(kind, width))


# --- every type in every format


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", INTEGERS)
def test_integers(name, form, tmp_path):
    kind = pa.from_numpy_dtype(name)
    limits = np.iinfo(name)
    data = [int(limits.min), None, 0, min(int(limits.max), 2**63 - 1), 7, None]
    found = bv.read_labels(write(pa.table({"y": pa.array(data, kind)}), form, tmp_path / "y", 4))
    assert (found.kind, found.num_rows, found.num_classes, found.dtype) == ("id", 6, None, np.int64)
    assert found.columns == [("y", name)]
    assert values(found) == data
    assert values(found) == data  # and again


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("order", "<>")
def test_integers_npy(name, order, tmp_path):
    limits = np.iinfo(name)
    data = [int(limits.min), min(int(limits.max), 2**63 - 1), 5]
    array = np.array(data, np.dtype(name).newbyteorder(order))
    np.save(tmp_path / "y.npy", array)
    for source in (tmp_path / "y.npy", array, np.repeat(array, 2)[::2], pa.array(data, name)):
        found = bv.read_labels(source)
        assert values(found) == data
        assert all(batch.ignored is None for batch in found)


@pytest.mark.parametrize("form", FORMATS)
def test_uint64_too_large_names_row_and_value(form, tmp_path):
    big = pa.table({"label": pa.array([1, None, 2**63, 2**64 - 1], pa.uint64())})
    with pytest.raises(BigvocabError, match=f"row 2: .* got {2**63}"):
        list(bv.read_labels(write(big, form, tmp_path / "y", 1)))
    lists = pa.table({"label": pa.array([[1], None, [], [3, 2**63]], pa.list_(pa.uint64()))})
    with pytest.raises(BigvocabError, match=f"row 3: .* got {2**63}"):
        list(bv.read_labels(write(lists, form, tmp_path / "y")))
    with pytest.raises(BigvocabError, match=f"row 1: .* got {2**63}"):
        list(bv.read_labels(np.array([[1, 2], [0, 2**63]], np.uint64)))


LISTS = [[1, 2], None, [], [3], [4, 5, 6], None, [7]]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", ["int8", "uint16", "int32", "int64", "uint64"])
@pytest.mark.parametrize("make", [pa.list_, pa.large_list])
def test_lists(make, kind, form, tmp_path):
    table = pa.table({"ids": pa.array(LISTS, make(pa.from_numpy_dtype(kind)))})
    found = bv.read_labels(write(table, form, tmp_path / "y", 3))
    assert found.kind == "list"
    assert values(found) == LISTS


@pytest.mark.parametrize("form", FORMATS)
def test_lists_of_fixed_size(form, tmp_path):
    data = [[1, 2], None, [3, 4], [5, 6], None]
    table = pa.table({"ids": fixed(data, pa.uint16(), 2)})
    found = bv.read_labels(write(table, form, tmp_path / "y", 2))
    assert found.kind == "list"
    assert values(found) == data


@pytest.mark.parametrize("dtype", ["int32", ">i8", "uint8"])
@pytest.mark.parametrize("shape", [(5, 3), (4, 1), (3, 0), (0, 2)])
def test_lists_npy(shape, dtype, tmp_path):
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    for order in "CF":
        np.save(tmp_path / "y.npy", np.asarray(array, order=order))
        for source in (tmp_path / "y.npy", np.asarray(array, order=order)):
            found = bv.read_labels(source)
            assert (found.kind, found.num_rows) == ("list", shape[0])
            assert values(found) == array.tolist()


DENSE = [[0.5, 0.25, 0.25], None, [0.0, 1.0, 0.0], [0.125, 0.0, 0.5]]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("kind", "dtype"), [("float16", "float32"), ("float32", "float32"), ("float64", "float64")])
def test_dense(kind, dtype, form, tmp_path):
    rows = [row and np.array(row, kind) for row in DENSE] if kind == "float16" else DENSE
    table = pa.table({"p": fixed(rows, pa.from_numpy_dtype(kind), 3)})
    found = bv.read_labels(write(table, form, tmp_path / "y", 3))
    assert (found.kind, found.num_classes, found.dtype) == ("dense", 3, dtype)
    assert values(found) == DENSE
    for batch in found:
        assert batch.labels.dtype == dtype
        assert batch.ignored is None or not batch.labels[batch.ignored].any()


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f4", "<f8", ">f8", "bfloat16", "V2"])
@pytest.mark.parametrize("order", "CF")
def test_dense_npy(order, dtype, tmp_path):
    exact = np.array([[0.5, 0.25, 0.25], [1, 0, 0]])
    array = exact.astype(ml_dtypes.bfloat16 if dtype in ("bfloat16", "V2") else dtype)
    array = np.asarray(array.view(dtype) if dtype == "V2" else array, order=order)
    np.save(tmp_path / "y.npy", array)
    for source in (array, tmp_path / "y.npy"):
        found = bv.read_labels(source)
        assert (found.kind, found.num_classes) == ("dense", 3)
        assert found.dtype == (np.float64 if dtype[1:] == "f8" else np.float32)
        assert values(found) == exact.tolist()


def test_tensor_column():
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(12, dtype=np.float32).reshape(4, 3))
    found = bv.read_labels(pa.table({"p": tensor}).slice(1, 2))
    assert (found.kind, found.num_classes) == ("dense", 3)
    assert values(found) == [[3, 4, 5], [6, 7, 8]]
    square = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ones((2, 3, 3), np.float32))
    with pytest.raises(BigvocabError, match="expected integers, got extension"):
        bv.read_labels(square)


def test_what_lies_under_a_null():
    """Whatever the buffers hold there, an ignored row is 0 and breaks no rule."""
    valid = pa.py_buffer(np.array([0b0101], np.uint8))
    huge = pa.py_buffer(np.full(4, 2**64 - 1, np.uint64) * np.array([0, 1, 0, 1], np.uint64))
    (batch,) = bv.read_labels(pa.Array.from_buffers(pa.uint64(), 4, [valid, huge]))
    assert batch.labels.tolist() == [0, 0, 0, 0]
    assert batch.ignored.tolist() == [False, True, False, True]
    (batch,) = bv.read_labels(pa.Array.from_buffers(pa.int8(), 4, [valid, pa.py_buffer(b"\x05\x06\x07\x08")]))
    assert batch.labels.tolist() == [5, 0, 7, 0]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("kind", "under_null"), [("float32", [9, 9, 9]), ("float64", None)])
def test_sparse(kind, under_null, form, tmp_path):
    ids = [[1, 2], None, [], [3]]
    table = pa.table(
        {
            "ids": pa.array(ids, pa.list_(pa.int32())),
            "p": pa.array([[0.5, 0.25], under_null, [], [2]], pa.large_list(pa.from_numpy_dtype(kind))),
        }
    )
    found = bv.read_labels(write(table, form, tmp_path / "y", 3), probability_column="p")
    assert found.kind == "sparse"
    assert values(found) == ids
    assert [row.get("probability") for row in plain(found)] == [[0.5, 0.25], None, [], [2]]


def test_dictionaries(tmp_path):
    kind = pa.dictionary(pa.int8(), pa.int64())
    chunks = [pa.array(data, kind) for data in ([5, 7, 5], [9, None], [5])]
    table = pa.table({"y": pa.chunked_array(chunks)})
    assert values(bv.read_labels(table)) == [5, 7, 5, 9, None, 5]
    assert values(bv.read_labels(write(table, "stream", tmp_path / "y"))) == [5, 7, 5, 9, None, 5]
    with pytest.raises(BigvocabError, match="expected integers, got dictionary<values=string"):
        bv.read_labels(pa.array(["a"]).dictionary_encode())


# --- slices, chunks, nulls


@pytest.mark.parametrize("form", FORMATS)
def test_sliced_tables(form, tmp_path):
    """Slices share buffers with what was cut off: nothing of that may come out."""
    rng = np.random.default_rng(3)
    n = 60
    ids = [None if i % 7 == 0 else rng.integers(0, 99, i % 4).tolist() for i in range(n)]
    soft = [None if i % 5 == 0 else rng.random(4).tolist() for i in range(n)]
    table = pa.table(
        {
            "id": pa.array([None if i % 6 == 0 else i for i in range(n)]),
            "ids": pa.array(ids, pa.list_(pa.int64())),
            "pairs": fixed([None if i % 4 == 0 else [i, -i] for i in range(n)], pa.int32(), 2),
            "soft": fixed(soft, pa.float64(), 4),
        }
    )
    for cut in (table.slice(13, 29), pa.concat_tables([table.slice(5, 10), table.slice(31, 0), table.slice(40, 20)])):
        for name in table.column_names:
            found = bv.read_labels(write(cut, form, tmp_path / "y"), label_column=name)
            assert values(found) == cut[name].to_pylist(), name


def test_null_lists_that_hide_values():
    offsets, ids = pa.array([0, 2, 4, 5], pa.int32()), pa.array([1, 2, None, 4, 5])
    mask = pa.array([False, True, False])
    assert values(bv.read_labels(pa.ListArray.from_arrays(offsets, ids, mask=mask))) == [[1, 2], None, [5]]
    pairs = pa.FixedSizeListArray.from_arrays(pa.array([1, 2, None, 4, 5, 6]), 2, mask=mask)
    assert values(bv.read_labels(pairs)) == [[1, 2], None, [5, 6]]
    assert values(bv.read_labels(pairs.slice(1))) == [None, [5, 6]]
    soft = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2, None, np.nan, 5, 6]), 2, mask=mask)
    assert values(bv.read_labels(soft)) == [[1, 2], None, [5, 6]]


def test_lists_over_a_shared_tail():
    """Offsets need not begin at 0."""
    lists = pa.ListArray.from_arrays(pa.array([3, 4, 6], pa.int32()), pa.array(range(10)))
    assert values(bv.read_labels(lists)) == [[3], [4, 5]]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (pa.array([[1], [2, None]]), "row 1: .*no null inside a list, got one at position 1"),
        (pa.array([[9], [1], None, [], [None]]).slice(1), "row 3: .* at position 0"),
        (fixed([[1, 2], [3, None]], pa.int8(), 2), "row 1: .* at position 1"),
        (fixed([[1, 2], None, [None, 3]], pa.float32(), 2).slice(1), "row 1: .* at position 0"),
    ],
)
def test_null_inside_a_list(array, message):
    with pytest.raises(BigvocabError, match=message):
        list(bv.read_labels(array))


# --- the other columns


@pytest.mark.parametrize("form", FORMATS)
def test_weight_group_bytes(form, tmp_path):
    table = pa.table(
        {
            "label": [1, 2, None, 4],
            "weight": pa.array([0.5, -1, None, 2], pa.float32()),
            "group": pa.array(["b", None, "a", "b"]),
            "bytes": pa.array([3, 0, None, 2**40], pa.int64()),
        }
    )
    source = write(table, form, tmp_path / "y", 3)
    found = bv.read_labels(source, weight_column="weight", group_column="group", bytes_column="bytes")
    assert plain(found) == [
        {"row": 0, "label": 1, "weight": 0.5, "group": "b", "bytes": 3},
        {"row": 1, "label": 2, "weight": -1, "group": "(null)", "bytes": 0},
        {"row": 2, "label": None, "weight": 0, "group": "a", "bytes": 0},
        {"row": 3, "label": 4, "weight": 2, "group": "b", "bytes": 2**40},
    ]
    batch = next(iter(found))
    assert (batch.weights.dtype, batch.groups[0].dtype, batch.num_bytes.dtype) == (np.float64, np.int32, np.int64)
    assert plain(bv.read_labels(source))[0] == {"row": 0, "label": 1}  # not used unless asked for


@pytest.mark.parametrize(
    "kind", ["int8", "uint64", "float16", "float32", "float64", pa.decimal128(9, 2), pa.decimal256(40, 2)]
)
def test_weight_types(kind):
    arrow = kind if isinstance(kind, pa.DataType) else pa.from_numpy_dtype(kind)
    weights = pa.array([Decimal(i) for i in (1, 2, 3)], arrow) if arrow is kind else pa.array(np.array([1, 2, 3], kind))
    table = pa.table({"label": [1, 2, 3], "w": weights})
    assert [row["weight"] for row in plain(bv.read_labels(table, weight_column="w", label_column="label"))] == [1, 2, 3]


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (pa.array(["x", "y", None]), ["x", "y", "(null)"]),
        (pa.array(["x", "(null)", None]), ["x", "(null)", "(null)"]),
        (pa.array(["x", "", "x"], pa.large_string()), ["x", "", "x"]),
        (pa.array(["x", None, "é"], pa.string_view()), ["x", "(null)", "é"]),
        (pa.array([7, None, -1], pa.int16()), ["7", "(null)", "-1"]),
        (pa.array([True, None, False]), ["true", "(null)", "false"]),
        (pa.array(["x", None, "y"]).dictionary_encode(), ["x", "(null)", "y"]),
        (pa.array([300, 2, 300]).dictionary_encode(), ["300", "2", "300"]),
        # a name twice, a null and a name that is not used in the dictionary
        (pa.DictionaryArray.from_arrays([0, 2, 1], ["x", None, "x", "unused"]), ["x", "x", "(null)"]),
    ],
)
def test_group_types(data, names):
    table = pa.table({"label": [1, 2, 3], "g": data})
    found = bv.read_labels(table, group_column="g", label_column="label")
    assert [row["group"] for row in plain(found)] == names
    assert sorted(next(iter(found)).groups[1]) == sorted(set(names))


def test_group_dictionaries_that_differ_by_batch(tmp_path):
    kind = pa.dictionary(pa.int8(), pa.string())
    groups = [[f"g{100 * i + j}" for j in range(100)] for i in range(3)]  # 300 names, int8 holds 127
    chunks = pa.chunked_array([pa.array(names, kind) for names in groups])
    table = pa.table({"label": pa.array(range(300)), "g": chunks})
    for source in (table, write(table, "stream", tmp_path / "y")):
        assert [row["group"] for row in plain(bv.read_labels(source, group_column="g"))] == sum(groups, [])


@pytest.mark.parametrize(
    ("option", "column", "message"),
    [
        ("weight_column", pa.array([1, None, 2]), "row 1: expected a finite number, got null"),
        ("weight_column", pa.array([1, 2, np.nan]), "row 2: expected a finite number, got nan"),
        ("weight_column", pa.array([-np.inf, 2, np.nan]), "row 0: expected a finite number, got -inf"),
        ("bytes_column", pa.array([1, 2, -3]), "row 2: expected a count >= 0, got -3"),
        ("bytes_column", pa.array([1, None, 3]), "row 1: expected a count >= 0, got null"),
        ("bytes_column", pa.array([0, 2**63, 1], pa.uint64()), f"row 1: .* got {2**63}"),
    ],
)
def test_bad_values(option, column, message):
    table = pa.table({"label": [1, 2, 3], "x": column})
    with pytest.raises(BigvocabError, match=f"labels: column 'x': {message}"):
        list(bv.read_labels(table, label_column="label", **{option: "x"}))


@pytest.mark.parametrize(
    ("label", "other", "option"),
    [
        (pa.array([1, 2, 2**63], pa.uint64()), None, None),
        (pa.array([[1], [2], [2**63]], pa.list_(pa.uint64())), None, None),
        (pa.array([[1], [2], [3, None]]), None, None),
        (fixed([[1], [2], [None]], pa.int8(), 1), None, None),
        (fixed([[1], [2], [None]], pa.float32(), 1), None, None),
        (pa.array([1, 2, 3]), pa.array([1, 2, None]), "weight_column"),
        (pa.array([1, 2, 3]), pa.array([1, 2, -3]), "bytes_column"),
        (pa.array([1, 2, 3]), pa.array([1, 2, 2**63], pa.uint64()), "bytes_column"),
        (pa.array([[1], [2], [3]]), pa.array([[0.5], [0.5], []]), "probability_column"),
        (pa.array([[1], [2], [3]]), pa.array([[0.5], [0.5], [-1]]), "probability_column"),
    ],
)
@pytest.mark.parametrize("rows", [1, 2, 4, 100])
def test_rows_in_messages_count_from_the_start(rows, label, other, option, tmp_path, monkeypatch):
    """However the rows are batched, split into files or cut to a range."""
    monkeypatch.setattr(columns, "MAX_ROWS", rows)
    table = pa.table({"label": label} | ({} if option is None else {"x": other}))
    good = pa.concat_tables([table.slice(0, 2)] * 3)
    options = {} if option is None else {option: "x"}
    for source in (
        pa.concat_tables([good, table]),
        [write(good, "stream", tmp_path / "a"), write(table, "parquet", tmp_path / "b")],
    ):
        found = bv.read_labels(source, **options)
        for start in (0, 1, 7, 8):
            with pytest.raises(BigvocabError, match="row 8: "):
                list(found.batches(start))


@pytest.mark.parametrize(
    ("option", "column", "message"),
    [
        ("weight_column", ["a", "b"], "expected numbers, got string"),
        ("weight_column", [True, False], "expected numbers, got bool"),
        ("bytes_column", [1.0, 2.0], "expected integers, got double"),
        ("group_column", [1.0, 2.0], "expected strings, integers or booleans, got double"),
        ("group_column", [b"a", b"b"], "expected strings, integers or booleans, got binary"),
        ("probability_column", [0.5, 0.5], "expected lists of floats, got double"),
        ("probability_column", [["a"], ["b"]], "expected lists of floats, got list<.*: string>"),
    ],
)
def test_bad_types(option, column, message):
    with pytest.raises(BigvocabError, match=rf"column 'x' \({option}\): {message}"):
        bv.read_labels(pa.table({"label": [1, 2], "x": column}), **{option: "x"})


@pytest.mark.parametrize(
    ("ids", "p", "message"),
    [
        ([[1], [2, 3]], [[0.5], [0.5]], "row 1: expected as many probabilities as ids, 2, got 1"),
        ([[1], []], [[0.5], [0.5]], "row 1: expected as many probabilities as ids, 0, got 1"),
        ([[1], [2]], [[0.5], None], "row 1: expected as many probabilities as ids, 1, got null"),
        ([[1], []], [[0.5], None], "row 1: expected as many probabilities as ids, 0, got null"),
        ([[1], None, [2]], [[0.5], [np.nan], [np.nan]], "row 2: expected finite probabilities >= 0, got nan"),
        ([[], [], [3, 4]], [[], [], [0.5, -0.25]], "row 2: expected finite probabilities >= 0, got -0.25"),
        ([[1, 2]], [[0.5, np.inf]], "row 0: expected finite probabilities >= 0, got inf"),
        ([[1, 2]], [[0.5, None]], "row 0: expected no null inside a list, got one at position 1"),
    ],
)
def test_bad_probabilities(ids, p, message):
    table = pa.table({"ids": pa.array(ids, pa.list_(pa.int64())), "p": pa.array(p, pa.list_(pa.float64()))})
    with pytest.raises(BigvocabError, match=f"column 'p': {message}"):
        list(bv.read_labels(table, probability_column="p"))


def test_probabilities_need_lists_of_ids():
    with pytest.raises(BigvocabError, match="column 'label': expected lists of ids beside 'p', got int64"):
        bv.read_labels(pa.table({"label": [1], "p": [[0.5]]}), probability_column="p")


# --- which column


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["label", "x", "bytes"], "label"),
        (["labels", "x"], "labels"),
        (["x"], "x"),
        (["x", "bytes", "weight", "weights", "group", "num_bytes"], "x"),
    ],
)
def test_choice_of_column(names, chosen):
    table = pa.table({name: [i] for i, name in enumerate(names)})
    assert values(bv.read_labels(table)) == [names.index(chosen)]


def test_choice_leaves_out_columns_with_a_role():
    table = pa.table({"a": [1], "b": [2], "c": [3], "d": ["x"]})
    with pytest.raises(BigvocabError, match="'a', 'b', 'c' could each be the labels; choose with label_column"):
        bv.read_labels(table)
    with pytest.raises(BigvocabError, match="'b', 'c' could"):
        bv.read_labels(table, weight_column="a")
    assert values(bv.read_labels(table, weight_column="a", group_column="c")) == [2]
    assert values(bv.read_labels(table, label_column="c")) == [3]
    soft = pa.table({"ids": [[1]], "p": fixed([[0.5]], pa.float32(), 1)})
    with pytest.raises(BigvocabError, match="'ids', 'p' could"):
        bv.read_labels(soft)
    assert values(bv.read_labels(soft, probability_column="p")) == [[1]]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"label": [1], "labels": [2]}), "'label', 'labels' could"),
        (pa.table({"x": [1.5], "y": ["a"]}), r"no column of integers.*'x' \(double\), 'y' \(string\)"),
        (pa.table({"weight": [1]}), "no column of integers"),
        (pa.table({}), "no column of integers.*: none"),
        (pa.table({"label": pa.array([1.5], pa.float32()), "x": [2]}), "column 'label': expected integers, got float"),
        (pa.table({"label": ["a"]}), "expected integers, got string"),
        (pa.table({"label": [True]}), "expected integers, got bool"),
        (pa.table({"label": [["a"]]}), "expected integers, got list<.*: string>"),
        (pa.table({"x": [datetime.date(2020, 1, 1)]}), "column 'x': expected integers, got date32"),
        (pa.table({"x": pa.array([[1]], pa.list_view(pa.int64()))}), "column 'x': expected integers, got list_view"),
        (pa.table({"x": pa.nulls(2)}), "column 'x': expected integers, got null"),
        (pa.table([pa.array([1]), pa.array([2])], names=["label", "label"]), "'label', 'label' could"),
    ],
)
def test_no_label_column(table, message):
    with pytest.raises(BigvocabError, match=message):
        bv.read_labels(table)


def test_missing_columns(tmp_path):
    path = write(pa.table({"label": [1], "x": ["a"]}), "file", tmp_path / "y.arrow")
    for option in ("label", "weight", "group", "bytes", "probability"):
        with pytest.raises(
            BigvocabError, match=rf"y.arrow: no column 'z' .*{option}.*'label' \(int64\), 'x' \(string\)"
        ):
            bv.read_labels(path, **{f"{option}_column": "z"})
    twice = pa.table([pa.array([1]), pa.array([2])], names=["x", "x"])
    with pytest.raises(BigvocabError, match="2 columns are called 'x'"):
        bv.read_labels(twice, label_column="x")
    with pytest.raises(TypeError, match="expected the name of a column, got 3"):
        bv.read_labels(path, label_column=3)


def test_column_named_in_the_path(tmp_path):
    path = write(pa.table({"a": [1], "b": [2], "label": [3]}), "parquet", tmp_path / "y.parquet")
    assert values(bv.read_labels(f"{path}::b")) == [2]
    assert values(bv.read_labels(f"{path}::b", label_column="b")) == [2]
    assert values(bv.read_labels(f"{tmp_path}::b")) == values(bv.read_labels(f"{tmp_path}/*.parquet::b")) == [2]
    with pytest.raises(BigvocabError, match="label_column: got 'a', but the path names 'b'"):
        bv.read_labels(f"{path}::b", label_column="a")
    with pytest.raises(BigvocabError, match="no column 'c'"):
        bv.read_labels(f"{path}::c")
    with pytest.raises(BigvocabError, match="expected one column for all files"):
        bv.read_labels([f"{path}::a", f"{path}::b"])
    odd = write(pa.table({"a": [5]}), "parquet", tmp_path / "odd::name.parquet")
    assert values(bv.read_labels(odd)) == [5]


def test_parquet_column_with_a_dot(tmp_path):
    path = write(pa.table({"a.b": [1], "a": [{"b": 2}], "ab": [3]}), "parquet", tmp_path / "y")
    assert values(bv.read_labels(path, label_column="a.b")) == [1]


# --- several files


@pytest.mark.parametrize(
    ("kind", "values", "shape", "dtype"),
    [
        (pa.uint8(), [1, 2], [2], "uint8"),
        (pa.dictionary(pa.int8(), pa.int32()), [1, 2], [2], "int32"),
        (pa.list_(pa.int16()), [[1], [1, 2]], [2], "list<item: int16>"),
        (pa.list_(pa.int64(), 1), [[1], [2]], [2, 1], "int64"),
        (pa.list_(pa.float16(), 3), [[1.0, 0, 0]] * 2, [2, 3], "float16"),
    ],
)
def test_files_have_the_shape_and_type_of_labels(kind, values, shape, dtype):
    found = bv.read_labels(pa.table({"label": pa.array(values, kind)}))
    assert found.files == [{"path": "labels", "shape": shape, "dtype": dtype, "bytes": found.files[0]["bytes"]}]


def test_many_files_in_natural_order(tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    for i, form in [(10, "parquet"), (9, "file"), (1, "stream"), (2, "parquet")]:
        write(
            pa.table({"label": [10 * i, 10 * i + 1]}),
            form,
            folder / f"part-{i}.{'parquet' if form == 'parquet' else 'arrow'}",
        )
    for noise in ("_SUCCESS", ".part-3.parquet", "_tmp.parquet", "README.md"):
        (folder / noise).write_text("noise")
    expected = [10, 11, 20, 21, 90, 91, 100, 101]
    for source in (folder, str(folder / "part-*")):
        found = bv.read_labels(source)
        assert (found.num_rows, values(found)) == (8, expected)
        assert [row["row"] for row in plain(found)] == list(range(8))
    assert [(file["shape"], file["dtype"]) for file in found.files] == [([2], "int64")] * 4
    assert [os.path.getsize(file["path"]) for file in found.files] == [file["bytes"] for file in found.files]
    given_order = bv.read_labels([folder / "part-10.parquet", str(folder / "part-1.arrow")])
    assert values(given_order) == [100, 101, 10, 11]
    assert given_order.path.endswith("part-10.parquet and 1 more")


def test_files_must_agree(tmp_path):
    a = write(pa.table({"y": [1, 2], "w": [0.5, 0.5]}), "file", tmp_path / "a")
    b = write(pa.table({"y": [[1]], "w": [0.5]}), "parquet", tmp_path / "b")
    c = write(pa.table({"y": pa.array([5, 6], pa.uint8()), "w": [0.5, np.nan]}), "stream", tmp_path / "c")
    d = write(pa.table({"y": [1]}), "file", tmp_path / "d")
    with pytest.raises(BigvocabError, match="b: expected labels of int64, as in .*a, got list<"):
        bv.read_labels([a, b])
    with pytest.raises(BigvocabError, match="d: no column 'w'"):
        bv.read_labels([a, d], weight_column="w")
    assert values(bv.read_labels([a, c], label_column="y")) == [1, 2, 5, 6]  # the width of integers is free
    with pytest.raises(BigvocabError, match="c: column 'w': row 3: expected a finite number, got nan"):
        list(bv.read_labels([a, c], label_column="y", weight_column="w"))
    soft = [write(pa.table({"p": fixed([[1.0] * v], pa.float32(), v)}), "file", tmp_path / f"s{v}") for v in (2, 3)]
    with pytest.raises(BigvocabError, match=r"s3: expected labels of .*\[2\], as in .*s2, got .*\[3\]"):
        bv.read_labels(soft)


# --- bad sources


@pytest.mark.parametrize(
    "source", [None, 3, 1.5, {"a": 1}, [1, 2], [np.zeros(2, int)], np.ma.array([1, 2], mask=[0, 1])]
)
def test_wrong_kind_of_source(source):
    with pytest.raises(TypeError, match="labels: expected a p"):
        bv.read_labels(source)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([1.5, 2]), "expected integers, got double"),
        (np.array([1, 2], np.float16), "expected integers, got halffloat"),
        (np.array([True]), "expected integers, got bool"),
        (np.array([[True]]), "expected integers, got fixed_size_list<.*bool>"),
        (np.array(["a"]), "expected integers, got string"),
        (np.array([1, None], object), "expected integers, got object"),
        (np.array([1j]), "expected integers, got complex128"),
        (np.array([(1, 2)], "i4,i4"), "expected integers, got"),
        (np.array(["2020-01-01"], "M8[D]"), "expected integers, got"),
        (np.array(5), r"got shape \(\)"),
        (np.zeros((2, 2, 2), int), r"got shape \(2, 2, 2\)"),
    ],
)
def test_bad_arrays(array, message, tmp_path):
    with pytest.raises(BigvocabError, match=message):
        bv.read_labels(array)
    np.save(tmp_path / "y.npy", array, allow_pickle=True)
    with pytest.raises(BigvocabError, match="y.npy: .*Python objects" if array.dtype == object else message):
        bv.read_labels(tmp_path / "y.npy")


def test_missing_and_unknown_files(tmp_path):
    with pytest.raises(BigvocabError, match="nothing.parquet: cannot be read: No such file"):
        bv.read_labels(tmp_path / "nothing.parquet")
    for text in (f"{tmp_path}/no*", f"{tmp_path}"):
        with pytest.raises(BigvocabError, match="no file (matches this pattern|with a known suffix in this folder)"):
            bv.read_labels(text)
    with pytest.raises(BigvocabError, match="empty list"):
        bv.read_labels([])
    for name in ("", "a\0b"):
        with pytest.raises(BigvocabError, match="expected the name of a file"):
            bv.read_labels(name)
    for text in (b"", b"label\n1\n2\n", b"ARR", b"PK\3\4zip", b"\x1f\x8bgzip", b"FEA1"):
        (tmp_path / "y").write_bytes(text)
        with pytest.raises(FormatError, match="y: .*expected an Arrow IPC file or stream, Parquet, or .npy"):
            bv.read_labels(tmp_path / "y")
    if os.getuid():
        (tmp_path / "y").chmod(0)
        with pytest.raises(BigvocabError, match="cannot be read: Permission denied"):
            bv.read_labels(tmp_path / "y")


def sample(rows=200):
    return pa.table(
        {
            "label": pa.array([None if i % 9 == 0 else i for i in range(rows)], pa.int32()),
            "ids": pa.array([list(range(i % 4)) for i in range(rows)]),
            "w": pa.array(np.linspace(0, 1, rows)),
            "g": pa.array([f"g{i % 5}" for i in range(rows)]).dictionary_encode(),
        }
    )


def read_all(source, column):
    found = bv.read_labels(source, label_column=column, weight_column="w", group_column="g")
    return sum(len(batch) for batch in found), found.num_rows


@pytest.mark.parametrize("form", FORMATS[:-1])
def test_truncated_anywhere(form, tmp_path):
    """Cut at every length, only our errors come out; a stream may also end early, between two record batches."""
    path = write(sample(), form, tmp_path / "y", 64)
    whole = (tmp_path / "y").read_bytes()
    short, unnamed = set(), 0
    for size in [*range(0, len(whole), 41), *range(max(0, len(whole) - 70), len(whole))]:
        (tmp_path / "y").write_bytes(whole[:size])
        try:
            rows, promised = read_all(path, "label")
            assert rows == promised
            short.add(rows)
        except BigvocabError as error:
            unnamed += str(path) not in str(error)
    assert unnamed == 0
    assert short <= ({0, 64, 128, 192, 200} if form.endswith("stream") else set())


@pytest.mark.parametrize("form", FORMATS[:-1])
@pytest.mark.parametrize("column", ["label", "ids"])
def test_flipped_bytes(column, form, tmp_path):
    """A damaged file gives our errors or numbers, nothing else."""
    path = write(sample(), form, tmp_path / "y", 64)
    whole = np.fromfile(path, np.uint8)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = whole.copy()
        damaged[rng.integers(0, len(whole), 3)] = rng.choice([0, 1, 0x7F, 0x80, 0xFF], 3)
        damaged.tofile(path)
        try:
            rows, promised = read_all(path, column)
            assert rows == promised
        except BigvocabError as error:
            refused += "\n" not in str(error)
    assert refused > 30


@pytest.mark.parametrize("form", ["file", "parquet"])
def test_lying_footers(form, tmp_path):
    """Each byte of the footer made one greater, or all its bits turned round."""
    path = write(pa.table({"label": pa.array(range(10), pa.int8())}), form, tmp_path / "y", 4)
    whole = np.fromfile(path, np.uint8)
    for at in range(len(whole) // 3, len(whole)):
        for value in (int(whole[at]) + 1, 255 - int(whole[at])):
            damaged = whole.copy()
            damaged[at] = value % 256
            damaged.tofile(path)
            try:
                found = bv.read_labels(path)
                assert sum(len(batch) for batch in found) == found.num_rows
            except BigvocabError:
                pass


def test_rows_that_were_promised_and_do_not_come(monkeypatch):
    opened = label_files.open_table
    monkeypatch.setattr(label_files, "open_table", lambda table: (table.schema, 5, opened(table)[2]))
    with pytest.raises(FormatError, match="labels: expected 5 rows, as promised, got 3"):
        list(bv.read_labels(pa.table({"label": [1, 2, 3]})))


def test_ipc_footer_that_lists_fewer_batches(tmp_path):
    path = write(pa.table({"label": range(10)}), "file", tmp_path / "y", 4)
    whole = (tmp_path / "y").read_bytes()
    block = np.array([3], "<u4").tobytes()  # the length of the vector of record batches
    at = whole.index(block, len(whole) - 10 - int.from_bytes(whole[-10:-6], "little"))
    (tmp_path / "y").write_bytes(whole[:at] + np.array([2], "<u4").tobytes() + whole[at + 4 :])
    assert pa.ipc.open_file(path).num_record_batches == 2
    with pytest.raises(FormatError, match="footer of 2 record batches, got 3"):
        bv.read_labels(path)


def test_ipc_file_without_end_of_stream(tmp_path):
    """Some writers leave the mark out, because the footer says where the batches are."""
    path = write(pa.table({"label": range(10)}), "file", tmp_path / "y", 4)
    whole = (tmp_path / "y").read_bytes()
    at = whole.rindex(b"\xff\xff\xff\xff\0\0\0\0")
    (tmp_path / "y").write_bytes(whole[:at] + whole[at + 8 :])
    assert values(bv.read_labels(path)) == list(range(10))


def test_npy_truncated_pickled_lying(tmp_path):
    path = tmp_path / "y.npy"
    np.save(path, np.arange(100))
    whole = path.read_bytes()
    for size in range(1, len(whole), 13):
        path.write_bytes(whole[:size])
        with pytest.raises(FormatError, match="y.npy"):
            bv.read_labels(path)
    np.save(path, np.array([1, None]), allow_pickle=True)
    with pytest.raises(FormatError, match="y.npy"):
        bv.read_labels(path)
    for header in (
        (b"(100,)", b"(1 00,)"),
        (b"(100,)", b"(-10,)"),
        (b"'<i8'", b"'<i9'"),
        (b"'<i8'", b"'|O8'"),
        (b"{", b"}"),
    ):
        path.write_bytes(whole.replace(*header, 1))
        with pytest.raises(FormatError, match="y.npy"):
            bv.read_labels(path)
    path.write_bytes(whole.replace(b"(100,)", b"(999,)", 1))
    with pytest.raises(FormatError, match="y.npy"):
        bv.read_labels(path)


@pytest.mark.parametrize("kind", ["i4", "i8"])
@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([0, 2, 5, 4, 6], "row 2: its list runs from 5 to 4 of 6 values"),
        ([0, 2, 5, 7, 9], "row 2: its list runs from 5 to 7 of 6 values"),
        ([-1, 2, 3, 4, 6], "row 0: its list runs from -1 to 2 of 6 values"),
        ([0, 99, 3, 4, 6], "row 0: its list runs from 0 to 99 of 6 values"),
    ],
)
def test_corrupt_offsets(offsets, message, kind, tmp_path):
    good, bad = np.array([0, 2, 3, 4, 6], kind), np.array(offsets, kind)
    buffer = good.copy()
    made = (pa.list_ if kind == "i4" else pa.large_list)(pa.int64())
    lists = pa.Array.from_buffers(made, 4, [None, pa.py_buffer(buffer)], children=[pa.array([7] * 6)])
    path = tmp_path / "y"
    write(pa.table({"ids": lists}), "file", path)
    whole = path.read_bytes()
    assert whole.count(good.tobytes()) == 1
    path.write_bytes(whole.replace(good.tobytes(), bad.tobytes()))
    buffer[:] = bad
    with pytest.raises(FormatError, match=f"y: column 'ids': {message}"):
        list(bv.read_labels(path))
    with pytest.raises(FormatError, match="labels"):
        list(bv.read_labels(lists))


def test_corrupt_buffers():
    wild = pa.DictionaryArray.from_arrays(pa.array([0, 9]), ["a"], safe=False)
    with pytest.raises(FormatError, match="column 'g': .*9"):
        list(bv.read_labels(pa.table({"label": [1, 2], "g": wild}), group_column="g"))
    text = pa.array([b"ok", b"\xff\xfe"]).view(pa.string())
    with pytest.raises(FormatError, match="column 'g': .*UTF8"):
        list(bv.read_labels(pa.table({"label": [1, 2], "g": text}), group_column="g"))


@pytest.mark.parametrize("form", ["file", "stream"])
def test_column_name_that_is_no_text(form, tmp_path):
    path = write(pa.table({"label": [1], "title": [2]}), form, tmp_path / "y")
    whole = (tmp_path / "y").read_bytes()
    (tmp_path / "y").write_bytes(whole.replace(b"title", b"tit\xffe"))
    with pytest.raises(FormatError, match="y: truncated or corrupt Arrow IPC"):
        bv.read_labels(path)


@pytest.mark.parametrize("form", ["file", "stream", "parquet", "npy"])
def test_file_that_changes_while_read(form, tmp_path):
    path = tmp_path / "y"
    n = 300_000
    if form == "npy":
        with open(path, "wb") as file:
            np.save(file, np.arange(n))
    else:
        write(pa.table({"label": np.arange(n)}), form, path, 100_000)
    found = bv.read_labels(path)
    batches = iter(found)
    assert len(next(batches)) == columns.MAX_ROWS
    os.truncate(path, 100_000)
    with pytest.raises(FormatError, match=r"shrank while it is read, from \d+ to 100000 bytes"):
        list(batches)
    with pytest.raises(FormatError, match="shrank while it is read"):
        list(found)
    path.unlink()
    with pytest.raises(FormatError, match="is gone while it is read"):
        list(found)


# --- streaming


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("rows", [1_000, 50_000, None])
def test_sizes_of_batches(rows, form, tmp_path):
    """Small record batches are gathered, large ones are cut."""
    n = 200_000
    table = pa.table({"label": np.arange(n), "g": np.arange(n) // 100})
    found = bv.read_labels(write(table, form, tmp_path / "y", rows), group_column="g", label_column="label")
    sizes = [len(batch) for batch in found]
    assert sum(sizes) == n
    assert max(sizes) <= columns.MAX_ROWS
    assert len(sizes) <= 6
    np.testing.assert_array_equal(np.concatenate([batch.labels for batch in found]), np.arange(n))


@pytest.mark.parametrize("form", FORMATS)
def test_wide_labels_make_small_batches(form, tmp_path, monkeypatch):
    monkeypatch.setattr(columns, "MAX_BYTES", 8_000)
    soft = np.random.default_rng(0).random((500, 100)).astype(np.float32)
    dense = pa.FixedSizeListArray.from_arrays(pa.array(soft.ravel()), 100)
    ragged = pa.ListArray.from_arrays(pa.array(range(0, 50_001, 100), pa.int32()), pa.array(range(50_000)))
    for name, column in (("dense", dense), ("ragged", ragged)):
        found = bv.read_labels(write(pa.table({"x": column}), form, tmp_path / name))
        assert max(len(batch) for batch in found) <= 20
        assert values(found) == column.to_pylist()
    assert max(len(batch) for batch in bv.read_labels(soft)) <= 20


def test_no_copy_where_there_are_no_nulls():
    array = np.arange(1000)
    for source in (array, pa.array(array), pa.table({"label": array}).slice(10, 100)):
        for batch in bv.read_labels(source):
            assert np.shares_memory(batch.labels, array)
    ids = np.arange(1000)
    (batch,) = bv.read_labels(pa.ListArray.from_arrays(pa.array([5, 10, 20], pa.int32()), pa.array(ids)))
    assert np.shares_memory(batch.labels[1], ids)
    soft = np.ones((10, 4), np.float32)
    (batch,) = bv.read_labels(soft)
    assert np.shares_memory(batch.labels, soft)


@pytest.mark.parametrize("form", ["file", "stream", "parquet"])
@pytest.mark.parametrize("options", [{}, {"group_column": "g"}])
def test_memory_is_bounded(options, form, tmp_path):
    """One record batch or row group of 32 MB: Arrow is mapped, Parquet is decoded piece by piece."""
    n = 2_000_000
    values = np.random.default_rng(0).integers(0, 2**60, n)
    path = write(pa.table({"label": values, "g": np.arange(n) % 7}), form, tmp_path / "y", n)
    found = bv.read_labels(path, label_column="label", **options)
    before, most = pa.total_allocated_bytes(), 0
    for batch in found:
        most = max(most, pa.total_allocated_bytes() - before)
        assert batch.labels[0] == values[batch.first_row]
    assert most < (8 << 20 if form == "parquet" else 2 << 20)


def test_memory_of_long_lists_and_of_columns_not_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(columns, "MAX_BYTES", 4 << 20)
    n = 8_000_000
    ids = pa.array(np.arange(n))
    lists = pa.ListArray.from_arrays(pa.array(np.arange(0, n + 1, 400), pa.int32()), ids)
    few = pa.table({"label": pa.array(np.zeros(n, np.int8)), "x": ids})
    for table, form, limit in ((pa.table({"label": lists}), "parquet", 40 << 20), (few, "lz4", 16 << 20)):
        found = bv.read_labels(write(table, form, tmp_path / "y"))
        before, most = pa.total_allocated_bytes(), 0
        for _ in found.batches(0, min(found.num_rows, 200_000)):
            most = max(most, pa.total_allocated_bytes() - before)
        assert most < limit


@pytest.mark.parametrize("form", FORMATS)
def test_empty_data(form, tmp_path):
    for name in ("label", "ids"):
        found = bv.read_labels(write(sample().slice(0, 0), form, tmp_path / "y"), label_column=name, group_column="g")
        assert (found.num_rows, list(found)) == (0, [])
    found = bv.read_labels(write(pa.table({"label": pa.nulls(3, pa.int64())}), form, tmp_path / "y"))
    assert values(found) == [None] * 3


def test_empty_arrays(tmp_path):
    np.save(tmp_path / "y.npy", np.zeros(0, np.int32))
    for source in (tmp_path / "y.npy", np.zeros(0, np.int8), np.zeros((0, 5)), pa.array([], pa.int8())):
        found = bv.read_labels(source)
        assert (found.num_rows, list(found)) == (0, [])


def test_bad_ranges():
    found = bv.read_labels(np.arange(10))
    for start, stop in ((-1, 5), (5, 4), (0, 11), (11, None)):
        with pytest.raises(BigvocabError, match="expected a range within 10 rows"):
            found.batches(start, stop)
    assert list(found.batches(10)) == list(found.batches(4, 4)) == []
    assert [len(batch) for batch in found.batches(np.int64(2), np.int64(5))] == [3]


column_of = {
    "id": st.none() | st.integers(-5, 10**12),
    "ids": st.none() | st.lists(st.integers(0, 9), max_size=5),
    "pair": st.none() | st.lists(st.integers(0, 9), min_size=2, max_size=2),
    "soft": st.none() | st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3),
}
types_of = {
    "id": pa.int64(),
    "ids": pa.list_(pa.int32()),
    "pair": pa.list_(pa.int16(), 2),
    "soft": pa.list_(pa.float32(), 3),
}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_ranges_are_slices_of_the_whole(data, tmp_path):
    """Whatever the format, chunks, files and batch size: a range gives the same rows as the whole."""
    name = data.draw(st.sampled_from(sorted(column_of)))
    rows = data.draw(st.lists(column_of[name], min_size=1, max_size=40))
    table = pa.table(
        {
            "label": pa.array(rows, types_of[name]),
            "w": pa.array(range(len(rows)), pa.int16()),
            "g": pa.array([None if i % 5 == 4 else f"g{i % 3}" for i in range(len(rows))]),
            "n": pa.array(range(len(rows)), pa.uint32()),
        }
    )
    whole = [
        {"row": i, "label": row, "weight": i, "group": "(null)" if i % 5 == 4 else f"g{i % 3}", "bytes": i}
        for i, row in enumerate(rows)
    ]
    cut = data.draw(st.integers(0, len(rows)))
    chunk, form = data.draw(st.integers(1, 9)), data.draw(st.sampled_from(FORMATS))
    if form == "table":
        source = pa.concat_tables([table.slice(i, chunk) for i in range(0, len(rows), chunk)])
    else:
        parts = [table.slice(0, cut), table.slice(cut)]
        source = [write(part, form, tmp_path / f"{i}", chunk) for i, part in enumerate(parts)]
    start = data.draw(st.integers(0, len(rows)))
    stop = data.draw(st.integers(start, len(rows)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "MAX_ROWS", data.draw(st.integers(1, 50)))
        found = bv.read_labels(source, weight_column="w", group_column="g", bytes_column="n")
        assert found.num_rows == len(rows)
        assert plain(found) == whole
        assert plain(found, start, stop) == whole[start:stop]
        assert plain(pickle.loads(pickle.dumps(found)), start, stop) == whole[start:stop]


def test_pickle_goes_by_absolute_path(tmp_path, monkeypatch):
    write(pa.table({"a": [1, 2], "b": [3, 4], "label": [5, 6]}), "parquet", tmp_path / "y.parquet")
    monkeypatch.chdir(tmp_path)
    pickled = pickle.dumps(bv.read_labels("y.parquet::b", weight_column="a"))
    assert len(pickled) < 1000
    monkeypatch.chdir("/")
    assert [(row["label"], row["weight"]) for row in plain(pickle.loads(pickled))] == [(3, 1), (4, 2)]
    assert values(pickle.loads(pickle.dumps(bv.read_labels(np.array([5, 6]))))) == [5, 6]


def test_files_are_closed(tmp_path):
    """Iterations that are given up leave no file open."""
    paths = [write(sample(), form, tmp_path / form, 10) for form in FORMATS[:-1]]
    before = len(os.listdir("/proc/self/fd"))
    for path in paths * 5:
        batches = iter(bv.read_labels(path, label_column="label"))
        next(batches)
        del batches
    assert len(os.listdir("/proc/self/fd")) == before


def test_docstring():
    import doctest

    assert doctest.testmod(labels).failed == 0


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    """Opening a pipe would wait for its writer for ever."""
    os.mkfifo(tmp_path / "pipe.parquet")
    with pytest.raises(BigvocabError, match=r"pipe.parquet: not a regular file"):
        bv.read_labels(tmp_path / "pipe.parquet")


def test_links_that_lead_nowhere_are_no_missing_rows(tmp_path):
    write(pa.table({"label": [1]}), "parquet", tmp_path / "part-0.parquet")
    (tmp_path / "part-1.parquet").symlink_to(tmp_path / "gone.parquet")
    for source in (tmp_path, f"{tmp_path}/part-*.parquet"):
        with pytest.raises(BigvocabError, match=r"part-1.parquet: cannot be read: No such file"):
            bv.read_labels(source)


@pytest.mark.parametrize("name", ["npy", "stream"])
def test_files_joined_end_to_end_are_refused(tmp_path, name):
    path = tmp_path / "labels"
    if name == "npy":
        with path.open("wb") as file:
            np.save(file, np.arange(5))
    else:
        write(pa.table({"label": range(5)}), "stream", path)
    data = path.read_bytes()
    path.write_bytes(data + data)
    second = "array" if name == "npy" else "stream"
    with pytest.raises(FormatError, match=rf"labels: a second {second} begins at byte {len(data)}; expected one"):
        bv.read_labels(path)
    path.write_bytes(data + b"tail")
    assert bv.read_labels(path).num_rows == 5


def test_what_numpy_says_of_a_file_is_told_whole(tmp_path):
    path = tmp_path / "labels.npy"
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (10,), '\xff': 1}\n"
    path.write_bytes(b"\x93NUMPY\x03\x00" + len(header).to_bytes(4, "little") + header + bytes(80))
    with pytest.raises(
        FormatError, match="labels.npy: truncated or corrupt .npy: 'utf-8' codec can't decode byte 0xff"
    ):
        bv.read_labels(path)


@pytest.mark.filterwarnings("error")
def test_headers_of_npy_make_no_warnings(tmp_path):
    for shape in ("3L,", f"{2**40}, {2**40}"):
        header = f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({shape})}}".encode().ljust(117) + b"\n"
        path = tmp_path / "labels.npy"
        path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(24))
        if "L" in shape:
            assert bv.read_labels(path).num_rows == 3
        else:
            with pytest.raises(FormatError, match="labels.npy: truncated or corrupt .npy"):
                bv.read_labels(path)


def test_a_folder_that_may_not_be_listed_is_said_so(tmp_path, monkeypatch):
    (tmp_path / "hidden").mkdir()
    scandir = os.scandir

    def denied(path):
        if "hidden" in os.fspath(path):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)  # root may list all
    for source in ("hidden", "hidden/*.parquet", "hidden/a*/b*.npy"):
        with pytest.raises(BigvocabError, match="hidden: cannot list the folder: Permission denied"):
            bv.read_labels(tmp_path / source)
        with pytest.raises(BigvocabError, match="hidden: cannot list the folder: Permission denied"):
            bv.open_matrix(tmp_path / source)
    for source in ("*.parquet", "no/*.parquet"):
        with pytest.raises(BigvocabError, match="no file matches this pattern"):
            bv.read_labels(tmp_path / source)
