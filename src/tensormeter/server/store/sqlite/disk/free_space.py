"""Checks of the free disk space before the store accepts a request, and a reserve for a full disk.

A request is accepted only if the disk has space for the request, for a flush of everything in memory, and for the next
checkpoint. Requests therefore never use up the space that the store needs to empty its write-ahead log. Checkpoints,
flushes and deletions may use the reserve.
"""

import contextlib
import sqlite3
from pathlib import Path
from typing import Final

from tensormeter.disk.reserve import Reserve
from tensormeter.server.store.models.errors import StoreFullError
from tensormeter.server.store.sqlite.transaction import primary_code

__all__ = ["FreeSpace"]

_MIB: Final = 1 << 20

_PLENTY: Final = 1 << 30
"""Number of free bytes from which a request is accepted without calculating the space that the request needs."""

_LEAST: Final = 256 << 10
"""Number of free bytes below which the disk counts as full, even without requests."""

_PAGES: Final = 128 << 10
"""Number of bytes to allow for the database pages that a request changes, in addition to the size of its payload."""

_FLUSH_BYTES: Final = 32
"""Maximum bytes that a flush writes per point: 17 for the point, and about as many for merging young segments."""

_LOG_BYTES: Final = 64 * _MIB
_RESERVE_BYTES: Final = 16 * _MIB
_PARTS: Final = 16


class FreeSpace:
    """The free space on a store's disk. Thread-safe. Methods block on the disk unless stated otherwise."""

    def __init__(self, file: Path) -> None:
        """Measure the free space. Does not create the reserve yet.

        Args:
            file: Path of the database.
        """
        self._file = file
        self._log = file.with_name(f"{file.name}-wal")
        self._reserve = Reserve(file)
        self._share = _LOG_BYTES
        self._free = float("inf")
        self._lacking = 0
        self.refresh()

    @property
    def log_bytes(self) -> int:
        """Log size in bytes at which a checkpoint is due. Does not block.

        The size is 1/16 of the space that is free or used by the store, but at least 1 MiB and at most 64 MiB.
        """
        return self._share

    @property
    def tight(self) -> bool:
        """Whether space is scarce, so that the store should free unused space as soon as possible. Does not block."""
        return self._share < _LOG_BYTES

    def flush_points(self, most: int) -> int:
        """Return the number of points in memory, up to `most`, at which a flush is due. Does not block."""
        return min(most, 2 * self._share // _FLUSH_BYTES) if self.tight else most

    def refresh(self) -> bool:
        """Measure the free space. Return whether the disk was full before and no longer is."""
        was_full = self._full
        free, reserved = self._reserve.room()
        self._free = free
        total = free + reserved + _size(self._file) + _size(self._log)
        self._share = _LOG_BYTES if total >= _PARTS * _LOG_BYTES else max(int(total) // _PARTS, _MIB)
        if self._lacking and free + reserved >= self._lacking:
            self._lacking = 0
        return was_full and not self._full

    def admit(self, connection: sqlite3.Connection, size: int, points: int) -> None:
        """Check that the disk has space for a request.

        Args:
            connection: Connection to write with, outside a transaction.
            size: Number of bytes that the request adds.
            points: Number of points, including those of the request, that will wait in memory for a flush.

        Raises:
            StoreFullError: The disk does not have enough space.
            sqlite3.Error: The database cannot be read.
        """
        free, reserved = self._reserve.room()
        if free >= _PLENTY:
            self._free, self._lacking = free, 0
            return
        pages, unused, page = (
            int(connection.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_count", "freelist_count", "page_size")
        )
        checkpoint = max(0, pages * page - _size(self._file))
        written = size + _PAGES
        flushed = points * _FLUSH_BYTES
        needed = checkpoint + written + flushed + max(0, written + flushed - unused * page)
        self._free = free
        if free < written or free + reserved < needed:
            self._lacking = needed
            raise StoreFullError(self._describe())
        self._lacking = 0

    def keep(self) -> None:
        """Create or enlarge the reserve, leaving at least half of the free space. Call this method often."""
        self._reserve.keep(min(self._share, _RESERVE_BYTES))

    def is_short(self, error: Exception) -> bool:
        """Return whether a full disk caused an error."""
        full = isinstance(error, StoreFullError) or primary_code(error) == sqlite3.SQLITE_FULL
        return full or self._reserve.room()[0] < _LEAST

    def give(self) -> None:
        """Free the reserve."""
        self._reserve.give()

    def hint(self) -> str:
        """Return a suffix for an error message; "" unless the disk is full."""
        self.refresh()
        return f" ({self._describe()})" if self._full else ""

    def problem(self) -> str | None:
        """Return a message if the disk is full, or None. Does not block."""
        return self._describe() if self._full else None

    @property
    def _full(self) -> bool:
        return self._lacking > 0 or self._free < _LEAST

    def _describe(self) -> str:
        free, needed = self._free / _MIB, max(self._lacking, _LEAST) / _MIB
        return (
            f"the disk of {self._file.parent} is full: {free:.1f} MiB are free, but the store needs {needed:.1f} "
            "MiB. Free some space or delete runs; the server then accepts requests again"
        )


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0
