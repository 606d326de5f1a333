"""Every loss through evaluate, Evaluator and the command: the same values from files and arrays, in any split, and
bad labels named."""

import json

import click.testing
import ml_dtypes
import naive
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file
from sample_jobs import values_of

import bigvocab as bv
from bigvocab.command.cli import cli
from bigvocab.losses.softmax import LOSSES

ROWS, CLASSES = 240, 701
NEW = ["softmax", "softmax/sparse", "sigmoid", "weighted-sigmoid", "sparse-sigmoid", "log-loss"]
LIKELIHOODS = ("perplexity", "perplexity_stderr", "bits_per_token", "bits_per_byte")
RANKS = ("accuracy", "mean_rank", "mrr", "tied_rows")


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(5)
    logits = (rng.standard_normal((ROWS, CLASSES)) * 3 - 4).astype(np.float32)
    soft = rng.random((ROWS, CLASSES)).astype(np.float32)
    soft /= soft.sum(1, keepdims=True)
    sets = [np.sort(rng.choice(CLASSES, int(n), replace=False)) for n in rng.integers(0, 6, ROWS)]
    return {
        "logits": logits,
        "predictions": 1 / (1 + np.exp(-logits)),
        "soft": soft,
        "hard": (rng.random((ROWS, CLASSES)) < 0.05).astype(np.float32),
        "offsets": np.cumsum([0, *map(len, sets)]),
        "ids": np.concatenate(sets),
        "shares": rng.random(sum(map(len, sets))),
        "ignored": rng.random(ROWS) < 0.1,
        "weight": rng.choice([0.0, 0.5, 2.0], ROWS),
        "group": rng.choice(["Ruth", "Mark"], ROWS),
        "pos_weight": rng.random(CLASSES) + 0.5,
    }


def case(data, name):
    """(loss, logits, labels as arrays, labels as a column, options, loss of each row by the oracle)."""
    x, sets = data["logits"].astype(np.float64), (data["offsets"], data["ids"])
    lists = pa.LargeListArray.from_arrays(*sets)
    if name == "softmax":
        return (
            "softmax",
            data["logits"],
            data["soft"],
            fixed(data["soft"]),
            {},
            naive.softmax_cross_entropy(x, data["soft"]),
        )
    if name == "softmax/sparse":
        dense = np.zeros((ROWS, CLASSES))
        dense[np.repeat(np.arange(ROWS), np.diff(sets[0])), sets[1]] = data["shares"]
        columns = {"label": lists, "share": pa.LargeListArray.from_arrays(sets[0], data["shares"])}
        return "softmax", data["logits"], (*sets, data["shares"]), columns, {}, naive.softmax_cross_entropy(x, dense)
    if name == "sparse-sigmoid":
        losses = naive.sparse_sigmoid_cross_entropy(x, sets, data["pos_weight"])
        return name, data["logits"], sets, lists, {"pos_weight": data["pos_weight"]}, losses
    if name == "log-loss":
        losses = naive.log_loss(data["predictions"], data["hard"], 1e-4).sum(1)
        return name, data["predictions"], data["hard"], fixed(data["hard"]), {"epsilon": 1e-4}, losses
    if name == "weighted-sigmoid":
        losses = naive.weighted_sigmoid_cross_entropy(x, data["hard"], 2.5).sum(1)
        return name, data["logits"], data["hard"], fixed(data["hard"]), {"pos_weight": 2.5}, losses
    losses = naive.sigmoid_cross_entropy(x, data["hard"], 0.1).sum(1)
    return name, data["logits"], data["hard"], fixed(data["hard"]), {"label_smoothing": 0.1}, losses


def fixed(array, mask=None):
    flat = pa.array(np.ascontiguousarray(array).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, array.shape[1], mask=None if mask is None else pa.array(mask))


def table(labels, **columns):
    return pa.table({**(labels if isinstance(labels, dict) else {"label": labels}), **columns})


def write(table, path):
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=67)
        return
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=71)


@pytest.mark.parametrize("name", NEW)
def test_values_are_those_of_the_oracle(data, name):
    loss, logits, labels, _, options, expected = case(data, name)
    report = bv.evaluate(logits=logits, labels=labels, loss=loss, **options)
    assert report["loss"] == loss
    assert report["rows"] == report["weight"] == ROWS
    assert report["mean"] == pytest.approx(expected.mean(), rel=1e-6)
    assert report["sum"] == pytest.approx(expected.sum(), rel=1e-6)
    assert report["stderr"] == pytest.approx(naive.stderr(expected), rel=1e-5)
    ev = bv.Evaluator(loss=loss, **options)
    np.testing.assert_allclose(ev.update(logits, labels), expected, rtol=1e-6)
    assert values_of(ev.report()) == values_of(report)


@pytest.mark.parametrize("name", NEW)
def test_the_report_holds_what_makes_sense_and_nothing_else(data, name):
    loss, logits, labels, _, options, _ = case(data, name)
    report = bv.evaluate(logits=logits, labels=labels, loss=loss, **options)
    names = set(report.to_dict())
    assert not names & set(RANKS)
    if loss == "softmax":
        whole = name == "softmax"  # lists that do not sum to 1 have no perplexity
        assert ("perplexity" in names, "label_mass" in names) == (whole, not whole)
        assert not whole or report["perplexity"] == pytest.approx(np.exp(report["mean"]))
        assert set(report["logsumexp"]) == {"mean", "min", "max"}
        more = bv.evaluate(logits=logits, labels=labels, loss=loss, metrics="entropy,logsumexp,predicted")
        x = logits.astype(np.float64)
        assert more["entropy"] == pytest.approx(naive.entropy(x).mean(), rel=1e-6)
        assert more["logsumexp"]["mean"] == pytest.approx(naive.logsumexp(x).mean(), rel=1e-6)
    else:
        assert not names & {*LIKELIHOODS, "logsumexp", "entropy"}
    assert report["loss"] in str(report)
    assert "null" not in report.to_json()
    for metric in ("rank", "accuracy"):
        with pytest.raises(bv.BigvocabError, match=f"metrics: {metric} makes no sense for {loss}"):
            bv.Evaluator(loss=loss, metrics=metric, **options)


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize("name", NEW)
def test_files_with_weights_groups_and_ignored_rows(data, tmp_path, name, suffix):
    loss, logits, _, column, options, losses = case(data, name)
    if name == "softmax/sparse":
        options = {**options, "probability_column": "share"}
        shares = pa.array(column["share"].to_pylist(), mask=data["ignored"])
        column = {"label": pa.array(column["label"].to_pylist(), mask=data["ignored"]), "share": shares}
    elif name == "sparse-sigmoid":
        column = pa.array(column.to_pylist(), pa.list_(pa.int32()), mask=data["ignored"])
    else:
        values = data["soft"] if name == "softmax" else data["hard"]
        column = fixed(values, data["ignored"])
    np.save(tmp_path / "logits.npy", logits)
    labels = tmp_path / f"labels.{suffix}"
    write(table(column, weight=data["weight"], book=data["group"]), labels)
    options |= {"loss": loss, "label_column": "label", "weight_column": "weight", "group_column": "book"}
    out = tmp_path / "losses.parquet"
    report = bv.evaluate(logits=tmp_path / "logits.npy", labels=labels, output=out, **options)
    kept, weight = ~data["ignored"], data["weight"]
    assert report["ignored_rows"] == data["ignored"].sum()
    assert report["mean"] == pytest.approx(naive.compute_weighted_loss(losses[kept], weight[kept], "mean"), rel=1e-6)
    for reduction, value in report["reductions"].items():
        assert value == pytest.approx(naive.compute_weighted_loss(losses[kept], weight[kept], reduction), rel=1e-6)
    assert set(report["groups"]) == {"Ruth", "Mark"}
    assert ("perplexity" in report["groups"]["Ruth"]) == (name == "softmax")
    written = pq.read_table(out)
    assert written.column("loss").null_count == data["ignored"].sum()
    np.testing.assert_allclose(written.column("loss").to_numpy()[kept], losses[kept], rtol=1e-6)
    again = bv.evaluate(logits=tmp_path / "logits.npy", labels=labels, chunk_rows=7, threads=1, **options)
    assert values_of(again) == values_of(report)


@pytest.mark.parametrize("name", NEW)
def test_any_split_any_order_any_threads_the_same_bits(data, name):
    loss, logits, labels, _, options, _ = case(data, name)
    whole = values_of(bv.evaluate(logits=logits, labels=labels, loss=loss, **options))

    def rows(a, b):
        if not isinstance(labels, tuple):
            return labels[a:b]
        first, last = labels[0][a], labels[0][b]
        return (labels[0][a : b + 1] - first, *(part[first:last] for part in labels[1:]))

    for cuts, threads in (([0, 1, 100, ROWS], 1), ([0, 239, ROWS], 3)):
        parts = []
        for a, b in zip(cuts[:-1], cuts[1:], strict=True):
            parts.append(bv.Evaluator(loss=loss, threads=threads, **options))
            parts[-1].update(logits[a:b], rows(a, b))
        total = bv.Evaluator(loss=loss, **options)
        for part in reversed(parts):
            total.merge(part)
        assert values_of(total.report()) == whole


@pytest.mark.parametrize("name", NEW)
def test_vocab_shards(data, tmp_path, name):
    loss, logits, labels, _, options, losses = case(data, name)
    for i, (a, b) in enumerate([(0, 300), (300, 301), (301, CLASSES)]):
        np.save(tmp_path / f"shard-{i}.npy", np.ascontiguousarray(logits[:, a:b]))
    out = tmp_path / "losses.parquet"
    bv.evaluate(
        logits=str(tmp_path / "shard-*.npy"), labels=labels, loss=loss, vocab_shards=True, output=out, **options
    )
    np.testing.assert_allclose(pq.read_table(out).column("loss").to_numpy(), losses, rtol=1e-6)


@pytest.mark.parametrize("name", ["softmax", "sigmoid", "log-loss"])
def test_labels_in_a_second_matrix(data, tmp_path, name):
    loss, logits, labels, column, options, _ = case(data, name)
    expected = values_of(bv.evaluate(logits=logits, labels=labels, loss=loss, **options))
    np.save(tmp_path / "soft.npy", labels)
    np.save(tmp_path / "fortran.npy", np.asfortranarray(labels))
    save_file({"soft": labels, "other": labels[:, :3].copy()}, tmp_path / "soft.safetensors")
    np.save(tmp_path / "part-1.npy", labels[:100])
    np.save(tmp_path / "part-2.npy", labels[100:])
    write(table(column), tmp_path / "soft.arrow")
    sources = ["soft.npy", "fortran.npy", "soft.safetensors::soft", "soft.arrow", "soft.arrow::label"]
    (tmp_path / "folder").mkdir()
    save_file({"soft": labels[:100]}, tmp_path / "folder" / "part-1.safetensors")
    save_file({"soft": labels[100:]}, tmp_path / "folder" / "part-2.safetensors")
    paths = [str(tmp_path / source) for source in sources]
    paths += [[tmp_path / "part-1.npy", tmp_path / "part-2.npy"], tmp_path / "folder", tmp_path / "part-*.npy"]
    for path in paths:
        report = bv.evaluate(logits=logits, labels=path, loss=loss, **options)
        assert values_of(report) == expected, path
        assert len(report["inputs"]) == (3 if isinstance(path, list) or "fold" in str(path) or "*" in str(path) else 2)
    assert values_of(bv.evaluate(logits=logits, labels=bv.open_matrix(paths[0]), loss=loss, **options)) == expected
    half = bv.evaluate(logits=logits, labels=labels.astype(ml_dtypes.bfloat16), loss=loss, **options)
    assert half["mean"] == pytest.approx(expected["mean"], rel=0.02)


def test_hard_labels_as_integers(data):
    """0 and 1 of any integer type, V per row, or one per row where there is one class."""
    expected = bv.evaluate(logits=data["logits"], labels=data["hard"], loss="sigmoid")["mean"]
    whole = data["hard"].astype(np.uint8)
    column = pa.FixedSizeListArray.from_arrays(pa.array(whole.reshape(-1)), CLASSES)
    for labels in (whole, pa.table({"label": column}), whole.tolist()):
        assert bv.evaluate(logits=data["logits"], labels=labels, loss="sigmoid")["mean"] == expected
    x, z = data["logits"][:, :1], data["hard"][:, 0].astype(int)
    binary = naive.sigmoid_cross_entropy(x, z[:, None]).mean()
    assert bv.evaluate(logits=x, labels=z, loss="sigmoid")["mean"] == pytest.approx(binary)
    assert bv.Evaluator(loss="sigmoid").update(x, z).mean() == pytest.approx(binary)


def test_transforms_apply_to_stored_logits(data):
    scale, cap = 0.5, 4.0
    y = cap * np.tanh(scale * data["logits"].astype(np.float64) / cap)
    for name in NEW[:-1]:
        loss, logits, labels, _, options, _ = case(data, name)
        got = bv.Evaluator(loss=loss, logit_scale=scale, softcap=cap, **options).update(logits, labels)
        np.testing.assert_allclose(got, bv.Evaluator(loss=loss, **options).update(y, labels), rtol=1e-6)
        got = bv.Evaluator(loss=loss, logit_scale=scale, **options).update(logits, labels)
        np.testing.assert_allclose(
            got, bv.Evaluator(loss=loss, **options).update(logits * np.float64(scale), labels), rtol=1e-6
        )


def test_padded_classes(data):
    for name in ("softmax", "sigmoid", "log-loss"):
        loss, logits, labels, _, options, _ = case(data, name)
        got = bv.evaluate(logits=logits, labels=labels[:, :500].copy(), loss=loss, num_classes=500, **options)["mean"]
        cut = bv.evaluate(logits=logits[:, :500].copy(), labels=labels[:, :500].copy(), loss=loss, **options)["mean"]
        assert got == cut


@pytest.mark.parametrize("name", NEW)
def test_rows_that_are_not_finite(data, name):
    loss, logits, labels, _, options, losses = case(data, name)
    broken = logits.copy()
    broken[17, 3] = np.nan
    with pytest.raises(bv.BigvocabError, match="logits: row 17 holds a NaN"):
        bv.evaluate(logits=broken, labels=labels, loss=loss, **options)
    report = bv.evaluate(logits=broken, labels=labels, loss=loss, nonfinite="skip", **options)
    assert (report["rows"], report["nonfinite_rows"]) == (ROWS - 1, 1)
    assert report["mean"] == pytest.approx(np.delete(losses, 17).mean(), rel=1e-6)
    assert np.isnan(bv.evaluate(logits=broken, labels=labels, loss=loss, nonfinite="keep", **options)["mean"])


@pytest.mark.parametrize("name", NEW)
def test_arrow_batches_in_a_pipeline(data, name):
    loss, logits, _, column, options, losses = case(data, name)
    columns = {"label_column": "label"} | ({"probability_column": "share"} if name == "softmax/sparse" else {})
    batch = table(column).append_column("logits", fixed(logits))
    ev = bv.Evaluator(loss=loss, **options, **columns)
    got = [ev.update_batch(batch.slice(a, 100)).column("loss").to_numpy() for a in range(0, ROWS, 100)]
    np.testing.assert_allclose(np.concatenate(got), losses, rtol=1e-6)
    assert ev.report()["rows"] == ROWS


def test_sliced_lists(data):
    """`.values` of a sliced list ignores the slice: a classic."""
    loss, logits, labels, column, options, losses = case(data, "sparse-sigmoid")
    part = pa.table({"label": column}).slice(33, 50)
    assert bv.evaluate(logits=logits[33:83], labels=part, loss=loss, **options)["mean"] == pytest.approx(
        losses[33:83].mean(), rel=1e-6
    )


# ---- bad input


def bad_cases(data):
    x, offsets, ids, shares = (data[name] for name in ("logits", "offsets", "ids", "shares"))
    row = int(np.argmax(np.diff(offsets) >= 2))
    at = offsets[row]

    def put(array, place, value):
        copy = array.copy()
        copy[place] = value
        return copy

    twice = put(ids, at, ids[at + 1])
    lists = pa.LargeListArray.from_arrays(offsets, ids)
    short = pa.array([probabilities[:-1] for probabilities in [[0.5, 0.5]] * ROWS])
    ones = pa.table({"label": pa.array([[1, 2]] * ROWS), "share": short})
    yield (
        "softmax",
        x,
        np.arange(ROWS),
        {},
        "labels: got one integer per row, expected a matrix or fixed-size lists of floats",
    )
    yield "softmax", x, pa.table({"label": lists}), {}, "row 4 has no true class"
    yield "softmax", x, data["soft"][:, :-1], {}, "labels: 700 labels per row, expected 701"
    yield "softmax", x, data["soft"][:-1], {}, "labels: 239 rows of labels, but logits has 240"
    yield "softmax", x, put(data["soft"], (200, 7), np.nan), {}, "labels: row 200, class 7, is nan"
    yield "softmax", x, (offsets, put(ids, at, 701), shares), {}, f"labels: .*row {row} has the id 701"
    yield "softmax", x, (offsets, ids, put(shares, at, np.nan)), {}, f"labels: row {row} has the probability nan"
    yield "softmax", x, (offsets, ids, shares[:-1]), {}, "expected as many"
    yield "softmax", x, ones, {"probability_column": "share"}, "row 0: expected as many probabilities as ids, 2, got 1"
    yield "sparse-sigmoid", x, (offsets, put(ids, at, -1)), {}, f"labels: row {row} has the id -1"
    yield "sparse-sigmoid", x, (offsets, twice), {}, f"labels: row {row} has the id {ids[at + 1]} twice"
    yield "sparse-sigmoid", x, np.arange(ROWS), {}, "got one integer per row, expected lists of the ids"
    yield "sparse-sigmoid", x, data["hard"], {}, "got floats, expected lists of the ids"
    yield "sparse-sigmoid", x, np.zeros((ROWS, 1), int), {"pos_weight": np.ones(3)}, r"pos_weight: got shape \(3,\)"
    yield (
        "sparse-sigmoid",
        x,
        pa.table({"label": pa.array([[1, None]] * ROWS)}),
        {},
        "row 0: expected no null inside a list",
    )
    yield (
        "sigmoid",
        x,
        pa.table({"label": lists}),
        {},
        "expected 701, one for each class; ids of positive classes are for sparse",
    )
    yield "sigmoid", x, np.full((ROWS, CLASSES), 2), {}, "labels: row 0 has the label 2, expected 0 or 1"
    yield "sigmoid", x, put(data["hard"], (239, 700), np.inf), {}, "labels: row 239, class 700, is inf"
    yield "weighted-sigmoid", x, data["hard"], {}, 'loss="weighted-sigmoid": needs pos_weight'
    yield "log-loss", x, data["hard"], {}, r"logits: row 0, class \d+, is .*, expected a probability in \[0, 1\]"
    yield "log-loss", put(data["predictions"], (123, 4), 1.25), data["hard"], {}, "row 123, class 4, is 1.25"
    yield "log-loss", data["predictions"], data["hard"], {"epsilon": 2.0}, "epsilon: got 2.0"
    yield "log-loss", data["predictions"], data["hard"], {"softcap": 3.0}, "softcap: goes with .*, not with log-loss"
    yield "softmax", x, data["soft"], {"ignore_index": 3}, "ignore_index: goes with sparse-softmax.*, not with softmax"
    yield "sigmoid", x, data["hard"], {"class_weights": np.ones(CLASSES)}, "class_weights: goes with sparse-softmax"
    yield "softmax", x, data["soft"], {"pos_weight": 2.0}, "pos_weight: goes with weighted-sigmoid, sparse-sigmoid"
    yield "softmax", x, fixed(data["soft"], np.ones(ROWS, bool)), {}, "all 240 rows are ignored"
    yield "sparse-sigmoid", x, pa.array([None] * ROWS, pa.list_(pa.int64())), {}, "all 240 rows are ignored"
    yield "focal", x, data["soft"], {}, "loss: got 'focal', expected one of sparse-softmax, softmax"


def test_bad_input_is_named_and_leaves_nothing(data, tmp_path):
    seen = 0
    for loss, logits, labels, options, message in bad_cases(data):
        with pytest.raises(bv.BigvocabError, match=message):
            bv.evaluate(logits=logits, labels=labels, loss=loss, output=tmp_path / "losses.parquet", **options)
        assert not list(tmp_path.iterdir()), message
        seen += 1
    assert seen == 29


def test_a_bad_batch_counts_in_no_value(data):
    ev = bv.Evaluator(loss="sparse-sigmoid")
    ev.update(data["logits"][:2], [[1], [2]])
    for labels in ([[1], [701]], [[1, 1], [2, 3]], ([0, 1], [1]), [1, 2]):
        with pytest.raises(bv.BigvocabError):
            ev.update(data["logits"][:2], labels)
    assert ev.report()["rows"] == 2


def test_evaluators_of_other_options_do_not_merge():
    one, other = bv.Evaluator(loss="sparse-sigmoid", pos_weight=2.0), bv.Evaluator(loss="sparse-sigmoid")
    with pytest.raises(bv.BigvocabError, match="merge: pos_weight is 2.0 here and None there"):
        one.merge(other)


# ---- output layer in place of logits


def test_an_output_layer(data):
    rng = np.random.default_rng(9)
    inputs, layer = (
        rng.standard_normal((ROWS, 16)).astype(np.float32),
        rng.standard_normal((CLASSES, 16)).astype(np.float32),
    )
    written = inputs.astype(np.float64) @ layer.astype(np.float64).T
    for name in ("softmax", "softmax/sparse", "sparse-sigmoid", "sigmoid", "weighted-sigmoid"):
        loss, _, labels, _, options, _ = case(data, name)
        got = bv.Evaluator(loss=loss, weights=layer, **options).update(inputs, labels)
        expected = bv.Evaluator(loss=loss, **options).update(written, labels)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


# ---- the command


def command(*arguments):
    result = click.testing.CliRunner().invoke(cli, ["eval", *map(str, arguments), "--quiet"])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("name", NEW)
def test_the_command(data, tmp_path, name):
    loss, logits, labels, column, options, losses = case(data, name)
    np.save(tmp_path / "logits.npy", logits)
    write(table(column), tmp_path / "labels.arrow")
    arguments = ["--logits", tmp_path / "logits.npy", "--labels", tmp_path / "labels.arrow", "--loss", loss]
    arguments += ["--label-column", "label"] + ["--probability-column", "share"] * (name == "softmax/sparse")
    for option, value in options.items():
        if isinstance(value, np.ndarray):
            np.save(tmp_path / "pos.npy", value)
            value = tmp_path / "pos.npy"
        arguments += [f"--{option.replace('_', '-')}", value]
    code, out, err = command(*arguments, "--format", "json")
    assert (code, err) == (0, "")
    values = json.loads(out)
    assert values["loss"] == loss
    assert values["mean"] == pytest.approx(losses.mean(), rel=1e-6)
    assert not set(values) & {*RANKS, *(LIKELIHOODS if loss != "softmax" else ())}
    assert command(*arguments)[1].startswith(f" loss           {loss}") or loss in command(*arguments)[1]
    assert command(*arguments, "--metrics", "accuracy")[0] == 2
    assert command(*arguments, "--fail-if", "mean > 0")[0] == 3
    wrong = ["--fail-if", "perplexity > 1"] if loss != "softmax" else ["--pos-weight", "2"]
    assert command(*arguments, *wrong)[0] == 2


def test_the_command_with_a_matrix_of_labels(data, tmp_path):
    np.save(tmp_path / "logits.npy", data["logits"])
    save_file({"soft": data["soft"]}, tmp_path / "soft.safetensors")
    arguments = ("--logits", tmp_path / "logits.npy", "--labels", tmp_path / "soft.safetensors", "--loss", "softmax")
    code, out, _ = command(*arguments, "--format", "json")
    assert code == 0
    assert json.loads(out)["inputs"][1]["dtype"] == "float32"
    code, _, err = command(*arguments, "--weight-column", "weight")
    assert code == 1
    assert "is a matrix and has no columns" in err


def test_the_command_says_what_is_wrong(data, tmp_path):
    np.save(tmp_path / "p.npy", np.where(data["predictions"] > 0.99, 2.0, data["predictions"]))
    np.save(tmp_path / "z.npy", data["hard"])
    code, out, err = command("--logits", tmp_path / "p.npy", "--labels", tmp_path / "z.npy", "--loss", "log-loss")
    assert (code, out) == (1, "")
    assert "p.npy: row 0" in err or "p.npy: row" in err
    assert "expected a probability in [0, 1]" in err
    assert "Traceback" not in err


def test_every_loss_of_the_table_has_a_case():
    assert {name.split("/")[0] for name in NEW} | {"sparse-softmax"} <= set(LOSSES)
