"""trec_eval's metrics of rankings without ties, as tests/golden/ranking_trec_eval.json.

usage: PYTHON_WITH_PYTREC_EVAL scripts/golden/ranking_trec_eval.py
"""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import pytrec_eval
from _golden import SEED, Golden

TOP_K = (1, 3, 10, 20)
CUT = {"recall": "recall", "precision": "P", "ndcg": "ndcg_cut", "map": "map_cut", "hit_rate": "success"}

golden = Golden("ranking_trec_eval", pytrec_eval=version("pytrec-eval-terrier"))
rng = np.random.default_rng(SEED)


def run_of(scores: np.ndarray, most: int | None = None) -> dict[str, dict[str, float]]:
    """Documents of each query with their scores, all or the best few."""
    return {f"q{row}": {f"d{c}": float(line[c]) for c in np.argsort(-line)[:most]} for row, line in enumerate(scores)}


def metrics(scores: np.ndarray, labels: list[list[int]]) -> np.ndarray:
    """Each metric of each row at each k, (n, 6, k)."""
    truth = {f"q{row}": {f"d{c}": 1 for c in ids} for row, ids in enumerate(labels)}
    names = {f"{peer}_{k}" for peer in CUT.values() for k in TOP_K}
    wanted = {f"{peer}.{','.join(map(str, TOP_K))}" for peer in CUT.values()}
    found = pytrec_eval.RelevanceEvaluator(truth, wanted).evaluate(run_of(scores))
    assert names <= set(found["q0"])
    out = np.empty((len(scores), len(CUT) + 1, len(TOP_K)))
    for j, k in enumerate(TOP_K):
        first = pytrec_eval.RelevanceEvaluator(truth, {"recip_rank"}).evaluate(run_of(scores, k))
        for row in range(len(scores)):
            out[row, :-1, j] = [found[f"q{row}"][f"{peer}_{k}"] for peer in CUT.values()]
            out[row, -1, j] = first[f"q{row}"]["recip_rank"]
    return out


def case(name: str, rows: int, classes: int, most: int) -> None:
    """Scores that float16 holds and of which no two of a row are equal; from 1 to `most` true classes a row."""
    scores = np.stack([rng.permutation(classes) for _ in range(rows)]) / 8 - 16.0
    labels = [np.sort(rng.choice(classes, rng.integers(1, most + 1), replace=False)).tolist() for _ in range(rows)]
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in labels])])
    arguments = {"logits": scores, "offsets": offsets, "ids": np.concatenate(labels), "top_k": list(TOP_K)}
    golden.case(name, "pytrec_eval", "ranking", arguments, metrics(scores, labels))


if __name__ == "__main__":
    case("one", 12, 60, 1)
    case("several", 12, 60, 12)
    case("more_than_k", 6, 80, 40)
    golden.write()
