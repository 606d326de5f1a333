"""Rows of a mapped file: read ahead, entered in the map before a kernel reads them, and none that no one reads."""

import gc
import os
import signal
import threading
import time
import weakref

import numpy as np
import pyarrow as pa
import pytest

import bigvocab as bv
from bigvocab.jobs import work
from bigvocab.kernels import pages
from bigvocab.matrices.matrix import Matrix
from bigvocab.matrices.tiles import streamed
from bigvocab.storage import os_advice, read_ahead, reading


class Offsets:
    """Bytes that note which of them are read."""

    def __init__(self):
        self.read = []

    def __getitem__(self, at):
        self.read.append(at)
        return 0


@pytest.mark.parametrize("address", [0, 4096, 5 * pages.AROUND - 1])
@pytest.mark.parametrize("stride", [300, 50_000, 200_000])
def test_one_byte_of_all_that_a_page_fault_brings_is_read(address, stride):
    width, left_out = stride // 2, np.array([0, 1, 0, 0, 1, 1, 0], bool)
    kept = [range(r * stride, r * stride + width) for r in np.flatnonzero(~left_out)]
    data = Offsets()
    pages.touch_rows.py_func(data, address, stride, width, left_out)
    around = [(address + at) // pages.AROUND for at in data.read]
    assert around == sorted({(address + at) // pages.AROUND for row in kept for at in row})  # each once
    assert all(any(at in row for row in kept) for at in data.read)


@pytest.fixture
def brought(monkeypatch):
    """What is brought before it is read: (bytes from row to row, bytes of a row, rows, rows left out) of each turn."""
    seen = []
    touch_rows = pages.touch_rows

    def noted(data, address, stride, width, left_out):
        assert address == data.ctypes.data
        seen.append((stride, width, len(left_out), np.flatnonzero(left_out).tolist()))
        return touch_rows(data, address, stride, width, left_out)

    monkeypatch.setattr(pages, "touch_rows", noted)
    return seen


def save(path, dtype="float32", rows=6, classes=50):
    values = np.random.default_rng(0).uniform(0.1, 0.9, (rows, classes)).astype(dtype)
    np.save(path, values)
    return path


@pytest.mark.parametrize("loss", ["sparse-softmax", "sparse-sigmoid", "softmax", "sigmoid", "log-loss"])
def test_all_losses_bring_their_rows_once_but_for_those_left_out(tmp_path, brought, loss):
    logits, dense = save(tmp_path / "logits.npy"), not loss.startswith("sparse")
    labels = pa.array([3, None, 4, 5, None, 6])
    if dense:
        labels = save(tmp_path / "labels.npy", "float64")
    elif loss == "sparse-sigmoid":
        labels = pa.array([[3], None, [4], [5], None, [6]])
    bv.evaluate(logits=logits, labels=labels, loss=loss, threads=1)
    assert brought == [(200, 200, 6, [] if dense else [1, 4])] + [(400, 400, 6, [])] * dense


def test_smoothing_with_class_weights_reads_no_row_that_is_left_out_either(tmp_path, brought):
    labels = pa.array([3, None, 4, 5, None, 6])
    weighted = {"class_weights": np.ones(50), "label_smoothing": 0.1}
    bv.evaluate(logits=save(tmp_path / "logits.npy"), labels=labels, threads=1, **weighted)
    assert brought == [(200, 200, 6, [1, 4])] * 2


def test_slices_of_files_bring_their_own_classes(tmp_path, brought):
    save(tmp_path / "a.npy"), save(tmp_path / "b.npy", classes=30)
    bv.evaluate(logits=tmp_path, vocab_shards=True, labels=[0] * 6, threads=1)
    assert brought == [(200, 200, 6, []), (120, 120, 6, [])]
    brought.clear()
    matrix = bv.open_matrix(tmp_path / "a.npy")
    bv.sparse_softmax_cross_entropy(matrix[1:5, 10:30], np.zeros(4, int), num_threads=1)
    assert brought == [(200, 80, 4, [])]


def test_arrays_and_rows_that_are_copied_are_not_brought(tmp_path, brought):
    np.save(tmp_path / "columns.npy", np.asfortranarray(np.zeros((6, 50), np.float32)))
    np.save(tmp_path / "big.npy", np.zeros((6, 50), ">f4"))
    for logits in (tmp_path / "columns.npy", tmp_path / "big.npy", np.zeros((6, 50), np.float32)):
        assert bv.evaluate(logits=logits, labels=[0] * 6)["mean"] == pytest.approx(np.log(50))
    assert not brought


def test_a_first_look_is_at_few_rows_and_few_bytes(tmp_path, monkeypatch):
    looks, pieces = [], work.pieces
    monkeypatch.setattr("bigvocab.jobs.run.pieces", lambda job, *rows: looks.append(rows) or pieces(job, *rows))
    monkeypatch.setattr("bigvocab.jobs.run.usable_cores", lambda: 3)
    values = np.load(save(tmp_path / "rows.npy", rows=1000, classes=5))
    np.save(tmp_path / "columns.npy", np.asfortranarray(values))
    np.save(tmp_path / "big.npy", values.astype(">f4"))
    cases = [("rows", 1, 2), ("rows", 2, 4), ("rows", 1000, 6), ("big", 1, 2), ("columns", 1, 0)]
    for rows, expected in ((99, 0), (100, 1), (350, 3)):
        np.save(tmp_path / f"{rows}.npy", values[:rows])
        cases.append((rows, 2, expected))
    for name, threads, expected in cases:
        rows = 1000 if isinstance(name, str) else name
        bv.evaluate(logits=tmp_path / f"{name}.npy", labels=np.zeros(rows, int), threads=threads)
        assert looks == [(0, expected)] * (expected > 0) + [(0, rows)], (name, threads)
        looks.clear()


@pytest.mark.parametrize("threads", [1, 2, 100])
def test_a_first_look_changes_no_error(threads):
    """Labels are read before logits, a block at a time."""
    logits, labels = np.zeros((300, 5), np.float32), np.full((300, 5), 0.2, np.float32)
    logits[0, 3] = labels[200, 2] = np.nan
    with pytest.raises(bv.BigvocabError, match="labels: row 200, class 2, is nan"):
        bv.evaluate(logits=logits, labels=labels, loss="softmax", threads=threads)


@pytest.fixture
def let_go(monkeypatch):
    """Ranges of addresses that are let go of, from half a MiB on."""
    ranges = []
    monkeypatch.setattr(reading, "LET_GO", 1 << 19)
    monkeypatch.setattr(os_advice.advice, "release", lambda address, size: ranges.append((address, address + size)))
    return ranges


def test_rows_are_let_go_of_in_spans_of_whole_pages_when_they_have_been_read(tmp_path, let_go):
    matrix = bv.open_matrix(save(tmp_path / "logits.npy", rows=100, classes=5000))  # 20,000 bytes per row
    tiles, start = [(0, matrix[:])], matrix.maps[0].address + 128

    def read(first, stop):
        for _ in streamed(tiles, first, stop):
            assert not let_go
        spans = [((a - start) / 20_000, (b - start) / 20_000) for a, b in let_go]
        assert all(a % 4096 == b % 4096 == 0 for a, b in let_go)
        let_go.clear()
        return [(round(a), round(b)) for a, b in spans]

    with matrix.reading_once():
        assert read(0, 10) == read(20, 30) == []
        assert read(10, 17) == [(0, 17), (20, 30)]
        assert read(50, 60) == read(60, 70) == read(40, 46) == []
        assert read(70, 71) == [(40, 46), (50, 71)]
        assert read(80, 81) == []
    assert read(0, 100) == []  # may be read again soon
    with matrix.reading_once():
        assert read(0, 26) == []


def test_the_ranges_of_all_files_count_together_and_may_overlap(tmp_path, let_go):
    for i in range(3):
        save(tmp_path / f"{i}.npy", rows=20, classes=5000)  # 400,000 bytes each
    matrix = bv.open_matrix(tmp_path)
    with matrix.reading_once():
        list(streamed([(0, matrix[:20])], 0, 20))
        assert not let_go
        list(streamed([(0, matrix[20:40])], 0, 20))
        assert len(let_go) == 2
        let_go.clear()
        for first, last in ((40, 60), (45, 50), (46, 50)):
            list(streamed([(0, matrix[first:last])], 0, last - first))
        start = matrix.maps[2].address
        assert let_go == [(start + 4096, start + (128 + 400_000) // 4096 * 4096)]


def test_rows_are_let_go_of_until_the_last_who_reads_them_once_has_ended(tmp_path, let_go):
    matrix = bv.open_matrix(save(tmp_path / "logits.npy", rows=30, classes=5000))
    with matrix.reading_once():
        behind = matrix.maps[0].buffer.reader.behind
        with matrix.reading_once():
            assert matrix.maps[0].buffer.reader.behind is behind
        assert matrix.maps[0].buffer.reader.behind is behind
        list(streamed([(0, matrix[:])], 0, 30))
        assert let_go
    let_go.clear()
    list(streamed([(0, matrix[:])], 0, 30))
    assert not let_go


def test_a_thread_that_lets_go_late_keeps_the_maps_of_all_files(tmp_path, monkeypatch):
    """Another map could lie at these addresses by then."""
    for i in range(2):
        save(tmp_path / f"{i}.npy", rows=20, classes=5000)
    matrix = bv.open_matrix(tmp_path)
    maps = [weakref.ref(file.buffer) for file in matrix.maps]
    monkeypatch.setattr(reading, "LET_GO", 1 << 19)
    alive = []

    def release(address, size):
        matrix_and_rows.clear()
        gc.collect()
        alive.append([there() is not None for there in maps])

    with matrix.reading_once():
        list(streamed([(0, matrix[:20])], 0, 20))
        behind = matrix.maps[0].buffer.reader.behind
    monkeypatch.setattr(os_advice.advice, "release", release)
    matrix_and_rows = [matrix]
    del matrix
    behind.add(*behind.ranges[0], 1 << 19)
    assert alive == [[True, True]]
    del behind
    gc.collect()
    assert [there() for there in maps] == [None, None]


@pytest.mark.parametrize("first", [0, 20_000, 49_999])
def test_what_is_let_go_of_never_lies_outside_of_what_was_read(tmp_path, let_go, first):
    """Behind the last class of the last row there may be memory of others."""
    matrix = bv.open_matrix(save(tmp_path / "logits.npy", rows=50, classes=50_000))
    start = matrix.maps[0].address + 128
    with matrix.reading_once():
        for row in range(50):
            for last in (row + 1, 50):
                list(streamed([(0, matrix[row:last, first:])], 0, last - row))
                list(streamed([(0, matrix[row:last, :first])] * (first > 0), 0, last - row))
    assert let_go
    assert min(a for a, _ in let_go) >= start
    assert max(b for _, b in let_go) <= start + 50 * 200_000
    if first == 49_999:
        let_go.clear()
        with matrix.reading_once():
            for _ in range(3000):
                list(streamed([(0, matrix[:, first:])], 0, 50))
        assert len(let_go) == 1  # 50 numbers count as 200 bytes, not as all that lies between them


def test_all_rows_of_a_file_are_let_go_of_by_a_job_and_by_no_function(tmp_path, let_go):
    path = save(tmp_path / "logits.npy", rows=100, classes=50_000)
    for options in ({}, {"class_weights": np.ones(50_000), "label_smoothing": 0.1}):
        bv.sparse_softmax_cross_entropy(bv.open_matrix(path)[:], np.zeros(100, int), **options)
        assert not let_go
        bv.evaluate(logits=path, labels=np.zeros(100, int), threads=2, **options)
        assert sum(b - a for a, b in let_go) > (18 << 20) * (3 if options else 2)  # and once more behind the block
        let_go.clear()


def wait_until(condition):
    """Wait for another thread; fail where it does not come to that."""
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("nothing happened in 10 seconds")


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """A matrix of 200 rows of 1 MiB, where its file is read ahead, in the order in which it is, and from where."""
    asked, from_disk = [], [lambda at: True]

    def bring(at):
        asked.append(at - matrix.maps[0].address)
        return from_disk[0](asked[-1])

    np.save(tmp_path / "logits.npy", np.zeros((200, 1 << 18), np.float32))
    matrix = bv.open_matrix(tmp_path / "logits.npy")
    monkeypatch.setattr(os_advice.advice, "bring", bring)
    return matrix, asked, from_disk


def test_pages_from_the_disk_are_fetched_once_each_by_several_threads(fetched):
    matrix, asked, _ = fetched
    matrix.prefetch(2, 200, threading.Event())
    assert sorted(asked) == list(range(2 << 20, matrix.maps[0].size, 2 << 20))


def test_pages_that_are_there_are_looked_at_less(fetched):
    matrix, asked, from_disk = fetched
    from_disk[0] = lambda at: False
    matrix.prefetch(0, 200, threading.Event())
    assert asked == [*range(0, 18 << 20, 2 << 20), *range(80 << 20, matrix.maps[0].size, 64 << 20)]


def test_what_was_leapt_over_is_read_where_the_next_look_finds_nothing(fetched):
    matrix, asked, from_disk = fetched
    from_disk[0] = lambda at: at >= 40 << 20  # the rest was let go of
    matrix.prefetch(0, 200, threading.Event())
    assert set(asked) >= set(range(40 << 20, 200 << 20, 2 << 20))


def test_nothing_is_fetched_once_it_has_ended(fetched):
    matrix, asked, _ = fetched
    ended = threading.Event()
    ended.set()
    matrix.prefetch(0, 200, ended)
    assert not asked


@pytest.fixture
def slow_disk(fetched, monkeypatch):
    """A matrix of 200 rows of 1 MiB whose first 100 are being fetched, from a disk that has read so many MiB."""
    matrix, *_ = fetched
    moved, done, ended = threading.Condition(), [1], threading.Event()
    asked = []

    def bring(at):
        asked.append(at)
        with moved:
            return moved.wait_for(lambda: at - matrix.maps[0].address < done[0] << 20)

    def read_to(mebibytes):
        with moved:
            done[0] = mebibytes
            moved.notify_all()

    monkeypatch.setattr(os_advice.advice, "bring", bring)
    fetching = threading.Thread(target=matrix.prefetch, args=(0, 100, ended))
    fetching.start()
    wait_until(lambda: matrix.maps[0].ahead.busy and len(asked) > 1)  # the first page was there
    yield matrix, read_to, ended
    read_to(1000)
    fetching.join(10)
    assert not fetching.is_alive()
    assert not matrix.maps[0].ahead.busy


def test_rows_are_waited_for_while_they_are_fetched_and_never_otherwise(slow_disk):
    matrix, read_to, _ = slow_disk
    seen = []

    def read():
        for row in (150, 10, 11):
            list(streamed([(0, matrix[row : row + 1])], 0, 1))
            seen.append(row)

    reader = threading.Thread(target=read)
    reader.start()
    wait_until(lambda: seen)
    reader.join(0.2)
    assert seen == [150]  # not being fetched
    read_to(12)
    reader.join(0.2)
    assert seen in ([150], [150, 10])  # row 11 is 128 bytes too long
    read_to(13)
    reader.join(10)
    assert seen == [150, 10, 11]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_waits_for_no_thread_of_its_parent(slow_disk):
    matrix, *_ = slow_disk
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        list(streamed([(0, matrix[10:11])], 0, 1))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_pages_of_small_files_that_were_looked_at_are_let_go_of_at_once(fetched, let_go, monkeypatch):
    """Of many such files, one block would map them all."""
    matrix, asked, from_disk = fetched
    start = matrix.maps[0].address
    for there, small, expected in ((True, True, [(2 << 20, 18 << 20)]), (True, False, []), (False, True, [])):
        monkeypatch.setattr(read_ahead, "SMALL", 1 << 30 if small else 1 << 20)
        from_disk[0] = lambda at, there=there: not there
        matrix.prefetch(2, 200, threading.Event())
        assert [(a - start, b - start) for a, b in let_go] == expected
        let_go.clear()
    matrix.prefetch(2, 5, threading.Event())  # a shorter range
    assert not let_go
    monkeypatch.setattr(read_ahead, "SMALL", 1 << 30)
    from_disk[0] = lambda at: False
    matrix.prefetch(2, 5, threading.Event())
    assert [(a - start, b - start) for a, b in let_go] == [(2 << 20, (5 << 20) + 128)]


def test_who_waits_goes_on_when_fetching_ends_early(slow_disk):
    matrix, read_to, ended = slow_disk
    waiting = threading.Thread(target=matrix.maps[0].ahead.wait_for, args=(0, 100 << 20))
    waiting.start()
    ended.set()
    waiting.join(0.2)
    assert waiting.is_alive()
    read_to(10)  # what is under way comes, and nothing after it
    waiting.join(10)
    assert not waiting.is_alive()


def test_fetching_a_file_that_shrank_is_no_bus_error(tmp_path):
    path = tmp_path / "logits.npy"
    np.save(path, np.zeros((64, 1 << 18), np.float32))
    matrix = bv.open_matrix(path)
    os.truncate(path, 4096)
    matrix.prefetch(0, 64, threading.Event())
    with pytest.raises(bv.FormatError, match="shrank while it is read"):
        matrix.check()


def test_pages_of_rows_that_are_left_out_are_not_fetched(tmp_path, monkeypatch):
    """Prompts are masked: what no one reads is not brought from the disk either, except in short gaps on the way."""
    asked = []
    monkeypatch.setattr(Matrix, "prefetch", lambda self, first, last, ended: asked.append((first, last)))
    np.save(tmp_path / "logits.npy", np.zeros((600, 1 << 16), np.float32))  # 256 KiB per row
    labels = np.zeros(600, int)
    cases = {
        "none": ([], [(0, 300), (300, 600)]),
        "a prompt": ([slice(0, 100)], [(100, 300), (300, 600)]),
        "short gaps": ([slice(20, 36), slice(298, 310)], [(0, 298), (310, 600)]),
        "a long gap": ([slice(140, 157)], [(0, 140), (157, 300), (300, 600)]),
        "nearly all": ([slice(100, 590)], []),
    }
    for name, (left_out, fetched) in cases.items():
        labels[:] = 0
        for rows in left_out:
            labels[rows] = -100
        for given, index in ((labels, -100), (pa.array(labels, mask=labels < 0), None)):
            asked.clear()
            report = bv.evaluate(
                logits=tmp_path / "logits.npy", labels=given, ignore_index=index, chunk_rows=300, metrics=""
            )

            assert sorted(asked) == fetched, name
            assert report["ignored_rows"] == np.count_nonzero(labels)
    asked.clear()
    bv.evaluate(logits=tmp_path / "logits.npy", labels=np.zeros(600, int), chunk_rows=100, metrics="")
    assert not asked  # blocks of 25 MiB
