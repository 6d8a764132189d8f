"""Reserves disk space for writes that must succeed on a full disk.

An agent reserves space to mark requests as delivered; otherwise they would be resent for ever. A server reserves space to empty its
write-ahead log and to delete runs; otherwise it could never free space again.
"""

import contextlib
import os
from pathlib import Path
from typing import Final

from tensormeter.disk.private import open_file

__all__ = ["Reserve"]

_STEP: Final = 256 << 10
"""Unit of the reserve in bytes."""


class Reserve:
    """A placeholder file next to a database. Any thread; all instances for a path share the file.

    The space is not guaranteed: another process may fill the disk first. Calls block for the disk.
    """

    def __init__(self, database: Path) -> None:
        """Use the reserve of the database at this path; nothing is created yet."""
        self._path = database.with_name("reserve")

    def keep(self, size: int) -> bool:
        """Grow the reserve to a size, or less: at least as much space stays free. Returns whether it has the size.

        Call it often, as the need changes; the reserve never shrinks.

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
        """Bytes that are free, and bytes of the reserve; infinitely many free bytes if the disk does not report them."""
        with contextlib.suppress(OSError):
            return self._free(), self._reserved()
        return float("inf"), 0.0

    def give(self) -> bool:
        """Free the reserve. Returns whether there was any."""
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
