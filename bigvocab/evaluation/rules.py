"""Which options go together: every rule once, for keywords and for the command line.

Imports nothing heavy: the command line asks before any file is opened. Each rule is an error whose parts are `Keyword`s
and text, so that functions and the command each say it in their own words.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from bigvocab.catalogue import DEFAULT_SAMPLER, LOSSES, SAMPLERS, losses_with, metrics_fault
from bigvocab.errors import BigvocabError, Keyword

_EXCLUDING = ("exclude_classes", "exclude_column")
_NORM = ("norm_weight", "norm_bias", "norm_epsilon")


class OptionsError(BigvocabError, TypeError):
    """Arguments that are missing, or that exclude each other."""


def faults(options: Mapping[str, Any], given: Collection[str]) -> Iterator[BigvocabError]:
    """What is wrong with options together, the first thing first.

    Args:
        options: options by name; `logits` and `inputs` are among them where rows are given at once.
        given: names of those that differ from their defaults, or stand on the command line.
    """
    yield from _data_faults(options, given)
    yield from _loss_faults(options, given)
    if LOSSES[options["loss"]].sampled:
        yield from _sampling_faults(options, given)
    yield from job_faults(options, given)
    yield from raw_faults(options)


def refuse_faults(options: Mapping[str, Any], given: Collection[str]) -> None:
    """Raise the first of the `faults`, if there is any."""
    for fault in faults(options, given):
        raise fault


def _fault(name: str, *text: str | Keyword) -> BigvocabError:
    return BigvocabError(Keyword(name), ": ", *text)


def _data_faults(options: Mapping[str, Any], given: Collection[str]) -> Iterator[BigvocabError]:
    layer = _layer(options)
    inputs = options.get("inputs", layer)  # without rows, a layer says what they will be
    if "logits" in options:
        both = [name for name in ("logits", "inputs") if _there(options[name])]
        if not both:
            yield OptionsError(
                Keyword("logits"), ": expected them, or ", Keyword("inputs"), " and ", Keyword("weights")
            )
        if len(both) == 2:
            yield OptionsError(Keyword("logits"), ": excludes ", Keyword("inputs"), ", expected one of them")
        if "inputs" in both and not _there(layer):
            yield _fault("inputs", "needs ", Keyword("weights"), ", the output layer, or ", Keyword("model"))
    for name in ("model", "weights", "biases"):
        if _there(options[name]) and not _there(inputs):
            needed = "inputs" if "logits" in options else "weights"
            yield _fault(name, "belongs to an output layer, which needs ", Keyword(needed))
    if "final_norm" in given and not _there(inputs):
        needed = "inputs" if "logits" in options else "weights"
        yield _fault("final_norm", "belongs to an output layer, which needs ", Keyword(needed))
    if "shard_classes" in given and "vocab_shards" not in given and not _there(options["weights"]):
        yield _fault("shard_classes", "needs ", Keyword("vocab_shards"), ", files that are split by classes")
    if "transpose_weights" in given and not _there(options["weights"]):
        yield _fault("transpose_weights", "needs ", Keyword("weights"))
    norm = [name for name in _NORM if name in given]
    if norm and "final_norm" not in given and not _there(options["model"]):
        yield _fault(norm[0], "needs ", Keyword("final_norm"), ", rms or layer")
    yield from _model_faults(options, given)


def _layer(options: Mapping[str, Any]) -> Any:
    """The output layer, or the model that has it."""
    return options["weights"] if _there(options["weights"]) else options["model"]


def _model_faults(options: Mapping[str, Any], given: Collection[str]) -> Iterator[BigvocabError]:
    for name in ("hidden_states", "num_classes"):
        is_given = options.get(name) == "tokenizer" if name == "num_classes" else name in given
        if is_given and not _there(options["model"]):
            what = "tokenizer needs " if name == "num_classes" else "needs "
            yield _fault(name, what, Keyword("model"), ", the folder of a model, or a GGUF file")
    norm = [name for name in ("final_norm", "norm_weight", "norm_bias") if name in given]
    if norm and options.get("hidden_states") == "after-norm":
        yield _fault(norm[0], "is for states from before the norm, not with ", Keyword("hidden_states", "after-norm"))
    if _there(options["model"]) and "first_class" in given:
        yield _fault("first_class", "is for files of a slice, and ", Keyword("model"), " has all classes")
    if "layer" in given and "logits" in options and _there(options["logits"]):
        yield _fault("layer", "picks a layer of hidden states: it belongs to ", Keyword("inputs"))


def _there(value: Any) -> bool:
    """Whether data were given: None and no paths are nothing."""
    return value is not None and not (isinstance(value, tuple | list) and not value)


def _loss_faults(options: Mapping[str, Any], given: Collection[str]) -> Iterator[BigvocabError]:
    loss = options["loss"]
    if options["metrics"] is not None and (fault := metrics_fault(loss, options["metrics"])):
        yield _fault("metrics", fault)
    if LOSSES[loss].takes == "probabilities" and _there(_layer(options)):
        instead = (Keyword("logits"), ", not ", Keyword("inputs"))
        yield BigvocabError(Keyword("loss", loss), ": takes probabilities, which no layer makes: expected ", *instead)
    if loss == "weighted-sigmoid" and "pos_weight" not in given:
        needed = (Keyword("pos_weight"), ", a number or one for each class")
        yield BigvocabError(Keyword("loss", loss), ": needs ", *needed)
    if "keep_top" in given and "topk" not in _asked_metrics(options):
        yield _fault("keep_top", "needs topk in ", Keyword("metrics"))
    if "class_counts" in given and "vocab_file" in given:
        yield _fault(
            "class_counts", "and ", Keyword("vocab_file"), " both give counts of classes: expected one of them"
        )
    if options["label_smoothing"] and (excluding := [name for name in _EXCLUDING if name in given]):
        yield _fault("label_smoothing", "spreads over all classes: it does not go with ", Keyword(excluding[0]))
    for name in given:
        if loss not in (losses := losses_with(name)):
            yield _fault(name, f"goes with {', '.join(losses)}, not with {loss}")


def _asked_metrics(options: Mapping[str, Any]) -> Collection[str]:
    return () if options["metrics"] is None else options["metrics"]


def _sampling_faults(options: Mapping[str, Any], given: Collection[str]) -> Iterator[BigvocabError]:
    loss = options["loss"]
    if not _there(_layer(options)):
        yield _fault(
            "loss", f"{loss} looks at some classes only: it needs ", Keyword("inputs"), " and ", Keyword("weights")
        )
    if "candidates" in given:
        for name in ("sampler", "num_sampled", "seed", "distortion"):
            if name in given and (name != "num_sampled" or "logits" not in options):
                yield _fault(name, "does not go with ", Keyword("candidates"), ", which are a draw already")
        return
    sampler = options["sampler"] or DEFAULT_SAMPLER
    if "num_sampled" not in given and sampler != "all":
        needed = (Keyword("num_sampled"), " (or ", Keyword("candidates"), "): how many candidates to draw")
        yield BigvocabError(Keyword("loss", loss), ": needs ", *needed)
    yield from sampler_faults(sampler, given)


def sampler_faults(sampler: str, given: Collection[str]) -> Iterator[BigvocabError]:
    """What is wrong with the options of a sampler."""
    if sampler == "unigram" and "vocab_file" not in given:
        needed = (Keyword("vocab_file"), ", a file with a word and its count per line")
        yield BigvocabError(Keyword("sampler", sampler), ": needs ", *needed)
    for spec in SAMPLERS.values():
        for name in spec.options:
            if name in given and name not in SAMPLERS[sampler].options:
                yield _fault(name, "goes with ", Keyword("sampler", spec.name), f", not with {sampler}")


def job_faults(options: Mapping[str, Any], given: Collection[str]) -> Iterator[BigvocabError]:
    """What is wrong with the options of a job, whatever its task."""
    if options.get("output") is not None and options.get("output") == options.get("report"):
        yield _fault("output", "is the same file as ", Keyword("report"))
    if "resume" in given and "state" not in given:
        yield _fault("resume", "needs ", Keyword("state"), ", the file to go on from")
    if "report_every" in given and "report" not in given:
        yield _fault("report_every", "needs ", Keyword("report"))
    if "address" in given and options.get("engine") != "ray":
        yield _fault("address", "needs ", Keyword("engine", "ray"))
    state = options.get("state")
    if state is not None and state in (options.get("output"), options.get("report")):
        yield _fault(
            "state", "is the ", Keyword("output"), " or the ", Keyword("report"), " too: expected different files"
        )
    if options.get("sampler") == "learned-unigram":
        for name in ("shard", "engine", "workers"):
            if name in given and options[name] not in ("local", 1):
                yield _fault(name, "does not go with learned-unigram, which learns from all rows before")
    yield from _class_range_faults(options, given)


def _class_range_faults(options: Mapping[str, Any], given: Collection[str]) -> Iterator[BigvocabError]:
    ranges = [name for name in ("vocab_shard", "first_class") if name in given]
    if "first_class" in given and "num_classes" not in given:
        yield _fault("first_class", "needs ", Keyword("num_classes"), ", the number of classes of all slices together")
    for name in ("label_logits", "save_label_logits"):
        if name in given and not ranges:
            yield _fault(name, "belongs to ", Keyword("first_class"), " or ", Keyword("vocab_shard"))
    if "save_label_logits" in given:
        for name in ("output", "report", "html", "state", "label_logits", "engine", "workers"):
            if name in given:
                yield _fault(
                    "save_label_logits", "writes logits of labels alone: ", Keyword(name), " does not go with it"
                )
        return
    if not ranges:
        return
    chosen = ranges[0]
    if "shard" in given:
        yield _fault("shard", "splits rows, and ", Keyword(chosen), " classes: they exclude each other")
    if options["loss"] != "sparse-softmax":
        yield _fault(
            chosen, f"goes with sparse-softmax, not with {options['loss']}; ", Keyword("shard"), " splits any loss"
        )
    if "class_weights" in given and options["label_smoothing"]:
        both = (
            "with ",
            Keyword("label_smoothing"),
            " needs all classes at once; ",
            Keyword("shard"),
            " splits by rows",
        )
        yield _fault("class_weights", *both)
    if "state" not in given:
        yield _fault(chosen, "needs ", Keyword("state"), ": the states of all ranges merge into losses")
    if "output" in given:
        yield _fault("output", "needs all classes: merging makes it, of the states of all ranges")
    if "html" in given:
        yield _fault("html", "needs all classes: merging makes it, of the states of all ranges")
    for name in ("engine", "workers"):
        if name in given:
            yield _fault(name, "shares rows: it does not go with ", Keyword(chosen))


def raw_faults(options: Mapping[str, Any]) -> Iterator[BigvocabError]:
    """What is wrong with the options that describe raw binary files."""
    if options["shape"] is not None and options["dtype"] is None:
        yield _fault("shape", "means raw binary, which needs ", Keyword("dtype"), " as well")
    if options["offset"] and options["shape"] is None:
        yield _fault("offset", "is for raw binary: it needs ", Keyword("shape"), " and ", Keyword("dtype"))
