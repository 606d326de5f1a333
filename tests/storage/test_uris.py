"""URIs wherever a path is read: the same answer as from a path, for files, object stores and the web."""

import contextlib
import io
import json
import shutil
import struct
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from commands import refused, run
from fault_server import serving
from gguf_files import gguf_bytes, model_keys, plain_tensor
from safetensors.numpy import save_file

import bigvocab as bv
from bigvocab.storage import attempts

ROWS, CLASSES, SIZE = 60, 50, 8
RNG = np.random.default_rng(1)
LOGITS = RNG.normal(size=(ROWS, CLASSES)).astype(np.float32)
STATES = RNG.normal(size=(ROWS, 3, SIZE)).astype(np.float32)
LAYER = RNG.normal(size=(CLASSES, SIZE)).astype(np.float32)
ONES = np.ones(SIZE, np.float32)
LABELS = np.arange(ROWS) % CLASSES
LLAMA = Path(__file__).parents[1] / "data/llama/kjv-751/base.kld"


def write_files(folder):
    np.save(folder / "logits.npy", LOGITS)
    np.save(folder / "inputs.npy", STATES[:, 0])
    np.save(folder / "layer.npy", LAYER)
    np.save(folder / "labels.npy", LABELS)
    LABELS.astype(np.uint16).tofile(folder / "labels.bin")
    (folder / "vocab.txt").write_text("".join(f"w{i},{i + 1}\n" for i in range(CLASSES)))
    bv.write_candidates(folder / "candidates.arrow", num_sampled=8, range_max=CLASSES, seed=(1, 7))
    for i in (1, 2):
        bv.evaluate(logits=LOGITS, labels=LABELS, vocab_shard=(i, 2), save_label_logits=folder / f"known-{i}.arrow")
    bv.evaluate(logits=LOGITS, labels=LABELS, state=folder / "all.state", report=folder / "report.json")
    shutil.copy(LLAMA, folder / "base.kld")
    shutil.copy(LLAMA.parents[1] / "tiny-259/Q4_0.gguf", folder)
    write_gguf_set(folder / "set")
    shutil.copy(folder / "set/m-00001-of-00002.gguf", folder / "lone-00001-of-00002.gguf")
    np.savez(folder / "two.npz", x=LOGITS, y=LABELS)
    (folder / "labels.csv").write_text("label\n" + "".join(f"{label}\n" for label in LABELS))
    pq.write_table(pa.table({"label": LABELS}), folder / "labels.parquet")
    (folder / "parts").mkdir()
    for i, part in enumerate(np.split(LOGITS, 3)):
        np.save(folder / f"parts/part-{i}.npy", part)
    (folder / "mixed").mkdir()
    np.save(folder / "mixed/a.npy", LOGITS)
    pq.write_table(pa.table({"label": LABELS}), folder / "mixed/b.parquet")
    (folder / "mixed/_SUCCESS").write_text("")
    write_model(folder / "model")


def write_gguf_set(folder):
    """A model in two files, the layer in the second."""
    folder.mkdir()
    tensors = ([plain_tensor("output_norm.weight", ONES)], [plain_tensor("output.weight", LAYER)])
    for number, held in enumerate(tensors):
        keys = {"split.no": (2, struct.pack("<H", number)), "split.count": (2, struct.pack("<H", 2))}
        more = {} if number else model_keys() | {"split.tensors.count": (5, struct.pack("<i", 2))}
        (folder / f"m-{number + 1:05d}-of-00002.gguf").write_bytes(gguf_bytes(keys | more, held))


def write_model(folder):
    folder.mkdir()
    config = {"model_type": "llama", "vocab_size": CLASSES, "hidden_size": SIZE, "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "empty.txt").write_text("")
    shards = {"model-1.safetensors": {"lm_head.weight": LAYER}, "model-2.safetensors": {"model.norm.weight": ONES}}
    for name, tensors in shards.items():
        save_file(tensors, folder / name)
    index = {"weight_map": {tensor: name for name, tensors in shards.items() for tensor in tensors}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    """From the name of a file to what names it: by kind of place."""
    folder = tmp_path_factory.mktemp("files")
    write_files(folder)
    with pytest.MonkeyPatch.context() as patch, serving() as (faults, web, query):
        patch.setattr(attempts, "PAUSE", 0.0)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for file in folder.rglob("*"):
            if file.is_file():
                faults.put(f"/b/{file.relative_to(folder)}", file.read_bytes())

        def at_store(name):
            name, mark, tensor = name.partition("::")
            return f"s3://b/{name}{query}{mark}{tensor}"

        yield {
            "faults": faults,
            "path": lambda name: f"{folder}/{name}",
            "file": lambda name: f"file://{folder}/{name}",
            "s3": at_store,
            "http": lambda name: f"{web}/b/{name}",
        }


def values(report):
    """What does not depend on the place."""
    names = ("sum", "accuracy", "sampled", "by_frequency", "kl", "llama_cpp", "rows", "ignored_rows")
    return {name: report[name] for name in names if name in report}


def head(at, **options):
    given = {"inputs": at("inputs.npy"), "weights": at("layer.npy"), "labels": at("labels.npy")}
    return bv.evaluate(**given | options)


def logits(at, **options):
    return bv.evaluate(**{"logits": at("logits.npy"), "labels": at("labels.npy")} | options)


def by_slices(at):
    """Ranks that need the logits of labels of both slices."""
    known = [at(f"known-{i}.arrow") for i in (1, 2)]
    with tempfile.TemporaryDirectory() as folder:
        for i in (1, 2):
            logits(at, vocab_shard=(i, 2), label_logits=known, state=f"{folder}/{i}")
        return bv.merge([f"{folder}/1", f"{folder}/2"])


READERS = {
    "raw labels": lambda at: logits(at, labels=at("labels.bin"), label_dtype="uint16"),
    "vocab_file": lambda at: head(
        at, loss="sampled-softmax", sampler="unigram", vocab_file=at("vocab.txt"), num_sampled=8
    ),
    "vocab_file counts": lambda at: logits(at, vocab_file=at("vocab.txt")),
    "candidates": lambda at: head(at, loss="sampled-softmax", candidates=at("candidates.arrow")),
    "label_logits": by_slices,
    "llama.cpp": lambda at: bv.compare(reference=at("base.kld"), candidate=at("base.kld")),
    "model": lambda at: bv.evaluate(inputs=at("inputs.npy"), model=at("model"), labels=LABELS),
    "index": lambda at: head(at, weights=at("model/model.safetensors.index.json::lm_head.weight")),
    "merge": lambda at: bv.merge(at("all.state"), rows=ROWS),
}


@pytest.mark.parametrize("kind", ["file", "s3", "http"])
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_takes_uris(where, reader, kind):
    found, expected = values(READERS[reader](where[kind])), values(READERS[reader](where["path"]))
    assert found == expected


@pytest.mark.parametrize("kind", ["file", "s3"])
@pytest.mark.parametrize("place", ["model::lm_head.weight", "model/model-*.safetensors::lm_head.weight"])
def test_a_tensor_of_a_folder_or_glob(where, kind, place):
    found = head(where[kind], weights=where[kind](place))
    assert found["sum"] == head(where["path"], weights=LAYER)["sum"]
    with pytest.raises(bv.BigvocabError, match=r"lm_head.bias"):
        head(where[kind], weights=where[kind](place.replace("weight", "bias")))


@pytest.mark.parametrize("kind", ["s3", "http"])
def test_a_gguf_model(where, kind):
    states = LLAMA.parents[1] / "tiny-259/Q4_0.before_norm.npy"
    labels = np.zeros(len(np.load(states)), np.int64)
    found = bv.evaluate(model=where[kind]("Q4_0.gguf"), inputs=states, labels=labels, workers=2)
    assert found["sum"] == bv.evaluate(model=where["path"]("Q4_0.gguf"), inputs=states, labels=labels)["sum"]
    assert "/tmp/" not in json.dumps(found["model"])
    assert found["model"]["path"] == where[kind]("Q4_0.gguf")


@pytest.mark.parametrize("place", ["set/m-00001-of-00002.gguf", "set/m-00002-of-00002.gguf", "set"])
def test_a_gguf_model_in_parts(where, place):
    asked = {"inputs": STATES[:, 0], "labels": LABELS, "hidden_states": "before-norm"}
    found = bv.evaluate(model=where["s3"](place), workers=2, **asked)
    assert found["sum"] == bv.evaluate(model=where["path"]("set"), **asked)["sum"]
    assert "/tmp/" not in json.dumps(found["model"])


@pytest.mark.parametrize("tensor", ["", "::output.weight"])
@pytest.mark.parametrize("part", ["set/m-00001-of-00002.gguf", "set/m-00002-of-00002.gguf"])
@pytest.mark.parametrize("kind", ["s3", "http"])
def test_a_layer_of_a_gguf_model_in_parts(where, kind, part, tensor):
    asked = {"inputs": STATES[:, 0], "labels": LABELS}
    found = bv.evaluate(weights=where[kind](part + tensor), workers=2, **asked)
    expected = bv.evaluate(weights=where["path"](part + tensor), **asked)
    assert found["sum"] == expected["sum"] == bv.evaluate(weights=LAYER, **asked)["sum"]
    files = [[file["path"] for file in report["inputs"] if ".gguf" in file["path"]] for report in (found, expected)]
    assert alike(files[0], where[kind]) == alike(files[1], where["path"]) != []


@pytest.mark.parametrize("kind", ["s3", "http"])
def test_a_layer_that_no_part_of_a_gguf_model_has(where, kind):
    for place in (where[kind], where["path"]):
        with pytest.raises(
            bv.BigvocabError, match=r"^[^\n]*/set/?[^\n]*: no tensor 'none'; there are: 'output"
        ) as caught:
            bv.open_matrix(place("set/m-00001-of-00002.gguf::none"))
        assert "/tmp/bigvocab" not in str(caught.value)
    with pytest.raises(bv.BigvocabError, match=r"lone-00002-of-00002.gguf[^\n]*: cannot be read: [^\n]*(no such|404)"):
        bv.open_matrix(where[kind]("lone-00001-of-00002.gguf"))


def alike(found, at):
    """What an inspection says, without the name of the place."""
    name = at("").partition("?")
    return json.loads(json.dumps(found).replace(name[0].removeprefix("file://"), "").replace(f"?{name[2]}", ""))


INSPECTED = [
    "logits.npy", "labels.npy", "labels.csv", "labels.parquet", "two.npz", "two.npz::x", "candidates.arrow", "base.kld",
    "model", "model/model-1.safetensors", "model::lm_head.weight", "parts", "parts/part-*.npy", "mixed", "Q4_0.gguf",
    "set/m-00001-of-00002.gguf", "set/m-00001-of-00002.gguf::output.weight",
]  # fmt: skip


@pytest.mark.parametrize("name", INSPECTED)
@pytest.mark.parametrize("kind", ["file", "s3", "http"])
def test_inspect(where, kind, name):
    at = where[kind]
    if kind == "http" and name.startswith(("parts", "mixed", "model::")):
        with pytest.raises(bv.BigvocabError, match=r"a web server lists no files|a web server, which lists none"):
            bv.inspect(at(name))
        return
    found = run("inspect", "--format", "json", at(name))
    assert found.exit_code == 0, found.stderr
    expected = run("inspect", "--format", "json", where["path"](name))
    assert alike(json.loads(found.stdout), at) == alike(json.loads(expected.stdout), where["path"])
    assert run("inspect", at(name)).exit_code == 0


@pytest.mark.parametrize("kind", ["file", "s3", "http"])
def test_inspect_raw_and_what_is_not_there(where, kind):
    at = where[kind]
    found = bv.inspect(at("labels.bin"), shape=(ROWS // 2, 1), dtype="float32")
    assert found["shape"] == [ROWS // 2, 1]
    refused(run("inspect", at("none.npy")), 1, "none.npy")
    refused(run("inspect", at("vocab.txt")), 1, "vocab.txt", "unknown format")


def test_inspect_fetches_few_bytes_of_a_large_array(monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with serving() as (faults, _, query):
        large = np.zeros((100_000, 32), np.float32)
        file = io.BytesIO()
        np.save(file, large)
        faults.put("/b/large.npy", file.getvalue())
        assert bv.inspect(f"s3://b/large.npy{query}")["shape"] == [100_000, 32]
        assert faults.fetched("/b/large.npy") < 5 << 20  # of 12.8 MB, each time its first MiB


@pytest.mark.parametrize("kind", ["file", "s3", "http"])
def test_what_is_missing_is_named_by_its_uri(where, kind, tmp_path):
    at = where[kind]
    name = at("none").split("?")[0].removeprefix("file://")
    for read in (
        lambda: logits(at, vocab_file=at("none.txt")),
        lambda: head(at, loss="sampled-softmax", candidates=at("none.arrow")),
        lambda: logits(at, vocab_shard=(1, 2), label_logits=at("none.arrow"), state=tmp_path / "s"),
        lambda: logits(at, labels=at("none.bin"), label_dtype="uint16"),
        lambda: bv.compare(reference=at("none.kld"), candidate=at("none.kld")),
        lambda: bv.merge(at("none.state")),
    ):
        with pytest.raises(bv.BigvocabError) as caught:
            read()
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "/tmp/bigvocab" not in str(caught.value)


NAMED = {
    "raw labels": "labels.bin", "vocab_file": "vocab.txt", "candidates": "candidates.arrow", "llama.cpp": "base.kld",
    "label_logits": "known-1.arrow", "merge": "all.state", "index": "model/model-1.safetensors",
}  # fmt: skip


@pytest.mark.parametrize("kind", ["s3", "http"])
@pytest.mark.parametrize("reader", NAMED)
def test_faults_of_every_reader(where, kind, reader, tmp_path):
    """What passes is tried again; what never passes is one line that names the object, at once."""
    faults, at, name = where["faults"], where[kind], NAMED[reader]
    content = faults.objects[f"/b/{name}"]
    faults.put(f"/b/{name}", content)  # anew, so that no copy of it is there
    faults.plan = ["503", "drop", "503"]
    assert values(READERS[reader](at)) == values(READERS[reader](where["path"]))
    assert faults.plan == []
    for status in (403, 404):
        faults.status[f"/b/{name}"] = status
        with pytest.raises(bv.BigvocabError, match=rf"(?i)^\w+://[^\n]*{name}[^\n]*(403|404|DENIED|no such)[^\n]*$"):
            READERS[reader](at)
        del faults.status[f"/b/{name}"]


def test_large_labels_in_a_store_are_mapped(where, monkeypatch):
    from bigvocab.labels import label_arrays

    monkeypatch.setattr(label_arrays, "MOST_FETCHED", 100)
    assert values(logits(where["s3"])) == values(logits(where["path"]))


@pytest.mark.parametrize("kind", ["file", "s3"])
def test_a_page_from_a_uri_to_a_uri(where, kind, tmp_path):
    pytest.importorskip("jinja2")
    at = where[kind]
    assert run("page", at("report.json"), "--html", at("page.html")).exit_code == 0
    assert run("page", where["path"]("report.json"), "--html", tmp_path / "page.html").exit_code == 0
    assert run("page", at("page.html"), "--html", tmp_path / "no.html").exit_code == 1  # it is there, and no JSON
    refused(run("page", at("none.json"), "--html", at("no.html")), 1, "none.json")
    refused(run("page", at("report.json"), "--html", at("report.json")), 1, "is one of the files that are read")
    with contextlib.suppress(bv.BigvocabError):
        assert not bv.inspect(at("no.html"))


def test_one_state_by_two_names(where):
    with pytest.raises(bv.BigvocabError, match="is given twice"):
        bv.merge([where["path"]("all.state"), where["file"]("all.state")])
    with pytest.raises(bv.BigvocabError, match="is given twice"):
        bv.merge([where["s3"]("all.state"), where["s3"]("all.state") + "&replication=1"])


def test_an_object_that_changes_between_two_runs_is_fetched_again(monkeypatch):
    """In one process, as in a notebook."""
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with serving() as (faults, _, query):
        found = []
        for labels in (LABELS, LABELS[::-1]):
            np_file = pyarrow.BufferOutputStream()
            pyarrow.feather.write_feather(pyarrow.table({"label": labels}), np_file)
            faults.put("/b/labels.feather", np_file.getvalue().to_pybytes())
            found.append(bv.evaluate(logits=LOGITS, labels=f"s3://b/labels.feather{query}")["sum"])
            assert found[-1] == bv.evaluate(logits=LOGITS, labels=labels)["sum"]
        assert found[0] != found[1]
