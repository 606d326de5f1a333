"""The two sides of a comparison, and any number of candidates: opened, checked against each other, read row by row.

What a side is (files, arrays, a layer over hidden states) is a `Scorer`'s business, as in an evaluation; a llama.cpp
file is the one kind that only a comparison knows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.comparison.llama_source import LlamaSource, PickedRows, llama_path
from bigvocab.comparison.pairs import Transform
from bigvocab.errors import BigvocabError, Keyword
from bigvocab.evaluation.scoring import Scorer
from bigvocab.formats.llama_logits import LlamaLogits, check_same_tokens
from bigvocab.heads.linear_rows import LinearRows
from bigvocab.heads.output_layer import OutputLayer
from bigvocab.heads.products import accumulator
from bigvocab.matrices import fingerprints
from bigvocab.matrices.logit_rows import LogitRows
from bigvocab.matrices.matrix import Matrix
from bigvocab.matrices.names import DataNames
from bigvocab.matrices.sequences import open_rows
from bigvocab.matrices.sources import RowSource
from bigvocab.matrices.tiles import StoredRows, Tiles

Integers = npt.NDArray[np.int64]


@dataclass(eq=False)
class Side:
    """Rows of one side.

    Attributes:
        name: "reference", or the name of the candidate.
        shown: what messages call it.
        source: its rows as a job looks after them.
        num_classes: that it has, padding included where it is stored.
        transform: of its logits.
        names: of its files.
        stored: logits, or hidden states where there is a `layer`; None for a llama.cpp file.
        layer: that makes the logits.
        file: where the rows are those of a llama.cpp file.
        which: the row of `stored` for each row that is compared; all in order where None.
        model: what a report says of the model that the layer is of.
        options: what decides its logits beside the files.
    """

    name: str
    shown: str
    source: RowSource
    num_classes: int
    transform: Transform
    names: DataNames
    stored: Matrix | None = None
    layer: OutputLayer | None = None
    file: LlamaLogits | None = None
    which: Integers | None = None
    model: dict[str, Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def made(self) -> bool:
        """Whether a layer makes its logits."""
        return self.layer is not None

    @property
    def made_itemsize(self) -> int:
        """Bytes of a logit that a layer makes; 0 where they are stored."""
        if self.layer is None:
            return 0
        assert self.stored is not None
        return accumulator(self.stored.dtype, self.layer.weights.dtype).itemsize

    def row(self, row: int) -> str:
        """A row as messages call it, by its file and its number there."""
        return self.names.row(row if self.which is None else int(self.which[row]))

    def end(self, start: int, stop: int) -> int:
        """Where the file of row `start` ends, or `stop`."""
        if self.stored is None or self.layer is not None or self.which is not None:
            return stop
        return min(stop, *(shard.part_of(start).stop for shard in self.stored.shards))

    def tiles(self, start: int, stop: int) -> Tiles:
        """Stored logits of rows of one file."""
        assert self.stored is not None
        if self.which is not None:
            return [(0, self.stored[self.which[start:stop]])]
        parts = [tiles for _, tiles in self.stored.row_parts(start, stop)]
        if len(parts) == 1:
            return parts[0]
        return [
            (first, np.concatenate([tiles[at][1] for tiles in parts])) for at, (first, _) in enumerate(parts[0])
        ]  # of foreign byte order, which come in pieces

    def rows(self, start: int, stop: int, num_classes: int) -> LogitRows:
        """Rows of logits, stored or made, with their first classes."""
        assert self.stored is not None
        if self.layer is None:
            return StoredRows(self.tiles(start, stop)).classes(0, num_classes)
        inputs = self.stored[start:stop] if self.which is None else self.stored[self.which[start:stop]]
        return LinearRows(self.layer, inputs, self.shown).classes(0, num_classes)

    def fingerprints(self) -> Iterator[dict[str, Any]]:
        """One entry for each file of its rows."""
        role = "reference" if self.name == "reference" else f"candidate {self.name}"
        if self.stored is not None:
            yield from fingerprints.of_matrix(role, self.stored)
        elif isinstance(self.source, LlamaSource):
            yield self.source.fingerprint(role)

    def paths(self) -> set[str]:
        """All files that it is made of."""
        return {os.path.realpath(file["path"]) for file in self.source.files if file["path"] != "<array>"}


def open_side(name: str, scorer: Scorer, values: Any, label_rows: Callable[[], int] | None = None) -> Side:
    """Open what one side was given: the one place that knows the kinds of sides.

    Args:
        name: "reference", or the name of the candidate.
        scorer: how its rows become logits; with a layer, `values` are hidden states.
        values: a path, several paths, an array of any library, or a Matrix.
        label_rows: says how many labels there are, as `open_rows` asks.
    """
    shown = name if name in ("reference", "candidate") else f"candidate {name}"
    asked = scorer.specification
    if scorer.head is None and asked.opening.shape is None and (path := llama_path(values)) is not None:
        return _llama_side(name, scorer, path)
    _refuse_several(shown, values)
    opening = asked.opening.keywords()
    if scorer.head is not None:
        opening.pop("vocab_shards", None)  # files of a layer are ranges of classes in any case
    source = scorer.source(
        open_rows(scorer.with_width(values), shown, layer=asked.sequences.layer, label_rows=label_rows, **opening)
    )  # which is then a Matrix, that has its name
    path = source.files[0]["path"]
    shown = shown if path == "<array>" else path
    names = DataNames(shown, files=tuple(source.row_files()))
    transform = Transform(*asked.loss.transform)
    side = Side(name, shown, source, source.shape[1], transform, names, source.stored, scorer.head)
    side.model, side.options = scorer.model, scorer.options()
    return side


def _llama_side(name: str, scorer: Scorer, path: str) -> Side:
    """A llama.cpp file, whose numbers are log probabilities already."""
    source, asked = LlamaSource(path), scorer.specification
    for option, neutral in (("logit_scale", 1.0), ("softcap", None)):
        value = {"logit_scale": asked.loss.logit_scale, "softcap": asked.loss.softcap}[option]
        if value != neutral:
            raise BigvocabError(Keyword(option), f": got {value}, but {path} holds log probabilities; expected none")
    return Side(name, path, source, source.file.shape[1], Transform(), DataNames(path), file=source.file)


def _refuse_several(shown: str, values: Any) -> None:
    """Refuse what looks like several candidates without names."""
    if isinstance(values, list | tuple) and len(values) > 1 and all(np.ndim(value) == 2 for value in values[:2]):
        raise TypeError(f"{shown}: got {len(values)} arrays, expected one, or a dict of candidates by name")
    if values is None:
        raise BigvocabError(Keyword("candidate"), f": got None for {shown}, expected logits")


@dataclass(eq=False)
class Sides:
    """The reference and the candidates by name, of the same rows and classes."""

    reference: Side
    candidates: Mapping[str, Side]
    num_classes: int
    leader: LlamaLogits | None  # whose rows, labels and windows are compared

    @classmethod
    def of(cls, reference: Side, candidates: Mapping[str, Side], num_classes: int | None) -> Sides:
        """The sides, whose rows and classes must agree.

        Raises:
            BigvocabError: both counts, and both names.
        """
        every = [reference, *candidates.values()]
        files = [side for side in every if side.file is not None]
        leader = files[0].file if files else None
        if leader is not None:
            _classes(files, num_classes)
            _follow(leader, every)
        for side in every[1:]:
            if len(side.source) != len(reference.source):
                got = f"{len(side.source)} rows, but {reference.shown} has {len(reference.source)}"
                raise BigvocabError(f"{side.shown}: {got} rows; expected as many")
        return cls(reference, candidates, _classes(every, num_classes), leader)

    @property
    def all(self) -> Sequence[Side]:
        """The reference and then the candidates."""
        return [self.reference, *self.candidates.values()]

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        return len(self.reference.source)

    def spans(self, start: int, stop: int, most: int) -> Iterator[tuple[int, int]]:
        """Ranges of at most so many rows that lie in one file on every side."""
        while start < stop:
            end = min(stop, start + most)
            for side in self.all:
                end = side.end(start, end)
            yield start, end
            start = end

    def notes(self) -> list[dict[str, str]]:
        """What is probably not meant."""
        found = []
        for side in self.candidates.values():
            if side.paths() and side.paths() == self.reference.paths() and side.options == self.reference.options:
                text = f"{side.shown} is the reference and {side.name} too: a model compared with itself"
                found.append({"code": "same_file", "text": text})
        return found


def _follow(leader: LlamaLogits, sides: Sequence[Side]) -> None:
    """Bring all sides to the rows of a llama.cpp file."""
    for side in sides:
        if side.file is leader:
            continue
        if side.file is not None:
            check_same_tokens(leader, side.file)
        elif len(side.source) != len(leader):
            side.which = leader.rows_of(len(side.source), side.shown)
            side.source = PickedRows(side.source, side.which)


def _classes(sides: Sequence[Side], num_classes: int | None) -> int:
    """How many classes there are on all sides."""
    first = sides[0]
    if num_classes is None:
        for side in sides[1:]:
            if side.num_classes != first.num_classes:
                both = f"{side.num_classes} classes, but {first.shown} has {first.num_classes}"
                hint = ("; expected as many, or ", Keyword("num_classes"), ", those that count on all sides")
                raise BigvocabError(f"{side.shown}: {both}", *hint)
        return first.num_classes
    for side in sides:
        if num_classes > side.num_classes:
            expected = f": got {num_classes}, expected 1 to {side.num_classes}, the classes of {side.shown}"
            raise BigvocabError(Keyword("num_classes"), expected)
    return num_classes
