"""gs, abfs and hdfs: which file system of Arrow they are, and one clear line for what it refuses; without a network."""

import re
import subprocess
import sys

import numpy as np
import pytest
from fault_server import serving

import bigvocab as bv
from bigvocab.storage import arrow_store, attempts, uris
from bigvocab.storage.stores import store_of

ROWS, CLASSES = 300, 70
LOGITS = np.random.default_rng(5).normal(size=(ROWS, CLASSES)).astype(np.float32)
NOWHERE = "127.0.0.1:9"
LABELS = np.arange(ROWS) % CLASSES


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("hdfs://host:8020/x.npy", "libhdfs|libjvm|libhdfs.so"),
        ("abfs://c/x.npy", "valid account name"),
        (
            f"abfs://c@acc/x.npy?blob_storage_authority={NOWHERE}&dfs_storage_authority={NOWHERE}&enable_tls=false",
            "TLS",
        ),
        ("abfs://c:a2V5@acc/x.npy?no_such_option=1", "no_such_option"),
        ("abfs://c@acc/x.npy?no_such_option=1", "no_such_option"),
        ("abfs://:a2V5@acc/x.npy", "account"),
        ("abfs://c:not-base64!@acc/x.npy", "."),
        ("gs://b/x.npy?no_such_option=1", "no_such_option"),
        ("s3://b/x.npy?no_such_option=1", "no_such_option"),
        ("s3://[b/x.npy", "."),
    ],
)
def test_what_arrow_refuses_is_one_line(monkeypatch, uri, words):
    """Without a network: no library, no account, no such option."""
    monkeypatch.setattr(attempts, "PAUSE", 0.0)
    name = re.escape(uris.shown(uri).split("?")[0])
    for read in (
        lambda: bv.open_matrix(uri),
        lambda: bv.evaluate(logits=LOGITS, labels=uri),
        lambda: bv.evaluate(logits=LOGITS, labels=LABELS, report=uri),
    ):
        with pytest.raises(
            bv.BigvocabError, match=rf"(?i)^{name}[^\n]*: cannot be (read|written): [^\n]*({words})[^\n]*$"
        ):
            read()


@pytest.mark.parametrize(
    ("uri", "kind", "path"),
    [
        ("gs://anonymous@b/a%20b/x.npy", "gcs", "b/a b/x.npy"),
        ("abfs://c@account.dfs.core.windows.net/a/x.npy", "abfs", "c/a/x.npy"),
        ("abfss://account.blob.core.windows.net/c/a/x.npy", "abfs", "c/a/x.npy"),
        ("abfs://account@c/a/x.npy", "abfs", "c/a/x.npy"),
        ("abfs://account@host.domain:80/c/a/x.npy", "abfs", "c/a/x.npy"),
        ("abfs://c:a2V5@account.dfs.core.windows.net/a/x.npy", "abfs", "c/a/x.npy"),
        ("abfss://:a2V5@account.blob.core.windows.net/c/a/x.npy", "abfs", "c/a/x.npy"),
        ("abfs://account:a2V5@c/a/x.npy", "abfs", "c/a/x.npy"),
        ("abfs://account:a2V5@host.domain:80/c/a/x.npy", "abfs", "c/a/x.npy"),
        ("s3://b/a/x.npy?region=eu-west-1", "s3", "b/a/x.npy"),
    ],
)
def test_which_file_system_of_arrow_a_scheme_is(monkeypatch, uri, kind, path):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    found = store_of(uri)
    assert (found.system.type_name, found.path) == (kind, path)


@pytest.mark.parametrize(("status", "words"), [(403, "PERMISSION_DENIED"), (503, "UNAVAILABLE")])
def test_what_google_refuses_is_one_line(monkeypatch, status, words):
    monkeypatch.setattr(attempts, "PAUSE", 0.0)
    monkeypatch.setattr(attempts, "ATTEMPTS", 1)
    monkeypatch.setattr(arrow_store, "GOOGLE_SECONDS", 0.01)  # its client goes on for a quarter of an hour else
    with serving() as (faults, web, _):
        faults.status["/storage/v1/b/b/o/x.npy"] = status
        uri = f"gs://anonymous@b/x.npy?scheme=http&endpoint_override={web.removeprefix('http://')}"
        with pytest.raises(
            bv.BigvocabError, match=rf"^{re.escape(uri)}: cannot be read: [^\n{{}}]*{words}: [^\n{{}}]*$"
        ):
            bv.open_matrix(uri)


OPEN = f"""
from bigvocab.storage.file_identity import RemoteIdentity
from bigvocab.storage.stores import store_of

store = store_of("abfs://acc@c/x?enable_tls=false&blob_storage_authority={NOWHERE}&dfs_storage_authority={NOWHERE}")
try:
    store.read(0, 1, RemoteIdentity(1, 0, ""))
except Exception as error:
    print("TLS" in str(error))
"""


def test_a_process_without_credentials_of_azure_goes_on():
    """One that was told what the object is, and so opens it at once, where Arrow would end the process."""
    done = subprocess.run([sys.executable, "-c", OPEN], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr
