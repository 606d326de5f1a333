"""Make tests/golden/torch_save.pt: tensors of many kinds in one file of torch.save."""

from pathlib import Path

import torch

x = torch.arange(12.0).reshape(4, 3)
tree = {
    "float32": x,
    "bfloat16": x.to(torch.bfloat16),
    "float16": x.to(torch.float16),
    "nested": [{"turned": x.T}, x[1:3]],
    "parameter": torch.nn.Parameter(x),
    "state": torch.nn.Sequential(torch.nn.Linear(3, 2)).state_dict(),
    "labels": torch.tensor([3, 1, 2, 0]),
    "sparse": x.to_sparse(),
    "float8": x.to(torch.float8_e4m3fn),
    "cut": x[:, :2],
    "epoch": 3,
    "note": "text",
}
with torch.no_grad():
    tree["state"]["0.weight"].fill_(1)
    tree["state"]["0.bias"].fill_(1)
torch.save(tree, Path(__file__).parents[2] / "tests/golden/torch_save.pt")
