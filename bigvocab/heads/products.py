"""Products of rows with rows of any float type: the one place where hidden states meet an output layer.

Half and single precision are summed in float32, double precision in float64. An element's bits depend on its two rows
alone, not on the shape of the call or the place in it, which no BLAS promises: see kernels/products.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab.arguments import BFLOAT16
from bigvocab.matrices.tiles import kernel_view
from bigvocab.matrices.weight_rows import WeightRows
from bigvocab.storage import memory
from bigvocab.threads import run_threads

Array = npt.NDArray[Any]
Ids = npt.NDArray[np.int64]

_CHUNK = 480  # rows that are packed, or multiplied with a panel of weights, at a turn: a multiple of the 12 of a panel


def accumulator(*dtypes: Any) -> np.dtype[Any]:
    """The type that products of these types are summed in: float64 where one of them is, else float32."""
    wide = any(np.dtype(dtype).newbyteorder("=") == np.float64 for dtype in dtypes)
    return np.dtype(np.float64 if wide else np.float32)


def converted(array: Array, dtype: Any = None) -> Array:
    """`array` (n, D) or (n,) as native, C-contiguous `dtype`, by default its accumulator; not copied where it is so.

    >>> import numpy as np
    >>> converted(np.array([[1.5, 2.0]], np.float16))
    array([[1.5, 2. ]], dtype=float32)
    """
    from bigvocab.kernels import convert

    dtype = accumulator(array.dtype) if dtype is None else np.dtype(dtype)
    if array.dtype == dtype and array.flags.c_contiguous and array.flags.aligned:
        return array
    if array.ndim == 1:
        return converted(array[None, :], dtype)[0]
    out = np.empty(array.shape, dtype)
    if array.size:
        convert.widen_rows(kernel_view(array), array.shape[1], out)
    return out


def lanes(dtype: Any) -> int:
    """Classes of one panel of weights; what is multiplied needs as many numbers of padding."""
    return 128 // np.dtype(dtype).itemsize


@dataclass(frozen=True)
class Packed:
    """Rows as the product's kernel reads them: panels (n / 12, steps, 12), zeros after the last row.

    A step is a column, or two columns of bfloat16 in a uint32 where the processor multiplies such pairs.
    """

    panels: Array
    rows: int
    depth: int
    whole: bool = False  # bfloat16, to be multiplied with bfloat16 or with the whole numbers of quantised rows

    @classmethod
    def of(
        cls,
        inputs: Array,
        weights_dtype: Any,
        num_threads: int | None = 1,
        *,
        chosen: Ids | None = None,
        prepare: Callable[[Array], Array] | None = None,
    ) -> Packed:
        """Pack inputs (n, D), or the chosen rows of them, to be multiplied with weights of some `factor_dtype`.

        prepare, a function of rows in the accumulator's type, is applied before they are packed.
        """
        from bigvocab.kernels.panels import ROWS, multiplies_pairs, pack_rows

        n, depth = inputs.shape if chosen is None else (len(chosen), inputs.shape[1])
        dtype, steps = accumulator(inputs.dtype, weights_dtype), depth
        whole = inputs.dtype == weights_dtype == BFLOAT16 and prepare is None
        pairs = whole and multiplies_pairs()
        if pairs:
            dtype, steps = np.dtype(np.uint32), (depth + 1) // 2
        panels = np.empty((-(-n // ROWS), steps, ROWS), dtype)

        def work(start: int, stop: int) -> None:
            rows = inputs[start:stop] if chosen is None else inputs[chosen[start:stop]]
            if not pairs:
                rows = converted(rows, dtype)
                rows = rows if prepare is None else prepare(rows)
            pack_rows(kernel_view(rows), depth, panels[start // ROWS : -(-stop // ROWS)].reshape(-1))

        run_threads(work, n, _CHUNK, num_threads)
        return cls(panels, n, depth, whole)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the products."""
        return np.dtype(np.float64 if self.panels.dtype == np.float64 else np.float32)

    def part(self, start: int, stop: int) -> Packed:
        """Rows `start`, a multiple of 12, to `stop`."""
        return Packed(self.panels[start // 12 : -(-stop // 12)], stop - start, self.depth, self.whole)

    def tile(self, classes: int) -> Array:
        """Room for the products with so many classes, and for the kernel's padding on the right and below."""
        return memory.in_lines((12 * len(self.panels), classes + lanes(self.dtype)), self.dtype)

    def panel(self) -> Array:
        """Room for one panel of weights."""
        return memory.in_lines(self.panels.shape[1] * lanes(self.dtype), self.panels.dtype)

    def multiply(
        self, weights: Array, biases: Array, panel: Array, out: Array, column: int = 0, ids: Ids | None = None
    ) -> int:
        """Put rows times weights (m, D), or weights[ids], transposed, plus biases, into out[:, column : column + m].

        ids are not checked, and their rows are read where they lie. biases is as long as the padding asks: m + lanes.
        Columns after them are overwritten up to the padding. Returns the first row of weights of a panel that holds a
        NaN or an infinity, or -1.
        """
        rows = WeightRows(len(weights), kernel_view(weights))
        return self.multiply_stored(rows, biases, panel, out, column, ids)

    def multiply_stored(
        self, weights: WeightRows, biases: Array, panel: Array, out: Array, column: int = 0, ids: Ids | None = None
    ) -> int:
        """As `multiply`, of rows as they lie in a file."""
        from bigvocab.kernels.products import tile_product

        span = (0, weights.num_rows if ids is None else len(ids), column)
        packed = self.panels.reshape(-1)
        found: int = tile_product(packed, self.depth, self.as_multiplied(weights), ids, span, biases, panel, out)
        return found

    def as_multiplied(self, weights: WeightRows) -> Any:
        """Rows as the product's kernel takes them: with room for scales where whole numbers are multiplied."""
        from bigvocab.kernels.whole_numbers import BLOCK_OF_SCALE

        if not (self.whole and isinstance(weights.kernel, tuple) and len(weights.kernel) == 2):
            return weights.kernel
        blocks, code = weights.kernel
        return blocks, code, memory.in_lines((self.depth // BLOCK_OF_SCALE[code], lanes(self.dtype)), self.dtype)


def product(inputs: Array, rows: Array, out: Array | None = None, num_threads: int | None = 1) -> Array:
    """Inputs (n, D) times rows (m, D) transposed: (n, m) in the accumulator's type, maybe with padding after each row.

    >>> import numpy as np
    >>> product(np.array([[1.0, 2.0]], np.float32), np.array([[3, 4], [5, 6]], np.float16))
    array([[11., 17.]], dtype=float32)
    """
    packed = Packed.of(inputs, rows.dtype, num_threads)
    tile, zeros = packed.tile(len(rows)), np.zeros(lanes(packed.dtype) + 1024, packed.dtype)

    def work(start: int, stop: int) -> None:  # in steps of whole panels, so that none overwrites what a neighbour wrote
        packed.multiply(rows[start:stop], zeros, packed.panel(), tile, start)

    run_threads(work, len(rows), 1024, num_threads)
    found = tile[: len(inputs), : len(rows)]
    if out is None:
        return found
    out[...] = found
    return out


def paired(inputs: Packed, rows: Array, biases: Array | None = None, ids: Ids | None = None) -> Array:
    """Each row of inputs times the same row of `rows` (n, D), or of rows[ids], + biases (n,): bits of `multiply`."""
    return paired_stored(inputs, WeightRows(len(rows), kernel_view(rows)), biases, ids)


def paired_stored(inputs: Packed, rows: WeightRows, biases: Array | None = None, ids: Ids | None = None) -> Array:
    """As `paired`, of rows as they lie in a file: bits of `multiply_stored`."""
    from bigvocab.kernels.products import paired_products

    dtype = inputs.dtype
    addend = np.zeros(inputs.rows + lanes(dtype), dtype)
    if biases is not None:
        addend[: inputs.rows] = biases
    out = np.empty(inputs.rows, dtype)
    if inputs.rows:
        packed, square = inputs.panels.reshape(-1), np.empty((12, lanes(dtype)), dtype)
        paired_products(packed, inputs.depth, inputs.as_multiplied(rows), ids, addend, inputs.panel(), square, out)
    return out
