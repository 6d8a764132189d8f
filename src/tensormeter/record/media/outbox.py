"""Where media wait for the agent: files beside the ring, one for each piece."""

import contextlib
import itertools
import os
import threading
import time
from pathlib import Path
from typing import Final

from tensormeter.disk.atomic import write_file
from tensormeter.record.media.parcel import Parcel, to_line
from tensormeter.ring.file import RingFile, media_directory

__all__ = ["Outbox"]

_PRIVATE: Final = 0o700


class Outbox:
    """Writes files into the ring's media directory, which is in memory as the ring is.

    Any thread. A file appears under its number when it is whole, so a killed process leaves whole ones.
    """

    def __init__(self, ring: RingFile, most_bytes: int) -> None:
        """
        Args:
            ring: This process's.
            most_bytes: That may wait at a time.
        """
        self._folder = media_directory(ring.path)
        self._most = most_bytes
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()  # re-entered by a signal handler that logs
        self._newest: Path | None = None
        self._latest: Path | None = None

    def replace(self, parcel: Parcel) -> bool:
        """Write a piece in place of the last one that was written so, if that still waits. Otherwise like `put`."""
        with self._lock:
            if self._latest is not None:
                self._latest.unlink(missing_ok=True)
            before = self._newest
            done = self.put(parcel, None, None)
            self._latest = self._newest if self._newest != before else None
            return done

    def put(self, parcel: Parcel, key: str | None, step: int | None) -> bool:
        """Write a piece. Blocks for as long as copying it into memory takes.

        Returns:
            False: too much waits already.

        Raises:
            OSError: It cannot be written.
        """
        line = to_line(parcel, key=key, step=step, time=time.time_ns())
        with self._lock:
            self._folder.mkdir(mode=_PRIVATE, exist_ok=True)
            if self._waiting() + len(line) + len(parcel.data) > self._most:
                return False
            number = next(self._numbers)
            path = self._folder / f"{number:012}"
            write_file(path, line, parcel.data)
            self._newest = path
        return True

    def _waiting(self) -> int:
        total = 0
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # the agent has taken it
                    total += entry.stat().st_size
        return total
