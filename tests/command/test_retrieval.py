"""The command on a real retrieval model: items seen, padding, several held-out items."""

import json
from pathlib import Path

import naive
import numpy as np
import pyarrow.parquet as pq
import pytest
from commands import ROOT, process

import bigvocab as bv

DATA = ROOT / "data" / "retrieval"
COMMAND = (
    "eval", "--loss", "softmax", "--metrics", "ranking", "--top-k", "10,100",
    "--inputs", f"{DATA}/model.safetensors::users", "--weights", f"{DATA}/model.safetensors::items",
    "--biases", f"{DATA}/model.safetensors::biases", "--class-counts", str(DATA / "counts.txt"),
    "--labels", str(DATA / "labels.parquet"), "--label-column", "held_out", "--format", "json",
)  # fmt: skip


def report(*more):
    done = process(*COMMAND, *more)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_sample_is_small_and_whole():
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 3_000_000
    table = pq.read_table(DATA / "labels.parquet").to_pydict()
    for seen, held_out in zip(table["seen"], table["held_out"], strict=True):
        assert not set(seen) & set(held_out)
        assert min(seen + held_out) >= 1
    assert (
        len((DATA / "items.txt").read_text().split("\n")) == len((DATA / "counts.txt").read_text().split("\n")) == 5042
    )


def test_without_what_was_seen(tmp_path):
    found = report("--exclude-column", "seen", "--exclude-classes", "0", "--output", str(tmp_path / "rows.parquet"))
    layer, biases, users = (
        np.asarray(bv.open_matrix(f"{DATA}/model.safetensors::{name}"), np.float64)
        for name in ("items", "biases", "users")
    )
    table = pq.read_table(DATA / "labels.parquet").to_pydict()
    counts = [int(line) for line in Path(DATA / "counts.txt").read_text().split()]
    rows = pq.read_table(tmp_path / "rows.parquet").to_pydict()
    for row in (0, 500, 1187):
        logits = (layer @ users[row] + biases).tolist()
        expected = naive.ranking(logits, table["held_out"][row], (10, 100), [0, *table["seen"][row]], counts)
        assert {name: rows[name][row] for name in expected} == pytest.approx(expected, rel=1e-9)
    readme = (DATA / "README.md").read_text()
    for share in (found["ranking"]["recall"]["100"], found["ranking"]["ndcg"]["10"], found["ranking"]["mrr"]["10"]):
        assert f"| {share:.3f} |" in readme
    blind = report()
    assert blind["ranking"]["ndcg"]["10"] < 0.1 * found["ranking"]["ndcg"]["10"]
    assert f"| {blind['ranking']['ndcg']['10']:.3f} |" in readme
