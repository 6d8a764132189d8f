"""Search for a regular expression in many lines at once, because a call of RE2 takes microseconds."""

import re
from typing import Any, Final

import numpy as np
import re2
from numpy.typing import NDArray

from tensormeter.otlp.check import Check

__all__ = ["LineSearch"]

_BLOCK: Final = 1 << 15
"""Bytes that a call of RE2 searches. Some patterns take 10 µs per byte, and a call cannot be interrupted."""

_ON_ONE_LINE: Final = re.compile(r"(?:\\[dwbB./+*?()|\[\]{}^$-]|(?!\[\^|\(\?)[^\\\n])*")
"""Pattern of regular expressions that cannot match a line feed."""


class LineSearch:
    """Search for a regular expression in lines of UTF-8. `^` and `$` match at the ends of each line.

    Attributes:
        is_fast: Whether neighboring lines that match take one call of RE2 together.
    """

    def __init__(self, pattern: str, *, ignore_case: bool) -> None:
        """Compile a pattern in RE2 syntax.

        Raises:
            re2.error: The pattern is invalid or too large.
        """
        text = pattern.encode(errors="surrogatepass")
        _compile(text, ignore_case=ignore_case)  # a pattern such as `a)(b` is valid only inside parentheses
        self.is_fast = _ON_ONE_LINE.fullmatch(pattern) is not None
        if self.is_fast:
            self._pattern = _compile(b"(?m)^(?:.*(?:" + text + b").*\n)+", ignore_case=ignore_case)
        else:
            self._pattern = _compile(b"(?m:" + text + b")", ignore_case=ignore_case, never_nl=True)

    def find(self, lines: bytes, ends: NDArray[np.int64], check: Check) -> NDArray[np.int64]:
        """Return the indexes of the lines that match, in ascending order.

        Args:
            lines: Lines, each with a line feed at its end.
            ends: Position of each line feed.
            check: Function called repeatedly; it can raise an exception to stop the search.
        """
        mask = np.zeros(len(ends), np.bool_)
        first = 0
        while first < len(ends):
            position = int(ends[first - 1]) + 1 if first else 0
            first = max(int(np.searchsorted(ends, position + _BLOCK)), first + 1)
            self._mark(mask, lines, ends, position, int(ends[first - 1]) + 1, check)
        return np.flatnonzero(mask)

    def _mark(
        self,
        mask: NDArray[np.bool_],
        lines: bytes,
        ends: NDArray[np.int64],
        position: int,
        stop: int,
        check: Check,
    ) -> None:
        """Mark the lines between two positions that match."""
        check()
        while position < stop and (match := self._pattern.search(lines, position, stop)):
            check()
            row = int(np.searchsorted(ends, match.start()))
            following = int(np.searchsorted(ends, match.end() - 1)) + 1 if self.is_fast else row + 1
            mask[row:following] = True
            position = int(ends[following - 1]) + 1


def _compile(pattern: bytes, *, ignore_case: bool, never_nl: bool = False) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = 1 << 20
    options.case_sensitive = not ignore_case
    options.never_capture = True
    options.never_nl = never_nl
    return re2.compile(pattern, options)
