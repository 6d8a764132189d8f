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
        self._lock = threading.RLock()  # reentrant, because a signal handler may log

    def put(self, content: EventContent, key: str | None, step: int | None) -> bool:
        """Write an event. Blocks until the event has been copied to its file.

        Returns:
            False if there is not enough space because too many files are waiting for the agent.

        Raises:
            OSError: The file cannot be written.
        """
        line = to_line(content, key=key, step=step, time=time.time_ns())
        with self._lock:
            self._folder.mkdir(mode=_PRIVATE, exist_ok=True)
            if self._waiting() + len(line) + len(content.data) > self._max_bytes:
                return False
            number = next(self._numbers)
            path = self._folder / f"{number:012}"
            write_file(path, line, content.data)
        return True

    def _waiting(self) -> int:
        total = 0
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # the agent has deleted it
                    total += entry.stat().st_size
        return total
