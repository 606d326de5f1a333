"""Which options of the command go together; what is wrong here is known before any file is opened."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

_OF_LOGITS = ("sparse-softmax", "softmax", "sigmoid", "weighted-sigmoid", "sparse-sigmoid")
SAMPLED = ("sampled-softmax", "nce")
LOSSES = (*_OF_LOGITS, "log-loss", *SAMPLED)
SAMPLERS = ("log-uniform", "uniform", "unigram", "learned-unigram", "all")
SAMPLING = ("sampler", "num_sampled", "num_true", "vocab_file", "distortion", "seed", "candidates", "exact")
METRICS = ("accuracy", "rank", "logsumexp", "entropy", "predicted")
# The by-products that make sense for a loss; a loss of independent classes has none.
METRICS_OF = {"sparse-softmax": METRICS, "softmax": ("logsumexp", "entropy", "predicted")}
# Options that mean something to these losses alone.
ONLY_WITH = {
    "ignore_index": ("sparse-softmax", *SAMPLED),
    "class_weights": ("sparse-softmax",),
    "label_smoothing": ("sparse-softmax", "softmax", "sigmoid"),
    "probability_column": ("softmax",),
    "pos_weight": ("weighted-sigmoid", "sparse-sigmoid"),
    "epsilon": ("log-loss",),
    "softcap": _OF_LOGITS,
    "logit_scale": _OF_LOGITS,
    **dict.fromkeys(SAMPLING, SAMPLED),
}


def default_metrics(loss: str) -> tuple[str, ...]:
    """The by-products of a report that names none: of the first three, those that make sense for the loss."""
    return tuple(metric for metric in METRICS[:3] if metric in METRICS_OF.get(loss, ()))


def metrics_fault(loss: str, metrics: Collection[str]) -> str | None:
    """What is wrong with by-products asked for by name."""
    fitting = METRICS_OF.get(loss, ())
    senseless = [metric for metric in metrics if metric not in fitting]
    if not senseless:
        return None
    return f"{senseless[0]} makes no sense for {loss}, which has {', '.join(fitting) or 'none'}"


def eval_faults(options: Mapping[str, Any], given: Collection[str]) -> Iterator[str]:
    """What is wrong with the options of `eval` together.

    Args:
        options: all options by name.
        given: names of those that stand on the command line.
    """
    if not options["logits"] and not options["inputs"]:
        yield "Missing option '--logits' (or '--inputs' and '--weights')."
    if options["logits"] and options["inputs"]:
        yield "'--logits' and '--inputs' exclude each other."
    if options["inputs"] and not options["weights"]:
        yield "'--inputs' needs '--weights', the output layer."
    for name in ("weights", "biases"):
        if options[name] and not options["inputs"]:
            yield f"'--{name}' belongs to the output layer, which needs '--inputs', the hidden states."
    norm = [name for name in ("norm_weight", "norm_bias", "norm_epsilon") if name in given]
    if "final_norm" in given and not options["inputs"]:
        yield "'--final-norm' belongs to the hidden states: it needs '--inputs'."
    if norm and "final_norm" not in given:
        yield f"'--{norm[0].replace('_', '-')}' needs '--final-norm'."
    if options["output"] is not None and options["output"] == options["report"]:
        yield "'--output' and '--report' are the same file."
    if fault := metrics_fault(options["loss"], options["metrics"]):
        yield f"'--metrics': {fault}."
    if "top_k" in given and "accuracy" not in options["metrics"]:
        yield "'--top-k' needs accuracy in '--metrics'."
    if options["loss"] == "log-loss" and options["inputs"]:
        yield "'--loss log-loss' takes probabilities in '--logits': no output layer makes them of '--inputs'."
    if options["loss"] == "weighted-sigmoid" and "pos_weight" not in given:
        yield "'--loss weighted-sigmoid' needs '--pos-weight'."
    for name, losses in ONLY_WITH.items():
        if name in given and options["loss"] not in losses:
            yield f"'--{name.replace('_', '-')}' goes with {', '.join(losses)}, not with {options['loss']}."
    if options["loss"] in SAMPLED:
        yield from sampling_faults(options, given)
    yield from job_faults(options, given)
    yield from raw_faults(options)


def job_faults(options: Mapping[str, Any], given: Collection[str]) -> Iterator[str]:
    """What is wrong with the options of big jobs."""
    sliced = "vocab_shard" in given or "first_class" in given
    if "resume" in given and "state" not in given:
        yield "'--resume' needs '--state', the file to go on from."
    if "report_every" in given and "report" not in given:
        yield "'--report-every' needs '--report'."
    if "shard" in given and sliced:
        yield "'--shard' splits rows, '--vocab-shard' and '--first-class' classes: they exclude each other."
    if "first_class" in given and "num_classes" not in given:
        yield "'--first-class' needs '--num-classes', that of all slices together."
    for name in ("label_logits", "save_label_logits"):
        if name in given and not sliced:
            yield f"'--{name.replace('_', '-')}' belongs to '--first-class' or '--vocab-shard'."
    if options["sampler"] == "learned-unigram":
        for name in ("shard", "engine", "workers"):
            if name in given and options[name] not in ("local", 1):
                yield f"'--sampler learned-unigram' learns from all rows before: '--{name}' does not go with it."
    if "save_label_logits" in given:
        for name in ("output", "report", "state", "label_logits", "engine", "workers"):
            if name in given:
                yield f"'--save-label-logits' writes logits of labels alone: '--{name.replace('_', '-')}' does not go."
    if sliced and "save_label_logits" not in given:
        if options["loss"] != "sparse-softmax":
            yield f"'--vocab-shard' and '--first-class' go with sparse-softmax, not with {options['loss']}."
        if "class_weights" in given and options["label_smoothing"]:
            yield "'--class-weights' with '--label-smoothing' need all classes at once: split by '--shard'."
        if "state" not in given:
            yield "'--vocab-shard' and '--first-class' need '--state': their states merge into losses."
        if "output" in given:
            yield "'--output' needs all classes: give it to 'bigvocab merge'."
        for name in ("engine", "workers"):
            if name in given:
                yield f"'--{name}' shares rows: it does not go with ranges of classes."
    if "address" in given and options["engine"] != "ray":
        yield "'--address' needs '--engine ray'."
    if options["state"] is not None and options["state"] in (options["output"], options["report"]):
        yield "'--state', '--output' and '--report' must be different files."


def sampling_faults(options: Mapping[str, Any], given: Collection[str]) -> Iterator[str]:
    """What is wrong with the options of the sampled losses."""
    if not options["inputs"]:
        yield f"'--loss {options['loss']}' needs '--inputs' and '--weights': it looks at some classes only."
    if "candidates" in given:
        for name in ("sampler", "num_sampled", "seed", "distortion"):
            if name in given:
                yield f"'--candidates' is a draw already: '--{name.replace('_', '-')}' does not go with it."
        return
    sampler = options["sampler"] or SAMPLERS[0]
    if "num_sampled" not in given and sampler != "all":
        yield f"'--loss {options['loss']}' needs '--num-sampled' (or '--candidates')."
    yield from sampler_faults(sampler, given)


def sampler_faults(sampler: str, given: Collection[str]) -> Iterator[str]:
    """What is wrong with the options of a sampler."""
    if sampler == "unigram" and "vocab_file" not in given:
        yield "'--sampler unigram' needs '--vocab-file'."
    for name in ("vocab_file", "distortion"):
        if name in given and sampler != "unigram":
            yield f"'--{name.replace('_', '-')}' goes with '--sampler unigram', not with {sampler}."


def raw_faults(options: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the options that describe raw binary files."""
    if options["shape"] is not None and options["dtype"] is None:
        yield "'--shape' means raw binary, which needs '--dtype' as well."
    if options["offset"] and options["shape"] is None:
        yield "'--offset' is for raw binary: it needs '--shape' and '--dtype'."
