"""Rows of the sigmoid family: element-wise losses into an array, or their sums over the classes of a row, and what is
wrong with a row.

One function per loss and form, for arrays and for the streaming path alike; options are checked by the callers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab import arguments
from bigvocab.errors import BigvocabError, Keyword
from bigvocab.labels.id_sets import IdSets
from bigvocab.losses.soft_rows import paired_pieces, refuse_bad_label
from bigvocab.matrices.rows import Tiles, share_rows, streamed
from bigvocab.threads import resolve_threads

Floats = npt.NDArray[np.float64]
Transform = tuple[float, float]  # logit_scale, softcap or 0
PLAIN: Transform = (1.0, 0.0)


def pos_weight_vector(value: Any, num_classes: int) -> Floats:
    """pos_weight as (1,) or (V,) finite numbers; None is 1."""
    if value is None:
        return np.ones(1)
    if not isinstance(value, list | tuple) and np.ndim(value) == 0:
        number = arguments.real("pos_weight", value)
        if not np.isfinite(number):
            raise BigvocabError(Keyword("pos_weight"), f": got {number}, expected a finite number")
        return np.array([number])
    return arguments.class_vector("pos_weight", value, num_classes)


def _part(pos_weight: Floats, first: int, classes: int) -> Floats:
    return pos_weight if len(pos_weight) == 1 else pos_weight[first : first + classes]


def sigmoid_elements(
    logits: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    out: Floats,
    *,
    pos_weight: Floats,
    label_smoothing: float = 0.0,
    num_threads: int | None = None,
    first_row: int = 0,
) -> None:
    """Put the loss of every element of `logits` (n, V) into `out` (n, V)."""
    from bigvocab.kernels import sigmoid

    faults = np.zeros(len(out), np.uint8)
    tiles = [(0, logits)]

    def work(start: int, stop: int) -> None:
        for (first, classes), x, z in paired_pieces(tiles, labels, start, stop):
            losses = out[start:stop, first : first + classes]
            target = losses if losses.flags.c_contiguous else np.empty(losses.shape)
            weights = _part(pos_weight, first, classes)
            sigmoid.rows_sigmoid(x, z, weights, label_smoothing, PLAIN, classes, target, faults[start:stop])
            if target is not losses:
                losses[...] = target

    share_rows(work, tiles, len(out), num_threads, labels)
    _refuse(faults, labels, tiles, ("labels", "logits"), first_row)


def sigmoid_row_sums(
    tiles: Tiles,
    labels: npt.NDArray[Any],
    skip: npt.NDArray[np.bool_],
    *,
    pos_weight: Floats,
    label_smoothing: float = 0.0,
    transform: Transform = PLAIN,
    num_threads: int | None = None,
    name: str = "labels",
    first_row: int = 0,
) -> Floats:
    """The sum over classes of the losses of each row; 0 for rows of `skip`."""
    from bigvocab.kernels import sigmoid

    if (made := getattr(tiles, "sigmoid_row_sums", None)) is not None:  # logits that are made while they are read
        options = {"pos_weight": pos_weight, "label_smoothing": label_smoothing, "transform": transform}
        sums, found = made(labels, skip, num_threads=resolve_threads(num_threads), **options)
        _refuse(found, labels, tiles, (name, "logits"), first_row)
        return np.asarray(sums)
    out, faults = np.zeros(len(skip)), np.zeros(len(skip), np.uint8)

    def work(start: int, stop: int) -> None:
        mine = slice(start, stop)
        for (first, classes), x, z in paired_pieces(tiles, labels, start, stop, skip[mine]):
            weights = _part(pos_weight, first, classes)
            sigmoid.rows_sigmoid_sums(
                x, z, skip[mine], weights, label_smoothing, transform, classes, out[mine], faults[mine]
            )

    share_rows(work, tiles, len(skip), num_threads, labels)
    _refuse(faults, labels, tiles, (name, "logits"), first_row)
    return out


def sparse_sigmoid_rows(
    tiles: Tiles,
    sets: IdSets,
    skip: npt.NDArray[np.bool_],
    *,
    pos_weight: Floats,
    transform: Transform = PLAIN,
    num_threads: int | None = None,
) -> Floats:
    """S softplus(g(x)) over the classes not listed and q softplus(-g(x)) over those listed (rising), for each row."""
    if (made := getattr(tiles, "sparse_sigmoid_rows", None)) is not None:  # logits that are made while they are read
        threads = resolve_threads(num_threads)
        sums: Floats = made(sets, skip, pos_weight=pos_weight, transform=transform, num_threads=threads)
        return sums
    from bigvocab.kernels import sigmoid

    out = np.zeros(len(skip))

    def work(start: int, stop: int) -> None:
        mine, offsets = slice(start, stop), sets.offsets[start : stop + 1]
        for span, x in streamed(tiles, start, stop, skip[mine]):
            sigmoid.rows_softplus(x, skip[mine], offsets, sets.ids, pos_weight, transform, span, out[mine])

    share_rows(work, tiles, len(skip), num_threads)
    return out


def log_loss_elements(
    predictions: npt.NDArray[Any], labels: npt.NDArray[Any], out: Floats, *, epsilon: float, first_row: int = 0
) -> None:
    """Put the loss of every element of `predictions` (n, V) into `out` (n, V)."""
    from bigvocab.kernels import sigmoid

    faults = np.zeros(len(out), np.uint8)
    tiles = [(0, predictions)]

    def work(start: int, stop: int) -> None:
        for (first, classes), p, z in paired_pieces(tiles, labels, start, stop):
            losses = out[start:stop, first : first + classes]
            target = losses if losses.flags.c_contiguous else np.empty(losses.shape)
            sigmoid.rows_log_loss(p, z, epsilon, classes, target, faults[start:stop])
            if target is not losses:
                losses[...] = target

    share_rows(work, tiles, len(out), None, labels)
    _refuse(faults, labels, tiles, ("labels", "predictions"), first_row)


def log_loss_row_sums(
    tiles: Tiles,
    labels: npt.NDArray[Any],
    skip: npt.NDArray[np.bool_],
    *,
    epsilon: float,
    num_threads: int | None = None,
    names: tuple[str, str] = ("labels", "predictions"),
    first_row: int = 0,
) -> Floats:
    """The sum over classes of the log losses of each row; 0 for rows of `skip`; `names` of labels and predictions."""
    from bigvocab.kernels import sigmoid

    out, faults = np.zeros(len(skip)), np.zeros(len(skip), np.uint8)

    def work(start: int, stop: int) -> None:
        mine = slice(start, stop)
        for (_, classes), p, z in paired_pieces(tiles, labels, start, stop, skip[mine]):
            sigmoid.rows_log_loss_sums(p, z, skip[mine], epsilon, classes, out[mine], faults[mine])

    share_rows(work, tiles, len(skip), num_threads, labels)
    _refuse(faults, labels, tiles, names, first_row)
    return out


def _refuse(
    faults: npt.NDArray[np.uint8], labels: npt.NDArray[Any], tiles: Tiles, names: tuple[str, str], first_row: int
) -> None:
    """Raise for the first row with a fault; `names` of the labels and of the logits or predictions."""
    from bigvocab.kernels import sigmoid

    if not faults.any():
        return
    row = int(np.argmax(faults > 0))
    if faults[row] == sigmoid.BAD_LABEL:
        refuse_bad_label(names[0], labels, row, first_row)
    values = np.concatenate([np.asarray(tile[row]).astype(np.float64) for _, tile in tiles])
    at = int(np.argmax((values < 0) | (values > 1)))
    raise BigvocabError.of_row(
        names[1],
        first_row + row,
        f", class {at}, is {values[at]}, expected a probability in [0, 1]; logits are for the sigmoid losses",
    )
