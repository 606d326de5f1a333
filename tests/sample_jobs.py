"""What the tests of whole jobs share: the values of a report, and a folder with logits and labels."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

TIMES = ("seconds", "rows_per_second", "bytes_per_second", "inputs")
COLUMNS = {"weight_column": "weight", "group_column": "group"}


def values_of(report):
    """What a report says, except the times it took and the files it names."""
    return {name: value for name, value in report.to_dict().items() if name not in TIMES}


def write_job(folder, rows, classes, split=()):
    """Logits, in files split before these rows, and labels with a null in ten, a weight and a group."""
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((rows, classes), np.float32) * 3
    for i, part in enumerate(np.split(logits, split)):
        np.save(folder / f"logits-{i}.npy", part)
    columns = {
        "label": pa.array(rng.integers(0, classes, rows), mask=rng.random(rows) < 0.1),
        "weight": rng.random(rows),
        "group": rng.choice(["a", "b", "c"], rows),
    }
    pq.write_table(pa.table(columns), folder / "labels.parquet", row_group_size=100)
    return folder
