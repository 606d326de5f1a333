"""The side of PyTorch."""

from functools import partial

import torch
import torch.nn.functional as F
import worker

torch.set_grad_enabled(False)
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


def softmax(dtype):
    x, y = torch.from_numpy(worker.logits()).to(dtype), torch.from_numpy(worker.labels())
    return lambda: F.cross_entropy(x, y, reduction="none")


def by_products(dtype):
    """Loss, rank, argmax and entropy, as one writes them with PyTorch."""
    x, y = torch.from_numpy(worker.logits()).to(dtype), torch.from_numpy(worker.labels())

    def run():
        logp = F.log_softmax(x, 1)
        at = x.gather(1, y[:, None])
        return logp.gather(1, y[:, None]), (x > at).sum(1), x.argmax(1), -(logp.exp() * logp).sum(1)

    return run


def compared(dtype, shape=worker.PAIR):
    """KL of two models from two log_softmax, as one writes it with PyTorch; no labels, no tops."""
    x = worker.logits(shape)
    y = torch.from_numpy(x + worker.logits(shape, 6) * 0.03).to(dtype)
    x = torch.from_numpy(x).to(dtype)
    return lambda: F.kl_div(F.log_softmax(y, 1), F.log_softmax(x, 1), reduction="none", log_target=True).sum(1)


def compared_heads():
    inputs, layer, _ = (torch.from_numpy(array) for array in worker.head())
    other = layer + 0.001

    def run():
        x, y = F.log_softmax(inputs @ layer.T, 1), F.log_softmax(inputs @ other.T, 1)
        return F.kl_div(y, x, reduction="none", log_target=True).sum(1)

    return run


def soft_labels():
    x, z = torch.from_numpy(worker.logits(worker.SOFT)), torch.from_numpy(worker.probabilities())
    return lambda: F.cross_entropy(x, z, reduction="none")


def sigmoid_sum():
    x = torch.from_numpy(worker.logits())
    z = torch.zeros(worker.SHAPE).scatter_(1, torch.from_numpy(worker.labels())[:, None], 1.0)
    return lambda: F.binary_cross_entropy_with_logits(x, z, reduction="none").sum(1)


def sigmoid():
    shape = (32, worker.SHAPE[1])
    x, z = torch.from_numpy(worker.logits(shape)), (torch.from_numpy(worker.probabilities(shape)) > 1e-6).float()
    return lambda: F.binary_cross_entropy_with_logits(x, z, reduction="none")


def head(dtype):
    inputs, layer, y = (torch.from_numpy(array) for array in worker.head())
    inputs, layer = inputs.to(dtype), layer.to(dtype)
    return lambda: F.cross_entropy(inputs @ layer.T, y, reduction="none")


CASES = {
    "softmax f32": lambda: softmax(F32),
    "softmax bf16": lambda: softmax(BF16),
    "softmax f16": lambda: softmax(F16),
    "by-products f32": lambda: by_products(F32),
    "by-products bf16": lambda: by_products(BF16),
    "by-products f16": lambda: by_products(F16),
    "compare f32": lambda: compared(F32),
    "compare bf16": lambda: compared(BF16),
    "compare f16": lambda: compared(F16),
    **{f"compare f32 {name}": partial(compared, F32, shape) for name, shape in worker.PAIRS.items()},
    "compare heads": compared_heads,
    "soft labels f32": soft_labels,
    "sigmoid sum f32": sigmoid_sum,
    "sigmoid f32": sigmoid,
    "head f32": lambda: head(F32),
    "head bf16": lambda: head(BF16),
}

if __name__ == "__main__":
    worker.serve(CASES)
