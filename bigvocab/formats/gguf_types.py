"""The types of tensors in GGUF files: how many numbers a block holds in how many bytes, and which of them are read.

Source: https://github.com/ggml-org/ggml/blob/master/include/ggml.h and src/ggml-common.h.
"""

from __future__ import annotations

import numpy as np

from bigvocab.formats.layout import BFLOAT16, Blocks, Stored

TYPES = {
    kind.code: kind
    for kind in (
        Blocks("F32", 0, 1, 4),
        Blocks("F16", 1, 1, 2),
        Blocks("Q4_0", 2, 32, 18),
        Blocks("Q4_1", 3, 32, 20),
        Blocks("Q5_0", 6, 32, 22),
        Blocks("Q5_1", 7, 32, 24),
        Blocks("Q8_0", 8, 32, 34),
        Blocks("Q2_K", 10, 256, 84),
        Blocks("Q3_K", 11, 256, 110),
        Blocks("Q4_K", 12, 256, 144),
        Blocks("Q5_K", 13, 256, 176),
        Blocks("Q6_K", 14, 256, 210),
        Blocks("Q8_K", 15, 256, 292),
        Blocks("IQ2_XXS", 16, 256, 66),
        Blocks("IQ2_XS", 17, 256, 74),
        Blocks("IQ3_XXS", 18, 256, 98),
        Blocks("IQ1_S", 19, 256, 50),
        Blocks("IQ4_NL", 20, 32, 18),
        Blocks("IQ3_S", 21, 256, 110),
        Blocks("IQ2_S", 22, 256, 82),
        Blocks("IQ4_XS", 23, 256, 136),
        Blocks("I8", 24, 1, 1),
        Blocks("I16", 25, 1, 2),
        Blocks("I32", 26, 1, 4),
        Blocks("I64", 27, 1, 8),
        Blocks("F64", 28, 1, 8),
        Blocks("IQ1_M", 29, 256, 56),
        Blocks("BF16", 30, 1, 2),
        Blocks("TQ1_0", 34, 256, 54),
        Blocks("TQ2_0", 35, 256, 66),
        Blocks("MXFP4", 39, 32, 17),
        Blocks("NVFP4", 40, 64, 36),
        Blocks("Q1_0", 41, 128, 18),
    )
}
NAMES = {4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 42: "Q2_0"}  # of types whose sizes are not certain, or that no one writes now
BY_NAME = {kind.name: kind for kind in TYPES.values()}
PLAIN = {
    "F32": Stored(np.dtype("<f4"), np.dtype("<f4")),
    "F16": Stored(np.dtype("<f2"), np.dtype("<f2")),
    "BF16": Stored(BFLOAT16, BFLOAT16),
    "F64": Stored(np.dtype("<f8"), np.dtype("<f8")),
}
DECODED = ("Q8_0", "Q6_K", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K")
READ = (*PLAIN, *DECODED)


def type_name(code: int) -> str:
    """The name of a type, known or not."""
    return TYPES[code].name if code in TYPES else NAMES.get(code, f"type {code}")
