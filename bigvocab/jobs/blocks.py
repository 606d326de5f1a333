"""How many rows of a job are worked at a time."""

from __future__ import annotations

from bigvocab.arguments import parse_bytes
from bigvocab.evaluation.specification import Specification
from bigvocab.matrices.sources import LogitSource, RowSource

_LARGE_PAGE = 2 << 20
BLOCK_BYTES = 512 << 20  # of logits between two looks at progress and the files' sizes; more where those are quick


def block_rows(specification: Specification, source: RowSource, row_bytes: int) -> int:
    """Rows of a block: as asked for, or as many as the memory for mapped logits allows.

    Args:
        specification: chunk_rows, max_memory, and which classes are read.
        source: of the rows.
        row_bytes: of one row, of all that is mapped for it.
    """
    chunk_rows, max_memory = specification.chunk_rows, specification.max_memory
    budget = BLOCK_BYTES
    if max_memory is not None:  # a block is let go of while the next one is worked, and pages are large
        budget = min(parse_bytes("max_memory", max_memory), 4 * BLOCK_BYTES) // 2
        budget -= min(_LARGE_PAGE, budget // 4)
    rows = max(1, budget // max(1, row_bytes))
    if chunk_rows is not None:
        return chunk_rows if max_memory is None else min(chunk_rows, rows)
    reads_all = not specification.loss.spec.sampled or specification.measures.exact
    return source.block_rows(rows) if reads_all else rows


def may_grow(specification: Specification, source: LogitSource) -> bool:
    """Whether larger blocks change nothing but the time: not which bad row is the first, since labels are checked
    beforehand and nothing but a row's logits can be wrong; not what is mapped, which is let go of within a block.
    """
    if specification.chunk_rows is not None or specification.max_memory is not None:
        return False
    weighted = specification.loss.class_weights is not None or specification.columns.weight is not None
    return specification.loss.name == "sparse-softmax" and not weighted and source.in_one_piece
