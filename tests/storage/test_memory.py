"""Arrays in huge pages are arrays like others."""

import numpy as np
import pytest

from bigvocab.storage import memory


@pytest.mark.parametrize("shape", [0, 5, (3, 4), 1 << 20, (1 << 19, 3), (7, 300_001)])
@pytest.mark.parametrize("dtype", ["u1", "f4", "f8"])
def test_shape_type_and_alignment(shape, dtype):
    made = memory.empty(shape, dtype)
    assert made.shape == (shape if isinstance(shape, tuple) else (shape,))
    assert made.dtype == dtype
    assert made.flags.c_contiguous
    assert made.flags.writeable
    made[...] = 1
    assert made.sum(dtype=np.float64) == made.size
    if made.nbytes >= 1 << 21:
        assert made.ctypes.data % (1 << 21) == 0
