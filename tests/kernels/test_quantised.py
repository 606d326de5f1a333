"""Quantised rows: decoded to the bit as the package `gguf` does; multiplied as that or as whole numbers."""

import pickle

import gguf
import ml_dtypes
import numpy as np
import pytest
from gguf_files import BLOCKS, gguf_bytes, random_blocks

import bigvocab as bv
from bigvocab.heads.products import Packed, lanes, product

TYPES = sorted(BLOCKS)
ALL_DEPTHS = [(name, depth) for name in TYPES for depth in ((256, 768) if BLOCKS[name][1] == 256 else (32, 96, 576))]


@pytest.fixture
def layer(tmp_path):
    """A matrix of random blocks in a file, and what `gguf` decodes them to."""

    def make(name, classes, depth, seed=0):
        blocks = random_blocks(np.random.default_rng(seed), name, classes, depth)
        path = tmp_path / f"{name}-{depth}.gguf"
        tensor = ("output.weight", BLOCKS[name][0], (classes, depth), blocks.tobytes())
        path.write_bytes(gguf_bytes({"general.architecture": "llama"}, [tensor]))
        decoded = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name])
        return bv.open_matrix(path), decoded

    return make


def same_bits(found, expected):
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize(("name", "depth"), ALL_DEPTHS)
def test_decoded_to_the_bit(layer, name, depth):
    matrix, decoded = layer(name, 70, depth)
    assert matrix.shape == decoded.shape
    assert matrix.dtype == np.float32
    assert matrix.nbytes == 70 * depth // BLOCKS[name][1] * BLOCKS[name][2]
    same_bits(np.asarray(matrix), decoded)
    same_bits(matrix[3:9], decoded[3:9])
    same_bits(matrix[-1], decoded[-1])
    same_bits(matrix[[69, 0, 5, 5]], decoded[[69, 0, 5, 5]])
    same_bits(np.asarray(pickle.loads(pickle.dumps(matrix))), decoded)
    same_bits(matrix[4:6, 7:30], np.ascontiguousarray(decoded[4:6, 7:30]))


@pytest.mark.parametrize("name", TYPES)
def test_every_number_of_a_block(layer, name):
    """Blocks of one repeated byte: each place of a block, and each bit of it, has its say."""
    _, values, size, scales = BLOCKS[name]
    blocks = np.repeat(np.arange(256, dtype=np.uint8)[:, None], size, axis=1)
    blocks[:, list(scales)], blocks[:, [at + 1 for at in scales]] = 0, 0x3C  # 1.0
    rolled = np.concatenate([blocks, np.random.default_rng(1).permuted(blocks, axis=0)])
    rolled[:, list(scales)], rolled[:, [at + 1 for at in scales]] = 0, 0x3C
    matrix, _ = layer(name, 512, values)
    data = gguf_bytes({}, [("output.weight", BLOCKS[name][0], (512, values), rolled.tobytes())])
    path = matrix.files[0]["path"]
    with open(path, "wb") as stream:
        stream.write(data)
    same_bits(np.asarray(bv.open_matrix(path)), gguf.quants.dequantize(rolled, gguf.GGMLQuantizationType[name]))


BF16 = ml_dtypes.bfloat16


@pytest.mark.parametrize(
    ("name", "depth", "dtype"),
    [
        *((name, depth, np.float32) for name, depth in (("Q8_0", 96), ("Q6_K", 512), ("Q5_1", 288), ("Q4_K", 256))),
        *((name, 512, dtype) for name in ("Q8_0", "Q6_K") for dtype in (np.float16, np.float64)),
        *((name, 256, BF16) for name in ("Q5_1", "Q4_K")),
    ],
)
def test_losses_have_the_bits_of_the_decoded_layer(layer, name, depth, dtype):
    matrix, decoded = layer(name, 1100, depth)
    rng = np.random.default_rng(5)
    inputs, labels = rng.standard_normal((30, depth)).astype(dtype), rng.integers(0, 1100, 30)
    biases = rng.standard_normal(1100).astype(np.float32)
    expected = bv.linear_cross_entropy(inputs, decoded, labels, biases=biases, softcap=20.0)
    for threads in (1, 2):
        found = bv.linear_cross_entropy(inputs, matrix, labels, biases=biases, softcap=20.0, num_threads=threads)
        np.testing.assert_array_equal(found, expected)
    assert np.isfinite(expected).all()
    part = bv.linear_cross_entropy(inputs[7:9], matrix, labels[7:9], biases=biases, softcap=20.0)
    np.testing.assert_array_equal(part, expected[7:9])


def summed_in_blocks(inputs, whole, scales):
    """Inputs times whole numbers block by block, k in pairs of which the odd one comes first, in float32."""
    length, total = whole.shape[1] // scales.shape[1], np.zeros((len(inputs), len(whole)), np.float32)
    x, q, d = inputs.astype(np.float64), whole.astype(np.float64), scales.astype(np.float64)
    for b in range(scales.shape[1]):
        block = np.zeros_like(total)
        for k in range(b * length, (b + 1) * length):
            block = (block + np.outer(x[:, k ^ 1], q[:, k ^ 1])).astype(np.float32)
        total = (total + block * d[:, b]).astype(np.float32)
    return total


@pytest.mark.parametrize(("name", "length"), [("Q8_0", 32), ("Q6_K", 16)])
def test_bfloat16_meets_the_whole_numbers_of_blocks(layer, name, length):
    """Another order than that of the decoded layer, and never a worse one; the same bits in any part and thread."""
    matrix, decoded = layer(name, 1100, 512)
    rng = np.random.default_rng(5)
    inputs, labels = rng.standard_normal((30, 512)).astype(BF16), rng.integers(0, 1100, 30)
    blocks = decoded.reshape(1100, -1, length)
    if name == "Q8_0":
        raw = np.stack([np.asarray(rows.kernel[0]) for _, rows in matrix.weight_rows(0, 1100)])[0]
        scales = raw.reshape(1100, -1, 34)[:, :, :2].copy().view(np.float16).astype(np.float32)
    else:
        raw = next(matrix.weight_rows(0, 1100))[1].kernel[0].reshape(1100, -1, 210)
        scales = raw[:, :, 208:].copy().view(np.float16).astype(np.float32) * raw[:, :, 192:208].view(np.int8)
    scales = scales.reshape(1100, -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        whole = np.where(scales[..., None] == 0, 0, blocks / scales[..., None])
    np.testing.assert_array_equal(whole, np.round(whole))
    expected = summed_in_blocks(inputs, whole.reshape(1100, -1), scales)
    packed = Packed.of(inputs, matrix.factor_dtype)
    tile, zeros = packed.tile(1100), np.zeros(1100 + lanes(np.float32), np.float32)
    for at, rows in matrix.weight_rows(0, 1100):
        packed.multiply_stored(rows, zeros[at:], packed.panel(), tile, at)
    np.testing.assert_array_equal(tile[:30, :1100], expected)
    biases = rng.standard_normal(1100).astype(np.float32)
    losses = bv.linear_cross_entropy(inputs, matrix, labels, biases=biases)
    np.testing.assert_allclose(losses, bv.sparse_softmax_cross_entropy(expected + biases, labels), rtol=1e-9)
    exact = bv.linear_cross_entropy(inputs.astype(np.float64), decoded, labels, biases=biases)
    np.testing.assert_allclose(losses, exact, rtol=2e-6)
    for threads, start, stop in ((1, 0, 30), (2, 7, 9), (2, 12, 25)):
        part = slice(start, stop)
        found = bv.linear_cross_entropy(inputs[part], matrix, labels[part], biases=biases, num_threads=threads)
        np.testing.assert_array_equal(found, losses[part])


@pytest.mark.parametrize("name", TYPES)
def test_losses_of_every_type_and_odd_numbers_of_classes(layer, name):
    depth = 256 if BLOCKS[name][1] == 256 else 64
    for classes in (1, 31, 33, 65):
        matrix, decoded = layer(name, classes, depth, seed=classes)
        rng = np.random.default_rng(classes)
        inputs, labels = rng.standard_normal((13, depth)).astype(np.float32), rng.integers(0, classes, 13)
        found = bv.linear_cross_entropy(inputs, matrix, labels)
        np.testing.assert_array_equal(found, bv.linear_cross_entropy(inputs, decoded, labels))


@pytest.mark.parametrize("name", ["Q8_0", "Q6_K"])
def test_products_with_rows_picked_where_they_lie(layer, name):
    matrix, decoded = layer(name, 50, 256)
    rng = np.random.default_rng(6)
    ids, inputs = rng.integers(0, 50, 70), rng.standard_normal((14, 256)).astype(np.float32)
    packed, zeros = Packed.of(inputs, np.float32), np.zeros(70 + lanes(np.float32), np.float32)
    tile = packed.tile(70)
    (_, rows), *others = matrix.weight_rows(0, 50)
    assert not others
    packed.multiply_stored(rows, zeros, packed.panel(), tile, ids=ids)
    np.testing.assert_array_equal(tile[:14, :70], product(inputs, decoded[ids]))


def test_sampled_losses_of_a_quantised_layer(layer):
    matrix, decoded = layer("Q6_K", 600, 256)
    rng = np.random.default_rng(2)
    inputs, labels = rng.standard_normal((40, 256)).astype(np.float32), rng.integers(0, 600, 40)

    def losses(weights):
        given = {"biases": np.zeros(600, np.float32), "labels": labels[:, None], "inputs": inputs}
        return bv.sampled_softmax_loss(weights=weights, **given, num_sampled=100, num_classes=600, seed=3)

    np.testing.assert_array_equal(losses(matrix), losses(decoded))


@pytest.mark.parametrize("name", ["Q8_0", "Q4_1", "Q6_K"])
def test_a_scale_that_is_not_finite_is_found_in_the_losses(layer, name, tmp_path):
    depth, at = (256, 70) if name == "Q6_K" else (64, 70)
    blocks = random_blocks(np.random.default_rng(0), name, 90, depth)
    scale = BLOCKS[name][3][0]
    blocks[at, scale : scale + 2] = 0, 0x7E  # NaN
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_bytes({}, [("output.weight", BLOCKS[name][0], (90, depth), blocks.tobytes())]))
    for dtype in (np.float32, BF16):
        losses = bv.linear_cross_entropy(np.ones((4, depth), dtype), bv.open_matrix(path), [0] * 4)
        assert np.isnan(losses).all()
