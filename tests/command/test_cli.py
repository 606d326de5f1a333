"""The command `eval` through click's runner: what it prints, what it passes on, and how it fails."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import commands
import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import ALL, CLASSES, ENVIRONMENT, EVAL, ROWS, process, refused, run

import bigvocab
from bigvocab import catalogue
from bigvocab.command.cli import cli
from bigvocab.errors import BigvocabError
from bigvocab.evaluation.row_losses import ROW_LOSSES
from bigvocab.evaluation.sampled_losses import SAMPLED_LOSSES
from bigvocab.jobs import evaluation
from bigvocab.reports.fail_if import check_name, parse_condition


@pytest.fixture
def data(tmp_path, monkeypatch):
    return commands.make_data(tmp_path, monkeypatch)


# ---- help


def test_help_loads_nothing_slow():
    heavy = "{'numpy', 'numba', 'pyarrow', 'rich'}"
    code = f"import sys, bigvocab.command.cli; sys.exit(' '.join({heavy} & set(sys.modules)) or 0)"
    assert process("--help").returncode == 0
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_says_what_there_is():
    for arguments in ((), ("eval",), ("inspect",)):
        for flag in ("--help", "-h"):
            found = run(*arguments, flag)
            assert found.exit_code == 0
            assert max(map(len, found.stdout.splitlines())) <= 80
    assert run("--version").stdout == f"bigvocab {bigvocab.__version__}\n"
    for section in ("Data:", "Columns of the labels:", "Loss:", "Metrics:", "Running:", "Result:", "Examples:"):
        assert section in run("eval", "--help").stdout


def test_every_option_is_a_keyword_of_the_library_and_the_other_way_round():
    keywords = inspect.signature(evaluation.evaluate).parameters
    declared = {parameter.name: parameter for parameter in cli.commands["eval"].params}
    shell = {"form", "quiet", "conditions", "help"}
    later = {"probability_column", "pos_weight", "epsilon"}
    assert set(declared) - set(keywords) - shell <= later
    assert set(keywords) - set(declared) <= {"progress"}
    for name in ("loss", "nonfinite"):
        assert declared[name].default == keywords[name].default
    assert declared["metrics"].default.split(",") == list(catalogue.default_metrics("sparse-softmax"))
    assert declared["top_k"].default == ",".join(map(str, keywords["top_k"].default))
    assert set(ROW_LOSSES) | set(SAMPLED_LOSSES) == set(catalogue.LOSSES)


# ---- eval


def test_eval_prints_a_table(data):
    found = run(*EVAL, *ALL)
    assert (found.exit_code, found.stderr) == (0, "")
    for word in ("loss ", "perplexity ", "accuracy ", "bits per byte ", "g0.x", "sum of weights", "±"):
        assert word in found.stdout
    assert "\x1b" not in found.stdout


def test_eval_prints_json_that_equals_the_library(data):
    found = run(*EVAL, *ALL, "--format", "json", "--top-k", "2,3")
    mine = json.loads(found.stdout)
    columns = {f"{name}_column": name for name in ("weight", "group", "bytes")}
    theirs = bigvocab.evaluate(
        logits="logits.npy", labels="labels.parquet", metrics=catalogue.METRICS, top_k=(2, 3), **columns
    ).to_dict()
    times = ("seconds", "rows_per_second", "bytes_per_second")
    assert {name: mine[name] for name in mine if name not in times} == {
        name: theirs[name] for name in theirs if name not in times
    }
    assert set(mine["accuracy"]) == {"2", "3"}


def test_eval_passes_every_option_on(data, monkeypatch):
    seen = {}

    def evaluate(**given):
        seen.update(given)
        return bigvocab.Report({"loss": "sparse-softmax", "mean": 1.0, "rows": 1})

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    flags = ["--label-column=l", "--ignore-index=-1", "--label-smoothing=0.5", "--class-weights=w.npy", "--softcap=30"]
    flags += ["--logit-scale=2", "--num-classes=5", "--metrics=", "--nonfinite=skip", "--chunk-rows=3", "--threads=2"]
    flags += [
        "--max-memory=64M",
        "--output=o",
        "--report=r",
        "--vocab-shards",
        "--shape=-1,5",
        "--dtype=<f4",
        "--offset=8",
    ]
    found = run("eval", "--logits", "a", "--logits", "b", "--labels", "c", *flags)
    assert found.exit_code == 0, found.stderr
    seen.pop("progress")
    assert seen == {
        "logits": ["a", "b"], "labels": "c", "label_column": "l", "ignore_index": -1, "label_smoothing": 0.5,
        "class_weights": "w.npy", "softcap": 30.0, "logit_scale": 2.0, "num_classes": 5, "metrics": (), "top_k": (1, 5),
        "nonfinite": "skip", "chunk_rows": 3, "threads": 2, "max_memory": "64M", "output": "o", "report": "r",
        "vocab_shards": True, "shape": "-1,5", "dtype": "<f4", "offset": 8, "loss": "sparse-softmax",
    }  # fmt: skip
    seen.clear()
    run("eval", "--logits", "a", "--labels", "c", "--ignore-index", "0", "--label-smoothing", "0", "--pos-weight", "3",
        "--loss", "sparse-sigmoid")  # fmt: skip
    assert not seen  # label smoothing goes with other losses
    run("eval", "--inputs", "a", "--weights", "w", "--biases", "b", "--labels", "c", "--ignore-index", "0")
    assert (seen["inputs"], seen["weights"], seen["biases"], seen["ignore_index"]) == ("a", "w", "b", 0)
    assert "logits" not in seen
    for text, value in (("3", 3.0), ("w.npy", "w.npy")):
        run("eval", "--logits", "a", "--labels", "c", "--loss", "weighted-sigmoid", "--pos-weight", text)
        assert seen["pos_weight"] == value


def test_eval_reads_raw_binary_and_several_files(data):
    logits = np.load("logits.npy")
    logits.astype(ml_dtypes.bfloat16).tofile("raw.bin")
    np.save("part-1.npy", logits[:15])
    np.save("part-10.npy", logits[15:])
    raw = run(
        "eval", "--logits", "raw.bin", "--shape", f"{ROWS},{CLASSES}", "--dtype", "bfloat16", "--labels", "labels.npy"
    )
    assert "bfloat16" in raw.stdout
    for logits in (["part-*.npy"], ["part-1.npy", "part-10.npy"]):
        flags = [word for path in logits for word in ("--logits", path)]
        found = run("eval", *flags, "--labels", "labels.npy", "--format", "json")
        whole = run("eval", "--logits", "logits.npy", "--labels", "labels.npy", "--format", "json")
        assert json.loads(found.stdout)["sum"] == json.loads(whole.stdout)["sum"]


def test_eval_writes_output_and_report(data):
    found = run(*EVAL, "--output", "losses.parquet", "--report", "report.json", "--format", "json")
    assert pq.read_table("losses.parquet").num_rows == ROWS
    report = json.loads(Path("report.json").read_text())
    assert report == json.loads(found.stdout)
    assert report["inputs"] == [
        {"path": path, "shape": shape, "dtype": dtype, "bytes": os.path.getsize(path)}
        for path, shape, dtype in (
            ("logits.npy", [ROWS, CLASSES], "float32"),
            ("labels.parquet", [ROWS], "int64"),
        )
    ]


# ---- what is wrong with the command: 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--labels", "l"], ["--logits"]),
        (["--logits", "a"], ["--labels"]),
        (["--logits", "a", "--inputs", "b", "--weights", "c", "--labels", "l"], ["--logits", "--inputs"]),
        (["--inputs", "b", "--labels", "l"], ["--weights"]),
        (["--logits", "a", "--weights", "b", "--labels", "l"], ["--weights", "--inputs"]),
        (["--logits", "a", "--biases", "b", "--labels", "l"], ["--biases", "--inputs"]),
        ([*EVAL[1:], "--final-norm", "rms"], ["--final-norm", "--inputs"]),
        (["--inputs", "a", "--weights", "b", "--labels", "l", "--norm-bias", "c"], ["--norm-bias", "--final-norm"]),
        ([*EVAL[1:], "--shape", "3,4"], ["--dtype"]),
        ([*EVAL[1:], "--shape", "3,x", "--dtype", "float32"], ["--shape", "3,x"]),
        ([*EVAL[1:], "--shape", "3,4", "--dtype", "int8"], ["--dtype", "int8"]),
        ([*EVAL[1:], "--offset", "3"], ["--offset", "--shape"]),
        ([*EVAL[1:], "--loss", "hinge"], ["--loss", "hinge"]),
        ([*EVAL[1:], "--loss", "weighted-sigmoid"], ["--pos-weight"]),
        ([*EVAL[1:], "--epsilon", "1e-6"], ["--epsilon", "log-loss"]),
        (["--inputs", "a", "--weights", "b", "--labels", "l", "--loss", "log-loss"], ["log-loss", "--inputs"]),
        ([*EVAL[1:], "--vocab-shard", "1/2"], ["--vocab-shard", "--state"]),
        ([*EVAL[1:], "--pos-weight", "2"], ["--pos-weight", "sparse-softmax"]),
        ([*EVAL[1:], "--label-smoothing", "1.5"], ["--label-smoothing", "1.5"]),
        ([*EVAL[1:], "--label-smoothing", "nan"], ["--label-smoothing", "nan"]),
        ([*EVAL[1:], "--softcap", "0"], ["--softcap"]),
        ([*EVAL[1:], "--logit-scale", "inf"], ["--logit-scale", "inf"]),
        ([*EVAL[1:], "--metrics", "rank,bleu"], ["--metrics", "bleu"]),
        ([*EVAL[1:], "--top-k", "1,0"], ["--top-k", "1,0"]),
        ([*EVAL[1:], "--top-k", "5", "--metrics", "rank"], ["--top-k", "accuracy"]),
        ([*EVAL[1:], "--chunk-rows", "0"], ["--chunk-rows"]),
        ([*EVAL[1:], "--max-memory", "lots"], ["--max-memory", "lots"]),
        ([*EVAL[1:], "--nonfinite", "drop"], ["--nonfinite"]),
        ([*EVAL[1:], "--output", "x", "--report", "x"], ["--output", "--report"]),
        ([*EVAL[1:], "more.npy"], ["more.npy", "quoted"]),
        ([*EVAL[1:], "--no-such-option"], ["--no-such-option"]),
        ([*EVAL[1:], "--fail-if", "perplexity"], ["--fail-if", "perplexity"]),
        ([*EVAL[1:], "--fail-if", "mean > nan"], ["--fail-if", "nan"]),
        ([*EVAL[1:], "--fail-if", "perplexty > 3"], ["--fail-if", "did you mean perplexity"]),
        ([*EVAL[1:], "--fail-if", "accuracy.3 > 0"], ["accuracy.3"]),
        ([*EVAL[1:], "--fail-if", "accuracy > 0"], ["accuracy.1"]),
        ([*EVAL[1:], "--fail-if", "entropy > 0"], ["entropy in --metrics"]),
        ([*EVAL[1:], "--fail-if", "bits_per_byte > 0"], ["--bytes-column"]),
        ([*EVAL[1:], "--fail-if", "groups.x.mean > 0"], ["--group-column"]),
        ([*EVAL[1:], "--group-column", "group", "--fail-if", "groups.x.size > 0"], ["groups.NAME."]),
        ([*EVAL[1:], "--loss", "sigmoid", "--fail-if", "perplexity > 0"], ["perplexity"]),
        ([*EVAL[1:], "--fail-if", "loss == 3"], ["loss"]),
    ],
)
def test_a_wrong_command_exits_2(data, arguments, words):
    refused(run("eval", *arguments), 2, *words)


def test_a_wrong_condition_is_known_before_any_work(data, monkeypatch):
    monkeypatch.setattr(evaluation, "evaluate", lambda **given: pytest.fail("work was begun"))
    refused(run(*EVAL, "--fail-if", "perplexty > 3"), 2)


def test_an_unknown_command_exits_2():
    assert run("evaluate").exit_code == 2
    assert run("inspect").exit_code == 2
    assert run("inspect", "x", "--shape", "3,4").exit_code == 2


# ---- what is wrong with the data: 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--logits", "none.npy"], ["none.npy"]),
        (["--logits", "no*.npy"], ["no*.npy"]),
        (["--labels", "none.parquet"], ["none.parquet"]),
        (["--logits", "labels.npy"], ["labels.npy", "int64"]),
        (["--labels", "short.npy"], ["short.npy", "3", str(ROWS)]),
        (["--labels", "wrong.npy"], ["wrong.npy", "row 5", "99"]),
        (["--labels", "text.npy"], ["text.npy"]),
        (["--logits", "broken.npy"], ["broken.npy"]),
        (["--logits", "nan.npy"], ["nan.npy", "row 7", "NaN"]),
        (["--label-column", "token"], ["token", "group"]),
        (["--label-column", "group"], ["group", "string"]),
        (["--class-weights", "few.npy"], ["--class-weights", "(3,)"]),
        (["--output", "none/losses.parquet"], ["none/losses.parquet"]),
        (["--report", "none/report.json"], ["none/report.json"]),
        (["--num-classes", "12"], ["--num-classes", "12"]),
    ],
)
def test_wrong_data_exits_1_with_one_line_and_no_output(data, arguments, words):
    np.save("short.npy", np.arange(3))
    np.save("few.npy", np.ones(3))
    np.save("wrong.npy", np.where(np.arange(ROWS) == 5, 99, 0))
    np.save("text.npy", np.full(ROWS, "a"))
    logits = np.load("logits.npy")
    Path("broken.npy").write_bytes(Path("logits.npy").read_bytes()[:500])
    logits[7, 3] = np.nan
    np.save("nan.npy", logits)
    chosen = dict(zip(EVAL[1::2], EVAL[2::2], strict=True)) | {"--output": "out.parquet", "--report": "out.json"}
    chosen |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    before = sorted(os.listdir())
    refused(run("eval", *[word for pair in chosen.items() for word in pair]), 1, *words)
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (BigvocabError("logits: row 3\nis \x1b[31mred"), 1, r"bigvocab: error: logits: row 3 is \x1b[31mred"),
        (TypeError("labels: expected integers"), 1, "bigvocab: error: labels: expected integers"),
        (
            OSError(28, "No space left on device", "out.parquet"),
            1,
            "bigvocab: error: out.parquet: No space left on device",
        ),
        (OSError("odd"), 1, "bigvocab: error: odd"),
        (
            MemoryError(),
            1,
            "bigvocab: error: out of memory; --max-memory, --chunk-rows and --threads bound what is used",
        ),
        (KeyboardInterrupt(), 1, "bigvocab: interrupted"),
    ],
)
def test_what_the_work_raises_becomes_one_line(data, monkeypatch, error, code, line):
    def evaluate(**given):
        raise error

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    found = run(*EVAL)
    assert (found.exit_code, found.stdout, found.stderr) == (code, "", line + "\n")


def test_a_bug_keeps_its_traceback(data, monkeypatch):
    def evaluate(**given):
        raise KeyError("a bug")

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    assert isinstance(run(*EVAL).exception, KeyError)


# ---- --fail-if: 3


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("perplexity > 1", True),
        ("perplexity>1", True),
        ("perplexity < 1", False),
        ("perplexity <= 1", False),
        ("rows > 40", False),
        ("rows < 40", False),
        ("rows == 40", True),
        ("rows != 40", False),
        ("rows >= 4e1", True),
        ("accuracy.1 < 1.1", True),
        ("logsumexp.max < -10", False),
        ("groups.g0.x.mean > 0", True),
        ("bits_per_byte > 1,000", False),
        ("reductions.sum > 0", True),
        ("mean < inf", True),
    ],
)
def test_fail_if_exits_3_where_it_holds(data, condition, holds):
    found = run(*EVAL, *ALL, "--report", "report.json", "--quiet", "--fail-if", condition)
    assert found.exit_code == (3 if holds else 0)
    assert "perplexity" in found.stdout
    assert Path("report.json").exists()
    report = json.loads(Path("report.json").read_text())
    if condition == "accuracy.1 < 1.1":
        value = report["accuracy"]["1"]
        assert found.stderr == f"bigvocab: failed: accuracy.1 < 1.1: accuracy.1 is {value!r}\n"
    elif not holds:
        assert found.stderr == ""


def test_fail_if_names_every_condition_that_holds(data):
    found = run(*EVAL, "--fail-if", "mean > 0", "--fail-if", "mean < 0", "--fail-if", "rows > 3")
    assert found.exit_code == 3
    assert [line.split(":")[2].strip() for line in found.stderr.splitlines()] == ["mean > 0", "rows > 3"]


def test_nan_passes_no_condition(data, monkeypatch):
    values = {"loss": "sparse-softmax", "mean": float("nan"), "rows": 0}
    monkeypatch.setattr(evaluation, "evaluate", lambda **given: bigvocab.Report(values))
    for condition in ("mean > 4", "mean < 4", "mean != 4"):
        found = run(*EVAL, "--fail-if", condition)
        assert found.exit_code == 3
        assert "nan" in found.stderr


def test_a_value_that_turns_out_to_be_missing_exits_2_after_the_report(data):
    found = run(*EVAL, "--group-column", "group", "--fail-if", "groups.Ruth.mean > 3", "--fail-if", "rows > 3")
    assert found.exit_code == 2
    assert "perplexity" in found.stdout
    assert "'groups.Ruth.mean'" in found.stderr
    assert "rows is 40" in found.stderr


def test_conditions_know_every_value_of_a_report(data):
    values = json.loads(run(*EVAL, *ALL, "--format", "json").stdout)

    def names(value, prefix=""):
        for key, item in value.items():
            if isinstance(item, dict):
                yield from names(item, f"{prefix}{key}.")
            elif isinstance(item, int | float) and key != "schema_version":
                yield prefix + key

    found = list(names(values))
    assert len(found) > 30
    for name in found:
        check_name(name, "sparse-softmax", catalogue.METRICS, (1, 5), ("group", "bytes"))


@pytest.mark.parametrize(
    "text", ["", "mean", "> 3", "mean >", "mean > x", "mean = 3", "mean => 3", "mean > 3 4", "3 < mean"]
)
def test_a_condition_has_a_name_a_sign_and_a_number(text):
    with pytest.raises(BigvocabError, match="expected a name"):
        parse_condition(text)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--chunk-rows", "-4", "-4 is not in the range x>=1"),
        ("--label-smoothing", "3", "3.0 is not in the range 0<=x<=1"),
        ("--threads", "0", "0 is not in the range x>=1"),
    ],
)
def test_a_number_out_of_range_is_told_the_range(data, option, value, said):
    refused(run(*EVAL, option, value), 2, option, said)
    assert "x>=" not in run("eval", "--help").stdout


@pytest.mark.parametrize(
    ("limit", "code"), [("600,5", 2), ("0,03", 2), ("1,000", 0), ("1,000.5", 0), ("1,00,000", 2), ("-1,000", 3)]
)
def test_commas_stand_between_thousands_alone(data, limit, code):
    """A decimal comma would move the limit by a power of ten."""
    assert run(*EVAL, "--fail-if", f"mean > {limit}").exit_code == code


@pytest.mark.parametrize("option", ["--output", "--report", "--state", "--label-logits"])
def test_logits_of_labels_are_written_alone(data, option):
    slices = ("--first-class", "0", "--num-classes", str(CLASSES), "--save-label-logits", "l.arrow")
    refused(run(*EVAL, *slices, option, "x"), 2, "--save-label-logits", option)
    assert not Path("x").exists()


@pytest.mark.parametrize(
    ("loss", "condition"), [("sigmoid", "sampled.bias > 1"), ("sigmoid", "entropy > 1"), ("log-loss", "mean_rank > 0")]
)
def test_no_advice_that_would_be_refused(data, loss, condition):
    refused(run(*EVAL, "--loss", loss, "--fail-if", condition), 2, "the report has no value named")


def test_columns_of_users_are_not_taken_for_options(data):
    pq.write_table(pa.table({"num_true": [1.0], "top_k": ["a"]}), "odd.parquet")
    refused(
        run("eval", "--logits", "logits.npy", "--labels", "odd.parquet"), 1, "'num_true' (double), 'top_k' (string)"
    )


def test_files_of_a_state_are_never_someone_elses(data):
    before = Path("labels.npy").read_bytes()
    for name in ("s.lines", "s.lock"):
        Path(name).write_bytes(before)
        command = ("eval", "--logits", "logits.npy", "--labels", name, "--state", "s", "--output", "out.parquet")
        refused(run(*command), 1, name, "is one of the files that are read")
        refused(run(*EVAL, "--state", "s", "--output", "out.parquet"), 1, name, "is no state of this program")
        assert Path(name).read_bytes() == before
        Path(name).unlink()
        refused(run(*EVAL, "--state", "s", "--output", name), 1, name, "state")
    assert run(*EVAL, "--state", "s", "--output", "out.parquet").exit_code == 0


def test_reports_never_overwrite_label_logits(data):
    slices = ("--first-class", "0", "--num-classes", str(CLASSES))
    assert run(*EVAL, *slices, "--save-label-logits", "l.arrow").exit_code == 0
    before = Path("l.arrow").read_bytes()
    command = (*EVAL, *slices, "--label-logits", "l.arrow", "--state", "s")
    refused(run(*command, "--report", "l.arrow"), 1, "l.arrow", "is one of the files that are read")
    assert Path("l.arrow").read_bytes() == before


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--class-weights", "none.npy", ["none.npy: cannot be read: No such file"]),
        ("--class-weights", "none.txt", ["none.txt"]),
        ("--class-weights", "logits.npy", ["logits.npy: got shape (40, 11), expected one number for each class"]),
    ],
)
def test_vectors_that_cannot_be_read(data, option, value, words):
    refused(run(*EVAL, option, value), 1, *words)


def test_messages_name_an_option_once(data):
    found = run(*EVAL, "--max-memory", "lots").stderr
    assert "max_memory" not in found


@pytest.mark.parametrize("seed", ["99999999999999999999,1", "1,-99999999999999999999"])
def test_numbers_past_any_range_are_a_wrong_command(data, seed):
    sample = ("sample", "--num-sampled", "3", "--range-max", "9", "--output", "c.arrow")
    refused(run(*sample, "--seed", seed), 2, "--seed")
    refused(run(*sample, "--step", 1 << 60), 2, "--step")
    refused(run("sample", "--num-sampled", 1 << 40, "--range-max", "9", "--output", "c.arrow"), 2, "--num-sampled")


def test_files_beside_a_state_without_lines_are_left_alone(data):
    Path("s.lines").write_text("hello")
    assert run(*EVAL, "--state", "s").exit_code == 0
    assert Path("s.lines").read_text() == "hello"


def test_outputs_that_cannot_be_written_are_known_before_any_work(data):
    Path("nowhere.json").symlink_to("none/x")
    os.mkfifo("pipe")
    before = sorted(os.listdir())
    refused(run(*EVAL, "--report", "nowhere.json", "--output", "o.parquet"), 1, "nowhere.json: cannot be written")
    refused(run(*EVAL, "--state", "s", "--output", "nowhere.json"), 1, "nowhere.json: cannot be written")
    refused(run(*EVAL, "--state", "s", "--output", "pipe"), 1, "pipe: is a pipe or a device")
    assert sorted(os.listdir()) == before


def test_a_link_to_itself_a_folder_and_a_file_that_is_read_only_are_no_outputs(data, monkeypatch):
    Path("loop").symlink_to("loop")
    Path("folder").mkdir()
    Path("kept").write_text("kept")
    cases = {
        "loop": "loop: cannot be written: a link that leads back to itself",
        "folder": "folder: is a folder, expected a file to write",
        "kept": "kept: cannot be written: the file there is read-only",
    }
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "kept" and access(path, mode))  # root may
    cases["x" * 300] = "cannot be written: File name too long"
    before = sorted(os.listdir())
    for name, message in cases.items():
        for option in ("--output", "--report"):
            refused(run(*EVAL, option, name), 1, message)
    assert sorted(os.listdir()) == before
    assert Path("loop").is_symlink()


def test_a_file_that_is_replaced_keeps_its_rights(data):
    for name, rights in (("o.parquet", 0o600), ("r.json", 0o640)):
        Path(name).touch()
        Path(name).chmod(rights)
    assert run(*EVAL, "--output", "o.parquet", "--report", "r.json").exit_code == 0
    assert Path("o.parquet").stat().st_mode & 0o777 == 0o600
    assert Path("r.json").stat().st_mode & 0o777 == 0o640
    assert Path("r.json").stat().st_size > 100


def test_files_whose_names_are_no_text(data):
    """Linux has names of any bytes."""
    odd = "odd\udcff"
    try:
        os.rename("logits.npy", f"{odd}.npy")
    except OSError:
        pytest.skip("names must be text here")
    table = pa.table({"label": np.load("labels.npy")})
    pq.write_table(table, pa.OSFile(os.fsencode(f"{odd}.parquet"), "wb"))
    with pa.OSFile(os.fsencode(f"{odd}.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    for suffix in ("parquet", "arrow"):
        job = ("eval", "--logits", f"{odd}.npy", "--labels", f"{odd}.{suffix}", "--state", f"{odd}.{suffix}.state")
        done = run(*job, "--output", f"{odd}.out", "--report", f"{odd}.json")
        assert done.exit_code == 0, done.output
        assert run("merge", f"{odd}.{suffix}.state").exit_code == 0
        assert pq.read_table(pa.OSFile(os.fsencode(f"{odd}.out"))).num_rows == len(table)
        os.remove(f"{odd}.out")


def test_files_named_as_keywords_are_not_taken_for_options(data):
    refused(run("eval", "--logits", "top_k", "--labels", "labels.npy"), 1, "error: top_k: cannot open: No such file")
    refused(run("eval", "--logits", "logits.npy", "--labels", "top_k"), 1, "error: top_k: cannot be read: No such")


def test_values_in_messages_are_those_of_options(data):
    logits = np.load("logits.npy").astype(np.float32)
    logits[3, 2] = np.nan
    np.save("nan.npy", logits)
    refused(run("eval", "--logits", "nan.npy", "--labels", "labels.npy"), 1, "(--nonfinite skip leaves such rows out")


def test_a_weight_that_is_too_large_is_named(data):
    weights = np.ones(ROWS)
    weights[2] = 1.7e308
    table = pa.table({"label": np.load("labels.npy"), "w": weights})
    pq.write_table(table, "heavy.parquet")
    given = ("eval", "--logits", "logits.npy", "--labels", "heavy.parquet", "--weight-column", "w")
    refused(run(*given), 1, "the weight of row 2, 1.7e+308, times its loss is past the largest float64")
