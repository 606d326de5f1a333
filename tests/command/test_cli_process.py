"""The command as a process of its own: pipes, terminals and signals."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import commands
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import ENVIRONMENT, EVAL, ROWS, process

from bigvocab.command.progress import Display
from bigvocab.kernels import jit


@pytest.fixture
def data(tmp_path, monkeypatch):
    return commands.make_data(tmp_path, monkeypatch)


def test_stdout_is_the_result_alone_and_nothing_moves_on_a_pipe(data):
    for flags in ((), ("--quiet",), ("-q",)):
        found = process(*EVAL, "--format", "json", *flags)
        assert found.returncode == 0
        assert json.loads(found.stdout)["rows"] == ROWS
        assert "rows/s" not in found.stderr
        assert "\x1b" not in found.stderr


def on_a_terminal(*arguments, stream):
    """Run with this stream on a pseudo-terminal; what came there, and the exit code."""
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    others = {name: subprocess.DEVNULL for name in ("stdout", "stderr", "stdin") if name != stream}
    command = [sys.executable, "-m", "bigvocab", *arguments]
    with subprocess.Popen(command, env=ENVIRONMENT, **{stream: slave}, **others) as running:
        os.close(slave)
        parts = []
        while True:
            try:
                part = os.read(master, 65536)
            except OSError:  # Linux says so at the end
                break
            if not part:
                break
            parts.append(part)
    os.close(master)
    return b"".join(parts).decode(), running.returncode


def test_a_bar_is_on_a_terminal_unless_quiet(data):
    seen, code = on_a_terminal(*EVAL, stream="stderr")
    assert code == 0
    assert f"{ROWS}/{ROWS} rows" in seen
    assert "\x1b[?25h" in seen  # the cursor is back
    assert seen.endswith("\x1b[1A\x1b[2K")  # and the line is wiped
    assert on_a_terminal(*EVAL, "--quiet", stream="stderr") == ("", 0)


def test_the_table_has_colours_on_a_terminal_only(data):
    seen, _ = on_a_terminal(*EVAL, stream="stdout")
    assert "\x1b[36m" in seen
    assert "perplexity" in seen
    assert "\x1b" not in process(*EVAL).stdout
    seen, _ = on_a_terminal(*EVAL, "--format", "json", stream="stdout")
    assert json.loads(seen)["rows"] == ROWS


def test_compiling_is_said_once_and_not_when_quiet(data):
    code = (
        "import sys, bigvocab.jobs.evaluation as e\n"
        "from bigvocab.kernels import jit\n"
        "work = e.evaluate\n"
        "def evaluate(**given):\n"
        "    for name in 'ab': jit.announce(name)\n"
        "    return work(**given)\n"
        "e.evaluate = evaluate\n"
        "from bigvocab.command.cli import main\n"
        "main()\n"
    )
    for flags, times in (((), 1), (("--quiet",), 0)):
        command = [sys.executable, "-c", code, *EVAL, *flags]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == 0
        assert done.stderr.count("compiling kernels") == done.stderr.count("\n") == times


def test_compiling_that_is_not_kept_says_why(monkeypatch, capsys):
    monkeypatch.setattr(jit, "folder", None)
    monkeypatch.setattr(jit, "listeners", [])
    Display(quiet=False).watch_compiler()
    jit.announce("rows_softmax")
    assert "each time: no folder to keep them in; set BIGVOCAB_CACHE_DIR" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error(data):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "bigvocab", *EVAL, "--fail-if", "rows > 1"]
    done = subprocess.run(command, env=ENVIRONMENT, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith("bigvocab: failed: rows > 1")
    assert "Broken" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_stdout_is_an_error(data):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "bigvocab", *EVAL]
        done = subprocess.run(command, env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "bigvocab: error: standard output: No space left on device"
    assert "Traceback" not in done.stderr


def test_a_terminal_without_unicode_gets_plain_letters(data):
    labels = pq.read_table("labels.parquet").set_column(2, "group", pa.array(["Κύριος"] * ROWS))
    pq.write_table(labels, "labels.parquet")
    command = [sys.executable, "-m", "bigvocab", *EVAL, "--group-column", "group"]
    done = subprocess.run(command, env={**ENVIRONMENT, "PYTHONIOENCODING": "ascii"}, capture_output=True)
    assert done.returncode == 0
    assert b"+/-" in done.stdout
    assert rb"\u039a" in done.stdout


@pytest.mark.parametrize(("number", "code", "said"), [(signal.SIGINT, 1, "interrupted"), (signal.SIGTERM, 143, "")])
def test_a_signal_ends_the_work_and_leaves_no_output(tmp_path, number, code, said):
    rows, classes = 16_000, 1_000_000
    with open(tmp_path / "logits.bin", "wb") as file:
        file.truncate(2 * rows * classes)  # a hole of 32 GB, which takes seconds to read
    np.save(tmp_path / "labels.npy", np.zeros(rows, np.int64))
    flags = ["--logits", "logits.bin", "--shape", f"{rows},{classes}", "--dtype", "bfloat16", "--labels", "labels.npy"]
    flags += ["--output", "out.parquet", "--report", "out.json", "--quiet"]
    command = [sys.executable, "-m", "bigvocab", "eval", *flags]
    pipes = {"stderr": subprocess.PIPE, "text": True}
    if number == signal.SIGINT:  # which a shell ignores for what it starts in the background, tests too
        pipes["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, env=ENVIRONMENT, cwd=tmp_path, **pipes) as running:
        deadline = time.monotonic() + 60
        while not any("out.parquet" in name for name in os.listdir(tmp_path)):
            assert time.monotonic() < deadline
            assert running.poll() is None
            time.sleep(0.01)
        time.sleep(0.3)
        running.send_signal(number)
        _, stderr = running.communicate(timeout=60)
    assert running.returncode == code
    assert stderr == (f"bigvocab: {said}\n" if said else "")
    assert sorted(os.listdir(tmp_path)) == ["labels.npy", "logits.bin"]


def test_workers_that_start_say_nothing_of_ctrl_c(tmp_path):
    """A terminal sends it to all; they import modules for a second, each with its own handler of Python's."""
    rows, classes = 16_000, 1_000_000
    with open(tmp_path / "logits.bin", "wb") as file:
        file.truncate(2 * rows * classes)
    np.save(tmp_path / "labels.npy", np.zeros(rows, np.int64))
    flags = ["--logits", "logits.bin", "--shape", f"{rows},{classes}", "--dtype", "bfloat16", "--labels", "labels.npy"]
    command = [sys.executable, "-m", "bigvocab", "eval", *flags, "--quiet", "--workers", "2"]
    pipes = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    pipes["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, env=ENVIRONMENT, cwd=tmp_path, **pipes) as running:
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
        if not children.exists():
            running.kill()
            pytest.skip("needs the children of a process, as Linux shows them")
        deadline = time.monotonic() + 60
        while len(children.read_text().split()) < 3:  # a tracker of resources, and both workers
            assert time.monotonic() < deadline
            assert running.poll() is None
            time.sleep(0.01)
        states = [Path(f"/proc/{child}/status").read_text() for child in children.read_text().split()]
        blocked = [int(state.split("SigBlk:")[1].split()[0], 16) >> (signal.SIGINT - 1) & 1 for state in states]
        os.killpg(running.pid, signal.SIGINT)
        _, stderr = running.communicate(timeout=60)
    assert running.returncode == 1
    assert stderr == "bigvocab: interrupted\n"
    assert sum(blocked) >= 2


INTERRUPTED_AT_A_START = """
import os, signal, sys, threading
from multiprocessing import util
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
number = getattr(signal, sys.argv.pop(1))
if number != signal.SIGINT:  # ignored under nohup
    signal.signal(number, signal.SIG_DFL)
from bigvocab.__main__ import main
start = util.spawnv_passfds
def started(program, arguments, *given):
    process = start(program, arguments, *given)
    if "spawn_main" not in str(arguments):  # a tracker of resources
        return process
    thread = threading.Thread(target=os.kill, args=(os.getpid(), number))  # so no mask of the main thread stops it
    thread.start()
    thread.join()
    return process
util.spawnv_passfds = started
main()
"""


@pytest.mark.parametrize(
    ("name", "code", "said"), [("SIGINT", 1, "bigvocab: interrupted\n"), ("SIGTERM", 143, ""), ("SIGHUP", 129, "")]
)
def test_a_signal_while_workers_are_started(data, name, code, said):
    """A process that was just started gets its orders all the same, and never says that it got none."""
    command = [sys.executable, "-c", INTERRUPTED_AT_A_START, name, *EVAL, "-q", "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", said)


INTERRUPTED_TWICE = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
number = getattr(signal, sys.argv.pop(1))
if number != signal.SIGINT:  # ignored under nohup
    signal.signal(number, signal.SIG_DFL)
from bigvocab.jobs import run
from bigvocab.__main__ import main
def pieces(*given):
    try:
        os.kill(os.getpid(), number)
    finally:
        try:
            os.kill(os.getpid(), number)  # while it is cleaned up after the first, where an exception may be lost
        except BaseException:
            print("went on")
    yield
run.pieces = pieces
main()
"""


@pytest.mark.parametrize(
    ("name", "code", "said"), [("SIGINT", 1, "bigvocab: interrupted\n"), ("SIGTERM", 143, ""), ("SIGHUP", 129, "")]
)
def test_a_second_signal_ends_the_process_at_once(data, name, code, said):
    command = [sys.executable, "-c", INTERRUPTED_TWICE, name, *EVAL, "-q", "--output", "o.parquet"]
    before = sorted(os.listdir())
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", said)
    assert sorted(os.listdir()) == before


MISTAKEN = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_DFL)
from bigvocab.jobs import run
from bigvocab.__main__ import main
def pieces(*given):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except SystemExit:
        raise SystemExit(1)
    yield
run.pieces = pieces
main()
"""


def test_a_library_that_makes_another_end_of_a_signal(data):
    """As Ray does now and then."""
    command = [sys.executable, "-c", MISTAKEN, *EVAL, "-q"]
    assert subprocess.run(command, capture_output=True, env=ENVIRONMENT, timeout=100).returncode == 143


def test_outputs_go_through_pipes_and_links(data):
    """A pipe stays a pipe, a link a link: neither is replaced by a file."""
    Path("real").mkdir()
    Path("real/report.json").write_text("before")
    Path("link.json").symlink_to("real/report.json")
    done = process(*EVAL, "--report", "link.json", "-q")
    assert done.returncode == 0, done.stderr
    assert Path("link.json").is_symlink()
    assert json.loads(Path("real/report.json").read_text())["rows"] == ROWS
    os.mkfifo("pipe")
    command = [sys.executable, "-m", "bigvocab", *EVAL, "--output", "pipe", "-q"]
    with subprocess.Popen(command, env=ENVIRONMENT) as running:
        received = Path("pipe").read_bytes()
    assert running.returncode == 0
    assert pq.read_table(io.BytesIO(received)).num_rows == ROWS
    assert Path("pipe").is_fifo()
    refused = process(*EVAL, "--state", "pipe", "-q")
    assert refused.returncode == 1
    assert refused.stderr == "bigvocab: error: pipe: is a pipe or a device, expected a file that can be replaced\n"
    assert Path("pipe").is_fifo()


@pytest.mark.parametrize("name", ["/dev/stdout", "/proc/self/fd/1", "/dev/fd/1"])
def test_a_report_and_the_table_to_one_file(data, name):
    """What a redirection has open knows how far it was written: neither is written over the other."""
    with open("both.txt", "wb") as sink:
        command = [sys.executable, "-m", "bigvocab", *EVAL, "--report", name, "-q"]
        assert subprocess.run(command, stdout=sink, env=ENVIRONMENT).returncode == 0
    text = Path("both.txt").read_text()
    report, end = json.JSONDecoder().raw_decode(text)
    assert report["rows"] == ROWS
    assert text[end:].lstrip().startswith("loss")


@pytest.mark.parametrize("command", [["--help"], ["--version"], ["eval", "--help"], ["inspect", "logits.npy"]])
def test_whatever_is_printed_to_a_full_disk_is_an_error(data, command):
    with open("/dev/full", "wb") as sink:
        done = subprocess.run(
            [sys.executable, "-m", "bigvocab", *command], stdout=sink, stderr=subprocess.PIPE, env=ENVIRONMENT
        )
    assert done.returncode == 1
    assert done.stderr.decode() == "bigvocab: error: standard output: No space left on device\n"


INTERRUPTED = """
import importlib.abc, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
from bigvocab.__main__ import main
module = sys.argv.pop(1)
class Interrupting(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
main()
"""


@pytest.mark.parametrize(
    "module", ["click", "numpy", "numpy._core.umath", "pyarrow.lib", "numba", "bigvocab.jobs.evaluation"]
)
def test_an_interrupt_while_modules_are_loaded(data, module):
    """As an exception it may come out of the import as an ImportError, or be printed by a library."""
    command = [sys.executable, "-c", INTERRUPTED, module, *EVAL, "--output", "o.parquet", "--report", "r.json"]
    before = sorted(os.listdir())
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "bigvocab: interrupted\n")
    assert sorted(os.listdir()) == before


INTERRUPTED_COMPILER = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
number = getattr(signal, sys.argv.pop(1))
if number != signal.SIGINT:  # ignored under nohup
    signal.signal(number, signal.SIG_DFL)
from bigvocab.kernels import jit
jit.on_compile(lambda *given: os.kill(os.getpid(), number))
from bigvocab.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("name", "code", "said"), [("SIGINT", 1, "bigvocab: interrupted\n"), ("SIGTERM", 143, ""), ("SIGHUP", 129, "")]
)
@pytest.mark.parametrize("threads", ["1", "2"])
def test_a_signal_while_kernels_are_compiled(data, tmp_path, name, code, said, threads):
    """An exception there may be swallowed, or leave a lock of the compiler taken for ever."""
    command = [sys.executable, "-c", INTERRUPTED_COMPILER, name, *EVAL, "-q", "--output", "o.parquet"]
    before, env = sorted(os.listdir()), ENVIRONMENT | {"BIGVOCAB_CACHE_DIR": str(tmp_path / "cold")}
    done = subprocess.run([*command, "--threads", threads], capture_output=True, text=True, env=env, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", said)
    assert set(os.listdir()) <= {*before, "cold"}
