"""What the tests of comparisons share: a folder with a reference, two candidates and their labels."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS, CLASSES = 260, 150
COLUMNS = {"group_column": "group", "cluster_column": "document"}


def write_pair(folder, rows=ROWS, classes=CLASSES, split=(100,)):
    """Logits of a reference (in files split before these rows), of q8 and of q4, and labels with a null in ten."""
    rng = np.random.default_rng(5)
    x = (rng.standard_normal((rows, classes)) * 3).astype(np.float32)
    for i, part in enumerate(np.split(x, split)):
        np.save(folder / f"reference-{i}.npy", part)
    np.save(folder / "q8.npy", (x + 0.05 * rng.standard_normal(x.shape)).astype(np.float16))
    np.save(folder / "q4.npy", (x + 0.5 * rng.standard_normal(x.shape)).astype(np.float32))
    columns = {
        "label": pa.array(rng.integers(0, classes, rows), mask=rng.random(rows) < 0.1),
        "group": rng.choice(["a", "b.c"], rows),
        "document": [f"d{row // 20}" for row in range(rows)],
    }
    pq.write_table(pa.table(columns), folder / "labels.parquet", row_group_size=100)
    return folder


def pair(folder, **options):
    """The keywords of `compare` for such a folder."""
    return {
        "reference": str(folder / "reference-*.npy"),
        "candidate": {"q8": folder / "q8.npy", "q4": folder / "q4.npy"},
        "labels": folder / "labels.parquet",
        "metrics": "kl_reverse,js,tv,delta_p,tops,entropy,overlap,logit_difference",
        **COLUMNS,
        **options,
    }


def layers(rows=70, classes=5000, depth=24):
    """(hidden states, layer, layer rounded to few bits, labels)."""
    rng = np.random.default_rng(9)
    states = rng.standard_normal((rows, depth)).astype(np.float32)
    layer = rng.standard_normal((classes, depth)).astype(np.float32)
    return states, layer, (np.round(layer * 4) / 4).astype(np.float32), rng.integers(0, classes, rows)
