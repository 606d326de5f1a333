"""Arrays of other libraries, through stand-ins with their protocols, against the same numbers in NumPy's."""

from __future__ import annotations

import contextlib
import sys

import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest
import stand_ins

import bigvocab as bv
from bigvocab import arrays
from bigvocab.arrays import as_host_array, first_null
from bigvocab.errors import BigvocabError
from bigvocab.matrices import row_source
from bigvocab.matrices.opening import as_matrix
from bigvocab.matrices.row_source import as_row_source

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
RNG = np.random.default_rng(21)
X = RNG.normal(size=(2, 3, 17)).astype(np.float32)
Y = RNG.integers(0, 17, (2, 3))
FLOATS = [np.float16, BFLOAT16, np.float32, np.float64]
INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


@pytest.fixture
def torch(monkeypatch):
    module = stand_ins.torch_module()
    monkeypatch.setitem(sys.modules, "torch", module)
    return module


def libraries(monkeypatch):
    """(name, maker of an array on the host, maker of one on a device) of each library."""
    torch, jax, tf = stand_ins.torch_module(), stand_ins.jax_module(), stand_ins.tensorflow_module()
    cupy = stand_ins.cupy_module()
    for name, module in {"torch": torch, "jax": jax, "tensorflow": tf, "cupy": cupy}.items():
        monkeypatch.setitem(sys.modules, name, module)
    yield "torch", torch.Tensor, lambda a, t: torch.Tensor(a, device="cuda", traffic=t)
    yield "jax", jax.Array, lambda a, t: jax.Array(a, "gpu", t)
    yield "tensorflow", tf.EagerTensor, lambda a, t: tf.EagerTensor(a, "/device:GPU:0", t)
    yield "cupy", None, cupy.ndarray


# ---- one door


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_tensors_on_the_host_are_views(torch, dtype):
    array = X.astype(dtype)
    for tensor in (torch.Tensor(array), torch.Tensor(array, requires_grad=True)):
        found = as_host_array(tensor, "logits")
        assert found.dtype == dtype
        assert np.shares_memory(found, array)
        assert np.array_equal(found.view(np.uint8), array.view(np.uint8))
    turned = as_host_array(torch.Tensor(array.transpose(2, 0, 1)), "logits")
    assert np.array_equal(turned, array.transpose(2, 0, 1))


@pytest.mark.parametrize("dtype", INTEGERS)
def test_labels_of_every_integer_type(torch, dtype):
    losses = bv.sparse_softmax_cross_entropy(torch.Tensor(X), torch.Tensor(Y.astype(dtype)))
    assert np.array_equal(losses, bv.sparse_softmax_cross_entropy(X, Y))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_library_on_host_and_device(monkeypatch, dtype):
    array = X.reshape(6, 17).astype(dtype)
    expected = bv.sparse_softmax_cross_entropy(array, Y.reshape(-1))
    for name, on_host, on_device in libraries(monkeypatch):
        if on_host is not None:
            found = bv.sparse_softmax_cross_entropy(on_host(array), on_host(Y.reshape(-1)))
            assert np.array_equal(found, expected), name
        traffic = stand_ins.Traffic()
        assert np.array_equal(bv.sparse_softmax_cross_entropy(on_device(array, traffic), Y.reshape(-1)), expected)
        assert traffic.total == array.nbytes, name


def test_what_lies_on_a_device_comes_in_blocks(monkeypatch):
    monkeypatch.setattr(row_source, "BLOCK_BYTES", 17 * 4 * 5)
    array = RNG.normal(size=(4, 8, 17)).astype(np.float32)
    labels = RNG.integers(0, 17, (4, 8))
    expected = bv.sparse_softmax_cross_entropy(array, labels)
    for name, _, on_device in libraries(monkeypatch):
        traffic = stand_ins.Traffic()
        assert np.array_equal(bv.sparse_softmax_cross_entropy(on_device(array, traffic), labels), expected), name
        assert traffic.total == array.nbytes, name
        assert traffic.largest <= 17 * 4 * 5, name


def test_a_matrix_over_a_device_copies_what_is_asked_for(torch):
    traffic = stand_ins.Traffic()
    flat = X.reshape(6, 17)
    matrix = as_matrix(torch.Tensor(flat, device="cuda", traffic=traffic), "logits", any_leading=True)
    assert traffic.total == 0
    assert matrix.shape == (6, 17)
    assert np.array_equal(matrix[2:4], flat[2:4])
    assert traffic.total == 2 * 17 * 4
    assert np.array_equal(matrix[[5, 0, 0]], flat[[5, 0, 0]])
    assert np.array_equal(np.asarray(matrix), flat)
    assert not matrix.in_one_piece


def test_a_layer_on_a_device_comes_in_blocks_too(torch, monkeypatch):
    monkeypatch.setattr(arrays, "BLOCK_BYTES", 100)
    for dtype in (np.float32, BFLOAT16):
        traffic, layer = stand_ins.Traffic(), RNG.normal(size=(40, 5)).astype(dtype)
        found = as_host_array(torch.Tensor(layer, device="cuda", traffic=traffic), "weights")
        assert found.tobytes() == layer.tobytes()
        assert traffic.total == layer.nbytes
        assert traffic.largest <= 100


def test_dlpack_and_array():
    for dtype in (np.float32, np.float64, np.float16, np.int32):
        array = X.astype(dtype)
        assert np.shares_memory(as_host_array(stand_ins.OfDlpack(array), "x"), array)
    array = X.astype(BFLOAT16)
    assert as_host_array(stand_ins.OfDlpackAndArray(array), "x") is array
    with pytest.raises(TypeError, match=r"x: got OfDlpackAndArray on device 2:0 of DLPack.*bring it to the host"):
        as_host_array(stand_ins.OfDlpackAndArray(X, device=2), "x")
    assert as_host_array([1, 2], "x") == [1, 2]
    assert as_host_array("path", "x") == "path"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "float8_e4m3fn"}, r"float8_e4m3fn.*call .to\(torch.bfloat16\) or .float\(\)"),
        ({"dtype": "float8_e5m2"}, "float8_e5m2"),
        ({"dtype": "bits8"}, "bits8"),
        ({"dtype": "qint8", "is_quantized": True}, r"quantised.*qint8.*\.dequantize\(\)"),
        ({"is_nested": True}, r"nested.*torch\.cat"),
        ({"layout": "torch.sparse_coo"}, r"torch\.sparse_coo.*\.to_dense\(\)"),
        ({"device": "meta"}, "meta device, which has no data.*load the weights"),
        ({"full_tensor": None}, r"distributed.*\.full_tensor\(\)"),
    ],
)
def test_tensors_that_are_refused_say_what_to_do(torch, options, words):
    tensor = torch.Tensor(X, **options)
    for call in (
        lambda: bv.sparse_softmax_cross_entropy(tensor, Y),
        lambda: as_matrix(tensor, "logits", any_leading=True),
        lambda: as_row_source(tensor, "logits"),
        lambda: bv.linear_cross_entropy(X, tensor, Y),
        lambda: bv.sparse_softmax_cross_entropy(X, tensor),
    ):
        with pytest.raises(TypeError, match=rf"^(logits|weights|labels): got .*{words}"):
            call()


def test_other_arrays_that_are_refused(monkeypatch):
    tf, jax = stand_ins.tensorflow_module(), stand_ins.jax_module()
    monkeypatch.setitem(sys.modules, "tensorflow", tf)
    monkeypatch.setitem(sys.modules, "jax", jax)
    with pytest.raises(TypeError, match=r"x: got a tf.RaggedTensor.*flat_values"):
        as_host_array(tf.RaggedTensor(), "x")
    with pytest.raises(TypeError, match="x: got a symbolic TensorFlow tensor.*outside of tf.function"):
        as_host_array(tf.Tensor(X), "x")
    with pytest.raises(TypeError, match="x: got a JAX array of float8_e4m3fn"):
        as_host_array(jax.Array(X.astype(ml_dtypes.float8_e4m3fn)), "x")
    several = jax.Array(X)
    several.is_fully_addressable = False
    with pytest.raises(TypeError, match="x: got a JAX array of several hosts"):
        as_host_array(several, "x")

    class csr_array:  # noqa: N801 - its name there
        __module__ = "scipy.sparse._csr"

    with pytest.raises(TypeError, match=r"x: got a sparse array \(csr_array\).*\.toarray\(\)"):
        as_host_array(csr_array(), "x")

    class Broken:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("Array has been deleted.")

    with pytest.raises(TypeError, match=r"x: got .*Broken, which gives no NumPy array: Array has been deleted"):
        as_host_array(Broken(), "x")


def test_no_library_is_imported():
    before = {"torch", "jax", "tensorflow", "cupy", "pandas", "polars", "datasets"} & set(sys.modules)
    as_host_array(X, "x")
    with contextlib.suppress(TypeError):
        as_host_array(object(), "x")
    assert {"torch", "jax", "tensorflow", "cupy", "pandas", "polars", "datasets"} & set(sys.modules) == before


# ---- leading dimensions

LAYOUTS = {
    "C": lambda x: x,
    "cut": lambda x: np.concatenate([x, x], 1)[:, : x.shape[1]],
    "turned": lambda x: np.ascontiguousarray(x.transpose(1, 0, 2)).transpose(1, 0, 2),
    "fortran": np.asfortranarray,
    "backwards": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    "columns": lambda x: np.concatenate([x, x], 2)[..., : x.shape[2]],
    "swapped": lambda x: x.astype(x.dtype.newbyteorder()),
    "one row": lambda x: np.stack([x[:1], x[1:]])[:, 0],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("small", [1, 1 << 40])
def test_leading_dimensions_in_any_layout(layout, small, monkeypatch):
    monkeypatch.setattr(row_source, "SMALL_PIECE", small)
    x = LAYOUTS[layout](X)
    assert np.array_equal(x, X)
    expected = bv.sparse_softmax_cross_entropy(X.reshape(6, 17), Y.reshape(-1))
    found = bv.sparse_softmax_cross_entropy(x, Y)
    assert found.shape == (2, 3)
    assert np.array_equal(found.reshape(-1), expected)
    source = as_row_source(x, "x")
    assert np.array_equal(np.concatenate([rows for _, rows in source.blocks()]), X.reshape(6, 17))
    for start in range(6):
        for stop in range(start, 7):
            parts = [rows for _, rows in source.blocks(start, stop)]
            assert sum(map(len, parts)) == stop - start
            assert np.array_equal(source.rows(start, stop), X.reshape(6, 17)[start:stop])
            if stop > start:
                assert np.array_equal(np.concatenate(parts), X.reshape(6, 17)[start:stop])


def test_shifted_logits_are_views():
    wide = np.zeros((3, 9, 70_000), np.float32)
    assert all(np.shares_memory(rows, wide) for _, rows in as_row_source(wide[:, :-1], "x").blocks())
    assert as_row_source(wide, "x").is_one_piece
    assert as_row_source(wide[None, :, None], "x").is_one_piece


def test_every_loss_takes_leading_dimensions():
    z = (RNG.random((2, 3, 17)) < 0.3).astype(np.float32)
    ids = np.sort(np.argsort(RNG.random((2, 3, 17)))[..., :2])
    w = RNG.random((2, 3))
    layer, states = RNG.normal(size=(17, 5)).astype(np.float32), RNG.normal(size=(2, 3, 5)).astype(np.float32)
    one = RNG.random((2, 3, 1))
    cases = [
        (bv.sparse_softmax_cross_entropy, (X, Y), {"weights": w}, (2, 3)),
        (bv.softmax_cross_entropy, (X, z), {"weights": w}, (2, 3)),
        (bv.sigmoid_cross_entropy, (X, z), {"weights": one}, (2, 3, 17)),
        (bv.weighted_sigmoid_cross_entropy, (X, z), {"pos_weight": 2.0}, (2, 3, 17)),
        (bv.sparse_sigmoid_cross_entropy, (X, ids), {"weights": w}, (2, 3)),
        (bv.linear_cross_entropy, (states, layer, Y), {}, (2, 3)),
    ]
    for function, given, options, shape in cases:
        for reduction in ("none", "sum", "mean"):
            found = function(*given, **options, reduction=reduction)
            rows = [a.reshape(6, *a.shape[2:]) if a.shape[:2] == (2, 3) else a for a in given]
            own = {k: v.reshape(6, *v.shape[2:]) if isinstance(v, np.ndarray) else v for k, v in options.items()}
            expected = function(*rows, **own, reduction=reduction)
            if reduction == "none":
                assert found.shape == shape, function
                expected = expected.reshape(shape)
            assert np.array_equal(found, expected), function
    ids = np.arange(12).reshape(2, 3, 2)
    draw = bv.LogUniformSampler(17).sample(ids.reshape(6, 2), 5, seed=1)
    for function in (bv.sampled_softmax_loss, bv.nce_loss):
        options = {"weights": layer, "biases": np.zeros(17), "num_sampled": 5, "num_classes": 17, "num_true": 2}
        expected = function(labels=ids.reshape(6, 2), inputs=states.reshape(6, 5), sampled_values=draw, **options)
        assert np.array_equal(
            function(labels=ids, inputs=states, sampled_values=draw, **options), expected.reshape(2, 3)
        )
        with pytest.raises(BigvocabError, match=r"labels: got shape \(6, 2\), expected \(2, 3, T\)"):
            function(labels=ids.reshape(6, 2), inputs=states, sampled_values=draw, **options)


def test_shapes_that_do_not_fit_name_both():
    for labels in (Y.T, Y.reshape(-1), Y[:1], Y[..., None, None].repeat(2, 2)):
        with pytest.raises(BigvocabError, match=r"labels: got shape \(.*\), expected \(2, 3\)"):
            bv.sparse_softmax_cross_entropy(X, labels)
    with pytest.raises(BigvocabError, match=r"weights: got shape \(6,\)"):
        bv.sparse_softmax_cross_entropy(X, Y, weights=np.ones(6))
    with pytest.raises(BigvocabError, match=r"labels: got shape \(2, 3\), expected \(6,\), one for each row of logits"):
        bv.sparse_softmax_cross_entropy(X.reshape(6, 17), Y)


def test_dimensions_of_one_may_be_more_or_missing():
    flat, labels = X.reshape(6, 17), Y.reshape(-1)
    expected = bv.sparse_softmax_cross_entropy(flat, labels)
    found = bv.sparse_softmax_cross_entropy(flat, labels[:, None])
    assert found.shape == (6, 1)
    assert np.array_equal(found[:, 0], expected)
    assert np.array_equal(bv.sparse_softmax_cross_entropy(flat[None], labels[None]), expected[None])
    assert np.array_equal(bv.sparse_softmax_cross_entropy(flat[None], labels), expected)


@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 0, 5), (0, 5)])
def test_no_rows(shape):
    assert bv.sparse_softmax_cross_entropy(np.zeros(shape), np.zeros(shape[:-1], int)).shape == shape[:-1]
    for reduction in ("mean", "sum_over_batch_size"):
        assert np.isnan(
            bv.sparse_softmax_cross_entropy(np.zeros(shape), np.zeros(shape[:-1], int), reduction=reduction)
        )


def test_wrong_use(torch):
    with pytest.raises(TypeError, match="logits: expected one of .*, got int64; are logits and labels swapped"):
        bv.sparse_softmax_cross_entropy(torch.Tensor(Y), torch.Tensor(X))
    with pytest.raises(BigvocabError, match="logits: expected 2 dimensions"):
        bv.sparse_softmax_cross_entropy(torch.Tensor(X[0, 0]), torch.Tensor(Y[0, 0]))
    with pytest.raises(TypeError, match="labels: expected integers, got bfloat16"):
        bv.sparse_softmax_cross_entropy(X, torch.Tensor(Y.astype(BFLOAT16)))


# ---- columns and tables


def batches(source, **columns):
    return [
        (b.labels.tolist(), None if b.ignored is None else b.ignored.tolist())
        for b in bv.read_labels(source, **columns)
    ]


def test_what_holds_an_array_says_which():
    class Linear:
        weight = np.zeros((5, 3), np.float32)

        def register_forward_pre_hook(self):
            """As a module of PyTorch has it."""

    class Output(dict):
        """As transformers has it: keys that are attributes."""

    x, output = np.zeros((2, 3), np.float32), Output(logits=np.zeros((2, 5)))
    output.logits = output["logits"]
    with pytest.raises(TypeError, match=r"weights: got Linear, expected an array; give its \.weight"):
        bv.linear_cross_entropy(x, Linear(), [0, 1])
    with pytest.raises(TypeError, match=r"logits: got Output, expected an array; give its \.logits"):
        bv.sparse_softmax_cross_entropy(output, [0, 1])
    with pytest.raises(TypeError, match=r"logits: got Output, expected an array; give its \.logits"):
        bv.evaluate(logits=output, labels=[0, 1])


def test_labels_of_tables_and_columns(torch):
    table = pa.table({"label": pa.array([3, None, 1]), "w": [0.5, 1.0, 2.0], "g": ["a", "b", "a"]})
    for source in (table, stand_ins.OfArrow(table)):
        (batch,) = bv.read_labels(source, label_column="label", weight_column="w", group_column="g")
        assert batch.labels.tolist() == [3, 0, 1]
        assert batch.ignored.tolist() == [False, True, False]
        assert batch.weights.tolist() == [0.5, 1.0, 2.0]
        assert batch.groups[1] == ["a", "b"]
    assert batches(stand_ins.OfArrow(table.column("label"))) == [([3, 0, 1], [False, True, False])]
    assert batches(torch.Tensor(np.array([3, 1]))) == [([3, 1], None)]
    with pytest.raises(TypeError, match="labels: expected a path, a list of paths, an ndarray or pyarrow data"):
        bv.read_labels(object())


def test_a_null_among_labels_is_named():
    assert first_null(pa.array([1, 2])) is None
    assert first_null(pa.chunked_array([[1], [2, None]])) == 2
    assert first_null([1, None]) == 1
    with pytest.raises(BigvocabError, match="labels: row 1 is null, expected integers; ignore_index"):
        bv.sparse_softmax_cross_entropy(X[0], pa.array([1, None, 2]))


def test_libraries_that_have_no_rows(monkeypatch):
    polars, datasets = type(sys)("polars"), type(sys)("datasets")
    polars.LazyFrame = type("LazyFrame", (), {})
    datasets.DatasetDict = type("DatasetDict", (dict,), {})
    datasets.IterableDataset = type("IterableDataset", (), {})
    monkeypatch.setitem(sys.modules, "polars", polars)
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    with pytest.raises(TypeError, match=r"labels: got a Polars LazyFrame.*\.collect\(\)"):
        bv.read_labels(polars.LazyFrame())
    with pytest.raises(BigvocabError, match="labels: got a DatasetDict, expected one of its splits: 'train', 'test'"):
        bv.read_labels(datasets.DatasetDict(train=1, test=2))
    with pytest.raises(TypeError, match="labels: got an IterableDataset"):
        bv.read_labels(datasets.IterableDataset())


# ---- evaluators


def reports(logits, labels, **options):
    evaluator = bv.Evaluator(**options)
    losses = evaluator.update(logits, labels)
    return losses, evaluator.report().to_dict()


SOFT = (RNG.random((2, 3, 17)) < 0.3).astype(np.float32)
LAYER = RNG.normal(size=(17, 5)).astype(np.float32)
STATES = RNG.normal(size=(2, 3, 5)).astype(np.float32)
EVALUATED = [
    (X, Y, {}),
    (X, SOFT, {"loss": "softmax"}),
    (X, SOFT, {"loss": "sigmoid"}),
    (X, np.sort(np.argsort(RNG.random((2, 3, 17)))[..., :2]), {"loss": "sparse-sigmoid"}),
    (STATES, Y, {"weights": LAYER}),
    (STATES, Y[..., None], {"weights": LAYER, "loss": "nce", "num_sampled": 4, "seed": 3}),
    (STATES, Y, {"weights": LAYER, "loss": "sampled-softmax", "num_sampled": 4, "seed": 3}),
]


@pytest.mark.parametrize(("logits", "labels", "options"), EVALUATED, ids=lambda value: str(value)[:30])
def test_update_takes_leading_dimensions(monkeypatch, logits, labels, options):
    flat = logits.reshape(6, -1), labels.reshape(6, *labels.shape[2:])
    losses, report = reports(*flat, **options)
    for same in (lambda a: a, lambda a: np.concatenate([a, a], 1)[:, :3]):
        found, own = reports(same(logits), same(labels), **options)
        assert found.shape == (2, 3)
        assert np.array_equal(found.reshape(-1), losses)
        assert own["mean"] == report["mean"]
    for name, on_host, on_device in libraries(monkeypatch):
        traffic = stand_ins.Traffic()
        found, own = reports(on_device(logits, traffic), labels, **options)
        assert np.array_equal(found.reshape(-1), losses), name
        assert own["mean"] == report["mean"]
        assert traffic.total >= logits.nbytes
        if on_host is not None:
            held = {k: on_host(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
            assert np.array_equal(reports(on_host(logits), on_host(labels), **held)[0].reshape(-1), losses), name
    job = {"inputs" if "weights" in options else "logits": logits}
    assert bv.evaluate(labels=labels, **job, **options)["mean"] == report["mean"]


def test_update_with_weights_and_groups():
    w, g = RNG.random((2, 3)), np.array([["a", "b", "a"], ["c", "c", "c"]])
    one, two = bv.Evaluator(), bv.Evaluator()
    one.update(X, Y, weights=w, groups=g)
    two.update(X.reshape(6, 17), Y.reshape(-1), weights=w.reshape(-1), groups=g.reshape(-1).tolist())
    assert one.report()["mean"] == two.report()["mean"]
    assert one.report()["groups"] == two.report()["groups"]
    three = bv.Evaluator()
    three.update(X, Y, weights=w, groups=g.tolist())
    assert three.report()["groups"] == two.report()["groups"]
    for bad in ({"weights": w.reshape(-1)}, {"groups": g.T}, {"weights": w.T}):
        with pytest.raises(BigvocabError, match=r"(weights|groups): got shape .*, expected \(2, 3\)"):
            bv.Evaluator().update(X, Y, **bad)
    with pytest.raises(BigvocabError, match=r"labels: got shape \(3, 2\), expected \(2, 3\)"):
        bv.Evaluator().update(X, Y.T)
    assert bv.Evaluator().update(X.reshape(6, 17), Y.reshape(6, 1)).shape == (6, 1)


def test_a_matrix_of_an_array(torch):
    for array in (X, torch.Tensor(X)):
        assert np.array_equal(np.asarray(bv.open_matrix(array)), X.reshape(6, 17))
    with pytest.raises(TypeError, match="path: expected a str, an os.PathLike or a list of them, got int"):
        bv.open_matrix(3)
    with pytest.raises(BigvocabError, match=r"weights: expected shape|weights: expected 2 dim"):
        bv.Evaluator(weights=torch.Tensor(X))
