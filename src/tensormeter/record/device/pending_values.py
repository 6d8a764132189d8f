"""Pending values, which this process stores in the ring once they become available.

Such values come from devices that cannot store values in the ring, from JAX arrays, and from objects whose value arrives later.
Log calls poll the values on their own threads. There is no separate thread, and polling never waits.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from tensormeter.ring.file import RingFile
from tensormeter.ring.format import LOST, PENDING

__all__ = ["PendingValues"]

_MAX_UNAVAILABLE: Final = 32
"""Number of unavailable entries after which `poll` returns, so that a large number of entries does not slow down a log call."""


class _Entry(NamedTuple):
    """Pending values for consecutive words of the ring."""

    word: int
    number: int
    poll: Callable[[], Sequence[float] | None]


class PendingValues:
    """The pending values of one ring. Any thread and any signal handler may use this object."""

    def __init__(
        self, ring: RingFile, on_failure: Callable[[Exception], None], on_add: Callable[[], None] = lambda: None
    ) -> None:
        """
        Args:
            ring: Ring that this process has created.
            on_failure: Callback that receives the error when a value cannot be delivered. The reader counts the value as lost.
            on_add: Callback that is called whenever an entry is added. It must ensure that `poll` is called later.
        """
        self._words = ring.words
        # An assignment to this view is a single 8-byte store, so a reader never sees a partially written value.
        self._values = memoryview(ring.buffer).cast("d")
        self._bytes = memoryview(ring.buffer).cast("B")
        self._on_failure = on_failure
        self._on_add = on_add
        self._entries: list[_Entry] = []
        self._busy = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, word: int, count: int, poll: Callable[[], Sequence[float] | None]) -> None:
        """Add an entry. Its values are stored in consecutive words once they are available.

        Args:
            word: Index of the first word. All of the words must hold PENDING.
            count: Number of words.
            poll: Function that returns None until the values are available, and then returns the values. It must never block,
                and must raise an error if the values cannot become available.
        """
        self._entries.append(_Entry(word, count, poll))
        self._on_add()

    def store(self, word: int, content: bytes) -> None:
        """Store words that readers ignore while other words of the row are pending. Call this method in a `poll` function.

        Args:
            word: Index of the first word.
            content: Bytes of the words.
        """
        self._bytes[8 * word : 8 * word + len(content)] = content

    def poll(self) -> None:
        """Store the values that have become available. Never waits. If another thread is already polling, does nothing."""
        if not self._entries or not self._busy.acquire(blocking=False):
            return
        try:
            unavailable = 0
            for entry in self._entries.copy():
                if self._resolve(entry):
                    self._entries.remove(entry)
                else:
                    unavailable += 1
                    if unavailable == _MAX_UNAVAILABLE:
                        return
        finally:
            self._busy.release()

    def settle(self, timeout: float) -> None:
        """Wait for the pending values at the end of a run. Mark values that do not arrive in time as lost.

        Args:
            timeout: Maximum time to wait in seconds.
        """
        deadline, pause = time.monotonic() + timeout, threading.Event()
        self.poll()
        while self._entries and time.monotonic() < deadline:
            pause.wait(0.001)
            self.poll()
        for entry in self._entries:
            self._give_up(entry)
        self._entries.clear()

    def _resolve(self, entry: _Entry) -> bool:
        """Poll an entry, and store its values if they are available. Return whether all values have been stored or given up."""
        try:
            values = entry.poll()
            if values is None:
                return False
            for word, value in zip(range(entry.word, entry.word + entry.number), values, strict=True):
                number = float(value)
                # All NaNs are stored as the default NaN, because another payload could look like PENDING.
                self._values[word] = number if number == number else float("nan")  # noqa: PLR0124
        except Exception as error:  # errors in the value's own code must not stop the program
            self._give_up(entry)
            self._on_failure(error)
        return True

    def _give_up(self, entry: _Entry) -> None:
        for word in range(entry.word, entry.word + entry.number):
            if self._words[word] == PENDING:
                self._words[word] = LOST
