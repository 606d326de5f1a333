"""Every loss of the family as an array function: against the oracle, in all types and layouts, at the edges, and with
bad input."""

import inspect
import math
import re
from fractions import Fraction

import ml_dtypes
import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machine_code import Loop, assembly

import bigvocab as bv
from bigvocab.kernels import sigmoid, soft_labels
from bigvocab.losses.softmax import LOSSES

RNG = np.random.default_rng(11)
TYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
REDUCTIONS = ["none", "sum", "mean", "sum_over_batch_size", "sum_by_nonzero_weights"]
BLOCK = 2048
NAMES = {name: function.__name__ for name, function in LOSSES.items()}


def logits_of(name, rows, classes, dtype=np.float32, loc=0.0, scale=3.0):
    """Logits, or probabilities for log loss, as stored in `dtype`."""
    values = RNG.standard_normal((rows, classes)) * scale + loc
    return (1 / (1 + np.exp(-values)) if name == "log-loss" else values).astype(dtype)


def labels_of(name, rows, classes):
    """Labels as the loss takes them."""
    if name == "sparse-softmax":
        return RNG.integers(0, classes, rows)
    if name == "softmax":
        values = RNG.random((rows, classes)).astype(np.float32)
        return values / values.sum(1, keepdims=True)
    if name == "sparse-sigmoid":
        ids = [RNG.choice(classes, min(classes, int(size)), replace=False) for size in RNG.integers(0, 9, rows)]
        return np.cumsum([0, *map(len, ids)]), np.concatenate([*ids, np.zeros(0, np.int64)]).astype(np.int64)
    return (RNG.random((rows, classes)) < 0.3).astype(np.float32)


def options_of(name):
    return {"weighted-sigmoid": {"pos_weight": 2.5}}.get(name, {})


def elementwise(name):
    return name in ("sigmoid", "weighted-sigmoid", "log-loss")


def oracle(name, first, labels, **options):
    argument = "predictions" if name == "log-loss" else "logits"
    return naive.call(NAMES[name], **{argument: first}, labels=labels, **options)


@pytest.mark.parametrize("classes", [1, 2, 15, 16, 17, 31, 33, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 257])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_those_of_the_oracle(name, classes):
    x, y = logits_of(name, 5, classes), labels_of(name, 5, classes)
    expected = oracle(name, x, y, **options_of(name))
    tolerance = 1e-12 if elementwise(name) else 5e-7
    np.testing.assert_allclose(LOSSES[name](x, y, **options_of(name)), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_has_the_loss_of_the_stored_values(name, dtype):
    x, y = logits_of(name, 4, 3001, dtype), labels_of(name, 4, 3001)
    got = LOSSES[name](x, y, **options_of(name))
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, oracle(name, x.astype(np.float64), y, **options_of(name)), rtol=5e-7, atol=1e-6)
    if dtype == np.float64:
        np.testing.assert_allclose(got, oracle(name, x, y, **options_of(name)), rtol=1e-12, atol=1e-12)


def layouts(x):
    yield "C", np.ascontiguousarray(x)
    yield "Fortran", np.asfortranarray(x)
    wide = np.zeros((2 * len(x), x.shape[1] + 7), x.dtype)
    wide[::2, 3:-4] = x
    yield "strided", wide[::2, 3:-4]
    apart = np.zeros((len(x), 2 * x.shape[1]), x.dtype)
    apart[:, ::2] = x
    yield "columns apart", apart[:, ::2]
    yield "reversed", np.ascontiguousarray(x[::-1])[::-1]
    if x.dtype.kind == "f":
        yield "other byte order", x.astype(x.dtype.newbyteorder())
    locked = x.copy()
    locked.flags.writeable = False
    yield "read-only", locked
    yield "a view at an odd address", np.frombuffer(b"x" + x.tobytes(), np.uint8)[1:].view(x.dtype).reshape(x.shape)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", LOSSES)
def test_layouts_change_no_bit(name, dtype):
    x, y = logits_of(name, 6, 5003, dtype), labels_of(name, 6, 5003)
    plain = LOSSES[name](x, y, **options_of(name))
    for layout, view in layouts(x):
        np.testing.assert_array_equal(LOSSES[name](view, y, **options_of(name)), plain, err_msg=layout)
    if isinstance(y, np.ndarray) and y.ndim == 2:
        for layout, view in layouts(y):
            np.testing.assert_array_equal(LOSSES[name](x, view, **options_of(name)), plain, err_msg=f"labels: {layout}")


@pytest.mark.parametrize("name", LOSSES)
def test_threads_and_neighbours_change_no_bit(name):
    x, y = logits_of(name, 40, 4099), labels_of(name, 40, 4099)
    plain = LOSSES[name](x, y, **options_of(name))
    if "num_threads" in inspect.signature(LOSSES[name]).parameters:
        for threads in (1, 2, 3):
            for view in (x, np.asfortranarray(x)):
                np.testing.assert_array_equal(LOSSES[name](view, y, **options_of(name), num_threads=threads), plain)
    alone = [(y[0][:2] - y[0][0], y[1][: y[0][1]])] if isinstance(y, tuple) else [y[:1]]
    np.testing.assert_array_equal(LOSSES[name](x[:1], alone[0], **options_of(name)), plain[:1])


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_reductions_and_weights(name, reduction):
    x, y = logits_of(name, 7, 33), labels_of(name, 7, 33)
    shapes = [(), (1, 1), (7, 1), (1, 33), (7, 33)] if elementwise(name) else [(), (1,), (7,)]
    for shape in shapes:
        weights = RNG.choice([0.0, 0.5, 2.0, -1.0], shape) if shape else 0.5
        options = {"weights": weights, "reduction": reduction, **options_of(name)}
        got = LOSSES[name](x, y, **options)
        np.testing.assert_allclose(got, oracle(name, x, y, **options), rtol=2e-6, atol=1e-6, err_msg=str(shape))
        assert np.shape(got) == (() if reduction != "none" else (7, 33) if elementwise(name) else (7,))
    nothing = LOSSES[name](x, y, weights=0.0, reduction=reduction, **options_of(name))
    expected = {"none": 0.0, "sum": 0.0, "sum_over_batch_size": 0.0}.get(reduction, np.nan)
    np.testing.assert_array_equal(nothing, np.full(np.shape(nothing), expected))


@pytest.mark.parametrize("kind", range(12))
def test_condensing_changes_no_sum(kind):
    """Exact sums of many numbers begin by condensing them: to the bit the sum that adds one at a time."""
    from bigvocab.losses.exact_sums import ExactSums
    from bigvocab.losses.sigmoid import add_all

    for size in (1, 15, 4096, 4097, 20_000):
        x = np.random.default_rng(size + kind).standard_normal(size)
        if kind % 2:
            x = np.full(size, 1 - 2.0**-53)  # all bits set, of one sign: sums of upper parts need all their room
        if kind in (2, 3):
            x *= 2.0 ** RNG.integers(-150, 1, size)
        x *= {4: 1e290, 5: 1e-290, 6: 0.0, 7: 1e15}.get(kind, 1.0)
        x[size // 2] = {8: np.inf, 9: 1e-300, 10: np.nan, 11: 5e-324}.get(kind, x[size // 2])
        plain, condensed = ExactSums(), ExactSums()
        plain.add(x)
        add_all(condensed, x)
        np.testing.assert_equal(condensed.exact(), plain.exact())


@pytest.mark.parametrize("name", ["sigmoid", "weighted-sigmoid", "log-loss"])
def test_reduced_losses_are_exact_sums_of_the_elements(name):
    x, y = logits_of(name, 70, 5000, scale=20.0), labels_of(name, 70, 5000)
    elements = LOSSES[name](x, y, **options_of(name))
    assert LOSSES[name](x, y, reduction="sum", **options_of(name)) == math.fsum(elements.ravel())
    mean = Fraction(0) + sum(map(Fraction, elements.ravel().tolist())) / elements.size
    assert LOSSES[name](x, y, reduction="mean", **options_of(name)) == float(mean)


@pytest.mark.parametrize("name", ["weighted-sigmoid", "sparse-sigmoid"])
def test_a_pos_weight_for_each_class_in_every_layout(name):
    x, y = logits_of(name, 3, 20_011), labels_of(name, 3, 20_011)
    q = RNG.random(20_011) + 0.5
    expected = oracle(name, x, y, pos_weight=q)
    for layout, view in layouts(x):
        np.testing.assert_allclose(LOSSES[name](view, y, pos_weight=q), expected, rtol=5e-7, err_msg=layout)
    classes = 40_011
    q = RNG.random(classes) + 0.5
    many = np.zeros((64, classes), np.float32, order="F")  # read in parts of 32,768 columns
    some = np.ones((64, classes), np.float32) if name != "sparse-sigmoid" else np.full((64, 1), classes - 1)
    got = LOSSES[name](many, some, pos_weight=q, num_threads=1)
    each = np.broadcast_to(q * np.log(2), (64, classes))
    expected = each if name != "sparse-sigmoid" else np.full(64, (classes - 1 + q[-1]) * np.log(2))
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_row_of_weight_zero_may_hold_anything(name):
    x, y = logits_of(name, 3, 20), labels_of(name, 3, 20)
    x[1] = np.nan
    weights = np.array([1.0, 0.0, 2.0])[:, None] if elementwise(name) else np.array([1.0, 0.0, 2.0])
    for reduction in REDUCTIONS:
        assert np.isfinite(LOSSES[name](x, y, weights=weights, reduction=reduction, **options_of(name))).all()


@pytest.mark.parametrize("name", LOSSES)
def test_empty_batches(name):
    x = np.zeros((0, 5), np.float32)
    y = np.zeros((0, 5)) if elementwise(name) or name == "softmax" else np.zeros(0, int)
    y = (np.zeros(1, int), np.zeros(0, int)) if name == "sparse-sigmoid" else y
    assert LOSSES[name](x, y, **options_of(name)).shape == ((0, 5) if elementwise(name) else (0,))
    assert LOSSES[name](x, y, reduction="sum", **options_of(name)) == 0.0
    assert np.isnan(LOSSES[name](x, y, reduction="mean", **options_of(name)))


@pytest.mark.parametrize("name", ["sparse-softmax", "softmax", "sigmoid"])
@pytest.mark.parametrize("smoothing", [0.1, 0.5, 1.0])
def test_label_smoothing(name, smoothing):
    x, y = logits_of(name, 4, 600), labels_of(name, 4, 600)
    got = LOSSES[name](x, y, label_smoothing=smoothing)
    np.testing.assert_allclose(got, oracle(name, x, y, label_smoothing=smoothing), rtol=5e-7, atol=5e-7)


def test_table_of_losses():
    assert list(LOSSES)[:6] == [
        "sparse-softmax",
        "softmax",
        "sigmoid",
        "weighted-sigmoid",
        "sparse-sigmoid",
        "log-loss",
    ]
    from bigvocab.catalogue import LOSSES as of_the_command
    from bigvocab.evaluation.row_losses import ROW_LOSSES

    sampled = {"sampled-softmax", "nce"}  # they take an output layer, not logits
    assert set(of_the_command) - sampled <= set(LOSSES)
    assert set(LOSSES) <= set(ROW_LOSSES)
    for name, function in LOSSES.items():
        assert function is getattr(bv, NAMES[name])


@pytest.mark.parametrize("name", LOSSES)
def test_docstrings_say_it_all(name):
    text = LOSSES[name].__doc__
    for part in ("Args:", "Returns:", "Raises:", "Source:", ">>>"):
        assert part in text, part


# ---- worked numbers (formula and arithmetic in the field's handbooks)


def test_worked_numbers():
    logits = np.array([[1, 1, 1, 1], [1, 2, 3, 4]], np.float32)
    soft = [[0, 0, 0, 1], [0, 0.5, 0.5, 0]]
    np.testing.assert_allclose(bv.softmax_cross_entropy(logits, soft), [1.3862944, 1.9401897], atol=1e-7)
    np.testing.assert_allclose(bv.softmax_cross_entropy([[1.0, 2, 3]], [[1, 1, 0]]), [3.815212], atol=1e-6)
    x, z = np.array([[1, -1, 0, 1, -1, 0, 0.0]]), [[0, 0, 0, 1, 1, 1, 0.5]]
    expected = [[1.3132617, 0.3132617, 0.6931472, 0.3132617, 1.3132617, 0.6931472, 0.6931472]]
    np.testing.assert_allclose(bv.sigmoid_cross_entropy(x, z), expected, atol=1e-7)
    weighted = bv.weighted_sigmoid_cross_entropy([[1.5, -0.1, -10.0]], [[1, 0.5, 0]], pos_weight=1.5)
    np.testing.assert_allclose(weighted, [[0.30211994, 0.88049585, 4.5398e-05]], atol=1e-8)
    assert bv.log_loss([[0.0]], [[1]])[0, 0] == pytest.approx(16.118095, abs=1e-6)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_million_equal_logits(dtype):
    classes = 1_000_000
    zeros = np.zeros((1, classes), dtype)
    uniform = np.full((1, classes), 1 / classes)
    assert bv.softmax_cross_entropy(zeros, uniform)[0] == pytest.approx(13.815510558, abs=1e-9)
    for value in (-15.0, -14.875, -8.0, 0.0, 0.125, 20.0, -80.0):
        x = np.full((1, classes), value, dtype)
        exact = classes * naive.softplus(float(x[0, 0]))
        got = bv.sparse_sigmoid_cross_entropy(x, ([0, 0], []))[0]
        assert got == pytest.approx(exact, rel=1e-6 if dtype != np.float64 else 1e-12), value
        summed = bv.sigmoid_cross_entropy(x, np.zeros((1, classes), np.float32), reduction="sum")
        assert summed == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("value", [-15.0, -40.0, -80.0, -86.5])
def test_far_negative_logits_keep_their_relative_precision(value):
    """exp(x) of float32 lanes: x / ln 2 rounded to float32 would be off by 1e-6 of the loss here."""
    x = np.full((1, 70_000), value, np.float32)
    exact = 70_000 * naive.softplus(value)
    assert bv.sparse_sigmoid_cross_entropy(x, ([0, 0], []))[0] == pytest.approx(exact, rel=5e-7, abs=0)
    wide = bv.sparse_sigmoid_cross_entropy(x.astype(np.float64) * 8, ([0, 0], []))[0]
    assert wide == pytest.approx(70_000 * naive.softplus(8 * value), rel=1e-13, abs=0)


def test_rare_positives_of_a_million_classes():
    x = (RNG.standard_normal((2, 1_000_000)) * 0.3 - 15).astype(np.float32)
    wide = x.astype(np.float64)
    exact = (np.maximum(wide, 0) + np.log1p(np.exp(-np.abs(wide)))).sum(1)
    ids = np.array([[0, 999_999, 31, 2048], [5, 6, 7, 500_000]])
    exact -= np.take_along_axis(wide, ids, 1).sum(1)
    np.testing.assert_allclose(bv.sparse_sigmoid_cross_entropy(x, ids), exact, rtol=1e-7)
    none = bv.sparse_sigmoid_cross_entropy(x, ([0, 0, 0], []))
    np.testing.assert_allclose(none, np.log1p(np.exp(wide)).sum(1), rtol=1e-6)


# ---- edges


def test_sigmoid_and_softmax_agree_on_two_classes():
    """log(1 + e^-x) both ways: a sigmoid is a softmax of [x, 0]."""
    x = np.linspace(-30, 30, 61)[:, None]
    pair = np.concatenate([x, np.zeros_like(x)], 1)
    ones = np.ones_like(x)
    expected = bv.sparse_softmax_cross_entropy(pair, np.zeros(61, int))
    np.testing.assert_allclose(bv.sigmoid_cross_entropy(x, ones)[:, 0], expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(
        bv.sparse_sigmoid_cross_entropy(x, np.zeros((61, 1), int)), expected, rtol=1e-12, atol=1e-14
    )
    np.testing.assert_allclose(
        bv.softmax_cross_entropy(pair, np.tile([1, 0], (61, 1))), expected, rtol=1e-12, atol=1e-14
    )
    p = 1 / (1 + np.exp(-x))
    np.testing.assert_allclose(bv.log_loss(p, ones, epsilon=0.0)[:, 0], expected, rtol=1e-9, atol=1e-14)


def test_losses_of_one_family_agree():
    x, y = logits_of("softmax", 9, 400), RNG.integers(0, 400, 9)
    hot = np.eye(400)[y]
    np.testing.assert_allclose(bv.softmax_cross_entropy(x, hot), bv.sparse_softmax_cross_entropy(x, y), rtol=1e-12)
    dense = bv.weighted_sigmoid_cross_entropy(x, hot, pos_weight=3.0).sum(1)
    np.testing.assert_allclose(bv.sparse_sigmoid_cross_entropy(x, y[:, None], pos_weight=3.0), dense, rtol=5e-7)
    per_class = RNG.random(400) + 0.5
    dense = bv.weighted_sigmoid_cross_entropy(x, hot, pos_weight=per_class).sum(1)
    np.testing.assert_allclose(bv.sparse_sigmoid_cross_entropy(x, y[:, None], pos_weight=per_class), dense, rtol=5e-7)
    np.testing.assert_array_equal(
        bv.weighted_sigmoid_cross_entropy(x, hot, pos_weight=1), bv.sigmoid_cross_entropy(x, hot)
    )


@pytest.mark.parametrize("dtype", TYPES)
def test_infinite_logits_take_their_limits(dtype):
    inf = np.inf
    x = np.array([[inf, inf, inf, -inf, -inf, -inf, 0]], dtype)
    z = np.array([[1, 0, 0.5, 0, 1, 0.5, 0]])
    expected = [[0, inf, inf, 0, inf, inf, np.log(2)]]
    np.testing.assert_allclose(bv.sigmoid_cross_entropy(x, z), expected)
    np.testing.assert_allclose(bv.weighted_sigmoid_cross_entropy(x, z, pos_weight=2.0), expected)
    rows = np.array([[-inf] * 40, [inf] + [-inf] * 39, [0.0] + [-inf] * 39], dtype)
    np.testing.assert_allclose(bv.sparse_sigmoid_cross_entropy(rows, ([0] * 4, [])), [0, inf, np.log(2)], atol=0)
    np.testing.assert_allclose(bv.sparse_sigmoid_cross_entropy(rows, [[0]] * 3), [inf, 0, np.log(2)])
    million = np.full((1, 1_000_000), -inf, dtype)
    assert bv.sparse_sigmoid_cross_entropy(million, ([0, 0], []))[0] == 0.0


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "sparse-softmax"])
def test_nan_stays_in_its_row(name):
    x, y = logits_of(name, 3, 5000), labels_of(name, 3, 5000)
    clean = LOSSES[name](x, y, **options_of(name))
    for place in (0, 17, 2047, 4999):
        broken = x.copy()
        broken[1, place] = np.nan
        got = LOSSES[name](broken, y, **options_of(name))
        where = np.zeros(got.shape, bool)
        where[(1, place) if elementwise(name) else 1] = True
        np.testing.assert_array_equal(np.isnan(got), where)
        np.testing.assert_array_equal(got[~where], clean[~where])


def test_soft_labels_at_infinity():
    """0 * -inf is 0; +inf where the label is gives NaN, elsewhere inf; a row without a finite logit gives NaN."""
    inf = np.inf
    cases = [
        ([1.0, -inf, 0.0], [1, 0, 0], np.log1p(np.exp(-1))),
        ([1.0, -inf, 0.0], [0.5, 0.5, 0], inf),
        ([1.0, inf, 0.0], [1, 0, 0], inf),
        ([1.0, inf, 0.0], [0.5, 0.5, 0], np.nan),
        ([-inf, -inf, -inf], [1, 0, 0], np.nan),
        ([1.0, np.nan, 0.0], [0, 0, 0], np.nan),
        ([1.0, 5.0, 0.0], [0, 0, 0], 0.0),
        ([1.0, inf, 0.0], [0, 0, 0], 0.0),
    ]
    for dtype in (np.float32, np.float64, np.float16):
        for width in (0, 50, 3000, 70_000):  # the same with many masked classes in front
            x = np.array([[-inf] * width + row for row, _, _ in cases], dtype)
            z = np.array([[0] * width + row for _, row, _ in cases], np.float32)
            np.testing.assert_allclose(
                bv.softmax_cross_entropy(x, z), [e for *_, e in cases], rtol=1e-6, err_msg=str(width)
            )


def test_large_soft_logits_do_not_cancel():
    x = np.array([[3e38, -3e38, 0.0], [1e6 + 1, 1e6, 1e6 - 1], [-1e5, -1e5 - 2, -1e5]], np.float32)
    z = np.array([[0, 1, 0], [0.2, 0.3, 0.5], [0.25, 0.25, 0.5]], np.float32)
    expected = naive.softmax_cross_entropy(x, z)
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(bv.softmax_cross_entropy(x, z), expected, rtol=1e-7)
    late = np.full((1, 100_000), -1e4, np.float32)
    late[0, 90_000] = 1e4
    hot = np.zeros((1, 100_000), np.float32)
    hot[0, 90_000] = 1
    assert bv.softmax_cross_entropy(late, hot)[0] == pytest.approx(0.0, abs=1e-9)


def test_large_positive_logits_do_not_cancel():
    x = np.full((3, 5000), -3.0, np.float32)
    x[:, 77] = [1e30, 3e38, np.inf]
    expected = 4999 * naive.softplus(-3.0)
    np.testing.assert_allclose(bv.sparse_sigmoid_cross_entropy(x, [[77]] * 3), [expected] * 3, rtol=1e-6)


def test_labels_of_every_type():
    x = logits_of("sigmoid", 4, 50)
    z = RNG.random((4, 50)) < 0.5
    for name in ("softmax", "sigmoid", "weighted-sigmoid"):
        plain = LOSSES[name](x, z.astype(np.float64), **options_of(name))
        for dtype in (bool, np.uint8, np.int64, *TYPES):
            np.testing.assert_array_equal(LOSSES[name](x, z.astype(dtype), **options_of(name)), plain)
    halves = (RNG.random((4, 50)) * 2).astype(np.float16)
    np.testing.assert_allclose(bv.softmax_cross_entropy(x, halves), naive.softmax_cross_entropy(x, halves), rtol=1e-6)


def test_log_loss_takes_any_shape():
    p, z = RNG.random((3, 4, 5)), RNG.random((3, 4, 5)) < 0.5
    np.testing.assert_allclose(bv.log_loss(p, z), naive.log_loss(p, z), rtol=1e-12)
    np.testing.assert_allclose(bv.log_loss(p[0, 0], z[0, 0]), naive.log_loss(p[0, 0], z[0, 0]), rtol=1e-12)
    assert bv.log_loss(0.25, 1) == pytest.approx(-np.log(0.25 + 1e-7))
    edges = np.array([0.0, 1.0, 5e-324, 1 - 2**-53, np.nan])
    for epsilon in (0.0, 1e-300, 1e-7, 1.0):
        for label in (0.0, 1.0, 0.5):
            z = np.full(5, label)
            np.testing.assert_allclose(
                bv.log_loss(edges, z, epsilon=epsilon), naive.log_loss(edges, z, epsilon), rtol=1e-13, atol=1e-15
            )


def test_sets_in_any_order_and_form():
    x = logits_of("sparse-sigmoid", 3, 100)
    ids = np.array([[5, 99, 0], [7, 8, 9], [50, 20, 30]])
    plain = bv.sparse_sigmoid_cross_entropy(x, ids)
    np.testing.assert_array_equal(bv.sparse_sigmoid_cross_entropy(x, ids[:, ::-1].astype(np.uint8)), plain)
    np.testing.assert_array_equal(bv.sparse_sigmoid_cross_entropy(x, ([0, 3, 6, 9], ids.ravel())), plain)
    np.testing.assert_allclose(
        bv.sparse_sigmoid_cross_entropy(x, np.zeros((3, 0), int)), naive.sparse_sigmoid_cross_entropy(x, [[]] * 3)
    )
    every = np.tile(np.arange(100), (3, 1))
    np.testing.assert_allclose(
        bv.sparse_sigmoid_cross_entropy(x, every), naive.sparse_sigmoid_cross_entropy(x, every), rtol=1e-6
    )


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_sparse_sigmoid_of_any_sets(data):
    classes = data.draw(st.sampled_from([1, 7, 32, 255, 256, 257, 2049]))
    sets = [data.draw(st.sets(st.integers(0, classes - 1), max_size=12)) for _ in range(3)]
    loc = data.draw(st.sampled_from([-15.0, 0.0, 40.0]))
    x = (np.random.default_rng(len(sets[0])).standard_normal((3, classes)) + loc).astype(np.float32)
    offsets, ids = np.cumsum([0, *map(len, sets)]), np.array([i for s in sets for i in s], np.int64)
    got = bv.sparse_sigmoid_cross_entropy(x, (offsets, ids), pos_weight=0.5)
    np.testing.assert_allclose(got, naive.sparse_sigmoid_cross_entropy(x, [list(s) for s in sets], 0.5), rtol=1e-6)


# ---- bad input

X = np.zeros((3, 4), np.float32)
Z = np.zeros((3, 4), np.float32)


def changed(array, place, value):
    copy = array.copy()
    copy[place] = value
    return copy


BAD = [
    ("softmax", (X, Z[:, :3]), {}, r"labels: got shape \(3, 3\), expected \(3, 4\)"),
    ("softmax", (X, np.array([1, 2, 3])), {}, "sparse_softmax_cross_entropy"),
    ("softmax", (X, changed(Z, (2, 1), np.nan)), {}, "labels: row 2, class 1, is nan"),
    ("softmax", (X, changed(Z, (1, 3), np.inf)), {}, "labels: row 1, class 3, is inf"),
    ("softmax", (X, Z), {"label_smoothing": 1.5}, "label_smoothing: got 1.5"),
    ("softmax", (X, Z), {"label_smoothing": -0.1}, "label_smoothing: got -0.1"),
    ("softmax", (X, Z), {"weights": np.ones((3, 1))}, r"weights: got shape \(3, 1\)"),
    ("softmax", (X, Z), {"reduction": "average"}, "reduction: got 'average'"),
    ("softmax", (X[0], Z[0]), {}, "logits: expected 2 dimensions"),
    ("sigmoid", (X, np.array([1, 2, 3])), {}, "sparse_sigmoid_cross_entropy"),
    ("sigmoid", (X, changed(Z, (2, 3), np.nan)), {}, "labels: row 2, class 3, is nan"),
    ("sigmoid", (X, Z), {"weights": np.ones(3)}, r"a weight per example is \(3, 1\)"),
    ("sigmoid", (X, Z), {"label_smoothing": np.nan}, "label_smoothing: got nan"),
    ("weighted-sigmoid", (X, Z), {"pos_weight": np.ones(3)}, r"pos_weight: got shape \(3,\), expected \(4,\)"),
    ("weighted-sigmoid", (X, Z), {"pos_weight": np.inf}, "pos_weight: got inf"),
    ("weighted-sigmoid", (X, Z), {"pos_weight": [1, 2, np.nan, 4]}, "pos_weight: class 2 is nan"),
    ("sparse-sigmoid", (X, [[0], [4], [1]]), {}, r"labels: row 1 has the id 4, expected classes in \[0, 4\)"),
    ("sparse-sigmoid", (X, [[0], [1], [-1]]), {}, "labels: row 2 has the id -1"),
    ("sparse-sigmoid", (X, [[0, 1], [3, 3], [1, 2]]), {}, "labels: row 1 has the id 3 twice"),
    ("sparse-sigmoid", (X, ([0, 1, 3, 6], [0, 1, 2, 3, 0, 3])), {}, "labels: row 2 has the id 3 twice"),
    ("sparse-sigmoid", (X, [0, 1, 2]), {}, r"one id per row is \(N, 1\)"),
    ("sparse-sigmoid", (X, [[0], [1]]), {}, r"got shape \(2, 1\), expected \(3, T\)"),
    ("sparse-sigmoid", (X, ([0, 1, 2], [0, 1])), {}, "got 3 offsets, expected 4"),
    ("sparse-sigmoid", (X, ([0, 2, 1, 3], [0, 1, 2])), {}, "row 1: its ids run from 2 to 1 of 3"),
    ("sparse-sigmoid", (X, ([0, 1, 2, 9], [0, 1, 2])), {}, "row 2: its ids run from 2 to 9 of 3"),
    ("sparse-sigmoid", (X, ([1, 1, 2, 3], [0, 1, 2])), {}, "the first offset is 1"),
    ("sparse-sigmoid", (X, ([0, 1, 1, 2], [0, 1, 2])), {}, "the last offset is 2, expected 3"),
    ("sparse-sigmoid", (X, ([0, 1, 2, 3], [[0, 1, 2]])), {}, "one dimension"),
    ("sparse-sigmoid", (X, ([0], [1], [2])), {}, "a tuple of 3"),
    (
        "log-loss",
        (changed(X, (1, 2), 1.5), Z),
        {},
        r"predictions: row 1, class 2, is 1.5, expected a probability in \[0, 1\]",
    ),
    ("log-loss", (changed(X, (2, 0), -1e-6), Z), {}, "predictions: row 2, class 0, is -9.99999"),
    ("log-loss", (X, changed(Z, (0, 3), np.nan)), {}, "labels: row 0, class 3, is nan"),
    ("log-loss", (X, Z[:2]), {}, "labels: got shape"),
    ("log-loss", (X, Z), {"epsilon": -1e-9}, "epsilon: got -1e-09"),
    ("log-loss", (X, Z), {"epsilon": 1.5}, "epsilon: got 1.5"),
]


@pytest.mark.parametrize(
    ("name", "arguments", "options", "message"), BAD, ids=[f"{b[0]}-{i}" for i, b in enumerate(BAD)]
)
def test_bad_values_are_named(name, arguments, options, message):
    with pytest.raises(bv.BigvocabError, match=message):
        LOSSES[name](*arguments, **{**options_of(name), **options})


def test_the_first_of_many_bad_rows_is_named():
    x, z = np.full((3000, 300), 0.5, np.float32), np.zeros((3000, 300), np.float32)
    x[[1007, 1501, 2999], 3] = 2.0
    with pytest.raises(bv.BigvocabError, match="predictions: row 1007, class 3, is 2.0"):
        bv.log_loss(x, z)
    with pytest.raises(bv.BigvocabError, match="predictions: row 1007, class 3, is 2.0"):
        bv.log_loss(x, z, reduction="mean")


@pytest.mark.parametrize("name", LOSSES)
def test_wrong_kinds_are_type_errors(name):
    x, y = logits_of(name, 3, 4), labels_of(name, 3, 4)
    with pytest.raises(TypeError, match="expected one of float16"):
        LOSSES[name](np.zeros((3, 4), int), y, **options_of(name))
    with pytest.raises(TypeError, match="labels"):
        LOSSES[name](x, np.array([["a"] * 4] * 3), **options_of(name))
    with pytest.raises(TypeError):
        LOSSES[name](x, y, None)
    if name == "sparse-sigmoid":
        with pytest.raises(TypeError, match="labels: ids: expected integers, got float64"):
            LOSSES[name](x, ([0, 1, 2, 3], [0.0, 1.0, 2.0]))


# ---- the machine code

KERNELS = {
    "sparse-sigmoid": (sigmoid, "rows_softplus"),
    "sigmoid": (sigmoid, "rows_sigmoid"),
    "log-loss": (sigmoid, "rows_log_loss"),
    "softmax": (soft_labels, "rows_soft_labels"),
}
LOOPS = [(name, "float32") for name in ("sparse-sigmoid", "sigmoid", "log-loss", "softmax")]
LOOPS += [("sparse-sigmoid", dtype) for dtype in ("float64", "float16", "bfloat16")]


@pytest.mark.parametrize(("name", "dtype"), LOOPS)
def test_the_hot_loops_are_vectorised(name, dtype):
    """Fused multiply-adds on whole registers, no gathers, and no scalar exp or log but log1p once a block."""
    x = np.zeros((1, 300), ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    labels = [[1]] if name == "sparse-sigmoid" else np.zeros((1, 300), np.float32)
    loop = Loop(assembly(*KERNELS[name], lambda: LOSSES[name](x, labels)))
    assert len(loop.packed) >= 20
    assert not loop.gathers
    assert len(loop.scalar) < len(loop.packed) / 3
    if name in ("sigmoid", "log-loss"):
        assert not re.search(r"\b(exp|log|log1p)\b", loop.named)
