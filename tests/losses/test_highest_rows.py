"""The highest classes of rows: found from the maxima of cells, as a sort by logit and class finds them."""

import ml_dtypes
import numpy as np
import pytest

from bigvocab.heads.linear_rows import LinearRows
from bigvocab.heads.output_layer import OutputLayer
from bigvocab.losses.highest_rows import highest_rows
from bigvocab.losses.row_statistics import softmax_rows
from bigvocab.matrices.tiles import StoredRows

FLOATS = (np.float32, np.float64, ml_dtypes.bfloat16)
CLASSES = 9001  # of float32, cells of 35 times 256 classes and a rest


def sorted_by_hand(logits, keep):
    """Ids (n, keep) of the highest logits, ties by id; -1 where only masked classes are left."""
    logits = logits.astype(np.float64) + 0.0
    ids = np.argsort(-logits, axis=1, kind="stable")[:, :keep]
    return np.where(np.take_along_axis(logits, ids, 1) == -np.inf, -1, ids)


def hard_rows(classes=CLASSES, seed=0):
    """Rows whose highest classes lie where a threshold from maxima helps little, or not at all."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((14, classes)) * 3
    x[1] = 1.5  # all equal
    x[2], x[3] = np.sort(x[2]), np.sort(x[3])[::-1]
    x[4, : classes // 2] = -np.inf
    x[5] = np.round(x[5])
    x[6, 1:] = -np.inf
    x[7] = np.where(np.arange(classes) % 2, 0.0, -0.0)
    x[8, classes // 3] = 60.0
    x[9, 32 * np.arange(200)] = 20.0  # all in one lane
    x[10, 600:856] = 20.0  # all in one cell of all lanes
    x[11] *= 1e3
    x[12] = -np.abs(np.round(x[12]))
    x[13, -300:] = 20.0  # partly behind the last cell
    return x


@pytest.mark.parametrize("keep", [1, 100, 128, 300])
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_highest_classes_are_those_of_a_sort(dtype, keep):
    logits = hard_rows().astype(dtype)
    labels = np.arange(len(logits))
    found = highest_rows(StoredRows.of(logits), labels, keep)
    expected = sorted_by_hand(logits, keep)
    assert found.ids.tolist() == expected.tolist()
    values = np.take_along_axis(logits.astype(np.float64), np.maximum(expected, 0), 1)
    assert (found.logits == np.where(expected < 0, -np.inf, values)).all()
    assert (found.rows.columns == softmax_rows(StoredRows.of(logits), labels).columns).all()


@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_shards_of_classes_find_the_same(softcap):
    logits = hard_rows().astype(np.float32)
    cuts = [0, 7, 3000, 3257, CLASSES]
    shards = StoredRows([(a, logits[:, a:b]) for a, b in zip(cuts, cuts[1:], strict=False)])
    found = highest_rows(shards, np.zeros(len(logits), int), 100, softcap=softcap)
    assert found.ids.tolist() == sorted_by_hand(logits, 100).tolist()


@pytest.mark.parametrize("threads", [1, 2])
def test_groups_of_a_head_share_what_they_know_and_lose_no_tie(threads):
    """A later group may have found its classes first: of equals, the lower ids must stay. Some rows are left out."""
    rng = np.random.default_rng(3)
    weights = np.round(rng.standard_normal((40_000, 4))).astype(np.float32)
    inputs = np.round(rng.standard_normal((60, 4)) * 2).astype(np.float32)
    labels = np.where(np.arange(60) % 7 == 3, -1, 0)
    found = highest_rows(LinearRows(OutputLayer(weights=weights), inputs), labels, 100, num_threads=threads)
    expected = np.where(labels[:, None] < 0, -1, sorted_by_hand(inputs @ weights.T, 100))
    assert found.ids.tolist() == expected.tolist()


@pytest.mark.parametrize("classes", [1, 5, 31, 33])
def test_few_classes_far_below_zero_under_a_softcap(classes):
    """The last vector, which is not whole, may hold the maximum, and lie where no polynomial is good."""
    logits = np.full((2, classes), -3000.0, np.float32)
    logits[1] = -2000.0 - np.arange(classes)
    found = softmax_rows(StoredRows.of(logits), np.zeros(2, int), softcap=4.0)
    np.testing.assert_allclose(found.logsumexp, np.log(classes) - 4.0, rtol=0, atol=1e-6)
