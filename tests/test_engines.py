"""Engines: processes and clusters give the bits of one process; what dies is done again; errors name the row."""

import contextlib
import importlib.util
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import process, run
from jobs import COLUMNS, figures, write_job

import bigvocab as bv
from bigvocab.jobs import checkpoints
from bigvocab.jobs.merging import merge_states
from bigvocab.jobs.work import Job
from bigvocab.jobs.workers import do_task, local, order_of, seals, task_ranges
from bigvocab.jobs.workers.ray import Share, share_of
from bigvocab.kernels import jit
from bigvocab.sampling.candidates import write_candidates

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
    expected = figures(bv.evaluate(**job(folder), output=tmp_path / "one.parquet"))
    seen = []
    report = bv.evaluate(
        **job(folder),
        engine=engine,
        workers=2,
        output=tmp_path / "many.parquet",
        progress=lambda *now: seen.append(now),
    )
    assert figures(report) == expected
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
    assert figures(report) == figures(expected)


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
    expected = figures(bv.evaluate(**job(folder), output=tmp_path / "one.parquet"))

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
    assert figures(report) == expected == figures(merge_states([tmp_path / "s"]))
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
    assert figures(report) == figures(bv.evaluate(**job(folder)))


def die(order, start, stop):
    if start >= 200:
        os._exit(9)
    return do_task(order, start, stop)


def test_workers_that_die_again_and_again_are_an_error(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "do_task", die)
    with pytest.raises(
        bv.BigvocabError,
        match=r"3 processes died one after the other .* near rows 2\d\d-2\d\d; .*resume goes on from there",
    ):
        bv.evaluate(**job(folder), workers=2, state=tmp_path / "s")
    monkeypatch.undo()
    assert figures(bv.evaluate(**job(folder), state=tmp_path / "s", resume=True)) == figures(bv.evaluate(**job(folder)))


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
    monkeypatch.setattr("bigvocab.jobs.job._make_ready", lambda job, compiling: compiled.append(len(told)))
    monkeypatch.setattr(jit, "_on_compile", [lambda name, kept: told.append(kept)])
    monkeypatch.setattr(jit, "_folder", tmp_path)
    monkeypatch.setattr(local, "_pool", lambda order, todo, *more, **options: iter(todo.clear() or ()))
    for there in ([], ["kernel.nbi"]):
        for name in there:
            (tmp_path / name).touch()
        with contextlib.suppress(bv.BigvocabError):  # no row is done
            bv.evaluate(**job(folder), workers=2)
    monkeypatch.setattr(jit, "_folder", None)
    with contextlib.suppress(bv.BigvocabError):
        bv.evaluate(**job(folder), workers=2)
    assert told == [True, False]
    assert compiled == [0]
    monkeypatch.setattr("bigvocab.jobs.job._Run._source", lambda *_: (_ for _ in ()))
    with contextlib.suppress(bv.BigvocabError):
        bv.evaluate(**job(folder), engine="ray")  # its tasks run on other machines
    assert compiled == [0]


@RAY
def test_ray_starts_a_task_again_whose_process_dies(folder, tmp_path, monkeypatch):
    from bigvocab.jobs.workers import ray as engine

    def once(order, start, stop):  # by value to the workers, who cannot import this file
        import os

        from bigvocab.jobs.workers import do_task as really

        marker = f"{tmp_path}/{start // 200}"
        if not os.path.exists(marker):
            open(marker, "w").close()
            os._exit(9)
        return really(order, start, stop)

    monkeypatch.setattr(engine, "do_task", once)
    assert figures(bv.evaluate(**job(folder), engine="ray", workers=2)) == figures(bv.evaluate(**job(folder)))
    assert len(list(tmp_path.iterdir())) == 3


@RAY
@pytest.mark.parametrize(("cpus", "workers", "threads"), [(None, 1, 2), (None, 3, 1), (1, 1, 4), (1, 3, None)])
def test_all_workers_are_at_work_at_once(folder, tmp_path, monkeypatch, cpus, workers, threads):
    """In a Ray of its own, or in one with so many CPUs: no task returns before as many processes have begun one."""
    import ray

    from bigvocab.jobs.workers import ray as engine

    def together(order, start, stop):
        import os
        import time

        from bigvocab.jobs.workers import do_task as really

        open(f"{tmp_path}/{os.getpid()}", "w").close()
        for _ in range(600):
            if len(os.listdir(tmp_path)) >= workers:
                return really(order, start, stop)
            time.sleep(0.1)
        raise RuntimeError("alone")

    monkeypatch.setattr(engine, "do_task", together)
    expected = figures(bv.evaluate(**job(folder)))
    if cpus is not None:
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        given = {} if threads is None else {"threads": threads}
        assert figures(bv.evaluate(**job(folder), engine="ray", workers=workers, **given)) == expected
    finally:
        ray.shutdown()
    assert len(list(tmp_path.iterdir())) == workers


@RAY
def test_a_ray_that_runs_already_is_used_and_left(folder):
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        assert figures(bv.evaluate(**job(folder), engine="ray", workers=2)) == figures(bv.evaluate(**job(folder)))
        assert ray.is_initialized()
    finally:
        ray.shutdown()


def test_an_address_where_nothing_listens():
    from bigvocab.jobs.workers.ray import _refuse_deaf

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        for place in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", f"[::1]:{port}", f"ray://x..y:{port}"):
            with pytest.raises(bv.BigvocabError, match=f"address: no Ray at {re.escape(place)}: "):
                _refuse_deaf(place)
        free.listen()
        _refuse_deaf(f"127.0.0.1:{port}")
    for other in ("auto", "local", "ray://head"):
        _refuse_deaf(other)


@RAY
def test_a_cluster_at_an_address(folder, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("ray"), "start", "--head", f"--port={port}", "--num-cpus=2", "--block"]
    command += ["--include-dashboard=false", "--disable-usage-stats", "--node-ip-address=127.0.0.1"]
    with (tmp_path / "log").open("w") as log:
        head = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        while "Ray runtime started" not in (tmp_path / "log").read_text():
            assert head.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        expected = figures(bv.evaluate(**job(folder)))
        assert figures(bv.evaluate(**job(folder), engine="ray", address=f"127.0.0.1:{port}")) == expected
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        assert figures(bv.evaluate(**job(folder), engine="ray", workers=2)) == expected
    finally:
        head.terminate()  # it ends what it has started, but not its note of where it was
        head.wait(30)
        note = Path("/tmp/ray/ray_current_cluster")
        if note.exists() and note.read_text().endswith(f":{port}"):
            note.unlink()


def test_tasks_are_ranges_of_all_rows_and_orders_are_small(folder):
    logits = bv.open_matrix(str(folder / "logits-*.npy"))
    order = order_of(Job(bv.Evaluator(), logits, bv.read_labels(folder / "labels.parquet"), 10, 0, ROWS), 1)
    assert len(order) < 8192
    for rows, workers in ((1, 4), (7, 2), (ROWS, 3)):
        ranges = list(task_ranges(Job(bv.Evaluator(), logits, None, 10, 0, rows), 0, workers))
        assert [stop for _, stop in ranges[:-1]] == [start for start, _ in ranges[1:]]
        assert (ranges[0][0], ranges[-1][1]) == (0, rows)


# ---- how many workers, of what size


def places(nodes, cpus):
    return sum(int(node / cpus + 1e-9) for node in nodes)


@pytest.mark.parametrize("nodes", [[1], [2], [20], [4, 4, 4], [1, 16], [0, 8], [3, 5, 7], [0.5, 2], [192] * 50])
@pytest.mark.parametrize("threads", [None, 1, 2, 3, 4, 20, 1000])
@pytest.mark.parametrize("workers", [None, 1, 2, 3, 4, 7, 20, 100])
def test_all_workers_run_at_once_in_the_cpus_there_are(nodes, threads, workers):
    share = share_of(nodes, workers, threads)
    assert share.workers == (workers or sum(int(node) for node in nodes))
    assert 0 < share.cpus <= max(nodes)
    assert share.cpus == int(share.cpus) or share.cpus < 1
    assert places(nodes, share.cpus) >= share.workers
    assert share.threads == max(1, share.cpus)
    if share.cpus < 1:
        assert places(nodes, 1) < share.workers
    elif threads is None and workers is not None:  # no CPU is idle that could do more for each
        assert places(nodes, share.cpus + 1) < workers or share.cpus == sum(map(int, nodes)) // workers


def test_no_cpus_at_all():
    for nodes in ([], [0], [0.0, 0.0]):
        with pytest.raises(bv.BigvocabError, match="engine: no node of this Ray has a CPU for tasks"):
            share_of(nodes, 2, None)
    with pytest.raises(bv.BigvocabError, match="workers: got 20001, but Ray has 2 CPUs, expected 20000 at most"):
        share_of([2], 20001, None)
    assert share_of([2], 20000, 8) == Share(20000, 1, 0.0001)


class StandIn:
    """A Ray of some nodes that does its tasks in this process; a task that no node can hold is never done."""

    class exceptions:  # noqa: N801
        class RayError(Exception):
            pass

        class RayTaskError(RayError):
            def __init__(self, cause):
                super().__init__("ray::do_task() (pid=1, ip=192.0.2.7)")
                self.cause = cause

    def __init__(self, *cpus):
        self.cpus, self.asked, self.at_once, self.given = list(cpus), set(), 0, None
        self.running = []

    def is_initialized(self):
        return self.given is None and bool(self.cpus)

    def init(self, num_cpus=2, **options):
        self.given, self.cpus = options, [num_cpus]

    def shutdown(self):
        pass

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": float(cpus)} if cpus else {}} for cpus in self.cpus]

    def remote(self, *, num_cpus, **options):
        self.asked.add(num_cpus)

        def decorate(function):
            self.function = function
            return self

        self.remote = lambda *given: self.running.append(given) or given  # of the task
        return decorate

    def put(self, value):
        return value

    def wait(self, promises, timeout):
        (cpus,) = self.asked
        self.at_once = max(self.at_once, min(places(self.cpus, cpus), len(self.running)))
        return (promises, []) if places(self.cpus, cpus) else ([], promises)

    def get(self, promise):
        self.running.remove(promise)
        try:
            return self.function(*promise)
        except Exception as error:
            raise self.exceptions.RayTaskError(error) from None

    def cancel(self, promise, force):
        pass


@pytest.fixture
def stand_in(monkeypatch):
    def make(*cpus):
        found = StandIn(*cpus)
        monkeypatch.setitem(sys.modules, "ray", found)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        return found

    return make


@pytest.mark.parametrize("threads", [None, 1, 3, 40])
@pytest.mark.parametrize(
    ("cpus", "workers"),
    [([], 1), ([], 3), ([], None), ([1], 1), ([1], 2), ([2], 1), ([20], 4), ([4, 4], 2), ([0, 2], 3), ([1, 1], None)],
)
def test_a_run_on_ray_has_the_workers_it_was_given(folder, stand_in, cpus, workers, threads):
    """None of nodes: a Ray of its own."""
    ray = stand_in(*cpus)
    given = {} if threads is None else {"threads": threads}
    report = bv.evaluate(**job(folder), engine="ray", workers=workers, **given)
    assert figures(report) == figures(bv.evaluate(**job(folder)))
    assert ray.at_once >= (workers or sum(cpus) or os.sched_getaffinity(0).__len__())


def test_nodes_that_are_gone_are_not_waited_for(folder, stand_in):
    ray = stand_in(1, 4)

    def leave(done, total, read):
        if done:
            ray.cpus = [1]

    with pytest.raises(bv.BigvocabError, match="engine: no node of Ray is left with 4 CPUs, which a task needs; with"):
        bv.evaluate(**job(folder), engine="ray", workers=1, progress=leave)


def test_what_workers_raise_is_one_line(folder, stand_in, monkeypatch):
    stand_in(2)

    def broken(order, start, stop):
        raise RuntimeError("The function could not be loaded:\nTraceback ...\nNo module named 'bigvocab'")

    monkeypatch.setattr("bigvocab.jobs.workers.ray.do_task", broken)
    expected = r"rows 0-\d+ failed on worker 192.0.2.7: RuntimeError: No module named 'bigvocab'; expected bigvocab"
    with pytest.raises(bv.BigvocabError, match=expected):
        bv.evaluate(**job(folder), engine="ray")


@pytest.mark.parametrize(
    ("address", "found"), [("", "an empty one"), (" ", "an empty one"), (":6379", "names no host")]
)
def test_addresses_that_are_none(folder, stand_in, address, found):
    stand_in()
    with pytest.raises(bv.BigvocabError, match=f"address: got .*{found}.*, expected host:port"):
        bv.evaluate(**job(folder), engine="ray", address=address)


# ---- workers that find something else

HERE = re.escape(f"on worker {socket.gethostname()}, working for {socket.gethostname()}")


def change(path, at, value=None):
    """Another byte at `at`; size and time of change stay."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        old = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([old[0] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def write_inputs(folder):
    """A file of each kind that workers open, by the option it is for."""
    rng = np.random.default_rng(3)
    write_job(folder, ROWS, CLASSES)
    np.save(folder / "soft.npy", rng.dirichlet(np.ones(CLASSES), ROWS))
    np.save(folder / "hidden.npy", rng.standard_normal((ROWS, 16), np.float32))
    np.save(folder / "layer.npy", rng.standard_normal((CLASSES, 16), np.float32))
    np.save(folder / "biases.npy", rng.standard_normal(CLASSES, np.float32))
    np.save(folder / "norm.npy", rng.standard_normal(16, np.float32))
    (folder / "vocab.txt").write_text("".join(f"w{i},{i + 1}\n" for i in range(CLASSES)))
    candidates = folder / "candidates.arrow"
    write_candidates(candidates, num_sampled=9, range_max=CLASSES)
    layer = {name: folder / f"{name}.npy" for name in ("biases",)} | {"weights": folder / "layer.npy"}
    layer |= {"inputs": folder / "hidden.npy", "final_norm": "rms", "norm_weight": folder / "norm.npy"}
    plain, labels = {"logits": folder / "logits-0.npy"}, {"labels": folder / "labels.parquet"}
    unigram = {"loss": "nce", "sampler": "unigram", "vocab_file": folder / "vocab.txt", "num_sampled": 5}
    return {
        "logits-0.npy": plain | labels,
        "labels.parquet": plain | labels,
        "soft.npy": plain | {"labels": folder / "soft.npy", "loss": "softmax"},
        "hidden.npy": layer | labels,
        "layer.npy": layer | labels,
        "biases.npy": layer | labels,
        "norm.npy": layer | labels,
        "vocab.txt": layer | labels | unigram,
        "candidates.arrow": layer | labels | {"loss": "sampled-softmax", "candidates": candidates},
    }


INPUTS = ["logits-0.npy", "labels.parquet", "soft.npy", "hidden.npy", "layer.npy", "biases.npy", "norm.npy"]
INPUTS += ["vocab.txt", "candidates.arrow"]


@pytest.fixture
def changing(monkeypatch):
    """Have something done behind the back of a run that has opened and sealed all, before its workers begin."""

    def install(act):
        def sealed(given, order):
            found = seal(given, order)
            act()
            return found

        seal = seals.seal
        monkeypatch.setattr(seals, "seal", sealed)

    return install


@pytest.mark.parametrize("name", INPUTS)
def test_another_content_of_a_file_is_never_a_number(tmp_path, stand_in, changing, name):
    stand_in(2)
    given = write_inputs(tmp_path)[name]
    changing(lambda: change(tmp_path / name, -2 if name == "vocab.txt" else -100 if name.endswith("t") else -8))
    expected = f"{re.escape(str(tmp_path / name))}: other content {HERE}, expected the same file on both"
    with pytest.raises(bv.FormatError, match=expected):
        bv.evaluate(**given, engine="ray")


def test_another_content_in_a_process_of_the_pool(tmp_path, changing):
    given = write_inputs(tmp_path)["labels.parquet"]
    changing(lambda: change(tmp_path / "labels.parquet", 1000))
    with pytest.raises(bv.FormatError, match=f"labels.parquet: other content {HERE}, expected the same file"):
        bv.evaluate(**given, workers=2)


def test_files_of_another_size_or_gone(tmp_path, stand_in, changing):
    stand_in(2)
    given, labels = write_inputs(tmp_path)["labels.parquet"], tmp_path / "labels.parquet"
    size = labels.stat().st_size
    changing(lambda: labels.write_bytes(labels.read_bytes() + b"1234"))
    with pytest.raises(bv.FormatError, match=rf"labels.parquet: {size + 4} bytes {HERE}, expected {size}, as there"):
        bv.evaluate(**given, engine="ray")
    write_job(tmp_path, ROWS, CLASSES)
    stand_in(2)
    changing(labels.unlink)
    with pytest.raises(bv.FormatError, match=rf"labels.parquet: cannot be read: No such file or directory \({HERE}\)"):
        bv.evaluate(**given, engine="ray")


def test_a_column_that_differs_is_seen_in_files_of_any_size(tmp_path, stand_in, changing, monkeypatch):
    """Blocks that are hashed of a large file hold few columns of long rows; whole rows are looked at beside them."""
    stand_in(2)
    monkeypatch.setattr(seals, "_WHOLE", 0)
    logits = np.zeros((64, 65_536), np.float32)
    np.save(tmp_path / "logits.npy", logits)

    def mask():
        path = tmp_path / "logits.npy"
        status = path.stat()
        np.lib.format.open_memmap(path, "r+")[:, 15_000] = -np.inf
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    changing(mask)
    with pytest.raises(bv.FormatError, match=f"logits.npy: other content in row 0 {HERE}"):
        bv.evaluate(logits=tmp_path / "logits.npy", labels=np.zeros(64, int), engine="ray")


@pytest.mark.parametrize("engine", ["local", "ray"])
@pytest.mark.parametrize(
    ("what", "value", "words"),
    [
        ("bigvocab.__version__", "0.0.9", "engine: bigvocab 0.1.0 {}, expected 0.0.9"),
        (
            "bigvocab.kernels.jit.stamp",
            lambda: "f00",
            "engine: other kernels, or another Numba, of stamp .* {}, expec",
        ),
    ],
)
def test_workers_with_another_bigvocab_are_refused(folder, stand_in, monkeypatch, engine, what, value, words):
    stand_in(2)
    seal = seals.seal

    def sealed(given, order):
        with monkeypatch.context() as other:
            other.setattr(what, value)
            return seal(given, order)

    monkeypatch.setattr(seals, "seal", sealed)
    with pytest.raises(bv.BigvocabError, match=words.format(HERE)):
        bv.evaluate(**job(folder), engine=engine, workers=2)


def test_files_are_checked_once_in_a_worker(folder, stand_in, monkeypatch):
    stand_in(2)
    seen = []
    monkeypatch.setattr(seals, "unseal", lambda order, unseal=seals.unseal: seen.append(1) or unseal(order))
    bv.evaluate(**job(folder), engine="ray")
    assert seen == [1]


def test_a_pipe_is_nothing_for_workers(tmp_path, stand_in, monkeypatch):
    stand_in(2)
    given = write_inputs(tmp_path)["vocab.txt"]
    os.mkfifo(tmp_path / "pipe")
    text = (tmp_path / "vocab.txt").read_bytes()
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[text])
    writer.start()
    with pytest.raises(bv.BigvocabError, match="pipe: not a regular file, expected one that other processes can open"):
        bv.evaluate(**given | {"vocab_file": tmp_path / "pipe"}, engine="ray")
    writer.join()


def test_options_of_engines(folder, tmp_path):
    with pytest.raises(bv.BigvocabError, match="engine: got 'spark', expected local or ray"):
        bv.evaluate(**job(folder), engine="spark")
    with pytest.raises(bv.BigvocabError, match="workers: got 0"):
        bv.evaluate(**job(folder), workers=0)
    with pytest.raises(bv.BigvocabError, match="does not go with vocab_shard"):
        bv.evaluate(**job(folder), workers=2, vocab_shard="1/2", state=tmp_path / "s")
    options = {"loss": "nce", "num_sampled": 5, "sampler": "learned-unigram", "group_column": None}
    with pytest.raises(bv.BigvocabError, match="workers: learned-unigram learns from all rows before"):
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


# ---- recipes of the README


def batches_of(folder, rows=100):
    logits = np.concatenate([np.load(folder / f"logits-{i}.npy") for i in (0, 1)])
    table = pq.read_table(folder / "labels.parquet")
    lists = pa.FixedSizeListArray.from_arrays(pa.array(logits.reshape(-1)), CLASSES)
    return table.append_column("logits", lists), rows


def evaluate_batches(batches: Iterator[pa.RecordBatch], path: str) -> Iterator[pa.RecordBatch]:
    """What the README gives to Spark's mapInArrow: batches of a partition in, the same with losses out, and a state."""
    ev = bv.Evaluator(weight_column="weight", group_column="group", threads=1)
    for batch in batches:
        yield ev.update_batch(batch).drop_columns(["logits"])
    ev.save(path)


def test_the_recipe_for_map_in_arrow(folder, tmp_path):
    """Spark calls it once for each partition, with an iterator of record batches."""
    table, rows = batches_of(folder)
    expected = bv.evaluate(**job(folder), output=tmp_path / "losses.parquet")
    losses = []
    for i, partition in enumerate([table.slice(0, 350), table.slice(350)]):
        for batch in evaluate_batches(iter(partition.to_batches(max_chunksize=rows)), str(tmp_path / f"{i}.state")):
            losses += batch.column("loss").to_pylist()
    assert losses == pq.read_table(tmp_path / "losses.parquet")["loss"].to_pylist()
    assert figures(merge_states(sorted(tmp_path.glob("*.state")))) == figures(expected)


def evaluate_shard(i: int, count: int, folder: str) -> str:
    """What the README gives to a spawn pool."""
    bv.evaluate(**job_of(folder), shard=(i, count), state=f"{folder}/pool-{i}.state", threads=1)
    return f"{folder}/pool-{i}.state"


def job_of(folder):
    return {
        "logits": f"{folder}/logits-*.npy",
        "labels": f"{folder}/labels.parquet",
        "weight_column": "weight",
        "group_column": "group",
    }


def test_the_recipe_for_a_spawn_pool(folder):
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        states = list(pool.map(evaluate_shard, [1, 2, 3], [3] * 3, [str(folder)] * 3))
    assert figures(merge_states(states)) == figures(bv.evaluate(**job(folder)))
    for state in states:
        os.unlink(state)


@RAY
@pytest.mark.filterwarnings("ignore")
def test_the_recipe_for_map_batches(folder, tmp_path):
    """Ray Data hands pyarrow tables to actors; each keeps an evaluator and saves its state."""
    import ray

    class Losses:
        def __init__(self, place: str) -> None:
            import uuid

            import bigvocab

            self.evaluator = bigvocab.Evaluator(weight_column="weight", group_column="group", threads=1)
            self.path = f"{place}/{uuid.uuid4()}.state"

        def __call__(self, batch):
            losses = self.evaluator.update_batch(batch).drop_columns(["logits"])
            self.evaluator.save(self.path)
            return losses

    table, rows = batches_of(folder)
    pq.write_table(table, tmp_path / "all.parquet", row_group_size=rows)
    expected = bv.evaluate(**job(folder))
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        data = ray.data.read_parquet(str(tmp_path / "all.parquet"))
        losses = data.map_batches(
            Losses,
            fn_constructor_kwargs={"place": str(tmp_path)},
            batch_format="pyarrow",
            batch_size=rows,
            concurrency=2,
        )
        assert losses.count() == ROWS
    finally:
        ray.shutdown()
    assert figures(merge_states(list(tmp_path.glob("*.state")))) == figures(expected)


def test_workers_end_with_a_parent_that_is_killed(folder, tmp_path):
    code = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from bigvocab.jobs.workers.local import _end_with_parent
if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _end_with_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(600)
"""
    (tmp_path / "parent.py").write_text(code)
    with subprocess.Popen([sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, text=True) as parent:
        worker = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        worker.wait(60)
