"""Ray as it is: all that `--engine ray` does with a Ray of its own, or with one that runs in this process.

Skipped where Ray is not installed; `scripts/test_engines` runs these.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import comparisons
import numpy as np
import psutil
import pytest
from commands import ENVIRONMENT
from sample_jobs import COLUMNS, values_of, write_job

import bigvocab as bv

ray = pytest.importorskip("ray")
ROWS, CLASSES = 600, 300
SECONDS = 60  # for what must be said at once: a hang fails, however slow the machine


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_job(tmp_path_factory.mktemp("job"), ROWS, CLASSES, split=[250])


def job(folder, **options):
    return {"logits": str(folder / "logits-*.npy"), "labels": folder / "labels.parquet", **COLUMNS, **options}


def test_ray_starts_a_task_again_whose_process_dies(folder, tmp_path, monkeypatch):
    from bigvocab.jobs.workers import ray as engine

    def once(order, start, stop):  # by value to the workers, who cannot import this file
        import os

        from bigvocab.jobs.workers.orders import do_task as really

        marker = f"{tmp_path}/{start // 200}"
        if not os.path.exists(marker):
            open(marker, "w").close()
            os._exit(9)
        return really(order, start, stop)

    monkeypatch.setattr(engine, "do_task", once)
    assert values_of(bv.evaluate(**job(folder), engine="ray", workers=2)) == values_of(bv.evaluate(**job(folder)))
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(("times", "beside"), [(2, 1 << 16), (2, 0), (99, 1 << 16)])
def test_a_task_whose_arguments_ray_loses_is_sent_again(folder, tmp_path, monkeypatch, times, beside):
    """As often as that may be chance; with an order that goes with the task, and with one that is too large for it."""
    from bigvocab.jobs.workers import ray as engine

    def lost(order, start, stop):
        import os

        import ray

        from bigvocab.jobs.workers.orders import do_task as really

        if start == 0 and len(os.listdir(tmp_path)) < times:
            open(f"{tmp_path}/{len(os.listdir(tmp_path))}", "w").close()
            raise ray.exceptions.OwnerDiedError("0" * 56, None, "")
        return really(order, start, stop)

    monkeypatch.setattr(engine, "do_task", lost)
    monkeypatch.setattr(engine, "BESIDE", beside)
    given = job(folder)
    run = {**given, "engine": "ray", "workers": 1}
    if times > 3:
        with pytest.raises(bv.BigvocabError, match="the task of rows 0-.* failed on worker .*: OwnerDiedError"):
            bv.evaluate(**run)
        assert len(list(tmp_path.iterdir())) == 4
    else:
        assert values_of(bv.evaluate(**run)) == values_of(bv.evaluate(**given))
        assert len(list(tmp_path.iterdir())) == times


@pytest.mark.parametrize(
    ("cpus", "workers", "threads"), [(None, 1, 2), (None, 3, 1), (1, 1, 4), (1, 3, None), ("one core", 2, None)]
)
def test_all_workers_are_at_work_at_once(folder, tmp_path, monkeypatch, cpus, workers, threads):
    """In a Ray of its own, on one core, or in one with so many CPUs: no task returns before all workers have one."""
    from bigvocab.jobs.workers import ray as engine

    def together(order, start, stop):
        import os
        import time

        from bigvocab.jobs.workers.orders import do_task as really

        open(f"{tmp_path}/{os.getpid()}", "w").close()
        for _ in range(600):
            if len(os.listdir(tmp_path)) >= workers:
                return really(order, start, stop)
            time.sleep(0.1)
        raise RuntimeError("alone")

    monkeypatch.setattr(engine, "do_task", together)
    expected = values_of(bv.evaluate(**job(folder)))
    cores = os.sched_getaffinity(0)
    if cpus == "one core":
        os.sched_setaffinity(0, {min(cores)})
    elif cpus is not None:
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        given = {} if threads is None else {"threads": threads}
        assert values_of(bv.evaluate(**job(folder), engine="ray", workers=workers, **given)) == expected
    finally:
        os.sched_setaffinity(0, cores)
        ray.shutdown()
    assert len(list(tmp_path.iterdir())) == workers


def test_a_ray_that_runs_already_is_used_and_left(folder):
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        assert values_of(bv.evaluate(**job(folder), engine="ray", workers=2)) == values_of(bv.evaluate(**job(folder)))
        assert ray.is_initialized()
    finally:
        ray.shutdown()


def test_a_comparison(tmp_path):
    comparisons.write_pair(tmp_path)
    given = comparisons.pair(tmp_path)
    expected = bv.compare(**given, output=tmp_path / "one.parquet")
    report = bv.compare(**given, output=tmp_path / "many.parquet", engine="ray", workers=2)
    assert values_of(report) == values_of(expected)
    assert (tmp_path / "many.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()


def command(folder, *options, logits="logits-*.npy"):
    given = ["--logits", str(folder / logits), "--labels", str(folder / "labels.parquet"), "--engine", "ray"]
    return [sys.executable, "-m", "bigvocab", "eval", *given, *options]


@pytest.mark.parametrize("options", [[], ["-q"]])
def test_no_line_of_ray_is_seen(folder, options):
    given = command(folder, "--workers", "2", "--format", "json", *options)
    done = subprocess.run(given, env=ENVIRONMENT, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if not line.startswith("bigvocab: compiling")] == []
    assert done.stdout.startswith("{")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("", "got an empty one, expected host:port of a Ray cluster, or none"),
        (":6379", "got ':6379', which names no host, expected host:port"),
    ],
)
def test_an_address_that_is_none_is_one_line(folder, address, words):
    given = command(folder, "--address", address)
    done = subprocess.run(given, env=ENVIRONMENT, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"bigvocab: error: address: {words}"]


@contextlib.contextmanager
def running(given, **environment):
    """A run as a process, and all the processes that it has started when it is left."""
    process = subprocess.Popen(
        given, env=ENVIRONMENT | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        for one in [*psutil.Process(process.pid).children(recursive=True), process] if process.poll() is None else ():
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


def end(process):
    """Code and lines of a run that is asked to end; nothing that it started is left."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    out, error = process.communicate(timeout=SECONDS)
    assert out == ""
    assert not psutil.wait_procs(children, SECONDS)[1]
    return process.returncode, error.splitlines()


def test_a_first_run_says_that_it_compiles_and_ends_when_asked(folder, tmp_path):
    """Asked while Ray starts, which has a handler of SIGTERM of its own."""
    with running(command(folder, "--workers", "1"), BIGVOCAB_CACHE_DIR=str(tmp_path)) as process:
        assert process.stderr.readline() == (
            "bigvocab: compiling kernels for this machine (once; kept in the cache) ...\n"
        )
        while not psutil.Process(process.pid).children(recursive=True):
            time.sleep(0.01)
        assert end(process) == (143, [])


def rows_done(report):
    return json.loads(report.read_text())["progress"]["rows_done"] if report.exists() else 0


@pytest.mark.parametrize(("number", "code", "lines"), [(signal.SIGTERM, 143, []), (signal.SIGINT, 1, ["interrupted"])])
def test_a_run_at_work_ends_when_asked(folder, tmp_path, number, code, lines):
    """By SIGTERM as any process, without a stack of C++."""
    np.lib.format.open_memmap(tmp_path / "logits.npy", "w+", np.float32, (40_000, 1 << 20))  # a hole of 156 GiB
    np.save(tmp_path / "labels.npy", np.zeros(40_000, np.int64))
    given = ["--workers", "2", "--report", str(tmp_path / "report.json"), "--report-every", "0"]
    given += ["--labels", str(tmp_path / "labels.npy"), "--logits", str(tmp_path / "logits.npy"), "--engine", "ray"]
    with running([sys.executable, "-m", "bigvocab", "eval", *given]) as process:
        while not rows_done(tmp_path / "report.json"):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        process.terminate = lambda: process.send_signal(number)
        found, said = end(process)
        assert (found, [line.removeprefix("bigvocab: ") for line in said]) == (code, lines)
    assert sorted(os.listdir(tmp_path)) == ["labels.npy", "logits.npy", "report.json"]
