"""What the recorder says to the script: a warning once for each thing, on the logger `tensormeter`."""

import itertools
import logging
import reprlib
from collections.abc import Mapping
from typing import Any, Final

from tensormeter.record.cost import Stopwatch

__all__ = ["Notices"]

logger: Final = logging.getLogger("tensormeter")

_MOST: Final = 1000
"""Things warned about; beyond that, drops are only counted."""

_NAMES_SHOWN: Final = 5


class Notices:
    """Remembers what has been said. Any thread; two at once may say the same thing twice."""

    def __init__(self) -> None:
        self._said: set[object] = set()

    def once(self, about: object, message: str, *arguments: object) -> None:
        """Warn, unless it has been warned about the same.

        Args:
            about: What it is about; hashable.
            message: With the arguments, as for `logging`.
        """
        if about not in self._said and len(self._said) < _MOST:
            self._said.add(about)
            logger.warning(message, *arguments)

    def slow(self, values: Mapping[str, Any], watch: Stopwatch) -> None:
        """A log call that was not the first of its kind took long: said once for each reason."""
        if watch.waited:
            reason = "its thread was kept waiting, by other Python threads or for a processor"
        else:
            reason = "it had much to look at; log fewer values at once, or numbers instead of arrays"
        names = ", ".join(map(reprlib.repr, itertools.islice(values, _NAMES_SHOWN)))
        more = f" and {len(values) - _NAMES_SHOWN} more" if len(values) > _NAMES_SHOWN else ""
        self.once((Stopwatch, reason), "log() of %s%s took %.1f ms: %s", names, more, watch.duration / 1e6, reason)
