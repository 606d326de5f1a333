"""llama.cpp's logits files: real ones and their printed tables, made ones in three dialects, damaged ones."""

import json
import re
import struct
from pathlib import Path

import ml_dtypes
import naive
import numpy as np
import pytest

import bigvocab as bv
from bigvocab.comparison.llama_table import LlamaTable, format_table, llama_table
from bigvocab.comparison.pairs import Asked, Transform
from bigvocab.comparison.stored import ExactSide, LlamaSide, compare_stored
from bigvocab.errors import BigvocabError, FormatError
from bigvocab.formats.llama_logits import LlamaLogits, check_same_tokens, is_llama_logits, open_llama_logits

DATA = Path(__file__).parents[1] / "data/llama/kjv-751"
ALL = Asked(spread=True, tops=True)


def opened(name):
    return open_llama_logits(str(DATA / name))


def compare(reference, candidate, *, rows=slice(None), transform=None, which=None, **options):
    """What lies between two sides, files or arrays, on rows of the file."""
    file = reference if isinstance(reference, LlamaLogits) else candidate
    sides = [
        LlamaSide(side) if isinstance(side, LlamaLogits) else ExactSide(side, transform or Transform(), which)
        for side in (reference, candidate)
    ]
    return compare_stored(*sides, file.labels[rows], rows.start or 0, **options)


@pytest.fixture(scope="module")
def logits():
    with np.load(DATA / "logits.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def exact():
    with np.load(DATA / "rows.npz") as file:
        return {name: file[name] for name in file.files}


def encode(logits, nats=16.0):
    """Rows as llama.cpp writes them, step by step in float32."""
    x = logits.astype(np.float32)
    highest = x.max(1, keepdims=True)
    low = np.maximum(x.min(1, keepdims=True), highest - np.float32(nats))
    total = np.log(np.exp((x - highest).astype(np.float64)).sum(1, keepdims=True)).astype(np.float32)
    scale = ((highest - low) / np.float32(65535)).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        q = np.where((x > low) & (scale > 0), np.rint((x - low) * (np.float32(1) / scale)), 0).astype("<u2")
    floats = np.hstack([scale, low - highest - total]).astype("<f4").view("<u2")
    return np.hstack([floats, q, np.zeros((len(x), x.shape[1] % 2), "<u2")]).astype("<u2")


def write(path, logits, context, *, nats=16.0, version=1, tokens=None, seed=0):
    """A file of `logits` (rows, classes), whose context must fit the number of rows."""
    classes = logits.shape[1]
    if version == 1:
        windows = len(logits) // (context - 1 - context // 2)
        count = windows * context
        head = b"_logits_" + struct.pack("<3i", context, classes, windows)
    else:
        stride = max(1, context // 4)
        windows = len(logits) // (context - 1)
        count = (windows - 1) * stride + context
        head = b"_logits_v2" + struct.pack("<5i", context, classes, stride, context, windows)
    if tokens is None:
        tokens = np.random.default_rng(seed).integers(0, classes, count)
    path.write_bytes(head + tokens.astype("<i4").tobytes() + encode(logits, nats).tobytes())
    return open_llama_logits(str(path))


def made(rows, classes, seed=0, spread=3.0):
    return (np.random.default_rng(seed).standard_normal((rows, classes)) * spread).astype(np.float32)


# Real files


def test_a_real_file(logits, exact):
    base = opened("base.kld")
    assert is_llama_logits((DATA / "base.kld").read_bytes()[:16])
    assert (base.dialect, base.nats, base.shape) == ("llama.cpp", 16.0, (200, 751))
    assert base.describe()["floor"] == "16 nats or less"
    np.testing.assert_array_equal(base.labels, exact["label"])
    assert base.windows.tolist() == [w for w in range(10) for _ in range(20)]
    assert base.positions[:21].tolist() == [*range(22, 42), 22]
    assert (encode(logits["base"]) == base.words).all()
    expected = np.maximum(naive.log_softmax(logits["base"]).astype(float), base.lowest(0, 200)[:, None])
    np.testing.assert_allclose(base.log_probabilities(0, 200), expected, atol=1.3e-4)
    assert base.floored(0, 200).sum() == json.loads((DATA / "expected.json").read_text())["file"]["floored_rows"]


TABLES = (("printed.txt", "base.kld", "candidate"), ("printed_self.txt", "base.kld", "base"))
TABLES += (("printed_reverse.txt", "candidate.kld", "base"),)


@pytest.mark.parametrize(("printed", "file", "live"), TABLES)
def test_the_printed_table_to_the_last_digit(printed, file, live, logits):
    text = (DATA / printed).read_text()
    table = llama_table(opened(file), logits[live])
    assert format_table(table.to_dict()).rstrip() == text[text.index("====== Perp") :].rstrip()
    running = re.findall(r"^ +(\d+) +(.*)$", text, re.MULTILINE)
    assert len(running) == 10
    names = ("mean_ppl_q", "mean_ln_ratio", "mean_kld", "rms_dp", "same_top_p")
    for window, line in running:
        found = table.window(20 * int(window))
        numbers = re.findall(r"-?(?:nan|\d+\.\d+)", line)
        digits = (4, 4, 5, 5, 5, 5, 3, 3, 3, 3)
        mine = [value for name in names for value in (found[name]["value"], found[name]["error"])]
        for value, number, places in zip(mine, numbers, digits, strict=True):
            assert f"{value:.{places}f}".replace("nan", "-nan") == number, (window, line)


def test_the_table_with_all_digits(logits):
    expected = json.loads((DATA / "expected.json").read_text())["llama_cpp_unrounded"]
    found = llama_table(opened("base.kld"), logits["candidate"]).to_dict()
    assert found["mean_kld"]["value"] == pytest.approx(expected["Mean KLD"][0], rel=1e-9)
    assert found["kld"]["99.9"] == pytest.approx(expected["99.9% KLD"][0], rel=1e-9)
    assert found["dp"]["min"] == pytest.approx(expected["Minimum Δp"][0], rel=1e-9)
    assert found["mean_difference"]["error"] == pytest.approx(expected["Mean PPL(Q)-PPL(base)"][1], rel=1e-6)


def test_the_table_merges_and_is_kept(logits):
    base = opened("base.kld")
    whole, parts = llama_table(base, logits["candidate"]), [LlamaTable() for _ in range(3)]
    rows = whole.state()
    for k in range(3):
        part = {name: column[rows["row"] % 3 == k] for name, column in rows.items()}
        parts[k] = LlamaTable.from_state(part)
    parts[2].merge(parts[0])
    parts[2].merge(parts[1])
    assert parts[2].to_dict() == whole.to_dict()


def test_values_from_a_file_and_live_logits(logits, exact):
    """25 times nearer to the truth than the printed table's rows are on large vocabularies; 4 times here."""
    base, candidate = opened("base.kld"), opened("candidate.kld")
    lines = json.loads((DATA / "expected.json").read_text())["kl_mean_and_error"]
    for other, line in ((logits["candidate"], "kept classes, live candidate"), (candidate, "kept classes, both files")):
        rows = compare(base, other, asked=ALL)
        error = rows.columns["kl"] - exact["kl"]
        assert np.sqrt((error**2).mean()) == pytest.approx(lines[line][1]["rms"], rel=0.01)
        assert rows.columns["kl"].mean() == pytest.approx(lines[line][0], abs=5e-8)
        np.testing.assert_allclose(rows.columns["kl_reverse"], exact["kl_reverse"], atol=1e-4)
        for name in ("js", "tv"):
            np.testing.assert_allclose(rows.columns[name], exact[name], atol=2e-4)
        for side in ("reference", "candidate"):
            np.testing.assert_allclose(rows.columns[f"loss_{side}"], exact[f"loss_{side}"], atol=1.3e-4)
            np.testing.assert_array_equal(rows.columns[f"predicted_{side}"], exact[f"predicted_{side}"])
        assert not rows.floored_labels.any()
        assert 0 <= rows.mass.min() <= rows.mass.max() < 3e-4
    np.testing.assert_array_equal(rows.columns["rank_reference"], exact["rank_reference"])


def test_a_file_with_itself_is_0_exactly():
    base = opened("base.kld")
    rows = compare(base, opened("base.kld"), asked=ALL)
    for name in ("kl", "kl_reverse", "js", "tv", "logit_difference", "loss_difference", "delta_p"):
        assert (rows.columns[name] == 0).all(), name
    assert rows.columns["same_top"].all()
    assert (rows.columns["top_rank_in_candidate"] == 1).all()


def test_a_file_as_candidate(logits, exact):
    candidate = opened("candidate.kld")
    rows = compare(logits["base"], candidate)
    np.testing.assert_allclose(rows.columns["kl"], exact["kl"], atol=3e-5)
    swapped = compare(candidate, logits["base"])
    assert (swapped.columns["kl"] == rows.columns["kl_reverse"]).all()
    assert (swapped.columns["kl_reverse"] == rows.columns["kl"]).all()


def test_overlap_of_the_highest_classes(logits, tmp_path):
    base, ks = opened("base.kld"), (1, 5, 64)
    order = [
        np.argsort(-side.astype(np.float64), axis=1, kind="stable") for side in (logits["base"], logits["candidate"])
    ]
    q = base.rows(0, 200).astype(int)
    order[0] = np.argsort(-q, axis=1, kind="stable")  # 16 bits make ties
    for reference, candidate in ((base, logits["candidate"]), (logits["candidate"], base)):
        rows = compare(reference, candidate, asked=Asked(overlap=ks))
        for k in ks:
            expected = [len({*a[:k]} & {*b[:k]}) / k for a, b in zip(*order, strict=True)]
            np.testing.assert_array_equal(rows.columns[f"overlap.{k}"], expected)
    assert all((compare(base, base, asked=Asked(overlap=ks)).columns[f"overlap.{k}"] == 1).all() for k in ks)
    few = np.full((20, 50), -40.0, np.float32)
    few[:, [3, 8]] = 0.0  # all others lie under the floor, and are none of the highest
    file = write(tmp_path / "f", few, 22)
    assert (compare(file, file, asked=Asked(overlap=(5,))).columns["overlap.5"] == 0.4).all()


def test_ranges_of_rows_and_threads_change_no_bit(logits):
    base = opened("base.kld")
    whole = compare(base, logits["candidate"], asked=ALL)
    for start, stop in ((0, 70), (70, 71), (71, 200)):
        rows = slice(start, stop)
        part = compare(base, logits["candidate"], asked=ALL, rows=rows, num_threads=1)
        for name, column in whole.columns.items():
            assert (part.columns[name] == column[start:stop]).all(), name


def test_other_types_of_logits(logits):
    base = opened("base.kld")
    exact = compare(base, logits["candidate"])
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float64, ">f4"):
        rows = compare(base, logits["candidate"].astype(dtype))
        atol = 1e-6 if np.dtype(dtype).itemsize > 2 else 0.05
        np.testing.assert_allclose(rows.columns["kl"], exact.columns["kl"], atol=atol)
    scaled = compare(base, logits["candidate"] * 2, transform=Transform(0.5))
    np.testing.assert_allclose(scaled.columns["kl"], exact.columns["kl"], rtol=1e-6)


def test_the_bound_holds_where_much_lies_below_the_floor(tmp_path):
    x, y = made(40, 3001, spread=8.0), made(40, 3001, 1, spread=8.0)
    x[:, 0] = y[:, 1] = 25.0
    file = write(tmp_path / "f", x, 42)
    rows = compare(file, y)
    true = naive.kl_divergence(x, y).astype(float)
    slack = 1e-4 * np.sqrt(2 * true)
    assert (rows.columns["kl"] <= true + slack).all()
    assert (rows.mass >= 0).all()
    assert file.floored(0, 40).all()
    at_the_floor = file.rows(0, 40)[np.arange(40), file.labels] == 0
    assert at_the_floor.any()
    assert (rows.floored_labels == at_the_floor).all()


def test_shared_tops_and_masks(tmp_path):
    x = made(20, 50)
    x[:, 7], x[:, 3] = 20.00005, 20.0  # half a step apart: both are 65535
    x[4, 30:] = -np.inf
    y = x.copy()
    y[5, 3] = -np.inf
    file = write(tmp_path / "f", x, 42)
    rows = compare(file, y, asked=ALL)
    assert rows.columns["tied"].all()
    assert (rows.columns["predicted_reference"] == 3).all()
    assert np.isinf(rows.columns["kl"]).tolist() == [row == 5 for row in range(20)]
    assert rows.columns["kl"][4] < 1e-7


# Dialects


def test_rows_that_share_no_stored_class(tmp_path):
    x, y = np.full((2, 20, 50), -40.0, np.float32)
    x[:, 3] = y[:, 8] = 0.0
    reference, candidate = write(tmp_path / "p", x, 22), write(tmp_path / "q", y, 22)
    asked = Asked(spread=True, entropy=True)
    rows = compare(reference, candidate, asked=asked)
    for name in ("kl", "kl_reverse", "js", "tv", "logit_difference", "entropy_reference"):
        assert (rows.columns[name] == 0).all(), name  # nothing is known of what lies under the floor
    assert (rows.mass == 1).all()
    masked = y.copy()
    masked[:, 3] = -np.inf  # by support, however little the file stores
    rows = compare(reference, masked, asked=asked)
    for name, value in (("kl", np.inf), ("kl_reverse", 0), ("js", np.log(2)), ("tv", 1)):
        assert (rows.columns[name] == value).all(), name
    rows = compare(masked, reference, asked=asked)
    for name, value in (("kl", 0), ("kl_reverse", np.inf), ("js", np.log(2)), ("tv", 1)):
        assert (rows.columns[name] == value).all(), name
    masked[4, 30] = np.nan  # in a class that the file does not store
    rows = compare(reference, masked, asked=asked)
    assert (np.isnan(rows.columns["kl"]) == (np.arange(20) == 4)).all()
    report = bv.compare(reference=str(tmp_path / "p"), candidate=str(tmp_path / "q"))
    assert (report["kl"]["mean"], report["floor"]["mass"]) == (0, 1)
    assert "says what the reference says" not in str(report)
    assert "says what the reference says" in str(
        bv.compare(reference=str(tmp_path / "p"), candidate=str(tmp_path / "p"))
    )


def test_entropies_are_those_of_a_file_whatever_it_is_compared_with(tmp_path):
    x, y = made(20, 50), made(20, 50, 1)
    y[:, 20:] = -40.0  # under the floor
    file, other = write(tmp_path / "p", x, 22), write(tmp_path / "q", y, 22)
    expected = naive.entropy(x)
    for name, rows in (
        ("entropy_reference", compare(file, other, asked=Asked(entropy=True))),
        ("entropy_candidate", compare(other, file, asked=Asked(entropy=True))),
        ("entropy_reference", compare(file, y, asked=Asked(entropy=True))),
    ):
        np.testing.assert_allclose(rows.columns[name], expected.astype(float), atol=1e-3)


def test_three_dialects(tmp_path):
    x = made(40, 301, spread=3.3)
    plain = write(tmp_path / "a", x, 42)
    wide = write(tmp_path / "b", x, 42, nats=24.0)
    second = write(tmp_path / "c", x, 21, version=2)
    assert [file.dialect for file in (plain, wide, second)] == ["llama.cpp", "ik_llama.cpp", "v2"]
    assert [file.nats for file in (plain, wide, second)] == [16.0, 24.0, 16.0]
    assert second.shape == (40, 301)
    assert second.windows.tolist() == [0] * 20 + [1] * 20
    assert second.labels.tolist() == [*second.tokens[1:21], *second.tokens[6:26]]
    np.testing.assert_allclose(second.log_probabilities(0, 40), plain.log_probabilities(0, 40))
    assert wide.floored(0, 40).sum() < plain.floored(0, 40).sum()
    rows = compare(wide, x)
    assert (rows.columns["kl"] < 1e-8).all()
    odd = write(tmp_path / "d", made(2, 5), 4)  # T = 4: one row a window
    assert odd.positions.tolist() == [3, 3]
    assert write(tmp_path / "e", made(4, 5), 5).positions.tolist() == [3, 4, 3, 4]


def test_a_first_version_whose_context_reads_v2(tmp_path):
    file = write(tmp_path / "f", made(12918 - 1 - 6459, 2), 12918)
    assert (tmp_path / "f").read_bytes()[:10] == b"_logits_v2"
    assert (file.header.version, file.header.context) == (1, 12918)


def test_equal_logits_have_no_scale(tmp_path):
    file = write(tmp_path / "f", np.zeros((20, 8), np.float32), 42)
    rows = compare(file, np.zeros((20, 8), np.float32))
    assert (rows.columns["kl"] == 0).all()
    np.testing.assert_allclose(rows.columns["loss_reference"], np.log(8), rtol=1e-6)


def test_rows_of_every_position():
    base = opened("base.kld")
    assert base.rows_of(200, "c.npy").tolist() == list(range(200))
    every = base.rows_of(420, "c.npy")
    assert every[:2].tolist() == [21, 22]
    assert every[20] == 42 + 21
    assert base.rows_of(410, "c.npy")[20] == 41 + 21
    with pytest.raises(FormatError, match=r"c\.npy: got 199 rows, expected 200 .*420 .*410"):
        base.rows_of(199, "c.npy")


def test_logits_of_every_position(logits):
    base = opened("base.kld")
    every = np.full((420, 751), np.nan, np.float32)
    which = base.rows_of(420, "every.npy")
    every[which] = logits["candidate"]
    rows = compare(base, every, which=which)
    assert (rows.columns["kl"] == compare(base, logits["candidate"]).columns["kl"]).all()
    assert not rows.nonfinite.any()
    assert compare(base, every).nonfinite.sum(axis=1).tolist() == [0, 200 - np.isin(np.arange(200), which).sum()]
    table = llama_table(base, every, which)
    assert table.to_dict() == llama_table(base, logits["candidate"]).to_dict()


def test_classes_that_differ():
    base = opened("base.kld")
    with pytest.raises(BigvocabError, match="750 classes of the candidate and 751 of the reference"):
        compare(base, np.zeros((200, 750), np.float32))


@pytest.mark.parametrize("spread", [1.0, 2.0, 9.0])
def test_classes_that_do_not_exist(tmp_path, spread):
    x, y, count = made(20, 50, spread=spread), made(20, 47, 1, spread=spread), 40
    x[:, 45] += 3  # a good part of the mass, and often the top
    file = write(tmp_path / "p", x, 22, tokens=np.random.default_rng(0).integers(0, count, 44))
    write(tmp_path / "q", y, 22, tokens=file.tokens)
    p, q = (str(tmp_path / name) for name in ("p", "q"))
    job = {"num_classes": count, "metrics": "kl_reverse,js,tv,delta_p,tops,entropy,overlap"}
    wanted = bv.compare(reference=x[:, :count], candidate=y[:, :count], labels=file.labels, **job)
    for reference, candidate in ((p, y), (x, q), (p, q)):
        found = bv.compare(reference=reference, candidate=candidate, **job)
        if spread > 2:  # much lies under the floor
            assert found["kl"]["mean"] < wanted["kl"]["mean"] + 1e-3
            continue
        for name in ("kl", "kl_reverse", "js", "tv", "delta_p", "entropy_reference", "entropy_candidate"):
            assert found[name]["mean"] == pytest.approx(wanted[name]["mean"], rel=2e-3, abs=2e-4), name
        for side in ("reference", "candidate"):
            assert found[side]["mean"] == pytest.approx(wanted[side]["mean"], rel=1e-4)
            assert found[side]["accuracy"] == wanted[side]["accuracy"]
        for name in ("same_top", "top_in_candidate", "overlap"):
            assert found[name] | {"cluster_stderr": 0} == wanted[name] | {"cluster_stderr": 0}, name
        rows = [(line["rows"], line.get("kl_mean", 0)) for line in found["by_confidence"]]
        expected = [(line["rows"], line.get("kl_mean", 0)) for line in wanted["by_confidence"]]
        np.testing.assert_allclose(rows, expected, rtol=3e-3, atol=1e-3)
    assert bv.compare(reference=p, candidate=p, **job)["kl"]["max"] == 0
    with pytest.raises(BigvocabError, match="llama_cpp: takes in all classes of a file, 50 of .*, got num_classes=.40"):
        bv.compare(reference=p, candidate=y, num_classes=count, llama_cpp=True)
    write(tmp_path / "r", x, 22, tokens=np.full(44, 44))
    with pytest.raises(BigvocabError, match="row 0 is 44, expected a class in"):
        bv.compare(reference=str(tmp_path / "r"), candidate=y, num_classes=count)


# Damage

GOOD = (DATA / "base.kld").read_bytes()


def patched(at, data):
    return GOOD[:at] + data + GOOD[at + len(data) :]


DAMAGED = {
    "another file": (b"\x93NUMPY" + GOOD[6:], "expected b'_logits_'"),
    "8 bytes": (GOOD[:8], "header is cut short"),
    "header": (GOOD[:16], "context of 42 tokens and nothing more"),
    "tokens": (GOOD[:1000], "end within the tokens, which reach to byte 1700"),
    "killed": (GOOD[:-1512], "199 whole rows, expected 200.*whole windows: 9 of 10"),
    "half a row": (GOOD[:-100], "199 whole rows, expected 200"),
    "doubled": (GOOD + GOOD, "second file begins there"),
    "longer": (GOOD + b"\0\0", "expected 304100 by its header"),
    "no classes": (patched(12, struct.pack("<i", 0)), "0 classes"),
    "negative": (patched(8, struct.pack("<i", -42)), "context of -42 tokens"),
    "two tokens": (patched(8, struct.pack("<i", 2)), "context of 2 tokens"),
    "no windows": (patched(16, struct.pack("<i", 0)), "0 windows"),
    "huge": (patched(8, struct.pack("<3i", *[2**31 - 1] * 3)), "end within the tokens"),
    "overflowed": (patched(8, struct.pack("<3i", 32768, 151936, 1)), "past 32 bits"),
    "a token": (patched(20, struct.pack("<i", 751)), r"token 0 is 751, expected an id in \[0, 751\)"),
    "a negative token": (patched(24, struct.pack("<i", -1)), "token 1 is -1"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files(name, tmp_path):
    data, message = DAMAGED[name]
    (tmp_path / "f.kld").write_bytes(data)
    with pytest.raises(FormatError, match=message) as caught:
        open_llama_logits(str(tmp_path / "f.kld"))
    assert str(caught.value).startswith(str(tmp_path / "f.kld"))


def test_an_overflow_of_the_writer_is_named(tmp_path):
    with (tmp_path / "f.kld").open("wb") as file:
        file.write(b"_logits_" + struct.pack("<3i", 32768, 151936, 1))
        file.truncate(20 + 4 * 32768 + 100 * 2 * 151940)
    with pytest.raises(FormatError, match="past 32 bits.*smaller context"):
        open_llama_logits(str(tmp_path / "f.kld"))


@pytest.mark.parametrize("values", [(np.nan, -9.0), (-1e-4, -9.0), (1e-3, -40.0), (1e-4, np.inf), (2e-4, -1.0)])
def test_rows_whose_constants_cannot_be(values, tmp_path):
    (tmp_path / "f.kld").write_bytes(patched(1700 + 3 * 1512, struct.pack("<2f", *values)))
    with pytest.raises(FormatError, match="row 3 has scale"):
        open_llama_logits(str(tmp_path / "f.kld")).floored(0, 1)


def test_rows_without_a_top(tmp_path):
    (tmp_path / "f.kld").write_bytes(patched(1700 + 5 * 1512 + 8, bytes(1502)))
    file = open_llama_logits(str(tmp_path / "f.kld"))
    file.rows(0, 5)
    with pytest.raises(FormatError, match="row 5 has 0 for its top, expected 65535"):
        file.rows(3, 9)


def test_a_file_of_a_run_that_found_too_few_tokens():
    with pytest.raises(FormatError, match="12 bytes.*too few tokens"):
        opened("too_few_tokens.kld")


def test_files_of_different_texts(tmp_path):
    x = made(40, 30)
    a = write(tmp_path / "a", x, 42)
    tokens = a.tokens.copy()
    tokens[50] = (tokens[50] + 1) % 30
    b = write(tmp_path / "b", x, 42, tokens=tokens)
    with pytest.raises(FormatError, match=rf"b: token 50 \(window 1\) is {tokens[50]}, expected {a.tokens[50]} as in"):
        check_same_tokens(a, b)
    write(tmp_path / "c", made(40, 31), 42)
    with pytest.raises(BigvocabError, match="c: 31 classes, but .*a has 30; expected as many, or num_classes"):
        bv.compare(reference=str(tmp_path / "a"), candidate=str(tmp_path / "c"))
    check_same_tokens(a, write(tmp_path / "d", made(40, 30, 5), 42, tokens=a.tokens))
