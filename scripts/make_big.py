"""Logits and labels of any size: FOLDER/logits.npy and FOLDER/labels.parquet, written in blocks, so that any disk can
be filled.

The values are like those of a word model: a class has a prior that falls as log(rank), a row has a temperature and a
hundred likely classes, and the label is drawn mostly among the likely ones. A tenth of the labels is null, and there
are columns for weight, group and bytes.
"""

import argparse
from pathlib import Path

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DTYPES = {"float16": "<f2", "float32": "<f4", "float64": "<f8", "bfloat16": "<V2"}


def block_of_rows(rng, rows, prior, dtype):
    """(logits, labels) of some rows; noise is one long vector read from a random place, for speed."""
    classes = len(prior)
    noise = rng.standard_normal(classes + 4096, dtype=np.float32)
    logits = np.empty((rows, classes), np.float32)
    labels = np.empty(rows, np.int64)
    for r in range(rows):
        start = rng.integers(0, 4096)
        np.add(prior, noise[start : start + classes], out=logits[r])
        logits[r] *= rng.uniform(0.8, 1.6)
        likely = rng.integers(0, classes, 100)
        logits[r, likely] += rng.uniform(4, 12, 100).astype(np.float32)
        labels[r] = likely[0] if rng.random() < 0.8 else rng.integers(0, classes)
    return logits.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype), labels


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--classes", type=int, required=True)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    prior = -np.log1p(np.arange(options.classes, dtype=np.float32))
    options.folder.mkdir(parents=True, exist_ok=True)
    labels = np.empty(options.rows, np.int64)
    step = max(1, (64 << 20) // (4 * options.classes))
    with (options.folder / "logits.npy").open("wb") as file:
        header = {"descr": DTYPES[options.dtype], "fortran_order": False, "shape": (options.rows, options.classes)}
        np.lib.format.write_array_header_2_0(file, header)
        for start in range(0, options.rows, step):
            rows = min(step, options.rows - start)
            block, labels[start : start + rows] = block_of_rows(rng, rows, prior, options.dtype)
            file.write(block.tobytes())
    table = {
        "label": pa.array(labels, mask=rng.random(options.rows) < 0.1),
        "weight": rng.choice([0.5, 1.0, 2.0], options.rows),
        "group": rng.choice(["news", "novels", "science", "law"], options.rows),
        "bytes": rng.integers(1, 12, options.rows),
    }
    pq.write_table(pa.table(table), options.folder / "labels.parquet")


if __name__ == "__main__":
    main()
