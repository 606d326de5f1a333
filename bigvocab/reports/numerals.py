"""How numbers are shown to people: sensible digits, thousands separators, errors beside their values."""

from __future__ import annotations

import math

from bigvocab.errors import printable
from bigvocab.storage.uris import is_remote, split_query


def fixed(number: float, decimals: int = 6) -> str:
    """A number with so many decimals; very large and very small ones in scientific notation.

    >>> fixed(3.70702636), fixed(0.0), fixed(3.1e-9), fixed(12345.678, 2)
    ('3.707026', '0.000000', '3.1000e-09', '12,345.68')
    """
    if not math.isfinite(number):
        return str(float(number))
    if number and not 1e-4 <= abs(number) < 1e9:
        return f"{number:.4e}"
    return f"{number:,.{decimals}f}"


def significant(number: float, digits: int = 5) -> str:
    """A number with so many significant digits, but with all digits before the point.

    >>> significant(40.7325), significant(21784.6), significant(1.0), significant(2.5e12)
    ('40.733', '21,785', '1.0000', '2.5000e+12')
    """
    if not math.isfinite(number) or number == 0:
        return fixed(number, digits - 1)
    return fixed(number, max(0, digits - 1 - math.floor(math.log10(abs(number)))))


def with_error(shown: str, error: float | None, plus_minus: str = "±") -> str:
    """A number as shown, and its standard error in the same decimals; the number alone where there is no error.

    >>> with_error("40.733", 7.4962), with_error("40.733", 0.00012), with_error("3.2", float("nan"))
    ('40.733 ± 7.496', '40.733 ± 1.2e-04', '3.2')
    """
    if error is None or math.isnan(error):
        return shown
    decimals = len(shown.partition(".")[2])
    if "e" in shown or 0 < error < 5 * 10.0**-decimals:
        return f"{shown} {plus_minus} {error:.1e}"
    return f"{shown} {plus_minus} {fixed(error, decimals)}"


def is_within_error(mean: float, error: float) -> bool:
    """Whether a difference is not told from 0 by its error: within two of them.

    >>> is_within_error(0.3, 0.2), is_within_error(-0.5, 0.2), is_within_error(0.1, float("nan"))
    (True, False, False)
    """
    return not math.isnan(error) and abs(mean) <= 2 * error


def to_error(number: float, error: float | None, plus_minus: str = "±", digits: int = 2) -> str:
    """A number and its standard error, both rounded where the error has so many significant digits.

    >>> to_error(0.0300619, 0.0045264), to_error(0.0300619, 0.0045264, digits=1)
    ('0.0301 ± 0.0045', '0.030 ± 0.005')
    >>> to_error(1.2345678e-05, 2.5e-07), to_error(30.5561, None), to_error(0.0, 0.0)
    ('1.235e-05 ± 2.5e-07', '30.556', '0 ± 0')
    """
    if error is None or math.isnan(error) or not math.isfinite(number):
        return significant(number)
    if error == 0 or not math.isfinite(error):
        return f"{number:.5g} {plus_minus} {error:.2g}"
    decimals = digits - 1 - math.floor(math.log10(error))
    if decimals > 6:
        of_number = max(0, decimals + math.floor(math.log10(abs(number) or error)))
        return f"{number:.{of_number}e} {plus_minus} {error:.{digits - 1}e}"
    decimals = max(0, decimals)
    return f"{number:,.{decimals}f} {plus_minus} {error:,.{decimals}f}"


def count(number: float) -> str:
    """A whole number with thousands separators; a sum of weights that is none keeps its decimals.

    >>> count(12966), count(8.0), count(8.5)
    ('12,966', '8', '8.5000')
    """
    if math.isfinite(number) and number == int(number) and abs(number) < 1e15:
        return f"{int(number):,}"
    return significant(number)


def counted(number: int, noun: str) -> str:
    """A count and its noun.

    >>> counted(1, "row"), counted(1200, "row")
    ('1 row', '1,200 rows')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def size(num_bytes: float) -> str:
    """Bytes in decimal units.

    >>> size(512), size(6975836), size(2.4e10)
    ('512 bytes', '7.0 MB', '24.0 GB')
    """
    if num_bytes < 1000:
        return "1 byte" if num_bytes == 1 else f"{num_bytes:.0f} bytes"
    for unit in ("kB", "MB", "GB", "TB"):
        num_bytes /= 1000
        if num_bytes < 999.95:
            return f"{num_bytes:.1f} {unit}"
    return f"{num_bytes / 1000:,.1f} PB"


def tail(path: str, width: int) -> str:
    """The end of a path that is too long, which tells files apart; of a URI without its query.

    >>> tail("/data/run-17/logits.npy", 16), tail("s3://b/logits.npy?region=eu", 20)
    ('…n-17/logits.npy', 's3://b/logits.npy')
    """
    path = printable(split_query(path)[0] if is_remote(path) else path)
    return path if len(path) <= width else "…" + path[1 - width :]
