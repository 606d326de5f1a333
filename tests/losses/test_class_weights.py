"""Class weights of soft labels, and all labels of linear_cross_entropy, by their definition in float64."""

import numpy as np
import pytest

import bigvocab as bv

RANDOM = np.random.default_rng(5)
ROWS, CLASSES = 9, 71
STATES = RANDOM.normal(size=(ROWS, 6)).astype(np.float32)
LAYER = RANDOM.normal(size=(CLASSES, 6)).astype(np.float32)
LOGITS = STATES.astype(np.float64) @ LAYER.astype(np.float64).T
WEIGHTS = np.where(RANDOM.random(CLASSES) < 0.2, 0.0, RANDOM.random(CLASSES) * 2)
IDS = RANDOM.integers(0, CLASSES, ROWS)
SOFT = RANDOM.random((ROWS, CLASSES))
SMOOTHING = pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])


def by_definition(labels, smoothing, class_weights=None):
    """-S_j w_j ((1 - e) z_j + e / V) log p_j."""
    log_p = LOGITS - np.log(np.exp(LOGITS).sum(1, keepdims=True))
    smoothed = (1 - smoothing) * labels + smoothing / CLASSES
    return -(smoothed * (1.0 if class_weights is None else class_weights) * log_p).sum(1)


@SMOOTHING
def test_soft_labels(smoothing):
    found = bv.softmax_cross_entropy(LOGITS, SOFT, class_weights=WEIGHTS, label_smoothing=smoothing)
    np.testing.assert_allclose(found, by_definition(SOFT, smoothing, WEIGHTS), rtol=1e-12)


@SMOOTHING
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
def test_layers_with_soft_labels(smoothing, weights):
    options = {"class_weights": weights, "label_smoothing": smoothing}
    expected = by_definition(SOFT, smoothing, weights)
    np.testing.assert_allclose(bv.linear_cross_entropy(STATES, LAYER, SOFT, **options), expected, rtol=2e-6)
    found = bv.linear_cross_entropy(STATES, LAYER, SOFT, reduction="mean", **options)
    assert found == pytest.approx(expected.mean(), rel=2e-6)  # PyTorch divides by the rows


@SMOOTHING
def test_layers_with_ids(smoothing):
    options = {"class_weights": WEIGHTS, "label_smoothing": smoothing}
    expected = by_definition(np.eye(CLASSES)[IDS], smoothing, WEIGHTS)
    np.testing.assert_allclose(bv.linear_cross_entropy(STATES, LAYER, IDS, **options), expected, rtol=2e-6, atol=1e-7)
    found = bv.linear_cross_entropy(STATES, LAYER, IDS, reduction="mean", **options)
    assert found == pytest.approx(expected.sum() / WEIGHTS[IDS].sum(), rel=2e-6)


def test_leading_dimensions():
    soft = bv.linear_cross_entropy(STATES.reshape(3, 3, 6), LAYER, SOFT.reshape(3, 3, CLASSES))
    np.testing.assert_allclose(soft.reshape(-1), by_definition(SOFT, 0.0), rtol=2e-6)
    assert soft.shape == (3, 3)


def test_no_labels_of_a_masked_row_are_no_loss():
    logits = np.full((2, 3), -np.inf, np.float32)
    found = bv.softmax_cross_entropy(logits, [[0, 0, 0], [0, 1, 0]])
    np.testing.assert_array_equal(found, [0, np.nan])


def test_soft_labels_are_not_ignored():
    with pytest.raises(bv.BigvocabError, match="ignore_index: belongs to labels of one id per row"):
        bv.linear_cross_entropy(STATES, LAYER, SOFT, ignore_index=0)
    with pytest.raises(bv.BigvocabError, match=r"labels: got shape \(9, 70\), expected \(9, 71\)"):
        bv.linear_cross_entropy(STATES, LAYER, SOFT[:, 1:])
    with pytest.raises(bv.BigvocabError, match=r"class_weights: got shape \(3,\), expected \(71,\)"):
        bv.linear_cross_entropy(STATES, LAYER, SOFT, class_weights=np.ones(3))


def test_a_report_is_a_dict():
    report = bv.evaluate(logits=LOGITS.reshape(3, 3, CLASSES), labels=IDS.reshape(3, 3))
    assert dict(report) == report.to_dict()
    assert len(report) == len(list(report))
