"""Values of compared rows: against plain formulas, in any split and order of merges, and at the edges."""

import math
import random

import naive
import numpy as np
import pytest

from bigvocab.comparison.between import BetweenTally, ComparisonTally, is_within_error
from bigvocab.comparison.extremes import PERCENTS
from bigvocab.comparison.flips import mcnemar_p
from bigvocab.comparison.moments import Moments, exact_product
from bigvocab.comparison.pairs import Asked
from bigvocab.comparison.statistics import ComparedRows, PairTally
from bigvocab.comparison.tile_pairs import compare_tiles

ROWS, CLASSES = 700, 90
EVERYTHING = Asked(spread=True, tops=True)


def data(seed=0, distance=0.4):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((ROWS, CLASSES)) * 3).astype(np.float32)
    y = (x + distance * rng.standard_normal(x.shape)).astype(np.float32)
    return x, y, rng.integers(0, CLASSES, ROWS)


def rows_of(x, y, labels, start=0, stop=None, *, names=True, labelled=True, asked=EVERYTHING, bad=()):
    """Compared rows `start` to `stop`, in groups of 3 and clusters of 10; rows `bad` are skipped as not finite."""
    stop = len(x) if stop is None else stop
    here = np.arange(start, stop)
    shown = labels if labelled else np.full(len(x), -2)
    found = compare_tiles([(0, x[here])], {"q": [(0, y[here])]}, shown[here], x.shape[1], asked=asked)["q"]
    broken = np.isin(here, bad)
    groups = (here % 3).astype(np.int32), ["a", "b", "c"]
    clusters = (here // 10 - start // 10).astype(np.int32), [str(c) for c in range(start // 10, stop // 10 + 1)]
    return ComparedRows(
        columns=found.columns(labelled=labelled),
        rows=here,
        counted=~broken,
        ignored=np.zeros(len(here), bool),
        nonfinite=np.stack([np.zeros(len(here), bool), broken]),
        labels=labels[here] if labelled else None,
        groups=groups if names else None,
        clusters=clusters if names else None,
    )


def tally_of(*blocks):
    tally = PairTally()
    for block in blocks:
        tally.add(block)
    return tally


def same(a, b):
    """Equal to the bit, NaN equal to NaN."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


def test_every_value_against_its_formula():
    x, y, labels = data()
    block = rows_of(x, y, labels)
    found, columns = tally_of(block).to_dict(), block.columns
    losses = columns["loss_reference"], columns["loss_candidate"]
    d, kl, dp = columns["loss_difference"], columns["kl"], columns["delta_p"]
    for side, loss in zip(("reference", "candidate"), losses, strict=True):
        assert found[side]["mean"] == pytest.approx(loss.mean(), rel=1e-14)
        assert found[side]["stderr"] == pytest.approx(naive.stderr(loss), rel=1e-12)
        assert found[side]["perplexity_stderr"] == pytest.approx(naive.perplexity_stderr(loss), rel=1e-12)
        assert found[side]["accuracy"] == {str(k): np.mean(columns[f"rank_{side}"] <= k) for k in (1, 5)}
    difference = found["difference"]
    assert difference["mean"] == pytest.approx(d.mean(), rel=1e-13)
    assert difference["stderr"] == pytest.approx(naive.stderr(d), rel=1e-12)
    assert difference["perplexity_ratio"] == pytest.approx(math.exp(d.mean()), rel=1e-14)
    assert difference["correlation"] == pytest.approx(np.corrcoef(losses)[0, 1], rel=1e-12)
    p, q = (math.exp(loss.mean()) for loss in losses)
    assert difference["perplexity"] == pytest.approx(q - p, rel=1e-12)
    assert difference["perplexity_stderr"] == pytest.approx(naive.stderr(q * losses[1] - p * losses[0]), rel=1e-10)
    clusters = [str(row // 10) for row in range(ROWS)]
    assert difference["cluster_stderr"] == pytest.approx(naive.cluster_stderr(d, clusters), rel=1e-12)
    assert found["kl"]["cluster_stderr"] == pytest.approx(naive.cluster_stderr(kl, clusters), rel=1e-12)
    top = columns["same_top"]
    assert found["same_top"]["cluster_stderr"] == pytest.approx(naive.cluster_stderr(top, clusters), rel=1e-12)
    for name in ("kl", "kl_reverse", "js", "tv", "delta_p"):
        values = columns[name]
        assert found[name]["mean"] == pytest.approx(values.mean(), rel=1e-12)
        assert found[name]["stderr"] == pytest.approx(naive.stderr(values), rel=1e-12)
        assert (found[name]["min"], found[name]["max"]) == (values.min(), values.max())
        for percent in PERCENTS:
            expected = naive.percentile(values, percent)
            assert found[name]["percentiles"][f"{percent:g}"] == pytest.approx(expected, rel=1e-14)
    assert found["tv"]["acceptance"] == pytest.approx(1 - columns["tv"].mean(), rel=1e-14)
    assert found["delta_p"]["rms"] == pytest.approx(math.sqrt((dp**2).mean()), rel=1e-13)
    expected = naive.stderr(dp**2) / (2 * math.sqrt((dp**2).mean()))
    assert found["delta_p"]["rms_stderr"] == pytest.approx(expected, rel=1e-12)
    share = top.mean()
    assert found["same_top"]["share"] == share
    assert found["same_top"]["stderr"] == pytest.approx(math.sqrt(share * (1 - share) / (ROWS - 1)))
    assert found["top_in_candidate"]["5"] == np.mean(columns["top_rank_in_candidate"] <= 5)
    assert found["top_in_reference"]["1"] == share
    before, after = columns["rank_reference"] == 1, columns["rank_candidate"] == 1
    flips = int((before & ~after).sum()), int((~before & after).sum())
    assert (found["flips"]["to_wrong"], found["flips"]["to_right"]) == flips
    assert found["flips"]["mcnemar_p"] == naive.mcnemar_p(*flips)
    for line in found["by_confidence"]:
        inside = kl[(columns["confidence"] >= line["from"]) & (columns["confidence"] < line["to"])]
        assert line["rows"] == len(inside)
        assert line["kl_mean"] == pytest.approx(inside.mean(), rel=1e-12)
        assert line["kl_median"] == pytest.approx(np.median(inside), rel=1e-12)
        of_inside = [clusters[row] for row in np.flatnonzero(np.isin(kl, inside))]
        assert line["kl_cluster_stderr"] == pytest.approx(naive.cluster_stderr(inside, of_inside), rel=1e-12)
    for k, name in enumerate("abc"):
        group = found["groups"][name]
        assert group["kl_stderr"] == pytest.approx(naive.stderr(kl[k::3]), rel=1e-12)
        assert group["difference"] == pytest.approx(d[k::3].mean(), rel=1e-12)
        assert group["same_top"] == top[k::3].mean()
        for name, values in (("kl", kl), ("difference", d), ("same_top", top)):
            expected = naive.cluster_stderr(values[k::3], clusters[k::3])
            assert group[f"{name}_cluster_stderr"] == pytest.approx(expected, rel=1e-12)
    assert found["macro"]["kl"] == pytest.approx(np.mean([kl[k::3].mean() for k in range(3)]), rel=1e-12)
    assert found["clusters"] == {"count": 70}
    order = np.lexsort((np.arange(ROWS), -kl))[:20]
    assert [line["row"] for line in found["worst"]] == order.tolist()
    assert found["worst"][0] == {
        "row": order[0],
        "kl": kl[order[0]],
        "label": labels[order[0]],
        **{name: columns[name][order[0]] for name in ("loss_reference", "loss_candidate")},
        **{name: columns[name][order[0]] for name in ("predicted_reference", "predicted_candidate")},
    }


def test_any_split_and_order_gives_the_same_bits():
    x, y, labels = data()
    y[30, 4] = y[33, 4] = -np.inf
    whole = tally_of(rows_of(x, y, labels, bad=[3, 99])).to_dict()
    for seed in range(4):
        rng = random.Random(seed)
        cuts = [0, *sorted(rng.sample(range(1, ROWS), 6)), ROWS]
        parts = [
            tally_of(rows_of(x, y, labels, start, stop, bad=[3, 99]))
            for start, stop in zip(cuts[:-1], cuts[1:], strict=True)
        ]
        parts = [PairTally.from_state(part.state()) if rng.random() < 0.5 else part for part in parts]
        rng.shuffle(parts)
        while len(parts) > 1:
            taken = parts.pop(rng.randrange(len(parts)))
            parts[rng.randrange(len(parts))].merge(taken)
        assert same(parts[0].to_dict(), whole)
    assert whole["rows"] == ROWS - 2
    assert whole["nonfinite_rows"] == {"reference": 0, "candidate": 2}


def test_identical_sides():
    """llama.cpp prints a KL below 0 and errors that are not a number."""
    x, _, labels = data()
    found = tally_of(rows_of(x, x.copy(), labels)).to_dict()
    for name in ("kl", "kl_reverse", "js", "tv", "delta_p"):
        assert (found[name]["mean"], found[name]["stderr"], found[name]["max"]) == (0, 0, 0)
    assert found["difference"] == {
        "mean": 0,
        "stderr": 0,
        "cluster_stderr": 0,
        "perplexity_ratio": 1,
        "perplexity_ratio_stderr": 0,
        "perplexity": 0,
        "perplexity_stderr": 0,
        "correlation": 1,
    }
    assert (found["delta_p"]["rms"], found["delta_p"]["rms_stderr"]) == (0, 0)
    assert (found["same_top"]["share"], found["same_top"]["stderr"]) == (1, 0)
    assert found["flips"] == {"share": 0, "to_wrong": 0, "to_right": 0, "mcnemar_p": 1}
    assert is_within_error(found["difference"]["mean"], found["difference"]["stderr"])


def test_a_changed_file_is_not_0():
    """Always 0 because of padding (heretic#75)."""
    x, _, labels = data()
    y = x.copy()
    y[5, 7] += 1e-3
    found = tally_of(rows_of(x, y, labels)).to_dict()
    assert found["kl"]["max"] > 0
    assert found["worst"][0]["row"] == 5


def test_infinite_rows():
    """Infinite log ratios turned into 0 (pytorch/rl#4255)."""
    x, y, labels = data()
    for row in (4, 10):
        y[row, (labels[row] + 1) % CLASSES] = -np.inf
    x[20, (labels[20] + 1) % CLASSES] = -np.inf
    block = rows_of(x, y, labels)
    found = tally_of(block).to_dict()
    kl = block.columns["kl"]
    assert found["kl"]["infinite_rows"] == 2
    assert found["kl_reverse"]["infinite_rows"] == 1
    assert found["kl"]["mean"] == found["kl"]["max"] == math.inf
    assert math.isnan(found["kl"]["stderr"])
    assert found["kl"]["finite_mean"] == pytest.approx(kl[np.isfinite(kl)].mean(), rel=1e-12)
    assert found["kl"]["percentiles"]["99.9"] == math.inf
    assert found["kl"]["percentiles"]["50"] == pytest.approx(naive.percentile(kl, 50))
    assert math.isfinite(found["js"]["mean"] + found["difference"]["mean"])
    assert found["groups"]["b"]["kl"] == math.inf
    assert [line["row"] for line in found["worst"]][:2] == [4, 10]


def test_one_row_has_no_errors_and_none_has_no_values():
    x, y, labels = data()
    one = tally_of(rows_of(x, y, labels, 0, 1)).to_dict()
    assert one["kl"]["mean"] == one["kl"]["max"] == one["kl"]["percentiles"]["0.1"] > 0
    for value in (one["kl"]["stderr"], one["difference"]["stderr"], one["same_top"]["stderr"]):
        assert math.isnan(value)
    assert math.isnan(one["difference"]["correlation"])
    none = tally_of(rows_of(x, y, labels, 0, 20, bad=range(20))).to_dict()
    assert none["rows"] == 0
    assert all(math.isnan(none[name]["mean"]) for name in ("kl", "tv", "delta_p", "difference", "reference"))
    assert math.isnan(none["same_top"]["share"])
    assert none["worst"] == []
    assert math.isnan(PairTally().to_dict()["same_top"]["share"])


def test_without_labels():
    x, y, labels = data()
    found = tally_of(rows_of(x, y, labels, labelled=False, asked=Asked())).to_dict()
    assert found.keys().isdisjoint(
        ["reference", "candidate", "difference", "delta_p", "flips", "js", "top_in_candidate"]
    )
    assert found["kl"]["mean"] > 0
    assert found["worst"][0].keys() == {"row", "kl", "predicted_reference", "predicted_candidate"}


def test_between_candidates():
    x, y, labels = data()
    others = {"near": (x + (y - x) / 4).astype(np.float32), "far": y, "floor": x.copy()}
    blocks = {name: rows_of(x, other, labels) for name, other in others.items()}
    tally = ComparisonTally(others)
    tally.add(blocks)
    found = tally.to_dict()
    assert list(found["candidates"]) == ["near", "far", "floor"]
    near_far, near_floor, _ = found["between"]
    assert (near_far["a"], near_far["b"]) == ("near", "far")
    a, b = blocks["near"].columns, blocks["far"].columns
    clusters = [str(row // 10) for row in range(ROWS)]
    for name, column in (("kl_difference", "kl"), ("loss_difference", "loss_candidate")):
        values = a[column] - b[column]
        assert near_far[name]["mean"] == pytest.approx(values.mean(), rel=1e-10)
        assert near_far[name]["stderr"] == pytest.approx(naive.stderr(values), rel=1e-12)
        assert near_far[name]["cluster_stderr"] == pytest.approx(naive.cluster_stderr(values, clusters), rel=1e-12)
    means = (a["kl"] - b["kl"]).reshape(70, 10).mean(axis=1)
    assert near_far["lower_share"] == np.mean(means < 0)
    assert near_floor["lower_share"] == 0
    parts = [ComparisonTally(others) for _ in range(3)]
    for part, (start, stop) in zip(parts, ((0, 200), (200, 210), (210, ROWS)), strict=True):
        part.add({name: rows_of(x, other, labels, start, stop) for name, other in others.items()})
    parts[2].merge(ComparisonTally.from_state(parts[0].state()))
    parts[2].merge(parts[1])
    assert same(parts[2].to_dict(), found)


def test_candidates_that_are_the_same():
    x, y, labels = data()
    tally = ComparisonTally(["a", "b"])
    tally.add({"a": rows_of(x, y, labels), "b": rows_of(x, y, labels)})
    (pair,) = tally.to_dict()["between"]
    assert pair["lower_share"] == 0
    for name in ("kl_difference", "loss_difference"):
        assert pair[name] == {"mean": 0, "stderr": 0, "cluster_stderr": 0}


def test_rows_that_are_kept_although_not_finite():
    """One bad value poisons the mean, and is not silently left out of it."""
    x, y, labels = data()
    x[5, 3] = y[5, 3] = y[8, 0] = np.nan
    block = rows_of(x, y, labels)
    assert np.flatnonzero(np.isnan(block.columns["kl"])).tolist() == [5, 8]
    assert not block.columns["same_top"][5]
    found = tally_of(block).to_dict()
    assert all(math.isnan(found[name]["mean"]) for name in ("kl", "js", "delta_p", "difference"))
    assert math.isnan(found["kl"]["finite_mean"])
    assert {5, 8}.isdisjoint(line["row"] for line in found["worst"])
    assert len(found["worst"]) == 20


def test_which_side_is_not_finite():
    x, y, labels = data()
    x[1], y[2, 5], y[3] = np.nan, np.inf, -np.inf
    x[4, labels[4]] = y[4, labels[4]] = -np.inf  # a label that both have masked
    found = compare_tiles([(0, x)], {"q": [(0, y)]}, labels, CLASSES)["q"].nonfinite
    assert [np.flatnonzero(side).tolist() for side in found] == [[1, 4], [2, 3, 4]]


def test_between_candidates_without_clusters_or_with_infinite_rows():
    x, y, labels = data()
    z = (x + (y - x) / 2).astype(np.float32)
    y[3, 5] = z[3, 5] = y[4, 5] = -np.inf
    between = BetweenTally()
    blocks = [rows_of(x, other, labels, names=False, labelled=False) for other in (z, y)]
    between.add(*blocks)
    found = between.to_dict()
    assert found["rows"] == ROWS - 1  # both infinite in row 3
    assert found["kl_difference"]["mean"] == -math.inf
    values = [block.columns["kl"] for block in blocks]
    assert found["lower_share"] == pytest.approx((values[0] < values[1]).sum() / (ROWS - 1))
    assert "loss_difference" not in found


def test_an_exact_test_of_flips():
    for wrong, right in ((0, 0), (0, 1), (3, 3), (1, 7), (40, 61), (900, 1000)):
        assert (
            mcnemar_p(wrong, right)
            == mcnemar_p(right, wrong)
            == pytest.approx(naive.mcnemar_p(wrong, right), rel=1e-12)
        )
    for wrong, right in ((1000, 1001), (1100, 1250), (5000, 5300), (100, 9000)):
        assert mcnemar_p(wrong, right) == pytest.approx(float(naive_large(wrong, right)), rel=1e-9)
    assert mcnemar_p(10**7, 10**7 + 20000) == pytest.approx(
        math.erfc(19999 / math.sqrt(2 * (2 * 10**7 + 20000))), rel=1e-2
    )


def naive_large(wrong, right):
    from fractions import Fraction

    flips = wrong + right
    term, total = 1, 0
    for k in range(min(wrong, right) + 1):
        total += term
        term = term * (flips - k) // (k + 1)
    return min(Fraction(1), Fraction(2 * total, 2**flips))


def test_sums_of_squares_are_exact():
    rng = np.random.default_rng(0)
    values = rng.standard_normal(1000) * 10.0 ** rng.integers(-50, 50, 1000)
    product, rest = exact_product(values, values[::-1].copy())
    from fractions import Fraction

    for a, b, p, r in zip(values, values[::-1], product, rest, strict=True):
        assert Fraction(a) * Fraction(b) == Fraction(p) + Fraction(r)
    moments = Moments()
    moments.add(np.full(1000, 0.1))
    assert moments.stderr(1000) == 0
    assert exact_product(np.array([1e200, np.inf]), np.array([1e200, 1.0]))[1].tolist() == [0, 0]


def test_what_a_floor_hides_is_counted():
    x, y, labels = data()
    block = rows_of(x, y, labels)
    block.mass, block.floored_labels = np.linspace(0, 1e-3, ROWS), np.arange(ROWS) < 7
    found = tally_of(block).to_dict()
    assert found["floor"]["mass"] == pytest.approx(5e-4)
    assert (found["floor"]["mass_max"], found["floor"]["labels"]) == (1e-3, 7)
    assert found["kl"]["bound"] == "lower"
