"""Classes that do not exist, as they are given: ids for all rows, lists for each; checked beside the labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab import arguments
from bigvocab.errors import BigvocabError, Keyword
from bigvocab.labels.ragged import RaggedIds, as_ragged
from bigvocab.matrices.excluded import Excluded

Ids = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
NO_IDS: Ids = np.zeros(0, np.int64)


def class_ids(name: str, values: Any) -> Ids:
    """Ids of classes from any integers, each once and rising."""
    ids = arguments.as_integers(name, values)
    if ids.ndim != 1:
        raise BigvocabError(Keyword(name), f": got shape {ids.shape}, expected ids of classes, (n,)")
    return np.unique(ids)


def excluded_of(
    common: Ids,
    lists: tuple[Ids, Ids] | None,
    rows: int,
    num_classes: int,
    names: tuple[str, str] = ("exclude", "exclude"),
    first_row: int = 0,
) -> Excluded:
    """Checked exclusions of rows: `common` to all, and `lists` (offsets from 0, ids), where an id may stand twice.

    Args:
        common: rising ids.
        lists: for each row.
        rows: how many.
        num_classes: of each row.
        names: how messages call the ids of all rows, and those of a row.
        first_row: for messages.

    Raises:
        BigvocabError: an id out of range.
    """
    if len(common) and (common[0] < 0 or common[-1] >= num_classes):
        bad = common[0] if common[0] < 0 else common[-1]
        raise BigvocabError(Keyword(names[0]), f": has the id {bad}, expected classes in [0, {num_classes})")
    if lists is None or not len(lists[1]):
        return Excluded(common, np.zeros(rows + 1, np.int64), NO_IDS)
    sets = RaggedIds(*lists)
    ids = sets.ids
    if (wrong := (ids < 0) | (ids >= num_classes)).any():
        at = int(np.argmax(wrong))
        rest = f" excludes the id {ids[at]}, expected classes in [0, {num_classes})"
        raise BigvocabError.of_row(names[1], first_row + sets.row_of(at), rest)
    owner = sets.rows()
    if len(ids) > 1 and ((owner[1:] == owner[:-1]) & (ids[1:] <= ids[:-1])).any():
        order = np.lexsort((ids, owner))
        owner, ids = owner[order], ids[order]
        first = np.append(True, (owner[1:] != owner[:-1]) | (ids[1:] != ids[:-1]))
        owner, ids = owner[first], ids[first]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=rows))])
    return Excluded(common, offsets, np.ascontiguousarray(ids))


def as_excluded(name: str, value: Any, rows: int, num_classes: int) -> Excluded | None:
    """What a caller gave: ids for all rows, or a pair (offsets (N + 1,), ids); None excludes nothing.

    >>> as_excluded("exclude", [2, 0, 2], 1, 5).common.tolist()
    [0, 2]
    >>> as_excluded("exclude", ([0, 1, 1], [4]), 2, 5).counts().tolist()
    [1, 0]
    """
    if value is None:
        return None
    if isinstance(value, tuple) and len(value) == 2 and np.ndim(value[0]) == 1:
        sets = as_ragged(name, value, rows)
        return excluded_of(NO_IDS, (sets.offsets, sets.ids), rows, num_classes, (name, name))
    return excluded_of(class_ids(name, value), None, rows, num_classes, (name, name))


def labelled(labels: npt.NDArray[Any], excluded: Excluded) -> tuple[Ids, Ids]:
    """(rows, ids) of the dense labels (n, V) that are not 0 though their class is excluded."""
    whole, every = excluded.of_rows(np.arange(len(excluded))), np.arange(len(excluded))
    rows = np.concatenate([np.repeat(every, len(excluded.common)), whole.rows_of_ids()])
    ids = np.concatenate([np.tile(excluded.common, len(excluded)), whole.ids])
    there = np.asarray(labels[rows, ids] != 0)
    return rows[there], ids[there]


def refuse_smoothing(label_smoothing: float) -> None:
    """Raise where the loss is smoothed: over which classes, one could ask."""
    if label_smoothing:
        raise BigvocabError(
            Keyword("label_smoothing"), ": spreads over all classes: it does not go with ", Keyword("exclude")
        )


def refuse_excluded(
    name: str, excluded: Excluded, rows: Ids, ids: Ids, num_classes: int, skip: Bools | None = None, first_row: int = 0
) -> None:
    """Raise for the first row whose label is excluded, or that has no class left.

    Args:
        name: of the labels.
        excluded: of n rows.
        rows: the row of each label.
        ids: the labels, in range; those below 0 are none.
        num_classes: of each row.
        skip: (n,) rows that are ignored.
        first_row: for messages.
    """
    kept = np.ones(len(excluded), bool) if skip is None else ~skip
    empty = kept & (excluded.counts() >= num_classes)
    inside = (ids >= 0) & (ids < num_classes)
    wrong = excluded.holds(rows, np.where(inside, ids, 0)) & inside & kept[rows]
    if empty.any():
        row = int(np.argmax(empty))
        raise BigvocabError.of_row(name, first_row + row, f" has no class left: all {num_classes} are excluded")
    if wrong.any():
        at = int(np.argmax(wrong))
        rest = f" is {ids[at]}, a class that is excluded; expected labels among the classes that exist"
        raise BigvocabError.of_row(name, first_row + int(rows[at]), rest)
