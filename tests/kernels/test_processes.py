"""Ways a process may run: no HOME, no cache, a damaged one, spawn pools, threads, forks, many starts at once."""

import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest

import bigvocab as bv
from bigvocab.kernels import jit
from bigvocab.threads import run_threads

LOSS = """
import numpy as np, bigvocab as bv
x = np.random.default_rng(0).standard_normal((3, 5000), dtype=np.float32)
print(bv.sparse_softmax_cross_entropy(x, [1, 2, 3]).tobytes().hex())
"""


DRAW = """
import bigvocab as bv
print(bv.UniformSampler(1000).sample([[0]], 5, unique=False, seed=1).sampled_candidates.tolist())
"""  # kernels that are compiled in a third of a second
DRAWN = str(bv.UniformSampler(1000).sample([[0]], 5, unique=False, seed=1).sampled_candidates.tolist())


def expected():
    x = np.random.default_rng(0).standard_normal((3, 5000), dtype=np.float32)
    return bv.sparse_softmax_cross_entropy(x, [1, 2, 3]).tobytes().hex()


def run(code=LOSS, **changes):
    environment = {name: value for name, value in (os.environ | changes).items() if value is not None}
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def test_without_a_home():
    assert run(HOME=None, XDG_CACHE_HOME=None, BIGVOCAB_CACHE_DIR=None) == expected()


def test_without_any_place_to_write(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert run(DRAW, BIGVOCAB_CACHE_DIR=str(blocked)) == DRAWN
    assert blocked.read_text() == ""


def test_a_folder_that_others_could_write_is_not_trusted(tmp_path):
    shared = tmp_path / "cache"
    (shared / "kernels").mkdir(parents=True)
    (shared / "kernels").chmod(0o777)
    assert run(DRAW, BIGVOCAB_CACHE_DIR=str(shared)) == DRAWN
    assert not list((shared / "kernels").iterdir())


def test_a_damaged_cache_is_made_anew(tmp_path):
    assert run(DRAW, BIGVOCAB_CACHE_DIR=str(tmp_path)) == DRAWN
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert kept
    for path in kept:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert run(DRAW, BIGVOCAB_CACHE_DIR=str(tmp_path)) == DRAWN


@pytest.fixture
def seconds(monkeypatch):
    """The time of day of the clock of kernels, to be set by hand."""
    now = [0.0]
    monkeypatch.setattr(jit.clock, "now", lambda: now[0])
    monkeypatch.setattr(jit.clock, "spent", 0.0)
    return now


def passes(seconds, amount):
    """A task that takes this time."""
    return lambda *given: seconds.__setitem__(0, seconds[0] + amount)


def test_the_clock_stands_still_while_kernels_are_made_ready(seconds):
    inner = jit.clock.stopped_in(passes(seconds, 3.0))

    def outer():
        seconds[0] += 2.0
        inner()
        assert jit.clock() == 2
        seconds[0] += 1.0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jit.clock.stopped_in(outer)()
    seconds[0] += 4.0
    assert jit.clock() == 4


def test_the_clock_of_a_thread_does_not_heed_what_others_make_ready(seconds):
    thread = threading.Thread(target=jit.clock.stopped_in(passes(seconds, 3.0)))
    thread.start()
    thread.join()
    assert jit.clock() == 3


def test_seconds_of_a_report_are_those_of_the_work_without_loading(seconds, tmp_path):
    np.save(tmp_path / "logits.npy", np.zeros((4, 5), np.float32))

    def work(done, rows, read):
        jit.clock.stopped_in(passes(seconds, 100))()
        seconds[0] += 5

    job = {"logits": tmp_path / "logits.npy", "labels": np.zeros(4, int), "chunk_rows": 2, "metrics": ""}
    report = bv.evaluate(**job, progress=work, state=tmp_path / "state")
    assert report["seconds"] == 5  # between the first block and the second
    assert report["rows_per_second"] == 4 / 5
    assert bv.evaluate(**job, progress=work, state=tmp_path / "state", resume=True)["seconds"] == 5


def test_a_thread_that_waits_for_another_to_compile_is_not_at_work(seconds, monkeypatch):
    monkeypatch.setattr(jit, "folder", None)
    compiling, waited = threading.Event(), threading.Event()

    def compile_slowly(name, kept):
        compiling.set()
        waited.wait(10)
        seconds[0] += 10

    monkeypatch.setattr(jit, "listeners", [compile_slowly])
    kernel = jit.jit(lambda x: x + 1)
    other = threading.Thread(target=kernel, args=(1,))
    other.start()
    compiling.wait(10)
    threading.Timer(0.2, waited.set).start()  # time to come to the lock; too little would only not tell
    assert kernel(1) == 2
    other.join()
    assert (seconds[0], jit.clock()) == (10, 0)


@pytest.mark.parametrize("kept", [True, False])
def test_kernels_are_timed_whether_compiled_or_loaded(seconds, monkeypatch, tmp_path, kept):
    monkeypatch.setattr(jit, "folder", tmp_path if kept else None)
    load = jit.FunctionCache.load_overload

    def slow(*given):
        seconds[0] += 1
        return load(*given)

    monkeypatch.setattr(jit.FunctionCache, "load_overload", slow)
    monkeypatch.setattr(jit, "listeners", [lambda name, kept: seconds.__setitem__(0, seconds[0] + 10)])

    def kernel(x):
        return x + 1

    for took in (11, 12) if kept else (10, 20):
        assert jit.jit(kernel)(1) == 2
        assert seconds[0] == took
        assert jit.clock() == 0


def test_many_starts_at_once_on_a_cold_cache(tmp_path):
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda _: run(DRAW, BIGVOCAB_CACHE_DIR=str(tmp_path)), range(3)))
    assert results == [DRAWN] * 3


def evaluate_part(path, start, stop):
    ev = bv.Evaluator()
    ev.update(bv.open_matrix(path)[start:stop], np.arange(start, stop))
    return ev


def test_a_spawn_pool(tmp_path):
    logits = np.random.default_rng(1).standard_normal((40, 300)).astype(np.float16)
    np.save(tmp_path / "logits.npy", logits)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        parts = [pool.submit(evaluate_part, str(tmp_path / "logits.npy"), a, a + 10) for a in range(0, 40, 10)]
        merged = parts[0].result()
        for part in parts[1:]:
            merged.merge(part.result())
    whole = bv.Evaluator()
    whole.update(logits, np.arange(40))
    assert merged.report().to_dict() == whole.report().to_dict()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_threads_of_its_own():
    code = """
import os, numpy as np, bigvocab as bv, warnings
warnings.simplefilter("ignore")
x, y = np.zeros((64, 200_000), np.float32), np.zeros(64, int)
bv.sparse_softmax_cross_entropy(x, y, num_threads=4)
child = os.fork()
if child == 0:
    bv.sparse_softmax_cross_entropy(x, y, num_threads=4)
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run(code) == "7"


def test_concurrent_callers_do_not_disturb_one_another():
    rng = np.random.default_rng(2)
    jobs = [(rng.standard_normal((50, 30_000), dtype=np.float32), rng.integers(0, 30_000, 50)) for _ in range(4)]
    alone = [bv.sparse_softmax_cross_entropy(x, y) for x, y in jobs]
    together = [None] * len(jobs)

    def call(i):
        together[i] = bv.sparse_softmax_cross_entropy(*jobs[i], num_threads=3)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_error_in_a_thread_stops_the_others_and_is_raised():
    done = []

    def task(start, stop):
        done.append(start)
        if start == 3:
            raise ValueError("row 3")

    with pytest.raises(ValueError, match="row 3"):
        run_threads(task, 1000, 1, 2)
    assert len(done) < 1000


def test_ranges_cover_all_once_and_become_short():
    for threads in (1, 2, 3):
        seen = []
        run_threads(lambda a, b: seen.append((a, b)), 1000, 4, threads, most=300)  # noqa: B023
        seen.sort()
        assert [start for start, _ in seen] == [0, *(stop for _, stop in seen[:-1])]
        assert seen[-1][1] == 1000
        sizes = [stop - start for start, stop in seen]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] == min(300, 1000 // (2 * threads))
        assert all(size >= 4 for size in sizes[:-1])
        assert sizes[-2] == 4


def test_memory_stays_bounded_whatever_the_file(tmp_path):
    """Two gigabytes, mostly holes, of more classes than fit in 16 bits: anonymous memory must hardly grow, and what is
    mapped of the file by no more than twice what is let go of at a time: threads read on while that is done.
    """
    if not os.path.exists("/proc/self/status"):
        pytest.skip("needs /proc")
    path = tmp_path / "logits.npy"
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (512, 1 << 20)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 512 * 4 * (1 << 20))
    code = f"""
import numpy as np, bigvocab as bv
from pathlib import Path
def mebibytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith(name))
import bigvocab.jobs.evaluation, bigvocab.kernels.softmax
path, before, seen = {str(path)!r}, mebibytes("RssAnon"), []
look = lambda *_: seen.append(mebibytes("RssAnon"))
bv.evaluate(logits=path, labels=np.arange(512), progress=look, max_memory="128M", threads=2)
now = mebibytes("VmRSS")
bv.evaluate(logits=path, labels=np.arange(512), threads=2)
print(max(seen) - before, mebibytes("VmHWM") - now)
"""
    anonymous, mapped = map(int, run(code).split())
    assert anonymous <= 300
    assert mapped <= 2 * 256


@pytest.mark.skipif(sys.platform != "linux", reason="bus errors are told apart on Linux")
def test_a_bus_error_has_a_message_and_leaves_nothing(tmp_path):
    """Between the check of a file's size and the read of its pages it may still shrink; its name may be any."""
    tmp_path = tmp_path / "od\x1bd"
    tmp_path.mkdir()
    np.save(tmp_path / "logits.npy", np.zeros((64, 300_000), np.float32))
    np.save(tmp_path / "labels.npy", np.zeros(64, np.int64))
    code = f"""
import os, sys
from bigvocab.command import cli
from bigvocab.matrices import matrix
from bigvocab.command import progress
matrix.Matrix.check = lambda self: None
shown = progress.Display.update
def update(self, done, total, read):
    os.truncate("{tmp_path}/logits.npy", 10_000_000)
    shown(self, done, total, read)
progress.Display.update = update
cli.cli(["eval", "--logits", "{tmp_path}/logits.npy", "--labels", "{tmp_path}/labels.npy",
          "--output", "{tmp_path}/out.parquet", "--chunk-rows", "8", "--quiet"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    place = str(tmp_path).replace("\x1b", r"\x1b")
    shrank = f"{place}/logits.npy: shrank while it is read, from 76800128 to 10000000 bytes"
    assert done.stderr == f"bigvocab: error: {shrank} (bus error); no output was written\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.npy", "logits.npy"]


def test_no_kernel_is_made_ready_while_the_clock_runs(tmp_path):
    """Nor a module of kernels imported, though a few rows make none ready before."""
    code = """
import sys
import numpy as np
import bigvocab as bv
from bigvocab.jobs import checkpoints
from bigvocab.kernels import jit
begin = checkpoints.Checkpoints.begin
def begin_and_look(self):
    begin(self)
    before.update(sys.modules)
    jit.clock.spent = 0.0
checkpoints.Checkpoints.begin = begin_and_look
for rows in (4, 400):
    x, ids = np.zeros((rows, 5), np.float32), (np.arange(rows + 1), np.zeros(rows, int))
    for loss, labels in (("softmax", x + 0.2), ("sparse-softmax", ids[1]), ("sigmoid", x), ("sparse-sigmoid", ids)):
        before = set()
        bv.evaluate(logits=x, labels=labels, loss=loss)
        new = set(sys.modules) - before
        if rows == 4:
            print(loss, sorted(name for name in new if name.startswith("bigvocab")), "not loaded before")
        else:
            print(loss, sorted(new), jit.clock.spent)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    losses = ("softmax", "sparse-softmax", "sigmoid", "sparse-sigmoid")
    expected = [f"{loss} [] {loaded}" for loaded in ("not loaded before", "0.0") for loss in losses]
    assert done.stdout.splitlines() == expected


def test_a_thread_that_outlives_the_main_one():
    """Python lets no thread begin by then: the one that is left does all."""
    code = """
import threading, time
import numpy as np, bigvocab as bv
x, y = np.zeros((4000, 4000), np.float32), np.zeros(4000, int)
before = bv.evaluate(logits=x, labels=y)["sum"]  # whatever is imported later wants threads too
def job():
    while threading.main_thread().is_alive():
        time.sleep(0.01)
    time.sleep(0.2)
    print(len(bv.sparse_softmax_cross_entropy(x, y)), bv.evaluate(logits=x, labels=y)["sum"] == before)
threading.Thread(target=job).start()
"""
    assert run(code) == "4000 True"


def test_batches_of_many_sizes_make_no_more_threads_than_asked_for():
    before = threading.active_count()
    for rows in range(1, 40, 3):
        bv.sparse_softmax_cross_entropy(np.zeros((rows, 1 << 20), np.float16), np.zeros(rows, int), num_threads=7)
    assert threading.active_count() <= before + 6


@pytest.mark.parametrize(("name", "error"), [("SIGINT", "KeyboardInterrupt"), ("SIGTERM", "SystemExit")])
def test_no_task_goes_on_after_an_end_was_asked_for_twice(name, error):
    code = f"""
import signal, threading, time
from bigvocab.threads import run_threads
began, ended = threading.Event(), []
def leave(number, frame):
    raise {error}
signal.signal(signal.{name}, leave)
def task(start, stop):
    if threading.current_thread() is threading.main_thread():
        began.wait()
        for after in (0.1, 0.3):
            threading.Timer(after, signal.pthread_kill, [threading.get_ident(), signal.{name}]).start()
        time.sleep(5)
    else:
        began.set()
        time.sleep(1)
        ended.append(start)
try:
    run_threads(task, 2, 1, 2)
except {error}:
    print(len(ended))
"""
    assert run(code) == "1"


def test_a_task_whose_thread_could_not_be_started_is_waited_for_or_left_out():
    """What a pool has taken in before it failed may be done by a thread that it has."""
    code = """
import threading, time
from unittest import mock
import numpy as np
from bigvocab.threads import pool_of, run_threads
started, go, done = threading.Event(), threading.Event(), np.zeros(8)
pool = pool_of(1)
pool.submit(lambda: (started.set(), go.wait()))  # its thread has something else to do
started.wait()
submit = pool.submit
def failing(task):
    submit(task)
    raise RuntimeError("can't start new thread")
def fill(start, stop):
    go.set()
    time.sleep(0.05 if threading.current_thread() is threading.main_thread() else 0.5)
    done[start:stop] = 1
with mock.patch.object(pool, "submit", failing):
    run_threads(fill, 8, 1, 2)
print(int(done.sum()), end=" ")
done[:] = 0
time.sleep(1)
print(int(done.sum()))
"""
    assert run(code) == "8 0"
