"""Headers of every format: what is accepted, what is refused with which words, and that lies never get past."""

import io
import json
import os
import pickle
import struct

import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest

from bigvocab.errors import BigvocabError, FormatError
from bigvocab.formats.arrow import parts_of
from bigvocab.formats.layout import Stored
from bigvocab.matrices.opening import open_matrix

BF16 = np.dtype(ml_dtypes.bfloat16)
FUZZ_ROUNDS = int(os.environ.get("BIGVOCAB_FUZZ_ROUNDS", "250"))
VALUES = np.arange(12).reshape(3, 4) / 4 - 1


def npy_bytes(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npy_header(text, version=(1, 0), data=b"\0" * 96):
    text = text.encode()
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version == (1, 0) else "<I", len(text)) + text + data


def safetensors_bytes(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(3, 4), begin=0, end=48):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def fixed_lists(array, kind=None):
    flat = pa.array(np.ascontiguousarray(array).ravel(), kind)
    return pa.FixedSizeListArray.from_arrays(flat, array.shape[1])


def ipc_bytes(batches, stream=False, **options):
    sink = io.BytesIO()
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(sink, batches[0].schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue()


def batch(**columns):
    return pa.record_batch(list(columns.values()), list(columns))


@pytest.fixture
def file(tmp_path):
    def write(name, data):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


def same(matrix, expected):
    found = np.asarray(matrix)
    assert matrix.shape == expected.shape
    np.testing.assert_array_equal(found.astype(np.float64), np.asarray(expected, np.float64))
    assert not matrix[:].flags.writeable


# --- npy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_npy_dtypes_orders_versions(file, dtype, order, version):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(VALUES, dtype, order=order), version=version)
    matrix = open_matrix(file("x.npy", stream.getvalue()))
    same(matrix, VALUES)
    assert matrix.dtype == np.dtype(dtype)
    assert np.asarray(matrix).flags["F_CONTIGUOUS" if order == "F" else "C_CONTIGUOUS"]


def test_npy_bfloat16_in_all_its_clothes(file):
    bits = VALUES.astype(BF16).view(np.uint16)
    void = npy_bytes(VALUES.astype(BF16))
    assert b"'<V2'" in void
    swapped = void.replace(b"'<V2'", b"'>V2'").replace(bits.tobytes(), bits.astype(">u2").tobytes())
    plain = void.replace(b"'<V2'", b"'|V2'")
    for data, dtype in [
        (void, None),
        (void, "bfloat16"),
        (plain, None),
        (swapped, None),
        (npy_bytes(bits), "bfloat16"),
        (npy_bytes(bits), BF16),
        (npy_bytes(bits.astype(">u2")), "bfloat16"),
    ]:
        matrix = open_matrix(file("x.npy", data), dtype=dtype)
        assert matrix.dtype == BF16
        same(matrix, VALUES)
        same(matrix[1:3], VALUES[1:3])
        assert matrix[[2, 0]].dtype == BF16
        np.testing.assert_array_equal(matrix[[2, 0]].astype(float), VALUES[[2, 0]])


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 4), np.uint16), r"holds uint16, expected one of float16.*dtype='bfloat16'"),
        (np.zeros((3, 4), np.int32), "holds int32, expected one of float16, bfloat16, float32, float64$"),
        (np.zeros((3, 4), complex), "holds complex128"),
        (np.zeros((3, 4), "V4"), "V4"),
        (np.zeros((3, 4), [("a", "i1"), ("b", "i1")]), "holds"),
        (np.zeros((3, 4, 5), "f4"), r"has 3 dimensions \(shape \(3, 4, 5\)\)"),
        (np.zeros((), "f4"), "has 0 dimensions"),
        (np.zeros((3, 0), "f4"), r"no classes \(shape \(3, 0\)\)"),
        (np.array([[{"a": 1}]], dtype=object), "pickled Python objects, which are refused"),
    ],
)
def test_npy_refuses_types_and_shapes(file, array, words):
    with pytest.raises(FormatError, match=words):
        open_matrix(file("x.npy", npy_bytes(array)))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (npy_bytes(np.zeros((3, 4), "f4"))[:-1], "truncated: the header promises 176 bytes, the file has 175"),
        (npy_bytes(np.zeros((3, 4), "f4"))[:50], "not a valid .npy header"),
        (b"no magic at all", "not a valid .npy header"),
        (pickle.dumps([1]), "not a valid .npy header"),
        (b"", r"empty file \(0 bytes\)"),
        (b"\x93NUMPY\x09\x00" + b"\0" * 90, r"version \(9, 0\) of the format is unknown"),
        (npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-3, 4)}"), r"shape \(-3, 4\)"),
        (npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (True, 4)}"), r"shape \(True, 4\)"),
        (npy_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': (0, {2**63})}}"), "more than any file"),
        (npy_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**40}, {2**40})}}"), "more than any"),
        (npy_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**50}, 4)}}"), "promises"),
        (npy_header("{'descr': '<f4', 'fortran_order': 'x', 'shape': (3, 4)}"), "not a valid"),
        (npy_header("(" * 5000), "not a valid .npy header"),
        (npy_header("print(1)"), "not a valid .npy header"),
        (npy_header("1/0"), r"not a valid .npy header: malformed node or string on line 1$"),  # and not where it lies
        (npy_header("{'descr': (oops"), r"not a valid .npy header: [^(]*$"),  # an error of two parts: its text alone
    ],
)
def test_npy_lying_headers(file, data, words):
    with pytest.raises(FormatError, match=words) as info:
        open_matrix(file("x.npy", data))
    assert "x.npy" in str(info.value)


def test_npy_longer_than_promised_is_accepted_as_numpy_does(file):
    same(open_matrix(file("x.npy", npy_bytes(VALUES.astype("f4")) + b"tail")), VALUES)


def test_npy_of_python_2(file):
    data = npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (3L, 4L)}" + " " * 10)
    assert open_matrix(file("x.npy", data)).shape == (3, 4)


def test_no_rows_are_legal(file):
    matrix = open_matrix(file("x.npy", npy_bytes(np.zeros((0, 4), "f4"))))
    assert matrix.shape == (0, 4)
    assert np.asarray(matrix).shape == matrix[:].shape == matrix[[]].shape == (0, 4)
    assert list(matrix.row_parts(0, 0)) == []
    matrix.release(0, 0)


def test_biases(file):
    matrix = open_matrix(file("b.npy", npy_bytes(np.arange(5, dtype="f4"))))
    assert (matrix.ndim, matrix.shape, matrix[1:3].tolist()) == (1, (5,), [1, 2])


def test_the_dtype_asked_for_must_be_that_of_the_file(file):
    path = file("x.npy", npy_bytes(VALUES.astype(">f4")))
    same(open_matrix(path, dtype="float32"), VALUES)
    with pytest.raises(BigvocabError, match="dtype=float16 was asked for, but the file holds float32"):
        open_matrix(path, dtype="float16")


# --- raw ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "<float32", ">float32", "f8", ">f2", np.float32, np.dtype(">f8")])
@pytest.mark.parametrize("offset", [0, 3, 64])
def test_raw_dtypes_and_unaligned_offsets(file, dtype, offset):
    if isinstance(dtype, str):
        size = {"2": "f4" if dtype.endswith("32") else "f2", "6": "f2", "8": "f8"}[dtype[-1]]
        numpy_dtype = np.dtype((dtype[0] if dtype[0] in "<>" else "=") + size)
    else:
        numpy_dtype = np.dtype(dtype)
    path = file("x.raw", b"\1" * offset + VALUES.astype(numpy_dtype).tobytes())
    for shape in [(3, 4), "3,4", [-1, 4], " -1, 4"]:
        matrix = open_matrix(path, shape=shape, dtype=dtype, offset=offset)
        same(matrix, VALUES)
        assert matrix.dtype == numpy_dtype


@pytest.mark.parametrize(("dtype", "order"), [("bfloat16", "<"), ("<bfloat16", "<"), (">bfloat16", ">"), (BF16, "<")])
def test_raw_bfloat16(file, dtype, order):
    bits = VALUES.astype(BF16).view(np.uint16).astype(order + "u2")
    matrix = open_matrix(file("x.bin", bits.tobytes()), shape=(3, 4), dtype=dtype)
    assert matrix.dtype == BF16
    same(matrix, VALUES)


def test_raw_biases(file):
    path = file("x.raw", np.arange(5, dtype="f4").tobytes())
    for shape in [(5,), (-1,), "5", "-1"]:
        assert np.asarray(open_matrix(path, shape=shape, dtype="f4")).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shape": (3, 5)}, r"shape \(3, 5\) of float32 at offset 0 needs 60 bytes, there are 48"),
        ({"shape": (2, 4)}, "needs 32 bytes, there are 48"),
        ({"shape": (3, 4), "offset": 4}, "at offset 4 needs 52 bytes, there are 48"),
        ({"shape": (-1, 5)}, "48 bytes of data are no whole number of rows .*: 8 are left over"),
        ({"shape": (-1, 4), "offset": 50}, r"offset=50 lies past its end \(48 bytes\)"),
        ({"shape": (0, 4)}, "needs 0 bytes, there are 48"),
        ({"shape": (2**70, 4)}, "more than any file holds"),
        ({"shape": (3, 4), "dtype": None}, "dtype: raw binary needs it"),
        ({"shape": (3, 4), "dtype": "int8"}, "dtype: got 'int8', expected one of float16"),
        ({"shape": (3, 4), "dtype": ">"}, "dtype: got '>'"),
        ({"shape": (3, 4), "dtype": np.int8}, "dtype: got .*int8"),
        ({"shape": (3, 0)}, "shape: expected"),
        ({"shape": (3, -1)}, "shape: expected"),
        ({"shape": (-2, 4)}, "shape: expected"),
        ({"shape": "3;4"}, "shape: expected whole numbers"),
        ({"shape": ()}, "shape: expected"),
        ({"shape": (3, 4), "offset": -1}, "offset: got -1"),
        ({"shape": None}, r"unknown format .*raw binary needs shape=\(N, V\)"),
        ({"shape": None, "offset": 8}, "offset: got 8, expected 0"),
    ],
)
def test_raw_refusals(file, options, words):
    path = file("x.raw", VALUES.astype("f4").tobytes())
    with pytest.raises(BigvocabError, match=words):
        open_matrix(path, **{"dtype": "float32", **options})


@pytest.mark.parametrize(
    "options",
    [{"shape": 3}, {"shape": (3.0, 4)}, {"offset": 1.5}, {"offset": True}, {"dtype": 4}, {"shape": (3, None)}],
)
def test_arguments_of_the_wrong_kind(file, options):
    path = file("x.raw", VALUES.astype("f4").tobytes())
    with pytest.raises(TypeError, match=f"{next(iter(options))}: expected"):
        open_matrix(path, **{"dtype": "float32", "shape": (3, 4), **options})


def test_a_file_with_a_header_is_not_read_as_raw(file):
    wide = np.zeros((3, 32), "f4")  # the header of 128 bytes would pass for a row
    tensors = safetensors_bytes({"w": entry(shape=(3, 32), end=384)}, wide.tobytes())
    for name, data in [("x.npy", npy_bytes(wide)), ("x.raw", npy_bytes(wide)), ("x.safetensors", tensors)]:
        with pytest.raises(BigvocabError, match="header of its own; leave out shape="):
            open_matrix(file(name, data), shape=(-1, 32), dtype="f4")
    assert open_matrix(file("x.npy", npy_bytes(wide)), shape=(3, 32), dtype="f4", offset=128).shape == (3, 32)
    assert open_matrix(file("y.npy", wide.tobytes()), shape=(3, 32), dtype="f4").shape == (3, 32)


# --- safetensors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_safetensors_dtypes(file, dtype):
    from safetensors.numpy import save

    array = VALUES.astype({"F64": "f8", "F32": "f4", "F16": "f2", "BF16": BF16}[dtype])
    data = save({"other": np.arange(3), "w": array, "bias": array[0]}, metadata={"format": "np"})
    path = file("x.safetensors", data)
    same(open_matrix(f"{path}::w"), VALUES)
    same(open_matrix(f"{path}::bias"), VALUES[0])
    assert open_matrix(f"{path}::w").dtype == array.dtype
    same(open_matrix(file("one.safetensors", save({"w": array}))), VALUES)


def test_safetensors_that_the_library_writes_by_file(tmp_path):
    from safetensors.numpy import save_file

    save_file({"lm_head.weight": VALUES.astype("f4")}, tmp_path / "x.safetensors")
    same(open_matrix(tmp_path / "x.safetensors"), VALUES)


def test_safetensors_names(file):
    many = {f"t{i:02}": entry(shape=(1, 4), begin=16 * i, end=16 * i + 16) for i in range(25)}
    path = file("x.safetensors", safetensors_bytes(many, bytes(400)))
    with pytest.raises(BigvocabError, match="holds 25 tensors, name one with file::tensor: 't00', .*'t19' and 5 more$"):
        open_matrix(path)
    with pytest.raises(BigvocabError, match="no tensor 'nope'; there are: 't00'"):
        open_matrix(f"{path}::nope")
    with pytest.raises(BigvocabError, match="expected the name"):
        open_matrix(f"{path}::")
    assert open_matrix(f"{path}::t24").files[0]["path"] == f"{path}::t24"


def test_safetensors_empty_tensor(file):
    header = {"a": entry(shape=(0, 4), end=0), "w": entry()}
    path = file("x.safetensors", safetensors_bytes(header, VALUES.astype("f4").tobytes()))
    same(open_matrix(f"{path}::w"), VALUES)
    assert open_matrix(f"{path}::a").shape == (0, 4)


@pytest.mark.parametrize(("begin", "more"), [(0, 1), (8, 0), (8, 8)])
def test_safetensors_bytes_of_no_tensor(file, begin, more):
    data = b"\xff" * begin + VALUES.astype("f4").tobytes() + b"\xff" * more
    path = file("x.safetensors", safetensors_bytes({"w": entry(begin=begin, end=begin + 48)}, data))
    room = 48 + begin + more
    with pytest.raises(FormatError, match=f"its tensors are 48 bytes, but the file has {room} after the header"):
        open_matrix(path)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"w": entry("I64")}, "'I64', expected one of F64, F32, F16, BF16"),
        ({"w": entry("F8_E4M3", end=12)}, "F8_E4M3"),
        ({"w": entry(["F32"])}, "expected one of F64"),
        ({"w": entry(end=47)}, r"needs 48 bytes, but data_offsets give 47"),
        ({"w": entry(end=49)}, "truncated: tensor 'w' ends at byte 49 of the data, the file has 48"),
        ({"w": entry(begin=-4, end=44)}, r"data_offsets \[-4, 44\]"),
        ({"w": entry(begin=48, end=0)}, r"data_offsets \[48, 0\]"),
        ({"w": entry(end=48.0)}, "data_offsets"),
        ({"w": entry(begin=False)}, "data_offsets"),
        ({"w": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48, 50]}}, "data_offsets"),
        ({"w": {"dtype": "F32", "shape": [3, 4]}}, "data_offsets None"),
        ({"w": {"dtype": "F32", "data_offsets": [0, 48]}}, "shape None"),
        ({"w": 7}, "data_offsets"),
        ({"w": entry(shape=(-3, -4))}, r"shape \[-3, -4\]"),
        ({"w": entry(shape=(3.0, 4))}, "shape"),
        ({"w": entry(shape=(2**62, 2**62))}, "more than any file"),
        ({"w": entry(shape=(2**32, 2**32), end=0)}, "more than any file"),
        ({"w": entry(shape=(2**30, 4))}, f"needs {2**34} bytes"),
        ({"w": entry(shape=(2, 2, 3))}, "has 3 dimensions"),
        ({"w": entry(shape=(), end=4)}, "has 0 dimensions"),
        ({"w": entry(shape=(3, 0), end=0)}, "no classes"),
        ({"v": entry(shape=(4,), begin=40, end=48), "w": entry()}, "tensors 'w' and 'v' overlap at byte 40"),
        ({}, "holds no tensors"),
        ({"__metadata__": {"a": "b"}}, "holds no tensors"),
        ([], "header is a JSON list, expected an object"),
        (b'{"w": {"dtype": "F32"', "not valid UTF-8 JSON"),
        (b'{"w": 1, "w": 2}', "the key 'w' appears twice"),
        (b'{"w": {"shape": [3, 4], "shape": [4, 3]}}', "the key 'shape' appears twice"),
        (b'{"\xff": 1}', "not valid UTF-8 JSON"),
        (b"[" * 100_000, "not valid UTF-8 JSON"),
        (b'{"w": ' + b"9" * 5000 + b"}", "not valid UTF-8 JSON"),
    ],
)
def test_safetensors_lying_headers(file, header, words):
    data = safetensors_bytes(header, VALUES.astype("f4").tobytes())
    with pytest.raises(FormatError, match=words):
        open_matrix(file("x.safetensors", data))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\1\0\0", "truncated: a .safetensors file begins with 8 bytes, this one has 3"),
        ((50).to_bytes(8, "little") + b"{}", "truncated: the header ends at byte 58, the file has 10"),
        ((2**63).to_bytes(8, "little") + b"{}", f"a header of {2**63} bytes is more than"),
        (bytes(8), "not valid UTF-8 JSON"),
    ],
)
def test_safetensors_lengths(file, data, words):
    with pytest.raises(FormatError, match=words):
        open_matrix(file("x.safetensors", data))


# --- Arrow -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("suffix", [".arrow", ".arrows", ".ipc", ".feather", ".unknown"])
def test_arrow_batches(file, stream, dtype, suffix):
    column = fixed_lists(np.tile(VALUES, (4, 1)).astype(dtype))
    batches = [batch(x=column.slice(0, 3)), batch(x=column.slice(3, 0)), batch(x=column.slice(5, 7))]
    path = file("x" + suffix, ipc_bytes(batches, stream))
    if suffix == ".unknown" and stream:
        with pytest.raises(FormatError, match="unknown format"):
            open_matrix(path)
        return
    matrix = open_matrix(path)
    expected = np.tile(VALUES, (4, 1))[[0, 1, 2, 5, 6, 7, 8, 9, 10, 11]]
    same(matrix, expected)
    assert matrix.dtype == np.dtype(dtype)
    assert [(first, len(tiles[0][1])) for first, tiles in matrix.row_parts(1, 9)] == [(1, 2), (3, 6)]
    view = matrix[4:6]
    assert view.base is not None
    np.testing.assert_array_equal(view, expected[4:6])


@pytest.mark.parametrize("stream", [False, True])
def test_arrow_fixed_shape_tensor(file, stream):
    kind = pa.fixed_shape_tensor(pa.float32(), [4])
    wide = pa.fixed_shape_tensor(pa.float32(), [2, 2])
    lists = fixed_lists(VALUES.astype("f4"))
    batches = [
        batch(
            wide=pa.ExtensionArray.from_storage(wide, lists),
            x=pa.ExtensionArray.from_storage(kind, lists),
            note=pa.array(["a", None, "b"]).dictionary_encode(),
        )
    ]
    same(open_matrix(file("x.arrow", ipc_bytes(batches, stream))), VALUES)


def test_arrow_feather_by_its_own_writer(tmp_path):
    from pyarrow import feather

    table = pa.table({"logits": fixed_lists(VALUES.astype("f4"))})
    feather.write_feather(table, tmp_path / "x.feather", compression="uncompressed")
    same(open_matrix(tmp_path / "x.feather"), VALUES)


def test_arrow_bfloat16_bits(file):
    bits = VALUES.astype(BF16).view(np.uint16)
    path = file("x.arrow", ipc_bytes([batch(x=fixed_lists(bits))]))
    same(open_matrix(path, dtype="bfloat16"), VALUES)
    with pytest.raises(FormatError, match="expected a FixedSizeList"):
        open_matrix(path)


def test_arrow_columns(file):
    lists = fixed_lists(VALUES.astype("f4"))
    ids = pa.array([1, 2, 3])
    path = file("x.arrow", ipc_bytes([batch(a=lists, ids=ids, b=fixed_lists(VALUES.astype("f2") * 2))]))
    same(open_matrix(f"{path}::b"), VALUES * 2)
    assert open_matrix(f"{path}::b").files[0]["path"] == f"{path}::b"
    with pytest.raises(BigvocabError, match="2 columns could be meant, name one with file::column: 'a', 'b'"):
        open_matrix(path)
    with pytest.raises(BigvocabError, match=r"no column 'c'; there are: 'a' \(fixed_size_list.*'ids' \(int64\)"):
        open_matrix(f"{path}::c")
    with pytest.raises(FormatError, match=r"::ids: expected a FixedSizeList.*'ids' \(int64\)"):
        open_matrix(f"{path}::ids")
    with pytest.raises(FormatError, match=r"expected a FixedSizeList.*columns: 'ids' \(int64\)"):
        open_matrix(file("y.arrow", ipc_bytes([batch(ids=ids)])))
    twins = pa.RecordBatch.from_arrays([lists, lists], names=["a", "a"])
    with pytest.raises(BigvocabError, match="2 columns 'a'"):
        open_matrix(f"{file('z.arrow', ipc_bytes([twins]))}::a")


def test_arrow_nulls_are_named(file):
    rows = [[1.0, 2.0], [3.0, 4.0], None, [5.0, None]]
    kind = pa.list_(pa.float32(), 2)
    good = batch(x=pa.array(rows[:2], kind))
    for later, words in [(rows[1:3], "row 3 is null"), ([rows[0], rows[3]], "row 3 has a null at class 1")]:
        for stream in (False, True):
            path = file("x.arrow", ipc_bytes([good, batch(x=pa.array(later, kind))], stream))
            with pytest.raises(FormatError, match=words):
                open_matrix(path)


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
@pytest.mark.parametrize("stream", [False, True])
def test_arrow_compressed(file, compression, stream):
    column = fixed_lists(np.zeros((300, 4), "f4"))
    path = file("x.arrow", ipc_bytes([batch(x=column)], stream, compression=compression))
    with pytest.raises(FormatError, match="compressed .* cannot be memory-mapped; write it uncompressed"):
        open_matrix(path)


@pytest.mark.parametrize("stream", [False, True])
def test_arrow_without_batches(file, stream):
    empty = batch(x=fixed_lists(VALUES.astype("f4"))).slice(0, 0)
    assert open_matrix(file("x.arrow", ipc_bytes([empty], stream))).shape == (0, 4)
    with pytest.raises(FormatError, match="no classes"):
        open_matrix(file("y.arrow", ipc_bytes([batch(x=pa.array([[]], pa.list_(pa.float32(), 0)))], stream)))


def test_arrow_slices_of_lists_and_of_their_elements():
    """IPC hands out arrays from offset 0; should it ever not, `.values` would ignore the slice."""
    flat = pa.array(np.arange(44, dtype="f4"))
    column = pa.FixedSizeListArray.from_arrays(flat.slice(4), 4).slice(3, 2)
    stored = Stored(np.dtype("f4"), np.dtype("f4"))
    assert parts_of("x", 0, column, flat.buffers()[1], 4, stored) == (4, [((4 + 3 * 4) * 4, 2)])
    with pytest.raises(FormatError, match="x: compressed"):
        parts_of("x", 0, column, pa.py_buffer(bytes(176)), 4, stored)


def test_arrow_truncated(file):
    data = ipc_bytes([batch(x=fixed_lists(np.zeros((300, 4), "f4")))])
    with pytest.raises(FormatError, match=r"x.arrow: not a valid \(perhaps a truncated\) Arrow IPC file"):
        open_matrix(file("x.arrow", data[: len(data) // 2]))
    data = ipc_bytes([batch(x=fixed_lists(np.zeros((300, 4), "f4")))], stream=True)
    with pytest.raises(FormatError, match="Arrow IPC stream"):
        open_matrix(file("x.arrow", data[: len(data) // 2]))


# --- other files -------------------------------------------------------------------------------------------------


def test_formats_that_cannot_be_mapped(file, tmp_path):
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"x": [1.0]}), tmp_path / "x.parquet")
    np.savez_compressed(tmp_path / "x.npz", a=VALUES)
    with pytest.raises(FormatError, match=r"Parquet .* cannot be memory-mapped; write it as .npy"):
        open_matrix(tmp_path / "x.parquet")
    with pytest.raises(FormatError, match=r"Parquet .* cannot be memory-mapped"):
        open_matrix(file("x.npy", (tmp_path / "x.parquet").read_bytes()))
    with pytest.raises(FormatError, match="compressed .* np.savez"):
        open_matrix(tmp_path / "x.npz")
    with pytest.raises(FormatError, match="Feather version 1"):
        open_matrix(file("x.feather", b"FEA1" + bytes(100)))
    with pytest.raises(BigvocabError, match="'::a' names a tensor"):
        open_matrix(f"{file('x.npy', npy_bytes(VALUES))}::a")
    with pytest.raises(BigvocabError, match="'::a' names a tensor"):
        open_matrix(f"{file('x.raw', VALUES.tobytes())}::a", shape=(3, 4), dtype="f8")


def test_known_content_without_a_known_suffix(file):
    same(open_matrix(file("blob", npy_bytes(VALUES))), VALUES)
    same(open_matrix(file("blob2", ipc_bytes([batch(x=fixed_lists(VALUES.astype("f4")))]))), VALUES)


# --- fuzz --------------------------------------------------------------------------------------------------------


def samples():
    from safetensors.numpy import save

    lists = fixed_lists(VALUES.astype("f4"))
    nulls = pa.array([[1.0, None, 2.0, 3.0], None], pa.list_(pa.float32(), 4))
    names = pa.array(["a", "b", "a"]).dictionary_encode()
    batches = [batch(x=lists, name=names), batch(x=lists.slice(1, 2), name=names.slice(1, 2))]
    tensor = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [4]), lists)
    return {
        "c.npy": npy_bytes(VALUES.astype("f4")),
        "f.npy": npy_bytes(np.asfortranarray(VALUES.astype(">f2"))),
        "v.npy": npy_bytes(VALUES.astype(BF16)),
        "x.safetensors": save({"w": VALUES.astype("f4")}),
        "y.safetensors": save({"w": VALUES.astype(BF16), "b": np.arange(4)}),
        "x.arrow": ipc_bytes(batches),
        "x.arrows": ipc_bytes(batches, stream=True),
        "n.arrow": ipc_bytes([batch(x=nulls)]),
        "t.arrow": ipc_bytes([batch(x=tensor)]),
        "z.arrow": ipc_bytes([batch(x=lists)], compression="lz4"),
    }


def survives(path, selector=""):
    """Open and read the whole: a matrix, or the package's own error; the bytes it shows lie in the file."""
    try:
        matrix = open_matrix(f"{path}{selector}")
    except BigvocabError as error:
        message = str(error)
    else:
        message = None
    if message is not None:
        assert path.name in message
        return None
    assert matrix.nbytes <= os.path.getsize(path)
    assert np.asarray(matrix).tobytes() is not None
    for _, tiles in matrix.row_parts(0, len(matrix)):
        tiles[0][1].sum(dtype=np.float64)
    return matrix


@pytest.mark.parametrize("name", sorted(samples()))
def test_fuzz_every_truncation(tmp_path, name):
    data = samples()[name]
    path = tmp_path / name
    selector = "::w" if name == "y.safetensors" else ""
    opened = []
    for length in range(len(data)):
        path.write_bytes(data[:length])
        if survives(path, selector) is not None:
            opened.append(length)
    assert not opened or name == "x.arrows"  # an Arrow stream may end after any batch


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(samples()))
def test_fuzz_flipped_bytes(tmp_path, name):
    data = samples()[name]
    path = tmp_path / name
    selector = "::w" if name == "y.safetensors" else ""
    random = np.random.default_rng(20240229)
    for _ in range(FUZZ_ROUNDS):
        broken = bytearray(data)
        for _ in range(random.integers(1, 5)):
            at = int(random.integers(len(broken)))
            broken[at] = int(random.choice([0, 1, 127, 128, 255, broken[at] ^ (1 << int(random.integers(8)))]))
        path.write_bytes(broken)
        survives(path, selector)


def test_links_that_lead_nowhere_are_no_missing_rows(tmp_path):
    np.save(tmp_path / "part-0.npy", np.zeros((2, 3), np.float32))
    (tmp_path / "part-1.npy").symlink_to(tmp_path / "gone.npy")
    for source in (tmp_path, f"{tmp_path}/*.npy"):
        with pytest.raises(BigvocabError, match=r"part-1.npy: cannot open: No such file"):
            open_matrix(source)


@pytest.mark.parametrize("name", ["npy", "stream"])
def test_files_joined_end_to_end_are_refused(file, name):
    """`cat` of two files would lose the second without a word."""
    stream = ipc_bytes([batch(logits=fixed_lists(VALUES.astype("f4")))], stream=True)
    data = npy_bytes(VALUES.astype("f4")) if name == "npy" else stream
    second, suffix = ("array", "npy") if name == "npy" else ("stream", "arrows")
    with pytest.raises(FormatError, match=rf"x.{suffix}: a second {second} begins at byte {len(data)}; expected one"):
        open_matrix(file(f"x.{suffix}", data + data))
    same(open_matrix(file(f"y.{suffix}", data + b"tail")), VALUES)
