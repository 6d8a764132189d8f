"""Functions that format data from a server as text that is safe to print and easy to read."""

import math
import unicodedata
from datetime import UTC, datetime

__all__ = ["local_time", "number", "plain"]


def plain(text: object) -> str:
    """Replace control characters and other invisible characters, so that, for example, names cannot move the cursor.

    Pass the result to rich as `Text`, never as markup.
    """
    return "".join(char if not unicodedata.category(char).startswith("C") else "�" for char in str(text))


def number(value: object) -> str:
    """Format a value from the API for display. NaN and infinities, which are strings, stay unchanged."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.6g}"
    return plain(value)


def local_time(nanoseconds: int) -> str:
    """Format a time, given in nanoseconds since the Unix epoch, in this machine's time zone, to the second."""
    try:
        return datetime.fromtimestamp(nanoseconds // 1_000_000_000, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return f"{nanoseconds} ns"
