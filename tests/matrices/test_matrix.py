"""The matrix over its files: order, splits by rows and classes, views, pages given back, changes, processes."""

import gc
import os
import pickle
import subprocess
import sys
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest

import bigvocab.matrices.matrix
from bigvocab.errors import BigvocabError, FormatError
from bigvocab.labels.labels import read_labels
from bigvocab.matrices.matrix import Matrix
from bigvocab.matrices.opening import as_matrix, open_matrix
from bigvocab.storage import sigbus
from bigvocab.storage.paths import natural_key

VALUES = np.arange(60, dtype=np.float32).reshape(12, 5)


def save(path, array):
    path.parent.mkdir(exist_ok=True, parents=True)
    np.save(path, array)
    return path


def save_arrow(path, array, batch_rows):
    lists = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(array).ravel()), array.shape[1])
    table = pa.table({"x": lists})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch_rows)
    return path


def make_one(tmp_path):
    return open_matrix(save(tmp_path / "x.npy", VALUES))


def make_fortran(tmp_path):
    return open_matrix(save(tmp_path / "x.npy", np.asfortranarray(VALUES)))


def make_array(tmp_path):
    return Matrix.from_array(np.repeat(VALUES, 2, axis=0)[::2])


def make_rows(tmp_path):
    bounds = [0, 3, 3, 4, 12]  # a part without rows among them
    for i, (start, stop) in enumerate(zip(bounds, bounds[1:], strict=False)):
        save(tmp_path / "rows" / f"part-{i}.npy", np.asarray(VALUES[start:stop], order="FC"[i % 2]))
    return open_matrix(tmp_path / "rows")


def make_batches(tmp_path):
    return open_matrix(save_arrow(tmp_path / "x.arrow", VALUES, 5))


def make_shards(tmp_path):
    """Classes split over files of three kinds, one of them in record batches."""
    files = [save(tmp_path / "a.npy", VALUES[:, :2]), save_arrow(tmp_path / "b.arrow", VALUES[:, 2:3], 5)]
    return open_matrix([*files, save(tmp_path / "c.npy", np.asfortranarray(VALUES[:, 3:]))], vocab_shards=True)


MAKERS = [make_one, make_fortran, make_array, make_rows, make_batches, make_shards]


@pytest.fixture(params=MAKERS, ids=lambda maker: maker.__name__)
def matrix(request, tmp_path):
    return request.param(tmp_path)


KEYS = [
    0,
    11,
    -1,
    -12,
    np.int8(4),
    slice(None),
    slice(2, 5),
    slice(3, 4),
    slice(4, 4),
    slice(7, 2),
    slice(-3, None),
    slice(None, 100),
    slice(None, None, 2),
    slice(None, None, -1),
    slice(9, 1, -3),
    np.array([3, 0, 11, 3, -1]),
    np.array([2], np.uint8),
    [5, 4],
    [],
    np.arange(12) % 3 == 0,
    ...,
    (slice(2, 9), slice(1, 4)),
    (slice(2, 9), 3),
    (4, 2),
    (-1, slice(None, None, -1)),
    ([1, 8], slice(2)),
]


@pytest.mark.parametrize("key", KEYS, ids=repr)
def test_indices_as_numpy(matrix, key):
    expected = VALUES[key if not (isinstance(key, list) and not key) else np.array([], int)]
    found = matrix[key]
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("key", [12, -13, [0, 12], [-13], [0.5], (0, 0, 0), (None, 0), ([0, 1], [0, 1]), [True]])
def test_indices_out_of_range_or_of_the_wrong_kind(matrix, key):
    with pytest.raises(IndexError):
        matrix[key]


def test_no_index_at_all(matrix):
    with pytest.raises(TypeError, match="rows: expected an int, a slice or a list of ints, got str"):
        matrix["a"]
    with pytest.raises(IndexError, match=r"^row 12 is out of range for 12 rows"):
        matrix[[3, 12]]


def test_the_rest_of_an_array(matrix):
    assert (matrix.shape, matrix.ndim, matrix.nbytes, len(matrix)) == ((12, 5), 2, 240, 12)
    assert matrix.dtype == np.float32
    assert "(12, 5) float32" in repr(matrix)
    np.testing.assert_array_equal(np.asarray(matrix), VALUES)
    np.testing.assert_array_equal(list(matrix), VALUES)
    assert np.asarray(matrix, np.float64).dtype == np.float64
    copy = np.array(matrix)
    copy[0, 0] = 7
    assert matrix[0, 0] == 0
    assert not matrix[1:3].flags.writeable
    assert not matrix[:].flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        matrix[1:3][0, 0] = 1


@pytest.mark.parametrize(("start", "stop"), [(0, 12), (2, 11), (3, 4), (0, 0), (12, 12), (5, 6)])
def test_row_parts_cover_all_once(matrix, start, stop):
    out = np.full((12, 5), np.nan)
    row = start
    for first, tiles in matrix.row_parts(start, stop):
        assert first == row
        at = 0
        for first_class, tile in tiles:
            assert first_class == at
            assert len(tile) == len(tiles[0][1]) > 0
            assert not tile.flags.writeable
            assert tile.base is not None
            out[first : first + len(tile), at : at + tile.shape[1]] = tile
            at += tile.shape[1]
        assert at == 5
        row += len(tiles[0][1])
    assert row == stop
    np.testing.assert_array_equal(out[start:stop], VALUES[start:stop])
    assert np.isnan(out[:start]).all()
    assert np.isnan(out[stop:]).all()


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (3, 2), (0, 13)])
def test_row_parts_out_of_range(matrix, start, stop):
    with pytest.raises(IndexError, match="out of range for 12 rows"):
        list(matrix.row_parts(start, stop))


def test_how_many_tiles(tmp_path):
    def layout(m):
        return [(first, [(c, t.shape) for c, t in tiles]) for first, tiles in m.row_parts(2, 11)]

    assert layout(make_one(tmp_path)) == [(2, [(0, (9, 5))])]
    assert layout(make_rows(tmp_path)) == [(2, [(0, (1, 5))]), (3, [(0, (1, 5))]), (4, [(0, (7, 5))])]
    assert [(f, [c for c, _ in tiles]) for f, tiles in layout(make_shards(tmp_path))] == [
        (2, [0, 2, 3]),
        (5, [0, 2, 3]),
        (10, [0, 2, 3]),
    ]


def test_views_are_not_copies(tmp_path):
    array = VALUES.copy()
    matrix = Matrix.from_array(array)
    array[3, 2] = -1  # the caller's own array stays writable, and the matrix shows it
    assert matrix[3][2] == -1
    assert np.shares_memory(np.asarray(matrix), array)
    assert np.shares_memory(np.asarray(matrix, copy=False), array)
    assert not np.shares_memory(np.array(matrix), array)
    matrix = make_rows(tmp_path)
    whole = np.frombuffer(matrix.maps[3].buffer, np.uint8)
    assert np.shares_memory(matrix[5:9], whole)
    assert not np.shares_memory(matrix[2:9], whole)
    with pytest.raises(ValueError, match="without a copy"):
        np.asarray(matrix, copy=False)


def test_release_and_check_change_nothing(matrix):
    for start in range(0, 12, 4):
        matrix.release(start, start + 4)
        matrix.check()
    matrix.release(0, 12)
    np.testing.assert_array_equal(np.asarray(matrix), VALUES)


def test_pickled_and_opened_again(matrix):
    again = pickle.loads(pickle.dumps(matrix))
    np.testing.assert_array_equal(np.asarray(again), VALUES)
    assert again.files == matrix.files
    assert again.shape == matrix.shape
    assert list(again.row_parts(0, 12))[0][1][0][1].shape == list(matrix.row_parts(0, 12))[0][1][0][1].shape


def _sum(matrix):
    return float(np.asarray(matrix).sum(dtype=np.float64))


def test_in_a_spawn_pool(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_rows(tmp_path)
    matrix = open_matrix("rows/*.npy")
    monkeypatch.chdir("/")  # the workers start where the name means nothing
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assert pool.submit(_sum, matrix).result() == VALUES.sum()


def test_pickle_of_a_changed_file_is_refused(tmp_path):
    matrix = make_one(tmp_path)
    state = pickle.dumps(matrix)
    save(tmp_path / "x.npy", VALUES[:7])
    with pytest.raises(
        FormatError, match=r"not the file that was opened before: .* with 7 x 5 .*, expected .* with 12 x 5 "
    ):
        pickle.loads(state)


# --- which files, in which order ---------------------------------------------------------------------------------


def test_natural_order():
    names = ["part-10", "part-2", "part-02", "part-1", "part", "Part-3", "p/2/b", "p/10/a", "p/x", "part-٣"]
    ordered = sorted(names, key=natural_key)
    assert ordered == ["Part-3", "p/2/b", "p/10/a", "p/x", "part", "part-1", "part-02", "part-2", "part-10", "part-٣"]


def folder_of_parts(tmp_path):
    for i in range(12):
        save(tmp_path / "d" / f"part-{i}.npy", np.full((1, 2), i, np.float32))
    for junk in [".part-3.npy", "_part-4.npy", "_SUCCESS", "README.md", "labels.parquet"]:
        (tmp_path / "d" / junk).write_bytes(b"junk")
    (tmp_path / "d" / "more.npy").mkdir()
    return tmp_path / "d"


@pytest.mark.parametrize("how", ["folder", "glob", "glob_all", "list", "recursive"])
def test_order_of_many_files(tmp_path, how):
    folder = folder_of_parts(tmp_path)
    (folder / "README.md").unlink()
    (folder / "labels.parquet").unlink()
    path = {
        "folder": folder,
        "glob": f"{folder}/part-*.npy",
        "glob_all": f"{folder}/*",
        "list": [folder / f"part-{i}.npy" for i in range(12)],
        "recursive": f"{tmp_path}/**/*.npy",
    }[how]
    matrix = open_matrix(path)
    assert matrix[:, 0].tolist() == list(range(12))
    assert [os.path.basename(file["path"]) for file in matrix.files] == [f"part-{i}.npy" for i in range(12)]
    assert matrix.files[0] == {"path": f"{folder}/part-0.npy", "shape": [1, 2], "dtype": "float32", "bytes": 136}


def test_a_list_keeps_its_order_and_may_mix(tmp_path):
    folder = folder_of_parts(tmp_path)
    arrow = save_arrow(tmp_path / "x.arrow", VALUES[:, :2], 5)
    matrix = open_matrix([folder / "part-7.npy", f"{folder}/part-1*.npy", arrow, folder / "part-0.npy"])
    assert matrix[:, 0].tolist() == [7, 1, 10, 11, *VALUES[:, 0], 0]


def test_names_with_odd_characters(tmp_path, monkeypatch):
    for name in ["a[1].npy", "a::b.npy", "*.npy", "ü ñ.npy"]:
        np.testing.assert_array_equal(np.asarray(open_matrix(save(tmp_path / name, VALUES))), VALUES)
    monkeypatch.chdir(tmp_path)
    assert open_matrix("a[1].npy").files[0]["path"] == "a[1].npy"
    assert os.path.isabs(open_matrix("a[1].npy").fingerprints[0][0])
    from safetensors.numpy import save_file

    save_file({"x::y": VALUES}, "a::c.safetensors")
    assert open_matrix("a::c.safetensors::x::y").shape == (12, 5)


def test_selector_with_glob_and_folder(tmp_path):
    from safetensors.numpy import save_file

    for i in range(3):
        save_file({"w": VALUES[4 * i : 4 * i + 4], "b": VALUES[i]}, tmp_path / f"model-{i}.safetensors")
    np.testing.assert_array_equal(np.asarray(open_matrix(f"{tmp_path}::w")), VALUES)
    np.testing.assert_array_equal(np.asarray(open_matrix(f"{tmp_path}/model-*::w")), VALUES)
    np.testing.assert_array_equal(np.asarray(open_matrix(f"{tmp_path}::b")), VALUES[:3].ravel())


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("{d}/none.npy", "none.npy: cannot open: No such file"),
        ("{d}/none.npy::x", "none.npy: cannot open: No such file"),
        ("{d}/none-*.npy", r"none-\*.npy: no file matches"),
        ("{d}/empty", r"empty: no file with a known suffix .*\.npy, \.safetensors, \.arrow"),
        ("{d}/junk.npy", r"junk.npy: empty file \(0 bytes\)"),
        ("{d}/pipe", "pipe: not a regular file"),
        ("{d}/loop.npy", "loop.npy: cannot open: Too many levels"),
        ("", "path: expected the name of a file"),
        ("a\0b", "path: expected the name of a file"),
        ([], "path: got an empty list"),
    ],
)
def test_nothing_to_open(tmp_path, path, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("x")
    (tmp_path / "junk.npy").touch()
    (tmp_path / "loop.npy").symlink_to("loop.npy")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BigvocabError, match=words):
        open_matrix(path.format(d=tmp_path) if isinstance(path, str) else path)


def test_permission_denied(tmp_path):
    path = save(tmp_path / "x.npy", VALUES)
    path.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)  # root may read anything, nobody may not
        with pytest.raises(BigvocabError, match="x.npy: cannot open: Permission denied"):
            open_matrix(path)
    finally:
        os.seteuid(user)


def test_any_error_of_the_system_is_named(tmp_path, monkeypatch):
    path = save(tmp_path / "x.npy", VALUES)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("bigvocab.storage.mapped.Map", refuse)
    with pytest.raises(BigvocabError, match="x.npy: cannot open: Permission denied"):
        open_matrix(path)


@pytest.mark.parametrize("path", [3, None, b"x.npy", [3], ["x", None]])
def test_paths_of_the_wrong_kind(path):
    with pytest.raises(TypeError, match="path: expected a str, an os.PathLike or a list of them, got"):
        open_matrix(path)


# --- files that belong together ----------------------------------------------------------------------------------


def test_biases_in_several_files(tmp_path):
    files = [save(tmp_path / f"b{i}.npy", VALUES[i, : i + 1]) for i in range(3)]
    expected = np.concatenate([VALUES[i, : i + 1] for i in range(3)])
    for vocab_shards in (False, True):
        matrix = open_matrix(files, vocab_shards=vocab_shards)
        assert matrix.shape == (6,)
        assert [matrix[i] for i in range(6)] == expected.tolist()
        np.testing.assert_array_equal(matrix[[5, 0, 3]], expected[[5, 0, 3]])
        np.testing.assert_array_equal(matrix[0:6], expected)
        assert [(first, tiles[0][1].tolist()) for first, tiles in matrix.row_parts(0, 2)] == [(0, [0.0]), (1, [5.0])]
    with pytest.raises(IndexError, match="for 1 dimensions"):
        matrix[0, 0]


@pytest.mark.parametrize(
    ("other", "vocab_shards", "words"),
    [
        (VALUES[:, :4], False, "a.npy and .*b.npy cannot be one matrix: 5 and 4 columns, expected the same number"),
        (VALUES[:4], True, "a.npy and .*b.npy cannot be one matrix: 12 and 4 rows, expected the same number"),
        (VALUES.astype("f2"), False, "a.npy and .*b.npy cannot be one matrix: float32 and float16"),
        (VALUES.astype(">f4"), True, r"cannot be one matrix: float32 and float32 \(byte-swapped\)"),
        (VALUES[0], False, r"cannot be one matrix: shapes \(12, 5\) and \(5,\)"),
    ],
)
def test_files_that_do_not_belong_together(tmp_path, other, vocab_shards, words):
    files = [save(tmp_path / "a.npy", VALUES), save(tmp_path / "b.npy", other)]
    with pytest.raises(BigvocabError, match=words):
        open_matrix(files, vocab_shards=vocab_shards)


def test_raw_files_share_one_shape(tmp_path):
    bounds = [0, 3, 4, 12]
    for i, (start, stop) in enumerate(zip(bounds, bounds[1:], strict=False)):
        (tmp_path / f"rows-{i}.bin").write_bytes(b"HEAD" + VALUES[start:stop].tobytes())
    for shape in [(12, 5), (-1, 5), "-1,5"]:
        matrix = open_matrix(f"{tmp_path}/rows-*", shape=shape, dtype="f4", offset=4)
        np.testing.assert_array_equal(np.asarray(matrix), VALUES)
    assert open_matrix(tmp_path, shape=(12, 5), dtype="f4", offset=4).shape == (12, 5)
    with pytest.raises(FormatError, match=r"shape \(13, 5\) of float32 at offset 4 needs 272 bytes, there are 252"):
        open_matrix(tmp_path, shape=(13, 5), dtype="f4", offset=4)
    with pytest.raises(FormatError, match=r"rows-0.bin: 60 bytes of data are no whole number of rows .* 12 are left"):
        open_matrix(tmp_path, shape=(-1, 6), dtype="f4", offset=4)


def test_raw_vocab_shards(tmp_path):
    files = [tmp_path / f"{i}.bin" for i in range(3)]
    for file, start, stop in zip(files, [0, 2, 3], [2, 3, 5], strict=True):
        file.write_bytes(VALUES[:, start:stop].tobytes())
    for shape in [(12, 5), (-1, 5)]:
        matrix = open_matrix(files, shape=shape, dtype="f4", vocab_shards=True)
        np.testing.assert_array_equal(np.asarray(matrix), VALUES)
    with pytest.raises(FormatError, match="no whole number of classes"):
        open_matrix(files, shape=(7, 5), dtype="f4", vocab_shards=True)
    with pytest.raises(FormatError, match="needs 288 bytes, there are 240"):
        open_matrix(files, shape=(12, 6), dtype="f4", vocab_shards=True)


def test_the_first_file_without_rows(tmp_path):
    matrix = open_matrix([save(tmp_path / "a.npy", VALUES[:0]), save(tmp_path / "b.npy", VALUES)])
    np.testing.assert_array_equal(np.asarray(matrix, copy=False), VALUES)
    np.testing.assert_array_equal(matrix[[0, 11]], VALUES[[0, 11]])


def test_vocab_shards_without_rows(tmp_path):
    files = [save(tmp_path / f"{i}.npy", np.zeros((0, i + 1), "f4")) for i in range(3)]
    matrix = open_matrix(files, vocab_shards=True)
    assert matrix.shape == matrix[:].shape == matrix[[]].shape == (0, 6)
    assert list(matrix.row_parts(0, 0)) == []


def test_bfloat16_of_the_other_byte_order_is_made_native_a_few_rows_at_a_time(tmp_path, monkeypatch):
    values = VALUES.astype(ml_dtypes.bfloat16)
    values.view(np.uint16).byteswap().tofile(tmp_path / "x.bin")
    matrix = open_matrix(tmp_path / "x.bin", shape=values.shape, dtype=">bfloat16")
    monkeypatch.setattr("bigvocab.matrices.matrix.COPIED_BYTES", 5 * values[0].nbytes)
    parts = [(first, tiles[0][1]) for first, tiles in matrix.row_parts(1, len(values))]
    assert [first for first, _ in parts] == list(range(1, len(values), 5))
    assert np.concatenate([tile for _, tile in parts]).tobytes() == values[1:].tobytes()
    assert matrix[:].tobytes() == values.tobytes()
    assert not matrix.in_one_piece


def test_byte_swapped_files_stay_as_they_are(tmp_path):
    files = [save(tmp_path / f"{i}.npy", VALUES.astype(">f4")) for i in range(2)]
    matrix = open_matrix(files)
    assert matrix[0:1].dtype == matrix[10:14].dtype == matrix[[0, 20]].dtype == np.dtype(">f4")
    np.testing.assert_array_equal(matrix[10:14], np.tile(VALUES, (2, 1))[10:14])


def test_bfloat16_of_either_byte_order_in_one_matrix(tmp_path):
    bits = VALUES.astype(ml_dtypes.bfloat16).view(np.uint16)
    files = [save(tmp_path / "0.npy", bits), save(tmp_path / "1.npy", bits.astype(">u2"))]
    matrix = open_matrix(files, dtype="bfloat16")
    assert matrix.dtype == np.dtype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(np.asarray(matrix).astype("f4"), np.tile(VALUES, (2, 1)))
    np.testing.assert_array_equal(matrix[[1, 13]].astype("f4"), VALUES[[1, 1]])
    assert {tiles[0][1].dtype for _, tiles in matrix.row_parts(0, 24)} == {matrix.dtype}
    assert not matrix[12:].flags.writeable


# --- arrays ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", ml_dtypes.bfloat16])
def test_arrays_of_every_dtype(dtype):
    matrix = Matrix.from_array(VALUES.astype(dtype))
    assert matrix.dtype == np.dtype(dtype)
    assert matrix.files[0]["path"] == "<array>"
    again = pickle.loads(pickle.dumps(matrix))
    assert again.dtype.name == np.dtype(dtype).name  # NumPy itself forgets the byte order
    np.testing.assert_array_equal(np.asarray(again).astype("f4"), VALUES)


@pytest.mark.parametrize("value", [VALUES.tolist(), VALUES.astype(int), VALUES > 1, None])
def test_arrays_of_the_wrong_kind(value):
    with pytest.raises(TypeError, match="array: expected"):
        Matrix.from_array(value)


@pytest.mark.parametrize("shape", [(), (3, 0), (0,), (2, 2, 2)])
def test_arrays_of_the_wrong_shape(shape):
    with pytest.raises(BigvocabError, match="array: expected shape"):
        Matrix.from_array(np.zeros(shape, "f4"))


def test_as_matrix(tmp_path):
    path = save(tmp_path / "x.npy", VALUES)
    matrix = open_matrix(path)
    assert as_matrix(matrix) is matrix
    for value in [path, str(path), [path], VALUES, np.asarray(memoryview(VALUES)), VALUES.tolist()]:
        np.testing.assert_array_equal(np.asarray(as_matrix(value)), VALUES)
    assert as_matrix([path, path], vocab_shards=True).shape == (12, 10)
    for value in [None, 3, [], {"a": 1}]:
        with pytest.raises(TypeError, match="expected an array, a path or a Matrix, got"):
            as_matrix(value)


# --- files that change -------------------------------------------------------------------------------------------


def shrink(path):
    os.truncate(path, 100)


def grow(path):
    with open(path, "ab") as stream:
        stream.write(b"more")


def replace(path):
    save(path.with_suffix(".new.npy"), VALUES)
    os.replace(path.with_suffix(".new.npy"), path)


def rewrite(path):
    with open(path, "r+b") as stream:
        stream.write(b"\x93NUMPY")
    os.utime(path, ns=(0, os.stat(path).st_mtime_ns + 1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (shrink, "shrank while it is read, from 368 to 100 bytes"),
        (grow, "grew while it is read, from 368 to 372 bytes"),
        (replace, "was written to or replaced"),
        (rewrite, "was written to or replaced"),
        (os.unlink, "is gone while it is read"),
    ],
)
def test_a_file_that_changes_is_noticed(tmp_path, change, words):
    path = save(tmp_path / "x.npy", VALUES)
    other = save(tmp_path / "y.npy", VALUES)
    matrix = open_matrix([other, path])
    matrix.check()
    change(path)
    with pytest.raises(FormatError, match=f"x.npy: {words}"):
        matrix.check()


def test_of_a_bus_error_the_file_that_is_shorter_is_named(tmp_path):
    gc.collect()  # files of tests before
    names = ("touched.npy", "gone.npy", "cut.npy")
    opened = [open_matrix(save(tmp_path / name, VALUES)) for name in names]
    opened.append(read_labels(save(tmp_path / "labels.npy", np.arange(9))))
    os.utime(tmp_path / "touched.npy", (1, 1))
    (tmp_path / "gone.npy").unlink()
    assert sigbus.first_cut_short() is None
    size = os.stat(tmp_path / "labels.npy").st_size
    os.truncate(tmp_path / "labels.npy", 130)
    expected = f"{tmp_path}/labels.npy: shrank while it is read, from {size} to 130 bytes"
    assert sigbus.first_cut_short() == expected
    del opened[3]
    save(tmp_path / "shorter.npy", VALUES[:1]).replace(tmp_path / "touched.npy")
    assert sigbus.first_cut_short() is None  # the pages of the old one are there
    os.truncate(tmp_path / "cut.npy", 130)
    assert f"{tmp_path}/cut.npy: shrank while it is read" in sigbus.first_cut_short()


# --- memory ------------------------------------------------------------------------------------------------------


def resident_file_bytes():
    text = Path("/proc/self/status").read_text()
    return int(text.split("RssFile:")[1].split()[0]) * 1024


SIZES = (2048, 8192)  # 64 MiB of float32


def big_file(tmp_path, kind):
    array = np.ones(SIZES, "f4")
    if kind == "npy":
        return save(tmp_path / "x.npy", array)
    if kind == "fortran":
        return save(tmp_path / "x.npy", np.asfortranarray(array))
    return save_arrow(tmp_path / "x.arrow", array, 500)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
@pytest.mark.parametrize("kind", ["npy", "arrow", "fortran"])
def test_pages_are_given_back(tmp_path, kind):
    path = big_file(tmp_path, kind)
    gc.collect()
    before = resident_file_bytes()
    matrix = open_matrix(path)
    assert resident_file_bytes() - before < 8 << 20, "opening reads the data"
    peak = 0
    for start in range(0, SIZES[0], 256):
        assert all(tile.sum() == tile.size for _, [(_, tile)] in matrix.row_parts(start, start + 256))
        peak = max(peak, resident_file_bytes() - before)
        matrix.release(start, start + 256)
    assert peak > 7 << 20, "this measures nothing"
    if kind != "fortran":
        assert peak < 24 << 20
    assert resident_file_bytes() - before < 4 << 20
    assert matrix[SIZES[0] - 1].sum() == SIZES[1]
    whole = np.asarray(matrix)
    assert whole.sum(dtype="f8") == whole.size
    if kind != "fortran":
        matrix.release(SIZES[0] // 2, SIZES[0])
        assert 28 << 20 < resident_file_bytes() - before < 36 << 20


def test_more_than_2_to_the_32_elements(tmp_path):
    """10 GB that take no disk; a product in 32 bits anywhere would show other rows."""
    rows, classes = 50_000, 100_003
    path = tmp_path / "x.raw"
    tail = (np.arange(3 * classes) % 2048).reshape(3, classes).astype("f2")
    with open(path, "wb") as stream:
        stream.truncate(rows * classes * 2)
        stream.seek((rows - 3) * classes * 2)
        stream.write(tail.tobytes())
    if os.stat(path).st_blocks * 512 > 1 << 30:
        pytest.skip("no sparse files here")
    matrix = open_matrix(path, shape=(rows, classes), dtype="float16")
    assert matrix.shape[0] * matrix.shape[1] > 2**32
    np.testing.assert_array_equal(matrix[-3:], tail)
    np.testing.assert_array_equal(matrix[[rows - 1, 0, rows - 3]], np.stack([tail[2], 0 * tail[0], tail[0]]))
    ((first, [(_, tile)]),) = matrix.row_parts(rows - 2, rows)
    assert first == rows - 2
    np.testing.assert_array_equal(tile, tail[1:])
    matrix.release(0, rows)
    assert matrix[rows - 4].sum() == 0
    assert matrix.nbytes == rows * classes * 2


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors")
def test_many_files(tmp_path):
    for i in range(300):
        save(tmp_path / "d" / f"{i}.npy", VALUES[:1] + i)
    before = len(os.listdir("/proc/self/fd"))
    matrix = open_matrix(tmp_path / "d")
    assert matrix[:, 0].tolist() == list(range(300))
    assert len(os.listdir("/proc/self/fd")) - before <= 300
    del matrix
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_opening_loads_no_compiler():
    code = "import sys, bigvocab; bigvocab.open_matrix; sys.exit(any(m in sys.modules for m in ('numba', 'pyarrow')))"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=Path(bigvocab.matrices.matrix.__file__).parents[1]).returncode
        == 0
    )


def test_rows_that_are_made_native_are_not_held_twice(tmp_path, monkeypatch):
    monkeypatch.setattr("bigvocab.matrices.matrix.COPIED_BYTES", 1 << 20)
    values = np.random.default_rng(0).normal(size=(4000, 1000)).astype(ml_dtypes.bfloat16)
    values.view("u2").astype(">u2").tofile(tmp_path / "big.bin")
    matrix = bigvocab.open_matrix(tmp_path / "big.bin", shape=values.shape, dtype=">bfloat16")
    tracemalloc.start()
    try:
        found = matrix[:]
        assert tracemalloc.get_traced_memory()[1] < 1.5 * values.nbytes
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(found, values)
    assert not found.flags.writeable
    assert matrix[5:5].shape == (0, 1000)
