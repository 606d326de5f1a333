"""Processes of jobs: a spawn pool, bounded memory, and a file that shrinks while it is read."""

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from programs import run

import bigvocab as bv


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
