"""The five candidate samplers of sampled softmax and NCE, with the very draws of TensorFlow.

Sources: Jean et al. 2015, doi:10.3115/v1/P15-1001, and TensorFlow's "Candidate Sampling Algorithms Reference".
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from bigvocab.arguments import as_integers, integer, real
from bigvocab.errors import BigvocabError, Keyword
from bigvocab.kernels import alias
from bigvocab.kernels import random as kernels
from bigvocab.labels.ragged import as_ragged
from bigvocab.sampling.candidate_sampler import CandidateSampler, Floats, Ids, SampledValues
from bigvocab.sampling.random_stream import MAX_INT32
from bigvocab.sampling.unigram_weights import as_weights, distorted, of_shard, tables

__all__ = [
    "AllCandidateSampler",
    "FixedUnigramSampler",
    "LearnedUnigramSampler",
    "LogUniformSampler",
    "SampledValues",
    "UniformSampler",
]


class UniformSampler(CandidateSampler):
    """Every class alike: P(class) = 1 / range_max.

    >>> UniformSampler(1000).sample([[0], [9]], 8, seed=(1, 7)).sampled_candidates
    array([577, 586, 796, 897, 276, 248, 321,   5])
    """

    def __init__(self, range_max: int) -> None:
        self.range_max = integer("range_max", range_max, 1, 2**63 - 1)

    def _probability(self, ids: Ids) -> Floats:
        return np.full(ids.shape, 1.0 / self.range_max)

    def _fill(self, pairs: np.ndarray, start: int, draws: np.ndarray) -> tuple[int, int]:
        return kernels.uniform_draws(pairs, start, np.uint64(self.range_max), draws)

    def _kinds(self) -> tuple[Floats, Floats]:
        return np.array([1.0 / self.range_max]), np.array([float(self.range_max)])


class LogUniformSampler(CandidateSampler):
    """Zipf's law: P(class) = log1p(1 / (class + 1)) / log1p(range_max).

    It assumes ids sorted by falling frequency, 0 the most frequent. On other ids it runs, but rare classes are drawn
    often and frequent ones seldom.

    >>> sampler = LogUniformSampler(1000)
    >>> values = sampler.sample([[0], [9]], 8, seed=(1, 7))
    >>> values.sampled_candidates
    array([  7,   4, 234,   0,  11, 130,  14, 116])
    >>> values.true_expected_count.round(6).tolist(), values.num_tries
    ([[0.613852], [0.117525]], 9)
    >>> float(sampler.probability(0).round(6))
    0.100329
    """

    def __init__(self, range_max: int) -> None:
        self.range_max = integer("range_max", range_max, 1, 2**62)
        self._log_range = math.log1p(self.range_max)

    def _probability(self, ids: Ids) -> Floats:
        probability = np.log1p(np.reciprocal(ids + 1.0))
        probability /= self._log_range
        return probability

    def _fill(self, pairs: np.ndarray, start: int, draws: np.ndarray) -> tuple[int, int]:
        return kernels.log_uniform_draws(pairs, start, self._log_range, self.range_max, draws)

    def _kinds(self) -> tuple[Floats, Floats]:
        edges = np.unique(np.floor(np.geomspace(1.0, self.range_max + 1.0, 4096)))
        counts = np.diff(edges)
        return np.diff(np.log(edges)) / self._log_range / counts, counts


class FixedUnigramSampler(CandidateSampler):
    """Given weights: P(class) = weight^distortion / sum of them, in float64.

    Ids count from `num_reserved_ids` on; the reserved ones below have weight 0. With shards, the sampler has the ids
    with id % num_shards == shard, and calls them 0, 1, 2, ... A weight that float32 cannot tell from 0 is 0.

    >>> sampler = FixedUnigramSampler(range(1, 11), distortion=0.75)
    >>> sampler.sample([[0], [9]], 6, seed=(1, 7)).sampled_candidates
    array([9, 4, 8, 0, 6, 7])

    Args:
        unigrams: weights (counts or probabilities) of the words, in the order of their ids; or
        vocab_file: text file, one word per line, its last comma-separated field the weight.
        range_max: if given, must equal the number of ids of this shard.
        distortion: 1 leaves the weights as they are, 0 makes them uniform.
        num_reserved_ids: ids before those of the words, never drawn (with several shards, TensorFlow's draws differ:
            it counts a shard's words from its reserved ids on).
        num_shards, shard: which part of the ids is drawn here.

    Raises:
        BigvocabError: a weight that is negative, NaN or infinite, or all 0, or arguments that do not fit together.
        FormatError: a line of the file that holds no weight, with its number.
    """

    def __init__(
        self,
        unigrams: Any = None,
        *,
        vocab_file: str | os.PathLike[str] | None = None,
        range_max: int | None = None,
        distortion: float = 1.0,
        num_reserved_ids: int = 0,
        num_shards: int = 1,
        shard: int = 0,
    ) -> None:
        if (unigrams is None) == (vocab_file is None):
            raise TypeError(
                f"unigrams, vocab_file: expected one of them, got {'neither' if unigrams is None else 'both'}"
            )
        num_reserved_ids = integer("num_reserved_ids", num_reserved_ids, 0, MAX_INT32)
        num_shards = integer("num_shards", num_shards, 1, MAX_INT32)
        shard = integer("shard", shard, 0, num_shards - 1)
        distortion = real("distortion", distortion)
        if not math.isfinite(distortion):
            raise BigvocabError(Keyword("distortion"), f": got {distortion}, expected a finite number")
        if vocab_file is not None and not isinstance(vocab_file, str | os.PathLike):
            raise TypeError(f"vocab_file: expected a path, got {type(vocab_file).__name__}")
        source = "unigrams" if vocab_file is None else os.fspath(vocab_file)
        if vocab_file is None:
            weights = as_weights(unigrams)
        else:
            from bigvocab.sampling.vocab_file import read_vocab_weights

            weights = read_vocab_weights(vocab_file)
        drawn = distorted(source, weights, distortion)
        weights, drawn = (of_shard(part, num_reserved_ids, num_shards, shard) for part in (weights, drawn))
        self.range_max = len(drawn)
        if range_max is not None and integer("range_max", range_max, 1, MAX_INT32) != self.range_max:
            raise BigvocabError(
                Keyword("range_max"),
                f": got {range_max}, but {source} with {num_reserved_ids} reserved ids "
                f"has {self.range_max} ids in shard {shard} of {num_shards}",
            )
        if not drawn.any():
            raise BigvocabError(
                f"{source}: all {self.range_max} weights of shard {shard} of {num_shards} are 0 in float32"
            )
        self._weights, self._table, self._num_positive = tables(weights, distortion, drawn)
        self._sum = self._weights.sum()

    def _probability(self, ids: Ids) -> Floats:
        return self._weights[ids] / self._sum

    def _fill(self, pairs: np.ndarray, start: int, draws: np.ndarray) -> tuple[int, int]:
        return kernels.alias_draws(pairs, start, self._table, draws)

    def _kinds(self) -> tuple[Floats, Floats]:
        return alias.alias_probabilities(self._table), np.ones(self.range_max)

    def _num_drawable(self) -> int:
        return self._num_positive


class LearnedUnigramSampler(CandidateSampler):
    """Weights learned on the way: P(class) = (1 + times it was a true class before) / sum of those.

    Each `sample` counts its true classes after the draw, so draws depend on the calls before; `state` saves the counts.

    >>> sampler = LearnedUnigramSampler(10)
    >>> sampler.sample([[0], [9]], 4, unique=False, seed=(1, 7)).sampled_candidates
    array([1, 1, 2, 4])
    >>> sampler = LearnedUnigramSampler.from_state(sampler.state())
    >>> sampler.sample([[0], [9]], 4, unique=False, seed=(1, 7), step=1).sampled_candidates
    array([8, 4, 6, 4])
    """

    _words_per_draw = 1

    def __init__(self, range_max: int) -> None:
        self.range_max = integer("range_max", range_max, 1, MAX_INT32 - 1)
        self._total = self.range_max
        self._tree = kernels.build_count_tree(np.ones(self.range_max, np.int32))

    def state(self) -> dict[str, np.ndarray]:
        """How often each class was a true class so far: {"counts": (range_max,) int64}; `numpy.savez` writes it."""
        weights = np.empty(self.range_max, np.int64)
        kernels.tree_weights(self._tree, np.arange(self.range_max), weights)
        return {"counts": weights - 1}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> LearnedUnigramSampler:
        """The sampler that `state` was taken from."""
        if not isinstance(state, Mapping):
            raise TypeError(f"state: expected a mapping with the key 'counts', got {type(state).__name__}")
        if "counts" not in state:
            raise BigvocabError(Keyword("state"), f": expected the key 'counts', got {sorted(state)}")
        counts = as_integers("state['counts']", state["counts"])
        if counts.ndim != 1 or counts.size == 0:
            raise BigvocabError(f"state['counts']: expected one count per class, got shape {counts.shape}")
        if counts.min() < 0:
            raise BigvocabError(f"state['counts']: count {counts.min()} of class {counts.argmin()}, expected >= 0")
        total = counts.size + sum(counts.tolist()) if counts.max() > 2**31 else counts.size + int(counts.sum())
        if total > MAX_INT32:
            raise BigvocabError(f"state['counts']: 1 + count sums to {total}, expected at most 2^31 - 1")
        sampler = cls.__new__(cls)
        sampler.range_max, sampler._total = counts.size, total
        sampler._tree = kernels.build_count_tree((counts + 1).astype(np.int32))
        return sampler

    def copy(self) -> LearnedUnigramSampler:
        """Another sampler that has learned the same."""
        other = type(self).__new__(type(self))
        other.range_max, other._total, other._tree = self.range_max, self._total, self._tree.copy()
        return other

    def _probability(self, ids: Ids) -> Floats:
        flat = np.ascontiguousarray(ids).reshape(-1)
        weights = np.empty(flat.size)
        kernels.tree_weights(self._tree, flat, weights)
        return (weights / self._total).reshape(ids.shape)

    def _fill(self, pairs: np.ndarray, start: int, draws: np.ndarray) -> tuple[int, int]:
        return kernels.tree_draws(pairs, start, self._tree, np.uint64(self._total), draws)

    def _kinds(self) -> tuple[Floats, Floats]:
        return self._probability(np.arange(self.range_max)), np.ones(self.range_max)

    def learn(self, true_ids: Ids) -> None:
        """Count true classes."""
        counted = true_ids[: MAX_INT32 - self._total]  # TensorFlow's counts are full at 2^31 - 1, too
        kernels.add_to_tree(self._tree, counted)
        self._total += counted.size


class AllCandidateSampler(CandidateSampler):
    """No draw at all: the candidates are 0 ... S - 1, each with Q = 1.

    Without the accidental hits, sampled softmax over all classes is the full softmax.

    >>> AllCandidateSampler(4).sample([[2]], 4, seed=0).sampled_candidates
    array([0, 1, 2, 3])
    """

    def __init__(self, range_max: int) -> None:
        self.range_max = integer("range_max", range_max, 1, 2**63 - 1)

    def _probability(self, ids: Ids) -> Floats:
        return np.full(ids.shape, 1.0 / self.range_max)

    def sample(
        self,
        true_classes: Any,
        num_sampled: int,
        *,
        unique: bool = True,
        seed: int | tuple[int, int] = 0,
        step: int = 0,
    ) -> SampledValues:
        """The first `num_sampled` classes, with expected counts 1; a true class must be one of them. No seed counts."""
        rows = as_ragged("true_classes", true_classes)
        num_sampled = integer("num_sampled", num_sampled, 1, self.range_max)
        rows.check_range(num_sampled)
        return SampledValues(np.arange(num_sampled), np.ones(rows.shape), np.ones(num_sampled), num_sampled)
