"""Files of rows, made block by block: .npy, .safetensors or Arrow IPC, whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import struct
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from bigvocab.arguments import path as checked_path
from bigvocab.arrays import BFLOAT16, Array
from bigvocab.errors import BigvocabError
from bigvocab.formats.layout import SUPPORTED, is_supported, parse_dtype
from bigvocab.formats.magic import NPY
from bigvocab.matrices.row_source import as_row_source
from bigvocab.storage import uris
from bigvocab.storage.output import check_writable, replacing

_NAME = "matrix"  # of the tensor, or the column
_NPY_HEADER, _SAFETENSORS_HEADER = 128, 192  # bytes, for any number of rows
_CODES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}
BATCH_BYTES = 64 << 20  # of a record batch


class MatrixWriter:
    """Writes rows to a file that `open_matrix` maps; it appears at `close`, whole, or not at all.

    Args:
        path: where to, by suffix: `.npy`; `.safetensors`, with one tensor called "matrix"; `.arrow`, `.ipc` or
            `.feather`, with one column called so, which has no bfloat16.
        dtype: float16, bfloat16, float32 or float64, which rows are rounded to; None is that of the first block.

    Attributes: `num_rows`, `num_columns` (None before the first block), `dtype`.

    Raises:
        BigvocabError: a suffix that is none of these, a place that cannot be written.

    >>> import os, tempfile, numpy as np
    >>> from bigvocab import open_matrix
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with MatrixWriter(f"{folder}/logits.npy", dtype="bfloat16") as writer:
    ...         writer.append(np.zeros((2, 4), np.float32))
    ...         writer.append(np.ones((3, 4), np.float32))
    ...     open_matrix(f"{folder}/logits.npy").shape
    (5, 4)
    """

    _closed = True  # until there is something to close

    def __init__(self, path: str | os.PathLike[str], *, dtype: Any = None) -> None:
        self.path = checked_path("path", path)
        self._shown = uris.shown(self.path)
        name = uris.name_of(self.path) if uris.is_remote(self.path) else uris.plain(self.path)
        suffix = os.path.splitext(name)[1].lower()
        if suffix not in _SINKS:
            raise BigvocabError(f"{self._shown}: got the suffix {suffix!r}, expected one of {', '.join(_SINKS)}")
        stored = parse_dtype(dtype)
        self.dtype: np.dtype[Any] | None = None if stored is None else stored.dtype.newbyteorder("=")
        if stored is not None and stored.dtype == BFLOAT16:
            self.dtype = BFLOAT16
        self.num_rows = 0
        self.num_columns: int | None = None
        check_writable(self.path)
        self._make, self._sink = _SINKS[suffix], None
        self._stack = contextlib.ExitStack()
        self._temporary = self._stack.enter_context(replacing(self.path))
        self._closed = False
        if self.dtype is not None:
            self._check_type(suffix)

    def _check_type(self, suffix: str) -> None:
        if self.dtype == BFLOAT16 and self._make is _ArrowSink:
            self._abandon()
            raise BigvocabError(
                f"{self._shown}: Arrow has no bfloat16, which the rows would be; write .npy or .safetensors, or pass "
                "dtype='float32'"
            )

    def append(self, rows: Any) -> None:
        """Write rows (n, V), or (..., V) in C order of the leading dimensions, of NumPy or any other library.

        Raises:
            BigvocabError: another number of columns than before, another type where none was chosen, a closed writer.
            TypeError: no array of floats. The file is given up after an error.
        """
        if self._closed:
            raise BigvocabError(f"{self._shown}: is closed, so no rows can be appended")
        try:
            source = as_row_source(rows, "rows")
            self._check(source.dtype, source.shape[1])
            for _, block in source.blocks():
                self._write(block)
        except BaseException:
            self._abandon()
            raise

    def _check(self, dtype: np.dtype[Any], columns: int) -> None:
        if not is_supported(dtype):
            raise TypeError(f"rows: expected one of {SUPPORTED}, got {dtype}")
        if self.num_columns is None:
            self._chosen = self.dtype is not None
            if self.dtype is None:
                self.dtype = BFLOAT16 if dtype.name == "bfloat16" else dtype.newbyteorder("=")
                self._check_type("")
            self.num_columns = columns
            self._sink = self._make(self._temporary, self.dtype, columns)
        if columns != self.num_columns:
            raise BigvocabError(f"rows: got {columns} columns, expected {self.num_columns}, as in the blocks before")
        if not self._chosen and dtype.name != self.dtype.name:  # type: ignore[union-attr]
            raise BigvocabError(
                f"rows: got {dtype.name}, expected {self.dtype}, as in the blocks before; pass dtype= to round all"
            )

    def _write(self, block: Array) -> None:
        assert self._sink is not None
        assert self.dtype is not None
        step = max(1, BATCH_BYTES // max(1, block.shape[1] * self.dtype.itemsize))
        for start in range(0, len(block), step):
            with np.errstate(over="ignore"):  # what is too large for the type is inf in it
                rows = np.ascontiguousarray(block[start : start + step], self.dtype)
            self._sink.append(rows)
            self.num_rows += len(rows)

    def close(self) -> None:
        """Finish the file and put it in its place; does nothing where that is done.

        Raises:
            BigvocabError: no block was appended, so there is no number of columns; it cannot be written.
        """
        if self._closed:
            return
        if self._sink is None:
            self._abandon()
            raise BigvocabError(f"{self._shown}: no rows were appended, so there is no matrix to write")
        try:
            self._sink.close(self.num_rows)
        except BaseException:
            self._abandon()
            raise
        self._closed = True
        self._stack.close()

    def _abandon(self) -> None:
        """Let the file vanish."""
        if self._closed:
            return
        self._closed = True
        if self._sink is not None:
            with contextlib.suppress(OSError):
                self._sink.abandon()
        with contextlib.suppress(_Abandoned), self._stack:
            raise _Abandoned

    def __del__(self) -> None:
        self._abandon()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._abandon()


class _Abandoned(Exception):
    """The rows are not wanted any more."""


class _Flat:
    """Rows one after the other, after a header of one size, which is written last."""

    header_size: int

    def __init__(self, path: Path, dtype: np.dtype[Any], columns: int) -> None:
        self._file, self._dtype, self._columns = path.open("wb"), dtype, columns
        self._file.write(bytes(self.header_size))

    def append(self, rows: Array) -> None:
        """Write rows."""
        if rows.size:
            self._file.write(rows.view(np.uint8).data)

    def close(self, rows: int) -> None:
        """Write the header."""
        self._file.seek(0)
        self._file.write(self._header(rows))
        self._file.close()

    def abandon(self) -> None:
        """Close without one."""
        self._file.close()

    def _header(self, rows: int) -> bytes:
        raise NotImplementedError


class _NpySink(_Flat):
    header_size = _NPY_HEADER

    def _header(self, rows: int) -> bytes:
        descr = "<V2" if self._dtype == BFLOAT16 else self._dtype.newbyteorder("<").str
        text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': ({rows}, {self._columns}), }}"
        return NPY + b"\x01\x00" + struct.pack("<H", _NPY_HEADER - 10) + text.encode().ljust(117) + b"\n"


class _SafetensorsSink(_Flat):
    header_size = _SAFETENSORS_HEADER

    def _header(self, rows: int) -> bytes:
        size = rows * self._columns * self._dtype.itemsize
        entry = {"dtype": _CODES[self._dtype.name], "shape": [rows, self._columns], "data_offsets": [0, size]}
        text = json.dumps({_NAME: entry}, separators=(",", ":")).encode()
        return struct.pack("<Q", _SAFETENSORS_HEADER - 8) + text.ljust(_SAFETENSORS_HEADER - 8)


class _ArrowSink:
    """Record batches of one column of lists of one size."""

    def __init__(self, path: Path, dtype: np.dtype[Any], columns: int) -> None:
        import pyarrow as pa

        from bigvocab.storage.arrow_file import ArrowFile

        self._columns = columns
        self._schema = pa.schema([pa.field(_NAME, pa.list_(pa.from_numpy_dtype(dtype), columns), nullable=False)])
        self._file = ArrowFile(path, self._schema)

    def append(self, rows: Array) -> None:
        """Write rows as one record batch."""
        import pyarrow as pa

        if len(rows):
            lists = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), self._columns)
            self._file.append(pa.record_batch([lists], schema=self._schema))

    def close(self, rows: int) -> None:
        """Write the footer."""
        self._file.close()

    def abandon(self) -> None:
        """Close without one."""
        self._file.abandon()


_SINKS: dict[str, Any] = {
    ".npy": _NpySink,
    ".safetensors": _SafetensorsSink,
    ".arrow": _ArrowSink,
    ".ipc": _ArrowSink,
    ".feather": _ArrowSink,
}
