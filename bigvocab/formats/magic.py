"""First bytes that give a format away."""

from __future__ import annotations

NPY = b"\x93NUMPY"
ARROW_FILE = b"ARROW1"
ARROW_STREAM = b"\xff\xff\xff\xff"  # gives nothing away: raw numbers may begin so
FEATHER_1 = b"FEA1"
PARQUET = b"PAR1"
ZIP = b"PK\x03\x04"
GGUF = b"GGUF"
GGUF_SWAPPED = GGUF[::-1]
LLAMA_LOGITS = b"_logits_"
LLAMA_LOGITS_2 = b"_logits_v2"
GIT_LFS = b"version https://git-lfs"

KINDS = {
    NPY: "npy",
    ARROW_FILE: "arrow",
    PARQUET: "parquet",
    ZIP: "zip",
    FEATHER_1: "feather",
    GGUF: "gguf",
    GGUF_SWAPPED: "gguf",
    GIT_LFS: "git-lfs",
}
LONGEST = max(map(len, KINDS))  # bytes to read before asking


def kind_of(head: bytes) -> str | None:
    """The format of a file that begins with these bytes; None where they give nothing away."""
    return next((kind for start, kind in KINDS.items() if head.startswith(start)), None)
