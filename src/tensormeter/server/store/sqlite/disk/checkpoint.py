"""Control of the size of SQLite's write-ahead log, which could otherwise grow without limit during reads.

SQLite can restart the log only when no snapshot needs its contents. This normally happens at the first commit after a
checkpoint, but never if reads overlap continuously. Once the log reaches twice its usual size, writers therefore wait
for the current reads. A longer snapshot, such as a backup, lets the log grow to 16 times its usual size. The store then
refuses requests until the snapshot ends.
"""

import contextlib
import sqlite3
import time
from pathlib import Path
from typing import Final

from tensormeter.server.store.models.errors import StoreUnavailableError
from tensormeter.server.store.sqlite.disk.free_space import FreeSpace

__all__ = ["WriteAheadLog"]

_PAGE: Final = 4096
_WAIT_FROM: Final = 2
_MOST: Final = 16
"""Multiples of the log's usual size.

Above `_WAIT_FROM`, writers wait for readers. Above `_MOST`, requests are refused.
"""

_PAUSE: Final = 10.0
"""Seconds before writers wait for readers again after an unsuccessful wait."""


class WriteAheadLog:
    """The write-ahead log of a store, for use by the thread that holds the write lock. Calls block on the disk."""

    def __init__(self, file: Path, space: FreeSpace) -> None:
        """Create a handle for the log.

        Args:
            file: Path of the database.
            space: Free space, which determines the log's usual size.
        """
        self._path = file.with_name(f"{file.name}-wal")
        self._space = space
        self._usual: tuple[sqlite3.Connection, int] | None = None
        self._next_wait = 0.0

    def shorten(self, writer: sqlite3.Connection) -> None:
        """Prepare for a commit. Set the log size at which SQLite runs checkpoints, and empty the log if it is too long.

        Raises:
            StoreUnavailableError: The log is far too long because a reader keeps an old snapshot.
            sqlite3.Error: Writing to the disk failed.
        """
        usual = self._space.log_bytes
        if self._usual is None or self._usual[0] is not writer or self._usual[1] != usual:
            writer.execute(f"PRAGMA wal_autocheckpoint = {usual // _PAGE}")
            writer.execute(f"PRAGMA journal_size_limit = {usual}")
            self._usual = writer, usual
        size = self._size()
        if size <= _WAIT_FROM * usual:
            return
        patient = time.monotonic() >= self._next_wait
        if self.empty(writer, patient=patient):
            return
        if patient:
            self._next_wait = time.monotonic() + _PAUSE
        if size > _MOST * usual:
            raise StoreUnavailableError(
                f"the write-ahead log {self._path} has grown to {size >> 20} MiB, because a process is reading an "
                "old snapshot (`tensormeter backup`?); the server accepts requests again once that process has finished"
            )

    def empty(self, writer: sqlite3.Connection, *, patient: bool = True) -> bool:
        """Copy the log to the database, and truncate the log. Return whether the log is now empty.

        Args:
            writer: Connection to write with.
            patient: Whether to wait a few seconds for current reads.

        Raises:
            sqlite3.Error: Writing to the disk failed.
        """
        patience = int(writer.execute("PRAGMA busy_timeout").fetchone()[0])
        try:
            if not patient:
                writer.execute("PRAGMA busy_timeout = 0")
            return not writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        finally:
            writer.execute(f"PRAGMA busy_timeout = {patience}")

    def _size(self) -> int:
        with contextlib.suppress(OSError):
            return self._path.stat().st_size
        return 0
