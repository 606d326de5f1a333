"""States: the same bits from any shards in any order, and an error for what would lose a row or count it twice."""

import cProfile
import hashlib
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from commands import refused, run
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_jobs import values_of

import bigvocab as bv
from bigvocab.evaluation import state
from bigvocab.evaluation.coverage import joined, missing, shown_rows
from bigvocab.evaluation.state import read_state
from bigvocab.evaluation.tally import RowResult, Tally
from bigvocab.jobs.merging import merge
from bigvocab.labels.labels import LabelBatch
from bigvocab.storage.fingerprints import of_file

ROWS, CLASSES = 300, 501
COLUMNS = {"weight_column": "weight", "group_column": "book", "bytes_column": "bytes"}
METRICS = "accuracy,rank,logsumexp,entropy,predicted"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(5)
    logits = (rng.standard_normal((ROWS, CLASSES)) * 3).astype(np.float32)
    np.save(folder / "logits.npy", logits)
    np.save(folder / "double.npy", logits.astype(np.float64))
    for i, (a, b) in enumerate([(0, 200), (200, 333), (333, CLASSES)]):
        np.save(folder / f"classes-{i}.npy", logits[:, a:b])
    ignored = rng.random(ROWS) < 0.1
    labels = rng.integers(0, CLASSES, ROWS)
    table = {
        "label": pa.array(labels, mask=ignored),
        "weight": rng.choice([0.0, 0.5, 1.0], ROWS),
        "book": rng.choice(["Ruth", "Jonah", "Ezra"], ROWS),
        "bytes": rng.integers(1, 9, ROWS),
    }
    pq.write_table(pa.table(table), folder / "labels.parquet", row_group_size=70)
    np.save(folder / "labels.npy", labels)
    np.save(folder / "soft.npy", rng.dirichlet(np.ones(CLASSES), ROWS).astype(np.float32))
    np.save(folder / "hidden.npy", rng.standard_normal((ROWS, 24)).astype(np.float32))
    layer = (rng.standard_normal((CLASSES, 24)) * 0.5).astype(np.float32)
    np.save(folder / "layer.npy", layer)
    for i, (a, b) in enumerate([(0, 200), (200, CLASSES)]):
        np.save(folder / f"layer-{i}.npy", layer[a:b])
    np.save(folder / "probabilities.npy", rng.random((ROWS, CLASSES)).astype(np.float32))
    lists = pa.array([sorted({int(x) for x in rng.integers(0, CLASSES, 3)}) for _ in range(ROWS)])
    pq.write_table(pa.table({"label": lists}), folder / "lists.parquet")
    return folder


def main_job(folder, **options):
    return {
        "logits": folder / "logits.npy",
        "labels": folder / "labels.parquet",
        "metrics": METRICS,
        **COLUMNS,
        **options,
    }


@pytest.fixture(scope="module")
def whole(data):
    return values_of(bv.evaluate(**main_job(data), output=data / "whole.parquet"))


JOBS = {
    "sparse-softmax": {"logits": "logits.npy", "labels": "labels.npy", "label_smoothing": 0.1},
    "softmax": {"logits": "logits.npy", "labels": "soft.npy"},
    "sigmoid": {"logits": "logits.npy", "labels": "soft.npy"},
    "weighted-sigmoid": {"logits": "logits.npy", "labels": "soft.npy", "pos_weight": np.linspace(1, 2, CLASSES)},
    "sparse-sigmoid": {"logits": "logits.npy", "labels": "lists.parquet"},
    "log-loss": {"logits": "probabilities.npy", "labels": "soft.npy"},
    "sampled-softmax": {
        "inputs": "hidden.npy",
        "weights": "layer.npy",
        "labels": "labels.npy",
        "num_sampled": 20,
        "exact": True,
    },
    "nce": {"inputs": "hidden.npy", "weights": "layer.npy", "labels": "labels.npy", "num_sampled": 20, "seed": (1, 7)},
}


def in_folder(folder, job):
    return {name: folder / value if isinstance(value, str) else value for name, value in job.items()}


# ---- the same bits


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_any_number_of_shards_in_any_order_is_one_run(data, whole, tmp_path, count):
    for i in range(1, count + 1):
        bv.evaluate(
            **main_job(data, shard=(i, count), state=tmp_path / f"{i}.state", output=tmp_path / f"out-{i:03d}.parquet"),
            chunk_rows=1 + i % 5,
            threads=1 + i % 3,
        )
    states = [tmp_path / f"{i}.state" for i in range(1, count + 1)]
    random.Random(count).shuffle(states)
    assert values_of(merge(states)) == whole
    dataset = pa.concat_tables(pq.read_table(path) for path in sorted(tmp_path.glob("out-*.parquet")))
    assert dataset.equals(pq.read_table(data / "whole.parquet"))
    assert not list(tmp_path.glob(".*")) + list(tmp_path.glob("*.lines")) + list(tmp_path.glob("*.lock"))


def test_more_shards_than_rows(tmp_path):
    logits, labels = np.random.default_rng(0).standard_normal((6, 9)), np.arange(6)
    for i in range(1, 11):
        bv.evaluate(logits=logits, labels=labels, shard=(i, 10), state=tmp_path / f"{i}.state")
    merged = merge([tmp_path / f"{i}.state" for i in range(1, 11)])
    assert values_of(merged) == values_of(bv.evaluate(logits=logits, labels=labels))


@pytest.mark.parametrize("loss", JOBS)
def test_every_loss_merges(data, tmp_path, loss):
    job = in_folder(data, JOBS[loss]) | {"loss": loss}
    expected = values_of(bv.evaluate(**job))
    for i in (1, 2, 3):
        bv.evaluate(**job, shard=f"{i}/3", state=tmp_path / f"{i}.state")
    assert values_of(merge([tmp_path / f"{i}.state" for i in (3, 1, 2)])) == expected
    first = bv.Evaluator.load(tmp_path / "2.state")
    first.merge(bv.Evaluator.load(tmp_path / "1.state"))
    first.save(tmp_path / "both.state")
    assert values_of(merge([tmp_path / "both.state", tmp_path / "3.state"])) == expected


def test_evaluators_are_saved_loaded_and_go_on(data, tmp_path):
    logits, labels = np.load(data / "logits.npy"), np.load(data / "labels.npy")
    groups = np.array(["Ruth", "Jonah", "Ezra"])[labels % 3]
    options = {"class_weights": np.linspace(0, 1, CLASSES), "metrics": METRICS, "top_k": 7}
    whole = bv.Evaluator(**options)
    whole.update(logits, labels, groups=groups)
    first = bv.Evaluator(**options)
    first.update(logits[:100], labels[:100], groups=groups[:100])
    first.save(tmp_path / "a.state")
    second = bv.Evaluator.load(tmp_path / "a.state", threads=1)
    second.update(logits[100:], labels[100:], groups=groups[100:])
    assert values_of(second.report()) == values_of(whole.report())
    rest = bv.Evaluator(**options)
    rest.update(logits[100:], labels[100:], groups=groups[100:])
    rest.save(tmp_path / "b.state")
    assert values_of(merge([tmp_path / "b.state", tmp_path / "a.state"])) == values_of(whole.report())


def test_a_layer_in_memory_that_a_state_does_not_hold_is_given_again(data, tmp_path):
    layer = np.random.default_rng(0).standard_normal((20_000, 24)).astype(np.float32)
    hidden = np.load(data / "hidden.npy")
    ev = bv.Evaluator(weights=layer)
    ev.update(hidden, np.arange(ROWS))
    ev.save(tmp_path / "a.state")
    with pytest.raises(
        bv.BigvocabError, match=r"a\.state: weights was an array of shape \(20000, 24\).*expected it again"
    ):
        bv.Evaluator.load(tmp_path / "a.state")
    with pytest.raises(bv.BigvocabError, match="layer files"):
        bv.Evaluator.load(tmp_path / "a.state", weights=layer * 2)
    again = bv.Evaluator.load(tmp_path / "a.state", weights=layer)
    assert values_of(again.report()) == values_of(ev.report()) == values_of(merge([tmp_path / "a.state"]))


def test_special_numbers_survive(tmp_path):
    logits = np.array([[0.0, np.inf], [1.0, 2.0], [np.nan, 0.0]])
    ev = bv.Evaluator(nonfinite="keep")
    ev.update(logits, [0, 1, 0], groups=["a", "b", "c"])
    ev.save(tmp_path / "a.state")
    np.testing.assert_equal(values_of(bv.Evaluator.load(tmp_path / "a.state").report()), values_of(ev.report()))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**9))
def test_states_of_tallies_are_canonical(seed):
    """However the rows were split, equal sums have equal states; and a tally made from its state is the same."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 40))
    losses = rng.standard_normal(n) * 10.0 ** rng.integers(-20, 20, n)
    names = [f"g{i}" for i in rng.permutation(5)]
    codes = rng.integers(0, 5, n)

    def tally(edges):
        out = Tally()
        for a, b in zip(edges[:-1], edges[1:], strict=True):
            none = np.zeros(b - a, bool)
            part = RowResult(losses[a:b], losses[a:b], None, ~none, none, none)
            other = Tally()
            other.add(part, LabelBatch(a, codes[a:b], groups=(codes[a:b].astype(np.int32), names)))
            out.merge(Tally.from_state(other.state()))
        return out.state()

    cut = sorted(rng.choice(n + 1, min(n, 3), replace=False).tolist())
    np.testing.assert_equal(tally([0, *cut, n]), tally([0, n]))


# ---- nothing twice, nothing lost, nothing of another job


@pytest.fixture
def thirds(data, tmp_path):
    for i in (1, 2, 3):
        bv.evaluate(**main_job(data, shard=(i, 3), state=tmp_path / f"{i}.state"))
    return tmp_path


def test_an_incomplete_set_says_what_is_missing(thirds):
    with pytest.raises(bv.BigvocabError, match=r"2 states: rows 100-199 of 0-299 are missing \(100 rows\)"):
        merge([thirds / "1.state", thirds / "3.state"])
    with pytest.raises(bv.BigvocabError, match=r"2\.state: rows 0-99, 200-299 of 0-299 are missing \(200 rows\)"):
        merge([thirds / "2.state"])


def test_the_same_rows_twice(data, thirds):
    states = [thirds / f"{i}.state" for i in (1, 2, 3)]
    with pytest.raises(bv.BigvocabError, match="is given twice"):
        merge([*states, thirds / "." / "2.state"])
    shutil.copy(states[1], thirds / "copy.state")
    with pytest.raises(bv.BigvocabError, match=r"copy\.state: rows 100-199 are in .*2\.state too"):
        merge([*states, thirds / "copy.state"])
    bv.evaluate(**main_job(data, shard=(2, 4), state=thirds / "quarter.state"))
    with pytest.raises(bv.BigvocabError, match=r"quarter\.state: rows 75-99 are in .*1\.state too"):
        merge([*states, thirds / "quarter.state"])
    one = bv.Evaluator.load(states[0])
    with pytest.raises(bv.BigvocabError, match="rows 0-99 are in both"):
        one.merge(bv.Evaluator.load(states[0]))


def test_states_of_other_jobs(data, thirds):
    def other(match, **options):
        bv.evaluate(**main_job(data, shard=(2, 3), state=thirds / "other.state") | options)
        with pytest.raises(bv.BigvocabError, match=match):
            merge([thirds / "1.state", thirds / "other.state", thirds / "3.state"])
        (thirds / "other.state").unlink()

    other(r"other\.state: label_smoothing is 0\.1, but 0\.0 in .*1\.state; expected the same", label_smoothing=0.1)
    other(r"other\.state: top_k is \[1, 2\]", top_k=(1, 2))
    other(
        r"other\.state: the content of .*probabilities\.npy is not that of the logits in .*1\.state",
        logits=data / "probabilities.npy",
    )
    other(r"other\.state: weight is None, but 'weight'", weight_column=None)
    ev = bv.Evaluator(metrics=METRICS)
    ev.update(np.load(data / "logits.npy")[:5], [1, 2, 3, 4, 5])
    ev.save(thirds / "fed.state")
    with pytest.raises(bv.BigvocabError, match="cannot be told apart"):
        merge([thirds / "1.state", thirds / "fed.state"])


def test_a_changed_label_is_another_job(data, tmp_path):
    labels = np.load(data / "labels.npy")
    for i in (1, 2):
        np.save(tmp_path / "labels.npy", labels)
        bv.evaluate(
            logits=data / "logits.npy", labels=tmp_path / "labels.npy", shard=(i, 2), state=tmp_path / f"{i}.state"
        )
        labels[137] = (labels[137] + 1) % CLASSES
    with pytest.raises(
        bv.BigvocabError, match=r"2\.state: the content of .*labels\.npy is not that of the labels in .*1\.state"
    ):
        merge([tmp_path / "1.state", tmp_path / "2.state"])


def test_copies_elsewhere_are_the_same_files(data, whole, tmp_path):
    for i in (1, 2):
        folder = tmp_path / str(i)
        folder.mkdir()
        for name in ("logits.npy", "labels.parquet"):
            shutil.copyfile(data / name, folder / name)
        bv.evaluate(**main_job(folder, shard=(i, 2), state=tmp_path / f"{i}.state"))
    assert values_of(merge([tmp_path / "1.state", tmp_path / "2.state"])) == whole


def test_rows_of_files_and_of_batches_do_not_mix(thirds):
    ev = bv.Evaluator.load(thirds / "1.state")
    with pytest.raises(bv.BigvocabError, match="holds rows of a job over files"):
        ev.update(np.zeros((1, 3)), [0])


def test_ranges():
    assert joined([[0, 3], [7, 9]], [[3, 5]]) == [[0, 5], [7, 9]]
    assert missing([[0, 5], [7, 9]], 12) == [[5, 7], [9, 12]]
    assert missing([], 2) == [[0, 2]]
    assert shown_rows([[5, 6], [1000, 2000]]) == "5, 1000-1999"
    with pytest.raises(bv.BigvocabError, match="rows 2-3 are in both"):
        joined([[0, 4]], [[2, 6]])


def test_fingerprints_of_large_files_look_at_both_ends_and_the_size(tmp_path):
    path, found = tmp_path / "large", []
    content = bytearray(3 << 20)
    for change in (None, 0, len(content) - 1):
        if change is not None:
            content[change] ^= 1
        path.write_bytes(content)
        found.append(of_file(path))
    path.write_bytes(content + b"x")
    found.append(of_file(path))
    assert len(set(found)) == 4


# ---- the file


def test_a_state_can_be_looked_at_with_arrow_alone(thirds):
    reader = pa.ipc.open_file(str(thirds / "2.state"))
    held = json.loads(reader.schema.metadata[b"bigvocab"])
    assert held["format"] == "bigvocab-state"
    assert held["version"] == 4
    assert held["coverage"]["ranges"] == [[100, 200]]
    assert [file["role"] for file in held["coverage"]["files"]] == ["logits", "labels"]
    table = reader.read_all()
    assert table["group"].to_pylist() == ["Ezra", "Jonah", "Ruth"]
    digits, low = table["loss_digits"].to_pylist(), held["sums"]["groups"]["loss"]
    ruth = sum(digit * 2.0 ** (32 * (k + low) - 1074 + 512) for k, digit in enumerate(digits[2])) * 2.0**-512
    group = bv.Evaluator.load(thirds / "2.state").report()["groups"]["Ruth"]
    assert ruth == pytest.approx(group["mean"] * group["weight"], rel=1e-12)


def test_a_damaged_state_is_refused(thirds, tmp_path):
    whole = (thirds / "1.state").read_bytes()
    path = tmp_path / "damaged.state"
    rng = random.Random(1)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(bv.FormatError, match=r"damaged\.state: (truncated or damaged|is no state)"):
            read_state(path)
    for length in [0, 5, 20, 100, *(rng.randrange(len(whole)) for _ in range(30)), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(bv.FormatError, match=r"damaged\.state: (truncated or damaged|is no state)"):
            read_state(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(bv.FormatError, match="truncated or damaged"):
        read_state(path)


def forged(whole, change):
    """Bytes of a state with another content, and the checksum of that."""
    reader = pa.ipc.open_file(pa.BufferReader(whole))
    held = json.loads(reader.schema.metadata[b"bigvocab"]) | {"checksum": "0" * 64}
    table = reader.read_all()
    table = change(held, table) or table
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema.with_metadata({"bigvocab": json.dumps(held)})) as writer:
        writer.write_table(table.replace_schema_metadata({"bigvocab": json.dumps(held)}))
    content = sink.getvalue().to_pybytes()
    mark = b'"checksum": "' + b"0" * 64
    digest = hashlib.blake2b(content, digest_size=32).hexdigest().encode()
    return content.replace(mark, mark[:-64] + digest)


FORGED = {
    "no version": lambda held, table: held.pop("version") and None,
    "version": lambda held, table: held.update(version="4"),
    "no sums": lambda held, table: held.pop("sums") and None,
    "sums": lambda held, table: held["sums"].update(sums=[]),
    "options": lambda held, table: held["options"].pop("top_k") and None,
    "loss": lambda held, table: held["options"].update(loss="none"),
    "coverage": lambda held, table: held.update(coverage={"a": 1}),
    "given": lambda held, table: held["given"].update(loss={"a": 1}),
    "learned": lambda held, table: held.update(learned=[1]),
    "no column": lambda held, table: table.drop_columns(["live"]),
    "no digits": lambda held, table: table.drop_columns(["loss_digits"]),
    "text": lambda held, table: table.set_column(1, "rows", pa.array(["x"] * len(table))),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_content_that_was_never_written_is_one_line(what):
    """Where the checksum is right all the same."""
    evaluator = bv.Evaluator()
    evaluator.update(np.eye(3), [0, 1, 2], groups=["a", "b", "b"])
    whole = evaluator.to_bytes()
    same = forged(whole, lambda held, table: None)
    assert bv.Evaluator.from_bytes(same).report()["sum"] == evaluator.report()["sum"]
    bad = forged(whole, FORGED[what])
    if what == "given":  # which a merge shows, but does not use
        with pytest.raises(bv.FormatError, match="bytes: loss is an option of no kind"):
            bv.Evaluator.from_bytes(bad)
        return
    for parts in ([bad], [whole, bad], [bad, whole]):
        with pytest.raises(bv.BigvocabError, match=r"^bytes: [^\n]*$"):
            bv.merge(parts)


@pytest.mark.parametrize(
    "data", [b"", b"x", b"\x80\x04K\x01.", b"a.state", b"ARROW1", b"ARROW1\0\0" + bytes(90), b"PAR1" + bytes(90)]
)
def test_bytes_of_something_else(data):
    for read in (bv.Evaluator.from_bytes, bv.Comparison.from_bytes, bv.merge):
        with pytest.raises(bv.FormatError, match=r"^bytes: is no state of an evaluation, expected "):
            read(data)


def test_bytes_as_engines_hold_them():
    evaluator = bv.Evaluator()
    evaluator.update(np.eye(3), [0, 1, 2])
    data = evaluator.to_bytes()
    for one in (bytearray(data), memoryview(data)):
        assert bv.Evaluator.from_bytes(one).report()["rows"] == 3
        assert bv.merge(one, rows=3)["rows"] == bv.merge([one])["rows"] == 3
    assert bv.merge(pa.array([data]), rows=3)["rows"] == 3
    for other in (None, 3, [None], [3], pa.array([None], pa.binary())):
        with pytest.raises(TypeError):
            bv.merge(other)


def test_equal_bytes_are_equal_batches_where_all_rows_are_counted():
    none, one = bv.Evaluator(), bv.Evaluator()
    one.update([[0.0, 1.0]], [1])
    none, one = none.to_bytes(), one.to_bytes()
    assert bv.merge([none, one, none, none])["rows"] == 1
    assert bv.merge([one, one], rows=2)["rows"] == 2
    with pytest.raises(bv.BigvocabError, match="bytes: are given twice; .*expected rows, the number of all rows"):
        bv.merge([one, none, one])
    with pytest.raises(bv.BigvocabError, match="rows: all states together have seen 2 rows, expected 1"):
        bv.merge([one, one], rows=1)


def test_another_version_is_refused(data, tmp_path, monkeypatch):
    for version, age in ((1, "an older"), (5, "a newer")):
        monkeypatch.setattr(state, "VERSION", version)
        bv.evaluate(**main_job(data, state=tmp_path / "other.state"))
        monkeypatch.undo()
        with pytest.raises(
            bv.BigvocabError,
            match=rf"other\.state: is of version {version}, of {age} bigvocab; this one reads version 4",
        ):
            merge([tmp_path / "other.state"])
        with pytest.raises(bv.BigvocabError, match=f"of version {version}"):
            bv.evaluate(**main_job(data, state=tmp_path / "other.state", resume=True))
        (tmp_path / "other.state").unlink()


def test_other_files_are_no_states(data):
    for name in ("labels.parquet", "logits.npy"):
        with pytest.raises(bv.FormatError, match=f"{name}: is no state of an evaluation"):
            read_state(data / name)
    with pytest.raises(bv.BigvocabError, match="no-such: cannot be read"):
        read_state(data / "no-such")


def test_states_of_ten_thousand_groups_merge_without_a_look_at_each(tmp_path):
    """A thousand of them take seconds, because arrays are added, whatever the number of groups."""
    rng = np.random.default_rng(0)
    names = [f"group-{i:05d}" for i in range(10_000)]
    ev = bv.Evaluator()
    ev.update(rng.standard_normal((10_000, 3)), rng.integers(0, 3, 10_000), weights=rng.random(10_000), groups=names)
    paths = [tmp_path / f"{i}.state" for i in range(50)]
    for path in paths:
        ev.save(path)

    def count(some):
        counted = cProfile.Profile()
        report = counted.runcall(merge, paths[:some])
        return report, sum(entry.callcount for entry in counted.getstats())

    (_, few), (report, many) = count(10), count(50)
    assert (many - few) / 40 < 5000  # calls of functions for each state more
    assert report["rows"] == 500_000
    assert report["groups"]["group-00007"]["rows"] == 50


# ---- ranges of classes


def test_files_split_by_classes_merge_to_the_bits_of_one_run(data, tmp_path):
    job = main_job(data, logits=str(data / "classes-*.npy"), vocab_shards=True)
    expected = bv.evaluate(**job, output=tmp_path / "whole.parquet")
    for i in (1, 2, 3):
        bv.evaluate(**job, vocab_shard=(i, 3), state=tmp_path / f"{i}.state", chunk_rows=20 * i, threads=i)
    merged = merge([tmp_path / f"{i}.state" for i in (2, 3, 1)], output=tmp_path / "merged.parquet")
    assert values_of(merged) == values_of(expected)
    assert (tmp_path / "merged.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def nearly(mine, theirs):
    for name in ("rows", "ignored_rows", "tied_rows", "mean_rank", "mrr", "accuracy", "weight"):
        assert mine[name] == theirs[name], name
    for name in ("mean", "stderr", "entropy"):
        assert mine[name] == pytest.approx(theirs[name], rel=1e-6), name
    for name, group in theirs["groups"].items():
        assert mine["groups"][name]["mean"] == pytest.approx(group["mean"], rel=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"softcap": 5.0},
        {"logit_scale": 0.5},
        {"label_smoothing": 0.2},
        {"class_weights": np.linspace(0, 1, CLASSES)},
    ],
)
def test_equal_ranges_of_classes_of_one_file(data, whole, tmp_path, options):
    expected = bv.evaluate(**main_job(data, **options))
    for i in (1, 2, 3, 4):
        bv.evaluate(**main_job(data, **options), vocab_shard=f"{i}/4", state=tmp_path / f"{i}.state")
    nearly(merge([tmp_path / f"{i}.state" for i in (4, 2, 1, 3)], output=tmp_path / "l.parquet"), expected)
    if not options:
        whole = pq.read_table(data / "whole.parquet")
        assert pq.read_table(tmp_path / "l.parquet")["predicted"].equals(whole["predicted"])


def test_a_layer_split_by_classes(data, tmp_path):
    job = main_job(data, inputs=data / "hidden.npy", weights=data / "layer.npy")
    del job["logits"]
    expected = bv.evaluate(**job, output=tmp_path / "whole.parquet")
    whole = pq.read_table(tmp_path / "whole.parquet")
    for count, weights in ((3, data / "layer.npy"), (2, str(data / "layer-*.npy"))):
        states = [tmp_path / f"{i}-{count}.state" for i in range(1, count + 1)]
        for i, path in enumerate(states, 1):
            bv.evaluate(**job | {"weights": weights}, vocab_shard=(i, count), state=path)
        nearly(merge(states, output=tmp_path / "merged.parquet"), expected)
        merged = pq.read_table(tmp_path / "merged.parquet")
        for name in ("row", "rank", "predicted", "weight", "group"):
            assert merged[name].equals(whole[name]), name


SLICES = [("classes-0.npy", 0), ("classes-1.npy", 200), ("classes-2.npy", 333)]


def test_machines_that_hold_one_slice_each(data, tmp_path):
    """A first pass gives the labels' logits; then ranks merge exactly, and losses to the bit of one run."""
    whole = bv.evaluate(**main_job(data, logits=str(data / "classes-*.npy"), vocab_shards=True))
    for i, (name, first) in enumerate(SLICES):
        job = main_job(data, logits=data / name, first_class=first, num_classes=CLASSES)
        with pytest.raises(
            bv.BigvocabError, match="rank counts the logits above the label's, which another slice may hold"
        ):
            bv.evaluate(**job, state=tmp_path / "x.state")
        bv.evaluate(**job | {"metrics": "logsumexp,entropy"}, state=tmp_path / f"plain-{i}.state")
        found = bv.evaluate(**job, save_label_logits=tmp_path / f"{i}.arrow")
        assert 0 < found["label_logits"] < ROWS
    plain = merge([tmp_path / f"plain-{i}.state" for i in (2, 0, 1)])
    assert plain["mean"] == whole["mean"]
    assert "accuracy" not in plain
    for i, (name, first) in enumerate(SLICES):
        job = main_job(data, logits=data / name, first_class=first, num_classes=CLASSES)
        with pytest.raises(bv.BigvocabError, match="whose logit is in none of the files"):
            bv.evaluate(**job, state=tmp_path / "y.state", label_logits=tmp_path / f"{i}.arrow")
        (tmp_path / "y.state").unlink()
        bv.evaluate(**job, state=tmp_path / f"{i}.state", label_logits=[tmp_path / f"{k}.arrow" for k in range(3)])
    assert values_of(merge([tmp_path / f"{i}.state" for i in (2, 0, 1)])) == values_of(whole)


def test_label_logits_of_another_type_are_refused(data, tmp_path):
    """Logits are compared as they are stored: one that this type does not have belongs to other files."""
    name, first = SLICES[0]
    job = main_job(data, logits=data / name, first_class=first, num_classes=CLASSES)
    logits = pa.table({"label_logit": np.linspace(0.1, 0.9, ROWS)})
    with pa.OSFile(str(tmp_path / "other.arrow"), "wb") as sink, pa.ipc.new_file(sink, logits.schema) as writer:
        writer.write_table(logits)
    with pytest.raises(bv.BigvocabError, match=r"row \d+ has 0\.\d+, which is no float32"):
        bv.evaluate(**job, state=tmp_path / "x.state", label_logits=tmp_path / "other.arrow")


def test_ranges_of_classes_that_do_not_fit(data, tmp_path):
    job = main_job(data)
    for i in (1, 2, 3):
        bv.evaluate(**job, vocab_shard=(i, 3), state=tmp_path / f"{i}.state")
    with pytest.raises(bv.BigvocabError, match=r"3\.state: classes 167-333 of 0-500 are missing"):
        merge([tmp_path / "1.state", tmp_path / "3.state"])
    with pytest.raises(bv.BigvocabError, match="classes 334-500 of 0-500 are missing"):
        merge([tmp_path / "1.state", tmp_path / "2.state"])
    shutil.copy(tmp_path / "2.state", tmp_path / "copy.state")
    with pytest.raises(bv.BigvocabError, match="classes 167-333 are in another state too"):
        merge([tmp_path / name for name in ("1.state", "2.state", "copy.state", "3.state")])
    with pytest.raises(bv.BigvocabError, match="goes with sparse-softmax, not with softmax"):
        bv.evaluate(
            logits=data / "logits.npy",
            labels=data / "soft.npy",
            loss="softmax",
            vocab_shard="1/2",
            state=tmp_path / "x",
        )
    with pytest.raises(bv.BigvocabError, match="there are 3 files of classes; expected 1/3"):
        bv.evaluate(
            **job | {"logits": str(data / "classes-*.npy")}, vocab_shards=True, vocab_shard="1/2", state=tmp_path / "x"
        )


# ---- the command


def test_the_command(data, whole, tmp_path, monkeypatch):
    monkeypatch.chdir(data)
    base = ["eval", "--logits", "logits.npy", "--labels", "labels.parquet", "--metrics", METRICS]
    base += ["--weight-column", "weight", "--group-column", "book", "--bytes-column", "bytes", "-q"]
    states = [tmp_path / f"{i}.state" for i in (1, 2)]
    for i, path in enumerate(states, 1):
        assert run(*base, "--shard", f"{i}/2", "--state", path).exit_code == 0
    done = run(
        "merge", *states, "--report", tmp_path / "report.json", "--format", "json", "--fail-if", "perplexity > 1"
    )
    assert done.exit_code == 3
    assert json.loads(done.stdout) == json.loads((tmp_path / "report.json").read_text())
    assert json.loads(done.stdout)["mean"] == whole["mean"]
    report = tmp_path / "none.json"
    refused(run("merge", *states, "--report", report, "--fail-if", "foo > 1"), 2, "the report has no value named 'foo'")
    assert not report.exists()
    refused(run("merge", states[0]), 1, "rows 150-299 of 0-299 are missing")
    refused(run(*base, "--shard", "1/2", "--state", states[0]), 1, "already exists; pass --resume to continue")
    assert run(*base, "--shard", "1/2", "--state", states[0], "--resume").exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard", "0/2"], "expected I/N"),
        (["--shard", "3/2"], "expected I/N"),
        (["--resume"], "'--resume' needs '--state'"),
        (["--vocab-shard", "1/2"], "needs '--state'"),
        (["--vocab-shard", "1/2", "--shard", "1/2", "--state", "s"], "exclude each other"),
        (["--first-class", "3", "--state", "s"], "'--first-class' needs '--num-classes'"),
        (["--label-logits", "x"], "belongs to '--first-class'"),
        (["--report-every", "3"], "'--report-every' needs '--report'"),
        (["--address", "x"], "'--address' needs '--engine ray'"),
        (["--state", "s", "--output", "s"], "expected different files"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    done = run("eval", "--logits", "x.npy", "--labels", "y.npy", *options)
    assert done.exit_code == 2
    assert message in done.stderr


def test_shards_of_a_linear_head_merge_to_the_bits_of_one_run(tmp_path):
    """On the real sample: with other threads and chunks in every shard, merged out of order."""
    kjv = Path(__file__).parents[2] / "data" / "kjv"
    job = {
        "inputs": kjv / "hidden.safetensors",
        "weights": f"{kjv / 'model.safetensors'}::lm_head.weight",
        "biases": f"{kjv / 'model.safetensors'}::lm_head.bias",
        "labels": kjv / "labels_hidden.parquet",
        "group_column": "book",
    }
    paths = [tmp_path / f"{i}.state" for i in (3, 1, 2)]
    for i, path in zip((3, 1, 2), paths, strict=True):
        bv.evaluate(**job, shard=(i, 3), state=path, threads=i, chunk_rows=50 * i)
    times = ("seconds", "rows_per_second", "bytes_per_second", "inputs")
    merged, whole = merge(paths).to_dict(), bv.evaluate(**job).to_dict()
    assert {k: v for k, v in merged.items() if k not in times} == {k: v for k, v in whole.items() if k not in times}


def test_label_logits_of_other_logits_are_refused(data, tmp_path):
    jobs = [main_job(data, logits=data / n, first_class=first, num_classes=CLASSES) for n, first in SLICES]
    for i, job in enumerate(jobs):
        bv.evaluate(**job, save_label_logits=tmp_path / f"{i}.arrow")
    files = [tmp_path / f"{i}.arrow" for i in range(len(SLICES))]
    with pa.OSFile(str(files[1])) as file:
        table = pa.ipc.open_file(file).read_all()
    moved = pa.table({"label_logit": pc.multiply(table["label_logit"], 2.0)})
    with pa.OSFile(str(tmp_path / "moved.arrow"), "wb") as sink, pa.ipc.new_file(sink, moved.schema) as writer:
        writer.write_table(moved)
    stale = [files[0], tmp_path / "moved.arrow", files[2]]
    with pytest.raises(
        bv.BigvocabError, match=r"label_logits: row \d+ has .* for the label \d+, whose logit is .* here"
    ):
        bv.evaluate(**jobs[1], state=tmp_path / "x.state", label_logits=stale)
    for i, known in enumerate((stale, files, files)):
        bv.evaluate(**jobs[i], state=tmp_path / f"{i}.state", label_logits=known)
    with pytest.raises(bv.BigvocabError, match=r"row \d+ has .* as the logit of its label, but .* in another state"):
        merge([tmp_path / f"{i}.state" for i in range(3)])


def test_what_is_no_path_is_named():
    with pytest.raises(TypeError, match="state: expected a path, got int"):
        bv.Evaluator.load(3)
    with pytest.raises(TypeError, match="path: expected a path, got float"):
        bv.Evaluator().save(3.0)
