"""Reserved disk space for writes that must succeed on a full disk.

An agent needs reserved space to mark requests as delivered. Without it, delivered requests would be resent forever. A
server needs reserved space to empty its write-ahead log and to delete runs. Without it, the server could never free
space again.
"""

import contextlib
import os
from pathlib import Path
from typing import Final

from tensormeter.disk.private import open_file

__all__ = ["Reserve"]

_STEP: Final = 256 << 10
"""Unit in which the reserve grows, in bytes."""


class Reserve:
    """A placeholder file next to a database. Any thread may use it, and all instances for a path share the file.

    The space is not guaranteed, because another process may fill the disk first. Calls block on the disk.
    """

    def __init__(self, database: Path) -> None:
        """Use the reserve next to the database at this path, without creating it."""
        self._path = database.with_name("reserve")

    def keep(self, size: int) -> bool:
        """Grow the reserve to the given size, and return whether it has that size.

        The reserve takes at most half of the available space, and never shrinks. Call this often, because the needed
        size changes.

        Args:
            size: Size in bytes.
        """
        with contextlib.suppress(OSError):
            reserved = self._reserved()
            if reserved >= size:
                return True
            wanted = -(-size // _STEP) * _STEP
            taken = min(wanted, (self._free() + reserved) // 2 // _STEP * _STEP)
            if taken > reserved:
                self._take(reserved, taken)
            return taken == wanted
        return False

    def room(self) -> tuple[float, float]:
        """Return the numbers of free and reserved bytes. Free bytes are infinite if the disk does not report them."""
        with contextlib.suppress(OSError):
            return self._free(), self._reserved()
        return float("inf"), 0.0

    def give(self) -> bool:
        """Free the reserve, and return whether there was one."""
        with contextlib.suppress(OSError):
            reserved = self._reserved()
            self._path.unlink()
            return reserved > 0
        return False

    def _reserved(self) -> int:
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0

    def _free(self) -> int:
        disk = os.statvfs(self._path.parent)
        if not disk.f_blocks:
            raise OSError(f"{self._path.parent}: the file system does not report its free space")
        return disk.f_bavail * disk.f_frsize

    def _take(self, reserved: int, size: int) -> None:
        descriptor = open_file(self._path)
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError:
            os.ftruncate(descriptor, reserved)
            raise
        finally:
            os.close(descriptor)
