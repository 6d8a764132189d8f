"""Search for a text or a regular expression in a table of names."""

import re
from collections.abc import Iterator
from typing import Final

import numpy as np
import re2
from numpy.typing import NDArray

from tensormeter.otlp.check import Check, no_check
from tensormeter.server.query.line_search import LineSearch
from tensormeter.server.store.models.names import NameTable

__all__ = ["search_names"]

_BLOCK: Final = 1 << 18
"""Number of bytes of names that are searched at once, between two calls of `check`."""

_LINES: Final = bytes.maketrans(b"\n\xff", b" \n")
"""Translation that puts each name on a line. A line feed in a name becomes a space."""

_LITERAL: Final = re.compile(r"[\w /:@%&<>=~`'\",;!-]+", re.ASCII)
"""Pattern of regular expressions that match only themselves, in upper or lower case."""

_Rows = NDArray[np.int64]


def search_names(table: NameTable, first: int, stop: int, text: str, check: Check = no_check) -> _Rows:
    """Return the rows from `first` to `stop` whose names contain a text, in ascending order.

    Args:
        table: Names to search.
        first: First row to search.
        stop: Row after the last one to search.
        text: Regular expression in RE2 syntax; if it is not a valid one, text to find. Upper and lower case are equal.
        check: Function called repeatedly; it can raise an exception to stop the search.
    """
    literal = text.lower().encode() if _LITERAL.fullmatch(text) else None
    expression = _expression(text) if literal is None else None
    parts = []
    for start, end in _blocks(table, first, stop):
        check()
        offset = table.start(start)
        lines = table.block[offset : int(table.ends[end - 1]) + 1].translate(_LINES)
        ends = table.ends[start:end] - offset
        if expression is not None:
            parts.append(expression.find(lines, ends, check) + start)
        elif literal is not None:
            parts.append(_find_literal(lines.lower(), ends, literal) + start)
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _blocks(table: NameTable, first: int, stop: int) -> Iterator[tuple[int, int]]:
    while first < stop:
        following = int(np.searchsorted(table.ends, table.start(first) + _BLOCK))
        following = min(max(following, first + 1), stop)
        yield first, following
        first = following


def _find_literal(lines: bytes, ends: _Rows, literal: bytes) -> _Rows:
    lengths = np.fromiter(map(len, lines.split(literal)), np.int64)[:-1]
    positions = np.cumsum(lengths + len(literal)) - len(literal)
    return np.unique(np.searchsorted(ends, positions))


def _expression(text: str) -> LineSearch:
    try:
        return LineSearch(text, ignore_case=True)
    except re2.error:
        return LineSearch(re2.escape(text), ignore_case=True)
