"""Calibration as others have it: the error of torchmetrics, the Brier score of scikit-learn."""

import golden_files
import ml_dtypes
import numpy as np
import pytest

import bigvocab as bv

TYPES = {np.float64: 0.0, np.float32: 1e-6, np.float16: 1e-6, ml_dtypes.bfloat16: 1e-6}


def test_a_confidence_at_an_edge_is_in_the_bin_above():
    logits = np.zeros((4, 6))
    logits[:, 3:] = -np.inf  # three classes of one probability: 5 / 15
    ev = bv.Evaluator(metrics="calibration")
    ev.update(logits, [0, 1, 2, 0])
    assert [one["rows"] for one in ev.report()["calibration"]["bins"]] == [4 if i == 5 else 0 for i in range(15)]


@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("case", golden_files.load("calibration_torchmetrics"), ids=str)
def test_as_torchmetrics_and_scikit_learn(case, dtype):
    given = case.arguments
    logits = given["logits"].astype(dtype)
    assert np.array_equal(logits.astype(np.float64), given["logits"])
    report = bv.Evaluator(metrics="calibration")
    report.update(logits, given["labels"], given.get("weights"))
    found = report.report()["calibration"][case.function]
    tolerance = max(TYPES[dtype], case.tolerance)
    assert found == pytest.approx(case.value, rel=tolerance, abs=tolerance)
