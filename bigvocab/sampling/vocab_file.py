"""Reads the weights of a vocabulary file: one word a line, the last comma-separated field its weight."""

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

_NUMBER = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|infinity|nan)", re.IGNORECASE)
_ENDS_WITH_WEIGHT = re.compile(rb",\s*[-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?\Z")
_LONGEST_WEIGHT = 64  # bytes looked at before a CR


def read_vocab_weights(path: str | os.PathLike[str]) -> np.ndarray:
    """Weights of the words of `path`, in their order.

    Args:
        path: text file; the word itself may hold commas; CRLF, and spaces round the weight, are fine.

    Returns:
        (words,) float64, each >= 0 and finite.

    Raises:
        FormatError: a blank line, a last field that is no number, a negative, NaN or infinite weight, each with its
            line number; or no line at all. TensorFlow skips a blank line, which shifts every later id.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()  # it may be a pipe
    except OSError as error:
        raise BigvocabError(f"{path}: cannot be read: {error.strerror}") from error
    if not raw:
        raise FormatError(f"{path}: no line in it, expected one word a line")
    _refuse_lone_returns(path, raw)
    data = np.frombuffer(raw, np.uint8)
    weights = parse_plain(data)
    if weights is None:
        weights = _parse_fast(data, *_last_fields(data))
    if weights is None:
        weights = _parse_lines(path, data)
    bad = ~((weights >= 0) & (weights < np.inf))
    if bad.any():
        line = int(np.argmax(bad))
        raise FormatError(f"{path} line {line + 1}: weight {weights[line]}, expected a finite number >= 0")
    return weights


def _refuse_lone_returns(path: Path, raw: bytes) -> None:
    """Raise where CR alone ends a line: behind a weight, with more words after it. In a word it may stand."""
    for found in re.finditer(rb"\r(?![\r\n]|\Z)", raw):
        end = found.start()
        if _ENDS_WITH_WEIGHT.search(raw[max(0, end - _LONGEST_WEIGHT) : end]):
            line = raw.count(b"\n", 0, end) + 1
            raise FormatError(f"{path} line {line}: its words end with CR alone, expected LF or CR LF")


def parse_plain(data: np.ndarray) -> np.ndarray | None:
    """All fields by a kernel, in a third of Arrow's time; None where one is more than up to 15 digits and a point."""
    from bigvocab.kernels.decimals import read_last_fields

    lines = int(np.count_nonzero(data == ord("\n"))) + (data[-1] != ord("\n"))
    weights = memory.empty(lines, np.float64)
    return weights if read_last_fields(data, weights) else None


def _last_fields(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the last field of each line begins and ends."""
    marks = np.flatnonzero((data == ord("\n")) | (data == ord(",")))
    if data[-1] != ord("\n"):
        marks = np.append(marks, data.size)
    is_end = data[np.minimum(marks, data.size - 1)] == ord("\n")
    is_end[-1] = True
    begins = np.concatenate(
        ([0], marks[:-1] + 1)
    )  # a field begins after the mark before it, a comma or the line before
    return begins[is_end], marks[is_end]


def _parse_fast(data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray | None:
    """All fields at once in Arrow, 20 times as fast as a loop; None where it cannot read one."""
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


def _parse_lines(path: Path, data: np.ndarray) -> np.ndarray:
    """Line by line: finds what Arrow did not like, or reads what it does not know, such as "+5" or spaces."""
    text = data.tobytes()
    lines = text.removesuffix(b"\n").split(b"\n")
    weights = np.empty(len(lines))
    for i, line in enumerate(lines):
        field = line.rpartition(b",")[2].strip()
        if not line.strip():
            raise FormatError(f"{path} line {i + 1}: blank, expected a word and its weight")
        if not _NUMBER.fullmatch(field):
            raise FormatError(
                f"{path} line {i + 1}: last field is {_quote(field)}, expected a weight, in {_quote(line)}"
            )
        weights[i] = float(field)
    return weights


def _quote(text: bytes) -> str:
    """`text` for a message, no longer than a message should be."""
    shown = text.decode(errors="replace")
    return repr(shown if len(shown) <= 60 else shown[:57] + "...")
