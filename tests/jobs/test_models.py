"""Jobs with a model: what it gives, what is given by hand, what reports and states say of it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sample_jobs import values_of

import bigvocab as bv

GOLDEN = Path(__file__).parents[1] / "golden" / "families"
TINY = Path(__file__).parents[1] / "data/llama/tiny-259"


def golden(name):
    return load_file(GOLDEN / f"{name}.safetensors")


@pytest.fixture
def job(tmp_path):
    """States and labels of a family in files: `job("gemma2", "before")`."""

    def write(name, states, rows=None):
        answers = golden(name)
        order = np.arange(len(answers["labels"])) if rows is None else np.arange(rows) % len(answers["labels"])
        np.save(tmp_path / "x.npy", answers[states][order])
        np.save(tmp_path / "y.npy", answers["labels"][order])
        return {"inputs": tmp_path / "x.npy", "labels": tmp_path / "y.npy", "model": GOLDEN / name}

    return write


@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere", "granite", "opt_350m", "phi", "minicpm3", "olmo"])
@pytest.mark.parametrize("states", ["after", "before"])
def test_a_job_and_an_evaluator_find_the_losses_of_transformers(job, name, states):
    given, expected = job(name, states), golden(name)["losses"].mean()
    report = bv.evaluate(**given)
    assert report["mean"] == pytest.approx(expected, abs=1e-5)
    evaluator = bv.Evaluator(model=bv.open_model(given["model"]))
    answers = golden(name)
    assert np.allclose(evaluator.update(answers[states], answers["labels"]), answers["losses"], rtol=0, atol=3e-5)
    assert evaluator.report()["mean"] == report["mean"]
    assert evaluator.report()["model"] == report["model"]
    wanted = "after-norm" if name == "opt_350m" else f"{states}-norm"
    assert report["model"]["hidden_states"] == wanted


def test_the_report_says_what_was_used_and_where_it_came_from(job):
    report = bv.evaluate(**job("gemma2", "before"))
    model, folder = report["model"], GOLDEN / "gemma2"
    sources = model.pop("sources")
    assert model == {
        "path": str(folder), "type": "gemma2",
        "tensors": {"head": "model.embed_tokens.weight", "norm": "model.norm.weight"},
        "norm": "rms", "norm_epsilon": 0.003, "norm_offset": 1, "logit_scale": 1.0, "softcap": 30.0,
        "num_classes": 53, "hidden_states": "before-norm",
    }  # fmt: skip
    assert sources["hidden_states"] == "told from the data"
    assert sources["softcap"] == f"{folder}/config.json: final_logit_softcapping"
    assert sources["head"] == f"{folder}/model.safetensors::model.embed_tokens.weight"
    assert "no head is stored" in sources["tied"]
    assert json.loads(report.to_json())["model"]["norm"] == "rms"
    line = next(line for line in str(report).splitlines() if line.startswith(" model"))
    assert "gemma2, 53 classes, rms norm, before-norm" in line
    assert max(map(len, str(report).splitlines())) <= 80


def test_what_is_given_by_hand_wins(job):
    given, answers = job("gemma2", "after"), golden("gemma2")
    weights = load_file(GOLDEN / "gemma2/model.safetensors")["model.embed_tokens.weight"]

    def both(of_model, of_layer):
        found = bv.evaluate(**given, **of_model)
        plain = {"inputs": answers["after"], "labels": answers["labels"], "weights": weights, "softcap": 30.0}
        assert found["mean"] == bv.evaluate(**(plain | of_layer))["mean"]
        return found["model"]

    labels = np.minimum(answers["labels"], 39)
    np.save(given["labels"], labels)
    answers["labels"] = labels
    for options in ({"softcap": 5.0}, {"logit_scale": 0.5}, {"num_classes": 40}, {"logit_scale": 1.0}):
        ((name, value),) = options.items()
        model = both(options, options)
        assert model[name] == value
        assert model["sources"][name] == "given"
    other = np.random.default_rng(0).standard_normal(weights.shape).astype(np.float32)
    model = both({"weights": other}, {"weights": other})
    assert model["tensors"]["head"] == "weights"
    assert model["sources"]["head"] == "given"
    biases = np.linspace(-1, 1, 53, dtype=np.float32)
    assert both({"biases": biases}, {"biases": biases})["tensors"]["biases"] == "biases"
    norm = {"norm_weight": np.full(32, 0.5, np.float32)}
    model = both(norm, norm | {"final_norm": "rms", "norm_epsilon": 0.003})  # as it is: no 1 is added
    assert model["hidden_states"] == "before-norm"
    assert "norm_offset" not in model
    norm = {"final_norm": "layer", "norm_epsilon": 0.5}
    assert both(norm, norm)["norm"] == "layer"


def test_an_epsilon_by_hand_goes_with_the_norm_of_the_model(job):
    given, answers = job("llama", "before"), golden("llama")
    found = bv.evaluate(**given, norm_epsilon=0.5)
    index = json.loads((GOLDEN / "llama/model.safetensors.index.json").read_text())["weight_map"]
    tensors = {
        name: load_file(GOLDEN / "llama" / index[name])[name] for name in ("lm_head.weight", "model.norm.weight")
    }
    expected = bv.evaluate(
        inputs=answers["before"], labels=answers["labels"], weights=tensors["lm_head.weight"], final_norm="rms",
        norm_weight=tensors["model.norm.weight"], norm_epsilon=0.5,
    )  # fmt: skip
    assert found["mean"] == expected["mean"]
    assert found["model"]["norm_epsilon"] == 0.5


def test_where_states_are_from_may_be_said(job):
    given, answers = job("llama", "after"), golden("llama")
    said = bv.evaluate(**given, hidden_states="after-norm")
    assert values_of(said) | {"model": 0} == values_of(bv.evaluate(**given)) | {"model": 0}
    assert said["model"]["sources"]["hidden_states"] == "given"
    wrong = bv.evaluate(**given, hidden_states="before-norm")  # the norm is applied once more
    assert abs(wrong["mean"] - answers["losses"].mean()) > 1e-3
    assert wrong["model"]["hidden_states"] == "before-norm"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_states": "middle"}, "hidden_states: got 'middle', expected one of before-norm, after-norm"),
        ({"hidden_states": "after-norm", "final_norm": "rms"}, "final_norm: is for states .*not with hidden_states"),
        ({"model": None}, "inputs: needs weights, the output layer, or model"),
        ({"model": None, "weights": np.eye(32), "hidden_states": "after-norm"}, "hidden_states: needs model"),
        ({"model": None, "weights": np.eye(32), "num_classes": "tokenizer"}, "num_classes: .*tokenizer.*model"),
        ({"num_classes": "words"}, "num_classes: got 'words', expected one of tokenizer"),
        ({"num_classes": 54}, "num_classes: got 54, but .* has 53 classes"),
        ({"num_classes": "tokenizer"}, "tokenizer.json: cannot open"),
        ({"first_class": 0, "num_classes": 53}, "first_class: is for files of a slice, and model has all classes"),
        ({"inputs": None, "logits": np.zeros((12, 53))}, "model: belongs to an output layer, which needs inputs"),
        ({"labels": np.full(12, 53)}, r"labels: row 0 is 53, expected a class in \[0, 53\)"),
        ({"inputs": np.zeros((12, 32), np.float32)}, "inputs: every row is zero or not finite"),
        ({"inputs": np.ones((12, 31), np.float32)}, "inputs: has 31 columns, but .*lm_head.weight.* has 32"),
        ({"loss": "log-loss", "labels": np.zeros((12, 53))}, 'loss="log-loss": takes probabilities'),
        ({"model": TINY / "Q8_0.gguf"}, "has 32 columns, but .*output.weight.* has 256"),
        ({"model": TINY / "labels.npy"}, "labels.npy: expected the folder of a model"),
    ],
)  # fmt: skip
def test_bad_jobs_are_refused_in_one_line(job, change, words):
    with pytest.raises(bv.BigvocabError, match=words) as caught:
        bv.evaluate(**job("llama", "after") | change)
    assert "\n" not in str(caught.value)


def test_states_that_the_model_cannot_have_made_are_refused(job, tmp_path):
    given, answers = job("gemma2", "after"), golden("gemma2")
    states = answers["before"].copy()
    other = states / np.sqrt((states**2).mean(axis=1, keepdims=True))  # normed, but by no weights
    np.save(given["inputs"], other)
    with pytest.raises(bv.BigvocabError, match=r"x\.npy \(inputs\): look as after a norm without weights") as caught:
        bv.evaluate(**given)
    assert 'hidden_states="before-norm"' in str(caught.value)
    mixed = answers["after"].copy()
    mixed[5] = answers["before"][5]
    np.save(given["inputs"], np.repeat(mixed, 20, axis=0))
    np.save(given["labels"], np.repeat(answers["labels"], 20))
    with pytest.raises(bv.BigvocabError, match=r"x\.npy \(inputs\): row 1[01]\d looks as before the final norm"):
        bv.evaluate(**given)  # the row is numbered in the file, not in the sample
    only = next(p.stem for p in GOLDEN.glob("*.safetensors") if bv.open_model(GOLDEN / p.stem).found.after_norm_only)
    answers = golden(only)
    with pytest.raises(bv.BigvocabError, match='hidden_states="before-norm": .* needs states from after the norm'):
        bv.evaluate(inputs=answers["after"], labels=answers["labels"], model=GOLDEN / only, hidden_states="before-norm")


def test_only_the_tokens_of_the_tokenizer_count(job, tmp_path):
    folder = shutil.copytree(GOLDEN / "llama", tmp_path / "model")
    vocabulary = {str(i): i for i in range(45)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": [{"id": 46}]}))
    given = job("llama", "after") | {"model": folder}
    np.save(given["labels"], np.minimum(np.load(given["labels"]), 46))
    found = bv.evaluate(**given, num_classes="tokenizer")
    assert found["mean"] == bv.evaluate(**given, num_classes=47)["mean"] != bv.evaluate(**given)["mean"]
    assert found["model"]["num_classes"] == 47
    assert found["model"]["sources"]["num_classes"].endswith("tokenizer.json")


def test_workers_without_rows_tell_nothing_of_the_model(job):
    """Where its states are from is told by rows; what has none agrees with either."""
    given = job("llama", "after")
    states, labels = np.load(given["inputs"]), np.load(given["labels"])
    made = [bv.Evaluator(model=GOLDEN / "llama") for _ in range(4)]
    made[0].update(states[:0], labels[:0])
    made[1].update(states, labels)
    parts = [one.to_bytes() for one in made[:3]]
    for order in (parts, parts[::-1], [parts[1], parts[0], parts[2]]):
        merged = bv.merge(order, rows=len(labels))
        assert values_of(merged) == values_of(made[1].report())
        assert merged["model"] == made[1].report()["model"]
    for one in made[:3]:
        made[3].merge(one)
    assert made[3].report()["model"] == made[1].report()["model"]
    assert made[3].report()["sum"] == made[1].report()["sum"]


def test_labels_that_are_padding_are_noted(job, tmp_path):
    folder = shutil.copytree(GOLDEN / "llama", tmp_path / "model")
    given = job("llama", "after") | {"model": folder}
    states, labels = np.load(given["inputs"]), np.arange(21, 41)
    states = np.concatenate([states, states])[:20]
    np.save(given["inputs"], states)

    def noted(labels, **options):
        np.save(given["labels"], labels)
        report = bv.evaluate(**(given | options))
        evaluator = bv.Evaluator(model=folder)
        evaluator.update(states, labels)
        halves = [tmp_path / "1.state", tmp_path / "2.state"]
        for i, state in enumerate(halves):
            state.unlink(missing_ok=True)
            bv.evaluate(**(given | options), shard=(i + 1, 2), state=state)
        parts = [bv.Evaluator(model=folder) for _ in range(2)]
        for i, part in enumerate(parts):
            part.update(states[10 * i : 10 * i + 10], labels[10 * i : 10 * i + 10])
        reports = [report, bv.merge(halves)]
        if not options:
            reports += [evaluator.report(), bv.merge([part.to_bytes() for part in parts])]
        found = [[n["text"] for n in r.to_dict().get("notes", []) if n["code"] == "padded_labels"] for r in reports]
        assert all(texts == found[0] for texts in found)
        return found[0]

    assert noted(labels) == []  # no tokenizer, nothing to say
    vocabulary = {str(i): i for i in range(39)}
    tokenizer = {"model": {"vocab": vocabulary}, "added_tokens": [{"id": 40}]}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert noted(labels) == []  # 39 has no name, but 40 has one
    beyond = np.concatenate([labels[:-1], [41]])  # in the last row, of the second shard
    (text,) = noted(beyond)
    assert f"{folder}/tokenizer.json does not know: it has 41 tokens, and the other 12 of the 53" in text
    assert noted(beyond, ignore_index=41) == []
    assert noted(beyond, num_classes=42) != []
    (folder / "tokenizer.json").write_text("{")
    assert noted(beyond) == []  # no file that is not needed is an error


def test_padding_of_the_head_is_noted(job, tmp_path):
    folder = shutil.copytree(GOLDEN / "llama_tied", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 50}))
    given = job("llama_tied", "after") | {"model": folder}
    np.save(given["labels"], np.minimum(np.load(given["labels"]), 49))
    report = bv.evaluate(**given)
    notes = [note for note in report["notes"] if note["code"] == "model"]
    assert any("has 53 rows, of which" in note["text"] for note in notes)
    assert report["model"]["num_classes"] == 50


# ---- states, workers, ranges of classes


@pytest.mark.parametrize("states", ["before", "after"])
def test_shards_workers_and_resume_are_one_run(job, tmp_path, states):
    given = job("gemma2", states, rows=500)
    expected = values_of(bv.evaluate(**given))
    assert values_of(bv.evaluate(**given, workers=2)) == expected
    parts = [tmp_path / f"{i}.state" for i in range(3)]
    for i, state in enumerate(parts):
        bv.evaluate(**given, shard=(i + 1, 3), state=state)
    assert values_of(bv.merge(parts)) == expected
    assert values_of(bv.evaluate(**given, shard=(2, 3), state=parts[1], resume=True))["model"] == expected["model"]
    ranges = [tmp_path / f"{i}.classes" for i in range(2)]
    for i, state in enumerate(ranges):
        bv.evaluate(**given, vocab_shard=(i + 1, 2), state=state)
    merged = values_of(bv.merge(ranges))
    assert merged["mean"] == pytest.approx(expected["mean"], rel=1e-7)  # softcaps are in float32
    assert merged["model"] == expected["model"]
    assert merged["accuracy"] == expected["accuracy"]


def test_states_of_the_same_model_elsewhere_merge_and_of_another_do_not(job, tmp_path):
    given = job("gemma2", "after", rows=100)
    copy = shutil.copytree(GOLDEN / "gemma2", tmp_path / "copy")
    other = shutil.copytree(GOLDEN / "gemma2", tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["model.embed_tokens.weight"][0] += 1
    save_file(tensors, other / "model.safetensors")
    for name, model, shard in (("1", GOLDEN / "gemma2", 1), ("2", copy, 2), ("3", other, 2)):
        bv.evaluate(**given | {"model": model}, shard=(shard, 2), state=tmp_path / name)
    assert values_of(bv.merge([tmp_path / "1", tmp_path / "2"])) == values_of(bv.evaluate(**given))
    with pytest.raises(bv.BigvocabError, match="layer files is"):
        bv.merge([tmp_path / "1", tmp_path / "3"])


def test_an_evaluator_with_a_model_is_saved_and_loaded(tmp_path):
    answers = golden("gemma2")
    evaluator = bv.Evaluator(model=GOLDEN / "gemma2", num_classes=52, norm_epsilon=0.01)
    labels = np.minimum(answers["labels"], 51)
    evaluator.update(answers["before"][:6], labels[:6])
    evaluator.save(tmp_path / "a.state")
    loaded = bv.Evaluator.load(tmp_path / "a.state")
    assert loaded.report()["model"]["num_classes"] == 52
    assert loaded.report()["model"]["softcap"] == 30
    for one in (evaluator, loaded):
        one.update(answers["before"][6:], labels[6:])
    assert values_of(loaded.report()) | {"model": 0} == values_of(evaluator.report()) | {"model": 0}
    whole = bv.Evaluator(model=GOLDEN / "gemma2", num_classes=52, norm_epsilon=0.01)
    whole.update(answers["before"], labels)
    assert values_of(whole.report()) == values_of(evaluator.report())


def test_another_kind_of_states_is_another_evaluation():
    answers = golden("llama")
    both = [bv.Evaluator(model=GOLDEN / "llama") for _ in range(2)]
    for one, states in zip(both, ("before", "after"), strict=True):
        one.update(answers[states], answers["labels"])
    with pytest.raises(bv.BigvocabError, match="merge: layer is"):
        both[0].merge(both[1])


def test_a_sampled_loss_takes_the_layer_of_a_model(job):
    given = job("llama", "before", rows=50)
    found = bv.evaluate(**given, loss="sampled-softmax", num_sampled=8, seed=(1, 2), exact=True)
    exact = bv.evaluate(**given)
    assert found["sampled"]["exact_mean"] == pytest.approx(exact["mean"], abs=1e-6)
    with pytest.raises(bv.BigvocabError, match="softcap: goes with"):
        bv.evaluate(**job("gemma2", "before"), loss="nce", num_sampled=8)
