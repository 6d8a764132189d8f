"""Whether a store is damaged, or the disk only failed to read it.

SQLite reports a page that the disk cannot read (EIO) as damage. So when it reports damage, the store reads the whole file, and lets
SQLite check it on a new connection, indexes included. Only what is damaged twice, on a disk that reads, is reported as damage.
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
"""Seconds between two checks while it is not known whether the store is damaged."""

_UNREADABLE: Final = "error code="
"""What SQLite's check writes about a page that it cannot read, rather than one that is wrong."""

_log: Final = logging.getLogger(__name__)


class DamageVerifier:
    """What is known about damage of a store. Any thread may use it; the check runs on a thread of its own, if there is ever one."""

    def __init__(self, file: Path, connect: Callable[[], sqlite3.Connection]) -> None:
        """Suspect nothing yet.

        Args:
            file: The database.
            connect: Opens a new connection to it, for reading.
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
        """The damage, if there is any, for people. Does not block."""
        return self._confirmed

    def problem(self) -> str | None:
        """What is wrong, for people, or None. Does not block."""
        return self._confirmed or self._pending

    def suspect(self, message: str) -> None:
        """SQLite has reported damage: find out whether it is so. Does not block."""
        if self._confirmed is None and self._pending is None and not self._closed:
            self._doubts, self._pending = 0, message
            if self._background is None:
                self._background = Background("tensormeter-suspicion", self._look, _PAUSE)
            self._background.wake()

    def close(self) -> None:
        """End the check. All connections to the file must be closed."""
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
            self._pending = f"the disk cannot read {self._file}: {reason}; the server tries it again"
            return
        if damage is None:
            self._pending = None
            _log.warning(
                "tensormeter: %s has been checked and is not damaged; the disk had failed to read it", self._file
            )
            return
        self._doubts += 1
        if self._doubts > 1:
            self._confirmed = f"the store {self._file} is damaged ({damage}); restore the data folder from a backup"
            _log.error("tensormeter: %s", self._confirmed)
        elif self._background is not None:
            self._background.wake()

    def read(self, ended: Callable[[], bool] = lambda: False) -> None:
        """Read the whole file, or until `ended`. Blocks for the disk.

        Raises:
            OSError: The disk cannot.
        """
        # Closing a descriptor of the file would give up this process's locks on it, so they stay open.
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
        """What SQLite finds wrong with the file, or None.

        Raises:
            sqlite3.OperationalError: It cannot read the file.
        """
        try:
            connection = self._connect()
            try:
                connection.set_progress_handler(lambda: self._closed, 10_000)
                found = str(connection.execute("PRAGMA integrity_check(1)").fetchone()[0])
            finally:
                connection.close()
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            return str(error)
        if _UNREADABLE in found:
            raise sqlite3.OperationalError(" ".join(found.split()))
        return None if found == "ok" else " ".join(found.split())


def unreadable(file: Path) -> str | None:
    """Why the disk cannot read a database that no connection of this process is open to, or None if it can."""
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
    at = 0
    while not ended() and (piece := os.pread(descriptor, _PIECE, at)):
        at += len(piece)
