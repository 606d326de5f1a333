"""Reads the weights of a vocabulary file: one word per line, the last comma-separated field its weight.

`_weight` says what a line is. Two shortcuts read all lines at once, each only where its answer is the same: a kernel
for plain numbers, 18 times as fast, and Arrow for the others that programs write, 9 times. They never say what is wrong
with a line: where neither reads the file, `_weight` reads every line.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bigvocab.errors import BigvocabError, FormatError
from bigvocab.storage import memory
from bigvocab.storage.spool import as_local

_NUMBER = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|infinity|nan)", re.IGNORECASE)
_ENDS_WITH_WEIGHT = re.compile(rb",\s*[-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?\Z")
_LONGEST_WEIGHT = 64  # bytes looked at before a CR


def read_vocab_weights(path: str | os.PathLike[str]) -> np.ndarray:
    """Weights of the words of `path`, in their order.

    Args:
        path: text file, or its URI; the word itself may hold commas; CRLF, and spaces round the weight, are fine.

    Returns:
        (words,) float64, each >= 0 and finite.

    Raises:
        FormatError: a blank line, a last field that is no number, a negative, NaN or infinite weight, each with its
            line number; or no line at all. TensorFlow skips a blank line, which shifts every later id.
    """
    with as_local(path) as local:
        return _read(Path(local))


def _read(path: Path) -> np.ndarray:
    try:
        raw = path.read_bytes()  # it may be a pipe
    except OSError as error:
        raise BigvocabError(f"{path}: cannot be read: {error.strerror}") from error
    if not raw:
        raise FormatError(f"{path}: no line in it, expected one word per line")
    _refuse_lone_returns(path, raw)
    weights = _weights(path, raw)
    bad = ~((weights >= 0) & (weights < np.inf))
    if bad.any():
        line = int(np.argmax(bad))
        raise FormatError(f"{path} line {line + 1}: weight {weights[line]}, expected a finite number >= 0")
    return weights


def _refuse_lone_returns(path: Path, raw: bytes) -> None:
    """Raise where CR alone ends a line: after a weight, with more words after it. In a word it may stand."""
    for found in re.finditer(rb"\r(?![\r\n]|\Z)", raw):
        end = found.start()
        if _ENDS_WITH_WEIGHT.search(raw[max(0, end - _LONGEST_WEIGHT) : end]):
            line = raw.count(b"\n", 0, end) + 1
            raise FormatError(f"{path} line {line}: its words end with CR alone, expected LF or CR LF")


def _weights(path: Path, raw: bytes) -> np.ndarray:
    """The weight of each line, by the first way that can tell it."""
    data = np.frombuffer(raw, np.uint8)
    for shortcut in (parse_plain, parse_by_arrow):
        if (weights := shortcut(data)) is not None:
            return weights
    lines = raw.removesuffix(b"\n").split(b"\n")
    return np.array([_weight(path, number, line) for number, line in enumerate(lines, 1)])


def _weight(path: Path, number: int, line: bytes) -> float:
    """The weight of one line, blanks round it apart: a decimal number with or without sign, point and exponent."""
    field = line.rpartition(b",")[2].strip()
    if not line.strip():
        raise FormatError(f"{path} line {number}: blank, expected a word and its weight")
    if not _NUMBER.fullmatch(field):
        raise FormatError(f"{path} line {number}: last field is {_quote(field)}, expected a weight, in {_quote(line)}")
    return float(field)


def parse_plain(data: np.ndarray) -> np.ndarray | None:
    """All weights by a kernel; None where one is more than up to 15 digits and a point."""
    from bigvocab.kernels.decimals import read_last_fields

    lines = int(np.count_nonzero(data == ord("\n"))) + (data[-1] != ord("\n"))
    weights = memory.empty(lines, np.float64)
    return weights if read_last_fields(data, weights) else None


def parse_by_arrow(data: np.ndarray) -> np.ndarray | None:
    """All weights by a cast of Arrow's; None where it cannot read one, such as "+5" or " 5"."""
    starts, ends = _last_fields(data)
    offsets = np.empty(2 * len(starts), np.int64)
    offsets[0::2], offsets[1::2] = starts, ends
    pieces: Any = pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(data))
    fields = pieces.take(pa.array(np.arange(0, len(pieces), 2)))  # every other piece lies between two fields
    try:
        if (data[ends - 1] == ord("\r")).any():
            fields = pc.ascii_trim_whitespace(fields)
        return fields.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        return None


def _last_fields(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the last field of each line begins and ends."""
    marks = np.flatnonzero((data == ord("\n")) | (data == ord(",")))
    if data[-1] != ord("\n"):
        marks = np.append(marks, data.size)
    is_end = data[np.minimum(marks, data.size - 1)] == ord("\n")
    is_end[-1] = True
    begins = np.concatenate(([0], marks[:-1] + 1))  # after the mark before it: a comma, or the end of a line
    return begins[is_end], marks[is_end]


def _quote(text: bytes) -> str:
    """`text` for a message, no longer than a message should be."""
    shown = text.decode(errors="replace")
    return repr(shown if len(shown) <= 60 else shown[:57] + "...")
