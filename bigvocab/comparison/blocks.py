"""A block of rows of all sides becomes compared rows: the one function that files, batches in memory and workers call.

Stored logits go through `tile_pairs`, which reads the reference once for all candidates; rows that a layer makes
through `made_rows`; pairs with a llama.cpp file through `stored`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab import arguments
from bigvocab.arguments import parse_bytes
from bigvocab.comparison.implied_labels import windows_of
from bigvocab.comparison.llama_table import LlamaTable, table_rows
from bigvocab.comparison.made_rows import compare_rows, held_bytes, made_logits
from bigvocab.comparison.pairs import PairRows
from bigvocab.comparison.sides import Side, Sides
from bigvocab.comparison.specification import ComparisonSpecification
from bigvocab.comparison.statistics import ComparedRows
from bigvocab.comparison.stored import ExactSide, LlamaSide, StoredPairs, compare_stored
from bigvocab.comparison.tile_pairs import compare_tiles
from bigvocab.errors import BigvocabError, Keyword
from bigvocab.evaluation.row_losses import row_fault
from bigvocab.labels.labels import LabelBatch
from bigvocab.losses.row_statistics import RowStatistics

Integers = npt.NDArray[np.int64]

_MADE_BYTES = 256 << 20  # of logits that layers make at a time, of all sides
_TABLE_LOGITS = 8 << 20  # of llama.cpp's table at a time
_MOST_ROWS = 1 << 16


@dataclass
class Pair:
    """Rows of a reference and a candidate: columns of values, and what is only known of some kinds of sides."""

    columns: dict[str, npt.NDArray[Any]]
    nonfinite: npt.NDArray[np.bool_]
    statistics: tuple[RowStatistics, RowStatistics] | None = None
    mass: npt.NDArray[np.float64] | None = None
    floored_labels: npt.NDArray[np.bool_] | None = None

    @classmethod
    def of_rows(cls, rows: PairRows, *, labelled: bool) -> Pair:
        """Of exact logits on both sides."""
        return cls(rows.columns(labelled=labelled), rows.nonfinite, (rows.reference, rows.candidate))

    @classmethod
    def of_stored(cls, rows: StoredPairs) -> Pair:
        """Of pairs with a llama.cpp file."""
        return cls(rows.columns, rows.nonfinite, None, rows.mass, rows.floored_labels)

    def fault(self, side: int, row: int) -> str:
        """What is wrong with a row that is not finite."""
        if self.statistics is None:
            return "holds a NaN or +inf, or every class is masked"
        rows = self.statistics[side]
        return row_fault(rows, row) if not rows.finite[row] else "has its label masked on both sides"


@dataclass
class Block:
    """Compared rows `start` to `stop` of all candidates by name, and rows of llama.cpp's table where asked for."""

    start: int
    stop: int
    rows: dict[str, ComparedRows]
    tables: dict[str, LlamaTable]


def compared_blocks(
    asked: ComparisonSpecification, sides: Sides, batch: LabelBatch, labels_name: str, *, labelled: bool
) -> Iterator[Block]:
    """The rows of a batch of labels, block by block as files and memory have it; no value depends on the blocks.

    Args:
        asked: metrics, nonfinite, threads.
        sides: opened and checked.
        batch: labels of consecutive rows, which are row_statistics.NO_LABEL where there are none.
        labels_name: how messages call the labels.
        labelled: whether there are labels.

    Raises:
        BigvocabError: a label out of range; a row that is not finite, by its file, where that is an error.
    """
    first, stop = batch.first_row, batch.first_row + len(batch)
    for start, end in sides.spans(first, stop, _most_rows(asked, sides)):
        part = batch.part(start - first, end - first)
        labels = _labels(asked, sides, part, labels_name) if labelled else part.labels
        ends = _ends(asked, sides, start, end)
        pairs = _pairs(asked, sides, ends, labels, start, end, labelled=labelled)
        rows = {name: _compared(asked, sides, name, pair, part, labels, labelled) for name, pair in pairs.items()}
        yield Block(start, end, rows, _tables(asked, sides, ends, start, end))


def _most_rows(asked: ComparisonSpecification, sides: Sides) -> int:
    """Rows at a time, so that what layers make fits."""
    if not any(side.made for side in sides.all):
        return _MOST_ROWS
    limit = _MADE_BYTES
    if asked.max_memory is not None:
        limit = min(limit, parse_bytes("max_memory", asked.max_memory) // 2)
    if sides.leader is None:
        reference, *candidates = (side.made_itemsize for side in sides.all)
        row_bytes = held_bytes(sides.num_classes, reference, candidates)
    else:  # all sides at once, in one type and then in another
        row_bytes = 8 * sides.num_classes * len(sides.all)
    return max(16, min(_MOST_ROWS, limit // row_bytes))


def _labels(asked: ComparisonSpecification, sides: Sides, part: LabelBatch, name: str) -> Integers:
    """Labels as kernels take them; those given beside a llama.cpp file must be its own."""
    labels = arguments.labels_in_range(
        part.labels,
        sides.num_classes,
        ignored=part.ignored,
        name=name,
        first_row=part.first_row,
    )
    if sides.leader is not None:
        own = sides.leader.labels[part.first_row : part.first_row + len(part)]
        wrong = (labels != own) & (labels >= 0)
        if wrong.any():
            row = int(np.argmax(wrong))
            expected = f" is {labels[row]}, expected {own[row]}, the token in {sides.leader.shown}"
            raise BigvocabError.of_row(name, part.first_row + row, expected)
    return labels


# ---- pairs of rows


def _pairs(
    asked: ComparisonSpecification,
    sides: Sides,
    ends: _Ends,
    labels: Integers,
    start: int,
    stop: int,
    *,
    labelled: bool,
) -> dict[str, Pair]:
    """What lies between the reference and each candidate, in the order of the candidates."""
    reference, others, found = sides.reference, sides.candidates, {}
    exact = {name: side for name, side in others.items() if side.file is None and reference.file is None}
    stored = {name: side for name, side in exact.items() if not side.made and not reference.made}
    made = {name: side for name, side in exact.items() if name not in stored}
    for name, rows in (_tile_pairs(asked, sides, stored, labels, start, stop) if stored else {}).items():
        found[name] = Pair.of_rows(rows, labelled=labelled)
    for name, rows in (_made_pairs(asked, sides, made, labels, start, stop) if made else {}).items():
        found[name] = Pair.of_rows(rows, labelled=labelled)
    for name, (mine, theirs) in ends.items():
        rows_of = compare_stored(mine, theirs, labels, start, asked=asked.asked, num_threads=asked.threads)
        found[name] = Pair.of_stored(rows_of)
    return {name: found[name] for name in others}


def _tile_pairs(
    asked: ComparisonSpecification, sides: Sides, others: Mapping[str, Side], labels: Integers, start: int, stop: int
) -> dict[str, PairRows]:
    return compare_tiles(
        sides.reference.tiles(start, stop),
        {name: side.tiles(start, stop) for name, side in others.items()},
        labels,
        sides.num_classes,
        transform=sides.reference.transform,
        transforms={name: side.transform for name, side in others.items()},
        asked=asked.asked,
        num_threads=asked.threads,
    )


def _made_pairs(
    asked: ComparisonSpecification, sides: Sides, others: Mapping[str, Side], labels: Integers, start: int, stop: int
) -> dict[str, PairRows]:
    return compare_rows(
        sides.reference.rows(start, stop, sides.num_classes),
        {name: side.rows(start, stop, sides.num_classes) for name, side in others.items()},
        labels,
        transform=sides.reference.transform,
        transforms={name: side.transform for name, side in others.items()},
        asked=asked.asked,
        num_threads=asked.threads,
    )


class _Window:
    """Logits of rows `start` on, in the place that they have among all rows."""

    def __init__(self, start: int, logits: npt.NDArray[Any]) -> None:
        self._start, self._logits = start, logits
        self.shape = logits.shape

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        return self._logits[rows.start - self._start : rows.stop - self._start]


_Ends = dict[str, tuple[LlamaSide | ExactSide, LlamaSide | ExactSide]]


def _ends(asked: ComparisonSpecification, sides: Sides, start: int, stop: int) -> _Ends:
    """Both sides of each pair with a llama.cpp file; logits are made once for all."""
    if sides.leader is None:
        return {}
    mine = None
    found: _Ends = {}
    for name, side in sides.candidates.items():
        if side.file is not None or sides.reference.file is not None:
            mine = mine or _end(asked, sides, sides.reference, start, stop)
            found[name] = mine, _end(asked, sides, side, start, stop)
    return found


def _end(asked: ComparisonSpecification, sides: Sides, side: Side, start: int, stop: int) -> LlamaSide | ExactSide:
    if side.file is not None:
        return LlamaSide(side.file, sides.num_classes)
    if side.made:
        logits = made_logits(side.rows(start, stop, sides.num_classes), asked.threads)
    else:
        assert side.stored is not None
        logits = side.stored[start:stop] if side.which is None else side.stored[side.which[start:stop]]
        logits = logits[:, : sides.num_classes]
    return ExactSide(_Window(start, logits), side.transform)


# ---- rows that count


def _compared(
    asked: ComparisonSpecification,
    sides: Sides,
    name: str,
    pair: Pair,
    part: LabelBatch,
    labels: Integers,
    labelled: bool,
) -> ComparedRows:
    """Columns that were asked for; rows that are ignored set apart, those that are not finite dealt with as asked."""
    from bigvocab.kernels.row_statistics import SKIP

    ignored = labels == SKIP
    bad = pair.nonfinite & ~ignored
    if asked.nonfinite == "error" and bad.any():
        row = int(np.argmax(bad.any(axis=0)))
        at = 0 if bad[0, row] else 1
        side = (sides.reference, sides.candidates[name])[at]
        raise BigvocabError(
            f"{side.row(part.first_row + row)} {pair.fault(at, row)}; expected finite logits (",
            Keyword("nonfinite", "skip"),
            ' leaves such rows out and counts them, "keep" lets them through)',
        )
    counted = ~ignored & ~bad.any(axis=0) if asked.nonfinite == "skip" else ~ignored
    clusters = part.clusters
    if clusters is None and sides.leader is not None:
        clusters = windows_of(sides.leader, part.first_row, part.first_row + len(part))
    return ComparedRows(
        {column: values for column, values in pair.columns.items() if asked.keeps(column)},
        np.arange(part.first_row, part.first_row + len(part)),
        counted,
        ignored,
        bad,
        labels if labelled else None,
        part.groups,
        clusters,
        pair.mass,
        pair.floored_labels,
    )


def _tables(asked: ComparisonSpecification, sides: Sides, ends: _Ends, start: int, stop: int) -> dict[str, LlamaTable]:
    """Rows of llama.cpp's own table for each candidate."""
    base = sides.reference.file
    if not asked.llama_cpp or base is None:
        return {}
    found = {}
    step = max(1, _TABLE_LOGITS // sides.num_classes)
    for name, side in sides.candidates.items():
        found[name] = table = LlamaTable()
        for first in range(start, stop, step):
            end = min(first + step, stop)
            file = side.file
            logits = ends[name][1].decode(first, end) if file is None else file.log_probabilities(first, end)
            table.add(first, table_rows(base.log_probabilities(first, end), logits, base.labels[first:end]))
    return found
