"""What tells files apart by their content: sizes and hashes, so that copies on other machines match and changed files
do not.

Small files are hashed whole; of others the size, both ends and blocks spread evenly between them. Nothing else is read,
so that a job over terabytes starts at once; a change between the blocks of such a file, of the same size, goes unseen.
"""

from __future__ import annotations

import hashlib
import os

from bigvocab.errors import BigvocabError
from bigvocab.storage import uris

WHOLE = 1 << 20  # bytes of a file that is hashed whole
_BLOCKS, _BLOCK_BYTES = 16, 16 << 10


def of_file(path: str | os.PathLike[str], whole: int = WHOLE) -> str:
    """The fingerprint of a file: of all of it up to `whole` bytes, else of blocks of it; of an object in a store its
    size and its ETag or time of change.
    """
    path = uris.plain(os.fsdecode(path))
    if uris.is_remote(path):
        from bigvocab.storage.remote import fingerprint

        return fingerprint(path)
    found = hashlib.blake2b(digest_size=16)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            found.update(b"%d:" % size)
            if size <= whole:
                while block := file.read(1 << 20):
                    found.update(block)
            else:
                for i in range(_BLOCKS):
                    file.seek((size - _BLOCK_BYTES) * i // (_BLOCKS - 1))
                    found.update(file.read(_BLOCK_BYTES))
    except OSError as error:
        raise BigvocabError(f"{path}: cannot be read: {error.strerror}") from error
    return found.hexdigest()
