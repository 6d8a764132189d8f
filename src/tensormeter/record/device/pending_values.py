"""Words of the ring that this process fills in later, when the value has come to it.

For devices that cannot store into the ring by themselves, for JAX arrays, and for objects that hand out their value later.
The threads that log look for what has come, as a part of their calls; there is no thread for it, and no call waits.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from tensormeter.ring.file import RingFile
from tensormeter.ring.format import LOST, PENDING

__all__ = ["PendingValues"]

_MOST_LOOKS: Final = 32
"""Entries that one call looks at in vain, so that a log call does not get slower the more are pending."""


class _Entry(NamedTuple):
    word: int
    number: int
    poll: Callable[[], Sequence[float] | None]


class PendingValues:
    """Values that are to come, for one ring. Any thread may call; a signal handler may, too."""

    def __init__(
        self, ring: RingFile, on_failure: Callable[[Exception], None], on_add: Callable[[], None] = lambda: None
    ) -> None:
        """
        Args:
            ring: Created by this process.
            on_failure: Told of a value that will never come. It has been marked as lost, which the reader counts.
            on_add: Told of whatever is added: somebody has to `look`.
        """
        self._words = ring.words
        # A store through this view is one store of 8 bytes, which no reader sees half done.
        self._values = memoryview(ring.buffer).cast("d")
        self._bytes = memoryview(ring.buffer).cast("B")
        self._on_failure = on_failure
        self._on_add = on_add
        self._entries: list[_Entry] = []
        self._busy = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, word: int, count: int, poll: Callable[[], Sequence[float] | None]) -> None:
        """Fill in words when `poll` returns their values.

        Args:
            word: Index of the first word, which holds PENDING, as do the following.
            count: How many there are.
            poll: Returns None as long as the values are not there. Never blocks. Raises if they will never be there.
        """
        self._entries.append(_Entry(word, count, poll))
        self._on_add()

    def store(self, word: int, content: bytes) -> None:
        """Fill in words that nobody reads as long as others of their row are pending. For the use of a `poll`.

        Args:
            word: Index of the first word.
            content: Of the words.
        """
        self._bytes[8 * word : 8 * word + len(content)] = content

    def look(self) -> None:
        """Fill in what has come. Never waits: if another thread is at it, it is left to that one."""
        if not self._entries or not self._busy.acquire(blocking=False):
            return
        try:
            vain = 0
            for entry in self._entries.copy():
                if self._resolve(entry):
                    self._entries.remove(entry)
                else:
                    vain += 1
                    if vain == _MOST_LOOKS:
                        return
        finally:
            self._busy.release()

    def settle(self, timeout: float) -> None:
        """Wait for what is still to come, and give up what has not come in time. For the end of a run.

        Args:
            timeout: Seconds.
        """
        deadline, pause = time.monotonic() + timeout, threading.Event()
        self.look()
        while self._entries and time.monotonic() < deadline:
            pause.wait(0.001)
            self.look()
        for entry in self._entries:
            self._give_up(entry)
        self._entries.clear()

    def _resolve(self, entry: _Entry) -> bool:
        """Whether there is nothing left to do for an entry."""
        try:
            values = entry.poll()
            if values is None:
                return False
            for word, value in zip(range(entry.word, entry.word + entry.number), values, strict=True):
                number = float(value)
                # Every NaN becomes the usual one: one of another payload could be taken for a word that is pending.
                self._values[word] = number if number == number else float("nan")  # noqa: PLR0124
        except Exception as error:  # whatever the value's owner raises must not stop the program
            self._give_up(entry)
            self._on_failure(error)
        return True

    def _give_up(self, entry: _Entry) -> None:
        for word in range(entry.word, entry.word + entry.number):
            if self._words[word] == PENDING:
                self._words[word] = LOST
