"""linear_cross_entropy: exact losses from hidden states and an output layer, without ever holding logits."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bigvocab import arguments
from bigvocab.errors import BigvocabError, Keyword
from bigvocab.heads.hidden_states import tell_of
from bigvocab.heads.linear_rows import LinearRows
from bigvocab.heads.output_layer import OutputLayer
from bigvocab.labels.exclusions import as_excluded, refuse_smoothing
from bigvocab.labels.stored_ids import StoredIds, as_indices
from bigvocab.losses.leading import Floats, by_block, flat_weights, float_rows, shaped
from bigvocab.losses.reductions import check_reduction, reduce_losses
from bigvocab.losses.row_statistics import softmax_rows, wanted
from bigvocab.losses.soft_rows import as_soft_labels, soft_losses
from bigvocab.losses.softmax import SparseSoftmax, excluded_labels, reduce_rows, refuse_excluded_soft
from bigvocab.matrices.matrix import Matrix
from bigvocab.matrices.row_source import RowSource, as_row_source, flat_labels
from bigvocab.threads import resolve_threads


def linear_cross_entropy(
    inputs: npt.ArrayLike,
    weights: Any,
    labels: npt.ArrayLike,
    *,
    biases: Any = None,
    class_weights: npt.ArrayLike | None = None,
    ignore_index: int | Iterable[int] | None = None,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    num_classes: int | None = None,
    exclude: Any = None,
    reduction: str = "none",
    num_threads: int | None = None,
) -> Any:
    """Softmax cross-entropy of hidden states and an output layer; no (N, V) array of logits ever exists.

    g_j = softcap(logit_scale (x . w_j + b_j)), softcap(y) = c tanh(y / c); L = log sum_j exp(g_j) - g_y; with smoothing
    e, (1 - e) (lse - g_y) + e (lse - mean_j g_j); class weights and soft labels are those of
    `sparse_softmax_cross_entropy` and `softmax_cross_entropy`. Products are summed in float32, in float64 where inputs
    or weights are float64.

    Args:
        inputs: (..., D) hidden states of any library, float16, bfloat16, float32 or float64.
        weights: (V, D) output layer, of any of these types: an array, or what `open_matrix` returns. Or what
            `open_model` returns: then biases, norm, scale, softcap and number of classes are those of the model, except
            what is given here, and whether the inputs come from before or after the norm is told from them.
        labels: (...) integers in [0, num_classes), or `ignore_index`; or soft labels, (..., num_classes) floats.
        biases: (V,), of any of these types; -inf masks a class.
        class_weights: (num_classes,), weight of each class; under "mean" the denominator is the sum of the weights of
            the labels seen, of soft labels the number of rows.
        ignore_index: rows with this label count in no metric and are not computed; their loss is 0.
        label_smoothing: e in [0, 1].
        softcap: c > 0, or None.
        logit_scale: > 0; a temperature t is logit_scale = 1/t.
        num_classes: classes that count; further rows of `weights` are padding. None is V.
        exclude: ids of classes that do not exist, for all rows or, as a pair (offsets (N + 1,), ids), for each: as if
            their logits were -inf.
        reduction: see `compute_weighted_loss`.
        num_threads: None is all usable cores; no result depends on it.

    Returns:
        float64 losses (...) in nats, or one float. What is not finite propagates: a NaN in a class makes all losses
        NaN.

    Raises:
        BigvocabError: shapes that differ, a label out of range (with its row), an option outside its range.
        TypeError: inputs or weights that are no floats, labels that are no integers.

    Source: torch.nn.functional.linear_cross_entropy (2.13), and the fused losses of E. Wijmans et al., "Cut Your
    Losses in Large-Vocabulary Language Models" (2024), https://arxiv.org/abs/2411.09009.

    >>> import numpy as np
    >>> inputs = np.array([[1.0, 0.0], [0.0, 2.0]], np.float32)
    >>> linear_cross_entropy(inputs, np.eye(2, dtype=np.float32), [0, 0]).round(6)
    array([0.313262, 2.126928])
    """
    check_reduction(reduction)
    x = float_rows("inputs", inputs)
    classes = arguments.index_or_none("num_classes", num_classes)
    if isinstance(weights, OutputLayer):
        layer = _layer_for(weights, x, biases, classes)
        logit_scale, softcap = (layer.logit_scale if logit_scale == 1 else logit_scale), softcap or layer.softcap
    else:
        layer = OutputLayer(_floats("weights", weights), _floats("biases", biases), num_classes=classes)
    LinearRows(layer, x.rows(0, 0))  # an error where they do not fit
    options = _Options(
        arguments.in_unit_interval("label_smoothing", label_smoothing),
        arguments.optional_class_vector("class_weights", class_weights, layer.num_classes),
        arguments.positive("logit_scale", logit_scale),
        0.0 if softcap is None else arguments.positive("softcap", softcap),
        resolve_threads(num_threads),
    )
    if not arguments.is_of_floats(labels) or np.ndim(labels) == len(x.leading):
        return _of_ids(layer, x, labels, ignore_index, exclude, options, reduction)
    if ignore_index is not None:
        raise BigvocabError(Keyword("ignore_index"), ": belongs to labels of one id per row, not to soft labels")
    z = as_row_source(as_soft_labels("labels", labels, (*x.leading, layer.num_classes)), "labels")
    excluded = as_excluded("exclude", exclude, len(x), layer.num_classes)
    if excluded is not None:
        refuse_smoothing(options.label_smoothing)

    def of_block(start: int, block: npt.NDArray[Any]) -> Floats:
        rows, beside = LinearRows(layer, block), z.rows(start, start + len(block))
        if excluded is not None:
            rows = rows.without(excluded.part(start, start + len(block)))
            refuse_excluded_soft(beside, rows.excluded, layer.num_classes, start)
        return soft_losses(
            rows,
            beside,
            label_smoothing=options.label_smoothing,
            class_weights=options.class_weights,
            scale=options.logit_scale,
            softcap=options.softcap,
            num_threads=options.threads,
            first_row=start,
        )

    return shaped(reduce_losses(by_block(x, of_block), flat_weights(None, x.leading), reduction), x.leading, reduction)


class _Options(NamedTuple):
    """Checked options."""

    label_smoothing: float
    class_weights: Floats | None
    logit_scale: float
    softcap: float
    threads: int


def _of_ids(
    layer: OutputLayer, x: RowSource, labels: Any, ignore_index: Any, exclude: Any, options: _Options, reduction: str
) -> Any:
    """The loss where labels are one id per row."""
    y, ignored = StoredIds(ignored=as_indices("ignore_index", ignore_index)).of_array("labels", labels)
    shape = y.shape
    y = flat_labels(y, x.leading, of="inputs")
    ignored = None if ignored is None else flat_labels(ignored, x.leading, of="inputs")
    y = arguments.labels_in_range(y, layer.num_classes, ignored=ignored, whole=True)
    excluded = excluded_labels(exclude, y, layer.num_classes, options.label_smoothing)
    formula = SparseSoftmax(layer.num_classes, options.label_smoothing, options.class_weights)
    transform, threads = (options.logit_scale, options.softcap), options.threads
    want = wanted(logit_sum=formula.needs_logit_sum)

    def of_block(start: int, block: npt.NDArray[Any]) -> Floats:
        rows, here = LinearRows(layer, block), y[start : start + len(block)]
        if excluded is not None:
            rows = rows.without(excluded.part(start, start + len(block)))
        found = softmax_rows(rows, here, want=want, scale=transform[0], softcap=transform[1], num_threads=threads)
        return formula.weighted_losses(found, here, formula.weighted_sums(rows, here, transform, threads))

    losses = by_block(x, of_block)
    weights = flat_weights(None, shape)
    return shaped(reduce_rows(losses, weights, formula.label_weights(y), y >= 0, reduction), shape, reduction)


def _layer_for(layer: OutputLayer, inputs: RowSource, biases: Any, num_classes: int | None) -> OutputLayer:
    """A layer of a model for states of its own kind."""
    if biases is not None:
        raise TypeError("biases: belong to the layer that was given as weights, expected None")
    states = Matrix.from_rows(inputs, name="inputs")
    layer.check_depth(states.shape[1], "inputs")
    kind = layer.hidden_states or tell_of(states, layer.found, "inputs")  # type: ignore[arg-type]  # never both None
    return layer.for_states(kind, num_classes=num_classes)


def _floats(name: str, values: Any) -> Any:
    """`values` as they are where they are a Matrix or None, else as a checked array."""
    if isinstance(values, Matrix) or values is None and name == "biases":
        return values
    if values is None or isinstance(values, str | os.PathLike):
        raise TypeError(f"{name}: expected an array or what open_matrix returns, got {type(values).__name__}")
    return arguments.as_matrix_of_floats(name, values, ndim=1 if name == "biases" else 2)
