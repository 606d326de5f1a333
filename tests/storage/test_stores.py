"""Object stores and the web: the same bits as from a disk, few bytes fetched, and faults that are mended or named."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fault_server import serving

import bigvocab as bv
from bigvocab.storage import attempts, remote, uris
from bigvocab.storage.output import replacing

ROWS, CLASSES, SIZE = 300, 70, 16
RNG = np.random.default_rng(5)
LOGITS = RNG.normal(size=(ROWS, CLASSES)).astype(np.float32)
INPUTS = RNG.normal(size=(ROWS, SIZE)).astype(np.float32)
LAYER = RNG.normal(size=(CLASSES, SIZE)).astype(np.float32)
LABELS = np.arange(ROWS) % CLASSES


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def table(write, **columns):
    sink = pa.BufferOutputStream()
    found = pa.table(columns)
    write(found, sink)
    return sink.getvalue().to_pybytes()


def write_ipc(found, sink):
    with pa.ipc.new_file(sink, found.schema) as writer:
        writer.write_table(found)


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setattr(attempts, "PAUSE", 0.0)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with serving() as (faults, web, query):
        faults.put("/b/logits.npy", npy(LOGITS))
        faults.put("/b/labels.npy", npy(LABELS))
        yield faults, web, query


@pytest.fixture
def small_ranges(monkeypatch):
    monkeypatch.setattr(remote, "RANGE", 4096)


def places(store):
    """The same object by its store and by the web."""
    _, web, query = store
    return {"s3": lambda name: f"s3://b/{name}{query}", "http": lambda name: f"{web}/b/{name}"}


KINDS = ["s3", "http"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_as_in_memory(store, kind, small_ranges):
    at = places(store)[kind]
    expected = bv.evaluate(logits=LOGITS, labels=LABELS)
    for options in ({}, {"max_memory": "1M"}, {"chunk_rows": 7, "threads": 1}):
        found = bv.evaluate(logits=at("logits.npy"), labels=at("labels.npy"), **options)
        assert found["sum"] == expected["sum"]
        assert found["accuracy"] == expected["accuracy"]


@pytest.mark.parametrize("kind", KINDS)
def test_formats(store, kind):
    from safetensors.numpy import save

    faults, at = store[0], places(store)[kind]
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(LOGITS.reshape(-1)), CLASSES)
    faults.put("/b/x.safetensors", save({"a": LOGITS, "b": LAYER}))
    faults.put("/b/x.arrow", table(write_ipc, logits=fixed))
    faults.put("/b/x.bin", LOGITS.tobytes())
    faults.put("/b/f.npy", npy(np.asfortranarray(LOGITS)))
    for name, options in [
        ("x.safetensors::a", {}),
        ("x.arrow", {}),
        ("f.npy", {}),
        ("x.bin", {"shape": (ROWS, CLASSES), "dtype": "float32"}),
    ]:
        place, _, tensor = name.partition("::")
        matrix = bv.open_matrix(at(place) + (f"::{tensor}" if tensor else ""), **options)
        np.testing.assert_array_equal(np.asarray(matrix), LOGITS)
        np.testing.assert_array_equal(matrix[[5, 250, 5]], LOGITS[[5, 250, 5]])
        assert matrix[7, 3] == LOGITS[7, 3]


def test_labels_of_every_format(store):
    faults, at = store[0], places(store)["s3"]
    expected = bv.evaluate(logits=LOGITS, labels=LABELS)["sum"]
    faults.put("/b/l.parquet", table(pq.write_table, label=LABELS))
    faults.put("/b/l.arrow", table(write_ipc, label=LABELS))
    faults.put("/b/l.csv", b"label\n" + b"\n".join(b"%d" % label for label in LABELS) + b"\n")
    for name in ("l.parquet", "l.arrow", "l.csv"):
        assert bv.evaluate(logits=LOGITS, labels=at(name))["sum"] == expected
    faults.put("/b/bad.parquet", table(pq.write_table, label=pa.array([0, CLASSES] * (ROWS // 2))))
    with pytest.raises(bv.BigvocabError, match=r"^s3://b/bad.parquet\?.*: row 1 is 70, expected a class in"):
        bv.evaluate(logits=LOGITS, labels=at("bad.parquet"))


def test_folders_and_globs_in_natural_order(store):
    faults, _, query = store
    for i, part in enumerate(np.split(LOGITS, 12)):
        faults.put(f"/c/part-{i}.npy", npy(part))
    faults.put("/c/notes.txt", b"x")
    for place in (f"s3://c/{query}", f"s3://c/part-*.npy{query}"):
        np.testing.assert_array_equal(np.asarray(bv.open_matrix(place)), LOGITS)
    with pytest.raises(bv.BigvocabError, match=r"s3://c/\?.*: no object matches 'x-\*.npy'"):
        bv.open_matrix(f"s3://c/x-*.npy{query}")


def test_globs_with_wildcards_in_folders(store, tmp_path):
    """As on a disk: `**` of any number of folders, hidden ones left out."""
    faults, _, query = store
    names = [
        "run-1/a/part-2.npy",
        "run-1/a/part-10.npy",
        "run-1/part-1.npy",
        "run-2/a b/part-1.npy",
        ".run-3/part-1.npy",
    ]
    for i, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / name, LOGITS[10 * i : 10 * i + 10])
        faults.put(f"/d/x/{name}", npy(LOGITS[10 * i : 10 * i + 10]))
    for pattern in ("run-*/a/part-*.npy", "*/part-1.npy", "**/part-*.npy", "run-*/**/*.npy", "run-2/a*/part-1.npy"):
        found = np.asarray(bv.open_matrix(f"s3://d/x/{pattern}{query}"))
        np.testing.assert_array_equal(found, np.asarray(bv.open_matrix(f"{tmp_path}/{pattern}")))
    np.testing.assert_array_equal(np.asarray(bv.open_matrix(f"s3://d/x/run-2/a%20b/p*.npy{query}")), LOGITS[30:40])
    with pytest.raises(bv.BigvocabError, match=r"^s3://d/x/\?.*: no object matches 'none-\*/x.npy'$"):
        bv.open_matrix(f"s3://d/x/none-*/x.npy{query}")


@pytest.mark.parametrize(
    "uri", ["ftp://me:hunter2@host/x.npy?sig=hunter2", "s3a://b/x.npy", "az://c/x.npy", "hf://x/y"]
)
def test_uris_of_other_kinds_are_named(uri, tmp_path):
    for read in (
        lambda: bv.open_matrix(uri),
        lambda: bv.inspect(uri),
        lambda: bv.open_model(uri),
        lambda: bv.merge(uri),
        lambda: bv.evaluate(logits=LOGITS, labels=uri),
        lambda: bv.evaluate(logits=LOGITS, labels=LABELS, report=uri),
        lambda: bv.evaluate(logits=LOGITS, labels=LABELS, state=uri),
        lambda: bv.write_candidates(uri, num_sampled=2, range_max=9, seed=1),
        lambda: bv.MatrixWriter(uri),
    ):
        with pytest.raises(
            bv.BigvocabError, match=r"\w://\w+/\S+: got a URI of \w+, expected a path, or a URI of s3, gs"
        ) as caught:
            read()
        assert "hunter2" not in str(caught.value)


def test_uris_that_are_not_whole(tmp_path):
    for uri, words in [
        ("file://x.npy", r"file://x.npy: names a machine, expected file:///folder/file"),
        ("s3://", r"names no bucket"),
        ("s3:///x.npy", r"^s3:///x.npy: cannot be read: names no bucket"),
        (Path("s3://b/x.npy"), r"^s3:/: got a Path of a URI, which cuts its slashes; expected the URI as text"),
        ("s3://b/x/?foo=1", r"^s3://b/x/: cannot be listed: Unexpected query parameter in S3 URI: 'foo'"),
        ("s3://b/x-*.npy?foo=1", r"^s3://b/: cannot be listed: Unexpected query parameter in S3 URI: 'foo'"),
    ]:
        with pytest.raises(bv.BigvocabError, match=words):
            bv.open_matrix(uri)
        with pytest.raises(bv.BigvocabError, match=r"^[^\n]*$"):
            bv.open_model(uri)


@pytest.mark.parametrize("suffix", ["npy", "safetensors", "arrow"])
def test_matrices_are_written_to_stores(store, suffix):
    at = places(store)["s3"]
    with bv.MatrixWriter(at(f"out/x.{suffix}")) as writer:
        writer.append(LOGITS)
    np.testing.assert_array_equal(np.asarray(bv.open_matrix(at(f"out/x.{suffix}"))), LOGITS)
    with pytest.raises(bv.BigvocabError, match=r"x.txt\S*: got the suffix '.txt', expected one of .npy"):
        bv.MatrixWriter(at("out/x.txt").replace("s3://", "s3://key:hunter2@"))


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_layer_only_its_own_bytes_are_fetched_once(store, kind):
    from safetensors.numpy import save

    faults, at = store[0], places(store)[kind]
    body = np.zeros((4 << 20) // 4, np.float32)
    faults.put("/b/model.safetensors", save({"a.body": body, "head": LAYER, "z.body": body}))
    expected = bv.evaluate(inputs=INPUTS, weights=LAYER, labels=LABELS)["sum"]
    name = f"{at('model.safetensors')}::head"
    assert bv.evaluate(inputs=INPUTS, weights=name, labels=LABELS, chunk_rows=10)["sum"] == expected
    assert faults.fetched("/b/model.safetensors") <= (1 << 20) + LAYER.nbytes


def test_many_ranges_are_in_flight(store, small_ranges):
    faults, _, _ = store
    matrix = bv.open_matrix(places(store)["http"]("logits.npy"))
    faults.gate = 8  # no range is answered before so many were asked for
    np.testing.assert_array_equal(matrix[0:ROWS], LOGITS)
    assert 8 <= faults.most <= remote.THREADS


def test_rows_ahead_are_no_more_than_were_asked_for(store, small_ranges):
    faults, _, _ = store
    matrix = bv.open_matrix(places(store)["http"]("logits.npy"))
    before = faults.fetched("/b/logits.npy")
    np.testing.assert_array_equal(matrix[0:20], LOGITS[:20])
    np.testing.assert_array_equal(matrix[20:40], LOGITS[20:40])
    np.testing.assert_array_equal(matrix[40:60], LOGITS[40:60])
    assert faults.fetched("/b/logits.npy") - before <= 80 * LOGITS[0].nbytes


# ---- faults


# Arrow takes what a server of S3 says for a range to be all of it, so a server that lies there cannot be found out.
@pytest.mark.parametrize(
    ("kind", "fault"), [("http", "503"), ("http", "short"), ("http", "drop"), ("s3", "503"), ("s3", "drop")]
)
def test_what_passes_is_tried_again(store, kind, fault, small_ranges):
    faults = store[0]
    matrix = bv.open_matrix(places(store)[kind]("logits.npy"))
    faults.plan = [fault, "", fault, fault]
    np.testing.assert_array_equal(matrix[0:ROWS], LOGITS)
    assert not faults.plan


@pytest.mark.parametrize("kind", KINDS)
def test_connections_that_die_at_any_byte(store, kind):
    """Of an answer about the object, and of one with its bytes: in the status line, the headers, the body."""
    faults, at = store[0], places(store)[kind]
    small = np.arange(60, dtype=np.float32).reshape(6, 10)
    faults.put("/b/small.npy", npy(small))
    for length in range(0, 190, 11 if kind == "http" else 31):
        faults.head_cuts = [length]
        np.testing.assert_array_equal(np.asarray(bv.open_matrix(at("small.npy"))), small)
        faults.head_cuts = [None, length] if kind == "s3" else []
        np.testing.assert_array_equal(np.asarray(bv.open_matrix(at("small.npy"))), small)
        faults.head_cuts = [None, None, length] if kind == "s3" else []
        np.testing.assert_array_equal(np.asarray(bv.open_matrix(at("small.npy"))), small)
        assert not faults.head_cuts
    for length in range(0, 600, 29 if kind == "http" else 130):
        faults.plan = [f"cut {length}"]
        np.testing.assert_array_equal(np.asarray(bv.open_matrix(at("small.npy"))), small)
        assert not faults.plan


@pytest.mark.parametrize("status", [403, 405, 501])
def test_a_server_or_a_signature_for_get_alone(store, status):
    faults, at = store[0], places(store)["http"]
    faults.no_head = status
    expected = bv.evaluate(logits=LOGITS, labels=LABELS)["sum"]
    assert bv.evaluate(logits=at("logits.npy"), labels=at("labels.npy"))["sum"] == expected
    with pytest.raises(bv.BigvocabError, match=r"^http://[^\n]*/b/none.npy: cannot be read: \d+ [^\n]*$"):
        bv.open_matrix(at("none.npy"))


def test_a_server_without_ranges_is_not_read_whole(store):
    faults, at = store[0], places(store)["http"]
    faults.put("/b/large.npy", npy(np.zeros((64 << 20) // 4, np.float32)))
    faults.no_ranges = True
    with pytest.raises(bv.BigvocabError, match=r"large.npy: cannot be read: the server does not answer ranges"):
        bv.open_matrix(at("large.npy"))
    assert faults.sent < 32 << 20


def test_a_place_that_a_file_has_moved_to_for_now(store, small_ranges):
    """Signatures of such places end while a long run goes on."""
    faults, web, _ = store
    at = places(store)["http"]
    for place in ("/signed/1.npy", "/signed/2.npy"):
        faults.put(place, faults.objects["/b/logits.npy"])
        faults.versions[place] = 1
    faults.moved["/b/logits.npy"] = f"{web}/signed/1.npy"
    matrix = bv.open_matrix(at("logits.npy"))
    np.testing.assert_array_equal(matrix[0:50], LOGITS[0:50])
    faults.status["/signed/1.npy"] = 403
    faults.moved["/b/logits.npy"] = f"{web}/signed/2.npy"
    np.testing.assert_array_equal(matrix[0:ROWS], LOGITS)
    matrix.check()
    faults.status["/signed/2.npy"] = 403
    with pytest.raises(bv.BigvocabError, match=r"/b/logits.npy: cannot be read: 403 Forbidden$"):
        matrix[0:ROWS]


def test_a_number_in_the_name_of_an_object_is_no_status(store):
    answers = ["for 'part-404.npy': SLOW_DOWN", "b/x-403.npy: SLOW_DOWN", "http://b/x-400.npy: reset"]

    def request():
        if answers:
            raise OSError(answers.pop())
        return "content"

    assert attempts.attempt("s3://b/part-404.npy", request) == "content"


def test_a_connection_that_was_closed_while_idle_is_no_failed_attempt(store, small_ranges):
    """More of them than there are attempts; the next request finds one after the other closed."""
    faults = store[0]
    matrix = bv.open_matrix(places(store)["http"]("logits.npy"))
    faults.hangs_up, faults.gate = True, 2 * attempts.ATTEMPTS
    np.testing.assert_array_equal(matrix[0:ROWS], LOGITS)
    faults.gate = None
    np.testing.assert_array_equal(matrix[0:2], LOGITS[0:2])


@pytest.mark.parametrize("fault", ["503", "drop", "short"])
def test_what_does_not_pass_is_one_line(store, fault):
    faults = store[0]
    matrix = bv.open_matrix(places(store)["http"]("logits.npy"))
    faults.plan = [fault] * 40
    with pytest.raises(bv.BigvocabError, match=r"^http://127.0.0.1:\d+/b/logits.npy: [^\n]*$"):
        matrix[0:ROWS]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("status", "words"), [(403, "403|ACCESS_DENIED|Forbidden"), (404, "404|no such|NO_SUCH")])
def test_what_never_passes_is_said_at_once(store, kind, status, words):
    faults, at = store[0], places(store)[kind]
    faults.status["/b/logits.npy"] = status
    for open_it in (
        lambda: bv.open_matrix(at("logits.npy")),
        lambda: bv.evaluate(logits=LOGITS, labels=at("logits.npy")),
        lambda: bv.evaluate(inputs=INPUTS, weights=at("logits.npy"), labels=LABELS),
    ):
        with pytest.raises(bv.BigvocabError, match=f"(?i)^{kind}://[^ ]*logits.npy[^ ]*: cannot be read: .*({words})"):
            open_it()


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_that_changes_is_refused(store, kind, tmp_path, small_ranges):
    faults, at = store[0], places(store)[kind]
    matrix = bv.open_matrix(at("logits.npy"))
    faults.put("/b/logits.npy", npy(LOGITS * 2))
    with pytest.raises(bv.FormatError, match=r"logits.npy.*: was written to or replaced while it is read"):
        matrix.check()
    with pytest.raises(bv.BigvocabError, match=r"written to or replaced|changed while it was read"):
        bv.evaluate(logits=matrix, labels=LABELS, output=tmp_path / "l.parquet")
    assert not list(tmp_path.iterdir())


def test_an_object_that_changes_under_a_request(store):
    faults = store[0]
    matrix = bv.open_matrix(places(store)["http"]("logits.npy"))
    faults.plan = ["change"]
    with pytest.raises(bv.BigvocabError, match=r"logits.npy: cannot be read: changed while it was read"):
        matrix[0:ROWS]


# ---- outputs, states


def test_outputs_are_written_whole_or_not_at_all(store):
    faults, at = store[0], places(store)["s3"]
    report = bv.evaluate(
        logits=at("logits.npy"), labels=at("labels.npy"), output=at("out/l.parquet"), report=at("out/r.json")
    )
    losses = pq.read_table(pa.BufferReader(faults.objects["/b/out/l.parquet"]))
    assert losses["loss"].to_numpy().sum() == pytest.approx(report["sum"])
    assert faults.objects["/b/out/r.json"].decode() == report.to_json() + "\n"

    def fails():
        with replacing(at("out/new")) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert "/b/out/new" not in faults.objects
    faults.status["/b/out/no"] = 403
    with pytest.raises(bv.BigvocabError, match=r"^s3://b/out/no\?.*: cannot be written: .*(403|ACCESS_DENIED)"):
        bv.evaluate(logits=LOGITS, labels=LABELS, report=at("out/no"))
    with pytest.raises(
        bv.BigvocabError, match=r"^s3://nobucket/r\?.*: cannot be written: there is no such bucket or container"
    ):
        bv.evaluate(logits=LOGITS, labels=LABELS, report=at("r").replace("//b/", "//nobucket/"))
    with pytest.raises(bv.BigvocabError, match="cannot be written: a web server takes no files"):
        bv.evaluate(logits=LOGITS, labels=LABELS, report=places(store)["http"]("r.json"))
    with pytest.raises(bv.BigvocabError, match="is one of the files that are read"):
        bv.evaluate(logits=at("logits.npy"), labels=at("labels.npy"), output=at("logits.npy"))


def test_shards_resume_and_merge(store, tmp_path):
    at = places(store)["s3"]
    given = {"logits": at("logits.npy"), "labels": at("labels.npy")}
    for i in (1, 2, 3):
        for _ in range(2):
            bv.evaluate(**given, shard=(i, 3), state=tmp_path / f"{i}", resume=True)
    whole = bv.merge([tmp_path / f"{i}" for i in (1, 2, 3)], rows=ROWS)
    assert whole["sum"] == bv.evaluate(logits=LOGITS, labels=LABELS)["sum"]
    evaluator = bv.Evaluator()
    evaluator.update(LOGITS, LABELS)
    evaluator.save(at("states/1"))
    assert bv.merge(at("states/1"), rows=ROWS)["sum"] == whole["sum"]
    store[0].put("/b/logits.npy", npy(LOGITS * 2))
    with pytest.raises(bv.BigvocabError, match="logits"):
        bv.evaluate(**given, shard=(1, 3), state=tmp_path / "1", resume=True)


def test_a_run_in_a_store_is_killed_and_resumed(store, tmp_path, monkeypatch):
    """At every checkpoint in turn; the records of rows that are done are in the store, too."""
    from bigvocab.jobs import checkpoints

    monkeypatch.setattr(checkpoints, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "SHARE", 0)
    faults, at = store[0], places(store)["s3"]
    given = {"logits": at("logits.npy"), "labels": LABELS, "chunk_rows": 100, "state": at("runs/s")}
    expected = bv.evaluate(logits=LOGITS, labels=LABELS, output=tmp_path / "l.parquet")

    class Killed(Exception):
        pass

    def killed_at(rows):
        def progress(done, total, read):
            if done >= rows:
                raise Killed

        return progress

    for rows in (100, 200):
        with pytest.raises(Killed):
            bv.evaluate(**given, output=at("runs/l.parquet"), resume=True, progress=killed_at(rows))
        assert "/b/runs/l.parquet" not in faults.objects
        assert any(name.startswith("/b/runs/s.lines-") for name in faults.objects)
    found = bv.evaluate(**given, output=at("runs/l.parquet"), resume=True)
    assert found["sum"] == expected["sum"]
    losses = pq.read_table(pa.BufferReader(faults.objects["/b/runs/l.parquet"]))
    assert losses.equals(pq.read_table(tmp_path / "l.parquet"))
    assert sorted(name for name in faults.objects if "/runs/" in name and name[-1] != "/") == [
        "/b/runs/l.parquet",
        "/b/runs/s",
    ]
    assert bv.evaluate(**given, output=at("runs/l.parquet"), resume=True)["sum"] == expected["sum"]
    assert bv.merge(at("runs/s"))["sum"] == expected["sum"]
    with pytest.raises(bv.BigvocabError, match=r"^s3://b/runs/s\?.*: already exists"):
        bv.evaluate(**given)


def test_workers_open_objects_by_themselves(store, monkeypatch):
    at = places(store)["http"]
    found = bv.evaluate(logits=at("logits.npy"), labels=at("labels.npy"), workers=2)
    assert found["sum"] == bv.evaluate(logits=LOGITS, labels=LABELS)["sum"]


# ---- names


def test_file_uris_are_paths(tmp_path):
    np.save(tmp_path / "a b.npy", LOGITS)
    np.save(tmp_path / "labels.npy", LABELS)
    place = f"file://{tmp_path}"
    report = bv.evaluate(
        logits=f"{place}/a%20b.npy", labels=f"{place}/labels.npy", output=f"{place}/l.parquet", state=f"{place}/s"
    )
    assert report["sum"] == bv.evaluate(logits=LOGITS, labels=LABELS)["sum"]
    assert {path.name for path in tmp_path.iterdir()} == {"a b.npy", "labels.npy", "l.parquet", "s"}
    assert bv.merge(f"{place}/s")["sum"] == report["sum"]


def test_keys_are_never_shown(store, tmp_path):
    faults, web, _ = store
    secret = web.replace("http://", "http://user:hunter2@") + "/b/{}?sig=hunter2"
    report = bv.evaluate(logits=secret.format("logits.npy"), labels=secret.format("labels.npy"), state=tmp_path / "s")
    assert "hunter2" not in report.to_json()
    assert b"hunter2" not in (tmp_path / "s").read_bytes()
    faults.status["/b/gone.npy"] = 404
    with pytest.raises(bv.BigvocabError) as caught:
        bv.open_matrix(secret.format("gone.npy"))
    assert "hunter2" not in str(caught.value)
    for uri in ("s3://AKIA:hunter2@b/x.npy", "s3://b/x?secret_key=hunter2&region=eu"):
        assert "hunter2" not in uris.shown(uri)
    assert uris.shown("s3://b/x?secret_key=k&region=eu") == "s3://b/x?region=eu"


def test_of_a_model_only_the_head_and_the_norm_are_fetched(store, tmp_path):
    import json

    from safetensors.numpy import save

    faults, query = store[0], store[2]
    body = np.zeros(1 << 20, np.float32)
    norm = np.linspace(0.5, 1.5, SIZE, dtype=np.float32)
    states = INPUTS / np.sqrt((INPUTS.astype(np.float64) ** 2).mean(1, keepdims=True)).astype(np.float32) * norm
    config = {"model_type": "llama", "vocab_size": CLASSES, "hidden_size": SIZE, "tie_word_embeddings": False}
    tensors = {"model.a": body, "lm_head.weight": LAYER, "model.norm.weight": norm, "model.z": body}
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": save(tensors)}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        faults.put(f"/b/m/{name}", content)
    expected = bv.evaluate(model=tmp_path, inputs=states, labels=LABELS)
    for place in (f"s3://b/m{query}", f"s3://b/m/{query}"):
        found = bv.evaluate(model=place, inputs=states, labels=LABELS)
        assert found["sum"] == expected["sum"]
        assert found["model"]["path"].startswith("s3://b/m?")
        assert "/tmp" not in found.to_json()
    assert faults.fetched("/b/m/model.safetensors") < len(files["model.safetensors"])
    faults.put("/b/m/config.json", b"{}")
    with pytest.raises(bv.FormatError, match=r"^s3://b/m/config.json: has no model_type"):
        bv.evaluate(model=f"s3://b/m{query}", inputs=states, labels=LABELS)
    with pytest.raises(bv.BigvocabError, match=r"s3://b/none\?.*: no such folder in this store"):
        bv.open_model(f"s3://b/none{query}")
