"""Files that somebody or something has spoilt: each is read, or refused in one line that names it, and nothing else."""

import gzip
import json
import os
import random
import re
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import bigvocab as bv
from bigvocab.heads.open_model import find_layer

TESTS = Path(__file__).parents[1]
ROUNDS = int(os.environ.get("BIGVOCAB_FUZZ_ROUNDS", "250")) // 2
MOST_MEMORY = 256 << 20
LABELS = np.arange(12) % 9
CSV = ("label,w,g\n" + "".join(f"{label},0.5,a{label}\n" for label in LABELS)).encode()
JSON_LINES = "".join(json.dumps({"label": int(label), "w": 0.5, "ids": [1, 2]}) + "\n" for label in LABELS).encode()
NUMBERS = (b"-1", b"0", b"99999999999999999999999", b"1e400", b"1e9", b"4294967296", b"9223372036854775807", b"2.5")
VALUES = (*NUMBERS, b"null", b'"x"', b"[]", b"{}", b"true", b"NaN", b"[" * 2000)


def spoilt(data, chance):
    """A copy with a few changes: of bytes, of the end, of counts and values, and pieces lost, put in or moved."""
    data = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 4, 12])):
        size = len(data)
        if not size:
            break
        at = chance.randrange(min(size, chance.choice([16, 64, 400, size])))
        change = chance.randrange(8)
        if change < 2:
            data[at] = chance.randrange(256)
        elif change == 2:
            del data[chance.randrange(size) :]
        elif change == 3:
            del data[at : at + chance.randrange(1, 40)]
        elif change == 4:
            data[at:at] = chance.randbytes(chance.randrange(1, 20))
        elif change == 5:
            other = chance.randrange(size)
            data[at : at + 20] = data[other : other + 20]
        elif change == 6:
            count = chance.choice([2**63 - 1, 2**64 - 1, 2**32 - 1, 2**31, 2**40, 0, 1]).to_bytes(8, "little")
            data[at : at + 8] = count[: chance.choice([1, 2, 4, 8])]
        elif found := list(re.finditer(rb"\d+", data[:4000])):
            number = chance.choice(found)
            data[number.start() : number.end()] = chance.choice(VALUES)
    return bytes(data)


def read(path, **columns):
    labels = bv.read_labels(path, label_column="label", **columns)
    assert sum(len(batch) for batch in labels) == labels.num_rows


def read_text(path):
    read(path, weight_column="w")


def read_model(path):
    find_layer(path.parent, tokenizer=path.name == "tokenizer.json")


def read_logits(path):
    bv.inspect(path)
    bv.compare(reference=path, candidate=path)


def make_model(folder):
    shutil.copytree(TESTS / "golden/families/llama", folder, dirs_exist_ok=True)
    tokenizer = {"model": {"vocab": {str(i): i for i in range(45)}}, "added_tokens": [{"id": 46}]}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def make_dataset(folder):
    table = pa.table({"label": LABELS})
    with pa.ipc.new_stream(folder / "data-0.arrow", table.schema) as writer:
        writer.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-0.arrow"}], "_split": "train"}))
    (folder / "splits").mkdir()
    (folder / "splits/dataset_dict.json").write_text('{"splits": ["train", "test"]}')


KINDS = {
    "labels.csv": (CSV, read_text),
    "labels.tsv": (CSV.replace(b",", b"\t"), read_text),
    "labels.jsonl": (JSON_LINES, read_text),
    "labels.csv.gz": (gzip.compress(CSV, mtime=0), read_text),
    "labels.jsonl.gz": (gzip.compress(JSON_LINES, mtime=0), read_text),
    "state.json": (make_dataset, lambda path: read(path.parent)),
    "data-0.arrow": (make_dataset, lambda path: read(path.parent)),
    "splits/dataset_dict.json": (make_dataset, lambda path: read(path.parent)),
    "config.json": (make_model, read_model),
    "tokenizer.json": (make_model, read_model),
    "model.safetensors.index.json": (make_model, read_model),
    "logits.kld": (TESTS / "data/llama/kjv-751/base.kld", read_logits),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", KINDS)
def test_spoilt_files_are_read_or_refused_in_one_line(tmp_path, name):
    made, use = KINDS[name]
    path = tmp_path / name
    if callable(made):
        made(tmp_path)
    else:
        path.write_bytes(made if isinstance(made, bytes) else made.read_bytes()[:60_000])
    whole = path.read_bytes()
    refused = 0
    tracemalloc.start()
    for number in range(ROUNDS):
        path.write_bytes(spoilt(whole, random.Random(f"{name} {number}")))
        try:
            use(path)
        except bv.BigvocabError as error:
            refused += 1
            message = str(error)
            assert "\n" not in message
            assert str(tmp_path) in message
            assert len(message) < 1500
    assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    tracemalloc.stop()
    assert refused > ROUNDS // 4
