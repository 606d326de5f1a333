"""Golden model folders: tiny random models of many families, made, run and saved by transformers.

Each family gets `tests/golden/families/NAME/`: config.json and the weight files as `save_pretrained` writes them, less
the tensors that have nothing to do with the vocabulary, and beside it `NAME.safetensors`: hidden states `before` and
`after` the final norm, `labels`, and `losses`, float64 log-softmax of transformers' own float32 logits. Its metadata
hold what made it and the defaults of the configuration class. tests/heads/test_model_folder.py reads them.

Norm weights lie away from 0 and 1, biases away from 0, and epsilon is large enough to be missed.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}

import numpy as np
import safetensors
import torch
import transformers
from _golden import FOLDER, SEED
from safetensors.numpy import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

CLASSES, COLUMNS, ROWS = 53, 32, 12
EPSILON = 3e-3
COMMON = {
    "vocab_size": CLASSES, "hidden_size": COLUMNS, "n_embd": COLUMNS, "d_model": COLUMNS,
    "word_embed_proj_dim": COLUMNS,
    "intermediate_size": 48, "n_inner": 48, "ffn_dim": 48, "ffn_hidden_size": 48, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16, "moe_ffn_hidden_size": 16,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 64, "n_positions": 64, "max_seq_len": 64, "rotary_dim": 4,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "state_size": 8,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "rms_norm_eps": EPSILON, "layer_norm_eps": EPSILON, "layer_norm_epsilon": EPSILON, "norm_eps": EPSILON,
    "norm_epsilon": EPSILON,
}  # fmt: skip
MAMBA = {
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_d_ssm": 64, "mamba_n_groups": 1,
    "mamba_expand": 2,
}  # fmt: skip
FULL = ["full_attention", "full_attention"]
PER_LAYER = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": CLASSES, "num_kv_shared_layers": 0}
LATENT = {"num_key_value_heads": 4}
# What a family needs beside or instead of the common values; None leaves the default of its class.
FAMILIES: dict[str, dict] = {
    "llama": {}, "llama_tied": {"tie_word_embeddings": True}, "llama4_text": {}, "mistral": {}, "mixtral": {},
    "ministral3": {}, "qwen2": {}, "qwen2_moe": {}, "qwen3": {}, "qwen3_moe": {}, "qwen3_next": {}, "qwen3_5_text": {},
    "qwen3_5_moe_text": {}, "gemma": {}, "gemma2": {}, "gemma3_text": {}, "vaultgemma": {},
    "gemma3n_text": PER_LAYER | {"laurel_rank": 4, "activation_sparsity_pattern": None, "layer_types": FULL},
    "gemma4_text": PER_LAYER | {"global_head_dim": 8, "layer_types": FULL, "final_logit_softcapping": 30.0},
    "recurrent_gemma": {"lru_width": 32}, "phi": {}, "phi3": {}, "phimoe": {}, "gpt2": {}, "gpt_bigcode": {},
    "gpt_neo": {"attention_types": [[["global"], 2]]}, "gpt_neox": {}, "gptj": {}, "codegen": {"n_ctx": 64}, "opt": {},
    "opt_350m": {"do_layer_norm_before": False, "word_embed_proj_dim": 16},
    "bloom": {"initializer_range": 0.4}, "falcon": {"head_dim": None},
    "falcon_h1": MAMBA | {"lm_head_multiplier": 0.4}, "mpt": {}, "cohere": {}, "cohere2": {},
    "cohere2_moe": {"rms_norm_eps": None}, "cohere2_moe_rms": {}, "olmo": {}, "olmo2": {}, "olmo3": {}, "olmoe": {},
    "granite": {"logits_scaling": 5.0}, "granitemoe": {"logits_scaling": 5.0},
    "granitemoehybrid": MAMBA | {"logits_scaling": 5.0}, "hyperclovax": {"logits_scaling": 0.2}, "bamba": MAMBA,
    "jamba": MAMBA, "deepseek_v2": LATENT, "deepseek_v3": LATENT, "deepseek_v4": {}, "glm": {}, "glm4": {},
    "glm4_moe": {}, "minicpm3": LATENT | {"dim_model_base": 8}, "starcoder2": {}, "stablelm": {}, "persimmon": {},
    "mamba": {}, "falcon_mamba": {}, "mamba2": {"num_heads": 8, "expand": 2, "n_groups": 1}, "gpt_oss": {},
    "nemotron": {}, "smollm3": {}, "exaone4": {}, "lfm2": {},
    "nanochat": {"initializer_range": 0.4}, "minimax_m2": {}, "minimax_m3_vl_text": {},
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1, "expand": 2},
    "ernie4_5": {}, "hunyuan_v1_dense": {}, "seed_oss": {}, "helium": {}, "apertus": {}, "xglm": {}, "biogpt": {},
    "rwkv": {"attention_hidden_size": COLUMNS, "context_length": 64}, "xlstm": {}, "ctrl": {},
    "beam": {"initializer_range": 0.4},
    "inkling_text": {"unpadded_vocab_size": 47}, "bailing_hybrid": {},
    "qwen3_5_vl": {}, "gemma3_vl": {}, "mistral3_vl": {},
}  # fmt: skip
VARIANTS = ("_tied", "_rms", "_350m")
SHARDED = ("llama", "gemma3_vl", "qwen3_5_vl", "gpt_neox")
VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14, "depth": 1, "num_heads": 2, "out_hidden_size": COLUMNS, "num_position_embeddings": 16,
    "head_dim": 8,
}  # fmt: skip
NORMS = (
    "model.norm", "model.final_layernorm", "model.final_norm", "model.norm_f", "model.embedding_norm",
    "model.layer_norm",
    "model.decoder.final_layer_norm", "model.language_model.norm", "transformer.ln_f", "transformer.norm_f",
    "transformer.layernorm", "backbone.norm_f", "backbone.out_norm", "gpt_neox.final_layer_norm", "rwkv.ln_out",
    "biogpt.layer_norm",
)  # fmt: skip


def make_config(name: str, values: dict):
    """The configuration of a tiny model; that of a wrapper has a text model and a picture model inside."""
    for variant in VARIANTS:
        name = name.removesuffix(variant)
    if name.endswith("_vl") and name not in CONFIG_MAPPING:
        cls = CONFIG_MAPPING[name.removesuffix("_vl")]
        text = CONFIG_MAPPING[cls().text_config.model_type]
        values = known(cls, {"text_config": known(text, COMMON), "image_token_index": 3, "image_token_id": 3})
        values["vision_config"] = known(CONFIG_MAPPING[cls().vision_config.model_type], VISION)
        return cls(**values)
    cls = CONFIG_MAPPING[name]
    common = {key: value for key, value in COMMON.items() if key not in values}
    return cls(**known(cls, common), **{key: value for key, value in values.items() if value is not None})


def known(cls: type, values: dict) -> dict:
    """Those of the values that a configuration class has."""
    keys = set(cls().to_dict()) | set(cls.attribute_map) if cls.model_type != "gemma4_text" else set(values)
    return {key: value for key, value in values.items() if key in keys}


def defaults(config) -> dict:
    """The plain values that the classes of a configuration start with, the text model's own first."""
    text = config.get_text_config()
    values = {} if text is config else type(config)().to_dict()
    values |= type(text)().to_dict()
    return {
        key: v for key, v in values.items() if v is None or isinstance(v, (bool, int, float)) and "token" not in key
    }


def move(module: torch.nn.Module, generator: torch.Generator) -> None:
    """Every parameter by 0.2 to 0.6, up or down."""
    for values in module.parameters():
        step = 0.2 + 0.4 * torch.rand(values.shape, generator=generator)
        values.add_(torch.where(torch.rand(values.shape, generator=generator) < 0.5, -step, step))


def run(model, generator: torch.Generator) -> dict[str, np.ndarray]:
    """The states before and after the final norm, labels and losses of a few tokens."""
    modules = dict(model.named_modules())
    norm = next((modules[name] for name in NORMS if name in modules and modules[name] is not None), None)
    head, seen = model.get_output_embeddings(), {}
    with torch.no_grad():
        head.weight.normal_(0, 0.5, generator=generator)
        if getattr(head, "bias", None) is not None:
            head.bias.normal_(0, 0.5, generator=generator)
        if norm is not None:
            move(norm, generator)
            norm.register_forward_hook(lambda _, args, out: seen.update(before=args[0], after=out))
        head.register_forward_pre_hook(lambda _, args: seen.setdefault("head", args[0]))
        ids = torch.randint(4, CLASSES, (1, ROWS), generator=generator)
        out = model(input_ids=ids, output_hidden_states=True, use_cache=False)
    if norm is None:
        seen |= {"before": seen["head"], "after": seen["head"]}
    states = out.hidden_states[-1]
    if states.shape == seen["after"].shape:  # what users store; where it has streams, there is nothing to compare
        assert torch.equal(states, seen["after"])
    logits = out.logits[0].double()
    labels = torch.randint(0, logits.shape[1], (ROWS,), generator=generator)
    losses = -torch.log_softmax(logits, 1)[torch.arange(ROWS), labels]
    arrays = {"before": seen["before"][0], "after": seen["after"][0], "labels": labels, "losses": losses}
    return {key: value.detach().numpy() for key, value in arrays.items()}


def save_needed(model, folder: Path, *, sharded: bool) -> None:
    """Save a model, less the tensors that have nothing to do with the vocabulary; of the index, all."""
    with tempfile.TemporaryDirectory() as whole:
        model.save_pretrained(whole, max_shard_size="12KB" if sharded else "1GB")
        folder.mkdir()
        for path in sorted(Path(whole).iterdir()):
            if path.suffix == ".json":
                if path.name != "generation_config.json":
                    shutil.copy(path, folder)
                continue
            tensors = load_file(path)
            kept = {
                k: v
                for k, v in tensors.items()
                if v.ndim == 2 and len(v) >= CLASSES or (v.ndim == 1 and "mixer" not in k)
            }
            if any(v.ndim == 2 or "norm" in k or "ln_" in k for k, v in kept.items()):
                save_file(
                    {k: v for k, v in kept.items() if v.nbytes <= 4 * (CLASSES + 1) * COLUMNS}, folder / path.name
                )


def make(name: str, root: Path) -> None:
    """One family's folder and answers."""
    seed = SEED + sum(map(ord, name))
    torch.manual_seed(seed)
    config = make_config(name, FAMILIES[name])
    kind = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    model = kind.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():  # states of ordinary size, or the epsilon would be most of their variance
        model.get_input_embeddings().weight.normal_(0, 2)
    arrays = run(model, torch.Generator().manual_seed(seed))
    save_needed(model, root / name, sharded=name in SHARDED)
    versions = {
        "python": sys.version.split()[0], "numpy": np.__version__, "torch": torch.__version__,
        "transformers": transformers.__version__, "safetensors": safetensors.__version__,
    }  # fmt: skip
    about = {"made_by": "scripts/golden/families_transformers.py", "seed": seed, "versions": versions}
    about["defaults"] = defaults(config)
    save_file(arrays, root / f"{name}.safetensors", {"about": json.dumps(about)})  # one key: their order is not kept


def main() -> None:
    """Make all families, or those named, in tests/golden/families."""
    names = sys.argv[1:] or list(FAMILIES)
    root = FOLDER / "families"
    root.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name in names:
        shutil.rmtree(root / name, ignore_errors=True)
        make(name, root)
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    print(f"tests/golden/families: {len(names)} families made, {size} bytes in all")


if __name__ == "__main__":
    main()
