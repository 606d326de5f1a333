"""Clusters of Ray on this machine: a head, and nodes that see other files and have another name, for tests of workers.

A node is in namespaces of its own (`unshare`), where files and folders may be others under the same paths.
"""

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

RAY = Path(sys.executable).with_name("ray")
OPEN = {"RAY_AUTH_MODE": "disabled"}  # for whoever connects to a cluster of these
_SECONDS = 60


def can_unshare():
    """Whether this user may have namespaces of its own."""
    command = ["unshare", "-rm", "--uts", "sh", "-c", "hostname x && mount --bind /usr /usr"]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def _started(command, log, environment):
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, start_new_session=True, env={**os.environ, **OPEN, **environment}
        )
    try:
        end = time.monotonic() + _SECONDS
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield process
    finally:
        process.terminate()  # it ends what it has started
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def head(folder, cpus, **environment):
    """The address of a head with so many CPUs; its log lies in the folder."""
    port = free_port()
    command = [RAY, "start", "--head", f"--port={port}", f"--num-cpus={cpus}", "--block", "--disable-usage-stats"]
    command += ["--include-dashboard=false", "--node-ip-address=127.0.0.1"]
    try:
        with _started(command, folder / "head.log", environment):
            yield f"127.0.0.1:{port}"
    finally:
        note = Path("/tmp/ray/ray_current_cluster")  # which a head leaves behind
        if note.exists() and note.read_text().endswith(f":{port}"):
            note.unlink()


@contextlib.contextmanager
def node(folder, address, name, mounts=(), cpus=1, host="127.0.0.2", **environment):
    """One more node, of this name, where each (path, other) of `mounts` has the content of `other` under `path`."""
    start = [RAY, "start", f"--address={address}", f"--num-cpus={cpus}", "--block", "--disable-usage-stats"]
    start += [f"--node-ip-address={host}"]
    lines = [shlex.join(["hostname", name])]
    lines += [shlex.join(["mount", "--bind", str(other), str(path)]) for path, other in mounts]
    lines += ["exec " + shlex.join(map(str, start))]
    command = ["unshare", "-rm", "--uts", "sh", "-ec", "\n".join(lines)]
    with _started(command, folder / f"{name}.log", environment) as process:
        yield process
