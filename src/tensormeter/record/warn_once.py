"""What the recorder says to the script: a warning once for each thing, on the logger `tensormeter`.

Nothing here raises, whatever keys and exceptions of a script do when they are shown.
"""

import itertools
import reprlib
from collections.abc import Mapping
from typing import Any, Final

from tensormeter.logger import get_logger
from tensormeter.record.log_timing import Stopwatch
from tensormeter.ring.format import Drop

__all__ = ["WarnOnce", "describe", "shown", "text_of"]

logger: Final = get_logger()

_MOST: Final = 1000
"""Things warned about; beyond that, drops are only counted."""

_NAMES_SHOWN: Final = 5

_LONGEST_SHOWN: Final = 200
"""Characters of a key, and of the words of an exception, in one message."""


class WarnOnce:
    """Remembers what has been said. Any thread; two at once may say the same thing twice."""

    def __init__(self) -> None:
        self._said: set[object] = set()
        self._noted: dict[Drop, list[str]] = {}

    def once(self, about: object, message: str, *arguments: object) -> None:
        """Warn, unless it has been warned about the same.

        Args:
            about: What it is about; hashable.
            message: With the arguments, as for `logging`.
        """
        if about not in self._said and len(self._said) < _MOST:
            self._said.add(about)
            logger.warning(message, *arguments)

    def note(self, reason: Drop, name: str) -> None:
        """Remember what was lost for a reason; a few names of each."""
        names = self._noted.setdefault(reason, [])
        if len(names) < _NAMES_SHOWN and name not in names:
            names.append(name)

    @property
    def noted(self) -> dict[str, list[str]]:
        """By reason the names that were noted."""
        return {reason.name.lower(): list(names) for reason, names in self._noted.items()}

    def slow(self, values: Mapping[str, Any], watch: Stopwatch) -> None:
        """A log call that was not the first of its kind took long: said once for each reason."""
        if watch.waited:
            reason = "its thread was kept waiting, by other Python threads or for a processor"
        else:
            reason = "it had much to look at; log fewer values at once, or numbers instead of arrays"
        try:
            names = ", ".join(map(shown, itertools.islice(values, _NAMES_SHOWN)))
            more = f" and {len(values) - _NAMES_SHOWN} more" if len(values) > _NAMES_SHOWN else ""
        except Exception:  # of the mapping's own code
            names, more = f"a {type(values).__name__}", ""
        self.once((Stopwatch, reason), "log() of %s%s took %.1f ms: %s", names, more, watch.duration / 1e6, reason)


def shown(key: object) -> str:
    """A key as it is named in messages: quoted, and cut."""
    try:
        text = repr(key) if isinstance(key, str) else reprlib.repr(key)
    except Exception:  # of the key's own code
        text = f"a {type(key).__name__}"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}... ({len(text)} characters)"


def text_of(value: object) -> str:
    """A value as text: what `str` makes of it, or what it is, if its own code raises."""
    try:
        return str.__str__(str(value))
    except Exception:  # of the value's own code
        return f"(a {type(value).__name__} that cannot be shown)"


def describe(error: BaseException) -> str:
    """Type and words of an exception."""
    try:
        words = str(error)
    except Exception:  # of the exception's own code
        return type(error).__name__
    return f"{type(error).__name__}: {words[:_LONGEST_SHOWN]}"
