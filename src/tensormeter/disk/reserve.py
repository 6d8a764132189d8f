"""Room on the disk that is kept for what must be written when others have filled it.

An agent keeps room to mark requests as delivered; without it they would be sent again and again. A server keeps room to empty its
write-ahead log and to delete runs; without it nothing could make room again.
"""

import contextlib
import os
from pathlib import Path
from typing import Final

from tensormeter.disk.private import open_file

__all__ = ["Reserve"]

_STEP: Final = 256 << 10
"""Bytes, of which a whole number is kept."""


class Reserve:
    """A file next to a database that holds nothing. Any thread may use one; several of one path are one.

    Not a promise: whoever fills the disk may be quicker. Calls block for the disk.
    """

    def __init__(self, database: Path) -> None:
        """Name it, for the database of this path; makes nothing yet."""
        self._path = database.with_name("reserve")

    def keep(self, size: int) -> bool:
        """Take this much room, or less so that as much stays free. Returns whether it is all there.

        To be called often, as what is needed changes; it does not become smaller.

        Args:
            size: Bytes.
        """
        with contextlib.suppress(OSError):
            held = self._held()
            if held >= size:
                return True
            wanted = -(-size // _STEP) * _STEP
            taken = min(wanted, (self._free() + held) // 2 // _STEP * _STEP)
            if taken > held:
                self._take(held, taken)
            return taken == wanted
        return False

    def room(self) -> tuple[float, float]:
        """Bytes that are free, and that are kept; infinitely many where the disk does not tell."""
        with contextlib.suppress(OSError):
            return self._free(), self._held()
        return float("inf"), 0.0

    def give(self) -> bool:
        """Free the room. Returns whether there was any."""
        with contextlib.suppress(OSError):
            held = self._held()
            self._path.unlink()
            return held > 0
        return False

    def _held(self) -> int:
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0

    def _free(self) -> int:
        disk = os.statvfs(self._path.parent)
        if not disk.f_blocks:
            raise OSError(f"{self._path.parent}: how much room there is cannot be told")
        return disk.f_bavail * disk.f_frsize

    def _take(self, held: int, size: int) -> None:
        descriptor = open_file(self._path)
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError:
            os.ftruncate(descriptor, held)
            raise
        finally:
            os.close(descriptor)
