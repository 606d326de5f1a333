"""Files of candidates: one draw of a sampler as an Arrow file of one row, to look at, to use again, or from elsewhere.

Columns: sampled_candidates list<int64>, sampled_expected_count list<float64>, true_classes list<list<int64>> and
true_expected_count list<list<float64>> (a list for each row of the data; null without true classes), num_tries, seed
list<int64> (the pair), step, sampler, range_max, vocab_file, distortion.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bigvocab.arguments import as_integers, first_outside
from bigvocab.errors import BigvocabError, FormatError, Keyword
from bigvocab.labels.labels import Labels, read_labels
from bigvocab.labels.ragged import RaggedIds
from bigvocab.sampling.draw_blocks import SAMPLERS, make_sampler
from bigvocab.sampling.random_stream import expected_count, seed_pair
from bigvocab.sampling.sampled_rows import Draw
from bigvocab.storage import uris
from bigvocab.storage.arrow_file import ArrowFile
from bigvocab.storage.output import refuse_overwriting, replacing
from bigvocab.storage.remote import remember, whole_uri
from bigvocab.storage.spool import as_local

Ids = npt.NDArray[np.int64]

_FIELDS = [
    pa.field("sampled_candidates", pa.list_(pa.int64()), nullable=False),
    pa.field("sampled_expected_count", pa.list_(pa.float64()), nullable=False),
    pa.field("true_classes", pa.list_(pa.list_(pa.int64()))),
    pa.field("true_expected_count", pa.list_(pa.list_(pa.float64()))),
    pa.field("num_tries", pa.int64()),
    pa.field("seed", pa.list_(pa.int64())),
    pa.field("step", pa.int64()),
    pa.field("sampler", pa.string()),
    pa.field("range_max", pa.int64()),
    pa.field("vocab_file", pa.string()),
    pa.field("distortion", pa.float64()),
]
SCHEMA = pa.schema(_FIELDS)
_NEEDED = ("sampled_candidates", "sampled_expected_count")


def write_candidates(
    output: str | os.PathLike[str],
    *,
    sampler: str = "log-uniform",
    num_sampled: int,
    range_max: int | None = None,
    seed: Any = 0,
    step: int = 0,
    vocab_file: str | os.PathLike[str] | None = None,
    distortion: float | None = None,
    true_classes: Any = None,
) -> dict[str, Any]:
    """Draw candidates, write them to `output`, and return what was drawn: sampler, num_sampled, range_max, seed, ...

    Args:
        output: path or URI of the Arrow IPC file, which appears whole or not at all.
        sampler: log-uniform, uniform, unigram, learned-unigram (before it learned anything) or all.
        num_sampled: S, candidates to draw.
        range_max: V, classes to draw from; unigram takes it from the vocabulary.
        seed: a pair or an int, as of a TensorFlow op.
        step: number of the call, from 0.
        vocab_file: a word and its count per line (unigram).
        distortion: power of the counts (unigram).
        true_classes: labels, as `read_labels` takes them: their expected counts are written too. They do not change
            the draw.

    Raises:
        BigvocabError: an option that does not fit, a true class out of range.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_candidates(f"{folder}/c.arrow", num_sampled=8, range_max=1000, seed=(1, 7))["num_tries"]
    9
    """
    labels = None if true_classes is None else read_labels(true_classes)
    refuse_overwriting({"output": output}, [vocab_file, *(labels.paths if labels is not None else [])])
    source = make_sampler(sampler, range_max, vocab_file, distortion)
    pair = seed_pair(seed)
    name = os.fspath(true_classes) if isinstance(true_classes, str | os.PathLike) else "true_classes"
    offsets, ids = (np.zeros(1, np.int64), np.zeros(0, np.int64)) if labels is None else _true_of(labels)
    values = source.sample(RaggedIds(offsets, ids, name), num_sampled, seed=pair, step=step)
    row = {
        "sampled_candidates": values.sampled_candidates,
        "sampled_expected_count": values.sampled_expected_count,
        "true_classes": None if true_classes is None else _nested(offsets, ids),
        "true_expected_count": None if true_classes is None else _nested(offsets, values.true_expected_count),
        "num_tries": values.num_tries,
        "seed": pair,
        "step": step,
        "sampler": sampler,
        "range_max": source.range_max,
        "vocab_file": None if vocab_file is None else remember(uris.absolute(vocab_file)),
        "distortion": distortion,
    }
    table = pa.table({name: _one_row(row[name], SCHEMA.field(name).type) for name in SCHEMA.names}, schema=SCHEMA)
    with replacing(output) as temporary, ArrowFile(temporary, SCHEMA) as file:
        for batch in table.to_batches():
            file.append(batch)
    told = ("sampler", "range_max", "seed", "step", "num_tries")
    return {"path": uris.shown(os.fspath(output)), "num_sampled": len(values.sampled_candidates)} | {
        name: row[name] for name in told
    }


def _nested(offsets: Ids, flat: Any) -> pa.Array:
    return pa.LargeListArray.from_arrays(offsets, flat)


def _one_row(value: Any, kind: pa.DataType) -> pa.Array:
    """A column of one row; its list from a whole array."""
    if isinstance(value, np.ndarray | pa.Array):
        inner = pa.array(value) if isinstance(value, np.ndarray) else value
        return pa.ListArray.from_arrays(np.array([0, len(inner)], np.int32), inner.cast(kind.value_type))
    return pa.array([value], kind)


def _true_of(source: Labels) -> tuple[Ids, Ids]:
    """Labels of one class or a list of classes per row as (offsets, ids); a null row has none."""
    sizes, parts = [np.zeros(1, np.int64)], [np.zeros(0, np.int64)]
    if source.kind not in ("id", "list"):
        raise BigvocabError(
            f"{source.path}: expected one class or a list of classes per row, got labels of kind {source.kind}"
        )
    for batch in source:
        if isinstance(batch.labels, tuple):
            sizes.append(np.diff(batch.labels[0]))
            parts.append(batch.labels[1])
        else:
            kept = np.ones(len(batch), bool) if batch.ignored is None else ~batch.ignored
            sizes.append(kept.astype(np.int64))
            parts.append(batch.labels[kept])
    return np.cumsum(np.concatenate(sizes)), np.concatenate(parts)


class FileCandidates:
    """The candidates of a file, the same for all rows of an evaluation.

    The expected counts of the labels come from the file where it has true classes (they must be the labels, row by
    row), else from the sampler that the file names.
    """

    ordered = False

    def __init__(
        self,
        path: str | os.PathLike[str],
        num_classes: int,
        *,
        num_sampled: int | None = None,
        vocab_file: str | os.PathLike[str] | None = None,
    ) -> None:
        self.path = remember(uris.plain(os.fspath(path)))
        with as_local(whole_uri(self.path)) as local:
            row = _read(Path(local))
        self._candidates: Ids = row["sampled_candidates"]
        self._counts = row["sampled_expected_count"]
        self.num_sampled = len(self._candidates)
        self.name = str(row.get("sampler") or "file")
        self.seed = row.get("seed")
        self._num_tries: Any = row.get("num_tries")
        self._true: tuple[Ids, Ids] | None = row.get("true_classes")
        self._true_counts: npt.NDArray[np.float64] | None = row.get("true_expected_count")
        if row.get("range_max") not in (None, num_classes):
            raise BigvocabError(f"{self.path}: was drawn from {row['range_max']} classes, expected {num_classes}")
        _check(self.path, self._candidates, self._counts, num_classes)
        if num_sampled is not None and num_sampled != self.num_sampled:
            raise BigvocabError(
                Keyword("num_sampled"), f": got {num_sampled}, but {self.path} has {self.num_sampled} candidates"
            )
        self._sampler: Any = None
        self.vocab_file: Any = None  # that is read
        if self._true_counts is not None and vocab_file is not None:
            raise BigvocabError(
                Keyword("vocab_file"), f": {self.path} has the expected counts of its rows, expected none beside it"
            )
        if self._true_counts is None:
            if self.name not in SAMPLERS or self._num_tries is None:
                raise FormatError(
                    f"{self.path}: has no true_expected_count, and sampler {self.name!r} cannot compute it, "
                    f"expected one of {', '.join(SAMPLERS)} with num_tries"
                )
            if not isinstance(self._num_tries, int) or self._num_tries < self.num_sampled:
                raise FormatError(
                    f"{self.path}: num_tries is {self._num_tries}, expected at least {self.num_sampled}, the candidates"
                )
            self.vocab_file = vocab_file if vocab_file is not None else row.get("vocab_file")
            try:
                self._sampler = make_sampler(self.name, num_classes, self.vocab_file, row.get("distortion"))
            except BigvocabError as error:
                if not isinstance(error.__cause__, OSError) or vocab_file is not None:
                    raise
                raise BigvocabError(
                    f"{self.path}: was drawn with the vocabulary {self.vocab_file}, which cannot be read: "
                    f"{error.__cause__.strerror}; expected it there, or ",
                    Keyword("vocab_file"),
                    ", where it is now",
                ) from None
            self._check_sampler()

    def _check_sampler(self) -> None:
        """Raise unless the sampler, with the vocabulary as it is now, gives the candidates the counts they have."""
        expected = self._expected(self._candidates)
        wrong = ~np.isclose(self._counts, expected, rtol=1e-5, atol=0)
        if wrong.any():
            at = int(np.argmax(wrong))
            source = f"{self.name} with the vocabulary {self.vocab_file}" if self.vocab_file else self.name
            raise BigvocabError(
                f"{self.path}: candidate {at}, {self._candidates[at]}, has the expected count {self._counts[at]}, "
                f"but {expected[at]} by the sampler {source}; expected those it was drawn with"
            )

    def _expected(self, ids: Ids) -> npt.NDArray[np.float64]:
        """Expected counts by the sampler."""
        if self.name == "all":
            return np.where(ids < self.num_sampled, 1.0, 0.0)  # the others are never drawn
        if self.num_sampled == self._sampler.range_max:
            return np.ones(len(ids))
        return expected_count(self._sampler.probability(ids), self.num_sampled, self._num_tries)

    def shown(self) -> dict[str, Any]:
        """What a report says of them."""
        seed = {} if self.seed is None else {"seed": list(self.seed)}
        return {"sampler": self.name, "num_sampled": self.num_sampled, **seed}

    def options(self) -> dict[str, Any]:
        """What tells candidates apart."""
        vocab_file = None if self.vocab_file is None else remember(uris.absolute(self.vocab_file))
        drawn = {"sampler": self.name, "num_sampled": self.num_sampled, "seed": self.seed}
        return {"candidates": self.path, **drawn, "vocab_file": vocab_file}

    def draw(self, row: int, rows: int, true: RaggedIds, kept: Ids) -> Draw:
        """The candidates, for `rows` rows from `row` on; `kept` are those that have the true classes, from 0."""
        if self._true is not None and self._true_counts is not None:
            counts = self._true_counts[self._stored(self._true, row, true, kept)]
        else:
            counts = self._expected(true.ids)
        bad = ~((counts > 0) & (counts < np.inf))
        if bad.any():
            at = int(np.argmax(bad))
            raise BigvocabError.of_row(
                true.name,
                row + kept[true.row_of(at)],
                f" is {true.ids[at]}, whose expected count in "
                f"{self.path} is {counts[at]}, expected a finite number above 0",
            )
        return Draw(self._candidates, np.log(counts), np.log(self._counts))

    def check(self, true: RaggedIds, row: int, kept: Ids) -> None:
        """Raise if the file has no expected count of a true class; `kept` are the rows from `row` on that have them."""
        self.draw(row, len(kept), true, kept)

    def check_rows(self, rows: int) -> None:
        """Raise unless the file is for so many rows, where it has true classes."""
        if self._true is not None and len(self._true[0]) - 1 != rows:
            raise BigvocabError(
                f"{self.path}: has true classes of {len(self._true[0]) - 1} rows, expected {rows}, as there are labels"
            )

    def mark(self) -> None:
        """These draws never change."""

    def reset(self, mark: Any) -> None:
        """These draws never change."""

    def learned(self) -> None:
        """Nothing."""

    def restore(self, learned: Any) -> None:
        """These draws never change."""

    def files(self) -> list[str]:
        """The file, and the vocabulary it was drawn with, where that is read."""
        return [self.path] if self.vocab_file is None else [self.path, os.fspath(self.vocab_file)]

    def _stored(self, classes: tuple[Ids, Ids], row: int, true: RaggedIds, kept: Ids) -> Ids:
        """Where the true classes of these rows stand in the file, which must have the same ones."""
        offsets, ids = classes
        there = len(offsets) - 1
        if len(kept) and row + int(kept[-1]) >= there:
            first = row + int(kept[np.argmax(row + kept >= there)])
            raise BigvocabError(f"{self.path}: has true classes of {there} rows, but there is a row {first}")
        starts, sizes = offsets[row + kept], np.diff(offsets)[row + kept]
        same = sizes == np.diff(true.offsets)
        if not same.all():
            at = row + kept[np.argmin(same)]
            raise BigvocabError.of_row(true.name, at, f" has not as many true classes as in {self.path}")
        where = np.repeat(starts - true.offsets[:-1], sizes) + np.arange(len(true.ids))
        if (ids[where] != true.ids).any():
            at = int(np.argmax(ids[where] != true.ids))
            here, there = true.ids[at], ids[where][at]
            raise BigvocabError.of_row(
                true.name, row + kept[true.row_of(at)], f" is {here}, but {there} in {self.path}"
            )
        return where


def _read(path: Path) -> dict[str, Any]:
    """The one row of the file, checked for its columns."""
    try:
        with pa.OSFile(os.fsencode(path)) as file:
            table = pa.ipc.open_file(file).read_all()
    except FileNotFoundError:
        raise BigvocabError(f"{path}: no such file") from None
    except (pa.ArrowException, OSError) as error:
        raise FormatError(f"{path}: expected an Arrow IPC file of candidates: {str(error).splitlines()[0]}") from None
    missing = [name for name in _NEEDED if name not in table.column_names]
    if missing:
        raise FormatError(f"{path}: no column {missing[0]!r}, expected one as `bigvocab sample` writes it")
    if len(table) != 1:
        raise FormatError(f"{path}: has {len(table)} draws, expected 1")
    kinds = {name: SCHEMA.field(name).type for name in table.column_names if name in SCHEMA.names}
    columns = {name: _cast(path, name, table.column(name).combine_chunks(), kind) for name, kind in kinds.items()}
    row: dict[str, Any] = {}
    for name, column in columns.items():
        if name in _NEEDED:
            row[name] = column.flatten().to_numpy(zero_copy_only=False)
        elif name == "true_classes" and column.null_count == 0:
            lists = column.flatten()
            offsets = np.asarray(lists.offsets, np.int64)
            if lists.flatten().null_count:
                raise FormatError(f"{path}: true_classes has nulls inside its lists, expected ids of classes")
            row[name] = offsets - offsets[0], as_integers(name, lists.flatten().to_numpy(zero_copy_only=False))
        elif name == "true_expected_count" and column.null_count == 0:
            counted = np.diff(np.asarray(column.flatten().offsets, np.int64))
            row[name] = column.flatten().flatten().to_numpy(zero_copy_only=False)
        else:
            row[name] = column[0].as_py()
    if row.get("seed") is not None and (len(row["seed"]) != 2 or None in row["seed"]):
        raise FormatError(f"{path}: seed is {row['seed']}, expected a pair of integers")
    if (row.get("true_classes") is None) != (row.get("true_expected_count") is None):
        raise FormatError(f"{path}: has only one of true_classes and true_expected_count, expected both or neither")
    if row.get("true_classes") is not None and not np.array_equal(np.diff(row["true_classes"][0]), counted):
        raise FormatError(
            f"{path}: true_classes and true_expected_count differ in length, expected as many in each row"
        )
    return row


def _cast(path: Path, name: str, column: pa.Array, kind: pa.DataType) -> pa.Array:
    """A column in the type it should have; texts are no numbers, and 2.5 is no id."""
    inner = column.type
    while hasattr(inner, "value_type"):
        inner = inner.value_type
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    fits = pa.types.is_null(inner) or any(test(inner) for test in texts) == pa.types.is_string(kind)
    try:
        if fits:
            return column.cast(kind)
    except (pa.ArrowException, NotImplementedError):
        pass
    raise FormatError(f"{path}: column {name!r}: expected {kind}, got {column.type}")


def _check(path: str, candidates: Ids, counts: npt.NDArray[np.float64], num_classes: int) -> None:
    if len(candidates) == 0 or candidates.dtype != np.int64:
        raise FormatError(f"{path}: sampled_candidates is empty or has nulls, expected ids of classes")
    if len(candidates) != len(counts):
        raise FormatError(f"{path}: {len(candidates)} candidates, but {len(counts)} expected counts, expected as many")
    if (at := first_outside(candidates, num_classes)) is not None:
        raise BigvocabError(f"{path}: candidate {at} is {candidates[at]}, expected a class in [0, {num_classes})")
    bad = ~((counts > 0) & (counts < np.inf))
    if bad.any():
        at = int(np.argmax(bad))
        raise FormatError(f"{path}: expected count {at} is {counts[at]}, expected a finite number above 0")
