"""Sampled softmax and NCE, which huge vocabularies are trained with: TensorFlow's arguments, one shared path."""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
import numpy.typing as npt

from bigvocab import arguments
from bigvocab.arguments import integer
from bigvocab.errors import BigvocabError, Keyword
from bigvocab.heads.layer_shards import STRATEGIES, open_layer
from bigvocab.labels.ragged import RaggedIds, as_ragged
from bigvocab.matrices.matrix import Matrix
from bigvocab.matrices.row_source import as_row_source
from bigvocab.sampling.sampled_rows import Draw, Head, SampledRows, nce_losses, softmax_losses
from bigvocab.sampling.samplers import LogUniformSampler
from bigvocab.threads import resolve_threads

__all__ = ["nce_loss", "sampled_softmax_loss"]

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
TRUE_LABELS = ("uniform", "one")


def sampled_softmax_loss(
    *,
    weights: Any,
    biases: Any,
    labels: Any,
    inputs: npt.ArrayLike,
    num_sampled: int,
    num_classes: int,
    num_true: int = 1,
    sampled_values: Any = None,
    remove_accidental_hits: bool = True,
    subtract_log_q: bool = True,
    partition_strategy: str = "div",
    seed: int | tuple[int, int] | None = None,
    num_threads: int | None = None,
) -> Floats:
    """Softmax cross-entropy over the true classes and a sample of the others: an estimate of the full one, too low.

    With t_k = x . w_yk + b_yk - log Qtrue_k and s_j = x . w_cj + b_cj - log Qsampled_j,
    L = log(sum_k exp(t_k) + sum_j exp(s_j)) - mean_k t_k. A candidate that is a true class of the row is left out of
    its sum.

    Args:
        weights: (V, D) output layer, float16, bfloat16, float32 or float64: an array, a path or what `open_matrix`
            returns, or a list of P shards of these. Only the rows of the true and the sampled classes are read.
        biases: (V,), or None for zeros.
        labels: (..., T) integers in [0, num_classes), or ragged as a pair (offsets (N + 1,), ids), at least one per
            row.
        inputs: (..., D) hidden states, of any of these types. Products are summed in float32, in float64 where the
            layer or the inputs are float64.
        num_sampled: S, classes to draw, one sample for the whole batch.
        num_classes: V.
        num_true: T; for ragged labels leave it at 1.
        sampled_values: (candidates (S,), Qtrue, Qsampled (S,)), as the samplers return them; Qtrue is (N, T) or
            (N, 1), or flat with one an id for ragged labels. None draws with LogUniformSampler(num_classes), without
            repetition: it takes ids to be sorted by falling frequency.
        remove_accidental_hits: all copies of a candidate that is a true class of the row are left out of that row.
        subtract_log_q: False leaves the expected counts Q out.
        partition_strategy: how shards split the classes. "div": consecutive ids, the first V mod P shards one more
            than the others; "mod": id c is row c // P of shard c % P. Shards whose sizes fit neither are refused, but
            both give the same sizes: a wrong strategy on right shards is not noticed, and changes the loss.
        seed: an int, or a pair, as of a TensorFlow op: the candidates are those of its first call. None is another seed
            each time, as in TensorFlow. Of no use with sampled_values.
        num_threads: None is all usable cores; no result depends on it.

    Returns:
        float64 losses (...) in nats.

    Raises:
        BigvocabError: shapes that disagree, a label or candidate out of range, an expected count that is not above 0,
            more unique candidates than classes; TypeError: arguments of the wrong kind.

    Source: S. Jean et al., "On Using Very Large Target Vocabulary for Neural Machine Translation" (2015),
    doi:10.3115/v1/P15-1001; tf.nn.sampled_softmax_loss, which masks only the last copy of a hit, and in float16 makes
    it NaN.

    >>> import numpy as np
    >>> layer, states = np.eye(4, dtype=np.float32), np.array([[1.0, 0, 0, 0], [0, 3.0, 0, 0]], np.float32)
    >>> sampled_softmax_loss(weights=layer, biases=np.zeros(4), labels=[[0], [1]], inputs=states,
    ...     num_sampled=4, num_classes=4, sampled_values=([0, 1, 2, 3], [[1.0], [1.0]], [1.0] * 4)).round(6)
    array([0.743668, 0.139206])
    """
    inputs, labels, leading = _as_rows(inputs, labels)
    rows = _sampled_rows(
        weights, biases, labels, inputs, num_sampled, num_classes, num_true, sampled_values, remove_accidental_hits,
        subtract_log_q, partition_strategy, seed, num_threads,
    )  # fmt: skip
    empty = np.diff(rows.true.offsets) == 0
    if empty.any():
        raise BigvocabError.of_row("labels", int(np.argmax(empty)), " has no true class, expected at least one")
    losses = softmax_losses(rows)
    return losses if leading is None else losses.reshape(leading)


def nce_loss(
    *,
    weights: Any,
    biases: Any,
    labels: Any,
    inputs: npt.ArrayLike,
    num_sampled: int,
    num_classes: int,
    num_true: int = 1,
    sampled_values: Any = None,
    remove_accidental_hits: bool = False,
    subtract_log_q: bool = True,
    partition_strategy: str = "div",
    true_label: str = "uniform",
    seed: int | tuple[int, int] | None = None,
    num_threads: int | None = None,
) -> Floats:
    """Noise-contrastive estimation: sigmoid losses of the true classes, told from a sample of noise.

    With t_k and s_j as in `sampled_softmax_loss` and softplus(x) = log(1 + exp(x)),
    L = sum_k [softplus(t_k) - z t_k] + sum_j softplus(s_j). Accidental hits stay in by default.

    Args:
        weights: (V, D) output layer; this and all arguments but true_label are as in `sampled_softmax_loss`.
        biases: (V,), or None for zeros.
        labels: (..., T), or a pair (offsets (N + 1,), ids), of which a row may have none.
        inputs: (..., D) hidden states.
        num_sampled: S.
        num_classes: V.
        num_true: T.
        sampled_values: (candidates (S,), Qtrue, Qsampled (S,)); None draws with LogUniformSampler(num_classes).
        remove_accidental_hits: leave candidates that are true classes of the row out.
        subtract_log_q: False leaves the expected counts Q out.
        partition_strategy: "div" or "mod", for shards.
        true_label: the target z of a true class: "uniform" is 1 / T, as in TensorFlow (with T = 2 a perfect model has
            the probability 1/2 for each), "one" is 1.
        seed: an int, or a pair; None is another seed each time.
        num_threads: None is all usable cores.

    Returns:
        float64 losses (...) in nats. They are no log-likelihood: no perplexity comes of them.

    Raises:
        BigvocabError, TypeError: as `sampled_softmax_loss`.

    Source: M. Gutmann and A. Hyvarinen, "Noise-contrastive estimation" (2010); A. Mnih and Y. W. Teh, "A fast and
    simple algorithm for training neural probabilistic language models" (2012), arXiv:1206.6426; tf.nn.nce_loss.

    >>> import numpy as np
    >>> layer, states = np.eye(4, dtype=np.float32), np.array([[1.0, 0, 0, 0]], np.float32)
    >>> nce_loss(weights=layer, biases=np.zeros(4), labels=[[0]], inputs=states, num_sampled=2, num_classes=4,
    ...     sampled_values=([2, 3], [[1.0]], [1.0, 1.0])).round(6)
    array([1.699556])
    """
    if true_label not in TRUE_LABELS:
        raise BigvocabError(Keyword("true_label"), f": got {true_label!r}, expected one of {', '.join(TRUE_LABELS)}")
    inputs, labels, leading = _as_rows(inputs, labels)
    rows = _sampled_rows(
        weights, biases, labels, inputs, num_sampled, num_classes, num_true, sampled_values, remove_accidental_hits,
        subtract_log_q, partition_strategy, seed, num_threads,
    )  # fmt: skip
    losses = nce_losses(rows, true_label)
    return losses if leading is None else losses.reshape(leading)


def _as_rows(inputs: Any, labels: Any) -> tuple[Any, Any, tuple[int, ...] | None]:
    """Inputs (..., D) and ids (..., T) of more than two dimensions as rows, and the shape before the last one."""
    if isinstance(inputs, Matrix | list | tuple) or np.ndim(inputs) <= 2:
        return inputs, labels, None
    source = as_row_source(inputs, "inputs")
    if not isinstance(labels, tuple):
        labels = arguments.as_integers("labels", labels)
        if labels.ndim != len(source.leading) + 1 or labels.shape[:-1] != source.leading:
            wanted = f"({', '.join(map(str, source.leading))}, T)"
            raise BigvocabError(Keyword("labels"), f": got shape {labels.shape}, expected {wanted}, as the inputs")
        labels = labels.reshape(-1, labels.shape[-1])
    return source.rows(0, len(source)), labels, source.leading


def _sampled_rows(
    weights: Any, biases: Any, labels: Any, inputs: Any, num_sampled: int, num_classes: int, num_true: int,
    sampled_values: Any, remove_hits: bool, subtract_log_q: bool, strategy: str, seed: Any, num_threads: int | None,
) -> SampledRows:  # fmt: skip
    """The arguments of both losses, checked."""
    if strategy not in STRATEGIES:
        raise BigvocabError(
            Keyword("partition_strategy"), f": got {strategy!r}, expected one of {', '.join(STRATEGIES)}"
        )
    remove_hits = arguments.boolean("remove_accidental_hits", remove_hits)
    subtract_log_q = arguments.boolean("subtract_log_q", subtract_log_q)
    threads = resolve_threads(num_threads)
    layer = open_layer("weights", weights, 2, strategy)
    num_classes = integer("num_classes", num_classes, 1, 2**62)
    if num_classes > len(layer):
        raise BigvocabError(Keyword("num_classes"), f": got {num_classes}, but weights has {len(layer)} rows")
    x = arguments.as_matrix_of_floats("inputs", inputs[:] if isinstance(inputs, Matrix) else inputs)
    if x.shape[1:] != layer.shape[1:]:
        raise BigvocabError(
            Keyword("inputs"),
            f": has {x.shape[1]} columns, but weights has {layer.shape[1]}, expected the same hidden size in both",
        )
    true = as_ragged("labels", labels)
    _check_true_classes(true, len(x), num_classes, num_true)
    if sampled_values is None:
        seeds = (secrets.randbits(31), secrets.randbits(31)) if seed is None else seed
        sampled_values = LogUniformSampler(num_classes).sample(labels, num_sampled, unique=True, seed=seeds)
    draw = _checked_draw(sampled_values, true, num_sampled, num_classes, subtract_log_q)
    head = Head(layer, _biases(biases, len(layer), num_classes, strategy))
    return SampledRows(head, x, true, draw, remove_hits=remove_hits, num_threads=threads)


def _biases(biases: Any, rows: int, num_classes: int, strategy: str) -> Any:
    if biases is None:
        return None
    found = open_layer("biases", biases, 1, strategy)
    if len(found) not in (rows, num_classes):
        raise BigvocabError(
            Keyword("biases"), f": got shape {found.shape}, expected ({rows},), one for each row of weights"
        )
    return found


def _check_true_classes(true: RaggedIds, rows: int, num_classes: int, num_true: int) -> None:
    """Raise unless there are labels for so many rows, num_true in each, all in range; 1 lets ragged rows be."""
    counts = np.diff(true.offsets)
    if len(counts) != rows:
        raise BigvocabError(f"{true.name}: {len(counts)} rows of labels, but inputs has {rows} rows, expected as many")
    num_true = integer("num_true", num_true, 1, 2**31 - 1)
    wrong = counts != num_true
    if wrong.any() and not (num_true == 1 and len(true.shape) == 1):
        row = int(np.argmax(wrong))
        raise BigvocabError(
            Keyword("num_true"), f": got {num_true}, but row {row} of {true.name} has {counts[row]} true classes"
        )
    true.check_range(num_classes)


def _checked_draw(values: Any, true: RaggedIds, num_sampled: int, num_classes: int, subtract_log_q: bool) -> Draw:
    """The candidates and log Q of a `SampledValues`, or of TensorFlow's triple."""
    if not isinstance(values, tuple | list) or len(values) not in (3, 4):
        raise TypeError(
            "sampled_values: expected (sampled_candidates, true_expected_count, sampled_expected_count), "
            f"got {type(values).__name__}"
        )
    candidates = np.ascontiguousarray(arguments.as_integers("sampled_values: sampled_candidates", values[0]))
    num_sampled = integer("num_sampled", num_sampled, 1, 2**31 - 1)
    if candidates.shape != (num_sampled,):
        raise BigvocabError(
            f"sampled_values: sampled_candidates has shape {candidates.shape}, "
            f"expected ({num_sampled},), as num_sampled says"
        )
    if (at := arguments.first_outside(candidates, num_classes)) is not None:
        raise BigvocabError(
            f"sampled_values: candidate {at} is {candidates[at]}, expected a class in [0, {num_classes})"
        )
    sampled = _counts("sampled_expected_count", values[2])
    if sampled.shape != candidates.shape:
        raise BigvocabError(
            f"sampled_values: sampled_expected_count has shape {sampled.shape}, "
            f"expected {candidates.shape}, as the candidates"
        )
    counts = _true_counts(_counts("true_expected_count", values[1]), true)
    if not subtract_log_q:
        return Draw(candidates, np.zeros(counts.shape), np.zeros(sampled.shape))
    return Draw(candidates, _logs("true_expected_count", counts, true), _logs("sampled_expected_count", sampled))


def _counts(name: str, values: Any) -> npt.NDArray[Any]:
    array = arguments.as_array(f"sampled_values: {name}", values)
    if array.dtype.name not in arguments.FLOATS and array.dtype.kind not in "iu":
        raise TypeError(f"sampled_values: {name}: expected numbers, got {array.dtype}")
    return array.astype(np.float64)


def _true_counts(counts: Floats, true: RaggedIds) -> Floats:
    """Q of each true id, flat."""
    sizes = np.diff(true.offsets)
    if counts.shape == true.shape:
        return counts.reshape(-1)
    if counts.shape == (len(sizes), 1):
        return np.repeat(counts[:, 0], sizes)
    expected = " or ".join(str(shape) for shape in dict.fromkeys((true.shape, (len(sizes), 1))))
    raise BigvocabError(
        f"sampled_values: true_expected_count has shape {counts.shape}, expected {expected}, as {true.name}"
    )


def _logs(name: str, counts: Floats, true: RaggedIds | None = None) -> Floats:
    bad = ~((counts > 0) & (counts < np.inf))
    if bad.any():
        at = int(np.argmax(bad))
        row = f"row {at if true is None else true.row_of(at)}"
        raise BigvocabError(f"sampled_values: {name}: {row} is {counts[at]}, expected a finite number above 0")
    return np.log(counts)
