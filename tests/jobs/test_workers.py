"""Workers: all that were asked for are at work at once, and none counts rows of other files or by another bigvocab."""

import itertools
import os
import re
import socket
import sys
import threading

import numpy as np
import pytest
from sample_jobs import COLUMNS, values_of, write_job

import bigvocab as bv
from bigvocab.jobs.workers import seals
from bigvocab.jobs.workers.ray import Share, share_of
from bigvocab.sampling.candidates import write_candidates

ROWS, CLASSES = 600, 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_job(tmp_path_factory.mktemp("job"), ROWS, CLASSES, split=[250])


def job(folder, **options):
    return {"logits": str(folder / "logits-*.npy"), "labels": folder / "labels.parquet", **COLUMNS, **options}


# ---- how many workers, of what size


def places(nodes, cpus):
    return sum(int(node / cpus + 1e-9) for node in nodes)


@pytest.mark.parametrize("nodes", [[1], [2], [20], [4, 4, 4], [1, 16], [0, 8], [3, 5, 7], [0.5, 2], [192] * 50])
def test_all_workers_run_at_once_in_the_cpus_there_are(nodes):
    for threads, workers in itertools.product([None, 1, 2, 3, 4, 20, 1000], [None, 1, 2, 3, 4, 7, 20, 100]):
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
    assert values_of(report) == values_of(bv.evaluate(**job(folder)))
    assert ray.at_once >= (workers or sum(cpus) or len(os.sched_getaffinity(0)))


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


def change(path, at):
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
    monkeypatch.setattr(seals, "WHOLE", 0)
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
