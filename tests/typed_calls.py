"""Calls that mypy checks (see [tool.mypy] in pyproject.toml): right ones pass, wrong ones are found.

Nothing calls it. An `ignore` that hides no error is an error itself, so each line marked so must be found.
"""

import numpy as np

import bigvocab as bv


def calls() -> None:
    logits, labels = np.zeros((2, 3), np.float32), [1, 2]

    _report: bv.Report = bv.evaluate(logits=logits, labels=labels, loss="sparse-softmax", top_k=(1, 5), threads=2)
    evaluator = bv.Evaluator(label_smoothing=0.1, metrics="rank", nonfinite="skip")
    evaluator.update(logits, labels)
    _again: bv.Evaluator = bv.Evaluator.from_bytes(evaluator.to_bytes(), threads=1)
    _whole: bv.Report = bv.merge([evaluator.to_bytes(), "part.state"], rows=4)
    layer: bv.OutputLayer = bv.open_model("model")
    bv.evaluate(inputs=logits, labels=labels, model=layer, hidden_states="after-norm", num_classes="tokenizer")
    comparison = bv.Comparison(metrics=("js", "tv"), candidate_softcap={"q4": 30.0})
    comparison.update(logits, {"q4": logits}, labels)
    _compared: bv.Report = bv.compare(reference=logits, candidate={"q4": logits}, labels=labels, nonfinite="skip")

    bv.evaluate(logits=logits, labels=labels, label_smothing=0.1)  # type: ignore[call-arg]
    bv.evaluate(logits=logits, labels=labels, softcap="30")  # type: ignore[arg-type]
    bv.evaluate(logits=logits)  # type: ignore[call-arg]
    bv.compare(reference=logits, candidte=logits)  # type: ignore[call-arg]
    bv.Comparison(nonfinite=1)  # type: ignore[arg-type]
    bv.Evaluator(tops=3)  # type: ignore[call-arg]
    bv.Evaluator(nonfinite=1)  # type: ignore[arg-type]
    bv.merge(3)  # type: ignore[arg-type]
    print(bv.no_such_name)  # type: ignore[attr-defined]
