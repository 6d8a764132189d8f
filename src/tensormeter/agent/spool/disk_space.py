"""Disk space for a spool, including a reserve for marking requests as delivered when the disk is full."""

import contextlib
from collections.abc import Callable
from typing import Final

from tensormeter.agent.spool.errors import SpoolFullError
from tensormeter.agent.spool.spool_file import SpoolFile
from tensormeter.disk.reserve import Reserve

__all__ = ["DiskSpace"]

_MARKING: Final = 256 << 10
"""Bytes reserved for transactions that mark requests as delivered.

SQLite's log is checkpointed whenever this space is used up.
"""


class DiskSpace:
    """The disk space of one spool. All methods block on the disk."""

    def __init__(self, file: SpoolFile) -> None:
        self._file = file
        self._reserve = Reserve(file.path)

    def give(self) -> bool:
        """Give the reserve back to the file system, and return whether there was one."""
        return self._reserve.give()

    def keep(self) -> bool:
        """Reserve the space for marking requests as delivered, and return whether it is reserved. Call this often."""
        return self._reserve.keep(self._growth() + _MARKING)

    def leave(self, size: int, make_room: Callable[[], bool]) -> None:
        """Refuse a write that would use the reserve. Without the reserve, delivered requests would be resent forever.

        Args:
            size: Number of bytes to write.
            make_room: Function that deletes something unneeded from the spool, and returns whether there was anything
                to delete.

        Raises:
            SpoolFullError: The disk has too little space.
        """
        if self.has(size):
            return
        if self._log_size():
            self.shorten_log()
        while not self.has(size) and make_room():
            pass
        if not self.has(size):
            raise SpoolFullError(
                f"cannot write to the spool {self._file.path}: the disk is full, except for space reserved for delivery"
            )

    def shorten_log(self) -> None:
        """Checkpoint and empty SQLite's log as far as possible, using the reserved space."""
        self._reserve.give()
        self._file.carry_over()

    def has(self, size: int) -> bool:
        """Return whether `size` bytes fit in SQLite's log and then in the file, without using the reserve.

        The reserve is the space for marking requests as delivered.
        """
        free, reserved = self._reserve.room()
        if free >= size + self._log_size() + _MARKING:  # the file grows by at most the log; asking SQLite takes longer
            return True
        growth = self._growth() + size - self._file.bytes_of("freelist_count")
        return free >= size and free + reserved >= max(0, growth) + _MARKING

    def _log_size(self) -> int:
        """Return the size of SQLite's log in bytes."""
        path = self._file.path
        with contextlib.suppress(OSError):
            return path.with_name(f"{path.name}-wal").stat().st_size
        return 0

    def _growth(self) -> int:
        """Return the bytes by which the file will grow when SQLite's log is checkpointed."""
        with contextlib.suppress(OSError):
            return max(0, self._file.bytes_of("page_count") - self._file.path.stat().st_size)
        return 0
