"""How many rows of a job are worked at a time."""

from __future__ import annotations

from bigvocab.arguments import integer
from bigvocab.evaluation.evaluator import Evaluator
from bigvocab.evaluation.settings import parse_bytes
from bigvocab.heads.linear_rows import LinearMatrix
from bigvocab.jobs.work import Job
from bigvocab.matrices.matrix import Matrix

_LARGE_PAGE = 2 << 20
_BLOCK_BYTES = 512 << 20  # of logits between two looks at progress and the files' sizes; more where those are quick
# Of a linear head: multiplications of a block, some seconds of two cores, but never so few rows that reading the layer
# once for each block would count; a layer that may not stay in memory is read for as many rows as fit.
_BLOCK_PRODUCTS, _LEAST_ROWS, _KEPT_LAYER = 10**12, 1920, 8 << 30


def block_rows(
    evaluator: Evaluator, matrix: Matrix | LinearMatrix, chunk_rows: int | None, max_memory: int | str | None
) -> int:
    """Rows of a block: as asked for, or as many as the memory for mapped logits allows."""
    row_bytes = matrix.nbytes // max(1, len(matrix))
    budget = _BLOCK_BYTES
    if max_memory is not None:  # a block is let go of while the next one is worked, and pages are large
        budget = min(parse_bytes("max_memory", max_memory), 4 * _BLOCK_BYTES) // 2
        budget -= min(_LARGE_PAGE, budget // 4)
    rows = max(1, budget // max(1, row_bytes))
    if chunk_rows is not None:
        asked = integer("chunk_rows", chunk_rows, 1, 2**62)
        return asked if max_memory is None else min(asked, rows)
    if isinstance(matrix, LinearMatrix) and (evaluator.draws is None or evaluator.exact):
        if matrix.layer.weights.nbytes <= _KEPT_LAYER:
            products = matrix.inputs.shape[1] * matrix.shape[1]
            rows = min(rows, max(_LEAST_ROWS, _BLOCK_PRODUCTS // products // _LEAST_ROWS * _LEAST_ROWS))
    return rows


def may_grow(job: Job) -> bool:
    """Whether larger blocks change nothing but the time: not which bad row is the first, since labels are checked
    beforehand and nothing but a row's logits can be wrong; not what is mapped, which is let go of within a block.
    """
    evaluator, matrix = job.evaluator, job.matrix
    if evaluator.loss != "sparse-softmax" or not isinstance(matrix, Matrix) or job.classes is not None:
        return False
    weighted = evaluator.class_weights is not None or evaluator.columns["weight"] is not None
    return not weighted and matrix.lies_in_one_piece()
