"""A record of the damage found in a store. It is kept until the store is reopened, and each message is logged once."""

import logging
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tensormeter.server.store.models.errors import DamagedError

__all__ = ["Damage", "name_damage", "name_series", "skip_damaged"]

_MOST: Final = 1000
"""Maximum number of messages to record."""

_log = logging.getLogger(__name__)


class Damage:
    """The damage found so far in a store. Thread-safe.

    Attributes:
        structure: Message about damaged SQLite pages or indexes, which may hide rows; None if there is no such damage.
        is_catalog_sound: Whether no damage to SQLite's structures or catalog rows is known.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._texts: dict[str, None] = {}
        self.structure: str | None = None
        self.is_catalog_sound = True

    def add(self, error: Exception) -> None:
        """Record damage, and log it if it is new."""
        text = str(error)
        with self._lock:
            if text in self._texts or len(self._texts) >= _MOST:
                return
            self._texts[text] = None
        _log.warning("tensormeter: the store: %s", text)

    def text(self) -> str | None:
        """Return a one-line message that summarizes all damage, or None if there is none."""
        with self._lock:
            if not self._texts:
                return None
            first, count = next(iter(self._texts)), len(self._texts)
        more = f" (and {count - 1} more; `tensormeter check` lists them)" if count > 1 else ""
        return f"the store: {first}{more}"


def name_damage(connection: sqlite3.Connection, error: DamagedError) -> DamagedError:
    """Add a remedy to an error message, and the names of the metric and run if these names can be read."""
    if error.named:
        return error
    about = "" if error.series is None else f"{name_series(connection, error.series)}: "
    return DamagedError(
        f"damaged: {about}{error}; only this data is missing from the response. `tensormeter check` lists all "
        "damage; a backup of the data folder may contain the data",
        series=error.series,
        named=True,
    )


@contextmanager
def skip_damaged(connection: sqlite3.Connection, damaged: list[str] | None) -> Iterator[None]:
    """Add damage found inside the block to `damaged`, or raise it if `damaged` is None."""
    try:
        yield
    except DamagedError as error:
        if damaged is None:
            raise
        text = str(name_damage(connection, error))
        if text not in damaged:
            damaged.append(text)


def name_series(connection: sqlite3.Connection, series: int) -> str:
    """Return a human-readable description of a series, which names its metric, process, run and project."""
    try:
        row = connection.execute(
            "SELECT metric, process.process, run_id, project FROM series JOIN process ON process.id = series.process"
            " JOIN run ON run.id = process.run WHERE series.id = ?",
            (series,),
        ).fetchone()
    except sqlite3.Error:
        row = None
    if row is None:
        return f"series {series}"
    metric, process, run, project = (str(text)[:200] for text in row)
    return f"metric {metric!r} of run {run!r} (process {process!r}, project {project!r})"
