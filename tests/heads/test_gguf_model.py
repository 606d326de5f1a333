"""Models in GGUF: which tensors, norm, scale and cap are found, and llama.cpp's own numbers from its own files."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_files import BLOCKS, gguf_bytes, model_keys, plain_tensor, random_blocks

import bigvocab as bv
from bigvocab.errors import BigvocabError, FormatError
from bigvocab.heads.gguf_model import find_gguf_model

TINY = Path(__file__).parents[1] / "data/llama/tiny-259"
EXPECTED = json.loads((TINY / "expected.json").read_text())
RNG = np.random.default_rng(8)
EMBEDDING = RNG.standard_normal((7, 32))
HEAD = RNG.standard_normal((7, 32))
NORM = RNG.standard_normal(32) + 2


def tensors(*, head=True, norm="output_norm", **more):
    found = [plain_tensor("token_embd.weight", EMBEDDING)]
    found += [plain_tensor("output.weight", HEAD)] if head else []
    found += [plain_tensor(f"{norm}.weight", NORM)] if norm else []
    return found + [plain_tensor(name.replace("__", "."), array) for name, array in more.items()]


@pytest.fixture
def find(tmp_path):
    def look(keys, content=None, **options):
        path = tmp_path / "model.gguf"
        path.write_bytes(gguf_bytes(keys, tensors() if content is None else content))
        return find_gguf_model(path, **options)

    return look


# --- llama.cpp's own files ---------------------------------------------------------------------------------------


@pytest.fixture(params=sorted(EXPECTED))
def tiny(request):
    """What is expected of a file, and its arrays."""
    expected = EXPECTED[request.param]
    arrays = {name: np.load(TINY / file) for name, file in expected["files"].items() if name != "gguf"}
    return expected, arrays, np.load(TINY / "labels.npy")


def test_the_model_of_a_real_file(tiny):
    expected, _, _ = tiny
    model = find_gguf_model(TINY / expected["files"]["gguf"])
    assert model.head.tensor == expected["output_tensor"]
    assert model.tied == (expected["output_tensor"] == "token_embd.weight")
    assert (model.rows, model.hidden_size) == tuple(expected["shape"])
    assert (model.model_type, model.num_classes, model.norm_kind, model.norm_epsilon) == ("llama", 259, "rms", 1e-5)
    assert (model.norm_offset, model.logit_scale, model.softcap, model.biases) == (0, 1.0, None, None)
    assert model.norm.tensor == "output_norm.weight"


def test_decoded_weights_of_a_real_file(tiny):
    expected, _, _ = tiny
    path = TINY / expected["files"]["gguf"]
    weights = np.asarray(bv.open_matrix(path))
    assert weights.astype(np.float64).sum() == pytest.approx(expected["weight_sum"], abs=1e-9)
    np.testing.assert_array_equal(weights[0, :4], expected["weight_first_row_first_4"])
    np.testing.assert_array_equal(weights[-1, -4:], expected["weight_last_row_last_4"])
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == expected["output_tensor"])
    np.testing.assert_array_equal(weights, gguf.quants.dequantize(tensor.data, tensor.tensor_type))


def test_logits_of_llama_cpp(tiny):
    """Of the states as it multiplies them; its sums are float32, these float64."""
    expected, arrays, labels = tiny
    weights = bv.open_matrix(TINY / expected["files"]["gguf"])
    states = arrays["as_multiplied"].astype(np.float64)
    logits = states @ np.asarray(weights).astype(np.float64).T
    assert np.abs(logits - arrays["logits"]).max() < 3e-6
    losses = bv.linear_cross_entropy(states, weights, labels)
    np.testing.assert_allclose(losses, bv.sparse_softmax_cross_entropy(logits, labels), atol=1e-12)
    assert losses.mean() == pytest.approx(expected["as_multiplied"]["loss_mean"], abs=1e-9)
    assert losses.mean() == pytest.approx(expected["llama_cpp"]["loss_mean"], abs=1e-6)


def test_losses_of_states_after_the_norm(tiny):
    expected, arrays, labels = tiny
    found = find_gguf_model(TINY / expected["files"]["gguf"])
    weights = bv.open_matrix(str(found.head))
    losses = bv.linear_cross_entropy(arrays["after_norm"].astype(np.float64), weights, labels)
    assert losses.mean() == pytest.approx(expected["after_norm"]["loss_mean"], abs=1e-9)
    np.testing.assert_allclose(losses[:3], expected["after_norm"]["losses_first_3"], atol=1e-9)


# --- keys and tensors --------------------------------------------------------------------------------------------


def test_a_model_with_everything(find):
    keys = model_keys("command-r", rms=None, layer=1e-5, logit_scale=0.0625, final_logit_softcapping=30.0, vocab_size=6)
    more = {"output__bias": np.ones(7), "output_norm__bias": np.ones(32)}
    model = find(keys, tensors(**more))
    assert model.head == (model.path, "output.weight")
    assert [str(place)[len(model.path) :] for place in (model.biases, model.norm, model.norm_biases)] == [
        "::output.bias",
        "::output_norm.weight",
        "::output_norm.bias",
    ]
    assert (model.norm_kind, model.norm_epsilon, model.logit_scale, model.softcap) == ("layer", 1e-5, 0.0625, 30.0)
    assert (model.num_classes, model.rows, model.hidden_size, model.tied) == (6, 7, 32, False)
    assert model.notes == ("the head has 7 rows, of which command-r.vocab_size makes 6 classes; the rest is left out",)
    assert model.sources["logit_scale"] == "command-r.logit_scale = 0.0625, which multiplies"
    assert model.describe() == (
        "command-r: output.weight (6 x 32), layer norm (output_norm.weight, epsilon 1e-05), biases output.bias, "
        "logit scale 0.0625, softcap 30"
    )


def test_without_a_head_the_embedding_is_it(find):
    model = find(model_keys(), tensors(head=False))
    assert (model.head.tensor, model.tied) == ("token_embd.weight", True)
    assert "the embedding, token_embd.weight, is the head" in model.notes[0]


@pytest.mark.parametrize(
    ("arch", "scale", "expected"),
    [
        ("command-r", 0.0625, 0.0625), ("cohere2", 0.25, 0.25), ("cohere2moe", 2.0, 2.0), ("grok", 0.5, 0.5),
        ("granite", 8.0, 1 / 8), ("granitemoe", 6.0, 1 / 6), ("granitehybrid", 16.0, 1 / 16), ("minicpm", 9.0, 1 / 9),
        ("llama", 1.0, 1.0), ("llama", 0.0, 1.0), ("granite", 0.0, 1.0), ("granite", None, 1.0), ("llama", None, 1.0),
        ("grok", None, 0.5773502691896257),
    ],
)  # fmt: skip
def test_the_scale_multiplies_or_divides(find, arch, scale, expected):
    keys = model_keys(arch) | ({} if scale is None else {f"{arch}.logit_scale": scale})
    assert find(keys).logit_scale == expected


def test_scales_that_say_nothing_sure(find):
    with pytest.raises(
        BigvocabError, match=r"newmodel\.logit_scale is 4, and whether it multiplies or divides is known"
    ):
        find(model_keys("newmodel", logit_scale=4.0))
    for arch in ("command-r", "cohere2", "minicpm"):
        with pytest.raises(FormatError, match=rf"has no {arch}\.logit_scale, expected one"):
            find(model_keys(arch))
    for scale in (-1.0, float("nan"), float("inf"), "8", True):
        with pytest.raises(FormatError, match=r"granite\.logit_scale is .*, expected a positive number"):
            find(model_keys("granite", logit_scale=scale))


def test_softcaps(find):
    assert find(model_keys("gemma2", final_logit_softcapping=25.0)).softcap == 25.0
    found = find(model_keys("gemma2"))
    assert found.softcap == 30.0
    assert "30 is taken, as llama.cpp does" in found.notes[0]
    assert find(model_keys("gemma2", final_logit_softcapping=0.0)).softcap is None
    assert find(model_keys("gemma3")).softcap is None
    with pytest.raises(FormatError, match=r"gemma4\.final_logit_softcapping is -30\.0, expected a positive"):
        find(model_keys("gemma4", final_logit_softcapping=-30.0))


def test_kinds_of_norm(find):
    assert find(model_keys("llama", rms=1e-6)).norm_kind == "rms"
    assert find(model_keys("gpt2", rms=None, layer=1e-5)).norm_kind == "layer"
    both = find(model_keys("llama", rms=1e-6, layer=1e-5))
    assert (both.norm_kind, both.norm_epsilon) == ("rms", 1e-6)
    assert "both kinds" in both.notes[0]
    both = find(model_keys("llama", rms=1e-6, layer=1e-5), tensors(output_norm__bias=np.ones(32)))
    assert (both.norm_kind, both.norm_epsilon) == ("layer", 1e-5)
    assert find(model_keys("cohere2moe", rms=1e-6, layer=1e-5, logit_scale=1.0)).norm_kind == "layer"
    bare = find(model_keys("olmo", rms=None, layer=1e-5), tensors(norm=None))
    assert (bare.norm_kind, bare.norm, bare.norm_biases) == ("layer", None, None)
    unknown = find(model_keys("newmodel", rms=None))
    assert (unknown.norm_kind, unknown.after_norm_only) == ("unknown", "the file has no epsilon of a norm")
    assert find(model_keys("gemma3n")).after_norm_only.startswith("its several streams")
    assert find(model_keys("gemma3")).after_norm_only == ""
    with pytest.raises(FormatError, match="biases of an RMS norm, expected none"):
        find(model_keys("llama"), tensors(output_norm__bias=np.ones(32)))


def test_the_norm_in_the_slot_of_the_embedding(find):
    content = tensors(head=False, norm="token_embd_norm")
    assert find(model_keys("lfm2"), content).norm.tensor == "token_embd_norm.weight"
    assert find(model_keys("bloom", rms=None, layer=1e-5), content).norm is None  # there it is the input's


def test_numbers_of_classes(find):
    tokens = [f"t{i}" for i in range(7)]
    kinds = np.array([1, 1, 5, 1, 1, 5, 5], np.int32)
    keys = model_keys(tokens=tokens) | {"tokenizer.ggml.token_type": kinds}
    found = find(keys)
    assert (found.num_classes, found.notes) == (7, ("3 of 7 tokens are marked unused; they count",))
    assert find(keys, tokenizer=True).num_classes == 5
    assert find(model_keys(tokens=tokens[:5])).num_classes == 5
    assert find(model_keys(tokens=tokens, vocab_size=6)).num_classes == 6
    found = find(model_keys())
    assert (found.num_classes, found.sources["num_classes"]) == (7, "the rows of the head")
    with pytest.raises(FormatError, match=r"llama\.vocab_size says 8 classes, but the head has 7 rows"):
        find(model_keys(vocab_size=8))
    with pytest.raises(FormatError, match=r"llama\.vocab_size is 7\.0, expected a whole number"):
        find(model_keys(vocab_size=7.0))


@pytest.mark.parametrize(
    ("keys", "content", "words"),
    [
        ({}, None, r"general\.architecture is None, expected a name"),
        ({"general.architecture": 3}, None, r"general\.architecture is 3, expected a name"),
        (model_keys("minicpm3"), None, "architecture minicpm3: the divisor of its states is not in the file"),
        (model_keys("bert"), None, "architecture bert: a transform stands"),
        (model_keys("t5"), None, "architecture t5: an encoder-decoder scales"),
        (model_keys("clip"), None, "architecture clip: an encoder of images"),
        (model_keys() | {"general.type": "mmproj"}, None, r"general\.type is 'mmproj', expected a model"),
        (model_keys() | {"general.type": "adapter"}, None, r"general\.type is 'adapter', expected a model"),
        (model_keys(), [plain_tensor("blk.0.w", HEAD)], r"has no output layer, expected output\.weight or token_embd"),
        (model_keys(), tensors(output__scale=[2.0]), r"output\.weight has a scale of its own"),
        (model_keys(embedding_length=64), None, r"has 32 columns, but llama\.embedding_length is 64"),
        (model_keys(), tensors(output__bias=np.ones(6)), r"output\.bias: has shape \(6,\), expected \(7,\)"),
        (model_keys(), tensors(norm=None, output_norm__weight=np.ones(31)), r"has shape \(31,\), expected \(32,\)"),
        (model_keys(), [plain_tensor("output.weight", np.ones(32))], r"has shape \(32,\), expected \(classes, hidden"),
        (model_keys(), [("output.weight", 39, (7, 32), bytes(7 * 17))], "is stored as MXFP4, expected one of"),
        (model_keys(rms="1e-5"), None, "layer_norm_rms_epsilon is '1e-5', expected a positive number"),
    ],
)  # fmt: skip
def test_models_that_are_refused(find, keys, content, words):
    with pytest.raises(BigvocabError, match=words) as caught:
        find(keys, content)
    assert "\n" not in str(caught.value)


def test_a_model_in_several_files(tmp_path):
    blocks = random_blocks(RNG, "Q6_K", 7, 256)
    split = {"split.count": 2} | model_keys()
    names = [tmp_path / f"m-0000{i}-of-00002.gguf" for i in (1, 2)]
    names[0].write_bytes(gguf_bytes({"split.no": 0} | split, [plain_tensor("output_norm.weight", np.ones(256))]))
    head = ("output.weight", BLOCKS["Q6_K"][0], (7, 256), blocks.tobytes())
    names[1].write_bytes(gguf_bytes({"split.no": 1} | split, [head]))
    found = find_gguf_model(names[0])
    decoded = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q6_K)
    np.testing.assert_array_equal(np.asarray(bv.open_matrix(str(found.head))), decoded)
    assert bv.open_matrix(str(found.norm)).shape == (256,)
