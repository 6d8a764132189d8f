"""The catalog: which runs, processes and series there are, and their row ids."""

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tensormeter.server.store import AmbiguousRunError, NotFoundError
from tensormeter.server.store.arrivals import Arrival
from tensormeter.server.store.source import Source

__all__ = ["Catalog", "find_run"]

MAX_SERIES_PER_RUN: Final = 100_000
"""Past this, new series of a run are refused: somebody put an id or a step into a name or an attribute."""

_CACHED: Final = 200_000


@dataclass(slots=True)
class _Process:
    run: int
    process: int
    name: str
    resource: str


class Catalog:
    """Finds or creates rows, and remembers what it found. One thread at a time, inside a transaction of `connection`.

    After a transaction that did not commit, call `forget`.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._processes: dict[tuple[str, str, str], _Process] = {}
        self._series: dict[tuple[int, str, str], int] = {}

    def forget(self) -> None:
        """Drop what is remembered: rows may be gone again."""
        self._processes.clear()
        self._series.clear()

    def process(self, source: Source, time: int, received: int) -> tuple[int, int]:
        """The rows (run, process) of a source that has just sent something.

        Args:
            source: Who sent; the last name and resource sent stay.
            time: Earliest time in what it sent.
            received: Now.
        """
        key = (source.project, source.run_id, source.process)
        known = self._processes.get(key)
        if known is None or known.name != source.name:
            run = self._connection.execute(
                "INSERT INTO run (project, run_id, name, created, updated) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET name = excluded.name RETURNING id",
                (source.project, source.run_id, source.name, time, received),
            ).fetchone()[0]
        else:
            run = known.run
        self._connection.execute(
            "UPDATE run SET created = min(created, ?), updated = max(updated, ?) WHERE id = ?",
            (time, received, run),
        )
        if known is None or known.resource != source.resource:
            process = self._connection.execute(
                "INSERT INTO process (run, process, resource) VALUES (?, ?, ?)"
                " ON CONFLICT DO UPDATE SET resource = excluded.resource RETURNING id",
                (run, source.process, source.resource),
            ).fetchone()[0]
        else:
            process = known.process
        if len(self._processes) >= _CACHED:
            self._processes.clear()
        self._processes[key] = _Process(run, process, source.name, source.resource)
        return run, process

    def series(self, run: int, process: int, arrival: Arrival) -> int | None:
        """The row of a series, or None if the run has too many to get another."""
        found = self._find_series(process, arrival)
        if found is not None:
            return found
        counted = self._connection.execute(
            "UPDATE run SET series = series + 1 WHERE id = ? AND series < ?",
            (run, MAX_SERIES_PER_RUN),
        )
        if not counted.rowcount:
            return None
        created = self._connection.execute(
            "INSERT INTO series (process, metric, attributes, unit, description) VALUES (?, ?, ?, ?, ?)",
            (process, arrival.metric, arrival.attributes, arrival.unit, arrival.description),
        ).lastrowid
        assert created is not None
        return self._remember_series(process, arrival, created)

    def known(self, arrivals: Iterable[Arrival]) -> Iterable[tuple[int, int, Arrival]]:
        """The rows (run, series) of arrivals, without those that have none: what a replay needs."""
        for arrival in arrivals:
            source = arrival.source
            key = (source.project, source.run_id, source.process)
            if key not in self._processes:
                row = self._connection.execute(
                    "SELECT run.id, process.id FROM run JOIN process ON process.run = run.id"
                    " WHERE project = ? AND run_id = ? AND process = ?",
                    key,
                ).fetchone()
                if row is None:
                    continue
                # No name and resource: whatever is sent next is written to the rows.
                self._processes[key] = _Process(row[0], row[1], "", "")
            known = self._processes[key]
            series = self._find_series(known.process, arrival)
            if series is not None:
                yield known.run, series, arrival

    def _find_series(self, process: int, arrival: Arrival) -> int | None:
        cached = self._series.get((process, arrival.metric, arrival.attributes))
        if cached is not None:
            return cached
        row = self._connection.execute(
            "SELECT id FROM series WHERE process = ? AND metric = ? AND attributes = ?",
            (process, arrival.metric, arrival.attributes),
        ).fetchone()
        return None if row is None else self._remember_series(process, arrival, row[0])

    def _remember_series(self, process: int, arrival: Arrival, series: int) -> int:
        if len(self._series) >= _CACHED:
            self._series.clear()
        self._series[process, arrival.metric, arrival.attributes] = series
        return series


def find_run(connection: sqlite3.Connection, run_id: str, project: str | None) -> int:
    """The row of a run.

    Raises:
        NotFoundError: There is none.
        AmbiguousRunError: `project` is None and several projects have one.
    """
    rows = connection.execute(
        "SELECT id, project FROM run WHERE run_id = ? AND project = ifnull(?, project) ORDER BY project",
        (run_id, project),
    ).fetchall()
    if len(rows) == 1:
        return int(rows[0][0])
    if rows:
        names = ", ".join(repr(row[1]) for row in rows[:10])
        raise AmbiguousRunError(f"run {run_id!r} is in {len(rows)} projects ({names}); say which with `project`")
    where = "" if project is None else f" in project {project!r}"
    raise NotFoundError(f"there is no run {run_id!r}{where}; list the runs to see their ids")
