"""Room on the disk: what the store needs before it accepts a request, and a reserve for the time when others have filled the disk.

A request is accepted only if the disk has room for it, for the fold of everything that waits in memory, and for the next checkpoint.
So requests never use the room that the store needs to empty its write-ahead log. Checkpoints, folds and deletions may use the reserve.
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
"""Free bytes above which nothing is calculated."""

_LEAST: Final = 256 << 10
"""Free bytes below which the disk counts as full, also while no request comes."""

_PAGES: Final = 128 << 10
"""Bytes of pages that a request changes next to what it brings."""

_FLUSH_BYTES: Final = 32
"""Bytes that the fold of a point writes at most: 17 for itself, and as much for points in young chunks that it joins."""

_LOG_BYTES: Final = 64 * _MIB
_RESERVE_BYTES: Final = 16 * _MIB
_PARTS: Final = 16


class FreeSpace:
    """The room that a store has on its disk. Any thread may use one; calls block for the disk unless they say otherwise."""

    def __init__(self, file: Path) -> None:
        """Look at the disk; the reserve is not made yet.

        Args:
            file: The database.
        """
        self._file = file
        self._log = file.with_name(f"{file.name}-wal")
        self._reserve = Reserve(file)
        self._share = _LOG_BYTES
        self._free = float("inf")
        self._lacking = 0
        self.look()

    @property
    def log_bytes(self) -> int:
        """Size of the write-ahead log above which a checkpoint is due: a sixteenth of the room, from 1 to 64 MiB. Does not block."""
        return self._share

    @property
    def tight(self) -> bool:
        """Whether the store gives unused room back as soon as it can. Does not block."""
        return self._share < _LOG_BYTES

    def flush_points(self, most: int) -> int:
        """Points in memory that make a fold due, `most` if there is enough room. Does not block."""
        return min(most, 2 * self._share // _FLUSH_BYTES) if self.tight else most

    def look(self) -> bool:
        """Find out how much room there is. Returns whether the disk was full and is not any more."""
        was_full = self._full
        free, kept = self._reserve.room()
        self._free = free
        total = free + kept + _size(self._file) + _size(self._log)
        self._share = _LOG_BYTES if total >= _PARTS * _LOG_BYTES else max(int(total) // _PARTS, _MIB)
        if self._lacking and free + kept >= self._lacking:
            self._lacking = 0
        return was_full and not self._full

    def admit(self, connection: sqlite3.Connection, size: int, points: int) -> None:
        """Check that there is room for a request.

        Args:
            connection: The writer, outside of a transaction.
            size: Bytes that the request adds.
            points: Points that will wait in memory for a fold, those of the request included.

        Raises:
            StoreFullError: There is not.
            sqlite3.Error: The database cannot be read.
        """
        free, kept = self._reserve.room()
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
        if free < written or free + kept < needed:
            self._lacking = needed
            raise StoreFullError(self._describe())
        self._lacking = 0

    def keep(self) -> None:
        """Take the reserve, or as much of it as leaves half of the room free. To be called often."""
        self._reserve.keep(min(self._share, _RESERVE_BYTES))

    def is_short(self, error: Exception) -> bool:
        """Whether something failed because the disk is full."""
        full = isinstance(error, StoreFullError) or primary_code(error) == sqlite3.SQLITE_FULL
        return full or self._reserve.room()[0] < _LEAST

    def give(self) -> None:
        """Free the reserve."""
        self._reserve.give()

    def hint(self) -> str:
        """After a text about an error: that the disk is full, or "". Blocks for the disk."""
        self.look()
        return f" ({self._describe()})" if self._full else ""

    def problem(self) -> str | None:
        """What is wrong, for people, or None. Does not block."""
        return self._describe() if self._full else None

    @property
    def _full(self) -> bool:
        return self._lacking > 0 or self._free < _LEAST

    def _describe(self) -> str:
        free, needed = self._free / _MIB, max(self._lacking, _LEAST) / _MIB
        return (
            f"the disk of {self._file.parent} is full: {free:.1f} MiB are free, the store needs {needed:.1f}; "
            "make room there or delete runs; requests are accepted again once there is room"
        )


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0
