"""Parity with TensorFlow, PyTorch and optax: every golden case of the exact losses, in every input type.

Where we differ on purpose, the case carries what we must give and why (its name starts with `differs/`).
"""

import golden_files
import ml_dtypes
import numpy as np
import pytest

import bigvocab as bv

FUNCTIONS = {
    "compute_weighted_loss",
    "log_loss",
    "sigmoid_cross_entropy",
    "softmax_cross_entropy",
    "sparse_sigmoid_cross_entropy",
    "sparse_softmax_cross_entropy",
    "weighted_sigmoid_cross_entropy",
}
CASES = [case for name in golden_files.NAMES for case in golden_files.load(name) if case.function in FUNCTIONS]
TYPES = {
    "float16": (np.float16, 1e-6),
    "bfloat16": (ml_dtypes.bfloat16, 1e-6),
    "float32": (np.float32, 1e-6),
    "float64": (np.float64, 0.0),
}


def as_type(case, dtype):
    """The case's arguments with its logits in `dtype`, or None where that cannot hold them."""
    logits = case.arguments.get("logits")
    if logits is None or dtype == logits.dtype:
        return case.arguments if dtype == np.float64 or logits is not None else None
    with np.errstate(over="ignore"):
        typed = logits.astype(dtype)
    return (
        {**case.arguments, "logits": typed}
        if np.array_equal(typed.astype(logits.dtype), logits, equal_nan=True)
        else None
    )


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("peer", golden_files.NAMES)
def test_golden_cases(peer, dtype):
    kind, slack = TYPES[dtype]
    failed, seen = [], 0
    for case in golden_files.load(peer):
        if case.function not in FUNCTIONS or (arguments := as_type(case, kind)) is None:
            continue
        seen += 1
        function = getattr(bv, case.function)
        try:
            if isinstance(case.expected, str):
                with pytest.raises(bv.BigvocabError):
                    function(**arguments)
                continue
            got, expected = function(**arguments), np.asarray(case.expected, np.float64)
            assert np.shape(got) == expected.shape
            np.testing.assert_allclose(got, expected, rtol=case.tolerance + slack, atol=case.tolerance + slack)
        except (AssertionError, bv.BigvocabError, pytest.fail.Exception) as error:
            failed.append(f"{case.name}: {error}")
    assert seen > {"losses_pytorch": 90, "losses_tensorflow": 140, "losses_optax": 10}[peer] / (
        1 if kind == np.float64 else 2
    )
    assert not failed, f"{len(failed)} of {seen} cases differ:\n" + "\n".join(failed[:10])


def test_each_departure_gives_its_reason():
    departures = [case for case in CASES if case.why]
    assert len(departures) >= 25
    assert all(len(case.why) > 20 and case.name.startswith("differs/") for case in departures)


def test_goldens_cover_the_family():
    """Each loss with each reduction, as TensorFlow's own functions have them."""
    names = {case.name for case in golden_files.load("losses_tensorflow")}
    for loss in ("softmax", "sigmoid", "sparse_softmax"):
        for reduction in ("none", "sum", "mean", "sum_over_batch_size", "sum_by_nonzero_weights"):
            found = [
                name
                for name in names
                if name.startswith(f"v1.{loss}_cross_entropy") and name.lower().endswith(reduction)
            ]
            assert found, (loss, reduction)
    assert {case.function for case in CASES} == FUNCTIONS


@pytest.mark.parametrize("name", golden_files.NAMES)
def test_versions_are_recorded(name):
    assert len(golden_files.versions(name)) >= 3
