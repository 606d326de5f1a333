"""The samplers: TensorFlow's draws to the last one, their statistics, and what is refused."""

import hashlib
import json
import math
import os
import pickle
import threading
import tracemalloc
from decimal import Decimal, localcontext

import golden_files
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bigvocab as bv
from bigvocab.kernels import alias
from bigvocab.kernels import random as kernels
from bigvocab.sampling.vocab_file import parse_by_arrow, parse_plain

CASES = json.loads((golden_files.FOLDER / "samplers.json").read_text())["cases"]
LEARNED = {"counts": [5, 0, 1, 30, 2, 9, 0, 0, 14, 3]}


def unigrams(words, kind):
    """As in scripts/golden/samplers_tensorflow.py."""
    if kind == "zipf":
        return [1000.0 / (i + 1) for i in range(words)]
    return [float(1 + i * 7919 % 1000) for i in range(words)]


def make(case, folder):
    arguments = dict(case["arguments"])
    if isinstance(arguments.get("unigrams"), dict):
        arguments["unigrams"] = unigrams(**arguments["unigrams"])
    if "vocab_lines" in arguments:
        arguments["vocab_file"] = folder / "vocab.txt"
        arguments["vocab_file"].write_bytes(arguments.pop("vocab_lines").encode())
    return getattr(bv, case["sampler"])(**arguments)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_tensorflow_draws(case, tmp_path):
    """Every candidate is TensorFlow's; expected counts agree to what its float32 holds."""
    sampler, num_sampled, unique = make(case, tmp_path), case["num_sampled"], case["unique"]
    for step, golden in enumerate(case["steps"]):
        values = sampler.sample(case["true_classes"], num_sampled, unique=unique, seed=tuple(case["seed"]), step=step)
        candidates, true_count, sampled_count = values[:3]
        shown = len(golden["candidates"])
        assert candidates[:shown].tolist() == golden["candidates"]
        if "sha256" in golden:
            assert hashlib.sha256(candidates.astype("<i8").tobytes()).hexdigest() == golden["sha256"]
        assert (candidates.dtype, true_count.dtype, sampled_count.dtype) == (np.int64, np.float64, np.float64)
        if unique and num_sampled == sampler.range_max:
            assert sorted(candidates) == list(range(num_sampled))
            assert (true_count == 1).all()
            assert (sampled_count == 1).all()
            continue
        # TensorFlow's log((c + 2) / (c + 1)) loses c's digits at 2^40, and it adds up 1e5 unigrams in float32
        tolerance = {2**40: 2e-4, 10**5: 2e-4}.get(sampler.range_max, 2e-6)
        np.testing.assert_allclose(true_count, golden["true_expected_count"], rtol=tolerance)
        np.testing.assert_allclose(sampled_count[:shown], golden["sampled_expected_count"], rtol=tolerance)


def test_goldens_cover_all_samplers():
    assert {case["sampler"] for case in CASES} == {name for name in bv.__all__ if name.endswith("Sampler")}


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        (0, 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (2**128 - 1, 2**64 - 1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (0x0370734413198A2E85A308D3243F6A88, 0x299F31D0A4093822, "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_known_answers(counter, key, words):
    """The three vectors that the authors of Philox publish with Random123."""
    pairs = np.empty(2, np.uint64)
    kernels.philox_pairs(pairs, np.uint64(key), np.uint64(counter >> 64), np.uint64(counter & (2**64 - 1)))
    got = [int(pair) >> shift & 0xFFFFFFFF for pair in pairs for shift in (0, 32)]
    assert got == [int(word, 16) for word in words.split()]


def naive_alias(weights):
    """TensorFlow's table, told with its own types: float32 probabilities and aliases."""
    size, total = len(weights), sum(float(w) for w in weights)
    mass = [float(w * np.float32(size)) / total for w in weights]
    aliases, low, high = list(range(size)), [], []
    for i in range(size):
        (low if mass[i] < 1 else high).append(i)
    while low and high:
        small, large = low.pop(), high.pop()
        aliases[small] = large
        mass[large] -= 1 - mass[small]
        (low if mass[large] < 1 else high).append(large)
    for i in low + high:
        mass[i] = 1.0
    return np.float32(mass), aliases


@given(st.lists(st.floats(0, 2.0**30, width=32) | st.sampled_from([1.0, 2.0, 1e-12]), min_size=1, max_size=150))
@settings(max_examples=300, deadline=None)
def test_alias_table(weights):
    """A 23-bit fraction k is below the threshold just where k / 2^23 is below the float32 probability."""
    weights = np.array([*weights, 1.0], np.float32)
    size = len(weights)
    table = np.empty((size, 2), np.uint32)
    alias.build_alias(weights, table.view(np.float64).reshape(-1), np.empty(-(-size // 64), np.uint64), table)
    probabilities, aliases = naive_alias(weights)
    assert table[:, 1].tolist() == aliases
    thresholds = table[:, 0].astype(np.int64)
    assert ((thresholds - 1) / 2**23 < probabilities).all()
    assert (thresholds / 2**23 >= probabilities).all()
    drawn = alias.alias_probabilities(table)
    np.testing.assert_allclose(drawn, weights / weights.sum(dtype=np.float64), rtol=1e-5, atol=2.0**-22)


def test_weights_of_any_kind_are_the_same_sampler():
    """A list of ints, of floats, of both, beyond int64, a tuple, arrays of any type: the same draws, one P."""

    def draws_of(sampler):
        return sampler.sample([[0]], 100_000, unique=False, seed=1).sampled_candidates

    small = [3, 1, 4, 1, 5, 0, 9]
    given = [small, tuple(small), [float(n) for n in small], [3, 1.0, 4, True, 5, 0, np.int64(9)]]
    given += [[3.0, 1, 4, 1, 5, 0, 9], [3, 1, 4, 1, 5, 0, np.float32(9)], [np.int8(3), *small[1:]]]
    given += [np.array(small, dtype) for dtype in ("u1", "i4", "f2", "f4", "f8", ml_dtypes.bfloat16)]
    first, *others = [bv.FixedUnigramSampler(weights, distortion=0.75) for weights in given]
    for other in others:
        np.testing.assert_array_equal(*(draws_of(sampler) for sampler in (other, first)))
        np.testing.assert_array_equal(other.probability(np.arange(7)), first.probability(np.arange(7)))
    assert bv.FixedUnigramSampler([2**70, 2**70]).probability([1]) == 0.5
    for bad in ([1, -1], [1.0, -1.0]):  # what the C functions also return for an error
        with pytest.raises(bv.BigvocabError, match="unigrams: row 1 is -1"):
            bv.FixedUnigramSampler(bad)
    for bad in ([1, "2"], [1.0, None], [1, 1j], [1.0, np.complex128(3 + 4j)]):
        with pytest.raises((TypeError, bv.BigvocabError), match="unigrams"):
            bv.FixedUnigramSampler(bad)
    assert first.probability([5]) == 0


def test_many_weights_by_several_threads():
    weights = np.random.default_rng(0).integers(0, 9, 300_000)
    sampler = bv.FixedUnigramSampler(weights, distortion=0.75)
    expected = weights**0.75 / (weights**0.75).sum()
    np.testing.assert_allclose(sampler.probability(np.arange(len(weights))), expected, rtol=1e-12)


def test_float32_powers():
    """The C library's powf is within one unit of the last place, and mostly right."""
    weights = np.random.default_rng(0).lognormal(0, 5, 10_000).astype(np.float32)
    powers = np.empty_like(weights)
    kernels.power_float32(weights, np.float32(0.75), powers)
    exact = np.float32(weights.astype(np.float64) ** 0.75)
    assert np.mean(powers == exact) > 0.99
    np.testing.assert_array_max_ulp(powers, exact, maxulp=1)


# Probabilities and expected counts


SAMPLERS = {
    "uniform": lambda: bv.UniformSampler(10),
    "log-uniform": lambda: bv.LogUniformSampler(10),
    "unigram": lambda: bv.FixedUnigramSampler([5, 0, 1, 30, 2, 9, 4, 4, 14, 3], distortion=0.75),
    "unigram, reserved": lambda: bv.FixedUnigramSampler([5, 0.5, 1, 2, 9, 4], num_reserved_ids=4),
    "learned-unigram": lambda: bv.LearnedUnigramSampler.from_state(LEARNED),
}
all_samplers = pytest.mark.parametrize("name", SAMPLERS)


@all_samplers
def test_probabilities_sum_to_one(name):
    probability = SAMPLERS[name]().probability(np.arange(10, dtype=np.uint8).reshape(5, 2))
    assert probability.shape == (5, 2)
    assert probability.dtype == np.float64
    assert math.isclose(probability.sum(), 1.0, rel_tol=1e-14)


@pytest.mark.parametrize("range_max", [1, 1000, 2**24, 2**31, 2**40])
def test_log_uniform_probability_is_exact(range_max):
    ids = sorted({0, 1, 7, range_max // 3, 2**24 % range_max, range_max - 1})
    ids = [i for i in ids if i < range_max]
    with localcontext(prec=60):
        exact = [float((Decimal(i + 2) / Decimal(i + 1)).ln() / Decimal(range_max + 1).ln()) for i in ids]
    np.testing.assert_allclose(bv.LogUniformSampler(range_max).probability(ids), exact, rtol=1e-15 * 4)


def test_unigram_probability():
    weights = np.array([0.1, 0.0, 7.0, 3e-20])
    for distortion in (0.75, 1.0, 2.0):
        expected = weights**distortion / (weights**distortion).sum()
        got = bv.FixedUnigramSampler(weights, distortion=distortion).probability(range(4))
        np.testing.assert_allclose(got, expected, rtol=1e-14)
    assert (bv.FixedUnigramSampler(weights, distortion=0).probability(range(4)) == 0.25).all()
    assert bv.FixedUnigramSampler([1.0, 1e-60]).probability([0, 1]).tolist() == [1.0, 0.0]


def test_weights_are_taken_in_any_type():
    expected = bv.FixedUnigramSampler([1.0, 2.0, 5.0]).sample([[0]], 50, unique=False, seed=3)
    for weights in (
        (1, 2, 5),
        np.array([1, 2, 5], np.uint8),
        np.array([1, 2, 5], ">f4"),
        np.array([1, 2, 5], np.float16),
    ):
        values = bv.FixedUnigramSampler(weights).sample([[0]], 50, unique=False, seed=3)
        assert (values.sampled_candidates == expected.sampled_candidates).all()
        assert (values.sampled_expected_count == expected.sampled_expected_count).all()


@all_samplers
def test_expected_counts_follow_the_formula(name):
    for num_sampled, unique in ((5, True), (40, False)):
        values = SAMPLERS[name]().sample([[4, 8]], num_sampled, unique=unique, seed=(1, 2), step=3)
        assert values.num_tries >= num_sampled
        assert unique or values.num_tries == num_sampled
        for ids, count in ((np.array([[4, 8]]), values[1]), (values[0], values[2])):
            p = SAMPLERS[name]().probability(ids)
            exact = [-math.expm1(values.num_tries * math.log1p(-x)) for x in p.flat]
            expected = p * num_sampled if values.num_tries == num_sampled else np.reshape(exact, p.shape)
            np.testing.assert_allclose(count, expected, rtol=1e-14)


def test_num_tries_counts_every_draw():
    """The unique candidates are the first different ones of the same stream with replacement."""
    for range_max, num_sampled in ((100, 70), (10**6, 3000), (2**33, 2000), (300, 300)):
        sampler = bv.LogUniformSampler(range_max)
        unique = sampler.sample([[0]], num_sampled, seed=5)
        draws = sampler.sample([[0]], 60_000, unique=False, seed=5).sampled_candidates
        _, first = np.unique(draws, return_index=True)
        first.sort()
        assert (draws[first[:num_sampled]] == unique.sampled_candidates).all()
        assert unique.num_tries == first[num_sampled - 1] + 1


# Statistics


def _chi_square_limit(freedom):
    """What a chi-square passes once in 30,000 tests (Wilson and Hilferty 1931)."""
    spread = 2 / (9 * freedom)
    return freedom * (1 - spread + 4.0 * math.sqrt(spread)) ** 3


@pytest.mark.parametrize(
    "sampler",
    [
        bv.UniformSampler(1000),
        bv.LogUniformSampler(1000),
        bv.FixedUnigramSampler([math.sqrt(i) for i in range(1000)], distortion=0.75, num_reserved_ids=3),
        bv.LearnedUnigramSampler.from_state({"counts": [i * i % 50 for i in range(1000)]}),
    ],
    ids=repr,
)
@pytest.mark.parametrize("seed", [0, (12, 34)], ids=str)
def test_draws_follow_the_probabilities(sampler, seed):
    draws = sampler.sample(np.empty((0, 1), int), 100_000, unique=False, seed=seed).sampled_candidates
    expected = 100_000 * sampler.probability(np.arange(sampler.range_max))
    drawn = np.bincount(draws, minlength=sampler.range_max)
    assert (drawn[expected == 0] == 0).all()
    drawn, expected = drawn[expected > 0], expected[expected > 0]
    assert ((drawn - expected) ** 2 / expected).sum() < _chi_square_limit(len(expected) - 1)


def test_all_candidates_come_once_each():
    values = bv.AllCandidateSampler(7).sample([[2], [6]], 7, seed=1)
    assert values.sampled_candidates.tolist() == list(range(7))
    assert values.true_expected_count.tolist() == [[1.0], [1.0]]
    assert values.sampled_expected_count.tolist() == [1.0] * 7
    assert values.num_tries == 7
    assert (bv.AllCandidateSampler(7).probability([0, 6]) == 1 / 7).all()


@pytest.mark.parametrize(
    "sampler",
    [
        bv.UniformSampler(200),
        bv.LogUniformSampler(200),
        bv.FixedUnigramSampler([math.sqrt(i + 1) for i in range(197)], distortion=0.75, num_reserved_ids=3),
        bv.LearnedUnigramSampler.from_state({"counts": [i * i % 50 for i in range(200)]}),
    ],
    ids=repr,
)
def test_inclusion_rates_follow_expected_counts(sampler):
    """Q takes the number of tries as given, so it is near the rate only where many draws were repetitions."""
    steps, included, expected = 3000, np.zeros(200), np.zeros(200)
    classes = np.flatnonzero(sampler.probability(np.arange(200)))
    sampler.learn = lambda true_ids: None  # the learned one must not learn here
    for step in range(steps):
        values = sampler.sample(classes[None], 60, seed=(3, 4), step=step)
        included[values.sampled_candidates] += 1 / steps
        expected[classes] += values.true_expected_count[0] / steps
    assert abs(included - expected).max() < 0.04
    assert math.isclose(included.sum(), 60.0)
    assert math.isclose(expected.sum(), 60.0, rel_tol=5e-3)


# Seeds, steps, threads


@all_samplers
def test_same_seed_and_step_give_the_same_draw(name):
    def draw(**keywords):
        return SAMPLERS[name]().sample([[4]], 500, unique=False, **keywords).sampled_candidates.tolist()

    seeds = [{"seed": 1}, {"seed": 2}, {"seed": (1, 2)}, {"seed": (2, 1)}, {"seed": 1, "step": 1}]
    draws = [draw(**keywords) for keywords in seeds]
    assert draws == [draw(**keywords) for keywords in seeds]
    assert len(set(map(tuple, draws))) == len(seeds)
    assert (
        draws[0] == draw(seed=(87654321, 1)) == draw(seed=np.int32(1)) == draw(seed=2**31) == draw(seed=[87654321, 1])
    )
    assert draw(seed=(0, 0)) == draw(seed=(0, 2**31 - 1)) == draw(seed=(2**31 - 1, 0)) != draw(seed=(0, 1))
    assert draw(seed=-1) == draw(seed=2**31 - 2)
    assert draw(seed=1, step=10**9) != draw(seed=1, step=10**9 + 1)


def test_true_classes_do_not_change_the_draw():
    sampler = bv.LogUniformSampler(50)
    draws = {tuple(sampler.sample(true, 20, seed=1)[0]) for true in ([[0]], [[1, 2], [3, 4]], np.empty((0, 3), int))}
    assert len(draws) == 1


def test_threads_draw_the_same():
    sampler = bv.LogUniformSampler(10**6)
    expected = [sampler.sample([[0]], 5000, seed=1, step=step)[0] for step in range(8)]
    got = [None] * 8

    def work(step):
        got[step] = sampler.sample([[0]], 5000, seed=1, step=step)[0]

    threads = [threading.Thread(target=work, args=(step,)) for step in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((a == b).all() for a, b in zip(expected, got, strict=True))


def test_ragged_true_classes():
    sampler = bv.LogUniformSampler(100)
    matrix = sampler.sample([[3, 9], [5, 5], [0, 99]], 10, seed=1)
    ragged = sampler.sample((np.array([0, 2, 2, 4, 6], np.int32), [3, 9, 5, 5, 0, 99]), 10, seed=1)
    assert matrix.true_expected_count.shape == (3, 2)
    assert ragged.true_expected_count.tolist() == matrix.true_expected_count.ravel().tolist()
    assert sampler.sample(([0, 0], []), 10, seed=1).true_expected_count.shape == (0,)


def test_memory_is_that_of_the_candidates():
    sampler = bv.LogUniformSampler(2**31)
    sampler.sample([[0]], 20_000, seed=1)
    tracemalloc.start()
    sampler.sample([[0]], 20_000, seed=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * 20_000


def test_samplers_can_be_pickled():
    for make_one in SAMPLERS.values():
        first, second = make_one(), pickle.loads(pickle.dumps(make_one()))
        assert (first.sample([[4]], 5, seed=1)[0] == second.sample([[4]], 5, seed=1)[0]).all()
    assert repr(bv.LogUniformSampler(10)) == "LogUniformSampler(range_max=10)"


# The learned sampler's state


def test_learned_counts(tmp_path):
    sampler = bv.LearnedUnigramSampler(6)
    sampler.sample([[1, 1], [4, 5]], 3, seed=1)
    sampler.sample(([0, 1, 3], [2, 1, 1]), 3, seed=1, step=1)
    assert sampler.state()["counts"].tolist() == [0, 4, 1, 0, 1, 1]
    assert sampler.probability(range(6)).tolist() == [n / 13 for n in (1, 5, 2, 1, 2, 2)]
    np.savez(tmp_path / "state.npz", **sampler.state())
    for state in (sampler.state(), np.load(tmp_path / "state.npz")):
        restored = bv.LearnedUnigramSampler.from_state(state)
        assert restored.state()["counts"].tolist() == sampler.state()["counts"].tolist()
        expected = pickle.loads(pickle.dumps(sampler)).sample([[0]], 4, seed=1, step=2)
        got = restored.sample([[0]], 4, seed=1, step=2)
        assert all(np.array_equal(a, b) for a, b in zip(expected, got, strict=True))


def test_learned_counts_stop_where_int32_is_full():
    sampler = bv.LearnedUnigramSampler.from_state({"counts": [2**31 - 5, 0]})
    sampler.sample([[0, 1, 1, 1]], 2, unique=False, seed=1)
    assert sampler.state()["counts"].tolist() == [2**31 - 4, 1]
    assert sampler.sample([[0]], 50, unique=False, seed=1)[0].sum() == 0


@given(st.lists(st.integers(0, 5), min_size=1, max_size=70), st.data())
@settings(max_examples=60, deadline=None)
def test_learned_tree_against_prefix_sums(counts, data):
    sampler = bv.LearnedUnigramSampler.from_state({"counts": counts})
    true = data.draw(st.lists(st.integers(0, len(counts) - 1), max_size=20))
    sampler.sample(np.reshape(np.array(true, int), (-1, 1)), 1, seed=0)
    weights = np.array(counts) + 1 + np.bincount(np.array(true, int), minlength=len(counts))
    assert sampler.state()["counts"].tolist() == (weights - 1).tolist()
    pairs = np.empty(64, np.uint64)
    kernels.philox_pairs(pairs, np.uint64(1), np.uint64(2), np.uint64(0))
    words = [int(pair) >> shift & 0xFFFFFFFF for pair in pairs for shift in (0, 32)]
    total = int(weights.sum())
    if total & (total - 1):
        words = [word for word in words if word >= (2**32 - 1) % total + 1]
    expected = np.searchsorted(np.cumsum(weights), [word % total for word in words], side="right")
    draws = sampler.sample([[0]], 100, unique=False, seed=(1, 2))[0]
    assert draws.tolist() == expected[:100].tolist()


# Vocabulary files, reserved ids, shards


def _weights(path):
    from bigvocab.sampling.vocab_file import read_vocab_weights

    return read_vocab_weights(path).tolist()


@pytest.mark.parametrize(
    "text",
    [
        b"a,1\nb,2.5\nc,0\n",
        b"a,1\nb,2.5\nc,0",
        b"a,1\r\nb,2.5\r\nc,0\r\n",
        b"a, 1 \nb,\t2.5\nc,0e0 \n",
        b"1\n2.5\n0\n",
        b',,1\n"b, ""c""",2.5\n\xff\xfe\x00,0\n',
        "höchst, selten,+1\n,25e-1\n語,.0\n".encode(),
    ],
)
def test_vocab_file_forms(text, tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes(text)
    assert _weights(path) == [1.0, 2.5, 0.0]


_FIELDS = (
    st.integers(0, 10**17).map(str)
    | st.tuples(st.integers(0, 10**17), st.integers(0, 18)).map(lambda drawn: f"{drawn[0]:019d}"[drawn[1] :] + ".5")
    | st.from_regex(r"[0-9]{0,8}[.]?[0-9]{0,8}", fullmatch=True)
    | st.sampled_from(["1e5", "-1", " 4", "1.2.3"])
)
_LINES = st.lists(st.tuples(st.sampled_from(["", ",", "w,", "1.5,", "a,b,"]), _FIELDS), min_size=1, max_size=5)


@given(_LINES, st.booleans())
@settings(max_examples=500, deadline=None)
def test_plain_numbers_of_a_vocabulary(lines, ended):
    """What the shortcuts read is what `float` reads; they may only give up, the kernel where a number is not plain."""
    text = "\n".join(word + field for word, field in lines) + "\n" * ended
    if not text:
        return
    found = parse_plain(np.frombuffer(text.encode(), np.uint8))
    fields = [line.rpartition(",")[2] for line in text.removesuffix("\n").split("\n")]
    plain = all(1 <= len(field.replace(".", "", 1)) <= 15 and field.replace(".", "", 1).isdecimal() for field in fields)
    assert (found is not None) == plain
    if plain:
        assert found.tolist() == [float(field) for field in fields]
    by_arrow = parse_by_arrow(np.frombuffer(text.encode(), np.uint8))
    assert by_arrow is None or by_arrow.tolist() == [float(field) for field in fields]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "no line"),
        (b"\n", "line 1: blank"),
        (b"a,1\n\nb,2\n", "line 2: blank"),
        (b"a,1\nb,2\n\n", "line 3: blank"),
        (b"a,1\n \t\r\nb,2\n", "line 2: blank"),
        (b"a,1\nb,two\n", "line 2: last field is 'two'"),
        (b"a,1\nb,\nc,3\n", "line 2: last field is ''"),
        (b"a,1\nb 2\n", "line 2: last field is 'b 2'"),
        (b"a,1_000\n", "line 1: last field is '1_000'"),
        (b"a,0x10\n", "line 1: last field is '0x10'"),
        (b"a,1\nb,-2\n", r"line 2: weight -2\.0"),
        (b"a,1\nb,nan\n", "line 2: weight nan"),
        (b"a,1\nb,1\nc,inf\n", "line 3: weight inf"),
        (b"a,1\nb,1e999\n", "line 2: weight inf"),
        (b"a,5\rb,6\r", "line 1: its words end with CR alone"),
        (b"x,1\na,1\rb,2\rc,3\n", "line 2: its words end with CR alone"),
        (b"x" * 1000 + b"\n", r"line 1: last field is 'x+\.\.\.'"),
    ],
)
def test_vocab_file_errors(text, message, tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes(text)
    with pytest.raises(bv.FormatError, match=message) as caught:
        bv.FixedUnigramSampler(vocab_file=path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 250


def test_vocab_file_in_the_large(tmp_path):
    weights = [round(1e6 / (i + 1), 3) for i in range(100_000)]
    path = tmp_path / "vocab.txt"
    path.write_text("".join(f"word,{i},{w}\n" for i, w in enumerate(weights)))
    from_file = bv.FixedUnigramSampler(vocab_file=str(path), range_max=100_000).sample([[7]], 5000, seed=1)
    from_list = bv.FixedUnigramSampler(weights).sample([[7]], 5000, seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(from_file, from_list, strict=True))
    path.write_text("".join(f"word,{i},{w}\n" for i, w in enumerate(weights)) + "last\n")
    with pytest.raises(bv.FormatError, match="line 100001: last field is 'last'"):
        bv.FixedUnigramSampler(vocab_file=path)


@pytest.mark.parametrize(("reserved", "num_shards"), [(0, 1), (3, 1), (0, 2), (1, 2), (2, 2), (4, 3), (1, 7)])
def test_shards_cover_the_words(reserved, num_shards):
    """Word k has id reserved + k, and stands in shard id % num_shards at id // num_shards."""
    whole = np.concatenate([np.zeros(reserved), np.arange(1.0, 12.0)])
    for shard in range(num_shards):
        sampler = bv.FixedUnigramSampler(
            np.arange(1.0, 12.0), num_reserved_ids=reserved, num_shards=num_shards, shard=shard
        )
        mine = whole[shard::num_shards]
        assert sampler.range_max == len(mine)
        np.testing.assert_allclose(sampler.probability(range(len(mine))), mine / mine.sum(), rtol=1e-15)


# Accidental hits


def naive_hits(rows, candidates):
    return [(i, j) for i, row in enumerate(rows) for j, candidate in enumerate(candidates) if candidate in row]


@given(
    st.lists(st.lists(st.integers(0, 12), max_size=6), max_size=12),
    st.lists(st.integers(0, 12) | st.integers(2**62, 2**62 + 3), max_size=20),
)
@settings(max_examples=200, deadline=None)
def test_hits_against_a_double_loop(rows, candidates):
    offsets = np.cumsum([0, *map(len, rows)])
    flat = np.array([id_ for row in rows for id_ in row], np.int64)
    got = bv.compute_accidental_hits((offsets, flat), np.array(candidates, np.int64))
    assert list(zip(*map(np.ndarray.tolist, got), strict=True)) == naive_hits(rows, candidates)
    assert all(part.dtype == np.int64 for part in got)


def test_hits_of_a_matrix():
    rng = np.random.default_rng(0)
    true, candidates = rng.integers(0, 300, (400, 3)), rng.integers(0, 300, 100)
    got = bv.compute_accidental_hits(true.astype(np.uint16), candidates.astype(np.int32))
    assert list(zip(*map(np.ndarray.tolist, got), strict=True)) == naive_hits(true.tolist(), candidates.tolist())
    assert [part.size for part in bv.compute_accidental_hits(np.empty((0, 2), int), candidates)] == [0, 0]
    assert [part.size for part in bv.compute_accidental_hits([[-1], [5]], [2**63 - 1])] == [0, 0]


# What is refused


def test_other_kinds_of_arguments():
    sampler = bv.LogUniformSampler(10)
    for wrong in (
        lambda: bv.LogUniformSampler(10.0),
        lambda: bv.UniformSampler(True),
        lambda: bv.LearnedUnigramSampler("10"),
        lambda: sampler.probability([0.0, 1.0]),
        lambda: sampler.sample([[0.0]], 3, seed=1),
        lambda: sampler.sample([["a"]], 3, seed=1),
        lambda: sampler.sample([[0]], 3.0, seed=1),
        lambda: sampler.sample([[0]], 3, seed=1.0),
        lambda: sampler.sample([[0]], 3, seed=None),
        lambda: sampler.sample([[0]], 3, seed=(1, True)),
        lambda: sampler.sample([[0]], 3, seed="1"),
        lambda: sampler.sample([[0]], 3, seed=1, step=0.5),
        lambda: sampler.sample([[0]], 3, seed=1, unique="no"),
        lambda: bv.LearnedUnigramSampler.from_state(None),
        lambda: sampler.sample([[0]], 3),
        lambda: sampler.sample(([0.0, 1.0], [1]), 3, seed=1),
        lambda: bv.compute_accidental_hits([[0]], [0.5]),
        lambda: bv.compute_accidental_hits([[0.5]], [0]),
        lambda: bv.FixedUnigramSampler(),
        lambda: bv.FixedUnigramSampler([1.0], vocab_file="x"),
        lambda: bv.FixedUnigramSampler(["1"]),
        lambda: bv.FixedUnigramSampler([1j]),
        lambda: bv.FixedUnigramSampler([True]),
        lambda: bv.FixedUnigramSampler([1.0], distortion="1"),
        lambda: bv.FixedUnigramSampler([1.0], shard=0.0),
    ):
        with pytest.raises(TypeError):
            wrong()


LOG = bv.LogUniformSampler(10)
UNIGRAM = bv.FixedUnigramSampler([1, 0, 2, 0, 3])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: bv.LogUniformSampler(0), "range_max: got 0"),
        (lambda: bv.LogUniformSampler(2**63), "range_max: got"),
        (lambda: bv.LearnedUnigramSampler(2**31 - 1), "range_max: got 2147483647"),
        (lambda: LOG.probability([3, 10, -1]), r"ids: row 1 is 10, expected a class in \[0, 10\)"),
        (lambda: LOG.probability(-1), "ids: row 0 is -1"),
        (
            lambda: LOG.sample([[1, 2], [3, 10]], 3, seed=1),
            r"true_classes: row 1 has the id 10, expected classes in",
        ),
        (lambda: LOG.sample([[-1]], 3, seed=1), "true_classes: row 0 has the id -1"),
        (lambda: LOG.sample([[2**64 - 1]], 3, seed=1), "true_classes: row 0 is 18446744073709551615"),
        (lambda: LOG.sample(([0, 0, 2], [3, 10]), 3, seed=1), "true_classes: row 1 has the id 10"),
        (lambda: LOG.sample([1, 2], 3, seed=1), r"true_classes: got shape \(2,\), expected \(N, T\)"),
        (lambda: LOG.sample(([0, 1], [3, 4]), 3, seed=1), "the last offset is 1, expected 2"),
        (lambda: LOG.sample(([1, 2], [3, 4]), 3, seed=1), "the first offset is 1, expected 0"),
        (lambda: LOG.sample(([0, 2, 1, 2], [3, 4]), 3, seed=1), "row 1: its ids run from 2 to 1 of 2 ids"),
        (lambda: LOG.sample(([], []), 3, seed=1), "got 0 offsets, expected at least 1"),
        (lambda: LOG.sample(([[0]], [[1]]), 3, seed=1), r"of shapes \(1, 1\) and \(1, 1\), expected two arrays of one"),
        (lambda: LOG.sample([[0]], 0, seed=1), "num_sampled: got 0"),
        (lambda: LOG.sample([[0]], -3, seed=1), "num_sampled: got -3"),
        (lambda: LOG.sample([[0]], 11, seed=1), "num_sampled: got 11 unique candidates, but range_max is 10"),
        (lambda: LOG.sample([[0]], 3, seed=(1, 2, 3)), "seed: expected an int or a pair of ints, got 3 values"),
        (lambda: LOG.sample([[0]], 3, seed=1, step=-1), "step: got -1"),
        (lambda: LOG.sample([[0]], 3, seed=1, step=2**60), "step: got"),
        (lambda: bv.AllCandidateSampler(5).sample([[0]], 6, seed=1), "num_sampled: got 6"),
        (lambda: bv.AllCandidateSampler(5).sample([[4]], 4, seed=1), "true_classes: row 0 has the id 4"),
        (lambda: UNIGRAM.sample([[0]], 4, seed=1), "got 4 unique candidates, but the number of classes of positive"),
        (lambda: UNIGRAM.sample([[0, 2], [4, 3]], 2, seed=1), "true_classes: row 1 is 3, a class of weight 0"),
        (lambda: bv.FixedUnigramSampler([1, 2, -3, -4]), r"unigrams: row 2 is -3,"),
        (lambda: bv.FixedUnigramSampler([1, math.nan]), "unigrams: row 1 is nan"),
        (lambda: bv.FixedUnigramSampler([math.inf]), "unigrams: row 0 is inf"),
        (lambda: bv.FixedUnigramSampler([0, 0, 0]), "unigrams: all 3 weights of shard 0 of 1 are 0"),
        (lambda: bv.FixedUnigramSampler([0, 1, 0], num_shards=2), "unigrams: all 2 weights of shard 0 of 2 are 0"),
        (lambda: bv.FixedUnigramSampler([1e300, 1]), r"weight 1e\+300 of word 0.* is past the largest float32"),
        (lambda: bv.FixedUnigramSampler([1e30, 1], distortion=2), r"weight 1e\+30 of word 0"),
        (lambda: bv.FixedUnigramSampler([1, 0], distortion=-1), r"weight 0 of word 1"),
        (lambda: bv.FixedUnigramSampler([]), r"unigrams: .* got shape \(0,\)"),
        (lambda: bv.FixedUnigramSampler([[1.0]]), r"unigrams: .* got shape \(1, 1\)"),
        (lambda: bv.FixedUnigramSampler([1], distortion=math.nan), "distortion: got nan"),
        (lambda: bv.FixedUnigramSampler([1, 2], range_max=3), "range_max: got 3, but unigrams .* has 2 ids"),
        (lambda: bv.FixedUnigramSampler([1, 2, 3], range_max=3, num_shards=2), "has 2 ids in shard 0 of 2"),
        (lambda: bv.FixedUnigramSampler([1], num_reserved_ids=-1), "num_reserved_ids: got -1"),
        (lambda: bv.FixedUnigramSampler([1], num_shards=0), "num_shards: got 0"),
        (lambda: bv.FixedUnigramSampler([1, 1], num_shards=2, shard=2), "shard: got 2"),
        (lambda: bv.FixedUnigramSampler([1, 1], num_shards=9, shard=5), "shard: got 5 of 9, but there are only 2 ids"),
        (lambda: bv.LearnedUnigramSampler.from_state({}), "state: expected the key 'counts'"),
        (lambda: bv.LearnedUnigramSampler.from_state({"counts": [1, -2]}), "count -2 of class 1"),
        (lambda: bv.LearnedUnigramSampler.from_state({"counts": [2**31]}), "sums to 2147483649"),
        (lambda: bv.LearnedUnigramSampler.from_state({"counts": [[1]]}), r"got shape \(1, 1\)"),
        (lambda: bv.compute_accidental_hits([[0]], [[0]]), r"sampled_candidates: .* got \(1, 1\)"),
        (lambda: bv.compute_accidental_hits([[0]], [0, -4]), "sampled_candidates: row 1 is -4"),
    ],
)
def test_bad_values(wrong, message):
    with pytest.raises(bv.BigvocabError, match=message):
        wrong()


@pytest.mark.parametrize(
    ("weights", "num_sampled"),
    [
        ([1e30, 1e-30], 2),
        ([1e15] * 1000 + [1.0] * 1000, 1900),
        ([1e25] * 9 + [1e-30], 10),
        ([1.0] * 492 + [1e-9] * 20, 512),
    ],
)
def test_hopeless_draws_end_soon(weights, num_sampled, monkeypatch):
    """TensorFlow draws 2^31 times here, and aborts."""
    sampler = bv.FixedUnigramSampler(weights)
    draw, made = kernels.alias_draws, []
    monkeypatch.setattr(kernels, "alias_draws", lambda *given: made.append(len(given[-1])) or draw(*given))
    with pytest.raises(bv.BigvocabError, match=f"got {num_sampled} unique candidates, but 2\\^31 draws"):
        sampler.sample([[0]], num_sampled, seed=1)
    assert 0 < sum(made) < 2**25


def test_what_the_items_of_a_list_do_is_theirs():
    """No code of an item runs where the list is only borrowed, and what it raises is not swallowed."""
    weights = [1.0]

    class Emptying:
        def __float__(self):
            weights.clear()
            return 2.5

    class Interrupting:
        def __float__(self):
            raise KeyboardInterrupt

    weights[:] = [1.0, Emptying(), 3.0]
    with pytest.raises((TypeError, bv.BigvocabError), match="unigrams"):
        bv.FixedUnigramSampler(weights)
    with pytest.raises((TypeError, KeyboardInterrupt)):
        bv.FixedUnigramSampler([1.0, Interrupting()])
    with pytest.raises(TypeError, match="unigrams: expected numbers, got"):
        bv.FixedUnigramSampler([1.0, np.void(b"12345678")])


def test_long_draws_are_not_hopeless():
    values = bv.LogUniformSampler(20_000).sample([[0]], 20_000, seed=1)
    assert sorted(values.sampled_candidates) == list(range(20_000))
    assert values.num_tries > 10**6
    for sampler in (bv.UniformSampler(20_000), bv.LogUniformSampler(2**40), bv.LearnedUnigramSampler(20_000)):
        sampler.check_patience(20_000)
    with pytest.raises(bv.BigvocabError, match="too rare"):
        bv.LogUniformSampler(10**9).check_patience(10**9)


@pytest.mark.parametrize("path", [5, b"v.txt", ["v.txt"]])
def test_a_vocabulary_is_a_path(path):
    with pytest.raises(TypeError, match="vocab_file: expected a path, got"):
        bv.FixedUnigramSampler(vocab_file=path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_vocabulary_from_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=("a,3\nb,1\n",), daemon=True)
    writer.start()
    sampler = bv.FixedUnigramSampler(vocab_file=tmp_path / "pipe")
    writer.join()
    np.testing.assert_allclose(sampler.probability([0, 1]), [0.75, 0.25])


@pytest.mark.parametrize(("text", "weights"), [(b"wo\rd,5", [5]), (b"a,5\r\r", [5]), (b"a,5\r\r\nb\r,6\r\n", [5, 6])])
def test_returns_within_words_and_behind_the_last(text, weights, tmp_path):
    (tmp_path / "vocab.txt").write_bytes(text)
    from_file = bv.FixedUnigramSampler(vocab_file=tmp_path / "vocab.txt")
    ids = np.arange(len(weights))
    np.testing.assert_array_equal(from_file.probability(ids), bv.FixedUnigramSampler(weights).probability(ids))


def test_a_list_that_became_shorter_is_not_read_beyond_its_end():
    from bigvocab.kernels import lists

    for read, classes, kind in (
        (lists.read_integers, (int, bool, int), np.int64),
        (lists.read_floats, (int, bool, float), float),
    ):
        values, addresses = [1, 2, 3], tuple(map(id, classes))
        assert read(id(values), addresses, np.empty(3, kind))
        for size in (2, 4):
            assert not read(id(values), addresses, np.empty(size, kind))
