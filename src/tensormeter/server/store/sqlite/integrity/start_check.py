"""A check of SQLite's structures and catalog rows that runs at startup, while the server already handles requests."""

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from tensormeter.errors import StoreError
from tensormeter.server.store.models.errors import StoreUnavailableError
from tensormeter.server.store.sqlite.disk.filesystem_trial import FileSystem
from tensormeter.server.store.sqlite.integrity.damage import Damage
from tensormeter.server.store.sqlite.integrity.inspection import SMALL, Inspection, open_read_only

__all__ = ["StartCheck"]

_PAUSE: Final = 0.002
"""Seconds to pause between two reads, so that threads that handle requests can run in the meantime."""

_AGAIN: Final = 5.0
"""Seconds to wait before restarting a check after a disk error."""

_FEW_BYTES: Final = 16 << 20
"""Maximum file size in bytes for a complete check by SQLite with a rollback journal. Commits wait for the check."""

_Findings = tuple[dict[str, None], dict[str, None]]

_log = logging.getLogger(__name__)


class _StoppedError(Exception):
    """The store is closing."""


class StartCheck:
    """A single check of a store on a separate thread and connection. The findings are added to `damage`.

    If the file exceeds 1 GiB (16 MiB with a rollback journal), SQLite checks only catalog tables; `tensormeter check`
    can check everything.

    A failing disk can look like damage. A finding therefore counts only if it occurs twice and the disk can read the
    whole file in between. If the disk cannot read the file, the check restarts after a few seconds.
    """

    def __init__(
        self, file: Path, filesystem: FileSystem, damage: Damage, read: Callable[[Callable[[], bool]], None]
    ) -> None:
        """Start the thread.

        Args:
            file: Path of the database.
            filesystem: Capabilities of the database's file system.
            damage: Record of the store's damage, to which findings are added.
            read: Function that reads the whole file, or stops early when its argument returns True. It raises OSError
                if the disk cannot read the file.
        """
        self._filesystem = filesystem
        self._read = read
        self._file = file
        self._damage = damage
        self._stopping = threading.Event()
        self._connection: sqlite3.Connection | None = None
        self._thread = threading.Thread(target=self._run, name="tensormeter-start-check", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Cancel the check, and wait until its connection is closed."""
        self._stopping.set()
        while self._thread.is_alive():
            connection = self._connection
            if connection is not None:
                with suppress(sqlite3.ProgrammingError):  # the connection was closed in the meantime
                    connection.interrupt()
            self._thread.join(0.05)

    def wait(self) -> None:
        """Wait until the check is complete."""
        self._thread.join()

    def _run(self) -> None:
        suspected: _Findings | None = None
        while True:
            try:
                findings = self._inspect()
                if suspected is None and any(findings):
                    self._read(self._stopping.is_set)
            except _StoppedError:
                return
            except (StoreUnavailableError, OSError) as error:
                if self._stopping.is_set():
                    return
                _log.info("tensormeter: the start check of the store will be repeated later: %s", error)
                suspected = None
                if self._stopping.wait(_AGAIN):
                    return
                continue
            except StoreError as error:
                if not self._stopping.is_set():
                    _log.warning("tensormeter: the start check of the store ended early: %s", error)
                return
            except Exception:
                _log.exception("tensormeter: the start check of the store failed")
                return
            if suspected is None and any(findings):
                suspected = findings
                continue
            if suspected is not None:
                self._report(
                    *({text: None for text in new if text in old} for new, old in zip(findings, suspected, strict=True))
                )
            return

    def _inspect(self) -> "_Findings":
        """Return findings about SQLite's structures, and findings about catalog rows."""
        self._connection = connection = open_read_only(self._file, self._filesystem)
        try:
            inspection = Inspection(connection, self._look)
            most = SMALL if self._filesystem.maps else _FEW_BYTES
            return (
                {str(finding): None for finding in inspection.structure(most=most)},
                {str(finding): None for finding in inspection.catalog()},
            )
        finally:
            self._connection = None
            connection.close()

    def _report(self, structure: Iterable[str], catalog: Iterable[str]) -> None:
        for text in structure:
            self._damage.add(StoreError(text))
            self._damage.structure = self._damage.structure or text
            self._damage.is_catalog_sound = False
        for text in catalog:
            self._damage.add(StoreError(text))
            self._damage.is_catalog_sound = False

    def _look(self) -> None:
        if self._stopping.wait(_PAUSE):
            raise _StoppedError
