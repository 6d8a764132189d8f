"""What a server sent, as text that is safe to print and easy to read."""

import math
import unicodedata
from datetime import UTC, datetime

__all__ = ["local_time", "number", "plain"]


def plain(text: object) -> str:
    """Text without control and other invisible characters: a metric's name must not move the cursor.

    Pass it to rich as `Text`, never as markup.
    """
    return "".join(char if not unicodedata.category(char).startswith("C") else "�" for char in str(text))


def number(value: object) -> str:
    """A value of the API for people; NaN and the infinities come as strings."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.6g}"
    return plain(value)


def local_time(nanoseconds: int) -> str:
    """A time in the time zone of this machine, to the second."""
    try:
        return datetime.fromtimestamp(nanoseconds // 1_000_000_000, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return f"{nanoseconds} ns"
