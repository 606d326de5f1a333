"""Rows and labels in, losses out: a specification with its layer and its candidates opened. Holds no sums.

Both doors, rows in memory (`Evaluator`) and files (`jobs`), go through `Scorer.evaluate_rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bigvocab.arguments import parse_bytes
from bigvocab.catalogue import DEFAULT_SAMPLER, default_metrics
from bigvocab.errors import BigvocabError, Keyword
from bigvocab.evaluation import state as states
from bigvocab.evaluation.context import RowContext
from bigvocab.evaluation.json_values import as_options
from bigvocab.evaluation.label_checks import excluded_rows
from bigvocab.evaluation.model_report import model_block
from bigvocab.evaluation.options import HeadOptions
from bigvocab.evaluation.reporting import shown_options
from bigvocab.evaluation.row_losses import ROW_LOSSES
from bigvocab.evaluation.row_result import RowResult
from bigvocab.evaluation.sampled_losses import SAMPLED_LOSSES
from bigvocab.evaluation.specification import Specification
from bigvocab.heads.found_model import BEFORE
from bigvocab.heads.hidden_states import tell_of
from bigvocab.heads.linear_rows import LinearMatrix
from bigvocab.heads.open_model import layer_of
from bigvocab.heads.output_layer import OutputLayer
from bigvocab.labels.labels import LabelBatch
from bigvocab.matrices import fingerprints
from bigvocab.matrices.logit_rows import LogitRows
from bigvocab.matrices.names import DataNames
from bigvocab.matrices.sequences import open_rows
from bigvocab.matrices.sources import LogitSource
from bigvocab.sampling.candidates import FileCandidates
from bigvocab.sampling.draw_blocks import DrawBlocks, Draws
from bigvocab.storage.fingerprints import of_file


class Scorer:
    """What makes losses of rows.

    Attributes:
        specification: what was asked.
        head: the output layer, where rows are hidden states.
        draws: the candidates, where the loss is a sampled one.
    """

    def __init__(self, specification: Specification) -> None:
        self.specification = specification
        self.head = _open_head(specification)
        self.draws = _open_draws(specification, self.head)

    @property
    def rows_name(self) -> str:
        """How messages call rows in memory."""
        return "logits" if self.head is None else "inputs"

    def source(self, values: Any, *, label_rows: Callable[[], int] | None = None, **options: Any) -> LogitSource:
        """Logits, or hidden states before the output layer, as a source of logits.

        Args:
            values: an array, paths, or a Matrix.
            label_rows: says how many labels there are, as `open_rows` asks.
            options: as `open_matrix` takes them.
        """
        values, which = self.with_width(values), self.specification.sequences.layer
        matrix = open_rows(values, self.rows_name, layer=which, label_rows=label_rows, **options)
        if self.head is not None:
            source = LinearMatrix(matrix, self.head)
            source.layer = self.head = self._told(self.head, source)
            self._refuse_cut_shards(source)
            return source
        if matrix.ndim != 2:
            files = matrix.row_files()
            name = files[0][1] if files else self.rows_name
            raise BigvocabError(f"{name}: expected 2 dimensions, (rows, classes), got shape {matrix.shape}")
        self._refuse_cut_shards(matrix)
        return matrix

    def with_width(self, values: Any) -> Any:
        """The values; where they are (0, 0), no rows of lists that say by their rows how wide they are, as the layer
        has them.
        """
        if isinstance(values, np.ndarray) and values.shape == (0, 0):
            return np.zeros((0, 1 if self.head is None else self.head.shape[1]), values.dtype)
        return values

    def _refuse_cut_shards(self, source: LogitSource) -> None:
        """Raise where a whole file of a set is cut away: each may be padded, and all later ids would be shifted."""
        num_classes, edges = self.specification.loss.num_classes, source.class_edges()
        if len(edges) > 1 and num_classes is not None and num_classes <= edges[-1]:
            if self.specification.opening.shard_classes is None:
                raise BigvocabError(
                    Keyword("num_classes"),
                    f": got {num_classes}, but the last of {len(edges)} files begins with class {edges[-1]}: if each "
                    "is padded, ",
                    Keyword("shard_classes"),
                    " says how many classes of each are real",
                )

    def _told(self, head: OutputLayer, source: LinearMatrix) -> OutputLayer:
        """The layer for states of this kind: as asked, or told from a few rows, later ones where there is none yet."""
        if head.hidden_states is not None or head.found is None or not len(source):
            return head
        return head.for_states(tell_of(source.inputs, head.found, source.name))

    def tell(self, other: Scorer) -> None:
        """Take over where hidden states of the model are from, which rows of the other have told."""
        if self.head is not None and other.head is not None and self.head.hidden_states is None:
            if other.head.hidden_states is not None:
                self.head = self.head.for_states(other.head.hidden_states)

    @property
    def model(self) -> dict[str, Any] | None:
        """What a report says of the model; None where there is none."""
        return None if self.head is None or self.head.found is None else model_block(self.head, self.specification)

    def names_of(self, source: LogitSource, labels: str = "labels") -> DataNames:
        """How messages call a source and its labels."""
        path = source.files[0]["path"] if source.files else "<array>"
        shown = self.rows_name if path == "<array>" else path
        return DataNames(shown, labels, tuple(source.row_files()))

    def evaluate_rows(
        self, source: LogitSource, batch: LabelBatch, names: DataNames, seen: int = 0
    ) -> Iterator[tuple[LabelBatch, RowResult]]:
        """The results of the rows of one batch of labels, part by part as the files lie.

        Args:
            source: logits of all rows.
            batch: labels of consecutive rows.
            names: how messages call the data.
            seen: rows before row 0 of the source, by which draws count.
        """
        context = RowContext(self.specification, names, self.draws, seen)
        loss = (ROW_LOSSES | SAMPLED_LOSSES)[self.specification.loss.name]
        start, stop = batch.first_row, batch.first_row + len(batch)
        for first, rows in source.rows(start, stop):
            part = batch.part(first - start, first - start + len(rows))
            rows = self._classes_that_count(rows, names.logits)
            excluded = excluded_rows(context, part, rows.num_classes)
            yield part, loss(context, rows if excluded is None else rows.without(excluded), part)

    def _classes_that_count(self, rows: LogitRows, name: str) -> LogitRows:
        """The rows with their first `num_classes` classes: the others are padding."""
        num_classes = self.specification.loss.num_classes
        if num_classes is None:
            return rows
        if not 1 <= num_classes <= rows.num_classes:
            expected = f"expected 1 to {rows.num_classes}, the classes of {name}"
            raise BigvocabError(Keyword("num_classes"), f": got {num_classes}, {expected}")
        return rows.classes(0, num_classes)

    def options(self) -> dict[str, Any]:
        """What decides the numbers, as far as it is cheap to know: evaluators merge only where all of it is equal."""
        found = self.specification.identity()
        found["layer"] = None if self.head is None else as_options(self.head.options())
        draws: dict[str, Any] | None = None
        if self.draws is not None:
            asked = {"num_true": self.specification.loss.num_true, "exact": self.specification.measures.exact}
            draws = as_options(self.draws.options() | asked)
        found["draws"] = draws
        return found

    def identity(self) -> dict[str, Any]:
        """What decides the numbers, by content: files by their fingerprints, wherever they lie."""
        found = self.options()
        if self.head is not None:
            files = [entry for matrix in self.head.matrices() for entry in fingerprints.of_matrix("layer", matrix)]
            found["layer"]["files"] = [[entry["shape"], entry["fingerprint"]] for entry in files]
        for name in ("vocab_file", "candidates"):
            if found["draws"] and found["draws"].get(name):
                found["draws"][name] = of_file(found["draws"][name], 1 << 30)
        return {"format": states.VERSION, **found}

    def given(self) -> dict[str, Any]:
        """The keywords that make a scorer like this one, as JSON has them."""
        return self.opened().to_json()

    def opened(self) -> Specification:
        """The specification with its layer as the matrices that are open, which travel as the paths of their files; of
        a model, those that are not its own, and what its states were told to be.
        """
        asked, layer = self.specification, self.head
        if layer is None or asked.head is None:
            return asked
        if asked.head.model is None:
            return asked.with_head(layer.given())
        given = {name: matrix for name, matrix in layer.given().items() if name in asked.head.instead}
        return asked.with_head(given | {"hidden_states": layer.hidden_states})

    def shown(self) -> dict[str, Any]:
        """The options that are not their defaults, for reports."""
        loss = self.specification.loss.name
        return shown_options(self.opened().keywords(), default_metrics(loss))

    def files(self) -> Iterator[str]:
        """Paths of the files that are read beside rows and labels."""
        for matrix in () if self.head is None else self.head.matrices():
            yield from (file["path"] for file in matrix.files if file["path"] != "<array>")
        yield from self.specification.files()
        yield from [] if self.draws is None else self.draws.files()


def _open_head(specification: Specification) -> OutputLayer | None:
    head = specification.head
    if head is None:
        return None
    strict = specification.nonfinite != "keep"
    if head.model is None:
        layer = OutputLayer(**head.instead, num_classes=specification.loss.num_classes, strict=strict)
    else:
        layer = layer_of(head.model, head.instead, num_classes=specification.loss.num_classes, strict=strict)
        layer.hidden_states = _said_states(head, layer)
    if specification.max_memory is not None:
        layer.allow(parse_bytes("max_memory", specification.max_memory))
    return layer


def _said_states(head: HeadOptions, layer: OutputLayer) -> str | None:
    """Where states are from, as far as it was said: a norm given by hand is to be applied."""
    assert head.model is not None
    if head.instead.keys() & {"final_norm", "norm_weight", "norm_bias"}:
        return BEFORE
    if head.hidden_states == BEFORE and (layer.final_norm is None or head.model.after_norm_only):
        why = head.model.after_norm_only or "it has no final norm"
        raise BigvocabError(
            Keyword("hidden_states", BEFORE), f": {head.model.path} needs states from after the norm: {why}; or give ",
            Keyword("final_norm"), ", ", Keyword("norm_weight"), " and ", Keyword("norm_epsilon"),
        )  # fmt: skip
    return head.hidden_states


def _open_draws(specification: Specification, layer: OutputLayer | None) -> Draws | None:
    if not specification.loss.spec.sampled:
        return None
    assert layer is not None  # by the rules
    asked = specification.sampling
    if asked.candidates is not None:
        return FileCandidates(
            asked.candidates, layer.num_classes, num_sampled=asked.num_sampled, vocab_file=asked.vocab_file
        )
    return DrawBlocks(
        asked.sampler or DEFAULT_SAMPLER,
        asked.num_sampled,
        layer.num_classes,
        seed=0 if asked.seed is None else asked.seed,
        vocab_file=asked.vocab_file,
        distortion=asked.distortion,
    )
