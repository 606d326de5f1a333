"""The state of a run in an object store: worked on in a local file, and sent at each checkpoint.

Records are sent in pieces, `part.state.lines-<first byte>`, before the state that counts them: so a killed run leaves a
state and all of its records, or what the checkpoint before it left. Stores have no locks: give each run its own state.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from bigvocab.errors import BigvocabError, FormatError
from bigvocab.evaluation.state import read_state
from bigvocab.storage import uris
from bigvocab.storage.paths import Source
from bigvocab.storage.remote import RemoteFile
from bigvocab.storage.stores import attempt, is_there, store_of


class StoredState:
    """One state in a store, and its local file at `path` while it lasts."""

    def __init__(self, uri: str) -> None:
        self.uri, self.shown = uri, uris.shown(uri)
        self._folder = tempfile.TemporaryDirectory(prefix="bigvocab-")
        self.path = Path(self._folder.name) / (uris.name_of(uri) or "state")
        self._lines = Path(f"{self.path}.lines")
        self._sent = 0  # bytes of records

    def close(self) -> None:
        """Remove the local files."""
        self._folder.cleanup()

    def fetch(self) -> None:
        """Have the local files as the last checkpoint left them; nothing where there was none."""
        if not is_there(self.uri):
            return
        self.path.write_bytes(_content(self.uri))
        coverage = read_state(self.path).coverage
        wanted = 0 if coverage is None else coverage.lines
        if not wanted:
            return
        with self._lines.open("wb") as file:
            for first, piece in self._pieces():
                if first >= wanted:
                    break
                if first != file.tell():
                    raise FormatError(f"{self.shown}.lines: records from byte {file.tell()} on are missing; start anew")
                file.write(_content(piece))
        self._sent = wanted

    def _pieces(self) -> list[tuple[int, str]]:
        """(first byte, URI) of the records that were sent."""
        before, query = uris.split_query(self.uri)
        folder, begin = f"{before.rpartition('/')[0]}/{query}", f"{uris.name_of(self.uri)}.lines-"
        listed: list[str] = attempt(folder, store_of(folder).list, "cannot be listed")
        names = {one: uris.name_of(one) for one in listed}
        ends = {one: name.removeprefix(begin) for one, name in names.items() if name.startswith(begin)}
        return sorted((int(end), one) for one, end in ends.items() if end.isdecimal())

    def _beside(self, name: str) -> str:
        before, query = uris.split_query(self.uri)
        return f"{before}.lines-{name}{query}"

    def send(self, lines: int) -> None:
        """Send records up to a length, those that were not sent before, and then the state."""
        if lines > self._sent:
            piece = Path(f"{self.path}.piece")
            with self._lines.open("rb") as file:
                file.seek(self._sent)
                piece.write_bytes(file.read(lines - self._sent))
            _write(self._beside(f"{self._sent:020d}"), piece)
            self._sent = lines
        _write(self.uri, self.path)

    def forget_lines(self) -> None:
        """Remove records of a run that has ended."""
        for _, piece in self._pieces():
            attempt(piece, store_of(piece).delete, "cannot be removed")

    def renamed(self, error: BigvocabError) -> BigvocabError:
        """The error, which calls the local file by the URI."""
        return error.renamed(str(self.path), self.shown)


def _content(uri: str) -> bytes:
    file = RemoteFile(Source(uri, uri, None))
    return file.read(0, file.size).tobytes()


def _write(uri: str, source: Path) -> None:
    attempt(uri, lambda: store_of(uri).write(source), "cannot be written")
