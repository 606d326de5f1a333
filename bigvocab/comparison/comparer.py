"""What holds the rows of a reference against those of candidates: a specification with its layers opened. No sums.

Both doors, rows in memory (`Comparison`) and files (`jobs`), go through `Comparer.blocks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bigvocab.comparison.blocks import Block, compared_blocks
from bigvocab.comparison.sides import Sides, open_side
from bigvocab.comparison.specification import ComparisonSpecification
from bigvocab.comparison.sums import ComparisonSums
from bigvocab.errors import BigvocabError, Keyword
from bigvocab.evaluation.scoring import Scorer
from bigvocab.labels.labels import LabelBatch


class Comparer:
    """A reference and candidates by name, without rows.

    Attributes:
        specification: what was asked.
        reference: how rows of the reference become logits.
        candidates: the same for each candidate.
    """

    def __init__(self, specification: ComparisonSpecification) -> None:
        self.specification = specification
        self.reference = Scorer(specification.reference)
        self.candidates = {name: Scorer(one) for name, one in specification.candidates.items()}

    def open(self, reference: Any, candidates: Mapping[str, Any], label_rows: Callable[[], int] | None = None) -> Sides:
        """Rows of all sides, opened and checked against each other.

        Args:
            reference: logits, or hidden states where it has a layer: a path, several, an array or a Matrix.
            candidates: the same by name.
            label_rows: says how many labels there are.
        """
        asked = self.specification
        first = open_side("reference", self.reference, reference, label_rows)
        others = {
            name: open_side(name, scorer, candidates[name], label_rows) for name, scorer in self.candidates.items()
        }
        if asked.llama_cpp and first.file is None:
            wrong = (": needs a llama.cpp logits file for the reference", f", got {first.shown}")
            raise BigvocabError(Keyword("llama_cpp"), *wrong)
        sides = Sides.of(first, others, asked.num_classes)
        if asked.llama_cpp and first.num_classes != sides.num_classes:
            wrong = (": takes in all classes of a file", f", {first.num_classes} of {first.shown}, got ")
            raise BigvocabError(Keyword("llama_cpp"), *wrong, Keyword("num_classes", str(sides.num_classes)))
        return sides

    def blocks(self, sides: Sides, batch: LabelBatch, labels_name: str, *, labelled: bool) -> Iterator[Block]:
        """The rows of one batch of labels, block by block; see `compared_blocks`."""
        return compared_blocks(self.specification, sides, batch, labels_name, labelled=labelled)

    def new_sums(self, sides: Sides) -> ComparisonSums:
        """The sums of no row of these sides."""
        sums = ComparisonSums.of(sides.candidates)
        sums.notes = sides.notes()
        sums.models = {side.name: side.model for side in sides.all if side.model is not None}
        for name, side in sides.candidates.items():
            files = [one.file for one in (sides.reference, side) if one.file is not None]
            if files:
                sums.floors[name] = {"step": max(file.step for file in files), "nats": min(file.nats for file in files)}
            if side.file is not None:
                sums.stored.append(name)
        return sums

    def options(self) -> dict[str, Any]:
        """What decides the values, as far as it is cheap to know: comparisons merge only where all of it is equal."""
        sides = {name: scorer.options() for name, scorer in self.candidates.items()}
        return {**self.specification.identity(), "reference": self.reference.options(), "candidates": sides}

    def identity(self) -> dict[str, Any]:
        """What decides the values, by content: layers by their fingerprints, wherever they lie."""
        sides = {name: scorer.identity() for name, scorer in self.candidates.items()}
        return {**self.specification.identity(), "reference": self.reference.identity(), "candidates": sides}

    def given(self) -> dict[str, Any]:
        """What `ComparisonSpecification.from_json` takes."""
        return self.opened().to_json()

    def opened(self) -> ComparisonSpecification:
        """The specification with layers as the matrices that are open, which travel as the paths of their files."""
        sides = {name: scorer.opened() for name, scorer in self.candidates.items()}
        return self.specification.with_sides(self.reference.opened(), sides)

    def files(self) -> Iterator[str]:
        """Paths of the files that are read beside rows and labels."""
        for scorer in (self.reference, *self.candidates.values()):
            yield from scorer.files()

    def scorers(self) -> list[Scorer]:
        """That of the reference and then of the candidates."""
        return [self.reference, *self.candidates.values()]
