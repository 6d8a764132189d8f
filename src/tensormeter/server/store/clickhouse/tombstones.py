"""Runs that were deleted: which key a run has now, and whether what is sent for it is still refused."""

from collections.abc import Iterable
from typing import Any, Final

from tensormeter.server.store.clickhouse.connection import Connection
from tensormeter.server.store.clickhouse.keys import run_key
from tensormeter.server.store.rules.resource_identity import Source

__all__ = ["Tombstones"]

_IDS: Final = 200
"""Run ids in one statement: parameters travel in the address, which ClickHouse takes up to 128 KiB of in one field."""


class Tombstones:
    """The deletions that concern some sources, as of now."""

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
            found = connection.rows(f"SELECT DISTINCT run FROM process WHERE run IN ({', '.join(map(str, keys))})")
            self._alive = {row[0] for row in found}

    def current(self, source: Source) -> int | None:
        """The key of a source's run if it is not deleted; nothing revives it."""
        deleted = self._times.get((source.project, source.run_id), 0)
        run = run_key(source.project, source.run_id, deleted)
        return run if not deleted or run in self._alive else None

    def run(self, source: Source, time: int, *, starts: bool = False) -> int | None:
        """The key of a source's run, or None if it is deleted: only a start after that, or a sender that knows none, revives it."""
        deleted = self._times.get((source.project, source.run_id), 0)
        run = run_key(source.project, source.run_id, deleted)
        if deleted and run not in self._alive:
            if time <= deleted or not (starts or source.derived):
                return None
            self._alive.add(run)
        return run
