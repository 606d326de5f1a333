"""Rows that a layer makes while they are read: what lies between them is what lies between their stored logits."""

import numpy as np
import pytest

from bigvocab.comparison import made_rows
from bigvocab.comparison.made_rows import compare_rows
from bigvocab.comparison.pairs import Asked, Transform
from bigvocab.comparison.tile_pairs import compare_tiles
from bigvocab.heads.linear_rows import LinearRows
from bigvocab.heads.output_layer import OutputLayer
from bigvocab.matrices.matrix import Matrix
from bigvocab.matrices.tiles import StoredRows

ROWS, WIDTH, CLASSES = 90, 24, 5000
ALL = Asked(spread=True, tops=True, overlap=(1, 5))


def heads(seed=0):
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((ROWS, WIDTH)).astype(np.float32)
    weights = rng.standard_normal((CLASSES, WIDTH)).astype(np.float32)
    rounded = (np.round(weights * 16) / 16).astype(np.float32)
    layers = [OutputLayer(Matrix.from_array(layer), None, num_classes=None) for layer in (weights, rounded)]
    return [LinearRows(layer, inputs) for layer in layers]


def stored(rows):
    """The logits that rows make, as an array."""
    every = np.repeat(np.arange(len(rows)), rows.num_classes)
    classes = np.tile(np.arange(rows.num_classes), len(rows))
    return rows.gather(every, classes, 2).reshape(len(rows), rows.num_classes)


@pytest.fixture(scope="module")
def both():
    made = heads()
    return made, [stored(rows) for rows in made]


def assert_same(found, expected):
    for column, values in expected.columns().items():
        np.testing.assert_array_equal(found.columns()[column], values, column)


def some_labels():
    labels = np.random.default_rng(1).integers(0, CLASSES, ROWS)
    labels[3], labels[4] = -1, -2
    return labels


def test_two_heads_are_as_their_stored_logits(both):
    (p, q), (x, y) = both
    labels = some_labels()
    for threads in (1, 3):
        found = compare_rows(p, {"q": q, "p": p}, labels, asked=ALL, num_threads=threads)
        expected = compare_tiles([(0, x)], {"q": [(0, y)], "p": [(0, x)]}, labels, CLASSES, asked=ALL)
        for name in ("q", "p"):
            assert_same(found[name], expected[name])
    counted = labels != -1
    assert (found["p"].kl[counted] == 0).all()
    assert (found["q"].kl[counted] > 0).all()
    assert np.isnan(found["q"].kl[~counted]).all()


def test_rows_too_wide_to_be_whole_are_ranges_of_classes(both, monkeypatch):
    (p, q), (x, y) = both
    labels = some_labels()
    monkeypatch.setattr(made_rows, "WIDEST", CLASSES - 1)
    monkeypatch.setattr(made_rows, "ROWS_AT_ONCE", 7)
    found = compare_rows(p, {"q": q, "p": p}, labels, asked=ALL, num_threads=3)
    monkeypatch.setattr("bigvocab.comparison.tile_pairs.SEGMENT", made_rows.CLASSES)
    expected = compare_tiles([(0, x)], {"q": [(0, y)], "p": [(0, x)]}, labels, CLASSES, asked=ALL)
    for name in ("q", "p"):
        assert_same(found[name], expected[name])
    side = x.astype(np.float16)
    found = compare_rows(StoredRows.of(side), {"q": q}, labels, asked=ALL)["q"].columns()
    expected = compare_tiles([(0, side)], {"q": [(0, y)]}, labels, CLASSES, asked=ALL)["q"].columns()
    for column, values in expected.items():
        np.testing.assert_allclose(found[column], values, rtol=2e-6, atol=1e-6, err_msg=column)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_head_against_stored_logits(both, dtype):
    (p, q), (x, y) = both
    labels, tiles = some_labels(), [(0, x[:, :1700].astype(dtype)), (1700, x[:, 1700:].astype(dtype))]
    found = compare_rows(StoredRows(tiles), {"q": q, "p": p}, labels, asked=ALL)
    expected = compare_tiles(tiles, {"q": [(0, y)], "p": [(0, x)]}, labels, CLASSES, asked=ALL)
    for name in ("q", "p"):
        assert_same(found[name], expected[name])


def test_scales_of_a_side(both):
    (p, q), (x, y) = both
    labels = np.arange(ROWS)
    given = {"transform": Transform(0.5), "transforms": {"q": Transform(0.5, 9.0)}}
    found = compare_rows(p, {"q": q}, labels, **given)["q"]
    assert_same(found, compare_tiles([(0, x)], {"q": [(0, y)]}, labels, CLASSES, **given)["q"])


def test_memory_of_a_row():
    assert made_rows.held_bytes(1000, 4, [4, 8, 4]) == 12_000
    assert made_rows.held_bytes(1000, 0, [4]) == 4000
    assert made_rows.held_bytes(made_rows.WIDEST + 1, 4, [4, 8]) == 16 * made_rows.CLASSES


def test_overlap_of_the_highest_classes(both):
    _, (x, y) = both
    x, y = np.round(x, 1), np.round(y, 1)  # ties
    x[0, :4990] = -np.inf
    order = [np.argsort(-side, axis=1, kind="stable") for side in (x, y)]
    ks = (1, 2, 5, 20, 64)
    for tiles in ([(0, y)], [(c, y[:, c : c + 1999]) for c in range(0, CLASSES, 1999)]):
        asked = Asked(overlap=ks)
        found = compare_tiles([(0, x)], {"q": tiles}, np.arange(ROWS), CLASSES, asked=asked)["q"].columns()
        for k in ks:
            expected = [len(set(a[:k]) & set(b[:k])) / k for a, b in zip(*order, strict=True)]
            np.testing.assert_array_equal(found[f"overlap.{k}"][1:], expected[1:])
            assert found[f"overlap.{k}"][0] == len(set(order[0][0, : min(k, 10)]) & set(order[1][0, :k])) / k
