"""Layers as others store them: on their side, and in shards that are each padded."""

import pickle

import ml_dtypes
import numpy as np
import pytest
from commands import process
from sample_jobs import values_of

import bigvocab as bv
from bigvocab.errors import BigvocabError
from bigvocab.heads.linear_rows import LinearRows
from bigvocab.heads.output_layer import OutputLayer
from bigvocab.losses.row_statistics import softmax_rows, wanted

TYPES = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)
ALL = wanted(rank=True, entropy=True, predicted=True)
ROWS = 26


@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: np.dtype(t).name)
@pytest.mark.parametrize("other", TYPES, ids=lambda t: np.dtype(t).name)
@pytest.mark.parametrize(("depth", "classes"), [(1, 5), (7, 33), (17, 40), (32, 1100)])
def test_a_layer_on_its_side_has_the_same_bits(dtype, other, depth, classes):
    rng = np.random.default_rng(0)
    inputs, weights = rng.normal(size=(ROWS, depth)).astype(dtype), rng.normal(size=(classes, depth)).astype(other)
    labels, biases = rng.integers(0, classes, ROWS), rng.normal(size=classes).astype(np.float32)
    expected, found = (
        softmax_rows(LinearRows(layer, inputs), labels, want=ALL, num_threads=2)
        for layer in (
            OutputLayer(weights, biases),
            OutputLayer(np.ascontiguousarray(weights.T), biases, transpose_weights=True),
        )
    )
    assert found.columns.tobytes() == expected.columns.tobytes()
    assert found.label_logits.tobytes() == expected.label_logits.tobytes()


@pytest.fixture
def layer(tmp_path):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(130, 8)).astype(np.float32)
    inputs, labels = rng.normal(size=(ROWS, 8)).astype(np.float32), rng.integers(0, 128, ROWS)
    np.save(tmp_path / "inputs.npy", inputs), np.save(tmp_path / "labels.npy", labels)
    np.save(tmp_path / "weights.npy", weights), np.save(tmp_path / "turned.npy", weights.T)
    np.save(tmp_path / "fortran.npy", np.asfortranarray(weights.T))
    for i, part in enumerate(np.split(weights.T, [50, 100], axis=1)):
        np.save(tmp_path / f"turned-{i}.npy", np.ascontiguousarray(part))
    return tmp_path, inputs, weights, labels


@pytest.mark.parametrize("loss", ["sparse-softmax", "sampled-softmax"])
@pytest.mark.parametrize("name", ["turned.npy", "fortran.npy", "turned-*.npy"])
def test_files_of_layers_on_their_side(layer, loss, name):
    folder, inputs, weights, labels = layer
    options = {"inputs": inputs, "labels": labels, "loss": loss}
    if loss != "sparse-softmax":
        options |= {"num_sampled": 20, "exact": True}
    expected = bv.evaluate(weights=weights, **options)
    found = bv.evaluate(weights=f"{folder}/{name}", transpose_weights=True, **options)
    assert values_of(found) == values_of(expected)
    found = bv.evaluate(weights=f"{folder}/{name}", transpose_weights=True, num_classes=128, **options)
    assert values_of(found) == values_of(bv.evaluate(weights=weights, num_classes=128, **options))
    ev = bv.Evaluator(
        weights=f"{folder}/{name}",
        transpose_weights=True,
        **{k: v for k, v in options.items() if k not in ("inputs", "labels")},
    )
    ev.update(inputs, labels)
    fed, whole = values_of(bv.Evaluator.from_bytes(ev.to_bytes()).report()), values_of(expected)
    for found in (fed, whole):
        found.pop("worst", None)  # rows of batches have no numbers
    assert fed == whole


def test_workers_and_the_command(layer):
    folder, _, weights, _ = layer
    options = {"inputs": folder / "inputs.npy", "labels": folder / "labels.npy"}
    expected = bv.evaluate(weights=weights, **options)
    found = bv.evaluate(weights=folder / "turned.npy", transpose_weights=True, engine="local", workers=2, **options)
    assert values_of(found) == values_of(expected)
    done = process(
        "eval", "--inputs", "inputs.npy", "--labels", "labels.npy", "--weights", "turned.npy", "--transpose-weights",
        "--format", "json", cwd=folder,
    )  # fmt: skip
    assert f'"mean": {expected["mean"]!r}' in done.stdout, done.stderr
    done = process("eval", "--inputs", "inputs.npy", "--labels", "labels.npy", "--weights", "turned.npy", cwd=folder)
    assert "it looks transposed: --transpose-weights?" in done.stderr


def test_what_is_not_finite_is_named(layer):
    _, inputs, weights, labels = layer
    weights = weights.copy()
    weights[77, 3] = np.nan
    with pytest.raises(BigvocabError, match="class 77 has nan in column 3"):
        bv.evaluate(inputs=inputs, weights=np.ascontiguousarray(weights.T), labels=labels, transpose_weights=True)
    with pytest.raises(BigvocabError, match="transpose_weights: needs weights"):
        bv.evaluate(logits=inputs, labels=labels % 8, transpose_weights=True)


# ---- shards that are each padded


@pytest.fixture
def shards(tmp_path):
    """Logits of 50, 50 and 28 classes, in files of 64 each: after the real ones, whatever was there."""
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(ROWS, 128)).astype(np.float32), rng.integers(0, 128, ROWS)
    padded = np.full((3, ROWS, 64), 9.0, np.float32)
    padded[0, :, :50], padded[1, :, :50], padded[2, :, :28] = np.split(logits, [50, 100], axis=1)
    for i in range(3):
        np.save(tmp_path / f"s-{i}.npy", padded[i])
        (tmp_path / f"s-{i}.bin").write_bytes(padded[i].tobytes())
    np.save(tmp_path / "labels.npy", labels)
    return tmp_path, logits, labels


@pytest.mark.parametrize("sizes", ["50,50,28", [50, 50, 28], (50, 50, 28)])
def test_classes_of_shards(shards, sizes):
    folder, logits, labels = shards
    options = {"logits": f"{folder}/s-*.npy", "labels": labels, "vocab_shards": True}
    for i, part in enumerate(np.split(logits, [50, 100], axis=1)):
        np.save(folder / f"exact-{i}.npy", part)
    expected = values_of(bv.evaluate(logits=f"{folder}/exact-*.npy", labels=labels, vocab_shards=True))
    assert values_of(bv.evaluate(**options, shard_classes=sizes)) == expected
    assert values_of(bv.evaluate(**options, shard_classes=sizes, chunk_rows=3, threads=1)) == expected
    matrix = bv.open_matrix(f"{folder}/s-*.npy", vocab_shards=True, shard_classes=sizes)
    for one in (matrix, pickle.loads(pickle.dumps(matrix))):
        assert np.array_equal(np.asarray(one), logits)
        assert np.array_equal(one[[3, 1]], logits[[3, 1]])
    options |= {"labels": folder / "labels.npy", "shard_classes": sizes}
    assert values_of(bv.evaluate(**options, engine="local", workers=2, chunk_rows=5)) == expected
    for i in (1, 2, 3):
        bv.evaluate(**options, vocab_shard=(i, 3), state=folder / f"{i}.state")
    assert bv.merge([folder / f"{i}.state" for i in (1, 2, 3)])["mean"] == pytest.approx(expected["mean"], rel=1e-6)


def test_layers_in_padded_files(layer):
    folder, inputs, weights, labels = layer
    biases = np.random.default_rng(1).normal(size=130).astype(np.float32)
    edges, sizes = [(0, 50), (50, 100), (100, 130)], (50, 50, 30)
    for i, (start, stop) in enumerate(edges):
        rows, numbers = np.full((64, 8), 3.0, np.float32), np.full(64, 7.0, np.float32)
        rows[: stop - start], numbers[: stop - start] = weights[start:stop], biases[start:stop]
        np.save(folder / f"w-{i}.npy", rows), np.save(folder / f"b-{i}.npy", numbers)
        np.save(folder / f"t-{i}.npy", np.ascontiguousarray(rows.T))
    options = {"inputs": inputs, "labels": labels}
    expected = values_of(bv.evaluate(weights=weights, biases=biases, **options))
    options |= {"biases": [str(folder / f"b-{i}.npy") for i in range(3)], "shard_classes": sizes}
    assert values_of(bv.evaluate(weights=f"{folder}/w-*.npy", **options)) == expected
    assert values_of(bv.evaluate(weights=f"{folder}/t-*.npy", transpose_weights=True, **options)) == expected


def test_a_number_of_classes_that_cuts_whole_shards_is_refused(shards):
    folder, _, labels = shards
    options = {"logits": f"{folder}/s-*.npy", "labels": labels % 100, "vocab_shards": True}
    for number in (128, 100):
        with pytest.raises(
            BigvocabError, match=f"num_classes: got {number}, but the last of 3 files begins with class 128"
        ):
            bv.evaluate(**options, num_classes=number)
    assert bv.evaluate(**options, num_classes=150)["rows"] == ROWS  # only the last is cut
    assert bv.evaluate(**options, num_classes=101, shard_classes="50,50,28")["rows"] == ROWS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard_classes": "50,50"}, "shard_classes: got 2 numbers for 3 files"),
        ({"shard_classes": "50,50,65"}, r"shard_classes: got 65, but .*s-2.npy has 64 classes"),
        ({"shard_classes": "50,x"}, "shard_classes: got '50,x', expected numbers such as 50,50,28"),
        ({"shard_classes": [50, 50, 0]}, "shard_classes: got 0"),
        ({"shard_classes": "50,50,28", "vocab_shards": False}, "shard_classes: needs vocab_shards"),
    ],
)
def test_sizes_that_are_not(shards, options, message):
    folder, _, labels = shards
    with pytest.raises(BigvocabError, match=message):
        bv.evaluate(**{"logits": f"{folder}/s-*.npy", "labels": labels % 50, "vocab_shards": True, **options})
