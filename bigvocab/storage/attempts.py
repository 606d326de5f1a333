"""Requests to stores and web servers, tried again while that may help; their errors, of one line and without a key.

What can pass by itself (a dropped connection, a short answer, 503) is tried again; what cannot (403, 404, an object
that has changed) is an error at once.
"""

from __future__ import annotations

import http.client
import re
import sys
import time
from collections.abc import Callable
from typing import Any

from bigvocab.errors import BigvocabError, FormatError
from bigvocab.storage import uris

ATTEMPTS, PAUSE = 5, 0.2  # of a request, and seconds before the second one; each pause is twice the one before
_NAMES = re.compile(r"'[^']*'|\S*/\S*")  # of objects, in which any number may stand
_FINAL = re.compile(r"\b(40[0134]|ACCESS_DENIED|NO_SUCH_(KEY|BUCKET)|INVALID_ACCESS_KEY|SIGNATURE|PERMISSION_DENIED|UNAUTHENTICATED)|not found|No such file|forbidden", re.IGNORECASE)  # fmt: skip # noqa: E501


class Final(Exception):
    """What another attempt cannot mend."""


def attempt(uri: str, request: Callable[[], Any], what: str = "cannot be read") -> Any:
    """The result of a request, tried again while that may help; else one BigvocabError that names the URI."""
    pause = PAUSE
    for left in reversed(range(ATTEMPTS)):
        try:
            return request()
        except BigvocabError:
            raise
        except Final as error:
            reason = str(error)
            break
        except Exception as error:
            if not isinstance(error, _EXPECTED) and not _is_arrow(error):
                raise
            reason = _one_line(error)
            if not left or _never_passes(error) or _FINAL.search(_NAMES.sub("", reason)):
                break
        time.sleep(pause)
        pause *= 2
    raise BigvocabError(f"{uris.shown(uri)}: {what}: {reason}") from None


_EXPECTED = (OSError, http.client.HTTPException, ValueError, NotImplementedError)


def _never_passes(error: Exception) -> bool:
    """Whether Arrow refuses the URI itself, or can do no such thing."""
    return isinstance(error, NotImplementedError) or type(error).__name__ == "ArrowInvalid"


def _is_arrow(error: Exception) -> bool:
    """Whether it is one of Arrow's own, which are not all OSError or ValueError."""
    arrow = sys.modules.get("pyarrow")
    return arrow is not None and isinstance(error, arrow.ArrowException)


def _one_line(error: BaseException) -> str:
    """What an error says, without secrets: those of a URI, and what services add."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    text = re.sub(r" error_info=\{.*", ")", text)[:400]  # of Google, after its message
    return re.sub(r"(?i)(key|secret|token|signature|credential)(id)?=[^\s&'\"]+", r"\1=...", uris.redacted(text))


def short(uri: str, wanted: int, got: int) -> FormatError:
    """The error of answers that stay too short."""
    return FormatError(f"{uris.shown(uri)}: {got} bytes came for a range of {wanted}, {ATTEMPTS} times")
