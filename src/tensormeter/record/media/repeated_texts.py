"""Short strings that are logged again and again under a key, such as the name of a phase."""

import threading
from collections.abc import Iterator
from typing import Final, NamedTuple

from tensormeter.conventions.limits import REPEATED_TEXT_CHARACTERS
from tensormeter.record.media.item import EventContent
from tensormeter.record.media.text import pack_text

__all__ = ["RepeatedTexts"]

_MAX_KEYS: Final = 1000
"""Maximum number of keys whose last text is kept."""


class _Repeated(NamedTuple):
    text: str
    first_step: int
    last_step: int
    calls: int


class RepeatedTexts:
    """The last short text of each key. Thread-safe.

    An unchanged text is stored once. When it changes, and when the run ends, a second event has the last step and the number of
    log calls. If the process is killed, only the first event is known.
    """

    def __init__(self) -> None:
        self._texts: dict[str, _Repeated] = {}
        self._lock = threading.RLock()  # reentrant, because a signal handler may log

    def add(self, key: str, text: str, step: int) -> list[tuple[int, EventContent]]:
        """Add a text, and return the events to write now, with their steps.

        Raises:
            Refused: The text is too large.
        """
        if len(text) > REPEATED_TEXT_CHARACTERS:
            return [*self._take(key), (step, pack_text(text))]
        with self._lock:
            known = self._texts.get(key)
            if known is not None and known.text == text:
                self._texts[key] = known._replace(last_step=step, calls=known.calls + 1)
                return []
            events = [*self._take(key), (step, pack_text(text))]
            if len(self._texts) < _MAX_KEYS:
                self._texts[key] = _Repeated(text, step, step, 1)
            return events

    def flush(self) -> Iterator[tuple[str, int, EventContent]]:
        """Forget all texts, and yield the key, the last step and the event of each text that was repeated."""
        for key in list(self._texts):
            for step, content in self._take(key):
                yield key, step, content

    def _take(self, key: str) -> list[tuple[int, EventContent]]:
        with self._lock:
            known = self._texts.pop(key, None)
        if known is None or known.calls == 1:
            return []
        return [(known.last_step, pack_text(known.text, first_step=known.first_step, count=known.calls))]
