"""GGUF headers: what is read, what is refused with which words, and that nothing is believed."""

import os
import struct
import sys

import gguf
import numpy as np
import pytest
from gguf_files import ARRAY, BF16, BLOCKS, F16, F32, F64, TEXT, gguf_bytes, model_keys, plain_tensor, text

import bigvocab as bv
from bigvocab.errors import BigvocabError, FormatError
from bigvocab.formats.gguf import read_gguf

FUZZ_ROUNDS = int(os.environ.get("BIGVOCAB_FUZZ_ROUNDS", "250"))
LAYER = np.arange(96, dtype=np.float32).reshape(3, 32) / 8
ONE = [plain_tensor("output.weight", LAYER)]


@pytest.fixture
def file(tmp_path):
    def write(data, name="model.gguf"):
        path = tmp_path / name
        path.write_bytes(data)
        return str(path)

    return write


def sample():
    """A file with some of everything."""
    keys = model_keys(tokens=["a", "bc", "größe"], vocab_size=3, embedding_length=32)
    keys |= {"general.name": "sample", "x.flag": True, "x.scores": np.arange(3, dtype=np.float32), "x.none": []}
    tensors = [
        plain_tensor("token_embd.weight", LAYER + 1),
        ("output.weight", 8, (3, 32), bytes(range(102))),
        plain_tensor("output_norm.weight", np.ones(32)),
        ("blk.0.experts", 23, (2, 2, 256), bytes(544)),
    ]
    return gguf_bytes(keys, tensors)


def test_keys_and_tensors(file):
    path = file(sample())
    model = read_gguf(path)
    assert model.keys["general.architecture"] == "llama"
    assert model.keys["x.flag"] is True
    assert model.keys["llama.vocab_size"] == 3
    assert model.keys["tokenizer.ggml.tokens"].count == 3
    np.testing.assert_array_equal(model.array("x.scores"), [0, 1, 2])
    assert model.array("tokenizer.ggml.tokens") is None
    assert model.array("no.such.key") is None
    assert list(model.tensors) == ["token_embd.weight", "output.weight", "output_norm.weight", "blk.0.experts"]
    experts = model.tensors["blk.0.experts"]
    assert (experts.type, experts.shape, experts.nbytes) == ("IQ4_XS", (2, 2, 256), 544)
    assert experts.offset + experts.nbytes == os.path.getsize(path)
    assert model.tensors["output.weight"].file == path


def test_every_scalar_type(file):
    letters = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
    values = {code: 2.5 if letter in "fd" else 3 if letter.isupper() else -3 for code, letter in letters.items()}
    keys = {f"k{code}": (code, struct.pack("<" + letters[code], value)) for code, value in values.items()}
    assert read_gguf(file(gguf_bytes(keys, ONE))).keys == {f"k{code}": value for code, value in values.items()}


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [8, 32, 256])
def test_versions_and_alignments(file, version, alignment):
    keys = {"general.alignment": alignment}
    path = file(gguf_bytes(keys, [plain_tensor("a", [1.0]), *ONE], version=version, alignment=alignment))
    np.testing.assert_array_equal(np.asarray(bv.open_matrix(path)), LAYER)


@pytest.mark.parametrize("code", [F32, F16, BF16, F64])
def test_plain_types(file, code):
    import ml_dtypes

    dtype = {F32: np.float32, F16: np.float16, BF16: ml_dtypes.bfloat16, F64: np.float64}[code]
    matrix = bv.open_matrix(file(gguf_bytes({}, [("w", code, (3, 32), LAYER.astype(dtype).tobytes())])) + "::w")
    assert matrix.dtype == dtype
    np.testing.assert_array_equal(np.asarray(matrix).astype(np.float64), LAYER)


def test_files_of_the_packages_own_writer(tmp_path):
    path = str(tmp_path / "written.gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list([f"token {i}" for i in range(1000)])
    writer.add_token_types([1] * 1000)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_bool("x.flag", False)
    values = np.random.default_rng(0).standard_normal((50, 64)).astype(np.float32)
    names = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "BF16", "F16", "F32")
    for name in names:
        kind = gguf.GGMLQuantizationType[name]
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = read_gguf(path)
    assert model.keys["tokenizer.ggml.tokens"].count == 1000
    assert model.keys["x.flag"] is False
    for tensor in gguf.GGUFReader(path).tensors:
        found = model.tensors[tensor.name]
        assert (found.offset, found.nbytes) == (tensor.data_offset, tensor.n_bytes)
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(np.asarray(bv.open_matrix(f"{path}::{tensor.name}"), np.float32), expected)


def test_a_file_alone_is_its_output_layer(file):
    assert bv.open_matrix(file(gguf_bytes({}, [plain_tensor("token_embd.weight", LAYER), *ONE]))).shape == (3, 32)
    tied = bv.open_matrix(file(gguf_bytes({}, [plain_tensor("token_embd.weight", LAYER + 7)])))
    np.testing.assert_array_equal(np.asarray(tied), LAYER + 7)
    with pytest.raises(BigvocabError, match=r"has no output layer, expected output\.weight or token_embd\.weight"):
        bv.open_matrix(file(gguf_bytes({}, [plain_tensor("blk.0.attn", LAYER)])))
    with pytest.raises(BigvocabError, match=r"no tensor 'lm_head'; there are: 'output\.weight'"):
        bv.open_matrix(file(gguf_bytes({}, ONE)) + "::lm_head")


def test_a_norm_opens_as_a_vector(file):
    matrix = bv.open_matrix(file(sample()) + "::output_norm.weight")
    np.testing.assert_array_equal(np.asarray(matrix), np.ones(32))


@pytest.mark.parametrize(
    ("code", "name", "values", "size"),
    [
        (39, "MXFP4", 32, 17), (40, "NVFP4", 64, 36), (20, "IQ4_NL", 32, 18), (16, "IQ2_XXS", 256, 66),
        (34, "TQ1_0", 256, 54), (35, "TQ2_0", 256, 66), (10, "Q2_K", 256, 84), (11, "Q3_K", 256, 110),
        (41, "Q1_0", 128, 18), (42, "Q2_0", 64, 18), (24, "I8", 1, 1), (9, "Q8_1", 32, 36), (77, "type 77", 32, 40),
    ],
)  # fmt: skip
def test_other_types_are_refused_by_name(file, code, name, values, size):
    path = file(gguf_bytes({}, [("output.weight", code, (3, 256), bytes(3 * 256 // values * size)), *_norm()]))
    with pytest.raises(FormatError, match=rf"output\.weight: is stored as {name}, expected one of F32, .*, Q6_K"):
        bv.open_matrix(path)
    assert bv.open_matrix(path + "::output_norm.weight").shape == (32,)


def _norm():
    return [plain_tensor("output_norm.weight", np.ones(32))]


@pytest.mark.parametrize(("name", "shape"), [("Q8_0", (32,)), ("F32", (2, 3, 32)), ("Q4_0", (2, 2, 32))])
def test_tensors_that_are_no_layer(file, name, shape):
    code, _, size, _ = BLOCKS.get(name, (0, 1, 128, ()))
    path = file(gguf_bytes({}, [("w", code, shape, bytes(size * int(np.prod(shape)) // 32))])) + "::w"
    with pytest.raises(FormatError, match=r"expected 2"):
        bv.open_matrix(path)


def test_dtype_and_vocab_shards_that_do_not_fit(file):
    path = file(sample())
    with pytest.raises(BigvocabError, match=r"dtype=float16 was asked for, but Q8_0 decodes to float32"):
        bv.open_matrix(path, dtype="float16")
    assert bv.open_matrix(path, dtype="float32").dtype == np.float32
    with pytest.raises(BigvocabError, match="quantised rows cannot be vocab shards"):
        bv.open_matrix([path, path], vocab_shards=True)
    with pytest.raises(BigvocabError, match=r"Q8_0 and float32, expected the same type"):
        bv.open_matrix([path, path + "::token_embd.weight"])
    assert bv.open_matrix([path, path]).shape == (6, 32)


LIES = {
    "empty": (b"", "empty file"),
    "short": (b"GGUF", r"truncated: the version ends at byte 8, the file has 4"),
    "magic": (b"GGML" + bytes(60), r"begins with b'GGML', expected b'GGUF'"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer"),
    "big-endian magic": (b"FUGG" + bytes(60), "a big-endian GGUF file"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(60), "a big-endian GGUF file"),
    "version 0": (gguf_bytes(version=0), "is GGUF version 0, expected 2 or 3"),
    "version 1": (gguf_bytes(version=1), "is GGUF version 1, expected 2 or 3: convert the model anew"),
    "version 4": (gguf_bytes(version=4), "is GGUF version 4, expected 2 or 3"),
    "tensors": (gguf_bytes({}, ONE, counts=(2**63, 0)), rf"promises {2**63} tensors, expected at most \d+ in"),
    "keys": (gguf_bytes({}, ONE, counts=(1, 2**40)), rf"promises {2**40} keys, expected at most \d+ in"),
    "too many": (gguf_bytes(counts=(0, 70_000), behind=bytes(10**6)), "promises 70000 keys, expected at most 65536"),
    "one more key": (gguf_bytes({"a": 1}, ONE, counts=(1, 2)), r"the name of tensor 0 has \d+ bytes, expected at most"),
    "key length": (
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62) + bytes(60),
        rf"key 0 has {2**62} bytes, expected at most",
    ),
    "twin keys": (gguf_bytes([("a", 1), ("b", 2), ("a", 3)], ONE), "the key 'a' appears twice"),
    "bad key": (gguf_bytes([(b"\xff\xfe", 1)], ONE), "key 0 is not valid UTF-8"),
    "value type": (gguf_bytes({"a": (13, bytes(8))}, ONE), "the value of 'a' has type 13, expected 0 to 12"),
    "string": (gguf_bytes({"a": (TEXT, struct.pack("<Q", 2**62))}, ONE), "is a string of .* bytes, expected at most"),
    "short string": (gguf_bytes({"a": (TEXT, struct.pack("<Q", 9000))}, ONE), "truncated: the value of 'a' ends at"),
    "array in array": (gguf_bytes({"a": (ARRAY, struct.pack("<IQ", 9, 1))}, ONE), "is an array of type 9, expected"),
    "array type": (gguf_bytes({"a": (ARRAY, struct.pack("<IQ", 99, 1))}, ONE), "is an array of type 99, expected"),
    "array length": (gguf_bytes({"a": (ARRAY, struct.pack("<IQ", 4, 2**31))}, ONE), "is an array of 2147483648"),
    "short array": (gguf_bytes({"a": (ARRAY, struct.pack("<IQ", 12, 2**30))}, ONE), "truncated: the value of 'a' ends"),
    "strings": (gguf_bytes({"a": (ARRAY, struct.pack("<IQ", 8, 2**29))}, ONE), "truncated: the value of 'a' holds"),
    "a long string": (
        gguf_bytes({"a": (ARRAY, struct.pack("<IQQ", 8, 2, 2**64 - 8))}, ONE),
        "truncated: a string of the value of 'a' ends past the end",
    ),
    "alignment 0": (gguf_bytes({"general.alignment": 0}, ONE), "general.alignment is 0, expected a power of two"),
    "alignment 24": (gguf_bytes({"general.alignment": 24}, ONE), "general.alignment is 24, expected a power of two"),
    "alignment": (gguf_bytes({"general.alignment": "32"}, ONE), "general.alignment is '32', expected a power of two"),
    "far alignment": (gguf_bytes({"general.alignment": 2**30}, ONE), "truncated: tensor 'output.weight' ends at"),
    "no dims": (gguf_bytes({}, [("w", F32, (), b"")]), "tensor 'w' has 0 dimensions, expected 1 to 4"),
    "five dims": (gguf_bytes({}, [("w", F32, (1,) * 5, bytes(4))]), "tensor 'w' has 5 dimensions, expected 1 to 4"),
    "zero": (gguf_bytes({}, [("w", F32, (3, 0), b"")]), r"tensor 'w' has shape \(3, 0\), expected sizes of at least 1"),
    "huge": (gguf_bytes({}, [("w", F32, (2**63, 2**63), bytes(64))]), "truncated: tensor 'w' ends at byte"),
    "no whole block": (gguf_bytes({}, [("w", 8, (3, 33), bytes(200))]), "rows of 33 numbers, expected a multiple"),
    "long name": (gguf_bytes({}, [plain_tensor("n" * 64, LAYER)]), "the name of tensor 0 has 64 bytes, expected"),
    "twin names": (gguf_bytes({}, [*ONE, *ONE]), "tensor 'output.weight' appears twice"),
    "unaligned": (gguf_bytes({}, [("w", F32, (1, 4), bytes(64), 8)]), "begins at byte 8 of the data, expected"),
    "past the end": (gguf_bytes({}, [("w", F32, (1, 4), bytes(16), 32)]), "truncated: tensor 'w' ends at byte"),
    "offset": (gguf_bytes({}, [("w", F32, (1, 4), bytes(16), 2**64 - 32)]), "truncated: tensor 'w' ends at byte"),
    "overlap": (
        gguf_bytes({}, [("a", F32, (1, 16), bytes(64), 0), ("b", F32, (1, 16), bytes(64), 32)]),
        "tensors 'a' and 'b' overlap at byte",
    ),
    "same place": (
        gguf_bytes({}, [("a", 77, (1, 16), bytes(64), 0), ("b", F32, (1, 16), bytes(64), 0)]),
        "tensors '[ab]' and '[ab]' overlap at byte",
    ),
    "no tensors promised": (gguf_bytes({}, ONE, counts=(0, 0)), "has no output layer"),
    "split": (gguf_bytes({"split.count": 3}, ONE), r"split.count is 3, but by its name it is one of 1"),
    "split text": (gguf_bytes({"split.count": "x"}, ONE), r"split.count is 'x', but by its name"),
}  # fmt: skip


def read_whole(path):
    """All there is to read of a file."""
    model = read_gguf(path)
    for tensor in model.tensors.values():
        assert 0 <= tensor.offset <= tensor.offset + (tensor.nbytes or 0) <= os.path.getsize(path)
    np.asarray(bv.open_matrix(path))


def refusal(path):
    """The message with which a file is refused; None where it is read."""
    try:
        read_whole(path)
    except BigvocabError as error:
        return str(error)
    return None


@pytest.mark.parametrize("what", LIES)
def test_lies_are_refused(file, what):
    data, words = LIES[what]
    path = file(data)
    with pytest.raises(BigvocabError, match=words) as caught:
        read_whole(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_every_truncation_is_refused(file):
    whole = sample()
    for end in range(len(whole)):
        with pytest.raises(FormatError, match=r"truncated|promises|empty|expected at most"):
            read_gguf(file(whole[:end]))


def test_mutated_files_are_read_right_or_refused(file):
    """Whatever comes out, no tensor lies outside the file, and the layer can be looked at."""
    rng, whole = np.random.default_rng(3), sample()
    refused = 0
    for _ in range(FUZZ_ROUNDS):
        data = bytearray(whole)
        for at in rng.integers(0, len(whole) - 800, rng.integers(1, 5)):
            data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, data[at] ^ 1 << rng.integers(8), rng.integers(256)])
        message = refusal(file(bytes(data)))
        refused += message is not None
        assert "\n" not in (message or "")
    assert 0 < refused < FUZZ_ROUNDS


def test_inserted_and_deleted_bytes(file):
    rng, whole = np.random.default_rng(4), sample()
    for _ in range(FUZZ_ROUNDS // 2):
        at, size = int(rng.integers(4, len(whole) - 800)), int(rng.integers(1, 20))
        for data in (whole[:at] + rng.bytes(size) + whole[at:], whole[:at] + whole[at + size :]):
            assert "\n" not in (refusal(file(data)) or "")


@pytest.mark.parametrize(("count", "kernels"), [(1000, True), (10_000, False), (10_000, True), (2**20 + 5, True)])
def test_arrays_of_strings_are_stepped_over(file, count, kernels, monkeypatch):
    """In Python, or by a kernel where Numba is there already or there are very many."""
    if kernels:
        import numba  # noqa: F401
    else:
        monkeypatch.delitem(sys.modules, "numba", raising=False)
    lengths = np.arange(count) % 3
    strings = b"".join(struct.pack("<Q", n) + b"xyz"[:n] for n in lengths.tolist())
    keys = {"tokens": (ARRAY, struct.pack("<IQ", TEXT, count) + strings), "after": 7}
    data = gguf_bytes(keys, ONE)
    assert read_gguf(file(data)).keys["after"] == 7
    place = data.index(strings)
    for end in (place + 1, place + 8 * count + 3, place + len(strings) - 1):
        with pytest.raises(FormatError, match="truncated"):
            read_gguf(file(data[:end]))
    for length in (2**63, 2**64 - 1, 2**40):  # of the third string
        lying = data[: place + 17] + struct.pack("<Q", length) + data[place + 25 :]
        with pytest.raises(FormatError, match="truncated: a string of the value of 'tokens' ends past"):
            read_gguf(file(lying))


def test_a_very_long_string_stays_in_the_file(file):
    model = read_gguf(file(gguf_bytes({"a": "x" * 2**21, "b": b"\xff broken"}, ONE)))
    assert model.keys["a"].count == 2**21
    assert model.keys["b"] == "\ufffd broken"


# --- sets of files -----------------------------------------------------------------------------------------------


@pytest.fixture
def parts(tmp_path):
    """Write a set: for each file its keys and tensors; returns the names."""

    def write(*contents, total=None):
        names = []
        for i, (keys, tensors) in enumerate(contents):
            names.append(str(tmp_path / f"m-{i + 1:05d}-of-{total or len(contents):05d}.gguf"))
            with open(names[-1], "wb") as stream:
                stream.write(gguf_bytes(keys, tensors))
        return names

    return write


def split_keys(number, count, total=None, **more):
    keys = {"split.no": (2, struct.pack("<H", number)), "split.count": (2, struct.pack("<H", count))}
    return keys | ({} if total is None else {"split.tensors.count": (5, struct.pack("<i", total))}) | more


def test_a_set_is_read_from_any_part(parts):
    names = parts(
        (split_keys(0, 3, 3, **model_keys()), []),
        (split_keys(1, 3), [plain_tensor("blk.0.w", LAYER)]),
        (
            split_keys(2, 3),
            [plain_tensor("output_norm.weight", np.ones(32)), ("output.weight", 8, (3, 32), bytes(102))],
        ),
    )
    for name in names:
        model = read_gguf(name)
        assert model.keys["general.architecture"] == "llama"
        assert set(model.tensors) == {"blk.0.w", "output_norm.weight", "output.weight"}
        assert model.tensors["output.weight"].file == names[2]
        matrix = bv.open_matrix(name)
        assert matrix.shape == (3, 32)
        assert matrix.files[0]["path"] == names[2] + "::output.weight"
        np.testing.assert_array_equal(np.asarray(bv.open_matrix(name + "::blk.0.w")), LAYER)
    with pytest.raises(BigvocabError, match=r"no tensor 'x'; there are: 'blk\.0\.w'"):
        bv.open_matrix(names[0] + "::x")


def test_sets_that_do_not_fit_together(parts):
    first, second = [plain_tensor("a", LAYER)], [plain_tensor("b", LAYER)]

    def refused(words, *contents, total=None, error=FormatError):
        with pytest.raises(error, match=words):
            read_gguf(parts(*contents, total=total)[0])

    good = (split_keys(0, 2), first)
    refused(r"split\.no and split\.count are \(0, 2\), expected \(1, 2\)", good, (split_keys(0, 2), second))
    refused(r"split\.no and split\.count are \(1, 3\), expected \(1, 2\)", good, (split_keys(1, 3), second))
    refused(r"split\.no and split\.count are \(None, None\)", good, ({}, second))
    refused(r"tensor 'a' is in .*00001-of-00002\.gguf as well", good, (split_keys(1, 2), first))
    refused("promises 5 tensors in all parts, there are 2", (split_keys(0, 2, 5), first), (split_keys(1, 2), second))
    refused(r"split\.count is 0, but by its name it is one of 2", ({}, first), (split_keys(1, 2), second))
    refused(
        r"is one of 9 parts, but .*m-00002-of-00009\.gguf is not there",
        (split_keys(0, 9), first),
        total=9,
        error=BigvocabError,
    )


@pytest.mark.parametrize("name", ["mmproj-model-f16.gguf", "MMPROJ.gguf", "mtp-model.gguf"])
def test_sidecars_are_refused_by_name(file, name):
    path = file(gguf_bytes({}, ONE), name)
    for read in (read_gguf, bv.open_matrix):
        with pytest.raises(BigvocabError, match=r"holds the .* of a model, expected the model itself"):
            read(path)


def test_a_change_while_it_is_read_is_noticed(file):
    path = file(sample())
    matrix = bv.open_matrix(path)
    with open(path, "ab") as stream:
        stream.write(b"more")
    with pytest.raises(FormatError, match="grew while it is read"):
        matrix.check()


def test_a_key_of_every_length_of_name(file):
    names = ["", "k", "x" * 70_000]
    assert list(read_gguf(file(gguf_bytes(dict.fromkeys(names, 1), ONE))).keys) == names
    assert text("ab") == b"\x02" + bytes(7) + b"ab"
