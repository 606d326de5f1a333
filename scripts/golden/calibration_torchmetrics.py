"""torchmetrics' calibration error and scikit-learn's Brier score, as tests/golden/calibration_torchmetrics.json.

usage: PYTHON_WITH_TORCHMETRICS_AND_SCIKIT_LEARN scripts/golden/calibration_torchmetrics.py
"""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import torch
from _golden import SEED, Golden, grid
from sklearn.metrics import brier_score_loss
from torchmetrics.functional.classification import multiclass_calibration_error

BINS = 15
PEERS = ("torch", "torchmetrics", "scikit-learn")

golden = Golden("calibration_torchmetrics", **{name: version(name) for name in PEERS})
rng = np.random.default_rng(SEED)


def case(name: str, rows: int, classes: int, scale: float, lift: float) -> None:
    """Rows whose label is lifted by up to `lift`: with a wide scale a model that is too sure."""
    logits = grid(rng, (rows, classes), scale)
    labels = rng.integers(0, classes, rows)
    logits[np.arange(rows), labels] += np.round(rng.random(rows) * lift * 16) / 16
    p = torch.softmax(torch.from_numpy(logits), 1)
    error = multiclass_calibration_error(p, torch.from_numpy(labels), classes, n_bins=BINS, norm="l1")
    arguments = {"logits": logits, "labels": labels}
    golden.case(f"ece/{name}", "torchmetrics", "ece", arguments, float(error), tolerance=1e-7)
    every = {"labels": range(classes), "scale_by_half": False}
    weights = rng.choice([0.0, 0.5, 1.0, 3.0], rows)
    for given in (None, weights):
        score = brier_score_loss(labels, p.numpy(), sample_weight=given, **every)
        more = {} if given is None else {"weights": given}
        told = f"brier/{name}" + "/weights" * (given is not None)
        golden.case(told, "scikit-learn", "brier", arguments | more, float(score), tolerance=1e-12)


if __name__ == "__main__":
    case("unsure", 60, 9, 1.0, 2.0)
    case("too_sure", 60, 9, 5.0, 3.0)
    case("good", 80, 12, 2.0, 8.0)
    case("two_classes", 50, 2, 2.0, 1.0)
    case("wide", 12, 1031, 2.0, 12.0)
    golden.write()
