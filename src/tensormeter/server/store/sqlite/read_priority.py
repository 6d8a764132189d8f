"""Readers go first: work in the background stands aside for them, but never for long."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["ReadPriority"]

_WORK: Final = 0.01
"""Seconds that work goes on before it looks again whether somebody reads."""

_WAIT: Final = 0.05
"""Seconds that it stands aside for, at most, each time."""

_LINGER: Final = 0.005
"""Seconds for which a reader counts after it has read: it makes something of what it found, or reads more."""


class ReadPriority:
    """Between readers and one thread that works in the background, in small steps that each take the interpreter from the readers.

    Threads: `reading` on any number of them.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers = 0
        self._last = 0.0
        self._until = 0.0

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read inside the block."""
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
        """To be called between two steps of work: blocks while somebody reads, up to 50 ms."""
        now = time.monotonic()
        if now < self._until:
            return
        deadline = now + _WAIT
        with self._changed:
            while now < deadline and (self._readers or now < self._last + _LINGER):
                self._changed.wait(deadline - now if self._readers else self._last + _LINGER - now)
                now = time.monotonic()
        self._until = now + _WORK
