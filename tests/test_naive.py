"""The oracle is right: the worked cases of the specification, the peers' golden files, and its edges."""

import ast
import math
from pathlib import Path

import golden_files
import naive
import numpy as np
import pytest

INF, NAN = math.inf, math.nan


def assert_close(got, expected, tolerance=1e-7):
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=0)


def peers():
    return [(name, case) for name in golden_files.NAMES for case in golden_files.load(name)]


def cases(differing):
    """The cases that have a value and whose candidates are given: the oracle has no random stream."""
    return [
        pytest.param(case, id=f"{name.removeprefix('losses_')}:{case}")
        for name, case in peers()
        if bool(case.why) is differing and "seed" not in case.arguments and "error" not in (case.expected, case.value)
    ]


@pytest.mark.parametrize("case", cases(differing=False))
def test_agrees_with_peer(case):
    case.assert_close(naive.call(case.function, **case.arguments))


@pytest.mark.parametrize("case", cases(differing=True))
def test_differs_from_peer_on_purpose(case):
    """`case.why` says why: NaN for nothing to average, 0 * -inf, limits at infinity, all copies of a hit, rounding."""
    got = naive.call(case.function, **case.arguments)
    case.assert_close(got)
    value = np.asarray(case.value, dtype=np.float64)
    assert not np.allclose(got, value, rtol=1e-6, atol=1e-6, equal_nan=True)


def test_differs_in_what_is_an_error():
    """Peers take these in silence or give NaN; the package refuses them, so there is no value to compare."""
    errors = {case.name for _, case in peers() if case.ours == "error"}
    assert errors == {
        "differs/smoothing_below_its_range",
        "differs/softmax_smoothing_below_its_range",
        "differs/softmax_smoothing_above_its_range",
        "differs/sigmoid_smoothing_below_its_range",
        "differs/sigmoid_smoothing_above_its_range",
        "differs/probability_above_its_range",
        "differs/probability_below_its_range",
        "differs/weights_of_another_rank",
    }


def test_golden_files_say_their_versions_and_stay_small():
    for name, peer in zip(golden_files.NAMES, ("torch", "tensorflow", "optax"), strict=True):
        assert {"python", "numpy", peer} <= golden_files.versions(name).keys()
        assert (golden_files.FOLDER / f"{name}.json").stat().st_size < 200_000
    functions = {case.function for _, case in peers()}
    assert functions == {
        "sparse_softmax_cross_entropy",
        "softmax_cross_entropy",
        "sigmoid_cross_entropy",
        "weighted_sigmoid_cross_entropy",
        "sparse_sigmoid_cross_entropy",
        "log_loss",
        "linear_cross_entropy",
        "sampled_softmax_loss",
        "nce_loss",
        "compute_weighted_loss",
    }


def test_golden_inputs_are_exact_in_every_type():
    for _, case in peers():
        if not case.name.startswith(golden_files.EXACT_IN_FLOAT64):
            for name in {"logits", "inputs", "weights", "biases"} & case.arguments.keys():
                values = case.arguments[name]
                for part in values if isinstance(values, list) else [np.asarray(values)]:
                    finite = part[np.isfinite(part)].astype(np.float32)
                    assert (finite.astype(np.float16) == finite).all()
                    assert not (finite.view(np.uint32) & 0xFFFF).any()


def test_imports_nothing_of_the_package():
    tree = ast.parse(Path(naive.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert {name.name for node in imports for name in node.names} == {"math", "numpy"}


# The numeric cases of the specification


def test_softmax_worked():
    logits = [[1, 1, 1, 1], [1, 2, 3, 4]]
    assert_close(naive.softmax_cross_entropy(logits, [[0, 0, 0, 1], [0, 0.5, 0.5, 0]]), [1.3862944, 1.9401897])
    assert_close(naive.sparse_softmax_cross_entropy(logits, [3, 0]), [1.3862944, 3.4401897])
    assert_close(naive.softmax_cross_entropy([[1, 2, 3], [1, 2, 3]], [[1, 1, 0], [0, 0, 0]]), [3.815212, 0], 1e-6)


def test_sigmoid_worked():
    losses = naive.sigmoid_cross_entropy([1, -1, 0, 1, -1, 0, 0], [0, 0, 0, 1, 1, 1, 0.5])
    assert_close(losses, [1.3132617, 0.3132617, 0.6931472, 0.3132617, 1.3132617, 0.6931472, 0.6931472])
    weighted = naive.weighted_sigmoid_cross_entropy([1.5, -0.1, -10], [1, 0.5, 0], 1.5)
    np.testing.assert_allclose(weighted, [0.30211994, 0.88049585, 4.5398e-05], rtol=1e-6, atol=1e-9)


def test_log_loss_worked():
    assert_close(naive.log_loss([0.0], [1.0]), [16.118095])
    assert_close(naive.log_loss([0.0, 1.0], [0.0, 1.0], epsilon=0.0) + 1, [1, 1])


@pytest.mark.parametrize(
    ("label_smoothing", "none", "mean"),
    [(0.0, [2.407606, 2.197225, 0], 1.534944), (0.1, [2.340939, 2.087363, 0.150318], 1.526207)],
)
def test_class_weights_worked(label_smoothing, none, mean):
    arguments = {"logits": [[1, 2, 3], [0, 0, 0], [3, 1, 0]], "labels": [0, 1, 2], "class_weights": [1, 2, 0]}
    arguments["label_smoothing"] = label_smoothing
    assert_close(naive.call("sparse_softmax_cross_entropy", **arguments), none, 1e-6)
    assert_close(naive.call("sparse_softmax_cross_entropy", **arguments, reduction="mean"), mean, 1e-6)


def test_wide_and_huge():
    assert_close(naive.sparse_softmax_cross_entropy(np.zeros((1, 1_000_000), np.float16), [7]), [13.815510558], 1e-11)
    assert naive.sparse_softmax_cross_entropy([[3e38, -3e38, 0]], [1]).tolist() == [6e38]
    assert_close(naive.sparse_softmax_cross_entropy([[0.0, -50.0]], [0]), [math.log1p(math.exp(-50))], 1e-15)


def test_rare_positives_lose_nothing():
    """At V = 1e5 and logits of -15 a naive sum of log(1 + e^x) in float32 is 0."""
    loss = naive.sparse_sigmoid_cross_entropy(np.full((1, 100_000), -15.0), [[]])
    assert_close(loss, [1e5 * math.log1p(math.exp(-15))], 1e-14)


@pytest.mark.parametrize(
    ("reduction", "value"),
    [("sum", 6.5), ("mean", 1.3), ("sum_over_batch_size", 13 / 12), ("sum_by_nonzero_weights", 1.625)],
)
def test_reductions_worked(reduction, value):
    losses, weights = [[0, 1], [2, 3], [4, 5]], [[2], [0], [0.5]]
    assert_close(naive.compute_weighted_loss(losses, weights, reduction), value, 1e-15)
    assert_close(naive.compute_weighted_loss(losses, weights), 1.625, 1e-15)
    lost = [[0, 1], [NAN, 3], [4, 5]]
    assert_close(naive.compute_weighted_loss(lost, weights, reduction), value, 1e-15)


@pytest.mark.parametrize("reduction", ["mean", "sum_over_batch_size", "sum_by_nonzero_weights"])
def test_nothing_to_average_is_nan(reduction):
    assert math.isnan(naive.compute_weighted_loss([], reduction=reduction))
    assert math.isnan(naive.compute_weighted_loss([1.0, 2.0], reduction=reduction, ignored=[True, True]))
    assert naive.compute_weighted_loss([], reduction="sum") == 0


def test_expected_counts_worked():
    """Q of the golden samples: log-uniform with 9 tries for 8 unique, and with replacement."""
    p = [naive.log_uniform_probability(c, 1000) for c in (0, 9)]
    assert_close([naive.expected_count(x, 8, 9) for x in p], [0.613851547, 0.117524706], 1e-7)
    p = [naive.log_uniform_probability(c, 10**6) for c in (0, 9)]
    assert_close([naive.expected_count(x, 8, 8) for x in p], [0.401373297, 0.0551902428], 1e-7)
    p = naive.unigram_probabilities(np.arange(1, 11), distortion=0.75)
    tries = next(n for n in range(6, 100) if abs(naive.expected_count(p[0], 6, n) - 0.184388205) < 1e-7)
    assert_close(naive.expected_count(p[9], 6, tries), 0.708272874, 1e-7)
    assert naive.unigram_probabilities([0, 3, 5], distortion=0.0) == [0, 0.5, 0.5]
    assert naive.log_uniform_probability(2**25, 2**26) > 0


# Edges


def test_infinite_and_nan_logits():
    """NaN in the row or +inf at its label: NaN. +inf elsewhere: inf. -inf: a masked class."""
    logits = [[NAN, 0, 0], [INF, 0, 0], [0, INF, 0], [0, -INF, 0], [-INF, 0, 0], [-INF] * 3]
    expected = [NAN, NAN, INF, math.log(2), INF, NAN]
    np.testing.assert_allclose(naive.sparse_softmax_cross_entropy(logits, [0] * 6), expected)
    np.testing.assert_allclose(naive.softmax_cross_entropy(logits, [[1, 0, 0]] * 6), expected)
    np.testing.assert_array_equal(naive.logsumexp(logits)[[0, 1, 5]], [NAN, INF, -INF])


def test_sigmoid_at_infinity():
    assert naive.sigmoid_cross_entropy([INF, INF, -INF, -INF], [1, 0, 1, 0]).tolist() == [0, INF, INF, 0]
    assert np.isnan(naive.sigmoid_cross_entropy([NAN, NAN], [1, 0])).all()
    logits = [[-INF, 0.0, INF]]
    assert_close(naive.sparse_sigmoid_cross_entropy(logits, [[2]]), [math.log(2)])
    assert naive.sparse_sigmoid_cross_entropy(logits, [[0]]).tolist() == [INF]


def test_two_classes_are_one_sigmoid():
    x = np.linspace(-30, 30, 13)
    logits = np.stack([x, np.zeros(13)], axis=1)
    assert_close(
        naive.sparse_softmax_cross_entropy(logits, [0] * 13), naive.sigmoid_cross_entropy(x, np.ones(13)), 1e-14
    )


def test_sets_of_ids_in_every_form():
    logits = [[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]]
    rows = naive.sparse_sigmoid_cross_entropy(logits, [[0, 2], [1, 2]], pos_weight=[2.0, 3.0, 0.5])
    pair = (np.array([0, 2, 4]), np.array([0, 2, 1, 2]))
    assert_close(naive.sparse_sigmoid_cross_entropy(logits, pair, pos_weight=[2.0, 3.0, 0.5]), rows, 0)
    dense = naive.weighted_sigmoid_cross_entropy(logits, [[1, 0, 1], [0, 1, 1]], [2.0, 3.0, 0.5])
    assert_close(rows, dense.sum(1), 1e-15)


def test_ignored_rows():
    arguments = {"logits": [[NAN, 0], [1, 2], [0, 0]], "labels": [-1, 1, 1], "ignore_index": -1}
    one = math.log1p(math.exp(-1))
    assert_close(naive.call("sparse_softmax_cross_entropy", **arguments), [0, one, math.log(2)])
    mean = naive.call("sparse_softmax_cross_entropy", **arguments, weights=[9, 1, 3], reduction="mean")
    assert_close(mean, (one + 3 * math.log(2)) / 4)


def four_rows():
    logits = np.array([[1, 3, 3, 0], [2, 2, 2, 2], [-INF, 0, -INF, 0], [5, 1, 1, 9]], np.float16)
    return logits, np.array([2, 3, 1, 1])


def test_values_of_a_row():
    logits, labels = four_rows()
    assert naive.rank(logits, labels).tolist() == [1, 1, 1, 3]
    assert naive.tied(logits, labels).tolist() == [True, True, True, True]
    assert naive.tied(logits, labels * 0).tolist() == [False, True, True, False]
    assert naive.argmax(logits).tolist() == [1, 0, 1, 3]
    assert naive.top_k_hits(logits, labels, 2).tolist() == [True, True, True, False]
    assert naive.top_k_hits(logits, labels, 3).all()
    assert_close(naive.logsumexp(logits)[1:3], [2 + math.log(4), math.log(2)])
    assert_close(naive.entropy(logits)[1:3], [math.log(4), math.log(2)])
    p = np.exp([5, 1, 1, 9.0]) / np.exp([5, 1, 1, 9.0]).sum()
    assert_close(naive.entropy(logits)[3], -(p * np.log(p)).sum(), 1e-14)


def test_values_of_a_corpus():
    losses = [1.0, 2.0, 4.0]
    assert_close(naive.perplexity(losses), math.exp(7 / 3), 1e-15)
    assert_close(naive.perplexity(losses, [1, 0, 1]), math.exp(2.5), 1e-15)
    assert_close(naive.stderr(losses), np.std(losses, ddof=1) / math.sqrt(3), 1e-15)
    assert_close(naive.perplexity_stderr(losses), math.exp(7 / 3) * naive.stderr(losses), 1e-15)
    assert_close(naive.bits_per_byte(losses, [3, 3, 1]), 1 / math.log(2), 1e-15)


# Sampled losses


def layer():
    rng = np.random.default_rng(5)
    return {"weights": rng.normal(size=(7, 3)), "biases": rng.normal(size=7), "inputs": rng.normal(size=(4, 3))}


def test_all_candidates_make_sampled_softmax_exact():
    parts, labels = layer(), np.array([[0], [6], [3], [3]])
    everything = (np.arange(7), np.ones((4, 1)), np.ones(7))
    full = naive.call("linear_cross_entropy", **parts, labels=labels[:, 0])
    assert_close(naive.call("sampled_softmax_loss", **parts, labels=labels, sampled_values=everything), full, 1e-13)


def test_a_hit_is_left_out_with_all_its_copies():
    parts, labels = layer(), np.array([[3, 3]] * 4)
    counts = np.full((4, 2), 0.5)
    for loss in ("sampled_softmax_loss", "nce_loss"):
        with_copies = ([3, 1, 3], counts, [0.5, 0.25, 0.5])
        without = ([1], counts, [0.25])
        got = naive.call(loss, **parts, labels=labels, sampled_values=with_copies, remove_accidental_hits=True)
        expected = naive.call(loss, **parts, labels=labels, sampled_values=without, remove_accidental_hits=False)
        assert got.tolist() == expected.tolist()


def test_ragged_labels_and_their_counts():
    parts = layer()
    sample = [1, 5], [0.25, 0.5]
    ragged = (np.array([0, 1, 3, 4, 6]), np.array([2, 0, 4, 6, 3, 5]))
    flat = [0.5, 0.25, 0.75, 0.5, 1.5, 0.25]
    for loss in ("sampled_softmax_loss", "nce_loss"):
        got = naive.call(loss, **parts, labels=ragged, sampled_values=(sample[0], flat, sample[1]))
        for row, (start, stop) in enumerate(((0, 1), (1, 3), (3, 4), (4, 6))):
            one = {**parts, "inputs": parts["inputs"][row : row + 1], "labels": ragged[1][None, start:stop]}
            assert naive.call(loss, **one, sampled_values=(sample[0], [flat[start:stop]], sample[1])) == got[row]


def test_nce_true_label_one():
    """softplus(t) - t for each true label, in place of softplus(t) - t / T."""
    parts, labels = layer(), np.array([[0, 2]] * 4)
    common = {"labels": labels, "sampled_values": ([1], np.ones((4, 1)), [0.5])}
    logits = naive.linear_logits(parts["inputs"], parts["weights"], parts["biases"])
    got = naive.call("nce_loss", **parts, **common, true_label="one")
    uniform = naive.call("nce_loss", **parts, **common)
    assert_close(got, uniform - logits[:, [0, 2]].sum(1) / 2, 1e-12)
