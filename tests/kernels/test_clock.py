"""The clock of reports stands still while kernels are compiled or loaded."""

import subprocess
import sys
import threading

import numpy as np
import pytest

import bigvocab as bv
from bigvocab.kernels import jit


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
