"""`--html` and `bigvocab page`, new names of --fail-if, and the options of what one number hides, as a process."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import ALL, EVAL, make_data, process, refused, run

import bigvocab
from bigvocab.errors import BigvocabError
from bigvocab.reports.fail_if import check_name


@pytest.fixture
def data(tmp_path, monkeypatch):
    return make_data(tmp_path, monkeypatch)


def without_times(page):
    times = (" s<", "rows/s", "B/s", "bytes/s", "seconds", "_per_second")
    return [line for line in page.splitlines() if not any(word in line for word in times)]


def test_eval_merge_and_page_make_the_same_page(data):
    options = [*EVAL, *ALL, "--text-column", "group", "--cluster-column", "group"]
    assert run(*options, "--html", "whole.html", "--report", "report.json").exit_code == 0
    page = Path("whole.html").read_text()
    assert page.startswith("<!doctype html>")
    assert page.count("<svg") >= 4
    assert "metrics" in page
    for i in (1, 2):
        assert run(*options, "--shard", f"{i}/2", "--state", f"{i}.state", "-q").exit_code == 0
    assert run("merge", "1.state", "2.state", "--html", "merged.html").exit_code == 0
    assert without_times(Path("merged.html").read_text()) == without_times(page)
    assert run("page", "report.json", "--html", "again.html").exit_code == 0
    assert Path("again.html").read_text().count("<svg") == page.count("<svg")


def test_a_process_makes_a_page(data):
    np.save("logits.npy", np.load("logits.npy") * 2)
    done = process(*EVAL, "--html", "page.html", "--metrics", "calibration,accuracy,rank")
    assert (done.returncode, done.stderr) == (0, "")
    assert "calibration" in done.stdout
    assert Path("page.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ("report.json: is no JSON",)),
        ("{", ("report.json: is no JSON",)),
        ('{"mean": NaN}', ("is no JSON", "NaN")),
        ("[" * 100_000, ("nested too deep",)),
        ("[1]", ("report.json: report: got [1], expected an object of named values",)),
        ("{}", ("schema_version: got None",)),
        ('{"schema_version": 99}', ("of a newer bigvocab",)),
        ('{"schema_version": 1, "loss": "softmax", "mean": "<b>", "rows": 2}', ("mean: got '<b>'",)),
    ],
)
def test_broken_reports_are_refused_in_one_line(data, content, words):
    Path("report.json").write_text(content)
    refused(run("page", "report.json", "--html", "page.html"), 1, *words)
    assert not Path("page.html").exists()


def test_pages_that_cannot_be_written(data):
    for path in ("missing/page.html", "."):
        refused(run(*EVAL, "--html", path, "--report", "report.json"), 1)
        assert not Path("report.json").exists()
    assert run(*EVAL, "--report", "report.json", "-q").exit_code == 0
    refused(run("page", "report.json", "--html", "missing/page.html"), 1, "missing/page.html: cannot be written")
    refused(run("page", "none.json", "--html", "page.html"), 1, "none.json: cannot be read")
    refused(run("page", "report.json", "--html", "report.json"), 1, "is one of the files that are read")
    refused(run(*EVAL, "--html", "logits.npy"), 1, "is one of the files that are read")


def test_without_the_packages_one_line_says_what_to_install(data, monkeypatch):
    for name in ("jinja2", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)
    found = run(*EVAL, "--report", "report.json")
    assert found.exit_code == 0
    refused(run("page", "report.json", "--html", "page.html"), 1, "pip install 'bigvocab[html]'")


def test_neither_import_nor_eval_loads_what_pages_are_made_with(data):
    code = (
        "import sys, bigvocab as bv; bv.evaluate(logits='logits.npy', labels='labels.npy', report='r.json');"
        "print([m for m in ('matplotlib', 'jinja2') if m in sys.modules])"
    )
    import subprocess

    from commands import ENVIRONMENT

    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


# ---- names of new metrics


def test_conditions_know_the_new_names(data):
    flags = ["--metrics", "calibration,accuracy,rank", "--group-column", "group", "--bytes-column", "bytes"]
    flags += ["--cluster-column", "group", "--label-smoothing", "0.1"]
    report = json.loads(run(*EVAL, *flags, "--format", "json", "-q").stdout)
    for name in (
        "calibration.ece", "calibration.brier", "macro.mean", "macro.mean_perplexity", "nll.mean",
        "nll.cluster_stderr", "cluster_stderr", "perplexity_cluster_stderr", "clusters.count", "bytes",
        "rows_without_bytes", "groups.g0.x.stderr",
    ):  # fmt: skip
        found = run(*EVAL, *flags, "-q", "--fail-if", f"{name} > -1")
        assert found.exit_code == 3, (name, found.stderr)
    assert report["nll"]["mean"] < 10
    refused(run(*EVAL, "--fail-if", "calibration.ece > 1"), 2, "needs calibration in --metrics")
    refused(run(*EVAL, "--fail-if", "cluster_stderr > 1"), 2, "needs --cluster-column")
    refused(run(*EVAL, "--fail-if", "nll.mean > 1"), 2, "needs --label-smoothing")
    with pytest.raises(BigvocabError, match=r"did you mean calibration\.brier"):
        check_name("calibration.briar", "sparse-softmax", ["calibration"], (1,), ())


def test_conditions_work_on_what_is_infinite(data):
    logits = np.load("logits.npy")
    logits[0] = -np.inf
    logits[0, (np.load("labels.npy")[0] + 1) % logits.shape[1]] = 0
    np.save("logits.npy", logits)
    found = run(*EVAL, "-q", "--fail-if", "perplexity > 20", "--format", "json")
    assert found.exit_code == 3
    assert "perplexity is inf" in found.stderr
    report = json.loads(found.stdout)
    assert (report["perplexity"], report["infinite"]["perplexity"]) == (None, "inf")
    assert bigvocab.evaluate(logits="logits.npy", labels="labels.npy")["perplexity"] == float("inf")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--keep-top", "5"], "'--keep-top' needs topk in '--metrics'"),
        (["--keep-top", "129", "--metrics", "topk"], "129 is not in the range"),
        (["--class-counts", "a", "--vocab-file", "b"], "both give counts of classes"),
        (["--loss", "softmax", "--metrics", "", "--ties", "mean"], "goes with sparse-softmax"),
        (["--vocab-shard", "1/2", "--state", "s", "--html", "p"], "'--html' needs all classes"),
    ],
)
def test_options_that_do_not_go_together(data, flags, words):
    refused(run(*EVAL, *flags), 2, words)
