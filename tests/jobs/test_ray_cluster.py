"""Clusters of Ray: what cannot be is said in seconds, and no worker with other files or another bigvocab counts a row.

Skipped where Ray is not installed; `scripts/test_engines` runs these. A node that differs is in namespaces of its own.
"""

import contextlib
import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import clusters
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import ENVIRONMENT
from sample_jobs import COLUMNS, values_of, write_job

import bigvocab as bv

ray = pytest.importorskip("ray")
PACKAGE = Path(bv.__file__).parent
SECONDS = 60  # for what must be said at once: a hang fails, however slow the machine
DIFFERING = pytest.mark.skipif(not clusters.can_unshare(), reason="no namespaces for this user")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_job(tmp_path_factory.mktemp("job"), 600, 300)


@pytest.fixture(scope="module")
def expected(folder):
    return values_of(bv.evaluate(**job(folder)))


@pytest.fixture(scope="module")
def empty_head(tmp_path_factory):
    """The address of a head without CPUs, for nodes that have some."""
    with clusters.head(tmp_path_factory.mktemp("head"), 0) as address:
        yield address


@pytest.fixture(autouse=True)
def _open_clusters(monkeypatch):
    for name, value in clusters.OPEN.items():
        monkeypatch.setenv(name, value)


def job(folder, **options):
    return {"logits": folder / "logits-0.npy", "labels": folder / "labels.parquet", **COLUMNS, **options}


def command(folder, address, *options, **environment):
    """`bigvocab eval` on a cluster, as a process; it is killed when it hangs."""
    given = ["--logits", folder / "logits-0.npy", "--labels", folder / "labels.parquet", "--address", address]
    given = [sys.executable, "-m", "bigvocab", "eval", *given, "--engine", "ray", *options]
    found = ENVIRONMENT | clusters.OPEN | environment
    return subprocess.run(given, env=found, capture_output=True, text=True, timeout=SECONDS)


def error_of(done):
    """The one line of a command that was refused."""
    assert done.returncode == 1, done.stdout
    lines = [line for line in done.stderr.splitlines() if not line.startswith("bigvocab: compiling")]
    assert len(lines) == 1, done.stderr
    return lines[0].removeprefix("bigvocab: error: ")


# ---- addresses, tokens and CPUs


@pytest.mark.parametrize("token", [None, "b" * 64])
def test_a_wrong_token_names_what_is_set(folder, tmp_path, token):
    given = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64}
    wrong = {} if token is None else {**given, "RAY_AUTH_TOKEN": token}
    with clusters.head(tmp_path, 1, **given) as address:
        said = error_of(command(folder, address, **wrong))
        assert said.startswith(f"address: no Ray at {address}: its token is another one than here")
        assert "RAY_AUTH_MODE" in said
        if token is None:
            assert command(folder, address, **given).returncode == 0


@contextlib.contextmanager
def server(answer):
    """The address of a server that sends `answer` to all who connect, and then nothing; None: never reads either."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        held = []

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    held.append(listening.accept()[0])
                    if answer is not None:
                        held[-1].sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in held:
                connection.close()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "no answer in 10 seconds; .*RAY_AUTH_MODE"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "what listens there is no Ray"),
        (b"-ERR unknown command\r\n", "what listens there is no Ray"),
    ],
)
def test_a_port_of_something_else(folder, answer, words):
    with server(answer) as address:
        assert re.match(f"address: no Ray at {address}: {words}", error_of(command(folder, address)))


def test_a_port_of_another_server_of_ray(folder, empty_head, tmp_path):
    """The port that nodes speak to each other on: it answers, but is no head."""
    with clusters.node(tmp_path, empty_head, "other", cpus=1):
        ray.init(address=empty_head, log_to_driver=False, logging_level="ERROR")
        try:
            ports = {node["NodeManagerPort"] for node in ray.nodes() if node["Alive"]}
            host = ray.nodes()[0]["NodeManagerAddress"]
        finally:
            ray.shutdown()
        said = error_of(command(folder, f"{host}:{ports.pop()}"))
        assert said.startswith("address: no Ray at ")


def test_a_cluster_without_cpus(folder, empty_head):
    said = error_of(command(folder, empty_head))
    assert said == "engine: no node of this Ray has a CPU for tasks, expected one that does"


@pytest.mark.parametrize(("workers", "threads"), [(1, 4), (2, None), (3, 2)])
def test_a_head_of_one_cpu_holds_any_workers(folder, expected, one_cpu, monkeypatch, workers, threads):
    given = {} if threads is None else {"threads": threads}
    assert values_of(bv.evaluate(**job(folder), engine="ray", address=one_cpu, workers=workers, **given)) == expected
    monkeypatch.setenv("RAY_ADDRESS", one_cpu)
    assert values_of(bv.evaluate(**job(folder), engine="ray", workers=workers, **given)) == expected


@pytest.fixture(scope="module")
def one_cpu(tmp_path_factory):
    with clusters.head(tmp_path_factory.mktemp("head"), 1) as address:
        yield address


# ---- nodes that differ


def write_other(folder, other, what):
    """A folder with the files of another one, of which one has other content of the same size."""
    shutil.copytree(folder, other)
    if what == "column":
        logits = np.load(other / "logits-0.npy")
        logits[:, 7] += 1
        np.save(other / "logits-0.npy", logits)
    elif what == "labels":
        table = pq.read_table(other / "labels.parquet")
        labels = pa.array(table["label"].to_pylist()[::-1])
        pq.write_table(table.set_column(0, "label", labels), other / "labels.parquet", row_group_size=100)
    elif what == "missing":
        (other / "labels.parquet").unlink()
    return other


@DIFFERING
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("column", "logits-0.npy: other content on worker other-node, working for {}, expected the same file on both"),
        ("labels", "labels.parquet: (other content|\\d+ bytes) on worker other-node, working for {}, expected"),
        (
            "missing",
            r"labels.parquet: cannot be read: No such file or directory \(on worker other-node, working for {}",
        ),
    ],
)
def test_a_worker_that_finds_other_files_is_refused(folder, empty_head, tmp_path, what, words):
    other = write_other(folder, tmp_path / "other", what)
    with clusters.node(tmp_path, empty_head, "other-node", [(folder, other)], cpus=2):
        said = error_of(command(folder, empty_head, "--workers", "2"))
    assert re.match(re.escape(f"{folder}/") + words.format(re.escape(socket.gethostname())), said), said


@DIFFERING
def test_a_comparison_refuses_such_a_worker_too(folder, empty_head, tmp_path):
    other = write_other(folder, tmp_path / "other", "column")
    np.save(tmp_path / "candidate.npy", np.load(folder / "logits-0.npy") * 2)
    with clusters.node(tmp_path, empty_head, "other-node", [(folder, other)], cpus=2):
        with pytest.raises(bv.FormatError, match=r"logits-0.npy: other content on worker other-node"):
            bv.compare(
                reference=folder / "logits-0.npy", candidate={"b": tmp_path / "candidate.npy"},
                labels=folder / "labels.parquet", engine="ray", address=empty_head,
            )  # fmt: skip


def write_package(folder, what):
    """Another bigvocab: an older one, one with other kernels, or none."""
    other = folder / "bigvocab"
    shutil.copytree(PACKAGE, other, ignore=shutil.ignore_patterns("__pycache__"))
    changed = other / ("__init__.py" if what == "version" else "kernels/jit.py")
    if what == "none":
        shutil.rmtree(other)
        other.mkdir()
    elif what == "version":
        text, count = re.subn(r'__version__ = "[^"]*"', '__version__ = "0.0.9"', changed.read_text())
        assert count == 1
        changed.write_text(text)
    else:
        changed.write_text(changed.read_text() + "\n# another line\n")
    return other


@DIFFERING
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("version", "engine: bigvocab 0.0.9 on worker other-node, working for {}, expected {}, as there"),
        ("kernels", r"engine: other kernels, or another Numba, of stamp \w+ on worker other-node, working for {}, exp"),
        (
            "none",
            r"engine: the task of rows 0-\d+ failed on worker [\w.]+: .*No module named 'bigvocab.*'; "
            "expected bigvocab .* there, as here",
        ),
    ],
)
def test_a_worker_with_another_bigvocab_is_refused(folder, empty_head, tmp_path, what, words):
    other = write_package(tmp_path, what)
    with clusters.node(tmp_path, empty_head, "other-node", [(PACKAGE, other)], cpus=2):
        said = error_of(command(folder, empty_head, "--workers", "2"))
    assert re.match(words.format(re.escape(socket.gethostname()), re.escape(bv.__version__)), said), said


@DIFFERING
def test_a_node_that_leaves_is_not_waited_for(folder, empty_head, tmp_path):
    """The one that had the CPUs; what was done is kept."""
    state = tmp_path / "state"
    with clusters.node(tmp_path, empty_head, "other-node", cpus=2) as node:

        def leave(done, total, read):
            if done and node.poll() is None:
                node.kill()

        with pytest.raises(bv.BigvocabError, match="engine: no node of Ray is left with 1 CPUs|failed again and again"):
            bv.evaluate(**job(folder), engine="ray", address=empty_head, progress=leave, state=state)
    report = bv.evaluate(**job(folder), state=state, resume=True)
    assert values_of(report) == values_of(bv.evaluate(**job(folder)))
