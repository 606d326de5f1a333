"""How ids are stored: offsets, ids that mark ignored rows, raw files, and whole numbers in columns of floats."""

import decimal
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import process
from sample_jobs import values_of

import bigvocab as bv
from bigvocab.errors import BigvocabError, FormatError

LOGITS = np.random.default_rng(0).normal(size=(6, 9)).astype(np.float32)
IDS = np.array([0, 8, 3, 3, 1, 7])


def of(labels, **options):
    return values_of(bv.evaluate(logits=LOGITS, labels=labels, **options))


def fed(found):
    """A report without what batches have no numbers for: the rows of the worst."""
    found = found if isinstance(found, dict) else values_of(found)
    return {name: value for name, value in found.items() if name not in ("worst", "notes")}


@pytest.mark.parametrize("offset", [-1, -5, 3, 2**40])
@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.int16])
def test_an_offset_is_added_to_every_label(offset, dtype, tmp_path):
    if abs(offset) > 100 and dtype != np.int64:
        return
    stored = (IDS - offset).astype(dtype)
    expected = of(IDS)
    pq.write_table(pa.table({"y": stored}), tmp_path / "y.parquet")
    np.save(tmp_path / "y.npy", stored)
    for labels in (stored, stored.tolist(), pa.table({"y": stored}), tmp_path / "y.parquet", tmp_path / "y.npy"):
        assert of(labels, label_offset=offset) == expected
    ev = bv.Evaluator(label_offset=offset)
    ev.update(LOGITS, stored)
    again = bv.Evaluator.from_bytes(ev.to_bytes())
    assert fed(again.report()) == fed(expected)
    with pytest.raises(BigvocabError, match="label_offset"):
        again.merge(bv.Evaluator(label_offset=offset + 1))
    lists = pa.table(
        {"y": [[int(label)] for label in stored], "e": [[int(label) + 1 - (label == stored.max())] for label in stored]}
    )
    if dtype == np.int64:
        multi = values_of(
            bv.evaluate(logits=LOGITS, labels=lists, loss="sparse-sigmoid", label_column="y", label_offset=offset)
        )
        assert multi == of(pa.table({"y": [[int(label)] for label in IDS]}), loss="sparse-sigmoid")


def test_lists_to_exclude_are_stored_as_labels_are():
    table = pa.table({"label": IDS + 1, "e": [[2 if label != 1 else 5] for label in IDS]})
    expected = pa.table({"label": IDS, "e": [[1 if label != 1 else 4] for label in IDS]})
    options = {"label_column": "label", "exclude_column": "e"}
    assert of(table, label_offset=-1, **options) == of(expected, **options)


@pytest.mark.parametrize("given", [(3, -100), [3, -100], np.array([3, -100]), {3, -100}])
def test_several_ids_mark_ignored_rows(given, tmp_path):
    stored = np.array([0, -100, 3, 3, 1, 7])
    expected = of(pa.table({"y": pa.array([0, None, None, None, 1, 7])}))
    np.save(tmp_path / "y.npy", stored)
    for labels in (stored, tmp_path / "y.npy", pa.table({"y": stored})):
        assert of(labels, ignore_index=given) == expected
    losses = bv.sparse_softmax_cross_entropy(LOGITS, stored, ignore_index=given)
    assert (losses == 0).tolist() == [False, True, True, True, False, False]
    weights = np.random.default_rng(1).normal(size=(9, 4)).astype(np.float32)
    losses = bv.linear_cross_entropy(LOGITS[:, :4], weights, stored, ignore_index=given)
    assert (losses == 0).tolist() == [False, True, True, True, False, False]
    state = bv.Evaluator(ignore_index=given)
    state.update(LOGITS, stored)
    assert bv.Evaluator.from_bytes(state.to_bytes()).report()["ignored_rows"] == 3


def test_ignored_ids_are_compared_before_the_offset():
    stored = IDS + 1  # 0 becomes 1
    assert of(stored, label_offset=-1, ignore_index=9)["ignored_rows"] == 1
    assert of(stored, label_offset=-1, ignore_index=0)["ignored_rows"] == 0
    assert of(np.append(stored[:-1], 0), label_offset=-1, ignore_index=0)["ignored_rows"] == 1


def test_labels_past_63_bits_may_be_ignored(tmp_path):
    stored = np.array([0, 2**64 - 1, 3, 2**63, 1, 7], np.uint64)
    expected = of(pa.table({"y": pa.array([0, None, 3, None, 1, 7])}))
    np.save(tmp_path / "y.npy", stored)
    marks = {"ignore_index": [2**64 - 1, 2**63]}
    for labels in (stored, tmp_path / "y.npy", pa.table({"y": stored})):
        assert of(labels, **marks) == expected
    ev = bv.Evaluator(**marks)
    ev.update(LOGITS, stored)
    assert fed(ev.report()) == fed(expected)
    assert (bv.sparse_softmax_cross_entropy(LOGITS, stored, **marks) == 0).sum() == 2
    for labels in (stored, tmp_path / "y.npy"):
        with pytest.raises(BigvocabError, match="row 3"):
            of(labels, ignore_index=2**64 - 1)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "<i8", ">u2"])
def test_raw_files(dtype, tmp_path):
    (tmp_path / "y.bin").write_bytes(IDS.astype(dtype).tobytes())
    (tmp_path / "a.bin").write_bytes(IDS[:2].astype(dtype).tobytes())
    (tmp_path / "b.bin").write_bytes(IDS[2:].astype(dtype).tobytes())
    expected = of(IDS)
    for labels in (tmp_path / "y.bin", [tmp_path / "a.bin", tmp_path / "b.bin"], f"{tmp_path}/[ab].bin"):
        assert of(labels, label_dtype=dtype) == expected
    labels = bv.read_labels(tmp_path / "y.bin", label_dtype=dtype, label_offset=1, ignore_index=3)
    for copy in (labels, pickle.loads(pickle.dumps(labels))):
        (batch,) = copy
        assert batch.labels.tolist() == [1, 9, 0, 0, 2, 8]
        assert batch.ignored.tolist() == [False, False, True, True, False, False]
    done = process(
        "eval", "--logits", "l.npy", "--labels", "y.bin", "--label-dtype", dtype, "--ignore-index", "3",
        "--ignore-index", "8",
        "--format", "json", cwd=_with_logits(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert '"ignored_rows": 3' in done.stdout


def _with_logits(folder):
    np.save(folder / "l.npy", LOGITS)
    return folder


def test_raw_files_that_are_not(tmp_path):
    np.save(tmp_path / "y.npy", IDS)
    (tmp_path / "odd.bin").write_bytes(b"12345")
    (tmp_path / "empty.bin").write_bytes(b"")
    for name, dtype, error, message in (
        ("y.npy", "uint16", BigvocabError, "label_dtype= means raw binary, but this is a npy"),
        ("odd.bin", "uint16", FormatError, "5 bytes, expected a whole number of labels of 2 bytes"),
        ("empty.bin", "uint16", BigvocabError, "empty"),
        ("odd.bin", "float32", BigvocabError, "label_dtype: got 'float32', expected an integer type"),
        ("odd.bin", "nonsense", BigvocabError, "label_dtype: got 'nonsense'"),
        ("none.bin", "uint16", BigvocabError, "none.bin"),
    ):
        with pytest.raises(error, match=message):
            of(tmp_path / name, label_dtype=dtype)
    with pytest.raises(BigvocabError, match="label_dtype: is for raw files"):
        of(IDS, label_dtype="uint16")


def decimals(values):
    return pa.array([None if value is None else decimal.Decimal(value) for value in values], pa.decimal128(12, 2))


def test_whole_numbers_in_columns_of_floats_are_labels(tmp_path):
    expected = of(pa.table({"y": pa.array([0, None, 3, None, 1, 7])}))
    floats = pa.array([0.0, None, 3.0, float("nan"), 1.0, 7.0])
    table = pa.table({"y": floats, "other": ["a"] * 6})
    pq.write_table(table, tmp_path / "y.parquet")
    (tmp_path / "y.csv").write_text("y,other\n0.0,a\n,a\n3.0,a\nNaN,a\n1,a\n7.0,a\n")
    for labels in (
        table,
        tmp_path / "y.parquet",
        tmp_path / "y.csv",
        pa.table({"label": floats}),
        pa.table({"q": floats}),
    ):
        options = {"label_column": "y"} if "y" in getattr(labels, "column_names", ["y"]) else {}
        assert of(labels, **options) == expected
    assert of(pa.table({"y": decimals(["0", None, "3", None, "1.00", "7"])})) == expected
    assert of(pa.table({"y": pa.array([-100.0, 8, 3, 3, 1, 7])}), ignore_index=-100)["ignored_rows"] == 1


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([0.0, 1, 2, 2.5, 1, 0]), "column 'y': row 3 is 2.5, expected a whole number"),
        (pa.array([0.0, 1, 2, float("inf"), 1, 0]), "row 3 is inf, expected a whole number"),
        (pa.array([0.0, 1e300, 2, 2, 1, 0]), "row 1 is 1e\\+300, expected a whole number"),
        (decimals(["0", "1", "2", "2.5", "1", "0"]), "row 3 is 2.50, expected a whole number"),
        (pa.array([0.0, 9, 2, 2, 1, 0]), r"row 1 is 9, expected a class in \[0, 9\)"),
        (pa.array([0.0] * 6, pa.float32()), "expected integers, got float"),
    ],
)
def test_other_numbers_are_none(column, message):
    with pytest.raises(BigvocabError, match=message):
        of(pa.table({"y": column}))


def test_floats_in_arrays_are_a_mistake(tmp_path):
    np.save(tmp_path / "y.npy", IDS.astype(np.float64))
    for labels in (tmp_path / "y.npy", IDS.astype(np.float64)):
        with pytest.raises((BigvocabError, TypeError), match="expected integers"):
            of(labels)


def test_a_column_of_floats_is_not_guessed_beside_integers():
    table = pa.table({"id": IDS, "score": IDS / 1.0})
    assert bv.read_labels(table).chosen.label == "id"


@pytest.mark.parametrize(
    ("labels", "hint"),
    [
        (IDS + 1, "labels run from 1 to 9: label_offset -1\\?"),
        (np.array([0, 1, -100, 2, 3, 4]), "row 2 is -100, .*ignore_index -100$"),
        (np.array([1, 2, 3, 4, 5, 10]), r"expected a class in \[0, 9\)$"),
        (np.array([0, 2, 3, 4, 5, 9]), r"expected a class in \[0, 9\)$"),
    ],
)
def test_messages_say_what_may_be_meant(labels, hint, tmp_path):
    np.save(tmp_path / "y.npy", labels)
    for given in (labels, tmp_path / "y.npy"):
        with pytest.raises(BigvocabError, match=hint):
            of(given)
    done = process("eval", "--logits", "l.npy", "--labels", "y.npy", cwd=_with_logits(tmp_path))
    assert done.returncode == 1
    assert "$" in hint or any(option in done.stderr for option in ("--label-offset -1?", "--ignore-index -100"))


def test_a_layer_that_lies_on_its_side_is_told(tmp_path):
    inputs, weights = np.zeros((3, 4), np.float32), np.zeros((4, 9), np.float32)
    with pytest.raises(BigvocabError, match="it looks transposed: transpose_weights\\?"):
        bv.evaluate(inputs=inputs, weights=weights, labels=[0, 1, 2])
