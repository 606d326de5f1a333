"""The recipe for transformers, run: hidden states and tokens of a text to files, and from them the model's perplexity.

`write_states` is what bigvocab/heads/README.md shows. The model is tiny and random, and saved as any other, in shards.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

import bigvocab as bv

WORDS = "in the beginning god created heaven and earth was without form void darkness upon face of deep".split()


def write_states(folder, text, output, length=256):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids[0]
    tokens = tokens[: len(tokens) // length * length].view(-1, length)  # (sequences, tokens)
    with torch.inference_mode(), bv.record_inputs(model.get_output_embeddings(), f"{output}/states.npy"):
        for batch in tokens.split(4):
            model(batch)
    np.save(f"{output}/tokens.npy", tokens.numpy())


def main():
    with tempfile.TemporaryDirectory() as folder:
        make_model(folder)
        text = " ".join(np.random.default_rng(0).choice(WORDS, 400))
        write_states(folder, text, folder, length=16)
        # bigvocab eval --inputs states.npy --labels tokens.npy --shift-labels --model FOLDER
        states, tokens = f"{folder}/states.npy", f"{folder}/tokens.npy"
        report = bv.evaluate(inputs=states, labels=tokens, shift_labels=True, model=folder)
        print(report)
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        ids = torch.from_numpy(np.load(tokens))
        with torch.inference_mode():
            expected = float(model(ids, labels=ids).loss)
    print(f"\ntransformers: {expected:.6f}, bigvocab: {report['mean']:.6f}")
    assert abs(report["mean"] - expected) < 1e-5
    assert report["rows"] == tokens_scored(ids)


def tokens_scored(ids):
    return ids.numel() - len(ids)


def make_model(folder):
    """A random Gemma 2 of two layers: its norm multiplies by 1 + weight, and its logits are capped."""
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


if __name__ == "__main__":
    main()
