"""The check of a store that was just opened: SQLite's structures and the rows of the catalog, while the server works already."""

import logging
import sqlite3
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

from tensormeter.errors import StoreError
from tensormeter.server.store.damage import Damage
from tensormeter.server.store.inspection import Inspection, open_read_only

__all__ = ["StartCheck"]

_PAUSE: Final = 0.002
"""Seconds between two reads: each takes the interpreter from those who ask the server."""

_log = logging.getLogger(__name__)


class _StoppedError(Exception):
    """The store is being closed."""


class StartCheck:
    """Looks a store over once, on a daemon thread of its own with a connection of its own. What it finds goes to `damage`.

    A file of more than 1 GiB is not read as a whole: of it, the tables of the catalog are checked. `tensormeter check` reads
    everything.
    """

    def __init__(self, file: Path, damage: Damage) -> None:
        """Start the thread.

        Args:
            file: Of the store.
            damage: Where findings go.
        """
        self._file = file
        self._damage = damage
        self._stopping = threading.Event()
        self._connection: sqlite3.Connection | None = None
        self._thread = threading.Thread(target=self._run, name="tensormeter-start-check", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Give up what is not done, and return once the connection is closed."""
        self._stopping.set()
        while self._thread.is_alive():
            connection = self._connection
            if connection is not None:
                with suppress(sqlite3.ProgrammingError):  # closed in between
                    connection.interrupt()
            self._thread.join(0.05)

    def wait(self) -> None:
        """Return once it has looked at everything."""
        self._thread.join()

    def _run(self) -> None:
        try:
            self._connection = connection = open_read_only(self._file)
            try:
                inspection = Inspection(connection, self._look)
                for finding in inspection.structure():
                    self._damage.add(StoreError(str(finding)))
                    self._damage.structure = self._damage.structure or str(finding)
                    self._damage.is_catalog_sound = False
                for finding in inspection.catalog():
                    self._damage.add(StoreError(str(finding)))
                    self._damage.is_catalog_sound = False
            finally:
                self._connection = None
                connection.close()
        except _StoppedError:
            pass
        except StoreError as error:
            if not self._stopping.is_set():
                _log.warning("tensormeter: the check of the store at its start ended early: %s", error)
        except Exception:
            _log.exception("tensormeter: the check of the store at its start failed")

    def _look(self) -> None:
        if self._stopping.wait(_PAUSE):
            raise _StoppedError
