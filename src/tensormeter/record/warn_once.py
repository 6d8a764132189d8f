"""The recorder's warnings, which are logged to the `tensormeter` logger once per cause.

The functions never raise, even if a script's keys or exceptions cannot be converted to text.
"""

import itertools
import reprlib
from collections.abc import Mapping
from typing import Any, Final

from tensormeter.conventions.unicode_names import as_unicode
from tensormeter.logger import get_logger
from tensormeter.record.log_timing import Stopwatch
from tensormeter.record.values.outcomes import Refused
from tensormeter.ring.format import Drop

__all__ = ["WarnOnce", "describe", "shown", "text_of"]

logger: Final = get_logger()

_MAX_WARNINGS: Final = 1000
"""Maximum number of warnings. Beyond this limit, drops are counted without a warning."""

_NAMES_SHOWN: Final = 5

_NUMBER_NS: Final = 5_000
"""Maximum nanoseconds that recording a number takes. If a call takes longer than its numbers, they are not the reason."""

_SLOW_MEDIA_NS: Final = 50_000_000
"""Minimum duration in nanoseconds of a slow call with media or distributions, which are copied or counted."""

_LONGEST_SHOWN: Final = 200
"""Maximum length of a key or an exception message in a warning, in characters."""


class WarnOnce:
    """Warns once for each cause. Thread-safe, although two threads may occasionally log the same warning twice."""

    def __init__(self) -> None:
        self._warned: set[object] = set()
        self._lost_names: dict[Drop, list[str]] = {}

    def once(self, about: object, message: str, *arguments: object) -> None:
        """Log a warning, unless a warning has already been logged for the same cause.

        Args:
            about: Hashable object that identifies the cause.
            message: Format string for `logging`.
            arguments: Arguments for the format string.
        """
        if about not in self._warned and len(self._warned) < _MAX_WARNINGS:
            self._warned.add(about)
            logger.warning(message, *arguments)

    def note(self, reason: Drop, name: str) -> None:
        """Store the name of a lost value. Only the first few names for each reason are kept."""
        names = self._lost_names.setdefault(reason, [])
        if len(names) < _NAMES_SHOWN and name not in names:
            names.append(name)

    def refused(self, key: object, refusal: Refused) -> None:
        """Store the name of a value that cannot be recorded, and warn once per name and reason.

        None is often intended, so it causes no warning.
        """
        name = shown(key)
        self.note(refusal.reason, name)
        if refusal.reason is not Drop.NONE_VALUE:
            self.once((name, refusal.reason), "%s is not recorded: %s", name, refusal)

    def changed_name(self, given: str, written: str) -> None:
        """Warn about a name that is not valid Unicode text."""
        message = "%s is recorded as %s, because the name is not valid Unicode"
        self.once((as_unicode, given), message, shown(given), shown(written))

    @property
    def lost_names(self) -> dict[str, list[str]]:
        """Names of lost values, by reason."""
        return {reason.name.lower(): list(names) for reason, names in self._lost_names.items()}

    def slow(self, values: Mapping[str, Any], watch: Stopwatch) -> None:
        """Warn once that a log call was slow, if fewer or smaller values would make it faster.

        Do not call this for rows with new keys, which are slower. The metric `tensormeter.log.duration` also counts calls that were
        slow for another reason: because the thread waited for other threads or for a CPU, or because the call collected garbage.
        """
        if watch.waited:
            return
        try:
            are_numbers = all(_is_number(value) for value in values.values())
            if len(values) * _NUMBER_NS < watch.duration if are_numbers else watch.duration < _SLOW_MEDIA_NS:
                return
            names = ", ".join(map(shown, itertools.islice(values, _NAMES_SHOWN)))
            more = f" and {len(values) - _NAMES_SHOWN} more" if len(values) > _NAMES_SHOWN else ""
        except Exception:  # the mapping's own code may raise anything
            are_numbers, names, more = False, f"a {type(values).__name__}", ""
        if are_numbers:
            reason = "it has too many values; log fewer per call"
        else:
            reason = "copying or counting its values takes this long; log smaller ones, or log them less often"
        self.once(Stopwatch, "log() of %s%s took %.1f ms: %s", names, more, watch.duration / 1e6, reason)


def _is_number(value: Any) -> bool:
    """Return whether a value is a number, or a scalar of an array library."""
    return isinstance(value, int | float) or getattr(value, "shape", None) == ()


def shown(key: object) -> str:
    """Format a key for a message: quoted and truncated to 200 characters."""
    try:
        text = repr(key) if isinstance(key, str) else reprlib.repr(key)
    except Exception:  # the key's own code may raise anything
        text = f"a {type(key).__name__}"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}... ({len(text)} characters)"


def text_of(value: object) -> str:
    """Convert a value to text with `str`. If this raises an exception, return a placeholder that names the value's type."""
    try:
        return str.__str__(str(value))
    except Exception:  # the value's own code may raise anything
        return f"(a {type(value).__name__} that cannot be shown)"


def describe(error: BaseException) -> str:
    """Format an exception as its type and its message. Truncate the message to 200 characters."""
    try:
        message = str(error)
    except Exception:  # the exception's own code may raise anything
        return type(error).__name__
    return f"{type(error).__name__}: {message[:_LONGEST_SHOWN]}"
