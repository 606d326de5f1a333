"""Which candidates belong to which rows of an evaluation: a fresh draw for every 512 rows.

Blocks are counted from row 0 of the data, and the number of the block is the sampler's step. So the candidates of a row
depend on its number and the seed alone: not on chunks, threads, files or the shards of a job.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bigvocab.arguments import integer
from bigvocab.errors import BigvocabError, Keyword
from bigvocab.labels.ragged import RaggedIds
from bigvocab.sampling.random_stream import expected_count, seed_pair
from bigvocab.sampling.sampled_rows import Draw
from bigvocab.sampling.samplers import (
    AllCandidateSampler,
    FixedUnigramSampler,
    LearnedUnigramSampler,
    LogUniformSampler,
    SampledValues,
    UniformSampler,
)
from bigvocab.storage import uris
from bigvocab.storage.remote import remember

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

DRAW_ROWS = 512  # rows that share a draw; part of the meaning of a seed, so it never changes
SAMPLERS = {
    "log-uniform": LogUniformSampler,
    "uniform": UniformSampler,
    "unigram": FixedUnigramSampler,
    "learned-unigram": LearnedUnigramSampler,
    "all": AllCandidateSampler,
}


class Draws(Protocol):
    """Where the candidates of the rows of an evaluation come from: drawn block by block, or from a file."""

    ordered: bool  # whether draws depend on the labels of all rows before

    def draw(self, row: int, rows: int, true: RaggedIds, kept: Ids) -> Draw:
        """The candidates for `rows` rows from `row` on; `kept` are those that have the true classes, from 0."""

    def check(self, true: RaggedIds, row: int, kept: Ids) -> None:
        """Raise if a true class of the rows from `row` on has no expected count; `kept` are those that have classes."""

    def check_rows(self, rows: int) -> None:
        """Raise unless the draws are for so many rows."""

    def shown(self) -> dict[str, Any]:
        """What a report says of them."""

    def options(self) -> dict[str, Any]:
        """What tells draws apart."""

    def files(self) -> list[str]:
        """The files that are read."""

    def mark(self) -> Any:
        """What was learned so far: for `reset`, where a batch fails."""

    def reset(self, mark: Any) -> None:
        """Forget what came after `mark`."""

    def learned(self) -> dict[str, Any] | None:
        """What was learned, as numbers and arrays for a state; None where nothing is."""

    def restore(self, learned: Mapping[str, Any]) -> None:
        """Go on from what `learned` said."""


def make_sampler(
    name: str,
    num_classes: int | None,
    vocab_file: str | os.PathLike[str] | None = None,
    distortion: float | None = None,
) -> Any:
    """The sampler of the command's name; the vocabulary of "unigram" has num_classes lines, where that is known."""
    if name not in SAMPLERS:
        raise BigvocabError(Keyword("sampler"), f": got {name!r}, expected one of {', '.join(SAMPLERS)}")
    if name == "unigram":
        if vocab_file is None:
            raise BigvocabError(
                Keyword("vocab_file"),
                ": the unigram sampler needs it, expected a file with a word and its count per line",
            )
        power = 1.0 if distortion is None else distortion
        return FixedUnigramSampler(vocab_file=vocab_file, range_max=num_classes, distortion=power)
    for option, value in {"vocab_file": vocab_file, "distortion": distortion}.items():
        if value is not None:
            raise BigvocabError(f"{option}: belongs to the unigram sampler, got it with {name}")
    if num_classes is None:
        raise BigvocabError(Keyword("range_max"), f": the {name} sampler needs it, expected the number of classes")
    return SAMPLERS[name](num_classes)


class DrawBlocks:
    """Draws of a sampler, one for each block of 512 rows.

    Args:
        sampler: name, see SAMPLERS.
        num_sampled: S; None is all classes, for the sampler "all" alone.
        num_classes: V.
        seed: int or pair, as in TensorFlow.
        vocab_file, distortion: of the unigram sampler.
    """

    def __init__(
        self,
        sampler: str,
        num_sampled: int | None,
        num_classes: int,
        *,
        seed: Any = 0,
        vocab_file: str | os.PathLike[str] | None = None,
        distortion: float | None = None,
    ) -> None:
        if num_sampled is None:
            if sampler != "all":
                raise BigvocabError(
                    Keyword("num_sampled"), ": a sampled loss needs it, expected how many candidates to draw"
                )
            num_sampled = num_classes
        self.name = sampler
        self.num_sampled = integer("num_sampled", num_sampled, 1, 2**31 - 1)
        self.seed = seed_pair(seed)
        self.sampler = make_sampler(sampler, num_classes, vocab_file, distortion)
        self._distortion = distortion
        self._vocab_file = None if vocab_file is None else remember(uris.absolute(vocab_file))
        self.ordered = sampler == "learned-unigram"  # its draws depend on the labels of all rows before
        self._step, self._values = 0, self._drawn(0)
        self._next_row, self._unlearned = 0, [np.zeros(0, np.int64)]

    def shown(self) -> dict[str, Any]:
        """What a report says of them."""
        return {
            "sampler": self.name,
            "num_sampled": self.num_sampled,
            "seed": None if self.seed is None else list(self.seed),
        }

    def options(self) -> dict[str, Any]:
        """What tells draws apart."""
        drawn = {"sampler": self.name, "num_sampled": self.num_sampled, "seed": self.seed}
        return drawn | {"distortion": self._distortion, "vocab_file": self._vocab_file}

    def _drawn(self, step: int) -> SampledValues:
        nothing: Ids = np.zeros((0, 1), np.int64)
        return self.sampler.sample(nothing, self.num_sampled, seed=self.seed, step=step)

    def draw(self, row: int, rows: int, true: RaggedIds, kept: Ids) -> Draw:
        """The draw of the block of `row`, for `rows` rows of it; `kept` are those that have the true classes."""
        step = row // DRAW_ROWS
        if self.ordered:
            self._follow(row, rows, step)
        if step != self._step:
            self._step, self._values = step, self._drawn(step)
        counts = self._true_counts(true, row, kept)
        if self.ordered:
            self._unlearned.append(true.ids)
        return Draw(self._values.sampled_candidates, np.log(counts), np.log(self._values.sampled_expected_count))

    def files(self) -> list[str]:
        """The vocabulary, where there is one."""
        return [] if self._vocab_file is None else [self._vocab_file]

    def mark(self) -> Any:
        """What draws that learn have learned so far: for `reset`, where a batch fails."""
        if not self.ordered:
            return None
        return self._next_row, self._step, self._values, list(self._unlearned), self.sampler.copy()

    def reset(self, mark: Any) -> None:
        """Forget what came after `mark`."""
        if self.ordered:
            self._next_row, self._step, self._values, self._unlearned, self.sampler = mark

    def learned(self) -> dict[str, Any] | None:
        """The same as numbers and arrays, for a state."""
        if not self.ordered:
            return None
        counts = self.sampler.state()["counts"]
        ids = np.flatnonzero(counts)
        found = {"next_row": self._next_row, "step": self._step, "unlearned": np.concatenate(self._unlearned)}
        return found | {"ids": ids, "counts": counts[ids]}

    def restore(self, learned: Mapping[str, Any]) -> None:
        """Go on from what `learned` said."""
        counts = np.zeros(self.sampler.range_max, np.int64)
        counts[learned["ids"]] = learned["counts"]
        self.sampler = LearnedUnigramSampler.from_state({"counts": counts})
        self._next_row, self._unlearned = learned["next_row"], [learned["unlearned"]]
        self._step, self._values = learned["step"], self._drawn(learned["step"])

    def _follow(self, row: int, rows: int, step: int) -> None:
        if row != self._next_row:
            raise BigvocabError(
                Keyword("sampler"),
                f": learned-unigram learns from all rows before, so rows must come in order from row 0, "
                f"expected row {self._next_row}, got row {row}",
            )
        self._next_row = row + rows
        if step != self._step:
            self.sampler.learn(np.concatenate(self._unlearned))
            self._unlearned.clear()

    def check(self, true: RaggedIds, row: int, kept: Ids) -> None:
        """Raise if a true class of the rows from `row` on is never drawn; `kept` are those that have the classes."""
        if not self.ordered:
            self._true_counts(true, row, kept)

    def check_rows(self, rows: int) -> None:
        """Any number of rows will do."""

    def _probability(self, ids: Ids) -> Floats:
        """P of each id; 1 or 0 where the first classes are all drawn."""
        return np.asarray(ids < self.num_sampled, np.float64) if self.name == "all" else self.sampler.probability(ids)

    def _true_counts(self, true: RaggedIds, row: int, kept: Ids) -> Floats:
        """Q of each true id: 1 where all classes are drawn."""
        probability = self._probability(true.ids)
        if not probability.all():
            at = int(np.argmin(probability))
            raise BigvocabError.of_row(
                true.name,
                row + kept[true.row_of(at)],
                f" is {true.ids[at]}, a class that the sampler {self.name!r} never draws: log Q would be -inf",
            )
        if self.name == "all" or self.num_sampled == self.sampler.range_max:
            return np.ones(len(probability))
        return expected_count(probability, self.num_sampled, self._values.num_tries)
