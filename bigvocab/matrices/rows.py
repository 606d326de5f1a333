"""Statistics of rows of logits: the kernels' sums, and the figures that are read from them.

Logits come as tiles: a list of (first class, 2-D array), one for a plain matrix, several where classes are split over
files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.arguments import BFLOAT16, FLOATS
from bigvocab.storage import memory
from bigvocab.storage.reading import MAPPED_TURN, reader_of
from bigvocab.threads import resolve_threads, run_threads

Tiles = Sequence[tuple[int, npt.NDArray[Any]]]

# Bytes of logits per turn of a thread: the last turns small, to share evenly; those before large, to hide their cost.
_LEAST_TURN, _LARGEST_TURN = 4 << 20, 256 << 20
_COPIED_BYTES = (
    128 << 20
)  # of all threads together, or one row, where rows are copied because they do not lie in one piece
_CACHED_BYTES = 8 << 20  # copied at a time
_CANONICAL = {"float16": np.int16, "bfloat16": np.uint16}


def kernel_view(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """`array` as kernels take it: read-only, C-contiguous, native, aligned; float16 as int16, bfloat16 as uint16.

    Columns left out of a wider array come back as padding behind each row: a kernel is told how many classes to read.
    """
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if not array.flags.c_contiguous and rows_in_one_piece(array) and array.shape[0] > 1:
        row, element = array.strides[0], array.itemsize  # the stride of a single column may be any
        array = np.lib.stride_tricks.as_strided(array, (len(array), row // element), (row, element), writeable=False)
    view = array if array.flags.c_contiguous and array.flags.aligned else np.require(array, requirements=["C", "A"])
    view = view.view(_CANONICAL.get(view.dtype.name, view.dtype))
    view.flags.writeable = False
    return view


def rows_in_one_piece(array: npt.NDArray[Any]) -> bool:
    """Whether kernels can read the rows where they lie."""
    row, element = array.strides
    width = array.shape[1] * array.itemsize
    right = element == array.itemsize or array.shape[1] == 1
    return right and row >= width and row % array.itemsize == 0 and array.flags.aligned and array.dtype.isnative


def in_one_piece(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Rows as they are, or a copy in which each lies in one piece, in native byte order: the bits of its figures are
    then those of the same values anywhere.
    """
    if rows_in_one_piece(array):
        return array
    copy = memory.empty(array.shape, array.dtype if array.dtype == BFLOAT16 else array.dtype.newbyteorder("="))
    width = max(1, _CACHED_BYTES // (copy.itemsize * max(1, len(array))))
    for c in range(0, array.shape[1], width):  # in Fortran order a range of columns at a time stays in the cache
        copy[:, c : c + width] = array[:, c : c + width]
    return copy


def pieces(tiles: Tiles, start: int, stop: int) -> Iterator[tuple[tuple[int, int], npt.NDArray[Any]]]:
    """Tiles of rows `start` to `stop` as ((first class, classes), kernel view): copies where rows do not lie in one
    piece.
    """
    for first_class, tile in tiles:
        rows = tile[start:stop]
        yield (first_class, tile.shape[1]), kernel_view(in_one_piece(rows))


def streamed(
    tiles: Tiles, start: int, stop: int, left_out: npt.NDArray[np.bool_] | None = None
) -> Iterator[tuple[tuple[int, int], npt.NDArray[Any]]]:
    """As `pieces`, for what reads every byte of the rows once, but for those left out (stop - start,)."""
    if left_out is None:
        left_out = np.zeros(stop - start, bool)
    for first_class, tile in tiles:
        reader = reader_of(tile) if rows_in_one_piece(tile) else None
        for span, piece in pieces([(first_class, tile)], start, stop):
            if reader is not None:
                reader.bring(piece, span[1], left_out)
            yield span, piece
            if reader is not None:
                reader.done(piece, span[1])


def share_rows(
    work: Callable[[int, int], None],
    tiles: Tiles,
    rows: int,
    num_threads: int | None,
    beside: npt.NDArray[Any] | None = None,
) -> None:
    """Call `work(start, stop)` for ranges that cover all rows of `tiles`, and of what is read `beside` them, on the
    threads; no row's result may depend on it.
    """
    arrays = [tile for _, tile in tiles] + ([] if beside is None else [beside])
    threads = resolve_threads(num_threads)
    row_bytes = sum(array.shape[1] * (array.itemsize if array.dtype.name in FLOATS else 8) for array in arrays)
    row_bytes = max(1, row_bytes)
    step, most = _LEAST_TURN // row_bytes, 0
    if not all(map(rows_in_one_piece, arrays)):
        threads = max(1, min(threads, _COPIED_BYTES // row_bytes))
        step = _COPIED_BYTES // (threads * row_bytes)
    elif beside is None or beside.dtype.name in FLOATS:  # else every turn makes a copy of them
        most = (MAPPED_TURN if any(map(reader_of, arrays)) else _LARGEST_TURN) // row_bytes
    run_threads(work, rows, min(step, -(-rows // threads)), threads, most)


@dataclass
class RowStatistics:
    """What one pass over rows of logits left, as columns; g(x) = softcap tanh(scale x / softcap), or scale x."""

    columns: npt.NDArray[np.float64]
    label_logits: npt.NDArray[np.float64]
    scale: float = 1.0
    softcap: float = 0.0

    def _column(self, name: str) -> npt.NDArray[np.float64]:
        from bigvocab.kernels import row_statistics

        return self.columns[:, getattr(row_statistics, name)]

    def transformed(self, logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """g of raw logits; -inf, a masked class, stays -inf."""
        with np.errstate(over="ignore"):  # of the quotient: tanh is 1 there
            y = logits if self.scale == 1.0 else self.scale * logits
            if self.softcap:
                y = np.where(np.isinf(logits), logits, self.softcap * np.tanh(y / self.softcap))
        return y

    @property
    def finite(self) -> npt.NDArray[np.bool_]:
        """False for a row with a NaN or +inf, or with every class masked."""
        return np.isfinite(self._column("SUM")) & np.isfinite(self._column("MAX"))

    @property
    def logsumexp(self) -> npt.NDArray[np.float64]:
        """log S exp(g(x))."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.transformed(self._column("MAX")) + np.log(self._column("SUM"))

    @property
    def label_loss(self) -> npt.NDArray[np.float64]:
        """logsumexp - g(label's logit), at least 0; NaN for a NaN row or +inf at the label, inf for +inf elsewhere."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            highest = self.transformed(self._column("MAX"))
            return (highest - self.transformed(self.label_logits)) + np.log(self._column("SUM"))

    @property
    def logit_sum(self) -> npt.NDArray[np.float64]:
        """S g(x)."""
        return self._column("TOTAL")

    def uniform_loss(self, num_classes: int) -> npt.NDArray[np.float64]:
        """Logsumexp less the mean of g(x): at least log V, below which the rounding of huge logits would take it."""
        with np.errstate(invalid="ignore"):
            return np.maximum(self.logsumexp - self.logit_sum / num_classes, np.log(num_classes))

    @property
    def entropy(self) -> npt.NDArray[np.float64]:
        """Entropy of the softmax, in nats; NaN where the row is not finite."""
        with np.errstate(divide="ignore", invalid="ignore"):
            total = self._column("SUM")
            found = np.maximum(np.log(total) - self._column("SHIFTED") / total, 0.0)
        return np.where(self._column("MAX") == np.inf, np.nan, found)

    @property
    def rank(self) -> npt.NDArray[np.int64]:
        """1 + the number of classes with a strictly greater logit."""
        return self._column("GREATER").astype(np.int64) + 1

    @property
    def tied(self) -> npt.NDArray[np.bool_]:
        """Whether another class has the label's logit."""
        return self._column("EQUAL") > 1

    @property
    def predicted(self) -> npt.NDArray[np.int64]:
        """The lowest id among the greatest logits; -1 in a row with a NaN, which has no greatest."""
        masked = self._column("MAX") == -np.inf
        found = np.where(masked, 0, self._column("ARGMAX")).astype(np.int64)
        return np.where(np.isnan(self._column("SUM")), -1, found)


def wanted(*, rank: bool = False, entropy: bool = False, predicted: bool = False, logit_sum: bool = False) -> int:
    """The kernels' number for the by-products that are asked for."""
    from bigvocab.kernels import row_statistics as k

    asked = {k.RANK: rank, k.ENTROPY: entropy, k.PREDICTED: predicted, k.LOGIT_SUM: logit_sum}
    return sum(bit for bit, yes in asked.items() if yes)


def softmax_rows(
    tiles: Tiles,
    labels: npt.NDArray[np.int64],
    *,
    want: int = 0,
    scale: float = 1.0,
    softcap: float = 0.0,
    num_threads: int | None = None,
) -> RowStatistics:
    """Statistics of rows of logits; a label of -1 leaves its row out, -2 reads a row that has no label."""
    if (made := getattr(tiles, "softmax_rows", None)) is not None:  # logits that are made while they are read
        found: RowStatistics = made(labels, want=want, scale=scale, softcap=softcap, num_threads=num_threads)
        return found
    from bigvocab.kernels import row_statistics, softmax

    rows = len(labels)
    labels = np.ascontiguousarray(labels)
    label_logits = np.full(rows, np.nan)
    columns = np.empty((rows, row_statistics.COLUMNS))

    def work(start: int, stop: int) -> None:
        mine, logits_of_mine, stats = labels[start:stop], label_logits[start:stop], columns[start:stop]
        row_statistics.clear_statistics(stats)
        alone = len(tiles) == 1 and rows_in_one_piece(tiles[0][1])
        for first_class, tile in [] if alone else tiles:
            _gather(tile, first_class, start, mine, logits_of_mine)
        for span, piece in streamed(tiles, start, stop, mine == row_statistics.SKIP):
            if alone:  # the label's page need not be touched before all others
                softmax.rows_gather(piece, mine, span, logits_of_mine)
            softmax.rows_softmax(piece, mine, logits_of_mine, (scale, softcap), want, span, stats)

    share_rows(work, tiles, rows, num_threads)
    return RowStatistics(columns, label_logits, scale, softcap)


def _gather(
    tile: npt.NDArray[Any], first_class: int, start: int, labels: npt.NDArray[np.int64], out: npt.NDArray[np.float64]
) -> None:
    """Put the label's logit of each row that this tile holds it of into `out`."""
    from bigvocab.kernels import softmax

    if rows_in_one_piece(tile):
        softmax.rows_gather(kernel_view(tile[start : start + len(labels)]), labels, (first_class, tile.shape[1]), out)
        return
    here = np.flatnonzero((labels >= 0) & (labels >= first_class) & (labels < first_class + tile.shape[1]))
    picked = tile[start + here, labels[here] - first_class]
    out[here] = picked.astype(picked.dtype.newbyteorder("=") if picked.dtype != BFLOAT16 else BFLOAT16).astype(
        np.float64
    )
