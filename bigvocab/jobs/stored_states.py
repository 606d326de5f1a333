"""The state of a run in an object store: worked on in a local file, and sent at each checkpoint.

Records are sent in pieces, `part.state.lines-<first byte>`, before the state that counts them: so a killed run leaves a
state and all of its records, or what the checkpoint before it left.

Stores have no locks, and nothing tells a run that was killed from one that goes on elsewhere. So a run that begins, or
goes on from a state, says in `part.state.owner` that it is the owner. Before each checkpoint it looks whether it still
is, and whether the state is the one it left: a run that finds another owner ends, and has changed nothing of what the
other one wrote.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import tempfile
from pathlib import Path

from bigvocab.errors import BigvocabError, FormatError
from bigvocab.evaluation.state import read_state
from bigvocab.storage import uris
from bigvocab.storage.attempts import attempt
from bigvocab.storage.file_identity import RemoteIdentity
from bigvocab.storage.paths import Source
from bigvocab.storage.remote import RemoteFile
from bigvocab.storage.stores import is_there, object_bytes, store_of


class StoredState:
    """One state in a store, and its local file at `path` while it lasts."""

    def __init__(self, uri: str) -> None:
        self.uri, self.shown = uri, uris.shown(uri)
        self._folder = tempfile.TemporaryDirectory(prefix="bigvocab-")
        self.path = Path(self._folder.name) / (uris.name_of(uri) or "state")
        self._lines = Path(f"{self.path}.lines")
        self._sent = 0  # bytes of records
        self._left: RemoteIdentity | None = None  # the state as this run found or wrote it
        self._mark = json.dumps({"machine": socket.gethostname(), "process": os.getpid(), "run": secrets.token_hex(8)})
        self._owns = False

    def close(self) -> None:
        """Remove the local files, and the name of the owner where that is this run."""
        self._folder.cleanup()
        if self._owns:
            with contextlib.suppress(BigvocabError):
                if self._owner() == self._mark:
                    attempt(
                        self._beside("owner"), lambda: store_of(self._beside("owner")).delete(), "cannot be removed"
                    )

    def fetch(self) -> None:
        """Have the local files as the last checkpoint left them; nothing where there was none."""
        if not is_there(self.uri):
            return
        self._left = attempt(self.uri, lambda: store_of(self.uri).identity())
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

    def claim(self) -> None:
        """Become the owner, in place of a run that was killed, or of one that still goes on and will end."""
        self._write_text(self._beside("owner"), self._mark)
        self._owns = True

    def _owner(self) -> str | None:
        """What the owner has written; None where nobody has."""
        uri = self._beside("owner")
        return object_bytes(uri).decode(errors="replace") if is_there(uri) else None

    def _refuse_others(self) -> None:
        """Raise where another run has taken the state over, or written it."""
        found = self._owner()
        if found != self._mark:
            raise BigvocabError(f"{self.shown}: {_described(found)}; expected one run for each state")
        now: RemoteIdentity | None = (
            attempt(self.uri, lambda: store_of(self.uri).identity()) if is_there(self.uri) else None
        )
        if now != self._left:
            raise BigvocabError(f"{self.shown}: another run has written it; expected one run for each state")

    def _write_text(self, uri: str, text: str) -> None:
        piece = Path(f"{self.path}.text")
        piece.write_text(text)
        _write(uri, piece)

    def _pieces(self) -> list[tuple[int, str]]:
        """(first byte, URI) of the records that were sent."""
        before, query = uris.split_query(self.uri)
        folder, begin = f"{before.rpartition('/')[0]}/{query}", f"{uris.name_of(self.uri)}.lines-"
        listed: list[str] = attempt(folder, lambda: store_of(folder).list(), "cannot be listed")
        names = {one: uris.name_of(one) for one in listed}
        ends = {one: name.removeprefix(begin) for one, name in names.items() if name.startswith(begin)}
        return sorted((int(end), one) for one, end in ends.items() if end.isdecimal())

    def _beside(self, name: str) -> str:
        before, query = uris.split_query(self.uri)
        return f"{before}.{name}{query}"

    def send(self, lines: int) -> None:
        """Send records up to a length, those that were not sent before, and then the state.

        Raises:
            BigvocabError: another run owns the state by now; nothing is sent.
        """
        self._refuse_others()
        if lines > self._sent:
            piece = Path(f"{self.path}.piece")
            with self._lines.open("rb") as file:
                file.seek(self._sent)
                piece.write_bytes(file.read(lines - self._sent))
            _write(self._beside(f"lines-{self._sent:020d}"), piece)
            self._sent = lines
        _write(self.uri, self.path)
        self._left = attempt(self.uri, lambda: store_of(self.uri).identity())

    def forget_lines(self) -> None:
        """Remove records of a run that has ended."""
        for _, piece in self._pieces():
            _remove(piece)

    def renamed(self, error: BigvocabError) -> BigvocabError:
        """The error, which calls the local file by the URI."""
        return error.renamed(str(self.path), self.shown)


def _described(owner: str | None) -> str:
    """Who else owns a state."""
    try:
        found = json.loads(owner or "")
        return f"another run, process {found['process']} on {found['machine']}, has taken it over"
    except (ValueError, KeyError, TypeError):
        return "another run has taken it over, or ended it"


def _content(uri: str) -> bytes:
    file = RemoteFile(Source(uri, uri, None))
    return file.read(0, file.size).tobytes()


def _write(uri: str, source: Path) -> None:
    attempt(uri, lambda: store_of(uri).write(source), "cannot be written")


def _remove(uri: str) -> None:
    attempt(uri, lambda: store_of(uri).delete(), "cannot be removed")
