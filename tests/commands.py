"""What the tests of the command share: small data, a runner in this process, and one for processes."""

import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from click.testing import CliRunner

import bigvocab
from bigvocab import catalogue
from bigvocab.command.cli import cli

ROOT = Path(bigvocab.__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "80"}
ENVIRONMENT.pop("PYTHONUNBUFFERED", None)  # what is buffered fails late
ROWS, CLASSES = 40, 11


def make_data(tmp_path, monkeypatch):
    """Logits and labels in a folder of their own, which becomes the current one."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(7)
    np.save("logits.npy", random.normal(size=(ROWS, CLASSES)).astype(np.float32))
    labels = random.integers(0, CLASSES, ROWS)
    columns = {
        "label": labels,
        "weight": random.random(ROWS),
        "group": [f"g{i % 3}.x" for i in range(ROWS)],
        "bytes": random.integers(1, 9, ROWS),
    }
    pq.write_table(pa.table(columns), "labels.parquet")
    np.save("labels.npy", labels)
    return tmp_path


EVAL = ("eval", "--logits", "logits.npy", "--labels", "labels.parquet")
ALL = ("--weight-column", "weight", "--group-column", "group", "--bytes-column", "bytes")
ALL += ("--metrics", ",".join(catalogue.METRICS))


def run(*arguments):
    """Run the command in this process; it does not say that it compiles, whatever the cache holds."""
    with mock.patch("bigvocab.command.progress.Display.watch_compiler"):
        return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def process(*arguments, **kwargs):
    """Run the command in a process of its own, and leave out its line that it compiles, as `run` does."""
    command = [sys.executable, "-m", "bigvocab", *arguments]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, **kwargs)
    lines = done.stderr.splitlines(keepends=True)
    done.stderr = "".join(line for line in lines if not line.startswith("bigvocab: compiling kernels"))
    return done


def refused(result, code, *words):
    """The command ended with this code, one line of words on stderr, no result and no traceback."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert isinstance(result.exception, SystemExit)
    for word in words:
        assert word in result.stderr
    if code == 1:
        assert result.stderr.count("\n") == 1
        assert result.stderr.startswith("bigvocab: error: ")
