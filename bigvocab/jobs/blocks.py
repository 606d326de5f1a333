"""How many rows of a job are worked at a time."""

from __future__ import annotations

from bigvocab.evaluation.evaluator import Evaluator
from bigvocab.evaluation.settings import parse_bytes
from bigvocab.jobs.work import Job
from bigvocab.matrices.sources import LogitSource
from bigvocab.sampling.random_stream import integer

_LARGE_PAGE = 2 << 20
_BLOCK_BYTES = 512 << 20  # of logits between two looks at progress and the files' sizes; more where those are quick


def block_rows(evaluator: Evaluator, matrix: LogitSource, chunk_rows: int | None, max_memory: int | str | None) -> int:
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
    return matrix.block_rows(rows) if evaluator.draws is None or evaluator.exact else rows


def may_grow(job: Job) -> bool:
    """Whether larger blocks change nothing but the time: not which bad row is the first, since labels are checked
    beforehand and nothing but a row's logits can be wrong; not what is mapped, which is let go of within a block.
    """
    evaluator, matrix = job.evaluator, job.matrix
    if evaluator.loss != "sparse-softmax" or job.classes is not None:
        return False
    weighted = evaluator.class_weights is not None or evaluator.columns["weight"] is not None
    return not weighted and matrix.in_one_piece
