"""The numbers of runs that have changed since a position, for caches."""

import sqlite3
import threading
from typing import Final

from tensormeter.server.store.models.runs import ChangedRuns

__all__ = ["ChangeTracker"]

_MAX_RUNS: Final = 200_000


class ChangeTracker:
    """Tracker of changes to run rows. Thread-safe, but only one transaction at a time may write.

    A position is the number of a change. Positions are only valid in this process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending: set[int] = set()
        self._published: frozenset[int] = frozenset()
        self._changes: dict[int, int] = {}  # position of each run's last change, in ascending order of position
        self._position = 1
        self._floor = 1

    def watch(self, connection: sqlite3.Connection) -> None:
        """Track changes that a connection makes."""
        connection.create_function("run_changed", 1, self._pending.add)
        for event, row in (("INSERT", "new"), ("UPDATE", "new"), ("DELETE", "old")):
            connection.execute(
                f"CREATE TEMP TRIGGER run_changed_{event.lower()} AFTER {event} ON main.run"
                f" BEGIN SELECT run_changed({row}.id); END"
            )

    def publish(self) -> None:
        """Publish the changes of a transaction that has just been committed."""
        self._published = frozenset(self._pending)
        self._pending.clear()
        self.publish_again()

    def publish_again(self) -> None:
        """Publish the changes of the last transaction again, because its points have been added to memory."""
        with self._lock:
            if not self._published:
                return
            self._position += 1
            for run in self._published:
                self._changes.pop(run, None)
                self._changes[run] = self._position
            if len(self._changes) > _MAX_RUNS:
                self._changes.clear()
                self._floor = self._position

    def since(self, position: int | None) -> ChangedRuns:
        """See `Store.changed`."""
        with self._lock:
            if position is None or not self._floor <= position <= self._position:
                return ChangedRuns(self._position, None)
            runs = set()
            for run, changed in reversed(self._changes.items()):
                if changed <= position:
                    break
                runs.add(run)
            return ChangedRuns(self._position, frozenset(runs))
