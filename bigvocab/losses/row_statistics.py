"""Softmax statistics of rows of logits: one pass leaves seven numbers per row, and all metrics are read from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bigvocab.losses.row_sums import SoftmaxSums
from bigvocab.matrices.logit_rows import Floats, Ids, LogitRows
from bigvocab.threads import resolve_threads


@dataclass
class RowStatistics:
    """What one pass over rows of logits left, as columns; g(x) = softcap tanh(scale x / softcap), or scale x."""

    columns: Floats
    label_logits: Floats
    scale: float = 1.0
    softcap: float = 0.0

    @property
    def maximum(self) -> Floats:
        """The greatest raw logit; -inf where every class is masked."""
        from bigvocab.kernels import row_statistics

        return self.columns[:, row_statistics.MAX]

    @property
    def exp_sum(self) -> Floats:
        """sum_j exp(g(x_j) - g(maximum)); NaN where the row holds one."""
        from bigvocab.kernels import row_statistics

        return self.columns[:, row_statistics.SUM]

    @property
    def equal(self) -> Floats:
        """How many classes have the logit of the label, itself included."""
        from bigvocab.kernels import row_statistics

        return self.columns[:, row_statistics.EQUAL]

    def transformed(self, logits: Floats) -> Floats:
        """g of raw logits; -inf, a masked class, stays -inf."""
        with np.errstate(over="ignore"):  # of the quotient: tanh is 1 there
            y = logits if self.scale == 1.0 else self.scale * logits
            if self.softcap:
                y = np.where(np.isinf(logits), logits, self.softcap * np.tanh(y / self.softcap))
        return y

    @property
    def finite(self) -> npt.NDArray[np.bool_]:
        """False for a row with a NaN or +inf, or with every class masked."""
        return np.isfinite(self.exp_sum) & np.isfinite(self.maximum)

    @property
    def logsumexp(self) -> Floats:
        """log sum_j exp(g(x_j))."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.transformed(self.maximum) + np.log(self.exp_sum)

    @property
    def label_loss(self) -> Floats:
        """logsumexp - g(label's logit), at least 0; NaN for a NaN row or +inf at the label, inf for +inf elsewhere."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            highest = self.transformed(self.maximum)
            return (highest - self.transformed(self.label_logits)) + np.log(self.exp_sum)

    @property
    def logit_sum(self) -> Floats:
        """sum_j g(x_j)."""
        from bigvocab.kernels import row_statistics

        return self.columns[:, row_statistics.TOTAL]

    def uniform_loss(self, num_classes: int) -> Floats:
        """Logsumexp less the mean of g(x): at least log V, below which the rounding of huge logits would take it."""
        with np.errstate(invalid="ignore"):
            return np.maximum(self.logsumexp - self.logit_sum / num_classes, np.log(num_classes))

    @property
    def entropy(self) -> Floats:
        """Entropy of the softmax, in nats; NaN where the row is not finite."""
        from bigvocab.kernels import row_statistics

        with np.errstate(divide="ignore", invalid="ignore"):
            total = self.exp_sum
            found = np.maximum(np.log(total) - self.columns[:, row_statistics.SHIFTED] / total, 0.0)
        return np.where(self.maximum == np.inf, np.nan, found)

    @property
    def squares(self) -> Floats:
        """The sum of the squares of all probabilities, where it was wanted."""
        from bigvocab.kernels import row_statistics

        with np.errstate(divide="ignore", invalid="ignore"):
            return self.columns[:, row_statistics.SQUARED] / self.exp_sum**2

    @property
    def confidence(self) -> Floats:
        """The probability of the greatest logit; NaN where the row is not finite."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.finite, 1.0 / self.exp_sum, np.nan)

    @property
    def brier(self) -> Floats:
        """sum_j (p_j - t_j)^2 with t = 1 at the label: ((S - e) / S)^2 + (Q - e^2) / S^2, which does not cancel."""
        from bigvocab.kernels import row_statistics

        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            label = np.exp(self.transformed(self.label_logits) - self.transformed(self.maximum))
            total, squares = self.exp_sum, self.columns[:, row_statistics.SQUARED]
            found = ((total - label) / total) ** 2 + np.maximum(squares - label**2, 0.0) / total**2
        return np.where(self.finite, found, np.nan)

    @property
    def rank(self) -> npt.NDArray[np.int64]:
        """1 + the number of classes with a strictly greater logit."""
        from bigvocab.kernels import row_statistics

        return self.columns[:, row_statistics.GREATER].astype(np.int64) + 1

    @property
    def tied(self) -> npt.NDArray[np.bool_]:
        """Whether another class has the label's logit."""
        return self.equal > 1

    @property
    def predicted(self) -> npt.NDArray[np.int64]:
        """The lowest id among the greatest logits; -1 in a row with a NaN, which has no greatest."""
        from bigvocab.kernels import row_statistics

        masked = self.maximum == -np.inf
        found = np.where(masked, 0, self.columns[:, row_statistics.ARGMAX]).astype(np.int64)
        return np.where(np.isnan(self.exp_sum), -1, found)


def wanted(
    *,
    rank: bool = False,
    entropy: bool = False,
    predicted: bool = False,
    logit_sum: bool = False,
    squares: bool = False,
) -> int:
    """The kernels' number for the by-products that are asked for."""
    from bigvocab.kernels import row_statistics as k

    asked = {k.RANK: rank, k.ENTROPY: entropy, k.PREDICTED: predicted, k.LOGIT_SUM: logit_sum, k.SQUARES: squares}
    return sum(bit for bit, yes in asked.items() if yes)


def softmax_rows(
    rows: LogitRows,
    labels: Ids,
    *,
    known: Floats | None = None,
    want: int = 0,
    scale: float = 1.0,
    softcap: float = 0.0,
    num_threads: int | None = None,
) -> RowStatistics:
    """Statistics of rows of logits; a label of -1 leaves its row out, -2 reads a row that has no label.

    Args:
        rows: stored, or made while they are read.
        labels: (n,) int64.
        known: (n,) raw logits of the labels, which may then be any class at all; None looks them up in the rows.
        want: by-products, as `wanted` says them.
        scale: of g.
        softcap: of g; 0 is none.
        num_threads: None is all usable cores; no bit depends on it.

    >>> from bigvocab.matrices.tiles import StoredRows
    >>> found = softmax_rows(StoredRows.of(np.log([[1.0, 2.0, 5.0]])), np.array([1]), want=wanted(rank=True))
    >>> found.label_loss.round(6).tolist(), found.rank.tolist()
    ([1.386294], [2])
    """
    reduction = SoftmaxSums(labels, (scale, softcap), want, known)
    (columns,) = rows.reduce(reduction, resolve_threads(num_threads))
    return RowStatistics(columns, reduction.found, scale, softcap)


def merged_statistics(groups: Floats, scale: float = 1.0, softcap: float = 0.0) -> Floats:
    """Statistics (G, n, columns) of ranges of classes, in their order, as those (n, columns) of all of them."""
    from bigvocab.kernels import row_statistics

    want = wanted(squares=groups.shape[2] > row_statistics.COLUMNS)
    reduction = SoftmaxSums(np.zeros(groups.shape[1], np.int64), (scale, softcap), want)
    merged = reduction.state(groups.shape[1])
    reduction.clear(merged)
    reduction.merge((groups,), merged)
    return merged[0]
