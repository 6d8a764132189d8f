"""A queue of media items for the agent. Each item is a file next to the ring."""

import contextlib
import itertools
import os
import threading
import time
from typing import Final

from tensormeter.disk.atomic import write_file
from tensormeter.record.media.item import EventContent, to_line
from tensormeter.ring.file import RingFile, media_directory

__all__ = ["Outbox"]

_PRIVATE: Final = 0o700

_BLOCK: Final = 4096
"""Memory that a file takes at least, in bytes."""

_SCAN_SHARE: Final = 10
"""Factor by which looking for space must be less frequent than it is long, so that a full outbox does not slow down log calls."""


class Outbox:
    """Writes files to the ring's media directory, which is on the same file system as the ring and usually in memory.

    Thread-safe. A file gets its final name, a number, only when it is complete. If the process is killed, the agent therefore
    finds no partial files.
    """

    def __init__(self, ring: RingFile, max_bytes: int) -> None:
        """
        Args:
            ring: Ring of this process.
            max_bytes: Maximum total size of the files that wait for the agent, in bytes.
        """
        self._folder = media_directory(ring.path)
        self._max_bytes = max_bytes
        self._numbers = itertools.count(1)
        self._bound = 0  # upper bound for the size of the waiting files, because the agent only deletes files
        self._next_scan = 0.0
        self._lock = threading.RLock()  # reentrant, because a signal handler may log

    def put(self, content: EventContent, key: str | None, step: int | None, at: int | None = None) -> bool:
        """Write an event. Blocks until the event has been copied to its file.

        Args:
            content: Content of the event.
            key: Name of the item, if it has one.
            step: Step of the row, if it is known.
            at: Time of the event in nanoseconds since the Unix epoch. Default: now.

        Returns:
            False if there is not enough space because too many files are waiting for the agent.

        Raises:
            OSError: The file cannot be written.
        """
        line = to_line(content, key=key, step=step, time=at or time.time_ns())
        with self._lock:
            self._folder.mkdir(mode=_PRIVATE, exist_ok=True)
            size = _size(len(line) + len(content.data))
            if self._bound + size > self._max_bytes:
                self._measure()
            if self._bound + size > self._max_bytes:
                return False
            self._bound += size
            number = next(self._numbers)
            path = self._folder / f"{number:012}"
            write_file(path, line, content.data)
        return True

    def _measure(self) -> None:
        """Add up the sizes of the files that the agent has not deleted yet."""
        started = time.monotonic()
        if started < self._next_scan:
            return
        total = 0
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # the agent has deleted it
                    total += _size(entry.stat().st_size)
        self._bound = total
        self._next_scan = started + _SCAN_SHARE * (time.monotonic() - started)


def _size(content: int) -> int:
    """Return the memory that a file takes, given the size of its content."""
    return -(-content // _BLOCK) * _BLOCK
