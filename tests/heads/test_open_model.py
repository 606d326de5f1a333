"""open_model: the layer of a model as one object, and layers named by the files of a checkpoint."""

import ctypes
import json
import mmap
import os
import shutil
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from gguf_files import F32, gguf_bytes
from safetensors.numpy import load_file, save_file

import bigvocab as bv

GOLDEN = Path(__file__).parents[1] / "golden" / "families"
TINY = Path(__file__).parents[1] / "data/llama/tiny-259"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.safetensors"))
AFTER_ONLY = [name for name in NAMES if "before" not in load_file(GOLDEN / f"{name}.safetensors")]
SHARDED = "llama"


@pytest.mark.parametrize("name", NAMES)
def test_losses_of_a_family_are_those_of_transformers(name):
    golden = load_file(GOLDEN / f"{name}.safetensors")
    layer = bv.open_model(GOLDEN / name)
    for states in ("after", "before"):
        if states not in golden or states == "before" and layer.found.after_norm_only:
            continue
        losses = bv.linear_cross_entropy(golden[states], layer, golden["labels"])
        assert np.allclose(losses, golden["losses"], rtol=0, atol=3e-5), states


def test_a_layer_says_what_it_is():
    layer = bv.open_model(GOLDEN / "gemma2")
    assert isinstance(layer, bv.OutputLayer)
    assert repr(layer) == (
        "<OutputLayer gemma2: model.embed_tokens.weight (53 x 32), rms norm (1 + model.norm.weight, epsilon 0.003), "
        "softcap 30>"
    )
    described = layer.describe()
    for words in (
        f"{GOLDEN}/gemma2\n", "head: ", "(the embedding)", "classes: 53, from ", "config.json: vocab_size",
        "norm: rms norm (1 + model.norm.weight, epsilon 0.003)", "softcap: 30, from ", "final_logit_softcapping",
        "before or after the norm",
    ):  # fmt: skip
        assert words in described, words
    plain = bv.OutputLayer(np.eye(3, dtype=np.float32))
    assert repr(plain) == "<OutputLayer weights: 3 x 3>"


def test_what_is_given_beside_a_layer_wins():
    golden, layer = load_file(GOLDEN / "gemma2.safetensors"), bv.open_model(GOLDEN / "gemma2")
    states, labels = golden["after"], np.minimum(golden["labels"], 39)
    weights = load_file(GOLDEN / "gemma2/model.safetensors")["model.embed_tokens.weight"]
    plain = {"num_classes": 40, "softcap": 5.0, "logit_scale": 0.5}
    expected = bv.linear_cross_entropy(states, weights, labels, **plain)
    assert np.array_equal(bv.linear_cross_entropy(states, layer, labels, **plain), expected)
    with pytest.raises(TypeError, match="biases: belong to the layer"):
        bv.linear_cross_entropy(states, layer, labels, biases=np.zeros(53, np.float32))
    with pytest.raises(bv.BigvocabError, match=r"inputs: has 31 columns, but .*embed_tokens.* has 32"):
        bv.linear_cross_entropy(states[:, :31], layer, labels)
    with pytest.raises(bv.BigvocabError, match="num_classes: got 54, but .* has 53 classes"):
        bv.linear_cross_entropy(states, layer, labels, num_classes=54)
    assert layer.hidden_states is None  # the layer itself is left as it was


def test_a_file_of_a_folder_means_the_folder(tmp_path):
    folder = shutil.copytree(GOLDEN / "gpt2", tmp_path / "gpt2")
    expected = repr(bv.open_model(folder))
    for name in ("config.json", "model.safetensors"):
        assert repr(bv.open_model(folder / name)) == expected
    sharded = GOLDEN / SHARDED
    assert repr(bv.open_model(sharded / "model.safetensors.index.json")) == repr(bv.open_model(sharded))


def test_gguf_files_and_folders_of_one(tmp_path):
    expected = json.loads((TINY / "expected.json").read_text())
    name = sorted(expected)[0]
    files = expected[name]["files"]
    layer, labels = bv.open_model(TINY / files["gguf"]), np.load(TINY / "labels.npy")
    for states, key in (("after_norm", "loss_mean"), ("before_norm", "before_norm_loss_mean")):
        found = bv.linear_cross_entropy(np.load(TINY / files[states]), layer, labels, reduction="mean")
        assert found == pytest.approx(expected[name]["after_norm"][key], abs=1e-6)
    shutil.copy(TINY / files["gguf"], tmp_path / "model.gguf")
    (tmp_path / "mmproj-x.gguf").write_bytes(b"GGUF")
    assert repr(bv.open_model(tmp_path)) == repr(bv.open_model(tmp_path / "model.gguf"))
    os.rename(tmp_path / "model.gguf", tmp_path / "model")
    assert "llama" in repr(bv.open_model(tmp_path / "model"))
    shutil.copy(tmp_path / "model", tmp_path / "a.gguf")
    shutil.copy(tmp_path / "model", tmp_path / "b.gguf")
    with pytest.raises(bv.BigvocabError, match=r"holds 2 GGUF models, name one: a\.gguf, b\.gguf"):
        bv.open_model(tmp_path)


NAMELESS = gguf_bytes({}, [("a", F32, (2,), bytes(8))])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p / "none", "none: no such folder or file"),
        (lambda p: p, "holds no config.json"),
        (lambda p: (p / "x.npy").write_bytes(b"\x93NUMPY") and p / "x.npy", r"x\.npy: expected the folder of a model"),
        (lambda p: (p / "config.json").write_text("{}") and p, "has no model_type"),
        (lambda p: (p / "x.gguf").write_bytes(b"GGU") and p / "x.gguf", r"x\.gguf: "),
        (lambda p: (p / "x.gguf").write_bytes(NAMELESS) and p, "general.architecture"),
        (lambda p: (p / "config.json").write_text('{"model_type": "bert"}') and p, "bert is an encoder"),
    ],
)  # fmt: skip
def test_what_is_no_model_is_refused_in_one_line(tmp_path, make, words):
    with pytest.raises(bv.BigvocabError, match=words) as caught:
        bv.open_model(make(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", [3, None, np.eye(2)])
def test_what_is_no_path_is_a_type_error(model):
    with pytest.raises(TypeError, match="model: expected a path or what open_model returns"):
        bv.open_model(model)
    with pytest.raises(TypeError, match="model: expected a path"):
        bv.Evaluator(model=bv.OutputLayer(np.eye(2, dtype=np.float32)))


# ---- layers by the files of a checkpoint


@pytest.fixture
def job():
    golden = load_file(GOLDEN / f"{SHARDED}.safetensors")
    return {"inputs": golden["after"], "labels": golden["labels"]}


def tensor_of_shards():
    index = json.loads((GOLDEN / SHARDED / "model.safetensors.index.json").read_text())["weight_map"]
    return load_file(GOLDEN / SHARDED / index["lm_head.weight"])["lm_head.weight"]


def test_a_tensor_of_a_sharded_checkpoint_is_found_by_its_index(job):
    folder, expected = GOLDEN / SHARDED, bv.evaluate(**job, weights=tensor_of_shards())["mean"]
    index = folder / "model.safetensors.index.json"
    for weights in (f"{folder}::lm_head.weight", f"{index}::lm_head.weight", f"{folder}/*.safetensors::lm_head.weight"):
        assert bv.evaluate(**job, weights=weights)["mean"] == expected, weights
    with pytest.raises(bv.BigvocabError, match=r"llama: no tensor 'head'; there are: .*'lm_head.weight'"):
        bv.evaluate(**job, weights=f"{folder}::head")
    for weights in (folder, index):
        with pytest.raises(bv.BigvocabError, match="checkpoint of many tensors; name one, .*or give its folder as"):
            bv.evaluate(**job, weights=weights)


def test_models_of_the_hub_that_are_not_here_say_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(bv.BigvocabError, match="no such folder or file, .*; one of the hub must be here first"):
        bv.open_model("Qwen/Qwen3-0.6B")
    cache = tmp_path / "models--a--b" / "snapshots" / "0123"
    shutil.copytree(GOLDEN / SHARDED, cache)
    with pytest.raises(bv.BigvocabError, match="holds no config.json, .* name a snapshot in it: .*snapshots/0123"):
        bv.open_model(tmp_path / "models--a--b")
    links = tmp_path / "links"
    links.mkdir()
    for file in cache.iterdir():
        (links / file.name).symlink_to(file)  # as the hub's cache has them
    assert bv.open_model(links).shape == bv.open_model(cache).shape


def test_a_tensor_in_two_shards_is_one_too_many_unless_they_are_named(tmp_path, job):
    weights = tensor_of_shards()
    first, second = weights[:30], weights[30:]

    def write(*pairs):
        folder = tmp_path / "layer"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, tensors in pairs:
            save_file(tensors, folder / f"{name}.safetensors")
        return folder

    def mean(weights):
        return bv.evaluate(**job, weights=weights)["mean"]

    expected, other = mean(weights), {"other": np.zeros(3, np.float32)}
    folder = write(("a", {"w": first} | other), ("b", {"w": second}))  # every file has it: ranges of the classes
    assert mean(f"{folder}::w") == expected
    folder = write(("a", {"w": weights}), ("b", other))  # one file has it
    assert mean(f"{folder}::w") == mean(f"{folder}/*.safetensors::w") == expected
    folder = write(("a", {"w": weights}), ("b", {"w": weights}))
    with pytest.raises(bv.FormatError, match=r"'w' is in .*a\.safetensors and in .*b\.safetensors, which hold the"):
        mean(f"{folder}::w")
    folder = write(("a", {"w": first}), ("b", {"w": second}), ("c", other))
    with pytest.raises(bv.FormatError, match="of 3 files, and no index says which counts: is one a stale copy"):
        mean(f"{folder}::w")
    names = ("model-00001-of-00002", "model-00002-of-00002")
    folder = write((names[0], {"w": first}), (names[1], {"w": second}))
    with pytest.raises(bv.FormatError, match="model-00001-of-00002.safetensors and in .*model-00002"):
        mean(f"{folder}::w")
    assert mean([f"{folder}/{name}.safetensors::w" for name in names]) == expected  # on purpose
    folder = write((names[0], {"w": weights + 1}), (names[1], {"w": weights}), ("c", other))
    index = {"weight_map": {"w": f"{names[1]}.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))  # which copy counts
    assert mean(f"{folder}::w") == mean(f"{folder}/model-*.safetensors::w") == expected
    folder = write((names[0], {"w": weights}), (names[1], {"w": weights}))
    with pytest.raises(bv.BigvocabError, match="none of these 2 files holds the tensor 'v'"):
        mean(f"{folder}::v")


def test_a_large_shard_is_opened_by_its_header_alone(tmp_path):
    """5 GB of zeros that take no room on the disk: pages that were looked at would be in memory."""
    classes, columns, rest = 64, 32, 5 << 30
    sizes = {"model.norm.weight": (columns,), "lm_head.weight": (classes, columns), "model.layers.0.x": (rest // 2,)}
    header, at = {}, 0
    for name, shape in sizes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = tmp_path / "model.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.write(np.full(columns, 0.5, ml_dtypes.bfloat16).tobytes())
        file.truncate(8 + len(text) + at)
    config = {"model_type": "llama", "vocab_size": classes, "hidden_size": columns, "rms_norm_eps": 1e-5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    layer = bv.open_model(tmp_path)
    assert layer.shape == (classes, columns)
    states = np.random.default_rng(0).standard_normal((8, columns)).astype(np.float32)
    assert bv.linear_cross_entropy(states, layer, np.zeros(8, np.int64)) == pytest.approx(np.full(8, np.log(classes)))
    assert _resident(path) < 64 << 20  # the kernel reads ahead around what is touched


def _resident(path):
    """Bytes of a file that are in memory."""
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        address = np.frombuffer(mapped, np.uint8).ctypes.data
        pages = -(-len(mapped) // mmap.PAGESIZE)
        flags = np.zeros(pages, np.uint8)
        libc = ctypes.CDLL(None, use_errno=True)
        arguments = ctypes.c_void_p(address), ctypes.c_size_t(len(mapped)), ctypes.c_void_p(flags.ctypes.data)
        assert libc.mincore(*arguments) == 0
        return int((flags & 1).sum()) * mmap.PAGESIZE
