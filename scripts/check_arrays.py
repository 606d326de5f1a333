"""Check the doors with the real libraries: PyTorch, JAX, pandas, Polars and `datasets`, beside NumPy's own arrays."""

from __future__ import annotations

import tempfile
from pathlib import Path

import datasets
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import torch

import bigvocab as bv

RNG = np.random.default_rng(21)
X = RNG.normal(size=(2, 3, 17)).astype(np.float32)
Y = RNG.integers(0, 17, (2, 3))
LAYER = RNG.normal(size=(17, 5)).astype(np.float32)


def same(what, found, expected):
    """Print one line, and end with an error where two results differ in a bit."""
    if not np.array_equal(np.asarray(found), np.asarray(expected)):
        raise SystemExit(f"check_arrays: {what}: got {found}, expected {expected}")
    print(f"same  {what}")


def refused(what, call, words):
    """Print the message of an error that must come."""
    try:
        call()
    except (TypeError, ValueError) as error:
        if words not in str(error):
            raise SystemExit(f"check_arrays: {what}: {error}, expected {words!r} in it") from error
        print(f"error {what}: {error}")
        return
    raise SystemExit(f"check_arrays: {what}: expected an error")


def tensors():
    expected = bv.sparse_softmax_cross_entropy(X, Y)
    for grad in (False, True):
        tensor = torch.tensor(X, requires_grad=grad)
        same(f"torch, requires_grad={grad}", bv.sparse_softmax_cross_entropy(tensor, torch.tensor(Y)), expected)
    same("jax", bv.sparse_softmax_cross_entropy(jnp.asarray(X), jnp.asarray(Y)), expected)
    for kind in ("float16", "bfloat16", "float64"):
        tensor = torch.tensor(X).to(getattr(torch, kind))
        rounded = bv.sparse_softmax_cross_entropy(X.astype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind), Y)
        same(f"torch {kind}", bv.sparse_softmax_cross_entropy(tensor, Y), rounded)
        if kind != "float64":
            same(f"jax {kind}", bv.sparse_softmax_cross_entropy(jnp.asarray(X).astype(kind), Y), rounded)
    half = torch.tensor(X[0]).to(torch.bfloat16)
    matrix = np.asarray(bv.open_matrix(half))
    same("a bfloat16 tensor is a view", matrix.ctypes.data, half.data_ptr())
    for kind in ("uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64"):
        same(f"labels {kind}", bv.sparse_softmax_cross_entropy(X, torch.tensor(Y).to(getattr(torch, kind))), expected)
    cut = bv.sparse_softmax_cross_entropy(X[:, :-1], Y[:, 1:])
    same("shifted", bv.sparse_softmax_cross_entropy(torch.tensor(X)[:, :-1], torch.tensor(Y)[:, 1:]), cut)
    states, layer = torch.tensor(X[..., :5]), torch.nn.Linear(5, 17, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(LAYER))
    same("a layer", bv.linear_cross_entropy(states, layer.weight, Y), bv.linear_cross_entropy(X[..., :5], LAYER, Y))
    same(
        "an evaluator",
        bv.Evaluator(weights=layer.weight).update(states, torch.tensor(Y)),
        bv.linear_cross_entropy(X[..., :5], LAYER, Y),
    )
    if torch.cuda.is_available():
        same(
            "torch on a GPU", bv.sparse_softmax_cross_entropy(torch.tensor(X).cuda(), torch.tensor(Y).cuda()), expected
        )


def refusals():
    x = torch.tensor(X[0])
    for what, make, words in (
        ("float8", lambda: x.to(torch.float8_e4m3fn), ".float()"),
        ("sparse", lambda: x.to_sparse(), ".to_dense()"),
        ("quantised", lambda: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), ".dequantize()"),
        ("nested", lambda: torch.nested.nested_tensor([x, x[:1]]), "torch.cat"),
        ("meta", lambda: x.to("meta"), "meta device"),
        ("jax float8", lambda: jnp.asarray(X[0]).astype(jnp.float8_e4m3fn), "astype"),
    ):
        refused(what, lambda make=make: bv.sparse_softmax_cross_entropy(make(), Y[0]), words)
    refused("traced", lambda: jax.jit(lambda v: bv.sparse_softmax_cross_entropy(v, Y[0]))(X[0]), "outside of jit")
    refused("swapped", lambda: bv.sparse_softmax_cross_entropy(torch.tensor(Y), x), "swapped")


def read(source, **columns):
    return [
        (None if b.ignored is not None and b.ignored[i] else int(b.labels[i]))
        for b in bv.read_labels(source, **columns)
        for i in range(len(b))
    ]


def columns(folder):
    frame = {"label": [3, None, 1], "w": [0.5, 1.0, 2.0], "g": ["a", "b", "a"]}
    chosen = {"label_column": "label", "weight_column": "w", "group_column": "g"}
    dataset = datasets.Dataset.from_dict(frame)
    sources = {
        "pandas": pd.DataFrame(frame).astype({"label": "Int64"}),
        "Polars": pl.DataFrame(frame),
        "pyarrow": pa.table(frame),
        "datasets": dataset,
        "datasets, selected": dataset.select([2, 1, 0]).select([2, 1, 0]),
    }
    for name, source in sources.items():
        same(f"table of {name}", [-1 if i is None else i for i in read(source, **chosen)], [3, -1, 1])
        column = source["label"]
        same(f"column of {name}", [-1 if i is None else i for i in read(column)], [3, -1, 1])
        if name != "pyarrow":
            refused(f"null of {name}", lambda c=column: bv.sparse_softmax_cross_entropy(X[0], c), "row 1 is null")
    pl.DataFrame(frame).write_ipc(folder / "polars.arrow")
    same("a file of Polars", [-1 if i is None else i for i in read(folder / "polars.arrow", **chosen)], [3, -1, 1])
    dataset.save_to_disk(folder / "dataset", num_shards=2)
    same("a folder of datasets", [-1 if i is None else i for i in read(folder / "dataset", **chosen)], [3, -1, 1])
    refused("a lazy frame", lambda: read(pl.DataFrame(frame).lazy()), ".collect()")
    refused("splits", lambda: read(datasets.DatasetDict(train=dataset)), "'train'")
    groups = {name: source["g"] for name, source in sources.items()}
    for name, group in groups.items():
        evaluator = bv.Evaluator()
        evaluator.update(X[0], Y[0], groups=group)
        same(f"groups of {name}", sorted(evaluator.report()["groups"]), ["a", "b"])


def files(folder):
    torch.save(
        {"x": torch.tensor(X[0]), "y": [torch.tensor(Y[0])], "b": torch.tensor(X[0]).bfloat16()}, folder / "x.pt"
    )
    same("torch.save", np.asarray(bv.open_matrix(f"{folder}/x.pt::x")), X[0])
    same("labels of torch.save", read(f"{folder}/x.pt::y.0"), Y[0])
    same(
        "bfloat16 of torch.save",
        np.asarray(bv.open_matrix(f"{folder}/x.pt::b")),
        bv.open_matrix(torch.tensor(X[0]).bfloat16())[:],
    )
    model = torch.nn.Sequential(torch.nn.Linear(17, 5), torch.nn.LayerNorm(5), torch.nn.Linear(5, 17))
    with bv.record_inputs(model[2], folder / "states.npy"), torch.no_grad():
        logits = model(torch.tensor(X))
    found = bv.linear_cross_entropy(
        np.load(folder / "states.npy").reshape(2, 3, 5), model[2].weight, Y, biases=model[2].bias
    )
    if not np.allclose(found, bv.sparse_softmax_cross_entropy(logits, Y), atol=1e-5):
        raise SystemExit("check_arrays: recorded inputs do not give the losses of the logits")
    print("close recorded inputs")
    torch.save({"x": torch.tensor(X[0])}, folder / "old.pt", _use_new_zipfile_serialization=False)
    refused("an old file", lambda: bv.open_matrix(folder / "old.pt"), "save it again")
    torch.save(model, folder / "model.pt")
    refused("a whole model", lambda: bv.open_matrix(folder / "model.pt"), "save the tensors alone")


if __name__ == "__main__":
    datasets.disable_progress_bars()
    tensors()
    refusals()
    with tempfile.TemporaryDirectory() as place:
        columns(Path(place))
        files(Path(place))
    print("all same")
