"""Room on the disk that is kept for what must be written when others have filled it: that requests are delivered.

Without it a request that was accepted could not be taken out of the spool, and would be sent again and again.
"""

import contextlib
import os
import threading
from pathlib import Path
from typing import Final

__all__ = ["Reserve"]

_SIZE: Final = 256 << 10
"""Bytes: for carrying SQLite's log over into the database, which then is what transactions that delete requests go into."""

_lock: Final = threading.Lock()


class Reserve:
    """A file beside the spool that holds nothing. Any thread may use one; several of one path are one.

    Not a promise: whoever fills the disk may be quicker. Calls block for the disk.
    """

    def __init__(self, spool: Path, size: int = _SIZE) -> None:
        """Name it; makes nothing yet.

        Args:
            spool: Path of the spool.
            size: Bytes.
        """
        self._path = spool.with_name("reserve")
        self._size = size

    def keep(self) -> bool:
        """Take the room, if it is not taken and as much again stays free. Returns whether it is there."""
        with _lock, contextlib.suppress(OSError):
            if self._held() >= self._size:
                return True
            free = os.statvfs(self._path.parent)
            if free.f_bavail * free.f_frsize < 2 * self._size:
                return False
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, self._size)
            except OSError:
                os.ftruncate(descriptor, 0)
                raise
            finally:
                os.close(descriptor)
            return True
        return False

    def give(self) -> bool:
        """Free the room. Returns whether there was any."""
        with _lock, contextlib.suppress(OSError):
            held = self._held()
            self._path.unlink()
            return held > 0
        return False

    def _held(self) -> int:
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0
