"""Search for a text or a regular expression in a table of names."""

import re
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import re2
from numpy.typing import NDArray

from tensormeter.otlp.check import Check, no_check
from tensormeter.server.store.models.names import NameTable

__all__ = ["search_names"]

_BLOCK: Final = 1 << 18
"""Number of bytes of names that are searched at once, between two calls of `check`."""

_LINES: Final = bytes.maketrans(b"\n\xff", b" \n")
"""Translation that puts each name on a line. A line feed in a name becomes a space."""

_LITERAL: Final = re.compile(r"[\w /:@%&<>=~`'\",;!-]+", re.ASCII)
"""Pattern of regular expressions that match only themselves, in upper or lower case."""

_ON_ONE_LINE: Final = re.compile(r"(?:\\[dwbB./+*?()|\[\]{}^$-]|(?!\[\^|\(\?)[^\\\n])*")
"""Pattern of regular expressions that cannot match a line feed."""

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
    find = _Expression(text) if literal is None else None
    parts = []
    for start, end in _blocks(table, first, stop):
        check()
        offset = table.start(start)
        lines = table.block[offset : int(table.ends[end - 1]) + 1].translate(_LINES)
        ends = table.ends[start:end] - offset
        if find is not None:
            parts.append(find(lines, ends, check) + start)
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


class _Expression:
    """Search for a regular expression in lines of UTF-8."""

    def __init__(self, text: str) -> None:
        pattern = text.encode(errors="surrogatepass")
        try:
            _compiled(pattern)
        except re2.error:
            pattern = re2.escape(pattern)
        self._skips_lines = _ON_ONE_LINE.fullmatch(text) is not None
        if self._skips_lines:
            # A match covers neighboring lines, because each match takes microseconds.
            self._pattern = _compiled(b"(?m)^(?:.*(?:" + pattern + b").*\n)+")
        else:
            self._pattern = _compiled(b"(?m:" + pattern + b")", never_nl=True)

    def __call__(self, lines: bytes, ends: _Rows, check: Check) -> _Rows:
        mask = np.zeros(len(ends), np.bool_)
        position = 0
        while match := self._pattern.search(lines, position):
            check()
            row = int(np.searchsorted(ends, match.start()))
            stop = int(np.searchsorted(ends, match.end() - 1)) + 1 if self._skips_lines else row + 1
            mask[row:stop] = True
            if stop >= len(ends):
                break
            position = int(ends[stop - 1]) + 1
        return np.flatnonzero(mask)


def _compiled(pattern: bytes, *, never_nl: bool = False) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = 1 << 20
    options.case_sensitive = False
    options.never_capture = True
    options.never_nl = never_nl
    return re2.compile(pattern, options)
