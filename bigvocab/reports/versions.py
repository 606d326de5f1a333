"""Versions of what the numbers of a report depend on."""

from __future__ import annotations


def versions() -> dict[str, str]:
    """The version of each library by its name."""
    import numba
    import numpy as np
    import pyarrow

    import bigvocab

    return {
        "bigvocab": bigvocab.__version__,
        "numba": numba.__version__,
        "numpy": np.__version__,
        "pyarrow": pyarrow.__version__,
    }
