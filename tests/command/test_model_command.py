"""The command with models and sequences: as a process, in its own words, and what `inspect` says of models."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import process, refused, run
from gguf_files import F32, gguf_bytes
from safetensors.numpy import load_file, save_file

import bigvocab as bv

GOLDEN = Path(__file__).parents[1] / "golden" / "families"
TINY = Path(__file__).parents[1] / "data/llama/tiny-259"
ANSWERS = load_file(GOLDEN / "gemma2.safetensors")


@pytest.fixture
def dump(tmp_path, monkeypatch):
    """Two requests of a model, and its folder, in the current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(GOLDEN / "gemma2", "model")
    Path("dump").mkdir()
    rng = np.random.default_rng(0)
    for name, length in (("a", 7), ("b", 9)):
        states = ANSWERS["before"][rng.integers(0, 12, length)]
        tokens = rng.integers(0, 53, length)
        save_file({"hidden_states": states[:, None], "token_ids": tokens}, f"dump/{name}.safetensors")
    return tmp_path


EVAL = ("eval", "--inputs", "dump::hidden_states", "--labels", "dump::token_ids", "--model", "model")


def test_a_dump_and_a_model_folder_and_nothing_else_as_a_process(dump):
    done = process(*EVAL, "--shift-labels", "--score-from", "1", "--format", "json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    expected = bv.evaluate(
        inputs="dump::hidden_states", labels="dump::token_ids", model="model", shift_labels=True, score_from=1
    )
    assert report["mean"] == expected["mean"]
    assert report["rows"] == 12
    assert report["model"]["hidden_states"] == "before-norm"
    done = process(*EVAL, "--shift-labels")
    assert "gemma2, 53 classes, rms norm, before-norm, softcap 30" in " ".join(done.stdout.split())


def test_notes_are_lines_on_stderr_and_none_when_quiet(dump):
    done = process(*EVAL, "--format", "json")
    assert done.returncode == 0
    assert done.stderr.startswith(
        "bigvocab: note: labels are token_ids, the tokens of the inputs, and were not shifted"
    )
    assert done.stderr.count("\n") == 1
    assert json.loads(done.stdout)["notes"][0]["code"] == "labels_not_shifted"
    quiet = process(*EVAL, "--format", "json", "--quiet")
    assert quiet.stderr == ""
    assert json.loads(quiet.stdout)["notes"] == json.loads(done.stdout)["notes"]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--hidden-states", "middle"], 2, ("--hidden-states", "middle")),
        (["--num-classes", "some"], 2, ("--num-classes", "some")),
        (["--num-classes", "0"], 2, ("--num-classes", "0")),
        (["--num-classes", "tokenizer"], 1, ("tokenizer.json: cannot open",)),
        (["--score-from", "-1"], 2, ("--score-from",)),
        (["--layer", "5"], 1, ("layer: got 5, but", "a.safetensors", "has 1 layers")),
        (
            ["--hidden-states", "after-norm", "--final-norm", "rms"],
            2,
            ("'--final-norm'", "'--hidden-states after-norm'"),
        ),
        (["--first-class", "0", "--num-classes", "53"], 2, ("'--first-class'", "'--model'")),
        (["--softcap", "0"], 2, ("--softcap",)),
    ],
)
def test_wrong_options_are_named_in_the_words_of_the_command(dump, options, code, words):
    refused(run(*EVAL, *options), code, *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--logits", "x.npy", "--labels", "y.npy", "--model", "model"], ("'--model'", "'--inputs'")),
        (["--inputs", "x.npy", "--labels", "y.npy"], ("'--inputs'", "'--weights'", "'--model'")),
        (
            ["--inputs", "x.npy", "--weights", "w.npy", "--labels", "y.npy", "--num-classes", "tokenizer"],
            ("'--model'",),
        ),
        (["--inputs", "x", "--weights", "w", "--labels", "y", "--hidden-states", "after-norm"], ("'--model'",)),
    ],
)
def test_what_does_not_go_together_is_known_before_any_file(tmp_path, arguments, words):
    refused(run("eval", *arguments), 2, *words)


def test_states_that_fit_neither_say_what_to_do(dump):
    states = ANSWERS["before"] / np.sqrt((ANSWERS["before"] ** 2).mean(axis=1, keepdims=True))
    np.save("x.npy", states)
    np.save("y.npy", ANSWERS["labels"])
    given = ("eval", "--inputs", "x.npy", "--labels", "y.npy", "--model", "model")
    refused(run(*given), 1, "x.npy (inputs): look as after a norm without weights", "--hidden-states before-norm")
    assert run(*given, "--hidden-states", "before-norm").exit_code == 0


def test_a_model_that_is_none_is_one_line(dump):
    Path("empty").mkdir()
    refused(run(*EVAL[:-1], "empty"), 1, "empty: holds no config.json")
    refused(run(*EVAL[:-1], "nowhere"), 1, "nowhere: no such folder or file")
    refused(run(*EVAL[:-1], TINY / "Q8_0.gguf"), 1, "has 32 columns, but", "output.weight")


def test_swapped_files_are_said_to_be(dump):
    np.save("x.npy", np.zeros((3, 5), np.float32))
    np.save("y.npy", np.zeros(3, np.int64))
    refused(
        run("eval", "--logits", "y.npy", "--labels", "x.npy"),
        1,
        "y.npy: holds int64",
        "are logits and labels swapped?",
    )
    assert "swapped" not in run("eval", "--logits", "y.npy", "--labels", "y.npy").stderr


# ---- inspect


def test_inspect_says_what_would_be_used_of_a_model(dump):
    done = process("inspect", "model")
    assert (done.returncode, done.stderr) == (0, "")
    for words in (
        "model folder", "gemma2, head tied to the embedding", "53 x 32", "model.safetensors::model.embed_tokens.weight",
        "model.safetensors::model.norm.weight", "rms, 1 + weight, epsilon 0.003",
        "30, from config.json: final_logit_softcapping", "before or after it",
    ):  # fmt: skip
        assert words in done.stdout, words
    found = json.loads(run("inspect", "model", "--format", "json").stdout)[0]
    assert found["model"]["num_classes"] == 53
    assert found["model"]["tensors"]["head"] == "model/model.safetensors::model.embed_tokens.weight"
    assert found["bytes"] == Path("model/model.safetensors").stat().st_size


def test_inspect_takes_the_index_of_shards_and_a_tensor_by_it(dump):
    shutil.copytree(GOLDEN / "llama", "shards")
    index = json.loads(Path("shards/model.safetensors.index.json").read_text())["weight_map"]
    used = index["lm_head.weight"]
    other = next(name for name in index.values() if name != used)
    layer = load_file(f"shards/{used}")["lm_head.weight"]
    save_file(load_file(f"shards/{other}") | {"lm_head.weight": layer + 1}, f"shards/{other}")  # stale
    whole = bv.inspect("shards")["model"]
    for path in ("shards/model.safetensors.index.json", "shards/config.json"):
        assert bv.inspect(path)["model"] == whole
    for path in (
        "shards::lm_head.weight",
        "shards/model.safetensors.index.json::lm_head.weight",
        "shards/*.safetensors::lm_head.weight",
    ):
        found = bv.inspect(path)
        assert found["shape"] == [53, 32], path
        assert found["sample"]["max"] == float(layer.max())
    text = " ".join(run("inspect", "shards").stdout.split())
    assert f"notes lm_head.weight: taken from {used}, as model.safetensors.index.json says; a copy in {other}" in text
    report = bv.evaluate(model=f"shards/{other}", inputs=ANSWERS["before"], labels=ANSWERS["labels"])
    assert report["model"]["path"] == "shards"  # a shard stands for its model


def test_inspect_of_a_model_that_is_refused_says_why(dump):
    config = json.loads(Path("model/config.json").read_text())
    Path("model/config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    done = run("inspect", "model")
    assert done.exit_code == 1
    assert "bert is an encoder" in done.stderr
    assert "model.safetensors" in done.stdout  # what lies there is shown all the same


def test_inspect_lists_gguf_tensors_and_the_model(dump):
    found = bv.inspect(TINY / "Q8_0.gguf")
    assert found["model"]["type"] == "llama"
    assert {"name": "output.weight", "shape": [259, 256], "dtype": "Q8_0"} in found["tensors"]
    Path("x.gguf").write_bytes(gguf_bytes({}, [("a", F32, (2,), bytes(8))]))
    found = bv.inspect("x.gguf")
    assert found["tensors"] == [{"name": "a", "shape": [2], "dtype": "F32"}]
    assert "general.architecture" in found["model"]["error"]
    assert "none: x.gguf: general.architecture" in " ".join(run("inspect", "x.gguf").stdout.split())


def test_inspect_shows_sequences_and_logits_of_llama_cpp(dump):
    assert bv.inspect("dump::hidden_states") | {"sample": 0} == {
        "path": "dump::hidden_states", "format": ".safetensors", "shape": [16, 32], "dtype": "float32", "files": 2,
        "leading": [16, 1], "bytes": sum(path.stat().st_size for path in Path("dump").iterdir()), "sample": 0,
    }  # fmt: skip
    np.save("x.npy", np.zeros((2, 3, 4), np.float32))
    assert bv.inspect("x.npy")["leading"] == [2, 3]
    assert "2 x 3 before the columns" in run("inspect", "x.npy").stdout
    header = b"_logits_" + np.array([8, 5, 1], "<i4").tobytes() + bytes(4 * 8)
    row = (
        np.array([16 / 65535, -16 - np.log(5)], "<f4").tobytes() + np.full(6, 65535, "<u2").tobytes()
    )  # 5 equal classes
    Path("x.kld").write_bytes(header + row * 3)
    found = json.loads(run("inspect", "x.kld", "--format", "json").stdout)[0]
    assert found.get("format") == "llama.cpp logits", found
    assert (found["context"], found["classes"], found["windows"]) == (8, 5, 1)
