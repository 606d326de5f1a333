"""evaluate: one job over files, block by block, in bounded memory, to one report; outputs appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bigvocab import checks
from bigvocab.errors import BigvocabError
from bigvocab.evaluator import Evaluator
from bigvocab.label_sources import MatrixLabels, check_labels, cut, open_labels
from bigvocab.labels import Labels
from bigvocab.linear_rows import LinearMatrix
from bigvocab.matrix import Matrix
from bigvocab.output import LossWriter, loss_lines, loss_schema, replacing, write_text
from bigvocab.report import Report
from bigvocab.settings import parse_bytes
from bigvocab.sigmoid_rows import pos_weight_vector

_BLOCK_BYTES = 512 << 20  # of logits between two looks at progress, memory and the files' sizes


def evaluate(
    *,
    labels: Any,
    logits: Any = None,
    inputs: Any = None,
    output: str | os.PathLike[str] | None = None,
    report: str | os.PathLike[str] | None = None,
    vocab_shards: bool = False,
    shape: Any = None,
    dtype: str | None = None,
    offset: int = 0,
    chunk_rows: int | None = None,
    max_memory: int | str | None = None,
    progress: Callable[[int, int, int], None] | None = None,
    **options: Any,
) -> Report:
    """Evaluate logits in files, or arrays, against labels in files, or arrays, in bounded memory.

    Args:
        labels: what the loss takes (see `Evaluator.update`): a path, a list of paths, or arrays.
        logits: (N, V): a path, a glob, a folder, a list of paths, or an array; see `open_matrix` for shape, dtype, offset, vocab_shards.
        inputs: hidden states (N, D) in place of logits; `weights` (V, D) and what else makes logits of them are among the options.
        output: path of losses.parquet, one line per row.
        report: path of report.json.
        chunk_rows: rows of a block; None chooses by `max_memory`. No figure depends on it.
        max_memory: bytes, or "512M", of logits mapped at a time.
        progress: called with (rows done, rows in all, bytes of logits read).
        options: those of `Evaluator`.

    Raises:
        BigvocabError: bad values, named by file and row; FormatError: files that are not what they say. No output is left then.

    >>> import numpy as np
    >>> evaluate(logits=np.zeros((2, 4), np.float32), labels=[1, 3])["perplexity"]
    4.0
    """
    started = time.perf_counter()
    evaluator = Evaluator(**options)
    values = _logits_or_inputs(evaluator, logits, inputs)
    shards = vocab_shards and evaluator.layer is None  # files of a layer are ranges of classes in any case
    matrix = evaluator.source(values, vocab_shards=shards, **_given(shape=shape, dtype=dtype, offset=offset))
    ids = open_labels(labels, evaluator.loss, evaluator.columns)
    if matrix.files and matrix.files[0]["path"] != "<array>":
        evaluator.logits_name = matrix.files[0]["path"]
    evaluator.label_name = ids.path if ids.files else "labels"
    _check_job(evaluator, matrix, ids)
    block = block_rows(matrix, chunk_rows, max_memory)
    if evaluator.layer is not None and max_memory is not None:
        evaluator.layer.allow(parse_bytes("max_memory", max_memory))
    with contextlib.ExitStack() as stack:
        writer = _open_writer(stack, output, evaluator, matrix, ids)
        if report is not None:
            stack.enter_context(_writable(report))
        read = _stream(evaluator, matrix, ids, block, writer, progress)
        if evaluator._tally.counts["ignored_rows"] == len(matrix):  # of dense labels it is known only now
            raise BigvocabError(f"{evaluator.label_name}: all {len(matrix):,} rows are ignored, so there is nothing to evaluate")
        if writer is not None:
            writer.close()
    figures = evaluator.report().to_dict()
    made = figures.pop("versions")
    seconds = time.perf_counter() - started
    rates = {"seconds": seconds, "rows_per_second": len(matrix) / seconds, "bytes_per_second": read / seconds}
    result = Report({**figures, "inputs": [*matrix.files, *ids.files], **rates, "versions": made})
    if report is not None:
        write_text(report, result.to_json() + "\n")
    return result


def _logits_or_inputs(evaluator: Evaluator, logits: Any, inputs: Any) -> Any:
    """What there is to evaluate: logits, or hidden states where there is an output layer."""
    if (logits is None) == (inputs is None):
        raise TypeError("logits: expected them or inputs, one of the two")
    if inputs is not None and evaluator.layer is None:
        raise BigvocabError("inputs: hidden states need an output layer, expected weights beside them")
    if logits is not None and evaluator.layer is not None:
        raise BigvocabError("weights: an output layer needs hidden states, expected inputs in place of logits")
    return logits if inputs is None else inputs


def block_rows(matrix: Matrix | LinearMatrix, chunk_rows: int | None, max_memory: int | str | None) -> int:
    """Rows of a block: as asked for, or as many as the memory for mapped logits allows."""
    if chunk_rows is not None:
        if isinstance(chunk_rows, bool) or not isinstance(chunk_rows, int):
            raise TypeError(f"chunk_rows: expected a positive int or None, got {type(chunk_rows).__name__}")
        if chunk_rows < 1:
            raise BigvocabError(f"chunk_rows: got {chunk_rows}, expected at least 1")
        return chunk_rows
    row_bytes = matrix.nbytes // max(1, len(matrix))
    budget = _BLOCK_BYTES if max_memory is None else min(parse_bytes("max_memory", max_memory), 4 * _BLOCK_BYTES)
    return max(1, budget // max(1, row_bytes))


def _check_job(evaluator: Evaluator, matrix: Matrix | LinearMatrix, labels: Labels | MatrixLabels) -> None:
    """All that can be known to be wrong before any work: counts of rows, kinds of labels, labels out of range."""
    if len(matrix) != labels.num_rows:
        raise BigvocabError(
            f"{evaluator.label_name}: {labels.num_rows:,} rows of labels, "
            f"but {evaluator.logits_name} has {len(matrix):,} rows; expected as many"
        )
    if len(matrix) == 0:
        raise BigvocabError(f"{evaluator.logits_name}: no rows, so there is nothing to evaluate")
    classes = evaluator.num_classes or matrix.shape[1]
    if evaluator.class_weights is not None:
        checks.class_vector("class_weights", evaluator.class_weights, classes)
    if evaluator.pos_weight is not None:
        pos_weight_vector(evaluator.pos_weight, classes)
    check_labels(evaluator, labels, classes)


@contextlib.contextmanager
def _writable(path: str | os.PathLike[str]) -> Any:
    """Fail now, not after hours, if `path` cannot be written."""
    target = os.path.abspath(path)
    if os.path.isdir(target) or not os.access(os.path.dirname(target), os.W_OK):
        raise BigvocabError(f"{path}: cannot be written: expected a file in a folder that exists and can be written")
    yield


def _open_writer(
    stack: contextlib.ExitStack, output: Any, evaluator: Evaluator, matrix: Matrix | LinearMatrix, labels: Labels | MatrixLabels
) -> LossWriter | None:
    if output is None:
        return None
    read = [file["path"] for file in [*matrix.files, *labels.files]]
    if any(os.path.exists(path) and os.path.exists(output) and os.path.samefile(path, output) for path in read):
        raise BigvocabError(f"{output}: is one of the files that are read; choose another output")
    temporary = stack.enter_context(replacing(output))
    weight, group = (evaluator.columns[role] is not None for role in ("weight", "group"))
    schema = loss_schema(evaluator.metrics, weight=weight, group=group)
    writer = LossWriter(temporary, schema)
    writer.schema = schema
    return writer


def _stream(
    evaluator: Evaluator,
    matrix: Matrix | LinearMatrix,
    labels: Labels | MatrixLabels,
    block: int,
    writer: LossWriter | None,
    progress: Callable[[int, int, int], None] | None,
) -> int:
    """The one loop: label batches, row blocks, results, tallies. Returns the bytes of logits read."""
    row_bytes = matrix.nbytes // max(1, len(matrix))
    if progress is not None:
        progress(0, len(matrix), 0)
    with ThreadPoolExecutor(1, "release") as behind:  # pages go back while the next block is worked
        for batch in labels:
            for start in range(0, len(batch), block):
                rows = cut(batch, start, min(start + block, len(batch)))
                stop = rows.first_row + len(rows)
                matrix.check()
                for part, result in evaluator._results(matrix, rows):
                    evaluator._tally.add(result, part.groups, part.num_bytes)
                    if writer is not None:
                        writer.append(loss_lines(writer.schema, part.first_row, result, part.weights, part.groups))
                behind.submit(matrix.release, rows.first_row, stop)
                if progress is not None:
                    progress(stop, len(matrix), stop * row_bytes + getattr(matrix, "layer_bytes_read", 0))
    matrix.check()
    return len(matrix) * row_bytes + getattr(matrix, "layer_bytes_read", 0)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None and value != 0}


