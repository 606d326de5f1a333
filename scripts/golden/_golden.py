"""What the golden scripts share: seeded inputs, and a writer of cases that speak in this project's argument names.

Needs NumPy only, because it runs in the environments of the peers. The file's layout is told in tests/golden_files.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "golden"
SEED = 20260117


def grid(rng: np.random.Generator, shape: tuple[int, ...], scale: float, step: float = 1 / 16) -> np.ndarray:
    """Normal values on a grid of at most 8 significant bits: bfloat16 and float16 hold them exactly, as decimals do."""
    return np.clip(np.round(rng.normal(0, scale, shape) / step), -255, 255) * step + 0.0  # + 0.0: no -0.0


def distributions(rng: np.random.Generator, rows: int, classes: int) -> np.ndarray:
    """Soft labels whose rows sum to exactly 1, in steps of 1/256."""
    return rng.multinomial(256, rng.dirichlet(np.full(classes, 0.3), rows)) / 256


class Golden:
    """Collects cases and their arrays, and writes them to tests/golden/NAME.json."""

    def __init__(self, name: str, **versions: str) -> None:
        self.name = name
        self.versions = {"python": sys.version.split()[0], "numpy": np.__version__, **versions}
        self.arrays: dict[str, str] = {}
        self.keys: dict[tuple, str] = {}
        self.cases: dict[str, dict] = {}

    def _array(self, hint: str, array: np.ndarray) -> str:
        identity = (array.dtype.str, array.shape, array.tobytes())
        if identity not in self.keys:
            number = sum(key.rpartition("_")[0] == hint for key in self.arrays)
            self.keys[identity] = f"{hint}_{number}"
            values = {"dtype": array.dtype.name, "shape": array.shape, "values": array.ravel().tolist()}
            self.arrays[self.keys[identity]] = json.dumps(values)
        return self.keys[identity]

    def _encode(self, hint: str, value: object) -> object:
        if isinstance(value, np.ndarray):
            return {"array": self._array(hint, value)}
        if isinstance(value, (list, tuple)):
            return {type(value).__name__: [self._encode(hint, part) for part in value]}
        return value

    def case(
        self,
        name: str,
        peer: str,
        function: str,
        arguments: dict,
        value: object,
        *,
        tolerance: float = 1e-12,
        ours: object = None,
        why: str | None = None,
    ) -> None:
        """One call of `peer` that gave `value`; where `function` must give `ours` instead, `why` says the reason."""
        if name in self.cases:
            raise ValueError(f"two cases are named {name}")
        case = {"name": name, "peer": peer, "function": function}
        case["arguments"] = {key: self._encode(key, argument) for key, argument in arguments.items()}
        case |= {"value": plain(value), "tolerance": tolerance}
        if why:
            case |= {"ours": plain(ours), "why": why}
        self.cases[name] = case

    def write(self) -> None:
        """Write the file, one array and one case a line."""
        FOLDER.mkdir(parents=True, exist_ok=True)
        path = FOLDER / f"{self.name}.json"
        script = f"scripts/golden/{self.name}.py"
        arrays = ",\n".join(f"{json.dumps(key)}: {text}" for key, text in self.arrays.items())
        cases = ",\n".join(json.dumps(case) for case in self.cases.values())
        head = json.dumps({"made_by": script, "seed": SEED, "versions": self.versions})[:-1]
        path.write_text(f'{head},\n"arrays": {{\n{arrays}\n}},\n"cases": [\n{cases}\n]}}\n')
        print(f"{path.relative_to(FOLDER.parents[1])}: {len(self.cases)} cases, {path.stat().st_size} bytes")


def plain(value: object) -> object:
    """A scalar or array of any peer as JSON numbers; float32 in its shortest decimals."""
    if value is None or isinstance(value, (str, float, int)):
        return value
    array = np.asarray(value)
    if array.dtype == np.float32:
        array = np.array([float(str(x)) for x in array.ravel()]).reshape(array.shape)
    return array.astype(np.float64).tolist()
