"""Engines: processes and clusters give the bits of one process; what dies is done again; errors name the row."""

import contextlib
import importlib.util
import multiprocessing
import os
import re
import socket
import subprocess
import sys

import numpy as np
import psutil
import pytest
from commands import process, run
from sample_jobs import COLUMNS, values_of, write_job

import bigvocab as bv
from bigvocab.evaluation.scoring import Scorer
from bigvocab.evaluation.specification import specify
from bigvocab.jobs import checkpoints
from bigvocab.jobs.data import JobData
from bigvocab.jobs.evaluation_task import EvaluationTask
from bigvocab.jobs.merging import merge
from bigvocab.jobs.workers import local
from bigvocab.jobs.workers.orders import do_task, order_of, task_ranges
from bigvocab.kernels import jit
from bigvocab.matrices.names import DataNames

ROWS, CLASSES = 600, 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_job(tmp_path_factory.mktemp("job"), ROWS, CLASSES, split=[250])
    rng = np.random.default_rng(2)
    np.save(folder / "hidden.npy", rng.standard_normal((ROWS, 16), np.float32))
    np.save(folder / "layer.npy", rng.standard_normal((CLASSES, 16), np.float32))
    np.save(folder / "biases.npy", rng.standard_normal(CLASSES, np.float32))
    return folder


def job(folder, **options):
    return {"logits": str(folder / "logits-*.npy"), "labels": folder / "labels.parquet", **COLUMNS, **options}


def layer_job(folder, **options):
    files = {"inputs": folder / "hidden.npy", "weights": folder / "layer.npy", "biases": folder / "biases.npy"}
    return {**files, "labels": folder / "labels.parquet", **COLUMNS, **options}


# Ray's own warnings are none of ours.
RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
ENGINES = ["local", pytest.param("ray", marks=RAY)]


@pytest.mark.parametrize("engine", ENGINES)
def test_workers_give_the_bits_of_one_process(folder, tmp_path, engine):
    expected = values_of(bv.evaluate(**job(folder), output=tmp_path / "one.parquet"))
    seen = []
    report = bv.evaluate(
        **job(folder),
        engine=engine,
        workers=2,
        output=tmp_path / "many.parquet",
        progress=lambda *now: seen.append(now),
    )
    assert values_of(report) == expected
    assert (tmp_path / "many.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()
    rows = [done for done, _, _ in seen]
    assert rows == sorted(rows)
    assert len(rows) > 8
    assert seen[-1] == (ROWS, ROWS, ROWS * CLASSES * 4)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "options", [{}, {"loss": "sampled-softmax", "num_sampled": 10, "exact": True, "group_column": None}]
)
def test_a_layer_and_sampled_losses(folder, engine, options):
    expected = bv.evaluate(**layer_job(folder) | options)
    report = bv.evaluate(**layer_job(folder) | options, engine=engine, workers=2)
    assert values_of(report) == values_of(expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_error_in_a_worker_is_the_error_of_the_row(folder, tmp_path, engine):
    logits = np.load(folder / "logits-1.npy")
    logits[100, 7] = np.nan
    np.save(tmp_path / "logits-1.npy", logits)
    os.link(folder / "logits-0.npy", tmp_path / "logits-0.npy")
    with pytest.raises(bv.BigvocabError, match=r"logits-1.npy: row 100 \(row 350 of all files\) holds a NaN"):
        bv.evaluate(**job(folder) | {"logits": str(tmp_path / "logits-*.npy")}, engine=engine, workers=2)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_with_workers_goes_on(folder, tmp_path, engine, monkeypatch):
    monkeypatch.setattr(checkpoints, "MIN_SECONDS", 0)
    monkeypatch.setattr(checkpoints, "SHARE", 0)
    expected = values_of(bv.evaluate(**job(folder), output=tmp_path / "one.parquet"))

    def stop(done, total, read):
        if done >= 200:
            raise KeyboardInterrupt

    for options in ({"progress": stop}, {"resume": True}):
        try:
            report = bv.evaluate(
                **job(folder),
                engine=engine,
                workers=2,
                state=tmp_path / "s",
                output=tmp_path / "many.parquet",
                **options,
            )
        except KeyboardInterrupt:
            assert "resume" not in options
    assert values_of(report) == expected == values_of(merge([tmp_path / "s"]))
    assert (tmp_path / "many.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()
    assert not multiprocessing.active_children()


def test_a_worker_that_dies_is_replaced(folder):
    """Two of them are killed while they work; every row counts once all the same."""
    killed = []

    def kill(done, total, read):
        if len(killed) < 2 and done > 100 * len(killed):
            victim = multiprocessing.active_children()[0]
            killed.append(victim.pid)
            victim.kill()

    report = bv.evaluate(**job(folder), workers=2, progress=kill)
    assert len(killed) == 2
    assert values_of(report) == values_of(bv.evaluate(**job(folder)))


def die(order, start, stop):
    if start >= 200:
        os._exit(9)
    return do_task(order, start, stop)


def test_workers_that_die_again_and_again_are_an_error(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "do_task", die)
    with pytest.raises(
        bv.BigvocabError,
        match=r"3 processes died one after the other .* near rows 2\d\d-2\d\d; .*resume continues from there",
    ):
        bv.evaluate(**job(folder), workers=2, state=tmp_path / "s")
    monkeypatch.undo()
    assert values_of(bv.evaluate(**job(folder), state=tmp_path / "s", resume=True)) == values_of(
        bv.evaluate(**job(folder))
    )


def evaluate_by_workers(folder):
    try:
        bv.evaluate(**job(folder), workers=2)
    except bv.BigvocabError as error:
        return str(error)


def test_workers_of_a_script_without_a_guard_are_told_so(folder, tmp_path):
    script = tmp_path / "script.py"
    given = job(folder) | {"labels": str(folder / "labels.parquet"), "workers": 2, "state": str(tmp_path / "state")}
    script.write_text(f"import bigvocab as bv\nbv.evaluate(**{given!r})\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 1
    guard = 'if __name__ == "__main__":'
    assert f"workers: each imports the script that starts it; expected {guard} around the call" in done.stderr
    assert "another run" not in done.stderr
    assert f"or started by a script without {guard}) near rows 0-" in done.stderr.splitlines()[-1]


def test_a_daemonic_process_starts_no_workers(folder):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(evaluate_by_workers, (folder,))
    assert found == "workers: this process is a daemonic one, which may start no others; expected workers=None"


def test_workers_that_will_compile_are_announced(folder, monkeypatch, tmp_path):
    """And spared, where one process can do it for all."""
    told, compiled = [], []
    monkeypatch.setattr("bigvocab.jobs.run.make_ready", lambda job, compiling: compiled.append(len(told)))
    monkeypatch.setattr(jit, "listeners", [lambda name, kept: told.append(kept)])
    monkeypatch.setattr(jit, "folder", tmp_path)
    monkeypatch.setattr(local, "results_of_pool", lambda order, todo, *more, **options: iter(todo.clear() or ()))
    for there in ([], ["kernel.nbi"]):
        for name in there:
            (tmp_path / name).touch()
        with contextlib.suppress(bv.BigvocabError):  # no row is done
            bv.evaluate(**job(folder), workers=2)
    monkeypatch.setattr(jit, "folder", None)
    with contextlib.suppress(bv.BigvocabError):
        bv.evaluate(**job(folder), workers=2)
    assert told == [True, False]
    assert compiled == [0]
    monkeypatch.setattr("bigvocab.jobs.workers.ray.ray_pieces", lambda *_: (_ for _ in ()))
    with contextlib.suppress(bv.BigvocabError):
        bv.evaluate(**job(folder), engine="ray")  # its tasks run on other machines
    assert compiled == [0]


def test_an_address_where_nothing_listens():
    from bigvocab.jobs.workers.ray import refuse_deaf

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        for place in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", f"[::1]:{port}", f"ray://x..y:{port}"):
            with pytest.raises(bv.BigvocabError, match=f"address: no Ray at {re.escape(place)}: "):
                refuse_deaf(place)
        free.listen()
        with pytest.raises(bv.BigvocabError, match=r"no answer in 0.1 seconds; .*RAY_AUTH_MODE"):
            refuse_deaf(f"127.0.0.1:{port}", 0.1)
    for other in ("auto", "local", "ray://head"):
        refuse_deaf(other)


def test_a_port_that_listens_but_never_answers(monkeypatch, tmp_path):
    """Ray itself is a stand-in: one that tries for ever, or that fails as Ray does."""
    from bigvocab.jobs.workers.ray import refuse_mute

    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "ray.py").write_text("import signal\ndef init(**given): signal.pause()\n")
    with pytest.raises(bv.BigvocabError, match=r"address: no Ray at x:1: no answer in 0.5 seconds; .*RAY_AUTH_MODE"):
        refuse_mute("x:1", 0.5)
    for error, words in [
        ("import sys; sys.exit('InvalidAuthToken: missing')", "its token is another one than here"),
        ("raise ConnectionError('Failed to connect')", "no Ray at x:1: Failed to connect; "),
        ("import os; os._exit(9)", "no Ray at x:1: it did not answer; "),
    ]:
        (tmp_path / "ray.py").write_text(f"def init(**given):\n    {error}\n")
        with pytest.raises(bv.BigvocabError, match=f"{words}.*RAY_AUTH_MODE"):
            refuse_mute("x:1")
    (tmp_path / "ray.py").write_text("def init(**given): pass\ndef shutdown(): pass\n")
    refuse_mute("x:1")


def test_sums_that_come_back_can_be_added_to(folder):
    """Ray gives back arrays that are read-only; sums travel as bytes."""
    from bigvocab.evaluation.scoring import Scorer
    from bigvocab.evaluation.specification import specify
    from bigvocab.jobs.evaluation import open_data
    from bigvocab.jobs.evaluation_task import EvaluationTask
    from bigvocab.jobs.workers.orders import as_piece, do_task, order_of

    scorer = Scorer(specify())
    given = job(folder)
    task = EvaluationTask(scorer, open_data(scorer, given["logits"], given["labels"]))
    done = do_task(order_of(task, 1), 0, 50)
    assert isinstance(done[0], bytes)
    piece = as_piece(task, 0, 50, done)
    sums = task.new_sums()
    sums.merge(piece.sums)
    assert sums.tally.counts["rows"] > 0


def test_tasks_are_ranges_of_all_rows_and_orders_are_small(folder):
    logits, labels = bv.open_matrix(str(folder / "logits-*.npy")), bv.read_labels(folder / "labels.parquet")
    order = order_of(EvaluationTask(Scorer(specify()), JobData([logits], labels, DataNames())), 1)
    assert len(order) < 8192
    data = JobData([logits], labels, DataNames())
    for rows, workers in ((1, 4), (7, 2), (ROWS, 3)):
        ranges = list(task_ranges(EvaluationTask(Scorer(specify(chunk_rows=10)), data, (0, rows)), 0, workers))
        assert [stop for _, stop in ranges[:-1]] == [start for start, _ in ranges[1:]]
        assert (ranges[0][0], ranges[-1][1]) == (0, rows)


def test_options_of_engines(folder, tmp_path):
    with pytest.raises(bv.BigvocabError, match="engine: got 'spark', expected local or ray"):
        bv.evaluate(**job(folder), engine="spark")
    with pytest.raises(bv.BigvocabError, match="workers: got 0"):
        bv.evaluate(**job(folder), workers=0)
    with pytest.raises(bv.BigvocabError, match="does not go with vocab_shard"):
        bv.evaluate(**job(folder), workers=2, vocab_shard="1/2", state=tmp_path / "s")
    options = {"loss": "nce", "num_sampled": 5, "sampler": "learned-unigram", "group_column": None}
    with pytest.raises(bv.BigvocabError, match="workers: does not go with learned-unigram, which learns"):
        bv.evaluate(**layer_job(folder) | options, workers=2)


def test_without_ray_there_is_a_message(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(bv.BigvocabError, match=r"ray is not installed here; pip install 'bigvocab\[ray\]'"):
        bv.evaluate(**job(folder), engine="ray")


def test_the_command_with_workers(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    arguments = ["eval", "--logits", "logits-*.npy", "--labels", "labels.parquet", "--format", "json"]
    one = run(*arguments)
    many = process(
        *arguments,
        "--engine",
        "local",
        "--workers",
        "2",
        "--state",
        str(tmp_path / "s"),
        "--output",
        str(tmp_path / "l.parquet"),
    )
    assert many.returncode == 0, many.stderr
    assert many.stderr == ""
    mean = [line for line in one.stdout.splitlines() if '"mean"' in line]
    assert mean == [line for line in many.stdout.splitlines() if '"mean"' in line]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["l.parquet", "s"]


def test_workers_end_with_a_parent_that_is_killed(folder, tmp_path):
    code = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from bigvocab.jobs.workers.local import end_with_parent
if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(600)
"""
    (tmp_path / "parent.py").write_text(code)
    with subprocess.Popen([sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, text=True) as parent:
        worker = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        worker.wait(60)
