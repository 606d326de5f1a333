"""The one way in which Arrow IPC files are written."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any

import pyarrow as pa


class ArrowFile:
    """An Arrow IPC file under way: record batches, and a footer when it is closed. A `with` that ends with an error
    leaves the footer out.

    Args:
        target: a path, of any bytes, or an output of pyarrow.
        schema: of all batches.
    """

    def __init__(self, target: str | os.PathLike[str] | pa.NativeFile, schema: pa.Schema) -> None:
        self.schema = schema
        self._file = target if isinstance(target, pa.NativeFile) else pa.OSFile(os.fsencode(target), "wb")
        self._writer = pa.ipc.new_file(self._file, schema)
        self._ours = self._file is not target

    def append(self, batch: pa.RecordBatch) -> None:
        """Write a record batch."""
        self._writer.write_batch(batch)

    def close(self) -> None:
        """Write the footer."""
        self._writer.close()
        self.abandon()

    def abandon(self) -> None:
        """Close without a footer."""
        if self._ours:
            self._file.close()

    def __enter__(self) -> ArrowFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> Any:
        if error is None:
            self.close()
        else:
            self.abandon()
