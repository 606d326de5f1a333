"""Two protocols: any kind of rows of logits goes with any loss, and any source of rows with a job."""

import contextlib

import numpy as np
import pytest

import bigvocab as bv
from bigvocab.evaluation.scoring import Scorer
from bigvocab.evaluation.specification import specify
from bigvocab.heads.linear_rows import LinearMatrix, LinearRows
from bigvocab.heads.output_layer import OutputLayer
from bigvocab.jobs.data import JobData
from bigvocab.jobs.evaluation_task import EvaluationTask
from bigvocab.jobs.work import whole_range
from bigvocab.labels.label_sources import open_labels
from bigvocab.labels.ragged import RaggedIds
from bigvocab.losses.row_statistics import merged_statistics, softmax_rows, wanted
from bigvocab.losses.sigmoid_rows import log_loss_row_sums, sigmoid_row_sums, sparse_sigmoid_rows
from bigvocab.losses.soft_rows import dense_label_rows, sparse_label_rows
from bigvocab.losses.softmax import sparse_softmax_formula
from bigvocab.matrices.logit_rows import LogitRows
from bigvocab.matrices.matrix import Matrix
from bigvocab.matrices.names import DataNames
from bigvocab.matrices.sources import LogitSource, RowSource
from bigvocab.matrices.tiles import StoredRows, kernel_view

ROWS, CLASSES = 23, 41
ALL = wanted(rank=True, entropy=True, predicted=True, logit_sum=True)


class OuterRows:
    """Logits a[i] * b[j] that no one stores, made a group of classes at a time, and only rows that are not skipped."""

    def __init__(self, a, b, group=CLASSES):
        self.a, self.b, self.group = a, b, group
        self.num_classes = len(b)

    def __len__(self):
        return len(self.a)

    def reduce(self, reduction, num_threads):
        state = reduction.state(len(self))
        reduction.clear(state)
        chosen = np.flatnonzero(~reduction.skip)
        if reduction.lookup is not None:
            labels = reduction.lookup[chosen]
            found = chosen[labels >= 0]
            reduction.found[found] = self.gather(found, labels[labels >= 0], num_threads)
        firsts = range(0, self.num_classes, self.group)
        groups = reduction.state(len(firsts), len(chosen))
        reduction.clear(groups)
        for k, first in enumerate(firsts):
            piece = kernel_view(np.outer(self.a[chosen], self.b[first : first + self.group]))
            reduction.add(piece, (first, piece.shape[1]), chosen, tuple(array[k] for array in groups))
        merged = tuple(array[chosen] for array in state)
        reduction.merge(groups, merged)
        for array, part in zip(state, merged, strict=True):
            array[chosen] = part
        return state

    def gather(self, rows, classes, num_threads):
        return self.a[rows] * self.b[classes]

    def classes(self, first, stop):
        return OuterRows(self.a, self.b[first:stop], self.group)

    def without(self, excluded):
        raise NotImplementedError


class Outer:
    """The same logits as a source of a job, which notes what is asked of it."""

    role, kernels, files = "inputs", (), [{"path": "<outer>"}]
    in_one_piece = row_by_row = classes_apart = False
    bytes_read_beside = 0

    def __init__(self, a, b):
        self.a, self.b = a, b
        self.shape, self.dtype, self.nbytes = (len(a), len(b)), np.dtype(np.float64), a.nbytes
        self.stored = Matrix.from_array(a[:, None])
        self.released, self.checks, self.within = [], 0, 0

    def __len__(self):
        return len(self.a)

    def rows(self, start, stop):
        for first in range(start, stop, 5):  # as if files ended there
            yield first, OuterRows(self.a[first : min(first + 5, stop)], self.b)

    def row_files(self):
        return []

    def class_edges(self):
        return [0]

    def block_rows(self, rows):
        return rows

    def prefetch(self, start, stop, ended):
        pass

    @contextlib.contextmanager
    def reading_once(self):
        self.within += 1
        yield
        self.within -= 1

    def release(self, start, stop):
        self.released.append((start, stop))

    def check(self):
        self.checks += 1


@pytest.fixture
def factors():
    rng = np.random.default_rng(4)
    return rng.standard_normal(ROWS), rng.standard_normal(CLASSES)


def lists(rng, rows=ROWS, classes=CLASSES):
    """Up to four ids of each row, in no order, and a probability for each."""
    picked = [rng.choice(classes, rng.integers(0, 5), replace=False) for _ in range(rows)]
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in picked])])
    return RaggedIds(offsets, np.concatenate(picked).astype(np.int64)), rng.random(offsets[-1])


def in_order(sets):
    return RaggedIds(sets.offsets, sets.ids[np.lexsort((sets.ids, sets.rows()))])


def losses_of(rows, skip):
    """Every loss of rows of logits, by name."""
    rng = np.random.default_rng(7)
    labels = np.where(skip, -1, rng.integers(0, CLASSES, ROWS))
    soft, (sets, probabilities), weights = rng.random((ROWS, CLASSES)), lists(rng), rng.random(CLASSES)
    transform = {"scale": 0.7, "softcap": 5.0}
    found = softmax_rows(rows, labels, want=ALL, **transform)
    formula = sparse_softmax_formula(CLASSES, 0.1, weights)
    sums = formula.weighted_sums(rows, labels, (0.7, 5.0), 2)
    return {
        "sparse softmax": formula.losses(found),
        "class weights": formula.weighted_losses(found, labels, sums),
        "label logits": found.label_logits,
        "entropy": found.entropy,
        "rank": found.rank,
        "predicted": found.predicted,
        "soft labels": dense_label_rows(rows, soft, skip, label_smoothing=0.2, **transform).losses(0.2),
        "integer labels": dense_label_rows(rows, (soft > 0.5).astype(np.int8), skip).losses(0.0),
        "listed labels": sparse_label_rows(rows, sets, probabilities, skip, **transform).losses(0.0),
        "sigmoid": sigmoid_row_sums(rows, soft, skip, pos_weight=weights, transform=(0.7, 0.0)),
        "sparse sigmoid": sparse_sigmoid_rows(rows, in_order(sets), skip, pos_weight=weights),
    }


def assert_same(got, expected, rtol=0.0):
    assert got.keys() == expected.keys()
    for name in got:
        np.testing.assert_allclose(got[name], expected[name], rtol=rtol, atol=4 * rtol, err_msg=name)


SKIPS = {
    "none": np.zeros(ROWS, bool),
    "some": np.arange(ROWS) % 4 == 1,
    "ends": (np.arange(ROWS) < 3) | (np.arange(ROWS) > 15),
    "all": np.ones(ROWS, bool),
}


@pytest.mark.parametrize("skip", SKIPS)
def test_rows_made_on_the_fly_have_the_losses_of_stored_rows(factors, skip):
    stored = losses_of(StoredRows.of(np.outer(*factors)), SKIPS[skip])
    assert_same(losses_of(OuterRows(*factors), SKIPS[skip]), stored)
    assert_same(losses_of(OuterRows(*factors, group=6), SKIPS[skip]), stored, rtol=1e-6)


def test_probabilities_made_on_the_fly():
    a, b = np.linspace(0.1, 1, ROWS), np.linspace(0, 1, CLASSES)
    labels, skip = np.random.default_rng(1).random((ROWS, CLASSES)), SKIPS["some"]
    stored = log_loss_row_sums(StoredRows.of(np.outer(a, b)), labels, skip, epsilon=1e-7)
    for group in (CLASSES, 6):
        got = log_loss_row_sums(OuterRows(a, b, group), labels, skip, epsilon=1e-7)
        np.testing.assert_allclose(got, stored, rtol=1e-12)
    a[10] = 1.5
    message = r"predictions: row 10, class 27, is 1\.01\d*, expected a probability"
    for rows in (StoredRows.of(np.outer(a, b)), OuterRows(a, b)):
        with pytest.raises(bv.BigvocabError, match=message):
            log_loss_row_sums(rows, labels, skip, epsilon=1e-7)


@pytest.mark.parametrize("skip", SKIPS)
def test_tiles_and_layouts_have_the_losses_of_one_array(factors, skip):
    logits = np.outer(*factors)
    whole = losses_of(StoredRows.of(logits), SKIPS[skip])
    for array in (np.asfortranarray(logits), logits.astype(">f8"), np.repeat(logits, 2, 1)[:, ::2]):
        assert_same(losses_of(StoredRows.of(array), SKIPS[skip]), whole)
    tiles = [(0, logits[:, :7]), (7, np.asfortranarray(logits[:, 7:8])), (8, logits[:, 8:])]
    assert_same(losses_of(StoredRows(tiles), SKIPS[skip]), whole, rtol=1e-6)


def test_listed_labels_are_added_in_their_own_order_whatever_the_tiles(factors):
    """So no split of the classes over files changes a bit of the sums with labels."""
    logits = np.outer(*factors)
    sets, probabilities = lists(np.random.default_rng(2))
    skip = SKIPS["none"]
    sums = [
        sparse_label_rows(StoredRows(tiles), sets, probabilities, skip).sums[:, 1]
        for tiles in ([(0, logits)], [(0, logits[:, :11]), (11, logits[:, 11:])])
    ]
    np.testing.assert_array_equal(*sums)


KINDS = ["stored", "tiles", "linear"]


def rows_of(kind):
    """Rows of logits, and the same as an array."""
    rng = np.random.default_rng(8)
    inputs, weights = rng.standard_normal((ROWS, 6)).astype("f4"), rng.standard_normal((CLASSES, 6)).astype("f4")
    linear = LinearRows(OutputLayer(weights, rng.standard_normal(CLASSES).astype("f4")), inputs)
    pairs = np.indices((ROWS, CLASSES)).reshape(2, -1)
    logits = linear.gather(*pairs, 2).reshape(ROWS, CLASSES)
    if kind == "linear":
        return linear, logits
    return StoredRows.of(logits) if kind == "stored" else StoredRows([(0, logits[:, :9]), (9, logits[:, 9:])]), logits


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_gathered_is_what_is_reduced(kind):
    rows, logits = rows_of(kind)
    assert (len(rows), rows.num_classes) == logits.shape
    picked = np.array([3, 3, 0, 22]), np.array([40, 0, 9, 8])
    got = rows.gather(*picked, 1)
    assert got.dtype == logits.dtype
    np.testing.assert_array_equal(got, logits[picked])
    assert rows.gather(np.zeros(0, np.int64), np.zeros(0, np.int64), 2).shape == (0,)
    top = softmax_rows(rows, np.full(ROWS, -2)).maximum
    np.testing.assert_array_equal(top, logits.max(1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("span", [(0, CLASSES), (0, 5), (3, 30), (9, 10), (12, CLASSES)])
def test_a_range_of_classes_counts_from_zero(kind, span):
    rows, logits = rows_of(kind)
    part, cut = rows.classes(*span), logits[:, slice(*span)]
    assert (len(part), part.num_classes) == cut.shape
    found = softmax_rows(part, np.full(ROWS, -2), want=wanted(predicted=True))
    np.testing.assert_array_equal(found.predicted, cut.argmax(1))
    np.testing.assert_array_equal(found.maximum, cut.max(1))
    pairs = np.arange(ROWS), np.full(ROWS, span[1] - span[0] - 1)
    np.testing.assert_array_equal(part.gather(*pairs, 1), cut[:, -1])


@pytest.mark.parametrize("kind", KINDS)
def test_ranges_of_classes_with_known_label_logits_merge_to_the_whole(kind):
    """Ranks count the logits above a label's that another range holds."""
    rows, logits = rows_of(kind)
    labels = np.random.default_rng(5).integers(0, CLASSES, ROWS)
    labels[4] = -1
    whole = softmax_rows(rows, labels, want=ALL)
    known = np.where(labels < 0, np.nan, logits[np.arange(ROWS), labels].astype(np.float64))
    edges = [0, 4, 20, CLASSES]
    parts = []
    for first, stop in zip(edges, edges[1:], strict=False):
        columns = softmax_rows(rows.classes(first, stop), labels, known=known, want=ALL).columns
        columns[:, 2] += np.where(columns[:, 2] >= 0, first, 0)
        parts.append(columns)
    merged = merged_statistics(np.stack(parts))
    np.testing.assert_allclose(merged, whole.columns, rtol=1e-6, atol=1e-5)
    exact = [0, 2, 5, 6]  # maximum, where it is, and counts
    np.testing.assert_array_equal(merged[:, exact], whole.columns[:, exact])
    np.testing.assert_array_equal(whole.label_logits, known)


def test_sets_of_some_rows():
    sets, _ = lists(np.random.default_rng(3))
    each = [sets.ids[a:b].tolist() for a, b in zip(sets.offsets, sets.offsets[1:], strict=False)]
    for rows in (slice(3, 11), slice(0, 0), np.array([0, 2, 3, 20]), np.zeros(0, np.int64)):
        part = sets.of_rows(rows)
        got = [part.ids[a:b].tolist() for a, b in zip(part.offsets, part.offsets[1:], strict=False)]
        assert got == (each[rows] if isinstance(rows, slice) else [each[row] for row in rows])


# ---- sources


@pytest.mark.parametrize("loss", ["sparse-softmax", "softmax", "sigmoid", "sparse-sigmoid"])
def test_a_job_over_a_source_of_its_own(factors, loss):
    rng = np.random.default_rng(9)
    sets = in_order(lists(rng)[0])
    labels = {
        "sparse-softmax": rng.integers(0, CLASSES, ROWS),
        "softmax": rng.random((ROWS, CLASSES)),
        "sigmoid": rng.random((ROWS, CLASSES)),
        "sparse-sigmoid": (sets.offsets, sets.ids),
    }[loss]

    def run(source):
        asked = specify(loss=loss, chunk_rows=7)
        data = JobData([source], open_labels(labels, asked.loss.spec.labels, {}), DataNames())
        sums, _, read = whole_range(EvaluationTask(Scorer(asked), data), 0, ROWS)
        return sums.tally.state(), read

    source = Outer(*factors)
    (got, read), (expected, _) = run(source), run(Matrix.from_array(np.outer(*factors)))
    assert repr(got) == repr(expected)
    assert read == source.nbytes
    assert sorted(source.released) == [(0, 7), (7, 14), (14, 21), (21, 23)]
    assert source.checks > 4
    assert source.within == 0


def test_files_and_layers_are_sources(tmp_path):
    """Both have all that the protocol asks for; a job asks for nothing else."""
    np.save(tmp_path / "a.npy", np.zeros((4, 6), np.float16)), np.save(tmp_path / "b.npy", np.ones((5, 6), np.float16))
    matrix = bv.open_matrix(tmp_path)
    layer = OutputLayer(matrix, num_classes=8)
    asked = [name for name in (*vars(RowSource), *vars(LogitSource)) if not name.startswith("_")]
    assert len(asked) > 15
    for source in (matrix, LinearMatrix(Matrix.from_array(np.zeros((3, 6))), layer), Outer(np.ones(2), np.ones(3))):
        assert [name for name in asked if not hasattr(source, name)] == []
        (first, rows), *_ = source.rows(0, 2)
        assert first == 0
        assert [name for name in vars(LogitRows) if not name.startswith("_") and not hasattr(rows, name)] == []
    assert matrix.class_edges() == [0]
    assert LinearMatrix(matrix, layer).class_edges() == [0, 4]
    assert [row for row, _ in LinearMatrix(matrix, layer).row_files()] == [0, 4]
