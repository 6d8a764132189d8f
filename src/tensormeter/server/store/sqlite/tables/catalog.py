"""The catalog: which runs, processes and series there are, and their row ids."""

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tensormeter.otlp.batch import STEP_METRIC
from tensormeter.server.store.models.errors import AmbiguousRunError, NotFoundError
from tensormeter.server.store.models.points import Points, beginning
from tensormeter.server.store.rules import limits
from tensormeter.server.store.rules.ingest_series import Arrival
from tensormeter.server.store.rules.resource_identity import Source
from tensormeter.server.store.sqlite.integrity.seals import RUN_TALLY
from tensormeter.server.store.sqlite.points.memtable import SeriesPoints

__all__ = ["Catalog", "find_run"]


_CACHED: Final = 200_000


@dataclass(slots=True)
class _Tombstone:
    """When a run was deleted, the last journal row before that, and whether it has been started anew."""

    time: int
    journal: int
    revived: bool


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
        self._series: dict[tuple[int, str, str, str, str], int] = {}
        self._first_steps: dict[tuple[str, str, str], tuple[int, int]] = {}
        self._known_tombstones: dict[tuple[str, str], _Tombstone] | None = None

    def forget(self, connection: sqlite3.Connection | None = None) -> None:
        """Drop what is remembered: rows may be gone again. Never waits for the disk.

        Args:
            connection: To use from now on; None: the same as before.
        """
        self._processes.clear()
        self._series.clear()
        self._first_steps.clear()
        self._known_tombstones = None
        self._connection = connection or self._connection

    def process(
        self,
        source: Source,
        times: tuple[int, int],
        received: int,
        *,
        starts: bool = False,
        points: bool = True,
    ) -> tuple[int, int] | None:
        """The rows (run, process) of a source that has just sent something; None if its run was deleted.

        Args:
            source: Who sent; the last name and resource sent stay.
            times: The earliest and the latest time in what it sent.
            received: Now.
            starts: Whether it says that the run starts, which brings a deleted one back.
            points: Whether it sent points.
        """
        if self._is_deleted(source, times[0], starts=starts):
            return None
        time, newest = times
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
            "UPDATE run SET created = min(created, ?), updated = max(updated, ?), newest = max(newest, ?) WHERE id = ?",
            # A sender's clock may be wrong by years: from then on the run would never be late.
            (time, received, min(newest, received) if points else 0, run),
        )
        if known is None or known.resource != source.resource:
            process = self._connection.execute(
                "INSERT INTO process (run, process, resource, attempt) VALUES (?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET resource = excluded.resource, attempt = excluded.attempt RETURNING id",
                (run, source.process, source.resource, source.attempt),
            ).fetchone()[0]
        else:
            process = known.process
        if len(self._processes) >= _CACHED:
            self._processes.clear()
        self._processes[key] = _Process(run, process, source.name, source.resource)
        return run, process

    def record_first_steps(self, arrivals: Iterable[Arrival], seq: int) -> None:
        """Remember where processes of later attempts begin, and the journal row that said so."""
        for arrival in arrivals:
            source = arrival.source
            if source.attempt == 1 or arrival.metric != STEP_METRIC or not isinstance(arrival.points, Points):
                continue
            found = beginning(arrival.points)
            if found is None:
                continue
            key = (source.project, source.run_id, source.process)
            known = self._first_steps.get(key)
            if known is None or found[0] < known[0] or found[1] < known[1]:
                row = self._connection.execute(
                    "UPDATE process SET first_step = min(ifnull(first_step, ?1), ?1), began = min(ifnull(began, ?2), ?2),"
                    " began_seq = iif(first_step <= ?1 AND began <= ?2, began_seq, ?3) WHERE process = ?6"
                    " AND run = (SELECT id FROM run WHERE project = ?4 AND run_id = ?5) RETURNING first_step, began",
                    (*found, seq, *key),
                ).fetchone()
                if row is not None:
                    self._first_steps[key] = row

    def series(self, run: int, process: int, arrival: Arrival) -> int | None:
        """The row of a series, or None if the run has too many to get another."""
        found = self._find_series(process, arrival)
        if found is not None:
            return found
        counted = self._connection.execute(
            "UPDATE run SET series = series + 1 WHERE id = ? AND series < ?",
            (run, limits.MAX_SERIES_PER_RUN),
        )
        if not counted.rowcount:
            return None
        created = self._connection.execute(
            "INSERT INTO series (process, metric, kind, scope, attributes, unit, description) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (*_key(process, arrival), arrival.unit, arrival.description),
        ).lastrowid
        assert created is not None
        return self._remember_series(process, arrival, created)

    def place(self, seq: int, arrivals: Iterable[Arrival], orphans: list[Arrival]) -> Iterable[SeriesPoints]:
        """Arrivals of journal row `seq` at their rows: what a replay needs.

        Those of deleted runs, and of series that their run had no room for, are left out. Others whose rows are not there are
        appended to `orphans`: the catalog is damaged.
        """
        for arrival in arrivals:
            source = arrival.source
            tombstone = self._tombstones.get((source.project, source.run_id))
            if tombstone is not None and seq <= tombstone.journal:
                continue
            key = (source.project, source.run_id, source.process)
            if key not in self._processes:
                row = self._connection.execute(
                    "SELECT run.id, process.id FROM run JOIN process ON process.run = run.id"
                    " WHERE project = ? AND run_id = ? AND process = ?",
                    key,
                ).fetchone()
                if row is None:
                    orphans.append(arrival)
                    continue
                # No name and resource: whatever is sent next is written to the rows.
                self._processes[key] = _Process(row[0], row[1], "", "")
            known = self._processes[key]
            series = self._find_series(known.process, arrival)
            if series is not None:
                yield SeriesPoints(known.run, known.process, series, arrival.metric, arrival.points)
            elif not self._is_full(known.run):
                orphans.append(arrival)

    def _is_full(self, run: int) -> bool:
        """Whether a run can have no more series."""
        row = self._connection.execute("SELECT series FROM run WHERE id = ?", (run,)).fetchone()
        return row is not None and row[0] >= limits.MAX_SERIES_PER_RUN

    def delete(self, run: int, received: int, journal: int) -> None:
        """Make a run unknown from now on; what it has is for others to remove."""
        self._connection.execute(
            "INSERT INTO tombstone (project, run_id, time, journal) SELECT project, run_id, ?, ? FROM run WHERE id = ?"
            " ON CONFLICT DO UPDATE SET time = excluded.time, journal = excluded.journal, revived = 0",
            (received, journal, run),
        )
        # Its id is free again; nobody can send this one, which is not an identifier.
        self._connection.execute("UPDATE run SET deleted = ?, run_id = '/' || id WHERE id = ?", (received, run))
        self.forget()

    @property
    def _tombstones(self) -> dict[tuple[str, str], _Tombstone]:
        if self._known_tombstones is None:
            rows = self._connection.execute("SELECT project, run_id, time, journal, revived FROM tombstone")
            self._known_tombstones = {(row[0], row[1]): _Tombstone(row[2], row[3], bool(row[4])) for row in rows}
        return self._known_tombstones

    def _is_deleted(self, source: Source, time: int, *, starts: bool) -> bool:
        tombstone = self._tombstones.get((source.project, source.run_id))
        if tombstone is None or tombstone.revived:
            return False
        # Who knows nothing of tensormeter never says that a run starts.
        if time <= tombstone.time or not (starts or source.derived):
            return True
        tombstone.revived = True
        self._connection.execute(
            "UPDATE tombstone SET revived = 1 WHERE project = ? AND run_id = ?", (source.project, source.run_id)
        )
        return False

    def _find_series(self, process: int, arrival: Arrival) -> int | None:
        key = _key(process, arrival)
        cached = self._series.get(key)
        if cached is not None:
            return cached
        row = self._connection.execute(
            "SELECT id FROM series WHERE process = ? AND metric = ? AND kind = ? AND scope = ? AND attributes = ?", key
        ).fetchone()
        return None if row is None else self._remember_series(process, arrival, row[0])

    def _remember_series(self, process: int, arrival: Arrival, series: int) -> int:
        if len(self._series) >= _CACHED:
            self._series.clear()
        self._series[_key(process, arrival)] = series
        return series


def _key(process: int, arrival: Arrival) -> tuple[int, str, str, str, str]:
    return process, arrival.metric, arrival.kind, arrival.scope, arrival.attributes


def find_run(connection: sqlite3.Connection, run_id: str, project: str | None) -> int:
    """The row of a run.

    Raises:
        NotFoundError: There is none.
        AmbiguousRunError: `project` is None and several projects have one.
        DamagedError: Its row is damaged.
    """
    rows = connection.execute(
        f"SELECT {RUN_TALLY.selection} FROM run WHERE run_id = ? AND project = ifnull(?, project) AND NOT deleted"
        " ORDER BY project",
        (run_id, project),
    ).fetchall()
    if len(rows) == 1:
        RUN_TALLY.verify(rows[0], f"the row of run {run_id!r}")
        return int(rows[0][0])
    if rows:
        names = ", ".join(repr(row[1]) for row in rows[:10])
        raise AmbiguousRunError(f"run {run_id!r} is in {len(rows)} projects ({names}); say which with `project`")
    where = "" if project is None else f" in project {project!r}"
    raise NotFoundError(f"there is no run {run_id!r}{where}; list the runs to see their ids")
