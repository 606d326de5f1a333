"""Python programs in processes of their own: how one is run, and two short ones."""

import os
import subprocess
import sys

import numpy as np

import bigvocab as bv

LOSS = """
import numpy as np, bigvocab as bv
x = np.random.default_rng(0).standard_normal((3, 5000), dtype=np.float32)
print(bv.sparse_softmax_cross_entropy(x, [1, 2, 3]).tobytes().hex())
"""


DRAW = """
import bigvocab as bv
print(bv.UniformSampler(1000).sample([[0]], 5, unique=False, seed=1).sampled_candidates.tolist())
"""  # kernels that are compiled in a third of a second
DRAWN = str(bv.UniformSampler(1000).sample([[0]], 5, unique=False, seed=1).sampled_candidates.tolist())


def expected():
    x = np.random.default_rng(0).standard_normal((3, 5000), dtype=np.float32)
    return bv.sparse_softmax_cross_entropy(x, [1, 2, 3]).tobytes().hex()


def run(code=LOSS, **changes):
    environment = {name: value for name, value in (os.environ | changes).items() if value is not None}
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()
