"""Arrays of strings, each after its length: where they end."""

from __future__ import annotations

from bigvocab.kernels.jit import jit


@jit
def end_of_strings(data, at, count):
    """The byte after `count` strings that begin at `at`, each 8 bytes of length, lowest first, and then its own; -1
    where one does not end in `data`.
    """
    for _ in range(count):
        if data.size - at < 8:
            return -1
        length = 0
        for i in range(7):
            length |= int(data[at + i]) << 8 * i
        if data[at + 7] or length > data.size - at - 8:
            return -1
        at += 8 + length
    return at
