"""From the random stream to candidates: seeds, the words of one call, the loop over unique draws, expected counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bigvocab.arguments import integer
from bigvocab.errors import BigvocabError, Keyword
from bigvocab.kernels import random as kernels

MAX_INT32 = 2**31 - 1
MAX_TRIES = 2**31 - 2  # TensorFlow counts tries in an int32, and aborts the process beyond
_SEED_BASE = 2**31 - 1  # TensorFlow takes seeds modulo this
_DEFAULT_GRAPH_SEED = 87654321
_DRAWS_AT_ONCE = 8192  # draws and their words stay in the second-level cache
_SPARE_WORDS = 128  # rejection takes less than half of the words, so that one draw fails to get through once in 2^60


def seed_pair(seed: Any) -> tuple[int, int]:
    """The two seeds that TensorFlow's kernel sees: an int is its op seed alone, and (0, 0) would mean random seeds."""
    pair = tuple(seed) if isinstance(seed, (tuple, list)) or np.ndim(seed) else (_DEFAULT_GRAPH_SEED, seed)
    if len(pair) != 2:
        raise BigvocabError(Keyword("seed"), f": expected an int or a pair of ints, got {len(pair)} values")
    first, second = (integer("seed", value, -(2**63), 2**63 - 1) % _SEED_BASE for value in pair)
    return (first, second) if first or second else (0, _SEED_BASE)


class Fill(Protocol):
    """Turns the words of `pairs` from `start` on into draws; returns (draws made, words used)."""

    def __call__(self, pairs: np.ndarray, start: int, draws: np.ndarray) -> tuple[int, int]: ...  # noqa: D102


class Stream:
    """The draws of one call: TensorFlow's words from the first of call `step` on, in order, through `fill`.

    Args:
        seed: int or pair of ints.
        step: number of the call, from 0.
        num_sampled: S; each call of an op reserves 2048 S words (in TensorFlow that product overflows an int32 from
            S = 2^20 on, and its draws differ from step 1 on).
        fill: what makes draws of words.
        words_per_draw: how many it takes for one, rejections apart.
    """

    def __init__(self, seed: Any, step: int, num_sampled: int, fill: Fill, words_per_draw: int) -> None:
        self._seeds = tuple(map(np.uint64, seed_pair(seed)))
        self._position = 2048 * integer("step", step, 0, 2**62 // (2048 * num_sampled)) * num_sampled
        self._fill, self._words_per_draw = fill, words_per_draw
        self._pairs, self._draws = np.empty(0, np.uint64), np.empty(0, np.int64)

    def draw(self, count: int) -> npt.NDArray[np.int64]:
        """The next draws, at most `count` and at least one; valid until the next call."""
        count = min(count, _DRAWS_AT_ONCE)
        block, start = divmod(self._position, 4)
        num_pairs = (start + count * self._words_per_draw + _SPARE_WORDS) // 4 * 2
        if num_pairs > self._pairs.size or count > self._draws.size:
            self._pairs, self._draws = np.empty(num_pairs, np.uint64), np.empty(count, np.int64)
        pairs, draws = self._pairs[:num_pairs], self._draws[:count]
        kernels.philox_pairs(pairs, *self._seeds, np.uint64(block))
        made, used = self._fill(pairs, start, draws)
        self._position += used
        return draws[:made]


def draw_all(stream: Stream, num_sampled: int) -> npt.NDArray[np.int64]:
    """`num_sampled` draws, repetitions and all."""
    candidates = np.empty(num_sampled, np.int64)
    filled = 0
    while filled < num_sampled:
        draws = stream.draw(num_sampled - filled)
        candidates[filled : filled + len(draws)] = draws
        filled += len(draws)
    return candidates


def draw_unique(
    stream: Stream, num_sampled: int, range_max: int, check_patience: Callable[[], None]
) -> tuple[npt.NDArray[np.int64], int]:
    """`num_sampled` different draws in the order in which they came, and the number of tries.

    `check_patience` is called once, after some 10 ms of a draw that takes many tries, and may raise.
    """
    candidates = np.empty(num_sampled, np.int64)
    keep = _keeper(range_max, candidates)
    picked = num_tries = rounds = 0
    while picked < num_sampled:
        rest = num_sampled - picked
        picked, used = keep(stream.draw(rest + rest // 4 + (16 << min(rounds, 16))), picked)
        num_tries += used
        rounds += 1
        if rounds == 64 + num_sampled // 64:
            check_patience()
        if num_tries > MAX_TRIES:
            raise BigvocabError(
                Keyword("num_sampled"),
                f": {num_tries} draws gave only {picked} different classes of the {num_sampled} asked for",
            )
    return candidates, num_tries


def _keeper(range_max: int, candidates: np.ndarray) -> Callable[[np.ndarray, int], tuple[int, int]]:
    """A bitmap of all classes where that is small beside the work of S draws, else a hash table of O(S)."""
    if range_max <= 1024 * candidates.size:
        seen = np.zeros(range_max // 64 + 1, np.uint64)
        return lambda draws, picked: kernels.keep_new_bits(draws, seen, candidates, picked)
    slots = np.full(2 << candidates.size.bit_length(), -1, np.int64)
    return lambda draws, picked: kernels.keep_new_hashed(draws, slots, candidates, picked)


def expected_count(probability: npt.NDArray[np.float64], num_sampled: int, num_tries: int) -> npt.NDArray[np.float64]:
    """Q = p S where no draw was rejected, else 1 - (1 - p)^num_tries, by expm1 and log1p: p may be 1e-12."""
    if num_tries == num_sampled:
        return probability * num_sampled
    with np.errstate(divide="ignore"):  # a probability that rounds to 1
        count = np.log1p(-probability)
    count *= num_tries
    np.expm1(count, out=count)
    return np.negative(count, out=count)
