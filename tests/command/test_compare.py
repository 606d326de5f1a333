"""The command `compare`: what it prints, what it passes on, and how it fails; in this process and as one of its own."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
from commands import process, refused, run
from comparisons import layers, write_pair

import bigvocab as bv
from bigvocab.command.cli import cli
from bigvocab.command.comparison_options import split_name

LLAMA = Path(__file__).parents[1] / "data/llama/kjv-751"
TWO = ("--reference", "q8.npy", "--candidate", "q4.npy")
COMPARE = ("compare", "--reference", "reference-*.npy", "--candidate", "q8=q8.npy", "--candidate", "q4=q4.npy")
ALL = (*COMPARE, "--labels", "labels.parquet", "--group-column", "group", "--cluster-column", "document")


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_pair(tmp_path)


def test_every_option_is_a_keyword_of_the_library_and_the_other_way_round():
    keywords = inspect.signature(bv.compare).parameters
    declared = {parameter.name: parameter for parameter in cli.commands["compare"].params}
    assert set(declared) - {"form", "quiet", "conditions", "help"} == set(keywords) - {"progress"}
    assert declared["nonfinite"].default == keywords["nonfinite"].default
    assert declared["top_k"].default == ",".join(map(str, keywords["top_k"].default))


def test_help_fits_and_hides_nothing_that_is_needed():
    found = run("compare", "--help").stdout
    for word in ("--reference-weights", "--candidate-inputs", "--llama-cpp", "--cluster-column", "[NAME=]PATH"):
        assert word in found
    assert max(map(len, found.splitlines())) <= 88  # of examples


def test_the_table_has_a_line_per_candidate_best_first(data):
    found = run(*ALL)
    assert (found.exit_code, found.stderr) == (0, "")
    lines = [line.split() for line in found.stdout.splitlines()]
    ranked = [line[0] for line in lines if line and line[0] in ("q8", "q4") and "±" in line]
    assert ranked[:2] == ["q8", "q4"]
    for word in ("reference ", "its ratio", "mean KL", "99.9%", "q8 is nearer to the reference than q4", "13 clusters"):
        assert word in found.stdout


def test_json_is_the_report_of_the_library(data):
    found = json.loads(run(*ALL, "--format", "json").stdout)
    report = bv.compare(
        reference="reference-*.npy", candidate={"q8": "q8.npy", "q4": "q4.npy"}, labels="labels.parquet",
        group_column="group", cluster_column="document",
    )  # fmt: skip
    expected = json.loads(report.to_json())
    for name in ("candidates", "between", "rows", "clusters"):
        assert found[name] == expected[name]


def test_labels_that_mark_ignored_rows(data):
    labels = np.arange(260) % 150
    labels[::9], labels[5] = -100, -1
    np.save("marked.npy", labels)
    job = ("compare", *TWO, "--labels", "marked.npy", "--format", "json")
    refused(run(*job), 1, "marked.npy: row 0 is -100", "--ignore-index -100")
    values = json.loads(run(*job, "--ignore-index", "-100", "--ignore-index", "-1").stdout)
    assert (values["rows"], values["ignored_rows"]) == (230, 30)
    refused(run(*job, "--ignore-index", "-100"), 1, "marked.npy: row 5 is -1")


def test_layers_with_names(data):
    states, layer, rounded, labels = layers()
    for name, array in (("h", states), ("w", layer), ("r", rounded), ("y", labels)):
        np.save(f"{name}.npy", array)
    found = run("compare", "--inputs", "h.npy", "--reference-weights", "w.npy", "--candidate-weights", "r=r.npy",
                "--candidate-weights", "same=w.npy", "--labels", "y.npy", "--candidate-logit-scale", "same=0.5",
                "--metrics", "tops", "--format", "json")  # fmt: skip
    assert found.exit_code == 0, found.output
    values = json.loads(found.stdout)["candidates"]
    expected = bv.compare(inputs=states, reference_weights=layer, candidate_weights=layer, candidate_logit_scale=0.5)
    assert values["same"]["kl"]["mean"] == expected["kl"]["mean"]
    assert list(values) == ["r", "same"]


def test_printed_tables_of_llama_cpp(data):
    with np.load(LLAMA / "logits.npz") as file:
        np.save("live.npy", file["candidate"])
    found = run("compare", "--reference", LLAMA / "base.kld", "--candidate", "live.npy", "--llama-cpp")
    printed = (LLAMA / "printed.txt").read_text()
    for line in printed[printed.index("====== Perp") :].strip().splitlines():
        assert line.rstrip() in found.stdout
    both = run("compare", "--reference", LLAMA / "base.kld", "--candidate", LLAMA / "candidate.kld", "--llama-cpp")
    assert "the printed table needs the candidate's live logits" in " ".join(both.stdout.split())


def test_outputs_states_and_merge(data):
    first = run(*ALL, "--shard", "1/2", "--state", "1.state", "--output", "1.parquet", "-q")
    second = run(*ALL, "--shard", "2/2", "--state", "2.state", "--report", "2.json", "-q")
    assert (first.exit_code, second.exit_code) == (0, 0)
    merged = run("merge", "2.state", "1.state", "--format", "json", "--fail-if", "candidates.q4.kl.mean > 0.001")
    assert merged.exit_code == 3
    whole = json.loads(run(*ALL, "--format", "json").stdout)
    assert json.loads(merged.stdout)["candidates"] == whole["candidates"]
    assert "q4" in run("merge", "1.state", "2.state").stdout
    refused(run("merge", "1.state", "2.state", "--output", "x.parquet"), 1, "1.state")


def test_a_note_for_one_file_twice(data):
    found = run("compare", "--reference", "q8.npy", "--candidate", "q8.npy")
    assert found.exit_code == 0
    assert "bigvocab: note: q8.npy is the reference and candidate too" in found.stderr
    assert run("compare", "--reference", "q8.npy", "--candidate", "q8.npy", "-q").stderr == ""


@pytest.mark.parametrize(
    ("condition", "code"),
    [("candidates.q4.kl.mean > 0.001", 3), ("candidates.q8.kl.max > 1", 0), ("candidates.q4.flips.to_wrong >= 0", 3),
     ("candidates.q4.groups.b.c.kl > 0", 3), ("rows < 300", 3), ("clusters.count != 13", 0)],
)  # fmt: skip
def test_fail_if(data, condition, code):
    assert run(*ALL, "--fail-if", condition).exit_code == code


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("kl.mean > 1", "did you mean candidates.q8.kl.mean"),
        ("candidates.q8.kl.meen > 1", "candidates.q8.kl.mean"),
        ("candidates.q9.kl.mean > 1", "the report has no value named"),
        ("candidates.q8.entropy_reference.mean > 1", "needs entropy in --metrics"),
        ("candidates.q8.llama_cpp.mean_kld.value > 1", "needs --llama-cpp"),
        ("candidates.q8.groups.a.perplexity > 1", "expected groups.NAME.rows|kl"),
    ],
)
def test_conditions_on_values_that_there_will_not_be(data, condition, words):
    found = run(*ALL, "--fail-if", condition)
    assert found.exit_code == 2
    assert words in " ".join(found.stderr.split())
    found = run(*COMPARE, "--fail-if", "candidates.q8.difference.mean > 1")
    assert "needs --labels" in " ".join(found.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--reference", "q8.npy"), "'--candidate' expected one"),
        (("--candidate", "q8.npy"), "'--reference' expected it"),
        (("--reference", "q8.npy", "--candidate", "a=q8.npy", "--candidate", "a=q4.npy"), "'a' is named twice"),
        (("--reference", "q8.npy", "--candidate", "q8.npy", "--candidate", "q4.npy"), "several need names"),
        (("--reference", "q8.npy", "--candidate", "q8.npy", "--candidate", "b=q4.npy"), "has no name, but others have"),
        (("--reference", "q8.npy", "--candidate", "a="), "expected a value after the ="),
        (("--reference", "q8.npy", "--candidate", "reference=q8.npy"), "got the name 'reference'"),
        (("--reference", "q8.npy", "--candidate", "q4.npy", "--weight-column", "w"), "goes with no comparison"),
        (("--reference", "q8.npy", "--candidate", "q4.npy", "--vocab-shard", "1/2"), "goes with no comparison"),
        (("--reference", "q8.npy", "--candidate", "q4.npy", "--top-k", "3"), "needs overlap in '--metrics'"),
        (("--reference", "q8.npy", "--candidate", "q4.npy", "--metrics", "kl,loss"), "'loss' is not one of kl,"),
        (("--reference", "q8.npy", "--candidate", "q4.npy", "extra.npy"), "a glob must be quoted"),
        (("--reference", "q8.npy", "--candidate-inputs", "q4.npy"), "needs '--candidate-weights'"),
        (("--reference", "q8.npy", "--candidate", "q4.npy", "--cluster-column", "d"), "needs '--labels'"),
        (("--reference", "q8.npy", "--candidate", "q4.npy", "--resume"), "'--resume' needs '--state'"),
        (("--reference", "q8.npy", "--candidate", "q4.npy", "--shape", "3,4"), "needs '--dtype'"),
        (("--reference", "q8.npy", "--candidate", "q4.npy", "--candidate-softcap", "x=-1"), "--candidate-softcap"),
        ((*TWO, "--inputs", "q4.npy"), "'--inputs' belongs to hidden states, but all sides have logits"),
        ((*TWO, "--layer", "3"), "'--layer' belongs to hidden states"),
        ((*TWO, "--dtype", "float9"), "'--dtype': got 'float9'"),
        ((*TWO, "--reference-dtype", "float9"), "'--reference-dtype': got 'float9'"),
        ((*TWO, "--candidate-dtype", "float9"), "'--candidate-dtype': got 'float9'"),
        ((*TWO[:3], "a=q4.npy", "--candidate-dtype", "a=float9"), "'--candidate-dtype': got"),
        ((*TWO, "--reference-dtype", "float32", "--reference-shape", "3;4"), "'--reference-shape'"),
    ],
)
def test_a_wrong_command_exits_2(data, arguments, words):
    found = run("compare", *arguments)
    assert found.exit_code == 2, found.output
    assert found.stdout == ""
    assert words in " ".join(found.stderr.split())


def test_wrong_data_exits_1_with_one_line(data):
    refused(run("compare", "--reference", "q8.npy", "--candidate", "none.npy"), 1, "none.npy")
    np.save("few.npy", np.zeros((3, 150), np.float32))
    refused(run("compare", "--reference", "q8.npy", "--candidate", "few.npy"), 1, "few.npy: 3 rows, but q8.npy has 260")
    refused(run("compare", "--reference", "q8.npy", "--candidate", LLAMA / "too_few_tokens.kld"), 1, "too few tokens")
    refused(run("compare", "--reference", "q8.npy", "--candidate", "q4.npy", "--llama-cpp"), 1, "--llama-cpp: needs")
    narrow = ("compare", "--reference", "q8.npy", "--candidate", "narrow.npy")
    np.save("narrow.npy", np.zeros((260, 149), np.float32))
    refused(run(*narrow), 1, "149 classes, but q8.npy has 150", "--num-classes")
    assert run(*narrow, "--num-classes", "149").exit_code == 0


def test_names_and_paths_with_an_equals_sign(data):
    assert split_name("q8=a.npy") == ("q8", "a.npy")
    assert split_name("runs/lr=3/a.npy") == (None, "runs/lr=3/a.npy")
    assert split_name("q8=runs/lr=3.npy") == ("q8", "runs/lr=3.npy")
    Path("q8.npy").rename("lr=3.npy")
    assert split_name("lr=3.npy") == (None, "lr=3.npy")
    assert run("compare", "--reference", "q4.npy", "--candidate", "lr=3.npy").exit_code == 0


def test_the_command_as_a_process(data):
    done = process(*ALL, "--format", "json", "--output", "rows.parquet", "--html", "page.html", "--fail-if",
                   "candidates.q4.kl.mean > 0.001")  # fmt: skip
    assert done.returncode == 3
    assert json.loads(done.stdout)["candidates"]["q8"]["kl"]["mean"] > 0
    assert "failed: candidates.q4.kl.mean > 0.001" in done.stderr
    assert Path("rows.parquet").exists()
    assert "q4" in Path("page.html").read_text()
    shown = process("inspect", LLAMA / "base.kld")
    assert "llama.cpp" in shown.stdout
