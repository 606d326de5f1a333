"""Files that MatrixWriter makes, read again by this package and by others; files that must not appear."""

from __future__ import annotations

import os
import sys

import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest
import stand_ins

import bigvocab as bv
from bigvocab.errors import BigvocabError
from bigvocab.matrices import writer as writers

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
RNG = np.random.default_rng(3)
BLOCKS = [RNG.normal(size=shape).astype(np.float32) for shape in ((4, 7), (2, 3, 7), (0, 7), (1, 7))]
ROWS = np.concatenate([block.reshape(-1, 7) for block in BLOCKS])
SUFFIXES = [".npy", ".safetensors", ".arrow", ".feather"]
FLOATS = ["float16", "bfloat16", "float32", "float64"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [None, *FLOATS])
def test_what_is_written_is_read(tmp_path, suffix, dtype):
    path = tmp_path / f"x{suffix}"
    if dtype == "bfloat16" and suffix in (".arrow", ".feather"):
        with pytest.raises(BigvocabError, match="Arrow has no bfloat16.*write .npy or .safetensors"):
            bv.MatrixWriter(path, dtype=dtype)
        assert os.listdir(tmp_path) == []
        return
    with bv.MatrixWriter(path, dtype=dtype) as writer:
        for block in BLOCKS:
            writer.append(block)
        assert os.listdir(tmp_path) != [path.name]
    assert os.listdir(tmp_path) == [path.name]
    assert (writer.num_rows, writer.num_columns) == (11, 7)
    matrix = bv.open_matrix(path)
    expected = ROWS.astype(BFLOAT16 if dtype == "bfloat16" else dtype or "float32")
    assert matrix.dtype == expected.dtype
    assert np.asarray(matrix).tobytes() == expected.tobytes()


def test_other_readers(tmp_path):
    from safetensors.numpy import load_file

    for suffix in SUFFIXES:
        with bv.MatrixWriter(tmp_path / f"x{suffix}") as writer:
            writer.append(ROWS)
    assert np.array_equal(np.load(tmp_path / "x.npy"), ROWS)
    assert np.array_equal(load_file(tmp_path / "x.safetensors")["matrix"], ROWS)
    column = pa.ipc.open_file(tmp_path / "x.arrow").read_all().column("matrix")
    assert np.array_equal(np.array(column.to_pylist(), np.float32), ROWS)
    with bv.MatrixWriter(tmp_path / "b.safetensors", dtype="bfloat16") as writer:
        writer.append(ROWS)
    assert b'"BF16"' in (tmp_path / "b.safetensors").read_bytes()[:200]


def test_blocks_do_not_show(tmp_path, monkeypatch):
    monkeypatch.setattr(writers, "BATCH_BYTES", 7 * 4 * 2)
    for suffix in (".npy", ".safetensors"):
        for name, blocks in (("a", BLOCKS), ("b", [ROWS]), ("c", [row[None] for row in ROWS])):
            with bv.MatrixWriter(tmp_path / f"{name}{suffix}") as writer:
                for block in blocks:
                    writer.append(block)
        assert len({(tmp_path / f"{name}{suffix}").read_bytes() for name in "abc"}) == 1


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nothing_appears_after_an_error(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"before")
    with pytest.raises(ZeroDivisionError), bv.MatrixWriter(path) as writer:  # noqa: PT012
        writer.append(ROWS)
        raise ZeroDivisionError
    for wrong, words in (
        (ROWS[:, :3], "rows: got 3 columns, expected 7, as in the blocks before"),
        (ROWS.astype(np.float64), "rows: got float64, expected float32, as in the blocks before; pass dtype="),
        (ROWS[0], "rows: expected 2 dimensions"),
        (ROWS.astype(int), "rows: expected one of float16"),
        ([[1, 2], [3]], "rows: "),
        ("text", "rows: "),
    ):
        writer = bv.MatrixWriter(path)
        writer.append(ROWS)
        with pytest.raises((BigvocabError, TypeError), match=words):
            writer.append(wrong)
        with pytest.raises(BigvocabError, match="is closed"):
            writer.append(ROWS)
        writer.close()
    with pytest.raises(BigvocabError, match="no rows were appended"):
        bv.MatrixWriter(path).close()
    with pytest.raises(BigvocabError, match="no rows were appended"), bv.MatrixWriter(path):
        pass
    writer = bv.MatrixWriter(path)
    writer.append(ROWS)
    del writer
    assert os.listdir(tmp_path) == [path.name]
    assert path.read_bytes() == b"before"


def test_places_that_cannot_be_written(tmp_path):
    for name, words in (("x.pt", r"got the suffix '.pt', expected one of .npy"), ("x", "suffix ''")):
        with pytest.raises(BigvocabError, match=words):
            bv.MatrixWriter(tmp_path / name)
    with pytest.raises(BigvocabError, match="cannot be written"):
        bv.MatrixWriter(tmp_path / "none" / "x.npy")
    with pytest.raises(BigvocabError, match="dtype: got 'int8'"):
        bv.MatrixWriter(tmp_path / "x.npy", dtype="int8")
    with pytest.raises(TypeError, match="path"):
        bv.MatrixWriter(3)
    assert os.listdir(tmp_path) == []


def test_rows_that_do_not_fit_the_type(tmp_path):
    with bv.MatrixWriter(tmp_path / "x.npy", dtype="float16") as writer:
        writer.append(np.array([[1e9, -np.inf, np.nan]], np.float64))
        writer.append(np.array([[1, 2, 3]], ">f4"))
    assert np.array_equal(np.load(tmp_path / "x.npy"), [[np.inf, -np.inf, np.nan], [1, 2, 3]], equal_nan=True)


def test_no_rows_but_columns(tmp_path):
    for suffix in SUFFIXES:
        with bv.MatrixWriter(tmp_path / f"x{suffix}") as writer:
            writer.append(np.zeros((0, 7), np.float32))
        assert bv.open_matrix(tmp_path / f"x{suffix}").shape == (0, 7)


# ---- what goes into a module


class Module:
    """With PyTorch's protocol of hooks before a call."""

    def __init__(self):
        self.hooks = {}

    def register_forward_pre_hook(self, hook, *, with_kwargs):
        assert with_kwargs
        module = self
        self.hooks[id(hook)] = hook

        class Handle:
            def remove(self):
                del module.hooks[id(hook)]

        return Handle()

    def __call__(self, *arguments, **named):
        for hook in self.hooks.values():
            assert hook(self, arguments, named) is None


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_inputs_are_recorded(tmp_path, monkeypatch, device):
    torch = stand_ins.torch_module()
    monkeypatch.setitem(sys.modules, "torch", torch)
    module, states = Module(), RNG.normal(size=(2, 3, 7)).astype(BFLOAT16)
    tensor = torch.Tensor(states, device=device, requires_grad=True, traffic=stand_ins.Traffic())
    with bv.record_inputs(module, tmp_path / "x.safetensors") as writer:
        module(tensor)
        module(hidden_states=tensor)
        assert writer.num_rows == 12
    assert module.hooks == {}
    module(tensor)
    expected = np.concatenate([states.reshape(6, 7)] * 2)
    found = bv.open_matrix(tmp_path / "x.safetensors")
    assert np.asarray(found).tobytes() == expected.tobytes()
    with bv.record_inputs(module, tmp_path / "y.npy", dtype="float32"):
        module(tensor)
    assert np.array_equal(np.load(tmp_path / "y.npy"), states.reshape(6, 7).astype(np.float32))


def test_recordings_that_fail(tmp_path):
    module = Module()
    with (
        pytest.raises(BigvocabError, match="module: Module was not called"),
        bv.record_inputs(module, tmp_path / "x.npy"),
    ):
        pass
    with pytest.raises(TypeError, match="module: Module was called without an argument"):  # noqa: SIM117
        with bv.record_inputs(module, tmp_path / "x.npy"):
            module()
    with pytest.raises(TypeError, match="module: expected a torch.nn.Module, got int"):  # noqa: SIM117
        with bv.record_inputs(3, tmp_path / "x.npy"):
            pass
    with pytest.raises(ZeroDivisionError), bv.record_inputs(module, tmp_path / "x.npy"):  # noqa: PT012
        module(ROWS)
        raise ZeroDivisionError
    assert module.hooks == {}
    assert os.listdir(tmp_path) == []
