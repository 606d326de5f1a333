"""Threads: how rows are shared among them, forks, concurrent callers, errors, interrupts, threads that cannot start."""

import os
import threading

import numpy as np
import pytest
from programs import run

import bigvocab as bv
from bigvocab.threads import run_threads


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


def test_an_error_in_a_thread_stops_the_others_and_is_raised():
    done = []

    def task(start, stop):
        done.append(start)
        if start == 3:
            raise ValueError("row 3")

    with pytest.raises(ValueError, match="row 3"):
        run_threads(task, 1000, 1, 2)
    assert len(done) < 1000


def test_batches_of_many_sizes_make_no_more_threads_than_asked_for():
    before = threading.active_count()
    for rows in range(1, 40, 3):
        bv.sparse_softmax_cross_entropy(np.zeros((rows, 1 << 20), np.float16), np.zeros(rows, int), num_threads=7)
    assert threading.active_count() <= before + 6


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
