"""Keys in URIs: workers get them, and nobody else sees them."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from commands import run
from fault_server import serving
from safetensors.numpy import save

import bigvocab as bv
from bigvocab.storage import attempts, uris

ROWS, CLASSES, SIZE = 60, 50, 8
KEY, SECRET = "AKIAKEYKEY", "hun%2Fter2"
HIDDEN = (KEY, "hun%2Fter2", "hun/ter2", "ter2", "hun%252F")
RNG = np.random.default_rng(3)
INPUTS = RNG.normal(size=(ROWS, SIZE)).astype(np.float32)
LAYER = RNG.normal(size=(CLASSES, SIZE)).astype(np.float32)
LABELS = np.arange(ROWS) % CLASSES


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture
def store(monkeypatch):
    """A server that answers requests with the key alone; no other credentials are anywhere."""
    monkeypatch.setattr(attempts, "PAUSE", 0.0)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    with serving() as (faults, web, query):
        config = {"model_type": "llama", "vocab_size": CLASSES, "hidden_size": SIZE, "tie_word_embeddings": False}
        tensors = {"lm_head.weight": LAYER, "model.norm.weight": np.ones(SIZE, np.float32)}
        files = {
            "inputs.npy": npy(INPUTS), "labels.npy": npy(LABELS), "layer.npy": npy(LAYER),
            "logits.npy": npy(INPUTS @ LAYER.T),
            "m/config.json": json.dumps(config).encode(), "m/model.safetensors": save(tensors),
            "run/r-0.safetensors": save({"h": INPUTS[:20], "t": LABELS[:20]}),
            "run/r-1.safetensors": save({"h": INPUTS[20:], "t": LABELS[20:]}),
            "vocab.txt": "".join(f"w{i},{i + 1}\n" for i in range(CLASSES)).encode(),
            "counts.npy": npy(np.arange(1, CLASSES + 1)),
        }  # fmt: skip
        for name, content in files.items():
            faults.put(f"/b/{name}", content)
        faults.key = KEY
        yield faults, web, query.replace("&anonymous=true", "")


def at(store, name):
    name, mark, tensor = name.partition("::")
    return f"s3://{KEY}:{SECRET}@b/{name}{store[2]}{mark}{tensor}"


def on_web(store, name):
    return store[1].replace("http://", f"http://{KEY}:{SECRET}@") + f"/b/{name}?sig={SECRET}"


def seen(store, folder, *texts):
    """All that anybody may read."""
    found = [content for name, content in store[0].objects.items()]
    found += [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    return b"\n".join(found + [text.encode() for text in texts]).decode("latin-1")


def arguments_of_children():
    me = str(Path("/proc/self").resolve().name)
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = (place / "stat").read_text().rpartition(")")[2].split()[1]
            if parent == me:
                found.append((place / "cmdline").read_text())
        except OSError:
            continue
    return found


JOBS = {
    "model": {"inputs": "inputs.npy", "labels": "labels.npy", "model": "m"},
    "layer": {"inputs": "inputs.npy", "labels": "labels.npy", "weights": "layer.npy"},
    "sequences": {"inputs": "run::h", "labels": "run::t", "weights": "layer.npy", "shift_labels": True},
    "vectors": {
        "logits": "logits.npy", "labels": "labels.npy", "class_weights": "counts.npy", "vocab_file": "vocab.txt",
    },
    "unigram": {
        "inputs": "inputs.npy", "labels": "labels.npy", "weights": "layer.npy", "loss": "sampled-softmax",
        "sampler": "unigram", "vocab_file": "vocab.txt", "num_sampled": 8,
    },
}  # fmt: skip
PLAIN = ("loss", "sampler", "num_sampled", "shift_labels")


@pytest.mark.parametrize(("job", "place"), [*((job, at) for job in JOBS), ("model", on_web), ("unigram", on_web)])
def test_workers_have_the_keys_and_nobody_sees_them(store, tmp_path, job, place):
    given = {name: value if name in PLAIN else place(store, value) for name, value in JOBS[job].items()}
    arguments = []
    report = bv.evaluate(
        **given,
        workers=2,
        state=at(store, "out/s"),
        output=at(store, "out/l.parquet"),
        report=at(store, "out/r.json"),
        progress=lambda *_: arguments.extend(arguments_of_children()),
    )
    assert report["sum"] == bv.evaluate(**given)["sum"]
    assert report["rows"] >= ROWS - 2
    assert arguments
    again = bv.evaluate(**given, state=at(store, "out/s"), output=at(store, "out/l.parquet"), resume=True)
    merged = bv.merge(at(store, "out/s"))
    bv.Evaluator.load(at(store, "out/s"))
    texts = [repr(one) + str(one) + one.to_json() + str(one.options) for one in (report, again, merged)]
    everything = seen(store, tmp_path, *texts, *arguments)
    assert [word for word in HIDDEN if word in everything] == []


def test_commands_print_no_keys(store, tmp_path):
    pytest.importorskip("jinja2")
    base = ("--inputs", at(store, "inputs.npy"), "--labels", at(store, "labels.npy"))
    model = ("--model", at(store, "m"))
    rows = ("--logits", on_web(store, "logits.npy"), "--labels", at(store, "labels.npy"))
    out = {name: at(store, f"out/{name}") for name in ("s", "r.json", "p.html", "k", "c", "2.html")}
    unigram = ("--sampler", "unigram", "--vocab-file", at(store, "vocab.txt"))
    reference = ("--reference", at(store, "logits.npy"))
    commands = [
        (0, "eval", *base, *model, "--state", out["s"], "--report", out["r.json"], "--html", out["p.html"]),
        (1, "eval", *base, *model, "--state", out["s"]),
        (1, "eval", *base, *model, "--report", at(store, "inputs.npy")),
        (1, "eval", *base, "--weights", on_web(store, "none.npy")),
        (1, "eval", *base, "--model", at(store, "none")),
        (1, "eval", *rows, "--label-column", "x", "--loss", "nce"),
        (0, "merge", out["s"], "--report", at(store, "out/m.json"), "--html", at(store, "out/m.html")),
        (1, "merge", out["s"], out["s"]),
        (0, "page", out["r.json"], "--html", out["2.html"]),
        (0, "inspect", at(store, "m"), at(store, "logits.npy"), on_web(store, "logits.npy"), at(store, "run")),
        (0, "inspect", "--format", "json", at(store, "m"), on_web(store, "labels.npy")),
        (1, "inspect", at(store, "none.npy"), on_web(store, "none.npy")),
        (0, "label-logits", *rows, "--vocab-shard", "1/2", "--output", out["k"]),
        (0, "sample", *unigram, "--num-sampled", 8, "--output", out["c"]),
        (0, "compare", *reference, "--candidate", "web=" + on_web(store, "logits.npy")),
        (2, "compare", *reference, "--candidate", at(store, "a"), "--candidate", at(store, "b")),
        (2, "eval", *rows, at(store, "extra.npy")),
        (2, "merge", out["s"], "--fail-if", at(store, "a")),
    ]  # fmt: skip
    texts = []
    for code, *arguments in commands:
        done = run(*arguments)
        assert (done.exit_code != 0) == (code != 0), (arguments[0], done.stderr)
        texts.append(done.output)
        assert [word for word in HIDDEN if word in done.output] == [], (arguments[0], done.output)
    everything = seen(store, tmp_path, *texts)
    assert [word for word in HIDDEN if word in everything] == []


def test_a_wrong_key_is_one_line_without_it(store):
    store[0].key = "another"
    for place in (at(store, "logits.npy"), on_web(store, "logits.npy")):
        with pytest.raises(
            bv.BigvocabError, match=r"(?i)^\w+://[^\n]*logits.npy[^\n]*(403|ACCESS_DENIED)[^\n]*$"
        ) as caught:
            bv.open_matrix(place)
        assert [word for word in HIDDEN if word in str(caught.value)] == []


def test_files_of_the_web_that_differ_in_what_is_not_shown(store):
    """A signature is not shown, and neither is which file of a query: they must not be taken for one another."""
    labels = [LABELS, LABELS[::-1]]
    for i, array in enumerate(labels):
        store[0].put_query("/get/labels.npy", f"id={i}", npy(array))
    logits = np.concatenate([INPUTS @ LAYER.T] * 2)
    place = store[1].replace("http://", f"http://{KEY}:{SECRET}@") + "/get/labels.npy?id={}"
    found = bv.evaluate(logits=logits, labels=[place.format(0), place.format(1)], workers=2)
    assert found["sum"] == bv.evaluate(logits=logits, labels=np.concatenate(labels))["sum"]


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://K:a/b+c@bucket/x.npy?region=eu", "s3://bucket/x.npy"),
        ("https://user:pa/ss@host/x?sig=1", "https://host/x"),
        ("https://host:8080/@scope/pkg@1/x.npy", "https://host:8080/@scope/pkg@1/x.npy"),
        ("abfs://container@account.dfs.core.windows.net/x", "abfs://container@account.dfs.core.windows.net/x"),
        ("abfs://container:secret@account.dfs.core.windows.net/x", "abfs://container@account.dfs.core.windows.net/x"),
        ("abfss://:secret@account.dfs.core.windows.net/c/x", "abfss://account.dfs.core.windows.net/c/x"),
        ("gs://anonymous@bucket/x.npy", "gs://anonymous@bucket/x.npy"),
        ("gs://anonymous:secret@bucket/x.npy", "gs://bucket/x.npy"),
        ("abfs://account:se%2Fcret@127.0.0.1:80/c/x?sv=1&sig=a%2Bb", "abfs://account@127.0.0.1:80/c/x"),
        ("s3://bucket/a@b.npy", "s3://bucket/a@b.npy"),
        ("s3://[bucket/x.npy", "s3://[bucket/x.npy"),
    ],
)
def test_how_uris_are_shown(uri, expected):
    assert uris.shown(uri) == expected
    assert uris.redacted(f"no {uri}: 404") == f"no {expected}: 404"
