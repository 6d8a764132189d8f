"""Functions that format data from a server as text that is safe to print and easy to read."""

import math
import re
import unicodedata
from datetime import UTC, datetime
from typing import Final

__all__ = ["local_time", "number", "plain", "plain_line", "plain_lines"]

_ESCAPES: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]P^_X][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")
"""Escape sequences of terminals: colors, movements, titles and others."""


def plain(text: object) -> str:
    """Replace control characters and other invisible characters, so that, for example, names cannot move the cursor.

    Pass the result to rich as `Text`, never as markup.
    """
    return "".join(char if not unicodedata.category(char).startswith("C") else "�" for char in str(text))


def plain_line(text: str) -> str:
    """Make a log line safe to print: remove escape sequences, and replace other control characters except tabs.

    If a program redrew the line with carriage returns, the last state stays.
    """
    if text.isprintable():
        return text
    text = _ESCAPES.sub("", text).rstrip("\r").rpartition("\r")[2]
    return "\t".join(plain(part) for part in text.split("\t"))


def plain_lines(text: str) -> list[str]:
    """Return the lines of a text like source code, each without control characters. Tabs become spaces."""
    return [plain(line.rstrip("\r").expandtabs(4)) for line in text.removesuffix("\n").split("\n")] if text else []


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
