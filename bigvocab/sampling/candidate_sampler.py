"""What every candidate sampler does: from a probability of each class to candidates and their expected counts.

A sampler knows the probability of each class in one draw, and how words of the random stream make a draw; how draws
become candidates, unique or not, and expected counts is the same for all.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bigvocab.arguments import as_integers, boolean, first_outside, integer
from bigvocab.errors import BigvocabError, Keyword
from bigvocab.labels.ragged import as_ragged
from bigvocab.sampling.random_stream import MAX_INT32, MAX_TRIES, Stream, draw_all, draw_unique, expected_count

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_HARDLY = 0.01  # chance of a draw below which it is not begun in earnest


class SampledValues(NamedTuple):
    """Candidates of one draw and the expected counts that correct for it; `values[:3]` is the triple of `tf.nn`."""

    sampled_candidates: Ids
    true_expected_count: Floats
    sampled_expected_count: Floats
    num_tries: int


class CandidateSampler:
    """What all samplers share: checks, the choice of the loop, expected counts."""

    range_max: int
    _words_per_draw = 2

    def __repr__(self) -> str:
        return f"{type(self).__name__}(range_max={self.range_max})"

    def probability(self, ids: Any) -> Floats:
        """P(class) of one draw.

        Args:
            ids: class ids, any integer type and shape.

        Returns:
            float64 of the shape of `ids`.

        Raises:
            BigvocabError: an id outside [0, range_max); TypeError: ids that are no integers.
        """
        array = as_integers("ids", ids)
        if (at := first_outside(array, self.range_max)) is not None:
            raise BigvocabError.of_row("ids", at, f" is {array.flat[at]}, expected a class in [0, {self.range_max})")
        return np.asarray(self._probability(array))

    def sample(
        self, true_classes: Any, num_sampled: int, *, unique: bool = True, seed: int | tuple[int, int], step: int = 0
    ) -> SampledValues:
        """Draw candidates; the same seeds and step give the candidates that TensorFlow gives.

        With p = P(class), the expected count is Q = p S where no draw was rejected as a repetition, and else
        Q = 1 - (1 - p)^num_tries, TensorFlow's approximation. Unique with S = range_max, every class comes once, and
        Q = 1. The true classes do not change the draw and are not kept out of it.

        Args:
            true_classes: (N, T) integers, or a pair (offsets (N + 1,), ids) for ragged rows.
            num_sampled: S, the number of candidates.
            unique: draw again what was drawn before.
            seed: (seed, seed2) as of a TensorFlow op, or an int n, which is (87654321, n); taken modulo 2^31 - 1.
            step: 0 for the first call of a TensorFlow op, 1 for its second, ...

        Returns:
            SampledValues: sampled_candidates (S,) int64, true_expected_count (N, T) float64 (for ragged rows flat, one
            an id), sampled_expected_count (S,) float64, num_tries.

        Raises:
            BigvocabError: num_sampled below 1 or too many for unique draws, a true class out of range or of weight 0,
                offsets that do not fit; TypeError: what should be integers is not.
        """
        rows = as_ragged("true_classes", true_classes)
        rows.check_range(self.range_max)
        unique, num_sampled = boolean("unique", unique), integer("num_sampled", num_sampled, 1, MAX_INT32)
        true_probability = self._probability(rows.ids)
        if not true_probability.all():
            at = int(np.argmin(true_probability))
            raise BigvocabError.of_row(
                rows.name,
                rows.row_of(at),
                f" is {rows.ids[at]}, a class of weight 0: it is never drawn, and log Q would be -inf",
            )
        stream = Stream(seed, step, num_sampled, self._fill, self._words_per_draw)
        if unique:
            self._check_drawable(num_sampled)
            candidates, num_tries = draw_unique(
                stream, num_sampled, self.range_max, lambda: self.check_patience(num_sampled)
            )
        else:
            candidates, num_tries = draw_all(stream, num_sampled), num_sampled
        counts = [
            np.ones(p.shape) if unique and num_sampled == self.range_max else expected_count(p, num_sampled, num_tries)
            for p in (true_probability, self._probability(candidates))
        ]
        self.learn(rows.ids)
        return SampledValues(candidates, counts[0].reshape(rows.shape), counts[1], num_tries)

    def _probability(self, ids: Ids) -> Floats:
        raise NotImplementedError

    def _fill(self, pairs: np.ndarray, start: int, draws: np.ndarray) -> tuple[int, int]:
        raise NotImplementedError

    def _kinds(self) -> tuple[Floats, Floats]:
        """Probabilities of kinds of classes, and how many classes are of each."""
        raise NotImplementedError

    def _num_drawable(self) -> int:
        return self.range_max

    def learn(self, true_ids: Ids) -> None:
        """Learn from the true classes, after the draw."""

    def _check_drawable(self, num_sampled: int) -> None:
        drawable = self._num_drawable()
        if num_sampled > drawable:
            what = "range_max" if drawable == self.range_max else "the number of classes of positive weight"
            raise BigvocabError(
                Keyword("num_sampled"), f": got {num_sampled} unique candidates, but {what} is {drawable}"
            )

    def check_patience(self, num_sampled: int) -> None:
        """Give up a draw that takes long where even 2^31 tries would hardly give so many different classes.

        The number U of classes never seen is a sum of independent indicators with probabilities u_i. For every s in
        (0, 1), P(U <= m) <= product of (1 - u_i + u_i s) / s^m (Chernoff 1952, doi:10.1214/aoms/1177729330).
        """
        probabilities, counts = self._kinds()
        unseen, counts = 1.0 - expected_count(probabilities, 1, MAX_TRIES), counts * (probabilities > 0)
        rare = unseen > 1e-9
        about, unseen, weight = float(counts.sum() - counts @ unseen), unseen[rare], counts[rare]
        allowed = float(counts.sum()) - num_sampled
        for s in 0.5 ** np.arange(0.0, 40.0, 0.5):
            with np.errstate(divide="ignore"):
                chance = float(weight @ np.log1p(unseen * (s - 1.0))) - allowed * math.log(s)
            if chance < math.log(_HARDLY):
                raise BigvocabError(
                    Keyword("num_sampled"),
                    f": got {num_sampled} unique candidates, but 2^31 draws would give about {about:.0f}, "
                    "the other classes are too rare; ask for fewer, or take AllCandidateSampler",
                )
