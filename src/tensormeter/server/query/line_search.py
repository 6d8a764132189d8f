"""Search for a regular expression in many lines at once, because a call of RE2 takes microseconds."""

import re
from typing import Any, Final

import numpy as np
import re2
from numpy.typing import NDArray

from tensormeter.otlp.check import Check

__all__ = ["LineSearch"]

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
            check: Function called for each match; it can raise an exception to stop the search.
        """
        mask = np.zeros(len(ends), np.bool_)
        position = 0
        while match := self._pattern.search(lines, position):
            check()
            row = int(np.searchsorted(ends, match.start()))
            stop = int(np.searchsorted(ends, match.end() - 1)) + 1 if self.is_fast else row + 1
            mask[row:stop] = True
            if stop >= len(ends):
                break
            position = int(ends[stop - 1]) + 1
        return np.flatnonzero(mask)


def _compile(pattern: bytes, *, ignore_case: bool, never_nl: bool = False) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = 1 << 20
    options.case_sensitive = not ignore_case
    options.never_capture = True
    options.never_nl = never_nl
    return re2.compile(pattern, options)
