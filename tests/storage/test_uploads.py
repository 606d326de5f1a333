"""What ends an upload halfway leaves the object as it was."""

import signal
import subprocess
import sys
import threading

import pytest
from fault_server import serving

from bigvocab.storage.stores import store_of

BEFORE = b"before"
CONTENT = bytes(80 << 20)  # more than may be under way


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with serving() as (faults, _, query):
        faults.put("/b/x", BEFORE)
        yield faults, f"s3://b/x{query}"


@pytest.mark.parametrize("step", ["uploads", "partNumber"])
def test_an_interrupt_leaves_the_object_as_it_was(store, tmp_path, step):
    """As it begins, and after a part."""
    faults, uri = store
    (tmp_path / "x").write_bytes(CONTENT)

    def interrupt(query):
        if step in query and query.get("partNumber", "1") == "1":
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    faults.uploading = interrupt
    with pytest.raises(KeyboardInterrupt):
        store_of(uri).write(tmp_path / "x")
    faults.uploading = lambda query: None
    assert faults.objects == {"/b/x": BEFORE}
    store_of(uri).write(tmp_path / "x")
    assert faults.objects == {"/b/x": CONTENT}


CHILD = """
import sys
from pathlib import Path
from bigvocab.storage.stores import store_of

try:
    store_of(sys.argv[1]).write(Path(sys.argv[2]))
except KeyboardInterrupt:
    print("interrupted")
"""


def test_the_end_of_an_interrupted_process_leaves_the_object_as_it_was(store, tmp_path):
    """Streams that are open then are closed by their destructors, which would make what came so far the object."""
    faults, uri = store
    (tmp_path / "x").write_bytes(CONTENT)
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, uri, tmp_path / "x"], stdout=subprocess.PIPE, text=True
    ) as child:
        faults.uploading = lambda query: query.get("partNumber") == "1" and child.send_signal(signal.SIGINT)
        said, _ = child.communicate(timeout=60)
    assert (said, child.returncode) == ("interrupted\n", 0)
    assert faults.objects == {"/b/x": BEFORE}
