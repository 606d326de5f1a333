""".npz and .pt files: what they hold is found where it lies, and no archive or pickle is believed or run."""

from __future__ import annotations

import io
import os
import pickle
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch_files as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bigvocab as bv
from bigvocab.errors import BigvocabError, FormatError
from bigvocab.formats.pickle_names import LISTED

RNG = np.random.default_rng(4)
X = RNG.normal(size=(6, 5))
FLOATS = [np.float16, tf.BFLOAT16, np.float32, np.float64]
GOLDEN = Path(__file__).parents[1] / "golden"


def refused(path, words=".", kind=FormatError):
    with pytest.raises(kind, match=words) as caught:
        bv.open_matrix(path)
    assert str(caught.value).startswith(str(path).partition("::")[0])
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- what is there


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_type_is_mapped(tmp_path, dtype):
    x = X.astype(dtype)
    np.savez(tmp_path / "x.npz", first=x, second=x.T, odd=np.frombuffer(b"abc", np.uint8))
    tf.save(tmp_path / "x.pt", {"first": x, "second": np.ascontiguousarray(x.T), "text": "t", "number": 2.5})
    for path in ("x.npz", "x.pt"):
        for key, expected in (("first", x), ("second", x.T)):
            matrix = bv.open_matrix(f"{tmp_path / path}::{key}")
            assert matrix.dtype == dtype
            assert np.asarray(matrix).tobytes() == expected.tobytes()
            assert matrix[2:4].base is not None


def test_keys(tmp_path):
    tree = {"a": X, "model": {"norm.weight": X[0], "layers": [X, {"x": X[:2]}]}, "empty": [], "n": None}
    tf.save(tmp_path / "x.pt", tree)
    for key, shape in {
        "a": (6, 5),
        "model.norm.weight": (5,),
        "model.layers.0": (6, 5),
        "model.layers.1.x": (2, 5),
    }.items():
        assert bv.open_matrix(f"{tmp_path}/x.pt::{key}").shape == shape
    listed = "'a', 'model.norm.weight', 'model.layers.0', 'model.layers.1.x'"
    refused(tmp_path / "x.pt", f"holds 4 tensors, name one with file::key: {listed}", BigvocabError)
    refused(f"{tmp_path}/x.pt::b", f"no tensor 'b'; there are: {listed}", BigvocabError)
    refused(f"{tmp_path}/x.pt::model", "a group of tensors, not one", BigvocabError)
    refused(f"{tmp_path}/x.pt::model.layers.7", "no tensor", BigvocabError)
    refused(f"{tmp_path}/x.pt::n", "no tensor", BigvocabError)
    np.savez(tmp_path / "x.npz", a=X, b=X)
    refused(tmp_path / "x.npz", "holds 2 arrays, name one with file::name: 'a', 'b'", BigvocabError)
    refused(f"{tmp_path}/x.npz::c", "no array 'c'; there are: 'a', 'b'", BigvocabError)
    tf.save(tmp_path / "one.pt", X)
    np.savez(tmp_path / "one.npz", X)
    for path in ("one.pt", "one.npz", "one.npz::arr_0", "one.npz::arr_0.npy"):
        assert np.array_equal(np.asarray(bv.open_matrix(tmp_path / path)), X)
    tf.save(tmp_path / "none.pt", {"a": 1})
    refused(tmp_path / "none.pt", "holds no tensors")


def test_labels_in_archives(tmp_path):
    y = np.array([4, 0, 2])
    for dtype in ("int8", "int16", "int32", "int64", "uint8"):
        np.savez(tmp_path / "y.npz", y=y.astype(dtype), z=X)
        tf.save(tmp_path / "y.pt", {"y": y.astype(dtype), "z": X})
        for name in ("y.npz", "y.pt"):
            labels = bv.read_labels(f"{tmp_path / name}::y")
            assert (labels.kind, labels.num_rows) == ("id", 3)
            assert [batch.labels.tolist() for batch in labels] == [[4, 0, 2]]
            assert [b.labels.tolist() for b in pickle.loads(pickle.dumps(labels))] == [[4, 0, 2]]
            assert bv.read_labels(f"{tmp_path / name}::z").kind == "dense"
            with pytest.raises(BigvocabError, match="name one"):
                bv.read_labels(tmp_path / name)
    with pytest.raises(BigvocabError, match=r"y.npz: no array 'q'"):
        bv.read_labels(f"{tmp_path}/y.npz::q")


def test_labels_in_safetensors(tmp_path):
    from safetensors.numpy import save_file

    save_file({"token_ids": np.array([4, 0, 2]), "x": X.astype(np.float32)}, tmp_path / "y.safetensors")
    assert [b.labels.tolist() for b in bv.read_labels(f"{tmp_path}/y.safetensors::token_ids")] == [[4, 0, 2]]
    assert bv.read_labels(f"{tmp_path}/y.safetensors::x").kind == "dense"


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "expected"),
    [
        ((6, 5), (5, 1), 0, X),
        ((5, 6), (1, 5), 0, X.T),
        ((2, 5), (5, 1), 10, X[2:4]),
        ((1, 5), (77, 1), 5, X[1:2]),
        ((6, 1), (1, 99), 0, X.reshape(-1)[:6, None]),
        ((5,), (1,), 25, X[5]),
        ((0, 5), (5, 1), 30, X[:0]),
    ],
)
def test_views_of_storages(tmp_path, shape, strides, offset, expected):
    data = tf.pickled([tf.tensor(0, "float64", 30, shape, strides, offset), "x"])
    tf.write(tmp_path / "x.pt", data, [X.tobytes()])
    assert np.array_equal(np.asarray(bv.open_matrix(f"{tmp_path}/x.pt::0")), expected)


def test_untyped_storages(tmp_path):
    made = tf.name("torch._utils", "_rebuild_tensor_v3")
    kind = tf.name("torch.storage", "UntypedStorage")
    for dtype, values in (("bfloat16", X.astype(tf.BFLOAT16)), ("float64", X)):
        place = tf.Raw(tf.put(("storage", kind, "0", "cpu", values.nbytes)) + b"Q")
        arguments = (place, 0, (6, 5), (5, 1), False, None, tf.name("torch", dtype))
        tf.write(tmp_path / "x.pt", tf.pickled(tf.call(made, *arguments)), [values.tobytes()])
        assert np.array_equal(np.asarray(bv.open_matrix(tmp_path / "x.pt")), values)
        arguments = (place, 1, (6, 5), (5, 1), False, None, tf.name("torch", dtype))
        tf.write(tmp_path / "x.pt", tf.pickled(tf.call(made, *arguments)), [values.tobytes()])
        refused(tmp_path / "x.pt", "needs .* bytes, but its storage has")


def test_a_file_of_pytorch():
    """Written by PyTorch 2.13 (scripts/golden/files_pytorch.py): plain, turned, shared, bfloat16, a parameter."""
    path, x = GOLDEN / "torch_save.pt", np.arange(12.0).reshape(4, 3)
    for key, expected in {
        "float32": x,
        "bfloat16": x,
        "float16": x,
        "nested.0.turned": x.T,
        "nested.1": x[1:3],
        "parameter": x,
        "state.0.weight": np.ones((2, 3)),
    }.items():
        found = bv.open_matrix(f"{path}::{key}")
        assert np.array_equal(np.asarray(found).astype(float), expected), key
    assert [b.labels.tolist() for b in bv.read_labels(f"{path}::labels")] == [[3, 1, 2, 0]]
    refused(f"{path}::sparse", r"a tensor that is sparse; call .to_dense\(\)")
    refused(f"{path}::float8", "holds float8_e4m3fn, expected a plain type")
    refused(f"{path}::cut", r"whose rows do not lie together; save .contiguous\(\)")


def test_zip64_and_any_alignment(tmp_path):
    """As PyTorch writes large ones: sizes and offset in the Zip64 field alone, and an end of its own."""
    for shift in range(9):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("pad.txt", b"x" * shift)
            with archive.open("x.npy", "w", force_zip64=True) as member:
                np.save(member, X)
        (tmp_path / "x.npz").write_bytes(as_zip64(buffer.getvalue()))
        assert np.array_equal(np.asarray(bv.open_matrix(f"{tmp_path}/x.npz::x")), X)
        losses = bv.sparse_softmax_cross_entropy(bv.open_matrix(tmp_path / "x.npz"), np.zeros(6, int))
        assert np.array_equal(losses, bv.sparse_softmax_cross_entropy(X, np.zeros(6, int)))


def as_zip64(data):
    """The same archive with every number of its directory in Zip64 fields."""
    end = data.rindex(b"PK\5\6")
    count, size, offset = struct.unpack("<HII", data[end + 10 : end + 20])
    table, at, fields = b"", offset, b""
    for _ in range(count):
        packed, plain, length, extra = struct.unpack("<IIHH", data[at + 20 : at + 32])
        start = int.from_bytes(data[at + 42 : at + 46], "little")
        head = bytearray(data[at : at + 46])
        head[20:28] = head[42:46] * 0 + b"\xff" * 8
        head[42:46] = b"\xff" * 4
        fields = struct.pack("<HHQQQ", 1, 24, plain, packed, start)
        head[30:32] = struct.pack("<H", len(fields))
        table += bytes(head) + data[at + 46 : at + 46 + length] + fields
        at += 46 + length + extra
    record = offset + len(table)
    whole = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(table), offset)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, record, 1)
    last = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0)
    return data[:offset] + table + whole + locator + last


def test_a_shape_spelt_by_numpy_2(tmp_path):
    made = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float64, (np.int64(6), np.int64(5)))
    made[:] = X
    del made
    head = (tmp_path / "x.npy").read_bytes()
    if b"np.int64" not in head:  # a NumPy that writes plain numbers
        old = b"(6, 5), }" + b" " * 30
        assert old in head
        (tmp_path / "x.npy").write_bytes(head.replace(old, b"(np.int64(6), np.int64(5)), }".ljust(len(old))))
    assert np.array_equal(np.asarray(bv.open_matrix(tmp_path / "x.npy")), X)
    labels = np.lib.format.open_memmap(tmp_path / "y.npy", "w+", np.int32, (np.uint8(4),))
    labels[:] = 3
    del labels
    assert [b.labels.tolist() for b in bv.read_labels(tmp_path / "y.npy")] == [[3] * 4]
    for lie in (b"np.int64(4", b"np.exec(4)", b"os.int64(4)", b"np.int64(x)", b"np.int64(-4)"):
        (tmp_path / "z.npy").write_bytes(head.replace(b"np.int64(6)", lie.ljust(11), 1))
        refused(tmp_path / "z.npy")


# ---- archives that are not what they say


def test_archives_that_cannot_be_mapped(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", x=X)
    refused(tmp_path / "x.npz", r"member 'x.npy' is compressed \(deflate\).*write it with np.savez")
    tf.save(tmp_path / "x.pt", {"x": X}, compression=zipfile.ZIP_BZIP2)
    refused(tmp_path / "x.pt", r"compressed \(bzip2\)")
    tf.save(tmp_path / "x.pt", {"x": X}, byteorder=b"big")
    refused(tmp_path / "x.pt", "byte order is b'big', expected little")
    for content in (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"ustar", b"x"):
        (tmp_path / "old.pt").write_bytes(content)
        refused(tmp_path / "old.pt", "no zip archive, as torch.save writes since PyTorch 1.6.*save it again")
        (tmp_path / "x.npz").write_bytes(content)
        refused(tmp_path / "x.npz", "no zip archive, as .npz files are")
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("readme.txt", "x")
    refused(tmp_path / "x.npz", "a zip archive, but neither .npz nor .pt")
    np.savez(tmp_path / "x.npz", x=np.array([{}]))
    refused(tmp_path / "x.npz", "pickled Python objects, which are refused")
    flags = bytearray(archive_of(x=X))
    for at in (6, flags.index(b"PK\1\2") + 8):
        encrypted = flags[:]
        encrypted[at] |= 1
        (tmp_path / "x.npz").write_bytes(encrypted)
        refused(tmp_path / "x.npz", "encrypted|not stored plainly")
    (tmp_path / "x.npz").write_bytes(b"junk" + archive_of(x=X))
    with pytest.raises(FormatError):
        bv.open_matrix(tmp_path / "x.npz")
    twins = archive_of(x=X, y=X).replace(b"y.npy", b"x.npy")
    (tmp_path / "x.npz").write_bytes(twins)
    refused(tmp_path / "x.npz", "two members are called 'x.npy'")


def archive_of(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def test_members_that_overlap(tmp_path):
    """Two entries that share bytes, whole or in part, as in a zip bomb."""
    data = bytearray(archive_of(a=X, b=X))
    second = data.index(b"PK\3\4", 4)
    entry = data.rindex(b"PK\1\2")
    shared = data[:]
    shared[entry + 42 : entry + 46] = struct.pack("<I", 0)
    (tmp_path / "x.npz").write_bytes(shared)
    refused(f"{tmp_path}/x.npz::a", "two members share their bytes")
    grown = data[:]
    size = struct.unpack("<I", data[data.index(b"PK\1\2") + 20 : data.index(b"PK\1\2") + 24])[0]
    for at in (data.index(b"PK\1\2") + 20, data.index(b"PK\1\2") + 24):
        grown[at : at + 4] = struct.pack("<I", size + 60)
    (tmp_path / "x.npz").write_bytes(grown)
    refused(f"{tmp_path}/x.npz::a", "truncated, or overlaps the next one")
    assert second


def test_truncated_archives(tmp_path):
    tf.save(tmp_path / "whole.pt", {"x": X, "y": X[0]})
    for name, data in (("x.npz", archive_of(x=X, y=X)), ("x.pt", (tmp_path / "whole.pt").read_bytes())):
        path = tmp_path / name
        for size in range(len(data)):
            path.write_bytes(data[:size])
            if size % 7 in (0, 1):
                refused(f"{path}::x")


@pytest.mark.parametrize("name", ["x.npz", "x.pt"])
def test_every_byte_that_lies(tmp_path, name):
    """Each byte turned round, and made one more: an error in one line, or the file reads as before or as other data."""
    tf.save(tmp_path / "whole.pt", {"x": X.astype(np.float32)})
    data = archive_of(x=X.astype(np.float32)) if name == "x.npz" else (tmp_path / "whole.pt").read_bytes()
    path, read = tmp_path / name, 0
    for at in range(len(data)):
        for value in ((data[at] + 1) % 256, data[at] ^ 0xFF):
            path.write_bytes(data[:at] + bytes([value]) + data[at + 1 :])
            try:
                found = np.asarray(bv.open_matrix(f"{path}::x"))
                read += found.nbytes <= len(data)
            except BigvocabError as error:
                assert str(error).startswith(str(path))  # noqa: PT017
    assert read


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200), tail=st.booleans())
def test_random_pickles(tmp_path, data, tail):
    tf.write(tmp_path / "x.pt", b"\x80\x02" + data + b"." * tail)
    with pytest.raises(BigvocabError, match=r"x\.pt"):
        bv.open_matrix(tmp_path / "x.pt")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    codes=st.lists(
        st.sampled_from(list(b"(012NKJMG}])tlaesuRQbqrhj\x80\x81\x85\x86\x87\x88\x89\x94\x95.")), max_size=60
    )
)
def test_random_instructions(tmp_path, codes):
    tf.write(tmp_path / "x.pt", b"\x80\x02}" + bytes(codes) + b".")
    with pytest.raises(BigvocabError, match=r"x\.pt"):
        bv.open_matrix(tmp_path / "x.pt")


# ---- pickles that want to run something

MARK = "ran"


class Runs:
    """Writes a file when it is unpickled."""

    def __init__(self, how, path):
        self.how, self.path = how, path

    def __reduce__(self):
        code = f"open({str(self.path)!r}, 'w').close()"
        return {
            "system": (os.system, (f"touch {self.path}",)),
            "exec": (exec, (code,)),
            "eval": (eval, (code,)),
            "open": (open, (str(self.path), "w")),
        }[self.how]


def instructions(path):
    """Pickles that would run something, by the instruction that they use."""
    text = tf.put(f"touch {path}")
    system = b"cos\nsystem\n"
    named = tf.put("os") + tf.put("system") + b"\x93"
    for name, body in {
        "REDUCE": system + b"(" + text + b"tR",
        "posix": b"cposix\nsystem\n(" + text + b"tR",
        "nt": b"cnt\nsystem\n(" + text + b"tR",
        "subprocess": b"csubprocess\ncall\n(" + text + b"tR",
        "eval": b"cbuiltins\neval\n(" + text + b"tR",
        "exec": b"c__builtin__\nexec\n(" + text + b"tR",
        "getattr": b"cbuiltins\ngetattr\n(cos\nsystem\n" + tf.put("__call__") + b"tR",
        "import": b"cbuiltins\n__import__\n(" + tf.put("os") + b"tR",
        "load": b"ctorch\nload\n(" + text + b"tR",
        "load_storage": b"ctorch.storage\n_load_from_bytes\n(" + tf.put("x") + b"tR",
        "numpy": b"cnumpy.testing._private.utils\nrunstring\n(" + text + b"tR",
        "dotted": b"ctorch._utils\nos.system\n(" + text + b"tR",
        "STACK_GLOBAL": named + b"(" + text + b"tR",
        "NEWOBJ": system + b"(" + text + b"t\x81",
        "NEWOBJ_EX": system + b"(" + text + b"t}\x92",
        "OBJ": b"(" + system + text + b"o",
        "INST": b"(" + text + b"ios\nsystem\n",
        "EXT1": b"\x82\x01",
        "EXT2": b"\x83\x01\x00",
        "EXT4": b"\x84\x01\x00\x00\x00",
        "BUILD": b"cos\n_wrap_close\n)\x81}" + tf.put("__setstate__") + system + b"sb" + text + b"b",
        "BUILD of listed": b"ccollections\nOrderedDict\n)R}" + tf.put("__setstate__") + system + b"sb",
        "PERSID": b"P0\n",
        "BINPERSID": tf.put(("module", tf.Raw(system), "0", "cpu", 1)) + b"Q",
        "storage by name": tf.put(("storage", tf.Raw(system), "0", "cpu", 1)) + b"Q",
        "READONLY_BUFFER": b"\x97\x98",
        "call of a tensor": tf.tensor(0, "float64", 30, (6, 5), (5, 1)) + b")R",
        "call of a dict": b"})R",
        "call of text": tf.put("os.system") + b"(" + text + b"tR",
        "default factory": b"ccollections\ndefaultdict\n(" + system + b"tR",
        "encode": b"c_codecs\ndecode\n(" + text + b"tR",
    }.items():
        yield name, b"\x80\x02" + body + b"."


def test_pickles_that_run_something_are_refused(tmp_path):
    ran = tmp_path / MARK
    for how in ("system", "exec", "eval", "open"):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            tf.write(tmp_path / "x.pt", pickle.dumps({"x": Runs(how, ran)}, protocol), [X.tobytes()])
            for selector in ("", "::x"):
                refused(f"{tmp_path}/x.pt{selector}", "refused, and nothing of it was run|truncated or corrupt")
            assert not ran.exists()
    for name, data in instructions(ran):
        tf.write(tmp_path / "x.pt", data, [X.tobytes()])
        message = refused(tmp_path / "x.pt")
        assert "its pickle" in message or "holds no tensors" in message, name
        assert not ran.exists(), name


def test_names_are_not_looked_up(tmp_path, monkeypatch):
    """Not even those on the list: PyTorch may be there, with something else behind a name."""

    class Trap(type(sys)):
        def __getattr__(self, name):
            raise AssertionError(f"{name} was looked up")

    for module in ("torch", "torch._utils", "torch.storage"):
        monkeypatch.setitem(sys.modules, module, Trap(module))
    tf.save(tmp_path / "x.pt", {"x": X})
    assert np.array_equal(np.asarray(bv.open_matrix(tmp_path / "x.pt")), X)
    assert not any(name.startswith(("os.", "posix.", "nt.", "sys.", "subprocess.", "builtins.e")) for name in LISTED)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"]" + b"(" * 200_000, "truncated"),
        (b"(" * 500_000 + b"t" * 499_999, "."),
        (b"]" * 200_000 + b"a" * 199_999, "holds no tensors"),
        (b")" + b"\x85" * 1_000_000, "holds no tensors"),
        (b"N" + b"r\xff\xff\xff\x7f", "holds no tensors"),
        (b"N" + b"r\xff\xff\xff\xff" + b"j\xff\xff\xff\xff", "holds no tensors"),
        (b"h\x07", "truncated or corrupt"),
        (b"\x8b\xff\xff\xff\x7f", "an integer of 2147483647 bytes"),
        (b"\x8b" + struct.pack("<I", 1 << 20) + bytes(1 << 20), "an integer of"),
        (b"X\xff\xff\xff\xff", "truncated at byte"),
        (b"\x8d" + b"\xff" * 8, "truncated at byte"),
        (b"\x96" + b"\xff" * 7 + b"\x7f", "truncated at byte"),
        (b"\x95" + b"\xff" * 8, "holds no tensors|truncated"),
        (b"N0" * 3_000_000, "more than 4000000 instructions"),
        (b"c" + b"a" * 2000 + b"\nb\n", "truncated"),
        (b"I" + b"9" * 100_000 + b"\n", "instruction b'I'"),
        (b"2", "truncated or corrupt"),
        (b"}(" + tf.put((((),),)) + b"NuN0", "holds no tensors"),
        (b"}(]NuN0", "holds no tensors"),
    ],
)
def test_pickles_that_want_too_much(tmp_path, body, words):
    tf.write(tmp_path / "x.pt", b"\x80\x02" + body + b".")
    refused(tmp_path / "x.pt", words)


def test_trees_that_grow_without_end(tmp_path):
    """Lists that hold themselves, and one list a million times: known by reference, never walked to the end."""
    loops = b"]q\0h\0a"
    laughs = b"](" + b"N" * 10_000 + b"eq\0"
    for level in range(1, 9):
        laughs += b"](" + b"h" + bytes([level - 1]) + (b"h" + bytes([level - 1])) * 50 + b"eq" + bytes([level])
    sizes = b"](" + b"K\1" * 100_000 + b"eq\0"
    copies = sizes + b"ctorch\nSize\nq\1" + b"h\1h\0\x85R0" * 1000
    for body, words in ((loops, "holds no tensors"), (laughs, "holds no tensors"), (copies, "more than")):
        tf.write(tmp_path / "x.pt", b"\x80\x02" + body + b".")
        refused(tmp_path / "x.pt", words)
        refused(f"{tmp_path}/x.pt::{'0.' * 3000}0", "no tensor|more than", BigvocabError)
    tree = tf.Raw(b"}q\0(" + tf.put("x") + tf.tensor(0, "float64", 30, (6, 5), (5, 1)) + tf.put("me") + b"h\0u")
    tf.write(tmp_path / "x.pt", tf.pickled(tree), [X.tobytes()])
    assert np.array_equal(np.asarray(bv.open_matrix(f"{tmp_path}/x.pt::me.me.x")), X)


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (tf.tensor(0, "float64", 31, (6, 5), (5, 1)), "its storage should have 248 bytes, got 240"),
        (tf.tensor(0, "float64", 30, (7, 5), (5, 1)), "needs 280 bytes, but its storage has 240"),
        (tf.tensor(0, "float64", 30, (6, 5), (5, 1), 1), "needs 248 bytes, but its storage has 240"),
        (tf.tensor(0, "float64", 30, (6, 5), (5, 1), 2**62), "needs .* bytes"),
        (tf.tensor(0, "float64", 30, (2**62, 2**62), (2**62, 1)), "needs .* bytes"),
        (tf.tensor(0, "float64", 30, (6, 5), (0, 1)), "whose rows do not lie together"),
        (tf.tensor(0, "float64", 30, (6, 2), (5, 1)), "whose rows do not lie together"),
        (tf.tensor(0, "float64", 30, (6, 5), (-5, 1)), "truncated or corrupt"),
        (tf.tensor(0, "float64", 30, (6, 5), (5,)), "truncated or corrupt"),
        (tf.tensor(0, "float64", 30, (6, 5), (5, 1), -1), "truncated or corrupt"),
        (tf.tensor(0, "float64", -30, (6, 5), (5, 1)), "truncated or corrupt"),
        (tf.tensor(0, "float64", 30, (True, 5), (5, 1)), "truncated or corrupt"),
        (tf.tensor(0, "float64", 30, (), ()), "has 0 dimensions"),
        (tf.tensor(0, "float64", 30, (1, 6, 5), (30, 5, 1)), "has 3 dimensions"),
        (tf.tensor(0, "float64", 30, (6, 0), (1, 1)), "has no classes"),
        (tf.tensor("../../x", "float64", 30, (6, 5), (5, 1)), "its storage .* is missing"),
        (tf.tensor(7, "float64", 30, (6, 5), (5, 1)), "its storage 'archive/data/7' is missing"),
        (tf.tensor(0, "int64", 30, (6, 5), (5, 1)), "holds int64, expected one of float16"),
    ],
)
def test_tensors_that_lie(tmp_path, tree, words):
    tf.write(tmp_path / "x.pt", tf.pickled(tree), [X.tobytes()])
    refused(tmp_path / "x.pt", words)


def test_pointers_of_git_lfs(tmp_path):
    text = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
    for name in ("x.npy", "x.safetensors", "x.pt", "x.npz", "x.arrow", "x.parquet", "x"):
        (tmp_path / name).write_bytes(text)
        refused(tmp_path / name, "a git-lfs pointer.*git lfs pull")
        with pytest.raises(FormatError, match="a git-lfs pointer.*git lfs pull"):
            bv.read_labels(tmp_path / name)


def test_what_inspect_says(tmp_path):
    np.savez(tmp_path / "x.npz", a=X, y=np.arange(3))
    tf.save(tmp_path / "x.pt", {"a": X, "y": [np.arange(3), {"z": X.astype(tf.BFLOAT16)}]})
    found = bv.inspect(tmp_path / "x.npz")
    assert found["format"] == ".npz"
    assert [(t["name"], t["shape"], t["dtype"]) for t in found["tensors"]] == [
        ("a", [6, 5], "float64"),
        ("y", [3], "int64"),
    ]
    found = bv.inspect(tmp_path / "x.pt")
    assert [(t["name"], t["shape"], t["dtype"]) for t in found["tensors"]] == [
        ("a", [6, 5], "float64"),
        ("y.0", [3], "int64"),
        ("y.1.z", [6, 5], "bfloat16"),
    ]
    assert bv.inspect(f"{tmp_path}/x.pt::a")["shape"] == [6, 5]
    assert bv.inspect(f"{tmp_path}/x.pt::y.0")["labels"]["kind"] == "id"
    (tmp_path / "y.csv").write_text("label,w\n1,0.5\n2,1\n")
    found = bv.inspect(tmp_path / "y.csv")
    assert (found["rows"], found["labels"]["column"]) == (2, "label")
    golden = bv.inspect(GOLDEN / "torch_save.pt")["tensors"]
    assert {t["name"] for t in golden} >= {"sparse", "float8", "state.0.weight"}
