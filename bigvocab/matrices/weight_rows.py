"""Rows of a layer as they lie in a file, for products."""

from __future__ import annotations

from typing import Any, NamedTuple


class WeightRows(NamedTuple):
    """Rows of a layer as a product's kernel reads them: an array (`tiles.kernel_view`), or a pair of quantised blocks
    (n, row bytes) and the code of their type.
    """

    num_rows: int
    kernel: Any
