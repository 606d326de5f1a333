"""Hidden states of a model, caught where they enter its output layer."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from bigvocab.errors import BigvocabError
from bigvocab.matrices.writer import MatrixWriter


@contextlib.contextmanager
def record_inputs(module: Any, path: str | os.PathLike[str], *, dtype: Any = None) -> Iterator[MatrixWriter]:
    """Write what goes into a torch module while this lasts: the hidden states that belong to an output layer.

    Each call of the module adds the rows of its first argument (..., D), in C order of the leading dimensions; on a GPU
    they are copied to the host block by block. They come after every norm, scaled as the model scales them, and need no
    final norm when they are evaluated.

    Args:
        module: a `torch.nn.Module`, such as `model.lm_head` or `model.get_output_embeddings()`.
        path: `.npy`, `.safetensors` or `.arrow`, as `MatrixWriter` has it; it appears at the end, whole, or not at all.
        dtype: what the rows are rounded to; None is the type that they have.

    Raises:
        BigvocabError: the module was not called, or what `MatrixWriter.append` refuses. TypeError: no torch module, or
            called without an array.

    Example:
        with bv.record_inputs(model.lm_head, "states.npy"), torch.no_grad():
            for batch in batches:
                model(batch)
    """
    register = getattr(module, "register_forward_pre_hook", None)
    if register is None:
        raise TypeError(f"module: expected a torch.nn.Module, got {type(module).__name__}")
    called = False

    def catch(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        nonlocal called
        called = True
        values = [*arguments, *named.values()]
        if not values:
            raise TypeError(f"module: {type(module).__name__} was called without an argument, expected an array")
        writer.append(values[0])

    with MatrixWriter(path, dtype=dtype) as writer:
        handle = register(catch, with_kwargs=True)
        try:
            yield writer
        finally:
            handle.remove()
        if not called:
            raise BigvocabError(
                f"module: {type(module).__name__} was not called while its inputs were recorded; expected the layer "
                "that the model runs through (model.get_output_embeddings() of transformers)"
            )
