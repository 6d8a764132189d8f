"""Verification of damage that SQLite reports.

SQLite also reports damage if the disk cannot read a page (EIO). After a report, the store therefore reads the whole
file, and SQLite then checks the file and its indexes on a new connection. Damage is confirmed if SQLite finds it twice
while the disk can read the whole file.
"""

import errno
import logging
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tensormeter.server.store.background import Background

__all__ = ["DamageVerifier", "unreadable"]

_PIECE: Final = 1 << 20
_PAUSE: Final = 5.0
"""Seconds before the next check if the disk could not read the file."""

_UNREADABLE: Final = "error code="
"""Substring of SQLite's message about a page that the disk cannot read. Messages about damaged pages do not have it."""

_log: Final = logging.getLogger(__name__)


class DamageVerifier:
    """A verifier of damage that SQLite reports. The verifier's thread starts with the first report. Thread-safe."""

    def __init__(self, file: Path, connect: Callable[[], sqlite3.Connection]) -> None:
        """Create a verifier.

        Args:
            file: Path of the database.
            connect: Function that opens a new connection to the database for reading.
        """
        self._file = file
        self._connect = connect
        self._descriptor: int | None = None
        self._descriptors: list[int] = []
        self._opening = threading.Lock()
        self._pending: str | None = None
        self._confirmed: str | None = None
        self._doubts = 0
        self._background: Background | None = None
        self._closed = False

    @property
    def confirmed(self) -> str | None:
        """Message about confirmed damage, or None. Does not block."""
        return self._confirmed

    def problem(self) -> str | None:
        """Return a message about confirmed or suspected damage, or None. Does not block."""
        return self._confirmed or self._pending

    def suspect(self, message: str) -> None:
        """Start verifying damage that SQLite reported. Does not block."""
        if self._confirmed is None and self._pending is None and not self._closed:
            self._doubts, self._pending = 0, message
            if self._background is None:
                self._background = Background("tensormeter-suspicion", self._look, _PAUSE)
            self._background.wake()

    def close(self) -> None:
        """Stop the verification. Close all SQLite connections to the file first: this call releases their locks."""
        self._closed = True
        if self._background is not None:
            self._background.stop()
        for descriptor in self._descriptors:
            os.close(descriptor)

    def _look(self) -> None:
        if self._pending is None or self._confirmed is not None:
            return
        try:
            self.read()
            damage = self._check()
        except (OSError, sqlite3.OperationalError) as error:
            self._doubts = 0
            reason = error.strerror if isinstance(error, OSError) else error
            self._pending = f"the disk cannot read {self._file}: {reason}; the server will retry the read"
            return
        if damage is None:
            self._pending = None
            _log.warning("tensormeter: checked %s, which is not damaged; earlier errors came from the disk", self._file)
            return
        self._doubts += 1
        if self._doubts > 1:
            self._confirmed = f"the store {self._file} is damaged ({damage}); restore the data folder from a backup"
            _log.error("tensormeter: %s", self._confirmed)
        elif self._background is not None:
            self._background.wake()

    def read(self, ended: Callable[[], bool] = lambda: False) -> None:
        """Read the whole file, or stop early when `ended` returns True. Blocks on the disk.

        Raises:
            OSError: The disk cannot read the file.
        """
        # Keep the descriptors open, because closing one would release this process's locks on the file.
        with self._opening:
            if self._descriptor is None:
                self._descriptor = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC)
                self._descriptors.append(self._descriptor)
            descriptor = self._descriptor
        try:
            _read_all(descriptor, lambda: self._closed or ended())
        except OSError as error:
            if error.errno == errno.ESTALE:
                self._descriptor = None
            raise

    def _check(self) -> str | None:
        """Return the damage that SQLite finds in the file, or None.

        Raises:
            sqlite3.OperationalError: SQLite cannot read the file.
        """
        try:
            connection = self._connect()
            try:
                connection.set_progress_handler(lambda: self._closed, 10_000)
                result = str(connection.execute("PRAGMA integrity_check(1)").fetchone()[0])
            finally:
                connection.close()
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            return str(error)
        if _UNREADABLE in result:
            raise sqlite3.OperationalError(" ".join(result.split()))
        return None if result == "ok" else " ".join(result.split())


def unreadable(file: Path) -> str | None:
    """Return a message if the disk cannot read a database, or None.

    This process must not have a connection to the database, because this function releases SQLite's locks on it.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _read_all(descriptor, lambda: False)
        finally:
            os.close(descriptor)
    except OSError as error:
        return f"the disk cannot read {file}: {error.strerror}"
    return None


def _read_all(descriptor: int, ended: Callable[[], bool]) -> None:
    offset = 0
    while not ended() and (piece := os.pread(descriptor, _PIECE, offset)):
        offset += len(piece)
