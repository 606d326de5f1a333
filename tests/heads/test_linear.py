"""The linear head: the same values as from logits written out, to the bit wherever that is promised."""

import json
import math
import platform
import tracemalloc
from pathlib import Path

import machine_code
import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from golden_files import load
from hypothesis import given, settings
from hypothesis import strategies as st
from machine_code import Loop, assembly
from safetensors.numpy import save_file

import bigvocab as bv
from bigvocab.command.cli import cli
from bigvocab.heads import linear_rows
from bigvocab.heads.linear_rows import GROUP, TILE, LinearRows
from bigvocab.heads.output_layer import OutputLayer
from bigvocab.heads.products import Packed, accumulator, converted, lanes, paired, product
from bigvocab.kernels import products as kernels
from bigvocab.kernels.quantised import Q6_K
from bigvocab.losses.row_statistics import softmax_rows, wanted
from bigvocab.matrices.tiles import StoredRows, kernel_view
from bigvocab.matrices.weight_rows import WeightRows

KJV = Path(__file__).parents[2] / "data" / "kjv"
DTYPES = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "f32": np.float32, "f64": np.float64}
ALL = wanted(rank=True, entropy=True, predicted=True, logit_sum=True)
EVERY_METRIC = ("accuracy", "rank", "logsumexp", "entropy", "predicted")
RATES = ("inputs", "seconds", "rows_per_second", "bytes_per_second", "versions")


def make(rows, depth, classes, dtype=np.float32, layer_dtype=None, seed=0):
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((rows, depth)).astype(dtype)
    weights = (rng.standard_normal((classes, depth)) * 2 / np.sqrt(depth)).astype(layer_dtype or dtype)
    biases = rng.standard_normal(classes).astype(layer_dtype or dtype)
    return inputs, weights, biases, rng.integers(0, classes, rows)


def written_out(inputs, weights, biases):
    """The linear head's own logits, as an array."""
    packed = Packed.of(inputs, weights.dtype)
    out, padded = packed.tile(len(weights)), np.zeros(len(weights) + lanes(packed.dtype), packed.dtype)
    padded[: len(weights)] = biases
    packed.multiply(weights, padded, packed.panel(), out)
    return np.ascontiguousarray(out[: len(inputs), : len(weights)])


def statistics(inputs, weights, biases, labels, want=ALL, threads=2, **options):
    layer = OutputLayer(weights, biases, num_classes=options.pop("num_classes", None))
    rows = LinearRows(layer, inputs)
    return softmax_rows(rows, labels, want=want, num_threads=threads, **options)


def values_of(report):
    return {name: value for name, value in report.to_dict().items() if name not in RATES}


# ---- products


@pytest.mark.parametrize("a", DTYPES)
@pytest.mark.parametrize("b", DTYPES)
def test_products_of_all_types(a, b):
    inputs, rows, _, _ = make(14, 271, 70, DTYPES[a], DTYPES[b])
    got = product(inputs, rows)
    exact = inputs.astype(np.float64) @ rows.astype(np.float64).T
    assert got.dtype == (np.float64 if "f64" in (a, b) else np.float32)
    size = np.abs(inputs.astype(np.float64)) @ np.abs(rows.astype(np.float64)).T
    assert (
        np.abs(got - exact) <= size * (140 + 3) * np.finfo(got.dtype).eps / 2
    ).all()  # 128 steps, 3 blocks, roundings


@pytest.mark.parametrize("kind", [">f2", ">f4", ">f8"])
def test_products_of_foreign_byte_order_and_odd_layouts(kind):
    inputs, rows, _, _ = make(14, 70, 40, np.dtype(kind).newbyteorder("="))
    expected = product(inputs, rows)
    np.testing.assert_array_equal(product(inputs.astype(kind), rows.astype(kind)), expected)
    np.testing.assert_array_equal(product(np.asfortranarray(inputs), rows[::-1]), expected[:, ::-1])
    wide = np.zeros((40, 75), rows.dtype)
    wide[:, 2:72] = rows
    np.testing.assert_array_equal(product(inputs, wide[:, 2:72]), expected)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_an_element_depends_on_its_two_rows_alone(data):
    """Whatever the shape of the call, the place in it and the threads: what no BLAS promises."""
    inputs, rows, _, _ = make(61, 301, 130)
    whole = product(inputs, rows)
    a = data.draw(st.integers(0, 60))
    b = data.draw(st.integers(a + 1, 61))
    c = data.draw(st.integers(0, 129))
    d = data.draw(st.integers(c + 1, 130))
    threads = data.draw(st.integers(1, 3))
    np.testing.assert_array_equal(product(inputs[a:b], rows[c:d], num_threads=threads), whole[a:b, c:d])
    pairs = min(b - a, d - c)
    gathered = paired(Packed.of(inputs[a : a + pairs], rows.dtype), rows[c : c + pairs])
    np.testing.assert_array_equal(gathered, np.diagonal(whole[a : a + pairs, c : c + pairs]))


def test_product_into_an_array_and_of_nothing():
    inputs, rows, _, _ = make(5, 7, 9)
    out = np.empty((5, 9), np.float32)
    assert product(inputs, rows, out=out) is out
    np.testing.assert_array_equal(out, product(inputs, rows))
    assert product(inputs[:0], rows).shape == (0, 9)
    assert product(inputs, rows[:0]).shape == (5, 0)


@pytest.mark.parametrize("name", DTYPES)
def test_conversion_is_exact(name):
    values = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float64)[None, :]
    values = np.where(np.isfinite(values), values, 0)
    array = values.astype(DTYPES[name])
    for part in (array, array[:, 3:-7], array[:, ::2]):
        np.testing.assert_array_equal(converted(part), part.astype(accumulator(part.dtype)))
    specials = np.array([[np.nan, np.inf, -np.inf, -0.0]], DTYPES[name])
    assert str(converted(specials).tolist()) == "[[nan, inf, -inf, -0.0]]"


@settings(max_examples=20, deadline=None)
@given(depth=st.integers(1, 300), n=st.integers(1, 30), m=st.integers(1, 80))
def test_pairs_of_bfloat16_are_summed_as_all_else(depth, n, m):
    """AVX512-BF16's instruction, where there is one, and fused multiply-adds of float32: the same bits."""
    inputs, rows, _, _ = make(n, depth, m, ml_dtypes.bfloat16)
    wide = product(inputs.astype(np.float32), rows.astype(np.float32))
    np.testing.assert_array_equal(product(inputs, rows), wide)
    np.testing.assert_array_equal(product(inputs, rows.astype(np.float32)), wide)
    few = min(n, m)
    np.testing.assert_array_equal(paired(Packed.of(inputs[:few], rows.dtype), rows[:few]), np.diagonal(wide))


@pytest.mark.parametrize("name", DTYPES)
def test_a_product_reports_what_is_not_finite(name):
    inputs, rows, biases, _ = make(3, 37, 100, DTYPES[name])
    packed = Packed.of(inputs, rows.dtype)
    width = lanes(packed.dtype)
    padded = np.zeros(100 + width, packed.dtype)

    def fault(c, k, value):
        spoiled = rows.copy()
        spoiled[c, k] = value
        return packed.multiply(spoiled, padded, packed.panel(), packed.tile(100))

    assert packed.multiply(rows, padded, packed.panel(), packed.tile(100)) == -1
    for c, k, value in ((70, 36, np.nan), (0, 0, np.inf), (99, 31, -np.inf), (99, 1, np.nan)):
        assert fault(c, k, value) == c // width * width  # the panel's first class


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names features of x86-64")
def test_processors_without_avx512_return_the_same_bits():
    assert machine_code.on("haswell", machine_code.product_bits) == machine_code.product_bits()


def test_the_product_is_vectorised():
    """Fused multiply-adds on whole registers, as many as accumulators, and no gathers."""
    inputs, weights = np.zeros((3, 5), np.float32), np.zeros((7, 5), np.float32)
    loop = Loop(assembly(kernels, "tile_product", lambda: product(inputs, weights)))
    packed = [line for line in loop.packed if "ps\t" in line]
    assert len(packed) >= (24 if loop.register == "zmm" else 12)
    assert not loop.gathers


def test_the_product_with_whole_numbers_is_vectorised(tmp_path):
    """Pairs of bfloat16 on whole registers where the processor has them, else fused multiply-adds; and no gathers."""
    states = Packed.of(np.zeros((13, 256), ml_dtypes.bfloat16), ml_dtypes.bfloat16)
    rows = WeightRows(7, (kernel_view(np.zeros((7, 210), np.uint8)), Q6_K))
    room = np.zeros(39, np.float32), states.panel(), states.tile(7)
    loop = Loop(assembly(kernels, "tile_product", lambda: states.multiply_stored(rows, *room)))
    whole = [line for line in loop.packed if "ps\t" in line]
    assert len(whole) >= (24 if loop.register == "zmm" else 12)
    assert not loop.gathers


# ---- statistics


@pytest.mark.parametrize(
    "classes", [1, 2, 31, 33, TILE - 1, TILE, TILE + 1, GROUP - 1, GROUP, GROUP + 1, 2 * GROUP + 4567]
)
@pytest.mark.parametrize("name", ["f32", "f64"])
def test_every_value_at_every_edge(classes, name):
    inputs, weights, biases, labels = make(5, 13, classes, DTYPES[name], seed=classes)
    labels[:2] = 0, classes - 1
    got = statistics(inputs, weights, biases, labels)
    logits = written_out(inputs, weights, biases)
    expected = softmax_rows(StoredRows.of(logits), labels, want=ALL)
    tight = 1e-12 if name == "f64" else 1e-6
    np.testing.assert_array_equal(got.label_logits, logits[np.arange(5), labels])
    for column in ("rank", "tied", "predicted", "finite"):
        np.testing.assert_array_equal(getattr(got, column), getattr(expected, column))
    for column in ("label_loss", "logsumexp", "entropy", "logit_sum"):
        np.testing.assert_allclose(getattr(got, column), getattr(expected, column), rtol=tight, atol=3 * tight)
    assert (got.label_loss >= 0).all()


@pytest.mark.parametrize("options", [{"softcap": 3.0}, {"scale": 0.3}, {"scale": 2.5, "softcap": 5.0}])
def test_transforms(options):
    inputs, weights, biases, labels = make(7, 20, GROUP + TILE + 5)
    got = statistics(inputs, weights, biases, labels, **options)
    expected = softmax_rows(StoredRows.of(written_out(inputs, weights, biases)), labels, want=ALL, **options)
    for column in ("label_loss", "logsumexp", "entropy", "logit_sum"):
        least = 1e-7 * len(weights) if column == "logit_sum" else 3e-6  # softcapped logits are float32's
        np.testing.assert_allclose(getattr(got, column), getattr(expected, column), rtol=1e-6, atol=least)
    for column in ("rank", "tied", "predicted"):
        np.testing.assert_array_equal(getattr(got, column), getattr(expected, column))


@pytest.mark.parametrize("name", DTYPES)
def test_ties_and_losses_are_exact_for_labels_anywhere(name):
    """The label's logit is the tile's own number: a class with the label's row ties, and no loss is below 0."""
    inputs, weights, _, labels = make(40, 277, 3000, DTYPES[name])
    doubled = np.concatenate([weights, weights])
    rows = statistics(inputs, doubled, None, labels)
    assert rows.tied.all()
    once = statistics(inputs, weights, None, labels)
    assert not once.tied.any()
    np.testing.assert_array_equal(rows.rank, 2 * once.rank - 1)
    sure = weights.copy()
    sure[labels] = 30 * inputs[: len(labels)]
    assert (statistics(inputs, sure, None, labels).label_loss >= 0).all()


def bits(inputs, weights, biases, labels, **options):
    rows = statistics(inputs, weights, biases, labels, **options)
    return rows.columns.tobytes() + rows.label_logits.tobytes()


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads_rows_and_blocks_change_no_bit(threads, monkeypatch):
    inputs, weights, biases, labels = make(50, 140, 2 * GROUP + 777)
    labels[::5] = -1
    whole = bits(inputs, weights, biases, labels, threads=1)
    assert bits(inputs, weights, biases, labels, threads=threads) == whole
    monkeypatch.setattr(linear_rows, "UNIT_ROWS", 12)
    assert bits(inputs, weights, biases, labels, threads=threads) == whole
    parts = [
        statistics(inputs[i : i + 7], weights, biases, labels[i : i + 7], threads=threads) for i in range(0, 50, 7)
    ]
    kept = np.concatenate([part.columns for part in parts])
    assert kept.tobytes() + np.concatenate([part.label_logits for part in parts]).tobytes() == whole
    layer = OutputLayer(weights, biases)
    layer.block_bytes = 1  # blocks of 12 rows
    small = softmax_rows(LinearRows(layer, inputs), labels, want=ALL, num_threads=threads)
    assert small.columns.tobytes() + small.label_logits.tobytes() == whole
    assert layer.bytes_read == 4 * weights.nbytes  # 40 rows that count


def test_no_array_of_all_logits():
    inputs, weights, _, labels = make(300, 16, 200_000)
    linear = {"num_threads": 2}
    bv.linear_cross_entropy(inputs[:12], weights, labels[:12], **linear)
    tracemalloc.start()
    bv.linear_cross_entropy(inputs, weights, labels, **linear)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20 < 300 * 200_000 * 4


# ---- linear_cross_entropy


LINEAR_CASES = [case for case in load("losses_pytorch") if case.function == "linear_cross_entropy"]


@pytest.mark.parametrize("case", LINEAR_CASES, ids=str)
def test_pytorch_in_float64(case):
    case.assert_close(bv.linear_cross_entropy(**case.arguments))


def test_there_are_cases_of_both_of_pytorch_paths():
    assert {"plain", "chunked"} <= {part for case in LINEAR_CASES for part in case.name.split("/")}


@pytest.mark.parametrize("a", DTYPES)
@pytest.mark.parametrize("b", DTYPES)
def test_losses_of_all_types_are_those_of_the_stored_values(a, b):
    inputs, weights, biases, labels = make(9, 265, 1500, DTYPES[a], DTYPES[b])
    got = bv.linear_cross_entropy(inputs, weights, labels, biases=biases)
    exact = inputs.astype(np.float64) @ weights.astype(np.float64).T + biases.astype(np.float64)
    expected = bv.sparse_softmax_cross_entropy(exact, labels)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12 if "f64" in (a, b) else 5e-6)


def test_num_classes_leaves_padding_out():
    inputs, weights, biases, labels = make(9, 20, 1030)
    labels %= 1000
    expected = bv.linear_cross_entropy(inputs, weights[:1000], labels, biases=biases[:1000])
    weights[1000:], biases[1000:] = np.nan, np.nan
    got = bv.linear_cross_entropy(inputs, weights, labels, biases=biases, num_classes=1000)
    np.testing.assert_array_equal(got, expected)


def test_ignored_rows_may_hold_anything():
    inputs, weights, _, labels = make(9, 20, 130)
    expected = bv.linear_cross_entropy(inputs, weights, labels)
    labels[3], inputs[3] = -100, np.nan
    got = bv.linear_cross_entropy(inputs, weights, labels, ignore_index=-100)
    expected[3] = 0
    np.testing.assert_array_equal(got, expected)
    mean = bv.linear_cross_entropy(inputs, weights, labels, ignore_index=-100, reduction="mean")
    assert mean == math.fsum(expected) / 8
    labels[:] = -100
    assert np.isnan(bv.linear_cross_entropy(inputs, weights, labels, ignore_index=-100, reduction="mean"))
    assert bv.linear_cross_entropy(inputs[:0], weights, labels[:0]).shape == (0,)


def test_arrays_propagate_what_is_not_finite():
    inputs, weights, biases, labels = make(4, 20, 130)
    clean = bv.linear_cross_entropy(inputs, weights, labels, biases=biases)
    inputs[2, 5] = np.nan
    got = bv.linear_cross_entropy(inputs, weights, labels, biases=biases)
    assert np.isnan(got[2])
    np.testing.assert_array_equal(np.delete(got, 2), np.delete(clean, 2))
    biases[:] = -np.inf
    biases[labels[0]] = 0
    assert bv.linear_cross_entropy(inputs[:1], weights, labels[:1], biases=biases) == [0.0]  # all but the label masked
    weights[7, 3] = np.nan
    assert np.isnan(bv.linear_cross_entropy(inputs, weights, labels)).all()


def test_a_layer_from_files_and_in_one_piece(tmp_path):
    inputs, weights, biases, labels = make(6, 33, 2500, np.float16)
    for i, part in enumerate((weights[:1000], weights[1000:1007], weights[1007:])):
        np.save(tmp_path / f"part-{i}.npy", part)
    layer = bv.open_matrix(tmp_path)
    got = bv.linear_cross_entropy(inputs, layer, labels, biases=biases)
    np.testing.assert_array_equal(got, bv.linear_cross_entropy(inputs, weights, labels, biases=biases))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": np.zeros((10, 4), np.float32)}, "inputs: has 3 columns, but weights has 4"),
        (
            {"biases": np.zeros(9, np.float32)},
            r"biases: got shape \(9,\), expected \(10,\), one for each row of weights",
        ),
        ({"labels": [0, 10]}, r"labels: row 1 is 10, expected a class in \[0, 10\)"),
        ({"labels": [0, 8], "num_classes": 8}, r"labels: row 1 is 8, expected a class in \[0, 8\)"),
        ({"labels": [0]}, r"labels: got shape \(1,\), expected \(2,\)"),
        ({"num_classes": 11}, "num_classes: got 11, but weights has 10 classes"),
        ({"num_classes": 0}, "num_classes: got 0"),
        ({"softcap": -1.0}, "softcap: got -1.0"),
        ({"logit_scale": 0}, "logit_scale: got 0"),
        ({"label_smoothing": 1.5}, "label_smoothing: got 1.5"),
        ({"reduction": "max"}, "reduction"),
        ({"inputs": np.zeros(3, np.float32)}, "inputs: expected 2 dimensions"),
    ],
)
def test_bad_values(change, message):
    arguments = {"inputs": np.zeros((2, 3), np.float32), "weights": np.zeros((10, 3), np.float32), "labels": [0, 1]}
    with pytest.raises(bv.BigvocabError, match=message):
        bv.linear_cross_entropy(**{**arguments, **change})


@pytest.mark.parametrize("change", [{"weights": np.zeros((10, 3), int)}, {"labels": [0.5, 1]}, {"num_classes": 2.5}])
def test_wrong_kinds(change):
    arguments = {"inputs": np.zeros((2, 3), np.float32), "weights": np.zeros((10, 3), np.float32), "labels": [0, 1]}
    with pytest.raises(TypeError, match=next(iter(change))):
        bv.linear_cross_entropy(**{**arguments, **change})


# ---- evaluators


@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.1}, {"softcap": 4.0, "logit_scale": 1.5}, {"weighted": True}]
)
def test_the_report_is_that_of_the_logits_written_out(options):
    inputs, weights, biases, labels = make(200, 24, 1700, ml_dtypes.bfloat16)
    options = dict(options)
    if options.pop("weighted", None):
        options |= {"class_weights": np.linspace(0.5, 2, 1700), "label_smoothing": 0.2}
    options |= {"labels": labels, "metrics": EVERY_METRIC}
    got = bv.evaluate(inputs=inputs, weights=weights, biases=biases, **options).to_dict()
    expected = bv.evaluate(logits=written_out(inputs, weights, biases), **options).to_dict()
    assert got.keys() == expected.keys()
    for name in got.keys() - set(RATES):
        if isinstance(got[name], float):
            assert got[name] == pytest.approx(expected[name], rel=1e-6)
        elif name == "worst":
            for mine, theirs in zip(got[name], expected[name], strict=True):
                assert mine == {**theirs, "loss": pytest.approx(theirs["loss"], rel=1e-6)}
        elif not isinstance(got[name], dict):
            assert got[name] == expected[name]
    assert got["accuracy"] == expected["accuracy"]
    assert got["logsumexp"] == pytest.approx(expected["logsumexp"], rel=1e-6)


def ragged(rows, classes, seed=3):
    """Lists of ids, some empty, and a probability for each."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 9, rows)
    ids = np.concatenate([rng.choice(classes, size, replace=False) for size in sizes])
    return np.concatenate([[0], np.cumsum(sizes)]), ids, rng.random(len(ids))


@pytest.mark.parametrize("options", [{}, {"softcap": 4.0, "logit_scale": 1.5}])
@pytest.mark.parametrize("name", ["f32", "f64"])
def test_soft_sparse_labels(options, name):
    inputs, weights, biases, _ = make(700, 24, GROUP + 300, DTYPES[name])
    labels = ragged(700, GROUP + 300)
    options = {**options, "loss": "softmax", "label_smoothing": 0.1, "labels": labels, "metrics": EVERY_METRIC[2:]}
    got = bv.evaluate(inputs=inputs, weights=weights, biases=biases, **options)
    expected = bv.evaluate(logits=written_out(inputs, weights, biases), **options)
    for column in ("mean", "stderr", "entropy"):
        assert got[column] == pytest.approx(expected[column], rel=1e-6 if name == "f32" else 1e-12)
    layer = {"weights": weights, "biases": biases}
    assert values_of(bv.evaluate(inputs=inputs, **layer, **options, threads=1, chunk_rows=77)) == values_of(got)


def dense(rows, classes, dtype, seed=4):
    """Rows of soft labels that do not sum to 1, most of them 0."""
    rng = np.random.default_rng(seed)
    return (rng.random((rows, classes)) * (rng.random((rows, classes)) < 0.1)).astype(dtype)


DENSE_CASES = [
    ({"loss": "softmax"}, "f32", np.float32),
    ({"loss": "softmax", "label_smoothing": 0.1, "softcap": 4.0, "logit_scale": 1.5}, "f32", np.float64),
    ({"loss": "softmax", "num_classes": 1500}, "f64", np.float64),
    ({"loss": "softmax"}, "f64", ml_dtypes.bfloat16),
    ({"loss": "sigmoid", "label_smoothing": 0.1}, "f32", np.float16),
    ({"loss": "sigmoid", "softcap": 4.0, "logit_scale": 1.5, "num_classes": 1500}, "f64", np.float64),
    ({"loss": "weighted-sigmoid", "pos_weight": 3.0}, "f64", np.float32),
    ({"loss": "weighted-sigmoid", "pos_weight": np.linspace(0, 5, GROUP + 300)}, "f32", np.float32),
]


@pytest.mark.parametrize(("options", "name", "label_type"), DENSE_CASES)
def test_a_label_for_each_class(options, name, label_type):
    inputs, weights, biases, _ = make(130, 24, GROUP + 300, DTYPES[name])
    labels = dense(130, options.get("num_classes", GROUP + 300), label_type)
    metrics = {"metrics": EVERY_METRIC[2:]} if options["loss"] == "softmax" else {}
    options, layer = {**options, **metrics, "labels": labels}, {"weights": weights, "biases": biases}
    got = bv.evaluate(inputs=inputs, **layer, **options)
    expected = bv.evaluate(logits=written_out(inputs, weights, biases), **options)
    for column in ("mean", "stderr", *["entropy"] * bool(metrics)):
        assert got[column] == pytest.approx(expected[column], rel=1e-6 if name == "f32" else 1e-12)
    assert values_of(bv.evaluate(inputs=inputs, **layer, **options, threads=1, chunk_rows=37)) == values_of(got)


def test_dense_labels_of_masked_classes_and_ignored_rows():
    inputs, weights, biases, _ = make(4, 24, 2 * GROUP + 10, np.float64)
    biases[: GROUP + 5] = -np.inf  # all of the first group: it has no reference
    biases[GROUP + 5 :] += 3e4
    labels = dense(4, 2 * GROUP + 10, np.float64)
    labels[:, : GROUP + 5] = 0
    labels[3, 7] = 0.5
    inputs[2] = np.nan
    lists = pa.FixedSizeListArray.from_arrays(pa.array(labels.reshape(-1)), labels.shape[1]).to_pylist()
    table = pa.table({"z": pa.array([*lists[:2], None, lists[3]], pa.list_(pa.float64(), labels.shape[1]))})
    found = bv.Evaluator(loss="softmax", weights=weights, biases=biases, nonfinite="keep", label_column="z")
    inputs_column = pa.FixedSizeListArray.from_arrays(pa.array(inputs.reshape(-1)), 24)
    losses = found.update_batch(table.append_column("inputs", inputs_column))["loss"].to_numpy()
    logits = inputs @ weights.T + biases
    for row in (0, 1):
        seen = logits[row, GROUP + 5 :]
        lse = seen.max() + np.log(np.exp(seen - seen.max()).sum())
        exact = math.fsum(labels[row, GROUP + 5 :] * (lse - seen))
        assert losses[row] == pytest.approx(exact, rel=1e-11)
    assert np.isnan(losses[2])
    assert losses[3] == np.inf


def test_faults_of_dense_labels_with_an_output_layer():
    inputs, weights, biases, _ = make(5, 24, GROUP + 300)
    layer, labels = {"inputs": inputs, "weights": weights, "biases": biases}, dense(5, GROUP + 300, np.float32)
    labels[3, GROUP + 2] = np.nan
    for loss in ("softmax", "sigmoid"):
        with pytest.raises(bv.BigvocabError, match=f"labels: row 3, class {GROUP + 2}, is nan, expected a finite"):
            bv.evaluate(**layer, labels=labels, loss=loss)
    with pytest.raises(bv.BigvocabError, match=r"labels: 7 labels per row, expected 16684, one for each class"):
        bv.evaluate(**layer, labels=labels[:, :7], loss="softmax")
    with pytest.raises(bv.BigvocabError, match='"log-loss": takes probabilities'):
        bv.evaluate(**layer, labels=labels, loss="log-loss")


@pytest.mark.parametrize(
    "options", [{}, {"pos_weight": 3.0}, {"softcap": 4.0, "logit_scale": 1.5}, {"num_classes": 900}]
)
def test_multi_label_sigmoid(options):
    inputs, weights, biases, _ = make(100, 24, GROUP + 300)
    biases -= 9
    labels = ragged(100, options.get("num_classes", GROUP + 300))[:2]
    options = {**options, "loss": "sparse-sigmoid", "labels": labels}
    got = bv.evaluate(inputs=inputs, weights=weights, biases=biases, **options)
    expected = bv.evaluate(logits=written_out(inputs, weights, biases), **options)
    assert got["mean"] == pytest.approx(expected["mean"], rel=1e-6)
    layer = {"weights": weights, "biases": biases}
    assert values_of(bv.evaluate(inputs=inputs, **layer, **options, threads=1, chunk_rows=7)) == values_of(got)


def test_null_lists_are_ignored_rows():
    inputs, weights, biases, _ = make(5, 24, 1300)
    lists = pa.array([[1, 5], None, [], [1299], None], pa.list_(pa.int64()))
    shares = pa.array([[0.5, 0.5], None, [], [1.0], None], pa.list_(pa.float64()))
    table = pa.table({"ids": lists, "p": shares})
    inputs[1] = np.nan
    source = {"inputs": inputs, "weights": weights, "biases": biases}
    soft = bv.evaluate(
        **source, labels=bv.read_labels(table, label_column="ids", probability_column="p"), loss="softmax"
    )
    assert (soft["rows"], soft["ignored_rows"]) == (3, 2)
    many = bv.evaluate(**source, labels=bv.read_labels(table, label_column="ids"), loss="sparse-sigmoid")
    assert (many["rows"], many["ignored_rows"]) == (3, 2)
    kept = {**source, "inputs": inputs[[0, 2, 3]]}
    again = bv.evaluate(**kept, labels=([0, 2, 2, 3], [1, 5, 1299], [0.5, 0.5, 1.0]), loss="softmax")
    assert again["mean"] == soft["mean"]
    assert bv.evaluate(**kept, labels=([0, 2, 2, 3], [1, 5, 1299]), loss="sparse-sigmoid")["mean"] == many["mean"]


@pytest.fixture
def files(tmp_path):
    inputs, weights, biases, labels = make(120, 24, GROUP + 700, ml_dtypes.bfloat16)
    save_file({"hidden": inputs}, tmp_path / "hidden.safetensors")
    save_file({"lm_head.weight": weights, "lm_head.bias": biases}, tmp_path / "model.safetensors")
    np.save(tmp_path / "labels.npy", labels)
    model = str(tmp_path / "model.safetensors")
    paths = {"inputs": str(tmp_path / "hidden.safetensors"), "labels": str(tmp_path / "labels.npy")}
    layer = {"weights": f"{model}::lm_head.weight", "biases": f"{model}::lm_head.bias"}
    return {**paths, **layer}, (inputs, weights, biases, labels)


def test_files_arrays_chunks_threads_and_memory_give_the_same_bits(files):
    paths, (inputs, weights, biases, labels) = files
    whole = values_of(bv.evaluate(**paths, metrics=EVERY_METRIC, threads=1))
    for options in ({"chunk_rows": 1}, {"chunk_rows": 50, "threads": 3}, {"max_memory": "1M"}):
        assert values_of(bv.evaluate(**paths, metrics=EVERY_METRIC, **options)) == whole
    arrays = {"inputs": inputs, "weights": weights, "biases": biases, "labels": labels}
    assert values_of(bv.evaluate(**arrays, metrics=EVERY_METRIC)) == whole
    evaluator, other = (bv.Evaluator(weights=weights, biases=biases, metrics=EVERY_METRIC) for _ in range(2))
    first = evaluator.update(inputs[:33], labels[:33])
    rest = other.update(inputs[33:], labels[33:])
    evaluator.merge(other)
    merged = values_of(evaluator.report())
    numbered = [{name: value for name, value in row.items() if name != "row"} for row in whole["worst"]]
    assert merged == {**whole, "worst": numbered}  # rows of batches have no numbers
    expected = bv.linear_cross_entropy(inputs, weights, labels, biases=biases)
    np.testing.assert_array_equal(np.concatenate([first, rest]), expected)


def test_the_layer_in_several_files_is_split_by_classes(files, tmp_path):
    paths, (_, weights, _, _) = files
    parts = []
    for i, part in enumerate(np.split(weights, [5000, 5001])):
        parts.append(str(tmp_path / f"shard-{i}.safetensors"))
        save_file({"w": part}, parts[-1])
    whole = values_of(bv.evaluate(**paths))
    for extra in ({}, {"vocab_shards": True}):
        report = bv.evaluate(**{**paths, "weights": parts}, **extra)
        assert values_of(report) == whole
        assert [entry["path"] for entry in report["inputs"]] == [
            paths["inputs"], *parts, paths["biases"], paths["labels"]
        ]  # fmt: skip


def test_hidden_states_in_several_files(files, tmp_path):
    paths, (inputs, *_) = files
    names = []
    for i, part in enumerate(np.split(inputs, [7, 8, 60])):
        names.append(str(tmp_path / f"hidden-{i}.safetensors"))
        save_file({"hidden": part}, names[-1])
    assert values_of(bv.evaluate(**{**paths, "inputs": names})) == values_of(bv.evaluate(**paths))


def test_bytes_count_every_pass_over_the_layer(files):
    paths, (inputs, weights, _, _) = files
    done = []
    bv.evaluate(**paths, chunk_rows=40, progress=lambda *step: done.append(step))
    assert done[-1] == (120, 120, inputs.nbytes + 3 * weights.nbytes)


def test_batches_of_arrow(files):
    _, (inputs, weights, biases, labels) = files
    wide = inputs.astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(wide.reshape(-1)), wide.shape[1])
    batch = pa.record_batch({"inputs": column, "label": labels})
    evaluator = bv.Evaluator(weights=weights, biases=biases)
    out = evaluator.update_batch(batch)
    assert out.schema.names == ["inputs", "label", "loss"]
    expected = bv.linear_cross_entropy(wide, weights, labels, biases=biases)
    np.testing.assert_array_equal(out["loss"].to_numpy(), expected)
    with pytest.raises(bv.BigvocabError, match="no column 'inputs'"):
        evaluator.update_batch(pa.record_batch({"logits": column, "label": labels}))


def test_the_command(files, tmp_path):
    paths, _ = files
    arguments = [part for name, path in paths.items() for part in (f"--{name}", path)]
    done = CliRunner().invoke(cli, ["eval", *arguments, "--format", "json", "--report", str(tmp_path / "report.json")])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["mean"] == bv.evaluate(**paths)["mean"]
    assert len(json.loads((tmp_path / "report.json").read_text())["inputs"]) == 4
    for wrong in (["--weights", paths["weights"].replace("weight", "wait")], ["--biases", paths["inputs"]]):
        done = CliRunner().invoke(cli, ["eval", *arguments, *wrong])
        assert done.exit_code in (1, 2)
        assert "Traceback" not in done.output
    model = paths["weights"].split("::")[0]
    missing = ["eval", "--inputs", paths["inputs"], "--labels", paths["labels"], "--weights", f"{model}::nope"]
    done = CliRunner().invoke(cli, missing)
    assert done.exit_code == 1
    assert "no tensor 'nope'; there are: 'lm_head.bias', 'lm_head.weight'" in done.stderr


def test_what_is_not_finite_in_files_is_named(files, tmp_path):
    paths, (inputs, weights, biases, labels) = files
    spoiled = weights.copy()
    spoiled[GROUP + 3, 5] = np.nan
    save_file({"a": spoiled, "b": biases}, tmp_path / "bad.safetensors")
    bad = f"{tmp_path}/bad.safetensors::a"
    for nonfinite in ("error", "skip"):
        with pytest.raises(bv.BigvocabError, match=r"bad.safetensors::a.*class 16387 has nan in column 5"):
            bv.evaluate(**{**paths, "weights": bad}, nonfinite=nonfinite)
    assert np.isnan(bv.evaluate(**{**paths, "weights": bad}, nonfinite="keep")["mean"])
    spoiled = biases.copy()
    spoiled[11] = np.inf
    with pytest.raises(bv.BigvocabError, match="biases: class 11 is inf"):
        bv.evaluate(**{**paths, "biases": spoiled})
    spoiled[11] = -np.inf  # a masked class
    labels[labels == 11] = 12
    assert np.isfinite(bv.evaluate(**{**paths, "biases": spoiled, "labels": labels})["mean"])
    states = inputs.copy()
    states[77, 3] = np.nan
    with pytest.raises(bv.BigvocabError, match="inputs: row 77 holds a NaN"):
        bv.evaluate(**{**paths, "inputs": states})
    report = bv.evaluate(**{**paths, "inputs": states}, nonfinite="skip")
    assert (report["rows"], report["nonfinite_rows"]) == (119, 1)
    clean = bv.evaluate(inputs=np.delete(inputs, 77, 0), weights=weights, biases=biases, labels=np.delete(labels, 77))
    assert report["mean"] == pytest.approx(clean["mean"], rel=1e-2)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"weights": None}, bv.BigvocabError, "biases: belongs to an output layer, which needs weights"),
        ({"weights": None, "biases": None}, bv.BigvocabError, "inputs: needs weights, the output layer"),
        ({"logits": np.zeros((2, 2))}, TypeError, "logits: excludes inputs, expected one of them"),
        ({"inputs": None}, TypeError, "logits: expected them, or inputs"),
        (
            {"inputs": None, "logits": np.zeros((2, 2))},
            bv.BigvocabError,
            "weights: belongs to an output layer, which needs inputs",
        ),
        (
            {"inputs": np.zeros((120, 23), np.float32)},
            bv.BigvocabError,
            "inputs: has 23 columns, but .*weight.* has 24",
        ),
        ({"inputs": np.zeros((119, 24), np.float32)}, bv.BigvocabError, "120 rows of labels, but .* 119 rows"),
        ({"biases": np.zeros(3)}, bv.BigvocabError, r"biases: got shape \(3,\), expected \(17084,\)"),
        ({"num_classes": 5}, bv.BigvocabError, r"labels.npy: row 0 is \d+, expected a class in \[0, 5\)"),
        ({"num_classes": 17085}, bv.BigvocabError, "num_classes: got 17085, but .* has 17084 classes"),
        ({"final_norm": "batch"}, bv.BigvocabError, "final_norm: got 'batch', expected one of rms, layer"),
        ({"norm_weight": np.ones(24)}, bv.BigvocabError, "norm_weight: needs final_norm"),
        ({"final_norm": "rms", "norm_bias": np.ones(24)}, bv.BigvocabError, "norm_bias"),
        ({"final_norm": "rms", "norm_weight": np.ones(23)}, bv.BigvocabError, r"norm_weight: got shape \(23,\)"),
        ({"final_norm": "rms", "norm_epsilon": -1.0}, bv.BigvocabError, "norm_epsilon: got -1.0"),
    ],
)
def test_bad_jobs(files, change, kind, message):
    with pytest.raises(kind, match=message):
        bv.evaluate(**{**files[0], **change})


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_final_norms(kind, dtype):
    inputs, weights, biases, labels = make(50, 24, 800, DTYPES[dtype])
    x = inputs.astype(np.float64)
    centred = x - x.mean(1, keepdims=True) if kind == "layer" else x
    weight = np.linspace(0.5, 1.5, 24).astype(np.float32)
    shift = np.linspace(-1, 1, 24).astype(np.float32)
    normed = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5) * weight
    norm = {"final_norm": kind, "norm_weight": weight, "norm_epsilon": 1e-5}
    if kind == "layer":
        normed, norm = normed + shift, norm | {"norm_bias": shift}
    got = bv.evaluate(inputs=inputs, weights=weights, biases=biases, labels=labels, **norm)
    exact = normed @ weights.astype(np.float64).T + biases.astype(np.float64)
    assert got["mean"] == pytest.approx(bv.evaluate(logits=exact, labels=labels)["mean"], rel=1e-6)
    assert got["mean"] != pytest.approx(bv.evaluate(inputs=inputs, weights=weights, labels=labels)["mean"], rel=1e-3)


# ---- the real model


def kjv(rows=None, **options):
    hidden = bv.open_matrix(KJV / "hidden.safetensors")
    model = KJV / "model.safetensors"
    labels = "labels_hidden.parquet" if rows is None else "labels.parquet"
    return bv.evaluate(
        inputs=hidden if rows is None else hidden[:rows], weights=f"{model}::lm_head.weight",
        biases=f"{model}::lm_head.bias", labels=KJV / labels, label_column="label", group_column="book",
        bytes_column="bytes", metrics=EVERY_METRIC, **options,
    )  # fmt: skip


@pytest.mark.parametrize(("rows", "name"), [(None, "hidden"), (269, "hidden_first_rows")])
def test_the_real_model_is_what_pytorch_says(rows, name):
    expected = json.loads((KJV / "expected.json").read_text())[name]
    report = kjv(rows)
    assert report["rows"] == expected["rows"]
    assert report["mean"] == pytest.approx(expected["mean_loss"], abs=1e-6)
    assert report["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-6)
    assert report["accuracy"]["1"] == expected["accuracy"]
    assert report["bits_per_byte"] == pytest.approx(expected["bits_per_byte"], rel=1e-6)
    for book, of_book in expected["books"].items():
        assert report["groups"][book]["mean"] == pytest.approx(of_book["mean_loss"], abs=1e-6)


def test_the_real_layer_gives_the_perplexity_of_its_stored_logits():
    """As far as float16 storage explains.

    A stored logit is x_j + d_j with |d_j| <= D_j = 2^-11 |x_j| + 2^-25 (round to nearest; the second term is that of
    subnormal numbers). logsumexp is convex, so its change lies between S p_j d_j and S p'_j d_j, with the softmax p
    before and p' after: a loss changes by at most the larger of S p_j D_j and S p'_j D_j, + D_y.
    """
    stored = np.load(KJV / "logits.npy")
    hidden = bv.open_matrix(KJV / "hidden.safetensors")[: len(stored)]
    model = str(KJV / "model.safetensors")
    weights, biases = (np.asarray(bv.open_matrix(f"{model}::lm_head.{name}")) for name in ("weight", "bias"))
    labels = bv.read_labels(KJV / "labels.parquet", label_column="label")
    ids = np.concatenate([batch.labels for batch in labels])
    x = hidden.astype(np.float64) @ weights.astype(np.float64).T + biases.astype(np.float64)
    size = 2.0**-11 * np.abs(x) + 2.0**-25
    assert (np.abs(stored - x) <= size).all()

    def expected_size(logits):
        p = np.exp(logits - logits.max(1, keepdims=True))
        return (p * size).sum(1) / p.sum(1)

    spread = np.maximum(expected_size(x), expected_size(stored.astype(np.float64)))
    bound = spread + size[np.arange(len(ids)), ids]
    own = 3e-6  # of float32 products and sums, which the test against PyTorch bounds
    from_layer = bv.linear_cross_entropy(hidden, weights, ids, biases=biases)
    from_stored = bv.sparse_softmax_cross_entropy(stored, ids)
    assert (np.abs(from_layer - from_stored) <= bound + own).all()
    report = bv.evaluate(logits=KJV / "logits.npy", labels=KJV / "labels.parquet", label_column="label")
    difference = abs(kjv(269)["mean"] - report["mean"])
    assert difference <= bound.mean()
    assert difference < 2e-4  # it is 0.98e-4 nats, 0.01% of the perplexity; the bound is 7.8e-3


def test_blocks_of_a_head_are_seconds_of_work():
    """Progress and checkpoints come between blocks; sampled losses do not multiply with the whole layer."""
    from bigvocab.evaluation.scoring import Scorer
    from bigvocab.evaluation.specification import specify
    from bigvocab.jobs.blocks import block_rows

    layer, inputs = np.zeros((1 << 18, 64), np.float16), np.zeros((2, 64), np.float16)

    def rows(**options):
        scorer = Scorer(specify(weights=layer, **options))
        return block_rows(scorer.specification, scorer.source(inputs), inputs[0].nbytes)

    for options, expected in (({}, 59_520), ({"loss": "sampled-softmax", "num_sampled": 5}, 4_194_304)):
        assert rows(**options) == expected
        assert rows(**options, max_memory="1M") == 3072
        assert rows(**options, chunk_rows=77) == 77
    assert rows(loss="nce", num_sampled=5, exact=True) == 59_520
