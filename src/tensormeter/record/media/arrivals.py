"""Media items that wait for their data to arrive from a device."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from tensormeter.record.media.arriving import ArrivingMedia

__all__ = ["Arrivals", "Waiting"]

_MOST_WAITING: Final = 64
"""Maximum number of items that wait. Each keeps up to 60 MiB of host memory."""

_POLL: Final = 0.001


class Waiting(NamedTuple):
    """An item that was logged before its data arrived.

    Attributes:
        key: Name of the item.
        media: The item.
        step: Step of the row.
        time: Time of the log call in nanoseconds since the Unix epoch.
    """

    key: str
    media: ArrivingMedia
    step: int
    time: int


class Arrivals:
    """The waiting items of one recorder, in the order in which they were logged. Any thread and any signal handler may use it."""

    def __init__(self) -> None:
        self._waiting: deque[Waiting] = deque()
        self._busy = threading.Lock()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, item: Waiting) -> bool:
        """Add an item, and return whether there was space for it."""
        if len(self._waiting) >= _MOST_WAITING:
            return False
        self._waiting.append(item)
        return True

    def poll(self, record: Callable[[Waiting], object]) -> None:
        """Record the items that have arrived. Never waits. If another thread is already polling, does nothing.

        Args:
            record: Function that records an item whose data has arrived. It must not raise.
        """
        if not self._waiting or not self._busy.acquire(blocking=False):
            return
        try:
            for _ in range(len(self._waiting)):
                item = self._waiting[0]
                if not item.media.is_ready():
                    return  # later items of the same stream are not ready either
                record(item)
                self._waiting.popleft()
        finally:
            self._busy.release()

    def settle(self, record: Callable[[Waiting], object], timeout: float) -> list[Waiting]:
        """Wait for the items at the end of a run, up to a timeout in seconds, and return those that have not arrived."""
        deadline, pause = time.monotonic() + timeout, threading.Event()
        self.poll(record)
        while self._waiting and time.monotonic() < deadline:
            pause.wait(_POLL)
            self.poll(record)
        return list(self._waiting)
