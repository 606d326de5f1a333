"""Which options of a comparison go together: every rule once, for keywords and for the command line.

Imports nothing heavy, as `evaluation.rules`, whose words it uses.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from bigvocab.errors import BigvocabError, Keyword
from bigvocab.evaluation.rules import OptionsError, job_faults, raw_faults

# What one side may have of its own, with `reference_` or `candidate_` in front; without, it serves both.
LAYER_OPTIONS = (
    "weights", "biases", "model", "hidden_states", "final_norm", "norm_weight", "norm_bias", "norm_epsilon", "layer",
)  # fmt: skip
SIDE_OPTIONS = (*LAYER_OPTIONS, "logit_scale", "softcap", "shape", "dtype", "offset")
PREFIXES = ("reference", "candidate")
ONLY = "candidate"  # what the only candidate is called where it has no name


def candidate_names(options: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of all candidates, in the order in which they are given."""
    found: dict[str, None] = {}
    single = False
    for option in ("candidate", *(f"candidate_{name}" for name in ("inputs", *SIDE_OPTIONS))):
        value = options.get(option)
        if isinstance(value, Mapping):
            found |= dict.fromkeys(value)
        elif option in ("candidate", "candidate_inputs", "candidate_weights", "candidate_model"):
            single = single or value is not None
    if single and not found or options.get("candidate") is not None and not isinstance(options["candidate"], Mapping):
        found.setdefault(ONLY)
    return tuple(found)


def value_for(options: Mapping[str, Any], prefix: str, option: str, name: str | None = None) -> Any:
    """The value of an option for the reference, or for the candidate `name`: its own, or that of both sides."""
    value = options.get(f"{prefix}_{option}")
    if isinstance(value, Mapping) and name is not None:
        value = value.get(name)
    return options.get(option) if value is None else value


def comparison_faults(options: Mapping[str, Any], given: Collection[str]) -> Iterator[BigvocabError]:
    """What is wrong with the options of a comparison, the first thing first; see `evaluation.rules.faults`."""
    if options.get("weight_column") is not None:
        yield _fault("weight_column", "goes with no comparison: percentiles and flips have no weights; expected none")
    if options.get("vocab_shard") is not None:
        instead = (Keyword("shard"), " splits rows, and ", Keyword("vocab_shards"), " reads files split by classes")
        yield _fault("vocab_shard", "goes with no comparison; ", *instead)
    yield from side_faults(options, given)
    for name in ("shift_labels", "score_from", "label_column", "group_column", "cluster_column"):
        if options.get(name) and options.get("labels") is None:
            yield _fault(name, "needs ", Keyword("labels"))
    tokenizer = any(value_for(options, prefix, "model", side) is not None for prefix, side in _sides(options))
    if options.get("num_classes") == "tokenizer" and not tokenizer:
        yield _fault("num_classes", "tokenizer needs ", Keyword("model"), ", the folder of a model, or a GGUF file")
    yield from job_faults(options, given)
    for prefix, side in _sides(options):
        raw = {option: value_for(options, prefix, option, side) for option in ("shape", "dtype", "offset")}
        yield from raw_faults(raw)


def side_faults(options: Mapping[str, Any], given: Collection[str]) -> Iterator[BigvocabError]:
    """What is wrong with the rows and layers of the sides."""
    if not candidate_names(options):
        yield OptionsError(
            Keyword("candidate"), ": expected one, or ", Keyword("candidate_weights"), ", ",
            Keyword("candidate_model"), " or ", Keyword("candidate_inputs"),
        )  # fmt: skip
    for prefix, name in _sides(options):
        yield from _one_side(options, prefix, name)
    if all(rows_for(options, prefix, name) is not None for prefix, name in _sides(options)):
        for option in ("inputs", *LAYER_OPTIONS):
            if options.get(option) is not None and option in given:
                yield _fault(option, "belongs to hidden states, but all sides have logits; expected none")


def _sides(options: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    yield "reference", None
    yield from (("candidate", name) for name in candidate_names(options))


def _one_side(options: Mapping[str, Any], prefix: str, name: str | None) -> Iterator[BigvocabError]:
    whose = "" if name in (None, ONLY) else f" (of {name})"
    logits = rows_for(options, prefix, name)
    own = _own(options, f"{prefix}_inputs", name)
    inputs, weights = value_for(options, prefix, "inputs", name), value_for(options, prefix, "weights", name)
    model = value_for(options, prefix, "model", name)
    if logits is not None:
        if own is not None:
            excluded = Keyword(f"{prefix}_inputs")
            yield OptionsError(Keyword(prefix), ": excludes ", excluded, f"{whose}, expected one of them")
        for option in LAYER_OPTIONS:
            if _own(options, f"{prefix}_{option}", name) is not None:
                text = f"belongs to an output layer{whose}, which needs "
                yield _fault(f"{prefix}_{option}", text, Keyword(f"{prefix}_inputs"))
        return
    if inputs is None and weights is None and model is None:
        layer = (Keyword(f"{prefix}_inputs"), " and ", Keyword(f"{prefix}_weights"))
        yield OptionsError(Keyword(prefix), f": expected it{whose}, or ", *layer)
    elif weights is None and model is None:
        layer = (Keyword(f"{prefix}_weights"), f", the output layer{whose}, or ", Keyword(f"{prefix}_model"))
        yield _fault(f"{prefix}_inputs", "needs ", *layer)
    elif inputs is None:
        given = "model" if weights is None else "weights"
        yield _fault(f"{prefix}_{given}", "needs ", Keyword(f"{prefix}_inputs"), f", the hidden states{whose}")
    norm = [o for o in ("norm_weight", "norm_bias") if value_for(options, prefix, o, name) is not None]
    if norm and model is None and value_for(options, prefix, "final_norm", name) is None:
        yield _fault(norm[0], "needs ", Keyword("final_norm"), ", rms or layer")


def rows_for(options: Mapping[str, Any], prefix: str, name: str | None = None) -> Any:
    """The logits of a side; None where it has none, because a layer makes them."""
    value = options.get(prefix)
    return value.get(name) if isinstance(value, Mapping) else value if name in (None, ONLY) else None


def _own(options: Mapping[str, Any], option: str, name: str | None) -> Any:
    """What only this side was given."""
    value = options.get(option)
    return value.get(name) if isinstance(value, Mapping) else None if name not in (None, ONLY) else value


def _fault(name: str, *text: str | Keyword) -> BigvocabError:
    return BigvocabError(Keyword(name), ": ", *text)
