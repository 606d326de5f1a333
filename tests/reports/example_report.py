"""Reports with every block that a page can show: made up, but of plausible numbers, and the same each time."""

import math
import random

NOTE = {
    "code": "ties",
    "text": "151 of 269 rows are tied at their label; accuracy and ranks count ties for the model. See accuracy_ties.",
}
BOOKS = (
    "Ecclesiastes Philippians Jonah Ruth Joel Malachi Titus Genesis Exodus Leviticus Numbers Deuteronomy Joshua Judges"
)


def results(rows, mean, stderr, accuracy=None, **more):
    block = {"rows": rows, "weight": float(rows), "mean": mean, "stderr": stderr, "perplexity": math.exp(mean)}
    return block | ({} if accuracy is None else {"accuracy": accuracy}) | more


def groups(names, seed=1):
    rng = random.Random(seed)
    return {name: results(rng.randint(60, 400), rng.gauss(3.4, 0.5), rng.uniform(0.1, 0.35)) for name in names}


def bins(spans, seed, start, step):
    rng = random.Random(seed)
    for i, (low, high) in enumerate(spans):
        mean = start + i * step + rng.gauss(0, 0.12)
        yield {"from": low, "to": high} | results(
            rng.randint(9, 90), mean, rng.uniform(0.1, 0.4), rng.uniform(0.2, 0.6)
        )


def ranking(size):
    names = ("recall", "precision", "ndcg", "map", "hit_rate", "mrr", "psp")
    return {name: {"10": size * (1 + i / 7), "100": size * (1.5 + i / 9)} for i, name in enumerate(names)}


def ranked(block, i):
    """What clusters and rankings add to a group or a bin."""
    found = {name: {k: x * (1 + i / 97) for k, x in values.items()} for name, values in ranking(0.2).items()}
    return block | {"cluster_stderr": 0.1234 + i / 1009, "ranking": found}


def evaluation():
    """An evaluation with every block of an evaluation."""
    rng = random.Random(7)
    losses = [rng.lognormvariate(0.8, 0.9) for _ in range(4000)]
    edges = [i / 4 for i in range(129)]
    counts = [sum(low <= x < high for x in losses) for low, high in zip(edges, edges[1:], strict=False)]
    calibration = []
    for i in range(15):
        middle = (i + rng.random()) / 15
        live = {"confidence": middle, "accuracy": middle**1.35} if i != 13 else {}
        calibration.append({"from": i / 15, "to": (i + 1) / 15, "rows": 0 if i == 13 else 900 // (i + 2), **live})
    ranks = [1457, 301, 402, 377, 300, 241, 207, 189, 160, 121, 98, 77, 41, 29]
    decades = [(0, 1), (1, 10), (10, 100), (100, 1000), (1000, 10000), (10000, None)]
    octaves = [(0, 1), (1, 2), *((2**i, 2 ** (i + 1)) for i in range(1, 10))]
    names = [*BOOKS.split(), *(f"Psalm {i}" for i in range(1, 60))]
    return {
        "schema_version": 1,
        "loss": "sparse-softmax",
        "mean": 3.419546069539158,
        "sum": 13678.184278156632,
        "weight": 4000.0,
        "stderr": 0.04334887192881438,
        "cluster_stderr": 0.10245531,
        "clusters": {"count": 73},
        "nll": {"mean": 3.2117, "stderr": 0.0417, "cluster_stderr": 0.0989},
        "perplexity": 24.8213,
        "perplexity_stderr": 1.0363,
        "perplexity_cluster_stderr": 2.4558,
        "bits_per_token": 4.633508,
        "rows": 4000,
        "ignored_rows": 12,
        "nonfinite_rows": 1,
        "reductions": {"sum": 13678.184278156632, "mean": 3.419546069539158},
        "accuracy": {"1": 0.36425, "5": 0.5985130111524164, "100": 0.8712},
        "accuracy_ties": {"1": [0.31475, 0.36425], "5": [0.5921, 0.5985130111524164], "100": [0.8701, 0.8712]},
        "mean_rank": 123.44981412639405,
        "mrr": 0.4684790829039267,
        "tied_rows": 413,
        "entropy": 3.5120,
        "ranking": ranking(0.3) | {"stderr": ranking(0.004), "cluster_stderr": ranking(0.0091)},
        "logsumexp": {"mean": 11.178517556818433, "min": 8.393314447878303, "max": 20.75081270489127},
        "bytes": 17011,
        "rows_without_bytes": 73,
        "bits_per_byte": 1.1420606025211417,
        "label_mass": {"mean": 0.9871, "min": 0.6112},
        "loss_histogram": {"edges": [*edges, None], "counts": [*counts, 4000 - sum(counts)]},
        "rank_histogram": {"edges": [2**i for i in range(14)], "counts": ranks},
        "calibration": {"bins": calibration, "ece": 0.0612345, "brier": 0.6712345},
        "by_frequency": [ranked(item, i) for i, item in enumerate(bins(decades, 3, 7.9, -1.2))],
        "by_position": list(bins(octaves, 4, 4.6, -0.16)),
        "macro": {"groups": len(names), "mean": 3.3877, "perplexity_of_mean": 29.5979, "mean_perplexity": 34.1171},
        "groups": {name: ranked(group, i) for i, (name, group) in enumerate(groups(names).items())},
        "sampled": {
            "sampler": "log-uniform",
            "num_sampled": 512,
            "seed": [1, 7],
            "mean": 3.1021,
            "exact_mean": 3.419546069539158,
            "bias": -0.317446,
            "bias_stderr": 0.021,
            "exact_ranking": ranking(0.31) | {"stderr": ranking(0.0041)},
            "ranking_bias": ranking(-0.1) | {"stderr": ranking(0.0013)},
        },
        "worst": [
            {
                "row": 3917 - 131 * i,
                "loss": None if i == 0 else 19.7312 - 0.41 * i,
                "label": 11021 - 57 * i,
                "predicted": i,
                "group": names[i % 14],
                "text": "and it came to pass in the days when the judges ruled, that there was a famine"[: 78 - 3 * i],
            }
            for i in range(20)
        ],
        "notes": [
            NOTE,
            {"code": "bytes", "text": "73 rows have 0 bytes but a loss: bits per byte counts their bits alone."},
        ],
        "infinite": {"worst.0.loss": "inf"},
        "inputs": [
            {"path": "data/kjv/logits.npy", "shape": [4013, 12966], "dtype": "float16", "bytes": 104065152},
            {"path": "data/kjv/labels.parquet", "shape": [4013], "dtype": "int32", "bytes": 21670},
        ],
        "options": {"loss": "sparse-softmax", "label_smoothing": 0.05, "top_k": [1, 5, 100], "group_column": "book"},
        "model": {"path": "models/kjv", "type": "llama", "norm": "rms", "norm_epsilon": 1e-05, "softcap": None},
        "seconds": 0.2439644,
        "rows_per_second": 16396.2,
        "bytes_per_second": 426645230.1,
        "versions": {"bigvocab": "0.2.0", "numba": "0.68.1", "numpy": "2.4.6", "pyarrow": "26.0.1"},
    }


def candidate(size, seed):
    """What a comparison says of one candidate whose divergence is about `size`."""
    rng = random.Random(seed)
    kl = [size * math.exp(rng.gauss(-1.1, 1.4)) for _ in range(4000)]
    changes = [rng.gauss(-size / 4, math.sqrt(size) / 5) for _ in range(4000)]
    sure = [(0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 0.95), (0.95, 1.0)]
    spread = [size * f * rng.uniform(0.8, 1.2) for f in (1.9, 1.5, 0.9, 0.4, 0.06)]
    names = BOOKS.split()
    return {
        "candidate": {
            "mean": 3.2 + size,
            "stderr": 0.043,
            "perplexity": math.exp(3.2 + size),
            "accuracy": {"1": 0.361},
        },
        "difference": {
            "mean": size * 0.9,
            "stderr": size / 11,
            "cluster_stderr": size / 8,
            "perplexity_ratio": math.exp(size * 0.9),
            "perplexity_ratio_stderr": math.exp(size * 0.9) * size / 11,
            "perplexity": 24.5 * math.expm1(size * 0.9),
            "perplexity_stderr": 2.4 * size,
            "correlation": 1 - size / 3,
        },
        "kl": percentiles(kl) | {"cluster_stderr": size / 9, "infinite_rows": 0},
        "kl_reverse": percentiles([x * 1.04 for x in kl]),
        "js": percentiles([x / 8 for x in kl]),
        "tv": percentiles([min(1.0, math.sqrt(x / 2)) for x in kl]),
        "delta_p": percentiles(changes) | {"rms": 0.2 * math.sqrt(size), "rms_stderr": 0.003},
        "same_top": {"share": 1 - math.sqrt(size) / 3, "stderr": 0.0041, "cluster_stderr": 0.0067, "tied_rows": 4},
        "top_in_candidate": {"1": 1 - math.sqrt(size) / 3, "5": 0.997, "10": 0.9991},
        "top_in_reference": {"1": 1 - math.sqrt(size) / 3, "5": 0.9965, "10": 0.9989},
        "flips": {
            "share": size / 2,
            "to_wrong": round(size * 2900),
            "to_right": round(size * 2100),
            "mcnemar_p": 0.0312,
        },
        "by_confidence": [
            {"from": a, "to": b, "rows": rng.randint(300, 1200), "kl_mean": x, "kl_median": x / 2.7}
            for (a, b), x in zip(sure, spread, strict=True)
        ],
        "groups": {
            name: {
                "rows": rng.randint(60, 400),
                "kl": size * rng.uniform(0.6, 1.7),
                "kl_stderr": size / 7,
                "difference": size * rng.uniform(0.2, 1.5),
                "difference_stderr": size / 5,
                "same_top": 0.93,
            }
            for name in names
        },
        "worst": [
            {
                "row": 100 + 7 * i,
                "kl": size * (60 - 2 * i),
                "label": 991 + i,
                "loss_reference": 1.1,
                "loss_candidate": 7.7 - i / 9,
                "predicted_reference": 5,
                "predicted_candidate": 17 + i,
                "group": names[i % 14],
            }
            for i in range(20)
        ],
    }


def percentiles(values):
    values = sorted(values)
    mean = sum(values) / len(values)
    error = math.sqrt(sum((x - mean) ** 2 for x in values)) / len(values)
    places = (99.9, 99, 95, 90, 75, 50, 25, 10, 5, 1, 0.1)
    found = {str(p): values[round(p / 100 * (len(values) - 1))] for p in places}
    return {"mean": mean, "stderr": error, "max": values[-1], "min": values[0], "percentiles": found}


def comparison(names=("Q8_0", "Q6_K", "Q4_K_M", "floor")):
    """A comparison of several candidates; of one, its values stand at the top."""
    report = {
        "schema_version": 1,
        "rows": 4000,
        "ignored_rows": 0,
        "clusters": {"count": 16},
        "reference": {"mean": 3.2, "stderr": 0.043, "perplexity": math.exp(3.2), "perplexity_stderr": 1.05},
        "notes": [],
        "inputs": [{"path": "f16.kld", "shape": [4000, 128256], "dtype": "uint16", "bytes": 1026080020}],
        "seconds": 3.2,
        "versions": {"bigvocab": "0.2.0"},
    }
    sides = {name: candidate(0.4 / 6**i + 1e-4, i) for i, name in enumerate(reversed(names))}
    if len(sides) == 1:
        return report | next(iter(sides.values()))
    between = [
        {
            "a": a,
            "b": b,
            "kl_difference": {"mean": 0.0123 * i - 0.02, "stderr": 0.0031, "cluster_stderr": 0.0044},
            "loss_difference": {"mean": 0.0321 * i - 0.04, "stderr": 0.0052, "cluster_stderr": 0.0071},
            "lower_share": 0.5 + 0.375 * math.cos(i),
        }
        for i, (a, b) in enumerate((a, b) for a in names for b in names if a < b)
    ]
    return report | {"candidates": sides, "between": between}
