"""Divergences of arrays: every pair of types, every edge of a block, masks, distances from 1e-9 to infinity."""

import platform

import machine_code
import ml_dtypes
import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machine_code import Loop, assembly

from bigvocab.comparison import tile_pairs
from bigvocab.comparison.divergence import js_divergence, kl_divergence, total_variation
from bigvocab.comparison.pairs import Asked, Transform
from bigvocab.comparison.tile_pairs import compare_tiles
from bigvocab.errors import BigvocabError
from bigvocab.kernels import divergence as kernels
from bigvocab.kernels.row_statistics import COLUMNS, NO_LABEL

DTYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
HALF = ml_dtypes.bfloat16
PAIRS = [(d, d) for d in DTYPES] + [(np.float32, HALF), (HALF, np.float16), (np.float64, np.float32)]
names = {"ids": lambda d: np.dtype(d).name}
EDGES = (1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 8191, 8192, 8193, 10007)


def pair(rows, classes, dtypes, distance=0.1, shift=0.0, seed=0):
    rng = np.random.default_rng(seed + classes)
    x = rng.standard_normal((rows, classes)) * 3
    x = x.astype(dtypes[0])
    y = (x.astype(np.float64) + shift + distance * rng.standard_normal((rows, classes))).astype(dtypes[-1])
    return x, y


def compare(x, y, *, spread=True, tops=True, labels=None, **options):
    tiles = y if isinstance(y, list) else [(0, y)]
    mine = x if isinstance(x, list) else [(0, x)]
    labels = np.full(len(mine[0][1]), NO_LABEL) if labels is None else np.asarray(labels)
    classes = sum(tile.shape[1] for _, tile in mine)
    return compare_tiles(mine, {"q": tiles}, labels, classes, asked=Asked(spread, tops, entropy=True), **options)["q"]


def close(found, expected, dtypes, exact=False):
    """The bar: 1e-6 and 1e-10 nats for float32 and half types, 1e-12 where both sides are float64."""
    wide = all(dtype == np.float64 for dtype in dtypes)
    allowed = 1e-12 * expected if wide else 1e-6 * expected + 1e-10
    return (np.abs(found - expected) <= allowed).all()


@pytest.mark.parametrize(("reference", "candidate"), PAIRS, **names)
def test_every_pair_of_types_at_every_edge(reference, candidate):
    dtypes = reference, candidate
    for classes in EDGES if reference == candidate else (1, 63, 64, 129, 8193):
        x, y = pair(4, classes, dtypes)
        rows = compare(x, y)
        assert close(rows.kl, naive.kl_divergence(x, y), dtypes), classes
        assert close(rows.kl_reverse, naive.kl_divergence(x, y, reverse=True), dtypes), classes
        np.testing.assert_allclose(rows.js, naive.js_divergence(x, y).astype(float), rtol=1e-6, atol=1e-10)
        np.testing.assert_allclose(rows.tv, naive.total_variation(x, y).astype(float), rtol=1e-6, atol=1e-7)
        expected = naive.logit_difference(x, y).astype(float)
        np.testing.assert_allclose(rows.logit_difference, expected, rtol=1e-6, atol=1e-6)
        columns = rows.columns(labelled=False)
        np.testing.assert_array_equal(columns["top_rank_in_candidate"], naive.top_rank(x, y))
        np.testing.assert_array_equal(columns["top_rank_in_reference"], naive.top_rank(y, x))
        np.testing.assert_array_equal(columns["predicted_reference"], naive.argmax(x))
        np.testing.assert_array_equal(columns["predicted_candidate"], naive.argmax(y))
        np.testing.assert_array_equal(columns["same_top"], np.array(naive.argmax(x)) == np.array(naive.argmax(y)))
        ties = [[(row == row.max()).sum() > 1 for row in side.astype(np.float64)] for side in (x, y)]
        np.testing.assert_array_equal(columns["tied"], np.logical_or(*ties))


@pytest.mark.parametrize("dtype", DTYPES, **names)
@pytest.mark.parametrize("shift", [0.0, 0.05, -7.0, 60.0])
def test_distances_from_1e_9_to_thousands(dtype, shift):
    for exponent in (-4.5, -3, -2, -1, 0, 1, 2, 3):
        x, y = pair(4, 3001, (dtype,), 10.0**exponent, shift)
        kl = naive.kl_divergence(x, y)
        assert close(kl_divergence(x, y), kl, (dtype,)), exponent
        assert close(kl_divergence(x, y, reverse=True), naive.kl_divergence(x, y, reverse=True), (dtype,)), exponent
        assert close(js_divergence(x, y), naive.js_divergence(x, y), (dtype,)), exponent


@pytest.mark.parametrize("classes", [40, 700])
@pytest.mark.parametrize("dtype", DTYPES, **names)
def test_masked_classes(dtype, classes):
    x, y = pair(6, classes, (dtype,))
    x[0, 3:20] = y[0, 3:20] = -np.inf  # these do not exist
    y[1, 5] = -np.inf
    x[2, 5] = -np.inf
    x[3], x[3, 7] = -np.inf, 0
    x[4, 5], y[4, 5] = -60000, -np.inf  # a probability that underflows, but not a class that is missing
    x[5, ::2] = y[5, 1::2] = -np.inf  # nothing in common
    rows = compare(x, y)
    expected = [naive.kl_divergence(x, y), naive.kl_divergence(x, y, reverse=True)]
    for found, truth in zip((rows.kl, rows.kl_reverse), expected, strict=True):
        np.testing.assert_allclose(found, truth.astype(float), rtol=1e-6, atol=1e-10)
    assert np.isinf(rows.kl).tolist() == [False, True, False, False, True, True]
    assert np.isinf(rows.kl_reverse).tolist() == [False, False, True, True, False, True]
    np.testing.assert_allclose(rows.js, naive.js_divergence(x, y).astype(float), rtol=1e-6, atol=1e-10)
    np.testing.assert_allclose(rows.tv, naive.total_variation(x, y).astype(float), rtol=1e-6)
    assert (rows.js[5], rows.tv[5]) == pytest.approx((np.log(2), 1.0), rel=1e-6)
    without = kl_divergence(np.delete(x[:1], np.s_[3:20], 1), np.delete(y[:1], np.s_[3:20], 1))
    np.testing.assert_allclose(rows.kl[:1], without, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, **names)
def test_bad_rows_are_nan_and_touch_no_other(dtype):
    x, y = pair(6, 700, (dtype,))
    clean = compare(x, y)
    x[1, 3], y[2, 600], x[3, 0], y[4] = np.nan, np.nan, np.inf, -np.inf
    rows = compare(x, y)
    for name in ("kl", "kl_reverse", "js", "tv"):
        found = getattr(rows, name)
        assert np.isnan(found).tolist() == [False, True, True, True, True, False]
        assert (found[[0, 5]] == getattr(clean, name)[[0, 5]]).all()


@pytest.mark.parametrize(("reference", "candidate"), PAIRS, **names)
def test_equal_rows_are_0_exactly(reference, candidate):
    rng = np.random.default_rng(1)
    for classes in (1, 40, 64, 5000):
        x = (rng.standard_normal((5, classes)) * 8).astype(ml_dtypes.bfloat16).astype(np.float16).astype(reference)
        x[1, : classes // 2] = -np.inf
        y = x.astype(candidate)
        for tiles in ([(0, y)], [(c, y[:, c : c + 1700]) for c in range(0, classes, 1700)]):
            rows = compare(x, tiles)
            for values in (rows.kl, rows.kl_reverse, rows.js, rows.tv, rows.logit_difference):
                assert (values == 0).all()
            assert rows.columns(labelled=False)["same_top"].all()


@pytest.mark.parametrize("dtype", DTYPES, **names)
def test_swapped_sides(dtype):
    for shift in (0.0, 3.0):
        for classes in (50, 4001):
            x, y = pair(9, classes, (dtype,), 0.7, shift)
            y[0, 3], x[1, 4] = -np.inf, -np.inf
            there, back = compare(x, y), compare(y, x)
            assert (there.kl == back.kl_reverse).all()
            assert (there.kl_reverse == back.kl).all()
            assert (there.kl != there.kl_reverse)[2:].all()
            for name in ("js", "tv", "logit_difference"):
                assert (getattr(there, name) == getattr(back, name)).all()


def test_a_shift_changes_nothing_in_float64():
    x, y = pair(20, 3000, (np.float64,))
    x, y = x.astype(np.float32).astype(np.float64), y.astype(np.float32).astype(np.float64)
    for shift in (1.0, -4096.0, 1 << 20):
        assert np.abs(kl_divergence(x, y + shift) - kl_divergence(x, y)).max() < 1e-12


def test_nothing_is_ever_negative():
    rng = np.random.default_rng(3)
    for dtype in DTYPES:
        for distance in (1e-7, 1e-4, 1e-2, 1.0):
            x = (rng.standard_normal((6000, 70)) * 4).astype(dtype)
            y = (x.astype(np.float64) + distance * rng.standard_normal(x.shape)).astype(dtype)
            rows = compare(x, y)
            for values in (rows.kl, rows.kl_reverse, rows.js, rows.tv):
                assert (values >= 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16], **names)
def test_ranges_of_classes_merge_by_the_chain_rule(dtype, monkeypatch):
    x, y = pair(7, 5000, (dtype,), 0.3, 2.0)
    x[1, :1000] = -np.inf
    y[1, 500:1000] = -np.inf
    y[2, 1000:2000] = -np.inf  # a range without a class
    x[3, 1000:2000] = y[3, 1000:2000] = -np.inf
    x[4, :2000] = y[4, :2000] = -np.inf
    x[5, 10], y[6, 4000] = np.nan, np.inf
    whole = compare(x, y)
    mine = [(0, x[:, :1000]), (1000, x[:, 1000:2000]), (2000, x[:, 2000:])]
    theirs = [(0, y[:, :1500]), (1500, y[:, 1500:])]
    for rows in (compare(mine, y), compare(x, theirs), compare(mine, theirs)):
        for name in ("kl", "kl_reverse", "js", "tv", "logit_difference"):
            np.testing.assert_allclose(getattr(rows, name), getattr(whole, name), rtol=1e-6, atol=1e-7)
        for name, column in whole.columns(labelled=False).items():
            if column.dtype.kind in "bi":
                np.testing.assert_array_equal(rows.columns(labelled=False)[name], column, name)
    monkeypatch.setattr("bigvocab.comparison.tile_pairs.SEGMENT", 1024)
    parts = compare(x, y)
    np.testing.assert_allclose(parts.kl, whole.kl, rtol=1e-6)
    swapped = compare(y, x)
    assert (parts.kl[:5] == swapped.kl_reverse[:5]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16], **names)
def test_rows_whose_blocks_differ_by_different_amounts(dtype):
    """What the first classes say of the difference of the logsumexps is no good guess, where rows are read once."""
    x, y = pair(6, 20000, (dtype,), 0.01)
    x[:3, 15000], y[:3, 15000] = 30, [30.5, 29, 30.01]  # nearly all of the mass in one class
    y[3, :400] += dtype(3)
    y[4, :9000] -= dtype(1.5)
    x[5, :600], y[5, 300:600] = -np.inf, -np.inf
    for reverse in (False, True):
        expected = naive.kl_divergence(x, y, reverse=reverse).astype(float)
        np.testing.assert_allclose(kl_divergence(x, y, reverse=reverse), expected, rtol=1e-6, atol=1e-10)
    assert (kl_divergence(x, y) == kl_divergence(y, x, reverse=True)).all()
    short = compare(x, y, spread=False).columns(labelled=False)
    for name, column in compare(x, y).columns(labelled=False).items():
        if column.dtype.kind in "bi":
            np.testing.assert_array_equal(short[name], column, name)


def test_rows_longer_than_a_segment():
    x, y = pair(3, tile_pairs.SEGMENT + 4097, (HALF,), 0.2)
    y[1, -3] = -np.inf
    rows = compare(x, y)
    assert close(rows.kl[[0, 2]], naive.kl_divergence(x, y)[[0, 2]], (HALF,))
    assert np.isinf(rows.kl).tolist() == [False, True, False]
    np.testing.assert_allclose(rows.js, naive.js_divergence(x, y).astype(float), rtol=1e-6)
    np.testing.assert_array_equal(rows.columns(labelled=False)["top_rank_in_candidate"], naive.top_rank(x, y))


def test_bits_depend_on_no_split_of_rows_and_no_thread():
    x, y = pair(300, 900, (np.float32, ml_dtypes.bfloat16), 0.4)
    labels = np.arange(300) % 900
    whole = compare(x, y, labels=labels).columns()
    for threads in (1, 3):
        again = compare(np.asfortranarray(x), y[:, :], labels=labels, num_threads=threads).columns()
        assert all((again[name] == column).all() for name, column in whole.items())
    for start in range(0, 300, 77):
        part = compare(x[start : start + 77], y[start : start + 77], labels=labels[start : start + 77]).columns()
        assert all((part[name] == column[start : start + 77]).all() for name, column in whole.items())


def test_several_candidates_are_what_each_is_alone():
    x, y = pair(200, 3000, (np.float32,), 0.4)
    others = {"near": y, "half": y.astype(np.float16), "same": x.copy(), "split": y}
    tiles = {name: [(0, other)] for name, other in others.items()}
    tiles["split"] = [(0, y[:, :100]), (100, y[:, 100:])]
    labels = np.arange(200)
    together = compare_tiles([(0, x)], tiles, labels, 3000, asked=Asked(True, True, entropy=True))
    for name, side in tiles.items():
        alone = compare(x, side, labels=labels).columns()
        assert all((together[name].columns()[key] == column).all() for key, column in alone.items()), name
    assert (together["same"].kl == 0).all()


def test_rows_with_labels():
    x, y = pair(50, 400, (np.float32,), 0.5)
    labels = np.random.default_rng(0).integers(0, 400, 50)
    found = compare(x, y, labels=labels).columns()
    for side, logits in (("reference", x), ("candidate", y)):
        losses = naive.sparse_softmax_cross_entropy(logits, labels)
        np.testing.assert_allclose(found[f"loss_{side}"], losses, atol=1e-6)
        np.testing.assert_array_equal(found[f"rank_{side}"], naive.rank(logits, labels))
        np.testing.assert_allclose(found[f"entropy_{side}"], naive.entropy(logits), atol=2e-6)
    np.testing.assert_allclose(found["loss_difference"], found["loss_candidate"] - found["loss_reference"], atol=0)
    p = [np.exp(-naive.sparse_softmax_cross_entropy(logits, labels)) for logits in (x, y)]
    np.testing.assert_allclose(found["delta_p"], p[1] - p[0], atol=1e-7)
    np.testing.assert_allclose(found["confidence"], np.exp(naive.log_softmax(x)).max(1).astype(float), rtol=1e-6)


def test_ignored_rows_may_hold_anything():
    """inf * 0 at padding (ms-swift#9767, trl#5594)."""
    x, y = pair(4, 300, (np.float32,))
    x[1], y[2] = np.nan, np.inf
    rows = compare(x, y, labels=[3, -1, -1, 4])
    np.testing.assert_array_equal(rows.kl[[0, 3]], kl_divergence(x[[0, 3]], y[[0, 3]]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64], **names)
def test_scales_and_softcaps_of_each_side(dtype):
    x, y = pair(5, 600, (dtype,), 0.5)
    cases = [(Transform(0.7), Transform(0.7)), (Transform(1.0), Transform(0.5)), (Transform(1.0, 20.0), Transform())]
    for mine, theirs in cases:
        p, q = (
            naive.soften(side.astype(np.float64), t.scale, t.softcap or None) if not t.softcap else
            t.softcap * np.tanh(t.scale * side.astype(np.float64) / t.softcap)
            for side, t in ((x, mine), (y, theirs))
        )  # fmt: skip
        rows = compare(x, y, transform=mine, transforms={"q": theirs})
        np.testing.assert_allclose(rows.kl, naive.kl_divergence(p, q).astype(float), rtol=1e-6, atol=1e-10)
        np.testing.assert_allclose(rows.js, naive.js_divergence(p, q).astype(float), rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], **names)
def test_logits_as_large_as_their_type(dtype):
    most = 3e38 if dtype == np.float32 else 1.7e308
    x = np.array([[0, most, -most], [most, most, 0], [0, -most, 1]], dtype).repeat(30, 1)
    y = np.array([[0, most, -most], [most, 0, most], [1, 2, -most]], dtype).repeat(30, 1)
    kl = kl_divergence(x, y)
    assert kl[0] == 0
    assert kl[1] > 1e37
    assert kl[2] == pytest.approx(naive.kl_divergence(x[2:], y[2:]).astype(float), rel=1e-6)
    assert not np.isnan(js_divergence(x, y)).any()
    assert total_variation(x, y)[1] == pytest.approx(0.5, rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_small_rows(data):
    classes = data.draw(st.integers(1, 90))
    logit = st.one_of(st.floats(-40, 40, width=32), st.just(-np.inf))
    x, y = (np.array([data.draw(st.lists(logit, min_size=classes, max_size=classes))], np.float32) for _ in range(2))
    if np.isneginf(x).all() or np.isneginf(y).all():
        assert np.isnan(kl_divergence(x, y)).all()
        return
    kl, expected = kl_divergence(x, y), naive.kl_divergence(x, y)
    assert np.isinf(kl) == np.isinf(expected)
    assert np.isinf(kl).all() or close(kl, expected, (np.float32,))
    np.testing.assert_allclose(total_variation(x, y), naive.total_variation(x, y).astype(float), rtol=1e-6, atol=1e-7)
    assert 0 <= js_divergence(x, y) <= np.log(2)


def test_reductions():
    x, y = pair(10, 100, (np.float32,))
    rows = kl_divergence(x, y)
    assert kl_divergence(x, y, reduction="mean") == pytest.approx(rows.mean(), rel=1e-15)
    assert kl_divergence(x, y, reduction="sum") == pytest.approx(rows.sum(), rel=1e-15)
    assert np.isnan(kl_divergence(x[:0], y[:0], reduction="mean"))
    y[3, 4] = -np.inf
    assert kl_divergence(x, y, reduction="mean") == np.inf


def test_dimensions_before_the_classes():
    x, y = (rows.reshape(2, 3, 40) for rows in pair(6, 40, (np.float32,)))
    flat = [rows.reshape(6, 40) for rows in (x, y)]
    for function in (kl_divergence, js_divergence, total_variation):
        expected = function(*flat)
        assert (function(x, y) == expected.reshape(2, 3)).all()
        uneven = np.concatenate([x, x], axis=1)[:, :3]  # rows that no single view reaches
        assert (function(uneven, y) == expected.reshape(2, 3)).all()
        assert (function(y, uneven) == function(*flat[::-1]).reshape(2, 3)).all()
        assert function(x, y, reduction="sum") == pytest.approx(expected.sum(), rel=1e-15)
        assert function(x[:0], y[:0]).shape == (0, 3)
        with pytest.raises(
            BigvocabError, match=r"shape \(2, 3, 40\) of the reference and \(3, 2, 40\) of the candidate"
        ):
            function(x, y.reshape(3, 2, 40))
        with pytest.raises(BigvocabError, match=r"\(2, 3, 40\) of the reference and \(6, 40\)"):
            function(x, flat[1])


def test_arguments_that_do_not_fit():
    x = np.zeros((3, 5), np.float32)
    with pytest.raises(BigvocabError, match=r"shape \(3, 5\) of the reference and \(2, 5\).*same number of rows"):
        kl_divergence(x, x[:2])
    with pytest.raises(BigvocabError, match=r"\(3, 5\) of the reference and \(3, 4\).*num_classes"):
        js_divergence(x, x[:, :4])
    with pytest.raises(BigvocabError, match=r"num_classes: got 5, expected a number in \[1, 4\]"):
        total_variation(x, x[:, :4], num_classes=5)
    with pytest.raises(TypeError, match="candidate"):
        kl_divergence(x, x.astype(int))
    with pytest.raises(BigvocabError, match="softcap"):
        kl_divergence(x, x, softcap=-1)
    with pytest.raises(TypeError, match="reverse"):
        kl_divergence(x, x, reverse="no")
    assert (kl_divergence(x, x[:, :4], num_classes=3) == 0).all()


def test_the_hot_loops_are_vectorised():
    """Those in float32, and those in float64 beside them."""
    x, stats, out = np.ones((1, 4096), np.float32), np.ones((1, COLUMNS)), np.zeros((1, kernels.COLUMNS))
    given = (x, x, np.array([NO_LABEL]), ((1.0, 0.0), (1.0, 0.0)), (0, 4096), False, True, stats, stats, out)
    loop = Loop(assembly(kernels, "rows_divergence", lambda: kernels.rows_divergence(*given)))
    assert not loop.gathers
    for letter in "sd":
        packed = [line for line in loop.packed if f"p{letter}\t" in line]
        scalar = [line for line in loop.scalar if f"s{letter}\t" in line]
        assert len(packed) >= 60
        assert len(scalar) < len(packed) / 4


def test_the_loops_of_rows_that_are_read_once_are_vectorised():
    from bigvocab.kernels import pair_rows

    x, y = pair(1, 17_000, (np.float32,), 0.1)
    loop = Loop(assembly(pair_rows, "rows_paired", lambda: compare(x, y)))
    assert not loop.gathers
    assert len(loop.packed) >= 200
    assert len(loop.scalar) < len(loop.packed) / 4


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86 processors")
def test_older_processors_return_the_same_bits():
    assert machine_code.on("haswell", machine_code.divergence_bits) == machine_code.divergence_bits()
