"""Regular expressions for log lines, with RE2 if it is installed: some patterns take Python's `re` hours."""

import re
from collections.abc import Callable
from contextlib import suppress

from tensormeter.errors import UsageError

__all__ = ["compile_pattern"]


def compile_pattern(pattern: str) -> Callable[[str], bool]:
    """Return a function that returns whether a line contains a match.

    The function uses RE2, whose time is linear, if the package `google-re2` is installed and supports the pattern.

    Raises:
        UsageError: The pattern is invalid.
    """
    try:
        search = re.compile(pattern, re.ASCII).search
    except re.error as error:
        raise UsageError(f"pattern: expected a regular expression, got {pattern!r}: {error}") from None
    with suppress(ImportError):
        import re2

        options = re2.Options()
        options.log_errors = False
        options.never_capture = True
        with suppress(re2.error):
            linear = re2.compile(pattern.encode(errors="surrogatepass"), options)
            return lambda line: linear.search(line.encode(errors="surrogatepass")) is not None
    return lambda line: search(line) is not None
