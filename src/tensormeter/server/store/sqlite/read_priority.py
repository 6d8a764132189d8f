"""Priority of reads over background work, which pauses briefly while reads run."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["ReadPriority"]

_WORK: Final = 0.01
"""Seconds of background work between two checks for readers."""

_WAIT: Final = 0.05
"""Maximum seconds of one pause."""

_LINGER: Final = 0.005
"""Seconds for which background work still pauses after a read, while the reader converts the result or reads more."""


class ReadPriority:
    """A coordinator that makes a background thread pause while reads run, because its work blocks the interpreter.

    Any number of threads may call `reading`.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers = 0
        self._last = 0.0
        self._until = 0.0

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Make background work pause while the code inside the block reads."""
        with self._changed:
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._last = time.monotonic()
                self._changed.notify()

    def yield_to_readers(self) -> None:
        """Block for up to 50 ms while there are reads. Call this method between two steps of work."""
        now = time.monotonic()
        if now < self._until:
            return
        deadline = now + _WAIT
        with self._changed:
            while now < deadline and (self._readers or now < self._last + _LINGER):
                self._changed.wait(deadline - now if self._readers else self._last + _LINGER - now)
                now = time.monotonic()
        self._until = now + _WORK
