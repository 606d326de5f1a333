"""Evaluations whose layer is in a GGUF file: values of the decoded layer, and of llama.cpp's own files."""

import json
import os
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_files import BLOCKS, gguf_bytes, random_blocks
from sample_jobs import values_of

import bigvocab as bv
from bigvocab.heads.gguf_model import find_gguf_model
from bigvocab.jobs.merging import merge

TINY = Path(__file__).parents[1] / "data/llama/tiny-259"
EXPECTED = json.loads((TINY / "expected.json").read_text())


def written(folder, name, blocks):
    """A file whose output layer is these blocks."""
    code, values, size, _ = BLOCKS[name]
    shape = len(blocks), blocks.shape[1] // size * values
    path = folder / "layer.gguf"
    path.write_bytes(gguf_bytes({}, [("output.weight", code, shape, blocks.tobytes())]))
    return str(path)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_states_after_and_before_the_norm(name):
    expected = EXPECTED[name]
    files = {kind: TINY / file for kind, file in expected["files"].items()}
    found = find_gguf_model(files["gguf"])
    report = bv.evaluate(inputs=files["after_norm"], weights=files["gguf"], labels=TINY / "labels.npy")
    assert report["mean"] == pytest.approx(expected["after_norm"]["loss_mean"], abs=1e-6)
    report = bv.evaluate(
        inputs=files["before_norm"],
        weights=str(found.head),
        labels=TINY / "labels.npy",
        final_norm=found.norm_kind,
        norm_weight=str(found.norm),
        norm_epsilon=found.norm_epsilon,
    )
    assert report["mean"] == pytest.approx(expected["after_norm"]["before_norm_loss_mean"], abs=1e-6)


def test_evaluations_by_ranges_of_classes_and_by_workers(tmp_path):
    blocks = random_blocks(np.random.default_rng(0), "Q5_K", 90, 256)
    decoded = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q5_K)
    path = written(tmp_path, "Q5_K", blocks)
    rng = np.random.default_rng(4)
    np.save(tmp_path / "x.npy", rng.standard_normal((12, 256)).astype(np.float32))
    np.save(tmp_path / "y.npy", rng.integers(0, 90, 12))
    np.save(tmp_path / "w.npy", decoded)
    given = {"inputs": tmp_path / "x.npy", "labels": tmp_path / "y.npy"}

    def merged(weights):
        states = [tmp_path / f"{os.path.basename(weights)}-{i}" for i in range(2)]
        for i, state in enumerate(states):
            bv.evaluate(**given, weights=weights, vocab_shard=(i + 1, 2), state=state)
        return merge(states)

    expected = bv.evaluate(**given, weights=tmp_path / "w.npy")
    assert values_of(bv.evaluate(**given, weights=path)) == values_of(expected)
    assert values_of(bv.evaluate(**given, weights=path, workers=2)) == values_of(expected)
    assert values_of(merged(path)) == values_of(merged(str(tmp_path / "w.npy")))


@pytest.mark.parametrize("name", ["Q8_0", "Q4_1", "Q6_K"])
def test_a_scale_that_is_not_finite_is_refused_by_its_class(name, tmp_path):
    depth, at = (256, 70) if name == "Q6_K" else (64, 70)
    blocks = random_blocks(np.random.default_rng(0), name, 90, depth)
    scale = BLOCKS[name][3][0]
    blocks[at, scale : scale + 2] = 0, 0x7E  # NaN
    path = written(tmp_path, name, blocks)
    np.save(tmp_path / "x.npy", np.ones((4, depth), np.float32))
    np.save(tmp_path / "y.npy", np.zeros(4, np.int64))
    with pytest.raises(bv.BigvocabError, match=rf"class {at} has nan in column 0"):
        bv.evaluate(inputs=tmp_path / "x.npy", labels=tmp_path / "y.npy", weights=path)
