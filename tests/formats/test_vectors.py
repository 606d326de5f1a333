"""Columns of vectors of every kind Arrow has: in batches, in files, as soft labels; from data frames."""

import numpy as np
import pyarrow as pa
import pytest

import bigvocab as bv

ROWS, CLASSES = 20, 7
RNG = np.random.default_rng(7)
LOGITS = RNG.normal(size=(ROWS, CLASSES)).astype(np.float32)
LABELS = RNG.integers(0, CLASSES, ROWS)
INT32, INT64 = pa.int32(), pa.int64()
TYPES = []


class RayTensorType(pa.ExtensionType):
    """As Ray's: an extension over lists, with the shape of a row."""

    def __init__(self, shape, storage):
        self.shape = shape
        super().__init__(storage, "test.tensor")
        TYPES.append(self)  # Arrow holds it by a weak reference

    def __arrow_ext_serialize__(self):
        return b""


def columns(array=LOGITS, value_type=None):
    """The same rows as columns of every kind."""
    rows, width = array.shape
    flat = pa.array(array.reshape(-1), value_type)
    edges, sizes = np.arange(rows + 1) * width, np.full(rows, width)
    starts = edges[:-1]
    order = np.random.default_rng(1).permutation(rows)
    place = np.empty(rows, np.int64)
    place[order] = np.arange(rows)
    padded = np.full((rows, width + 2), 9, array.dtype)
    padded[:, :width] = array
    lists = pa.ListArray.from_arrays(pa.array(edges, INT32), flat)
    large = pa.LargeListArray.from_arrays(pa.array(edges, INT64), flat)

    def view(kind, starts, values, integer=INT32):
        return kind.from_arrays(pa.array(starts, integer), pa.array(sizes, integer), values)

    def of_type(storage, *shape):
        return pa.ExtensionArray.from_storage(RayTensorType(shape, storage.type), storage)

    fixed = pa.FixedSizeListArray.from_arrays(flat, width)
    found = {
        "fixed": fixed,
        "list": lists,
        "large list": large,
        "view": view(pa.ListViewArray, starts, flat),
        "large view": view(pa.LargeListViewArray, starts, flat, INT64),
        "shuffled view": view(pa.ListViewArray, place * width, pa.array(array[order].reshape(-1), value_type)),
        "padded view": view(pa.ListViewArray, np.arange(rows) * (width + 2), pa.array(padded.reshape(-1), value_type)),
        "extension": of_type(large, width),
        "extension of one row": of_type(lists, 1, width),
        "lists in lists": pa.ListArray.from_arrays(pa.array(np.arange(rows + 1), INT32), lists),
        "fixed in views": pa.ListViewArray.from_arrays(
            pa.array(np.arange(rows), INT32), pa.array(np.ones(rows), INT32), fixed
        ),
    }
    if value_type is None:
        kind = pa.fixed_shape_tensor(flat.type, [width])
        found["tensor"] = pa.ExtensionArray.from_storage(kind, fixed)
    return found


COLUMNS = columns()


def table_of(column, labels=LABELS):
    return pa.table({"logits": column, "label": labels})


@pytest.mark.parametrize("kind", COLUMNS)
def test_batches(kind):
    expected = bv.Evaluator().update(LOGITS, LABELS)
    table = table_of(COLUMNS[kind])
    in_chunks = pa.concat_tables([table.slice(0, 3), table.slice(3, 0), table.slice(3)])
    for batch in (table, table.to_batches()[0], table.to_batches()[0].slice(4), table.slice(5), in_chunks):
        found = bv.Evaluator().update_batch(batch)
        assert type(found) is type(batch)
        losses = found["loss"].to_numpy()
        np.testing.assert_array_equal(losses, expected[-len(losses) :])


@pytest.mark.parametrize("kind", COLUMNS)
@pytest.mark.parametrize("form", [pa.ipc.new_file, pa.ipc.new_stream])
def test_files(kind, form, tmp_path):
    table = table_of(COLUMNS[kind])
    with form(tmp_path / "x.arrow", table.schema) as writer:
        writer.write_table(table)
        writer.write_table(table.slice(5, 6))
        writer.write_table(table.slice(0, 0))
    matrix = bv.open_matrix(tmp_path / "x.arrow")
    np.testing.assert_array_equal(np.asarray(matrix), np.concatenate([LOGITS, LOGITS[5:11]]))
    report = bv.evaluate(logits=tmp_path / "x.arrow", labels=np.concatenate([LABELS, LABELS[5:11]]))
    assert report["rows"] == 26


@pytest.mark.parametrize("kind", ["fixed", "list", "large list", "view", "large view", "extension", "lists in lists"])
def test_rows_at_equal_distances_are_not_copied(kind):
    from bigvocab.errors import Place
    from bigvocab.formats.vectors import vectors_of

    found = vectors_of(COLUMNS[kind], Place("x")).array(np.dtype(np.float32))
    other = vectors_of(COLUMNS[kind].slice(2, 4), Place("x")).array(np.dtype(np.float32))
    assert np.shares_memory(found, other)
    padded = vectors_of(COLUMNS["padded view"], Place("x")).array(np.dtype(np.float32))
    assert padded.strides == (4 * (CLASSES + 2), 4)
    np.testing.assert_array_equal(padded, LOGITS)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "bfloat16"])
def test_types_of_numbers(dtype):
    import ml_dtypes

    array = LOGITS.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    expected = bv.Evaluator().update(array, LABELS)
    stored = array.view(np.uint16) if dtype == "bfloat16" else array
    for name in ("list", "large view"):
        found = bv.Evaluator().update_batch(table_of(columns(stored)[name]))
        np.testing.assert_array_equal(found["loss"].to_numpy(), expected)


LIST, LARGE = pa.list_(pa.float32()), pa.large_list(pa.float32())
GOOD = [1.0, 2.0]
BAD = [
    (LIST, [GOOD, GOOD, [1.0]], "row 2 has 1 numbers, expected 2"),
    (LARGE, [GOOD, GOOD, [1.0, 2.0, 3.0]], "row 2 has 3 numbers, expected 2"),
    (pa.list_view(pa.float32()), [GOOD, []], "row 1 has 0 numbers, expected 2"),
    (LIST, [GOOD, None], "row 1 is null"),
    (pa.large_list_view(pa.float32()), [GOOD, None], "row 1 is null"),
    (LIST, [GOOD, [1.0, None]], "row 1 has a null at class 1"),
    (pa.list_(pa.float32(), 2), [GOOD, None], "row 1 is null"),
    (pa.list_(pa.float32(), 2), [GOOD, [None, 1.0]], "row 1 has a null at class 0"),
    (pa.list_(LIST), [[GOOD], [[1.0, None]]], "row 1 has a null at class 1"),
    (pa.list_(LIST), [[GOOD], [GOOD, GOOD]], "row 1 has 2 numbers|row 1 has 2"),
    (pa.list_(LIST), [[GOOD, GOOD]], r"row 0 has shape \(2, 2\), expected a vector"),
]


@pytest.mark.parametrize(("kind", "rows", "message"), BAD)
def test_rows_that_do_not_fit_are_named(kind, rows, message, tmp_path):
    column = pa.array(rows, kind)
    table = table_of(column, np.zeros(len(rows), np.int64))
    evaluator = bv.Evaluator()
    with pytest.raises(bv.BigvocabError, match=f"batch: column 'logits': .*({message})"):
        evaluator.update_batch(table)
    if len(rows) > 1:
        chunks = pa.concat_tables([table.slice(0, 1), table.slice(1)])
        with pytest.raises(bv.BigvocabError, match="batch: column 'logits': row "):
            evaluator.update_batch(chunks)
    with pa.ipc.new_file(tmp_path / "x.arrow", table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(bv.FormatError, match=f"x.arrow::logits: .*({message})"):
        bv.open_matrix(f"{tmp_path}/x.arrow::logits")


def test_nulls_that_no_row_of_a_view_has_are_none_of_it(tmp_path):
    values = pa.array([None, 1.0, 2.0, None, 3.0, 4.0, None], pa.float32())
    column = pa.ListViewArray.from_arrays(pa.array([4, 1], INT32), pa.array([2, 2], INT32), values)
    found = bv.Evaluator().update_batch(table_of(column, [0, 1]))
    expected = bv.Evaluator().update(np.array([[3, 4], [1, 2]], np.float32), [0, 1])
    np.testing.assert_array_equal(found["loss"].to_numpy(), expected)
    column = pa.ListViewArray.from_arrays(pa.array([4, 2], INT32), pa.array([2, 2], INT32), values)
    with pytest.raises(bv.FormatError, match="row 1 has a null at class 1"):
        bv.Evaluator().update_batch(table_of(column, [0, 1]))


@pytest.mark.parametrize("kind", [kind for kind in COLUMNS if kind not in ("fixed", "tensor")])
def test_batches_without_rows_have_the_width_of_the_layer(kind):
    """Lists say by their rows how wide they are."""
    layer = np.random.default_rng(3).normal(size=(9, CLASSES)).astype(np.float32)
    table = table_of(COLUMNS[kind]).rename_columns(["inputs", "label"])
    parts = []
    for batch in (table.slice(0, 0), table, table.slice(0, 0)):
        evaluator = bv.Evaluator(weights=layer)
        assert evaluator.update_batch(batch).num_rows == len(batch)
        parts.append(evaluator.to_bytes())
    expected = bv.Evaluator(weights=layer)
    expected.update(LOGITS, LABELS)
    assert bv.merge(parts, rows=ROWS)["sum"] == expected.report()["sum"]
    both = table_of(COLUMNS[kind]).rename_columns(["reference", "label"]).append_column("candidate", COLUMNS[kind])
    comparison = bv.Comparison(weights=layer)
    for batch in (both.slice(0, 0), both):
        comparison.update_batch(batch)
    assert comparison.report()["rows"] == ROWS


def test_the_width_of_the_first_batch_binds_all(tmp_path):
    schema = pa.schema([("x", LIST)])
    with pa.ipc.new_file(tmp_path / "x.arrow", schema) as writer:
        writer.write_table(pa.table({"x": pa.array([GOOD] * 3, LIST)}))
        writer.write_table(pa.table({"x": pa.array([GOOD + GOOD], LIST)}))
    with pytest.raises(bv.FormatError, match="x: row 3 has 4 numbers, expected 2"):
        bv.open_matrix(tmp_path / "x.arrow")
    with pa.ipc.new_file(tmp_path / "e.arrow", schema) as writer:
        writer.write_table(pa.table({"x": pa.array([], LIST)}))
    with pytest.raises(bv.FormatError, match="no rows, and lists say how wide they are by their rows"):
        bv.open_matrix(tmp_path / "e.arrow")


def test_a_column_that_says_its_width_comes_before_lists(tmp_path):
    table = pa.table({"notes": COLUMNS["list"], "x": pa.FixedSizeListArray.from_arrays(pa.array(LOGITS.ravel()), 7)})
    with pa.ipc.new_file(tmp_path / "x.arrow", table.schema) as writer:
        writer.write_table(table)
    assert bv.open_matrix(tmp_path / "x.arrow").files[0]["path"].endswith("x.arrow")
    assert bv.open_matrix(f"{tmp_path}/x.arrow::notes").shape == (ROWS, CLASSES)


def test_tensors_of_two_dimensions_are_no_rows():
    storage = pa.array([[0.0] * 6] * 2, LIST)
    column = pa.ExtensionArray.from_storage(RayTensorType((2, 3), storage.type), storage)
    with pytest.raises(bv.BigvocabError, match="column 'logits' is .*expected a FixedSizeList"):
        bv.Evaluator().update_batch(pa.table({"logits": column, "label": [0, 1]}))


@pytest.mark.parametrize("kind", COLUMNS)
def test_named_candidates_are_columns_of_every_kind(kind):
    table = pa.table({"reference": COLUMNS["fixed"], "near": COLUMNS[kind], "label": LABELS})
    found = bv.Comparison().update_batch(table)
    assert found["near.kl"].to_pylist() == [0.0] * ROWS


# ---- soft labels


@pytest.mark.parametrize("kind", ["fixed", "list", "large list", "extension"])
def test_soft_labels(kind, tmp_path):
    soft = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    table = pa.table({"logits": COLUMNS["list"], "label": columns(soft)[kind]})
    expected = bv.Evaluator(loss="softmax").update(LOGITS, soft)
    found = bv.Evaluator(loss="softmax").update_batch(table)
    np.testing.assert_array_equal(found["loss"].to_numpy(), expected)
    with pa.ipc.new_file(tmp_path / "l.arrow", table.schema) as writer:
        writer.write_table(table.slice(0, 9))
        writer.write_table(table.slice(9))
    report = bv.evaluate(logits=LOGITS, labels=f"{tmp_path}/l.arrow::label", loss="softmax")
    evaluator = bv.Evaluator(loss="softmax")
    evaluator.update(LOGITS, soft)
    assert report["sum"] == evaluator.report()["sum"]


def test_soft_labels_of_another_length_are_named_and_null_rows_ignored():
    column = pa.array([None, [0.5, 0.5], [1.0, 0.0], None], LIST)
    table = pa.table({"logits": pa.array([GOOD] * 4, LIST), "label": column})
    found = bv.Evaluator(loss="softmax").update_batch(table)["loss"]
    assert found.is_null().to_pylist() == [True, False, False, True]
    bad = table.set_column(1, "label", pa.array([GOOD, [1.0]] * 2, LIST))
    with pytest.raises(bv.BigvocabError, match="'label': row 1: expected 2 labels, as in the first row, got 1"):
        bv.Evaluator(loss="softmax").update_batch(bad)


def test_integers_are_the_labels_before_lists_of_floats_are():
    table = pa.table({"embedding": COLUMNS["list"], "y": LABELS})
    assert bv.read_labels(table).kind == "id"
    assert bv.read_labels(table.select(["embedding"])).kind == "dense"


# ---- data frames


class Frame:
    """What Polars, pandas and DuckDB have in common."""

    def __init__(self, table):
        self.table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self.table.__arrow_c_stream__(requested_schema)


@pytest.mark.parametrize("kind", COLUMNS)
def test_anything_with_a_stream_comes_back_as_a_table(kind):
    table = table_of(COLUMNS[kind])
    found = bv.Evaluator().update_batch(Frame(table))
    assert type(found) is pa.Table
    assert found.schema.names == ["logits", "label", "loss"]
    np.testing.assert_array_equal(found["loss"].to_numpy(), bv.Evaluator().update(LOGITS, LABELS))


def test_what_has_no_stream_is_refused():
    with pytest.raises(TypeError, match="batch: expected a pyarrow RecordBatch or Table, or .*got dict"):
        bv.Evaluator().update_batch({"logits": LOGITS})

    class Broken:
        def __arrow_c_stream__(self, requested_schema=None):
            raise ValueError("the frame was closed\nand more")

    with pytest.raises(bv.BigvocabError, match="batch: Broken is no Arrow table: the frame was closed$"):
        bv.Evaluator().update_batch(Broken())
