"""gs, abfs and hdfs: which file system of Arrow they are, and one clear line for what it refuses; without a network."""

import re

import numpy as np
import pytest

import bigvocab as bv
from bigvocab.storage import attempts
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
        ("gs://b/x.npy?no_such_option=1", "no_such_option"),
        ("s3://b/x.npy?no_such_option=1", "no_such_option"),
        ("s3://[b/x.npy", "."),
    ],
)
def test_what_arrow_refuses_is_one_line(monkeypatch, uri, words):
    """Without a network: no library, no account, no such option."""
    monkeypatch.setattr(attempts, "PAUSE", 0.0)
    name = re.escape(uri.split("?")[0].replace(":a2V5", ""))
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
        ("s3://b/a/x.npy?region=eu-west-1", "s3", "b/a/x.npy"),
    ],
)
def test_which_file_system_of_arrow_a_scheme_is(monkeypatch, uri, kind, path):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    found = store_of(uri)
    assert (found.system.type_name, found.path) == (kind, path)
