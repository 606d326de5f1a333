"""Softcapped rows: float32 arithmetic near 0, float64 where the cap takes much, against `longdouble`."""

import ml_dtypes
import numpy as np
import pytest

from bigvocab.losses.row_statistics import softmax_rows, wanted
from bigvocab.matrices.tiles import StoredRows

ALL = wanted(rank=True, entropy=True, predicted=True, logit_sum=True)
ORDINARY = [(1.0, 30.0, 3.0, 0.0), (1.0, 50.0, 15.0, 5.0), (2.5, 7.0, 2.0, 0.0), (0.37, 30.0, 8.0, 3.0)]
AT_THE_CAP = [(1.0, 30.0, 0.1, -25.0), (1.0, 30.0, 0.1, 29.0), (1.1, 15.0, 40.0, 0.0), (1.0, 1000.0, 3.0, 0.0)]


def exact(logits, labels, scale, softcap):
    """Loss, entropy, log of the sum and mean of softcapped logits, in `longdouble`."""
    y = logits.astype(np.longdouble) * np.longdouble(scale)
    g = np.where(np.isinf(y), y, softcap * np.tanh(y / np.longdouble(softcap)))
    top = g.max(1, keepdims=True)
    terms = np.exp(g - top)
    sums = terms.sum(1)
    entropy = np.log(sums) - (np.where(terms > 0, g - top, 0) * terms).sum(1) / sums
    logsumexp = top[:, 0] + np.log(sums)
    return logsumexp - g[np.arange(len(labels)), labels], entropy, logsumexp, g.mean(1)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("classes", [1, 31, 33, 8191, 8193, 50257])
def test_error_is_within_float32(dtype, classes):
    random = np.random.default_rng(classes)
    for scale, softcap, spread, mean in ORDINARY + AT_THE_CAP:
        logits = (random.normal(size=(4, classes)) * spread + mean).astype(dtype)
        labels = random.integers(0, classes, 4)
        x = logits.astype(np.float64)
        labels[0] = x[0].argmax()
        rows = softmax_rows(StoredRows.of(logits), labels, want=ALL, scale=scale, softcap=softcap)
        loss, entropy, logsumexp, logit_mean = exact(x, labels, scale, softcap)
        np.testing.assert_allclose(rows.label_loss, np.float64(loss), rtol=0, atol=3e-7)
        np.testing.assert_allclose(rows.logsumexp, np.float64(logsumexp), rtol=0, atol=3e-7)
        np.testing.assert_allclose(rows.entropy, np.float64(entropy), rtol=0, atol=2e-6)
        np.testing.assert_allclose(rows.logit_sum / classes, np.float64(logit_mean), rtol=0, atol=2e-7 * softcap)
        above = (x > x[np.arange(4), labels][:, None]).sum(1)
        np.testing.assert_array_equal(rows.rank, 1 + above)
        np.testing.assert_array_equal(rows.predicted, x.argmax(1))


@pytest.mark.parametrize("scale", [1e-7, 1.0, 1e7])
@pytest.mark.parametrize("softcap", [1e-7, 1e-3, 1.0, 1e3, 1e9])
def test_any_cap_and_scale(scale, softcap):
    """What float32 does not reach is left to float64."""
    logits = np.random.default_rng(1).normal(size=(3, 9001)).astype(np.float32)
    labels = np.array([0, 5, 9000])
    rows = softmax_rows(StoredRows.of(logits), labels, want=ALL, scale=scale, softcap=softcap)
    loss, entropy, _, _ = exact(logits.astype(np.float64), labels, scale, softcap)
    np.testing.assert_allclose(rows.label_loss, np.float64(loss), rtol=3e-7, atol=3e-7)
    np.testing.assert_allclose(rows.entropy, np.float64(entropy), rtol=0, atol=2e-6)


def test_masked_and_broken_logits():
    logits = np.random.default_rng(2).normal(size=(4, 9001)).astype(np.float32)
    logits[0, 3:8000] = -np.inf
    logits[1, 7] = np.nan
    logits[2, 7] = np.inf
    logits[3] = -np.inf
    logits[3, 11] = 2.0
    rows = softmax_rows(StoredRows.of(logits), np.array([0, 0, 0, 11]), want=ALL, softcap=20.0)
    loss, _, _, _ = exact(logits[[0]].astype(np.float64), np.array([0]), 1.0, 20.0)
    assert abs(rows.label_loss[0] - float(loss[0])) < 3e-7
    np.testing.assert_array_equal(rows.label_loss[1:], [np.nan, np.inf, 0])
    assert rows.entropy[3] == 0
