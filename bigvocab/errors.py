"""The exceptions of the package, and the parts of their messages: who renders one reads its fields, not its text."""

from __future__ import annotations

from typing import Any, NamedTuple, Self


class Keyword(NamedTuple):
    """An argument that a message names: `chunk_rows` in Python, --chunk-rows on the command line.

    >>> str(Keyword("chunk_rows")), str(Keyword("nonfinite", "skip"))
    ('chunk_rows', 'nonfinite="skip"')
    """

    name: str
    value: str | None = None

    def __str__(self) -> str:
        return self.name if self.value is None else f'{self.name}="{self.value}"'


class Place(NamedTuple):
    """Where something is wrong: a file or an argument, and what of it (a column, say)."""

    path: str | Keyword
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.path}{self.detail}"


def printable(text: str) -> str:
    r"""Text from a file without what could move a terminal's cursor or break a line.

    >>> printable("Song of Solomon"), printable("a\x1b[31m\n")
    ('Song of Solomon', 'a\\x1b[31m\\n')
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class BigvocabError(ValueError):
    """A value is wrong: the message names the argument or file, what came, what was expected and the first bad row.

    Attributes:
        parts: the message in pieces of text and `Keyword`s.
        place: the argument or file, where the error is about a row of it.
        row: that row; None where the error is about no row.

    >>> error = BigvocabError.of_row("labels.npy", 7, " is 12, expected a class in [0, 10)")
    >>> str(error), error.row
    ('labels.npy: row 7 is 12, expected a class in [0, 10)', 7)
    >>> str(error.moved("part-1.npy", 2))
    'part-1.npy: row 2 (row 7 of all files) is 12, expected a class in [0, 10)'
    """

    def __init__(self, *parts: Any) -> None:
        super().__init__("".join(map(str, parts)))
        self.parts = tuple(part if isinstance(part, Keyword) else str(part) for part in parts)
        self.place: Place | None = None
        self.row: int | None = None
        self._rest: tuple[Any, ...] = ()

    @property
    def argument(self) -> str | None:
        """The argument that is wrong, where the message begins with one."""
        return self.parts[0].name if self.parts and isinstance(self.parts[0], Keyword) else None

    @property
    def problem(self) -> str:
        """The message without the argument at its beginning."""
        return "".join(map(str, self.parts[1:])).removeprefix(": ") if self.argument else str(self)

    @classmethod
    def of_row(cls, place: str | Keyword | Place, row: int, *rest: Any) -> Self:
        """The error that a row of an argument or file is wrong; `rest` says how, with what separates it."""
        return cls._at(place if isinstance(place, Place) else Place(place), int(row), "", rest)

    @classmethod
    def _at(cls, place: Place, row: int, note: str, rest: tuple[Any, ...]) -> Self:
        error = cls(place.path, f"{place.detail}: row {row}{note}", *rest)
        error.place, error.row, error._rest = place, row, rest
        return error

    def renamed(self, before: str, now: str) -> Self:
        """The same error, with a file called by another name."""
        error = type(self)(*(part.replace(before, now) if isinstance(part, str) else part for part in self.parts))
        place = self.place
        if place is not None and isinstance(place.path, str):
            place = Place(place.path.replace(before, now), place.detail)
        error.place, error.row, error._rest = place, self.row, self._rest
        return error

    def hinted(self, *hint: Any) -> Self:
        """The same error with more at its end."""
        if self.place is None or self.row is None:
            return type(self)(*self.parts, *hint)
        return self.of_row(self.place, self.row, *self._rest, *hint)

    def moved(self, path: str, row: int) -> Self:
        """The same error as one of a row of the file that holds it, where this one counts the rows of all files."""
        if self.place is None or self.row is None:
            return self
        return self._at(Place(path, self.place.detail), row, f" (row {self.row} of all files)", self._rest)


class FormatError(BigvocabError):
    """A file is not what it says: truncated, of an unknown type, or with a header that contradicts its size."""
