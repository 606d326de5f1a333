"""The recipes of bigvocab/heads/README.md for transformers and llama.cpp, run as they stand, with tiny models.

`transformers`: a random Gemma 2, saved as any other, in shards. `llama.cpp`: the GGUF file of tests/data/llama. Each
gives the perplexity that the library itself has from full logits.
"""

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

import bigvocab as bv

ROOT = Path(__file__).resolve().parents[1]
GGUF = ROOT / "tests/data/llama/tiny-259/Q8_0.gguf"
WORDS = "in the beginning god created heaven and earth was without form void darkness upon face of deep".split()


def fence_with(line):
    """The code of the README that has a line."""
    text = (ROOT / "bigvocab/heads/README.md").read_text()
    return next(code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if line in code)


def run_transformers():
    import torch
    from transformers import AutoModelForCausalLM

    make_model("Qwen3-0.6B")  # as the recipe calls it
    Path("text.txt").write_text(" ".join(np.random.default_rng(0).choice(WORDS, 2000)))
    names = {}
    exec(fence_with("AutoModelForCausalLM.from_pretrained"), names)
    model, ids = AutoModelForCausalLM.from_pretrained("Qwen3-0.6B").eval(), torch.from_numpy(np.load("tokens.npy"))
    with torch.inference_mode():
        expected = float(model(ids, labels=ids).loss)
    check("transformers", names["report"], expected, 1e-5)


def make_model(folder):
    """A random Gemma 2 of two layers: its norm multiplies by 1 + weight, and its logits are capped."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=len(WORDS) + 2, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config)
    torch.nn.init.normal_(model.model.norm.weight, 0.3, 0.2)
    model.save_pretrained(folder, max_shard_size="20KB")
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)
    assert Path(folder, "model.safetensors.index.json").exists()


def run_llama_cpp():
    from llama_cpp import Llama

    shutil.copy(GGUF, "model.gguf")
    Path("text.txt").write_text((ROOT / "README.md").read_text()[:2000])
    exec(fence_with("LLAMA_POOLING_TYPE_NONE"), {})
    report = bv.evaluate(inputs="states.npy", labels="tokens.npy", model="model.gguf", shift_labels=True)
    tokens = np.load("tokens.npy")
    model = Llama("model.gguf", logits_all=True, n_ctx=tokens.shape[1], n_batch=tokens.shape[1], verbose=False)
    logits = []
    for sequence in tokens.tolist():
        model.reset()
        model.eval(sequence)
        logits.append(model.scores[:-1].copy())
    expected = bv.sparse_softmax_cross_entropy(np.stack(logits), tokens[:, 1:], reduction="mean")
    check("llama.cpp", report, expected, 1e-3)  # which rounds states to the layer's type


def check(name, report, expected, tolerance):
    print(report)
    print(f"\n{name}: {expected:.6f}, bigvocab: {report['mean']:.6f}")
    tokens = np.load("tokens.npy")
    assert report["rows"] == tokens.size - len(tokens)
    assert abs(report["mean"] - expected) < tolerance


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        {"transformers": run_transformers, "llama.cpp": run_llama_cpp}[sys.argv[1]]()
