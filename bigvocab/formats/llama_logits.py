"""llama.cpp's logits files (`llama-perplexity --kl-divergence-base`): log probabilities of 16 bits, row by row.

Three dialects have one row shape: llama.cpp itself keeps 16 nats below a row's top, ik_llama.cpp 24, and `_logits_v2`
of one fork has windows that overlap. A file names no version, end or checksum, so everything is decided by its size.

Source: tools/perplexity/perplexity.cpp of ggml-org/llama.cpp, examples/perplexity/perplexity.cpp of
ikawrakow/ik_llama.cpp.
"""

from __future__ import annotations

import struct
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bigvocab.errors import FormatError
from bigvocab.formats.magic import LLAMA_LOGITS, LLAMA_LOGITS_2
from bigvocab.storage import uris
from bigvocab.storage.mapped import MappedFile
from bigvocab.storage.paths import Source
from bigvocab.storage.spool import SpooledFile

TOP = 65535  # what the greatest log probability of a row is stored as
_HEAD, _HEAD_V2 = 20, 30
_FLOORS = (16.0, 24.0)
_SLACK = 1e-3
_MOST_LOG = 0.01  # above 0: a probability above 1, the rounding of the sum apart


class LlamaHeader(NamedTuple):
    """What the first bytes say: context T, classes V, windows C; where windows begin, and how many rows each has."""

    version: int
    context: int
    num_classes: int
    windows: int
    stride: int
    first_scored: int  # position in its window of the token that the first row predicts
    num_tokens: int
    rows_per_window: int
    tokens_at: int

    @property
    def row_words(self) -> int:
        """16-bit words of a row: two floats, the classes, and one more where they are odd."""
        return 2 * ((self.num_classes + 1) // 2) + 4

    @property
    def num_rows(self) -> int:
        """Rows that the header plans."""
        return self.windows * self.rows_per_window

    @property
    def rows_at(self) -> int:
        """The byte at which rows begin."""
        return self.tokens_at + 4 * self.num_tokens

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.rows_at + 2 * self.num_rows * self.row_words


def is_llama_logits(head: bytes) -> bool:
    """Whether a file that begins so is a llama.cpp logits file."""
    return head.startswith(LLAMA_LOGITS)


def _first_version(shown: str, head: bytes, size: int) -> LlamaHeader:
    if size < 12:
        raise FormatError(f"{shown}: {size} bytes, expected at least 20: the header is cut short")
    context = struct.unpack_from("<i", head, 8)[0]
    if size < _HEAD:
        hint = "a run that finds too few tokens for one window leaves such a file, and no error"
        raise FormatError(f"{shown}: {size} bytes, which hold a context of {context} tokens and nothing more; {hint}")
    classes, windows = struct.unpack_from("<2i", head, 12)
    first = context // 2 + 1
    return LlamaHeader(1, context, classes, windows, context, first, windows * context, context - first, _HEAD)


def _second_version(head: bytes) -> LlamaHeader:
    context, classes, stride, length, windows = struct.unpack_from("<5i", head, 10)
    tokens = (windows - 1) * stride + length
    return LlamaHeader(2, context, classes, windows, stride, 1, tokens, length - 1, _HEAD_V2)


def _plausible(header: LlamaHeader) -> bool:
    sizes = (header.context, header.num_classes, header.windows, header.stride, header.rows_per_window)
    return all(size > 0 for size in sizes)


def _read_header(shown: str, head: bytes, size: int) -> LlamaHeader:
    """The header of a file of `size` bytes; its dialect by the size, because one's first bytes may be the other's."""
    if not is_llama_logits(head):
        raise FormatError(f"{shown}: begins with {head[:8]!r}, expected {LLAMA_LOGITS!r}: not a llama.cpp logits file")
    header = _first_version(shown, head, size)
    if head.startswith(LLAMA_LOGITS_2) and size >= _HEAD_V2:
        second = _second_version(head)
        fits = [h for h in (header, second) if _plausible(h) and h.size == size]
        # else by the context, of which "v2" would be half: a first version may have 12,918, but hardly 65,536 more
        header = fits[0] if fits else second if struct.unpack_from("<H", head, 10)[0] else header
    if not _plausible(header):
        raise FormatError(
            f"{shown}: got a context of {header.context} tokens, {header.num_classes} classes and {header.windows} "
            "windows, expected a context of at least 3 and others above 0"
        )
    return header


def _check_size(file: MappedFile, header: LlamaHeader) -> None:
    shown, size = file.shown, file.size
    if size < header.rows_at:
        raise FormatError(f"{shown}: {size} bytes end within the tokens, which reach to byte {header.rows_at}")
    row_bytes = 2 * header.row_words
    whole = (size - header.rows_at) // row_bytes
    if size != header.size and header.version == 1 and header.rows_per_window * header.row_words >= 2**31:
        raise FormatError(
            f"{shown}: {size} bytes, expected {header.size}: {header.rows_per_window} rows of {header.row_words} words "
            "are past 32 bits, and some versions of the writer overflow there; make it again with a smaller context"
        )
    if size < header.size:
        raise FormatError(
            f"{shown}: {whole} whole rows, expected {header.num_rows}: the run that wrote it was killed, or the disk "
            f"was full (whole windows: {whole // header.rows_per_window} of {header.windows})"
        )
    if size > header.size:
        second = file.buffer[header.size : header.size + len(LLAMA_LOGITS)] == LLAMA_LOGITS
        what = "a second file begins there" if second else "what follows is not known"
        raise FormatError(f"{shown}: {size} bytes, expected {header.size} by its header; {what}")


class LlamaLogits:
    """A llama.cpp logits file, mapped: row i is the distribution of token `labels[i]`, given those before it.

    ln p of class c is scale * q[c] + lowest, q of 16 bits; q = 0 is "at or below the floor" in rows that reach it.

    Attributes:
        header: sizes, as the file has them.
        tokens: int32, of all windows, contiguous.
    """

    def __init__(self, file: MappedFile) -> None:
        self.file, self.shown = file, file.shown
        self.header = _read_header(file.shown, file.buffer[:_HEAD_V2], file.size)
        _check_size(file, self.header)
        header = self.header
        self.tokens = np.frombuffer(file.buffer, "<i4", header.num_tokens, header.tokens_at)
        words = np.frombuffer(file.buffer, "<u2", header.num_rows * header.row_words, header.rows_at)
        self.words = words.reshape(header.num_rows, header.row_words)
        self.shape = (header.num_rows, header.num_classes)
        self._check_tokens()

    def _check_tokens(self) -> None:
        bad = (self.tokens < 0) | (self.tokens >= self.header.num_classes)
        if bad.any():
            at = int(np.argmax(bad))
            expected = f"expected an id in [0, {self.header.num_classes})"
            raise FormatError(f"{self.shown}: token {at} is {self.tokens[at]}, {expected}")

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def dialect(self) -> str:
        """By whom: "llama.cpp", "ik_llama.cpp" or "v2"; a file of the second may look like one of the first."""
        if self.header.version == 2:
            return "v2"
        return "ik_llama.cpp" if self.nats == _FLOORS[1] else "llama.cpp"

    @cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """The token that each row predicts."""
        return self.tokens[self.windows * self.header.stride + self.positions].astype(np.int64)

    @cached_property
    def windows(self) -> npt.NDArray[np.int64]:
        """The window of each row; rows of one are not independent."""
        return np.repeat(np.arange(self.header.windows), self.header.rows_per_window)

    @cached_property
    def positions(self) -> npt.NDArray[np.int64]:
        """The place in its window of the token that each row predicts."""
        first = self.header.first_scored
        return np.tile(np.arange(first, first + self.header.rows_per_window), self.header.windows)

    @cached_property
    def _constants(self) -> npt.NDArray[np.float32]:
        """(scale, lowest log probability) of every row, which may be checked before any row is read."""
        found = np.ascontiguousarray(self.words[:, :4]).view("<f4").astype(np.float32)
        scale, lowest = found[:, 0].astype(np.float64), found[:, 1].astype(np.float64)
        with np.errstate(invalid="ignore"):
            good = (scale >= 0) & (TOP * scale <= _FLOORS[1] + _SLACK) & (lowest + TOP * scale <= _MOST_LOG)
        good &= np.isfinite(lowest)
        if not good.all():
            row = int(np.argmin(good))
            raise FormatError(
                f"{self.shown}: row {row} has scale {scale[row]:g} and lowest log probability {lowest[row]:g}, "
                "expected log probabilities of at most 0 within 24 nats of one another: its bytes are damaged"
            )
        return found

    @cached_property
    def nats(self) -> float:
        """How far below a row's top the floor is: 16, or 24 where a row reaches further."""
        span = TOP * float(self._constants[:, 0].max(initial=0))
        return _FLOORS[1] if span > _FLOORS[0] + _SLACK else _FLOORS[0]

    @property
    def step(self) -> float:
        """The greatest difference of two neighbouring log probabilities."""
        return float(self._constants[:, 0].max(initial=0))

    def scales(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """The scale of rows (n,)."""
        return self._constants[start:stop, 0]

    def lowest(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """The log probability of q = 0 of rows (n,)."""
        return self._constants[start:stop, 1]

    def floored(self, start: int, stop: int) -> npt.NDArray[np.bool_]:
        """Whether q = 0 is "at or below the floor" in a row (n,), and not a class of its own."""
        return ~(TOP * self.scales(start, stop).astype(np.float64) < self.nats - _SLACK)

    def rows(self, start: int, stop: int) -> npt.NDArray[np.uint16]:
        """Stored numbers q of rows (n, V), a view of the map; an error for a row whose top is not 65535."""
        found = self.words[start:stop, 4 : 4 + self.header.num_classes]
        if self.header.version == 1:
            tops = found.max(axis=1, initial=0)
            bad = (tops != TOP) & ~((self.scales(start, stop) == 0) & (tops == 0))
            if bad.any():
                row = int(np.argmax(bad))
                raise FormatError(
                    f"{self.shown}: row {start + row} has {tops[row]} for its top, expected {TOP}: it is damaged"
                )
        return found

    def log_probabilities(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """ln p of rows (n, V) as llama.cpp makes them again: scale * q + lowest, float32, not renormalised."""
        scale, lowest = self.scales(start, stop)[:, None], self.lowest(start, stop)[:, None]
        return scale * self.rows(start, stop).astype(np.float32) + lowest

    def describe(self) -> dict[str, Any]:
        """What an inspection shows."""
        header = self.header
        return {
            "dialect": self.dialect,
            "context": header.context,
            "windows": header.windows,
            "rows_per_window": header.rows_per_window,
            "rows": header.num_rows,
            "classes": header.num_classes,
            "tokens": header.num_tokens,
            "row_bytes": 2 * header.row_words,
            "offset": header.rows_at,
            "floor": f"{self.nats:.0f} nats" if self.nats == _FLOORS[1] else f"{self.nats:.0f} nats or less",
        }

    def rows_of(self, count: int, what: str) -> npt.NDArray[np.int64]:
        """Which of `count` rows of another side belong to the rows here: all, or the scored ones of whole windows."""
        header = self.header
        place = self.positions - 1
        if count == len(self):
            return np.arange(count)
        if header.version == 1:
            for length in (header.context, header.context - 1):
                if count == header.windows * length:
                    return self.windows * length + place
        every = f"{header.windows * header.context} (every position) or {header.windows * (header.context - 1)}"
        expected = f"{len(self)} (the scored ones)" + (f", {every} (all but the last of each window)")
        raise FormatError(f"{what}: got {count} rows, expected {expected}, to go with {self.shown}")


def open_llama_logits(path: str) -> LlamaLogits:
    """Open a llama.cpp logits file, of a store a local copy; a FormatError says which way a file is bad."""
    place = uris.absolute(path)
    if uris.is_remote(place):
        return LlamaLogits(SpooledFile(Source(place, uris.shown(place), None), whole=True))
    return LlamaLogits(MappedFile(Source(place, uris.plain(path), None)))


def check_same_tokens(reference: LlamaLogits, candidate: LlamaLogits) -> None:
    """Raise unless two files are of the same text: each row of one is then that of the other."""
    mine, others = reference.header._asdict(), candidate.header._asdict()
    for name in ("version", "context", "windows", "stride"):
        ours, theirs = mine[name], others[name]
        if ours != theirs:
            raise FormatError(
                f"{candidate.shown}: got {name.replace('_', ' ')} {theirs}, expected {ours} as {reference.shown} has"
            )
    differ = reference.tokens != candidate.tokens
    if differ.any():
        at = int(np.argmax(differ))
        window = at // reference.header.stride
        raise FormatError(
            f"{candidate.shown}: token {at} (window {window}) is {candidate.tokens[at]}, expected "
            f"{reference.tokens[at]} as in {reference.shown}: not the same text, or another tokenizer"
        )
