"""A run may end at any moment, in any way: it goes on and ends with the same bits; no row is lost or counted twice."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import ENVIRONMENT
from sample_jobs import COLUMNS, values_of, write_job

import bigvocab as bv
from bigvocab.evaluation.state import read_state
from bigvocab.evaluation.tally import Tally
from bigvocab.jobs import checkpoints
from bigvocab.jobs.merging import merge

ROWS, CLASSES, CHUNK = 240, 300, 20
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, to kill many runs in little time")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_job(tmp_path_factory.mktemp("job"), ROWS, CLASSES)


def job(folder, **options):
    files = {"logits": folder / "logits-0.npy", "labels": folder / "labels.parquet"}
    return {**files, "chunk_rows": CHUNK, **COLUMNS, **options}


@pytest.fixture(scope="module")
def whole(folder):
    report = bv.evaluate(**job(folder), output=folder / "whole.parquet")
    return values_of(report), (folder / "whole.parquet").read_bytes()


@pytest.fixture
def at_every_block(monkeypatch):
    monkeypatch.setattr(checkpoints, "MIN_SECONDS", 0)
    monkeypatch.setattr(checkpoints, "SHARE", 0)


def interrupted(folder, place, rows, error=KeyboardInterrupt, **options):
    """Run the job up to so many rows, where the caller's progress raises."""

    def stop(done, total, read):
        if done >= rows:
            raise error

    with pytest.raises(error):
        bv.evaluate(**job(folder), state=place / "s", output=place / "losses.parquet", progress=stop, **options)


def resumed(folder, place, **options):
    report = bv.evaluate(**job(folder), state=place / "s", output=place / "losses.parquet", resume=True, **options)
    return values_of(report), (place / "losses.parquet").read_bytes()


def left(place):
    return sorted(path.name for path in place.iterdir())


# ---- many ends

# A process of its own that forks a child for each run, so that nothing is imported twice; a body says what kills them.
NURSERY = """
import os, pathlib, random, resource, signal, sys, time
import bigvocab as bv
from bigvocab import kernels
from bigvocab.jobs import checkpoints
from bigvocab.matrices import matrix
from bigvocab.kernels import softmax
from bigvocab.jobs.merging import merge
from bigvocab.evaluation.state import read_state
import bigvocab.evaluation.evaluator, bigvocab.jobs.evaluation, bigvocab.storage.output
checkpoints.MIN_SECONDS = checkpoints.SHARE = 0
folder, place = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
state, output = place / "s", place / "losses.parquet"

def evaluate(**options):
    return bv.evaluate(logits=folder / "logits-0.npy", labels=folder / "labels.parquet", chunk_rows=20,
        weight_column="weight", group_column="group", state=state, output=output, resume=True, threads=1, **options)

def child(prepare, **options):
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        prepare()
        evaluate(**options)
        code = 0
    except bv.BigvocabError as error:
        print(error, file=sys.stderr)
        code = 1
    finally:
        os._exit(code)

def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

whole = bv.evaluate(logits=folder / "logits-0.npy", labels=folder / "labels.parquet", weight_column="weight",
    group_column="group", threads=1, output=place / "warm")  # kernels are loaded once, for all children
(place / "warm").unlink()

def same():
    times = ("seconds", "rows_per_second", "bytes_per_second")
    values = [{k: v for k, v in r.to_dict().items() if k not in times} for r in (whole, merge([state]))]
    assert values[0] == values[1]
    assert output.read_bytes() == (folder / "whole.parquet").read_bytes()
    assert sorted(p.name for p in place.iterdir()) == ["losses.parquet", "s"], list(place.iterdir())
"""


def nursery(folder, place, body, **kwargs):
    code = NURSERY + textwrap.dedent(body)
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(place)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        **kwargs,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_kill_at_random_moments_many_times(folder, whole, tmp_path):
    """Slow blocks, a checkpoint after each, and a kill -9 after a random time, until a run gets to its end."""
    out = nursery(
        folder,
        tmp_path,
        """
        rng, kills, rows = random.Random(4), 0, 0
        started = time.monotonic()
        bv.evaluate(logits=folder / "logits-0.npy", labels=folder / "labels.parquet", threads=1, weight_column="weight")
        LONGEST = 0.06 + 2 * (time.monotonic() - started)
        check = matrix.Matrix.check
        def slow():
            def waiting(self):
                time.sleep(0.004)
                check(self)
            matrix.Matrix.check = waiting
        for _ in range(500):
            pid = child(slow)
            time.sleep(rng.uniform(0.0, LONGEST))
            os.kill(pid, signal.SIGKILL)
            code = ended(pid)
            if code == 0:
                break
            assert code == -9, code
            kills += 1
            if state.exists():
                now = sum(b - a for a, b in read_state(state).coverage.ranges)
                assert now >= rows, (now, rows)
                rows = now
        else:
            raise AssertionError("never got to the end")
        same()
        print(kills)
        """,
    )
    assert int(out) >= 5


DOORS = """
doors = [(os, name) for name in ("open", "write", "fsync", "ftruncate", "close")]
doors += [(pathlib.Path, name) for name in ("replace", "unlink")]
def dies_at(count, before):
    left = [count]
    def wrap(home, name):
        function = getattr(home, name)
        def counted(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0 and before:
                os.kill(os.getpid(), signal.SIGKILL)
            mine = left[0] == 0
            try:
                return function(*args, **kwargs)
            finally:
                if mine:
                    os.kill(os.getpid(), signal.SIGKILL)
        setattr(home, name, counted)
    for home, name in doors:
        wrap(home, name)
"""


@pytest.mark.parametrize("before", [True, False])
def test_kill_at_each_step_of_each_checkpoint(folder, whole, tmp_path, before):
    """Just before and just after each call that opens, writes, syncs, cuts, renames or removes a file."""
    body = DOORS + textwrap.dedent(
        """
        step, kills = 1, 0
        while True:
            pid = child(lambda: dies_at(step, BEFORE))
            code = ended(pid)
            if code == -9:
                kills += 1
                assert ended(child(lambda: None)) == 0
            else:
                assert code == 0
            same()
            for path in list(place.iterdir()):
                path.unlink()
            if code == 0:
                break
            step += 1 if step < 40 or kills > 140 else 3  # all of the first checkpoints, and then others
        print(kills)
        """.replace("BEFORE", str(before))
    )
    assert int(nursery(folder, tmp_path, body)) > 50


def test_a_full_disk(folder, whole, tmp_path):
    """Files may have only so many bytes: the run says so, keeps what is done, and goes on when there is room."""
    out = nursery(
        folder,
        tmp_path,
        """
        full = 0
        for limit in range(500, 40_000, 1_700):
            code = ended(child(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))))
            assert code in (0, 1), code
            assert not [p for p in place.iterdir() if p.name.startswith(".")]
            if code == 0:
                break
            full += 1
            if state.exists():
                read_state(state)
        same()
        print(full)
        """,
    )
    assert int(out) >= 5


def test_a_full_disk_says_what_is_kept(folder, tmp_path, at_every_block, monkeypatch):
    written = checkpoints.os.write

    def full(handle, data):
        if read_state(tmp_path / "s").coverage.ranges == [[0, 100]]:
            written(handle, bytes(data)[:7])  # some of it, as systems do
            raise OSError(28, "No space left on device")
        return written(handle, data)

    with monkeypatch.context() as patched:
        bv.evaluate(**job(folder), state=tmp_path / "other")  # so that nothing but the lines is written by os.write
        (tmp_path / "other").unlink()
        patched.setattr(
            checkpoints.os, "write", lambda h, d: full(h, d) if (tmp_path / "s").exists() else written(h, d)
        )
        with pytest.raises(
            bv.BigvocabError, match=r"s\.lines: cannot be written: No space left on device; 100 rows are done and kept"
        ):
            bv.evaluate(**job(folder), state=tmp_path / "s", output=tmp_path / "losses.parquet")
    assert left(tmp_path) == ["s", "s.lines"]
    assert resumed(folder, tmp_path) == (values_of(bv.evaluate(**job(folder))), (folder / "whole.parquet").read_bytes())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_of_the_command_keeps_the_last_block(folder, whole, tmp_path, number):
    """No checkpoint was due: the one that is written is that of the end."""
    code = """
import signal, time
from bigvocab.command import cli
from bigvocab.matrices import matrix
signal.signal(signal.SIGINT, signal.default_int_handler)  # which jobs in the background have switched off
check, seen = matrix.Matrix.check, []
def slow(self):
    check(self)
    seen.append(1)
    print(len(seen), flush=True)
    time.sleep(0.02)
matrix.Matrix.check = slow
cli.main()
"""
    arguments = [
        "eval",
        "--logits",
        str(folder / "logits-0.npy"),
        "--labels",
        str(folder / "labels.parquet"),
        "--weight-column",
        "weight",
    ]
    arguments += [
        "--group-column",
        "group",
        "--chunk-rows",
        str(CHUNK),
        "--state",
        str(tmp_path / "s"),
        "--output",
        str(tmp_path / "losses.parquet"),
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.stdout.readline().strip() != "8":
        assert process.poll() is None, process.stderr.read()
    process.send_signal(number)
    error = process.communicate()[1]
    assert process.returncode == (1 if number == signal.SIGINT else 128 + number)
    assert "Traceback" not in error
    ((start, stop),) = read_state(tmp_path / "s").coverage.ranges
    assert start == 0
    assert 80 <= stop < ROWS
    assert left(tmp_path) == ["s", "s.lines"]
    assert resumed(folder, tmp_path) == whole
    assert left(tmp_path) == ["losses.parquet", "s"]


# ---- going on


def test_going_on_is_the_same_run(folder, whole, tmp_path, at_every_block):
    interrupted(folder, tmp_path, 100)
    interrupted(folder, tmp_path, 160, resume=True)
    assert resumed(folder, tmp_path, threads=1, max_memory="1M") == whole
    again = resumed(folder, tmp_path)  # a run that has ended reports again
    assert again == whole
    (tmp_path / "losses.parquet").write_bytes(b"of another job")
    with pytest.raises(bv.BigvocabError, match=r"losses\.parquet: is not what the run of .*s wrote"):
        resumed(folder, tmp_path)
    (tmp_path / "losses.parquet").unlink()
    with pytest.raises(bv.BigvocabError, match=r"losses\.parquet: is gone, and the run of .*s has ended"):
        resumed(folder, tmp_path)


@pytest.mark.parametrize("place", ["before", "after"])
def test_an_end_in_the_middle_of_a_block_does_not_count_it(folder, whole, tmp_path, monkeypatch, place):
    """Ctrl-C may come between the lines and the sums of a block, or between its sums and the note that it is done."""
    add, calls = Tally.add, []

    def interrupted_add(self, *args):
        calls.append(1)
        if len(calls) == 6 and place == "before":
            raise KeyboardInterrupt
        add(self, *args)
        if len(calls) == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Tally, "add", interrupted_add)
        with pytest.raises(KeyboardInterrupt):
            bv.evaluate(**job(folder), state=tmp_path / "s", output=tmp_path / "losses.parquet")
    assert resumed(folder, tmp_path) == whole


def test_without_a_state_there_is_a_start(folder, whole, tmp_path):
    assert resumed(folder, tmp_path) == whole


def test_a_shard_of_classes_goes_on(folder, tmp_path, at_every_block):
    class Stop(Exception):
        pass

    def stop(done, total, read):
        if done >= 100:
            raise Stop

    for i in (1, 2):
        with pytest.raises(Stop):
            bv.evaluate(**job(folder), vocab_shard=(i, 2), state=tmp_path / f"{i}", progress=stop)
        with pytest.raises(bv.BigvocabError, match="its run has not ended; finish it with --resume"):
            merge([tmp_path / f"{i}"])
        bv.evaluate(**job(folder), vocab_shard=(i, 2), state=tmp_path / f"{i}", resume=True)
        bv.evaluate(**job(folder), vocab_shard=(i, 2), state=tmp_path / f"{i}x")
        assert read_state(tmp_path / f"{i}").table.equals(read_state(tmp_path / f"{i}x").table)
    assert left(tmp_path) == ["1", "1x", "2", "2x"]


def test_draws_that_learn_go_on(folder, tmp_path, at_every_block):
    rng = np.random.default_rng(2)
    layer, hidden = rng.standard_normal((50, 8), np.float32), rng.standard_normal((2000, 8), np.float32)
    options = {
        "inputs": hidden,
        "weights": layer,
        "labels": rng.integers(0, 50, 2000),
        "loss": "nce",
        "sampler": "learned-unigram",
    }
    options |= {"num_sampled": 5, "seed": 3, "chunk_rows": 300}
    expected = values_of(bv.evaluate(**options))

    def stop(done, total, read):
        if done >= 900:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bv.evaluate(**options, state=tmp_path / "s", progress=stop)
    assert values_of(bv.evaluate(**options, state=tmp_path / "s", resume=True)) == expected
    with pytest.raises(bv.BigvocabError, match="shard: does not go with learned-unigram, which learns"):
        bv.evaluate(**options, shard="1/2")


def test_changed_inputs_and_options_are_refused(folder, tmp_path, at_every_block):
    interrupted(folder, tmp_path, 100)
    before = (tmp_path / "s").read_bytes()

    def refused(match, **options):
        with pytest.raises(bv.BigvocabError, match=match):
            bv.evaluate(
                **{**job(folder), "output": tmp_path / "losses.parquet", "resume": True, "state": tmp_path / "s"}
                | options
            )

    np.save(tmp_path / "logits-0.npy", np.load(folder / "logits-0.npy") + 1)
    refused(
        r"this run: the content of .*logits-0\.npy is not that of the logits in .*s; expected the same files",
        logits=tmp_path / "logits-0.npy",
    )
    refused("this run: label_smoothing is 0.1, but 0.0 in ", label_smoothing=0.1)
    refused("this run: metrics is", metrics="rank")
    refused("this run: rows is 0-119, but 0-239 in", shard="1/2")
    refused("this run: output is False, but True in", output=None)
    refused("this run: group is None, but 'group' in", group_column=None)
    refused("already exists; pass --resume to continue", resume=False)
    with pytest.raises(bv.BigvocabError, match="resume: needs state"):
        bv.evaluate(**job(folder), resume=True)
    assert (tmp_path / "s").read_bytes() == before
    table = pq.read_table(folder / "labels.parquet")
    labels = table["label"].to_pylist()
    labels[200] = (labels[200] or 0) + 1
    pq.write_table(table.set_column(0, "label", pa.array(labels)), tmp_path / "labels.parquet", row_group_size=100)
    refused(r"of .*labels\.parquet is not that of the labels", labels=tmp_path / "labels.parquet")


def test_lines_that_are_gone_are_not_made_up(folder, tmp_path, at_every_block):
    interrupted(folder, tmp_path, 100)
    os.truncate(tmp_path / "s.lines", 1000)
    with pytest.raises(bv.BigvocabError, match=r"s\.lines: 1,?000 bytes, expected at least"):
        resumed(folder, tmp_path)


def test_two_runs_on_one_state(folder, whole, tmp_path, at_every_block):
    def second(done, total, read):
        if done == 100:
            with pytest.raises(bv.BigvocabError, match="s: another run is writing it; expected one run for each state"):
                resumed(folder, tmp_path)

    report = bv.evaluate(**job(folder), state=tmp_path / "s", output=tmp_path / "losses.parquet", progress=second)
    assert values_of(report) == whole[0]
    assert left(tmp_path) == ["losses.parquet", "s"]


def test_a_lock_of_a_dead_run_is_none(folder, whole, tmp_path):
    (tmp_path / "s.lock").write_text("")
    assert resumed(folder, tmp_path) == whole


def test_clocks_that_go_backwards(folder, whole, tmp_path, at_every_block, monkeypatch):
    """The time of day may jump by years between and within runs, and files may come from the future."""
    now = iter(range(2_000_000_000, 0, -100_000))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    interrupted(folder, tmp_path, 100)
    for name in ("s", "s.lines"):
        os.utime(tmp_path / name, (4e9, 4e9))
    assert resumed(folder, tmp_path) == whole
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)  # another machine, just started
    assert (
        bv.evaluate(**job(folder), state=tmp_path / "s", output=tmp_path / "losses.parquet", resume=True)["seconds"]
        >= 0
    )


# ---- cost and reports


def test_checkpoints_cost_less_than_a_hundredth(tmp_path, folder, monkeypatch):
    """The next one waits at least 200 times what the last one took."""
    fresh = bv.Evaluator()
    fresh.update(np.zeros((1, 2)), [0])
    fresh.save(tmp_path / "x")
    clock = [0.0]
    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    saves = []

    def slow(path, state, fixed):
        clock[0] += 0.5
        saves.append(clock[0])

    monkeypatch.setattr(checkpoints, "write_state", slow)

    def progress(done, total, read):
        clock[0] += 20.0  # a block takes 20 s, so that the whole takes 260

    bv.evaluate(**job(folder), state=tmp_path / "s", progress=progress)
    gaps = np.diff(saves[:-1])
    assert len(saves) == 1 + 2 + 1  # at the start, while it runs, at the end
    assert min(gaps) >= 100


def test_the_report_so_far(folder, tmp_path):
    seen = []

    def look(done, total, read):
        if (tmp_path / "report.json").exists():
            seen.append(json.loads((tmp_path / "report.json").read_text()))

    report = bv.evaluate(**job(folder), report=tmp_path / "report.json", report_every=0, progress=look)
    assert [partial["progress"] for partial in seen] == [
        {"rows_done": done, "rows_total": ROWS} for done in range(0, ROWS, CHUNK) if done % 100 in (0, 20, 40, 60, 80)
    ]
    assert sum(seen[3][name] for name in ("rows", "ignored_rows")) == seen[3]["progress"]["rows_done"]
    last = json.loads((tmp_path / "report.json").read_text())
    assert "progress" not in last
    assert last["mean"] == report["mean"]


def test_a_state_that_cannot_be_written_is_known_at_once(folder, tmp_path):
    with pytest.raises(bv.BigvocabError, match="cannot be written"):
        bv.evaluate(**job(folder), state=tmp_path / "no" / "s")
    with pytest.raises(bv.BigvocabError, match="cannot be written"):
        bv.evaluate(**job(folder), state=tmp_path)
    assert not left(tmp_path)
