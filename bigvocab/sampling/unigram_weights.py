"""Weights of a fixed unigram sampler: read, raised to a power, split over shards, and made a table to draw from."""

from __future__ import annotations

from typing import Any

import numpy as np

from bigvocab.arguments import as_array
from bigvocab.errors import BigvocabError, Keyword
from bigvocab.kernels import alias
from bigvocab.kernels import random as kernels
from bigvocab.storage import memory
from bigvocab.threads import run_threads

_AT_ONCE = 1 << 16  # weights per turn of a thread


def as_weights(unigrams: Any) -> np.ndarray:
    """Weights (V,) of any type, checked: finite, none below 0."""
    weights = as_array("unigrams", _typed_list(unigrams))
    if weights.dtype.kind not in "iuf" and weights.dtype.name != "bfloat16":
        raise TypeError(f"unigrams: expected numbers, got {weights.dtype}")
    if weights.ndim != 1 or weights.size == 0:
        raise BigvocabError(Keyword("unigrams"), f": expected one weight a word, got shape {weights.shape}")
    if not (weights.min() >= 0 and weights.max() < np.inf):  # a NaN fails both
        at = int(np.argmin((weights >= 0) & (weights < np.inf)))
        raise BigvocabError.of_row("unigrams", at, f" is {weights[at]}, expected a finite weight >= 0")
    return weights


def _typed_list(values: Any) -> Any:
    """A list of Python numbers as an array, in a quarter of NumPy's time; anything else as it is."""
    if type(values) is list and values and type(values[0]) in (int, float):
        from bigvocab.kernels import lists

        kinds = ((np.int64, lists.read_integers, (int, bool, int)), (np.float64, lists.read_floats, (int, bool, float)))
        for kind, read, classes in kinds if lists.READABLE else ():
            array = memory.empty(len(values), kind)
            if read(id(values), tuple(map(id, classes)), array):
                return array
    return values


def distorted(source: str, weights: np.ndarray, distortion: float) -> np.ndarray:
    """weights^distortion in the float32 that TensorFlow draws from."""
    drawn = memory.empty(len(weights), np.float32)

    def raise_to_power(start: int, stop: int) -> None:
        part = slice(start, stop)
        with np.errstate(over="ignore", under="ignore", divide="ignore"):
            drawn[part] = weights[part].astype(np.float64)  # as TensorFlow has them before float32
            if distortion != 1.0:
                kernels.power_float32(drawn[part], np.float32(distortion), drawn[part])

    run_threads(raise_to_power, len(weights), _AT_ONCE)
    with np.errstate(over="ignore"):
        if not drawn.max() * np.float32(len(drawn)) < np.inf:
            at = int(drawn.argmax())
            raise BigvocabError(
                f"{source}: weight {weights[at]} of word {at}, to the power {distortion} and times {len(drawn)} words, "
                "is past the largest float32"
            )
    return drawn


def tables(weights: np.ndarray, distortion: float, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """weights^distortion in float64, 0 where float32 has 0; the alias table of `drawn`; and how many are above 0."""
    size, positive = len(drawn), 0
    exact, table = memory.empty(size, np.float64), memory.empty((size, 2), np.uint32)

    def make(start: int, stop: int) -> None:  # each on a core
        nonlocal positive
        if start == 0:
            alias.build_alias(drawn, table.view(np.float64).reshape(-1), np.empty(-(-size // 64), np.uint64), table)
            return
        exact[...] = weights
        if distortion != 1.0:
            with np.errstate(over="ignore", under="ignore", divide="ignore"):
                np.power(exact, distortion, out=exact)
        positive = int(np.count_nonzero(drawn))
        if positive < size:
            exact[drawn == 0] = 0.0

    run_threads(make, 2, 1)
    return exact, table, positive


def of_shard(weights: np.ndarray, num_reserved_ids: int, num_shards: int, shard: int) -> np.ndarray:
    """Put the reserved ids before the words, and take the ids of one shard."""
    if num_reserved_ids:
        weights = np.concatenate((np.zeros(num_reserved_ids, weights.dtype), weights))
    if shard >= len(weights):
        raise BigvocabError(Keyword("shard"), f": got {shard} of {num_shards}, but there are only {len(weights)} ids")
    return np.ascontiguousarray(weights[shard::num_shards])
