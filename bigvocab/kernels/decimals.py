"""Numbers written in decimal, one at the end of each line of a file."""

from __future__ import annotations

import numpy as np

from bigvocab.kernels.jit import jit

_MOST_DIGITS = 15  # of a mantissa that a double holds exactly, and so of a quotient that is rounded once
_TENS = 10.0 ** np.arange(_MOST_DIGITS + 1)
_COMMA, _POINT, _ZERO, _LINE_FEED = 44, 46, 48, 10


@jit
def read_last_fields(text, values):
    """Put the last comma-separated field of each line of `text` (bytes, uint8) into `values`, float64.

    True where each is at most 15 digits with or without a point, and there are as many lines as values. One division of
    two exact doubles is correctly rounded (Clinger 1990, doi:10.1145/93542.93557).
    """
    line = mantissa = digits = behind = 0
    point, plain = False, True
    for i in range(text.size + 1):
        byte = text[i] if i < text.size else np.uint8(_LINE_FEED)
        digit = np.int64(byte) - _ZERO
        if 0 <= digit <= 9:
            mantissa = 10 * mantissa + digit  # may overflow where there are too many digits: then it is not used
            digits += 1
            behind += np.int64(point)
        elif byte == _COMMA or byte == _LINE_FEED:
            if byte == _LINE_FEED and not (i == text.size and text[i - 1] == _LINE_FEED):
                if not plain or not 1 <= digits <= _MOST_DIGITS or line == values.size:
                    return False
                values[line] = mantissa / _TENS[behind]
                line += 1
            mantissa = digits = behind = 0
            point, plain = False, True
        else:
            plain = plain and byte == _POINT and not point
            point = True
    return line == values.size
