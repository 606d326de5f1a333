"""Exact sums and the five reductions."""

import math

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bigvocab as bv
from bigvocab.losses.exact_sums import ExactSums
from bigvocab.losses.reductions import REDUCTIONS

finite = st.floats(allow_nan=False, allow_infinity=False)


def same(a, b):
    x, y = a.state(), b.state()
    return (
        x["low"] == y["low"]
        and np.array_equal(x["digits"], y["digits"])
        and np.array_equal(x["specials"], y["specials"])
    )


@settings(max_examples=200, deadline=None)
@given(st.lists(finite, max_size=40), st.integers(0, 40), st.randoms())
def test_sums_are_exact_in_any_split_and_order(values, cut, random):
    try:
        expected = math.fsum(values)
    except OverflowError:
        expected = None  # a partial sum passed the largest float; ours has no such bound
    whole = ExactSums()
    whole.add(values)
    if expected is not None:
        assert whole.value() == expected
    shuffled = values[:]
    random.shuffle(shuffled)
    left, right = ExactSums(), ExactSums()
    left.add(shuffled[:cut])
    right.add(shuffled[cut:])
    right.merge(left)
    assert same(whole, right)
    assert same(whole, ExactSums.from_state(whole.state()))


def test_a_running_total_loses_nothing():
    sums = ExactSums()
    for _ in range(100):
        sums.add(np.full(10_000, 0.1))
    assert sums.value() == math.fsum([0.1] * 1_000_000)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(), st.integers(0, 4)), min_size=1, max_size=40), st.permutations(range(5)))
def test_all_values_at_once_are_each_value(pairs, order):
    sums = ExactSums(5)
    sums.add([value for value, _ in pairs], np.array([group for _, group in pairs], np.int32))
    np.testing.assert_array_equal(sums.values(np.array(order)), [sums.value(i) for i in order])


def test_groups_grow_and_merge_by_name():
    a, b = ExactSums(2), ExactSums(3)
    a.add([1.0, 2.0, 3.0], np.array([0, 1, 1], np.int32))
    b.add([10.0, 1e-300, 5.0], np.array([0, 1, 2], np.int32))
    a.merge(b, np.array([1, 0, 4]))
    assert [a.value(i) for i in range(5)] == [1.0, 15.0, 0.0, 0.0, 5.0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, math.inf], math.inf),
        ([-math.inf, 1], -math.inf),
        ([math.inf, -math.inf], math.nan),
        ([math.nan, 1], math.nan),
    ],
)
def test_what_is_not_finite_is_kept_apart(values, expected):
    sums = ExactSums()
    sums.add(values)
    np.testing.assert_equal(sums.value(), expected)
    other = ExactSums()
    other.merge(sums)
    np.testing.assert_equal(other.value(), expected)


def test_the_example_of_the_manual():
    losses, weights = [[0, 1], [2, 3], [4, 5]], [[2], [0], [0.5]]
    values = {name: bv.compute_weighted_loss(losses, weights, reduction=name) for name in REDUCTIONS[1:]}
    assert values == pytest.approx(
        {"sum": 6.5, "mean": 1.3, "sum_over_batch_size": 1.0833333333333333, "sum_by_nonzero_weights": 1.625}
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weights", [1.0, 0.0, -2.0, [[1.0], [0.0], [2.0]], [[1.0, -1.0]], [[0.5, 2], [0, 1], [3, 4]]])
def test_reductions_are_those_of_the_oracle(reduction, weights):
    losses = np.array([[0.5, 1], [np.nan if weights == [[1.0], [0.0], [2.0]] else 2, 3], [4, 5]])
    got = bv.compute_weighted_loss(losses, weights, reduction=reduction)
    np.testing.assert_allclose(got, naive.compute_weighted_loss(losses, weights, reduction=reduction), rtol=1e-15)


def test_nothing_to_average_is_nan_never_zero():
    for reduction in REDUCTIONS[2:]:
        assert math.isnan(bv.compute_weighted_loss([], reduction=reduction))
    assert math.isnan(bv.compute_weighted_loss([1.0, 2.0], [1.0, -1.0], reduction="mean"))
    assert math.isnan(bv.compute_weighted_loss([1.0, 2.0], 0.0, reduction="mean"))
    assert bv.compute_weighted_loss([], reduction="sum") == 0.0


def test_weights_that_do_not_fit_are_errors():
    with pytest.raises(bv.BigvocabError, match=r"weights: got shape \(3, 1\), expected .* \(3,\)"):
        bv.compute_weighted_loss([1.0, 2.0, 3.0], [[1.0], [1.0], [1.0]])
    with pytest.raises(bv.BigvocabError, match=r"a weight per example is \(3, 1\)"):
        bv.compute_weighted_loss(np.ones((3, 3)), [1.0, 1.0, 1.0])
    with pytest.raises(bv.BigvocabError, match="reduction: got 'avg', expected one of none, sum"):
        bv.compute_weighted_loss([1.0], reduction="avg")
    with pytest.raises(TypeError, match="weights: expected real numbers"):
        bv.compute_weighted_loss([1.0], ["a"])
