"""Words of the ring that this process stores later, when their values become available.

They are used for devices that cannot store into the ring, for JAX arrays, and for objects whose value arrives later.
Log calls poll the values on their own threads. There is no separate thread, and no call waits.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from tensormeter.ring.file import RingFile
from tensormeter.ring.format import LOST, PENDING

__all__ = ["PendingValues"]

_MAX_UNAVAILABLE: Final = 32
"""Number of unavailable entries after which a call stops polling, so that many entries do not slow down a log call."""


class _Entry(NamedTuple):
    """Values for consecutive words of the ring."""

    word: int
    number: int
    poll: Callable[[], Sequence[float] | None]


class PendingValues:
    """Pending values of one ring. Any thread and any signal handler may use it."""

    def __init__(
        self, ring: RingFile, on_failure: Callable[[Exception], None], on_add: Callable[[], None] = lambda: None
    ) -> None:
        """
        Args:
            ring: Ring that this process has created.
            on_failure: Function that receives the error of a value that will never arrive. The reader counts the value as lost.
            on_add: Function to call whenever an entry is added. It must arrange for `poll` to be called later.
        """
        self._words = ring.words
        # An assignment to this view is a single 8-byte store, so no reader sees half a value.
        self._values = memoryview(ring.buffer).cast("d")
        self._bytes = memoryview(ring.buffer).cast("B")
        self._on_failure = on_failure
        self._on_add = on_add
        self._entries: list[_Entry] = []
        self._busy = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, word: int, count: int, poll: Callable[[], Sequence[float] | None]) -> None:
        """Store words once `poll` returns their values.

        Args:
            word: Index of the first word. All of the words hold PENDING.
            count: Number of words.
            poll: Function that returns None until the values are available, then the values. It never blocks, and raises if
                there will be no values.
        """
        self._entries.append(_Entry(word, count, poll))
        self._on_add()

    def store(self, word: int, content: bytes) -> None:
        """Store words that no reader uses while other words of their row are pending. Meant for use in a `poll` function.

        Args:
            word: Index of the first word.
            content: Bytes of the words.
        """
        self._bytes[8 * word : 8 * word + len(content)] = content

    def poll(self) -> None:
        """Store the values that are available. Never waits. If another thread is polling, returns at once."""
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
        """Wait for the pending values at the end of a run, and mark values that do not arrive in time as lost.

        Args:
            timeout: Maximum seconds to wait.
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
        """Poll an entry and store its values. Return whether the entry is finished, with its values either stored or lost."""
        try:
            values = entry.poll()
            if values is None:
                return False
            for word, value in zip(range(entry.word, entry.word + entry.number), values, strict=True):
                number = float(value)
                # Every NaN becomes the default NaN, because another payload could look like PENDING.
                self._values[word] = number if number == number else float("nan")  # noqa: PLR0124
        except Exception as error:  # errors of the value's own code must not stop the program
            self._give_up(entry)
            self._on_failure(error)
        return True

    def _give_up(self, entry: _Entry) -> None:
        for word in range(entry.word, entry.word + entry.number):
            if self._words[word] == PENDING:
                self._words[word] = LOST
