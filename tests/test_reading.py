"""Rows of a mapped file read either way: the same bits, whichever is chosen, and nothing lost when the file changes."""

import os
import signal
import sys
import threading

import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest

import bigvocab as bv
from bigvocab import read_ahead, reading
from bigvocab.matrix import Matrix
from bigvocab.read_ahead import ReadAhead
from bigvocab.rows import streamed

ROWS, CLASSES = 300, 5000


@pytest.fixture(params=["float32", "bfloat16"])
def path(request, tmp_path):
    logits = (np.random.default_rng(0).standard_normal((ROWS, CLASSES)) * 3).astype(request.param)
    name = tmp_path / "logits.npy"
    np.save(name, logits.view("V2") if request.param == "bfloat16" else logits)
    return name


@pytest.fixture
def copying(monkeypatch):
    """Every turn is copied; the list tells of how many bytes."""
    copied = []
    filled = reading._filled

    def counted(descriptor, part, offset):
        copied.append(part.nbytes)
        return filled(descriptor, part, offset)

    monkeypatch.setattr(reading, "_filled", counted)
    monkeypatch.setattr(reading.Reader, "_learn", lambda self, *turn: setattr(self, "copies", True))
    made = reading.Reader.__init__

    def make(self, *given):
        made(self, *given)
        self.copies = True

    monkeypatch.setattr(reading.Reader, "__init__", make)
    return copied


def figures(path, **options):
    labels = np.random.default_rng(1).integers(0, CLASSES, ROWS)
    report = bv.evaluate(logits=path, labels=labels, metrics="accuracy,rank,logsumexp,entropy,predicted", **options)
    timed = ("seconds", "rows_per_second", "bytes_per_second")
    return {name: value for name, value in report.to_dict().items() if name not in timed}


def test_copies_change_no_bit(path, tmp_path, copying, monkeypatch):
    found = figures(path, chunk_rows=70, output=tmp_path / "copied.parquet", threads=2)
    assert sum(copying) == ROWS * CLASSES * (2 if bv.open_matrix(path).dtype == ml_dtypes.bfloat16 else 4)
    monkeypatch.undo()
    copying.clear()
    assert found == figures(path, output=tmp_path / "mapped.parquet")
    assert not copying
    assert (tmp_path / "copied.parquet").read_bytes() == (tmp_path / "mapped.parquet").read_bytes()


@pytest.mark.parametrize("loss", ["sparse-sigmoid"])
def test_copies_of_other_losses(path, copying, monkeypatch, loss):
    labels = np.random.default_rng(1).integers(0, CLASSES, (ROWS, 1))
    found = bv.evaluate(logits=path, labels=labels, loss=loss)["sum"]
    assert copying
    monkeypatch.undo()
    assert found == bv.evaluate(logits=path, labels=labels, loss=loss)["sum"]


def test_pieces_cover_the_rows_once(path, copying):
    matrix = bv.open_matrix(path)
    ((_, tiles),) = matrix.row_parts(0, ROWS)
    seen = [(part.start, part.stop, piece.copy()) for part, _, piece in streamed(tiles, 7, ROWS)]
    assert len(seen) > 1
    assert [start for start, _, _ in seen] == [0, *(stop for _, stop, _ in seen[:-1])]
    whole = np.concatenate([piece for _, _, piece in seen])
    np.testing.assert_array_equal(whole, np.asarray(matrix[7:]).view(whole.dtype))


def test_a_file_that_is_replaced_or_gone_while_it_is_copied(path, copying):
    """No copy is made of another file, and what watches the file says that it is gone."""
    matrix = bv.open_matrix(path)
    ((_, tiles),) = matrix.row_parts(0, ROWS)
    path.rename(path.with_suffix(".old"))
    path.write_bytes(b"something else")
    pieces = [piece for _, _, piece in streamed(tiles, 0, 5)]
    assert not copying
    np.testing.assert_array_equal(pieces[0], np.asarray(matrix[:5]).view(pieces[0].dtype))
    path.unlink()
    assert len(list(streamed(tiles, 0, 5))) == 1
    with pytest.raises(bv.FormatError, match="is gone while it is read"):
        matrix.check()


def test_the_faster_way_is_kept():
    """Small pages are tried both ways, large ones are not; what is slow now and then does not matter."""
    reader, size, small, large = (
        reading.Reader("x", 0, (0, 0, 0, 0), ReadAhead(0, 0)),
        8 << 20,
        128,
        4,
    )  # page faults a turn
    reader._learn(False, size, 1.0, large)
    assert not reader.copies
    for seconds in (90.0, 1.0, 1.0, 1.0, 1.0):  # the first turn loads code as well
        assert not reader.copies
        reader._learn(False, size, seconds, small)
    for seconds in (30.0, 0.5, 0.5, 0.5, 0.5):
        assert reader.copies
        reader._learn(True, size, seconds, small)
    assert reader.copies
    for seconds in (9.0, 9.0):
        reader._learn(True, size, seconds, small)
    assert reader.copies
    reader._learn(True, size, 9.0, small)
    assert not reader.copies
    reader._learn(False, size, 1.0, large)  # the system has put the pages together
    assert not reader.copies
    assert not reader._copied


def test_the_slower_way_is_tried_now_and_then(path):
    matrix = bv.open_matrix(path)
    reader, ways = matrix._maps[0].buffer.reader, []
    reader._learn = lambda copied, *turn: ways.append(copied)
    reader._copied.extend([1.0] * reading._TRIES)
    ((_, tiles),) = matrix.row_parts(0, 1)
    for _ in range(100):
        list(reader.read(tiles[0][1]))
    assert [turn for turn, copied in enumerate(ways, 1) if copied] == [32, 96]


def test_a_copy_that_comes_up_short_is_not_used(path, copying, monkeypatch):
    monkeypatch.setattr(os, "preadv", lambda *_: 0)  # as of a file that shrank
    matrix = bv.open_matrix(path)
    ((_, tiles),) = matrix.row_parts(0, ROWS)
    ((_, _, piece),) = streamed(tiles, 0, 1)
    np.testing.assert_array_equal(piece, np.asarray(matrix[:1]).view(piece.dtype))


def test_threads_may_learn_at_once():
    reader, size = reading.Reader("x", 0, (0, 0, 0, 0), ReadAhead(0, 0)), 8 << 20
    faults, before = [], sys.getswitchinterval()

    def learn(start):
        try:
            for turn in range(start, start + 4000):
                reader._learn(reader.copies, size, 1.0, 4 if turn % 11 == 0 else 128)
        except ValueError as error:
            faults.append(error)

    threads = [threading.Thread(target=learn, args=(i,)) for i in range(4)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not faults


def test_turns_are_long_only_where_their_cost_would_show():
    reader, size = reading.Reader("x", 0, (0, 0, 0, 0), ReadAhead(0, 0)), 8 << 20
    short = reader.largest_turn
    reader._learn(False, size, 1e-4, 128)  # small pages: the ways are to be compared
    assert reader.largest_turn == short
    reader._learn(False, size, 1e-4, 4)
    assert reader.largest_turn > short
    reader._learn(False, size, 1.0, 4)  # from the disk
    assert reader.largest_turn == short


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """A matrix of 200 rows of 1 MiB, where its file is read ahead, in the order in which it is, and from where."""
    asked, from_disk = [], [lambda at: True]

    def bring(at):
        asked.append(at - matrix._maps[0]._address)
        return from_disk[0](asked[-1])

    np.save(tmp_path / "logits.npy", np.zeros((200, 1 << 18), np.float32))
    matrix = bv.open_matrix(tmp_path / "logits.npy")
    monkeypatch.setattr(read_ahead.memory, "bring", bring)
    return matrix, asked, from_disk


def test_pages_from_the_disk_are_fetched_once_each_by_several_threads(fetched):
    matrix, asked, _ = fetched
    matrix.fetch(2, 200, threading.Event())
    assert sorted(asked) == list(range(2 << 20, matrix._maps[0].size, 2 << 20))


def test_pages_that_are_there_are_looked_at_less(fetched):
    matrix, asked, from_disk = fetched
    from_disk[0] = lambda at: False
    matrix.fetch(0, 200, threading.Event())
    assert asked == [*range(0, 18 << 20, 2 << 20), *range(80 << 20, matrix._maps[0].size, 64 << 20)]


def test_what_was_leapt_over_is_read_where_the_next_look_finds_nothing(fetched):
    matrix, asked, from_disk = fetched
    from_disk[0] = lambda at: at >= 40 << 20  # the rest was let go of
    matrix.fetch(0, 200, threading.Event())
    assert set(asked) >= set(range(40 << 20, 200 << 20, 2 << 20))


def test_nothing_is_fetched_once_it_has_ended(fetched):
    matrix, asked, _ = fetched
    ended = threading.Event()
    ended.set()
    matrix.fetch(0, 200, ended)
    assert not asked


@pytest.fixture
def slow_disk(fetched, monkeypatch):
    """A matrix of 200 rows of 1 MiB whose first 100 are being fetched, from a disk that has read so many MiB."""
    matrix, *_ = fetched
    moved, done, ended = threading.Condition(), [1], threading.Event()

    def bring(at):
        with moved:
            return moved.wait_for(lambda: at - matrix._maps[0]._address < done[0] << 20)

    def read_to(mebibytes):
        with moved:
            done[0] = mebibytes
            moved.notify_all()

    monkeypatch.setattr(read_ahead.memory, "bring", bring)
    fetching = threading.Thread(target=matrix.fetch, args=(0, 100, ended))
    fetching.start()
    while not matrix._maps[0].ahead._ranges:
        pass
    yield matrix, read_to, ended
    read_to(1000)
    fetching.join(10)
    assert not fetching.is_alive()
    assert not matrix._maps[0].ahead._ranges


def test_rows_are_waited_for_while_they_are_fetched_and_never_otherwise(slow_disk):
    matrix, read_to, _ = slow_disk
    seen = []

    def read():
        for row in (150, 10, 11):
            next(reading.reader_of(matrix[row : row + 1]).read(matrix[row : row + 1]))
            seen.append(row)

    reader = threading.Thread(target=read)
    reader.start()
    while not seen:
        pass
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
        next(reading.reader_of(matrix[10:11]).read(matrix[10:11]))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_who_waits_goes_on_when_fetching_ends_early(slow_disk):
    matrix, read_to, ended = slow_disk
    waiting = threading.Thread(target=matrix._maps[0].ahead.wait_for, args=(0, 100 << 20))
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
    matrix.fetch(0, 64, threading.Event())
    with pytest.raises(bv.FormatError, match="shrank while it is read"):
        matrix.check()


def test_pages_of_rows_that_are_left_out_are_not_fetched(tmp_path, monkeypatch):
    """Prompts are masked: what no one reads is not brought from the disk either, but for short gaps on the way."""
    asked = []
    monkeypatch.setattr(Matrix, "fetch", lambda self, first, last, ended: asked.append((first, last)))
    np.save(tmp_path / "logits.npy", np.zeros((600, 1 << 16), np.float32))  # 256 KiB a row
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
