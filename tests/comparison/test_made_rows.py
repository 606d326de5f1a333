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


def test_two_heads_are_as_their_stored_logits(both, monkeypatch):
    (p, q), (x, y) = both
    labels = np.random.default_rng(1).integers(0, CLASSES, ROWS)
    labels[3], labels[4] = -1, -2
    monkeypatch.setattr(made_rows, "ROWS_AT_ONCE", 7)
    found = compare_rows(p, {"q": q, "p": p}, labels, asked=ALL, num_threads=3)
    monkeypatch.setattr("bigvocab.comparison.tile_pairs.SEGMENT", made_rows.CLASSES)
    expected = compare_tiles([(0, x)], {"q": [(0, y)], "p": [(0, x)]}, labels, CLASSES, asked=ALL)
    for name in ("q", "p"):
        for column, values in expected[name].columns().items():
            np.testing.assert_array_equal(found[name].columns()[column], values, column)
    counted = labels != -1
    assert (found["p"].kl[counted] == 0).all()
    assert (found["q"].kl[counted] > 0).all()
    assert np.isnan(found["q"].kl[~counted]).all()


def test_a_head_against_stored_logits_of_another_type(both):
    (_, q), (x, y) = both
    labels = np.arange(ROWS)
    for dtype in (np.float16, np.float64):
        side = x.astype(dtype)
        found = compare_rows(StoredRows.of(side), {"q": q}, labels, asked=ALL)["q"].columns()
        expected = compare_tiles([(0, side)], {"q": [(0, y)]}, labels, CLASSES, asked=ALL)["q"].columns()
        for column, values in expected.items():
            np.testing.assert_allclose(found[column], values, rtol=2e-6, atol=1e-6, err_msg=column)


def test_scales_of_a_side(both):
    (p, q), (x, y) = both
    labels = np.arange(ROWS)
    given = {"transform": Transform(0.5), "transforms": {"q": Transform(0.5, 9.0)}}
    found = compare_rows(p, {"q": q}, labels, **given)["q"]
    expected = compare_tiles([(0, x)], {"q": [(0, y)]}, labels, CLASSES, **given)["q"]
    np.testing.assert_allclose(found.kl, expected.kl, rtol=1e-7)


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
