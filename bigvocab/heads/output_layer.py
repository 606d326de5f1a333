"""An output layer: weights and biases as mapped matrices, and the norm that hidden states pass before they meet it."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab import arguments
from bigvocab.errors import BigvocabError, Keyword
from bigvocab.heads.found_model import AFTER, BEFORE, FoundModel
from bigvocab.heads.products import converted, lanes
from bigvocab.heads.weight_files import open_weights
from bigvocab.matrices.matrix import Matrix
from bigvocab.matrices.opening import as_matrix
from bigvocab.matrices.tiles import kernel_view
from bigvocab.matrices.transposed import TransposedMatrix
from bigvocab.matrices.weight_rows import WeightRows

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

BLOCK_BYTES = 64 << 20  # of packed rows and their statistics, while the layer is read once
NORMS = ("rms", "layer")


class FinalNorm:
    """The norm between the last block of a model and its output layer, for states that were stored before it.

    rms: x / sqrt(mean x^2 + epsilon) * weight; layer: (x - mean x) / sqrt(var x + epsilon) * weight + bias. Computed
    in float64 and rounded once to the type that products are summed in. Models whose RMS norm multiplies by 1 +
    weight (Gemma) need 1 + weight here.
    """

    def __init__(
        self, kind: str, depth: int, weight: Any = None, bias: Any = None, epsilon: float = 1e-6, offset: int = 0
    ) -> None:
        if kind not in NORMS:
            raise BigvocabError(Keyword("final_norm"), f": got {kind!r}, expected one of {', '.join(NORMS)}")
        if kind == "rms" and bias is not None:
            raise BigvocabError(
                Keyword("norm_bias"), ": ", Keyword("final_norm", "rms"), ' has none; expected it with "layer" alone'
            )
        self.kind = kind
        self.weight = np.ones(depth) if weight is None else offset + _vector_of("norm_weight", weight, depth)
        self.bias = np.zeros(depth) if bias is None else _vector_of("norm_bias", bias, depth)
        self.epsilon = arguments.real("norm_epsilon", epsilon)
        if not 0 <= self.epsilon < np.inf:
            raise BigvocabError(Keyword("norm_epsilon"), f": got {epsilon}, expected a finite number of at least 0")

    def __call__(self, rows: Array) -> Array:
        """The rows (n, D), normed, in their own type."""
        from bigvocab.kernels.norms import rows_norm

        out = np.empty_like(rows)
        rows_norm(kernel_view(rows), self.kind == "layer", self.weight, self.bias, self.epsilon, out)
        return out


def _vector_of(name: str, values: Any, size: int) -> Floats:
    """A vector from an array or a file, as float64."""
    matrix = as_matrix(values, name, spooled=True)
    shown = shown_as(name, matrix)
    if matrix.shape != (size,):
        raise BigvocabError(f"{shown}: got shape {matrix.shape}, expected ({size},), one for each column of the inputs")
    vector = converted(np.asarray(matrix), np.float64)
    if not np.isfinite(vector).all():
        bad = int(np.argmin(np.isfinite(vector)))
        raise BigvocabError(f"{shown}: column {bad} is {vector[bad]}, expected a finite number")
    return vector


def shown_as(name: str, matrix: Matrix) -> str:
    """How messages call a matrix: by its file and tensor, where it is one, and its part in the task."""
    path = matrix.files[0]["path"]
    return name if path == "<array>" else f"{path} ({name})"


class OutputLayer:
    """Weights (V, D) and biases (V,), arrays or mapped files of any float type, and the final norm before them.

    Args:
        weights: array, path or Matrix; several files are split by classes.
        biases: the same, (V,).
        num_classes: classes that count; further rows of `weights` are padding.
        final_norm: None, "rms" or "layer", with norm_weight (D,), norm_bias (D,), norm_epsilon.
        norm_offset: 1 where the norm multiplies by 1 + norm_weight (Gemma), else 0.
        logit_scale, softcap: logits become softcap(logit_scale * (x . w + b)); applied by `linear_cross_entropy` alone.
        transpose_weights: the weights are stored (D, V), and read in place; several files are ranges of classes.
        shard_classes: how many classes of each file of weights are real.
        strict: raise where a class holds a NaN or an infinity; else it goes into the logits.
        found: the model that the layer is of, from `open_model`.

    Attributes:
        vectors: {"biases", "norm_weight", "norm_bias"}: the matrix of each, or None.
        biases: (num_classes,) in the accumulator's type, or None.
        hidden_states: "before-norm" or "after-norm": whether the norm is applied; None where it is to be told from the
            states, as of a layer of `open_model`.
        bytes_read: of the weights so far.

    >>> import numpy as np
    >>> layer = OutputLayer(np.eye(3, dtype=np.float32), np.zeros(3, np.float32), num_classes=2)
    >>> layer.shape, layer.num_classes
    ((3, 3), 2)
    """

    def __init__(
        self,
        weights: Any,
        biases: Any = None,
        *,
        num_classes: int | None = None,
        final_norm: str | None = None,
        norm_weight: Any = None,
        norm_bias: Any = None,
        norm_epsilon: float = 1e-6,
        norm_offset: int = 0,
        logit_scale: float = 1.0,
        softcap: float | None = None,
        strict: bool = False,
        found: FoundModel | None = None,
        transpose_weights: bool = False,
        shard_classes: tuple[int, ...] | None = None,
    ) -> None:
        cut: dict[str, Any] = {} if shard_classes is None else {"shard_classes": shard_classes}
        self._stored = open_weights(weights, vocab_shards=transpose_weights, **cut)
        if transpose_weights and self._stored.ndim != 2:
            raise BigvocabError(f"{shown_as('weights', self._stored)}: expected 2 dimensions, (hidden size, classes)")
        self.weights = TransposedMatrix(self._stored) if transpose_weights else self._stored
        self.name = shown_as("weights", self.weights)
        if self.weights.ndim != 2:
            raise BigvocabError(
                f"{self.name}: expected 2 dimensions, (classes, hidden size), got shape {self.weights.shape}"
            )
        self.shape = self.weights.shape
        if not self.shape[0]:
            raise BigvocabError(f"{self.name}: has no rows, expected one for each class")
        self._count_classes(self.shape[0] if num_classes is None else num_classes)
        self.strict = strict
        self.vectors = {"biases": biases, "norm_weight": norm_weight, "norm_bias": norm_bias}
        self.files = list(self.weights.files)
        for name, value in self.vectors.items():
            if value is not None:
                self.vectors[name] = self._opened_vector(name, value, cut)
                self.files += self.vectors[name].files
        self.biases = self._checked_biases()
        if final_norm is None and (norm_weight is not None or norm_bias is not None):
            raise BigvocabError(
                Keyword("norm_weight"), ": needs ", Keyword("final_norm"), ', expected "rms" or "layer" beside it'
            )
        weight, bias = self.vectors["norm_weight"], self.vectors["norm_bias"]
        self.norm_offset, self.logit_scale, self.softcap, self.found = norm_offset, logit_scale, softcap, found
        self.final_norm = None
        if final_norm is not None:
            self.final_norm = FinalNorm(final_norm, self.shape[1], weight, bias, norm_epsilon, norm_offset)
        self.hidden_states = (AFTER if self.final_norm is None else BEFORE) if found is None else None
        self.block_bytes = BLOCK_BYTES
        self.bytes_read = 0

    def _opened_vector(self, name: str, value: Any, cut: dict[str, Any]) -> Matrix:
        """A vector; biases of files that are each padded as the weights are lose their padding too."""
        several = isinstance(value, list | tuple) and len(value) > 1 and isinstance(value[0], str | os.PathLike)
        return as_matrix(value, name, spooled=True, **(cut if name == "biases" and several else {}))

    def _count_classes(self, num_classes: int) -> None:
        if not 1 <= num_classes <= self.shape[0]:
            raise BigvocabError(
                Keyword("num_classes"), f": got {num_classes}, but {self.name} has {self.shape[0]} classes"
            )
        self.num_classes = num_classes

    def _checked_biases(self) -> Array | None:
        matrix = self.vectors["biases"]
        if matrix is None:
            return None
        shown = shown_as("biases", matrix)
        if matrix.shape != (self.shape[0],):
            expected = f"({self.shape[0]},), one for each row of {self.name}"
            raise BigvocabError(f"{shown}: got shape {matrix.shape}, expected {expected}")
        biases = converted(np.asarray(matrix))[: self.num_classes]
        bad = np.isnan(biases) | (biases == np.inf)
        if self.strict and bad.any():
            c = int(np.argmax(bad))
            raise BigvocabError(
                f"{shown}: class {c} is {biases[c]}, expected a finite number, or -inf for a masked class"
            )
        return biases

    @property
    def norm(self) -> FinalNorm | None:
        """What states pass before they meet the weights; None where they have passed it, or there is none."""
        return self.final_norm if self.hidden_states == BEFORE else None

    def for_states(self, hidden_states: str, num_classes: int | None = None) -> OutputLayer:
        """The same layer for states from before or after the norm, with another number of classes if that is given."""
        layer = copy.copy(self)
        layer.hidden_states = hidden_states
        layer._count_classes(self.num_classes if num_classes is None else num_classes)
        layer.biases = layer._checked_biases()
        return layer

    def __repr__(self) -> str:
        if self.found is not None:
            return f"<OutputLayer {self.found.describe()}>"
        return f"<OutputLayer {self.name}: {self.num_classes} x {self.shape[1]}>"

    def describe(self) -> str:
        """What the layer is, and where each part of it was found, in lines for a person."""
        if self.found is None:
            return repr(self)[1:-1]
        return "\n".join([self.found.path, *(f"  {name}: {text}" for name, text in self.found.lines())])

    def options(self) -> dict[str, Any]:
        """What tells layers apart, as far as it is cheap to know."""
        norm = None if self.norm is None else (self.norm.kind, self.norm.epsilon)
        model = {} if self.found is None else {"hidden_states": self.hidden_states, "norm_offset": self.norm_offset}
        return {
            **model,
            "shape": self.shape,
            "dtype": self.weights.dtype.name,
            "biases": self.biases is not None,
            "final_norm": norm,
        }

    def allow(self, num_bytes: int) -> None:
        """Let packed rows have up to half of `num_bytes`."""
        self.block_bytes = min(num_bytes // 2, 16 * BLOCK_BYTES)

    def matrices(self) -> Iterator[Matrix]:
        """Weights, biases and the norm's vectors, those there are."""
        yield self.weights
        yield from (matrix for matrix in self.vectors.values() if matrix is not None)

    def given(self) -> dict[str, Any]:
        """The matrices that are open, as keywords of this class."""
        return {"weights": self._stored, **self.vectors}

    def check_depth(self, columns: int, name: str) -> None:
        """Raise unless the hidden states have as many columns as the layer."""
        if columns != self.shape[1]:
            turned = ("; it looks transposed: ", Keyword("transpose_weights"), "?") if columns == self.shape[0] else ()
            raise BigvocabError(
                f"{name}: has {columns} columns, but {self.name} has {self.shape[1]}, "
                "expected the same hidden size in both",
                *turned,
            )

    def padded_biases(self, dtype: Any) -> Array:
        """Biases of the classes that count, in the accumulator's type, and zeros after them for the kernel."""
        padded = np.zeros(self.num_classes + lanes(dtype), dtype)
        if self.biases is not None:
            padded[: self.num_classes] = self.biases
        return padded

    def classes(self, first: int, stop: int) -> OutputLayer:
        """Classes `first` to `stop` as a layer of its own, counted from 0, of views; what it reads is counted apart."""
        weights = self.weights.rows_between(first, stop)
        found = OutputLayer(weights, None if self.biases is None else self.biases[first:stop])
        found.strict, found.block_bytes = self.strict, self.block_bytes
        found.final_norm, found.hidden_states = self.final_norm, self.hidden_states
        return found

    def picked(self, ids: npt.NDArray[np.int64]) -> OutputLayer:
        """Some classes as a layer of its own, a copy of their rows; what it reads is counted apart."""
        found = OutputLayer(self.weights[ids], None if self.biases is None else self.biases[ids])
        found.strict, found.block_bytes = self.strict, self.block_bytes
        found.final_norm, found.hidden_states = self.final_norm, self.hidden_states
        return found

    def parts(self, first: int, stop: int) -> Iterator[tuple[int, WeightRows]]:
        """Classes `first` to `stop` as (first class, rows of the layer), as they lie in its files."""
        return self.weights.weight_rows(first, stop)

    def refuse_nonfinite(self, first: int, stop: int) -> None:
        """Raise for the first class of a range that holds a NaN or an infinity."""
        for start, tiles in self.weights.row_parts(first, stop):
            rows = converted(tiles[0][1])
            finite = np.isfinite(rows)
            if not finite.all():
                row, column = (int(i) for i in np.argwhere(~finite)[0])
                value = rows[row, column]
                raise BigvocabError(
                    f"{self.name}: class {start + row} has {value} in column {column}, expected finite weights"
                )
