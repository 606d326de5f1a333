"""Sampled losses of the main path: draws by block, the exact loss beside them, files of candidates, the command."""

import json
import os
import re
from pathlib import Path

import naive
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from sample_jobs import values_of

import bigvocab as bv
from bigvocab.command.cli import cli
from bigvocab.jobs.merging import merge
from bigvocab.sampling.candidates import write_candidates
from bigvocab.sampling.draw_blocks import DRAW_ROWS

ROWS, CLASSES, SIZE, SAMPLED = 1500, 3000, 16, 40
LOSSES = {"sampled-softmax": "sampled_softmax_loss", "nce": "nce_loss"}


@pytest.fixture(scope="module")
def job():
    rng = np.random.default_rng(5)
    return {
        "inputs": rng.standard_normal((ROWS, SIZE)).astype(np.float32),
        "weights": rng.standard_normal((CLASSES, SIZE)).astype(np.float32),
        "biases": rng.standard_normal(CLASSES).astype(np.float32),
        "labels": np.minimum(rng.zipf(1.3, ROWS) - 1, CLASSES - 1),
    }


@pytest.fixture(scope="module")
def vocab(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("".join(f"w{i},{CLASSES - i}\n" for i in range(CLASSES)))
    return path


@pytest.fixture
def files(job, tmp_path):
    for name in ("inputs", "weights", "biases"):
        np.save(tmp_path / f"{name}.npy", job[name])
    table = pa.table({"label": job["labels"], "weight": np.arange(ROWS) % 4 / 2, "book": ["a", "b", "c"] * (ROWS // 3)})
    pq.write_table(table, tmp_path / "labels.parquet", row_group_size=70)
    return tmp_path


def paths(folder):
    return {name: folder / f"{name}.npy" for name in ("inputs", "weights", "biases")} | {
        "labels": folder / "labels.parquet"
    }


# ---- draws


def by_hand(job, loss, sampler, seed, num_sampled=SAMPLED, rows=range(ROWS)):
    """The losses block by block with the array functions."""
    losses = []
    for step, start in enumerate(range(0, len(rows), DRAW_ROWS)):
        part = slice(start, min(start + DRAW_ROWS, len(rows)))
        labels = job["labels"][part, None]
        values = sampler.sample(labels, num_sampled, seed=seed, step=step)
        losses.append(
            getattr(bv, LOSSES[loss])(
                weights=job["weights"], biases=job["biases"], labels=labels, inputs=job["inputs"][part],
                num_sampled=num_sampled, num_classes=CLASSES, sampled_values=values,
            )
        )  # fmt: skip
    return np.concatenate(losses)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["log-uniform", "uniform", "unigram", "learned-unigram", "all"])
def test_every_block_has_a_draw_of_its_own(job, vocab, tmp_path, loss, name):
    sampler = {
        "log-uniform": lambda: bv.LogUniformSampler(CLASSES),
        "uniform": lambda: bv.UniformSampler(CLASSES),
        "unigram": lambda: bv.FixedUnigramSampler(vocab_file=vocab, distortion=0.75),
        "learned-unigram": lambda: bv.LearnedUnigramSampler(CLASSES),
        "all": lambda: bv.AllCandidateSampler(CLASSES),
    }[name]()
    options = {"vocab_file": vocab, "distortion": 0.75} if name == "unigram" else {}
    num_sampled = CLASSES if name == "all" else SAMPLED
    expected = by_hand(job, loss, sampler, (1, 7), num_sampled)
    options |= {"loss": loss, "sampler": name, "seed": (1, 7)} | ({} if name == "all" else {"num_sampled": SAMPLED})
    report = bv.evaluate(**job, **options, output=tmp_path / "losses.parquet")
    assert np.array_equal(pq.read_table(tmp_path / "losses.parquet")["loss"].to_numpy(), expected)
    assert report["mean"] == pytest.approx(expected.mean(), rel=1e-14)
    shown = {"sampler": name, "num_sampled": num_sampled, "seed": [1, 7], "mean": report["mean"]}
    assert report["sampled"] == shown
    assert ("perplexity" in report) == (loss == "sampled-softmax")


@pytest.mark.parametrize("name", ["log-uniform", "learned-unigram"])
@pytest.mark.parametrize("loss", LOSSES)
def test_chunks_and_threads_change_no_bit(files, loss, name):
    options = paths(files) | {
        "loss": loss,
        "sampler": name,
        "num_sampled": SAMPLED,
        "exact": True,
        "group_column": "book",
    }
    options |= {"weight_column": "weight"}
    whole = values_of(bv.evaluate(**options))
    for changed in ({"chunk_rows": 7}, {"chunk_rows": 512}, {"chunk_rows": 513, "threads": 1}, {"threads": 3}):
        assert values_of(bv.evaluate(**options, **changed)) == whole


@pytest.mark.parametrize("loss", LOSSES)
def test_batches_count_rows_from_the_first_seen(job, loss):
    options = {"loss": loss, "num_sampled": SAMPLED, "weights": job["weights"], "biases": job["biases"], "exact": True}
    one, many = bv.Evaluator(**options), bv.Evaluator(**options)
    whole = one.update(job["inputs"], job["labels"])
    parts = [many.update(job["inputs"][a:b], job["labels"][a:b]) for a, b in ((0, 100), (100, 700), (700, 1500))]
    assert np.array_equal(np.concatenate(parts), whole)
    assert many.report().to_dict() == one.report().to_dict()


def test_batches_of_arrow_count_as_well(job):
    options = {"loss": "nce", "num_sampled": SAMPLED, "weights": job["weights"], "label_column": "label"}
    one, many = bv.Evaluator(**options), bv.Evaluator(**options)
    flat = pa.array(job["inputs"].reshape(-1))
    batch = pa.record_batch({"inputs": pa.FixedSizeListArray.from_arrays(flat, SIZE), "label": pa.array(job["labels"])})
    whole = one.update_batch(batch)["loss"].to_numpy()
    parts = [many.update_batch(batch.slice(a, 500))["loss"].to_numpy() for a in (0, 500, 1000)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_ignored_rows_keep_their_place(job):
    table = pa.table({"label": pa.array(job["labels"], mask=np.arange(ROWS) % 5 == 0)})
    options = {name: job[name] for name in ("inputs", "weights", "biases")} | {
        "loss": "sampled-softmax",
        "num_sampled": SAMPLED,
    }
    expected = by_hand(job, "sampled-softmax", bv.LogUniformSampler(CLASSES), 0)
    report = bv.evaluate(**options, labels=table)
    assert (report["rows"], report["ignored_rows"]) == (1200, 300)
    assert report["mean"] == pytest.approx(expected[np.arange(ROWS) % 5 != 0].mean(), rel=1e-13)
    marked = np.where(np.arange(ROWS) % 5 == 0, -100, job["labels"])
    assert values_of(bv.evaluate(**options, labels=marked, ignore_index=-100)) == values_of(report)


def test_several_true_classes_a_row(job):
    rng = np.random.default_rng(1)
    lists = [rng.integers(0, CLASSES, n).tolist() for n in rng.integers(1, 4, ROWS)]
    lists[7] = [5, 5, 9]
    table = pa.table({"label": pa.array(lists)})
    options = {name: job[name] for name in ("inputs", "weights", "biases")} | {"num_sampled": SAMPLED, "exact": True}
    offsets, ids = np.cumsum([0, *map(len, lists)]), np.concatenate(lists)
    logits = job["inputs"].astype(float) @ job["weights"].T.astype(float) + job["biases"]
    for loss, function in LOSSES.items():
        report = bv.evaluate(**options, loss=loss, labels=table)
        evaluator = bv.Evaluator(
            loss=loss, weights=job["weights"], biases=job["biases"], num_sampled=SAMPLED, exact=True
        )
        losses = evaluator.update(job["inputs"], (offsets, ids))
        assert evaluator.report()["sampled"] == report["sampled"]
        values = bv.LogUniformSampler(CLASSES).sample((offsets[:21], ids[: offsets[20]]), SAMPLED, seed=0)
        few = {"labels": (offsets[:21], ids[: offsets[20]]), "inputs": job["inputs"][:20], "sampled_values": values}
        expected = getattr(naive, function)(weights=job["weights"], biases=job["biases"], **few)
        np.testing.assert_allclose(losses[:20], expected, rtol=2e-5)
        exact = []
        for row, true in enumerate(lists):
            t = logits[row, true]
            if loss == "nce":
                rest = np.delete(logits[row], true)
                exact.append(np.logaddexp(0, rest).sum() + (np.logaddexp(0, t) - t / len(t)).sum())
            else:
                exact.append(np.logaddexp.reduce(logits[row]) - t.mean())
        assert report["sampled"]["exact_mean"] == pytest.approx(np.mean(exact), rel=1e-6)


# ---- the exact loss beside


@pytest.mark.parametrize("weighted", [False, True])
def test_bias_and_its_error(job, files, weighted, tmp_path):
    columns = {"weight_column": "weight"} if weighted else {}
    arguments = paths(files) | columns
    report = bv.evaluate(
        **arguments, loss="sampled-softmax", num_sampled=SAMPLED, exact=True, seed=3, output=tmp_path / "s"
    )
    exact = bv.evaluate(**arguments, metrics="", output=tmp_path / "e")
    sampled = report["sampled"]
    assert sampled["exact_mean"] == exact["mean"]
    assert sampled["mean"] == report["mean"]
    w = np.arange(ROWS) % 4 / 2 if weighted else np.ones(ROWS)
    d = pq.read_table(tmp_path / "e")["loss"].to_numpy() - pq.read_table(tmp_path / "s")["loss"].to_numpy()
    mean, n = (w * d).sum() / w.sum(), np.count_nonzero(w)
    assert sampled["bias"] == pytest.approx(mean, rel=1e-12)
    assert sampled["bias_stderr"] == pytest.approx(
        np.sqrt(((w * (d - mean)) ** 2).sum() * n / (n - 1)) / w.sum(), rel=1e-9
    )
    assert sampled["bias"] > 0  # fewer classes, a lower loss


def test_all_candidates_have_no_bias(job):
    sampled = bv.evaluate(**job, loss="sampled-softmax", sampler="all", exact=True)["sampled"]
    assert abs(sampled["bias"]) < 1e-6


def test_the_exact_loss_of_nce_is_the_sigmoid_loss(job):
    report = bv.evaluate(**job, loss="nce", num_sampled=SAMPLED, exact=True)
    ids = [[label] for label in job["labels"].tolist()]
    arguments = {name: job[name] for name in ("inputs", "weights", "biases")}
    sigmoid = bv.evaluate(**arguments, labels=pa.table({"label": ids}), loss="sparse-sigmoid")
    assert report["sampled"]["exact_mean"] == pytest.approx(sigmoid["mean"], rel=1e-14)


def test_merges_are_exact(job, tmp_path):
    write_candidates(tmp_path / "c.arrow", num_sampled=SAMPLED, range_max=CLASSES, seed=3)
    options = {"loss": "sampled-softmax", "candidates": tmp_path / "c.arrow", "weights": job["weights"], "exact": True}
    parts = [bv.Evaluator(**options) for _ in range(3)]
    for part, start in zip(parts, (0, 500, 1000), strict=True):
        part.update(job["inputs"][start : start + 500], job["labels"][start : start + 500])
    reports = []
    for order in ((0, 1, 2), (2, 0, 1)):
        whole = bv.Evaluator(**options)
        for i in order:
            whole.merge(parts[i])
        reports.append(whole.report().to_dict())
    whole = bv.Evaluator(**options)
    whole.update(job["inputs"], job["labels"])
    assert reports[0] == reports[1] == whole.report().to_dict()
    with pytest.raises(bv.BigvocabError, match="draws"):
        parts[0].merge(bv.Evaluator(**(options | {"exact": False})))


def test_draws_of_the_same_rows_cannot_be_merged(job, tmp_path):
    """Each evaluator counts its rows from 0: those of the second would have had other candidates in one evaluator."""
    options = {"loss": "nce", "num_sampled": 4, "weights": job["weights"]}
    parts = [bv.Evaluator(**options) for _ in range(3)]
    for i, part in enumerate(parts[:2]):
        part.update(job["inputs"][:9], job["labels"][:9])
        part.save(tmp_path / f"{i}.state")
    with pytest.raises(bv.BigvocabError, match="merge: both evaluators drew candidates for rows 0, 1, ..., expected"):
        parts[0].merge(parts[1])
    with pytest.raises(bv.BigvocabError, match="merge: both evaluators drew"):
        merge([tmp_path / "0.state", tmp_path / "1.state"])
    parts[2].merge(parts[0])
    assert values_of(parts[2].report()) == values_of(parts[0].report())
    with pytest.raises(bv.BigvocabError, match="draws"):
        parts[0].merge(bv.Evaluator(**(options | {"seed": 1})))


def test_a_class_that_is_never_drawn_is_found_before_any_work(job, tmp_path):
    path, labels = tmp_path / "v.txt", np.zeros(ROWS, np.int64)
    path.write_text("".join(f"w{i},{int(i != 7)}\n" for i in range(CLASSES)))
    labels[-1] = 7
    arguments = {"inputs": job["inputs"], "weights": job["weights"], "labels": labels, "loss": "nce", "num_sampled": 4}
    with pytest.raises(bv.BigvocabError, match=f"row {ROWS - 1} is 7, a class that the sampler 'unigram' never draws"):
        bv.evaluate(**arguments, sampler="unigram", vocab_file=path, state=tmp_path / "s.state", chunk_rows=600)
    assert [found.name for found in tmp_path.iterdir()] == ["v.txt"]


def test_candidates_of_another_vocabulary_are_refused(job, tmp_path):
    path = tmp_path / "c.arrow"
    true = np.minimum(job["labels"], 249)[:, None]
    write_candidates(path, num_sampled=9, range_max=250, seed=3, true_classes=true)
    with pytest.raises(bv.BigvocabError, match=f"c.arrow: was drawn from 250 classes, expected {CLASSES}"):
        bv.Evaluator(loss="nce", candidates=path, weights=job["weights"]).update(job["inputs"], true[:, 0])


def test_learned_draws_cannot_be_merged(job):
    options = {"loss": "nce", "num_sampled": 4, "sampler": "learned-unigram", "weights": job["weights"]}
    with pytest.raises(bv.BigvocabError, match="learned-unigram"):
        bv.Evaluator(**options).merge(bv.Evaluator(**options))


# ---- candidates in a file


@pytest.mark.parametrize("with_true", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_candidates_of_a_file(job, files, vocab, loss, with_true):
    path = files / "c.arrow"
    labels = {"true_classes": files / "labels.parquet"} if with_true else {}
    drawn = write_candidates(
        path, sampler="unigram", vocab_file=vocab, num_sampled=SAMPLED, seed=(3, 4), step=2, **labels
    )
    values = bv.FixedUnigramSampler(vocab_file=vocab).sample(job["labels"][:, None], SAMPLED, seed=(3, 4), step=2)
    assert drawn["num_tries"] == values.num_tries
    with pa.OSFile(str(path)) as file:
        table = pa.ipc.open_file(file).read_all()
    assert table["sampled_candidates"][0].as_py() == values.sampled_candidates.tolist()
    assert table["sampled_expected_count"][0].as_py() == values.sampled_expected_count.tolist()
    assert table["seed"][0].as_py() == [3, 4]
    assert table["sampler"][0].as_py() == "unigram"
    assert table["true_expected_count"][0].as_py() == (values.true_expected_count.tolist() if with_true else None)
    report = bv.evaluate(**paths(files), loss=loss, candidates=path, chunk_rows=100)
    expected = getattr(bv, LOSSES[loss])(
        weights=job["weights"], biases=job["biases"], labels=job["labels"][:, None], inputs=job["inputs"],
        num_sampled=SAMPLED, num_classes=CLASSES, sampled_values=values,
    )  # fmt: skip
    assert report["mean"] == pytest.approx(expected.mean(), rel=1e-14)
    assert report["sampled"] == {"sampler": "unigram", "num_sampled": SAMPLED, "seed": [3, 4], "mean": report["mean"]}


def rewritten(path, **changes):
    with pa.OSFile(str(path)) as file:
        row = pa.ipc.open_file(file).read_all().to_pylist()[0]
    table = pa.Table.from_pylist([{name: value for name, value in (row | changes).items() if value is not ...}])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampled_candidates": list(range(SAMPLED - 1))}, "39 candidates, but 40 expected counts"),
        ({"sampled_candidates": [CLASSES] * SAMPLED}, r"candidate 0 is 3000, expected a class in \[0, 3000\)"),
        ({"sampled_candidates": [1.5] * SAMPLED}, "c.arrow: column 'sampled_candidates': expected list<"),
        ({"sampled_candidates": ["1"] * SAMPLED}, "column 'sampled_candidates': expected list<.*int64>, got list<"),
        ({"sampled_expected_count": [0.0] * SAMPLED}, "expected count 0 is 0.0"),
        ({"range_max": 10}, "was drawn from 10 classes, expected 3000"),
        ({"sampler": "mine"}, "sampler 'mine' cannot compute it"),
        ({"true_classes": [[1]] * ROWS}, "only one of true_classes and true_expected_count"),
        ({"true_classes": [[1]] * 3, "true_expected_count": [[1.0]] * 3}, "has true classes of 3 rows, expected"),
        ({"true_classes": [[1], [2]], "true_expected_count": [[1.0, 1.0], []]}, "expected as many in each row"),
        ({"seed": [1, 2, 3]}, r"seed is \[1, 2, 3\], expected a pair"),
        ({"num_tries": 2}, f"num_tries is 2, expected at least {SAMPLED}"),
    ],
)
def test_bad_files_of_candidates(files, changes, message):
    path = files / "c.arrow"
    write_candidates(path, range_max=CLASSES, num_sampled=SAMPLED, seed=1)
    rewritten(path, **changes)
    with pytest.raises(bv.BigvocabError, match=message):
        bv.evaluate(**paths(files), loss="nce", candidates=path)


def test_a_vocabulary_that_moved(job, files, vocab, monkeypatch, tmp_path):
    monkeypatch.chdir(files)
    Path("v.txt").write_bytes(vocab.read_bytes())
    write_candidates("c.arrow", sampler="unigram", vocab_file="v.txt", num_sampled=SAMPLED, seed=1)
    there = paths(files)
    (files / "elsewhere").mkdir()
    monkeypatch.chdir(files / "elsewhere")
    found = bv.evaluate(**there, loss="nce", candidates="../c.arrow")
    os.rename("../v.txt", "v.txt")
    with pytest.raises(bv.BigvocabError, match=r"c.arrow: was drawn with the vocabulary .*v.txt, which cannot be read"):
        bv.evaluate(**there, loss="nce", candidates="../c.arrow")
    again = bv.evaluate(**there, loss="nce", candidates="../c.arrow", vocab_file="v.txt")
    assert again["mean"] == found["mean"]


def test_a_class_of_weight_0_in_a_file_is_named_by_the_file(tmp_path):
    (tmp_path / "v.txt").write_text("a,1\nb,0\nc,2\n")
    np.save(tmp_path / "true.npy", [0, 2, 1])
    options = {"sampler": "unigram", "vocab_file": tmp_path / "v.txt", "num_sampled": 2, "seed": 1}
    with pytest.raises(bv.BigvocabError, match=r"true.npy: row 2 is 1, a class of weight 0"):
        write_candidates(tmp_path / "c.arrow", **options, true_classes=tmp_path / "true.npy")
    assert not (tmp_path / "c.arrow").exists()


def test_a_file_for_other_labels(job, files):
    path = files / "c.arrow"
    write_candidates(path, range_max=CLASSES, num_sampled=SAMPLED, true_classes=(job["labels"] + 1) % CLASSES)
    with pytest.raises(bv.BigvocabError, match=rf"row 0 is {job['labels'][0]}, but {job['labels'][0] + 1} in "):
        bv.evaluate(**paths(files), loss="nce", candidates=path)


def test_candidates_from_elsewhere_need_only_counts(job, files):
    path, few = files / "c.arrow", {name: job[name][:3] for name in ("inputs", "labels")}
    columns = {
        "sampled_candidates": [[4, 5]],
        "sampled_expected_count": [[0.5, 0.25]],
        "true_classes": [[[int(label)] for label in few["labels"]]],
        "true_expected_count": [[[1.0]] * 3],
    }
    table = pa.table(columns)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    report = bv.evaluate(**few, weights=job["weights"], loss="nce", candidates=path)
    values = ([4, 5], np.ones((3, 1)), [0.5, 0.25])
    expected = naive.nce_loss(job["weights"], np.zeros(CLASSES), few["labels"][:, None], few["inputs"], values)
    assert report["mean"] == pytest.approx(expected.mean(), rel=1e-6)
    assert report["sampled"] == {"sampler": "file", "num_sampled": 2, "mean": report["mean"]}
    assert "2 candidates" in str(report)


# ---- the command


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def head(folder, *more):
    given = [part for name, path in paths(folder).items() for part in (f"--{name}", path)]
    return run("eval", *given, "-q", *more)


def test_the_command(job, files, vocab):
    options = ["--loss", "sampled-softmax", "--num-sampled", SAMPLED, "--seed", "1,7", "--exact", "--format", "json"]
    done = head(files, *options, "--sampler", "unigram", "--vocab-file", vocab, "--distortion", "0.75", "--num-true", 1)
    assert done.exit_code == 0, done.output
    expected = bv.evaluate(
        **paths(files), loss="sampled-softmax", num_sampled=SAMPLED, seed=(1, 7), exact=True, sampler="unigram",
        vocab_file=vocab, distortion=0.75,
    )  # fmt: skip
    assert json.loads(done.stdout)["sampled"] == expected["sampled"]
    table = head(files, "--loss", "nce", "--sampler", "all", "--exact")
    assert "bias" in table.stdout
    assert "exact mean" in table.stdout


def test_sample_and_read_back(files):
    path = files / "c.arrow"
    done = run("sample", "--num-sampled", 8, "--range-max", 1000, "--seed", "1,7", "--output", path)
    assert (done.exit_code, done.stdout) == (0, "")
    assert "8 of 1,000 classes, log-uniform, seed 1,7, step 0, 9 tries" in done.stderr
    with pa.OSFile(str(path)) as file:
        assert pa.ipc.open_file(file).read_all()["sampled_candidates"][0].as_py() == [7, 4, 234, 0, 11, 130, 14, 116]
    run("sample", "--num-sampled", 8, "--range-max", 1000, "--seed", "1,7", "--step", 1, "--output", path)
    with pa.OSFile(str(path)) as file:
        assert pa.ipc.open_file(file).read_all()["sampled_candidates"][0].as_py() == [272, 1, 769, 309, 28, 3, 95, 26]
    run(
        "sample",
        "--num-sampled",
        8,
        "--range-max",
        CLASSES,
        "--true-classes",
        files / "labels.parquet",
        "--output",
        path,
    )
    assert head(files, "--loss", "nce", "--candidates", path).exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--loss", "nce"], "needs '--num-sampled' (or '--candidates')"),
        (["--num-sampled", 3], "'--num-sampled' goes with sampled-softmax, nce, not with sparse-softmax"),
        (["--exact"], "'--exact' goes with sampled-softmax, nce"),
        (["--loss", "nce", "--num-sampled", 3, "--sampler", "unigram"], "'--sampler unigram' needs '--vocab-file'"),
        (
            ["--loss", "nce", "--num-sampled", 3, "--vocab-file", "v"],
            "goes with '--sampler unigram', not with log-uniform",
        ),
        (["--loss", "nce", "--candidates", "c", "--seed", "3"], "'--seed' does not go with '--candidates'"),
        (["--loss", "nce", "--num-sampled", 3, "--seed", "1,2,3"], "expected two whole numbers such as 1,7, or one"),
        (["--loss", "nce", "--num-sampled", 3, "--softcap", 3], "'--softcap' goes with"),
        (["--loss", "nce", "--num-sampled", 3, "--fail-if", "sampled.bias > 1"], "'sampled.bias' needs --exact"),
        (["--loss", "nce", "--num-sampled", 3, "--metrics", "rank"], "rank makes no sense for nce"),
        (["--loss", "nce", "--num-sampled", 3, "--vocab-shard", "1/2", "--state", "s"], "goes with sparse-softmax"),
        *(
            (["--loss", "nce", "--num-sampled", 3, "--sampler", "learned-unigram", *more], f"'{more[0]}' does not go")
            for more in (["--shard", "1/2"], ["--workers", 2], ["--engine", "ray"])
        ),
    ],
)
def test_wrong_commands(files, options, message):
    done = head(files, *options)
    assert done.exit_code == 2
    assert message in re.sub(r"\s+", " ", done.stderr)


def test_wrong_commands_of_sample():
    assert "needs '--range-max'" in run("sample", "--num-sampled", 3, "--output", "x").stderr
    assert "needs '--vocab-file'" in run("sample", "--num-sampled", 3, "--sampler", "unigram", "--output", "x").stderr


def test_conditions_on_the_bias(files):
    options = ["--loss", "sampled-softmax", "--num-sampled", SAMPLED, "--exact", "--fail-if", "sampled.bias > 0.1"]
    assert head(files, *options).exit_code == 3


# ---- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_sampled": CLASSES + 1}, "num_sampled: got 3001 unique candidates, but range_max is 3000"),
        ({"sampler": "uniform"}, 'loss="nce": needs num_sampled'),
        ({"sampler": "zipf", "num_sampled": 3}, "sampler: got 'zipf', expected one of log-uniform"),
        ({"sampler": "unigram", "num_sampled": 3}, 'sampler="unigram": needs vocab_file'),
        ({"distortion": 0.5, "num_sampled": 3}, 'distortion: goes with sampler="unigram", not with log-uniform'),
        ({"num_sampled": 3, "num_true": 0}, "num_true: got 0"),
        ({"num_sampled": 3, "num_true": 2}, "row 0 has 1 true classes, expected 2, as num_true says"),
        ({"num_sampled": 3, "logit_scale": 2.0}, "logit_scale: goes with"),
        ({"sampler": "all", "num_sampled": 100}, "a class that the sampler 'all' never draws"),
    ],
)
def test_bad_options(job, options, message):
    with pytest.raises(bv.BigvocabError, match=message):
        bv.evaluate(**job, loss="nce", **options)


def test_logits_are_not_for_sampled_losses(job):
    with pytest.raises(bv.BigvocabError, match="looks at some classes only: it needs inputs and weights"):
        bv.Evaluator(loss="nce", num_sampled=3)
    with pytest.raises(bv.BigvocabError, match="sampler: goes with sampled-softmax, nce, not with sparse-softmax"):
        bv.Evaluator(sampler="all")


def test_a_vocabulary_of_another_size(job, tmp_path):
    (tmp_path / "v.txt").write_text("a,1\nb,2\n")
    with pytest.raises(bv.BigvocabError, match="range_max: got 3000, but .* has 2 ids"):
        bv.evaluate(**job, loss="nce", sampler="unigram", vocab_file=tmp_path / "v.txt", num_sampled=2)


def test_a_true_class_that_is_never_drawn(job, tmp_path):
    counts = np.ones(CLASSES, int)
    counts[job["labels"][700]] = 0
    first = int(np.argmax(job["labels"] == job["labels"][700]))
    (tmp_path / "v.txt").write_text("".join(f"w,{count}\n" for count in counts))
    with pytest.raises(
        bv.BigvocabError, match=f"row {first} is {job['labels'][700]}, a class that the sampler 'unigram' never draws"
    ):
        bv.evaluate(**job, loss="nce", sampler="unigram", vocab_file=tmp_path / "v.txt", num_sampled=2)


def test_labels_out_of_range(job):
    labels = job["labels"].copy()
    labels[1234] = CLASSES
    with pytest.raises(bv.BigvocabError, match=rf"row 1234 has the id {CLASSES}, expected classes in"):
        bv.evaluate(**(job | {"labels": labels}), loss="nce", num_sampled=2)


def test_states_that_are_not_finite(job):
    inputs = job["inputs"].copy()
    inputs[801] = np.nan
    with pytest.raises(bv.BigvocabError, match="inputs: row 801 is nan in column 0"):
        bv.evaluate(**(job | {"inputs": inputs}), loss="nce", num_sampled=2)
    report = bv.evaluate(**(job | {"inputs": inputs}), loss="nce", num_sampled=2, nonfinite="skip", exact=True)
    assert (report["rows"], report["nonfinite_rows"]) == (ROWS - 1, 1)
    assert np.isfinite(report["sampled"]["bias"])


def test_a_layer_that_is_not_finite_is_not_blamed_on_the_rows(job):
    weights = job["weights"].copy()
    weights[job["labels"][3]] = np.nan
    with pytest.raises(bv.BigvocabError, match="row 0 has the loss nan: the output layer is not finite"):
        bv.Evaluator(loss="nce", weights=weights, num_sampled=3).update(job["inputs"][3:4], job["labels"][3:4])


def test_rows_one_by_one_with_many_tiles_of_candidates(tmp_path):
    """NumPy adds one row of many tiles in another order than two rows."""
    rng = np.random.default_rng(2)
    inputs, weights = rng.standard_normal((40, 8), np.float32), rng.standard_normal((60_000, 8), np.float32)
    layer = {"weights": weights, "num_sampled": 16_384, "seed": 1}
    labels = rng.integers(0, 60_000, 40)
    whole = bv.Evaluator(loss="sampled-softmax", **layer).update(inputs, labels)
    ev = bv.Evaluator(loss="sampled-softmax", **layer)
    assert np.array_equal(np.concatenate([ev.update(inputs[i : i + 1], labels[i : i + 1]) for i in range(40)]), whole)


LEARNED = {"loss": "nce", "sampler": "learned-unigram", "num_sampled": 30, "seed": 5}


def test_draws_that_learn_forget_a_batch_that_failed(job):
    options = LEARNED | {"weights": job["weights"]}
    bad = job["inputs"].copy()
    bad[700] = np.nan
    ev, whole = bv.Evaluator(**options), bv.Evaluator(**options)
    for _ in range(2):
        with pytest.raises(bv.BigvocabError, match="row 700 is nan"):
            ev.update(bad, job["labels"])
    assert np.array_equal(ev.update(job["inputs"], job["labels"]), whole.update(job["inputs"], job["labels"]))


@pytest.mark.parametrize("cut", [3, 512, 700])
def test_draws_that_learn_go_on_from_a_state(job, tmp_path, cut):
    options = LEARNED | {"weights": job["weights"]}
    ev, whole = bv.Evaluator(**options), bv.Evaluator(**options)
    expected = whole.update(job["inputs"], job["labels"])
    ev.update(job["inputs"][:cut], job["labels"][:cut])
    ev.save(tmp_path / "part.state")
    again = bv.Evaluator.load(tmp_path / "part.state")
    assert np.array_equal(again.update(job["inputs"][cut:], job["labels"][cut:]), expected[cut:])
    assert values_of(again.report()) == values_of(whole.report())


def test_exact_values_of_no_rows_are_there(job):
    sampled = bv.Evaluator(loss="nce", weights=job["weights"], num_sampled=3, exact=True).report()["sampled"]
    assert all(np.isnan(sampled[name]) for name in ("mean", "exact_mean", "bias", "bias_stderr"))


def test_samples_never_overwrite_what_they_read(files, vocab):
    labels, words = files / "labels.parquet", files / "v.txt"
    words.write_bytes(vocab.read_bytes())
    before = labels.read_bytes()
    with pytest.raises(bv.BigvocabError, match="labels.parquet: is one of the files that are read"):
        write_candidates(labels, num_sampled=3, range_max=CLASSES, true_classes=labels)
    write_candidates(files / "c.arrow", sampler="unigram", vocab_file=words, num_sampled=SAMPLED)
    with pytest.raises(bv.BigvocabError, match="v.txt: is one of the files that are read"):
        bv.evaluate(**paths(files), loss="nce", candidates=files / "c.arrow", output=words)
    assert (labels.read_bytes(), words.read_bytes()) == (before, vocab.read_bytes())


def test_labels_that_a_file_of_candidates_does_not_fit_are_known_before_any_work(job, files):
    path = files / "c.arrow"
    write_candidates(path, range_max=CLASSES, num_sampled=SAMPLED, true_classes=job["labels"][:1000])
    with pytest.raises(bv.BigvocabError, match=f"has true classes of 1000 rows, expected {ROWS}, as there are labels"):
        bv.evaluate(**paths(files), loss="nce", candidates=path)
    with pytest.raises(bv.BigvocabError, match=r"vocab_file: .*c.arrow has the expected counts of its rows"):
        bv.evaluate(**paths(files), loss="nce", candidates=path, vocab_file="none")
    (files / "v.txt").write_text("".join(f"w,{i + 1 if i != job['labels'][-1] else 0}\n" for i in range(CLASSES)))
    write_candidates(path, sampler="unigram", vocab_file=files / "v.txt", num_sampled=SAMPLED)
    first = int(np.argmax(job["labels"] == job["labels"][-1]))
    with pytest.raises(bv.BigvocabError, match=f"row {first} is {job['labels'][-1]}, whose expected count"):
        bv.evaluate(**paths(files), loss="nce", candidates=path, progress=lambda *_: pytest.fail("work was begun"))


def test_a_vocabulary_that_is_not_there(tmp_path):
    with pytest.raises(bv.BigvocabError, match="none.txt: cannot be read: No such file"):
        bv.FixedUnigramSampler(vocab_file=tmp_path / "none.txt")


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view()])
def test_candidates_with_other_types_of_text(files, kind):
    path = files / "c.arrow"
    write_candidates(path, range_max=CLASSES, num_sampled=SAMPLED, seed=1)
    expected = bv.evaluate(**paths(files), loss="nce", candidates=path)["mean"]
    with pa.OSFile(str(path)) as file:
        table = pa.ipc.open_file(file).read_all()
    at = table.column_names.index("sampler")
    table = table.set_column(at, "sampler", table["sampler"].cast(kind))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    assert bv.evaluate(**paths(files), loss="nce", candidates=path)["mean"] == expected


def test_the_vocabulary_of_candidates_tells_jobs_apart(job, files, monkeypatch):
    monkeypatch.chdir(files)
    counts = np.arange(CLASSES) + 1
    for name, values in (("a.txt", counts), ("b.txt", counts[::-1])):
        with open(name, "w") as file:
            file.writelines(f"w,{n}\n" for n in values)
    write_candidates("c.arrow", sampler="unigram", vocab_file="a.txt", num_sampled=SAMPLED, seed=1)
    options = paths(files) | {"loss": "nce", "candidates": "c.arrow"}
    with pytest.raises(bv.BigvocabError, match=r"c.arrow: candidate \d+, \d+, has the expected count .*b.txt"):
        bv.evaluate(**options, vocab_file="b.txt")
    bv.evaluate(**options, vocab_file="a.txt", shard="1/2", state="1.state")
    with open("a.txt", "a") as file:
        file.write("")
    with open("d.txt", "w") as file:  # the same shares, other bytes
        file.writelines(f"word,{n}\n" for n in counts)
    bv.evaluate(**options, vocab_file="d.txt", shard="2/2", state="2.state")
    with pytest.raises(bv.BigvocabError, match="2.state: draws vocab_file is"):
        merge(["1.state", "2.state"])


def test_labels_outside_all_candidates_of_a_file(job, files):
    write_candidates(files / "c.arrow", sampler="all", range_max=CLASSES, num_sampled=5)
    with pytest.raises(bv.BigvocabError, match="whose expected count in .*c.arrow is 0.0"):
        bv.evaluate(**paths(files), loss="nce", candidates=files / "c.arrow")


def test_a_seed_may_be_text_and_may_be_unknown(job, files):
    one, other = (bv.evaluate(**job, loss="nce", num_sampled=9, seed=seed)["mean"] for seed in ("1,7", (1, 7)))
    assert one == other
    with pytest.raises(bv.BigvocabError, match="seed: got '1;7'"):
        bv.evaluate(**job, loss="nce", num_sampled=9, seed="1;7")
    path = files / "c.arrow"
    write_candidates(path, range_max=CLASSES, num_sampled=SAMPLED, seed=1)
    rewritten(path, seed=...)
    report = bv.evaluate(**paths(files), loss="nce", candidates=path)
    assert "seed" not in report["sampled"]
    assert ", seed" not in str(report)
