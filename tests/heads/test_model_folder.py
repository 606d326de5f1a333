"""Model folders: every family's head and norm against transformers' losses, and what is refused with which words."""

import json
import os
import shutil
from pathlib import Path

import ml_dtypes
import naive
import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file, save_file

from bigvocab.errors import BigvocabError, FormatError
from bigvocab.heads.families import BY_TYPE, FAMILIES, find_family
from bigvocab.heads.hidden_states import tell_states
from bigvocab.heads.model_folder import find_model

GOLDEN = Path(__file__).parents[1] / "golden" / "families"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.safetensors"))
FUZZ_ROUNDS = int(os.environ.get("BIGVOCAB_FUZZ_ROUNDS", "250"))
STREAMS = ("gemma3n_text", "deepseek_v4")
NO_NORM = ("opt_350m",)


def answers(name):
    """Hidden states, labels and losses of a family, by transformers."""
    return load_file(GOLDEN / f"{name}.safetensors")


def about(name):
    with safetensors.safe_open(GOLDEN / f"{name}.safetensors", "np") as file:
        return json.loads(file.metadata()["about"])


def values(place):
    return None if place is None else load_file(place.file)[place.tensor].astype(np.float64)


def normed(found, states):
    if found.norm_kind == "none":
        return states
    weight = values(found.norm)
    weight = None if weight is None else found.norm_offset + weight
    return naive.final_norm(states, found.norm_kind, weight, values(found.norm_biases), found.norm_epsilon)


def losses(found, after, labels):
    logits = naive.linear_logits(
        after, values(found.head), values(found.biases), found.logit_scale, found.softcap, found.num_classes
    )
    return naive.sparse_softmax_cross_entropy(logits, labels)


@pytest.fixture
def folder(tmp_path):
    """A copy of a family's folder that a test may spoil: `folder("llama", tensors=..., config=...)`."""

    def copy(name, tensors=None, config=None):
        place = tmp_path / name
        shutil.copytree(GOLDEN / name, place)
        if config is not None:
            path = place / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | config))
        if tensors is not None:
            kept = load_file(place / "model.safetensors") | tensors
            save_file({k: v for k, v in kept.items() if v is not None}, place / "model.safetensors")
        return place

    return copy


def test_there_are_enough_families():
    assert len(NAMES) >= 25
    assert len(FAMILIES) >= 45
    versions = {tuple(sorted(about(name)["versions"].items())) for name in NAMES}
    assert len(versions) == 1


@pytest.mark.parametrize("name", NAMES)
def test_losses_of_states_after_the_norm_are_those_of_transformers(name):
    found, golden = find_model(GOLDEN / name), answers(name)
    np.testing.assert_allclose(losses(found, golden["after"], golden["labels"]), golden["losses"], rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_losses_of_states_before_the_norm_are_those_of_transformers(name):
    found, golden = find_model(GOLDEN / name), answers(name)
    after = normed(found, golden["before"])
    np.testing.assert_allclose(after, golden["after"], rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(losses(found, after, golden["labels"]), golden["losses"], rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_defaults_of_a_family_are_those_of_its_configuration_class(name):
    config = json.loads((GOLDEN / name / "config.json").read_text())
    inner = config.get("text_config", {}).get("model_type", config["model_type"])
    family, defaults = find_family((inner,)), about(name)["defaults"]
    for key, ours in ((family.epsilon_key, family.epsilon), (family.softcap_key, family.softcap)):
        if key is not None:
            assert ours == defaults[key], key
    if "tie_word_embeddings" in defaults:
        assert family.tied == defaults["tie_word_embeddings"]
    if family.scale_key is not None and defaults.get(family.scale_key) is not None and family.scale_rule != "width":
        assert family.scale == defaults[family.scale_key]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16], ids=lambda d: d.__name__)
def test_states_before_and_after_the_norm_are_told_apart(name, dtype):
    found, golden = find_model(GOLDEN / name), answers(name)
    before, after = golden["before"].astype(dtype), golden["after"].astype(dtype)
    assert tell_states(after, found) == "after-norm"
    assert tell_states(after[:1], found) == "after-norm"
    padded = np.concatenate([np.zeros_like(after[:2]), after, np.full_like(after[:1], np.nan)])
    assert tell_states(padded, found) == "after-norm"
    if found.norm_kind == "none":
        assert tell_states(before, found) == "after-norm"
    elif name in STREAMS:
        with pytest.raises(BigvocabError, match="streams"):
            tell_states(before, found)
    else:
        assert tell_states(before, found) == "before-norm"
        assert tell_states(before[:3], found) == "before-norm"


# The head's rule


def test_the_flag_alone_does_not_decide_which_tensor_is_the_head(folder):
    place = folder("llama_tied")
    embedding = load_file(place / "model.safetensors")["model.embed_tokens.weight"]
    assert find_model(place).head.tensor == "model.embed_tokens.weight"
    assert find_model(place).tied
    save_file(load_file(place / "model.safetensors") | {"lm_head.weight": embedding}, place / "model.safetensors")
    twin = find_model(place)
    assert twin.tied
    assert not twin.notes
    assert twin.sources["tied"].endswith("the two are equal")
    embedding[-1, -1] += 1
    save_file(load_file(place / "model.safetensors") | {"lm_head.weight": embedding}, place / "model.safetensors")
    other = find_model(place)
    assert (other.head.tensor, other.tied) == ("lm_head.weight", False)
    assert "hold other bytes; the head is used" in other.notes[0]


def test_without_a_head_the_embedding_is_used_whatever_the_flag_says(folder):
    place = folder("mistral", {"lm_head.weight": None})
    found = find_model(place)
    assert (found.head.tensor, found.tied) == ("model.embed_tokens.weight", True)
    assert "tie_word_embeddings is false, but no head is stored" in found.notes[0]


def test_nested_configurations_and_sharded_files(folder):
    place = folder("qwen3_5_vl")
    found = find_model(place)
    assert found.model_type == "qwen3_5_text"
    assert found.norm_offset == 1
    assert found.norm.file != found.head.file
    assert "text_config.rms_norm_eps" in found.sources["norm_epsilon"]
    (place / "model.safetensors.index.json").unlink()
    with pytest.raises(BigvocabError, match=r"the shard model-\d{5}-of-\d{5}.safetensors is missing"):
        find_model(place)


def test_shards_without_an_index_are_joined(folder):
    place = folder("llama_tied")
    tensors = load_file(place / "model.safetensors")
    (place / "model.safetensors").unlink()
    save_file({"model.norm.weight": tensors.pop("model.norm.weight")}, place / "model-00001-of-00002.safetensors")
    save_file(tensors, place / "model-00002-of-00002.safetensors")
    assert find_model(place).norm.file.endswith("model-00001-of-00002.safetensors")
    save_file(
        load_file(place / "model-00001-of-00002.safetensors") | tensors, place / "model-00001-of-00002.safetensors"
    )
    with pytest.raises(FormatError, match="is in model-00001-of-00002.safetensors and in model-00002"):
        find_model(place)


def test_padded_rows(folder):
    assert find_model(folder("qwen2", config={"vocab_size": 40})).num_classes == 40
    assert find_model(GOLDEN / "inkling_text").num_classes == 47


def test_more_classes_than_rows(folder):
    with pytest.raises(FormatError, match=r"has 53 rows, but .*vocab_size names 54 classes"):
        find_model(folder("qwen2", config={"vocab_size": 54}))


def test_classes_of_the_tokenizer(folder):
    place = folder("qwen2")
    tokenizer = {"model": {"vocab": {"a": 0, "b": 7}}, "added_tokens": [{"id": 41, "content": "<end>"}]}
    (place / "tokenizer.json").write_text(json.dumps(tokenizer))
    found = find_model(place, tokenizer=True)
    assert (found.num_classes, found.rows) == (42, 53)
    assert found.sources["num_classes"].endswith("tokenizer.json")
    (place / "tokenizer.json").write_text(json.dumps({"model": {"vocab": [["a", 0.0]] * 9}}))
    assert find_model(place, tokenizer=True).num_classes == 9
    for wrong in ({}, {"model": {"vocab": {"a": "0"}}}, {"model": {"vocab": {}}}, {"model": {"vocab": {"a": 99}}}):
        (place / "tokenizer.json").write_text(json.dumps(wrong))
        with pytest.raises(FormatError, match="tokenizer.json"):
            find_model(place, tokenizer=True)


def test_gpt2_without_the_prefix_of_its_body(folder):
    place = folder("gpt2")
    tensors = {k.removeprefix("transformer."): v for k, v in load_file(place / "model.safetensors").items()}
    save_file(tensors, place / "model.safetensors")
    found = find_model(place)
    assert (found.head.tensor, found.norm.tensor) == ("wte.weight", "ln_f.weight")


def test_tensors_of_other_parts_are_no_heads(folder):
    place = folder("deepseek_v3")
    tensors = load_file(place / "model.safetensors")
    extra = {
        "model.layers.61.shared_head.head.weight": tensors["lm_head.weight"] + 1,
        "mtp.lm_head.weight": tensors["lm_head.weight"],
    }
    save_file(tensors | extra, place / "model.safetensors")
    assert find_model(place).head.tensor == "lm_head.weight"


def test_unknown_families_work_with_states_after_the_norm(folder):
    found, golden = find_model(folder("llama_tied", config={"model_type": "novel"})), answers("llama_tied")
    assert found.norm_kind == "unknown"
    assert "'novel' is not known" in found.notes[0]
    assert tell_states(golden["after"], found) == "after-norm"
    np.testing.assert_allclose(losses(found, golden["after"], golden["labels"]), golden["losses"], rtol=1e-5)
    with pytest.raises(BigvocabError, match="cannot tell .*'novel'"):
        tell_states(golden["before"], found)


def test_a_configuration_that_moves_the_last_states_is_noted(folder):
    assert "before the final norm" in find_model(folder("mistral", config={"tie_last_hidden_states": False})).notes[0]


def test_every_line_that_describes_a_model_names_its_head():
    for name in NAMES:
        found = find_model(GOLDEN / name)
        assert found.head.tensor in found.describe()
    assert find_model(GOLDEN / "gemma2").describe() == (
        "gemma2: model.embed_tokens.weight (53 x 32), rms norm (1 + model.norm.weight, epsilon 0.003), softcap 30"
    )


# Hidden states


def test_states_with_zero_weights_of_the_norm_are_told_apart(folder):
    weight = load_file(GOLDEN / "mistral" / "model.safetensors")["model.norm.weight"]
    weight[:5] = 0
    found = find_model(folder("mistral", {"model.norm.weight": weight}))
    before = answers("mistral")["before"]
    assert tell_states(before, found) == "before-norm"
    assert tell_states(normed(found, before), found) == "after-norm"


def test_states_of_another_norm_or_scale_are_refused():
    found, golden = find_model(GOLDEN / "llama"), answers("llama")
    plain = golden["after"] / values(found.norm)
    with pytest.raises(BigvocabError, match="multiplies by 1 \\+ weight"):
        tell_states(plain * (1 + values(found.norm)), found)
    with pytest.raises(BigvocabError, match="without weights"):
        tell_states(plain, found)
    with pytest.raises(BigvocabError, match="times 0.0999"):
        tell_states(golden["after"] * 0.1, found)
    mixed = golden["after"].copy()
    mixed[2] = golden["before"][2]
    with pytest.raises(BigvocabError, match="row 2 looks as before the final norm, but 11 of 12 rows as after it"):
        tell_states(mixed, found)
    with pytest.raises(BigvocabError, match=r"got shape \(12, 31\), expected \(rows, 32\)"):
        tell_states(golden["after"][:, :31], found)
    with pytest.raises(BigvocabError, match="every row is zero or not finite"):
        tell_states(np.zeros((3, 32)), found)


# What is refused

QUANTISED = {
    "FP8": {"weight": np.zeros((53, 32), ml_dtypes.float8_e4m3fn), "weight_scale": np.ones(1, np.float32)},
    "NVFP4": {
        "weight": np.zeros((53, 16), np.uint8),
        "weight_scale": np.ones((53, 2), np.float32),
        "weight_scale_2": np.ones(1, np.float32),
    },
    "packed integers": {
        "weight": None,
        "weight_packed": np.zeros((53, 4), np.int32),
        "weight_shape": np.ones(2, np.int64),
    },
    "GPTQ or AWQ": {"weight": None, "qweight": np.zeros((4, 53), np.int32), "scales": np.ones((1, 53), np.float16)},
    "bitsandbytes": {"weight": np.zeros((848, 1), np.uint8), "weight.absmax": np.ones(27, np.float32)},
    "MLX": {
        "weight": np.zeros((53, 4), np.uint32),
        "scales": np.ones((53, 1), np.float16),
        "biases": np.ones((53, 1), np.float16),
    },
    "an integer type": {"weight": np.zeros((53, 32), np.int8)},
}


@pytest.mark.parametrize("scheme", QUANTISED)
def test_quantised_heads_are_refused_by_their_scheme(folder, scheme):
    place = folder("mistral", {f"lm_head.{key}": value for key, value in QUANTISED[scheme].items()})
    with pytest.raises(BigvocabError, match=f"lm_head is stored as {scheme}.*dequantise it"):
        find_model(place)
    shutil.rmtree(place)
    place = folder(
        "mistral",
        {f"model.embed_tokens.{key}": value for key, value in QUANTISED[scheme].items()} | {"lm_head.weight": None},
    )
    with pytest.raises(BigvocabError, match=f"model.embed_tokens is stored as {scheme}"):
        find_model(place)


def test_a_quantised_body_is_no_reason_to_refuse(folder):
    config = {"quantization_config": {"quant_method": "fp8", "modules_to_not_convert": ["lm_head"]}}
    assert find_model(folder("mistral", config=config)).head.tensor == "lm_head.weight"


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("bert", {"model_type": "bert"}, "bert is an encoder"),
        ("t5", {"model_type": "t5"}, "t5 is an encoder and a decoder"),
        ("own", {"model_type": "own", "is_encoder_decoder": True}, "is_encoder_decoder"),
        ("baichuan", {"model_type": "baichuan"}, "normalised before every use"),
        ("bailing", {"model_type": "bailing_moe", "norm_head": True}, "norm_head"),
        ("dory", {"model_type": "dory"}, "logit scale of its own"),
    ],
)
def test_heads_that_are_no_linear_layer_are_refused(folder, name, config, message):
    with pytest.raises(BigvocabError, match=message):
        find_model(folder("llama_tied", config=config))


def test_a_head_with_more_than_a_layer_is_refused(folder):
    with pytest.raises(BigvocabError, match="more than a linear layer .it has ln.weight"):
        find_model(folder("mistral", {"lm_head.ln.weight": np.ones(32, np.float32)}))


@pytest.mark.parametrize(
    ("targets", "refused"),
    [(["q_proj", "lm_head"], True), (["q_proj", "v_proj"], False), (["embed_tokens"], True), (r".*\.q_proj", False)],
)
def test_adapters_are_refused_where_they_change_the_head(folder, targets, refused):
    place = folder("llama_tied")
    (place / "adapter_config.json").write_text(json.dumps({"target_modules": targets, "modules_to_save": None}))
    if refused:
        with pytest.raises(BigvocabError, match="an adapter that changes .*merge"):
            find_model(place)
    else:
        assert "does not change the head" in find_model(place).notes[0]


def test_an_adapter_is_judged_by_its_tensors_too(folder):
    place = folder("mistral")
    part = np.zeros((2, 32), np.float32)
    save_file(
        {"base_model.model.model.layers.0.input_layernorm.lora_A.weight": part}, place / "adapter_model.safetensors"
    )
    assert find_model(place).notes
    save_file({"base_model.model.lm_head.lora_A.weight": part}, place / "adapter_model.safetensors")
    with pytest.raises(BigvocabError, match="changes lm_head"):
        find_model(place)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("pytorch_model.bin", "save_pretrained"),
        ("adapter_model.safetensors", "adapter without its model"),
        ("consolidated.safetensors", "consolidated"),
        ("model-Q8_0.gguf", "name the GGUF file itself"),
        ("README.md", "holds no weights, expected model.safetensors"),
    ],
)
def test_folders_without_weights_say_what_to_do(folder, file, message):
    place = folder("mistral")
    (place / "model.safetensors").rename(place / file)
    with pytest.raises(BigvocabError, match=message):
        find_model(place)


def test_folders_without_a_model(tmp_path):
    with pytest.raises(BigvocabError, match="no such folder"):
        find_model(tmp_path / "absent")
    with pytest.raises(BigvocabError, match="holds no config.json"):
        find_model(tmp_path)


def test_a_missing_shard_is_named_with_its_tensor(folder):
    place = folder("llama")
    shard = json.loads((place / "model.safetensors.index.json").read_text())["weight_map"]["lm_head.weight"]
    (place / shard).unlink()
    with pytest.raises(BigvocabError, match=f"{shard}: this shard is missing, and tensor 'lm_head.weight' is in it"):
        find_model(place)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/model.safetensors", "a/b.safetensors", "..", 3, {"file": "x"}, "x.bin", None]
)
def test_an_index_that_leaves_the_folder_is_refused(folder, name):
    place = folder("llama")
    index = json.loads((place / "model.safetensors.index.json").read_text())
    index["weight_map"]["lm_head.weight"] = name
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match="weight_map gives"):
        find_model(place)


def test_a_stale_index_is_refused(folder):
    place = folder("llama")
    path = place / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["lm_head.weight"] = index["weight_map"]["model.norm.weight"]
    path.write_text(json.dumps(index))
    with pytest.raises(FormatError, match="has no such tensor; the index is stale"):
        find_model(place)


def test_stale_copies_in_other_files_are_not_used_and_noted(folder):
    place, index = folder("llama"), "model.safetensors.index.json"
    listed = json.loads((place / index).read_text())["weight_map"]
    used, other = listed["lm_head.weight"], next(name for name in listed.values() if name != listed["lm_head.weight"])
    before = find_model(place)
    stale = load_file(place / other) | {"lm_head.weight": values(before.head).astype(np.float32) + 1}
    save_file(stale, place / other)
    found = find_model(place)
    assert found.head == before.head
    note = f"lm_head.weight: taken from {used}, as {index} says; a copy in {other} is not"
    assert found.notes == (*before.notes, note)
    (place / "model-00001-of-00009.safetensors").write_bytes((place / used).read_bytes())  # no file of the index
    (place / "model-00002-of-00009.safetensors").write_bytes(b"lm_head.weight")  # what is not used may be anything
    os.mkfifo(place / "model-00003-of-00009.safetensors")
    (note,) = [note for note in find_model(place).notes if "lm_head" in note]
    assert note.endswith(f"a copy in model-00001-of-00009.safetensors and {other} is not")
    save_file(load_file(place / other) | load_file(place / used), place / "model.safetensors")
    found = find_model(place)
    assert found.head.file == str(place / "model.safetensors")
    assert any("taken from model.safetensors, a whole file comes first; a copy in" in note for note in found.notes)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5'"),
        ({"rms_norm_eps": True}, "rms_norm_eps is True"),
        ({"rms_norm_eps": -1.0}, "non-negative"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"vocab_size": 53.0}, "vocab_size is 53.0"),
        ({"vocab_size": 0}, "positive integer"),
        ({"hidden_size": 31}, r"has shape \(53, 32\), but .*hidden_size is 31"),
        ({"tie_word_embeddings": "yes"}, "expected true or false"),
        ({"model_type": 3}, "no model_type"),
        ({"model_type": "granite", "logits_scaling": 0}, "logits_scaling is 0, expected a positive number"),
        ({"model_type": "gemma2", "final_logit_softcapping": -30}, "final_logit_softcapping is -30"),
    ],
)
def test_configurations_with_wrong_values_are_refused(folder, config, message):
    with pytest.raises(FormatError, match=message):
        find_model(folder("mistral", config=config))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{",
        "[" * 100_000,
        '{"model_type": NaN',
        "\xff",
        "version https://git-lfs.github.com/spec/v1\n",
    ],
)
@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json", "model.safetensors"])
def test_files_that_are_no_json_are_refused(folder, file, text):
    place = folder("llama")
    (place / file).write_bytes(text.encode("latin-1"))
    with pytest.raises(FormatError, match=file):
        find_model(place)


def test_a_file_that_would_wait_or_never_end_is_refused(folder):
    place = folder("mistral")
    (place / "config.json").unlink()
    os.mkfifo(place / "config.json")
    with pytest.raises(BigvocabError, match="not a regular file"):
        find_model(place)
    (place / "config.json").unlink()
    with open(place / "config.json", "wb") as stream:
        stream.truncate(17 << 20)
    with pytest.raises(FormatError, match="is larger than 16 MiB"):
        find_model(place)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_spoilt_files_are_read_or_refused_and_nothing_else(folder, file):
    place = folder("gemma2")
    path, rng = place / file, np.random.default_rng(7)
    whole = path.read_bytes()
    header = min(len(whole), 600)
    refused = 0
    for round_ in range(FUZZ_ROUNDS):
        spoilt = bytearray(whole)
        if round_ % 3 == 0:
            del spoilt[rng.integers(len(whole)) :]
        else:
            for at in rng.integers(0, header, rng.integers(1, 4)):
                spoilt[at] = rng.integers(256)
        path.write_bytes(spoilt)
        try:
            found = find_model(place)
            tell_states(answers("gemma2")["after"], found)
        except BigvocabError:
            refused += 1
    assert refused > FUZZ_ROUNDS / 3


def test_no_two_families_share_a_type():
    assert len(BY_TYPE) == sum(len(family.types) for family in FAMILIES)
    for family in FAMILIES:
        assert family.norm_kind in ("rms", "layer", "none")
        assert family.scale_rule in ("multiply", "divide", "width")
