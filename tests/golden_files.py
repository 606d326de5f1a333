"""What the peers answered: the golden files of their losses, and `load(name)`, which reads one.

`tests/golden/losses_pytorch.json`, `losses_tensorflow.json` and `losses_optax.json` are made by the scripts of the same
names in scripts/golden (`scripts/make_golden` runs all, each in its own environment). Layout of a file::

    made_by, seed, versions    script, seed of the inputs, {"torch": "2.13.0+cpu", ...}
    arrays    {key: {"dtype", "shape", "values"}}: values flat, in C order; NaN and Infinity as Python's json has them
    cases     [{"name", "peer", "function", "arguments", "value", "tolerance"[, "ours", "why"]}, ...]

A case is one call of `peer`, told as a call of this project's public `function` with its own `arguments`, so that a
test of parity is one loop over `load(name)`. An argument is a number, a string, null, {"array": key}, {"list": [...]}
or {"tuple": [...]} of those. `value` is what the peer returned (a number or nested lists), or "error" where it raised;
`tolerance` is both relative and absolute. Where this project departs on purpose, `ours` is what it must give ("error"
for a BigvocabError) and `why` says the reason; the names of those cases start with `differs/`.

All logits, layers, biases and hidden states lie on a coarse grid, so that float16, bfloat16, float32 and float64 hold
the very same values (but for EXACT_IN_FLOAT64): a case is a case for every input type. The wide ones have 1,031
classes, just past a block of 1,024. Names are family/variant/reduction; the families are

    pytorch     cross_entropy, bce_with_logits, multi_label, bce; linear, whose variants end in plain and chunked for
                the two paths of F.linear_cross_entropy
    tensorflow  nn.sparse_softmax, nn.softmax, nn.sigmoid, nn.weighted; v1.NAME[/option]/WEIGHTS/REDUCTION for
                tf.compat.v1.losses (float32); sampled_softmax_loss and nce_loss, each / 1_true or 3_true /
                with_hits or without_hits / log_q or no_log_q / whole, div or mod (shards); and
                sampled_softmax_loss/T_true/own_candidates (float32), which draw their own sample from `seed`
    optax       integer_labels, softmax, safe_softmax, sigmoid

`ranking_trec_eval.json` and `calibration_torchmetrics.json` have the same layout. Their `function` is no function but
the block or the number of the report.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent / "golden"
NAMES = ("losses_pytorch", "losses_tensorflow", "losses_optax")
EXACT_IN_FLOAT64 = ("cross_entropy/huge/", "multi_label/rare")


@dataclass(frozen=True)
class Case:
    """One answer of a peer; `expected` is what we must give, an array, a float or "error"."""

    name: str
    peer: str
    function: str
    arguments: dict[str, Any]
    value: Any
    tolerance: float
    ours: Any = None
    why: str = ""

    @property
    def expected(self) -> Any:
        return self.ours if self.why else self.value

    def __str__(self) -> str:
        return self.name

    def assert_close(self, got: Any) -> None:
        """Shape and values of `got` are those expected."""
        expected = np.asarray(self.expected, dtype=np.float64)
        assert np.shape(got) == expected.shape
        np.testing.assert_allclose(got, expected, rtol=self.tolerance, atol=self.tolerance)


@cache
def load(name: str) -> tuple[Case, ...]:
    """The cases of tests/golden/NAME.json, their arrays read-only because they are shared."""
    file = json.loads((FOLDER / f"{name}.json").read_text())
    arrays = {}
    for key, array in file["arrays"].items():
        arrays[key] = np.array(array["values"], dtype=array["dtype"]).reshape(array["shape"])
        arrays[key].flags.writeable = False

    def decode(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        if kind == "array":
            return arrays[content]
        return {"list": list, "tuple": tuple}[kind](map(decode, content))

    return tuple(
        Case(**(case | {"arguments": {key: decode(value) for key, value in case["arguments"].items()}}))
        for case in file["cases"]
    )


def versions(name: str) -> dict[str, str]:
    """The versions of the peer, of NumPy and of Python that made tests/golden/NAME.json."""
    return json.loads((FOLDER / f"{name}.json").read_text())["versions"]
