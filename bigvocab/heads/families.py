"""What the families of language models differ in between their last block and their logits, as data.

Logits = softcap(scale * (norm(states) . head + biases)). Each entry says where the tensors are, which norm it is and
which keys of config.json hold its numbers; defaults are those of transformers' own configuration classes. Names of
tensors stand without the prefix of the body (`model.`, `transformer.`, ...), which moves between versions and wrappers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

STREAMS = "its last block gives several residual streams, which are merged before the norm"

HEADS = ("lm_head.weight", "embed_out.weight", "output.weight", "head.weight")
EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "embed_in.weight",
    "embeddings.weight",
    "tok_embeddings.weight",
    "embed.weight",
)
NORMS = (
    "norm.weight",
    "final_layernorm.weight",
    "final_layer_norm.weight",
    "ln_f.weight",
    "norm_f.weight",
    "final_norm.weight",
)


@dataclass(frozen=True)
class Family:
    """The head and final norm of models that share their `model_type`.

    `norm_kind` is rms, layer or none; with `norms` empty the norm has no weights. The norm multiplies by norm_offset +
    weight. `scale_rule` says what `scale_key` does to logits: multiply, divide, or width (over hidden_size).
    `refuse_key` is a key of config.json whose presence with a true value means `refusal`; without it, all are refused.
    """

    types: tuple[str, ...]
    heads: tuple[str, ...] = ("lm_head.weight",)
    embeddings: tuple[str, ...] = ("embed_tokens.weight",)
    tied: bool = False
    norms: tuple[str, ...] = ("norm.weight",)
    norm_kind: str = "rms"
    norm_has_biases: bool = False
    norm_offset: int = 0
    norm_key: str | None = None  # a switch: false means that there is no final norm
    rms_key: str | None = None  # an epsilon that makes the norm rms where it is not null
    epsilon_key: str | None = "rms_norm_eps"
    epsilon: float = 1e-6
    scale_key: str | None = None
    scale_rule: str = "multiply"
    scale: float = 1.0
    softcap_key: str | None = None
    softcap: float | None = None
    width_key: str | None = None  # where the head is narrower than the body
    classes_key: str | None = None  # classes that count, where config.json says so beside vocab_size
    after_norm_only: str | None = None  # why states from before the norm cannot be taken
    refusal: str | None = None
    refuse_key: str | None = None


def _rms(*types: str, epsilon: float = 1e-6, tied: bool = False) -> Family:
    """The layout of Llama, which most families have."""
    return Family(types, epsilon=epsilon, tied=tied)


def _layer(
    *types: str,
    norm: str = "ln_f.weight",
    embedding: str = "embed_tokens.weight",
    key: str | None = "layer_norm_epsilon",
    tied: bool = False,
    epsilon: float = 1e-5,
) -> Family:
    """A layer norm with weights and biases, and a head that is a plain layer."""
    return Family(
        types,
        embeddings=(embedding,),
        tied=tied,
        norms=(norm,),
        norm_kind="layer",
        norm_has_biases=True,
        epsilon_key=key,
        epsilon=epsilon,
    )


FAMILIES = (
    _rms("llama", "exaone4_5_text", "aquila", "internlm", "yi"),
    _rms("llama4", "llama4_text", "afmoe", "apertus", "apertus1p5_text", "arcee", "cwm", "diffllama", epsilon=1e-5),
    _rms("mistral", "ministral"),
    _rms("mixtral", "ministral3", "mistral3", "exaone4", "internlm3", epsilon=1e-5),
    _rms("iquestcoder", "exaone_moe", "mimo_v2_flash", "longcat_flash", "bitnet", epsilon=1e-5),
    _rms("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text"),
    _rms("qwen3_vl", "qwen3_vl_text", "qwen3_vl_moe", "qwen3_vl_moe_text"),
    _rms("seed_oss", "minimax_m2", "laguna", "mellum"),
    Family(("qwen",), epsilon_key="layer_norm_epsilon", norms=("ln_f.weight",), embeddings=("wte.weight",)),
    Family(("qwen3_next",), norm_offset=1),
    Family(("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"), norm_offset=1),
    Family(("gemma",), tied=True, norm_offset=1),
    Family(("gemma2", "vaultgemma"), tied=True, norm_offset=1, softcap_key="final_logit_softcapping", softcap=30.0),
    Family(("gemma3", "gemma3_text"), tied=True, norm_offset=1, softcap_key="final_logit_softcapping"),
    Family(
        ("gemma3n", "gemma3n_text"),
        tied=True,
        softcap_key="final_logit_softcapping",
        softcap=30.0,
        after_norm_only=STREAMS,
    ),
    Family(
        ("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"),
        tied=True,
        softcap_key="final_logit_softcapping",
    ),
    Family(
        ("recurrent_gemma",),
        tied=True,
        norms=("final_norm.weight",),
        norm_offset=1,
        softcap_key="logits_soft_cap",
        softcap=30.0,
    ),
    _layer("phi", norm="final_layernorm.weight", key="layer_norm_eps"),
    _rms("phi3", "phi4mm", "phi4_multimodal", epsilon=1e-5),
    Family(
        ("phi3small",),
        tied=True,
        norms=("final_layernorm.weight",),
        norm_kind="layer",
        norm_has_biases=True,
        epsilon_key="layer_norm_epsilon",
        epsilon=1e-5,
        scale_key="mup_width_multiplier",
        scale_rule="divide",
        scale=8.0,
        refuse_key="dummy_token_indices",
        refusal="the logits of some classes (dummy_token_indices) are masked",
    ),
    _layer("phimoe", norm="norm.weight", key="rms_norm_eps"),
    _layer("gpt2", "gpt-sw3", "gpt_bigcode", "gpt_neo", embedding="wte.weight", tied=True),
    _layer("gptj", "codegen", embedding="wte.weight"),
    Family(
        ("gpt_neox",),
        heads=("embed_out.weight", "lm_head.weight"),
        embeddings=("embed_in.weight",),
        norms=("final_layer_norm.weight",),
        norm_kind="layer",
        norm_has_biases=True,
        epsilon_key="layer_norm_eps",
        epsilon=1e-5,
    ),
    Family(
        ("opt",),
        tied=True,
        norms=("final_layer_norm.weight",),
        norm_kind="layer",
        norm_has_biases=True,
        norm_key="do_layer_norm_before",
        epsilon_key=None,
        epsilon=1e-5,
        width_key="word_embed_proj_dim",
    ),
    Family(
        ("xglm", "biogpt"),
        heads=("lm_head.weight", "output_projection.weight"),
        tied=True,
        norms=("layer_norm.weight",),
        norm_kind="layer",
        norm_has_biases=True,
        epsilon_key=None,
        epsilon=1e-5,
    ),
    _layer("bloom", "falcon", embedding="word_embeddings.weight", tied=True),
    Family(
        ("falcon_h1",),
        norms=("final_layernorm.weight",),
        epsilon=1e-5,
        scale_key="lm_head_multiplier",
    ),
    Family(("bamba",), norms=("final_layernorm.weight",), epsilon=1e-5),
    Family(("jamba",), norms=("final_layernorm.weight",)),
    Family(
        ("mpt",),
        embeddings=("wte.weight",),
        tied=True,
        norms=("norm_f.weight",),
        norm_kind="layer",
        epsilon_key="layer_norm_epsilon",
        epsilon=1e-5,
    ),
    Family(
        ("dbrx",),
        embeddings=("wte.weight",),
        norms=("norm_f.weight",),
        norm_kind="layer",
        epsilon_key=None,
        epsilon=1e-5,
    ),
    Family(
        ("cohere", "cohere2"),
        tied=True,
        norm_kind="layer",
        epsilon_key="layer_norm_eps",
        epsilon=1e-5,
        scale_key="logit_scale",
        scale=0.0625,
    ),
    Family(
        ("cohere2_moe",),
        tied=True,
        norm_kind="layer",
        rms_key="rms_norm_eps",
        epsilon_key="layer_norm_eps",
        epsilon=1e-5,
        scale_key="logit_scale",
        scale=0.0625,
    ),
    Family(("olmo",), norms=(), norm_kind="layer", epsilon_key=None, epsilon=1e-5),
    _rms("olmo2", "olmo3", "olmoe", epsilon=1e-5),
    _rms("flex_olmo", "olmo_hybrid"),
    Family(("granite", "granitemoe", "granitemoehybrid"), scale_key="logits_scaling", scale_rule="divide"),
    Family(("granitemoeshared", "granitemoe_swa"), scale_key="logits_scaling", scale_rule="divide"),
    Family(("granite_swa",), tied=True, epsilon=1e-5, scale_key="logits_scaling", scale_rule="divide"),
    Family(("hyperclovax",), scale_key="logits_scaling"),
    _rms("deepseek_v2", "deepseek_v3", "deepseek_v32", "kimi_k2", "axk1", "axk2", "dots1", "sarvam_mla", "sarvam_moe"),
    Family(
        ("deepseek_v4",),
        heads=("head.weight", "lm_head.weight"),
        embeddings=("embed_tokens.weight", "embed.weight"),
        after_norm_only=STREAMS,
    ),
    _rms("glm", "glm4", epsilon=1.5625e-07),
    _rms("glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "solar_open", "kimi_linear", "hy_v3", epsilon=1e-5),
    Family(
        ("chatglm",),
        heads=("output_layer.weight",),
        embeddings=("embedding.word_embeddings.weight",),
        norms=("encoder.final_layernorm.weight",),
        epsilon_key="layernorm_epsilon",
        epsilon=1e-5,
    ),
    Family(("minicpm",), epsilon=1e-6, scale_key="dim_model_base", scale_rule="width"),
    Family(("minicpm3",), tied=True, epsilon=1e-5, scale_key="dim_model_base", scale_rule="width"),
    _layer("starcoder2", norm="norm.weight", key="norm_epsilon", tied=True),
    _layer("stablelm", "jais2", norm="norm.weight", key="layer_norm_eps"),
    _layer("persimmon", "fuyu", norm="final_layernorm.weight", key="layer_norm_eps"),
    Family(
        ("mamba", "falcon_mamba"),
        embeddings=("embeddings.weight",),
        tied=True,
        norms=("norm_f.weight",),
        epsilon_key="layer_norm_epsilon",
        epsilon=1e-5,
    ),
    Family(
        ("mamba2", "nemotron_h"),
        embeddings=("embeddings.weight",),
        norms=("norm_f.weight",),
        epsilon_key="layer_norm_epsilon",
        epsilon=1e-5,
    ),
    Family(
        ("rwkv",),
        heads=("head.weight",),
        embeddings=("embeddings.weight",),
        norms=("ln_out.weight",),
        norm_kind="layer",
        norm_has_biases=True,
        epsilon_key=None,
        epsilon=1e-5,
    ),
    Family(
        ("xlstm",),
        embeddings=("embeddings.weight",),
        norms=("out_norm.weight",),
        epsilon_key="norm_eps",
        softcap_key="output_logit_soft_cap",
        softcap=30.0,
    ),
    _rms("gpt_oss", "nemotron-nas", "hunyuan_v1_dense", "hunyuan_v1_moe", "hunyuan", epsilon=1e-5),
    Family(
        ("nemotron",),
        norm_kind="layer",
        norm_has_biases=True,
        norm_offset=1,
        epsilon_key="norm_eps",
        epsilon=1e-5,
    ),
    _rms("smollm3", "youtu", "jetmoe", "lara_mini", tied=True),
    _rms("ernie4_5", "ernie4_5_moe", tied=True, epsilon=1e-5),
    _rms("helium", "moshi", epsilon=1e-8),
    _rms("doge", "flint", "kolibri1"),
    Family(("internlm2",), heads=("output.weight",), embeddings=("tok_embeddings.weight",)),
    Family(
        ("exaone",),
        embeddings=("wte.weight",),
        norms=("ln_f.weight",),
        epsilon_key="layer_norm_epsilon",
        epsilon=1e-5,
    ),
    Family(
        ("lfm2", "lfm2_moe", "lfm3"),
        tied=True,
        norms=("embedding_norm.weight",),
        epsilon_key="norm_eps",
        epsilon=1e-5,
    ),
    Family(
        ("bailing_moe", "bailing_hybrid"),
        embeddings=("word_embeddings.weight",),
        refuse_key="norm_head",
        refusal="its head is normalised before every use (norm_head)",
    ),
    Family(("baichuan", "baichuan_m1"), refusal="its head is normalised before every use"),
    Family(("dory",), refusal="each class has a logit scale of its own"),
    Family(("minimax_m3", "minimax_m3_vl", "minimax_m3_vl_text"), norm_offset=1),
    Family(("minimax",), epsilon=1e-5),
    Family(("nanochat",), norms=(), softcap_key="final_logit_softcapping", softcap=15.0),
    Family(("beam",), softcap_key="final_logit_softcapping", softcap=30.0),
    Family(
        ("inkling", "inkling_text"),
        heads=("lm_head.weight", "unembed.weight"),
        scale_key="logits_mup_width_multiplier",
        scale_rule="divide",
        scale=24.0,
        classes_key="unpadded_vocab_size",
    ),
    Family(("hy_v4",), epsilon=1e-5, after_norm_only=STREAMS),
    _layer("ctrl", norm="layernorm.weight", embedding="w.weight", tied=True, epsilon=1e-6),
    Family(
        ("openai-gpt",),
        embeddings=("tokens_embed.weight",),
        tied=True,
        norms=(),
        norm_kind="none",
        epsilon_key=None,
        epsilon=0.0,
    ),
)

# A transform lies between states and classes, or the states are scaled in ways of their own.
ENCODERS = frozenset(
    (
        "albert bert big_bird camembert convbert data2vec-text deberta deberta-v2 distilbert electra ernie esm "
        "flaubert fnet funnel ibert layoutlm longformer luke mega megatron-bert mobilebert modernbert "
        "modernbert-decoder mpnet mra nezha nystromformer qdqbert rembert roberta roberta-prelayernorm roc_bert "
        "roformer squeezebert tapas xlm xlm-roberta xlm-roberta-xl xmod yoso"
    ).split()
)
ENCODER_DECODERS = frozenset(
    "bart bigbird_pegasus blenderbot blenderbot-small fsmt led longt5 m2m_100 marian mbart mt5 mvp nllb-moe pegasus "
    "pegasus_x plbart prophetnet switch_transformers t5 t5gemma t5gemma2 trocr udop umt5 whisper".split()
)


def _by_type() -> dict[str, Family]:
    found: dict[str, Family] = {}
    for family in FAMILIES:
        for name in family.types:
            if name in found:
                raise ValueError(f"two families are called {name}")
            found[name] = family
    return found


BY_TYPE = _by_type()


def find_family(types: Iterable[str]) -> Family | None:
    """The first of some model types that the table knows, `NAME_text` counting as `NAME`; None if it knows none."""
    for name in types:
        family = BY_TYPE.get(name) or BY_TYPE.get(name.removesuffix("_text"))
        if family is not None:
            return family
    return None
