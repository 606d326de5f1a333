"""Two runs on one state in a store: the one that began last goes on, the other ends and leaves its work alone."""

import contextlib
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fault_server import serving

import bigvocab as bv
from bigvocab.jobs import checkpoints
from bigvocab.storage import attempts

LOGITS = np.random.default_rng(5).normal(size=(300, 70)).astype(np.float32)
LABELS = np.arange(300) % 70


@pytest.fixture
def store(monkeypatch):
    """A checkpoint after every block."""
    monkeypatch.setattr(attempts, "PAUSE", 0.0)
    monkeypatch.setattr(checkpoints, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "SHARE", 0)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with serving() as (faults, _, query):
        file = io.BytesIO()
        np.save(file, LOGITS)
        faults.put("/b/logits.npy", file.getvalue())
        yield faults, query


def given(store, **more):
    def at(name):
        return f"s3://b/{name}{store[1]}"

    places = {"logits": at("logits.npy"), "state": at("runs/s"), "output": at("runs/l.parquet")}
    return {**places, "labels": LABELS, "chunk_rows": 50, **more}


def left(store):
    return {name: content for name, content in store[0].objects.items() if "/runs/" in name and name[-1] != "/"}


def once_at(rows, act):
    """A progress that acts when so many rows are done, and then lets the run go on."""
    acted = []

    def progress(done, total, read):
        if done >= rows and not acted:
            acted.append(done)
            act()

    return progress


@pytest.mark.parametrize("to_the_end", [True, False])
def test_a_run_ends_where_another_has_taken_its_state_over(store, to_the_end):
    expected = bv.evaluate(logits=LOGITS, labels=LABELS)
    others = []

    class Killed(Exception):
        pass

    def killed(done, total, read):
        if done >= 200:
            others.append(left(store))
            raise Killed

    def another():
        with contextlib.suppress(Killed):
            bv.evaluate(**given(store, resume=True, progress=None if to_the_end else killed))
        others.append(left(store))

    with pytest.raises(bv.BigvocabError, match=r"^s3://b/runs/s\?[^\n]*: another run[^\n]* taken it over") as caught:
        bv.evaluate(**given(store, progress=once_at(100, another)))
    assert "expected one run for each state" in str(caught.value)
    after = left(store)
    assert after["/b/runs/s"] == others[-1]["/b/runs/s"]
    assert {name for name in after if ".lines-" in name} == {name for name in others[-1] if ".lines-" in name}
    found = bv.evaluate(**given(store, resume=True))
    assert found["sum"] == expected["sum"]
    losses = pq.read_table(pa.BufferReader(store[0].objects["/b/runs/l.parquet"]))
    assert losses["row"].to_pylist() == list(range(300))
    assert sorted(left(store)) == ["/b/runs/l.parquet", "/b/runs/s"]


def test_a_state_that_was_written_by_someone_else_is_not_overwritten(store):
    def write():
        store[0].put("/b/runs/s", b"of another run")

    with pytest.raises(bv.BigvocabError, match=r"^s3://b/runs/s\?[^\n]*: another run has written it; expected one run"):
        bv.evaluate(**given(store, progress=once_at(100, write)))
    assert left(store)["/b/runs/s"] == b"of another run"
    assert "/b/runs/l.parquet" not in left(store)


def test_a_second_run_that_does_not_resume_leaves_the_first_alone(store):
    def second():
        with pytest.raises(bv.BigvocabError, match=r"already exists; pass resume|already exists; pass --resume"):
            bv.evaluate(**given(store))

    found = bv.evaluate(**given(store, progress=once_at(100, second)))
    assert found["rows"] == 300
    assert sorted(left(store)) == ["/b/runs/l.parquet", "/b/runs/s"]
