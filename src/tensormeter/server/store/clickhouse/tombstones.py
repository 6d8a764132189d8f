"""Tombstones of deleted runs, which determine a run's current key and whether new data for the run is refused."""

from collections.abc import Iterable
from typing import Any, Final

from tensormeter.server.store.clickhouse.connection import Connection
from tensormeter.server.store.clickhouse.keys import run_key
from tensormeter.server.store.rules.resource_identity import Source

__all__ = ["Tombstones"]

_IDS: Final = 200
"""Maximum number of run IDs in a statement. The URL contains them, and ClickHouse accepts 128 KiB per field."""


class Tombstones:
    """The tombstones of the runs of the given sources, read once at construction."""

    def __init__(self, connection: Connection, sources: Iterable[Source]) -> None:
        self._times: dict[tuple[str, str], int] = {}
        self._alive: set[int] = set()
        ids = sorted({source.run_id for source in sources})
        rows: list[list[Any]] = []
        for first in range(0, len(ids), _IDS):
            rows += connection.rows(
                "SELECT project, run_id, max(time) FROM deleted WHERE run_id IN {ids:Array(String)} GROUP BY project, run_id",
                ids=ids[first : first + _IDS],
            )
        self._times = {(row[0], row[1]): row[2] for row in rows}
        keys = [run_key(*names, time) for names, time in self._times.items()]
        if keys:
            alive = connection.rows(f"SELECT DISTINCT run FROM process WHERE run IN ({', '.join(map(str, keys))})")
            self._alive = {row[0] for row in alive}

    def current(self, source: Source) -> int | None:
        """Return the key of a source's run, or None if the run is deleted. Never revives the run."""
        deleted = self._times.get((source.project, source.run_id), 0)
        run = run_key(source.project, source.run_id, deleted)
        return run if not deleted or run in self._alive else None

    def run(self, source: Source, time: int, *, starts: bool = False) -> int | None:
        """Return the key of a source's run, or None if the run is deleted.

        A start event with a time after the deletion revives the run. If the sender sets no run ID, any data with such a
        time revives the run.
        """
        deleted = self._times.get((source.project, source.run_id), 0)
        run = run_key(source.project, source.run_id, deleted)
        if deleted and run not in self._alive:
            if time <= deleted or not (starts or source.derived):
                return None
            self._alive.add(run)
        return run
